"""Builds the network of a row, with its weights, as a plain Keras model without a head.

The network is named `row.tag` (`mobilenet_v2.torchvision`): from that name alone a reloaded model
knows its row, its pixel rule and how it was built. Nothing here needs this package to reload.

    row = backbones.get("mobilenet_v2")
    network = networks.build(row, image_size=(160, 160), weights="torchvision")
    pixels = networks.pixels(networks.rule(row, tag_of(network)))
    features = network(pixels(images))            # images: RGB, 0..255
"""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kerastune_ft import backbones
from kerastune_ft.backbones import BACKBONES, HUB, arrays, graphs, hub
from kerastune_ft.backbones import weights as weights_cache
from kerastune_ft.backbones.facts import Backbone, Pixels, Wheel
from kerastune_ft.backbones.weights import CONVENTIONS
from kerastune_ft.errors import ModelError, WeightsError

RANDOM_AS = "none:"
"""Before a tag: its network with random weights, for those that come from elsewhere."""


def pixels(rule: Pixels, channels: int = 3, name: str = "pixels") -> keras.layers.Layer:
    """Returns the one layer that turns pixels in 0..255 into what the weights want.

    It computes in float32 under every precision policy: bfloat16 has no room for 0..255 with a
    fraction.

    Args:
        rule: Of the weights.
        channels: Of the pictures. Other numbers than 3 get the rule's mean over RGB.
        name: Of the layer.

    Returns:
        Takes and returns `float32 (batch, height, width, channels)`.
    """
    scale, offset = list(rule.scale), list(rule.offset)
    if channels != 3:
        scale, offset = [sum(scale) / 3], [sum(offset) / 3]
    if not rule.bgr or channels != 3:
        even = len(set(scale)) == len(set(offset)) == 1
        return keras.layers.Rescaling(
            scale[0] if even else scale, offset[0] if even else offset, name=name, dtype="float32"
        )
    images = keras.Input((None, None, 3), dtype="float32")
    turned = keras.ops.flip(images, axis=-1)
    scaled = keras.layers.Rescaling(scale, offset, dtype="float32")(turned)
    return keras.Model(images, scaled, name=name)


def rule(row: Backbone, tag: str) -> Pixels:
    """Returns how weights want pixels.

    Args:
        row: Facts of the network.
        tag: Of the weights, or `none`.

    Raises:
        WeightsError: If the row has no such tag.
    """
    if row.family == HUB:
        return hub.pixels(row)
    return row.weights_of(tag).pixels


def build(
    row: Backbone,
    *,
    image_size: tuple[int, int],
    weights: str,
    alpha: float | None = None,
    channels: int = 3,
) -> keras.Model:
    """Builds the network of a row without a head.

    It has no dropout and no stochastic depth of its own: Keras would run them in frozen blocks,
    too, and a head would learn from features that are never seen again.

    With another number of channels than the weights were trained on, every channel gets the sum
    of the first kernel over RGB, divided by that number: after a pixel rule that is the same for
    all channels, a grey picture gives the same features whether it has one, three or five.

    Args:
        row: Facts of the network.
        image_size: Height and width, in pixels.
        weights: A tag of the row; `none` for random ones, `none:TAG` for random ones in the
            network that the tag's weights want (both repeatable after
            `keras.utils.set_random_seed`); a `.weights.h5` or `.keras` file; or the folder of a
            former run. A file that names the network it holds (`row.tag`) is built as that tag
            wants, any other as `keras.applications` builds it.
        alpha: Width multiplier; None means 1 for a network that has one.
        channels: Of the pictures.

    Returns:
        Takes `float32 (batch, height, width, channels)` after the pixel rule; is named `row.tag`.

    Raises:
        ModelError: If the network cannot be built at this size, width or number of channels.
        WeightsError: If the weights are unknown, cannot be had, are damaged, or do not fit.
    """
    alpha = _checked(row, image_size, alpha, channels)
    if row.family == HUB:
        network = hub.build(row, image_size=image_size, weights=weights, channels=channels)
    else:
        network = _weighted(_Wanted(row, image_size, alpha, channels), weights)
    graphs.stop_dropout(network)
    return network


def _weighted(wanted: _Wanted, weights: str) -> keras.Model:
    """Builds a network of a row of this package with any of its weights."""
    row, alpha = wanted.row, wanted.alpha
    if weights.startswith(RANDOM_AS):
        return _network(wanted, weights.removeprefix(RANDOM_AS))
    if weights not in row.weights and weights != "none" and _is_path(weights):
        return _from_file(wanted, Path(weights))
    facts = row.weights_of(weights)
    if weights == "none":
        return _network(wanted, "none")
    if facts.alphas and alpha not in facts.alphas:
        raise WeightsError(
            f"weights '{weights}' of {row.name}: do not exist for alpha {alpha}; they exist for "
            f"{', '.join(map(str, facts.alphas))}{_other_tags(row, weights, alpha)}"
        )
    if isinstance(facts.source, Wheel):
        path = weights_cache.fetch(row, weights)
        network = _network(wanted, weights)
        arrays.assign(network, weights_cache.read_arrays(path), path)
        return network
    return _from_keras(wanted, weights)


def classifier(
    row: Backbone, tag: str = "torchvision", image_size: tuple[int, int] | None = None
) -> keras.Model:
    """Builds the whole ImageNet classifier of weights that come in a wheel.

    It is what the weights' authors published, for checks against their figures.

    Args:
        row: Facts of the network.
        tag: Of the weights.
        image_size: Height and width, in pixels; None means the row's side.

    Returns:
        Takes RGB `float32 (batch, height, width, 3)`, 0..255; returns 1,000 logits.

    Raises:
        WeightsError: If the weights hold no classifier or cannot be had.
    """
    size = image_size or (row.image_size, row.image_size)
    facts = row.weights_of(tag)
    if tag == "none" or not isinstance(facts.source, Wheel):
        raise WeightsError(
            f"weights '{tag}' of {row.name}: hold no classifier; "
            f"build keras.applications.{row.builder} with include_top=True instead."
        )
    network = build(row, image_size=size, weights=tag)
    head = weights_cache.read_arrays(weights_cache.fetch(row, tag))["predictions"]
    images = keras.Input((*size, 3), name="images")
    features = keras.layers.GlobalAveragePooling2D(name="pooling")(
        network(pixels(facts.pixels)(images))
    )
    logits = keras.layers.Dense(head[0].shape[1], name="predictions", dtype="float32")
    model = keras.Model(images, logits(features), name=f"{row.name}_classifier")
    logits.set_weights(head)
    return model


def tag_of(network: keras.Model) -> str:
    """Returns the weights tag in the name of a network made by `build`."""
    return str(network.name).partition(".")[2]


def row_of(network: keras.Model) -> Backbone | None:
    """Returns the row of a network made by `build`, or None for any other layer.

    The row of a preset holds no more than its family: the name of the network does not tell where
    the preset was.
    """
    name, point, tag = str(network.name).partition(".")
    if name == HUB and tag and isinstance(network, keras.Model):
        return backbones.get(f"{HUB}:{tag}")
    return BACKBONES.get(name) if point else None


def cuts(network: keras.Model, row: Backbone) -> tuple[str, ...]:
    """Returns the last layer of every block of a network, stem first."""
    if row.language:
        from kerastune_ft.backbones import text_networks

        return text_networks.cuts(network)
    return hub.cuts(network) if row.family == HUB else row.cuts


@dataclass(frozen=True)
class _Wanted:
    """What to build: a row at a size, an alpha and a number of channels."""

    row: Backbone
    size: tuple[int, int]
    alpha: float | None
    channels: int


def _checked(
    row: Backbone, image_size: tuple[int, int], alpha: float | None, channels: int
) -> float | None:
    """Returns the alpha to build with, once size, alpha and channels are known to be possible."""
    if channels < 1:
        raise ModelError(
            f"backbone '{row.name}': pictures of {channels} channels do not exist; "
            "set channels to 1 for grey pictures or 3 for RGB."
        )
    if keras.config.image_data_format() != "channels_last":
        raise ModelError(
            f"backbone '{row.name}': Keras is set to channels_first; kerastune_ft takes "
            "(batch, height, width, 3); set image_data_format to 'channels_last'."
        )
    if min(image_size) < row.smallest_side:
        raise ModelError(
            f"backbone '{row.name}': a picture of {image_size[0]}x{image_size[1]} pixels is too "
            f"small; both sides need at least {row.smallest_side}."
        )
    if not row.alphas:
        if alpha is not None:
            raise ModelError(f"backbone '{row.name}' has no alpha; leave it out.")
        return None
    if alpha is None:
        return 1.0
    if alpha not in row.alphas:
        raise ModelError(
            f"backbone '{row.name}' cannot be built with alpha {alpha}; "
            f"it has {', '.join(map(str, row.alphas))}."
        )
    return float(alpha)


def _other_tags(row: Backbone, tag: str, alpha: float | None) -> str:
    """Returns the end of the message that tells which other weights have this alpha."""
    having = [
        other
        for other, facts in row.weights.items()
        if other != tag and (not facts.alphas or alpha in facts.alphas)
    ]
    return "; " + ", ".join(f"'{other}'" for other in [*having, "none"]) + f" have {alpha}."


def _applications(wanted: _Wanted, weights: str | None) -> keras.Model:
    """Calls the builder of `keras.applications`.

    It is given no name of ours: some derive the names of layers or of the file from it.
    """
    options: dict[str, Any] = dict(wanted.row.options)
    if wanted.alpha is not None:
        options["alpha"] = wanted.alpha
    shape = (*wanted.size, wanted.channels)
    with warnings.catch_warnings():
        # The row says which sides have a file of their own, and any number of channels is right.
        warnings.filterwarnings("ignore", message="`input_shape` is undefined or non-sq")
        warnings.filterwarnings("ignore", message="This model usually expects 1 or 3 input")
        builder = getattr(keras.applications, wanted.row.builder)
        return builder(weights=weights, include_top=False, input_shape=shape, **options)


def _network(wanted: _Wanted, tag: str) -> keras.Model:
    """Builds a network with random weights as a tag wants it."""
    row = wanted.row
    name = f"{row.name}.{tag}"
    if row.builder.startswith("keras_hub.models."):
        return hub.construct(row, name, wanted.size, wanted.channels)
    convention = CONVENTIONS[row.weights_of(tag).convention]
    return graphs.rewritten(_applications(wanted, None), name, convention)


def _from_keras(wanted: _Wanted, tag: str) -> keras.Model:
    """Builds a network with the weights that Keras itself downloads."""
    row, size = wanted.row, wanted.size
    side = size[0] if size[0] == size[1] else None
    with weights_cache.keras_download(row, tag, side, wanted.alpha) as path:
        try:
            # Keras loads its file into a network of RGB alone.
            theirs = _applications(dataclasses.replace(wanted, channels=3), tag)
        except OSError as error:
            raise WeightsError(
                f"{path}: cannot be read as weights ({error}); "
                "delete the file to have Keras download it again."
            ) from error
        except Exception as error:
            # Keras raises a bare Exception for a failed download.
            if "URL fetch failure" in str(error) or "corrupted file" in str(error):
                raise weights_cache.unreachable(row, tag, path) from error
            raise
    _check_front(theirs, row.weights_of(tag).pixels, path)
    network = graphs.rewritten(theirs, f"{row.name}.{tag}", CONVENTIONS["keras"])
    if wanted.channels == 3:
        return network
    found = {layer.name: layer.get_weights() for layer, _ in graphs.owners(network)}
    wider = _network(wanted, tag)
    arrays.assign(wider, found, path)
    return wider


def _check_front(network: keras.Model, rule: Pixels, path: Path) -> None:
    """Refuses weights whose own pixel layers do not do what the pixel rule does in their place."""
    layers = graphs.front(network)
    if not layers:
        return
    scale = keras.Model(network.input, layers[-1].output)
    ends = np.stack([np.full(network.input_shape[1:], level, "float32") for level in (0, 255)])
    if not np.allclose(scale(ends), pixels(rule)(ends), atol=1e-4):
        raise WeightsError(
            f"{path}: scales pixels in another way than '{rule.name}', which backbone "
            f"'{network.name}' is known for; delete the file to have Keras download it again."
        )


def _is_path(weights: str) -> bool:
    """Tells a path from a tag the way the recipe does."""
    return weights.endswith((".keras", ".weights.h5")) or "/" in weights or Path(weights).is_dir()


def _from_file(wanted: _Wanted, path: Path) -> keras.Model:
    """Builds a network with the weights of a file or of a former run."""
    row = wanted.row
    path = path.expanduser()
    if path.is_dir():
        weights_cache.check_single(path)
        path = path / "model.keras"
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such file; give the path of a '.weights.h5' or '.keras' file or the "
            f"folder of a finished run, or one of the weights {', '.join(row.weights)}, none."
        )
    name, held = arrays.read(path)
    found, _, tag = (name or "").partition(".")
    if name is None and path.suffix == ".keras":
        raise WeightsError(
            f"{path}: holds no network of this package (named like '{row.name}.imagenet'); if its "
            f"backbone is keras.applications.{row.builder}, save that alone with "
            "backbone.save_weights('NAME.weights.h5') and give this file."
        )
    if name is not None and found != row.name:
        raise WeightsError(
            f"{path}: holds the network '{name}', which does not fit backbone '{row.name}'; "
            f"set backbone.name to '{found}'."
        )
    tag = tag or "none"
    network = _network(wanted, tag)
    arrays.check_normalization(held, row.weights_of(tag).pixels, path)
    arrays.assign(network, arrays.with_final_norm(held), path, wanted.alpha)
    return network
