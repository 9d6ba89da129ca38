"""What was found in data: as plain data, as a page, and on the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerastune_ft import __version__, files
from kerastune_ft.checks.examined import counts_of
from kerastune_ft.data import Survey
from kerastune_ft.data.advice import ADVICE
from kerastune_ft.data.tables import SPLITS, Finding
from kerastune_ft.errors import RunError

if TYPE_CHECKING:
    from rich.console import Console

    from kerastune_ft.recipe import Recipe

ORDER = ("fail", "warn", "note")
_MOST_ROWS = 30
_STYLES = {"fail": ("red", "fail"), "warn": ("yellow", "warning"), "note": ("cyan", "note")}


@dataclass(frozen=True)
class Report:
    """What is known of a data set.

    Args:
        recipe: That names it.
        survey: What was read.
        findings: Those that fail first, then warnings, then notes.
        counts: Examples of each class, `(classes,)`, by split; {} where there are no classes. Of
            tags the words of each class.
    """

    recipe: Recipe
    survey: Survey
    findings: tuple[Finding, ...]
    counts: dict[str, NDArray[np.int64]]

    @classmethod
    def of(cls, recipe: Recipe, survey: Survey, findings: Iterable[Finding]) -> Report:
        """Returns the report of findings in any order."""
        ordered = sorted(findings, key=lambda found: ORDER.index(found.severity))
        return cls(recipe, survey, tuple(ordered), counts_of(survey))

    @property
    def failed(self) -> bool:
        """Whether the data must not be trained on as it is."""
        return any(found.severity == "fail" for found in self.findings)

    @property
    def sizes(self) -> dict[str, int]:
        """Examples of each split."""
        return {name: int((self.survey.parts == name).sum()) for name in SPLITS}

    @property
    def verdict(self) -> str:
        """How many findings of each severity there are, in words."""
        numbers = [sum(f.severity == name for f in self.findings) for name in ORDER]
        words = ("failure", "warning", "note")
        said = [
            f"{n} {word}{'' if n == 1 else 's'}"
            for n, word in zip(numbers, words, strict=True)
            if n
        ]
        return ", ".join(said) or "nothing found"

    def record(self) -> dict[str, Any]:
        """Returns it as plain data; all names of every finding included."""
        table = self.survey.table
        return {
            "kft": __version__,
            "task": self.recipe.task.name,
            "source": self.recipe.data.source,
            "path": self.recipe.data.path,
            "examples": {
                "found": table.found,
                "kept": len(table.names),
                "left_out": table.found - len(table.names),
            },
            "labels": self.survey.kind,
            "class_names": list(table.class_names),
            "splits": {name: self._split_record(name) for name in SPLITS},
            "failed": self.failed,
            "findings": [found.record() for found in self.findings],
        }

    def write(self, folder: Path) -> None:
        """Writes `findings.json` and `findings.html`.

        Raises:
            RunError: If they cannot be written.
        """
        from kerastune_ft.checks import pages

        text = json.dumps(self.record(), indent=2, ensure_ascii=False) + "\n"
        page = pages.page(self)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            files.write_text(folder / "findings.json", text)
            files.write_text(folder / "findings.html", page)
        except OSError as error:
            raise RunError(f"'{folder}' cannot be written: {error.strerror}.") from error

    def show(self, console: Console, folder: Path | None = None) -> None:
        """Prints counts, and each finding with what it does and what to do.

        Args:
            console: Where to.
            folder: Where the files are, if they were written.
        """
        from rich.markup import escape

        data, table = self.recipe.data, self.survey.table
        counts = ", ".join(f"{n:,} {name}" for name, n in self.sizes.items())
        console.print(f"[bold]data[/]     {escape(f'{data.source} {data.path}')}: {counts}")
        if table.found > len(table.names):
            console.print(f"         {table.found - len(table.names):,} more are left out")
        self._show_counts(console)
        for found in self.findings:
            colour, word = _STYLES[found.severity]
            advice = ADVICE[found.kind]
            console.print(f"[{colour}]{word:<9}[/]{escape(found.message)}")
            console.print(f"         [dim]{escape(advice.effect)}[/]")
            console.print(f"         [dim]-> {escape(advice.remedy)}[/]")
        colour = "red" if self.failed else "green"
        console.print(f"[bold {colour}]{self.verdict}[/]")
        if folder is not None:
            for name, meaning in (
                ("findings.html", "the examples themselves; open it in a browser"),
                ("findings.json", "every name of every finding"),
            ):
                console.print(f"  {escape(str(folder / name))}  {meaning}")

    def shown_classes(self) -> list[int | None]:
        """Returns the numbers of the classes that a table of counts shows; None is a gap.

        Of very many classes they are the largest and the smallest ones.
        """
        count = len(self.survey.table.class_names)
        if count <= _MOST_ROWS:
            return list(range(count))
        half = (_MOST_ROWS - 1) // 2
        order = np.argsort(-self.counts["train"], kind="stable").tolist()
        return [*order[:half], None, *order[-half:]]

    def _show_counts(self, console: Console) -> None:
        from rich.markup import escape
        from rich.table import Table

        if not self.counts:
            return
        shown = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        shown.add_column("words of class" if self.survey.kind == "tags" else "class")
        for name in SPLITS:
            shown.add_column(name, justify="right")
        for number in self.shown_classes():
            if number is None:
                shown.add_row(f"... {len(self.survey.table.class_names) - _MOST_ROWS + 2:,} more")
                continue
            numbers = (f"{self.counts[name][number]:,}" for name in SPLITS)
            shown.add_row(escape(self.survey.table.class_names[number]), *numbers)
        console.print(shown)

    def _split_record(self, name: str) -> dict[str, Any]:
        counted: dict[str, Any] = {"examples": self.sizes[name]}
        if self.counts:
            pairs = zip(self.survey.table.class_names, self.counts[name], strict=True)
            counted["per_class"] = {label: int(count) for label, count in pairs}
        return counted
