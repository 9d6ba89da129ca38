"""The builders and the one function that decides what is trainable."""

from __future__ import annotations

import dataclasses
import gc
import itertools

import keras
import numpy as np
import pytest
from conftest import fill_batch_norm_statistics

from kerastune_ft import backbones, callbacks, models
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
def test_unfreeze_moves_the_weights_above_the_cut_and_no_batch_norm(classifier, blocks):
    models.unfreeze(classifier, blocks)
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
    models.unfreeze(classifier, 2, batch_norm="train")
    before = snapshot(classifier)
    train_a_little(classifier)
    after = snapshot(classifier)
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert "Conv_1_bn/2/moving_mean" in moved
    assert not any(path.startswith("block_10_") for path in moved)


def test_unfreezing_then_freezing_leaves_the_head_alone(classifier):
    models.unfreeze(classifier, -1)
    assert all(block.trainable for block in models.blocks(classifier))
    models.freeze(classifier)
    assert [block.name for block in models.blocks(classifier) if block.trainable] == ["head"]
    models.unfreeze(classifier, 3)
    assert sum(block.trainable for block in models.blocks(classifier)) == 4


def test_unfreeze_works_on_a_model_whose_containers_were_frozen_by_hand(classifier):
    classifier.trainable = False
    models.unfreeze(classifier, 2)
    assert sum(block.trainable for block in models.blocks(classifier)) == 3
    assert classifier.trainable_variables


@pytest.mark.parametrize("blocks", [-2, 20])
def test_more_blocks_than_there_are_is_an_error(classifier, blocks):
    with pytest.raises(ModelError, match=r"has 19 blocks; expected -1 \(all\) to 19"):
        models.unfreeze(classifier, blocks)


def test_a_saved_model_reloads_with_plain_keras_and_keeps_blocks_flags_and_logits(
    classifier, tmp_path
):
    models.unfreeze(classifier, 3)
    classifier.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_array_equal(
        reloaded.predict(PICTURES, verbose=0), classifier.predict(PICTURES, verbose=0)
    )
    assert [(b.name, b.trainable_parameters) for b in models.blocks(reloaded)] == [
        (b.name, b.trainable_parameters) for b in models.blocks(classifier)
    ]
    models.unfreeze(reloaded, 1)
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


@pytest.mark.slow
def test_overfits_sixteen_pictures(classifier):
    rng = np.random.default_rng(1)
    pictures = rng.uniform(0, 255, (16, 32, 32, 3)).astype("float32")
    labels = np.eye(3, dtype="float32")[rng.integers(0, 3, 16)]
    models.unfreeze(classifier, -1, batch_norm="train")
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
        ({"channels": 0}, ModelError, "channels"),
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


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_pictures_may_have_any_number_of_channels(channels):
    model = models.image_classifier(
        "mobilenet_v2", 3, weights="none", image_size=32, alpha=0.35, channels=channels
    )
    assert model(np.zeros((2, 32, 32, channels), "float32")).shape == (2, 3)


def test_the_first_tag_of_a_backbone_is_its_default():
    with pytest.raises(WeightsError) as default:
        models.image_classifier("mobilenet", 3, image_size=64, alpha=0.25)
    with pytest.raises(WeightsError) as first:
        models.image_classifier("mobilenet", 3, weights="imagenet", image_size=64, alpha=0.25)
    assert str(default.value) == str(first.value)


# Below: a network whose layers hold layers, and then every row.


def parts_of(layer):
    return [part for part in layer._flatten_layers() if part.weights]


def batch_norm_weights(network):
    """Ids of all variables of BatchNormalization, at any depth."""
    return {
        id(weight)
        for part in parts_of(network)
        if isinstance(part, keras.layers.BatchNormalization)
        for weight in part.weights
    }


def weights_below(model, blocks):
    """The variables from the input up to a cut, found by Keras from the graph alone."""
    network, _ = models.backbone_of(model)
    body = models.blocks(model)[:-1]
    if blocks in (-1, len(body)):
        return []
    cut = network.get_layer(body[-blocks - 1].name) if blocks else network.layers[-1]
    return keras.Model(network.input, cut.output).weights


def check_marked(model, blocks):
    """What trains are the head and all of the backbone but what is below the cut and BN's."""
    network, _ = models.backbone_of(model)
    frozen = {id(weight) for weight in weights_below(model, blocks)} | batch_norm_weights(network)
    # What no layer ever trains, such as the published position embeddings of DINOv2.
    frozen |= {id(x) for part in parts_of(network) for x in part._non_trainable_variables}
    marked = [id(weight) for weight in model.trainable_variables]
    assert sorted(marked) == sorted({id(weight) for weight in model.weights} - frozen)


def step(model, optimizer):
    """Takes one step and returns what a freeze audit found, after a check of its own.

    The squared error has a slope for every picture, which cross-entropy on the huge logits of a
    random network has not; and of eight pictures stochastic depth leaves out some, not all.
    """
    network, _ = models.backbone_of(model)
    marked = {id(weight) for weight in model.trainable_variables}
    kept = [
        (weight, weight.numpy().copy()) for weight in network.weights if id(weight) not in marked
    ]
    model.compile(optimizer, "mse", run_eagerly=True)
    audit = callbacks.FreezeAudit(raises=False)
    audit.set_model(model)
    audit.on_train_begin()
    shape = (8, *model.input_shape[1:])
    pictures = np.random.default_rng(2).uniform(0, 255, shape).astype("float32")
    model.train_on_batch(pictures, np.eye(3, dtype="float32")[[0, 1, 2, 0, 1, 2, 0, 1]])
    audit.on_train_end()
    assert all(np.array_equal(weight.numpy(), before) for weight, before in kept)
    assert audit.report.trained == len(marked)
    assert audit.report.trained + audit.report.frozen == len(model.weights)
    return audit.report


@pytest.fixture
def nested(monkeypatch):
    """A classifier on a network of KerasHub's whose blocks are one layer each, BN inside."""
    import keras_hub

    cuts = ("stem_activation", "block1a_", "block2a_", "block2b_", "top_activation")
    row = dataclasses.replace(backbones.get("mobilenet"), name="nested", cuts=cuts, alphas=())
    monkeypatch.setitem(backbones.BACKBONES, "nested", row)
    keras.utils.set_random_seed(0)
    theirs = keras_hub.models.EfficientNetBackbone(
        stackwise_width_coefficients=[1.0] * 2,
        stackwise_depth_coefficients=[1.0] * 2,
        stackwise_kernel_sizes=[3, 3],
        stackwise_num_repeats=[1, 2],
        stackwise_input_filters=[8, 8],
        stackwise_output_filters=[8, 12],
        stackwise_expansion_ratios=[1, 2],
        stackwise_squeeze_and_excite_ratios=[0, 0.25],
        stackwise_strides=[1, 2],
        stackwise_block_types=["fused", "unfused"],
        input_shape=(32, 32, 3),
        dropout=0.0,
    )
    network = keras.Model(theirs.input, theirs.output, name="nested.none")
    images = keras.Input((32, 32, 3), name="image")
    pooled = keras.layers.GlobalAveragePooling2D(name="pooling")(network(images))
    model = keras.Model(images, keras.layers.Dense(3, name="logits")(pooled), name="nested")
    fill_batch_norm_statistics(model)
    return model


def test_batch_norm_inside_of_layers_stays_frozen_however_deep(nested):
    network, _ = models.backbone_of(nested)
    composites = [x for x in network.layers if len(parts_of(x)) > 1]
    assert len(composites) == 3
    for blocks in (0, 1, 3, 5, -1, 2):
        models.unfreeze(nested, blocks)
        check_marked(nested, blocks)
        report = step(nested, keras.optimizers.Adam(1e-3))
        assert report.passed, report
    paths = [path for _, path, _ in models.named_weights(nested)]
    assert len(set(paths)) == len(paths) == len(nested.weights)


def test_batch_norm_inside_of_layers_trains_where_asked(nested):
    models.unfreeze(nested, 3, batch_norm="train")
    before = snapshot(nested)
    train_a_little(nested)
    after = snapshot(nested)
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    statistics = {path for path in moved if path.endswith("moving_mean")}
    blocks = {path.partition("/")[0] for path in statistics}
    assert {"block2a_", "block2b_", "top_bn"} <= blocks
    assert not blocks & {"stem_bn", "block1a_"}


PRESETS = ["vit", "efficientnet"] + [
    pytest.param(family, marks=pytest.mark.slow)
    for family in ("resnet_vd", "densenet", "mobilenet", "hgnet", "deit", "dinov2", "swin", "mit")
]


@pytest.mark.parametrize("family", PRESETS)
def test_presets_of_keras_hub_are_trained_by_blocks_and_reload(family, tmp_path):
    from test_hub import FAMILIES, with_own_numbers, write_preset

    make, count, converter = FAMILIES[family]
    keras.utils.set_random_seed(1)
    row = write_preset(tmp_path / "tiny", with_own_numbers(make()), converter)
    size = None if converter else 64
    pooling = "token" if family in ("vit", "deit", "dinov2") else "avg"
    model = models.image_classifier(row.name, 3, image_size=size, pooling=pooling, seed=0)
    assert model.input_shape == (None, 64, 64, 3)
    assert len(models.blocks(model)) - 1 == count
    for blocks in (0, 1, count, -1, 2):
        models.unfreeze(model, blocks)
        check_marked(model, blocks)
    report = step(model, keras.optimizers.Adam(1e-3))
    assert report.passed, report
    model.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    pictures = np.random.default_rng(3).uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    np.testing.assert_array_equal(reloaded(pictures), model(pictures))
    models.unfreeze(reloaded, 2)
    assert [(b.name, b.trainable_parameters) for b in models.blocks(reloaded)] == [
        (b.name, b.trainable_parameters) for b in models.blocks(model)
    ]


SMALLEST = {
    min(rows, key=lambda row: row.parameters).name
    for _, rows in itertools.groupby(
        sorted(backbones.PICTURES.values(), key=lambda row: row.family),
        key=lambda row: row.family,
    )
    for rows in [list(rows)]
} - {"convnext_tiny", "densenet121", "xception"}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[] if name in SMALLEST else pytest.mark.slow)
        for name in backbones.PICTURES
    ],
)
def any_model(request):
    """A classifier on every row, random weights: the smallest of each family, others slow."""
    row = backbones.get(request.param)
    keras.utils.set_random_seed(0)
    model = models.image_classifier(
        row.name, 3, weights="none", image_size=max(32, row.smallest_side), seed=0
    )
    fill_batch_norm_statistics(model)
    yield model
    del model
    keras.backend.clear_session()
    gc.collect()


def test_every_backbone_trains_exactly_the_blocks_above_the_cut(any_model):
    count = len(models.blocks(any_model)) - 1
    for blocks in (0, 1, count // 2, count, -1):
        models.unfreeze(any_model, blocks)
        check_marked(any_model, blocks)


def test_a_step_moves_every_unfrozen_block_of_a_backbone_and_nothing_else(any_model):
    models.unfreeze(any_model, (len(models.blocks(any_model)) - 1) // 2)
    report = step(any_model, keras.optimizers.Adam(1e-3))
    assert report.passed, report
    # Random features are huge and shut the gates of squeeze-and-excitation for good.
    still = [x for x in report.trained_still if "_se_" not in x and "squeeze_excite" not in x]
    assert len(still) < report.trained / 4, still


def test_a_saved_model_of_every_backbone_reloads_with_its_blocks(any_model, tmp_path):
    shape = (2, *any_model.input_shape[1:])
    pictures = np.random.default_rng(3).uniform(0, 255, shape).astype("float32")
    any_model.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_array_equal(reloaded(pictures), any_model(pictures))

    def listed(model):
        models.unfreeze(model, 3)
        return [
            (block.name, block.parameters, block.trainable_parameters)
            for block in models.blocks(model)
        ]

    assert listed(reloaded) == listed(any_model)
    paths = [path for _, path, _ in models.named_weights(reloaded)]
    assert len(set(paths)) == len(paths) == len(reloaded.weights)
