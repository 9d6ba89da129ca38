"""Several devices and several hosts end a whole run, stages included, where one ends."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from conftest import write_photos

from kerastune_ft import recipe as recipes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory, weights_file):
    """Photos and a recipe: two stages, 18 examples in batches of 4, no random numbers."""
    path = tmp_path_factory.mktemp("shared")
    recipe = {
        "task": {"dropout": 0.0},
        "backbone": {
            "name": "mobilenet",
            "weights": str(weights_file),
            "image_size": 32,
            "alpha": 0.25,
        },
        "data": {
            "source": "image_folder",
            "path": str(write_photos(path / "photos")),
            "batch_size": 4,
            "augment": "none",
            "split": {"validation": 0.25, "test": 0.25},
        },
        "train": {
            "stages": [
                {"trainable_blocks": 0, "epochs": 2, "learning_rate": 1e-2},
                {"trainable_blocks": 2, "epochs": 3, "learning_rate": 1e-3, "rate_decay": 0.5},
            ],
            "checkpoint": {"every_steps": 2, "every_seconds": None},
            "cache": "off",  # several devices have none, and its half precision would show
            "tensorboard": False,
        },
    }
    (path / "recipe.yaml").write_text(recipes.dump(recipes.from_mapping(recipe)))
    return path


def start(folder, name, *more, backend="tensorflow", **environment):
    command = [sys.executable, "-m", "kerastune_ft", "fit", "recipe.yaml", "--name", name, *more]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "KERAS_BACKEND": backend, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return output


def start_hosts(folder, name, *more):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        start(
            folder, name, "train.hosts=2", *more, backend="jax",
            KFT_HOST_RANK=str(rank), KFT_COORDINATOR=f"127.0.0.1:{port}",
        )
        for rank in range(2)
    ]  # fmt: skip


def assert_alike(folder, one, other):
    first, second = (
        keras.models.load_model(folder / "runs" / name / "model.keras").get_weights()
        for name in (one, other)
    )
    assert max(np.abs(a - b).max() for a, b in zip(first, second, strict=True)) < 1e-5
    histories = []
    for name in (one, other):
        with (folder / "runs" / name / "history.csv").open() as file:
            histories.append(list(csv.DictReader(file)))
    assert len(histories[0]) == len(histories[1]) == 5
    for a, b in zip(*histories, strict=True):
        for column in ("epoch", "loss", "val_loss", "val_accuracy", "learning_rate"):
            assert float(a[column]) == pytest.approx(float(b[column]), abs=1e-4), column


def test_two_replicas_end_where_one_device_ends(folder):
    finish(start(folder, "one"))
    output = finish(start(folder, "two", "train.device=cpu", "train.replicas=2"))
    assert "2 CPU replicas (MirroredStrategy)" in output
    assert "batches of 4, 2 per device" in output
    assert_alike(folder, "one", "two")


def test_two_hosts_end_where_one_ends_and_go_on_when_one_was_lost(folder):
    pytest.importorskip("jax")
    finish(start(folder, "jax-one", backend="jax"))
    first, second = start_hosts(folder, "jax-two")
    output = finish(first)
    finish(second)
    assert "host 0 of 2" in output
    assert_alike(folder, "jax-one", "jax-two")

    first, second = start_hosts(folder, "jax-lost")
    checkpoints = folder / "runs" / "jax-lost" / "checkpoints"
    while len(list(checkpoints.glob("step-*"))) < 2:
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    second.kill()
    begun = time.monotonic()
    output, _ = first.communicate(timeout=120)
    assert time.monotonic() - begun < 60
    assert first.returncode != 0
    assert "--resume" in output
    second.communicate()
    for process in start_hosts(folder, "jax-lost", "--resume"):
        finish(process)
    assert_alike(folder, "jax-one", "jax-lost")


def test_several_hosts_want_a_name_and_the_jax_backend(folder):
    command = [sys.executable, "-m", "kerastune_ft", "fit", "recipe.yaml", "train.hosts=2"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "several hosts work on one run; give it a --name" in done.stderr
    process = start(folder, "refused", "train.hosts=2")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "TensorFlow's multi-worker strategy does not work under Keras 3" in output
    assert not (folder / "runs" / "refused").exists()
