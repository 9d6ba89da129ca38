"""Pictures of results: what is taken for what, curves, predictions against the truth.

Each function takes what an `Evaluation` holds and writes one PNG, whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kerastune_ft import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kerastune_ft.rate_finder import Curve
    from kerastune_ft.tasks import Outputs

_MOST_CURVES = 20  # more cannot be told apart
_MOST_PANELS = 9


def draw_confusion_matrix(
    true: np.ndarray, predicted: np.ndarray, outputs: Outputs, path: Path, title: str
) -> None:
    """Draws a confusion matrix as a PNG: counts in the cells, shares of the true class as colour.

    Args:
        true: Class numbers, `int (n,)`.
        predicted: Probabilities, `float (n, classes)`.
        outputs: Names the classes.
        path: Where to.
        title: Of the picture.
    """
    from matplotlib.figure import Figure
    from sklearn import metrics

    class_names = outputs.names
    classes = len(class_names)
    confusion = metrics.confusion_matrix(true, predicted.argmax(axis=1), labels=range(classes))
    side = min(20.0, max(4.5, 0.45 * classes + 2.0))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = confusion / np.maximum(1, confusion.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = [_plain(name) for name in class_names]
    axes.set_xticks(range(classes), ticks, rotation=90)
    axes.set_yticks(range(classes), ticks)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(_plain(title))
    if classes <= 40:
        for row in range(classes):
            for column in range(classes):
                if confusion[row, column]:
                    ink = "white" if shares[row, column] > 0.5 else "black"
                    axes.text(
                        column, row, confusion[row, column], ha="center", va="center", color=ink
                    )
    _save(figure, path)


def draw_precision_recall(
    true: np.ndarray, predicted: np.ndarray, outputs: Outputs, path: Path, title: str
) -> None:
    """Draws precision against recall for every threshold, a line per class; a dot where it is set.

    Of more than 20 classes, the commonest are drawn; a class without an example has no curve.

    Args:
        true: 0 and 1, `(n, classes)`.
        predicted: Probabilities, `float (n, classes)`.
        outputs: Names the classes and their thresholds.
        path: Where to.
        title: Of the picture.
    """
    from matplotlib.figure import Figure
    from sklearn import metrics

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    counts = true.sum(axis=0)
    drawn = [int(i) for i in np.argsort(-counts, kind="stable")[:_MOST_CURVES] if counts[i]]
    for i in drawn:
        precision, recall, _ = metrics.precision_recall_curve(true[:, i], predicted[:, i])
        (line,) = axes.step(recall, precision, where="post", label=_label(outputs.names[i]))
        given = predicted[:, i] >= (outputs.thresholds[i] if outputs.thresholds else 0.5)
        if given.any():
            hits = float(true[given, i].sum())
            axes.plot(hits / counts[i], hits / given.sum(), "o", color=line.get_color())
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    left_out = int((counts > 0).sum()) - len(drawn)
    commonest = f" (the {len(drawn)} commonest classes)" if left_out else ""
    axes.set_title(_plain(title + commonest))
    if drawn:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    _save(figure, path)


def draw_predicted_against_true(
    true: np.ndarray, predicted: np.ndarray, outputs: Outputs, path: Path, title: str
) -> None:
    """Draws each number as predicted against what it is, a panel per target; the first 9 of more.

    Args:
        true: `float (n, targets)`, in their own units.
        predicted: The same.
        outputs: Names the targets.
        path: Where to.
        title: Of the picture.
    """
    from matplotlib.figure import Figure

    shown = outputs.names[:_MOST_PANELS]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(4.8 * columns, 4.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for i, (axes, name) in enumerate(zip(panels, shown, strict=False)):
        both = np.concatenate([true[:, i], predicted[:, i]])
        ends = [float(both.min()), float(both.max())]
        axes.plot(ends, ends, color="grey", linewidth=1)
        axes.scatter(true[:, i], predicted[:, i], s=12, alpha=0.5)
        axes.set_title(_plain(name))
        axes.set_xlabel("true")
        axes.set_ylabel("predicted")
    figure.suptitle(_plain(title))
    _save(figure, path)


def draw_learning_curves(rows: Sequence[dict[str, Any]], metric: str, path: Path) -> None:
    """Draws loss, metric and learning rate over the epochs as a PNG; stages are shaded.

    Args:
        rows: The run's history.
        metric: A column of it, such as `accuracy`.
        path: Where to.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    names = list(dict.fromkeys(row["stage"] for row in rows))
    panels = (("loss", "val_loss"), (metric, f"val_{metric}"), ("learning_rate",))
    for axes, columns in zip(figure.subplots(1, 3), panels, strict=True):
        _draw_curves(axes, rows, columns, names)
    figure.suptitle(_plain("  |  ".join(names)))
    _save(figure, path)


def _draw_curves(
    axes: Axes, rows: Sequence[dict[str, Any]], columns: Sequence[str], stages: Sequence[str]
) -> None:
    epochs = [row["epoch"] for row in rows]
    for column in columns:
        if column in rows[0]:
            label = "validation" if column.startswith("val_") else "training"
            axes.plot(epochs, [row[column] for row in rows], marker="o", label=label)
    for number, name in enumerate(stages):
        inside = [row["epoch"] for row in rows if row["stage"] == name]
        axes.axvspan(min(inside) - 0.5, max(inside) + 0.5, alpha=0.12 if number % 2 else 0.04, lw=0)
    axes.set_xlabel("epoch")
    axes.set_title(_plain(columns[0].replace("_", " ")))
    if len(columns) > 1:
        axes.legend()
    else:
        axes.set_yscale("log")


def _plain(text: str) -> str:
    """Returns a text that Matplotlib draws as it is: between two `$` it would read a formula."""
    return text.replace("$", r"\$")


def _label(name: str) -> str:
    """Returns a plain text for a legend, which leaves out names that begin with `_`."""
    return _plain(f" {name}" if name.startswith("_") else name)


def _save(figure: Figure, path: Path) -> None:
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def draw_rate_curves(curves: Sequence[Curve], path: Path, title: str) -> None:
    """Draws the smoothed loss over the rate: a line per stage, a dot where a rate is suggested.

    A cross marks the recipe's own rate where the test got so far. Losses above twice the first
    ones are cut off.

    Args:
        curves: Of a range test.
        path: Where to.
        title: Of the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    tops, bottoms = [], []
    for curve in curves:
        rates, losses = np.array(curve.rates), np.array(curve.smoothed)
        (line,) = axes.plot(rates, losses, label=_label(curve.stage))
        colour = line.get_color()
        axes.plot(rates, curve.losses, color=colour, linewidth=0.5, alpha=0.3)
        for rate, mark in ((curve.suggestion, "o"), (curve.recipe_rate, "x")):
            if rate is not None and rates[0] <= rate <= rates[-1]:
                height = float(np.interp(np.log(rate), np.log(rates), losses))
                name = f"  suggested {rate:.2g}" if mark == "o" else f"  recipe {rate:.2g}"
                axes.plot(rate, height, mark, color=colour, label=name)
        finite = losses[np.isfinite(losses)]
        if len(finite):
            tops.append(2 * float(finite[: max(1, len(finite) // 5)].mean()))
            bottoms.append(float(finite.min()))
    if tops and max(tops) > min(bottoms):
        axes.set_ylim(min(0.0, *bottoms), max(tops))
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss, smoothed")
    axes.set_title(_plain(title))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    _save(figure, path)
