"""The tasks: labels, loss, metrics and scores. A new task is one row of `TASKS`.

Heads of classifiers return logits; their losses and metrics take them so. The class of a picture
reaches training one-hot, because MixUp, CutMix and label smoothing need shares of classes. A
regressor returns numbers in their own units, and its loss divides by their standard deviations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import keras

    from kerastune_ft.recipe import Task


Modality = Literal["image", "text"]


@dataclass(frozen=True)
class Outputs:
    """What the numbers that a model returns stand for; a run keeps it beside the model.

    Args:
        names: Of the classes or targets, in their order.
        mean: Of each target over the training examples, in its own units; () for classes.
        std: Standard deviation of each target, likewise.
        thresholds: Probability from which a label is given, one per label; () where the task has
            none.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = ()


@dataclass(frozen=True)
class TaskRow:
    """Holds what data, training and evaluation need to know about a task.

    Args:
        name: As written in recipes.
        description: One line for `kft ls tasks`.
        modality: What an example is.
        labels: Their kind, a key of `data.labels.LABELS`.
        weighs: What `train.class_weight` weighs: whole `examples` of a class, or in the loss the
            `positives` of each label; None where there are no classes.
        metric: Name of the metric that is watched while training.
        metric_mode: Whether it gets better upwards or downwards.
        headline: The score that stands for a run in a list; more is better.
        loss: Makes the loss from the recipe's `task`, the outputs and, where the loss weighs
            them, the weights of positives.
        metrics: Makes fresh Keras metrics for the outputs.
    """

    name: str
    description: str
    modality: Modality
    labels: Literal["class", "classes", "numbers", "text", "tags"]
    weighs: Literal["examples", "positives"] | None
    metric: str
    metric_mode: Literal["max", "min"]
    headline: str
    loss: Callable[[Task, Outputs, Sequence[float] | None], keras.losses.Loss]
    metrics: Callable[[Outputs], list[keras.metrics.Metric]]


def _categorical_crossentropy(
    task: Task, outputs: Outputs, positive_weights: Sequence[float] | None
) -> keras.losses.Loss:
    import keras

    return keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=task.label_smoothing
    )


def _binary_crossentropy(
    task: Task, outputs: Outputs, positive_weights: Sequence[float] | None
) -> keras.losses.Loss:
    from kerastune_ft import losses

    return losses.WeightedBinaryCrossentropy(positive_weights, task.label_smoothing)


def _standardised_error(
    task: Task, outputs: Outputs, positive_weights: Sequence[float] | None
) -> keras.losses.Loss:
    from kerastune_ft import losses

    return losses.StandardisedError(task.loss or "mse", outputs.std)


def _token_crossentropy(
    task: Task, outputs: Outputs, positive_weights: Sequence[float] | None
) -> keras.losses.Loss:
    from kerastune_ft import losses

    return losses.TokenCrossentropy(task.label_smoothing)


def _token_accuracy(outputs: Outputs) -> list[keras.metrics.Metric]:
    from kerastune_ft import losses

    return [losses.TokenAccuracy()]


def _accuracy(outputs: Outputs) -> list[keras.metrics.Metric]:
    import keras

    return [keras.metrics.CategoricalAccuracy(name="accuracy")]


def _area_under_curve(outputs: Outputs) -> list[keras.metrics.Metric]:
    from kerastune_ft import losses

    return [losses.LabelAUC(len(outputs.names))]


def _absolute_error(outputs: Outputs) -> list[keras.metrics.Metric]:
    from kerastune_ft import losses

    return [losses.mean_absolute_error(mae_scale(outputs))]


def mae_scale(outputs: Outputs) -> tuple[float, ...]:
    """Returns what the errors of each target are divided by in the one figure `mae`.

    One target is measured in its own unit. Several may have several units, whose errors cannot
    be averaged: they are measured in standard deviations of the training examples.
    """
    return outputs.std if len(outputs.std) > 1 else (1.0,)


TASKS: dict[str, TaskRow] = {
    "image_classification": TaskRow(
        name="image_classification",
        modality="image",
        description="one class per picture; softmax cross-entropy, accuracy",
        labels="class",
        weighs="examples",
        metric="accuracy",
        metric_mode="max",
        headline="accuracy",
        loss=_categorical_crossentropy,
        metrics=_accuracy,
    ),
    "image_multilabel": TaskRow(
        name="image_multilabel",
        modality="image",
        description="any number of classes per picture; sigmoid cross-entropy, area under the "
        "precision-recall curve, thresholds tuned on validation",
        labels="classes",
        weighs="positives",
        metric="auc_pr",
        metric_mode="max",
        headline="macro_f1",
        loss=_binary_crossentropy,
        metrics=_area_under_curve,
    ),
    "image_regression": TaskRow(
        name="image_regression",
        modality="image",
        description="one or several numbers per picture; squared, absolute or Huber error of "
        "standardised targets, mean absolute error",
        labels="numbers",
        weighs=None,
        metric="mae",
        metric_mode="min",
        headline="r2",
        loss=_standardised_error,
        metrics=_absolute_error,
    ),
}


def _of_texts(name: str, alike: str, description: str) -> TaskRow:
    """Returns the row of a task that is the same with texts as another with pictures."""
    return replace(TASKS[alike], name=name, modality="text", description=description)


TASKS |= {
    row.name: row
    for row in (
        _of_texts(
            "text_classification",
            "image_classification",
            "one class per text; softmax cross-entropy, accuracy",
        ),
        _of_texts(
            "text_pair_classification",
            "image_classification",
            "one class per pair of texts: inference, paraphrase; softmax cross-entropy, accuracy",
        ),
        _of_texts(
            "text_multilabel",
            "image_multilabel",
            "any number of classes per text; sigmoid cross-entropy, area under the "
            "precision-recall curve, thresholds tuned on validation",
        ),
        _of_texts(
            "text_regression",
            "image_regression",
            "one or several numbers per text or pair of texts; squared, absolute or Huber error "
            "of standardised targets, mean absolute error",
        ),
    )
}

_WORDS = TaskRow(
    name="token_classification",
    modality="text",
    description="one class per word: names, parts of speech; softmax cross-entropy over first "
    "tokens of words, accuracy, F1 of entities",
    labels="tags",
    weighs=None,
    metric="accuracy",
    metric_mode="max",
    headline="f1",
    loss=_token_crossentropy,
    metrics=_token_accuracy,
)
TASKS |= {
    "token_classification": _WORDS,
    "text_to_text": replace(
        _WORDS,
        name="text_to_text",
        description="writes a text for each text: translation, summary; cross-entropy of the next "
        "token, ROUGE, BLEU, exact match",
        labels="text",
        headline="rouge_l",
    ),
    "text_generation": replace(
        _WORDS,
        name="text_generation",
        description="goes on with a text; cross-entropy of the next token, perplexity",
        labels="text",
        headline="accuracy",
    ),
}
