"""The records that rows are made of: `Backbone`, `Weights`, `Wheel`. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from kerastune_ft.errors import WeightsError, did_you_mean

PixelRule = Literal["caffe", "raw", "tf", "torch"]
"""How weights want pixels, in the words of `keras.applications`, from RGB in 0..255: `tf` scales
to -1..1, `torch` to 0..1 and then by ImageNet's mean and standard deviation, `caffe` turns to BGR
and subtracts ImageNet's mean, `raw` leaves them."""


@dataclass(frozen=True)
class Wheel:
    """Names one file inside one wheel of the package index; it is read, never installed.

    Args:
        package: Distribution name.
        version: The one version whose files were checked.
        sha256: Of the wheel.
        member: Path inside the wheel.
        member_sha256: Of that file.
        size: Of the wheel, in bytes.
    """

    package: str
    version: str
    sha256: str
    member: str
    member_sha256: str
    size: int


@dataclass(frozen=True)
class Weights:
    """Holds what is known about one set of pre-trained weights.

    Args:
        pixels: The rule they were trained with.
        source: Where they come from: a `Wheel`, or the file name that Keras downloads, with
            `{alpha}` and `{side}` to be filled in.
        licence: SPDX name.
        top1: Published ImageNet top-1 accuracy at alpha 1 and the row's side, 0..1.
        sides: The square sides that have a file of their own; others use the row's side.
        alphas: The width multipliers that exist; empty for a network without one.
        convention: How the network must be built for these weights to be right; see
            `backbones.weights.CONVENTIONS`.
    """

    pixels: PixelRule
    source: Wheel | str
    licence: str
    top1: float
    sides: tuple[int, ...] = ()
    alphas: tuple[float, ...] = ()
    convention: Literal["keras", "torchvision"] = "keras"


@dataclass(frozen=True)
class Backbone:
    """Holds what is known about one network, before anything is built.

    Args:
        name: The upstream name in snake case.
        family: `mobilenet`, `resnet`, ...
        builder: Attribute of `keras.applications`.
        image_size: Usual height and width, in pixels.
        smallest_side: Below it the network cannot be built.
        cuts: Last layer of every block, stem first. The last block runs to the output, whatever
            layer ends it.
        features: Width of the pooled features at alpha 1.
        parameters: Without a head, at alpha 1.
        weights: Tag to facts; the first tag is the default.
        alphas: The width multipliers the network can be built with (pre-trained weights exist
            for `Weights.alphas` alone); empty for a network without one.
        paper: Address.
        options: Further arguments of the builder.
    """

    name: str
    family: str
    builder: str
    image_size: int
    smallest_side: int
    cuts: tuple[str, ...]
    features: int
    parameters: int
    weights: Mapping[str, Weights]
    paper: str
    alphas: tuple[float, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)

    def weights_of(self, tag: str) -> Weights:
        """Returns the facts of a weights tag.

        Args:
            tag: A key of `weights`, or `none` for random weights, which follow the conventions
                of the row's first tag.

        Raises:
            WeightsError: If the row has no such tag.
        """
        if tag == "none":
            return next(iter(self.weights.values()))
        if tag not in self.weights:
            tags = ", ".join([*self.weights, "none"])
            raise WeightsError(
                f"weights '{tag}' are unknown for backbone '{self.name}'"
                f"{did_you_mean(tag, self.weights) or '.'} It has {tags}; or give the path of a "
                "'.weights.h5' or '.keras' file, or of a former run."
            )
        return self.weights[tag]
