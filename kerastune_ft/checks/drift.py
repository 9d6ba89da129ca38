"""Split against split, and data against data: can they be told apart, and by what?

    found = drift.between(one, other)         # features (n, width) of two sets
    found.auc, found.interval, found.verdict

A probe on frozen features learns which set an example is of. Of sets drawn at random it does no
better than chance, an area under the ROC curve of 0.5.

Reference:
    Rabanser, Günnemann & Lipton 2019, Failing loudly. https://arxiv.org/abs/1810.11953
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerastune_ft.checks import features, probes
from kerastune_ft.data.looks import Looks
from kerastune_ft.data.tables import SPLITS, Finding, finding

if TYPE_CHECKING:
    from kerastune_ft.checks.examined import Examined

LOWEST = 0.6
"""From which lower bound of the area on sets count as different."""

_FEWEST = 30  # examples of each set: of fewer, chance tells sets apart
_TELLING = 20
_CHANCE = 0.01  # over all figures together
_EFFECT = 0.15  # of the Kolmogorov-Smirnov statistic
_SHARE = 2_000  # examples of each set, at most


@dataclass(frozen=True)
class Drift:
    """How well two sets can be told apart.

    Args:
        auc: Area under the ROC curve, out of fold: 0.5 is chance, 1 tells all apart.
        interval: Of 95 %.
        one: How much each example of the first set looks like one of the second, 0..1.
        other: The same of the second set.
    """

    auc: float
    interval: tuple[float, float]
    one: NDArray[np.float64]
    other: NDArray[np.float64]

    @property
    def different(self) -> bool:
        """Whether they differ by more than chance explains."""
        return self.interval[0] > LOWEST

    @property
    def telling(self) -> NDArray[np.int64]:
        """Places of the examples of the second set that look least like the first, worst first."""
        return np.argsort(-self.other, kind="stable")[:_TELLING]

    @property
    def numbers(self) -> str:
        """The area and its interval, in words."""
        low, high = self.interval
        return f"area under the ROC curve {self.auc:.2f} ({low:.2f} to {high:.2f}; 0.5 is chance)"

    @property
    def verdict(self) -> str:
        """What the area means, in words."""
        if not self.different:
            return "cannot be told apart by more than chance"
        if self.auc > 0.95:
            return "can be told apart nearly always"
        return "can be told apart often" if self.auc > 0.75 else "can be told apart at times"


def between(
    one: NDArray[Any], other: NDArray[Any], groups: NDArray[np.int64] | None = None
) -> Drift | None:
    """Measures how well two sets can be told apart; None if one is too small to say.

    Args:
        one: Features of the first, `(n, width)`.
        other: Of the second, `(m, width)`.
        groups: Of the examples of both, one after the other: those of one stay in one fold.
    """
    if min(len(one), len(other)) < _FEWEST:
        return None
    first, second = probes.domain(one, other, groups)
    auc, low, high = probes.separability(first, second)
    return Drift(auc, (low, high), first, second)


def figures(looks: Looks | None, texts: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """Returns simple figures of examples, `(n,)` each, by what they are called.

    Args:
        looks: Of pictures.
        texts: Or texts.
    """
    if texts is not None:
        letters = [max(1, len(text)) for text in texts]
        capitals = [sum(map(str.isupper, text)) for text in texts]
        digits = [sum(map(str.isdigit, text)) for text in texts]
        return {
            "characters": np.asarray(letters, np.float64),
            "words": np.asarray([len(text.split()) for text in texts], np.float64),
            "share of capitals": np.asarray(capitals) / letters,
            "share of digits": np.asarray(digits) / letters,
        }
    if looks is None:
        return {}
    return {
        "brightness": looks.brightness,
        "contrast": looks.contrast,
        "sharpness": looks.sharpness,
        "colour": looks.colour,
        "longer side": np.maximum(looks.width, looks.height),
        "proportions": looks.width / looks.height,
    }


def shifted(
    one: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]]
) -> list[tuple[str, str]]:
    """Returns which figures are distributed otherwise, and how, after Holm's correction.

    Args:
        one: Figures of the first set, by what they are called.
        other: Of the second.
    """
    from scipy import stats

    names = [name for name in one if name in other]
    tested = [stats.ks_2samp(one[name], other[name]) for name in names]
    order = np.argsort([test.pvalue for test in tested], kind="stable")
    found = []
    for done, place in enumerate(order):
        name, test = names[place], tested[place]
        if test.pvalue * (len(names) - done) >= _CHANCE:
            break
        if test.statistic < _EFFECT:
            continue
        middles = np.median(other[name]), np.median(one[name])
        found.append(
            (
                name,
                f"median {middles[0]:.4g} against {middles[1]:.4g}; Kolmogorov-Smirnov distance "
                f"{test.statistic:.2f}, chance {test.pvalue * (len(names) - done):.1g}",
            )
        )
    return found


def splits(examined: Examined) -> Iterator[Finding]:
    """Finds splits that a probe on frozen features can tell from training."""
    survey = examined.survey
    found = features.of_sample(examined)
    parts = survey.parts[found.rows]
    table = survey.table.take(found.rows)
    groups = probes.together(survey.first[found.rows], table.groups)
    for name in SPLITS[1:]:
        one, other = (_some(np.flatnonzero(parts == part)) for part in ("train", name))
        both = np.concatenate([one, other])
        said = between(found.values[one], found.values[other], groups[both])
        if said is None or not said.different:
            continue
        message = (
            f"training and {name} {said.verdict} by frozen features, {said.numbers}; examples of "
            f"{name} that look least like training"
        )
        telling = said.telling
        yield finding(
            "split_drift",
            "warn",
            message,
            [table.names[other[place]] for place in telling],
            details=[f"looks like {name} with {said.other[place]:.2f}" for place in telling],
        )


def split_figures(examined: Examined) -> Iterator[Finding]:
    """Finds splits whose pictures or texts differ from training in a simple figure."""
    texts = examined.texts[0][1] if examined.texts else None
    if texts is None and (examined.looks is None or len(examined.looks) != len(examined.parts)):
        return
    every = figures(examined.looks, texts)
    for name in SPLITS[1:]:
        here, there = examined.parts == name, examined.parts == "train"
        if min(here.sum(), there.sum()) < _FEWEST:
            continue
        found = shifted(
            {key: values[there] for key, values in every.items()},
            {key: values[here] for key, values in every.items()},
        )
        if found:
            names, details = zip(*found, strict=True)
            message = f"figures of {name} that are distributed otherwise than in training"
            yield finding("figure_drift", "warn", message, names, details=details)


def _some(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    if len(rows) <= _SHARE:
        return rows
    return rows[np.linspace(0, len(rows) - 1, _SHARE).astype(np.int64)]
