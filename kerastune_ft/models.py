"""Builders of plain Keras models, and the one place that decides what is trainable.

A model takes raw RGB pixels 0..255 and returns logits: a pixel layer, the backbone as one nested
model, pooling, dropout, a dense head. It loads with `keras.models.load_model` where this package
is not installed. Nothing here compiles or trains.

    model = image_classifier("mobilenet_v2", num_classes=5, weights="torchvision")
    unfreeze(model, blocks=4)        # then compile: Keras fixes `trainable` when it traces
    [b.name for b in blocks(model) if b.trainable]
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import keras

from kerastune_ft import backbones, heads
from kerastune_ft.backbones import hub, networks
from kerastune_ft.errors import ModelError, did_you_mean

BatchNorm = Literal["frozen", "affine", "train"]
Parameters = Literal["all", "biases"]


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
    weights: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int = 3,
    alpha: float | None = None,
    pooling: heads.Pooling = "avg",
    hidden: Sequence[int] = (),
    dropout: float = 0.2,
    trainable_blocks: int = 0,
    batch_norm: BatchNorm = "frozen",
    seed: int | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds an image classifier, one class per picture, on a pre-trained backbone.

    Args:
        backbone: A name of `kft ls backbones`, such as `mobilenet_v2`, or `keras_hub:` and a
            preset.
        num_classes: Number of logits, 2 or more.
        weights: A tag of that backbone (`imagenet`, `torchvision`), `none` for random weights, a
            `.weights.h5` or `.keras` file, or the folder of a former run. The backbone's first
            tag by default.
        image_size: Height and width in pixels; one number for a square. The backbone's usual
            side by default.
        channels: Of the pictures: 3 is RGB, 1 grey. The first convolution of pre-trained weights
            is changed to fit.
        alpha: Width multiplier, for the networks that have one; 1 by default.
        pooling: How the features of all places become one vector: `avg` their mean, `max` their
            maximum, `gem` the generalised mean of power 3 between the two. `token` takes the
            first token alone, for transformers that were trained so (ViT, DeiT).
        hidden: Widths of dense ReLU layers before the logits, 1 or more each.
        dropout: Share of the features dropped before each dense layer while training, from 0 to
            less than 1.
        trainable_blocks: How many blocks, counted from the top, train beside the head. 0 trains
            the head alone, -1 everything.
        batch_norm: `frozen` keeps BatchNormalization of unfrozen blocks in inference mode, its
            statistics, scale and offset as they are; `train` lets it train like other layers.
        seed: Of the head's first weights and of dropout; Keras's global seed by default.
        name: Of the model; the backbone's, or the preset's, by default.

    Returns:
        An uncompiled functional model from `float32 (batch, height, width, channels)`, 0..255,
        RGB where there are 3, to `float32 (batch, num_classes)`, logits.

    Raises:
        ModelError: If the backbone or the pooling is unknown, or a number is out of its range.
        WeightsError: If the weights are unknown, damaged, unreachable or of another network.
    """
    if num_classes < 2:
        raise ModelError(f"num_classes: expected 2 or more, got {num_classes}.")
    head = heads.Head(heads.LOGITS, num_classes, pooling, tuple(hidden), dropout, seed)
    model = _build(backbone, head, weights, image_size, channels, alpha, name)
    unfreeze(model, trainable_blocks, batch_norm=batch_norm)
    return model


def image_multilabel(
    backbone: str,
    num_labels: int,
    *,
    weights: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int = 3,
    alpha: float | None = None,
    pooling: heads.Pooling = "avg",
    hidden: Sequence[int] = (),
    dropout: float = 0.2,
    trainable_blocks: int = 0,
    batch_norm: BatchNorm = "frozen",
    seed: int | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds a classifier for any number of labels per picture, on a pre-trained backbone.

    Args:
        backbone: As in `image_classifier`, like all that follow.
        num_labels: Number of logits, 1 or more; the sigmoid of each is a probability.
        weights: Tag, `none`, file or folder of a former run.
        image_size: Pixels.
        channels: Of the pictures.
        alpha: Width multiplier.
        pooling: `avg`, `max`, `gem` or `token`.
        hidden: Widths of dense ReLU layers.
        dropout: Share dropped before each dense layer, from 0 to less than 1.
        trainable_blocks: Blocks that train, counted from the top.
        batch_norm: `frozen` or `train`.
        seed: Of the head.
        name: Of the model.

    Returns:
        An uncompiled functional model from `float32 (batch, height, width, channels)`, 0..255,
        to `float32 (batch, num_labels)`, logits.

    Raises:
        ModelError: If the backbone or the pooling is unknown, or a number is out of its range.
        WeightsError: If the weights are unknown, damaged, unreachable or of another network.
    """
    if num_labels < 1:
        raise ModelError(f"num_labels: expected 1 or more, got {num_labels}.")
    head = heads.Head(heads.LOGITS, num_labels, pooling, tuple(hidden), dropout, seed)
    model = _build(backbone, head, weights, image_size, channels, alpha, name)
    unfreeze(model, trainable_blocks, batch_norm=batch_norm)
    return model


def image_regressor(
    backbone: str,
    num_targets: int,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weights: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int = 3,
    alpha: float | None = None,
    pooling: heads.Pooling = "avg",
    hidden: Sequence[int] = (),
    dropout: float = 0.2,
    trainable_blocks: int = 0,
    batch_norm: BatchNorm = "frozen",
    seed: int | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds a model that estimates numbers, on a pre-trained backbone.

    The dense layer learns standardised targets and a `Rescaling` layer after it gives them their
    own units. A loss on the model's output sees those units: divide the differences by `std`,
    or targets with large numbers drown the others.

    Args:
        backbone: As in `image_classifier`, like all that are not explained here.
        num_targets: How many numbers, 1 or more.
        mean: Of each target over the training examples, in its own units; 0 by default.
        std: Standard deviation of each target, in its own units, above 0; 1 by default.
        weights: Tag, `none`, file or folder of a former run.
        image_size: Pixels.
        channels: Of the pictures.
        alpha: Width multiplier.
        pooling: `avg`, `max`, `gem` or `token`.
        hidden: Widths of dense ReLU layers.
        dropout: Share dropped before each dense layer, from 0 to less than 1.
        trainable_blocks: Blocks that train, counted from the top.
        batch_norm: `frozen` or `train`.
        seed: Of the head.
        name: Of the model.

    Returns:
        An uncompiled functional model from `float32 (batch, height, width, channels)`, 0..255,
        to `float32 (batch, num_targets)`, in the targets' own units.

    Raises:
        ModelError: If the backbone or the pooling is unknown, or a number is out of its range.
        WeightsError: If the weights are unknown, damaged, unreachable or of another network.
    """
    if num_targets < 1:
        raise ModelError(f"num_targets: expected 1 or more, got {num_targets}.")
    units = heads.Units.of(num_targets, mean, std)
    head = heads.Head(heads.STANDARDISED, num_targets, pooling, tuple(hidden), dropout, seed, units)
    model = _build(backbone, head, weights, image_size, channels, alpha, name)
    unfreeze(model, trainable_blocks, batch_norm=batch_norm)
    return model


def _build(
    backbone: str,
    head: heads.Head,
    weights: str | None,
    image_size: int | tuple[int, int] | None,
    channels: int,
    alpha: float | None,
    name: str | None,
) -> keras.Model:
    """Puts pixel layer, network and head together; what trains is not decided yet."""
    row = backbones.get(backbone)
    if row.language is not None:
        raise ModelError(f"backbone: '{backbone}' reads texts; text_classifier and others take it.")
    height, width = _size(row, image_size)
    tag = next(iter(row.weights)) if weights is None else weights
    network = networks.build(
        row, image_size=(height, width), weights=tag, alpha=alpha, channels=channels
    )
    inputs = keras.Input((height, width, channels), name="image")
    rule = networks.rule(row, networks.tag_of(network))
    features = network(networks.pixels(rule, channels)(inputs))
    if name is None:
        # The name of a preset may be an address, which Keras takes for no name.
        name = networks.tag_of(network) if row.family == backbones.HUB else row.name
    return keras.Model(inputs, head.apply(features), name=name)


def backbone_of(model: keras.Model) -> tuple[keras.Model, backbones.Backbone]:
    """Returns the nested network of a built or reloaded model, and its row.

    Raises:
        ModelError: If the model holds none of the known backbones.
    """
    for layer in model.layers:
        row = networks.row_of(layer) if isinstance(layer, keras.Model) else None
        if row is not None:
            return layer, row
    raise ModelError(
        f"model '{model.name}': no backbone found in it; expected a model made by "
        "kerastune_ft, such as image_classifier, or one reloaded from its '.keras' file."
    )


def network_tag(model: keras.Model) -> str:
    """Returns of which weights a model's network is: a tag of its row, or `none`."""
    return networks.tag_of(backbone_of(model)[0])


def blocks(model: keras.Model) -> list[Block]:
    """Returns the backbone's blocks in order, stem first, and the head as the last one.

    Args:
        model: Made by a builder, or reloaded.

    Raises:
        ModelError: If the model holds no known backbone.
    """
    network, row = backbone_of(model)
    cuts = networks.cuts(network, row)
    names = [layer.name for layer in network.layers]
    ends = [names.index(cut) + 1 for cut in cuts[:-1]] + [len(names)]
    starts = [0, *ends[:-1]]
    made = [
        Block(cut, tuple(network.layers[start:end]))
        for cut, start, end in zip(cuts, starts, ends, strict=True)
    ]
    head = tuple(layer for layer in model.layers if layer is not network and layer.weights)
    return [*made, Block("head", head)]


def freeze(model: keras.Model) -> None:
    """Makes the head alone trainable. Compile afterwards.

    Args:
        model: Made by a builder, or reloaded.
    """
    unfreeze(model, 0)


def unfreeze(
    model: keras.Model,
    blocks: int | str | Sequence[str],
    *,
    batch_norm: BatchNorm = "frozen",
    parameters: Parameters = "all",
) -> None:
    """Makes the head and some backbone blocks trainable, everything else frozen.

    Compile afterwards: Keras fixes `trainable` when it builds the train function, and a flag
    set later changes nothing (keras 9477).

    Args:
        model: Made by a builder, or reloaded.
        blocks: A number counts from the top: 0 trains the head alone, -1 everything. Names, or
            regular expressions that match whole names, choose blocks wherever they are.
        batch_norm: `frozen` keeps every BatchNormalization of the backbone in inference mode, at
            whatever depth of nested layers, and its scale and offset as they are. `affine` trains
            scale and offset in unfrozen blocks, the statistics stay. `train` lets those of
            unfrozen blocks train and move their statistics.
        parameters: `biases` trains biases and the offsets of normalisation alone, in the chosen
            blocks; the head trains whole.

    Raises:
        ModelError: If the backbone has fewer blocks, or a name matches none.

    Reference:
        Howard & Ruder 2018, gradual unfreezing. https://arxiv.org/abs/1801.06146
        Ben Zaken et al. 2022, BitFit. https://arxiv.org/abs/2106.10199
    """
    *body, head = _blocks(model)
    chosen = select([block.name for block in body], blocks, model.name)
    # A container that is not trainable hides its layers' flags, and setting its flag would
    # overwrite them: the container first, then layer by layer.
    network, row = backbone_of(model)
    model.trainable = True
    network.trainable = True
    if parameters == "biases" and batch_norm == "frozen":
        batch_norm = "affine"  # the offset is the bias of a convolution under normalisation
    for index, block in enumerate(body):
        for layer in block.layers:
            _set_trainable(layer, index in chosen, batch_norm)
            if row.language:
                _set_dropout(layer, index in chosen)
            if parameters == "biases" and index in chosen:
                for weight in layer.weights:
                    bias = weight.name in ("bias", "beta") or layer.name.endswith("_bias")
                    weight.trainable = weight.trainable and bias
    for layer in head.layers:
        layer.trainable = True


def select(names: Sequence[str], blocks: int | str | Sequence[str], owner: str) -> frozenset[int]:
    """Returns which blocks, by place from the bottom, a choice means.

    Args:
        names: Of the backbone's blocks, stem first, without the head.
        blocks: As in `unfreeze`.
        owner: What an error calls the backbone.

    Raises:
        ModelError: If there are fewer blocks, or a name matches none.
    """
    if isinstance(blocks, int):
        if blocks < -1 or blocks > len(names):
            raise ModelError(
                f"trainable_blocks: backbone '{owner}' has {len(names)} blocks; expected -1 (all) "
                f"to {len(names)}, got {blocks}."
            )
        return frozenset(range(0 if blocks == -1 else len(names) - blocks, len(names)))
    chosen: set[int] = set()
    for pattern in [blocks] if isinstance(blocks, str) else blocks:
        try:
            found = {i for i, name in enumerate(names) if re.fullmatch(pattern, name)}
        except re.error as error:
            raise ModelError(
                f"trainable_blocks: '{pattern}' is no regular expression: {error}."
            ) from error
        if not found:
            raise ModelError(
                f"trainable_blocks: '{pattern}' matches no block of '{owner}'"
                f"{did_you_mean(pattern, names) or ';'} the blocks are {', '.join(names)}."
            )
        chosen |= found
    return frozenset(chosen)


def set_stochastic_depth(model: keras.Model, rate: float) -> None:
    """Lets unfrozen blocks be skipped at random in training. Compile afterwards.

    The rate rises evenly from 0 at the stem to `rate` at the top; frozen blocks are never skipped,
    because a head would learn from features that are not seen again.

    Args:
        model: Made by a builder.
        rate: Share of the examples for which the topmost block is skipped, from 0 to less than 1.

    Raises:
        ModelError: If the backbone has no such layers and the rate is not 0.

    Reference:
        Huang et al. 2016, Deep networks with stochastic depth. https://arxiv.org/abs/1603.09382
    """
    *body, _ = blocks(model)
    found = [
        (depth, block, layer)
        for depth, block in enumerate(body, 1)
        for layer in block.layers
        # With one draw per example a dropout layer drops a whole branch.
        if isinstance(layer, keras.layers.Dropout)
        and layer.noise_shape is not None
        and all(side == 1 for side in layer.noise_shape[1:])
        and getattr(layer, "seed_generator", None) is not None
    ]
    if rate and not found:
        raise ModelError(
            f"train.stochastic_depth: backbone '{model.name}' has no branches that can be skipped; "
            "the EfficientNets have, others take task.dropout."
        )
    for depth, block, layer in found:
        layer.rate = rate * depth / len(body) if block.trainable else 0.0


def statistics_move(layer: keras.layers.Layer) -> bool:
    """Whether training moves the statistics of a BatchNormalization layer."""
    return bool(layer.trainable) and "call" not in vars(layer)


def take_over_head(
    model: keras.Model,
    former: keras.Model,
    former_names: Sequence[str],
    names: Sequence[str],
) -> str:
    """Copies the head of a former model of the same backbone, if it means the same.

    Outputs are matched by name, whatever their order. Targets whose mean or standard deviation
    changed keep their function: the change is folded into kernel and bias. Nothing is copied in
    part: where names, pooling or widths differ the head of `model` stays as it is.

    Args:
        model: Made by a builder.
        former: Made by a builder, or reloaded; stays as it is.
        former_names: Of its outputs, in order: classes, labels or targets.
        names: Of the outputs of `model`, in order.

    Returns:
        A sentence without a full stop: what was done, or why the head is new.

    Raises:
        ModelError: If one of the models holds no known backbone.
    """
    ours, theirs = backbone_of(model)[1].name, backbone_of(former)[1].name
    if ours != theirs:
        return f"head is new: the former model stands on '{theirs}', this one on '{ours}'"
    return heads.take_over(model, former, former_names, names)


def named_weights(model: keras.Model) -> Iterator[tuple[str, str, keras.Variable]]:
    """Yields every weight as `(block, path, variable)`; paths are unique within the model."""
    for block in blocks(model):
        for layer in block.layers:
            for index, weight in enumerate(layer.weights):
                inside = weight.path.rpartition(f"{layer.name}/")[2]
                yield block.name, f"{layer.name}/{index}/{inside}", weight


def layers_of(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns every layer at any depth, the model itself included."""
    return list(model._flatten_layers())


def _set_trainable(layer: keras.layers.Layer, value: bool, batch_norm: BatchNorm) -> None:
    """Sets the flags of a layer and of all layers inside it."""
    # Only `_layers` knows the parts of a composite that is no model. A flag set on a whole is
    # handed down to its parts, so BatchNormalization comes last.
    parts = layer._flatten_layers()
    for part in parts:
        part.trainable = value
    for part in parts:
        if isinstance(part, keras.layers.BatchNormalization):
            if batch_norm == "frozen":
                part.trainable = False
            _hold_statistics(part, value and batch_norm == "affine")


def _set_dropout(layer: keras.layers.Layer, on: bool) -> None:
    """Lets the dropout inside a layer act, or not: frozen blocks give the same features always."""
    for part in layer._flatten_layers():
        if isinstance(part, keras.layers.Dropout):
            built = vars(part).setdefault("_kft_rate", part.rate)
            part.rate = built if on else 0.0


@contextlib.contextmanager
def dropout_as_built(model: keras.Model) -> Iterator[None]:
    """Gives dropout of frozen blocks its rate back, so that a saved model still has it."""
    layers = [part for part in layers_of(model) if "_kft_rate" in vars(part)]
    rates = [layer.rate for layer in layers]
    try:
        for layer in layers:
            layer.rate = vars(layer)["_kft_rate"]
        yield
    finally:
        for layer, rate in zip(layers, rates, strict=True):
            layer.rate = rate


def _hold_statistics(layer: keras.layers.BatchNormalization, hold: bool) -> None:
    """Makes a layer that trains normalise by its stored statistics, or lets it go again.

    Keras knows one flag for both: `trainable` off freezes scale and offset too. The change is to
    this object alone; a saved model holds nothing of it.
    """
    if not hold:
        vars(layer).pop("call", None)
        return

    def call(inputs: object, training: bool | None = None, mask: object = None) -> object:
        return type(layer).call(layer, inputs, training=False, mask=mask)

    vars(layer)["call"] = call


_blocks = blocks  # `unfreeze` has an argument of that name


def _size(row: backbones.Backbone, image_size: int | tuple[int, int] | None) -> tuple[int, int]:
    size = image_size
    if size is None:
        usual = hub.image_size(row) if row.family == backbones.HUB else None
        size = usual or row.image_size
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
