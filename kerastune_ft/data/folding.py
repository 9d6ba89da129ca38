"""Cuts what is not test into folds, each of which validates once: cross-validation.

    parts = divide(strata, parts, folds=5, fold=2, seed=0)    # of splitting.split
    number = numbers(strata, folds=5, seed=0)                 # (n,): 0..4

Every example validates in exactly one fold, and no class loses all of its examples to one fold:
then nothing would be left to train on when that fold validates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerastune_ft.data import splitting
from kerastune_ft.data.tables import first_few
from kerastune_ft.errors import DataError

_TRIED = 60  # units of either side of an exchange that frees a class


def divide(
    strata: NDArray[Any],
    parts: NDArray[np.str_],
    *,
    folds: int,
    fold: int | None,
    seed: int = 0,
    stratify: bool = True,
    groups: Sequence[str] | NDArray[Any] | None = None,
    class_names: Sequence[str] | None = None,
) -> NDArray[np.str_]:
    """Returns the split of each example when one of the folds validates.

    The test split stays as it is. Training and validation, the data's own included, are put
    together and cut anew; who is in which fold does not depend on `fold`.

    Args:
        strata: What the shares of are kept: class or bin numbers `(n,)`, or `bool (n, classes)`.
        parts: The split of each example, with the test split already cut.
        folds: How many there are, 2 or more.
        fold: The one that validates, from 1; None leaves all of them to training.
        seed: Another seed, another division.
        stratify: Whether every fold gets the same share of each class.
        groups: What each example belongs to: a group is never divided.
        class_names: In the order of the numbers or columns, where every class must keep an
            example to train on; None asks for none, as of bins.

    Raises:
        DataError: If there are too few examples, groups, or examples of a class.
    """
    rows = np.flatnonzero(parts != "test")
    chosen = np.asarray(strata)[rows]
    owners = None if groups is None else np.asarray(groups)[rows]
    number = numbers(
        chosen, folds=folds, seed=seed, stratify=stratify, groups=owners, named=bool(class_names)
    )
    if class_names is not None:
        _check(chosen, number, owners, class_names, stratify)
    made = parts.copy()
    made[rows] = "train"
    if fold is not None:
        made[rows[number == fold - 1]] = "validation"
    return made


def numbers(
    strata: NDArray[Any],
    *,
    folds: int,
    seed: int = 0,
    stratify: bool = True,
    groups: NDArray[Any] | None = None,
    named: bool = True,
) -> NDArray[np.int64]:
    """Returns the fold of each example, `0..folds - 1`.

    Without groups, sizes of folds differ by one example at most, and so do those of one class in
    the folds where every example has one class.

    Args:
        strata: Class or bin numbers `(n,)`, or `bool (n, classes)`.
        folds: How many.
        seed: Another seed, another division.
        stratify: Whether every fold gets the same share of each class.
        groups: What each example belongs to.
        named: Whether the strata are classes, none of which may be in one fold alone.

    Raises:
        DataError: If a fold would be empty.
    """
    n = len(strata)
    owners = np.arange(n)
    if groups is not None:
        owners = np.unique(groups, return_inverse=True)[1].reshape(-1)
    units = int(owners.max()) + 1 if n else 0
    if units < folds:
        what, remedy = "examples that are not test", "add some, or take fewer folds"
        if groups is not None:
            what, remedy = "groups that are not test", f"{remedy}, or leave groups out"
        raise DataError(f"data.split: {units} {what} are too few for {folds} folds; {remedy}.")
    if not stratify:
        strata = np.zeros(n, np.int64)
    if groups is not None:
        found = _whole(_columns(strata), owners, folds, seed)
    elif strata.ndim == 1:
        return _dealt(strata, folds, seed)
    else:
        room = np.full(folds, n // folds, np.int64)
        room[: n % folds] += 1
        found = splitting.iteratively(strata.astype(bool), room, seed)
    if named and stratify:
        _free(_columns(strata), owners, found, folds, seed)
    return found


def _dealt(strata: NDArray[Any], folds: int, seed: int) -> NDArray[np.int64]:
    """Deals examples like cards, class by class, going on where the class before ended."""
    mixed = np.random.default_rng(seed).permutation(len(strata))
    order = mixed[np.argsort(strata[mixed], kind="stable")]
    found = np.empty(len(strata), np.int64)
    found[order] = np.arange(len(strata)) % folds
    return found


def _whole(
    columns: NDArray[np.bool_], owners: NDArray[np.int64], folds: int, seed: int
) -> NDArray[np.int64]:
    """Gives whole groups, the largest first, to the fold that has least of what they hold."""
    holds = _holds(columns, owners)
    rare = holds / np.maximum(holds.sum(axis=0), 1)  # so that every class counts alike
    filled = np.zeros((folds, holds.shape[1]))
    mixed = np.random.default_rng(seed).permutation(len(holds))
    chosen = np.empty(len(holds), np.int64)
    for unit in mixed[np.argsort(-holds[mixed, -1], kind="stable")]:
        best = np.lexsort((filled[:, -1], (filled @ rare[unit]).round(12)))[0]
        chosen[unit] = best
        filled[best] += rare[unit]
    return chosen[owners]


def _free(
    columns: NDArray[np.bool_],
    owners: NDArray[np.int64],
    found: NDArray[np.int64],
    folds: int,
    seed: int,
) -> None:
    """Lets units change folds, in `found`, while a class is in one fold alone.

    That is rare: where rarer classes took all of its examples with them, or large groups did.
    Single examples change places, so that folds keep their sizes; groups may also move.
    """
    holds = _holds(columns, owners)[:, :-1]
    several = (holds > 0).sum(axis=0) > 1
    chosen = np.empty(len(holds), np.int64)
    chosen[owners] = found
    mixed = np.random.default_rng(seed).permutation(len(holds))
    alone = len(holds) == len(owners)

    def bound(filled: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.asarray(((filled > 0).sum(axis=0) == 1) & several)

    def change() -> tuple[int, int, bool] | None:
        """Returns two units and whether both move, such that fewer classes are in one fold."""
        filled = np.stack([holds[chosen == fold].sum(axis=0) for fold in range(folds)])
        now = bound(filled)
        for name in np.flatnonzero(now):
            inside = mixed[holds[mixed, name] > 0][:_TRIED]
            here = chosen[inside[0]]
            outside = mixed[chosen[mixed] != here][:_TRIED]
            for one in inside:
                for other in outside:
                    for both in (True,) if alone else (True, False):
                        gone = holds[one] - both * holds[other]
                        after = filled.copy()
                        after[here] -= gone
                        after[chosen[other]] += gone
                        if bound(after).sum() < now.sum():
                            return int(one), int(other), both
        return None

    while (found_ := change()) is not None:
        one, other, both = found_
        here, there = chosen[one], chosen[other]
        chosen[one] = there
        if both:
            chosen[other] = here
    found[:] = chosen[owners]


def _columns(strata: NDArray[Any]) -> NDArray[np.bool_]:
    """Returns which stratum each example is of, a column each."""
    if strata.ndim == 2:
        return strata.astype(bool)
    return np.asarray(strata[:, None] == np.unique(strata)[None, :])


def _holds(columns: NDArray[np.bool_], owners: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns how many examples of each stratum every unit holds, and in the end of all."""
    holds = np.zeros((int(owners.max()) + 1, columns.shape[1] + 1))
    np.add.at(holds, owners, np.column_stack([columns, np.ones(len(columns), bool)]))
    return holds


def _check(
    strata: NDArray[Any],
    number: NDArray[np.int64],
    owners: NDArray[Any] | None,
    class_names: Sequence[str],
    stratify: bool,
) -> None:
    """Raises `DataError` if all examples of a class are in one fold."""
    single: list[str] = []
    together: list[str] = []
    for i, name in enumerate(class_names):
        # Of tags, the last classes may have no column: they are not there at all.
        columns = strata.shape[1] if strata.ndim == 2 else i + 1
        having = strata == i if strata.ndim == 1 else strata[:, min(i, columns - 1)] > 0
        having = having & (i < columns)
        if having.any() and len(np.unique(number[having])) == 1:
            (single if having.sum() < 2 else together).append(name)
    if single:
        raise DataError(
            f"data.split: classes with fewer than 2 examples that are not test: "
            f"{first_few(single)}; when their fold validates, none is left to train on. Add "
            "examples of them, or set train.folds=1."
        )
    if together:
        remedy = "add examples of them, or take other folds"
        if owners is not None:
            remedy = "such a class needs two groups at least; add some, or set train.folds=1"
        elif not stratify:
            remedy = "set data.split.stratify=true"
        raise DataError(
            f"data.split: classes whose examples are all in one fold, so that none is left to "
            f"train on when it validates: {first_few(together)}; {remedy}."
        )
