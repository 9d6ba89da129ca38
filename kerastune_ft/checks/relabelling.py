"""Takes suspected labels out of training, as `data.cleaning.suspected_labels` says.

survey = read(recipe)              # all that a recipe says about its data
survey = cleaned(recipe, survey)   # this part of it

Validation and test keep theirs: to leave out there what a model finds hard would flatter it.
"""

from __future__ import annotations

from collections.abc import Callable
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


def read(recipe: Recipe) -> Survey:
    """Reads, cleans and divides the data of a recipe; refuses nothing that can be read.

    Args:
        recipe: From `recipe.load`, or of a run.

    Raises:
        DataError: If nothing can be read, or cannot be divided as asked.
        WeightsError: If labels are to be judged and the pre-trained weights cannot be had.
    """
    task = TASKS[recipe.task.name]
    return cleaned(recipe, data.survey(recipe.data, task.labels, task.modality))


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
    said = {
        int(row): f"labelled '{names[int(given)]}', looks like '{names[int(better)]}'"
        for row, given, better in zip(found.rows, found.given, found.suggested, strict=True)
    }
    if rule == "drop":
        return survey.without({row: ("suspected_labels", why) for row, why in said.items()})
    if not said:
        return survey
    labels = list(survey.table.labels)
    for row, better in zip(found.rows, found.suggested, strict=True):
        labels[int(row)] = names[int(better)]
    changed = finding(
        "renamed_label",
        "note",
        "suspected training labels replaced by those they look like",
        [survey.table.names[row] for row in said],
        details=list(said.values()),
    )
    table = replace(survey.table, labels=tuple(labels))
    encoded = LABELS[survey.kind].encode(table.labels, table.class_names)
    return replace(survey, table=table, labels=encoded, findings=(*survey.findings, changed))
