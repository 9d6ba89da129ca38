"""Checks of every strategy for any backend; run as a script they print a line of JSON each.

KERAS_BACKEND=jax python tests/strategies_script.py
"""

from __future__ import annotations

import contextlib
import functools
import itertools
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

# By name: a strategy. Three epochs are enough for a head and two deeper stages; the backward pass
# through the lowest blocks is what takes long to trace, so not every strategy goes down to them.
RUNS = {
    **{name: {"name": name, "epochs": 3} for name in strategies.STRATEGIES},
    "gradual": {"name": "gradual", "epochs": 4, "blocks": 4, "step": 2, "rate_decay": 0.9},
    "progressive": {"name": "progressive", "epochs": 3, "blocks": 5, "schedule": "constant"},
    "discriminative": {"name": "discriminative", "epochs": 2, "blocks": 4},
    "surgical affine": {
        "name": "surgical",
        "epochs": 2,
        "blocks": ["conv_pw_11_relu", "conv_pw_13_.*"],
        "batch_norm": "affine",
    },
    "surgical train": {"name": "surgical", "epochs": 2, "batch_norm": "train"},
}
SLOW_RUNS = {
    "gradual one by one": {
        "name": "gradual",
        "epochs": 8,
        "blocks": 4,
        "step": 1,
        "batch_norm": "affine",
    },
    "gradual to all": {"name": "gradual", "epochs": 3},
    "progressive to all": {"name": "progressive", "epochs": 6, "batch_norm": "train"},
    "discriminative to all": {"name": "discriminative", "epochs": 2, "batch_norm": "affine"},
    "bitfit of the top": {"name": "bitfit", "epochs": 2, "blocks": 3, "batch_norm": "train"},
    "surgical at the bottom": {
        "name": "surgical",
        "epochs": 3,
        "blocks": ["conv1_relu", "conv_pw_1_relu"],
        "batch_norm": "affine",
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
    """A whole run: its stages, history and model, the error that ended it, weights on the way."""

    stages: list[Ran]
    history: training.History
    model: keras.Model
    steps: list[dict[str, np.ndarray]] = field(default_factory=list)
    validated: list[dict[str, np.ndarray]] = field(default_factory=list)
    error: str = ""


def values(model):
    return {path: array(weight) for _, path, weight in models.named_weights(model)}


def kind(path):
    """Returns what Keras calls a weight, such as `kernel`."""
    return path.rpartition("/")[2]


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
                callbacks.sync(stage.fitted)
                steps.append(values(stage.model))
            whole(stage)

        return call

    def begin_validation(whole):
        def call(stage):
            whole(stage)
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


def fit(recipe, parts=None, every_step=False, run=None):
    """Trains the small model as a recipe says and returns the record, also of a broken-off run."""
    record = Record([], training.History(), small_model())
    steps = record.steps if every_step else None
    with contextlib.ExitStack() as stack:
        if run is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            run = Run.create(folder, "one")
        stack.enter_context(recorded(record.stages, steps, record.validated))
        try:
            record.history = training.train(
                record.model, recipe, parts or splits(), run, Console(quiet=True)
            )
        except NotFiniteError as error:
            record.error = str(error)
    return record


@functools.cache
def record_of(name):
    """Returns the record of one of `RUNS`; every check looks at the same run."""
    keras.utils.set_random_seed(0)
    return fit(make_recipe(strategy={**RUNS, **SLOW_RUNS}[name]))


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
        if kind(path) in STATISTICS:
            moves = stage.batch_norm == "train"
        elif stage.parameters == "biases":
            moves = kind(path) in ("bias", "beta")
        else:
            moves = kind(path) not in ("gamma", "beta") or stage.batch_norm != "frozen"
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
    for former, ran in itertools.pairwise(record.stages):
        for other in (ran.began_from, ran.weights[0]):
            assert not moved(former.weights[1], other), ran.name


def frozen_weights_and_statistics_are_bit_identical(record):
    first = record.stages[0].weights[0]
    last = record.stages[-1].weights[1]
    ever = set().union(*(planned(record.model, ran.stage) for ran in record.stages))
    for path, before in first.items():
        if path not in ever:
            assert before.tobytes() == last[path].tobytes(), path
    if not any(ran.stage.batch_norm == "train" for ran in record.stages):
        assert not any(kind(path) in STATISTICS for path in ever)


def the_plan_counts_the_numbers_that_move(record):
    for ran in record.stages:
        blocks, count = ran.said
        paths = planned(record.model, ran.stage)
        sizes = [
            array(weight).size
            for _, path, weight in models.named_weights(record.model)
            if path in paths and kind(path) not in STATISTICS
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
        free = {path for path in paths if kind(path) in STATISTICS}
        assert report.passed
        assert report.trained == len(paths - free)
        assert report.statistics == len(free)
        assert report.frozen == len(ran.weights[0]) - len(paths)


def slots_of_variables_that_stay_trainable_survive_the_border(record):
    for former, ran in itertools.pairwise(record.stages):
        after, before = former.slots[1], ran.slots[0]
        kinds = {name.partition("/")[0] for name in before if "/" in name}
        assert {"momentums", "velocities"} <= kinds, kinds
        survived = 0
        for name, value in before.items():
            of, _, path = name.partition("/")
            if of not in ("momentums", "velocities"):
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


# checks with runs of their own

PLAIN = {
    "optimizer": {"name": "sgd", "weight_decay": None},
    "averaging": {},
}


def stage(blocks, epochs, rate, **more):
    return {"trainable_blocks": blocks, "epochs": epochs, "learning_rate": rate, **more}


def bitfit_moves_biases_and_offsets_and_the_head_alone():
    (ran,) = record_of("bitfit").stages
    found = {(path.startswith("logits"), kind(path)) for path in moved(*ran.weights)}
    assert found == {(False, "beta"), (True, "kernel"), (True, "bias")}, found
    assert ran.stage.learning_rate == recipes.Strategy(name="bitfit").head_learning_rate


def affine_moves_scale_and_offset_and_no_statistics():
    affine, trained, frozen = (
        {kind(path) for path in moved(*record_of(name).stages[-1].weights)}
        for name in ("surgical affine", "surgical train", "surgical")
    )
    assert {"gamma", "beta"} <= affine
    assert not affine & set(STATISTICS)
    assert {"gamma", "beta", *STATISTICS} <= trained
    assert not frozen & {"gamma", "beta", *STATISTICS}


def a_step_goes_as_far_as_the_rate_of_its_block_says():
    """One step of plain SGD is rate times gradient, and the gradients of both runs are equal."""
    common = {"epochs": 1, "blocks": 3, "learning_rate": 0.5, "schedule": "constant"}
    common |= {"warmup_epochs": 0.0, "batch_norm": "affine"}
    runs = [
        fit(make_recipe(batch_size=STEPS * BATCH, strategy={**common, **own}, **PLAIN))
        for own in (
            {"name": "full"},
            {"name": "discriminative", "rate_decay": 0.5, "head_learning_rate": 1.0},
        )
    ]
    (full,), (decayed,) = (record.stages for record in runs)
    names = [block.name for block in models.blocks(runs[0].model)]
    share = {"head": 2.0} | {name: 0.5**depth for depth, name in enumerate(names[-2::-1], 1)}
    seen = set()
    for block, path, _ in models.named_weights(runs[0].model):
        before = full.weights[0][path].astype("float64")
        one, other = (ran.weights[1][path] - before for ran in (full, decayed))
        if path in planned(runs[0].model, full.stage):
            assert np.abs(one).max() > 1e-4, (path, np.abs(one).max())
            # What float32 rounds off a weight is no movement.
            noise = 3e-7 * np.abs(before).max() + 1e-7
            np.testing.assert_allclose(
                other, share[block] * one, rtol=1e-3, atol=noise, err_msg=path
            )
            seen.add(block)
        else:
            assert not one.any() and not other.any(), path
    assert seen == {*names[-4:-1], "head"}


def rates_follow_depth_and_the_head():
    model = small_model()
    choice = {"name": "discriminative", "learning_rate": 1e-3, "head_learning_rate": 5e-3}
    (plan,) = training.plan(model, make_recipe(strategy=choice).train, steps=3)
    rates = plan.rates(model)
    assert rates is not None
    assert set(rates) == {weight.path for weight in model.weights}
    *body, head = models.blocks(model)
    for weight in head.weights:
        assert abs(rates[weight.path] - 5.0) < 1e-12
    for depth, block in enumerate(reversed(body), 1):
        for weight in block.weights:
            assert abs(rates[weight.path] - 0.8**depth) < 1e-12, weight.path
    for name in ("full", "lp_ft", "gradual"):
        plans = training.plan(model, make_recipe(strategy=name).train, steps=3)
        assert all(plan.rates(model) is None for plan in plans)


def the_average_is_that_of_the_weights_after_each_step():
    """Over two stages: the head's average goes on, that of the top block begins."""
    stages = [stage(0, 1, 3e-2), stage(1, 2, 1e-2)]
    recipe = make_recipe(stages=stages, averaging={"ema": 0.8})
    record = fit(recipe, splits(validation=6), every_step=True)
    assert len(record.steps) == 3 * STEPS
    means, counts, at_validation = {}, {}, []
    step = 0
    for ran in record.stages:
        paths = planned(record.model, ran.stage)
        means = {path: means.get(path, ran.weights[0][path].astype("float64")) for path in paths}
        for _ in range(ran.stage.epochs):
            for _ in range(STEPS):
                for path in paths:
                    n = counts[path] = counts.get(path, 0) + 1
                    momentum = min((1 + n) / (10 + n), 0.8)
                    new = record.steps[step][path]
                    means[path] = momentum * means[path] + (1 - momentum) * new
                step += 1
            at_validation.append({**record.steps[step - 1], **means})
            assert any(np.abs(means[p] - record.steps[step - 1][p]).max() > 1e-4 for p in paths)
        at_end = {**ran.weights[0], **means}
        for path, value in at_end.items():
            np.testing.assert_allclose(ran.weights[1][path], value, atol=2e-6, err_msg=path)
    assert len(record.validated) == len(at_validation) == 3
    for found, expected in zip(record.validated, at_validation, strict=True):
        for path, value in expected.items():
            np.testing.assert_allclose(found[path], value, atol=2e-6, err_msg=path)


def four_batches_of_8_are_one_of_32():
    stages = [stage(0, 1, 0.1), stage(2, 2, 0.05)]
    ends = [
        fit(
            make_recipe(batch_size=size, accumulate_steps=steps, stages=stages, **PLAIN),
            splits(examples=64),
        )
        for size, steps in ((8, 4), (32, 1))
    ]
    many, one = (record.stages[-1].weights[1] for record in ends)
    for path, value in one.items():
        np.testing.assert_allclose(many[path], value, atol=1e-5, err_msg=path)
    before = ends[1].stages[0].weights[0]
    paths = planned(ends[1].model, ends[1].stages[-1].stage)
    assert all(np.abs(one[path] - before[path]).max() > 1e-4 for path in paths)


def after_a_loss_that_is_not_finite_the_best_epoch_is_on_disk():
    stages = [stage(0, 2, 0.05), {**stage(1, 2, 1e38), "name": "too fast"}]
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(folder, "one")
        record = fit(
            make_recipe(stages=stages, **PLAIN), splits(validation=6), every_step=True, run=run
        )
        said = re.search(
            r"^too fast: the loss.* is (?:nan|inf) at epoch [34].*learning rate 1e\+38.* The "
            r"weights of the best epoch, ([12]) \(val_loss \d+\.\d+\) are in (.*model\.keras)\.$",
            record.error,
        )
        assert said, record.error
        assert said[2] == str(run.model_path)
        expected = record.steps[int(said[1]) * STEPS - 1]
        for model in (record.model, keras.models.load_model(run.model_path)):
            assert not moved(expected, values(model))


def without_a_best_epoch_the_last_checkpoint_is_on_disk():
    stages = [stage(0, 2, 0.05), {**stage(1, 2, 1e38), "name": "too fast"}]
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(folder, "one")
        record = fit(make_recipe(stages=stages, **PLAIN), every_step=True, run=run)
        assert re.search(r"The weights of step 6 are in .*model\.keras\.$", record.error)
        for model in (record.model, keras.models.load_model(run.model_path)):
            assert not moved(record.steps[5], values(model))


def validation_loss(model, parts):
    x, y = parts.validation.content.values, parts.validation.labels
    logits = model.predict(x.astype("float32"), verbose=0).astype("float64")
    logits -= logits.max(-1, keepdims=True)
    return float((np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(y)), y]).mean())


def soup_and_wise_ft_never_make_validation_worse():
    parts = splits(validation=12)
    stages = [stage(0, 1, 0.02), stage(1, 4, 0.02)]
    recipe = make_recipe(stages=stages, averaging={"soup": 3, "wise_ft": "auto"})
    record = fit(recipe, parts)
    soup, wise = record.history.averaging["soup"], record.history.averaging["wise_ft"]
    losses = {row["epoch"]: row["val_loss"] for row in record.history.rows}
    best = min(losses, key=lambda epoch: (losses[epoch], epoch))
    assert soup["epochs"][0] == best
    assert set(soup["epochs"]) <= set(sorted(losses, key=losses.get)[:3])
    np.testing.assert_allclose(soup["scores"][0], losses[best], rtol=1e-4, atol=1e-6)
    assert soup["scores"][1] <= soup["scores"][0]
    assert list(wise["scores"]) == ["0", "0.1", "0.2", "0.3", "0.4", "0.5"]
    assert wise["scores"]["0"] == soup["scores"][1]
    chosen = wise["scores"][f"{wise['share']:g}"]
    assert chosen == min(wise["scores"].values())
    np.testing.assert_allclose(validation_loss(record.model, parts), chosen, rtol=1e-4, atol=1e-6)


def the_whole_way_back_is_the_model_before_the_backbone_was_touched():
    parts = splits(validation=3)
    for strategy, head_goes_back in (("full", False), ("lp_ft", True)):
        choice = {"name": strategy, "epochs": 2, "blocks": 1, "learning_rate": 1e-2}
        record = fit(make_recipe(strategy=choice, averaging={"wise_ft": 1.0}), parts)
        last = record.stages[-1]
        found = values(record.model)
        for block, path, _ in models.named_weights(record.model):
            back = head_goes_back or block != "head"
            expected = last.weights[0 if back else 1][path]
            assert np.array_equal(found[path], expected), (strategy, path)
        assert moved(*last.weights) == planned(record.model, last.stage)


def half_the_way_back_needs_no_validation():
    choice = {"name": "full", "epochs": 1, "blocks": 1, "learning_rate": 1e-2}
    record = fit(make_recipe(strategy=choice, averaging={"wise_ft": 0.5}))
    (ran,) = record.stages
    assert record.history.averaging["wise_ft"]["share"] == 0.5
    found = values(record.model)
    for block, path, _ in models.named_weights(record.model):
        before, after = (weights[path].astype("float64") for weights in ran.weights)
        expected = after if block == "head" else (before + after) / 2
        np.testing.assert_allclose(found[path], expected, atol=1e-7, err_msg=path)


def a_stage_that_stalls_gives_way_to_the_next():
    """No change is large enough to count, so that each stage has one epoch more than patience."""
    choice = {"name": "lp_ft", "epochs": 9, "head_epochs": 4, "blocks": 1, "patience": 2}
    stopping = {"monitor": "loss", "patience": 7, "min_delta": 1e6, "restore_best_weights": False}
    strategy = {**choice, "transition": "plateau"}
    record = fit(make_recipe(strategy=strategy, early_stopping=stopping))
    assert [row["stage"] for row in record.history.rows] == ["head"] * 3 + ["all"] * 3
    assert [row["epoch"] for row in record.history.rows] == [1, 2, 3, 4, 5, 6]
    assert record.history.stopped_early == ["head", "all"]
    assert [ran.slots[1]["iterations"] for ran in record.stages] == [3 * STEPS] * 2
    assert set(record.stages[1].ages.values()) == {3 * STEPS}
    nothing_moves_between_the_stages(record)


OF_THEIR_OWN = {
    check.__name__: check
    for check in (
        bitfit_moves_biases_and_offsets_and_the_head_alone,
        affine_moves_scale_and_offset_and_no_statistics,
        a_step_goes_as_far_as_the_rate_of_its_block_says,
        rates_follow_depth_and_the_head,
        the_average_is_that_of_the_weights_after_each_step,
        four_batches_of_8_are_one_of_32,
        after_a_loss_that_is_not_finite_the_best_epoch_is_on_disk,
        without_a_best_epoch_the_last_checkpoint_is_on_disk,
        soup_and_wise_ft_never_make_validation_worse,
        the_whole_way_back_is_the_model_before_the_backbone_was_touched,
        half_the_way_back_needs_no_validation,
        a_stage_that_stalls_gives_way_to_the_next,
    )
}


# What of this is left to the slow tests on every backend but TensorFlow; there each strategy, the
# moving average and the end by a loss that is not finite are looked at in any case.
SLOW_ELSEWHERE = (
    "surgical affine",
    "surgical train",
    "affine_moves_scale_and_offset_and_no_statistics",
    "a_step_goes_as_far_as_the_rate_of_its_block_says",
    "four_batches_of_8_are_one_of_32",
    "without_a_best_epoch_the_last_checkpoint_is_on_disk",
    "soup_and_wise_ft_never_make_validation_worse",
    "the_whole_way_back_is_the_model_before_the_backbone_was_touched",
    "half_the_way_back_needs_no_validation",
    "a_stage_that_stalls_gives_way_to_the_next",
)


def names(backend, slow):
    """Yields what there is to check: a run and a check, or a check alone."""
    left = () if backend == "tensorflow" else SLOW_ELSEWHERE

    def wanted(name, is_slow):
        return slow == (is_slow or name in left)

    for run in (*RUNS, *SLOW_RUNS):
        if wanted(run, run in SLOW_RUNS):
            yield from (f"{run}: {check}" for check in OF_RUNS)
    yield from (check for check in OF_THEIR_OWN if wanted(check, False))


def check(name):
    """Does one of `names`."""
    run, colon, of_run = name.partition(": ")
    if colon:
        OF_RUNS[of_run](record_of(run))
    else:
        OF_THEIR_OWN[name]()


if __name__ == "__main__":
    import time

    for name in names(keras.backend.backend(), slow="--slow" in sys.argv):
        begin = time.monotonic()
        try:
            said = ""
            check(name)
        except Exception:
            said = traceback.format_exc()
        seconds = round(time.monotonic() - begin, 1)
        print(json.dumps({"check": name, "error": said, "seconds": seconds}), flush=True)
