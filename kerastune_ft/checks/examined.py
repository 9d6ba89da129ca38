"""What checks look at: the data as it was read and divided, and features where asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerastune_ft.data import Survey
from kerastune_ft.data.labels import Labels
from kerastune_ft.data.tables import Table

if TYPE_CHECKING:
    from kerastune_ft.recipe import Recipe


@dataclass(frozen=True)
class Examined:
    """A data set under examination.

    Args:
        recipe: Says source, task, backbone and sizes.
        survey: What was read.
        progress: Called as `progress(words, done, total)` while something takes long.
    """

    recipe: Recipe
    survey: Survey
    progress: Callable[[str, int, int], None] = lambda words, done, total: None

    @property
    def table(self) -> Table:
        """Every example that can be used."""
        return self.survey.table

    @property
    def labels(self) -> Labels:
        """Encoded as the task's kind of labels says."""
        return self.survey.labels

    @property
    def parts(self) -> NDArray[np.str_]:
        """The split of each example: `train`, `validation` or `test`."""
        return self.survey.parts

    @functools.cached_property
    def features(self) -> Any:
        """Frozen features of every example, computed once."""
        from kerastune_ft.checks import features

        return features.of_survey(self.recipe, self.survey, self.progress)
