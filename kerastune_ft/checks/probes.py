"""Small classifiers on frozen features, cross-validated: what can be told from what.

    groups = together(survey.first, table.groups)
    said = out_of_fold(values, labels, fold(labels, groups))       # float64 (n, classes)
    auc, low, high = separability(one, other)

Everything is a function of its arguments: nothing is drawn that differs from call to call.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerastune_ft.data import copies

FOLDS = 5
_WIDTH = 256  # dimensions that features are brought down to
_FITTED = 20_000  # examples that these are found by, at most
_CHUNK = 4_096
_C = 1.3  # inverse strength of regularisation, of features whose mean square norm is 1
_BOOTSTRAPS = 200
_Z = 1.96  # of a 95 % interval


def reduced(values: NDArray[Any]) -> NDArray[np.float32]:
    """Returns standardised features, at most 256 wide, whose mean square norm is about 1.

    Reads `values` in parts, so that a table may be mapped from a file.

    Args:
        values: `(n, width)`.
    """
    count, width = values.shape
    some = np.linspace(0, count - 1, min(count, _FITTED)).astype(np.int64)
    known = np.asarray(values[some], np.float32)
    mean, std = known.mean(axis=0), known.std(axis=0)
    scale = 1 / np.where(std > 1e-6, std, np.inf) / math.sqrt(width)

    def standard(part: NDArray[Any]) -> NDArray[np.float32]:
        made: NDArray[np.float32] = (np.asarray(part, np.float32) - mean) * scale
        return made

    kept = min(_WIDTH, width, len(known) - 1)
    if kept < 1 or width <= _WIDTH:
        return np.concatenate([standard(values[i : i + _CHUNK]) for i in range(0, count, _CHUNK)])
    with _one_thread():
        wide = standard(known)
        _, axes = np.linalg.eigh(wide.T @ wide)  # ascending
        main = np.ascontiguousarray(axes[:, : -kept - 1 : -1])
        made = np.empty((count, kept), np.float32)
        for start in range(0, count, _CHUNK):
            made[start : start + _CHUNK] = standard(values[start : start + _CHUNK]) @ main
    return made


def together(*columns: Iterable[Hashable] | None) -> NDArray[np.int64]:
    """Returns a number per example; those that are equal in any column share one.

    Args:
        columns: Such as the first row of the same content and groups; None is left out.
    """
    firsts = []
    for column in columns:
        if column is not None:
            known: dict[Hashable, int] = {}
            rows = [known.setdefault(value, row) for row, value in enumerate(column)]
            firsts.append(np.asarray(rows, np.int64))
    count = len(firsts[0])
    pairs = [np.stack([np.arange(count), first], axis=1) for first in firsts]
    return copies.families(count, np.arange(count), np.concatenate(pairs))


def folds(
    labels: NDArray[Any], groups: NDArray[np.int64] | None = None, count: int = FOLDS
) -> NDArray[np.int64]:
    """Returns the fold of each example, `(n,)`, the classes in their proportions.

    Args:
        labels: Class numbers `(n,)`.
        groups: Examples of one stay in one fold; None has none.
        count: How many folds.
    """
    keys = np.arange(len(labels)) if groups is None else groups
    _, first, group, sizes = np.unique(
        keys, return_index=True, return_inverse=True, return_counts=True
    )
    shuffled = np.random.default_rng(0).permutation(len(first))
    # Large groups first, each to the fold that has least of its class.
    shuffled = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    _, classes = np.unique(np.asarray(labels)[first], return_inverse=True)
    filled = np.zeros((int(classes.max()) + 1, count))
    chosen = np.zeros(len(first), np.int64)
    for place in shuffled:
        row = filled[classes[place]]
        # Equal ones by what the whole fold has, lest the first fold gets all small classes.
        chosen[place] = fold = np.lexsort((filled.sum(axis=0), row))[0]
        row[fold] += sizes[place]
    return chosen[group]


def out_of_fold(
    values: NDArray[np.float32], labels: NDArray[np.int64], fold: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Returns for every example what a linear probe that has not seen its fold says.

    Args:
        values: From `reduced`.
        labels: Class numbers 0 to K - 1, `(n,)`.
        fold: From `folds`.

    Returns:
        Probabilities `(n, K)`; 0 of a class that is in no other fold.
    """
    from sklearn.linear_model import LogisticRegression

    said = np.zeros((len(labels), int(labels.max()) + 1))
    for number in np.unique(fold):
        here = fold == number
        known = np.unique(labels[~here])
        if len(known) < 2:
            said[np.ix_(here, known)] = 1.0
            continue
        probe = LogisticRegression(C=_C, tol=1e-3, max_iter=200)
        with _one_thread():
            probe.fit(values[~here], labels[~here])
            said[np.ix_(here, known)] = probe.predict_proba(values[here])
    return said


def nearest(
    values: NDArray[Any], labels: NDArray[np.int64], fold: NDArray[np.int64], count: int = 5
) -> NDArray[np.int64]:
    """Returns for every example the class of most of its nearest ones in other folds, by cosine.

    Args:
        values: Features `(n, width)`.
        labels: Class numbers `(n,)`.
        fold: From `folds`.
        count: How many are asked; the nearest decides where they are at odds.
    """
    centred = np.asarray(values, np.float32) - np.asarray(values, np.float32).mean(axis=0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)
    classes = int(labels.max()) + 1
    said = np.zeros(len(labels), np.int64)
    for number in np.unique(fold):
        here, there = fold == number, fold != number
        alike = unit[here] @ unit[there].T
        few = np.argsort(-alike, axis=1)[:, :count]
        votes = np.zeros((len(few), classes))
        for place in range(few.shape[1]):
            votes[np.arange(len(few)), labels[there][few[:, place]]] += 1 + 0.1 / (place + 1)
        said[here] = votes.argmax(axis=1)
    return said


def _one_thread() -> Any:
    """Keeps small products on one thread: several that wait for each other take 30 times longer."""
    import threadpoolctl

    return threadpoolctl.threadpool_limits(1)


def wilson(right: int, count: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share.

    Reference:
        Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    share, z = right / count, _Z
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    spread /= 1 + z * z / count
    return max(middle - spread, 0.0), min(middle + spread, 1.0)


def domain(
    one: NDArray[Any], other: NDArray[Any], groups: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns how much each example looks like one of the second set to a probe.

    Sets of different sizes weigh the same.

    Args:
        one: Features of the first set.
        other: Of the second.
        groups: Of all examples, the first set's before the second's; see `folds`.

    Returns:
        Out-of-fold probabilities of the second set, of the examples of each.
    """
    from sklearn.linear_model import LogisticRegression

    labels = np.repeat([0, 1], [len(one), len(other)])
    values = reduced(np.concatenate([one, other]))
    # Copies on both sides must not tell which side they are of by having been seen.
    fold = folds(labels, groups)
    said = np.full(len(labels), 0.5)
    for number in range(FOLDS):
        here = fold == number
        if len(np.unique(labels[~here])) == 2 and here.any():
            probe = LogisticRegression(C=_C, tol=1e-3, max_iter=200, class_weight="balanced")
            with _one_thread():
                probe.fit(values[~here], labels[~here])
                said[here] = probe.predict_proba(values[here])[:, 1]
    return said[: len(one)], said[len(one) :]


def separability(
    one: NDArray[np.float64], other: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Returns the area under the ROC curve of scores, and its 95 % bootstrap interval.

    0.5 is chance; 1 tells all apart.

    Args:
        one: Scores of the first set.
        other: Of the second, higher where it can be told.
    """
    order = np.sort(one)

    def area(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
        below = np.searchsorted(first, second, "left") + np.searchsorted(first, second, "right")
        return float(below.mean() / (2 * len(first)))

    chance = np.random.default_rng(0)
    areas = [
        area(np.sort(chance.choice(one, len(one))), chance.choice(other, len(other)))
        for _ in range(_BOOTSTRAPS)
    ]
    low, high = np.quantile(areas, [0.025, 0.975])
    return area(order, other), float(low), float(high)
