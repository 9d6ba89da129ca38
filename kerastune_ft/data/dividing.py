"""Decides who goes where: by a file, by the data's own splits, by time, by group, or at random.

    parts, findings = divide(data, table, kind, labels, first, near)   # "train", "validation", ...

Examples of the same content stay together unless the recipe says otherwise, so that nothing is
scored that was trained on. Splits that the data comes with are kept as they are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerastune_ft.data import copies, folding, splitting
from kerastune_ft.data.labels import LabelKind, Labels
from kerastune_ft.data.tables import SPLITS, Finding, Table, finding, first_few
from kerastune_ft.errors import DataError

if TYPE_CHECKING:
    from kerastune_ft.recipe import Data

_MANY_COPIES = 0.1  # of the examples: from here on, shares are met by dealing whole families
_DROPPED = {"leakage": "train", "suspected_labels": "train", "missing_label": "test"}
NO_PAIRS = np.zeros((0, 2), np.int64)


def grouped(table: Table, data: Data) -> Table:
    """Returns the table with the groups that `data.group_pattern` finds in names.

    Raises:
        DataError: If it finds none at all.
    """
    if data.group_pattern is None:
        return table
    pattern = re.compile(data.group_pattern)
    groups, lost = [], []
    for name in table.names:
        match = pattern.search(name)
        if match is None:
            lost.append(name)
            groups.append(f"\0{name}")
        else:
            groups.append(next((part for part in match.groups() if part), match[0]))
    if len(lost) == len(groups):
        raise DataError(
            f"data.group_pattern: '{data.group_pattern}' is found in no name, such as "
            f"{first_few(table.names, 3)}."
        )
    findings = table.findings
    if lost:
        message = "examples without a group in their names, each a group of its own"
        findings += (finding("no_group", "note", message, lost),)
    return replace(table, groups=tuple(groups), findings=findings)


def divide(
    data: Data,
    table: Table,
    kind: LabelKind,
    labels: Labels,
    first: NDArray[np.int64],
    near: NDArray[np.int64],
) -> tuple[NDArray[np.str_], tuple[Finding, ...]]:
    """Returns the split of each example, and what was odd about dividing.

    Args:
        data: The recipe's section.
        table: What is divided.
        kind: Of the labels.
        labels: Encoded.
        first: From `copies.identities`.
        near: Pairs of rows that are nearly the same.

    Raises:
        DataError: If there are too few examples or groups, or the file of splits does not fit.
    """
    choice, strata = data.split, kind.strata(labels)
    texts = kind.texts(labels, table.class_names)
    if choice.file is not None:
        parts = from_file(Path(choice.file).expanduser(), data, table, texts)
        if choice.fewest_per_class and kind.name == "class":
            _guarantee(data, parts, texts, np.zeros(0, np.int64), first)
        return parts, ()
    findings: tuple[Finding, ...] = ()
    official = table.official
    parts = np.asarray(official or ["train"] * len(table.names), dtype="U10")
    rows = np.flatnonzero(parts == "train")
    present = set(official or ())
    shares = {
        "validation": 0.0 if "validation" in present else choice.validation,
        "test": 0.0 if "test" in present else choice.test,
    }
    pairs = near if choice.keep_together == "near" else NO_PAIRS
    same = first if choice.keep_together != "none" else np.arange(len(first))
    families = copies.families(len(first), same, pairs)
    if table.times is not None:
        parts[rows], untimed = by_time(data, table.times[rows], **shares)
        if len(untimed):
            message = "rows without a time, which go to training"
            names = [table.names[rows[row]] for row in untimed]
            findings += (finding("no_time", "warn", message, names),)
    else:
        groups = None if table.groups is None else [table.groups[row] for row in rows]
        parts[rows] = _randomly(data, strata[rows], _among(rows, families), groups, shares)
    if choice.folds is not None:
        whole = None if table.groups is None else _joined(table.groups, families)
        if whole is None and len(np.unique(families)) < len(families):
            whole = [f"{row}" for row in families]
        parts = folding.divide(
            strata,
            parts,
            folds=choice.folds,
            fold=choice.fold,
            seed=choice.seed,
            stratify=choice.stratify,
            groups=whole,
            class_names=None if kind.name in ("numbers", "text") else table.class_names,
        )
    if choice.fewest_per_class and kind.name == "class":
        # What has an order, a group, a fold or a split of its own stays where that puts it.
        loose = table.groups is None and choice.folds is None and table.times is None
        movable = rows if loose and not present - {"train"} else rows[:0]
        _guarantee(data, parts, texts, movable, families)
    return parts, findings


def by_time(
    data: Data, times: NDArray[np.float64], *, validation: float, test: float
) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """Returns splits of which each is newer than the one before, and rows without a time.

    Examples of one time are never divided: they go to the newer side.

    Args:
        data: For messages.
        times: `(n,)`, NaN where there is none.
        validation: Share of the examples with a time.
        test: As `validation`.

    Raises:
        DataError: If nothing would be left to train on.
    """
    parts = np.full(len(times), "train", dtype="U10")
    known = np.flatnonzero(~np.isnan(times))
    ordered = np.sort(times[known])
    n = len(known)
    held = 0
    for name, share in (("test", test), ("validation", validation)):
        if not share or not n:
            continue
        held += max(1, round(n * share))
        start = ordered[max(0, n - held)]
        parts[(times >= start) & (parts == "train")] = name
        held = max(held, int((parts[known] != "train").sum()))
    if known.size and not (parts[known] == "train").any():
        raise DataError(
            f"{data.path}: divided by data.time_column nothing is left to train on: "
            f"{len(np.unique(ordered))} different times; set smaller shares, or leave it out."
        )
    return parts, np.flatnonzero(np.isnan(times))


def from_file(path: Path, data: Data, table: Table, labels: Sequence[str]) -> NDArray[np.str_]:
    """Returns the splits that a `splits.csv` says, if it is of this data.

    Args:
        path: Of the file; beside it lies `splits.json` or, in a run, `data.json`.
        data: For messages.
        table: What is divided.
        labels: Of each example as text.

    Raises:
        DataError: If the file was changed, or names, labels or contents are others.
    """
    names, said, splits = splitting.read_splits(path)
    where = f"data.split.file: '{path}'"
    again = "write it anew with 'kft data split', or put the data back"
    record = _record_beside(path)
    # Left out after dividing by a rule that will leave them out again, where they were.
    dropped = {
        row["name"]: _DROPPED[row["reason"]]
        for row in (record or {}).get("removed", ())
        if row["reason"] in _DROPPED
    }
    if record is not None and record["split_fingerprint"] != splitting.fingerprint(
        names, said, splits
    ):
        raise DataError(
            f"{where}: was changed after it was written (its fingerprint differs); write it anew "
            "with 'kft data split', or remove the .json file beside it to accept it as it is."
        )
    listed = dict(zip(names, zip(said, splits, strict=True), strict=True))
    missing = [name for name in table.names if name not in listed and name not in dropped]
    if missing:
        raise DataError(f"{where}: lacks {first_few(missing)} of {data.path}; {again}.")
    gone = sorted(set(listed) - set(table.names))
    if gone:
        raise DataError(f"{where}: has {first_few(gone)}, which {data.path} lacks; {again}.")
    relabelled = (record or {}).get("relabelled", {})
    others = [
        name
        for name, label in zip(table.names, labels, strict=True)
        if name in listed and listed[name][0] != label and listed[name][0] != relabelled.get(name)
    ]
    if others:
        raise DataError(f"{where}: has other labels for {first_few(others)}; {again}.")
    kept = np.flatnonzero([name in listed for name in table.names])
    wanted = (record or {}).get("content_fingerprint")
    if wanted not in (None, contents(table.take(kept))):
        raise DataError(
            f"{where}: the names are the same, but the content of {data.path} has changed since "
            f"it was divided; {again}."
        )
    parts = [listed[name][1] if name in listed else dropped[name] for name in table.names]
    return np.asarray(parts, dtype="U10")


def contents(table: Table) -> str:
    """Returns a sha256 of which example has which content, whatever the order."""
    digests = [bytes(row).hex() for row in copies.digests(table)]
    rows = sorted(zip(table.names, digests, strict=True))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _record_beside(path: Path) -> dict[str, Any] | None:
    for name in (path.with_suffix(".json"), path.with_name("data.json")):
        if name.is_file():
            try:
                found = json.loads(name.read_text(encoding="utf-8"))
                return {"split_fingerprint": found["split_fingerprint"], **found}
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DataError(f"data.split.file: '{name}' is damaged: {error}.") from error
    return None


def _among(rows: NDArray[np.int64], families: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns families in numbers of `rows`, as far as they lie among them."""
    chosen = families[rows]
    _, first, inverse = np.unique(chosen, return_index=True, return_inverse=True)
    found: NDArray[np.int64] = first[inverse]
    return found


def _randomly(
    data: Data,
    strata: NDArray[Any],
    families: NDArray[np.int64],
    groups: Sequence[str] | None,
    shares: dict[str, float],
) -> NDArray[np.str_]:
    choice = data.split
    how: dict[str, Any] = {"stratify": choice.stratify, "seed": choice.seed, **shares}
    n = len(families)
    alone = np.unique(families)
    if groups is not None:
        return splitting.split(strata, groups=_joined(groups, families), **how)
    if len(alone) == n:
        return splitting.split(strata, **how)
    if len(alone) < 1 + sum(share > 0 for share in shares.values()):
        raise DataError(
            f"{data.path}: all {n:,} examples have {len(alone)} different contents between them, "
            "too few for the splits; remove the copies, or set data.split.keep_together=none."
        )
    if n - len(alone) > _MANY_COPIES * n:
        return splitting.split(strata, groups=[f"{row:09d}" for row in families], **how)
    # Copies follow the first of them, so that without copies nothing is divided otherwise.
    chosen = np.full(n, "train", dtype="U10")
    chosen[alone] = splitting.split(strata[alone], **how)
    return chosen[families]


def _joined(groups: Sequence[str], families: NDArray[np.int64]) -> list[str]:
    """Returns groups of which those that share a copy are one."""
    known: dict[str, int] = {}
    first = np.asarray([known.setdefault(group, row) for row, group in enumerate(groups)])
    pairs = np.stack([np.arange(len(groups)), families], axis=1)
    joined = copies.families(len(groups), first, pairs)
    return [groups[row] for row in joined]


def _guarantee(
    data: Data,
    parts: NDArray[np.str_],
    labels: Sequence[str],
    movable: NDArray[np.int64],
    families: NDArray[np.int64],
) -> None:
    """Moves examples, in `parts`, until every class has as many in each part as are asked for.

    Args:
        data: Says how many.
        parts: The split of each example.
        labels: Its class by name.
        movable: Rows that may be moved, if they have no copy.
        families: From `copies.families`.

    Raises:
        DataError: If there are too few, or nothing may be moved.
    """
    fewest, names = data.split.fewest_per_class, np.asarray(labels)
    wanted = [part for part in SPLITS if (parts == part).any()]
    alone = np.bincount(families, minlength=len(parts))[families] == 1
    free = np.zeros(len(parts), bool)
    free[movable] = True
    free &= alone
    mixed = np.random.default_rng([data.split.seed, 1]).permutation(len(parts))
    short = []
    for name in sorted(set(labels)):
        rows = mixed[names[mixed] == name]
        stock = {part: rows[parts[rows] == part].tolist() for part in wanted}
        for part in wanted:
            while len(stock[part]) < fewest:
                rich = [p for p in wanted if p != part and len(stock[p]) > fewest]
                giver = max(rich, key=lambda p: len(stock[p]), default=None)
                taken = next((row for row in stock[giver] if free[row]), None) if giver else None
                if giver is None or taken is None:
                    short.append(f"'{name}' has {len(stock[part])} in {part}")
                    break
                stock[giver].remove(taken)
                stock[part].append(taken)
                parts[taken] = part
    if short:
        more = f" and {len(short) - 5} more" if len(short) > 5 else ""
        raise DataError(
            f"{data.path}: data.split.fewest_per_class is {fewest}, but {', '.join(short[:5])}"
            f"{more}; add examples, ask for fewer, or leave rare classes out with "
            "data.cleaning.fewest_per_class."
        )
