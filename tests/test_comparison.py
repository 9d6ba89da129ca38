"""Data seen after training against the run."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import fill_batch_norm_statistics
from PIL import Image
from rich.console import Console

from kerastune_ft import cli, comparison, folds, models, predictions, workflow
from kerastune_ft import recipe as recipes
from kerastune_ft.errors import DataError, RunError
from kerastune_ft.runs import Run

COLOURS = {"blue": (30, 40, 200), "green": (30, 190, 40), "red": (200, 30, 40)}


def write(folder, count=50, light=1.0, seed=0, colours=COLOURS):
    """Writes class folders of noisy pictures of a colour each."""
    rng = np.random.default_rng(seed)
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.clip(rng.normal(colour, 25, (32, 32, 3)) * light, 0, 255).astype("uint8")
            Image.fromarray(pixels).save(folder / name / f"{seed}-{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on three colours."""
    import keras

    folder = tmp_path_factory.mktemp("run")
    keras.utils.set_random_seed(0)
    model = models.image_classifier(
        "mobilenet", 3, weights="none", image_size=32, alpha=0.25, seed=0
    )
    fill_batch_norm_statistics(model)
    model.save(folder / "narrow.keras")
    write(folder / "data")
    return workflow.fit(recipe_of(folder), runs_dir=folder / "runs")


def recipe_of(folder, *, task="image_classification", epochs=6, folds=1, **changes):
    """Returns a recipe for `folder/data` and the weights beside it."""
    of_data = {
        "source": "image_folder", "path": str(folder / "data"), "augment": "none",
        "split": {"validation": 0 if folds > 1 else 0.35, "test": 0.35},
    }  # fmt: skip
    return recipes.from_mapping(
        {
            "task": {"name": task},
            "backbone": {
                "name": "mobilenet", "weights": str(folder / "narrow.keras"), "image_size": 32,
                "alpha": 0.25,
            },
            "data": {**of_data, **changes},
            "train": {
                "stages": [{"trainable_blocks": 0, "epochs": epochs, "learning_rate": 3e-2}],
                "early_stopping": None, "tensorboard": False, "folds": folds,
            },
        }
    )  # fmt: skip


def beside(run, tmp_path):
    """Returns a folder of a run's own for another one, with the same weights."""
    shutil.copy(run.path.parents[1] / "narrow.keras", tmp_path)
    return tmp_path


def compared(run, path):
    report = comparison.compare(Run.open(run.path), str(path), console=Console(quiet=True))
    return report, {found.kind: found for found in report.findings}


def test_data_like_those_of_the_run_cannot_be_told_apart(run, tmp_path):
    report, found = compared(run, write(tmp_path / "new", seed=1))
    assert not report.failed and found["data_drift"].severity == "note"
    assert "cannot be told apart" in found["data_drift"].message
    assert not {"figure_drift", "label_shift", "unknown_class"} & set(found)
    assert found["confidence"].severity == found["accuracy"].severity == "note"
    report.write(tmp_path / "out")
    record = json.loads((tmp_path / "out" / "findings.json").read_text())
    assert record["path"] == str(tmp_path / "new")
    assert record["splits"]["test"]["examples"] == 150


def test_dark_data_with_other_classes_are_told_apart(run, tmp_path):
    colours = {"blue": COLOURS["blue"], "violet": (160, 40, 200)}
    _, found = compared(run, write(tmp_path / "new", light=0.35, seed=1, colours=colours))
    assert found["data_drift"].severity == "warn" and len(found["data_drift"].details) == 20
    assert "brightness" in found["figure_drift"].names
    assert found["unknown_class"].names == ("violet",)
    assert {"green", "red"} & set(found["label_shift"].names)
    assert found["accuracy"].severity == "warn"


@pytest.mark.slow
def test_a_flat_folder_and_a_table_need_no_labels(run, tmp_path):
    folder = tmp_path / "flat"
    folder.mkdir()
    for path in write(tmp_path / "new", seed=1).rglob("*.png"):
        shutil.copy(path, folder / f"{path.parent.name}-{path.name}")
    (folder / "broken.jpg").write_bytes(b"")
    report, found = compared(run, folder)
    assert report.survey.table.class_names == (comparison.NO_LABEL,)
    assert len(report.survey.table.names) == 150 and "empty_file" in found
    assert not {"accuracy", "label_shift", "unknown_class"} & set(found) and "confidence" in found
    names = [path.name for path in sorted(folder.glob("*.png"))]
    (folder / "table.csv").write_text("path\n" + "\n".join(names) + "\n")
    _, of_table = compared(run, folder / "table.csv")
    assert of_table["confidence"].message == found["confidence"].message
    rows = [f"{name},{name.partition('-')[0]}" for name in names]
    (folder / "table.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    assert "accuracy" in compared(run, folder / "table.csv")[1]


def test_changed_data_of_the_run_and_missing_data_are_refused(run, tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        compared(run, tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there is no picture in it"):
        compared(run, tmp_path / "empty")
    gone = next((run.path.parents[1] / "data" / "red").iterdir())
    kept = gone.rename(run.path.parents[1] / "kept.png")
    try:
        with pytest.raises(DataError, match="has changed since run"):
            compared(run, write(tmp_path / "new", seed=1))
    finally:
        kept.rename(gone)


@pytest.mark.slow
def test_a_run_whose_suspected_labels_are_left_out_is_compared(run, tmp_path):
    folder = beside(run, tmp_path)
    for path in list((write(folder / "data", count=30) / "green").iterdir())[:4]:
        path.rename(folder / "data" / "red" / f"was-green-{path.name}")
    rules = {"suspected_labels": "drop"}
    recipe = recipe_of(folder, epochs=1, cleaning=rules, split={"validation": 0.2, "test": 0.2})
    made = workflow.fit(recipe, runs_dir=folder / "runs")
    assert made.read_json("data")["examples"]["removed"]
    _, found = compared(made, write(tmp_path / "new", count=15, seed=1))
    assert "data_drift" in found and "accuracy" in found


@pytest.mark.slow
def test_a_cross_validated_run_names_its_folds_which_can_be_compared(run, tmp_path):
    folder = beside(run, tmp_path)
    write(folder / "data", count=12)
    made = folds.fit(recipe_of(folder, epochs=1, folds=2), runs_dir=folder / "runs")
    new = write(tmp_path / "new", count=12, seed=1)
    with pytest.raises(RunError, match=r"no mean; compare with one of them, such as '.*/folds/1'"):
        compared(made, new)
    assert "data_drift" in compared(made.fold(1), new)[1]


@pytest.mark.slow
def test_classes_are_known_by_the_names_and_spellings_that_the_run_gave_them(run, tmp_path):
    folder = beside(run, tmp_path)
    write(folder / "data", count=12)
    rules = {"rename_labels": {"red": "crimson"}, "label_spelling": "merge"}
    made = workflow.fit(recipe_of(folder, epochs=1, cleaning=rules), runs_dir=folder / "runs")
    colours = {"red": COLOURS["red"], "Green": COLOURS["green"], "blue": COLOURS["blue"]}
    report, found = compared(made, write(tmp_path / "new", count=12, seed=1, colours=colours))
    assert "unknown_class" not in found and "accuracy" in found
    assert report.survey.table.class_names == ("blue", "crimson", "green")


@pytest.mark.slow
def test_a_table_of_pictures_without_labels_stays_in_its_folder(run, tmp_path):
    folder = tmp_path / "flat"
    folder.mkdir()
    pictures = []
    for path in sorted(write(tmp_path / "new", count=4, seed=1).rglob("*.png")):
        pictures.append(folder / f"{path.parent.name}-{path.name}")
        shutil.copy(path, pictures[-1])
    table = folder / "table.csv"
    table.write_text("path\n" + "\n".join(map(str, pictures)) + "\ngone.png\n")
    report, found = compared(run, table)
    assert report.survey.table.names == tuple(path.name for path in pictures)
    assert found["missing_file"].names == ("gone.png",)
    outside = next((tmp_path / "new").rglob("*.png"))
    for cell in (str(outside), f"../new/{outside.parent.name}/{outside.name}"):
        table.write_text(f"path\n{cell}\n")
        with pytest.raises(DataError, match="paths that leave"):
            compared(run, table)


@pytest.mark.slow
def test_what_divides_training_data_does_not_concern_other_data(run, tmp_path):
    folder = beside(run, tmp_path)
    names = [path.relative_to(folder / "data") for path in write(folder / "data").rglob("*.png")]
    rows = [f"{name},{name.parent},{number // 2}" for number, name in enumerate(sorted(names))]
    (folder / "own.csv").write_text("path,label,patient\n" + "\n".join(rows) + "\n")
    made = workflow.fit(
        recipe_of(
            folder, epochs=1, source="image_csv", path=str(folder / "own.csv"),
            root=str(folder / "data"), group_column="patient",
        ),
        runs_dir=folder / "runs",
    )  # fmt: skip
    new = write(tmp_path / "new", count=12, seed=1)
    names = [path.relative_to(new) for path in sorted(new.rglob("*.png"))]
    rows = [f"{name},{name.parent}" for name in names]
    (new / "new.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    _, split, _ = predictions.evaluate(made, str(new / "new.csv"))
    assert len(split) == 36
    assert "accuracy" in compared(made, new / "new.csv")[1]
    recipe, _ = predictions.contract(made)
    choice = predictions.elsewhere(recipe, "image_folder", str(new))
    assert {choice.root, choice.group_column, choice.group_pattern, choice.time_column} == {None}
    assert choice.split.file is choice.split.folds is None and choice.path == str(new)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "column", "first", "second"),
    [("image_multilabel", "label", "red", "blue"), ("image_regression", "number", "1.5", "2.5")],
)
def test_runs_of_other_tasks_are_compared(run, tmp_path, task, column, first, second):
    def table(folder, seed):
        two = {"blue": COLOURS["blue"], "red": COLOURS["red"]}
        names = [
            p.relative_to(folder) for p in write(folder, 40, seed=seed, colours=two).rglob("*.png")
        ]
        rows = [f"{n},{first if n.parent.name == 'red' else second}" for n in sorted(names)]
        (folder / "table.csv").write_text(f"path,{column}\n" + "\n".join(rows) + "\n")
        return str(folder / "table.csv")

    folder = beside(run, tmp_path)
    path = table(folder / "data", 0)
    recipe = recipe_of(
        folder, task=task, epochs=1, source="image_csv", path=path, label_column=column
    )
    made = workflow.fit(recipe, runs_dir=folder / "runs")
    report, found = compared(made, table(tmp_path / "new", 1))
    assert "cannot be told apart" in found["data_drift"].message
    assert set(report.survey.parts) == {"test"} and len(report.survey.parts) == 80
    assert not {"accuracy", "confidence", "unknown_class"} & set(found)


@pytest.mark.slow
def test_compare_says_where_its_files_are_and_fails_where_data_cannot_be_read(run, tmp_path):
    new = write(tmp_path / "new", count=8, seed=1, light=0.35)
    arguments = ["data", "compare", str(run.path), str(new), "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(cli.main, arguments)
    assert done.exit_code == 0, done.output
    assert "findings.html" in done.output and (tmp_path / "out" / "findings.html").is_file()
    (new / "red" / "broken.jpg").write_bytes(b"")
    assert CliRunner().invoke(cli.main, arguments).exit_code == 1


@pytest.mark.slow
def test_texts_are_compared_with_labels_and_line_by_line(tmp_path):
    rng = np.random.default_rng(0)

    def lines(count, words, first):
        labels, numbers = rng.integers(0, 2, count), rng.permutation(4000)[:count]
        texts = (" ".join(rng.choice(words[label], rng.integers(4, 9))) for label in labels)
        return [
            (f"{text} {first + number}", "ab"[label])
            for text, label, number in zip(texts, labels, numbers, strict=True)
        ]

    words = (["cat", "dog", "cow", "hen"], ["car", "bus", "van", "jet"])
    rows = lines(400, words, 1000)
    (tmp_path / "data.csv").write_text("text,label\n" + "\n".join(map(",".join, rows)) + "\n")
    recipe = recipes.from_mapping(
        {
            "task": {"name": "text_classification"},
            "backbone": {"name": "bert", "weights": "none", "sequence_length": 16},
            "data": {
                "source": "csv", "path": str(tmp_path / "data.csv"),
                "split": {"validation": 0.2, "test": 0.2}, "cleaning": {"text": {"html": True}},
            },
            "train": {
                "stages": [{"trainable_blocks": -1, "epochs": 2, "learning_rate": 1e-3}],
                "early_stopping": None, "tensorboard": False,
            },
        }
    )  # fmt: skip
    run = workflow.fit(recipe, runs_dir=tmp_path / "runs")
    same = lines(150, words, 5000)
    (tmp_path / "new.csv").write_text("text,label\n" + "\n".join(map(",".join, same)) + "\n")
    _, found = compared(run, tmp_path / "new.csv")
    assert found["data_drift"].severity == "note" and "accuracy" in found
    other = lines(150, (["CAT van", "jet HEN"], ["BUS cow", "dog CAR"]), 5000)
    (tmp_path / "new.txt").write_text("\n".join(f"<b>{text}</b>" for text, _ in other) + "\n")
    report, found = compared(run, tmp_path / "new.txt")
    assert found["data_drift"].severity == "warn", found["data_drift"].message
    assert "accuracy" not in found and "share of capitals" in found["figure_drift"].names
    assert set(report.survey.parts) == {"test"} and len(report.survey.parts) == 150
    assert report.survey.table.content.first == tuple(text for text, _ in other)
    assert report.survey.table.class_names == (comparison.NO_LABEL,)
