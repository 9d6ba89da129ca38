"""Watches the other hosts of a run from a process of its own, and says which one was lost.

JAX ends a process whose peer has died by `abort()`, with a stack trace and no name; the survivors
of an error in Python may hang in a collective. Neither can be caught in the process itself, so
each host starts one of these beside its training. Host 0's listens, the others connect; a link
that closes, or is silent for `SILENCE_SECONDS`, or a training that ends without having said so,
is a lost host. Host 0's decides which was the first: the loss of one soon ends the trainings of
the others by errors of their own. The line goes to stderr, the training to its end.

Runs as a script, by path, on the standard library alone: it must be up before the training is.

    python -I -S watchdog.py RANK HOSTS HOST PORT SECONDS     # stdin, stdout: the training

To the training it says `met` when all are there, `absent ...` if they are not in SECONDS,
`taken ...` if its port is, `lost`, and `all` when all are done; the training says `done` or
`failed`.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys
import time

SILENCE_SECONDS = 15.0  # below `hosts.HEARTBEAT_SECONDS`, or JAX ends host 0 before
BEAT_SECONDS = 3.0
ENDING_SECONDS = 0.5  # what a training has for its end after saying that it failed
VERDICT_SECONDS = 3.0  # how long a host whose training has ended waits to hear who was first


def lost_line(lost: int, rank: int) -> str:
    """Returns what a survivor prints."""
    return (
        f"host {lost} was lost, so host {rank} ends too; its own output says why. "
        "Start the same command on every host with --resume.\n"
    )


class Watchdog:
    """Keeps the links of one host until all are done or one is lost.

    Args:
        rank: This host's.
        hosts: How many there are.
        address: Host name and port where the watchdog of host 0 listens.
        start_seconds: How long to wait for all to come.
    """

    def __init__(
        self, rank: int, hosts: int, address: tuple[str, int], start_seconds: float
    ) -> None:
        self.rank = rank
        self.hosts = hosts
        self.address = address
        self.parent = os.getppid()
        self.selector = selectors.DefaultSelector()
        self.links: dict[socket.socket, int] = {}  # to the rank at the other end
        self.heard: dict[socket.socket, float] = {}
        self.texts: dict[int, bytes] = {}  # half lines, by file number
        self.done: set[int] = set()
        self.ended_at: float | None = None  # of the training, without being done
        self.start_until = time.monotonic() + start_seconds
        self.met = False

    def run(self) -> int:
        """Watches. Returns the exit status."""
        self.selector.register(0, selectors.EVENT_READ)
        listener = None
        if self.rank == 0:
            try:
                listener = socket.create_server(("", self.address[1]), backlog=self.hosts)
            except OSError as error:
                self._tell_training(f"taken {self.address[1]} ({os.strerror(error.errno or 0)})")
                return 1
            self.selector.register(listener, selectors.EVENT_READ)
        elif not self._connect():
            self._tell_training("absent host 0")
            return 1
        beat_at = 0.0
        while True:
            now = time.monotonic()
            if now >= beat_at:
                self._tell_links("beat")
                beat_at = now + BEAT_SECONDS
            ready = [key.fileobj for key, _ in self.selector.select(0.5)]
            # The links first: if host 0 and this training end together, host 0 was the cause.
            for link in [x for x in ready if isinstance(x, socket.socket)]:
                if link is listener:
                    self._accept(link)
                elif (status := self._hear_link(link)) is not None:
                    return status
            if 0 in ready and (status := self._hear_training()) is not None:
                return status
            if (status := self._judge()) is not None:
                return status

    def _connect(self) -> bool:
        while time.monotonic() < self.start_until and os.getppid() == self.parent:
            try:
                link = socket.create_connection(self.address, timeout=5)
            except OSError:
                time.sleep(0.2)
                continue
            self._add(link, 0)
            self._send(link, f"hello {self.rank}")
            return True
        return False

    def _accept(self, listener: socket.socket) -> None:
        link, _ = listener.accept()
        self._add(link, -1)

    def _add(self, link: socket.socket, rank: int) -> None:
        link.settimeout(5)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.links[link] = rank
        self.heard[link] = time.monotonic()
        self.selector.register(link, selectors.EVENT_READ)

    def _hear_link(self, link: socket.socket) -> int | None:
        try:
            data = link.recv(4096)
        except OSError:
            data = b""
        if not data:
            other = self._drop(link)
            return None if other < 0 or self._complete() else self._lose(other)
        self.heard[link] = time.monotonic()
        for line in self._lines(link.fileno(), data):
            word, _, number = line.partition(" ")
            if word in ("hello", "done", "ended", "lost") and not (
                number.isdecimal() and int(number) < self.hosts
            ):
                continue  # a stranger at the port
            if word == "hello":
                self.links[link] = int(number)
            elif word == "met":
                self._meet()
            elif word == "done":
                self.done.add(int(number))
            elif word == "all":
                self.done.update(range(self.hosts))
            elif word == "ended":
                # JAX aborts whoever is left when host 0 goes; that one still has its say.
                return self._lose(int(number), ENDING_SECONDS)
            elif word == "lost":
                return self._lose(int(number))
        return None

    def _hear_training(self) -> int | None:
        data = os.read(0, 4096)
        words = self._lines(0, data)
        if "done" in words:
            self.done.add(self.rank)
            self._tell_links(f"done {self.rank}")
        if not data or "failed" in words:
            self.selector.unregister(0)
            if self.rank not in self.done:
                if self.rank == 0:
                    self._tell_links("lost 0")
                    return 0
                self.ended_at = time.monotonic()
                self._tell_links(f"ended {self.rank}")
        return None

    def _judge(self) -> int | None:
        """Returns an exit status once there is nothing left to watch."""
        now = time.monotonic()
        if not self.met and self.rank == 0 and len(self._present()) == self.hosts:
            self._tell_links("met")
            self._meet()
        if not self.met and now > self.start_until:
            # Host 0 gives up first; the others hear it by their link.
            absent = sorted(set(range(self.hosts)) - self._present())
            self._tell_training(f"absent host {', '.join(map(str, absent))}")
            return 1
        if self._complete():
            self._tell_links("all")
            self._tell_training("all")
            return 0
        for link, other in list(self.links.items()):
            if other >= 0 and now > self.heard[link] + SILENCE_SECONDS:
                self._drop(link)
                return self._lose(other)
        if self.ended_at is not None and now > self.ended_at + VERDICT_SECONDS:
            return 0
        return None

    def _present(self) -> set[int]:
        return {self.rank, *self.links.values()} - {-1}

    def _meet(self) -> None:
        self.met = True
        self._tell_training("met")

    def _complete(self) -> bool:
        return len(self.done) == self.hosts

    def _lose(self, lost: int, patience: float = 0.0) -> int:
        self._tell_links(f"lost {lost}")
        if not self.met:
            self._tell_training(f"absent host {lost}, which came and went")
            return 1
        if lost == self.rank and self.ended_at is not None:
            return 0  # its own output says why
        # Called lost without having ended, it was cut off for a while, and the others have gone.
        os.write(2, lost_line(0 if lost == self.rank else lost, self.rank).encode())
        time.sleep(patience)
        self._tell_training("lost")
        until = time.monotonic() + 2
        while os.getppid() == self.parent and time.monotonic() < until:
            time.sleep(0.02)
        if os.getppid() == self.parent:
            os.kill(self.parent, signal.SIGKILL)
        return 1

    def _drop(self, link: socket.socket) -> int:
        self.selector.unregister(link)
        other = self.links.pop(link)
        self.texts.pop(link.fileno(), None)
        link.close()
        return other

    def _tell_links(self, line: str) -> None:
        for link in self.links:
            self._send(link, line)

    def _tell_training(self, line: str) -> None:
        with contextlib.suppress(OSError):
            os.write(1, f"{line}\n".encode())

    def _send(self, link: socket.socket, line: str) -> None:
        with contextlib.suppress(OSError):  # that it is closed is heard when it is read
            link.sendall(f"{line}\n".encode())

    def _lines(self, number: int, data: bytes) -> list[str]:
        *whole, rest = (self.texts.get(number, b"") + data).split(b"\n")
        self.texts[number] = rest
        return [line.decode("ascii", "replace") for line in whole]


if __name__ == "__main__":
    for _ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(_ignored, signal.SIG_IGN)  # the training decides; its end is seen here
    _rank, _hosts, _host, _port, _seconds = sys.argv[1:]
    sys.exit(Watchdog(int(_rank), int(_hosts), (_host, int(_port)), float(_seconds)).run())
