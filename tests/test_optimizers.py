"""Schedules and optimizers by name."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kerastune_ft import optimizers
from kerastune_ft import recipe as recipes

DECAYS = list(optimizers.SCHEDULES)


def rates(schedule):
    return np.array([float(schedule(step)) for step in range(schedule.steps)])


@pytest.mark.parametrize("decay", DECAYS)
def test_warm_up_climbs_evenly_to_the_rate_and_never_exceeds_it(decay):
    found = rates(optimizers.StageSchedule(decay, 0.1, steps=50, warmup_steps=10))
    np.testing.assert_allclose(found[:10], 0.1 * np.arange(1, 11) / 10, rtol=1e-5)
    assert found.max() <= 0.1 * (1 + 1e-6)
    assert (found > 0).all()


@pytest.mark.parametrize("decay", [name for name in DECAYS if name != "constant"])
def test_a_decay_falls_all_the_way_to_a_hundredth_at_the_last_step(decay):
    found = rates(optimizers.StageSchedule(decay, 0.1, steps=50))
    assert found[0] == pytest.approx(0.1)
    assert found[-1] == pytest.approx(0.1 * optimizers.END_SHARE, rel=1e-4)
    assert (np.diff(found) < 1e-9).all()


def test_constant_stays():
    assert rates(optimizers.StageSchedule("constant", 0.1, steps=9)) == pytest.approx([0.1] * 9)


def test_cosine_and_linear_agree_with_keras():
    steps = 41
    cosine = keras.optimizers.schedules.CosineDecay(0.1, steps - 1, alpha=optimizers.END_SHARE)
    linear = keras.optimizers.schedules.PolynomialDecay(
        0.1, steps - 1, end_learning_rate=0.1 * optimizers.END_SHARE
    )
    polynomial = keras.optimizers.schedules.PolynomialDecay(
        0.1, steps - 1, end_learning_rate=0.1 * optimizers.END_SHARE, power=2
    )
    for name, theirs in (("cosine", cosine), ("linear", linear), ("polynomial", polynomial)):
        ours = rates(optimizers.StageSchedule(name, 0.1, steps=steps))
        expected = np.array([float(theirs(step)) for step in range(steps)])
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-8)


def test_a_schedule_survives_saving_an_optimizer():
    schedule = optimizers.StageSchedule("cosine", 0.1, steps=20, warmup_steps=4)
    config = keras.optimizers.serialize(keras.optimizers.SGD(schedule))
    again = keras.optimizers.deserialize(config)
    assert float(again._learning_rate(7)) == float(schedule(7))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cosin", 0.1, 10), "expected one of constant"),
        (("cosine", 0.1, 10, 10), "warmup_steps: expected 0 to 9, got 10"),
    ],
)
def test_impossible_schedules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        optimizers.StageSchedule(*arguments)


def test_every_optimizer_of_a_recipe_is_made_and_takes_a_step():
    names = recipes.choices("train.optimizer.name")
    assert set(names) == set(optimizers.OPTIMIZERS)
    for name in names:
        optimizer = optimizers.make(recipes.Optimizer(name=name, clipnorm=1.0), 0.1)
        kernel = keras.Variable(np.ones((3, 3), "float32"), name="kernel")
        optimizer.build([kernel])
        optimizer.apply_gradients([(keras.ops.ones((3, 3)), kernel)])
        moved = keras.ops.convert_to_numpy(kernel)
        assert (moved < 1.0).all(), name
        assert np.isfinite(moved).all(), name


@pytest.mark.parametrize("name", ["adamw", "sgd", "adam"])
def test_weight_decay_pulls_kernels_and_leaves_biases_and_norms(name):
    optimizer = optimizers.make(recipes.Optimizer(name=name, weight_decay=0.5), 0.1)
    variables = [
        keras.Variable(np.ones((2,), "float32"), name=kind)
        for kind in ("kernel", "bias", "gamma", "beta")
    ]
    optimizer.build(variables)
    optimizer.apply_gradients([(keras.ops.zeros((2,)), variable) for variable in variables])
    kernel, *others = (keras.ops.convert_to_numpy(variable) for variable in variables)
    assert (kernel < 1.0).all()
    for other in others:
        np.testing.assert_array_equal(other, 1.0)


def test_adamw_without_weight_decay_decays_nothing():
    optimizer = optimizers.make(recipes.Optimizer(name="adamw", weight_decay=0.0), 0.1)
    kernel = keras.Variable(np.ones((2,), "float32"), name="kernel")
    optimizer.build([kernel])
    optimizer.apply_gradients([(keras.ops.zeros((2,)), kernel)])
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(kernel), 1.0)
