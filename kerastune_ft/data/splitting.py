"""Divides examples into train, validation and test, the same way every time.

    splits = split(labels, validation=0.15, test=0.15, stratify=True, seed=0)   # array of names

Splits that the data comes with are kept; a part that is missing there is cut out of its training
split. Every class keeps at least one example to train on. Where a picture has several classes, they
are divided by iterative stratification.
"""

from __future__ import annotations

import csv
import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerastune_ft import files
from kerastune_ft.data.labels import class_counts
from kerastune_ft.data.tables import SPLITS, Finding, finding, first_few
from kerastune_ft.errors import DataError

_EXCHANGES_PER_CLASS = 20
_CANDIDATES = 300  # of either side of an exchange
_FOLDS = 20  # that groups are dealt to: a share is met to a twentieth of what there is
_BUNDLES = 2000  # of groups, if there are more
_COLUMNS = ["name", "label", "split"]


def split(
    labels: Sequence[int] | NDArray[np.integer] | NDArray[np.bool_],
    *,
    validation: float,
    test: float,
    stratify: bool = True,
    seed: int = 0,
    official: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> NDArray[np.str_]:
    """Returns the split of each example: "train", "validation" or "test".

    Stratified, each class gives its share by largest remainder, so that the totals are right to
    the example unless that would leave a class nothing to train on.

    Args:
        labels: Class numbers, `(n,)`, in an order that does not depend on the machine; or
            `bool (n, classes)`, where an example can have several classes or none.
        validation: Share of the examples, `[0, 1)`; at least one example if above 0.
        test: As `validation`. With official splits, a missing part is this share of the official
            training split.
        stratify: Whether every class gives the same share.
        seed: Another seed, another division.
        official: The split of each example, if the data says.
        groups: What each example belongs to: a group is never divided, unless official splits
            do, and the shares are kept as far as that allows.

    Raises:
        DataError: If there are too few groups.
    """
    numbers = np.asarray(labels)
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
            groups=None if groups is None else [groups[int(i)] for i in training],
        )
        return splits
    if groups is not None:
        return _by_groups(numbers, groups, validation, test, stratify, seed)
    n = len(numbers)
    totals = {
        name: max(1, round(n * share)) if share > 0 else 0
        for name, share in (("test", test), ("validation", validation))
    }
    if stratify and numbers.ndim == 2:
        return _iteratively(numbers.astype(bool), totals, seed)
    splits = np.full(n, "train", dtype="U10")
    mixed = np.random.default_rng(seed).permutation(n)
    parts = [mixed]
    if stratify:
        parts = [mixed[numbers[mixed] == number] for number in np.unique(numbers)]
    sizes = np.asarray([len(part) for part in parts], np.int64)
    free = sizes - 1 if n else sizes
    taken = np.zeros_like(sizes)
    for name, total in totals.items():
        portions = apportion(sizes, total, free - taken)
        for part, start, count in zip(parts, taken, portions, strict=True):
            splits[part[start : start + count]] = name
        taken = taken + portions
    return splits


def _by_groups(
    numbers: NDArray[Any],
    groups: Sequence[str],
    validation: float,
    test: float,
    stratify: bool,
    seed: int,
) -> NDArray[np.str_]:
    """Divides whole groups: small folds of scikit-learn's, put together until a share is met."""
    splits = np.full(len(numbers), "train", dtype="U10")
    known = {group: number for number, group in enumerate(sorted(set(groups)))}
    owners = np.asarray([known[group] for group in groups], np.int64)
    shares = {n: share for n, share in (("test", test), ("validation", validation)) if share}
    if not shares or not len(numbers):
        return splits
    if len(known) <= len(shares):
        raise DataError(
            f"data.split: {len(known)} groups are too few for {len(shares) + 1} splits "
            f"({first_few(known, 3)}); set data.split.validation=0 or data.split.test=0, or leave "
            "data.group_column or data.group_pattern out."
        )
    folds = _folds(numbers, owners, stratify, seed, len(shares) + 1)
    for number, (name, share) in enumerate(shares.items(), 1):
        spare = len(shares) - number + 1  # a fold for each part to come, and for training
        chosen = _nearest([len(fold) for fold in folds], share * len(numbers), spare)
        for i in chosen:
            splits[folds[i]] = name
        folds = [fold for i, fold in enumerate(folds) if i not in chosen]
    _give_back(numbers, owners, splits)
    return splits


def _folds(
    numbers: NDArray[Any], owners: NDArray[np.int64], stratify: bool, seed: int, fewest: int
) -> list[NDArray[np.int64]]:
    """Returns the rows of folds of whole groups, none of them empty, `fewest` or more."""
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    # Each bundle is tried in each fold: hundreds of thousands of groups would take minutes.
    bundles = np.random.default_rng(seed).permutation(owners.max() + 1)[owners] % _BUNDLES
    count = min(_FOLDS, len(np.unique(bundles)))
    labels = numbers if numbers.ndim == 1 else np.zeros(len(numbers), np.int64)
    kinds = [GroupKFold(count, shuffle=True, random_state=seed)]
    if stratify and numbers.ndim == 1:
        # It wants no more folds than the largest class has members.
        count = min(count, int(np.unique(numbers, return_counts=True)[1].max()))
        if count >= fewest:
            kinds.insert(0, StratifiedGroupKFold(count, shuffle=True, random_state=seed))
    made: list[NDArray[np.int64]] = []
    for kind in kinds:
        with warnings.catch_warnings():  # a rare class is said elsewhere
            warnings.simplefilter("ignore", UserWarning)
            made = [rows for _, rows in kind.split(owners, labels, bundles) if len(rows)]
        if len(made) >= fewest:
            break
    return made


def _nearest(sizes: Sequence[int], target: float, spare: int) -> list[int]:
    """Returns which of some sizes sum up to about a target: one or more; `spare` are left."""
    chosen: list[int] = []
    total = 0
    while len(chosen) < len(sizes) - spare:
        left = [i for i in range(len(sizes)) if i not in chosen]
        best = min(left, key=lambda i: abs(total + sizes[i] - target))
        if chosen and abs(total + sizes[best] - target) >= abs(total - target):
            break
        chosen.append(best)
        total += sizes[best]
    return chosen


def _give_back(numbers: NDArray[Any], owners: NDArray[np.int64], splits: NDArray[np.str_]) -> None:
    """Moves, in `splits`, the smallest group of a class that training lacks into training."""
    lacking = np.setdiff1d(numbers, numbers[splits == "train"]) if numbers.ndim == 1 else ()
    columns = [numbers == number for number in lacking] if numbers.ndim == 1 else list(numbers.T)
    for column in columns:
        having = column.astype(bool)
        if not having.any() or having[splits == "train"].any():
            continue
        found = np.unique(owners[having])
        smallest = min(found, key=lambda owner: int((owners == owner).sum()))
        splits[owners == smallest] = "train"


def _iteratively(labels: NDArray[np.bool_], totals: dict[str, int], seed: int) -> NDArray[np.str_]:
    """Divides examples of several classes so that each class keeps its share in every part.

    The rarest class first: each of its examples goes where that class is wanted most. Other than
    in the paper, a part that is full takes no more, so that the totals are right to the example,
    the first example of a class that has none to train on goes to training, and in the end
    examples change places while that brings the shares closer: the commonest classes come last
    and get what the others left, up to four examples off.

    Args:
        labels: `(n, classes)`.
        totals: Examples wanted of each part but training.
        seed: Decides between equals.

    Reference:
        Sechidis, Tsoumakas & Vlahavas 2011, On the stratification of multi-label data.
        https://doi.org/10.1007/978-3-642-23808-6_10
    """
    names = ("train", *totals)
    room = np.asarray([len(labels) - sum(totals.values()), *totals.values()], np.int64)
    part = iteratively(labels, room, seed, training=0)
    return np.asarray(names, dtype="U10")[part]


def iteratively(
    labels: NDArray[np.bool_], room: NDArray[np.int64], seed: int, training: int | None = None
) -> NDArray[np.int64]:
    """Returns the part of each example of several classes; see `_iteratively`.

    Args:
        labels: `(n, classes)`.
        room: Examples of each part; they sum to n.
        seed: Decides between equals.
        training: The part that must have an example of every class, None if none must.
    """
    n, classes = labels.shape
    # In whole numbers: what a class still wants of a part, times n.
    counts = labels.sum(axis=0).astype(np.int64)
    wanted = room[:, None] * counts[None, :]
    room = room.copy()
    part = np.full(n, -1, np.int64)
    mixed = np.random.default_rng(seed).permutation(n)
    remaining = counts.copy()
    trained = np.full(classes, training is None)

    def place(example: int, where: int) -> None:
        part[example] = where
        room[where] -= 1
        wanted[where, labels[example]] -= n
        remaining[labels[example]] -= 1
        if where == training:
            trained[labels[example]] = True

    while remaining.any():
        rarest = int(np.where(remaining > 0, remaining, n + 1).argmin())
        for example in mixed[labels[mixed, rarest] & (part[mixed] < 0)]:
            best = np.lexsort((-room, -wanted[:, rarest], room <= 0))
            place(example, int(best[0]) if trained[rarest] else training or 0)
    for example in mixed[part[mixed] < 0]:
        place(example, int(np.argmax(room)))
    _exchange(labels, part, len(room), training)
    return part


def _exchange(
    labels: NDArray[np.bool_], part: NDArray[np.int64], parts: int, training: int | None
) -> None:
    """Lets pairs of examples change places, in `part`, while the shares of classes get better.

    Better means a smaller sum of squares of what each class has too much or too little of in each
    part. Training, where there is such a part, keeps an example of every class.
    """
    n, rows = len(labels), labels.astype(np.float64)
    sizes = np.bincount(part, minlength=parts)
    # Times n, so that every figure is a whole number and no machine rounds otherwise.
    excess = n * np.stack([rows[part == i].sum(axis=0) for i in range(parts)])
    excess -= sizes[:, None] * rows.sum(axis=0)
    pairs = [(i, j) for i in range(parts) for j in range(i)]
    for _ in range(_EXCHANGES_PER_CLASS * labels.shape[1]):
        best, chosen = 0.0, None
        single = labels[part == training].sum(axis=0) == 1
        fixed = (part == training) & labels[:, single].any(axis=1)
        for i, j in pairs:
            slope = excess[i] - excess[j]
            from_i = _foremost((part == i) & ~fixed, rows @ (slope - n))
            from_j = _foremost((part == j) & ~fixed, rows @ (-slope - n))
            a, b = rows[from_i], rows[from_j]
            gains = (a @ (slope - n))[:, None] + (b @ (-slope - n))[None, :] + 2 * n * (a @ b.T)
            if gains.size and gains.max() > best:
                first, second = np.unravel_index(int(gains.argmax()), gains.shape)
                best, chosen = gains.max(), (i, j, from_i[first], from_j[second])
        if chosen is None:
            return
        i, j, one, other = chosen
        part[one], part[other] = j, i
        excess[i] += n * (rows[other] - rows[one])
        excess[j] += n * (rows[one] - rows[other])


def _foremost(chosen: NDArray[np.bool_], merit: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns the numbers of the chosen examples of the highest merit, a few hundred at most."""
    numbers = np.flatnonzero(chosen)
    return numbers[np.argsort(-merit[numbers], kind="stable")[:_CANDIDATES]]


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
    labels: NDArray[np.integer] | NDArray[np.floating],
    splits: NDArray[np.str_],
    class_names: Sequence[str],
) -> tuple[Finding, ...]:
    """Returns a finding for each split that has examples, but none of some class.

    Args:
        labels: Class numbers `(n,)`, or 0 and 1 `(n, classes)`.
        splits: The split of each example, `(n,)`.
        class_names: In the order of the numbers or columns.
    """
    findings = []
    for name in SPLITS:
        chosen = splits == name
        counts = class_counts(labels[chosen], len(class_names))
        missing = tuple(c for c, count in zip(class_names, counts, strict=True) if not count)
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
