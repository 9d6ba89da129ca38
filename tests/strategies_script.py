"""Checks of every strategy for any backend; run as a script they print a line of JSON each.

KERAS_BACKEND=jax python tests/strategies_script.py
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import sys
import tempfile
import traceback
from dataclasses import dataclass, field

import keras
import numpy as np
from conftest import fill_batch_norm_statistics
from rich.console import Console

from kerastune_ft import callbacks, data, models, optimizers, strategies, training
from kerastune_ft import recipe as recipes
from kerastune_ft.data import tables
from kerastune_ft.errors import NotFiniteError
from kerastune_ft.runs import Run

STEPS, BATCH = 3, 8
STATISTICS = ("moving_mean", "moving_variance")

# By name: a strategy with its defaults where nothing else is said. Three epochs are enough for a
# head and two deeper stages.
RUNS = {
    **{name: {"name": name, "epochs": 3} for name in strategies.STRATEGIES},
    "gradual": {"name": "gradual", "epochs": 4, "rate_decay": 0.9},
    "surgical affine": {"name": "surgical", "epochs": 2, "batch_norm": "affine"},
    "surgical train": {"name": "surgical", "epochs": 2, "batch_norm": "train"},
    "surgical names": {
        "name": "surgical",
        "epochs": 2,
        "blocks": ["conv_pw_11_relu", "conv_pw_13_.*"],
    },
}


@dataclass
class Ran:
    """One stage of a run, as it was before and after training.

    Args:
        name: As the history says.
        stage: The recipe's.
        weights: Paths of `models.named_weights` and their values, before and after.
        slots: Of the stage's optimizer, by name, after `begin` and after training.
        ages: Of variables, by their Keras path, when the stage began.
        trained: Keras paths of the variables that the optimizer holds.
        said: What the plan announced: blocks and how many numbers.
        began_from: Weights when `begin` was called.
    """

    name: str
    stage: recipes.Stage
    weights: list[dict[str, np.ndarray]] = field(default_factory=list)
    slots: list[dict[str, np.ndarray]] = field(default_factory=list)
    ages: dict[str, int] = field(default_factory=dict)
    trained: list[str] = field(default_factory=list)
    said: tuple[tuple[str, ...], int] = ((), 0)
    began_from: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Record:
    """A whole run: its stages, its history, its model and, if asked for, every step's weights."""

    stages: list[Ran]
    history: training.History
    model: keras.Model
    steps: list[dict[str, np.ndarray]] = field(default_factory=list)
    validated: list[dict[str, np.ndarray]] = field(default_factory=list)


def values(model):
    return {path: array(weight) for _, path, weight in models.named_weights(model)}


def array(variable):
    return np.array(keras.ops.convert_to_numpy(variable))


@functools.cache
def _built():
    keras.utils.set_random_seed(0)
    model = models.image_classifier(
        "mobilenet", 3, weights="none", image_size=32, alpha=0.25, dropout=0.0, seed=0
    )
    fill_batch_norm_statistics(model)
    return model, model.get_weights()


def small_model():
    """The narrowest MobileNet, as new; one object, so that nothing of a run may stay behind."""
    model, weights = _built()
    model.set_weights(weights)
    return model


def pictures(count, seed=0):
    """Pictures of three colours in noise, that a network tells apart by colour."""
    rng = np.random.default_rng(seed)
    colours = np.array([[30, 40, 200], [30, 190, 40], [200, 30, 40]], "float64")
    numbers = (np.arange(count) % 3).astype("int32")
    x = rng.normal(colours[numbers][:, None, None], 60.0, (count, 32, 32, 3))
    return np.clip(x, 0, 255).astype("uint8"), numbers


def split(name, count, seed=0):
    x, y = pictures(count, seed)
    names = tuple(f"{name}/{i}" for i in range(count))
    return data.Split(name, names, y, tables.Arrays(x))


def splits(examples=STEPS * BATCH, validation=0):
    return data.Splits(
        kind="class",
        train=split("train", examples),
        validation=split("validation", validation, seed=1),
        test=split("test", 0),
        class_names=("blue", "green", "red"),
        targets=(),
        findings=(),
        fingerprint="",
        source="image_folder",
        path="nowhere",
        found=examples + validation,
    )


def make_recipe(batch_size=BATCH, augment="none", **train):
    return recipes.from_mapping(
        {
            "backbone": {"name": "mobilenet", "weights": "none", "image_size": 32, "alpha": 0.25},
            "data": {
                "source": "image_folder",
                "path": "nowhere",
                "batch_size": batch_size,
                "augment": augment,
            },
            "train": {"tensorboard": False, "early_stopping": None, **train},
        }
    )


@contextlib.contextmanager
def patched(owner, name, made):
    whole = getattr(owner, name)
    setattr(owner, name, made(whole))
    try:
        yield
    finally:
        setattr(owner, name, whole)


@contextlib.contextmanager
def recorded(ran, steps, validated):
    """Notes what the stages of a training are before and after, the steps too if asked for."""

    def slots(stage):
        return {name: array(v) for name, v in optimizers.slots(stage.optimizer).items()}

    def begin(whole):
        def call(stage, state):
            before = values(stage.model)
            whole(stage, state)
            plan = stage.plan
            made = Ran(stage.name, plan.stage, began_from=before)
            made.said = (plan.trainable_blocks, plan.trainable_parameters)
            made.weights.append(values(stage.model))
            made.slots.append(slots(stage))
            made.ages = optimizers.ages(stage.optimizer)
            made.trained = [x.path for x in stage.optimizer._trainable_variables]
            ran.append(made)

        return call

    def train(whole):
        def call(stage):
            whole(stage)
            ran[-1].weights.append(values(stage.model))
            ran[-1].slots.append(slots(stage))

        return call

    def end_batch(whole):
        def call(stage):
            if steps is not None:
                callbacks.sync(stage.model)
                steps.append(values(stage.model))
            whole(stage)

        return call

    def begin_validation(whole):
        def call(stage):
            whole(stage)
            if validated is not None:
                validated.append(values(stage.model))

        return call

    stage = training._StageRun
    with (
        patched(stage, "begin", begin),
        patched(stage, "train", train),
        patched(stage, "end_batch", end_batch),
        patched(stage, "begin_validation", begin_validation),
    ):
        yield


def fit(recipe, parts=None, every_step=False, model=None):
    """Trains the small model as a recipe says and returns the record."""
    model = model or small_model()
    record = Record([], training.History(), model)
    steps = record.steps if every_step else None
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(folder, "one")
        with recorded(record.stages, steps, record.validated if every_step else None):
            record.history = training.train(
                model, recipe, parts or splits(), run, Console(quiet=True)
            )
    return record


@functools.cache
def record_of(name):
    """Returns the record of one of `RUNS`; every check looks at the same run."""
    keras.utils.set_random_seed(0)
    return fit(make_recipe(strategy=RUNS[name]))


def planned(model, stage):
    """Returns the paths that a stage is to move, told from the stage and the names alone."""
    names = [block.name for block in models.blocks(model)][:-1]
    chosen = stage.trainable_blocks
    if isinstance(chosen, int):
        own = set(names if chosen == -1 else names[len(names) - chosen :])
    else:
        patterns = [chosen] if isinstance(chosen, str) else chosen
        own = {name for name in names if any(re.fullmatch(p, name) for p in patterns)}
    found = set()
    for block, path, _ in models.named_weights(model):
        kind = path.rpartition("/")[2]
        if kind in STATISTICS:
            moves = stage.batch_norm == "train"
        elif stage.parameters == "biases":
            moves = kind in ("bias", "beta")
        else:
            moves = kind not in ("gamma", "beta") or stage.batch_norm != "frozen"
        if block == "head" or (block in own and moves):
            found.add(path)
    return found


def moved(before, after):
    return {path for path in before if not np.array_equal(before[path], after[path])}


# checks of every run: what a strategy promises


def each_stage_moves_what_is_planned_and_nothing_else(record):
    for ran in record.stages:
        found, expected = moved(*ran.weights), planned(record.model, ran.stage)
        assert not found - expected, (ran.name, "frozen, but moved", sorted(found - expected))
        assert not expected - found, (ran.name, "to train, but still", sorted(expected - found))


def nothing_moves_between_the_stages(record):
    for former, ran in zip(record.stages, record.stages[1:], strict=False):
        for other in (ran.began_from, ran.weights[0]):
            assert not moved(former.weights[1], other), ran.name


def frozen_weights_and_statistics_are_bit_identical(record):
    first = record.stages[0].weights[0]
    last = record.stages[-1].weights[1]
    ever = set().union(*(planned(record.model, ran.stage) for ran in record.stages))
    for path, before in first.items():
        if path not in ever:
            assert before.tobytes() == last[path].tobytes(), path
        if path.rpartition("/")[2] in STATISTICS:
            assert (path in ever) == any(ran.stage.batch_norm == "train" for ran in record.stages)


def the_plan_counts_the_numbers_that_move(record):
    for ran in record.stages:
        blocks, count = ran.said
        paths = planned(record.model, ran.stage)
        sizes = [
            array(weight).size
            for _, path, weight in models.named_weights(record.model)
            if path in paths and path.rpartition("/")[2] not in STATISTICS
        ]
        assert count == sum(sizes), (ran.name, count, sum(sizes))
        holders = dict.fromkeys(
            block for block, path, _ in models.named_weights(record.model) if path in paths
        )
        assert blocks == tuple(holders), (ran.name, blocks, holders)


def every_audit_passes_and_none_is_missing(record):
    audits = record.history.audits
    assert list(audits) == [ran.name for ran in record.stages]
    for ran in record.stages:
        report, paths = audits[ran.name], planned(record.model, ran.stage)
        free = {path for path in paths if path.rpartition("/")[2] in STATISTICS}
        assert report.passed
        assert report.trained == len(paths - free)
        assert report.statistics == len(free)
        assert report.frozen == len(ran.weights[0]) - len(paths)


def slots_of_variables_that_stay_trainable_survive_the_border(record):
    for former, ran in zip(record.stages, record.stages[1:], strict=False):
        after, before = former.slots[1], ran.slots[0]
        kinds = {name.partition("/")[0] for name in before if "/" in name}
        assert {"momentums", "velocities"} <= kinds, kinds
        survived = 0
        for name, value in before.items():
            kind, _, path = name.partition("/")
            if kind not in ("momentums", "velocities"):
                continue
            if path in former.trained:
                assert np.array_equal(value, after[name]), (ran.name, name)
                survived += bool(value.any())
            else:
                assert not value.any(), (ran.name, name, "is new and must start fresh")
        assert survived >= 4, (ran.name, survived)  # kernel and bias of the head at least


def ages_count_the_updates_that_a_variable_has_seen(record):
    seen = {}
    for ran in record.stages:
        assert ran.slots[0]["iterations"] == 0
        assert ran.slots[1]["iterations"] == ran.stage.epochs * STEPS
        for path in ran.trained:
            assert ran.ages.get(path, 0) == seen.get(path, 0), (ran.name, path)
        assert set(ran.ages) <= set(ran.trained)
        # What is left out for a stage loses its slots, and begins anew.
        seen = {path: seen.get(path, 0) + ran.stage.epochs * STEPS for path in ran.trained}


def the_history_is_continuous_and_in_the_order_of_the_stages(record):
    rows = record.history.rows
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    said = [ran.name for ran in record.stages for _ in range(ran.stage.epochs)]
    assert [row["stage"] for row in rows] == said
    assert len({ran.name for ran in record.stages}) == len(record.stages)
    assert not record.history.stopped_early
    for row in rows:
        assert np.isfinite(row["loss"]), row
        assert row["examples_per_second"] > 0, row


def each_stage_begins_at_its_own_rate(record):
    rows = record.history.rows
    for ran in record.stages:
        own = [row["learning_rate"] for row in rows if row["stage"] == ran.name]
        assert max(own) <= ran.stage.learning_rate * (1 + 1e-6), ran.name
        if ran.stage.schedule == "constant":
            np.testing.assert_allclose(own, ran.stage.learning_rate, rtol=1e-6)
        else:
            assert own == sorted(own, reverse=True), (ran.name, own)


OF_RUNS = {
    check.__name__: check
    for check in (
        each_stage_moves_what_is_planned_and_nothing_else,
        nothing_moves_between_the_stages,
        frozen_weights_and_statistics_are_bit_identical,
        the_plan_counts_the_numbers_that_move,
        every_audit_passes_and_none_is_missing,
        slots_of_variables_that_stay_trainable_survive_the_border,
        ages_count_the_updates_that_a_variable_has_seen,
        the_history_is_continuous_and_in_the_order_of_the_stages,
        each_stage_begins_at_its_own_rate,
    )
}
