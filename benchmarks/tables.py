"""The arithmetic of the comparisons: medians, spread, ratios of medians, Markdown.

    rows = summary(results, columns, against={"off": "ours"})
    markdown(rows, columns)

A result is what the runs of one way have measured, or why there is none. A figure that some runs
lack is the median of the others; one that all lack is a dash. A ratio is the median of a way over
the median of the way that it is compared with: 4.00 took four times as long.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

NONE = "–"


@dataclass(frozen=True)
class Column:
    """Says how a figure is shown.

    Args:
        key: Of the figure.
        title: Heads its column, with the unit.
        digits: After the point.
        ratio: Whether a column with its ratio follows.
    """

    key: str
    title: str
    digits: int = 1
    ratio: bool = False


@dataclass
class Result:
    """What the runs of one way gave.

    Args:
        runs: Figures by name, of each run that ended well.
        reason: Why a run was skipped or failed, if one was.
        failed: Whether it was started, and went wrong.
    """

    runs: list[dict[str, Any]] = field(default_factory=list)
    reason: str | None = None
    failed: bool = False


@dataclass(frozen=True)
class Figure:
    """A figure over all runs of a way.

    Args:
        median: Of the runs.
        lowest: Of them.
        highest: Of them.
        runs: How many have it.
        ratio: Of the medians, to the way this one is compared with; None without such a figure.
    """

    median: float
    lowest: float
    highest: float
    runs: int
    ratio: float | None = None


@dataclass(frozen=True)
class Row:
    """A way in the table.

    Args:
        way: Its name.
        figures: By key; those it lacks are left out.
        reason: See `Result`.
        failed: See `Result`.
        runs: How many ended well.
    """

    way: str
    figures: Mapping[str, Figure]
    reason: str | None
    failed: bool
    runs: int


def values(result: Result, key: str) -> list[float]:
    """Returns a figure of every run that has it."""
    found = (run.get(key) for run in result.runs)
    return [float(value) for value in found if value is not None]


def median(result: Result, key: str) -> float | None:
    """Returns the median of a figure, None if no run has it."""
    found = values(result, key)
    return statistics.median(found) if found else None


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """Returns a ratio of medians, None if one of them is missing or the lower one is 0."""
    if numerator is None or not denominator:
        return None
    return numerator / denominator


def summary(
    results: Mapping[str, Result], columns: Iterable[Column], against: Mapping[str, str]
) -> list[Row]:
    """Returns a row per way.

    Args:
        results: By way, in the table's order.
        columns: The figures that are wanted.
        against: By way, the way that it is compared with; a way that is missing here has no
            ratios, nor has one that is compared with itself.
    """
    rows = []
    for way, result in results.items():
        other = results.get(against.get(way, way), Result())
        figures = {}
        for column in columns:
            found = values(result, column.key)
            if not found:
                continue
            middle = statistics.median(found)
            compared = other is not result and column.ratio
            share = ratio(middle, median(other, column.key)) if compared else None
            figures[column.key] = Figure(middle, min(found), max(found), len(found), share)
        rows.append(Row(way, figures, result.reason, result.failed, len(result.runs)))
    return rows


def cell(figure: Figure | None, digits: int) -> str:
    """Returns median and spread, `12.3 (11.9 to 13.0)`; the median alone of one run."""
    if figure is None:
        return NONE
    if figure.runs == 1:
        return f"{figure.median:.{digits}f}"
    spread = f"{figure.lowest:.{digits}f} to {figure.highest:.{digits}f}"
    return f"{figure.median:.{digits}f} ({spread})"


def markdown(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Returns the table, and below it why ways are missing from it."""
    head = ["way"]
    for column in columns:
        head += [column.title, "ratio"] if column.ratio else [column.title]
    head.append("rounds")
    lines = [line(head), "|" + "---|" * len(head)]
    for row in rows:
        if not row.runs:
            continue
        cells = [row.way]
        for column in columns:
            figure = row.figures.get(column.key)
            cells.append(cell(figure, column.digits))
            if column.ratio:
                share = figure.ratio if figure else None
                cells.append(NONE if share is None else f"{share:.2f}")
        lines.append(line([*cells, str(row.runs)]))
    notes = [
        f"- {row.way}: {'failed' if row.failed else 'skipped'}: {row.reason}"
        for row in rows
        if row.reason
    ]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def line(cells: Iterable[str]) -> str:
    """Returns a row of a Markdown table."""
    return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"


def record(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns the rows for `json`."""
    return {
        row.way: {
            "figures": {key: vars(figure) for key, figure in row.figures.items()},
            "reason": row.reason,
            "failed": row.failed,
            "runs": row.runs,
        }
        for row in rows
    }
