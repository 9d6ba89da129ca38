"""Builds networks of KerasHub as plain Keras models, from presets and for rows of our own.

A preset is a name that KerasHub knows, an address (`kaggle://...`, `hf://...`) or a local folder
that holds its configuration and weights. KerasHub is imported when one is asked for, not before.
Refused within seconds: names that nobody knows, hosts that cannot be reached, presets that take
no pictures, sides that the network cannot be built at.

    row = backbones.get("keras_hub:resnet_vd_18_imagenet")
    network = build(row, image_size=(224, 224), weights="preset")   # 'keras_hub.resnet_vd_...'
    pixels(row), cuts(network)
"""

from __future__ import annotations

import inspect
import io
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from kerastune_ft.backbones import HUB, arrays, bottlenecks, hub_presets, unrolling
from kerastune_ft.backbones import weights as weights_cache
from kerastune_ft.backbones.facts import RAW, Backbone, Pixels
from kerastune_ft.backbones.hub_presets import Preset, presets
from kerastune_ft.errors import ModelError, WeightsError

__all__ = ["Preset", "build", "construct", "cuts", "image_size", "pixels", "presets"]

_SIZES = ("image_shape", "input_shape")
"""What backbones call the argument for the shape of a picture."""


def build(
    row: Backbone, *, image_size: tuple[int, int], weights: str, channels: int = 3
) -> keras.Model:
    """Builds the network of a preset without a head.

    Args:
        row: Of a `keras_hub:` backbone.
        image_size: Height and width, in pixels.
        weights: `preset`; `none` for random ones; a `.keras` or `.weights.h5` file or the folder
            of a former run of the same preset.
        channels: Of the pictures; presets take 3.

    Returns:
        A functional model from `float32 (batch, height, width, 3)` after the pixel rule to the
        last feature map `(batch, h, w, c)` or to tokens `(batch, tokens, c)`, named
        `keras_hub.PRESET`. `keras.models.load_model` reloads it without an import of KerasHub,
        which has to be installed where the network has layers of its own.

    Raises:
        ModelError: If the preset is unknown or takes no pictures, or cannot be built at this size
            or number of channels.
        WeightsError: If the preset cannot be had, or the weights do not fit.
    """
    if channels != 3:
        raise ModelError(
            f"backbone '{row.name}': presets take pictures of 3 channels, got {channels}; "
            "set backbone.channels to 3, or take a backbone of 'kft ls backbones'."
        )
    name = f"{HUB}.{hub_presets.slug(row)}"
    if weights in ("preset", "none"):
        return _plain(row, _load(row, image_size, weights == "preset"), name)
    if not _is_path(weights):
        row.weights_of(weights)  # says which there are
    path = Path(weights).expanduser()
    if path.is_dir():
        weights_cache.check_single(path)
        path = path / "model.keras"
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such file; give the path of a '.weights.h5' or '.keras' file or the "
            "folder of a finished run, or one of the weights preset, none."
        )
    network = _plain(row, _load(row, image_size, with_weights=False), name)
    _fill(network, path)
    return network


def construct(row: Backbone, name: str, size: tuple[int, int], channels: int) -> keras.Model:
    """Builds the network of a row of EfficientNet-Lite with random weights.

    KerasHub's "v1" blocks are ordinary layers, which reload without KerasHub, but pad as PyTorch
    does; the weights are TensorFlow's and want its padding 'same'. So each depthwise convolution
    gets that, and the padding layer before it goes.

    Args:
        row: Its builder is a dotted name in `keras_hub.models`.
        name: Of the model.
        size: Height and width, in pixels.
        channels: Of the pictures.

    Returns:
        A functional model from `float32 (batch, height, width, channels)` to the last feature
        map; `keras.models.load_model` reloads it, without `import keras_hub`.
    """
    import keras_hub

    builder = getattr(keras_hub.models, row.builder.rpartition(".")[2])
    options: dict[str, Any] = dict(row.options)
    backbone = builder(input_shape=(*size, channels), **options)

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        settings = layer.get_config()
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            settings["padding"] = "same"
        return layer.__class__.from_config(settings)

    def call(layer: keras.layers.Layer, *inputs: Any, **arguments: Any) -> Any:
        if isinstance(layer, keras.layers.ZeroPadding2D):
            return inputs[0]
        return layer(*inputs, **arguments)

    plain = keras.Model(backbone.input, backbone.output, name=name)  # no class of KerasHub's
    return keras.models.clone_model(plain, clone_function=clone, call_function=call)


def cuts(network: keras.Model) -> tuple[str, ...]:
    """Returns the last layer of every block of a network made by `build`, stem first."""
    return bottlenecks.cuts(network)


def pixels(row: Backbone) -> Pixels:
    """Returns how the preset of a row wants pixels: what its image converter does to them.

    A preset without a converter gets them as they are, 0..255, as its KerasHub task would.

    Raises:
        ModelError: If the preset is unknown or does more than to scale channels.
        WeightsError: If the preset cannot be had.
    """
    converter = hub_presets.converter(row)
    if converter is None:
        return RAW
    converter.image_size = None  # leave the size alone
    # What it does is measured, for some converters compute their numbers.
    levels = np.zeros((4, 2, 2, 3), "float32")
    levels[1], levels[2], levels[3, ..., 0] = 127.5, 255, 255
    black, grey, white, red = np.asarray(keras.ops.convert_to_numpy(converter(levels)), "float64")[
        :, 0, 0
    ]
    slope = white - black
    bgr = abs(red - black)[0] < 1e-6 < abs(red - black)[2]
    expected = black + slope * (np.asarray([0, 0, 1]) if bgr else np.asarray([1, 0, 0]))
    if not np.allclose([grey, red], [(black + white) / 2, expected], rtol=1e-5, atol=1e-5):
        raise ModelError(
            f"backbone '{row.name}': its image converter {type(converter).__name__} does more than "
            "to scale channels, which is not supported; take another preset."
        )
    scale, offset = slope / 255, black
    return Pixels(f"as {hub_presets.slug(row)}", _three(scale), _three(offset), bgr=bool(bgr))


def image_size(row: Backbone) -> int | None:
    """Returns the usual side of the preset of a row, in pixels; None where it names no square.

    Raises:
        ModelError: If the preset is unknown.
        WeightsError: If the preset cannot be had.
    """
    converter = hub_presets.converter(row)
    if converter is not None and converter.image_size is not None:
        height, width = converter.image_size
        return int(height) if height == width else None
    _, settings = hub_presets.configuration(row)
    shape = next((settings[key] for key in _SIZES if settings.get(key)), [None, None])
    return shape[0] if shape[0] == shape[1] else None


def _three(values: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _is_path(text: str) -> bool:
    return text.endswith((".keras", ".weights.h5")) or "/" in text or Path(text).is_dir()


def _load(row: Backbone, size: tuple[int, int], with_weights: bool) -> keras.Model:
    """Loads the backbone of a preset for pictures of a size."""
    import keras_hub

    cls, settings = hub_presets.configuration(row)
    arguments: tuple[str, ...] = _SIZES
    if cls is not None:
        taken = inspect.signature(cls).parameters
        arguments = tuple(name for name in _SIZES if name in taken)
        if not arguments:
            raise hub_presets.takes_no_pictures(row)
    _check_size(row, size, settings)
    for argument in arguments:
        try:
            backbone = keras_hub.models.Backbone.from_preset(
                hub_presets.located(row), load_weights=with_weights, **{argument: (*size, 3)}
            )
            if size[0] != size[1]:  # some take every picture for a square, and fail only here
                backbone(np.zeros((2, *size, 3), "float32"))
            return backbone
        except Exception as error:  # Keras wraps whatever a layer raises
            if argument != arguments[-1] and argument in str(error):
                continue  # a foreign format: the class is known to KerasHub alone
            raise _not_built(row, size, with_weights, settings, error) from error
    raise AssertionError("from_preset neither returned nor raised")


def _patch(settings: Mapping[str, Any]) -> int | None:
    """Returns the side of the patches that a transformer divides pictures into."""
    patch = settings.get("patch_size")
    if isinstance(patch, list | tuple):
        patch = patch[0] if len(set(patch)) == 1 else None
    return patch if isinstance(patch, int) else None


def _check_size(row: Backbone, size: tuple[int, int], settings: Mapping[str, Any]) -> None:
    """Refuses sides that are no multiples of the patches'."""
    patch = _patch(settings)
    if patch and any(side % patch for side in size):
        near = sorted(
            {max(patch, side // patch * patch + more) for side in size for more in (0, patch)}
        )
        raise ModelError(
            f"backbone '{row.name}': pictures of {size[0]}x{size[1]} pixels do not divide into its "
            f"patches; both sides must be multiples of {patch}, such as "
            f"{' or '.join(map(str, near))}."
        )


def _not_built(
    row: Backbone,
    size: tuple[int, int],
    with_weights: bool,
    settings: Mapping[str, Any],
    error: Exception,
) -> ModelError:
    """Returns the error for a preset that could not be loaded at a size."""
    own = next((settings[key] for key in _SIZES if settings.get(key)), None)
    fits = ""
    if own and own[0] and tuple(own[:2]) != size:
        fits = f" Its own side fits: set backbone.image_size to {[*own[:2]]}"
        fits += ", or weights to none." if with_weights else "."
    return ModelError(
        f"backbone '{row.name}': cannot be loaded for pictures of {size[0]}x{size[1]} pixels: "
        f"{hub_presets.reason(error)}{fits}"
    )


def _plain(row: Backbone, backbone: keras.Model, name: str) -> keras.Model:
    """Returns the network of a backbone as one that reloads and has a tensor at either end."""
    features = backbone.output
    if isinstance(features, dict):  # of every stage, the last one last
        features = list(features.values())[-1]
    inputs = backbone.inputs
    ranks = [len(tensor.shape) for tensor in inputs]
    if ranks != [4] or isinstance(features, list | tuple) or len(features.shape) not in (3, 4):
        raise hub_presets.takes_no_pictures(row)
    network = unrolling.unrolled(backbone, name)
    if network is None:
        network = keras.Model(inputs[0], features, name=name)
        if not _reloads(network):
            # Its class knows how to build it where the configurations of its layers do not.
            if backbone.output is not features:
                raise ModelError(f"backbone '{row.name}': cannot be reloaded; take another preset.")
            backbone.name = name
            network = backbone
    return network


def _reloads(network: keras.Model) -> bool:
    """Tells whether the configurations of a network's layers are enough to build it again."""
    if all(type(layer).__module__.startswith("keras.") for layer in network.layers):
        return True
    try:
        again = keras.Model.from_config(network.get_config())
    except Exception:  # a layer of KerasHub's may raise anything here
        return False
    return [(layer.name, [weight.shape for weight in layer.weights]) for layer in again.layers] == [
        (layer.name, [weight.shape for weight in layer.weights]) for layer in network.layers
    ]


def _fill(network: keras.Model, path: Path) -> None:
    """Gives a network the weights that a file holds for one of the same preset.

    Layers within layers have names that others have, too, so weights are told by their place in
    the file: the network's own is written, its numbers are replaced, and it is read again.
    """
    name, _ = arrays.read(path)  # refuses what is damaged or lies outside the file
    if name is None and path.suffix == ".keras":
        raise WeightsError(
            f"{path}: holds no network of this package, named like '{network.name}'; save its "
            "backbone alone with save_weights('NAME.weights.h5') and give this file."
        )
    if name is not None and name != network.name:
        family, _, tag = name.partition(".")
        meant = f"{HUB}:{tag} (or the folder of that preset)" if family == HUB else family
        raise WeightsError(
            f"{path}: holds the network '{name}', not '{network.name}'; "
            f"set backbone.name to {meant}."
        )
    held = _held(path, name)
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "own.weights.h5"
        network.save_weights(own)
        with h5py.File(own, "r+") as file:
            places = _datasets(file)
            for place in sorted({*places, *held}):
                wanted = places[place].shape if place in places else None
                found = held[place].shape if place in held else None
                if wanted != found:
                    raise WeightsError(
                        f"{path}: does not fit '{network.name}': at '{place}' the network has "
                        f"{_shape(wanted)}, the file {_shape(found)}; check backbone.name and "
                        "backbone.image_size."
                    )
                places[place][...] = held[place]
        network.load_weights(own)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else "x".join(map(str, shape)) or "a number"


def _held(path: Path, name: str | None) -> dict[str, np.ndarray]:
    """Reads the arrays of the network of a name in a file, by their place in the network."""
    source: Any = path
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            source = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(source, "r") as file:
        roots = [
            place for place, group in _groups(file) if group.attrs.get("name") == name and name
        ]
        root = roots[0].removesuffix("vars").rstrip("/") if roots else ""
        prefix = f"{root}/" if root else ""
        return {
            f"{place}/{index}".removeprefix(prefix): arrays.read_dataset(group, index, path)
            for place, group in _groups(file)
            if place.startswith(prefix)
            for index in group
        }


def _groups(file: h5py.File) -> Iterator[tuple[str, h5py.Group]]:
    """Yields the places of the variables of every layer."""
    found: list[tuple[str, h5py.Group]] = []

    def note(place: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Group) and place.rpartition("/")[2] == "vars":
            found.append((place, item))

    file.visititems(note)
    yield from found


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Returns the arrays of a file that this process wrote, by their place."""
    return {
        f"{place}/{index}": data for place, group in _groups(file) for index, data in group.items()
    }
