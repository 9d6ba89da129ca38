"""The builders and the one function that decides what is trainable."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kerastune_ft import backbones, models
from kerastune_ft.errors import ModelError, WeightsError

PICTURES = np.random.default_rng(0).uniform(0, 255, (6, 32, 32, 3)).astype("float32")
LABELS = np.eye(3, dtype="float32")[[0, 1, 2, 0, 1, 2]]


def snapshot(model):
    return {
        path: keras.ops.convert_to_numpy(weight).copy()
        for _, path, weight in models.named_weights(model)
    }


def train_a_little(model):
    model.compile(keras.optimizers.SGD(0.5), keras.losses.CategoricalCrossentropy(from_logits=True))
    model.fit(PICTURES, LABELS, batch_size=6, epochs=2, verbose=0)


def test_takes_raw_pixels_and_returns_float32_logits(classifier):
    logits = classifier.predict(PICTURES, verbose=0)
    assert logits.shape == (6, 3)
    assert logits.dtype == np.float32
    assert classifier.input_shape == (None, 32, 32, 3)
    assert not np.allclose(logits.sum(axis=1), 1.0)


def test_blocks_cover_every_layer_of_the_backbone_once(classifier):
    network, row = models.backbone_of(classifier)
    *body, head = models.blocks(classifier)
    assert [block.name for block in body] == list(row.cuts)
    covered = [layer.name for block in body for layer in block.layers]
    assert covered == [layer.name for layer in network.layers]
    assert [layer.name for layer in head.layers] == ["logits"]
    total = sum(block.parameters for block in [*body, head])
    assert total == classifier.count_params()


def test_a_new_classifier_trains_its_head_alone(classifier):
    assert [block.name for block in models.blocks(classifier) if block.trainable] == ["head"]
    before = snapshot(classifier)
    train_a_little(classifier)
    after = snapshot(classifier)
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert moved == {"logits/0/kernel", "logits/1/bias"}


@pytest.mark.parametrize("blocks", [1, 4])
def test_unfreeze_top_moves_the_weights_above_the_cut_and_no_batch_norm(classifier, blocks):
    models.unfreeze_top(classifier, blocks)
    expected = {
        path
        for block, path, weight in models.named_weights(classifier)
        if block in [b.name for b in models.blocks(classifier)[-blocks - 1 :]]
        and not path.split("/")[0].endswith("BN")
        and "bn" not in path.split("/")[0].lower()
    }
    before = snapshot(classifier)
    train_a_little(classifier)
    after = snapshot(classifier)
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert moved == expected
    assert len(expected) > 2


def test_batch_norm_trains_where_asked_and_only_above_the_cut(classifier):
    models.unfreeze_top(classifier, 2, batch_norm="train")
    before = snapshot(classifier)
    train_a_little(classifier)
    after = snapshot(classifier)
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert "Conv_1_bn/2/moving_mean" in moved
    assert not any(path.startswith("block_10_") for path in moved)


def test_unfreezing_then_freezing_leaves_the_head_alone(classifier):
    models.unfreeze_top(classifier, -1)
    assert all(block.trainable for block in models.blocks(classifier))
    models.freeze(classifier)
    assert [block.name for block in models.blocks(classifier) if block.trainable] == ["head"]
    models.unfreeze_top(classifier, 3)
    assert sum(block.trainable for block in models.blocks(classifier)) == 4


def test_unfreeze_top_works_on_a_model_whose_containers_were_frozen_by_hand(classifier):
    classifier.trainable = False
    models.unfreeze_top(classifier, 2)
    assert sum(block.trainable for block in models.blocks(classifier)) == 3
    assert classifier.trainable_variables


@pytest.mark.parametrize("blocks", [-2, 20])
def test_more_blocks_than_there_are_is_an_error(classifier, blocks):
    with pytest.raises(ModelError, match=r"has 19 blocks; expected -1 \(all\) to 19"):
        models.unfreeze_top(classifier, blocks)


def test_a_saved_model_reloads_with_plain_keras_and_keeps_blocks_flags_and_logits(
    classifier, tmp_path
):
    models.unfreeze_top(classifier, 3)
    classifier.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_array_equal(
        reloaded.predict(PICTURES, verbose=0), classifier.predict(PICTURES, verbose=0)
    )
    assert [(b.name, b.trainable_parameters) for b in models.blocks(reloaded)] == [
        (b.name, b.trainable_parameters) for b in models.blocks(classifier)
    ]
    models.unfreeze_top(reloaded, 1)
    assert sum(block.trainable for block in models.blocks(reloaded)) == 2


def test_a_model_file_needs_nothing_of_this_package(classifier, tmp_path):
    """What is saved names no class outside Keras, so that any Keras can load it."""
    import json
    import zipfile

    classifier.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        config = json.loads(archive.read("config.json"))

    def modules(node):
        if isinstance(node, dict):
            if "module" in node:
                yield node["module"] or ""
            for value in node.values():
                yield from modules(value)
        elif isinstance(node, list):
            for value in node:
                yield from modules(value)

    found = set(modules(config))
    assert found
    assert not [name for name in found if "kerastune" in name]


def test_the_same_seed_builds_the_same_model():
    def build(seed):
        keras.utils.set_random_seed(seed)
        return models.image_classifier(
            "mobilenet_v2", 3, weights="none", image_size=32, alpha=0.35, seed=seed
        ).get_weights()

    first, again, other = build(1), build(1), build(2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_weights_of_a_saved_model_continue_in_another_size_and_number_of_classes(
    classifier, tmp_path
):
    train_a_little(classifier)
    classifier.save(tmp_path / "model.keras")
    other = models.image_classifier(
        "mobilenet_v2", 7, weights=str(tmp_path / "model.keras"), image_size=(48, 64), alpha=0.35
    )
    theirs, ours = snapshot(other), snapshot(classifier)
    assert all(
        np.array_equal(theirs[path], ours[path]) for path in ours if not path.startswith("logits")
    )
    assert other.output_shape == (None, 7)


def test_overfits_sixteen_pictures(classifier):
    rng = np.random.default_rng(1)
    pictures = rng.uniform(0, 255, (16, 32, 32, 3)).astype("float32")
    labels = np.eye(3, dtype="float32")[rng.integers(0, 3, 16)]
    models.unfreeze_top(classifier, -1, batch_norm="train")
    classifier.compile(
        keras.optimizers.Adam(3e-3),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = classifier.fit(pictures, labels, batch_size=16, epochs=30, verbose=0)
    assert history.history["accuracy"][-1] == 1.0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"backbone": "mobilnet_v2"}, ModelError, "did you mean 'mobilenet_v2'"),
        ({"num_classes": 1}, ModelError, "num_classes: expected 2 or more, got 1"),
        ({"image_size": 16}, ModelError, "at least 32"),
        ({"weights": "imagnet"}, WeightsError, "did you mean 'imagenet'"),
        ({"alpha": 0.4}, ModelError, "alpha 0.4"),
    ],
)
def test_bad_arguments_say_what_would_be_right(arguments, error, message):
    settings = {"backbone": "mobilenet_v2", "num_classes": 3, "weights": "none", "image_size": 32}
    settings.update(arguments)
    with pytest.raises(error, match=message):
        models.image_classifier(settings.pop("backbone"), settings.pop("num_classes"), **settings)


def test_a_model_of_somebody_else_is_refused():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    with pytest.raises(ModelError, match="no backbone found"):
        models.blocks(model)


def test_every_row_is_in_the_table_under_its_own_name():
    assert backbones.BACKBONES
    assert all(name == row.name for name, row in backbones.BACKBONES.items())
