"""Heads: pooling, hidden layers, units, and taking a former head over."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest

from kerastune_ft import heads, models
from kerastune_ft.errors import ModelError

PICTURES = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
NARROW = {"weights": "none", "image_size": 32, "alpha": 0.25}


@pytest.fixture(autouse=True, scope="module")
def _free_memory():
    yield
    keras.backend.clear_session()


def on_features(head, *shape):
    """Returns the head alone, as a model on features of this shape."""
    features = keras.Input(shape)
    return keras.Model(features, head.apply(features))


def pooled_of(model):
    return next(x for x in model.layers if isinstance(x, keras.layers.Dropout)).input


def gem(features, axes):
    powers = np.maximum(features.astype("float64"), 1e-6) ** 3
    return np.cbrt(powers.mean(axis=axes))


REFERENCES = {
    "avg": lambda features, axes: features.mean(axis=axes),
    "max": lambda features, axes: features.max(axis=axes),
    "gem": gem,
    "token": lambda features, axes: features[:, 0],
}


@pytest.mark.parametrize("shape", [(3, 5, 6), (1, 4, 6), (1, 1, 6), (9, 6)], ids=str)
@pytest.mark.parametrize("pooling", heads.POOLINGS)
def test_pooling_is_what_its_name_says(pooling, shape, tmp_path):
    if pooling == "token" and len(shape) == 3:
        pytest.skip("a map has no tokens")
    head = heads.Head("logits", 2, pooling=pooling)
    model = on_features(head, *shape)
    pooled = keras.Model(model.input, pooled_of(model))
    features = np.random.default_rng(1).normal(0, 2, (4, *shape)).astype("float32")
    expected = REFERENCES[pooling](features, tuple(range(1, len(shape))))
    found = pooled(features)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)
    model.save(tmp_path / "m.keras")
    reloaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(reloaded(features), model(features))


def test_the_table_of_poolings_is_the_type():
    assert set(heads.POOLINGS) == set(REFERENCES)
    assert {*heads.POOLINGS, *heads.TEXT_POOLINGS} == set(heads.Pooling.__args__)


def test_the_generalised_mean_has_a_slope_where_features_are_zero():
    import tensorflow as tf

    model = on_features(heads.Head("logits", 2, pooling="gem", dropout=0.0), 2, 2, 3)
    features = tf.zeros((1, 2, 2, 3))
    with tf.GradientTape() as tape:
        tape.watch(features)
        total = keras.ops.sum(model(features))
    assert np.isfinite(tape.gradient(total, features)).all()


@pytest.mark.parametrize("pooling", ["avg", "max", "gem", "token"])
def test_outputs_and_pooled_powers_are_float32_under_mixed_precision(pooling):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        head = heads.Head("logits", 2, pooling=pooling, hidden=(5,))
        model = on_features(head, 7, 6)
        regressor = on_features(
            heads.Head("standardised", 1, units=heads.Units((1000.0,), (3.0,))), 7, 6
        )
    finally:
        keras.config.set_dtype_policy("float32")
    features = np.random.default_rng(1).uniform(0, 2, (4, 7, 6))
    assert model(features).dtype == "float32"
    assert regressor(features).dtype == "float32"
    assert model.get_layer("hidden_1").compute_dtype == "bfloat16"
    if pooling == "gem":
        pooled = keras.Model(model.input, pooled_of(model))(features)
        assert pooled.dtype == "float32"
        # Powers in bfloat16 would be off by some 0.4 percent.
        np.testing.assert_allclose(pooled, gem(features, (1,)), rtol=1e-5)


def test_hidden_layers_stand_in_order_with_dropout_before_each():
    model = on_features(heads.Head("logits", 2, hidden=(5, 4), dropout=0.5, seed=3), 2, 2, 6)
    assert [layer.name for layer in model.layers[1:]] == [
        "pooling",
        "dropout_1",
        "hidden_1",
        "dropout_2",
        "hidden_2",
        "dropout",
        "logits",
    ]
    assert [layer.units for layer in heads._dense_layers(model)] == [5, 4, 2]
    assert model.get_layer("hidden_1").activation is keras.activations.relu
    assert model.get_layer("logits").activation is keras.activations.linear
    assert {model.get_layer(f"dropout{end}").rate for end in ("", "_1", "_2")} == {0.5}


def test_layers_draw_from_seeds_of_their_own_that_the_head_s_seed_decides():
    def seeds(seed):
        model = on_features(heads.Head("logits", 6, hidden=(6, 6), seed=seed), 2, 2, 6)
        drawn = [x.seed for x in model.layers if isinstance(x, keras.layers.Dropout)]
        dense = heads._dense_layers(model)
        return drawn + [x.kernel_initializer.seed for x in dense], [x.get_weights() for x in dense]

    first, again, other = seeds(0), seeds(0), seeds(1)
    assert first[0] == again[0]
    assert len({*first[0], *other[0]}) == 12
    kernels = [weights[0] for weights in first[1]]
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(kernels, 2))
    assert all(np.array_equal(a, b[0]) for a, b in zip(kernels, again[1], strict=True))


def test_dropout_acts_in_training_alone():
    model = on_features(heads.Head("logits", 3, hidden=(8,), dropout=0.5, seed=0), 2, 2, 6)
    features = np.random.default_rng(0).uniform(0, 1, (2, 2, 2, 6))
    np.testing.assert_array_equal(model(features), model(features))
    first, second = model(features, training=True), model(features, training=True)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"pooling": "agv"},
            "pooling: expected avg, max, gem, token, last, got 'agv'; did you mean 'avg",
        ),
        ({"pooling": "token"}, "'token' takes a transformer's first token"),
        ({"hidden": (8, 0)}, r"hidden: expected widths of 1 or more, got \[8, 0\]"),
        ({"dropout": 1.0}, "dropout: expected 0 or more and less than 1, got 1.0"),
        ({"dropout": -0.1}, "dropout: expected 0 or more"),
    ],
)
@pytest.mark.parametrize(
    "builder", [models.image_classifier, models.image_multilabel, models.image_regressor]
)
def test_bad_settings_of_a_head_say_what_would_be_right(builder, arguments, message):
    with pytest.raises(ModelError, match=message):
        builder("mobilenet", 3, **NARROW, **arguments)


@pytest.mark.parametrize(
    ("builder", "arguments", "message"),
    [
        (models.image_classifier, {"num_classes": 1}, "num_classes: expected 2 or more, got 1"),
        (models.image_multilabel, {"num_labels": 0}, "num_labels: expected 1 or more, got 0"),
        (models.image_regressor, {"num_targets": 0}, "num_targets: expected 1 or more, got 0"),
        (
            models.image_regressor,
            {"num_targets": 2, "mean": [1.0]},
            "mean: expected 2 numbers, one per target, got 1",
        ),
        (
            models.image_regressor,
            {"num_targets": 1, "mean": [float("nan")]},
            "mean: expected finite numbers",
        ),
        (
            models.image_regressor,
            {"num_targets": 1, "std": [float("inf")]},
            "std: expected finite numbers",
        ),
        (models.image_regressor, {"num_targets": 1, "std": [0.0]}, "std: expected numbers above 0"),
    ],
)
def test_bad_numbers_of_outputs_and_units_say_what_would_be_right(builder, arguments, message):
    with pytest.raises(ModelError, match=message):
        builder("mobilenet", **NARROW, **arguments)


def test_one_label_is_enough_for_several_labels():
    model = models.image_multilabel("mobilenet", 1, **NARROW)
    assert model.predict(PICTURES, verbose=0).shape == (4, 1)
    assert [block.name for block in models.blocks(model) if block.trainable] == ["head"]
    assert [layer.name for layer in models.blocks(model)[-1].layers] == ["logits"]


def test_a_regressor_answers_in_the_targets_own_units(tmp_path):
    keras.utils.set_random_seed(0)
    mean, std = [50.0, -2.0], [10.0, 0.5]
    model = models.image_regressor("mobilenet", 2, mean=mean, std=std, hidden=(4,), **NARROW)
    standardised = keras.Model(model.input, model.get_layer("standardised").output)
    raw = keras.ops.convert_to_numpy(standardised(PICTURES))
    found = keras.ops.convert_to_numpy(model(PICTURES))
    np.testing.assert_allclose(found, raw * std + mean, rtol=1e-6)
    assert [x.name for x in models.blocks(model)[-1].layers] == ["hidden_1", "standardised"]
    model.save(tmp_path / "m.keras")
    reloaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(reloaded(PICTURES), found)


def test_a_rectangular_picture_and_any_pooling_give_one_row_per_picture():
    pictures = np.zeros((2, 32, 96, 3), "float32")
    for pooling in ("avg", "max", "gem"):
        settings = {**NARROW, "image_size": (32, 96)}
        model = models.image_classifier("mobilenet", 3, pooling=pooling, **settings)
        assert model(pictures).shape == (2, 3)


def copy_backbone(model, former):
    models.backbone_of(model)[0].set_weights(models.backbone_of(former)[0].get_weights())


def give_biases(model):
    """Makes every bias of the head count."""
    rng = np.random.default_rng(5)
    for layer in heads._dense_layers(model):
        layer.bias.assign(rng.normal(0, 1, layer.bias.shape))


@pytest.mark.parametrize("builder", [models.image_classifier, models.image_multilabel])
@pytest.mark.parametrize("hidden", [(), (7, 5)])
def test_a_head_taken_over_gives_the_same_outputs_under_their_names(builder, hidden):
    keras.utils.set_random_seed(0)
    settings = {**NARROW, "hidden": hidden, "pooling": "gem"}
    former, model = builder("mobilenet", 3, **settings), builder("mobilenet", 3, **settings)
    copy_backbone(model, former)
    give_biases(former)
    before = former.get_weights()
    said = models.take_over_head(model, former, ["ape", "bee", "cat"], ["cat", "ape", "bee"])
    assert said == "head taken over: 3 outputs matched by name, in another order"
    expected = keras.ops.convert_to_numpy(former(PICTURES))[:, [2, 0, 1]]
    np.testing.assert_allclose(model(PICTURES), expected, rtol=1e-5, atol=1e-6)
    assert all(np.array_equal(a, b) for a, b in zip(before, former.get_weights(), strict=True))


def test_a_regressor_s_head_keeps_its_function_in_the_targets_units():
    keras.utils.set_random_seed(0)
    former = models.image_regressor("mobilenet", 2, mean=[50, -2], std=[10, 0.5], **NARROW)
    model = models.image_regressor("mobilenet", 2, mean=[-1, 48], std=[0.7, 12], **NARROW)
    copy_backbone(model, former)
    give_biases(former)
    said = models.take_over_head(model, former, ["weight", "depth"], ["depth", "weight"])
    assert said == (
        "head taken over: 2 outputs matched by name, in another order, converted to the new mean "
        "and standard deviation"
    )
    expected = keras.ops.convert_to_numpy(former(PICTURES))[:, [1, 0]]
    np.testing.assert_allclose(model(PICTURES), expected, rtol=1e-5)


def former_of(**changes):
    builder = changes.pop("builder", models.image_classifier)
    return builder(changes.pop("backbone", "mobilenet"), 2, **{**NARROW, **changes})


@pytest.mark.parametrize(
    ("changes", "names", "reason"),
    [
        ({}, ["ape", "cat"], "has no 'bee' and has 'cat', which is not asked for"),
        ({}, ["ape"], "has 2 outputs, but 1 names are kept"),
        ({"pooling": "max"}, ["ape", "bee"], "pools its features in another way"),
        ({"hidden": (4,)}, ["ape", "bee"], "dense layers are 256x2, .* 256x4, 4x2"),
        ({"alpha": 0.5}, ["ape", "bee"], "dense layers are 256x2, .* 512x2"),
        ({"builder": models.image_regressor}, ["ape", "bee"], "former model has 'standardised'"),
        (
            {"backbone": "mobilenet_v2", "alpha": 0.35},
            ["ape", "bee"],
            "stands on 'mobilenet_v2', this one on 'mobilenet'",
        ),
    ],
)
def test_a_head_that_does_not_fit_is_left_new_as_a_whole(changes, names, reason):
    model = former_of()
    before = model.get_weights()
    said = models.take_over_head(model, former_of(**changes), names, ["ape", "bee"])
    assert said.startswith("head is new: ")
    import re

    assert re.search(reason, said), said
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
