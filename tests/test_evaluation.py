"""Scores of each task against scikit-learn and brute force, and pictures of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from sklearn import metrics

from kerastune_ft import evaluation, figures
from kerastune_ft.evaluation import EVALUATORS
from kerastune_ft.tasks import TASKS, Outputs

NAMES = ("ant", "bee", "cat", "dog")


def labels(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels `(n, 4)` and probabilities that know something of them."""
    rng = np.random.default_rng(seed)
    true = (rng.random((n, 4)) < (0.05, 0.3, 0.5, 0.8)).astype("float32")
    true[0] = 1
    return true, evaluation.label_probabilities(rng.normal(-1, 1, (n, 4)) + 1.5 * true)


WHOLE = [name for name, how in EVALUATORS.items() if not how.places]
"""Tasks that say something of an example as a whole; test_text_evaluation.py has the others."""


def test_every_task_has_an_evaluator_with_its_headline() -> None:
    assert set(EVALUATORS) == set(TASKS)
    rng = np.random.default_rng(0)
    outputs = Outputs(NAMES, (0.0,) * 4, (1.0,) * 4)
    truths = {
        "class": rng.integers(0, 4, 30),
        "classes": labels(0, 30)[0],
        "numbers": rng.normal(0, 1, (30, 4)),
    }
    for name in WHOLE:
        how = EVALUATORS[name]
        true = truths[TASKS[name].labels]
        predicted = how.activate(rng.normal(0, 1, (30, 4)).astype("float32"))
        scores = {"examples": 30, "loss": 0.1, **how.score(true, predicted, outputs)}
        assert isinstance(scores[TASKS[name].headline], float)
        assert all(isinstance(line, str) for line in how.headline(scores))
        for row in scores[how.per].values():
            assert {column.key for column in how.columns} <= set(row)
        json.dumps(scores, allow_nan=False)
        keys = set(how.says(predicted[0], outputs))
        assert keys <= set(how.compares(true[0], predicted[0], outputs))


# thresholds


@pytest.mark.parametrize("seed", range(10))
def test_a_threshold_is_the_best_of_all_and_of_the_best_the_nearest_to_a_half(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true = (rng.random(25) < rng.uniform(0.1, 0.9)).astype("float32")
    true[0] = 1
    shares = rng.random(25).round(1 if seed % 2 else 6)  # many equal, or none
    found = evaluation.best_threshold(true, shares)
    values = np.unique(shares)
    grid = np.unique(np.concatenate([np.linspace(1e-9, 1, 101), values, [0.5, found]]))
    f1 = {t: metrics.f1_score(true, shares >= t, zero_division=0.0) for t in grid}
    assert f1[found] == pytest.approx(max(f1.values()))
    if not np.isclose(f1[0.5], f1[found]):
        # No other answer that is as good lies between it and a half.
        low, high = sorted((found, 0.5))
        given = [shares >= t for t in grid if low < t < high and np.isclose(f1[t], f1[found])]
        assert all(np.array_equal(one, shares >= found) for one in given)
    else:
        assert found == 0.5


def test_a_threshold_stands_amid_the_gap_that_parts_the_classes() -> None:
    true = np.array([0, 0, 1, 1], "float32")
    assert evaluation.best_threshold(true, np.array([0.1, 0.2, 0.3, 0.9])) == 0.25
    assert evaluation.best_threshold(true, np.array([0.1, 0.2, 0.7, 0.9])) == 0.5
    assert evaluation.best_threshold(true, np.array([0.1, 0.8, 0.9, 0.95])) == pytest.approx(0.85)
    neighbours = np.array([0.1, 0.6, np.nextafter(0.6, 1), 0.9])
    assert evaluation.best_threshold(true, neighbours) == neighbours[2]


def test_a_class_without_an_example_keeps_a_half_and_says_so() -> None:
    true, shares = labels(0)
    true[:, 1] = 0
    outputs = evaluation._tuned(true, shares, Outputs(NAMES))
    assert outputs.thresholds[1] == 0.5
    scores = evaluation._score_labels(true, shares, outputs)
    found = evaluation.Evaluation(scores, [], true, shares, outputs)
    recorded = evaluation.threshold_record(found)["classes"]
    assert [row["tuned"] for row in recorded.values()] == [True, False, True, True]
    assert recorded["bee"] == {
        "threshold": 0.5, "tuned": False, "support": 0, "f1": 0.0, "f1_at_half": 0.0,
    }  # fmt: skip


# scores


@pytest.mark.parametrize("tuned", [False, True])
def test_the_figures_of_several_labels_are_scikit_learns(tuned: bool) -> None:
    true, shares = labels(1)
    outputs = Outputs(NAMES)
    if tuned:
        outputs = evaluation._tuned(*labels(2), outputs)
    given = shares >= np.array(outputs.thresholds or 0.5)
    scores = evaluation._score_labels(true, shares, outputs)
    expected = {
        "macro_f1": metrics.f1_score(true, given, average="macro"),
        "micro_f1": metrics.f1_score(true, given, average="micro"),
        "macro_f1_at_half": metrics.f1_score(true, shares >= 0.5, average="macro"),
        "map": metrics.average_precision_score(true, shares, average="macro"),
        "exact_match": metrics.accuracy_score(true, given),
        "hamming_loss": metrics.hamming_loss(true, given),
        "every_class_macro_f1": metrics.f1_score(true, np.ones_like(true), average="macro"),
        "chance_map": true.mean(),
    }
    assert {key: scores[key] for key in expected} == pytest.approx(expected)
    report = metrics.precision_recall_fscore_support(true, given)
    for i, name in enumerate(NAMES):
        row = scores["per_class"][name]
        keys = ("precision", "recall", "f1", "support")
        assert [row[key] for key in keys] == pytest.approx([column[i] for column in report])


def test_absent_classes_are_left_out_of_the_means_and_one_class_is_enough() -> None:
    true, shares = labels(3)
    some = evaluation._score_labels(true[:, 1:], shares[:, 1:], Outputs(NAMES[1:]))
    true[:, 0] = 0
    all_ = evaluation._score_labels(true, shares, Outputs(NAMES))
    for key in ("macro_f1", "map", "macro_f1_at_half", "every_class_macro_f1", "chance_map"):
        assert all_[key] == pytest.approx(some[key])
    assert all_["per_class"]["ant"]["average_precision"] is None
    one = evaluation._score_labels(true[:, 1:2], shares[:, 1:2], Outputs(("bee",)))
    expected = metrics.f1_score(true[:, 1], shares[:, 1] >= 0.5)
    assert one["macro_f1"] == one["micro_f1"] == pytest.approx(expected)


def test_nothing_present_gives_no_means_instead_of_zeros() -> None:
    true, shares = labels(4)
    scores = evaluation._score_labels(np.zeros_like(true), shares, Outputs(NAMES))
    assert scores["macro_f1"] is None
    assert scores["map"] is None
    line = EVALUATORS["image_multilabel"].headline({"loss": 1.0, **scores})
    assert line[:2] == ["macro F1 -", "mAP -"]


def test_the_commonest_set_is_the_baseline_of_exact_match() -> None:
    true = np.array([[1, 0], [1, 0], [0, 0], [1, 1], [1, 0]], "float32")
    scores = evaluation._score_labels(true, true * 0.9, Outputs(("a", "b")))
    assert scores["commonest_set_exact_match"] == 0.6
    assert scores["exact_match"] == 1.0


def test_the_figures_of_numbers_are_scikit_learns_and_scipys() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(0, 1, (40, 2)) * (10, 0.01) + (100, 0)
    predicted = true + rng.normal(0, 1, (40, 2)) * (5, 0.002)
    outputs = Outputs(("a", "b"), (101.0, 0.002), (9.0, 0.011))
    scores = evaluation._score_numbers(true, predicted, outputs)
    for i, row in enumerate(scores["per_target"].values()):
        t, p = true[:, i], predicted[:, i]
        assert row == pytest.approx(
            {
                "mae": np.abs(t - p).mean(),
                "rmse": np.sqrt(np.square(t - p).mean()),
                "r2": metrics.r2_score(t, p),
                "pearson": np.corrcoef(t, p)[0, 1],
                "spearman": np.corrcoef(stats.rankdata(t), stats.rankdata(p))[0, 1],
                "baseline_mae": np.abs(t - outputs.mean[i]).mean(),
            }
        )
    standardised = np.abs(true - predicted) / outputs.std
    assert scores["mae"] == pytest.approx(standardised.mean())
    assert scores["r2"] == pytest.approx(metrics.r2_score(true, predicted))
    alone = evaluation._score_numbers(
        true[:, :1], predicted[:, :1], Outputs(("a",), (101.0,), (9.0,))
    )
    assert alone["mae"] == alone["per_target"]["a"]["mae"]


@pytest.mark.parametrize("true", [[[3.0]], [[3.0], [3.0]]])
def test_what_one_example_or_one_number_cannot_tell_is_none(true: list[Any]) -> None:
    numbers = np.array(true)
    scores = evaluation._score_numbers(numbers, numbers + 1, Outputs(("a",), (0.0,), (1.0,)))
    row = scores["per_target"]["a"]
    assert (row["mae"], row["baseline_mae"]) == (1.0, 3.0)
    assert (row["r2"], row["pearson"], row["spearman"], scores["r2"]) == (None,) * 4
    assert "r2 -" in EVALUATORS["image_regression"].headline({"loss": 0.0, **scores})


def test_probabilities_keep_their_order_far_out() -> None:
    logits = np.array([[-80.0, -60.0, 0.0, 30.0]], "float32")
    assert (np.diff(evaluation.label_probabilities(logits)[0]) > 0).all()
    assert evaluation.probabilities(logits).sum() == pytest.approx(1)


# rows


def test_rows_say_names_and_numbers_with_the_digits_there_are() -> None:
    outputs = Outputs(("a", "b"), (0.0, 0.0), (1.0, 1.0), thresholds=(0.3, 0.7))
    says = EVALUATORS["image_multilabel"].compares
    row = says(np.array([1.0, 1.0]), np.array([0.4, 1.23456789e-9]), outputs)
    assert row == {"true": "a; b", "predicted": "a", "p:a": 0.4, "p:b": 1.23457e-9}
    nothing = says(np.zeros(2), np.zeros(2), outputs)
    assert (nothing["true"], nothing["predicted"]) == ("", "")
    row = EVALUATORS["image_regression"].compares(
        np.array([0.1, 12.0]), np.array([0.3000000119, 10.0]), outputs
    )
    assert row["true:a"] == 0.1
    assert row["predicted:a"] == 0.30000001
    assert row["error:b"] == -2.0
    best = EVALUATORS["image_classification"].says(np.array([0.25, 0.75]), outputs)
    assert best == {"predicted": "b", "probability": 0.75, "p:a": 0.25, "p:b": 0.75}


# pictures


@pytest.mark.parametrize("outputs", [1, 4, 30])
@pytest.mark.parametrize("name", WHOLE)
def test_pictures_are_drawn_for_few_and_many_outputs(
    name: str, outputs: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    how = EVALUATORS[name]
    width = max(2, outputs) if TASKS[name].labels == "class" else outputs
    raw = rng.normal(0, 1, (20, width)).astype("float32")
    true = {
        "class": rng.integers(0, width, 20),
        "classes": (rng.random((20, width)) < 0.2).astype("float32"),
        "numbers": rng.normal(0, 1, (20, width)),
    }[TASKS[name].labels]
    path = tmp_path / "figure.png"
    names = tuple(f"name {i}" for i in range(width))
    how.draw(true, how.activate(raw), Outputs(names, (0.0,) * width, (1.0,) * width), path, "t")
    with Image.open(path) as picture:
        assert min(picture.size) > 300
        assert np.asarray(picture.convert("L")).std() > 5


@pytest.mark.parametrize("name", WHOLE)
def test_names_are_drawn_as_they_are_whatever_matplotlib_makes_of_signs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from matplotlib.text import Text

    drawn: list[Figure] = []
    save = figures._save
    monkeypatch.setattr(figures, "_save", lambda f, path: (drawn.append(f), save(f, path)))
    rng = np.random.default_rng(0)
    names = ("$^$", "_hidden", r"a\$_$", "$5")
    truths = {
        "class": rng.integers(0, 4, 30),
        "classes": labels(0, 30)[0],
        "numbers": rng.normal(0, 1, (30, 4)),
    }
    how = EVALUATORS[name]
    predicted = how.activate(rng.normal(0, 1, (30, 4)).astype("float32"))
    outputs = Outputs(names, (0.0,) * 4, (1.0,) * 4)
    how.draw(truths[TASKS[name].labels], predicted, outputs, tmp_path / "f.png", "$^$ title")
    # Without a formula, Matplotlib draws an escaped sign as the sign.
    shown = [text.get_text().replace(r"\$", "$").strip() for text in drawn[0].findobj(Text)]
    assert {*names, "$^$ title"} <= set(shown)
    if name == "image_multilabel":
        (legend,) = drawn[0].findobj(Legend)
        assert len(legend.get_texts()) == 4


def test_stages_with_signs_are_drawn(tmp_path: Path) -> None:
    row = {"epoch": 1, "stage": "$^$", "learning_rate": 0.1, "loss": 1.0, "mae": 2.0}
    figures.draw_learning_curves([row], "mae", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").is_file()


@pytest.mark.parametrize("validation", [True, False])
def test_learning_curves_are_drawn_with_and_without_validation(
    validation: bool, tmp_path: Path
) -> None:
    rows = []
    for epoch in (1, 2, 3):
        row = {"epoch": epoch, "stage": "head", "learning_rate": 0.1, "loss": 1.0, "mae": 2.0}
        rows.append(row | ({"val_loss": 1.0, "val_mae": 2.0} if validation else {}))
    figures.draw_learning_curves(rows, "mae", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size[0] > 1000
