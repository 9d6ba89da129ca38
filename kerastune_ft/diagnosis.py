"""Reads a history as a person would: has it diverged, does it overfit or underfit.

The rules are stated in each docstring; they look at numbers that every run has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

Row = dict[str, Any]
Verdict = Literal["good", "overfitting", "underfitting", "unstable", "unknown"]

_LEAP = 1.5
_RISE = 1.1


def divergence(rows: Sequence[Row]) -> str | None:
    """Says if the newest epoch shows that a stage has gone wrong, None if it has not.

    It has if the training loss of a stage's epoch is more than 1.5 times that of the last epoch
    before the stage, or, where it is not the first epoch of its stage, of the stage's best one. A
    stage is told of once.

    Args:
        rows: One per epoch, the newest last.
    """
    if len(rows) < 2:
        return None
    newest = rows[-1]
    stage = [row for row in rows if row["stage"] == newest["stage"]]
    before = [row for row in rows if row["stage"] != newest["stage"]]
    reference = before[-1]["loss"] if before else math.inf
    for row in stage[:-1]:
        if _leaps(row["loss"], reference):
            return None  # told of already
        reference = min(reference, row["loss"])
    if not _leaps(newest["loss"], reference):
        return None
    inside = stage[:-1]
    what = "after unfreezing" if before and not inside else "within the stage"
    return (
        f"stage '{newest['stage']}': the loss rose from {reference:.4f} to {newest['loss']:.4f} "
        f"{what}; try a learning rate of {newest['learning_rate'] / 5:.1g} or what 'kft lr-find' "
        "suggests, a longer warmup_epochs, or fewer blocks at a time"
    )


def _leaps(loss: float, reference: float) -> bool:
    # A leap from next to nothing to little is none.
    return math.isfinite(reference) and loss > _LEAP * max(reference, 0.05)


def verdict(rows: Sequence[Row], metric: str, mode: Literal["min", "max"]) -> dict[str, Any]:
    """Judges a whole history by its losses on training and validation data.

    - unknown: no validation, or fewer than two epochs.
    - unstable: the last training loss is more than 1.5 times the lowest.
    - overfitting: the validation loss has risen by a tenth, and by 0.02, from its lowest while the
      training loss went on falling, and validation is worse than training.
    - underfitting: the training loss has hardly fallen at all, by less than 2 %; or both losses
      were still falling, by more than 2 % over the last epoch, when training ended. Not where the
      training loss is below 0.05: there is nothing left to learn.
    - good: none of these.

    Training loss is measured with dropout and augmentation and while the weights move, validation
    without: a validation loss that is the lower of the two is normal.

    Args:
        rows: One per epoch.
        metric: Of the task, such as `accuracy`.
        mode: Which way is better.

    Returns:
        `verdict`, `reason` (a sentence), and `gap`: per epoch what training is better by than
        validation, in the metric.
    """
    if len(rows) < 2 or any("val_loss" not in row for row in rows):
        return {
            "verdict": "unknown",
            "reason": "one epoch, or no validation, is too little to tell.",
            "gap": [],
        }
    sign = 1.0 if mode == "max" else -1.0
    gap = [round(sign * (row[metric] - row[f"val_{metric}"]), 6) for row in rows]
    training = [row["loss"] for row in rows]
    validation = [row["val_loss"] for row in rows]
    low = validation.index(min(validation))
    found: Verdict = "good"
    reason = "validation kept up with training until the end."
    risen = validation[-1] / max(validation[low], 1e-12)
    if training[-1] > _LEAP * max(min(training), 0.05):
        found = "unstable"
        reason = (
            f"the training loss ended at {training[-1]:.4f} after {min(training):.4f}; lower the "
            "learning rates."
        )
    elif (
        risen > _RISE
        and validation[-1] - validation[low] > 0.02
        and training[-1] < training[low]
        and validation[-1] > training[-1]
    ):
        found = "overfitting"
        reason = (
            f"the validation loss was lowest after epoch {rows[low]['epoch']} "
            f"({validation[low]:.4f}) and rose to {validation[-1]:.4f} while the training loss "
            "fell; stop earlier, train fewer blocks, augment more, or add dropout or weight decay."
        )
    elif min(training) > max(0.98 * training[0], 0.05):
        found = "underfitting"
        reason = (
            f"the training loss hardly fell (from {training[0]:.4f} to {min(training):.4f}): "
            "nothing was learned; a higher learning rate ('kft lr-find' suggests one) or more "
            "trainable blocks would help."
        )
    elif training[-1] > 0.05 and all(
        values[-1] < 0.98 * values[-2] for values in (training, validation)
    ):
        found = "underfitting"
        reason = (
            "both losses were still falling when training ended; more epochs, a higher learning "
            "rate or more trainable blocks would help."
        )
    return {"verdict": found, "reason": reason, "gap": gap}
