"""Divides examples into train, validation and test, the same way every time.

    splits = split(labels, validation=0.15, test=0.15, stratify=True, seed=0)   # array of names

Splits that the data comes with are kept; a part that is missing there is cut out of its training
split. Every class keeps at least one example to train on.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kerastune_ft import files
from kerastune_ft.data.tables import SPLITS, Finding, finding
from kerastune_ft.errors import DataError

_COLUMNS = ["name", "label", "split"]


def split(
    labels: Sequence[int] | NDArray[np.integer],
    *,
    validation: float,
    test: float,
    stratify: bool = True,
    seed: int = 0,
    official: Sequence[str] | None = None,
) -> NDArray[np.str_]:
    """Returns the split of each example: "train", "validation" or "test".

    Stratified, each class gives its share by largest remainder, so that the totals are right to
    the example unless that would leave a class nothing to train on.

    Args:
        labels: Class numbers, `(n,)`, in an order that does not depend on the machine.
        validation: Share of the examples, `[0, 1)`; at least one example if above 0.
        test: As `validation`. With official splits, a missing part is this share of the official
            training split.
        stratify: Whether every class gives the same share.
        seed: Another seed, another division.
        official: The split of each example, if the data says.
    """
    numbers = np.asarray(labels, np.int64)
    if official is not None:
        splits = np.asarray(official, dtype="U10")
        present = set(official)
        training = np.flatnonzero(splits == "train")
        splits[training] = split(
            numbers[training],
            validation=0.0 if "validation" in present else validation,
            test=0.0 if "test" in present else test,
            stratify=stratify,
            seed=seed,
        )
        return splits
    n = len(numbers)
    splits = np.full(n, "train", dtype="U10")
    mixed = np.random.default_rng(seed).permutation(n)
    groups = [mixed]
    if stratify:
        groups = [mixed[numbers[mixed] == number] for number in np.unique(numbers)]
    sizes = np.asarray([len(group) for group in groups], np.int64)
    free = sizes - 1 if n else sizes
    taken = np.zeros_like(sizes)
    for name, share in (("test", test), ("validation", validation)):
        total = max(1, round(n * share)) if share > 0 else 0
        portions = apportion(sizes, total, free - taken)
        for group, start, count in zip(groups, taken, portions, strict=True):
            splits[group[start : start + count]] = name
        taken = taken + portions
    return splits


def apportion(sizes: NDArray[np.int64], total: int, limits: NDArray[np.int64]) -> NDArray[np.int64]:
    """Divides `total` in proportion to `sizes`, in whole numbers, none above its limit.

    Largest remainders get what rounding down leaves over; ties go to the earlier one. If the
    limits sum to less than `total`, each gets its limit.
    """
    ideal = sizes * (total / max(1, int(sizes.sum())))
    portions: NDArray[np.int64] = np.minimum(np.floor(ideal).astype(np.int64), limits)
    while portions.sum() < total and (portions < limits).any():
        remainder = np.where(portions < limits, ideal - portions, -np.inf)
        portions[int(np.argmax(remainder))] += 1
    return portions


def absences(
    labels: Sequence[int] | NDArray[np.integer],
    splits: NDArray[np.str_],
    class_names: Sequence[str],
) -> tuple[Finding, ...]:
    """Returns a finding for each split that has examples, but none of some class."""
    numbers = np.asarray(labels)
    findings = []
    for name in SPLITS:
        chosen = splits == name
        present = set(numbers[chosen].tolist())
        missing = tuple(c for i, c in enumerate(class_names) if i not in present)
        if chosen.any() and missing:
            message = f"classes without an example in the {name} split, whose scores ignore them"
            findings.append(finding("class_absent", "warn", message, missing))
    return tuple(findings)


def fingerprint(names: Sequence[str], labels: Sequence[str], splits: Sequence[str]) -> str:
    """Returns a sha256 of who is in which split with which label, whatever the order."""
    rows = sorted(zip(names, labels, (str(part) for part in splits), strict=True))
    return hashlib.sha256(json.dumps(rows, ensure_ascii=True).encode()).hexdigest()


def write_splits(
    path: Path, names: Sequence[str], labels: Sequence[str], splits: Sequence[str]
) -> None:
    """Writes `splits.csv` (name, label, split), whole or not at all."""
    with (
        files.replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows(zip(names, labels, (str(part) for part in splits), strict=True))


def read_splits(path: Path) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Reads what `write_splits` wrote: names, labels, splits.

    Raises:
        DataError: If the file is missing or is something else.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: is no table of splits: {error}.") from error
    if header != _COLUMNS:
        raise DataError(f"{path}: expected the columns {', '.join(_COLUMNS)}, got {header}.")
    for number, row in enumerate(rows, 2):
        if len(row) != 3 or row[2] not in SPLITS:
            raise DataError(f"{path}:{number}: expected name, label and a split, got {row}.")
    columns = tuple(zip(*rows, strict=True)) or ((), (), ())
    return columns[0], columns[1], columns[2]
