"""Scores a model on a split: figures by scikit-learn, predictions, what to draw.

    found = evaluate(model, recipe, splits.validation, splits.outputs, tune=True)
    found = evaluate(model, recipe, splits.test, found.outputs)     # with the tuned thresholds
    found.scores["accuracy"], found.rows[0]["predicted"]

What differs between tasks is a row of `EVALUATORS`. Where a figure is not defined, such as the
correlation of two examples, it is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from sklearn import metrics

from kerastune_ft import ensembles, figures, text_evaluation
from kerastune_ft.data import feeding
from kerastune_ft.data.labels import join
from kerastune_ft.data.texts import Texts, Tokens
from kerastune_ft.ensembles import label_probabilities, probabilities
from kerastune_ft.tasks import TASKS, Outputs, mae_scale

if TYPE_CHECKING:
    from kerastune_ft.data import Split
    from kerastune_ft.recipe import Recipe

Scores = dict[str, Any]
Row = dict[str, Any]

_TUNED_HERE = "thresholds_tuned_here"


@dataclass(frozen=True)
class Evaluation:
    """What a model does on one split.

    Args:
        scores: `examples`, `loss` (without the weights of classes), the task's figures, and those
            of each class or target in `per_class` or `per_target`. `thresholds_tuned_here` is
            there, and true, where thresholds were tuned on this very split: the figures flatter.
        rows: One per example: `path`, or `row` and `text`; what is true and what the model says.
        true: The labels, as in the split; tags or texts as such.
        predicted: Probabilities `float64 (n, classes)`, numbers `float64 (n, targets)`, tags or
            texts.
        outputs: What the model returns, with the thresholds that were used.
    """

    scores: Scores
    rows: list[Row]
    true: Any
    predicted: Any
    outputs: Outputs


@dataclass(frozen=True)
class Column:
    """One column of the table of classes or targets that is printed.

    Args:
        title: At its head.
        key: In the scores of a class or target.
        form: Of its figures, as for `format`.
    """

    title: str
    key: str
    form: str


@dataclass(frozen=True)
class Evaluator:
    """How a task is scored, written and shown.

    Args:
        activate: Makes of what the model returns probabilities, or numbers.
        average: Makes of several models' answers what they say together; None of texts.
        targets: Makes of a split's labels what the loss takes, given the number of outputs.
        tune: Sets thresholds by labels and probabilities.
        score: The task's figures, from labels, probabilities or numbers, and outputs.
        says: The columns of a prediction, from one row of probabilities or numbers.
        compares: The columns of a prediction whose truth is known, from its label besides.
        headline: The figures of a line, the first one the most important.
        per: Where the scores of classes or targets are.
        columns: Of the table of them.
        meanings: What a user reads of `scores`, `predictions` and the figure.
        figure: Name of the picture's file, without ending.
        draw: Draws it from labels, probabilities or numbers, and outputs.
        places: Whether something is learned at every place of a text; then the figures come from
            `text_evaluation`, and what is made of whole examples is not used.
    """

    activate: Callable[[np.ndarray], np.ndarray]
    average: Callable[[Sequence[Any]], Any] | None
    targets: Callable[[np.ndarray, int], np.ndarray]
    tune: Callable[[np.ndarray, np.ndarray, Outputs], Outputs]
    score: Callable[[np.ndarray, np.ndarray, Outputs], Scores]
    says: Callable[[np.ndarray, Outputs], Row]
    compares: Callable[[Any, np.ndarray, Outputs], Row]
    headline: Callable[[Scores], list[str]]
    per: str
    columns: tuple[Column, ...]
    meanings: dict[str, str]
    figure: str
    draw: Callable[[Any, Any, Outputs, Path, str], None]
    places: bool = False


def evaluate(
    model: keras.Model,
    recipe: Recipe,
    split: Split,
    outputs: Outputs,
    *,
    tune: bool = False,
    tuned_here: bool = False,
) -> Evaluation:
    """Scores a model on a split with at least one example.

    Args:
        model: From raw pixels to logits, or to numbers in their own units.
        recipe: The one it was trained by: task, sides, channels, resizing, loss.
        split: What to score on. Classes may be absent from it.
        outputs: What the model returns.
        tune: Whether to set the thresholds by this split first, where the task has some.
        tuned_here: Whether those of `outputs` were set by this split before.
    """
    if EVALUATORS[recipe.task.name].places:
        found = text_evaluation.evaluate_places(model, recipe, split, outputs)
        return Evaluation(*found, outputs=outputs)
    said = answers(model, recipe, split, outputs)
    return score(said, recipe, split, outputs, tune=tune, tuned_here=tuned_here)


def answers(model: keras.Model, recipe: Recipe, split: Split, outputs: Outputs) -> Any:
    """Returns what a model says of each example of a split, in their order.

    Logits or numbers `float32 (n, outputs)`; of words, a list of `float64 (words, classes)`.
    """
    if EVALUATORS[recipe.task.name].places:
        assert isinstance(split.content, Tokens), type(split.content)
        return text_evaluation.word_logits(model, split.content)
    dataset = feeding.dataset(split, recipe, len(outputs.names))
    raw = np.asarray(model.predict(dataset.map(lambda inputs, labels: inputs), verbose=0))
    order = feeding.plain_order(split)
    if order is not None:
        raw[order] = raw.copy()
    return raw


def score(
    said: Any,
    recipe: Recipe,
    split: Split,
    outputs: Outputs,
    *,
    tune: bool = False,
    tuned_here: bool = False,
) -> Evaluation:
    """Scores answers as `evaluate` does.

    Args:
        said: From `answers`, or an evaluator's `average` of several.
    """
    how = EVALUATORS[recipe.task.name]
    if how.places:
        return Evaluation(*text_evaluation.score_words(said, split, outputs), outputs=outputs)
    width = len(outputs.names)
    true, predicted = np.asarray(split.labels), how.activate(said)
    loss = TASKS[recipe.task.name].loss(recipe.task, outputs, None)
    if tune:
        outputs = how.tune(true, predicted, outputs)
    scores = {
        "examples": len(true),
        "loss": float(loss(how.targets(true, width), said)),
        **({_TUNED_HERE: True} if outputs.thresholds and (tune or tuned_here) else {}),
        **how.score(true, predicted, outputs),
    }
    rows = [
        {**named, **how.compares(label, row, outputs)}
        for named, label, row in zip(_named(split), true, predicted, strict=True)
    ]
    return Evaluation(scores, rows, true, predicted, outputs)


def _named(split: Split) -> list[Row]:
    """Returns what tells the examples of a split apart: the path, or the texts."""
    if not isinstance(split.content, Tokens | Texts):
        return [{"path": name} for name in split.names]
    held = split.content.texts if isinstance(split.content, Tokens) else split.content
    rows: list[Row] = []
    for name, text, other in zip(
        split.names, held.first, held.second or (None,) * len(held), strict=True
    ):
        pair = {} if other is None else {"pair": other}
        rows.append({"row": name.rpartition("#")[0], "text": text, **pair})
    return rows


def best_threshold(true: np.ndarray, shares: np.ndarray) -> float:
    """Returns the probability from which giving a label has the highest F1.

    Between two probabilities that were seen the threshold makes no difference: it is in the
    middle, or 0.5 if that lies between. Of equals, the one nearest to 0.5.

    Args:
        true: 0 and 1, `(n,)`; without a 1 there is nothing to tune, and 0.5 is returned.
        shares: Probabilities, `float (n,)`.
    """
    if not true.any():
        return 0.5
    values, where = np.unique(shares, return_inverse=True)
    given = np.bincount(where)[::-1].cumsum()[::-1]  # examples of at least each value
    hits = np.bincount(where, weights=true)[::-1].cumsum()[::-1]
    f1 = 2 * hits / (given + true.sum())
    below = np.concatenate([[0.0], values[:-1]])
    middle = (below + values) / 2
    middle = np.where(middle > below, middle, values)  # neighbours have nothing between them
    thresholds = np.where((below < 0.5) & (values >= 0.5), 0.5, middle)
    best = thresholds[f1 == f1.max()]
    return float(best[np.abs(best - 0.5).argmin()])


def threshold_record(found: Evaluation) -> dict[str, Any]:
    """Returns what `thresholds.json` says, given the evaluation that set the thresholds."""
    at_half = _f1_of_each(found.true, found.predicted >= 0.5)
    return {
        "rule": "the highest F1 of each class on the validation split; 0.5 where it has no example",
        "examples": len(found.true),
        "classes": {
            name: {
                "threshold": threshold,
                "tuned": bool(found.true[:, i].any()),
                "support": int(found.true[:, i].sum()),
                "f1": found.scores["per_class"][name]["f1"],
                "f1_at_half": at_half[i],
            }
            for i, (name, threshold) in enumerate(
                zip(found.outputs.names, found.outputs.thresholds, strict=True)
            )
        },
    }


# One class per picture


def _one_hot(labels: np.ndarray, width: int) -> np.ndarray:
    return np.asarray(np.eye(width, dtype="float32")[labels])


def _untuned(true: np.ndarray, shares: np.ndarray, outputs: Outputs) -> Outputs:
    return outputs


def _score_class(true: np.ndarray, shares: np.ndarray, outputs: Outputs) -> Scores:
    predicted = shares.argmax(axis=1)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        true, predicted, labels=range(len(outputs.names)), zero_division=0.0
    )
    return {
        "accuracy": float((true == predicted).mean()),
        "macro_f1": float(f1[support > 0].mean()),
        "majority_accuracy": float(np.bincount(true).max() / len(true)),
        "per_class": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, name in enumerate(outputs.names)
        },
    }


def _say_class(shares: np.ndarray, outputs: Outputs) -> Row:
    best = int(shares.argmax())
    return {
        "predicted": outputs.names[best],
        "probability": _short(shares[best], 6),
        **_shares(shares, outputs),
    }


def _compare_class(label: Any, shares: np.ndarray, outputs: Outputs) -> Row:
    return {"true": outputs.names[int(label)], **_say_class(shares, outputs)}


def _headline_class(scores: Scores) -> list[str]:
    return [
        f"accuracy {scores['accuracy']:.4f}",
        f"macro F1 {scores['macro_f1']:.4f}",
        f"loss {scores['loss']:.4f}",
        f"(always the commonest class: {scores['majority_accuracy']:.3f})",
    ]


def _shares(shares: np.ndarray, outputs: Outputs) -> Row:
    pairs = zip(outputs.names, shares, strict=True)
    return {f"p:{name}": _short(share, 6) for name, share in pairs}


# Several classes per picture


def _as_float32(labels: np.ndarray, width: int) -> np.ndarray:
    return np.asarray(labels, "float32")


def _tuned(true: np.ndarray, shares: np.ndarray, outputs: Outputs) -> Outputs:
    pairs = zip(true.T, shares.T, strict=True)
    return replace(outputs, thresholds=tuple(best_threshold(*pair) for pair in pairs))


def _thresholds(outputs: Outputs) -> np.ndarray:
    return np.asarray(outputs.thresholds or (0.5,) * len(outputs.names))


def _f1_of_each(true: np.ndarray, given: np.ndarray) -> list[float]:
    pairs = zip(true.T, given.T, strict=True)
    return [float(metrics.f1_score(*pair, zero_division=0.0)) for pair in pairs]


def _score_labels(true: np.ndarray, shares: np.ndarray, outputs: Outputs) -> Scores:
    """Returns the figures of several labels; means over classes leave out those without example.

    Three baselines that need no picture: `every_class_macro_f1` of always naming every class, the
    best constant answer; `chance_map` of ranking at random, the mean share of the classes; and
    `commonest_set_exact_match` of always naming the commonest set of classes.
    """
    thresholds = _thresholds(outputs)
    given = shares >= thresholds
    present = np.asarray(true.any(axis=0))
    per_class: dict[str, Row] = {}
    for i, name in enumerate(outputs.names):
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(
            true[:, i], given[:, i], average="binary", zero_division=0.0
        )
        area = metrics.average_precision_score(true[:, i], shares[:, i]) if present[i] else None
        per_class[name] = {
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "average_precision": None if area is None else float(area),
            "threshold": float(thresholds[i]),
            "support": int(true[:, i].sum()),
        }
    seen = [row for row, here in zip(per_class.values(), present, strict=True) if here]
    prevalence = true.mean(axis=0)[present]
    at_half = np.asarray(_f1_of_each(true, shares >= 0.5))[present]
    _, sets = np.unique(true, axis=0, return_counts=True)
    return {
        "macro_f1": _mean([row["f1"] for row in seen]),
        "macro_f1_at_half": _mean(at_half),
        "micro_f1": float(metrics.f1_score(true.ravel(), given.ravel(), zero_division=0.0)),
        "map": _mean([row["average_precision"] for row in seen]),
        "exact_match": float((true == given).all(axis=1).mean()),
        "hamming_loss": float((true != given).mean()),
        "every_class_macro_f1": _mean(2 * prevalence / (1 + prevalence)),
        "chance_map": _mean(prevalence),
        "commonest_set_exact_match": float(sets.max() / len(true)),
        "per_class": per_class,
    }


def _say_labels(shares: np.ndarray, outputs: Outputs) -> Row:
    given = np.flatnonzero(shares >= _thresholds(outputs))
    names = join(outputs.names[int(i)] for i in given)
    return {"predicted": names, **_shares(shares, outputs)}


def _compare_labels(label: Any, shares: np.ndarray, outputs: Outputs) -> Row:
    names = join(outputs.names[int(i)] for i in np.flatnonzero(label))
    return {"true": names, **_say_labels(shares, outputs)}


def _headline_labels(scores: Scores) -> list[str]:
    return [
        f"macro F1 {shown(scores['macro_f1'], '.4f')}",
        f"mAP {shown(scores['map'], '.4f')}",
        f"micro F1 {scores['micro_f1']:.4f}",
        f"loss {scores['loss']:.4f}",
        f"(macro F1 with all thresholds at 0.5: {shown(scores['macro_f1_at_half'], '.3f')}, "
        f"always naming every class: {shown(scores['every_class_macro_f1'], '.3f')})",
        *(["(thresholds tuned on these very examples)"] if scores.get(_TUNED_HERE) else []),
    ]


# Numbers


def _numbers(raw: np.ndarray) -> np.ndarray:
    return np.asarray(raw, "float64")


def _score_numbers(true: np.ndarray, predicted: np.ndarray, outputs: Outputs) -> Scores:
    """Returns the figures of numbers, each in its own unit.

    `mae` is that of the only target, or the mean of several in standard deviations of the
    training examples (`mae_scale`); `r2` is the mean over targets; `baseline_mae` is what always
    saying the training mean gives.
    """
    pairs = zip(outputs.names, true.T, predicted.T, outputs.mean, strict=True)
    per_target = {name: _score_target(t, p, mean) for name, t, p, mean in pairs}
    scale = np.asarray(mae_scale(outputs))
    return {
        "mae": float((np.abs(true - predicted) / scale).mean()),
        "r2": _mean([row["r2"] for row in per_target.values() if row["r2"] is not None]),
        "baseline_mae": float((np.abs(true - np.asarray(outputs.mean)) / scale).mean()),
        "per_target": per_target,
    }


def _score_target(true: np.ndarray, predicted: np.ndarray, mean: float) -> Row:
    from scipy import stats

    varied = np.ptp(true) > 0  # two different numbers at least
    related = varied and np.ptp(predicted) > 0
    return {
        "mae": float(metrics.mean_absolute_error(true, predicted)),
        "rmse": float(metrics.root_mean_squared_error(true, predicted)),
        "r2": float(metrics.r2_score(true, predicted)) if varied else None,
        "pearson": _defined(stats.pearsonr(true, predicted).statistic) if related else None,
        "spearman": _defined(stats.spearmanr(true, predicted).statistic) if related else None,
        "baseline_mae": float(np.abs(true - mean).mean()),
    }


def _say_numbers(numbers: np.ndarray, outputs: Outputs) -> Row:
    pairs = zip(outputs.names, numbers, strict=True)
    return {f"predicted:{name}": _short(number) for name, number in pairs}


def _compare_numbers(label: Any, numbers: np.ndarray, outputs: Outputs) -> Row:
    row: Row = {}
    for name, true, predicted in zip(outputs.names, label, numbers, strict=True):
        row[f"true:{name}"] = float(true)
        row[f"predicted:{name}"] = _short(predicted)
        row[f"error:{name}"] = _short(predicted - true)
    return row


def _headline_numbers(scores: Scores) -> list[str]:
    unit = " standard deviations" if len(scores["per_target"]) > 1 else ""
    return [
        f"mae {scores['mae']:.4g}{unit}",
        f"r2 {shown(scores['r2'], '.4f')}",
        f"loss {scores['loss']:.4f}",
        f"(always the training mean: mae {scores['baseline_mae']:.4g}{unit})",
    ]


def shown(figure: float | None, form: str) -> str:
    """Returns a figure as text, `-` where it is not defined."""
    return "-" if figure is None else format(figure, form)


def _mean(figures: Sequence[float] | np.ndarray) -> float | None:
    return float(np.mean(figures)) if len(figures) else None


def _defined(figure: float) -> float | None:
    return float(figure) if math.isfinite(figure) else None


def _short(number: float, digits: int = 8) -> float:
    """Returns a number with its first digits: 8 are what float32 holds."""
    return float(f"{number:.{digits}g}")


EVALUATORS: dict[str, Evaluator] = {
    "image_classification": Evaluator(
        activate=probabilities,
        average=ensembles.mean_logits,
        targets=_one_hot,
        tune=_untuned,
        score=_score_class,
        says=_say_class,
        compares=_compare_class,
        headline=_headline_class,
        per="per_class",
        columns=(
            Column("precision", "precision", ".3f"),
            Column("recall", "recall", ".3f"),
            Column("f1", "f1", ".3f"),
            Column("examples", "support", "d"),
        ),
        meanings={
            "scores": "loss, accuracy, precision, recall, F1",
            "predictions": "every test picture with its probabilities",
            "figure": "which classes are taken for which",
        },
        figure="confusion_matrix",
        draw=figures.draw_confusion_matrix,
    ),
    "image_multilabel": Evaluator(
        activate=label_probabilities,
        average=ensembles.mean_label_logits,
        targets=_as_float32,
        tune=_tuned,
        score=_score_labels,
        says=_say_labels,
        compares=_compare_labels,
        headline=_headline_labels,
        per="per_class",
        columns=(
            Column("precision", "precision", ".3f"),
            Column("recall", "recall", ".3f"),
            Column("f1", "f1", ".3f"),
            Column("average precision", "average_precision", ".3f"),
            Column("threshold", "threshold", ".3f"),
            Column("examples", "support", "d"),
        ),
        meanings={
            "scores": "loss, F1, average precision, exact match",
            "predictions": "every test picture with its probabilities",
            "figure": "precision against recall of each class",
        },
        figure="precision_recall",
        draw=figures.draw_precision_recall,
    ),
    "image_regression": Evaluator(
        activate=_numbers,
        average=ensembles.mean_numbers,
        targets=_as_float32,
        tune=_untuned,
        score=_score_numbers,
        says=_say_numbers,
        compares=_compare_numbers,
        headline=_headline_numbers,
        per="per_target",
        columns=(
            Column("mae", "mae", ".4g"),
            Column("rmse", "rmse", ".4g"),
            Column("r2", "r2", ".3f"),
            Column("pearson", "pearson", ".3f"),
            Column("spearman", "spearman", ".3f"),
            Column("mae of the mean", "baseline_mae", ".4g"),
        ),
        meanings={
            "scores": "errors, r2, correlations of each target",
            "predictions": "every test picture with its numbers and errors",
            "figure": "what was predicted against what is true",
        },
        figure="predicted_against_true",
        draw=figures.draw_predicted_against_true,
    ),
}


def _of_texts(row: Evaluator, **changes: Any) -> Evaluator:
    """Returns how a task with texts is scored, given the same with pictures."""
    meanings = {key: said.replace("picture", "text") for key, said in row.meanings.items()}
    return replace(row, **{"meanings": meanings, **changes})


_BY_CLASS = EVALUATORS["image_classification"]
EVALUATORS |= {
    "text_classification": _of_texts(_BY_CLASS),
    "text_pair_classification": _of_texts(_BY_CLASS),
    "text_multilabel": _of_texts(EVALUATORS["image_multilabel"]),
    "text_regression": _of_texts(EVALUATORS["image_regression"]),
    "token_classification": _of_texts(
        _BY_CLASS,
        average=ensembles.mean_word_logits,
        headline=text_evaluation.headline_tags,
        meanings={
            "scores": "loss, F1 of entities, precision, recall",
            "predictions": "every test text with its tags",
            "figure": "which tags are taken for which",
        },
        draw=text_evaluation.draw_tags,
        places=True,
    ),
    **dict.fromkeys(
        ("text_to_text", "text_generation"),
        _of_texts(
            _BY_CLASS,
            average=None,
            headline=text_evaluation.headline_written,
            columns=(),
            meanings={
                "scores": "loss, perplexity, ROUGE, BLEU, exact match",
                "predictions": "what the model writes for test texts",
                "figure": "how many words are written and should be",
            },
            figure="lengths",
            draw=text_evaluation.draw_lengths,
            places=True,
        ),
    ),
}
