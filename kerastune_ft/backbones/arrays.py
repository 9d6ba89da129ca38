"""Reads arrays by layer out of a file, and gives them to a network, all or none.

Nothing of a file's code or configuration is run, and nothing outside it is read. Automatic names
of layers are those of a fresh process on both sides, so a file of any process fits.

    name, found = arrays.read(Path("runs/digits/model.keras"))  # 'mobilenet_v2.torchvision', {...}
    arrays.assign(network, found, path)
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import keras
import numpy as np

from kerastune_ft.backbones import BACKBONES, HUB, graphs
from kerastune_ft.backbones.facts import Pixels
from kerastune_ft.errors import WeightsError

_HEADS = frozenset({"conv_preds", "conv_2", "logits"})
"""Convolutions that classify, in MobileNet and MobileNetV3 of `keras.applications`."""

Arrays = Mapping[str, Sequence[np.ndarray]]
"""The arrays of every layer, by its name, in Keras's order."""


def read(path: Path) -> tuple[str | None, Arrays]:
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
    groups: dict[str, h5py.Group] = {}  # by the place of the layer in the file, which is unique

    def note(place: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Group) and place.rpartition("/")[2] == "vars":
            groups[place.rpartition("/")[0]] = item

    file.visititems(note)  # follows no link out of the file
    names = {place: str(group.attrs.get("name", "")) for place, group in groups.items()}
    known = {*BACKBONES, HUB}
    named = [p for p, name in names.items() if "." in name and name.partition(".")[0] in known]
    if len(named) > 1:
        raise WeightsError(
            f"{path}: holds several networks ({', '.join(names[place] for place in named)}); "
            "save the one you mean alone with save_weights('NAME.weights.h5')."
        )
    inside = f"{named[0]}/" if named and named[0] else ""
    held = {p: group for p, group in groups.items() if p.startswith(inside) and len(group)}
    # Keras calls the place of a layer after its class.
    fresh = graphs.fresh_names(
        (re.sub(r"_\d+$", "", place.rpartition("/")[2]), names[place]) for place in held
    )
    arrays: dict[str, list[np.ndarray]] = {}
    for place, group in held.items():
        # Layers of one name (seed generators) are strung together: were such a layer needed, its
        # shapes could not fit, and that is reported.
        arrays.setdefault(fresh.get(names[place], names[place]), []).extend(
            read_dataset(group, str(index), path) for index in range(len(group))
        )
    return (names[named[0]] if named else None), arrays


def read_dataset(group: h5py.Group, key: str, path: Path) -> np.ndarray:
    """Reads an array that lies in the file itself and is no larger than the file.

    Raises:
        WeightsError: If it does not.
    """
    linked = not isinstance(group.get(key, getlink=True), h5py.HardLink)
    dataset = None if linked else group[key]
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise WeightsError(f"{path}: '{group.name}/{key}' lies outside the file; refused.")
    if dataset.nbytes > path.stat().st_size:
        raise WeightsError(f"{path}: '{dataset.name}' claims to be larger than the file; refused.")
    return np.asarray(dataset)


def assign(network: keras.Model, arrays: Arrays, origin: Path, alpha: float | None = None) -> None:
    """Gives every layer its arrays, or none to any if one does not fit."""
    width = "" if alpha is None else f" with alpha {alpha}"
    owners = graphs.owners(network)
    names = [layer.name for layer, _ in owners]
    assert len(set(names)) == len(names), f"{network.name}: two layers of one name hold weights"
    arrays = _with_channels(owners[0], arrays, origin)
    for layer, variables in owners:
        wanted = [tuple(variable.shape) for variable in variables]
        found = [tuple(array.shape) for array in arrays.get(layer.name, ())]
        # A factor per channel is a vector in Keras's ConvNeXt and a kernel of one pixel in ours.
        scale = layer.name.endswith("_layer_scale") and found == [wanted[0][2:3]]
        if wanted != found and not scale:
            raise WeightsError(
                f"{origin}: does not fit '{network.name}'{width}: layer '{layer.name}' needs "
                f"{_shapes(wanted)}, the file has {_shapes(found)}; check backbone.name and "
                "backbone.alpha."
            )
    unused = [
        name
        for name, values in arrays.items()
        if name not in names and name not in _HEADS and any(value.ndim == 4 for value in values)
    ]
    if unused:
        raise WeightsError(
            f"{origin}: does not fit '{network.name}'{width}: it holds {len(unused)} convolutions "
            f"that this network has not ('{unused[0]}', ...), so it is of a larger one; check "
            "backbone.name."
        )
    for layer, variables in owners:
        for variable, array in zip(variables, arrays[layer.name], strict=True):
            variable.assign(np.reshape(array, variable.shape))


def _with_channels(
    first: tuple[keras.layers.Layer, list[keras.Variable]], arrays: Arrays, origin: Path
) -> Arrays:
    """Returns the arrays with the first kernel for as many channels as the network takes."""
    layer, variables = first
    kernel, *rest = arrays.get(layer.name) or [np.zeros(())]
    shape = tuple(variables[0].shape)  # height, width, channels, filters
    fits = kernel.ndim == len(shape) == 4 and kernel.shape[:2] == shape[:2]
    if not fits or kernel.shape[2] == shape[2]:
        return arrays
    if kernel.shape[2] != 3:
        raise WeightsError(
            f"{origin}: was trained on pictures of {kernel.shape[2]} channels, which can become "
            f"no other number; set backbone.channels to {kernel.shape[2]}."
        )
    grey = kernel.sum(axis=2, keepdims=True) / shape[2]
    return {**arrays, layer.name: [np.repeat(grey, shape[2], axis=2), *rest]}


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    """Returns shapes as `3x3x3x32 and 32`, in words."""
    return " and ".join("x".join(map(str, shape)) or "a number" for shape in shapes) or "nothing"


def check_normalization(arrays: Arrays, rule: Pixels, path: Path) -> None:
    """Refuses a file whose network was trained with other pixels than the rule gives.

    EfficientNet keeps its pixels' mean and variance among its weights. Keras's own weights hold
    the standard deviation where the variance belongs and divide by its root once more.
    """
    if "normalization" not in arrays:
        return
    mean, variance = (np.ravel(array) for array in arrays["normalization"][:2])
    std = 1 / (255 * np.array(rule.scale))  # of pixels in 0..1
    known = [
        values.shape == std.shape and np.allclose(values, right, atol=1e-4)
        for values, right in (
            (mean, -np.array(rule.offset) * std),
            (variance, std),
            (variance, std**2),
        )
    ]
    if not (known[0] and any(known[1:])):
        raise WeightsError(
            f"{path}: its layer 'normalization' has mean {_numbers(mean)} and variance "
            f"{_numbers(variance)}, of pixels in 0..1; this backbone gives its network pixels by "
            f"the rule '{rule.name}'; give weights trained with that rule."
        )


def with_final_norm(arrays: Arrays) -> Arrays:
    """Returns the arrays with the last normalisation of a whole ConvNeXt under its other name.

    Keras calls that layer otherwise in the classifier, where it comes after the pooling.
    """
    last = [name for name in arrays if name.endswith("_head_layernorm")]
    if len(last) != 1 or "layer_normalization" in arrays:
        return arrays
    return {**arrays, "layer_normalization": arrays[last[0]]}


def _numbers(values: np.ndarray) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
