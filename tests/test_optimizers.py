"""Schedules and optimizers by name."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from kerastune_ft import optimizers, schedules
from kerastune_ft import recipe as recipes
from kerastune_ft.errors import ModelError

# one_cycle has a warm-up of its own; four schedules do not fall to a hundredth.
DECAYS = [name for name in optimizers.SCHEDULES if name != "one_cycle"]
FALLING = [name for name in DECAYS if name not in ("constant", "plateau", "inverse_sqrt")]


def rates(schedule):
    return np.array([float(schedule(step)) for step in range(schedule.steps)])


@pytest.mark.parametrize("decay", DECAYS)
def test_warm_up_climbs_evenly_to_the_rate_and_never_exceeds_it(decay):
    found = rates(optimizers.StageSchedule(decay, 0.1, steps=50, warmup_steps=10))
    np.testing.assert_allclose(found[:10], 0.1 * np.arange(1, 11) / 10, rtol=1e-5)
    assert found.max() <= 0.1 * (1 + 1e-6)
    assert (found > 0).all()


@pytest.mark.parametrize("decay", FALLING)
def test_a_decay_falls_all_the_way_to_a_hundredth_at_the_last_step(decay):
    found = rates(optimizers.StageSchedule(decay, 0.1, steps=50))
    assert found[0] == pytest.approx(0.1)
    assert found[-1] == pytest.approx(0.1 * optimizers.END_SHARE, rel=1e-4)
    assert (np.diff(found) < 1e-9).all()


def test_every_schedule_is_covered_by_a_property():
    own_tests = {"constant", "plateau", "inverse_sqrt", "one_cycle"}
    assert {*FALLING, *own_tests} == set(optimizers.SCHEDULES)
    assert len(FALLING) == 5


@pytest.mark.parametrize("decay", ["constant", "plateau"])
def test_constant_stays(decay):
    assert rates(optimizers.StageSchedule(decay, 0.1, steps=9)) == pytest.approx([0.1] * 9)


@pytest.mark.parametrize("decay", optimizers.SCHEDULES)
def test_a_share_is_a_function_of_progress_alone(decay):
    share = optimizers.SCHEDULES[decay]
    found = np.array([float(share(ops.convert_to_tensor(x, "float32"))) for x in (0.0, 0.5, 1.0)])
    assert ((found > 0) & (found <= 1.0)).all()


@pytest.mark.parametrize("warmup_steps", [0, 10])
def test_one_cycle_rises_for_three_tenths_and_falls_to_a_ten_thousandth(warmup_steps):
    found = rates(optimizers.StageSchedule("one_cycle", 0.1, steps=101, warmup_steps=warmup_steps))
    assert found[0] == pytest.approx(0.1 / 25)
    assert found.argmax() == 30
    assert found.max() == pytest.approx(0.1)
    assert found[15] == pytest.approx((0.1 + 0.1 / 25) / 2, rel=1e-4)
    assert found[-1] == pytest.approx(0.1 * 1e-4, rel=1e-2)
    assert (np.diff(found)[:30] > 0).all()
    assert (np.diff(found)[30:] < 0).all()


def test_step_falls_to_a_tenth_at_half_and_to_a_hundredth_at_three_quarters():
    found = rates(optimizers.StageSchedule("step", 0.1, steps=101))
    np.testing.assert_allclose(found, [0.1] * 50 + [0.01] * 25 + [0.001] * 26, rtol=1e-5)


@pytest.mark.parametrize("warmup_steps", [0, 1, 10])
def test_inverse_sqrt_is_the_root_of_warm_up_over_steps(warmup_steps):
    found = rates(optimizers.StageSchedule("inverse_sqrt", 0.1, 80, warmup_steps))
    count = np.arange(1, 81)
    w = max(1, warmup_steps)
    expected = 0.1 * np.minimum(count / w, np.sqrt(w / count))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_optimizers_and_schedules_name_the_same_table():
    assert optimizers.SCHEDULES is schedules.SCHEDULES
    assert optimizers.StageSchedule is schedules.StageSchedule


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


RULES = {
    "sgd": {"momentum": 0.9},
    "adam": {},
    "adamw": {"weight_decay": 0.1},
    "rmsprop": {"momentum": 0.5},
    "lion": {},
}
EVERY_OPTION = {
    "rates": {"low/kernel": 0.5, "low/bias": 0.5, "top/kernel": 1.0, "top/bias": 0.0},
    "ages": {"low/kernel": 7, "top/kernel": 3},
    "newborn": ["top/kernel"],
    "warmup_steps": 4,
    "pull": 0.1,
    "unpulled": ["top/kernel", "top/bias"],
    "average": 0.9,
}
on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow backend"
)


def ours(name, learning_rate=0.01, **options):
    return optimizers.OPTIMIZERS[name](learning_rate, **{**RULES.get(name, {}), **options})


def theirs(name, learning_rate=0.01, **options):
    rule = optimizers._rule(optimizers.OPTIMIZERS[name])
    return rule(learning_rate, **{**RULES.get(name, {}), **options})


def network(dtype=None):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    low = keras.layers.Dense(8, activation="tanh", name="low", dtype=dtype)
    top = keras.layers.Dense(3, name="top", dtype=dtype)
    return keras.Model(inputs, top(low(inputs)))


def batches(count):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(32 * count, 4)).astype("float32")
    return x, generator.normal(size=(32 * count, 3)).astype("float32")


def fit(model, optimizer, steps=5, batch_size=32, **options):
    model.compile(optimizer, "mse", **options)
    model.fit(*batches(steps), batch_size=batch_size, shuffle=False, verbose=0)
    return weights(model)


def weights(model):
    return [ops.convert_to_numpy(v) for v in model.trainable_variables]


def made(*shapes, names=None, seed=0):
    """Variables with random values, without a model."""
    generator = np.random.default_rng(seed)
    names = names or [f"kernel_{i}" for i in range(len(shapes))]
    return [
        keras.Variable(generator.normal(size=shape).astype("float32"), name=name)
        for shape, name in zip(shapes, names, strict=True)
    ]


def gradients(variables, steps, seed=1):
    generator = np.random.default_rng(seed)
    return [
        [generator.normal(size=v.shape).astype("float32") for v in variables] for _ in range(steps)
    ]


def apply(optimizer, grads, variables):
    optimizer.apply([ops.convert_to_tensor(g) for g in grads], variables)


def values(variables):
    return [ops.convert_to_numpy(v).copy() for v in variables]


def assert_equal(found, expected):
    # XLA fuses the multiplication by rate_scale on JAX; TensorFlow must agree in every bit.
    tolerance = 0 if keras.backend.backend() == "tensorflow" else 2e-6
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in optimizers.OPTIMIZERS),
        *((name, {"clipnorm": 0.1, "gradient_accumulation_steps": 4}) for name in RULES),
    ],
)
def test_without_options_an_optimizer_is_keras_s_bit_for_bit(name, options):
    expected = theirs(name, **options)
    expected.exclude_from_weight_decay(var_names=["bias"])
    found = fit(network(), ours(name, **options), steps=20)
    assert_equal(found, fit(network(), expected, steps=20))


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_without_options_a_traced_update_has_one_multiplication_more_than_keras_s(name):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("counts TensorFlow's operations")
    import tensorflow as tf

    def operations(optimizer):
        variables = made((3, 3), (2, 2))
        optimizer.build(variables)
        grads = [tf.ones_like(v.value) for v in variables]
        graph = tf.function(lambda: optimizer.apply(grads, variables)).get_concrete_function().graph
        kinds = [operation.type for operation in graph.get_operations()]
        return {kind: kinds.count(kind) for kind in set(kinds) - {"ReadVariableOp", "Placeholder"}}

    found, expected = operations(ours(name)), operations(theirs(name))
    expected["Mul"] = expected["Mul"] + 1
    assert found == expected


@pytest.mark.parametrize("name", RULES)
def test_rates_equal_an_optimizer_of_its_own_for_each_variable(name):
    shapes = [(3, 2), (4, 4), (2, 2)]
    shares = [1.0, 0.25, 0.5]
    variables, copies = made(*shapes), made(*shapes)
    one = ours(name, 0.01, rates={v.path: x for v, x in zip(variables, shares, strict=True)})
    one.build(variables)
    many = [theirs(name, 0.01 * share) for share in shares]
    for optimizer, copy in zip(many, copies, strict=True):
        optimizer.build([copy])
    for grads in gradients(variables, 10):
        apply(one, grads, variables)
        for optimizer, grad, copy in zip(many, grads, copies, strict=True):
            apply(optimizer, [grad], [copy])
    assert_equal(values(variables), values(copies))


@pytest.mark.parametrize("name", [*RULES, "nadam"])
def test_at_rate_0_a_variable_keeps_every_bit(name):
    paths = [v.path for v in network().trainable_variables]
    shares = {path: 0.0 if path.startswith("low") else 1.0 for path in paths}
    model = network()
    before = weights(model)
    optimizer = ours(name, rates=shares, weight_decay=0.5, pull=0.1, average=0.9)
    after = fit(model, optimizer)
    for path, one, other in zip(paths, before, after, strict=True):
        assert np.array_equal(one, other) == path.startswith("low"), path


def test_a_variable_without_a_rate_is_named():
    with pytest.raises(ValueError, match="no rate for top/bias"):
        paths = ["low/kernel", "low/bias", "top/kernel"]
        ours("adam", rates=dict.fromkeys(paths, 1.0)).build(network().trainable_variables)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_ema": True}, "use_ema: not supported"),
        ({"average": 1.0}, "average: expected 0 up to 1, got 1.0"),
        ({"warmup_steps": -1}, "warmup_steps: expected 0 or more, got -1"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ours("adam", **options)


@pytest.mark.parametrize("name", RULES)
def test_decay_leaves_out_vectors_and_names_and_follows_the_rate(name):
    variables = made(
        (2, 2), (2, 2), (2, 2), (2,), names=["kernel", "slow_kernel", "gamma", "layer_scale"]
    )
    shares = {"kernel": 1.0, "slow_kernel": 0.25, "gamma": 1.0, "layer_scale": 1.0}
    optimizer = ours(name, 0.5, weight_decay=0.5, rates=shares)
    optimizer.build(variables)
    before = values(variables)
    apply(optimizer, [np.zeros_like(x) for x in before], variables)
    for share, one, other in zip([0.25, 0.0625, 0, 0], before, values(variables), strict=True):
        np.testing.assert_allclose(other, one * (1 - share), rtol=1e-6)


def test_without_patterns_everything_decays_as_in_keras():
    variables, copies = (made((2, 2), (2,), names=["kernel", "bias"]) for _ in range(2))
    pairs = [(ours("adamw", no_decay=[]), variables), (theirs("adamw"), copies)]
    for optimizer, mine in pairs:
        optimizer.build(mine)
        for grads in gradients(mine, 5):
            apply(optimizer, grads, mine)
    assert_equal(values(variables), values(copies))


BOUNDED = ["adam", "adamw", "adamax", "amsgrad"]


def late(name, age=-2000):
    """An optimizer at iteration 2000 with one variable that begins now."""
    options = {"amsgrad": True} if name == "amsgrad" else {}
    name = "adam" if name == "amsgrad" else name
    variables = made((2, 3), names=["late"])
    optimizer = ours(name, 0.01, weight_decay=0.0, ages={"late": age} if age else None, **options)
    optimizer.build(variables)
    optimizer._iterations.assign(2000)
    return optimizer, variables


def steps_of(optimizer, variables, series):
    found = []
    for grad in series:
        before = values(variables)[0]
        apply(optimizer, [grad], variables)
        found.append(values(variables)[0] - before)
    return np.array(found)


ADVERSARIAL = {
    "signs": lambda g: np.sign(g),
    "growing": lambda g: g * np.float32(1.1) ** np.arange(100, dtype="float32")[:, None, None],
    "heavy tails": lambda g: g**5,
    "one spike": lambda g: g * (np.arange(100) == 60)[:, None, None],
}


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_the_first_step_of_a_variable_that_begins_late_stays_within_its_rate(name, kind):
    grads = np.random.default_rng(2).normal(size=(100, 2, 3)).astype("float32")
    first = steps_of(*late(name), ADVERSARIAL[kind](grads).astype("float32")[:1])
    assert np.abs(first).max() <= 0.01 * 1.0001


@pytest.mark.parametrize("name", BOUNDED)
def test_no_step_of_a_late_variable_exceeds_its_rate_whatever_signs_its_gradients_take(name):
    generator = np.random.default_rng(2)
    optimizer, variables = late(name)
    largest = 0.0
    for step in range(100):
        sign = np.sign(generator.normal(size=(2, 3)) + (2.0 if step % 20 > 10 else -1.0))
        largest = max(
            largest, np.abs(steps_of(optimizer, variables, [sign.astype("float32")])).max()
        )
    assert 0.005 < largest <= 0.01 * 1.0001


def test_a_late_step_of_nadam_stays_within_one_and_a_half_times_its_rate():
    # Its lookahead takes a fresh Nadam beyond its rate, too.
    first = steps_of(*late("nadam"), [np.ones((2, 3), "float32")])
    assert np.abs(first).max() <= 0.015
    assert np.abs(steps_of(*late("nadam", age=0), [np.ones((2, 3), "float32")])).max() > 0.03


def test_without_an_age_the_first_step_of_a_late_variable_is_nearly_three_times_its_rate():
    first = steps_of(*late("adam", age=0), [np.ones((2, 3), "float32")])
    assert np.abs(first).max() > 0.025


@pytest.mark.parametrize("name", ["adam", "adamw", "adamax", "amsgrad"])
@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_a_late_variable_takes_the_steps_of_a_fresh_optimizer(name, kind):
    grads = np.random.default_rng(2).normal(size=(100, 2, 3)).astype("float32")
    series = list(ADVERSARIAL[kind](grads).astype("float32"))
    found = steps_of(*late(name), series)
    options = {"amsgrad": True} if name == "amsgrad" else {}
    variables = made((2, 3), names=["late"])
    fresh = theirs("adam" if name == "amsgrad" else name, 0.01, weight_decay=0.0, **options)
    fresh.build(variables)
    np.testing.assert_allclose(found, steps_of(fresh, variables, series), rtol=1e-3, atol=1e-6)
    # The largest step that any gradients can make Adam take, by Cauchy and Schwarz.
    count = np.arange(1, 101)
    first = np.array([0.1 * 0.9 ** (n - np.arange(1, n + 1)) / (1 - 0.9**n) for n in [100]])[0]
    second = 0.001 * 0.999 ** (100 - count) / (1 - 0.999**100)
    bound = 0.01 * np.sqrt((first**2 / second).sum())
    if name != "adamax":
        assert np.abs(found).max() <= bound * 1.0001


def test_ages_continue_the_bias_correction_of_slots_that_are_older_than_the_optimizer():
    variables, copies = (made((2, 3)) for _ in range(2))
    series = gradients(variables, 20)
    reference = theirs("adam")
    reference.build(copies)
    for grads in series:
        apply(reference, grads, copies)
    first = ours("adam")
    first.build(variables)
    for grads in series[:8]:
        apply(first, grads, variables)
    second = ours("adam")
    second.build(variables)
    optimizers.carry_over(first, second, continue_iterations=False)
    assert optimizers.ages(second) == {variables[0].path: 8}
    for grads in series[8:]:
        apply(second, grads, variables)
    np.testing.assert_allclose(values(variables)[0], values(copies)[0], rtol=1e-5, atol=1e-6)


def test_only_newborn_variables_are_warmed_up_and_by_their_own_count():
    variables = made((2,), (2,), (2,), names=["old", "new", "late"])
    optimizer = ours(
        "sgd", 1.0, momentum=0.0, warmup_steps=4, newborn=["new", "late"], ages={"late": -2}
    )
    optimizer.build(variables)
    steps = []
    for _ in range(6):
        before = values(variables)
        apply(optimizer, [np.ones(2, "float32")] * 3, variables)
        steps.append(
            [one[0] - other[0] for one, other in zip(before, values(variables), strict=True)]
        )
    old, new, later = np.array(steps).T
    np.testing.assert_allclose(old, 1.0, rtol=1e-5)
    np.testing.assert_allclose(new, [0.25, 0.5, 0.75, 1, 1, 1], rtol=1e-5)
    np.testing.assert_allclose(later[2:], [0.25, 0.5, 0.75, 1], rtol=1e-5)


def test_pull_and_average_agree_with_numpy():
    variables = made((2, 3), (3,), names=["body", "head"])
    optimizer = ours(
        "sgd",
        0.1,
        momentum=0.0,
        weight_decay=0.3,
        pull=0.2,
        unpulled=["head"],
        average=0.5,
        rates={"body": 0.5, "head": 1.0},
    )
    optimizer.build(variables)
    body, head = (x.astype("float64") for x in values(variables))
    start, averages = body.copy(), [body.copy(), head.copy()]
    for count, (g, h) in enumerate(gradients(variables, 12), 1):
        apply(optimizer, [g, h], variables)
        body = body - 0.05 * 0.3 * body
        body = body - 0.05 * 0.2 * (body - start)
        body, head = body - 0.05 * g, head - 0.1 * h
        momentum = min(0.5, (1 + count) / (10 + count))
        averages = [
            momentum * mean + (1 - momentum) * value
            for mean, value in zip(averages, (body, head), strict=True)
        ]
    np.testing.assert_allclose(values(variables)[0], body, rtol=1e-5)
    np.testing.assert_allclose(values(variables)[1], head, rtol=1e-5)
    pairs = optimizers.averages(optimizer)
    assert [variable.path for variable, _ in pairs] == ["body", "head"]
    for (_, mean), expected in zip(pairs, averages, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(mean), expected, rtol=1e-5)
    assert optimizers.averages(ours("sgd")) == []
    assert optimizers.averages(theirs("sgd")) == []


def test_an_average_and_a_start_begin_at_the_weights_also_when_fit_builds_the_optimizer():
    model = network()
    before = weights(model)
    optimizer = ours("sgd", 0.0, average=0.9, pull=0.1, momentum=0.0)
    fit(model, optimizer)
    found = optimizers.slots(optimizer)
    for variable, value in zip(model.trainable_variables, before, strict=True):
        for kind in ("averages", "starts"):
            slot = ops.convert_to_numpy(found[f"{kind}/{variable.path}"])
            np.testing.assert_allclose(slot, value, rtol=1e-6)


def test_rate_scale_is_in_the_learning_rate_and_in_the_step():
    variables = made((2,))
    optimizer = ours("sgd", 0.5, momentum=0.0)
    optimizer.build(variables)
    optimizer.rate_scale.assign(0.1)
    assert float(optimizer.learning_rate) == pytest.approx(0.05)
    before = values(variables)[0]
    apply(optimizer, [np.ones(2, "float32")], variables)
    np.testing.assert_allclose(before - values(variables)[0], 0.05, rtol=1e-5)
    optimizer.learning_rate = 1.0
    assert float(optimizer.learning_rate) == pytest.approx(0.1)
    schedule = optimizers.StageSchedule("linear", 0.5, 10)
    scheduled = ours("sgd", schedule)
    scheduled.rate_scale.assign(0.5)
    assert float(scheduled.learning_rate) == pytest.approx(0.25)
    assert optimizer.get_config()["learning_rate"] == pytest.approx(1.0)


@pytest.mark.parametrize("name", [*RULES, "nadam"])
def test_a_reloaded_model_goes_on_with_the_same_options(name, tmp_path):
    model = network()
    schedule = optimizers.StageSchedule("cosine", 0.01, 20, 2)
    fit(model, ours(name, schedule, weight_decay=0.1, **EVERY_OPTION))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.optimizer.get_config() == model.optimizer.get_config()
    assert type(again.optimizer) is type(model.optimizer)
    config = model.optimizer.get_config()
    for key, value in EVERY_OPTION.items():
        assert config[key] == value
    json.dumps(config["rates"])
    for one in (model, again):
        one.fit(*batches(3), batch_size=32, shuffle=False, verbose=0)
    assert_equal(weights(model), weights(again))


@pytest.mark.parametrize("name", RULES)
def test_compiled_by_xla_it_does_the_same(name):
    options = {"weight_decay": 0.1, **EVERY_OPTION}
    found = fit(network(), ours(name, **options), jit_compile=True)
    expected = fit(network(), ours(name, **options), jit_compile=False)
    for one, other in zip(found, expected, strict=True):
        # Lion takes the sign of what can be zero but for rounding.
        np.testing.assert_allclose(one, other, atol=0.02 if name == "lion" else 1e-5)


# In pure bfloat16 Keras's own Adam stands still: its beta_2 rounds to 1.
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
@pytest.mark.parametrize("name", ["sgd", "adam", "lion"])
def test_it_runs_in_half_precision(name, policy):
    model = network(policy)
    optimizer = ours(name, epsilon=1e-3) if name in ("adam", "adamw", "rmsprop") else ours(name)
    config = {**optimizer.get_config(), **EVERY_OPTION, "weight_decay": 0.1}
    optimizer = type(optimizer).from_config(config)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    before = [x.astype("float32") for x in weights(model)]
    after = [x.astype("float32") for x in fit(model, optimizer)]
    assert all(np.isfinite(x).all() for x in after)
    assert not np.array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[3], after[3])
    assert len(optimizers.averages(optimizer)) == 4
    for _, mean in optimizers.averages(optimizer):
        assert np.isfinite(ops.convert_to_numpy(mean).astype("float32")).all()


@pytest.mark.parametrize("name", RULES)
def test_four_batches_of_8_added_up_are_a_batch_of_32(name):
    options = {"weight_decay": 0.1, **EVERY_OPTION}
    small = ours(name, gradient_accumulation_steps=4, **options)
    large = ours(name, **options)
    found = fit(network(), small, steps=6, batch_size=8)
    expected = fit(network(), large, steps=6, batch_size=32)
    means = [[ops.convert_to_numpy(m) for _, m in optimizers.averages(o)] for o in (small, large)]
    for one, other in zip([*found, *means[0]], [*expected, *means[1]], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@on_tensorflow
@pytest.mark.parametrize("name", ["sgd", "adam", "lion"])
def test_an_embedding_s_sparse_gradients_are_taken(name):
    def trained(optimizer):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((3,))
        words = keras.layers.Embedding(5, 4, name="words")(inputs)
        outputs = keras.layers.Dense(1, name="top")(keras.layers.Flatten()(words))
        model = keras.Model(inputs, outputs)
        model.compile(optimizer, "mse")
        x = np.arange(24).reshape(8, 3) % 4
        model.fit(x, np.ones((8, 1)), batch_size=4, epochs=3, verbose=0, shuffle=False)
        return weights(model)

    expected = theirs(name)
    expected.exclude_from_weight_decay(var_names=["bias"])
    assert_equal(trained(ours(name)), trained(expected))
    shares = {"words/embeddings": 0.0, "top/kernel": 1.0, "top/bias": 1.0}
    frozen = trained(ours(name, rates=shares, pull=0.1, average=0.9))
    untrained = trained(ours(name, 0.0))
    np.testing.assert_array_equal(frozen[0], untrained[0])


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop", "lion"])
def test_carried_over_in_mid_training_nothing_changes(name):
    for original in (ours, theirs):
        variables, copies = (made((2, 3), (4,)) for _ in range(2))
        series = gradients(variables, 10)
        straight = ours(name, no_decay=[])
        straight.build(copies)
        for grads in series:
            apply(straight, grads, copies)
        first = original(name)
        if original is ours:
            first = ours(name, no_decay=[])
        first.build(variables)
        for grads in series[:4]:
            apply(first, grads, variables)
        second = optimizers.convert(first)
        second.build(variables)
        optimizers.carry_over(first, second, continue_iterations=True)
        assert int(ops.convert_to_numpy(second.iterations)) == 4
        assert optimizers.ages(second) == {}
        for grads in series[4:]:
            apply(second, grads, variables)
        assert_equal(values(variables), values(copies))


@pytest.mark.parametrize("continue_iterations", [True, False])
def test_carry_over_keeps_the_slots_of_known_variables_and_lets_new_ones_be_born(
    continue_iterations,
):
    top, low = made((2, 3), (4,), names=["top", "low"])
    old = ours("adam", 0.01, average=0.9, pull=0.1)
    old.build([top])
    old.rate_scale.assign(0.5)
    old.learning_rate = 0.02
    for grads in gradients([top], 30):
        apply(old, grads, [top])
    kept = {name: ops.convert_to_numpy(v).copy() for name, v in optimizers.slots(old).items()}
    new = ours("adam", 0.01, average=0.9, pull=0.1)
    new.build([low, top])
    optimizers.carry_over(old, new, continue_iterations=continue_iterations)
    found = {name: ops.convert_to_numpy(v) for name, v in optimizers.slots(new).items()}
    for kind in ("momentums", "velocities", "averages", "starts"):
        np.testing.assert_array_equal(found[f"{kind}/top"], kept[f"{kind}/top"])
    assert not found["momentums/low"].any()
    assert optimizers.ages(new) == ({"low": -30} if continue_iterations else {"top": 30})
    assert found["iterations"] == (30 if continue_iterations else 0)
    assert found["rate_scale"] == (0.5 if continue_iterations else 1.0)
    assert found["learning_rate"] == pytest.approx(0.02 if continue_iterations else 0.01)
    before = values([low])[0]
    apply(new, [np.full((4,), 1e4, "float32"), np.zeros((2, 3), "float32")], [low, top])
    assert np.abs(values([low])[0] - before).max() <= 0.01 * 1.0001


def test_a_variable_of_rate_0_is_newborn_when_it_is_carried_over():
    variables = made((2,), (2,), names=["low", "top"])
    old = ours("adam", rates={"low": 0.0, "top": 1.0})
    old.build(variables)
    for grads in gradients(variables, 50):
        apply(old, grads, variables)
    new = ours("adam", 0.01)
    new.build(variables)
    optimizers.carry_over(old, new, continue_iterations=True)
    assert optimizers.ages(new) == {"low": -50}
    before = values(variables)[0]
    apply(new, [np.full((2,), 1e4, "float32"), np.zeros(2, "float32")], variables)
    assert np.abs(values(variables)[0] - before).max() <= 0.01 * 1.0001


@pytest.mark.parametrize("name", ["adamax", "nadam", "adagrad"])
def test_slots_of_other_rules_start_fresh(name):
    variables = made((2, 3))
    old, new = (ours(name, pull=0.1) for _ in range(2))
    old.build(variables)
    for grads in gradients(variables, 20):
        apply(old, grads, variables)
    start = ops.convert_to_numpy(optimizers.slots(old)["starts/kernel_0"]).copy()
    new.build(variables)
    fresh = {name: ops.convert_to_numpy(v).copy() for name, v in optimizers.slots(new).items()}
    optimizers.carry_over(old, new, continue_iterations=True)
    found = optimizers.slots(new)
    same = set(fresh) - {"iterations", "starts/kernel_0"}
    for slot in same:
        np.testing.assert_array_equal(ops.convert_to_numpy(found[slot]), fresh[slot])
    np.testing.assert_array_equal(ops.convert_to_numpy(found["starts/kernel_0"]), start)
    assert optimizers.ages(new) == {"kernel_0": -20}


def test_half_full_accumulators_go_on_with_the_iterations():
    variables, copies = (made((2, 3)) for _ in range(2))
    series = gradients(variables, 8)
    first, straight = (ours("adam", gradient_accumulation_steps=4) for _ in range(2))
    straight.build(copies)
    first.build(variables)
    for grads in series:
        apply(straight, grads, copies)
    for grads in series[:6]:
        apply(first, grads, variables)
    second = ours("adam", gradient_accumulation_steps=4)
    second.build(variables)
    optimizers.carry_over(first, second, continue_iterations=True)
    for grads in series[6:]:
        apply(second, grads, variables)
    assert_equal(values(variables), values(copies))
    other = ours("adam", gradient_accumulation_steps=2)
    other.build(variables)
    optimizers.carry_over(second, other, continue_iterations=True)
    assert int(ops.convert_to_numpy(other.iterations)) == 2


@on_tensorflow  # elsewhere Keras's LossScaleOptimizer cannot be applied eagerly
def test_the_loss_scale_is_carried_over():
    variables = made((2, 3))
    wrapped = [keras.optimizers.LossScaleOptimizer(ours("adam")) for _ in range(2)]
    for optimizer in wrapped:
        optimizer.build(variables)
    apply(wrapped[0], [np.full((2, 3), np.inf, "float32")], variables)
    apply(wrapped[0], [np.ones((2, 3), "float32")], variables)
    optimizers.carry_over(*wrapped, continue_iterations=True)
    before, after = (
        {name: ops.convert_to_numpy(v) for name, v in optimizers.slots(o).items()} for o in wrapped
    )
    assert before.keys() == after.keys()
    for name in set(before) - {"loss_scale/iterations"}:
        np.testing.assert_array_equal(before[name], after[name])
    assert after["loss_scale/dynamic_scale"] == 2.0**14


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_slots_name_every_variable_once_and_alike_in_every_optimizer(name):
    options = {"average": 0.9, "pull": 0.1, "gradient_accumulation_steps": 2}
    found = []
    for wrap in (lambda x: x, lambda x: x, keras.optimizers.LossScaleOptimizer):
        optimizer = wrap(ours(name, **options))
        optimizer.build(network().trainable_variables)
        found.append(optimizers.slots(optimizer))
        assert len(found[-1]) >= len(optimizer.variables)
    assert list(found[0]) == list(found[1])
    assert set(found[2]) > set(found[0])
    assert {"iterations", "learning_rate", "rate_scale"} < set(found[0])
    assert {"averages/top/kernel", "starts/low/bias"} < set(found[0])


def test_variables_of_one_path_have_numbered_slots():
    variables = made((2,), (3,), names=["kernel", "kernel"])
    optimizer = ours("sgd")
    optimizer.build(variables)
    assert {"momentums/kernel#1", "momentums/kernel#2"} < set(optimizers.slots(optimizer))


@pytest.mark.parametrize("name", optimizers.CARRIED)
def test_a_converted_optimizer_trains_like_the_original(name):
    schedule = optimizers.StageSchedule("cosine", 0.01, 20, 2)
    rate = schedule if name == "adam" else 0.01
    options = {"weight_decay": 0.1, "global_clipnorm": 0.5, "gradient_accumulation_steps": 2}
    original = theirs(name, rate, **options)
    original.exclude_from_weight_decay(var_names=["top"])
    converted = optimizers.convert(original)
    assert type(converted) is optimizers.OPTIMIZERS[name]
    assert_equal(fit(network(), converted, 10), fit(network(), original, 10))
    assert (converted._learning_rate is schedule) == (rate is schedule)


def test_converting_ours_keeps_the_options_but_those_that_are_given():
    original = ours("nadam", **EVERY_OPTION)
    original.learning_rate = 0.5
    converted = optimizers.convert(original, warmup_steps=9, pull=None)
    config = original.get_config()
    assert converted.get_config() == {**config, "warmup_steps": 9, "pull": None}
    assert config["learning_rate"] == 0.5


def test_a_loss_scale_optimizer_stays_one():
    original = keras.optimizers.LossScaleOptimizer(theirs("adam"), initial_scale=8.0)
    converted = optimizers.convert(original, average=0.9)
    assert isinstance(converted, keras.optimizers.LossScaleOptimizer)
    assert isinstance(converted.inner_optimizer, optimizers.OPTIMIZERS["adam"])
    assert converted.inner_optimizer.average == 0.9
    assert converted.initial_scale == 8.0


class OwnAdam(keras.optimizers.Adam):
    pass


@pytest.mark.parametrize("optimizer", [OwnAdam, keras.optimizers.Ftrl, keras.optimizers.Nadam])
def test_other_optimizers_are_not_converted(optimizer):
    message = f"optimizer '{optimizer.__name__}' cannot be converted; .*SGD, Adam, AdamW, RMSprop"
    with pytest.raises(ModelError, match=message):
        optimizers.convert(optimizer(0.1))


def test_an_optimizer_with_keras_s_average_is_not_converted():
    with pytest.raises(ModelError, match=r"compile without it and ask for average=0\.99"):
        optimizers.convert(keras.optimizers.Adam(use_ema=True))


def test_ages_survive_a_checkpoint():
    optimizer = keras.optimizers.LossScaleOptimizer(ours("adam", ages={"low": -3}))
    said = json.loads(json.dumps(optimizers.ages(optimizer)))
    again = ours("adam")
    optimizers.set_ages(again, said)
    assert optimizers.ages(again) == {"low": -3}
    assert optimizers.ages(theirs("adam")) == {}


def test_make_passes_every_option_on():
    choice = recipes.Optimizer(name="adam", weight_decay=0.5, clipnorm=1.0)
    schedule = optimizers.StageSchedule("linear", 0.1, 10)
    config = optimizers.make(
        choice,
        schedule,
        rates={"low": 0.5},
        newborn=["low"],
        warmup_steps=3,
        accumulate_steps=4,
        average=0.9,
        pull=0.1,
        unpulled=("top",),
    ).get_config()
    expected = {
        "weight_decay": 0.5,
        "clipnorm": 1.0,
        "rates": {"low": 0.5},
        "newborn": ["low"],
        "warmup_steps": 3,
        "gradient_accumulation_steps": 4,
        "average": 0.9,
        "pull": 0.1,
        "unpulled": ["top"],
    }
    assert {key: config[key] for key in expected} == expected
    plain = optimizers.make(recipes.Optimizer(), 0.1)
    assert plain.gradient_accumulation_steps is None
    assert plain.rates is None


MIRRORED = """
import sys, numpy as np, tensorflow as tf
device = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)
sys.path.insert(0, sys.argv[1])
import test_optimizers as t
from kerastune_ft import optimizers

options = {"weight_decay": 0.1, **t.EVERY_OPTION}

def trained(name, built):
    model, optimizer = t.network(), t.ours(name, **options)
    if built:
        optimizer.build(model.trainable_variables)
    model.compile(optimizer, "mse")
    data = tf.data.Dataset.from_tensor_slices(t.batches(10)).batch(32)
    model.fit(data, verbose=0)
    return t.weights(model) + [v.numpy() for _, v in optimizers.averages(optimizer)]

for name in ("sgd", "adam", "adamw", "rmsprop"):
    for built in (True, False):
        alone = trained(name, True)
        with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
            both = trained(name, built)
        for one, other in zip(alone, both, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-5)
        print(name, built, "agree")
"""


def process(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=500,
    )


@pytest.mark.slow
@on_tensorflow
def test_two_mirrored_devices_train_like_one():
    done = process("-c", MIRRORED, str(Path(__file__).parent))
    assert done.stdout.count("agree") == 8, done.stdout + done.stderr


@pytest.mark.slow
@on_tensorflow
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_all_of_this_holds_on_the_jax_backend():
    done = process(
        *("-m", "pytest", "-q", "-p", "no:xdist", "-o", "addopts=-m 'not slow'"),
        __file__,
        KERAS_BACKEND="jax",
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
