"""Looks for the same content, or nearly the same, twice.

What is in training and held out as well was found when the data was divided: `data.leakage`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kerastune_ft.checks.examined import Examined
from kerastune_ft.data.tables import Finding, finding

_MANY = 0.01  # of the examples: from here on contradictions are no slips
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
        # A few are told of; many make every score a lie.
        certain = examined.kind in ("class", "classes") and len(other) > _MANY * len(
            examined.table.names
        )
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
