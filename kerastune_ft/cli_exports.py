"""The commands that bring a run to a server: `kft export` and `kft verify`."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import rich_click as click

from kerastune_ft import terminal
from kerastune_ft.recipe_export import LEAST_AGREEMENT, MOST_LOST, QUANTIZATIONS

_FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("run", type=_FOLDER)
@click.option(
    "--format",
    "targets",
    multiple=True,
    default=("saved_model",),
    show_default=True,
    type=click.Choice(list(QUANTIZATIONS)),
    help="What is written; can be given repeatedly.",
)
@click.option(
    "--quantize",
    multiple=True,
    default=("none",),
    show_default=True,
    type=click.Choice(QUANTIZATIONS["litert"]),
    help="How litert, onnx and openvino are written; can be given repeatedly.",
)
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
@click.option(
    "--least-agreement",
    type=click.FloatRange(0, 1),
    default=LEAST_AGREEMENT,
    show_default=True,
    help="Share of examples for which a quantised file has to decide as the run does.",
)
@click.option(
    "--most-lost",
    type=click.FloatRange(0, 1),
    default=MOST_LOST,
    show_default=True,
    help="How much of accuracy, or what stands for the task, a quantised file may lose.",
)
def export(
    run: Path,
    targets: tuple[str, ...],
    quantize: tuple[str, ...],
    output: Path | None,
    version: int | None,
    name: str | None,
    examples: int,
    least_agreement: float,
    most_lost: float,
) -> None:
    """Writes the model of a RUN for servers and devices, if it answers as the run does.

    `kft export runs/mobilenet`, `kft export runs/mobilenet --output models/mobilenet --version 3`,
    `kft export runs/mobilenet --format litert --quantize none --quantize int8`
    """
    console = terminal.console()
    terminal.workflow()
    from kerastune_ft import exports
    from kerastune_ft.exports.trials import Limits
    from kerastune_ft.runs import Run

    exports.export_all(
        Run.open(run),
        targets,
        quantize,
        output=output,
        version=version,
        name=name,
        examples=examples,
        limits=Limits(least_agreement, most_lost),
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
        content = {**dataclasses.asdict(found), "message": message, "summary": found.summary()}
        text = json.dumps(_finite(content), allow_nan=False)
        report.write_text(text, encoding="utf-8")
    if message:
        click.echo(message, err=True)
        sys.exit(1)
    console.print(f"{export}: {found.summary()}", highlight=False, markup=False)
    if found.missing:
        console.print(f"  not compared: {found.missing}", highlight=False, markup=False)
    if found.refused:
        shown = ", ".join(found.refused[:3]) + (", ..." if len(found.refused) > 3 else "")
        said = f"  refused, and not compared: {len(found.refused)} examples of its data: {shown}"
        console.print(said, highlight=False, markup=False)


def _finite(content: Any) -> Any:
    """Returns the same with None for every number that JSON does not have."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
