"""The tasks: loss, metrics and what a label is. A new task is one row of `TASKS`.

Heads return logits; the loss and the metrics take them so. Labels reach training one-hot, because
MixUp, CutMix and label smoothing need shares of classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class TaskRow:
    """Holds what training and evaluation need to know about a task.

    Args:
        name: As written in recipes.
        description: One line for `kft ls tasks`.
        loss: From label smoothing, 0..1, to a Keras loss on `(one-hot, logits)`.
        metrics: Makes fresh Keras metrics on the same.
    """

    name: str
    description: str
    loss: Callable[[float], keras.losses.Loss]
    metrics: Callable[[], list[keras.metrics.Metric]]


def _categorical_crossentropy(label_smoothing: float) -> keras.losses.Loss:
    import keras

    return keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=label_smoothing)


def _accuracy() -> list[keras.metrics.Metric]:
    import keras

    return [keras.metrics.CategoricalAccuracy(name="accuracy")]


TASKS: dict[str, TaskRow] = {
    "image_classification": TaskRow(
        name="image_classification",
        description="one label per picture; softmax cross-entropy, accuracy",
        loss=_categorical_crossentropy,
        metrics=_accuracy,
    ),
}
