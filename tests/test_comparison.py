"""Data seen after training against the run."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from conftest import fill_batch_norm_statistics
from PIL import Image
from rich.console import Console

from kerastune_ft import comparison, data, models, workflow
from kerastune_ft import recipe as recipes
from kerastune_ft.errors import DataError
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
    recipe = recipes.from_mapping(
        {
            "backbone": {
                "name": "mobilenet", "weights": str(folder / "narrow.keras"), "image_size": 32,
                "alpha": 0.25,
            },
            "data": {
                "source": "image_folder", "path": str(write(folder / "data")), "augment": "none",
                "split": {"validation": 0.35, "test": 0.35},
            },
            "train": {
                "stages": [{"trainable_blocks": 0, "epochs": 6, "learning_rate": 3e-2}],
                "early_stopping": None, "tensorboard": False,
            },
        }
    )  # fmt: skip
    return workflow.fit(recipe, runs_dir=folder / "runs")


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
                "split": {"validation": 0.2, "test": 0.2},
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
    (tmp_path / "new.txt").write_text("\n".join(text for text, _ in other) + "\n")
    report, found = compared(run, tmp_path / "new.txt")
    assert found["data_drift"].severity == "warn", found["data_drift"].message
    assert "accuracy" not in found and "share of capitals" in found["figure_drift"].names
    assert len(report.survey.parts) == 150
    assert data.Survey is type(report.survey)
