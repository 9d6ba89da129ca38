"""Finds what is wrong with data before anything is trained on it.

    report = check(recipe, console=console)
    report.failed                    # whether training on it would be a mistake
    report.write(Path("data-check")) # findings.json, findings.html

A check is one function from what was read (`Examined`) to findings, and one row of `CHECKS`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kerastune_ft import data, quiet
from kerastune_ft.checks import (
    classes,
    columns,
    drift,
    duplicates,
    mismatch,
    pictures,
    suspects,
    texts,
)
from kerastune_ft.checks.examined import Examined
from kerastune_ft.checks.report import Report
from kerastune_ft.data import inspection
from kerastune_ft.data.tables import Finding, finding
from kerastune_ft.errors import KftError
from kerastune_ft.tasks import TASKS

if TYPE_CHECKING:
    from rich.console import Console

    from kerastune_ft.recipe import Recipe

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Check:
    """One thing that is looked for.

    Args:
        run: Yields what it found.
        modality: Of the data it is for: `image`, `text` or `any`.
        network: Whether it needs features of a pre-trained network.
    """

    run: Callable[[Examined], Iterable[Finding]]
    modality: str
    network: bool = False


CHECKS: dict[str, Check] = {
    # Labels.
    "one class": Check(classes.one_class, "any"),
    "sizes of classes": Check(classes.sizes, "any"),
    "absent classes": Check(classes.absences, "any"),
    "shares of classes": Check(classes.shift, "any"),
    "names of classes": Check(classes.spelling, "any"),
    "numbers": Check(classes.numbers, "any"),
    # The same twice.
    "copies": Check(duplicates.repeated, "any"),
    "near copies": Check(duplicates.near, "any"),
    # Pictures.
    "what pictures show": Check(pictures.contents, "image"),
    "how pictures are stored": Check(pictures.storage, "image"),
    "shapes": Check(pictures.shapes, "image"),
    "colours": Check(pictures.colours, "image"),
    "what gives classes away": Check(pictures.giveaways, "image"),
    # Texts and tables.
    "lengths": Check(texts.lengths, "text"),
    "broken texts": Check(texts.broken, "text"),
    "languages": Check(texts.languages, "text"),
    "missing values": Check(columns.missing_values, "any"),
    "simple figures of splits": Check(drift.split_figures, "any"),
    "resolution": Check(mismatch.resolution, "image"),
    "colours of the pre-training": Check(mismatch.colours, "image"),
    # What needs a network.
    "vocabulary": Check(mismatch.vocabulary, "text", network=True),
    "suspected labels": Check(suspects.check, "any", network=True),
    "transfer gain": Check(mismatch.transfer_gain, "any", network=True),
    "differences of splits": Check(drift.splits, "any", network=True),
}


def check(recipe: Recipe, *, network: bool = True, console: Console | None = None) -> Report:
    """Looks for everything of `CHECKS` in the data of a recipe.

    Args:
        recipe: Says which data, and what is to be learned of it.
        network: Whether to look for what needs features of the recipe's network. Where these
            cannot be had, a finding says so.
        console: Shows progress if it is a terminal.

    Raises:
        DataError: If the data cannot be read.
    """
    task = TASKS[recipe.task.name]
    with _bar(console) as progress, quiet.untold():
        with inspection.watched(lambda done, total: progress("looking at pictures", done, total)):
            survey = data.survey(recipe.data, task.labels, task.modality)
        examined = Examined(recipe, survey, progress)
        # Of texts, near copies are looked for here alone; nothing is to be said twice.
        found = [one for one in survey.findings if one.kind != "leaked_near_copies"]
        rows = {name: row for name, row in CHECKS.items() if row.modality in ("any", task.modality)}
        for done, (name, row) in enumerate(rows.items()):
            if not row.network:
                progress(name, done, len(rows))
                found += row.run(examined)
        if network:
            found += _of_network(examined, {n: row for n, row in rows.items() if row.network})
    return Report.of(recipe, survey, found)


def _of_network(examined: Examined, rows: dict[str, Check]) -> Iterator[Finding]:
    """Yields what checks find that need features, or why these cannot be had."""
    if not rows:
        return
    try:
        _ = examined.features
    except KftError as error:
        message = f"checks left out, because there are no features ({str(error).rstrip('.')})"
        yield finding("no_features", "note", message, rows)
        return
    for done, (name, row) in enumerate(rows.items()):
        examined.progress(name, done, len(rows))
        yield from row.run(examined)


@contextlib.contextmanager
def _bar(console: Console | None) -> Iterator[Progress]:
    """Yields what shows progress: on a terminal a bar, else nothing."""
    if console is None or not console.is_terminal:
        yield lambda words, done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns_ = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns_, console=console, transient=True) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda words, done, total: bar.update(
            task, description=words, completed=done, total=total or None
        )
