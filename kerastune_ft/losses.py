"""Losses and metrics that Keras lacks; usable in any script, without a recipe, on any backend.

loss = WeightedBinaryCrossentropy([1.0, 8.0])              # a rare second label counts more
loss = StandardisedError("huber", std=[12.5])              # years, learned in standard deviations
model.compile("adam", loss, metrics=[LabelAUC(2)])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
from keras import ops

Error = Literal["mse", "mae", "huber"]


class WeightedBinaryCrossentropy(keras.losses.Loss):
    """Computes the cross-entropy of several labels from logits, each label on its own.

    Args:
        positive_weights: One number per label, `(labels,)`: how much a picture that has the label
            counts against one that has not. None is 1 for all, Keras's own loss.
        label_smoothing: Share of each label that is replaced by a half, 0..1.
        name: Of the loss.
    """

    def __init__(
        self,
        positive_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        name: str = "weighted_binary_crossentropy",
    ) -> None:
        super().__init__(name=name)
        weights = None if positive_weights is None else [float(w) for w in positive_weights]
        self.positive_weights = weights
        self.label_smoothing = label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns the loss of each example, `(batch,)`: the mean over its labels.

        Args:
            y_true: 0 to 1, `(batch, labels)`; shares of mixed pictures are fine.
            y_pred: Logits, `(batch, labels)`.
        """
        logits = ops.convert_to_tensor(y_pred)
        labels = ops.cast(y_true, logits.dtype)
        labels = labels * (1.0 - self.label_smoothing) + 0.5 * self.label_smoothing
        positive = labels * ops.softplus(-logits)
        if self.positive_weights is not None:
            positive *= ops.convert_to_tensor(self.positive_weights, logits.dtype)
        return ops.mean(positive + (1.0 - labels) * ops.softplus(logits), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return {
            "positive_weights": self.positive_weights,
            "label_smoothing": self.label_smoothing,
            "name": self.name,
        }


class StandardisedError(keras.losses.Loss):
    """Compares numbers in standard deviations, so that each counts alike whatever its unit.

    Args:
        error: `mse` the mean square, `mae` the mean absolute value, `huber` the square up to one
            standard deviation (halved) and the absolute value beyond.
        std: Standard deviation of each number, `(targets,)`, in its own units, above 0.
        name: Of the loss.
    """

    def __init__(
        self, error: Error, std: Sequence[float], name: str = "standardised_error"
    ) -> None:
        super().__init__(name=name)
        self.error = error
        self.std = [float(value) for value in std]

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns the loss of each example, `(batch,)`: the mean over its targets.

        Args:
            y_true: `(batch, targets)`, in their own units.
            y_pred: The same.
        """
        predicted = ops.convert_to_tensor(y_pred)
        difference = predicted - ops.cast(y_true, predicted.dtype)
        difference /= ops.convert_to_tensor(self.std, predicted.dtype)
        return ops.mean(_ERRORS[self.error](difference), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return {"error": self.error, "std": self.std, "name": self.name}


class LabelAUC(keras.metrics.AUC):
    """Computes the mean area under the precision-recall curves of several labels, from logits.

    A label smoothed or mixed counts as present from a half on; Keras alone would count every
    share above 0.

    Args:
        labels: How many.
        name: Of the metric.
    """

    def __init__(self, labels: int, name: str = "auc_pr") -> None:
        super().__init__(
            curve="PR", multi_label=True, num_labels=labels, from_logits=True, name=name
        )

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Counts a batch of labels 0..1 and logits, both `(batch, labels)`."""
        present = ops.cast(ops.convert_to_tensor(y_true) >= 0.5, "float32")
        super().update_state(present, y_pred, sample_weight)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return {"labels": self.num_labels, "name": self.name}


class TokenCrossentropy(keras.losses.Loss):
    """Sums the cross-entropy over the places of each text where something is learned.

    The batches of this package come with a weight, examples by places, so that what `fit`
    minimises and reports is the mean over all places, on one device or several.

    Args:
        label_smoothing: Share of each label spread evenly over all classes, 0..1.
        name: Of the loss.
    """

    def __init__(self, label_smoothing: float = 0.0, name: str = "token_crossentropy") -> None:
        super().__init__(name=name)
        self.label_smoothing = label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns the loss of each example, `(batch,)`: the sum over its places.

        Args:
            y_true: Class or token of every place, `(batch, length)`; below 0 where nothing is
                learned.
            y_pred: Logits, `(batch, length, classes)`.
        """
        logits = ops.cast(ops.convert_to_tensor(y_pred), "float32")
        labels = ops.cast(y_true, "int32")
        shares = ops.log_softmax(logits, axis=-1)
        picked = ops.take_along_axis(shares, ops.maximum(labels, 0)[..., None], axis=-1)[..., 0]
        if self.label_smoothing:
            even = ops.mean(shares, axis=-1)
            picked = (1 - self.label_smoothing) * picked + self.label_smoothing * even
        return -ops.sum(picked * ops.cast(labels >= 0, logits.dtype), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return {"label_smoothing": self.label_smoothing, "name": self.name}


class TokenAccuracy(keras.metrics.Mean):
    """Counts the places where the largest logit is the label, of those that have one.

    Args:
        name: Of the metric.
    """

    def __init__(self, name: str = "accuracy") -> None:
        super().__init__(name=name)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Counts a batch of labels `(batch, length)` and logits `(batch, length, classes)`.

        Of weights it counts whether they are 0: examples that only fill a batch up have none.
        """
        labels = ops.cast(y_true, "int32")
        right = ops.cast(ops.argmax(y_pred, axis=-1), "int32") == labels
        weights = ops.cast(labels >= 0, "float32")
        if sample_weight is not None:
            counts = ops.reshape(ops.convert_to_tensor(sample_weight) > 0, (-1, 1))
            weights *= ops.cast(counts, "float32")
        super().update_state(ops.cast(right, "float32"), sample_weight=weights)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return {"name": self.name}


def mean_absolute_error(scale: Sequence[float], name: str = "mae") -> keras.metrics.Metric:
    """Returns a metric: the mean absolute error over targets, each divided by its scale.

    Args:
        scale: `(targets,)`, above 0: 1 for an error in the target's own unit, its standard
            deviation for one that can be averaged with those of other units.
        name: Of the metric.
    """
    error = StandardisedError("mae", scale)
    return keras.metrics.MeanMetricWrapper(error.call, name=name)


def _huber(difference: Any) -> Any:
    size = ops.abs(difference)
    return ops.where(size <= 1.0, 0.5 * ops.square(difference), size - 0.5)


_ERRORS: dict[Error, Callable[[Any], Any]] = {
    "mse": ops.square,
    "mae": ops.abs,
    "huber": _huber,
}
