"""Figures that several checks judge by: how sure a difference is, and how large."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FEWEST = 10  # examples on either side, below which a figure says nothing


def chi_square(counts: NDArray[np.int64]) -> tuple[float, float]:
    """Returns how likely a table of counts is by chance, and how strong its dependence is.

    Args:
        counts: `(rows, columns)`; empty rows and columns are left out.

    Returns:
        The chance of such a table without any dependence, 0..1, and Cramer's V, 0..1, without
        the bias that it has in large tables of small counts.

    Reference:
        Bergsma 2013, A bias-correction for Cramer's V and Tschuprow's T.
    """
    from scipy import stats

    table = np.asarray(counts)[:, np.asarray(counts).sum(axis=0) > 0]
    table = table[table.sum(axis=1) > 0]
    if min(table.shape) < 2:
        return 1.0, 0.0
    tested = stats.chi2_contingency(table, correction=False)
    n = int(table.sum())
    rows, columns = table.shape
    phi = max(0.0, tested.statistic / n - (rows - 1) * (columns - 1) / max(1, n - 1))
    real_rows = rows - (rows - 1) ** 2 / max(1, n - 1)
    real_columns = columns - (columns - 1) ** 2 / max(1, n - 1)
    least = min(real_rows, real_columns) - 1
    return float(tested.pvalue), float(np.sqrt(phi / least)) if least > 0 else 0.0


def robust_scale(values: NDArray[np.floating]) -> tuple[float, float]:
    """Returns the median, and the deviation that a normal distribution of such quartiles has."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return float(middle), float((high - low) / 1.349)


def separations(
    values: NDArray[Any], labels: NDArray[np.integer], classes: int
) -> Iterator[tuple[int, float]]:
    """Yields the classes that have enough examples and how well one number tells each of them.

    Args:
        values: Of each example, `(n,)`.
        labels: Class numbers, `(n,)`.
        classes: How many there are.

    Yields:
        Class number and the area under the ROC curve against all other classes, 0.5..1, above
        0.5 whether the class has larger numbers or smaller ones.
    """
    from scipy import stats

    ranks = stats.rankdata(values)
    for number in range(classes):
        own = labels == number
        n, others = int(own.sum()), int((~own).sum())
        if min(n, others) >= _FEWEST:
            area = (ranks[own].sum() - n * (n + 1) / 2) / (n * others)
            yield number, float(max(area, 1 - area))
