"""Runs the servers: takes ports, loads versions, answers, looks for new versions, drains.

On SIGTERM or Ctrl-C no further connection is taken, what is open is answered, for as long as
`drain_seconds` allow, and the process ends.

    serve(registry.find(Path("runs/mobilenet")), Settings(port=8501), say=print)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

from kerastune_ft.errors import ServingError
from kerastune_ft.serving import registry as registries
from kerastune_ft.serving import signatures
from kerastune_ft.serving.batching import Batcher, Limits
from kerastune_ft.serving.registry import Export, Policy, Registry
from kerastune_ft.serving.service import Bounds, Service

if TYPE_CHECKING:
    import uvicorn

_PACKAGES = (
    "starlette",
    "uvicorn",
    "prometheus_client",
    "grpc",
    "grpc_health.v1.health_pb2",
    "tensorflow_serving.apis.prediction_service_pb2_grpc",
)
_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 30


@dataclass(frozen=True)
class Settings:
    """How a model is served.

    Args:
        name: What clients call it; what its export says by default.
        host: An address of this machine; other machines reach it if it is not the loopback.
        port: Of HTTP; 0 is any free one.
        grpc_port: Likewise; `None` for no gRPC.
        policy: Which versions are served.
        labels: Further names for versions.
        limits: How requests are joined.
        bounds: What is refused.
        poll_seconds: Between two looks for new versions.
        drain_seconds: That open requests are given at the end.
    """

    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8501
    grpc_port: int | None = 8500
    policy: Policy = "latest"
    labels: Mapping[str, int] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    bounds: Bounds = field(default_factory=Bounds)
    poll_seconds: float = 2.0
    drain_seconds: float = 30.0


@dataclass(frozen=True)
class Addresses:
    """Where a server answers.

    Args:
        rest: Such as `http://127.0.0.1:8501`.
        grpc: Such as `127.0.0.1:8500`; `None` without gRPC.
        model: The name of the model.
        version: The newest that answers.
        about: What the model is, in words.
    """

    rest: str
    grpc: str | None
    model: str
    version: int
    about: str


def serve(
    export: Export,
    settings: Settings,
    say: Callable[[str], None],
    started: Callable[[Addresses], None] = lambda addresses: None,
    stop: threading.Event | None = None,
) -> None:
    """Serves a model until SIGTERM or Ctrl-C, or until `stop` is set.

    In another thread than the main one no signal is caught: Python allows it there alone.

    Args:
        export: From `registry.find`.
        settings: How.
        say: Is told of versions that come, go or fail.
        started: Is told when requests are answered.
        stop: Ends the server from another thread.

    Raises:
        ServingError: If a port is taken, a package is missing, or no version can be loaded.
        KeyboardInterrupt: After Ctrl-C, once everything is answered.
        SystemExit: After SIGTERM, likewise; with 143.
    """
    for package in _PACKAGES:
        signatures.require(package, "kft serve")
    ending = _Ending(stop or threading.Event())
    with ending.catching():
        asyncio.run(_serve(export, settings, say, started, ending))
    if ending.caught == signal.SIGINT:
        raise KeyboardInterrupt
    if ending.caught is not None:
        raise SystemExit(128 + ending.caught)


@dataclass
class _Ending:
    """Why and when a server ends.

    Args:
        stop: Is set when it shall.
        caught: The signal that was, if any.
    """

    stop: threading.Event
    caught: int | None = None

    @contextlib.contextmanager
    def catching(self) -> Iterator[None]:
        """Lets the first SIGTERM or SIGINT end the server gently, and the second at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.caught is not None:
            os._exit(128 + number)
        self.caught = number
        self.stop.set()


async def _serve(
    export: Export,
    settings: Settings,
    say: Callable[[str], None],
    started: Callable[[Addresses], None],
    ending: _Ending,
) -> None:
    import uvicorn

    from kerastune_ft.serving import rest, rpc
    from kerastune_ft.serving.metrics import Metrics

    name = settings.name or export.name()
    if not registries.is_name(name):
        raise ServingError(
            f"--name: expected letters, digits, '.', '_' and '-', the first a letter or a digit, "
            f"got '{name}'."
        )
    registry = Registry(name, export, settings.policy, settings.labels, say=say)
    metrics = Metrics()
    metrics.watch_version(lambda: max(registry.numbers, default=0))
    batcher = Batcher(settings.limits, metrics)
    service = Service(registry, batcher, metrics, settings.bounds)
    with _listening(settings.host, settings.port) as listener:
        procedures = None
        grpc_address = None
        if settings.grpc_port is not None:
            procedures = rpc.Server(service)
            port = procedures.bind(settings.host, settings.grpc_port)
            grpc_address = _address(settings.host, port)
        await asyncio.to_thread(registry.refresh)
        if ending.stop.is_set():
            return
        if not registry.ready:
            raise ServingError(_why_not(registry, export))
        server = uvicorn.Server(_config(rest.application(service), settings))
        # uvicorn would raise the signals again before gRPC and the workers have ended.
        server.capture_signals = contextlib.nullcontext  # type: ignore[assignment,method-assign]
        await batcher.start()
        if procedures is not None:
            await procedures.start()
        beside = [
            asyncio.create_task(_poll(registry, settings.poll_seconds, say)),
            asyncio.create_task(_drain(server, service, procedures, settings, ending)),
        ]
        port = listener.getsockname()[1]
        where = f"http://{_address(settings.host, port)}"
        about = _about(registry)
        tell = Addresses(where, grpc_address, name, registry.numbers[-1], about)
        beside.append(asyncio.create_task(_told(server, started, tell)))
        try:
            await server.serve(sockets=[listener])
        finally:
            service.draining = True
            if procedures is not None:
                await procedures.stop(settings.drain_seconds)
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await batcher.stop()
            _leave(batcher, registry, ending)


def _config(application: Any, settings: Settings) -> uvicorn.Config:
    import uvicorn

    from kerastune_ft.serving import connections

    return uvicorn.Config(
        application,
        http=connections.protocol(settings.bounds.seconds),
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        # A part of a second would make the bound longer than it was asked for.
        timeout_graceful_shutdown=max(1, int(settings.drain_seconds)),
    )


async def _poll(registry: Registry, seconds: float, say: Callable[[str], None]) -> None:
    """Looks for new versions, again and again."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await asyncio.to_thread(registry.refresh)
        except Exception as error:
            say(f"versions cannot be looked for: {error}; what is served goes on")


async def _told(
    server: uvicorn.Server, started: Callable[[Addresses], None], addresses: Addresses
) -> None:
    """Says where the server answers, once it does."""
    while not server.started:
        await asyncio.sleep(0.01)
    started(addresses)


async def _drain(
    server: uvicorn.Server,
    service: Service,
    procedures: Any,
    settings: Settings,
    ending: _Ending,
) -> None:
    """Waits for the end, and then lets HTTP and gRPC end at the same time."""
    while not ending.stop.is_set():
        await asyncio.sleep(0.05)
    service.draining = True
    server.should_exit = True
    if procedures is not None:
        await procedures.stop(settings.drain_seconds)


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Takes a port, without answering on it yet."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends without delay where a socket says that it is TCP, and only there; otherwise the
    # second part of every small answer waits 40 ms for the client's acknowledgement of the first.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            raise ServingError(
                f"--port: {_address(host, port)} cannot be listened on: {error}; give another one."
            ) from error
        yield listener
    finally:
        listener.close()


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _about(registry: Registry) -> str:
    """Returns what the newest version is, in words."""
    with registry.borrow() as version:
        facts = version.model.facts
        if "task" not in facts:
            return f"signatures {', '.join(sorted(version.model.signatures))}"
        classes = facts.get("classes")
        count = f", {len(classes)} classes" if isinstance(classes, list) else ""
        return f"{facts['task']}{count}"


def _why_not(registry: Registry, export: Export) -> str:
    """Returns why no version can answer."""
    try:
        failed = [status for status in registry.statuses() if status.message]
    except Exception:
        failed = []
    if not failed:
        known = ", ".join(str(number) for number in sorted(export.versions())) or "none"
        return f"no version that --versions wants is in '{export.base}'; there are: {known}."
    newest = failed[0]
    return f"version {newest.version} cannot be loaded: {newest.message}"


def _leave(batcher: Batcher, registry: Registry, ending: _Ending) -> None:
    """Ends the process after a signal, even if a model is still computed or loaded.

    Neither can be interrupted, and Python would wait for their threads, however long that takes.
    """
    if ending.caught is None or not (batcher.computing or registry.loading):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + ending.caught)
