"""Builders of plain Keras models that read or write texts.

A model takes token numbers and a mask, and returns logits or numbers; the preprocessor that makes
them of texts is attached to it. It loads with `keras.models.load_model` where this package is not
installed. Nothing here compiles or trains.

    model = text_classifier("bert", num_classes=2, weights="minilm", trainable_blocks=-1)
    batches = model.preprocessor.dataset(texts, labels, batch_size=32, seed=0)
    model.compile("adamw", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(batches)
    model.predict(model.preprocessor(["a good film"]))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras

from kerastune_ft import backbones, heads, models
from kerastune_ft.backbones import pairing, text_networks
from kerastune_ft.backbones.tokenizers import Tokenizer
from kerastune_ft.data import tokenizing
from kerastune_ft.errors import ModelError
from kerastune_ft.preprocessing import Learns, Preprocessor

if TYPE_CHECKING:
    from kerastune_ft.recipe import Recipe

POOLINGS: dict[str, heads.Pooling] = {"mean": "avg", "first": "token", "last": "last"}
"""The row's word to the head's."""


def text_classifier(
    backbone: str,
    num_classes: int,
    *,
    weights: str | None = None,
    sequence_length: int | None = None,
    pooling: heads.Pooling | None = None,
    hidden: Sequence[int] = (),
    dropout: float = 0.1,
    backbone_dropout: float = 0.1,
    trainable_blocks: int = 0,
    reinitialize_blocks: int = 0,
    tokenizer: Tokenizer | None = None,
    seed: int | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds a classifier of texts, or of pairs of texts, on a pre-trained backbone.

    Args:
        backbone: A network of language of `kft ls backbones`, such as `bert`.
        num_classes: Number of logits, 2 or more.
        weights: A tag of that backbone (`minilm`, a KerasHub preset), the address or folder of a
            preset, a local Hugging Face folder, `none` for a tiny random network, `none:WEIGHTS`
            for a random one of a size, or the folder of a former run. The first tag by default.
        sequence_length: The most tokens of a text; the usual length by default.
        pooling: `avg` the mean over tokens, `max`, `token` the first, `last` the last one; what
            suits the weights by default.
        hidden: Widths of dense ReLU layers before the logits, 1 or more each.
        dropout: Share of the features dropped before each dense layer while training, 0 to 1.
        backbone_dropout: Inside unfrozen blocks while training, 0 to 1.
        trainable_blocks: How many blocks, counted from the top, train beside the head. 0 trains
            the head alone, -1 everything.
        reinitialize_blocks: How many blocks from the top begin with random weights.
        tokenizer: In place of the one that belongs to the weights.
        seed: Of the head's first weights and of dropout; Keras's global seed by default.
        name: Of the model; the backbone's by default.

    Returns:
        An uncompiled functional model from a dict of `token_ids` and `padding_mask` (`int32 (batch,
        length)`; `segment_ids` where the backbone has them) to `float32 (batch, num_classes)`,
        logits. Its attribute `preprocessor` makes that dict of texts; a reloaded model has none.

    Raises:
        ModelError: If the backbone or the pooling is unknown, or a number is out of its range.
        WeightsError: If the weights are unknown, damaged, unreachable or of another network.
    """
    if num_classes < 2:
        raise ModelError(f"num_classes: expected 2 or more, got {num_classes}.")
    network, held = _network(backbone, weights, backbone_dropout, reinitialize_blocks, tokenizer)
    head = _head(held, heads.LOGITS, num_classes, pooling, hidden, dropout, seed)
    return _finished(network, held, head, name, sequence_length, trainable_blocks)


def text_multilabel(
    backbone: str,
    num_labels: int,
    *,
    weights: str | None = None,
    sequence_length: int | None = None,
    pooling: heads.Pooling | None = None,
    hidden: Sequence[int] = (),
    dropout: float = 0.1,
    backbone_dropout: float = 0.1,
    trainable_blocks: int = 0,
    reinitialize_blocks: int = 0,
    tokenizer: Tokenizer | None = None,
    seed: int | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds a classifier for any number of labels per text; arguments as `text_classifier`.

    Args:
        backbone: Name.
        num_labels: Number of logits, 1 or more; the sigmoid of each is a probability.
        weights: Tag, preset, folder or `none`.
        sequence_length: Tokens.
        pooling: `avg`, `max`, `token` or `last`.
        hidden: Widths of dense ReLU layers.
        dropout: Share dropped before each dense layer.
        backbone_dropout: Inside unfrozen blocks.
        trainable_blocks: Blocks that train, counted from the top.
        reinitialize_blocks: Blocks that begin with random weights.
        tokenizer: In place of the weights' own.
        seed: Of the head.
        name: Of the model.

    Returns:
        An uncompiled functional model that returns `float32 (batch, num_labels)`, logits.

    Raises:
        ModelError: If the backbone or the pooling is unknown, or a number is out of its range.
        WeightsError: If the weights are unknown, damaged, unreachable or of another network.
    """
    if num_labels < 1:
        raise ModelError(f"num_labels: expected 1 or more, got {num_labels}.")
    network, held = _network(backbone, weights, backbone_dropout, reinitialize_blocks, tokenizer)
    head = _head(held, heads.LOGITS, num_labels, pooling, hidden, dropout, seed)
    return _finished(network, held, head, name, sequence_length, trainable_blocks)


def text_regressor(
    backbone: str,
    num_targets: int,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weights: str | None = None,
    sequence_length: int | None = None,
    pooling: heads.Pooling | None = None,
    hidden: Sequence[int] = (),
    dropout: float = 0.1,
    backbone_dropout: float = 0.1,
    trainable_blocks: int = 0,
    reinitialize_blocks: int = 0,
    tokenizer: Tokenizer | None = None,
    seed: int | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds a model that estimates numbers from texts or pairs of texts.

    Args:
        backbone: As in `text_classifier`, like all that are not explained here.
        num_targets: How many numbers, 1 or more.
        mean: Of each target over the training examples, in its own units; 0 by default.
        std: Standard deviation of each target, in its own units, above 0; 1 by default.
        weights: Tag, preset, folder or `none`.
        sequence_length: Tokens.
        pooling: `avg`, `max`, `token` or `last`.
        hidden: Widths of dense ReLU layers.
        dropout: Share dropped before each dense layer.
        backbone_dropout: Inside unfrozen blocks.
        trainable_blocks: Blocks that train, counted from the top.
        reinitialize_blocks: Blocks that begin with random weights.
        tokenizer: In place of the weights' own.
        seed: Of the head.
        name: Of the model.

    Returns:
        An uncompiled functional model that returns `float32 (batch, num_targets)`, in the targets'
        own units.

    Raises:
        ModelError: If the backbone or the pooling is unknown, or a number is out of its range.
        WeightsError: If the weights are unknown, damaged, unreachable or of another network.
    """
    if num_targets < 1:
        raise ModelError(f"num_targets: expected 1 or more, got {num_targets}.")
    units = heads.Units.of(num_targets, mean, std)
    network, held = _network(backbone, weights, backbone_dropout, reinitialize_blocks, tokenizer)
    head = _head(held, heads.STANDARDISED, num_targets, pooling, hidden, dropout, seed, units)
    return _finished(network, held, head, name, sequence_length, trainable_blocks)


def token_classifier(
    backbone: str,
    num_classes: int,
    *,
    weights: str | None = None,
    sequence_length: int | None = None,
    hidden: Sequence[int] = (),
    dropout: float = 0.1,
    backbone_dropout: float = 0.1,
    trainable_blocks: int = 0,
    reinitialize_blocks: int = 0,
    tokenizer: Tokenizer | None = None,
    seed: int | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds a classifier of every token; arguments as `text_classifier`.

    Args:
        backbone: An encoder.
        num_classes: Number of logits per token, 2 or more.
        weights: Tag, preset, folder or `none`.
        sequence_length: Tokens.
        hidden: Widths of dense ReLU layers.
        dropout: Share dropped before each dense layer.
        backbone_dropout: Inside unfrozen blocks.
        trainable_blocks: Blocks that train, counted from the top.
        reinitialize_blocks: Blocks that begin with random weights.
        tokenizer: In place of the weights' own.
        seed: Of the head.
        name: Of the model.

    Returns:
        An uncompiled functional model that returns `float32 (batch, length, num_classes)`, logits.

    Raises:
        ModelError: If the backbone cannot do it or is unknown, or a number is out of its range.
        WeightsError: If the weights are unknown, damaged, unreachable or of another network.
    """
    if num_classes < 2:
        raise ModelError(f"num_classes: expected 2 or more, got {num_classes}.")
    _check_task(backbone, "token_classification")
    network, held = _network(backbone, weights, backbone_dropout, reinitialize_blocks, tokenizer)
    head = heads.Head(heads.LOGITS, num_classes, "avg", tuple(hidden), dropout, seed)
    return _finished(network, held, head, name, sequence_length, trainable_blocks, each=True)


def text_to_text(
    backbone: str = "t5",
    *,
    weights: str | None = None,
    sequence_length: int | None = None,
    backbone_dropout: float = 0.1,
    trainable_blocks: int = -1,
    tokenizer: Tokenizer | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds a model that writes a text for each text; `generation.write` lets it write.

    Args:
        backbone: A network with an encoder and a decoder.
        weights: Tag, preset, folder or `none`.
        sequence_length: The most tokens of a text, read or written.
        backbone_dropout: Inside unfrozen blocks.
        trainable_blocks: Blocks that train, counted from the top, the decoder's first.
        tokenizer: In place of the weights' own.
        name: Of the model.

    Returns:
        An uncompiled functional model from `encoder_token_ids`, `encoder_padding_mask`,
        `decoder_token_ids` and `decoder_padding_mask`, `int32 (batch, length)`, to `float32
        (batch, decoder length, vocabulary)`: logits of the token after each place.

    Raises:
        ModelError: If the backbone cannot do it or is unknown.
        WeightsError: If the weights are unknown, damaged, unreachable or of another network.
    """
    _check_task(backbone, "text_to_text")
    return _writer(
        backbone, weights, sequence_length, backbone_dropout, trainable_blocks, tokenizer, name
    )


def text_generator(
    backbone: str = "gpt2",
    *,
    weights: str | None = None,
    sequence_length: int | None = None,
    backbone_dropout: float = 0.1,
    trainable_blocks: int = -1,
    tokenizer: Tokenizer | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds a model that goes on with a text; arguments as `text_to_text`.

    Args:
        backbone: A network that sees of each token what stands before it.
        weights: Tag, preset, folder or `none`.
        sequence_length: The most tokens of a text with what follows it.
        backbone_dropout: Inside unfrozen blocks.
        trainable_blocks: Blocks that train, counted from the top.
        tokenizer: In place of the weights' own.
        name: Of the model.

    Returns:
        An uncompiled functional model from `token_ids` and `padding_mask` to `float32 (batch,
        length, vocabulary)`: logits of the token after each place.

    Raises:
        ModelError: If the backbone cannot do it or is unknown.
        WeightsError: If the weights are unknown, damaged, unreachable or of another network.
    """
    _check_task(backbone, "text_generation")
    return _writer(
        backbone, weights, sequence_length, backbone_dropout, trainable_blocks, tokenizer, name
    )


def of_recipe(
    recipe: Recipe, outputs: int, tokenizer: Tokenizer | None, units: dict[str, Any]
) -> keras.Model:
    """Builds the model of a recipe.

    Args:
        recipe: From `resuming.resolved`.
        outputs: Classes, labels, targets or tags.
        tokenizer: That made the tokens of the data.
        units: `mean` and `std` of targets; {} without.
    """
    task, choice = recipe.task, recipe.backbone
    common: dict[str, Any] = {
        "weights": choice.tag,
        "sequence_length": choice.sequence_length,
        "backbone_dropout": choice.dropout,
        "tokenizer": tokenizer,
    }
    if task.name == "text_to_text":
        return text_to_text(choice.name, **common)
    if task.name == "text_generation":
        return text_generator(choice.name, **common)
    common |= {
        "hidden": task.hidden,
        "dropout": task.dropout,
        "reinitialize_blocks": choice.reinitialize_blocks,
        "seed": recipe.train.seed,
    }
    if task.name == "token_classification":
        return token_classifier(choice.name, outputs, **common)
    common["pooling"] = task.pooling
    if task.name == "text_multilabel":
        return text_multilabel(choice.name, outputs, **common)
    if task.name == "text_regression":
        return text_regressor(choice.name, outputs, **common, **units)
    return text_classifier(choice.name, outputs, **common)


def preprocessor_of(recipe: Recipe, tokenizer: Tokenizer) -> Preprocessor:
    """Returns what makes of texts what the model of a recipe takes."""
    learns: dict[str, Learns] = {
        "token_classification": "words",
        "text_to_text": "target",
        "text_generation": "next",
    }
    return Preprocessor(
        tokenizer,
        tokenizing.length_of(recipe),
        tokenizing.language_of(recipe).segments,
        learns.get(recipe.task.name, "whole"),
        recipe.data.truncation,
        recipe.data.cleaning.text,
    )


def _check_task(backbone: str, task: str) -> None:
    reason = pairing.refusal(backbones.get(backbone), task)
    if reason is not None:
        raise ModelError(f"backbone: {reason}.")


@dataclass(frozen=True)
class _Held:
    """What belongs to a network: its row, its facts and its tokenizer."""

    row: backbones.Backbone
    pooling: str
    tokenizer: Tokenizer


def _tag(row: backbones.Backbone, weights: str | None) -> str:
    return weights or next(iter(row.weights), "none")


def pooling_of(row: backbones.Backbone, tag: str) -> heads.Pooling:
    """Returns the pooling that suits weights of language.

    Args:
        row: Facts of the network.
        tag: Weights, as `backbone.weights` of a recipe names them.
    """
    assert row.language is not None
    facts = row.weights.get(tag.removeprefix("none:"))
    if facts is None:  # of a former run, the name of the network tells
        facts = row.weights.get(text_networks.located(row, tag).tag)
    return POOLINGS[(facts.pooling if facts else None) or row.language.pooling]


def _held(row: backbones.Backbone, tag: str, tokenizer: Tokenizer | None) -> _Held:
    if row.language is None:
        raise ModelError(
            f"backbone: '{row.name}' sees pictures; bert, roberta and the like read texts."
        )
    made = tokenizer or tokenizing.tokenizer_of(row, tag.removeprefix("none:"))
    return _Held(row, pooling_of(row, tag), made)


def _network(
    backbone: str,
    weights: str | None,
    dropout: float,
    reinitialize_blocks: int,
    tokenizer: Tokenizer | None,
) -> tuple[keras.Model, _Held]:
    if not 0 <= dropout < 1:
        raise ModelError(f"backbone_dropout: expected 0 or more and less than 1, got {dropout}.")
    row = backbones.get(backbone)
    tag = _tag(row, weights)
    held = _held(row, tag, tokenizer)
    options = {"vocabulary_size": held.tokenizer.vocabulary_size} if tag == "none" else {}
    network = text_networks.build(row, weights=tag, dropout=dropout, **options)
    _check_vocabulary(network, held, tag)
    if reinitialize_blocks:
        _reinitialize(network, row, tag, reinitialize_blocks)
    return network, held


def _check_vocabulary(network: keras.Model, held: _Held, tag: str) -> None:
    rows = network.get_layer("token_embedding").input_dim
    held.tokenizer.check(rows, f"{held.row.name}, weights {tag}")


def _reinitialize(network: keras.Model, row: backbones.Backbone, tag: str, count: int) -> None:
    cuts = text_networks.cuts(network)
    if count >= len(cuts):
        raise ModelError(
            f"reinitialize_blocks: '{row.name}' has {len(cuts)} blocks, embeddings included; "
            f"expected fewer, got {count}."
        )
    tag = tag if tag.startswith("none") else f"none:{tag}"
    fresh = text_networks.build(row, weights=tag, dropout=0.0)
    names = [layer.name for layer in network.layers]
    first = names.index(cuts[-count - 1]) + 1
    for layer, new in zip(network.layers[first:], fresh.layers[first:], strict=True):
        # Of a former run, layers that were frozen are so still; seeds of dropout are no weights.
        for variable, value in zip(layer.weights, new.weights, strict=True):
            variable.assign(value)


def _head(
    held: _Held,
    name: str,
    outputs: int,
    pooling: str | None,
    hidden: Sequence[int],
    dropout: float,
    seed: int | None,
    units: heads.Units | None = None,
) -> heads.Head:
    return heads.Head(name, outputs, pooling or held.pooling, tuple(hidden), dropout, seed, units)


def _inputs(network: keras.Model) -> dict[str, Any]:
    return {
        tensor.name: keras.Input((None,), dtype="int32", name=tensor.name)
        for tensor in network.inputs
    }


def _finished(
    network: keras.Model,
    held: _Held,
    head: heads.Head,
    name: str | None,
    sequence_length: int | None,
    trainable_blocks: int,
    each: bool = False,
) -> keras.Model:
    inputs = _inputs(network)
    features = network(inputs)
    outputs = head.of_each(features) if each else head.apply(features, inputs["padding_mask"])
    model = keras.Model(inputs, outputs, name=name or held.row.name)
    learns: Learns = "words" if each else "whole"
    return _attached(model, network, held, sequence_length, trainable_blocks, learns)


def _writer(
    backbone: str,
    weights: str | None,
    sequence_length: int | None,
    dropout: float,
    trainable_blocks: int,
    tokenizer: Tokenizer | None,
    name: str | None,
) -> keras.Model:
    row = backbones.get(backbone)
    tag = _tag(row, weights)
    held = _held(row, tag, tokenizer)
    assert row.language is not None
    build = text_networks.seq2seq if row.language.decoder else text_networks.causal
    options = {"vocabulary_size": held.tokenizer.vocabulary_size} if tag == "none" else {}
    network = build(row, weights=tag, dropout=dropout, **options)
    _check_vocabulary(network, held, tag)
    inputs = _inputs(network)
    model = keras.Model(inputs, network(inputs), name=name or row.name)
    learns: Learns = "target" if row.language.decoder else "next"
    return _attached(model, network, held, sequence_length, trainable_blocks, learns)


def _attached(
    model: keras.Model,
    network: keras.Model,
    held: _Held,
    sequence_length: int | None,
    trainable_blocks: int,
    learns: Learns,
) -> keras.Model:
    language = held.row.language
    assert language is not None
    limit = text_networks.max_length(network)
    length = sequence_length or min(language.sequence_length, limit or language.sequence_length)
    if limit is not None and length > limit:
        raise ModelError(
            f"sequence_length: these weights of '{held.row.name}' have positions for {limit} "
            f"tokens; expected {limit} or less, got {length}."
        )
    model.preprocessor = Preprocessor(held.tokenizer, length, language.segments, learns)
    models.unfreeze(model, trainable_blocks)
    return model
