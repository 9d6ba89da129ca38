"""Every row of BACKBONES: its facts are those of the network that Keras builds."""

from __future__ import annotations

import dataclasses
import time
import warnings
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from test_weights import make_wheel, state_stream

from kerastune_ft import backbones
from kerastune_ft.backbones import BACKBONES, Backbone, networks, weights
from kerastune_ft.backbones.facts import CAFFE, RAW, TF, TORCH, Pixels, Wheel
from kerastune_ft.errors import ModelError, WeightsError

REFERENCES = Path(__file__).parents[2] / "shared" / "assets" / "references" / "images.npz"
SIDE = 64
ROWS = sorted(BACKBONES)
V2 = BACKBONES["mobilenet_v2"]


def pictures(count: int = 2, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (count, side, side, 3)).astype("float32")


def with_statistics(network: keras.Model) -> keras.Model:
    """Makes random weights behave like trained ones: without statistics, features collapse."""
    norms = [x for x in network.layers if isinstance(x, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    network(pictures(8, network.input_shape[1]) / 127.5 - 1, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    return network


@pytest.fixture(scope="module", params=ROWS)
def built(request: pytest.FixtureRequest) -> tuple[Backbone, keras.Model]:
    row = BACKBONES[request.param]
    keras.utils.set_random_seed(0)
    return row, with_statistics(networks.build(row, image_size=(SIDE, SIDE), weights="none"))


def test_there_are_rows() -> None:
    assert len(ROWS) >= 4


def test_facts_are_those_of_the_network(built: tuple[Backbone, keras.Model]) -> None:
    row, network = built
    assert network.name == f"{row.name}.none"
    assert networks.tag_of(network) == "none"
    assert network.input_shape == (None, SIDE, SIDE, 3)
    assert network.output_shape[-1] == row.features
    assert network.count_params() == row.parameters
    assert row.paper.startswith("https://")
    assert row.weights


def test_cuts_are_bottlenecks_in_order(built: tuple[Backbone, keras.Model]) -> None:
    row, network = built
    order = [layer.name for layer in network.layers]
    places = [order.index(cut) for cut in row.cuts]
    assert places == sorted(set(places))
    for cut, place in zip(row.cuts, places, strict=True):
        before = keras.Model(network.input, network.get_layer(cut).output)
        assert {layer.name for layer in before.layers} == set(order[: place + 1])


def test_suffix_after_prefix_equals_the_whole(built: tuple[Backbone, keras.Model]) -> None:
    row, network = built
    images = pictures() / 127.5 - 1
    whole = np.asarray(network(images))
    assert whole.std() > 1e-3
    assert np.abs(whole[0] - whole[1]).max() > 1e-3
    tensors = [network.get_layer(cut).output for cut in row.cuts]
    for tensor, features in zip(tensors, keras.Model(network.input, tensors)(images), strict=True):
        if tensor is network.output:
            continue
        suffix = keras.Model(tensor, network.output)
        np.testing.assert_allclose(np.asarray(suffix(features)), whole, rtol=1e-5, atol=1e-5)


def test_saved_and_reloaded_network_gives_the_same(
    built: tuple[Backbone, keras.Model], tmp_path: Path
) -> None:
    row, network = built
    images = keras.Input((SIDE, SIDE, 3))
    rule = row.weights_of("none").pixels
    model = keras.Model(images, network(networks.pixels(rule)(images)))
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        assert b"kerastune_ft" not in archive.read("config.json")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert [layer.name for layer in again.layers][1:] == ["pixels", network.name]
    np.testing.assert_allclose(np.asarray(again(pictures())), np.asarray(model(pictures())), 1e-5)


@pytest.mark.parametrize("name", ROWS)
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


@pytest.mark.parametrize("name", ROWS)
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
        sizes = [*((side, side) for side in facts.sides), (64, 96)]
        small = row.alphas[0] if row.alphas else None
        for alpha, size in {(a, (64, 64)) for a in facts.alphas or (None,)} | {
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


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("top", [False, True])
def test_weights_file_of_keras_applications_is_taken(name: str, top: bool, tmp_path: Path) -> None:
    row = BACKBONES[name]
    alpha = row.alphas[0]
    theirs = getattr(keras.applications, row.builder)(
        weights=None, include_top=top, input_shape=(32, 32, 3), alpha=alpha, **row.options
    )
    theirs.save_weights(tmp_path / "x.weights.h5")
    path = str(tmp_path / "x.weights.h5")
    network = networks.build(row, image_size=(32, 32), weights=path, alpha=alpha)
    assert network.name == f"{row.name}.none"
    for layer in (layer for layer in network.layers if layer.weights):
        original = theirs.get_layer(layer.name).get_weights()
        for ours, array in zip(layer.get_weights(), original, strict=True):
            np.testing.assert_array_equal(ours, array)


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
