"""The contract of every row of PICTURES, on the network it builds with random weights.

`pytest -m "" tests/test_contract.py -k NAME` tells what a new row lacks.
"""

from __future__ import annotations

import gc
import itertools
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest

from kerastune_ft.backbones import BACKBONES, PICTURES, Backbone, graphs, networks

ROWS = sorted(PICTURES)
QUICK = frozenset(
    {
        "efficientnet_b0",
        "efficientnet_lite0",
        "inception_v3",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "resnet50",
        "vgg16",
    }
)
"""Rows that are tested every time: of every family but those of `LONG_FAMILIES`, and every pixel
rule; the others are slow."""
LONG_FAMILIES = {"convnext", "densenet"}
"""Families whose smallest network has 154 or 427 layers."""


def rows(*names: str) -> list[object]:
    """Returns parameters for a test: the rows named, or all, those that take long marked so."""
    return [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in names or ROWS
    ]


def side_of(row: Backbone) -> int:
    """The smallest side that leaves more than a pixel where the row allows that."""
    return max(64, row.smallest_side)


def pictures(count: int = 2, side: int = 64) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (count, side, side, 3)).astype("float32")


def ready(network: keras.Model, count: int = 2) -> np.ndarray:
    """Pictures for a network, after a pixel rule."""
    return pictures(count, network.input_shape[1]) / 127.5 - 1


def with_statistics(network: keras.Model) -> keras.Model:
    """Makes random weights behave like trained ones.

    Without statistics, features collapse; scales that begin at a millionth hide their blocks; and
    without any normalisation, every convolution of VGG halves the variance.
    """
    norms = [x for x in network.layers if isinstance(x, keras.layers.BatchNormalization)]
    for layer in network.layers:
        if layer.name.endswith("_layer_scale"):
            layer.set_weights([np.full_like(array, 0.5) for array in layer.get_weights()])
        elif network.name.startswith("vgg") and layer.weights:
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel * 2**0.5, bias])
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    if norms:
        network(ready(network, 8), training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    return network


def assert_close(ours: object, expected: object) -> None:
    """Compares to 1e-5 of the largest number there is."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(
        np.asarray(ours), expected, rtol=1e-5, atol=1e-5 * float(np.abs(expected).max())
    )


@pytest.fixture(scope="module", params=rows())
def built(request: pytest.FixtureRequest) -> Iterator[tuple[Backbone, keras.Model]]:
    row = BACKBONES[request.param]
    keras.utils.set_random_seed(0)
    size = (side_of(row), side_of(row))
    yield row, with_statistics(networks.build(row, image_size=size, weights="none"))
    keras.backend.clear_session()
    gc.collect()


def test_every_family_but_two_is_tested_every_time() -> None:
    assert len(ROWS) >= 40
    assert set(ROWS) >= QUICK
    families = {row.family for row in PICTURES.values()}
    assert {BACKBONES[name].family for name in QUICK} == families - LONG_FAMILIES
    assert families > LONG_FAMILIES
    rules = {name: BACKBONES[name].weights_of("none").pixels for name in ROWS}
    assert {rules[name] for name in QUICK} >= set(rules.values()) - {
        rules["efficientnet_v2_s"]  # the smallest of its rule is 20 M parameters in 512 layers
    }


def test_facts_are_those_of_the_network(built: tuple[Backbone, keras.Model]) -> None:
    row, network = built
    assert network.name == f"{row.name}.none"
    assert networks.tag_of(network) == "none"
    assert networks.row_of(network) is row
    assert networks.cuts(network, row) == row.cuts
    assert network.input_shape == (None, side_of(row), side_of(row), 3)
    assert network.output_shape[-1] == row.features
    assert network.count_params() == row.parameters
    assert row.paper.startswith("https://")
    assert row.weights
    assert row.image_size >= row.smallest_side


def test_network_is_a_flat_graph_that_scales_no_pixels(
    built: tuple[Backbone, keras.Model],
) -> None:
    _, network = built
    assert not graphs.front(network)
    assert not any(isinstance(layer, keras.Model) for layer in network.layers)
    owners = [layer for layer, _ in graphs.owners(network)]
    assert owners == [layer for layer in network.layers if layer.weights]
    names = [layer.name for layer in network.layers]
    assert len(set(names)) == len(names)
    paths = [variable.path for variable in network.variables]
    assert len(set(paths)) == len(paths)


def test_cuts_are_bottlenecks_in_order(built: tuple[Backbone, keras.Model]) -> None:
    row, network = built
    order = [layer.name for layer in network.layers]
    places = [order.index(cut) for cut in row.cuts]
    assert places == sorted(set(places))
    for cut, place in zip(row.cuts, places, strict=True):
        before = keras.Model(network.input, network.get_layer(cut).output)
        assert {layer.name for layer in before.layers} == set(order[: place + 1])


def test_every_block_holds_weights_or_is_merged_with_one_that_does(
    built: tuple[Backbone, keras.Model],
) -> None:
    row, network = built
    held = [0]
    for layer in network.layers:
        held[-1] += sum(int(np.prod(variable.shape)) for variable in layer.weights)
        if layer.name in row.cuts[:-1]:
            held.append(0)
    assert len(held) == len(row.cuts)
    assert sum(held) == row.parameters
    assert all(held)


def test_blocks_one_after_the_other_equal_the_whole(built: tuple[Backbone, keras.Model]) -> None:
    row, network = built
    whole = np.asarray(network(ready(network)))
    assert whole.std() > 1e-3
    assert np.abs(whole[0] - whole[1]).max() > 1e-3
    ends = [network.get_layer(cut).output for cut in row.cuts[:-1]]
    features = ready(network)
    for begin, end in itertools.pairwise([network.input, *ends, network.output]):
        features = keras.Model(begin, end)(features)
    assert_close(features, whole)


def suffixes_equal_the_whole(network: keras.Model, cuts: tuple[str, ...]) -> None:
    whole = np.asarray(network(ready(network)))
    tensors = [network.get_layer(cut).output for cut in cuts]
    middles = keras.Model(network.input, tensors)(ready(network))
    for tensor, features in zip(tensors, middles, strict=True):
        assert_close(keras.Model(tensor, network.output)(features), whole)


def test_suffix_after_prefix_equals_the_whole(built: tuple[Backbone, keras.Model]) -> None:
    row, network = built
    inner = [c for c in row.cuts if network.get_layer(c).output is not network.output]
    suffixes_equal_the_whole(network, (inner[0], inner[len(inner) // 2], inner[-1]))


def test_pixel_rule_and_network_equal_the_ones_of_keras(
    built: tuple[Backbone, keras.Model],
) -> None:
    row, network = built
    if not hasattr(keras.applications, row.builder):
        pytest.skip("no network of keras.applications; its own tests compare it")
    side = side_of(row)
    builder = getattr(keras.applications, row.builder)
    theirs = builder(weights=None, include_top=False, input_shape=(side, side, 3))
    arrays = network.get_weights()
    if len(theirs.weights) != len(arrays):  # EfficientNet keeps mean, variance and count
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        shape = theirs.weights[0].shape
        arrays = [mean.reshape(shape), (std**2).reshape(shape), np.array(0), *arrays]
    theirs.set_weights(
        [array.reshape(v.shape) for array, v in zip(arrays, theirs.weights, strict=True)]
    )
    images = pictures(2, side)
    expected = sys.modules[builder.__module__].preprocess_input(images.copy())
    scaled = theirs.input
    for layer in graphs.front(theirs):
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
        scaled = layer.output
        expected = layer(expected)
    ours = networks.pixels(networks.rule(row, "none"))(images)
    assert_close(ours, expected)
    # The two halves are compared one by one: fifty random layers make a last bit a thousandth.
    rest = theirs if scaled is theirs.input else keras.Model(scaled, theirs.output)
    assert_close(network(ours), rest(ours))


def test_saved_and_reloaded_network_gives_the_same(
    built: tuple[Backbone, keras.Model], tmp_path: Path
) -> None:
    row, network = built
    images = keras.Input(network.input_shape[1:])
    model = keras.Model(images, network(networks.pixels(networks.rule(row, "none"))(images)))
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        assert b"kerastune_ft" not in archive.read("config.json")
    again = keras.models.load_model(tmp_path / "model.keras")
    (tmp_path / "model.keras").unlink()  # up to 1.4 GB
    assert [layer.name for layer in again.layers][1:] == ["pixels", network.name]
    raw = pictures(2, side_of(row))
    assert_close(again(raw), model(raw))
