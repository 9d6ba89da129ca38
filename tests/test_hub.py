"""Presets of KerasHub: tiny ones of every family, written to a folder, and built from there."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import keras_hub
import numpy as np
import pytest

from kerastune_ft import backbones
from kerastune_ft.backbones import Backbone, hub, hub_presets, networks, weights
from kerastune_ft.errors import ModelError, WeightsError

HUB = keras_hub.models


def efficientnet(types: list[str]) -> Callable[[], keras.Model]:
    return lambda: HUB.EfficientNetBackbone(
        stackwise_width_coefficients=[1.0] * 3,
        stackwise_depth_coefficients=[1.0] * 3,
        stackwise_kernel_sizes=[3] * 3,
        stackwise_num_repeats=[1, 2, 2],
        stackwise_input_filters=[8, 8, 16],
        stackwise_output_filters=[8, 16, 24],
        stackwise_expansion_ratios=[1, 4, 4],
        stackwise_squeeze_and_excite_ratios=[0.25] * 3,
        stackwise_strides=[1, 2, 2],
        stackwise_block_types=types,
        input_shape=(None, None, 3),
    )


def resnet(kind: str, **more: Any) -> Callable[[], keras.Model]:
    return lambda: HUB.ResNetBackbone([8, 64], [3, 3], [64, 64], [2, 1], [1, 2], kind, **more)


def cspnet(stage: str, block: str, expand: float, ratio: float) -> Callable[[], keras.Model]:
    return lambda: HUB.CSPNetBackbone(
        stem_filters=8,
        stem_kernel_size=3,
        stem_strides=1,
        stackwise_depth=[1, 2],
        stackwise_strides=[2, 2],
        stackwise_num_filters=[16, 24],
        block_type=block,
        stage_type=stage,
        bottle_ratio=[0.5],
        block_ratio=[ratio],
        expand_ratio=[expand],
    )


def mobilenet() -> keras.Model:
    return HUB.MobileNetBackbone(
        stackwise_expansion=[[40, 56], [64, 144]],
        stackwise_num_blocks=[2, 2],
        stackwise_num_filters=[[16, 16], [24, 24]],
        stackwise_kernel_size=[[3, 3], [5, 5]],
        stackwise_num_strides=[[2, 1], [2, 1]],
        stackwise_se_ratio=[[None, None], [0.25, 0.25]],
        stackwise_activation=[["relu", "relu"], ["hard_swish", "hard_swish"]],
        stackwise_padding=[[1, 1], [2, 2]],
        output_num_filters=64,
        input_activation="hard_swish",
        output_activation="hard_swish",
        input_num_filters=16,
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        squeeze_and_excite=0.5,
        last_layer_filter=64,
    )


def mobilenet_v5() -> keras.Model:
    def rows(first: Any, others: Any) -> list[list[Any]]:
        return [[first], [others, others]]

    return HUB.MobileNetV5Backbone(
        stackwise_block_types=rows("er", "uir"),
        stackwise_num_blocks=[1, 2],
        stackwise_num_filters=rows(16, 24),
        stackwise_strides=[[2], [2, 1]],
        stackwise_act_layers=rows("relu", "relu"),
        stackwise_exp_ratios=rows(4.0, 4.0),
        stackwise_se_ratios=rows(0.0, 0.0),
        stackwise_dw_kernel_sizes=rows(0, 5),
        stackwise_dw_start_kernel_sizes=[[0], [3, 0]],
        stackwise_dw_end_kernel_sizes=rows(0, 0),
        stackwise_exp_kernel_sizes=rows(3, 0),
        stackwise_pw_kernel_sizes=rows(1, 0),
        stackwise_num_heads=rows(0, 0),
        stackwise_key_dims=rows(0, 0),
        stackwise_value_dims=rows(0, 0),
        stackwise_kv_strides=rows(0, 0),
        stackwise_use_cpe=rows(False, False),
        stem_size=8,
        use_msfa=False,
        num_features=32,
    )


def hgnet() -> keras.Model:
    return HUB.HGNetV2Backbone(
        depths=[1, 2],
        embedding_size=16,
        hidden_sizes=[32, 64],
        stem_channels=[3, 8, 16],
        hidden_act="relu",
        use_learnable_affine_block=True,
        stackwise_stage_filters=[(16, 8, 32, 1, 2, 3), (32, 16, 64, 2, 2, 3)],
        apply_downsample=[False, True],
        use_lightweight_conv_block=[False, True],
    )


def vit(**more: Any) -> Callable[[], keras.Model]:
    return lambda: HUB.ViTBackbone(
        image_shape=(64, 64, 3),
        patch_size=16,
        num_layers=3,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
        **more,
    )


def deit() -> keras.Model:
    return HUB.DeiTBackbone(
        image_shape=(64, 64, 3),
        patch_size=16,
        num_layers=3,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
    )


def dinov2() -> keras.Model:
    return HUB.DINOV2Backbone(
        patch_size=16,
        num_layers=3,
        hidden_dim=16,
        num_heads=2,
        intermediate_dim=32,
        image_shape=(64, 64, 3),
        position_embedding_shape=(64, 64, 3),
    )


def swin() -> keras.Model:
    return HUB.SwinTransformerBackbone(
        image_shape=(64, 64, 3), embed_dim=8, depths=(2, 1), num_heads=(2, 2), window_size=4
    )


def mit() -> keras.Model:
    return HUB.MiTBackbone(
        layerwise_depths=[1, 2],
        num_layers=2,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[2, 1],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        image_shape=(64, 64, 3),
        hidden_dims=[8, 16],
    )


BOTH = {"scale": [0.01, 0.02, 0.03], "offset": [-1.0, 0.5, 0.25]}
# A tiny network of every family, how many blocks it has, and what its image converter does.
FAMILIES: dict[str, tuple[Callable[[], keras.Model], int, dict[str, Any]]] = {
    "resnet": (resnet("bottleneck_block"), 4, {"scale": 1 / 255}),
    "resnet_v2": (resnet("bottleneck_block", use_pre_activation=True), 4, {"offset": -127.0}),
    "resnet_vd": (resnet("basic_block_vd"), 4, BOTH),
    "efficientnet": (efficientnet(["fused", "cba", "unfused"]), 7, BOTH),
    "efficientnet_v1": (efficientnet(["v1"] * 3), 7, {}),
    "densenet": (lambda: HUB.DenseNetBackbone([2, 2], growth_rate=8), 5, BOTH),
    "vgg": (lambda: HUB.VGGBackbone([2, 2], [8, 16]), 2, BOTH),
    "xception": (
        lambda: HUB.XceptionBackbone(
            [[8, 16], [32, 32], [32, 32, 32], [64, 64]], [False, True, False, False]
        ),
        4,
        {"scale": 1 / 127.5, "offset": -1.0},
    ),
    "darknet": (cspnet("dark", "dark_block", 1.0, 1.0), 4, {"scale": 1 / 255}),
    "cspnet": (cspnet("csp", "bottleneck_block", 2.0, 1.0), 4, {"scale": 1 / 255}),
    "cspnet_cs3": (cspnet("cs3", "edge_block", 1.0, 0.5), 4, {"scale": 1 / 255}),
    "mobilenet": (mobilenet, 7, BOTH),
    "mobilenet_v5": (mobilenet_v5, 4, {"scale": 1 / 255}),
    "hgnet": (hgnet, 4, BOTH),
    "vit": (vit(dropout_rate=0.1), 4, {"scale": 1 / 127.5, "offset": -1.0}),
    "vit_bare": (
        vit(use_class_token=False, use_patch_bias=False, use_mha_bias=False, use_mlp_bias=False),
        4,
        {},
    ),
    "deit": (deit, 4, BOTH),
    "dinov2": (dinov2, 4, BOTH),
    "swin": (swin, 3, BOTH),
    "mit": (mit, 5, BOTH),
}
QUICK = {"resnet_vd", "efficientnet", "mobilenet", "vit"}


def write_preset(folder: Path, backbone: keras.Model, converter: dict[str, Any]) -> Backbone:
    """Writes a preset as KerasHub would, and returns its row."""
    backbone.save_to_preset(str(folder))
    if converter:
        (kind,) = (
            kind
            for kind in vars(keras_hub.layers).values()
            if getattr(kind, "backbone_cls", None) is type(backbone) and "Converter" in str(kind)
        )
        kind(image_size=(64, 64), **converter).save_to_preset(str(folder))
    return backbones.get(f"keras_hub:{folder}")


@dataclass
class Case:
    family: str
    row: Backbone
    backbone: keras.Model
    network: keras.Model


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in FAMILIES],
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    make, _, converter = FAMILIES[request.param]
    keras.utils.set_random_seed(1)
    folder = tmp_path_factory.mktemp("presets") / f"tiny.{request.param}"
    backbone = with_own_numbers(make())
    row = write_preset(folder, backbone, converter)
    network = hub.build(row, image_size=(64, 64), weights="preset")
    return Case(request.param, row, backbone, network)


def pictures(count: int = 2, side: int = 64) -> np.ndarray:
    return np.random.default_rng(0).uniform(-2, 2, (count, side, side, 3)).astype("float32")


def with_own_numbers(network: keras.Model) -> keras.Model:
    """Gives every variable numbers of its own, so that none can stand for another."""
    numbers = np.random.default_rng(2)
    for variable in network.weights:
        if variable.dtype == "float32":
            noise = numbers.uniform(0.02, 0.08, tuple(variable.shape))
            variable.assign(np.asarray(variable) + noise.astype("float32"))
    return network


def features(backbone: keras.Model, images: np.ndarray) -> np.ndarray:
    found = backbone({"images": images} if isinstance(backbone.input, dict) else images)
    return np.asarray(list(found.values())[-1] if isinstance(found, dict) else found)


def test_network_gives_the_features_of_the_backbone(case: Case) -> None:
    assert case.network.name == f"keras_hub.tiny_{case.family}"
    assert case.network.input_shape == (None, 64, 64, 3)
    assert len(case.network.output_shape) in (3, 4)
    expected = features(case.backbone, pictures())
    assert np.abs(expected[0] - expected[1]).max() > 1e-6 * np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(case.network(pictures())), expected, 1e-5, 1e-6)


def test_cuts_are_bottlenecks_and_every_suffix_after_its_prefix_is_the_whole(case: Case) -> None:
    network, images = case.network, pictures()
    cuts = hub.cuts(network)
    assert len(cuts) == FAMILIES[case.family][1]
    order = [layer.name for layer in network.layers]
    ends = [order.index(cut) + 1 for cut in cuts]
    assert ends == sorted(set(ends))
    assert ends[-1] == len(order)
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        assert any(layer.weights for layer in network.layers[start:end])
    whole = np.asarray(network(images))
    tensors = [network.get_layer(cut).output for cut in cuts[:-1]]
    for tensor, end in zip(tensors, ends, strict=False):
        prefix = keras.Model(network.input, tensor)
        assert {layer.name for layer in prefix.layers} == set(order[:end])
        suffix = keras.Model(tensor, network.output)
        np.testing.assert_allclose(np.asarray(suffix(prefix(images))), whole, 1e-5, 1e-6)


def classifier(case: Case) -> keras.Model:
    images = keras.Input((64, 64, 3), name="image")
    x = case.network(networks.pixels(hub.pixels(case.row))(images))
    x = keras.ops.mean(x, axis=tuple(range(1, len(x.shape) - 1)))
    return keras.Model(images, keras.layers.Dense(3, name="logits")(x))


def test_saved_and_reloaded_network_is_the_same_and_can_be_taken_from_its_run(
    case: Case, tmp_path: Path
) -> None:
    model = classifier(case)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.layers[2].name == case.network.name
    assert hub.cuts(again.layers[2]) == hub.cuts(case.network)
    images = 50 * pictures()
    np.testing.assert_array_equal(np.asarray(again(images)), np.asarray(model(images)))
    case.network.save_weights(tmp_path / "bare.weights.h5")
    for given in (tmp_path, tmp_path / "bare.weights.h5"):
        taken = hub.build(case.row, image_size=(64, 64), weights=str(given))
        assert taken.name == case.network.name
        np.testing.assert_array_equal(
            np.asarray(taken(pictures())), np.asarray(case.network(pictures()))
        )


def test_random_weights_are_not_those_of_the_preset(case: Case) -> None:
    network = hub.build(case.row, image_size=(64, 64), weights="none")
    assert network.count_params() == case.network.count_params()
    assert hub.cuts(network)[0] == hub.cuts(case.network)[0] or case.family == "mobilenet_v5"
    differ = [
        not np.array_equal(ours, theirs)
        for ours, theirs in zip(network.get_weights(), case.network.get_weights(), strict=True)
    ]
    assert all(differ)


def test_pixels_are_what_the_image_converter_of_the_preset_makes(case: Case) -> None:
    images = np.random.default_rng(3).uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    ours = np.asarray(networks.pixels(hub.pixels(case.row))(images))
    if not FAMILIES[case.family][2]:
        np.testing.assert_array_equal(ours, images)
        return
    converter = keras_hub.layers.ImageConverter.from_preset(
        case.row.name.removeprefix("keras_hub:")
    )
    np.testing.assert_allclose(ours, np.asarray(converter(images)), rtol=1e-5, atol=1e-5)
    assert hub.image_size(case.row) == 64


@pytest.mark.slow
def test_every_classifier_of_pictures_in_keras_hub_is_tried() -> None:
    tried = {type(make()) for make, _, _ in FAMILIES.values()}
    kinds = {
        kind.backbone_cls
        for kind in vars(HUB).values()
        if isinstance(kind, type) and issubclass(kind, HUB.ImageClassifier)
    } - {None}
    assert len(kinds) > 10
    assert kinds <= tried


@pytest.fixture(scope="module")
def vit_row(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return write_preset(tmp_path_factory.mktemp("vit") / "small_vit", vit()(), BOTH)


@pytest.fixture(scope="module")
def vgg_row(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    make, _, converter = FAMILIES["vgg"]
    return write_preset(tmp_path_factory.mktemp("vgg") / "small vgg", make(), converter)


def test_networks_build_presets_like_any_backbone(vgg_row: Backbone) -> None:
    network = networks.build(vgg_row, image_size=(32, 48), weights="preset")
    assert network.name == "keras_hub.small_vgg"
    assert network.input_shape == (None, 32, 48, 3)
    row = networks.row_of(network)
    assert row is not None
    assert networks.cuts(network, row) == hub.cuts(network) == ("block1_pool", "block2_pool")
    assert networks.rule(vgg_row, "preset") == hub.pixels(vgg_row)


@pytest.mark.slow
def test_reloading_needs_no_import_of_keras_hub(
    vgg_row: Backbone, vit_row: Backbone, tmp_path: Path
) -> None:
    images = pictures()
    np.save(tmp_path / "images.npy", images)
    for row in (vgg_row, vit_row):
        network = hub.build(row, image_size=(64, 64), weights="preset")
        inputs = keras.Input((64, 64, 3))
        keras.Model(inputs, network(inputs)).save(tmp_path / f"{network.name}.keras")
        np.save(tmp_path / f"{network.name}.npy", np.asarray(network(images)))
    code = (
        "import sys, keras, numpy as np\n"
        "x = np.load('images.npy')\n"
        "for name in ('keras_hub.small_vgg', 'keras_hub.small_vit'):\n"
        "    y = keras.models.load_model(name + '.keras')(x)\n"
        "    print(np.abs(np.asarray(y) - np.load(name + '.npy')).max() < 1e-5,\n"
        "          'keras_hub' in sys.modules)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert found.stdout.split() == ["True", "False", "True", "True"], found.stderr[-2000:]


def test_sides_that_do_not_fit_are_refused_and_those_that_do_are_named(vit_row: Backbone) -> None:
    with pytest.raises(ModelError, match="multiples of 16, such as 32 or 48"):
        hub.build(vit_row, image_size=(40, 40), weights="none")
    with pytest.raises(ModelError, match=r"set backbone.image_size to \[64, 64\], or weights to n"):
        hub.build(vit_row, image_size=(32, 32), weights="preset")
    assert hub.build(vit_row, image_size=(32, 48), weights="none").input_shape[1:] == (32, 48, 3)


def test_networks_that_take_every_picture_for_a_square_are_refused_others(tmp_path: Path) -> None:
    row = write_preset(tmp_path / "tiny", mit(), {})
    with pytest.raises(ModelError, match=r"64x48 pixels.*set backbone\.image_size to \[64, 64\]"):
        hub.build(row, image_size=(64, 48), weights="none")


def test_other_channels_and_unknown_weights_are_refused(vgg_row: Backbone) -> None:
    with pytest.raises(ModelError, match=r"set backbone\.channels to 3"):
        hub.build(vgg_row, image_size=(64, 64), weights="preset", channels=1)
    with pytest.raises(WeightsError, match="did you mean 'preset'"):
        hub.build(vgg_row, image_size=(64, 64), weights="presets")
    with pytest.raises(WeightsError, match=r"nothing\.keras: no such file"):
        hub.build(vgg_row, image_size=(64, 64), weights="nothing.keras")


def test_file_of_another_network_is_refused_and_the_right_backbone_named(
    vgg_row: Backbone, vit_row: Backbone, tmp_path: Path
) -> None:
    network = hub.build(vgg_row, image_size=(64, 64), weights="none")
    inputs = keras.Input((64, 64, 3))
    keras.Model(inputs, network(inputs)).save(tmp_path / "model.keras")
    with pytest.raises(WeightsError, match=r"holds the network 'keras_hub\.small_vgg', not 'keras"):
        hub.build(vit_row, image_size=(64, 64), weights=str(tmp_path))
    own = networks.build(
        backbones.get("mobilenet"), image_size=(32, 32), weights="none", alpha=0.25
    )
    own.save_weights(tmp_path / "own.weights.h5")
    with pytest.raises(WeightsError, match=r"set backbone\.name to mobilenet"):
        hub.build(vgg_row, image_size=(64, 64), weights=str(tmp_path / "own.weights.h5"))
    inner = keras.Model(inputs, keras.layers.Conv2D(3, 1)(inputs), name="other")
    keras.Model(inputs, inner(inputs)).save(tmp_path / "other.keras")
    with pytest.raises(WeightsError, match="holds no network of this package"):
        hub.build(vgg_row, image_size=(64, 64), weights=str(tmp_path / "other.keras"))


def test_weights_of_other_shapes_are_refused_and_leave_nothing_changed(
    vgg_row: Backbone, tmp_path: Path
) -> None:
    wider = write_preset(tmp_path / "small vgg", HUB.VGGBackbone([2, 2], [8, 24]), {})
    network = hub.build(wider, image_size=(64, 64), weights="none")
    network.save_weights(tmp_path / "wider.weights.h5")
    with pytest.raises(WeightsError, match="has 3x3x8x16, the file 3x3x8x24"):
        hub.build(vgg_row, image_size=(64, 64), weights=str(tmp_path / "wider.weights.h5"))


def test_text_presets_are_refused(tmp_path: Path) -> None:
    text = HUB.BertBackbone(
        vocabulary_size=10, num_layers=1, num_heads=1, hidden_dim=4, intermediate_dim=8
    )
    text.save_to_preset(str(tmp_path / "bert"))
    for name in (tmp_path / "bert", "bert_base_en_uncased"):
        with pytest.raises(ModelError, match="takes no pictures; 'kft ls presets'"):
            hub.build(backbones.get(f"keras_hub:{name}"), image_size=(64, 64), weights="preset")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "holds no config.json"),
        ("{", "KerasHub cannot load it"),
        ("[]", "no settings"),
        ('{"registered_name": "my>Backbone"}', "its class my>Backbone is unknown"),
    ],
)
def test_folders_without_a_usable_configuration_are_refused(
    config: str | None, reason: str, tmp_path: Path
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=reason):
        hub.build(backbones.get(f"keras_hub:{tmp_path}"), image_size=(64, 64), weights="none")


def test_folder_without_weights_can_be_built_with_random_ones_only(
    vgg_row: Backbone, tmp_path: Path
) -> None:
    folder = Path(vgg_row.name.removeprefix("keras_hub:"))
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    row = backbones.get(f"keras_hub:{tmp_path}")
    with pytest.raises(ModelError, match=r"model\.weights"):
        hub.build(row, image_size=(64, 64), weights="preset")
    assert hub.build(row, image_size=(64, 64), weights="none").count_params() == 4296
    assert hub.image_size(row) is None


def test_unknown_presets_are_refused_with_a_suggestion() -> None:
    with pytest.raises(ModelError, match="did you mean 'resnet_vd_18_imagenet'"):
        hub.pixels(backbones.get("keras_hub:resnet_vd_18_imagnet"))
    with pytest.raises(ModelError, match=r"addresses that begin with 'ftp://' are unknown"):
        hub.pixels(backbones.get("keras_hub:ftp://somewhere/else"))


@pytest.mark.parametrize(
    ("preset", "way"),
    [
        ("resnet_vd_18_imagenet", "kagglehub.model_download"),
        ("kaggle://someone/net/keras/small", "kagglehub.model_download"),
        ("hf://someone/net", "hf download someone/net --local-dir FOLDER"),
    ],
)
def test_unreachable_hosts_are_refused_soon_and_name_the_offline_way(
    preset: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    # Nothing listens there, so no address can be reached from here.
    for variable in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    began = time.monotonic()
    with pytest.raises(WeightsError, match="cannot be reached from this machine") as caught:
        hub.build(backbones.get(f"keras_hub:{preset}"), image_size=(64, 64), weights="preset")
    assert time.monotonic() - began < 15
    assert way in str(caught.value)
    assert "keras_hub:FOLDER" in str(caught.value)


def test_preset_in_the_cache_of_kaggle_needs_no_network(
    vgg_row: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "check_reachable", lambda *_: pytest.fail("asked the network"))
    folder = Path(vgg_row.name.removeprefix("keras_hub:"))
    for version in ("9", "10"):
        place = tmp_path / "models" / "someone" / "net" / "keras" / "small" / version
        place.mkdir(parents=True)
        for file in folder.iterdir():
            (place / file.name).write_bytes(file.read_bytes())
    for address in ("kaggle://someone/net/keras/small", "kaggle://someone/net/keras/small/9"):
        row = backbones.get(f"keras_hub:{address}")
        network = hub.build(row, image_size=(64, 64), weights="preset")
        assert network.name == "keras_hub.small"
    assert hub_presets.located(backbones.get("keras_hub:kaggle://someone/net/keras/small")) == str(
        tmp_path / "models/someone/net/keras/small/10"
    )


def test_presets_are_listed_with_what_keras_hub_says_of_them() -> None:
    listed = {preset.name: preset for preset in hub.presets()}
    assert len(listed) > 50
    assert listed["resnet_18_imagenet"].parameters == 11_186_112
    assert "ResNet" in listed["resnet_18_imagenet"].description
    assert "bert_base_en" not in listed
    json.dumps([vars(preset) for preset in listed.values()])
