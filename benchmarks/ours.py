"""The ways that are ours: `kft fit` with a clock running, and a script of one's own on our parts.

    fit({"recipe": "mobilenet", "data": ..., "overrides": [...], "seed": 0, ...})

`kft fit` runs as from the command line, in a cache of its own that holds nothing but pre-trained
weights. Its training begins where pictures are decoded to be kept (`data.cache`), those of the test
split included, and ends with `training.train`: filling of both caches, building and tracing of
every stage, checkpoints, the audits and the saving of `model.keras` are in it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import clock as clocks
from benchmarks.processes import ROOT

BATCH = 32
"""Of every way and every recipe here."""


def fit(settings: dict[str, Any]) -> dict[str, Any]:
    """Runs `kft fit` and reads the run that it leaves.

    Args:
        settings: `recipe`, a shipped one; `data`, the path of the data; `overrides`; `seed`;
            `warm_up`, steps of an epoch that do not count; `stage_epochs`, the epochs of every
            stage, where their seconds are wanted.

    Returns:
        `training` in seconds; `accuracy` on the test split; `first_step`, seconds since the
        process was started; `step`, seconds of a step without the first epoch, if there are more;
        `stages`, seconds of each.
    """
    clock = clocks.watch()
    began, ended, scores = _kft_fit(settings)
    stages = settings.get("stage_epochs")
    return {
        "training": ended - began,
        "accuracy": scores["test"]["accuracy"],
        **_steps(clock, settings),
        **({"stages": clock.spans(began, stages)} if stages else {}),
    }


def throughput(settings: dict[str, Any]) -> dict[str, Any]:
    """Runs `kft fit`, first of the head, then of everything.

    Args:
        settings: As of `fit`; the first stage has `head_epochs`; `unmeasured` are the epochs at
            the beginning of the other stage that do not count.

    Returns:
        `head` and `full`: milliseconds of training per example, without the first epoch of the
        head, which fills the cache.
    """
    clock = clocks.watch()
    _kft_fit(settings)
    first = settings["head_epochs"]
    head = clock.step_seconds(range(1, first))
    full = clock.step_seconds(range(first + settings["unmeasured"], len(clock.epochs)))
    return {"head": clocks.per_example(head, BATCH), "full": clocks.per_example(full, BATCH)}


def script(settings: dict[str, Any]) -> dict[str, Any]:
    """Does what one stage of `kft fit` does, written by hand with its data and its network.

    Args:
        settings: As of `fit`; the last stage of the recipe is trained.
    """
    clock = clocks.watch()
    import keras

    from kerastune_ft import data, models
    from kerastune_ft import recipe as recipes
    from kerastune_ft.data import feeding

    words = [f"data.path={settings['data']}", f"train.seed={settings['seed']}"]
    recipe = recipes.load(_recipe(settings), [*settings["overrides"], *words])
    stage = recipe.train.stages[-1]
    keras.utils.set_random_seed(settings["seed"])
    splits = data.load(recipe.data)
    classes = len(splits.class_names)
    model = models.image_classifier(
        recipe.backbone.name,
        classes,
        weights=recipe.backbone.tag,
        image_size=recipe.backbone.side,
        trainable_blocks=stage.trainable_blocks,
    )
    epochs = range(stage.epochs)
    train = feeding.dataset(splits.train, recipe, classes, training=True, epochs=epochs)
    validation = feeding.dataset(splits.validation, recipe, classes)
    test = feeding.dataset(splits.test, recipe, classes)
    began = time.monotonic()
    model.compile(
        keras.optimizers.AdamW(stage.learning_rate, weight_decay=1e-4),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    steps = feeding.steps(splits.train, recipe)
    model.fit(
        train, epochs=stage.epochs, steps_per_epoch=steps, validation_data=validation, verbose=2
    )
    ended = time.monotonic()
    _, accuracy = model.evaluate(test, verbose=2)
    return {"training": ended - began, "accuracy": accuracy, **_steps(clock, settings)}


def _steps(clock: clocks.Clock, settings: dict[str, Any]) -> dict[str, Any]:
    epochs = range(1, len(clock.epochs)) if len(clock.epochs) > 1 else range(1)
    return {
        "first_step": clock.first_step - settings["spawned"],
        "step": clock.step_seconds(epochs, after=settings.get("warm_up", 0)),
    }


def _recipe(settings: dict[str, Any]) -> Path:
    return ROOT / "recipes" / f"{settings['recipe']}.yaml"


def _kft_fit(settings: dict[str, Any]) -> tuple[float, float, dict[str, Any]]:
    """Returns when training began and ended, and the scores."""
    from kerastune_ft import cli, training
    from kerastune_ft.data import picture_cache

    began, ended = [], []
    kept, train = picture_cache.kept, training.train

    def keep(*positional: Any, **named: Any) -> Any:
        began.append(time.monotonic())
        return kept(*positional, **named)

    def timed(*positional: Any, **named: Any) -> Any:
        history = train(*positional, **named)
        ended.append(time.monotonic())
        return history

    picture_cache.kept, training.train = keep, timed
    words = [f"data.path={settings['data']}", f"train.seed={settings['seed']}"]
    with tempfile.TemporaryDirectory(dir=os.environ["KFT_HOME"]) as folder:
        command = ["fit", str(_recipe(settings)), "--runs-dir", folder, "--name", "run"]
        sys.argv[1:] = [*command, *settings["overrides"], *words]
        try:
            cli.main(sys.argv[1:])
        except SystemExit as end:
            if end.code:
                raise
        text = (Path(folder) / "run" / "scores.json").read_text(encoding="utf-8")
    (first,), (last,) = began, ended
    return first, last, json.loads(text)
