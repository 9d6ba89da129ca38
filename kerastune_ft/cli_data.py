"""The commands `kft data ...`: what is wrong with data, and what to do about it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import rich_click as click

from kerastune_ft import terminal

_Command = TypeVar("_Command", bound=Callable[..., None])
_TARGET = click.Path(path_type=Path)
_overrides = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")


def _report_folder(default: str) -> Callable[[_Command], _Command]:
    return click.option(
        "--output",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path(default),
        show_default=True,
        help="Folder for findings.json and findings.html.",
    )


@click.group()
def data() -> None:
    """Examines and prepares data before it is trained on.

    TARGET is a recipe, or a folder or table of pictures or texts.
    """


@data.command()
@click.argument("target", type=_TARGET)
@_overrides
@_report_folder("data-check")
@click.option(
    "--quick", is_flag=True, help="Leave out what needs a network: labels, transfer, drift."
)
def check(target: Path, overrides: tuple[str, ...], output: Path, quick: bool) -> None:
    """Tells what is wrong with the data of TARGET; exits with 1 if it must not be trained on.

    `kft data check photos/`, `kft data check my.yaml --quick`
    """
    from kerastune_ft import starters

    recipe = starters.recipe_of(target, overrides)
    terminal.workflow()
    from kerastune_ft import checks

    console = terminal.console()
    report = checks.check(recipe, console=console, network=not quick)
    report.write(output)
    report.show(console, output)
    sys.exit(1 if report.failed else 0)


@data.command()
@click.argument("target", type=_TARGET)
@_overrides
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("clean.csv"),
    show_default=True,
    help="The manifest: a CSV file of what is kept.",
)
@click.option(
    "--reencode",
    type=click.Path(path_type=Path, file_okay=False),
    help="A new folder for upright RGB copies of all pictures that are kept.",
)
def clean(target: Path, overrides: tuple[str, ...], output: Path, reencode: Path | None) -> None:
    """Writes a manifest of TARGET without what `data.cleaning` leaves out; changes no file.

    `kft data clean my.yaml data.cleaning.duplicates=first data.cleaning.suspected_labels=drop`
    """
    from kerastune_ft import starters

    recipe = starters.recipe_of(target, overrides)
    terminal.workflow()
    from kerastune_ft import manifests

    manifests.write_clean(recipe, output, reencode, terminal.console())


@data.command()
@click.argument("target", type=_TARGET)
@_overrides
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("splits.csv"),
    show_default=True,
    help="Receives name, label and split of every example.",
)
def split(target: Path, overrides: tuple[str, ...], output: Path) -> None:
    """Divides the data of TARGET and writes who goes where, for `data.split.file`.

    `kft data split photos/ data.split.test=0.2 "data.group_pattern=(patient[0-9]+)"`
    """
    from kerastune_ft import starters

    recipe = starters.recipe_of(target, overrides)
    terminal.workflow()
    from kerastune_ft import manifests

    manifests.write_division(recipe, output, terminal.console())


@data.command()
@click.argument("run", type=_TARGET)
@click.argument("path")
@_report_folder("data-compare")
def compare(run: Path, path: str, output: Path) -> None:
    """Tells how data at PATH, seen after training, differs from what RUN was trained on.

    Exits with 1 if some of the data cannot be read, such as broken pictures; what differs is told
    and is no failure.
    """
    terminal.workflow()
    from kerastune_ft import comparison
    from kerastune_ft.runs import Run

    console = terminal.console()
    report = comparison.compare(Run.open(run), path, console=console)
    report.write(output)
    report.show(console, output)
    sys.exit(1 if report.failed else 0)


@data.command()
@click.argument("target", type=_TARGET)
@_overrides
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("preview.html"),
    show_default=True,
    help="The page.",
)
@click.option(
    "--count", type=click.IntRange(1, 500), default=24, show_default=True, help="Examples shown."
)
def preview(target: Path, overrides: tuple[str, ...], output: Path, count: int) -> None:
    """Writes a page that shows what the network will really see, before and after augmentation."""
    from kerastune_ft import starters

    recipe = starters.recipe_of(target, overrides)
    terminal.workflow()
    from kerastune_ft import previews

    previews.write(recipe, output, count, terminal.console())
