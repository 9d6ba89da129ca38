"""EfficientNet-Lite: the converted network computes what the published arrays say."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kerastune_ft.backbones import BACKBONES, Backbone, converters, hub, lite, networks
from kerastune_ft.errors import WeightsError

ASSETS = Path(__file__).parents[2] / "shared" / "assets"
REFERENCES = ASSETS / "references" / "images.npz"
GOLDEN = ASSETS / "data" / "imagenet_golden"
ROWS = [row.name for row in lite.ROWS]
KERNELS, STRIDES = (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1)
SCALES = {  # width and depth, from efficientnet_lite_builder.py of tensorflow/tpu
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
}


def scaled(name: str) -> tuple[list[int], list[int]]:
    """Widths and repeats by the paper's rounding: to multiples of 8, never below 90 per cent."""
    width, depth = SCALES[name]
    widths = []
    for channels in (16, 24, 40, 80, 112, 192, 320):
        near = max(8, int(channels * width + 4) // 8 * 8)
        widths.append(near + 8 if near < 0.9 * channels * width else near)
    repeats = [1, *(int(np.ceil(depth * count)) for count in (2, 2, 3, 3, 4)), 1]
    return widths, repeats


def random_state(name: str) -> dict[str, np.ndarray]:
    """Arrays under PyTorch's names and in its shapes, from the paper's tables alone."""
    numbers = np.random.default_rng(0)
    state: dict[str, np.ndarray] = {}

    def put(key: str, *shape: int) -> None:
        deviation = (2 / np.prod(shape[1:])) ** 0.5
        state[f"{key}.weight"] = numbers.normal(0, deviation, shape).astype("float32")

    def put_norm(key: str, width: int) -> None:
        for part, low, high in (
            ("weight", 0.5, 1.0),
            ("bias", -0.1, 0.1),
            ("running_mean", -0.2, 0.2),
            ("running_var", 0.5, 1.0),
        ):
            state[f"{key}.{part}"] = numbers.uniform(low, high, width).astype("float32")
        state[f"{key}.num_batches_tracked"] = np.asarray(7)

    put("_conv_stem", 32, 3, 3, 3)
    put_norm("_bn0", 32)
    before, number = 32, 0
    for stack, (width, count) in enumerate(zip(*scaled(name), strict=True)):
        for _ in range(count):
            block, inner = f"_blocks.{number}.", before * (6 if stack else 1)
            if stack:
                put(f"{block}_expand_conv", inner, before, 1, 1)
                put_norm(f"{block}_bn0", inner)
            put(f"{block}_depthwise_conv", inner, 1, KERNELS[stack], KERNELS[stack])
            put_norm(f"{block}_bn1", inner)
            put(f"{block}_project_conv", width, inner, 1, 1)
            put_norm(f"{block}_bn2", width)
            before, number = width, number + 1
    put("_conv_head", 1280, before, 1, 1)
    put_norm("_bn1", 1280)
    put("_fc", 10, 1280)
    state["_fc.bias"] = numbers.normal(size=10).astype("float32")
    return state


def reference(state: dict[str, np.ndarray], name: str, pixels: np.ndarray) -> np.ndarray:
    """Computes the feature map with TensorFlow's own operations, without Keras or KerasHub."""

    def norm(x: tf.Tensor, key: str) -> tf.Tensor:
        gamma, beta, mean, variance = (
            state[f"{key}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta

    def convolved(x: tf.Tensor, key: str, stride: int = 1) -> tf.Tensor:
        kernel = state[f"{key}.weight"].transpose(2, 3, 1, 0)
        return tf.nn.conv2d(x, kernel, stride, "SAME")

    x = tf.nn.relu6(norm(convolved(tf.constant(pixels), "_conv_stem", 2), "_bn0"))
    number = 0
    for stack, count in enumerate(scaled(name)[1]):
        for place in range(count):
            block, stride, before = f"_blocks.{number}.", 1 if place else STRIDES[stack], x
            if f"{block}_expand_conv.weight" in state:
                x = tf.nn.relu6(norm(convolved(x, f"{block}_expand_conv"), f"{block}_bn0"))
            kernel = state[f"{block}_depthwise_conv.weight"].transpose(2, 3, 0, 1)
            x = tf.nn.depthwise_conv2d(x, kernel, (1, stride, stride, 1), "SAME")
            x = tf.nn.relu6(norm(x, f"{block}_bn1"))
            x = norm(convolved(x, f"{block}_project_conv"), f"{block}_bn2")
            x = x + before if place else x
            number += 1
    return np.asarray(tf.nn.relu6(norm(convolved(x, "_conv_head"), "_bn1")))


def with_arrays(row: Backbone, side: int, layers: converters.Layers) -> keras.Model:
    network = hub.construct(row, f"{row.name}.imagenet", (side, side), 3)
    weighted = [layer for layer in network.layers if layer.weights]
    assert {layer.name for layer in weighted} == set(layers) - {"predictions"}
    for layer in weighted:
        layer.set_weights(layers[layer.name])
    return network


@pytest.mark.parametrize(
    "name", [ROWS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in ROWS[1:])]
)
def test_converted_network_computes_what_the_arrays_say(name: str) -> None:
    row, state = BACKBONES[name], random_state(name)
    layers = converters.CONVERTERS[f"{name}.imagenet"](state)
    tracked = sum(key.endswith("num_batches_tracked") for key in state)
    assert sum(map(len, layers.values())) == len(state) - tracked
    # TensorFlow pads even sides otherwise than odd ones: (0, 1) and (1, 1) at a stride of 2.
    for side in (64, 49):
        pixels = np.random.default_rng(1).normal(0, 2, (2, side, side, 3)).astype("float32")
        features = np.asarray(with_arrays(row, side, layers)(pixels))
        expected = reference(state, name, pixels)
        assert expected.std() > 0.1
        assert np.abs(expected[0] - expected[1]).max() > 0.1
        np.testing.assert_allclose(features, expected, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(layers["predictions"][0], state["_fc.weight"].T)
    np.testing.assert_array_equal(layers["predictions"][1], state["_fc.bias"])


def test_missing_and_left_over_arrays_are_refused() -> None:
    state = random_state("efficientnet_lite0")
    convert = converters.CONVERTERS["efficientnet_lite0.imagenet"]
    missing = {key: value for key, value in state.items() if key != "_blocks.5._bn2.bias"}
    with pytest.raises(WeightsError, match=r"has an array '_blocks\.5\._bn2\.bias', this file non"):
        convert(missing)
    with pytest.raises(WeightsError, match=r"has no array '_blocks\.16\._bn0\.bias', this file do"):
        convert(random_state("efficientnet_lite1"))


def test_network_is_made_of_ordinary_layers_and_reloads_without_keras_hub(tmp_path: Path) -> None:
    row = BACKBONES["efficientnet_lite0"]
    network = hub.construct(row, "efficientnet_lite0.none", (40, 56), 2)
    assert type(network) is type(keras.Model(network.input, network.output))
    assert network.name == "efficientnet_lite0.none"
    assert network.input_shape == (None, 40, 56, 2)
    assert not any(isinstance(layer, keras.Model) for layer in network.layers)
    network.save(tmp_path / "network.keras")
    with zipfile.ZipFile(tmp_path / "network.keras") as archive:
        config = archive.read("config.json")
    assert b"keras_hub" not in config
    assert b"kerastune_ft" not in config
    again = keras.models.load_model(tmp_path / "network.keras")
    pixels = np.random.default_rng(0).normal(size=(2, 40, 56, 2)).astype("float32")
    np.testing.assert_array_equal(np.asarray(again(pixels)), np.asarray(network(pixels)))


@pytest.mark.network
@pytest.mark.skipif(not REFERENCES.is_file(), reason="no reference logits here")
def test_lite0_gives_the_reference_logits() -> None:
    model = networks.classifier(BACKBONES["efficientnet_lite0"], "imagenet")
    with np.load(REFERENCES) as archive:
        pixels, expected = archive["pixels"], archive["efficientnet_lite0"]
    logits = model.predict(pixels.astype("float32"), verbose=0)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3)
    assert (logits.argmax(1) == expected.argmax(1)).sum() == len(expected) == 24


def golden(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads the middle of 59 photographs whose shorter side is 256, and their classes."""
    pixels, classes = [], []
    with (GOLDEN / "labels.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            picture = Image.open(GOLDEN / "images" / line["image"]).convert("RGB")
            shorter = min(picture.size)
            left, top = ((length - shorter) / 2 for length in picture.size)
            box = (left, top, left + shorter, top + shorter)
            square = picture.resize((side, side), Image.Resampling.BICUBIC, box)
            pixels.append(np.asarray(square, "float32"))
            classes.append(int(line["index"]))
    return np.stack(pixels), np.asarray(classes)


@pytest.mark.network
@pytest.mark.skipif(not GOLDEN.is_dir(), reason="no labelled photographs here")
@pytest.mark.parametrize("name", ROWS)
def test_published_weights_recognise_photographs(name: str) -> None:
    # Measured: 52, 49 and 52 of 59.
    row = BACKBONES[name]
    model = networks.classifier(row, "imagenet")
    pixels, classes = golden(row.image_size)
    top1 = (model.predict(pixels, verbose=0).argmax(1) == classes).mean()
    assert len(classes) == 59
    assert top1 > 0.75
