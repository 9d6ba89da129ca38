"""Takes suspected labels out of training, as `data.cleaning.suspected_labels` says.

survey = read(recipe)              # all that a recipe says about its data
survey = cleaned(recipe, survey)   # this part of it

Validation and test keep theirs: to leave out there what a model finds hard would flatter it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from kerastune_ft import data
from kerastune_ft.checks import suspects
from kerastune_ft.data import Survey
from kerastune_ft.data.labels import LABELS
from kerastune_ft.data.tables import finding
from kerastune_ft.tasks import TASKS

if TYPE_CHECKING:
    from kerastune_ft.recipe import Recipe
    from kerastune_ft.runs import Run

_RULE = "suspected_labels"


def read(recipe: Recipe, run: Run | None = None) -> Survey:
    """Reads, cleans and divides the data of a recipe; refuses nothing that can be read.

    Args:
        recipe: From `recipe.load`, or of a run.
        run: That has read the data before: its labels were judged then, and are not judged again,
            which another machine or precision might do otherwise.

    Raises:
        DataError: If nothing can be read, or cannot be divided as asked.
        WeightsError: If labels are to be judged and the pre-trained weights cannot be had.
    """
    task = TASKS[recipe.task.name]
    survey = data.survey(recipe.data, task.labels, task.modality)
    if run is None or not run.has("data"):
        return cleaned(recipe, survey)
    record = run.read_json("data")
    return _judged_before(survey, record.get("removed", ()), record.get("relabelled", {}))


def cleaned(
    recipe: Recipe,
    survey: Survey,
    progress: Callable[[str, int, int], None] = lambda words, done, total: None,
) -> Survey:
    """Returns a survey whose suspected training labels are left out or replaced.

    Args:
        recipe: Says which of the two, and whose features are looked at.
        survey: Of one class per example.
        progress: As `Examined.progress`.

    Raises:
        WeightsError: If the pre-trained weights cannot be had.
    """
    rule = recipe.data.cleaning.suspected_labels
    if rule == "keep":
        return survey
    training = np.flatnonzero(survey.parts == "train")
    found = suspects.of_survey(recipe, survey, progress, rows=training)
    names = survey.table.class_names
    pairs = {
        int(row): (names[int(given)], names[int(better)])
        for row, given, better in zip(found.rows, found.given, found.suggested, strict=True)
    }
    if rule == "relabel":
        return _relabelled(survey, {row: better for row, (_, better) in pairs.items()})
    said = {
        row: (_RULE, f"labelled '{given}', looks like '{better}'")
        for row, (given, better) in pairs.items()
    }
    return survey.without(said)


def _judged_before(
    survey: Survey, removed: Sequence[Mapping[str, str]], relabelled: Mapping[str, str]
) -> Survey:
    rows = {name: row for row, name in enumerate(survey.table.names)}
    changed = {rows[name]: label for name, label in relabelled.items() if name in rows}
    survey = _relabelled(survey, changed)
    gone = {
        rows[said["name"]]: (_RULE, said["detail"])
        for said in removed
        if said["reason"] == _RULE and said["name"] in rows
    }
    return survey.without(gone)


def _relabelled(survey: Survey, better: Mapping[int, str]) -> Survey:
    if not better:
        return survey
    labels = list(survey.table.labels)
    details = []
    for row, label in better.items():
        details.append(f"{labels[row]} -> {label}")
        labels[row] = label
    names = [survey.table.names[row] for row in better]
    message = "suspected training labels replaced by those they look like"
    changed = finding("renamed_label", "note", message, names, details=details)
    table = replace(survey.table, labels=tuple(labels))
    return replace(
        survey,
        table=table,
        labels=LABELS[survey.kind].encode(table.labels, table.class_names),
        findings=(*survey.findings, changed),
        relabelled=dict(zip(names, better.values(), strict=True)),
    )
