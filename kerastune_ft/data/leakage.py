"""Says which examples are on both sides of the splits, and takes the copies out of training.

found = findings(data, table, parts, first, near)
rows = leaked_rows(table, parts, first)            # in training, and held out as well
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kerastune_ft.data import copies
from kerastune_ft.data.tables import Finding, Severity, Table, finding, first_few
from kerastune_ft.errors import DataError

if TYPE_CHECKING:
    from kerastune_ft.recipe import Data

KINDS = ("leaked_copies", "leaked_groups")
"""Findings for which training is refused under `data.leakage: stop`."""


def findings(
    data: Data,
    table: Table,
    parts: NDArray[np.str_],
    first: NDArray[np.int64],
    near: NDArray[np.int64],
) -> tuple[Finding, ...]:
    """Returns what is in training and held out as well: copies, near copies, groups.

    Args:
        data: Says how severe that is.
        table: The examples.
        parts: The split of each.
        first: From `copies.identities`.
        near: Pairs of rows that are nearly the same.
    """
    severity: Severity = "fail" if data.leakage == "stop" else "warn"
    made = []
    exact = copies.leaks(first, parts)
    if len(exact):
        message = f"training {table.noun} with a copy in validation or test"
        made.append(_pairs("leaked_copies", severity, message, table, parts, exact))
    divided = [
        (one, other) if parts[one] == "train" else (other, one)
        for one, other in near.tolist()
        if (parts[one] == "train") != (parts[other] == "train")
    ]
    if divided:
        message = f"training {table.noun} with a near copy in validation or test"
        pairs = np.asarray(divided, np.int64)
        made.append(_pairs("leaked_near_copies", "warn", message, table, parts, pairs))
    shared = _held_out_twice(parts, first)
    if len(shared):
        message = f"{table.noun} in test with a copy in validation"
        made.append(_pairs("held_out_twice", "warn", message, table, parts, shared))
    if table.groups is not None:
        names, details = [], []
        for group, where in _divided_groups(table.groups, parts):
            names.append(group)
            details.append(f"in {' and '.join(where)}")
        if names:
            message = "groups in training and in validation or test"
            made.append(finding("leaked_groups", severity, message, names, details=details))
    return tuple(made)


def leaked_rows(
    table: Table, parts: NDArray[np.str_], first: NDArray[np.int64]
) -> dict[int, tuple[str, str]]:
    """Returns the rows of training that `data.leakage: drop` takes out, with reason and detail."""
    rows = {
        int(row): ("leakage", f"'{table.names[other]}' in {parts[other]} is the same")
        for row, other in copies.leaks(first, parts)
    }
    if table.groups is not None:
        divided = dict(_divided_groups(table.groups, parts))
        for row in np.flatnonzero(parts == "train").tolist():
            if table.groups[row] in divided:
                rows.setdefault(row, ("leakage", f"group '{table.groups[row]}' is held out"))
    return rows


def refuse(data: Data, found: Sequence[Finding]) -> None:
    """Raises `DataError` if something is on both sides and the recipe does not allow it."""
    wrong = [finding for finding in found if finding.kind in KINDS and finding.severity == "fail"]
    if not wrong:
        return
    lines = []
    for said in wrong:
        shown = [
            f"'{name}' = '{partner}'" if partner else f"'{name}'"
            for name, partner in zip(said.names[:10], said.partners[:10] or [""] * 10, strict=False)
        ]
        more = f" and {said.count - 10:,} more" if said.count > 10 else ""
        lines.append(f"  {said.message.partition(': ')[0]}: {', '.join(shown)}{more}")
    raise DataError(
        f"{data.path}: the model would be scored on what it was trained on:\n"
        + "\n".join(lines)
        + "\nSet data.leakage=drop to leave those in training out, data.leakage=warn to go on, or "
        "mend the data; 'kft data check' shows them."
    )


def _held_out_twice(parts: NDArray[np.str_], first: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns pairs of rows of one content, `(m, 2)`: one in test, the other in validation."""
    seen = {int(first[row]): int(row) for row in np.flatnonzero(parts == "validation")[::-1]}
    found = [
        (int(row), seen[int(first[row])])
        for row in np.flatnonzero(parts == "test")
        if int(first[row]) in seen
    ]
    return np.asarray(found, np.int64).reshape(-1, 2)


def _divided_groups(
    groups: Sequence[str], parts: NDArray[np.str_]
) -> list[tuple[str, tuple[str, ...]]]:
    where: dict[str, set[str]] = {}
    for group, part in zip(groups, parts.tolist(), strict=True):
        where.setdefault(group, set()).add(part)
    order = ("train", "validation", "test")
    return [
        (group, tuple(part for part in order if part in found))
        for group, found in where.items()
        if len(found) > 1 and "train" in found
    ]


def _pairs(
    kind: str,
    severity: Severity,
    message: str,
    table: Table,
    parts: NDArray[np.str_],
    pairs: NDArray[np.int64],
) -> Finding:
    return finding(
        kind,
        severity,
        message,
        [table.names[row] for row in pairs[:, 0]],
        details=[
            f"{parts[one]}, {shown(table.labels[one])}; "
            f"the other: {parts[other]}, {shown(table.labels[other])}"
            for one, other in pairs
        ],
        partners=[table.names[row] for row in pairs[:, 1]],
    )


def shown(label: object) -> str:
    """Returns a label as a message says it."""
    if isinstance(label, tuple):
        return first_few(map(str, label), 3) or "nothing"
    text = str(label)
    return text if len(text) <= 40 else f"{text[:39]}…"
