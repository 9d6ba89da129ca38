"""The command `kft serve`: an exported model behind TensorFlow Serving's API, without Docker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import rich_click as click

from kerastune_ft import terminal
from kerastune_ft.errors import ServingError

if TYPE_CHECKING:
    from kerastune_ft.serving.server import Addresses

_MIB = 2**20


@click.command()
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--name", help="What clients call the model; by default what the export says.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. There is no password and no encryption: leave others to a proxy.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8501,
    show_default=True,
    help="Port of REST and of the page; 0 is any free one.",
)
@click.option(
    "--grpc-port",
    type=click.IntRange(0, 65535),
    default=8500,
    show_default=True,
    help="Port of gRPC; 0 is any free one.",
)
@click.option("--no-grpc", is_flag=True, help="Serve REST alone.")
@click.option(
    "--versions",
    default="latest",
    show_default=True,
    help="Which versions are served: latest, all, or numbers such as 3,5.",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="LABEL=VERSION",
    help="A further name for a version, such as stable=3; can be given repeatedly.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1, 65536),
    default=32,
    show_default=True,
    help="Examples that are computed together, at most.",
)
@click.option(
    "--batch-timeout-ms",
    type=click.FloatRange(0, 10_000),
    default=2.0,
    show_default=True,
    help="Milliseconds that a request waits for others to be computed with.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=2,
    show_default=True,
    help="Batches that are computed at once.",
)
@click.option(
    "--max-queue",
    type=click.IntRange(1, 1_000_000),
    default=256,
    show_default=True,
    help="Requests that wait, at most; further ones are answered with 503.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.001, 86_400),
    default=30.0,
    show_default=True,
    help="Seconds after which a request is answered with 504.",
)
@click.option(
    "--max-request-mib",
    type=click.FloatRange(0.001, 2000),
    default=32.0,
    show_default=True,
    help="Size of a request, at most; longer ones are answered with 413.",
)
@click.option(
    "--poll-seconds",
    type=click.FloatRange(0.05, 86_400),
    default=2.0,
    show_default=True,
    help="Seconds between two looks for new versions.",
)
@click.option(
    "--drain-seconds",
    type=click.FloatRange(1, 86_400),
    default=30.0,
    show_default=True,
    help="Seconds that open requests are given after SIGTERM.",
)
def serve(
    export: Path,
    name: str | None,
    host: str,
    port: int,
    grpc_port: int,
    no_grpc: bool,
    versions: str,
    labels: tuple[str, ...],
    max_batch: int,
    batch_timeout_ms: float,
    workers: int,
    max_queue: int,
    timeout: float,
    max_request_mib: float,
    poll_seconds: float,
    drain_seconds: float,
) -> None:
    """Serves an EXPORT over REST and gRPC as TensorFlow Serving does, with a page to try it.

    EXPORT is a folder with numbered versions, one version's folder, or a run. A new version takes
    over as soon as its folder is there. `kft serve runs/mobilenet`
    """
    from kerastune_ft import devices
    from kerastune_ft.exports import contract
    from kerastune_ft.serving import registry, server
    from kerastune_ft.serving.batching import Limits
    from kerastune_ft.serving.service import Bounds

    other = contract.other_format(export)
    if other:
        whole = export.resolve()
        base = whole.parent.parent if contract.is_version(whole) else whole.parent
        raise ServingError(
            f"'{export}' holds files of {other}; kft serve takes SavedModels, such as those in "
            f"'{base}' that 'kft export RUN' writes."
        )
    found = registry.find(export)
    bytes_of_request = int(max_request_mib * _MIB)
    settings = server.Settings(
        name=name,
        host=host,
        port=port,
        grpc_port=None if no_grpc else grpc_port,
        policy=registry.policy(versions),
        labels=dict(_label(text) for text in labels),
        limits=Limits(max_batch, batch_timeout_ms / 1000, max_queue, workers),
        bounds=Bounds(
            request_bytes=bytes_of_request,
            open_requests=2 * max_queue,
            open_bytes=max(512 * _MIB, 2 * bytes_of_request),
            seconds=timeout,
        ),
        poll_seconds=poll_seconds,
        drain_seconds=drain_seconds,
    )
    with devices.quiet_start():
        import tensorflow  # noqa: F401
    server.serve(found, settings, _say, _started)


def _label(text: str) -> tuple[str, int]:
    name, found, number = text.partition("=")
    if not name or not found or not (number.isascii() and number.isdigit()):
        raise ServingError(f"--label: expected LABEL=VERSION such as stable=3, got '{text}'.")
    return name, int(number)


def _say(line: str) -> None:
    click.echo(line)


def _started(addresses: Addresses) -> None:
    """Says where the server answers."""
    from kerastune_ft.serving import client

    console = terminal.console()
    rest = f"{addresses.rest}/v1/models/{addresses.model}:predict"
    host = urlsplit(addresses.rest).hostname or ""
    lines = {
        "model": f"{addresses.model} version {addresses.version}: {addresses.about}",
        "REST": rest,
        "gRPC": addresses.grpc or "off",
        "page": f"{addresses.rest}/",
    }
    for what, text in lines.items():
        console.print(f"{what:<8} {text}", markup=False)
    if not client.is_loopback(host):
        console.print(
            "others can reach it: there is no password and no encryption; put a proxy before it",
            markup=False,
        )
