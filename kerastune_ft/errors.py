"""What can go wrong on the user's side: one base class, one child per place to look.

Every message says where, what is wrong, what would be right and, where there is one, the next
command. The command line prints it without a traceback and exits with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KftError(Exception):
    """Reports a mistake that the user can mend."""


class RecipeError(KftError):
    """Reports every problem of a recipe at once.

    Args:
        problems: One line each, `place: key: what is wrong; what would be right`.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class DataError(KftError):
    """Reports data that cannot be read, split or trained on."""


class WeightsError(KftError):
    """Reports weights that cannot be fetched, are damaged, or do not fit the network."""


class ModelError(KftError):
    """Reports a model that cannot be built or changed as asked."""


class TrainingError(KftError):
    """Reports training that went wrong: loss not finite, a failed freeze audit."""


class NotFiniteError(TrainingError):
    """Reports a loss that is no longer a finite number."""


class RunError(KftError):
    """Reports a run folder that is missing, taken, incomplete or not writable."""


class ExportError(KftError):
    """Reports an export that cannot be written, read or run, or answers otherwise than the run."""


class ServingError(KftError):
    """Reports an export that cannot be served, or a server that cannot be asked."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns `"; did you mean 'x'?"` for the nearest known word, else an empty string."""
    by_lower_case = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), list(by_lower_case), n=1, cutoff=0.6)
    return f"; did you mean '{by_lower_case[near[0]]}'?" if near else ""
