"""A killed run goes on as if nothing had happened: same weights, same history, bit for bit."""

from __future__ import annotations

import csv
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import write_photos
from rich.console import Console

from kerastune_ft import checkpoints, files, interrupts, models, training, workflow
from kerastune_ft import recipe as recipes
from kerastune_ft.checkpoints import Checkpoints, Position, State
from kerastune_ft.errors import RunError, TrainingError
from kerastune_ft.runs import Run

KILLS = int(os.environ.get("KFT_KILLS", "5"))

# Everything that has a state of its own, in three stages.
RECIPE = {
    "task": {"dropout": 0.3, "label_smoothing": 0.1},
    "train": {
        "optimizer": {"name": "adamw", "weight_decay": 0.01, "global_clipnorm": 1.0},
        "stages": [
            {"trainable_blocks": 0, "epochs": 3, "learning_rate": 1e-2, "schedule": "plateau"},
            {
                "trainable_blocks": 2,
                "epochs": 3,
                "learning_rate": 1e-3,
                "schedule": "cosine",
                "warmup_epochs": 0.5,
                "rate_decay": 0.7,
            },
            {"trainable_blocks": 4, "epochs": 3, "learning_rate": 5e-4, "batch_norm": "train"},
        ],
        "early_stopping": {"monitor": "val_loss", "patience": 2},
        "averaging": {"ema": 0.9, "soup": 3, "wise_ft": "auto"},
        "l2_sp": 0.1,
        "accumulate_steps": 2,
        "checkpoint": {"every_steps": 2, "every_seconds": None, "keep": 2},
        "tensorboard": False,
    },
}


@pytest.fixture(scope="module")
def setting(tmp_path_factory, weights_file):
    """A folder with photos and a recipe, and the run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("resume")
    photos = write_photos(folder / "photos")
    recipe = {
        **RECIPE,
        "backbone": {
            "name": "mobilenet",
            "weights": str(weights_file),
            "image_size": 32,
            "alpha": 0.25,
        },
        "data": {
            "source": "image_folder",
            "path": str(photos),
            "batch_size": 4,
            "augment": {"horizontal_flip": True, "rotation": 0.05, "mixup": 0.2},
            "split": {"validation": 0.25, "test": 0.25},
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(recipes.dump(recipes.from_mapping(recipe)))
    whole = start(folder, "whole")
    assert whole.wait(300) == 0, whole.communicate()
    return folder


def start(folder, name, *more):
    command = [sys.executable, "-m", "kerastune_ft", "fit", "recipe.yaml", "--name", name, *more]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def history(run):
    with (run / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "examples_per_second")}
        for row in rows
    ]


def weights(run):
    return keras.models.load_model(run / "model.keras").get_weights()


def assert_same(one, other):
    assert history(one) == history(other)
    pairs = list(zip(weights(one), weights(other), strict=True))
    assert all(np.array_equal(a, b) for a, b in pairs)
    scores = [json.loads((run / "scores.json").read_text()) for run in (one, other)]
    for found in scores:
        found["training"].pop("seconds")
    assert scores[0] == scores[1]
    assert json.loads((one / "audit.json").read_text()) == json.loads(
        (other / "audit.json").read_text()
    )


def kill_often(folder, name, kills, rng):
    """Kills a run at random instants, as often as asked, and lets it end; returns its folder."""
    run = folder / "runs" / name
    done = 0
    while True:
        process = start(folder, name, "--resume")
        if done < kills:
            deadline = time.monotonic() + 120
            while not (run / "recipe.yaml").exists() and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            before = set((run / "checkpoints").glob("step-*"))
            # Mostly when training is under way again, sometimes before that.
            while rng.random() < 0.995 and process.poll() is None:
                if set((run / "checkpoints").glob("step-*")) - before:
                    break
                time.sleep(0.05)
            time.sleep(rng.uniform(0, 1.5))
            if process.poll() is None:
                process.kill()
                done += 1
        output, _ = process.communicate(timeout=300)
        if process.returncode == 0:
            return run, done
        assert process.returncode == -signal.SIGKILL, output


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_like_one_that_was_not(setting):
    run, kills = kill_often(setting, "killed", KILLS, random.Random(0))
    assert kills >= min(KILLS, 3)
    assert_same(setting / "runs" / "whole", run)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_exits_and_the_run_goes_on(setting, number, code):
    name = f"signal-{code}"
    run = setting / "runs" / name
    process = start(setting, name)
    while not list((run / "checkpoints").glob("step-*[68].npz")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    begun = time.monotonic()
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert time.monotonic() - begun < 20
    assert "kft resume" in output
    assert Run(run).state == "interrupted"
    resumed = subprocess.run(
        [sys.executable, "-m", "kerastune_ft", "resume", str(run)],
        cwd=setting, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming" in resumed.stdout
    assert_same(setting / "runs" / "whole", run)


def small(tmp_path, weights_file, **train):
    return recipes.from_mapping(
        {
            "backbone": {
                "name": "mobilenet",
                "weights": str(weights_file),
                "image_size": 32,
                "alpha": 0.25,
            },
            "data": {
                "source": "image_folder",
                "path": str(write_photos(tmp_path / "photos")),
                "batch_size": 4,
                "split": {"validation": 0.25, "test": 0.25},
            },
            "train": {
                "stages": [
                    {"trainable_blocks": 0, "epochs": 2, "learning_rate": 1e-2},
                    {"trainable_blocks": 1, "epochs": 2, "learning_rate": 1e-3},
                ],
                "tensorboard": False,
                "checkpoint": {"every_steps": 2, "every_seconds": None, "keep": 3},
                **train,
            },
        }
    )


class StopError(BaseException):
    """Ends a process at once, as far as a test within it can."""


@pytest.fixture
def broken_off(tmp_path, weights_file, monkeypatch):
    """Breaks a run off when a checkpoint has been written so many times; returns its folder."""

    def broken(times, recipe=None):
        recipe = recipe or small(tmp_path, weights_file)
        written = 0
        whole = Checkpoints.save

        def save(self, state):
            nonlocal written
            path = whole(self, state)
            written += 1
            if written == times:
                raise StopError
            return path

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "save", save)
            with pytest.raises(StopError):
                workflow.fit(recipe, runs_dir=tmp_path / "runs", name="one")
        return Run(tmp_path / "runs" / "one"), recipe

    return broken


@pytest.mark.slow
def test_every_checkpoint_of_a_run_leads_to_the_same_end(broken_off, tmp_path, weights_file):
    """Also those in the middle of an epoch, at the end of a stage and before the first step."""
    run, recipe = broken_off(1)
    whole = workflow.fit(recipe, runs_dir=tmp_path / "runs", name="whole")
    expected, rows = weights(whole.path), history(whole.path)
    for times in (1, 3, 7):
        shutil.rmtree(run.path)
        run, _ = broken_off(times, recipe)
        assert run.state != "finished"
        resumed = workflow.resume(run.path)
        assert resumed.state == "finished"
        assert history(run.path) == rows, times
        found = weights(run.path)
        assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True)), times
    before = (run.path / "model.keras").stat().st_mtime_ns
    workflow.resume(run.path)  # which is finished
    assert (run.path / "model.keras").stat().st_mtime_ns == before


def uneven_texts(path):
    """Writes texts of two classes, one of them rare."""
    generator = np.random.default_rng(0)
    rows = [
        {"text": " ".join(generator.choice(list("abcdefgh"), 3 + i % 9)), "label": "xy"[i % 5 == 0]}
        for i in range(60)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["image", "text"])
def test_drawn_and_changed_examples_are_drawn_and_changed_alike_after_a_kill(
    broken_off, tmp_path, weights_file, modality
):
    recipe = small(tmp_path, weights_file)
    data = {"sampling": "balanced", "augment": {"horizontal_flip": True, "mixup": 0.2}}
    mapping = recipe.model_dump() | {"data": recipe.data.model_dump() | data}
    if modality == "text":
        mapping["task"] = {"name": "text_classification"}
        mapping["backbone"] = {"name": "bert", "weights": "none", "sequence_length": 24}
        mapping["data"] = {
            "source": "jsonl",
            "path": str(uneven_texts(tmp_path / "a.jsonl")),
            "batch_size": 8,
            "sampling": {"y": 3.0},
            "text_augment": "auto",
        }
    recipe = recipes.from_mapping(mapping)
    whole = workflow.fit(recipe, runs_dir=tmp_path / "runs", name="whole")
    assert "augment: auto" not in whole.recipe_path.read_text()
    run, _ = broken_off(5 if modality == "text" else 4, recipe)
    assert Checkpoints(run.checkpoints_path).newest().position.step > 0
    workflow.resume(run.path)
    assert_same(whole.path, run.path)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["end_batch", "end_validation"])
def test_a_signal_at_the_last_batch_of_an_epoch_or_in_validation_loses_nothing(
    tmp_path, weights_file, monkeypatch, where
):
    """Both leave an epoch whose batches are done, but whose validation is not."""
    recipe = small(tmp_path, weights_file, averaging={"ema": 0.9})
    whole = workflow.fit(recipe, runs_dir=tmp_path / "runs", name="whole")
    method = getattr(training._StageRun, where)

    def signalled(self):
        if where == "end_batch" and self.updates + 1 == 2 * self.plan.steps:
            interrupts._caught = signal.SIGTERM
        if where == "end_validation" and self.epoch == 1:
            interrupts._caught = signal.SIGTERM
        method(self)
        if where == "end_validation":
            interrupts.check(lambda: self.save(at_validation=True))

    with monkeypatch.context() as patch:
        patch.setattr(training._StageRun, where, signalled)
        with pytest.raises(SystemExit) as stopped:
            workflow.fit(recipe, runs_dir=tmp_path / "runs", name="one")
    assert stopped.value.code == 143
    run = Run(tmp_path / "runs" / "one")
    position = Checkpoints(run.checkpoints_path).newest().position
    assert (position.epoch, position.step) == (1, 5)
    workflow.resume(run.path)
    assert_same(whole.path, run.path)


@pytest.mark.network
def test_a_resumed_network_is_built_as_its_weights_want_it(tmp_path, broken_off, weights_file):
    """torchvision's padding, epsilon and pixel rule differ, and no shape shows it."""
    recipe = small(tmp_path, weights_file)
    choice = {"name": "mobilenet_v2", "weights": "torchvision", "image_size": 32, "alpha": None}
    backbone = recipe.backbone.model_copy(update=choice)
    recipe = recipe.model_copy(update={"backbone": backbone})
    whole = workflow.fit(recipe, runs_dir=tmp_path / "runs", name="whole")
    run, _ = broken_off(4, recipe)
    workflow.resume(run.path)
    assert_same(whole.path, run.path)


def test_random_weights_can_stand_in_the_network_of_any_tag():
    model = models.image_classifier("mobilenet_v2", 3, weights="none:torchvision", image_size=32)
    assert models.network_tag(model) == "torchvision"
    paddings = [x.padding for x in models.layers_of(model) if isinstance(x, keras.layers.Conv2D)]
    plain = models.image_classifier("mobilenet_v2", 3, weights="none", image_size=32)
    assert models.network_tag(plain) == "none"
    scales = [model.get_layer("pixels").get_config()["scale"] for model in (model, plain)]
    assert scales[0] != scales[1]
    assert "valid" in paddings


@pytest.mark.parametrize("name", ["", ".", "../photos", "a/b"])
def test_no_folder_but_a_run_can_be_meant(tmp_path, weights_file, name):
    recipe = small(tmp_path, weights_file)
    (tmp_path / "runs").mkdir()
    with pytest.raises(RunError, match="run name"):
        workflow.fit(recipe, runs_dir=tmp_path / "runs", name=name, resume=True)
    assert len(list((tmp_path / "photos").rglob("*.jpg"))) == 36


def test_a_folder_that_is_no_run_is_left_alone(tmp_path, weights_file):
    recipe = small(tmp_path, weights_file)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match=r"is not a run, and holds thesis\.tex; choose another"):
        workflow.fit(recipe, runs_dir=tmp_path / "runs", name="mine", resume=True)
    assert (tmp_path / "runs" / "mine" / "thesis.tex").exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_falls_back_to_the_one_before_with_a_warning(broken_off):
    run, _ = broken_off(4)
    newest = sorted(run.checkpoints_path.glob("step-*"))[-1]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    newest.write_bytes(data)
    console = Console(width=1000, record=True, quiet=False, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    workflow.resume(run.path, console)
    text = console.export_text()
    assert f"checkpoint {newest.name} is damaged" in text
    assert "trying the one before it" in text
    assert run.state == "finished"


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_all_damaged_says_so(broken_off):
    run, _ = broken_off(3)
    for path in run.checkpoints_path.glob("step-*"):
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(TrainingError, match="every checkpoint is damaged; start the run again"):
        workflow.resume(run.path)


@pytest.mark.slow
def test_other_data_are_refused(broken_off):
    run, recipe = broken_off(2)
    moved = next((Path(recipe.data.path) / "red").iterdir())
    moved.rename(Path(recipe.data.path) / "blue" / "new.jpg")
    with pytest.raises(RunError, match="the data are no longer those it began with"):
        workflow.resume(run.path)


@pytest.mark.slow
def test_another_recipe_under_the_name_of_a_run_is_refused(broken_off, tmp_path):
    _, recipe = broken_off(2)
    other = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": 7})})
    with pytest.raises(RunError, match=r"has another recipe \(train\.seed differ\)"):
        workflow.fit(other, runs_dir=tmp_path / "runs", name="one", resume=True)


@pytest.mark.slow
def test_two_processes_cannot_work_on_one_run(broken_off):
    run, _ = broken_off(2)
    holder = subprocess.Popen(
        [
            sys.executable, "-c",
            "import sys, time; from filelock import FileLock\n"
            f"lock = FileLock({str(run.path / '.lock')!r}); lock.acquire()\n"
            "print('held', flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="is being worked on by another process"):
            workflow.resume(run.path)
    finally:
        holder.kill()
    workflow.resume(run.path)  # a killed process holds nothing


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(
    broken_off, tmp_path, weights_file, monkeypatch
):
    run, _ = broken_off(2)
    whole = files.replacing

    def full(path):
        if path.name.startswith("step-") and int(path.stem.split("-")[1]) >= 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "replacing", full)
        with pytest.raises(TrainingError, match=r"the disk is full; .*Free \d+ MiB"):
            workflow.resume(run.path)
    assert run.state == "failed"
    assert Checkpoints(run.checkpoints_path).newest().position.updates == 4
    workflow.resume(run.path)
    assert run.state == "finished"


@pytest.mark.slow
def test_a_finished_run_keeps_the_best_epoch_and_no_checkpoint(broken_off, tmp_path):
    _, recipe = broken_off(1)
    run = workflow.fit(recipe, runs_dir=tmp_path / "runs", name="two")
    best = run.read_json("scores")["training"]["best_epoch"]
    assert [p.name for p in run.checkpoints_path.iterdir()] == [f"epoch-{best:05d}.npz"]


# the files themselves

ARRAYS = {
    "a": np.arange(12, dtype="float32").reshape(3, 4),
    "scalar": np.array(7, "int64"),
    "empty": np.zeros((0, 3), "float16"),
}


def test_arrays_and_notes_come_back_as_they_were(tmp_path):
    import ml_dtypes

    arrays = {**ARRAYS, "b": np.arange(5).astype(ml_dtypes.bfloat16)}
    checkpoints.write(tmp_path / "x.npz", arrays, {"text": "ä", "list": [1, None, 0.1]})
    found, notes = checkpoints.read(tmp_path / "x.npz")
    assert notes == {"text": "ä", "list": [1, None, 0.1]}
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


def test_no_changed_byte_goes_unnoticed_where_it_changes_anything(tmp_path):
    path = tmp_path / "x.npz"
    checkpoints.write(path, ARRAYS, {"n": 1})
    whole = path.read_bytes()
    damaged = 0
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 0xFF if place % 2 else 8
        path.write_bytes(data)
        try:
            found, notes = checkpoints.read(path)
        except checkpoints.DamagedError:
            damaged += 1
            continue
        # Dates and other things that nothing reads may be changed.
        assert notes == {"n": 1}
        assert all(np.array_equal(found[name], array) for name, array in ARRAYS.items())
    assert damaged > len(whole) / 2
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(checkpoints.DamagedError):
            checkpoints.read(path)


def test_pickled_objects_are_refused(tmp_path):
    import zipfile

    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.json", '{"format": 2, "dtypes": {"a": "object"}, "notes": {}}')
        with archive.open("0.npy", "w") as member:
            np.lib.format.write_array(member, np.array([print], object), allow_pickle=True)
    with pytest.raises(checkpoints.DamagedError, match="allow_pickle"):
        checkpoints.read(path)


def test_the_newest_few_and_what_they_name_are_kept(tmp_path):
    store = Checkpoints(tmp_path / "c", keep=2)
    for number in range(5):
        store.keep_epoch(number, ARRAYS)
        store.save(State(Position(updates=number), ARRAYS, {"epochs": [number]}))
    store.save(State(Position(updates=4, stage_done=True), ARRAYS, {"epochs": [3]}))
    assert sorted(p.name for p in store.folder.iterdir()) == [
        "epoch-00003.npz", "epoch-00004.npz", "step-000000004-end.npz", "step-000000004.npz",
    ]  # fmt: skip
    assert store.newest().position.stage_done
    (store.folder / "epoch-00003.npz").unlink()
    said = []
    assert not store.newest(said.append).position.stage_done
    assert "weights of epoch 3 are gone" in said[0]
