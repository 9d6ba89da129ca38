"""What two comparisons say below their table: seconds by stage and limits, growth of memory."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks import limits
from benchmarks.tables import NONE, Result, line, median, ratio

Numbers = Mapping[str, Any]

MOST = 50
"""Beyond it a limit is the noise of two times that are nearly the same."""


def table(results: Mapping[str, Result], once: Numbers, numbers: Numbers) -> str:
    """Returns seconds by stage, cached and not, and how much could be gained at most.

    Args:
        results: Of the cached way and of the other one.
        once: What `limits.measure` returned; may be empty.
        numbers: The size, for its `epochs`.
    """
    cached, off = (by_stage(result) for result in results.values())
    head = ["stage", "cached, s", "not cached, s", "ratio", "prefix's share of a step"]
    head += ["limit of an epoch", f"limit of {numbers['epochs']} epochs, the first fills"]
    lines = [line(head), "|" + "---|" * len(head)]
    measured = once.get("stages", [])
    for stage in range(max(len(cached), len(off), len(measured))):
        mine = cached[stage] if stage < len(cached) else None
        other = off[stage] if stage < len(off) else None
        cells = [f"{stage} blocks" if stage else "head", *map(seconds, (mine, other))]
        share = ratio(other, mine)
        cells.append(NONE if share is None else f"{share:.2f}")
        if stage < len(measured):
            step, prefix = measured[stage]["step"], measured[stage]["prefix"]
            epoch, whole = limits.most(step, prefix, numbers["epochs"])
            most = f"{epoch:.2f}" if epoch < MOST else f"over {MOST}"
            cells += [f"{prefix / step:.2f}", most, f"{whole:.2f}"]
        else:
            cells += [NONE] * 3
        lines.append(line(cells))
    return "\n".join(lines)


def by_stage(result: Result) -> list[float]:
    """Returns the median seconds of every stage."""
    runs = [run["stages"] for run in result.runs]
    return [statistics.median(values) for values in zip(*runs, strict=True)]


def seconds(value: float | None) -> str:
    """Returns seconds for a cell."""
    return NONE if value is None else f"{value:.1f}"


def growth(results: Mapping[str, Result], once: Numbers, numbers: Numbers) -> str:
    """Returns by how much memory grows with the pictures, from the first way to each other one."""
    counts, medians = numbers["counts"], [median(each, "memory") for each in results.values()]
    lines = []
    for count, peak in list(zip(counts, medians, strict=True))[1:]:
        if peak is None or medians[0] is None:
            continue
        mib = (peak - medians[0]) * 1024
        each = mib / (count - counts[0]) * 1000
        lines.append(
            f"- from {counts[0]:,} to {count:,} pictures: {mib:+.0f} MiB, {each:+.1f} MiB per 1,000"
        )
    return "\n".join(lines)
