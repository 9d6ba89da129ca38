"""Several hosts that train one model: who this one is, how they meet, what if one is lost.

JAX only. Rank and meeting point come from the environment that the launcher set; they are never
guessed. A host that ends without `finish()` counts as lost and ends the others within seconds.

    place = hosts.find(2)        # KFT_HOST_RANK, SLURM, Open MPI, PMI or Kubernetes
    hosts.join(place)            # before JAX does anything
    ...
    hosts.finish()               # waits for the others, however long they take
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from kerastune_ft import watchdog
from kerastune_ft.errors import TrainingError

PORT = 29400
START_SECONDS = 300.0
HEARTBEAT_SECONDS = 30
_SHUTDOWN_SECONDS = 30

# Launcher to the variables that hold a process's rank and the number of processes.
LAUNCHERS = {
    "kft": ("KFT_HOST_RANK", None),
    "SLURM": ("SLURM_PROCID", "SLURM_NTASKS"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "PMI": ("PMI_RANK", "PMI_SIZE"),
    "Kubernetes": ("JOB_COMPLETION_INDEX", None),
}


@dataclass(frozen=True)
class Place:
    """One host's place among the hosts of a run.

    Args:
        rank: 0 up to `hosts - 1`; 0 is the one that the others meet at and that writes the run.
        hosts: How many there are.
        coordinator: `name:port` of host 0. The port after it must be free too.
        launcher: Of `LAUNCHERS`, what said so.
    """

    rank: int
    hosts: int
    coordinator: str
    launcher: str


def find(hosts: int, environ: Mapping[str, str] | None = None) -> Place:
    """Reads this host's place from the environment.

    Args:
        hosts: `train.hosts`.
        environ: None is `os.environ`.

    Raises:
        TrainingError: If a variable is missing, is no number, or contradicts `hosts`.
    """
    environ = os.environ if environ is None else environ
    launcher = next((name for name, (rank, _) in LAUNCHERS.items() if environ.get(rank)), None)
    if launcher is None:
        known = ", ".join(rank for rank, _ in LAUNCHERS.values())
        raise TrainingError(
            f"train.hosts: {hosts} hosts were asked for and nothing says which one this is: none "
            f"of {known} is set; set KFT_HOST_RANK to 0..{hosts - 1} and KFT_COORDINATOR to "
            "'NAME_OF_HOST_0:PORT' on every host, or start with srun or mpirun."
        )
    rank_name, size_name = LAUNCHERS[launcher]
    rank = _number(environ, rank_name)
    if size_name and environ.get(size_name) and (size := _number(environ, size_name)) != hosts:
        raise TrainingError(
            f"train.hosts: {hosts}, but {size_name} says that {size} processes were started; "
            f"start one process per host, or set train.hosts={size}."
        )
    if not 0 <= rank < hosts:
        raise TrainingError(
            f"{rank_name}: expected 0..{hosts - 1} with train.hosts: {hosts}, got {rank}."
        )
    return Place(rank, hosts, _coordinator(environ, launcher, rank_name), launcher)


def first_node(nodes: str) -> str:
    """Returns the first name of a SLURM node list such as `gpu[003-005,009],login1`."""
    head, bracket, rest = nodes.partition("[")
    if not bracket or "," in head:
        return head.partition(",")[0].strip()
    inside, _, after = rest.partition("]")
    suffix = after.partition(",")[0]
    first = inside.partition(",")[0].partition("-")[0]
    name = f"{head}{first}{suffix}"
    return first_node(name) if "[" in name else name.strip()


def join(place: Place) -> None:
    """Meets the other hosts and starts to watch them. Before JAX looks for devices.

    Keras's `distribution.initialize` leaves JAX's waits at 100 and 300 seconds, so JAX is called
    directly. What else Keras's does, agreeing on a seed, `devices.set_seed` has done already.

    Raises:
        TrainingError: If JAX is in use already, or the others do not come within five minutes.
    """
    global _watch
    jax: Any = importlib.import_module("jax")  # half of it is typed

    if _watch is not None:
        raise TrainingError(
            "train.hosts: this process has joined already; start a process per run."
        )
    watch = _Watch(place)
    watch.meet()  # if JAX itself waits in vain, it aborts the process
    with contextlib.suppress(AttributeError):  # JAX before 0.8 has no such switch
        # It would take SIGTERM for itself, which says here that the run is to stop and save.
        jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.hosts,
            place.rank,
            initialization_timeout=int(START_SECONDS),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except RuntimeError as error:
        watch.stop()
        raise TrainingError(
            f"train.hosts: host {place.rank} could not meet the others at {place.coordinator} "
            f"({str(error).splitlines()[0]}); check that every host runs the same command and "
            "that KFT_COORDINATOR names host 0 and a free port."
        ) from error
    _watch = watch


def finish() -> None:
    """Says that this host's part is done and waits until every host has said so.

    Does nothing where no others were joined. If one is lost meanwhile, the process ends.
    """
    if _watch is not None:
        _watch.finish()


class _Watch:
    """The training's side of `watchdog.py`: starts it, hears it, tells it the end."""

    def __init__(self, place: Place) -> None:
        name, _, port = place.coordinator.rpartition(":")
        script = str(Path(watchdog.__file__))
        command = [sys.executable, "-I", "-S", script, str(place.rank), str(place.hosts)]
        self.process = subprocess.Popen(
            [*command, name.strip("[]"), str(int(port) + 1), str(START_SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.tell_to: IO[bytes] = self.process.stdin
        self.place = place
        self.finished = False
        self.news: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._hear, args=(self.process.stdout,), daemon=True).start()
        atexit.register(self._at_exit)  # after JAX's own, hence before it

    def meet(self) -> None:
        word, _, what = self.news.get().partition(" ")
        if word == "met":
            return
        self.stop()
        if word == "taken":
            raise TrainingError(
                f"train.hosts: host 0 cannot listen on port {what}; name another one in "
                "KFT_COORDINATOR, on every host: it and the one after it must be free."
            )
        raise TrainingError(
            f"train.hosts: host {self.place.rank} waited {START_SECONDS:.0f} s at "
            f"{self.place.coordinator} for {what or 'its watchdog'}, in vain; check that every "
            "host runs the same command, that KFT_COORDINATOR names host 0, and that its port "
            "and the one after it are open."
        )

    def finish(self) -> None:
        self.finished = True
        self._tell("done")
        self.news.get()

    def stop(self) -> None:
        atexit.unregister(self._at_exit)
        self.process.kill()
        self.process.wait()

    def _hear(self, lines: IO[bytes]) -> None:
        for line in lines:
            if line.strip() == b"lost":
                os._exit(2)  # what was lost stands on stderr; the main thread may never return
            self.news.put(line.decode().strip())
        self.news.put("")  # "all" has been said, or the watchdog has died: JAX still watches

    def _at_exit(self) -> None:
        if self.finished:
            return
        self._tell("failed")
        # JAX would wait here for hosts that wait for this one. Its sockets close when this process
        # ends, and the errors that the others get by that must come second.
        time.sleep(0.1)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(1 if getattr(sys, "last_value", None) is not None else 2)

    def _tell(self, word: str) -> None:
        with contextlib.suppress(OSError):
            self.tell_to.write(f"{word}\n".encode())
            self.tell_to.flush()


_watch: _Watch | None = None


def _number(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError:
        raise TrainingError(f"{name}: expected an integer, got '{environ[name]}'.") from None


def _coordinator(environ: Mapping[str, str], launcher: str, rank_name: str) -> str:
    given = environ.get("KFT_COORDINATOR")
    if given:
        name, colon, port = given.rpartition(":")
        if not colon:
            return f"{given}:{PORT}"
        if not name or not port.isdecimal() or not 0 < int(port) < 65535:
            raise TrainingError(
                f"KFT_COORDINATOR: expected 'NAME_OF_HOST_0:PORT', such as 'node1:{PORT}', got "
                f"'{given}'."
            )
        return given
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
    if launcher == "SLURM" and nodes:
        # From the job's number, so that two jobs on a node do not meet.
        return f"{first_node(nodes)}:{PORT + 2 * (int(environ.get('SLURM_JOB_ID') or 0) % 1024)}"
    more = " or SLURM_STEP_NODELIST" if launcher == "SLURM" else ""
    raise TrainingError(
        f"train.hosts: {rank_name} is set and KFT_COORDINATOR{more} is not; set KFT_COORDINATOR "
        f"to 'NAME_OF_HOST_0:PORT' on every host, such as 'node1:{PORT}'."
    )
