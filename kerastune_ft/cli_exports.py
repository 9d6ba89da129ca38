"""The commands that bring a run to a server: `kft export` and `kft verify`."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import rich_click as click

from kerastune_ft import terminal

_FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("run", type=_FOLDER)
@click.option("--output", type=_FOLDER, help="Folder of versions; by default RUN/export.")
@click.option("--version", type=int, help="A whole number from 1; by default the next one.")
@click.option("--name", help="Under which the model is served; by default the run's name.")
@click.option(
    "--examples",
    type=click.IntRange(min=0),
    default=200,
    show_default=True,
    help="So many examples of the run's data are compared, at most.",
)
def export(
    run: Path, output: Path | None, version: int | None, name: str | None, examples: int
) -> None:
    """Writes the model of a RUN for TensorFlow Serving, if it answers as the run does.

    `kft export runs/mobilenet`, `kft export runs/mobilenet --output models/mobilenet --version 3`
    """
    console = terminal.console()
    terminal.workflow()
    from kerastune_ft import exports
    from kerastune_ft.runs import Run

    exports.export(
        Run.open(run),
        output=output,
        version=version,
        name=name,
        examples=examples,
        console=console,
    )


@click.command()
@click.argument("export", type=_FOLDER)
@click.option("--url", help="Of a server that serves it, such as http://localhost:8501.")
@click.option("--run", type=_FOLDER, help="Where the run lies, if it was moved.")
@click.option("--report", type=_FOLDER, help="Where what was found is written, as JSON.")
def verify(export: Path, url: str | None, run: Path | None, report: Path | None) -> None:
    """Compares an EXPORT, or a server, with what the training process answered.

    `kft verify runs/mobilenet/export/1`, `kft verify runs/mobilenet/export/1 --url
    http://localhost:8501`. Exits with 1 if they differ.
    """
    console = terminal.console()
    terminal.workflow()
    from kerastune_ft.errors import ExportError
    from kerastune_ft.exports import verification

    found = verification.verify(export, url=url, run=run)
    message = ""
    try:
        found.check(export)
    except ExportError as error:
        message = str(error)
    if report is not None:
        content = {**dataclasses.asdict(found), "message": message}
        report.write_text(json.dumps(content).replace("Infinity", '"error"'), encoding="utf-8")
    if message:
        click.echo(message, err=True)
        sys.exit(1)
    compared = f"{found.examples} examples of its data and {found.odd} odd ones"
    console.print(
        f"{export}: answers as training did: {compared}, largest difference {found.largest:.1e}",
        highlight=False,
    )
    if found.missing:
        console.print(f"  not compared: {found.missing}", highlight=False, markup=False)
