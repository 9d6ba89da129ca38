"""Scores a model on a split: figures by scikit-learn, predictions, pictures.

evaluation = evaluate(model, recipe, splits.test, splits.class_names)
evaluation.scores["accuracy"], evaluation.rows[0]["predicted"]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from sklearn import metrics

from kerastune_ft import files
from kerastune_ft.data import images
from kerastune_ft.tasks import TASKS, Outputs

if TYPE_CHECKING:
    from kerastune_ft.data import Split
    from kerastune_ft.recipe import Recipe


@dataclass(frozen=True)
class Evaluation:
    """What a model does on one split.

    Args:
        scores: `examples`, `loss`, `accuracy`, `macro_f1`, `majority_accuracy` (of always naming
            the commonest class) and `per_class` (precision, recall, f1, support).
        confusion: `int (classes, classes)`, rows are true classes.
        rows: One per example: `path`, `true`, `predicted`, and the probability of each class.
    """

    scores: dict[str, Any]
    confusion: np.ndarray
    rows: list[dict[str, Any]]


def evaluate(
    model: keras.Model, recipe: Recipe, split: Split, class_names: Sequence[str]
) -> Evaluation:
    """Scores a model on a split with at least one example.

    Args:
        model: From raw pixels to logits.
        recipe: The one it was trained by: sides, resizing, loss.
        split: What to score on. Classes may be absent from it.
        class_names: In the order of the logits.
    """
    classes = len(class_names)
    dataset = images.dataset(
        split.content,
        split.labels,
        image_size=recipe.backbone.side,
        batch_size=recipe.data.batch_size,
        num_classes=classes,
        resize=recipe.data.resize,
    )
    logits = np.asarray(model.predict(dataset.map(lambda pictures, labels: pictures), verbose=0))
    true = np.asarray(split.labels)
    one_hot = np.eye(classes, dtype="float32")[true]
    loss = TASKS[recipe.task.name].loss(recipe.task, Outputs(tuple(class_names)), None)(
        one_hot, logits
    )
    return _evaluation(split.names, true, logits, float(loss), class_names)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Returns the softmax of `float (n, classes)` logits, computed in double precision."""
    shifted = np.exp(logits.astype("float64") - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def prediction_row(name: str, shares: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns what a prediction file says of one picture.

    Args:
        name: Its path.
        shares: Probability of each class, `float (classes,)`.
        class_names: In the same order.
    """
    best = int(shares.argmax())
    return {
        "path": name,
        "predicted": class_names[best],
        "probability": round(float(shares[best]), 6),
        **{f"p:{label}": round(float(p), 6) for label, p in zip(class_names, shares, strict=True)},
    }


def _evaluation(
    names: Sequence[str],
    true: np.ndarray,
    logits: np.ndarray,
    loss: float,
    class_names: Sequence[str],
) -> Evaluation:
    labels = range(len(class_names))
    shares = probabilities(logits)
    predicted = shares.argmax(axis=1)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        true, predicted, labels=labels, zero_division=0.0
    )
    present = support > 0
    scores = {
        "examples": len(true),
        "loss": loss,
        "accuracy": float((true == predicted).mean()),
        "macro_f1": float(f1[present].mean()),
        "majority_accuracy": float(np.bincount(true).max() / len(true)),
        "per_class": {
            label: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, label in enumerate(class_names)
        },
    }
    rows = []
    for name, truth, row in zip(names, true, shares, strict=True):
        prediction = prediction_row(name, row, class_names)
        rows.append({"path": prediction.pop("path"), "true": class_names[truth], **prediction})
    confusion = metrics.confusion_matrix(true, predicted, labels=labels)
    return Evaluation(scores, np.asarray(confusion), rows)


def draw_confusion_matrix(
    confusion: np.ndarray, class_names: Sequence[str], path: Path, title: str
) -> None:
    """Draws a confusion matrix as a PNG: counts in the cells, shares of the true class as colour.

    Args:
        confusion: `int (classes, classes)`, rows are true classes.
        class_names: In the same order.
        path: Where to.
        title: Of the picture.
    """
    from matplotlib.figure import Figure

    classes = len(class_names)
    side = min(20.0, max(4.5, 0.45 * classes + 2.0))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = confusion / np.maximum(1, confusion.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(classes), class_names, rotation=90)
    axes.set_yticks(range(classes), class_names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title)
    if classes <= 40:
        for row in range(classes):
            for column in range(classes):
                if confusion[row, column]:
                    ink = "white" if shares[row, column] > 0.5 else "black"
                    axes.text(
                        column, row, confusion[row, column], ha="center", va="center", color=ink
                    )
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def draw_learning_curves(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws loss, accuracy and learning rate over the epochs as a PNG; stages are shaded.

    Args:
        rows: The run's history.
        path: Where to.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    names = list(dict.fromkeys(row["stage"] for row in rows))
    panels = (("loss", "val_loss"), ("accuracy", "val_accuracy"), ("learning_rate",))
    for axes, columns in zip(figure.subplots(1, 3), panels, strict=True):
        for column in columns:
            if column in rows[0]:
                label = "validation" if column.startswith("val_") else "training"
                axes.plot(epochs, [row[column] for row in rows], marker="o", label=label)
        for number, name in enumerate(names):
            inside = [row["epoch"] for row in rows if row["stage"] == name]
            axes.axvspan(
                min(inside) - 0.5, max(inside) + 0.5, alpha=0.12 if number % 2 else 0.04, lw=0
            )
        axes.set_xlabel("epoch")
        axes.set_title(columns[0].replace("_", " "))
        if len(columns) > 1:
            axes.legend()
        else:
            axes.set_yscale("log")
    figure.suptitle("  |  ".join(names))
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
