"""Labels that look wrong to a probe on frozen features that has not seen them.

    found = suspects.of_survey(recipe, survey, progress)
    for row, suggested in zip(found.rows, found.suggested): ...

Five probes each learn four fifths of the examples and judge the rest; cleanlab estimates from that
how many labels are wrong. Those are named that the probe believes least, and of which it holds
another class for much likelier. With a tenth of the labels of clothing10 (96 pixels, three seeds)
drawn anew, `FILTER` and `MARGIN` have precision 0.66 and recall 0.72, better than cleanlab's other
filters at such a recall (`benchmarks/label_noise.py`); at 128 pixels it is 0.72 and 0.74, and on
flowers5 0.86 and 0.71.
Classes of fewer than `FEWEST` different examples are not judged.

Reference:
    Northcutt, Jiang & Chuang 2021, Confident learning. https://arxiv.org/abs/1911.00068
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kerastune_ft.checks import probes
from kerastune_ft.data.tables import Finding, finding

if TYPE_CHECKING:
    from kerastune_ft.checks.examined import Examined
    from kerastune_ft.checks.features import Progress
    from kerastune_ft.data import Survey
    from kerastune_ft.recipe import Recipe

Filter: TypeAlias = Literal[
    "prune_by_noise_rate",
    "prune_by_class",
    "both",
    "confident_learning",
    "predicted_neq_given",
    "low_normalized_margin",
    "low_self_confidence",
]
FILTER: Filter = "low_self_confidence"
MARGIN = 0.3
"""By how much the other class must be likelier than the given one."""
FEWEST = probes.FOLDS


@dataclass(frozen=True)
class Suspects:
    """Examples whose label is suspected, the worst first.

    Args:
        rows: Of the survey, `(k,)`.
        given: Class numbers, `(k,)`.
        suggested: What the probe holds them for, `(k,)`.
        confidence: Its probability of the given class, `(k,)`, 0..1.
        probability: Its probability of the suggested class, `(k,)`, 0..1.
        judged: How many examples were looked at.
        accuracy: Share of them of which the probe names the given class.
    """

    rows: NDArray[np.int64]
    given: NDArray[np.int64]
    suggested: NDArray[np.int64]
    confidence: NDArray[np.float64]
    probability: NDArray[np.float64]
    judged: int
    accuracy: float

    def __len__(self) -> int:
        return len(self.rows)


def find(
    features: NDArray[Any],
    labels: NDArray[Any],
    *,
    groups: NDArray[np.int64] | None = None,
    filter_by: Filter = FILTER,
    margin: float = MARGIN,
) -> Suspects:
    """Returns the examples whose label is suspected.

    Args:
        features: `(n, width)`.
        labels: Class numbers `(n,)`.
        groups: Examples of one, such as copies, are judged by probes that saw none of them.
        filter_by: One of cleanlab's filters.
        margin: See `MARGIN`; 0 to 1.
    """
    keys = np.arange(len(labels)) if groups is None else groups
    pairs = np.unique(np.stack([np.asarray(labels, np.int64), keys], axis=1), axis=0)
    classes, different = np.unique(pairs[:, 0], return_counts=True)
    classes = classes[different >= FEWEST]
    judged = np.flatnonzero(np.isin(labels, classes))
    if len(classes) < 2:
        return _none()
    own = np.searchsorted(classes, np.asarray(labels)[judged])
    fold = probes.folds(own, keys[judged])
    said = probes.out_of_fold(probes.reduced(features[judged]), own, fold)
    places = _issues(own, said, filter_by)
    each = np.arange(len(own))
    suggested, confidence = said.argmax(axis=1), said[each, own]
    probability = said.max(axis=1)
    places &= probability - confidence >= max(margin, 1e-9)
    worst = np.flatnonzero(places)
    worst = worst[np.lexsort((judged[worst], probability[worst] * -1, confidence[worst]))]
    return Suspects(
        rows=judged[worst],
        given=classes[own[worst]],
        suggested=classes[suggested[worst]],
        confidence=confidence[worst],
        probability=probability[worst],
        judged=len(judged),
        accuracy=float((suggested == own).mean()),
    )


def of_survey(
    recipe: Recipe,
    survey: Survey,
    progress: Progress = lambda words, done, total: None,
    rows: NDArray[np.int64] | None = None,
) -> Suspects:
    """Returns the examples of a survey whose label is suspected.

    Args:
        recipe: Says backbone, weights and sizes.
        survey: What was read, one class per example.
        progress: Called as `progress(words, done, total)`.
        rows: Of the survey, ascending, to look at; None means all. Features are kept in the cache
            for exactly these.

    Raises:
        WeightsError: If the weights cannot be had.
    """
    from kerastune_ft.checks import features

    assert survey.kind == "class", survey.kind
    chosen = np.arange(len(survey.parts)) if rows is None else np.asarray(rows, np.int64)
    if not len(chosen):
        return _none()
    found = features.of_survey(recipe, survey, progress, rows=rows)
    return _of_features(survey, found.values, chosen)


def _of_features(survey: Survey, values: NDArray[Any], rows: NDArray[np.int64]) -> Suspects:
    from dataclasses import replace

    groups = probes.together(survey.first[rows], survey.table.take(rows).groups)
    found = find(values, survey.labels[rows], groups=groups)
    return replace(found, rows=rows[found.rows])


def check(examined: Examined) -> Iterator[Finding]:
    """Yields a finding that names every label that looks wrong, the worst first."""
    survey = examined.survey
    if survey.kind != "class":
        return
    found = _of_features(survey, examined.features.values, np.arange(len(survey.parts)))
    if not len(found):
        return
    classes, names = survey.table.class_names, survey.table.names
    message = (
        f"labels that look wrong to a probe on frozen features ({len(found) / found.judged:.1%}; "
        f"it names the given class of {found.accuracy:.1%}); look at them, the worst first"
    )
    rows = zip(found.given, found.suggested, found.probability, strict=True)
    details = [
        f"labelled {classes[given]}, looks like {classes[suggested]} ({probability:.2f})"
        for given, suggested, probability in rows
    ]
    named = [names[row] for row in found.rows]
    yield finding("suspected_label", "warn", message, named, details=details)


def _issues(labels: NDArray[np.int64], said: NDArray[np.float64], how: Filter) -> NDArray[np.bool_]:
    import warnings

    from cleanlab.filter import find_label_issues

    said = np.clip(said, 1e-9, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = find_label_issues(
            labels,
            said / said.sum(axis=1, keepdims=True),
            filter_by=how,
            min_examples_per_class=0,
            n_jobs=1,
        )
    return np.asarray(made, bool)


def _none() -> Suspects:
    nobody, nothing = np.zeros(0, np.int64), np.zeros(0)
    return Suspects(nobody, nobody, nobody, nothing, nothing, 0, 0.0)
