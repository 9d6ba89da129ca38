"""Losses and metrics of the tasks against references, and a small run of each task."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

from kerastune_ft import (
    cli,
    data,
    evaluation,
    losses,
    predictions,
    recipe,
    recipe_checks,
    showing,
    training,
    workflow,
)
from kerastune_ft.data.labels import LABELS
from kerastune_ft.errors import RunError
from kerastune_ft.runs import Run
from kerastune_ft.tasks import TASKS, Outputs, mae_scale

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 4, (16, 5)).astype("float32")
PRESENT = (RNG.random((16, 5)) < 0.3).astype("float32")


def test_every_task_of_a_recipe_has_a_row_and_labels() -> None:
    assert set(TASKS) == set(recipe.choices("task.name"))
    for name, row in TASKS.items():
        assert row.name == name
        assert row.labels in LABELS
        monitors = recipe.choices("train.early_stopping.monitor")
        assert {row.metric, f"val_{row.metric}"} <= set(monitors)
    assert {row.labels for row in TASKS.values()} == set(LABELS)


# losses


@pytest.mark.parametrize("weights", [[1.0] * 5, [0.1, 1.0, 3.0, 10.0, 2.5]])
def test_the_weighted_loss_is_tensorflows(weights: list[float]) -> None:
    expected = tf.nn.weighted_cross_entropy_with_logits(PRESENT, LOGITS, np.float32(weights))
    found = losses.WeightedBinaryCrossentropy(weights)(PRESENT, LOGITS)
    assert float(found) == pytest.approx(float(tf.reduce_mean(expected)), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_without_weights_it_is_keras_own_loss(smoothing: float) -> None:
    expected = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=smoothing)
    found = losses.WeightedBinaryCrossentropy(label_smoothing=smoothing)
    assert float(found(PRESENT, LOGITS)) == pytest.approx(
        float(expected(PRESENT, LOGITS)), rel=1e-5
    )


def test_large_logits_give_finite_losses_and_gradients() -> None:
    logits = tf.constant([[1e4, -1e4]])
    for labels in ([[1.0, 0.0]], [[0.0, 1.0]]):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = losses.WeightedBinaryCrossentropy([2.0, 3.0])(tf.constant(labels), logits)
        assert np.isfinite(float(loss))
        assert np.isfinite(tape.gradient(loss, logits).numpy()).all()


STD = np.array([0.01, 250.0], "float32")
MEAN = np.array([3.0, -1000.0], "float32")


@pytest.mark.parametrize(
    ("error", "reference"),
    [
        ("mse", keras.losses.MeanSquaredError()),
        ("mae", keras.losses.MeanAbsoluteError()),
        ("huber", keras.losses.Huber(delta=1.0)),
    ],
)
def test_the_loss_and_its_gradient_are_those_of_standardised_targets(
    error: losses.Error, reference: keras.losses.Loss
) -> None:
    """What the dense layer gets, before the model gives its output the targets' units."""
    dense = tf.constant(RNG.normal(0, 2, (32, 2)).astype("float32"))
    targets = RNG.normal(0, 1, (32, 2)).astype("float32")

    def gradient(loss_of):
        with tf.GradientTape() as tape:
            tape.watch(dense)
            loss = loss_of(dense)
        return float(loss), tape.gradient(loss, dense).numpy()

    ours = losses.StandardisedError(error, STD)
    found = gradient(lambda x: ours(targets * STD + MEAN, x * STD + MEAN))
    expected = gradient(lambda x: reference(targets, x))
    # Numbers of 3 and spread 0.01 have lost three digits before any loss sees them.
    assert found[0] == pytest.approx(expected[0], rel=1e-3)
    np.testing.assert_allclose(found[1], expected[1], atol=2e-4)


def test_losses_come_back_from_their_configuration() -> None:
    for loss in (
        losses.WeightedBinaryCrossentropy([1.0, 2.0, 3.0, 4.0, 5.0], 0.1),
        losses.StandardisedError("huber", [1.0, 2.0, 3.0, 4.0, 5.0]),
    ):
        again = type(loss).from_config(loss.get_config())
        assert float(again(PRESENT, LOGITS)) == float(loss(PRESENT, LOGITS))


# metrics


def test_the_area_is_near_scikit_learns_average_precision_and_reads_shares_of_labels() -> None:
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(1)
    true = (rng.random((4000, 3)) < (0.1, 0.3, 0.6)).astype("float32")
    logits = rng.normal(0, 1, (4000, 3)) + 1.5 * true
    metric = losses.LabelAUC(3)
    metric.update_state(true, logits)
    expected = average_precision_score(true, logits, average="macro")
    assert float(metric.result()) == pytest.approx(expected, abs=0.01)
    mixed = losses.LabelAUC(3)
    mixed.update_state(true * 0.6 + 0.2, logits)
    assert float(mixed.result()) == float(metric.result())
    again = losses.LabelAUC.from_config(metric.get_config())
    again.update_state(true, logits)
    assert float(again.result()) == float(metric.result())


def test_mae_is_in_the_unit_of_one_target_and_in_standard_deviations_of_several() -> None:
    true = RNG.normal(0, 1, (10, 2)).astype("float32") * STD
    predicted = np.zeros_like(true)
    (several,) = TASKS["image_regression"].metrics(Outputs(("a", "b"), (0.0, 0.0), tuple(STD)))
    several.update_state(true, predicted)
    assert float(several.result()) == pytest.approx(np.abs(true / STD).mean(), rel=1e-5)
    one = Outputs(("b",), (0.0,), (250.0,))
    (single,) = TASKS["image_regression"].metrics(one)
    single.update_state(true[:, 1:], predicted[:, 1:])
    assert float(single.result()) == pytest.approx(np.abs(true[:, 1]).mean(), rel=1e-5)
    assert single.name == several.name == TASKS["image_regression"].metric
    assert mae_scale(one) == (1.0,)


def test_recipes_and_tasks_name_the_same_metrics() -> None:
    said = {name: recipe_checks._METRICS.get(name.rpartition("_")[2], "accuracy") for name in TASKS}
    assert {name: row.metric for name, row in TASKS.items()} == said


# small runs from end to end

COLOURS = {"blue": (30, 40, 200), "green": (30, 190, 40), "red": (200, 30, 40)}


def write_stripes(folder: Path) -> Path:
    """Writes pictures of three stripes, each in its colour or grey, and a table of the colours."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(160):
        present = [bool(number >> bit & 1) for bit in range(3)]
        pixels = rng.normal(110, 3, (36, 36, 3))
        for place, (colour, shown) in enumerate(zip(COLOURS.values(), present, strict=True)):
            if shown:
                pixels[:, 12 * place : 12 * (place + 1)] += np.array(colour) - 110
        Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(folder / f"{number:03d}.png")
        names = [name for name, shown in zip(COLOURS, present, strict=True) if shown]
        rows.append((f"{number:03d}.png", " | ".join(names)))
    return write_table(folder / "colours.csv", ("path", "colours"), rows)


def write_shades(folder: Path) -> Path:
    """Writes grey pictures and a table of how bright and how dark they are, in two units."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(160):
        bright = rng.uniform(20, 235)
        pixels = rng.normal(bright, 3, (36, 36, 3))
        Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(folder / f"{number:03d}.png")
        rows.append((f"{number:03d}.png", repr(1000 + 10 * bright), repr((255 - bright) / 1e6)))
    return write_table(folder / "shades.csv", ("path", "lumen", "shade"), rows)


def write_table(path: Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def task_recipe(
    weights: object, name: str, table: Path, columns: Any, epochs: int = 20, **more: Any
) -> recipe.Recipe:
    stage = {"trainable_blocks": 0, "epochs": epochs, "learning_rate": 1e-2, "schedule": "cosine"}
    return recipe.from_mapping(
        {
            "task": {"name": name, "dropout": 0.0, **more.get("task", {})},
            "backbone": {
                "name": "mobilenet",
                "weights": str(weights),
                "alpha": 0.25,
                "image_size": 32,
            },
            "data": {
                "source": "image_csv",
                "path": str(table),
                "label_column": columns,
                "batch_size": 8,
                "augment": "none",
                "split": {"validation": 0.25, "test": 0.25},
                **more.get("data", {}),
            },
            "train": {
                "tensorboard": False,
                "early_stopping": {"monitor": f"val_{TASKS[name].metric}", "patience": 20},
                "stages": [stage],
                **more.get("train", {}),
            },
        }
    )


def fit(chosen: recipe.Recipe, folder: Path) -> tuple[Run, str]:
    """Returns the run and what was printed."""
    console = Console(record=True, width=300, file=io.StringIO())
    run = workflow.fit(chosen, runs_dir=folder / "runs", default_name="run", console=console)
    return run, console.export_text()


@pytest.fixture(scope="module")
def labels_run(tmp_path_factory: pytest.TempPathFactory, weights_file: Path) -> tuple[Run, str]:
    """Several colours in each picture."""
    folder = tmp_path_factory.mktemp("labels")
    data = {"label_separator": "|"}
    train = {"class_weight": "balanced"}
    table = write_stripes(folder)
    chosen = task_recipe(weights_file, "image_multilabel", table, "colours", data=data, train=train)
    return fit(chosen, folder)


@pytest.fixture(scope="module")
def numbers_run(tmp_path_factory: pytest.TempPathFactory, weights_file: Path) -> tuple[Run, str]:
    """How bright each picture is, in two units."""
    folder = tmp_path_factory.mktemp("numbers")
    task = {"loss": "huber", "hidden": [16], "pooling": "gem"}
    columns = ["lumen", "shade"]
    table = write_shades(folder)
    return fit(task_recipe(weights_file, "image_regression", table, columns, task=task), folder)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def kft(*arguments: object) -> str:
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_several_labels_are_learned_and_written(labels_run: tuple[Run, str]) -> None:
    from sklearn import metrics

    run, said = labels_run
    scores = run.read_json("scores")["test"]
    assert scores["map"] > 0.9
    assert scores["macro_f1"] > 0.8
    rows = rows_of(run.predictions_path)
    names = run.read_json("data")["class_names"]
    assert names == ["blue", "green", "red"]
    shares = np.array([[float(row[f"p:{name}"]) for name in names] for row in rows])
    true, given = (
        np.array([[name in row[key].split("; ") for name in names] for row in rows])
        for key in ("true", "predicted")
    )
    thresholds = run.read_json("thresholds")["classes"]
    assert np.array_equal(given, shares >= [thresholds[name]["threshold"] for name in names])
    assert scores["macro_f1"] == pytest.approx(metrics.f1_score(true, given, average="macro"))
    assert scores["map"] == pytest.approx(metrics.average_precision_score(true, shares))
    assert scores["loss"] == pytest.approx(
        np.mean([metrics.log_loss(true[:, i], shares[:, i], labels=[0, 1]) for i in range(3)]),
        abs=1e-4,
    )
    held_out = {row["name"]: row["label"] for row in rows_of(run.splits_path)}
    assert all(row["true"] == held_out[row["path"]] for row in rows)
    assert f"test macro F1 {scores['macro_f1']:.4f}  mAP {scores['map']:.4f}" in said
    for name in ("thresholds.json", "precision_recall.png", "learning_curves.png"):
        assert (run.path / name).is_file()
        assert name in said
    assert not (run.path / "confusion_matrix.png").exists()
    with Image.open(run.figure_path("precision_recall")) as picture:
        assert min(picture.size) > 300


def test_thresholds_come_from_validation_alone(labels_run: tuple[Run, str]) -> None:
    run, _ = labels_run
    recorded = run.read_json("thresholds")
    validation = run.read_json("scores")["validation"]["per_class"]
    assert recorded["examples"] == 40
    for name, row in recorded["classes"].items():
        assert row["tuned"]
        assert row["f1"] == validation[name]["f1"] >= row["f1_at_half"]
        assert validation[name]["threshold"] == row["threshold"]


def test_numbers_are_learned_in_their_own_units(numbers_run: tuple[Run, str]) -> None:
    from sklearn import metrics

    run, said = numbers_run
    scores = run.read_json("scores")["test"]
    rows = rows_of(run.predictions_path)
    assert len(rows) == 40
    for name in ("lumen", "shade"):
        true, predicted, error = (
            np.array([float(row[f"{key}:{name}"]) for row in rows])
            for key in ("true", "predicted", "error")
        )
        found = scores["per_target"][name]
        assert found["r2"] > 0.5
        assert found["r2"] == pytest.approx(metrics.r2_score(true, predicted), abs=1e-6)
        assert found["mae"] == pytest.approx(np.abs(true - predicted).mean())
        assert found["mae"] < 0.5 * found["baseline_mae"]
        np.testing.assert_allclose(error, predicted - true, rtol=1e-5, atol=1e-6 * true.std())
        held_out = {row["name"]: row["label"].split("; ") for row in rows_of(run.splits_path)}
        column = ("lumen", "shade").index(name)
        assert all(
            float(held_out[row["path"]][column]) == number
            for row, number in zip(rows, true, strict=True)
        )
    assert scores["r2"] == pytest.approx(np.mean([t["r2"] for t in scores["per_target"].values()]))
    assert f"r2 {scores['r2']:.4f}" in said
    assert "2 targets: lumen (" in said
    assert "predicted_against_true.png" in said
    assert not run.has("thresholds")


@pytest.mark.parametrize("fixture", ["labels_run", "numbers_run"])
def test_evaluate_and_predict_repeat_the_run(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run, printed = request.getfixturevalue(fixture)
    line = next(line for line in printed.splitlines() if line.startswith("test m"))
    assert line in kft("evaluate", run.path).splitlines()
    held_out = rows_of(run.predictions_path)
    pictures = [run.path.parents[1] / row["path"] for row in held_out]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    output = tmp_path / "p.jsonl"
    arguments = ["predict", run.path, *pictures, broken, "--output", output]
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    *rows, last = [json.loads(text) for text in output.read_text().splitlines()]
    assert last["error"]
    assert set(last) == set(rows[0])
    assert {value for key, value in last.items() if key not in ("path", "error")} == {None}
    said = [key for key in held_out[0] if key.startswith(("predicted", "p:"))]
    for row, known in zip(rows, held_out, strict=True):
        assert set(row) == {"path", "error", *said}
        for key in said:
            if key == "predicted":
                assert row[key] == known[key]
            else:
                assert row[key] == pytest.approx(float(known[key]), rel=1e-4, abs=1e-9)


def test_a_run_is_scored_on_another_table_but_not_on_folders(
    labels_run: tuple[Run, str], tmp_path: Path
) -> None:
    run, _ = labels_run
    table = run.path.parents[1] / "more.csv"
    write_table(table, ("path", "colours"), [("000.png", ""), ("003.png", "blue|green")])
    assert "of 2 examples" in kft("evaluate", run.path, "--data", table)
    result = CliRunner().invoke(cli.main, ["evaluate", str(run.path), "--data", str(tmp_path)])
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    needs = "--data: this run's task needs a CSV file with the columns 'path', 'colours'; "
    assert needs in said
    assert "is a folder" in said
    assert "image_folder" not in said
    gone = CliRunner().invoke(cli.main, ["evaluate", str(run.path), "--data", "gone.csv"])
    assert f"{needs}'gone.csv' does not exist" in " ".join(gone.output.split())


def _without(*keys: str) -> Callable[[dict[str, Any]], Any]:
    def change(document: dict[str, Any]) -> dict[str, Any]:
        inner = document
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        return document

    return change


@pytest.mark.parametrize(
    ("fixture", "name", "change", "said"),
    [
        ("labels_run", "thresholds", _without("classes"), "'classes' is missing"),
        ("labels_run", "thresholds", _without("classes", "green"), "'green' is missing"),
        ("labels_run", "thresholds", _without("classes", "red", "threshold"), "'threshold' is"),
        ("labels_run", "thresholds", lambda document: [1], ""),
        ("labels_run", "thresholds", lambda document: {"classes": {"blue": None}}, ""),
        ("labels_run", "data", _without("class_names"), "'class_names' is missing"),
        ("labels_run", "data", _without("split_fingerprint"), "'split_fingerprint' is missing"),
        ("numbers_run", "data", _without("targets"), "'targets' is missing"),
        ("numbers_run", "data", _without("targets", "shade"), "'shade' is missing"),
        ("numbers_run", "data", _without("targets", "lumen", "std"), "'std' is missing"),
    ],
)
def test_a_damaged_document_of_a_run_is_named_with_the_remedy(
    fixture: str,
    name: Any,
    change: Callable[[dict[str, Any]], Any],
    said: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    run, _ = request.getfixturevalue(fixture)
    copied = Run(shutil.copytree(run.path, tmp_path / "copy"))
    path = copied.path / f"{name}.json"
    path.write_text(json.dumps(change(copied.read_json(name))))
    with pytest.raises(RunError) as caught:
        predictions.evaluate(copied)
    message = str(caught.value)
    assert message.startswith(f"'{path}' is damaged: {said}")
    assert message.endswith(f"; restore it, or run 'kft fit {copied.recipe_path}' again.")


def test_a_damaged_former_run_gives_no_head_and_says_why(
    labels_run: tuple[Run, str], tmp_path: Path
) -> None:
    run, _ = labels_run
    copied = Run(shutil.copytree(run.path, tmp_path / "copy"))
    copied.write_json("thresholds", {})
    former = recipe.load(run.recipe_path)
    choice = former.backbone.model_copy(update={"weights": str(copied.path)})
    chosen = former.model_copy(update={"backbone": choice})
    splits = data.load(chosen.data, "classes")
    console = Console(record=True, width=300, file=io.StringIO())
    workflow.take_over_head(console, chosen, workflow.build(chosen, splits), splits)
    text = console.export_text()
    assert f"is new: '{copied.path / 'thresholds.json'}' is damaged: 'classes' is missing" in text


def test_scores_on_which_thresholds_were_tuned_say_so(
    labels_run: tuple[Run, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, printed = labels_run
    words = "thresholds tuned on these very examples"
    assert run.read_json("scores")["validation"]["thresholds_tuned_here"] is True
    assert "thresholds_tuned_here" not in run.read_json("scores")["test"]
    assert words not in printed
    chosen, model = recipe.load(run.recipe_path), predictions.load_model(run)
    splits = data.load(chosen.data, "classes")
    nothing = replace(splits.test, names=(), labels=splits.test.labels[:0])
    splits = replace(splits, test=nothing)
    again = Run.create(tmp_path, "again")
    history = training.History(rows=training_rows())
    scores = workflow._evaluate(again, chosen, model, splits, history)
    console = Console(record=True, width=300, file=io.StringIO())
    showing.show_scores(console, again, chosen, scores)
    assert words in console.export_text()
    # So does `kft evaluate`, which takes the same split then.
    monkeypatch.setattr(predictions, "own_split", lambda *_: splits.validation)
    _, _, found = predictions.evaluate(run)
    assert found.scores["thresholds_tuned_here"] is True
    assert found.scores == scores["validation"]


def training_rows() -> list[dict[str, Any]]:
    keys = ("loss", "auc_pr", "learning_rate", "seconds")
    return [{"epoch": 1, "stage": "head", **dict.fromkeys(keys, 0.5)}]


@pytest.mark.parametrize("broken", ["precision_recall", "learning_curves"])
def test_a_picture_that_cannot_be_drawn_costs_no_scores(
    broken: str, labels_run: tuple[Run, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = labels_run
    chosen, model = recipe.load(run.recipe_path), predictions.load_model(run)
    splits = data.load(chosen.data, "classes")

    def fail(*_: Any) -> None:
        raise ValueError("no picture")

    if broken == "learning_curves":
        monkeypatch.setattr(workflow.figures, "draw_learning_curves", fail)
    else:
        row = replace(evaluation.EVALUATORS["image_multilabel"], draw=fail)
        monkeypatch.setitem(evaluation.EVALUATORS, "image_multilabel", row)
    again = Run.create(tmp_path, "again")
    history = training.History(rows=training_rows())
    with pytest.raises(ValueError, match="no picture"):
        workflow._evaluate(again, chosen, model, splits, history)
    assert again.read_json("scores")["test"]["examples"] == len(splits.test)
    assert len(rows_of(again.predictions_path)) == len(splits.test)


def test_runs_are_listed_with_the_score_of_their_task(
    labels_run: tuple[Run, str], numbers_run: tuple[Run, str]
) -> None:
    for (run, _), metric in ((labels_run, "macro_f1"), (numbers_run, "r2")):
        (row,) = json.loads(kft("ls", "runs", "--json", "--runs-dir", run.path.parent))
        assert row["metric"] == metric
        assert row["score"] == pytest.approx(run.read_json("scores")["test"][metric], abs=1e-4)


@pytest.mark.parametrize(
    ("columns", "said"),
    [(["shade", "lumen"], "taken over: 2 outputs matched by name"), ("lumen", "is new: ")],
)
def test_a_run_goes_on_from_the_head_of_a_former_one(
    numbers_run: tuple[Run, str], columns: Any, said: str, tmp_path: Path
) -> None:
    former, _ = numbers_run
    task = {"loss": "huber", "hidden": [16], "pooling": "gem"}
    table = former.path.parents[1] / "shades.csv"
    chosen = task_recipe(former.path, "image_regression", table, columns, epochs=1, task=task)
    splits = data.load(chosen.data, "numbers")
    model = workflow.build(chosen, splits)
    console = Console(record=True, width=300, file=io.StringIO())
    workflow.take_over_head(console, chosen, model, splits)
    assert said in console.export_text()
    predicted = evaluation.evaluate(model, chosen, splits.test, splits.outputs).scores
    begun = predicted["per_target"]["lumen"]["mae"]
    before = former.read_json("scores")["test"]["per_target"]["lumen"]["mae"]
    # Untrained here: only a head that was taken over knows anything.
    if len(splits.class_names) == 2:
        assert begun < 2 * before
    else:
        assert begun > 2 * before


def test_another_task_begins_with_a_new_head(labels_run: tuple[Run, str]) -> None:
    run, _ = labels_run
    table = run.path.parents[1] / "sizes.csv"
    rows = [(f"{number:03d}.png", str(number)) for number in range(40)]
    write_table(table, ("path", "size"), rows)
    chosen = task_recipe(run.path, "image_regression", table, "size")
    splits = data.load(chosen.data, "numbers")
    model = workflow.build(chosen, splits)
    before = [weight.copy() for weight in model.get_weights()]
    console = Console(record=True, width=300, file=io.StringIO())
    workflow.take_over_head(console, chosen, model, splits)
    assert "is new: the former run's task is image_multilabel" in console.export_text()
    for ours, theirs in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_former_runs_thresholds_are_a_half_before_it_is_finished(
    labels_run: tuple[Run, str], tmp_path: Path
) -> None:
    run, _ = labels_run
    copied = Run(tmp_path / "copy")
    shutil.copytree(run.path, copied.path)
    _, outputs = predictions.contract(copied)
    assert len(outputs.thresholds) == 3 and set(outputs.thresholds) != {0.5}
    (copied.path / "thresholds.json").unlink()
    _, outputs = predictions.contract(copied)
    assert outputs.thresholds == ()
    shares = np.array([0.5, 0.49, 0.9])
    row = evaluation.EVALUATORS["image_multilabel"].says(shares, outputs)
    assert row["predicted"] == "blue; red"


def test_plan_shows_targets_and_their_scale(numbers_run: tuple[Run, str]) -> None:
    run, _ = numbers_run
    said = kft("plan", run.recipe_path)
    assert "lumen (" in said
    assert "standard deviation" in said
