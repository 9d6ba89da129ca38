"""Builders of plain Keras models, and the one place that decides what is trainable.

A model takes raw RGB pixels 0..255 and returns logits: a pixel layer, the backbone as one nested
model, pooling, dropout, a dense head. It loads with `keras.models.load_model` where this package
is not installed. Nothing here compiles or trains.

    model = image_classifier("mobilenet_v2", num_classes=5, weights="torchvision")
    unfreeze_top(model, blocks=4)        # then compile: Keras fixes `trainable` when it traces
    [b.name for b in blocks(model) if b.trainable]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import keras

from kerastune_ft import backbones
from kerastune_ft.backbones import networks
from kerastune_ft.errors import ModelError

BatchNorm = Literal["frozen", "train"]


@dataclass(frozen=True)
class Block:
    """One step of a backbone, or the head.

    Args:
        name: The cut, that is the name of its last layer; `head` for the task's own layers.
        layers: In the order they are applied.
    """

    name: str
    layers: tuple[keras.layers.Layer, ...]

    @property
    def weights(self) -> list[keras.Variable]:
        """Its variables, BatchNormalization statistics included."""
        return [weight for layer in self.layers for weight in layer.weights]

    @property
    def trainable(self) -> bool:
        """Whether training moves any of its variables."""
        return any(layer.trainable_weights for layer in self.layers)

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return _count(self.weights)

    @property
    def trainable_parameters(self) -> int:
        """How many of them training moves."""
        return _count([weight for layer in self.layers for weight in layer.trainable_weights])


def image_classifier(
    backbone: str,
    num_classes: int,
    *,
    weights: str = "imagenet",
    image_size: int | tuple[int, int] | None = None,
    alpha: float | None = None,
    trainable_blocks: int = 0,
    batch_norm: BatchNorm = "frozen",
    dropout: float = 0.2,
    seed: int | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds an image classifier on a pre-trained backbone.

    Args:
        backbone: A name of `kft ls backbones`, such as `mobilenet_v2`.
        num_classes: Number of logits, 2 or more.
        weights: A tag of that backbone (`imagenet`, `torchvision`), `none` for random weights, a
            `.weights.h5` or `.keras` file, or the folder of a former run.
        image_size: Height and width in pixels; one number for a square. The backbone's usual
            side by default.
        alpha: Width multiplier, for the networks that have one; 1 by default.
        trainable_blocks: How many blocks, counted from the top, train beside the head. 0 trains
            the head alone, -1 everything.
        batch_norm: `frozen` keeps BatchNormalization of unfrozen blocks in inference mode, its
            statistics, scale and offset as they are; `train` lets it train like other layers.
        dropout: Share of pooled features dropped while training, 0..1.
        seed: Of the head's first weights and of dropout; Keras's global seed by default.
        name: Of the model; the backbone's by default.

    Returns:
        An uncompiled functional model from `float32 (batch, height, width, 3)`, RGB in 0..255,
        to `float32 (batch, num_classes)`, logits.

    Raises:
        ModelError: If the backbone is unknown, the size too small or there are too few classes.
        WeightsError: If the weights are unknown, damaged, unreachable or of another network.
    """
    row = backbones.get(backbone)
    if num_classes < 2:
        raise ModelError(f"num_classes: expected 2 or more, got {num_classes}.")
    height, width = _size(row, image_size)
    network = networks.build(row, image_size=(height, width), weights=weights, alpha=alpha)
    tag = network.name.rpartition(".")[2]
    inputs = keras.Input((height, width, 3), name="image")
    x = networks.pixels(row.weights_of(tag).pixels)(inputs)
    x = network(x)
    x = keras.layers.GlobalAveragePooling2D(name="pooling")(x)
    x = keras.layers.Dropout(dropout, seed=seed, name="dropout")(x)
    initializer = keras.initializers.GlorotUniform(seed=seed)
    outputs = keras.layers.Dense(
        num_classes, kernel_initializer=initializer, dtype="float32", name="logits"
    )(x)
    model = keras.Model(inputs, outputs, name=name or row.name)
    unfreeze_top(model, trainable_blocks, batch_norm=batch_norm)
    return model


def backbone_of(model: keras.Model) -> tuple[keras.Model, backbones.Backbone]:
    """Returns the nested network of a built or reloaded model, and its row.

    Raises:
        ModelError: If the model holds none of the known backbones.
    """
    for layer in model.layers:
        name, _, tag = layer.name.partition(".")
        if isinstance(layer, keras.Model) and tag and name in backbones.BACKBONES:
            return layer, backbones.get(name)
    raise ModelError(
        f"model '{model.name}': no backbone found in it; expected a model made by "
        "kerastune_ft.image_classifier, or one reloaded from its '.keras' file."
    )


def blocks(model: keras.Model) -> list[Block]:
    """Returns the backbone's blocks in order, stem first, and the head as the last one.

    Args:
        model: Made by a builder, or reloaded.

    Raises:
        ModelError: If the model holds no known backbone.
    """
    network, row = backbone_of(model)
    names = [layer.name for layer in network.layers]
    ends = [names.index(cut) + 1 for cut in row.cuts[:-1]] + [len(names)]
    starts = [0, *ends[:-1]]
    made = [
        Block(cut, tuple(network.layers[start:end]))
        for cut, start, end in zip(row.cuts, starts, ends, strict=True)
    ]
    head = tuple(layer for layer in model.layers if layer is not network and layer.weights)
    return [*made, Block("head", head)]


def freeze(model: keras.Model) -> None:
    """Makes the head alone trainable. Compile afterwards.

    Args:
        model: Made by a builder, or reloaded.
    """
    unfreeze_top(model, 0)


def unfreeze_top(model: keras.Model, blocks: int, *, batch_norm: BatchNorm = "frozen") -> None:
    """Makes the head and the top `blocks` backbone blocks trainable, everything below frozen.

    Compile afterwards: Keras fixes `trainable` when it builds the train function, and a flag
    set later changes nothing (keras 9477).

    Args:
        model: Made by a builder, or reloaded.
        blocks: Counted from the top. 0 trains the head alone, -1 everything.
        batch_norm: `frozen` keeps every BatchNormalization of the backbone in inference mode;
            `train` lets those of unfrozen blocks train and move their statistics.

    Raises:
        ModelError: If the backbone has fewer blocks.

    Reference:
        Howard & Ruder 2018, gradual unfreezing. https://arxiv.org/abs/1801.06146
    """
    *body, head = _blocks(model)
    if blocks < -1 or blocks > len(body):
        raise ModelError(
            f"trainable_blocks: backbone '{model.name}' has {len(body)} blocks; expected -1 (all) "
            f"to {len(body)}, got {blocks}."
        )
    first = 0 if blocks == -1 else len(body) - blocks
    # A container that is not trainable hides its layers' flags, and setting its flag would
    # overwrite them: the container first, then layer by layer.
    network, _ = backbone_of(model)
    model.trainable = True
    network.trainable = True
    for index, block in enumerate(body):
        for layer in block.layers:
            is_batch_norm = isinstance(layer, keras.layers.BatchNormalization)
            layer.trainable = index >= first and not (is_batch_norm and batch_norm == "frozen")
    for layer in head.layers:
        layer.trainable = True


def named_weights(model: keras.Model) -> Iterator[tuple[str, str, keras.Variable]]:
    """Yields every weight as `(block, path, variable)`; paths are unique within the model."""
    for block in blocks(model):
        for layer in block.layers:
            for index, weight in enumerate(layer.weights):
                yield block.name, f"{layer.name}/{index}/{weight.name}", weight


_blocks = blocks  # `unfreeze_top` has an argument of that name


def _size(row: backbones.Backbone, image_size: int | tuple[int, int] | None) -> tuple[int, int]:
    size = row.image_size if image_size is None else image_size
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < row.smallest_side:
        raise ModelError(
            f"image_size: backbone '{row.name}' needs at least {row.smallest_side} pixels a side, "
            f"got {height}x{width}."
        )
    return height, width


def _count(weights: list[keras.Variable]) -> int:
    total = 0
    for weight in weights:
        size = 1
        for length in weight.shape:
            size *= int(length)
        total += size
    return total
