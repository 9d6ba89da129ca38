"""When a stage ends, which epoch was best, when rates fall: as Keras decides, and resumable."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from kerastune_ft import optimizers
from kerastune_ft.recipe import Optimizer
from kerastune_ft.stopping import Best, PlateauRate, StageStopping, is_better

SEEDS = range(25)


def through_json(state):
    return json.loads(json.dumps(state))


def figures(seed, count=30):
    """Quarters, so that ties are common and sums with `min_delta` are exact."""
    rng = np.random.default_rng(seed)
    return (np.round(np.cumsum(rng.normal(-0.1, 0.6, count)) * 4) / 4).tolist()


def model():
    made = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    optimizer = optimizers.make(Optimizer(name="sgd", weight_decay=None), 1.0)
    optimizer.build(made.trainable_variables)
    made.compile(optimizer, "mse")
    made.stop_training = False
    return made


# Best


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_best_epochs_are_those_a_sort_finds(mode, seed):
    best, told = Best("val_loss", mode, count=3), []
    numbered = list(enumerate(figures(seed), 1))
    for epoch, value in numbered:
        if best.offer(epoch, value):
            told.append(epoch)
        sign = 1 if mode == "min" else -1
        expected = sorted(numbered[:epoch], key=lambda pair: (sign * pair[1], pair[0]))[:3]
        assert best.epochs == expected
        assert (epoch in [number for number, _ in expected]) == (bool(told) and told[-1] == epoch)


def test_of_equal_epochs_the_earlier_is_the_better():
    best = Best("val_loss", "min")
    assert best.offer(1, 0.5)
    assert not best.offer(2, 0.5)
    assert best.epochs == [(1, 0.5)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_best(value):
    best = Best("val_loss", "min")
    assert not best.offer(1, value)
    assert best.epochs == []


def test_an_epoch_that_is_offered_again_replaces_itself():
    best = Best("val_loss", "min", count=3)
    for value in (0.5, 0.5, 0.7):
        best.offer(1, value)
    best.offer(2, 0.6)
    assert best.epochs == [(2, 0.6), (1, 0.7)]


@pytest.mark.parametrize("cut", [0, 1, 10, 29])
def test_the_best_epochs_come_back_through_json(cut):
    whole = Best("val_accuracy", "max", count=2)
    first = Best("val_accuracy", "max", count=2)
    numbered = list(enumerate(figures(0), 1))
    for epoch, value in numbered:
        whole.offer(epoch, value)
    for epoch, value in numbered[:cut]:
        first.offer(epoch, value)
    second = Best.of(through_json(first.state()))
    assert second == first
    for epoch, value in numbered[cut:]:
        second.offer(epoch, value)
    assert second == whole


# StageStopping


def stops_at(callback, values, model, monitor="val_loss"):
    """Returns the number of the epoch at which training would stop, None if it would not."""
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, value in enumerate(values):
        callback.on_epoch_end(epoch, {monitor: value})
        if model.stop_training:
            return epoch
    return None


@pytest.mark.parametrize("min_delta", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("patience", [1, 2, 5])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_stage_stops_when_keras_would_stop(mode, patience, min_delta):
    ends = []
    for seed in SEEDS:
        ours = StageStopping("val_loss", mode, patience, min_delta)
        keras_s = keras.callbacks.EarlyStopping(
            "val_loss", mode=mode, patience=patience, min_delta=min_delta
        )
        models = [SimpleNamespace(stop_training=False) for _ in range(2)]
        keras_s._model = models[1]
        found = stops_at(ours, figures(seed), models[0])
        ends.append(found)
        assert found == stops_at(keras_s, figures(seed), models[1]), seed
    assert any(end is not None for end in ends)


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 4])
def test_a_resumed_stage_stops_at_the_same_epoch(cut):
    values = [1.0, 0.5, 0.6, 0.55, 0.7, 0.4]
    whole = stops_at(StageStopping("val_loss", "min", 3), values, SimpleNamespace(stop_training=0))
    assert whole == 4
    first, second = (StageStopping("val_loss", "min", 3) for _ in range(2))
    model_ = SimpleNamespace(stop_training=False)
    assert stops_at(first, values[:cut], model_) is None
    second.restore(through_json(first.state()))
    assert stops_at(second, values[cut:], model_) == whole - cut


def test_nan_is_no_improvement_wherever_it_comes():
    model_ = SimpleNamespace(stop_training=False)
    values = [math.nan, 1.0, math.nan, math.nan]
    assert stops_at(StageStopping("val_loss", "min", 2), values, model_) == 3


def test_an_epoch_without_the_figure_does_not_count():
    model_ = SimpleNamespace(stop_training=False)
    callback = StageStopping("val_loss", "min", 1)
    assert stops_at(callback, [1.0] * 5, model_, monitor="loss") is None
    callback.on_epoch_end(5, None)
    assert callback.state() == {"best": None, "wait": 0}


# PlateauRate


def rates(callback, values, model):
    callback.set_model(model)
    callback.on_train_begin()
    found = []
    for epoch, value in enumerate(values):
        callback.on_epoch_end(epoch, {"val_loss": value})
        found.append(float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)))
    return found


@pytest.mark.parametrize(("mode", "patience"), [("min", 1), ("min", 3), ("max", 2)])
def test_the_rate_falls_when_that_of_keras_would(mode, patience):
    falls = 0
    for seed in range(8):
        options = {"mode": mode, "factor": 0.5, "patience": patience}
        ours = rates(PlateauRate("val_loss", **options), figures(seed, 12), model())
        plain = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        plain.compile(keras.optimizers.SGD(1.0), "mse")
        reference = keras.callbacks.ReduceLROnPlateau("val_loss", min_delta=0.0, **options)
        assert ours == pytest.approx(rates(reference, figures(seed, 12), plain)), seed
        falls += ours[-1] < 1.0
    assert falls


def test_by_default_the_rate_is_divided_by_5_after_2_epochs():
    found = rates(PlateauRate("val_loss", "min"), [1.0, 1.0, 1.0, 1.0, 1.0], model())
    assert found == pytest.approx([1.0, 1.0, 0.2, 0.2, 0.04])


def test_the_rate_of_an_optimizer_within_a_loss_scale_falls_too():
    made = model()
    made.compile(keras.optimizers.LossScaleOptimizer(made.optimizer), "mse")
    callback = PlateauRate("val_loss", "min", patience=1)
    assert rates(callback, [1.0, 1.0], made)[-1] == pytest.approx(0.2)


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_a_resumed_plateau_goes_on_as_the_whole_one(cut):
    values = [1.0, 1.0, 1.0, 0.9, 0.9, 0.9, 0.9]
    whole = rates(PlateauRate("val_loss", "min"), values, model())
    made = model()
    first, second = (PlateauRate("val_loss", "min") for _ in range(2))
    before = rates(first, values[:cut], made)
    second.restore(through_json(first.state()))
    # The scale is one of the optimizer's variables, which the checkpoint holds by itself.
    assert before + rates(second, values[cut:], made) == pytest.approx(whole)


def test_a_missing_figure_counts_as_no_improvement():
    made = model()
    callback = PlateauRate("val_loss", "min", patience=2)
    callback.set_model(made)
    callback.on_epoch_end(0, {"loss": 1.0})
    callback.on_epoch_end(1, None)
    assert float(keras.ops.convert_to_numpy(made.optimizer.learning_rate)) == pytest.approx(0.2)


# is_better


@pytest.mark.parametrize(
    ("value", "best", "mode", "min_delta", "expected"),
    [
        (1.0, None, "min", 0.0, True),
        (math.nan, None, "min", 0.0, False),
        (math.nan, 1.0, "max", 0.0, False),
        (0.9, 1.0, "min", 0.0, True),
        (1.0, 1.0, "min", 0.0, False),
        (0.75, 1.0, "min", 0.25, False),
        (0.74, 1.0, "min", 0.25, True),
        (1.1, 1.0, "max", 0.0, True),
        (1.25, 1.0, "max", 0.25, False),
        (1.26, 1.0, "max", 0.25, True),
    ],
)
def test_better_is_strictly_better_by_more_than_min_delta(value, best, mode, min_delta, expected):
    assert is_better(value, best, mode, min_delta) is expected
