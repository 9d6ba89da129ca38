"""Looks for the same content, or nearly the same, twice: within a split and across splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from kerastune_ft.checks.examined import Examined
from kerastune_ft.data import copies
from kerastune_ft.data.tables import Finding, finding

_PART = 0.5  # of a standard deviation, by which two numbers of one example may differ


def repeated(examined: Examined) -> Iterator[Finding]:
    """Finds examples with the same content, by whether they have the same label."""
    same: list[tuple[int, int]] = []
    other: list[tuple[int, int]] = []
    for row, first in enumerate(examined.identities.tolist()):
        if row != first:
            (same if _agree(examined, row, first) else other).append((row, first))
    if same:
        noun = examined.table.noun
        yield _compared(examined, "duplicates", "warn", f"{noun} that are copies of another", same)
    if other:
        certain = examined.kind in ("class", "classes")
        yield _compared(
            examined,
            "conflicting_labels",
            "fail" if certain else "warn",
            f"{examined.table.noun} with the same content as another, and another label",
            other,
        )


def near(examined: Examined) -> Iterator[Finding]:
    """Finds examples that are nearly the same, and those of them that a split divides."""
    pairs = [(int(other), int(one)) for one, other in examined.near_pairs]
    noun = examined.table.noun
    if pairs:
        message = f"{noun} that are nearly the same as another"
        yield _compared(examined, "near_duplicates", "warn", message, pairs)
    divided = []
    for one, other in pairs:
        trained = [examined.parts[row] == "train" for row in (one, other)]
        if sum(trained) == 1:
            divided.append((one, other) if trained[0] else (other, one))
    if divided:
        message = f"{noun} in training that are nearly the same as one in validation or test"
        yield _compared(examined, "leaked_near_copies", "warn", message, divided)


def leaked(examined: Examined) -> Iterator[Finding]:
    """Finds content that is in training and in validation or test."""
    pairs = [(int(a), int(b)) for a, b in copies.leaks(examined.identities, examined.parts)]
    if pairs:
        message = f"{examined.table.noun} in training with a copy in validation or test"
        yield _compared(examined, "leaked_copies", "fail", message, pairs)


def divided_groups(examined: Examined) -> Iterator[Finding]:
    """Finds groups that are in training and in validation or test."""
    if examined.table.groups is None:
        return
    where: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for group, part in zip(examined.table.groups, examined.parts, strict=True):
        where[group][str(part)] += 1
    found = [(g, parts) for g, parts in where.items() if len(parts) > 1 and "train" in parts]
    if found:
        yield finding(
            "leaked_groups",
            "fail",
            "groups in training and in validation or test",
            [group for group, _ in found],
            details=[", ".join(f"{n:,} {part}" for part, n in parts.items()) for _, parts in found],
        )


def _agree(examined: Examined, one: int, other: int) -> bool:
    """Whether two examples of one content have labels that can both be right."""
    if examined.kind == "text":  # there is more than one way to say it
        return True
    labels = examined.labels
    if examined.kind == "numbers":
        spread = np.maximum(labels.std(axis=0), 1e-12)
        return bool((np.abs(labels[one] - labels[other]) <= _PART * spread).all())
    return bool(np.array_equal(labels[one], labels[other]))


def _compared(
    examined: Examined, kind: str, severity: str, message: str, pairs: list[tuple[int, int]]
) -> Finding:
    """Returns a finding of pairs of rows: what is odd, and what it is compared with."""
    names = examined.table.names
    assert severity in ("fail", "warn")
    return finding(
        kind,
        "fail" if severity == "fail" else "warn",
        message,
        [names[one] for one, _ in pairs],
        details=[f"{examined.place(one)}; the other: {examined.place(o)}" for one, o in pairs],
        partners=[names[other] for _, other in pairs],
    )
