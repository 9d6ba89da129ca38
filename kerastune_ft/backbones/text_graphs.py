"""Lays language networks out as plain Keras graphs: BERT and its kin, GPT-2, T5.

Every step is a layer of Keras's own with a name of its own, so that a network reloads with
`keras.models.load_model` alone, can be cut after any transformer layer, and every dropout in it
is a `keras.layers.Dropout`. KerasHub's own layers hide all of a transformer layer inside one,
and some of them do not reload or compute something else than the published networks.

    features(shape, "bert.minilm", dropout=0.1)      # {'token_ids', ...} -> (batch, length, width)
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import layers, ops

from kerastune_ft.backbones import xlnet
from kerastune_ft.backbones.text_architectures import Architecture
from kerastune_ft.backbones.text_layers import (
    EMBEDDINGS_END,
    activated,
    before,
    dense,
    heads,
    joined,
    norm,
    normal,
    padding,
    positions,
    token_embedding,
    weighted,
)


def features(shape: Architecture, name: str, dropout: float) -> keras.Model:
    """Builds a network from tokens to features, with random weights.

    Args:
        shape: What to build; of T5 the encoder.
        name: Of the network.
        dropout: Rate of every dropout layer.

    Returns:
        Takes `token_ids`, `padding_mask` and where there are segments `segment_ids`, all int32
        `(batch, length)`; returns `(batch, length, width)`.
    """
    inputs = {
        key: keras.Input((None,), dtype="int32", name=key) for key in ("token_ids", "padding_mask")
    }
    if shape.segments:
        inputs["segment_ids"] = keras.Input((None,), dtype="int32", name="segment_ids")
    build = {"gpt2": _gpt2, "t5": _t5_encoder, "xlnet": xlnet.encoder}.get(shape.family, _bert)
    return keras.Model(inputs, build(shape, inputs, dropout), name=name)


def causal(network: keras.Model) -> keras.Model:
    """Returns the language model of a GPT-2: its features times its token embedding.

    Args:
        network: Made by `features`; its layers are shared.

    Returns:
        Takes what the network takes; returns logits, float32 `(batch, length, vocabulary)`.
    """
    embedding = network.get_layer("token_embedding")
    logits = embedding(network.output, reverse=True)
    return keras.Model(network.input, logits, name=network.name)


def seq2seq(shape: Architecture, name: str, dropout: float) -> keras.Model:
    """Builds the whole of a T5 with its head, with random weights.

    Args:
        shape: What to build.
        name: Of the network.
        dropout: Rate of every dropout layer.

    Returns:
        Takes `encoder_token_ids`, `encoder_padding_mask`, `decoder_token_ids` and
        `decoder_padding_mask`, int32 `(batch, length)` each; returns logits, float32
        `(batch, target length, vocabulary)`.
    """
    keys = [f"{side}_{what}" for side in ("encoder", "decoder") for what in _SEQUENCE]
    inputs = {key: keras.Input((None,), dtype="int32", name=key) for key in keys}
    source = {what: inputs[f"encoder_{what}"] for what in _SEQUENCE}
    target = {what: inputs[f"decoder_{what}"] for what in _SEQUENCE}
    embedding = token_embedding(shape)
    encoded = _t5_encoder(shape, source, dropout, embedding)
    x = embedding(target["token_ids"])
    # Nothing is added; but now all of the encoder comes before all of the decoder in the order of
    # layers, which Keras takes from the graph, and blocks are slices of that order.
    x = layers.Concatenate(axis=1, name="decoder_embeddings")([encoded[:, :0], x])
    x = layers.Dropout(dropout, name="decoder_embeddings_dropout")(x)
    places = positions(target["token_ids"])
    mask = ops.logical_and(padding(target["padding_mask"]), before(places))
    distances = _t5_distances(shape, places, both=False)
    bias = _t5_bias(shape, distances, "decoder_0_relative_attention_bias")
    across = padding(source["padding_mask"])
    for i in range(shape.decoder_layers):
        prefix = f"decoder_{i}"
        x = _t5_attention(shape, x, x, mask, bias, prefix, dropout)
        x = _t5_attention(shape, x, encoded, across, None, f"{prefix}_cross", dropout)
        x = _t5_inner(shape, x, prefix, dropout)
    x = _rms(shape, "decoder_final_norm")(x)
    x = layers.Dropout(dropout, name="decoder_final_dropout")(x)
    if shape.scaled:
        x = ops.multiply(x, shape.width**-0.5)
    if shape.tied:
        logits = embedding(x, reverse=True)
    else:
        logits = layers.Dense(
            shape.vocabulary,
            use_bias=False,
            kernel_initializer=normal(1.0),
            dtype="float32",
            name="decoder_logits",
        )(x)
    return keras.Model(inputs, logits, name=name)


_SEQUENCE = ("token_ids", "padding_mask")


def _attention(
    shape: Architecture, x: Any, mask: Any, name: str, dropout: float, scale: float
) -> Any:
    """Applies self-attention with its output layer and dropout."""
    query = ops.multiply(heads(shape, f"{name}_query")(x), scale)
    key, value = heads(shape, f"{name}_key")(x), heads(shape, f"{name}_value")(x)
    scores = ops.einsum("btnh,bsnh->bnts", query, key)
    x = weighted(scores, value, mask, name, dropout)
    x = joined(shape, f"{name}_attention_output")(x)
    return layers.Dropout(dropout, name=f"{name}_attention_dropout")(x)


def _inner(shape: Architecture, x: Any, name: str, dropout: float) -> Any:
    """Applies the feed-forward part and dropout."""
    x = activated(dense(shape.inner, f"{name}_inner")(x), shape.activation, f"{name}_activation")
    x = dense(shape.width, f"{name}_outer")(x)
    return layers.Dropout(dropout, name=f"{name}_outer_dropout")(x)


def _embedding(rows: int, shape: Architecture, name: str) -> layers.Layer:
    return layers.Embedding(
        rows, shape.embedding_width, embeddings_initializer=normal(0.02), name=name
    )


def _bert(shape: Architecture, inputs: dict[str, Any], dropout: float) -> Any:
    """Returns the features of BERT, RoBERTa, DistilBERT and ELECTRA."""
    token_ids, padding_mask = inputs["token_ids"], inputs["padding_mask"]
    parts = [token_embedding(shape)(token_ids)]
    if shape.family == "roberta":
        # Counts the tokens that are no padding, wherever that stands.
        places = ops.maximum(ops.cumsum(padding_mask, axis=1) - 1, 0)
    else:
        places = ops.expand_dims(positions(token_ids), 0)
    rows = _embedding(shape.positions, shape, "position_embedding")(places)
    if shape.segments:
        segments = _embedding(shape.segments, shape, "segment_embedding")
        parts.append(segments(inputs["segment_ids"]))
        parts = [layers.Add(name="embeddings_add")(parts)]
    # No Add layer: that takes a batch of one row for the size of every batch.
    x = ops.add(parts[0], rows)
    x = norm(shape, "embeddings_norm")(x)
    if shape.embedding_width != shape.width:
        x = layers.Dropout(dropout, name="embeddings_narrow_dropout")(x)
        x = dense(shape.width, "embeddings_project")(x)
        x = layers.Activation("linear", name=EMBEDDINGS_END)(x)
    else:
        x = layers.Dropout(dropout, name=EMBEDDINGS_END)(x)
    mask = padding(padding_mask)
    for i in range(shape.layers):
        name = f"layer_{i}"
        y = _attention(shape, x, mask, name, dropout, shape.head_width**-0.5)
        x = layers.Add(name=f"{name}_attention_add")([x, y])
        x = norm(shape, f"{name}_attention_norm")(x)
        y = _inner(shape, x, name, dropout)
        x = layers.Add(name=f"{name}_outer_add")([x, y])
        x = norm(shape, f"{name}_outer_norm")(x)
    return x


def _gpt2(shape: Architecture, inputs: dict[str, Any], dropout: float) -> Any:
    """Returns the features of GPT-2."""
    places = positions(inputs["token_ids"])
    row = _embedding(shape.positions, shape, "position_embedding")(ops.expand_dims(places, 0))
    x = ops.add(token_embedding(shape)(inputs["token_ids"]), row)
    x = layers.Dropout(dropout, name=EMBEDDINGS_END)(x)
    mask = ops.logical_and(padding(inputs["padding_mask"]), before(places))
    for i in range(shape.layers):
        name = f"layer_{i}"
        scale = shape.head_width**-0.5 if shape.scale_scores else 1.0
        scale /= i + 1 if shape.scale_by_layer else 1
        y = _attention(shape, norm(shape, f"{name}_attention_norm")(x), mask, name, dropout, scale)
        x = layers.Add(name=f"{name}_attention_add")([x, y])
        y = _inner(shape, norm(shape, f"{name}_outer_norm")(x), name, dropout)
        x = layers.Add(name=f"{name}_outer_add")([x, y])
    return norm(shape, "final_norm")(x)


def _t5_encoder(
    shape: Architecture,
    inputs: dict[str, Any],
    dropout: float,
    embedding: layers.Layer | None = None,
) -> Any:
    """Returns the features of T5's encoder."""
    x = (embedding or token_embedding(shape))(inputs["token_ids"])
    x = layers.Dropout(dropout, name=EMBEDDINGS_END)(x)
    mask = padding(inputs["padding_mask"])
    distances = _t5_distances(shape, positions(inputs["token_ids"]), both=True)
    bias = _t5_bias(shape, distances, "layer_0_relative_attention_bias")
    for i in range(shape.layers):
        x = _t5_attention(shape, x, x, mask, bias, f"layer_{i}", dropout)
        x = _t5_inner(shape, x, f"layer_{i}", dropout)
    x = _rms(shape, "final_norm")(x)
    return layers.Dropout(dropout, name="final_dropout")(x)


def _t5_distances(shape: Architecture, places: Any, both: bool) -> Any:
    """Returns the bucket of the distance from every token to every other, int32.

    Reference:
        Raffel et al. 2020, relative position embeddings. https://arxiv.org/abs/1910.10683
    """
    distance = ops.expand_dims(places, 0) - ops.expand_dims(places, 1)
    buckets, first = shape.buckets, None
    if both:
        buckets //= 2
        first = ops.cast(ops.greater(distance, 0), "int32") * buckets
        distance = ops.absolute(distance)
    else:
        distance = ops.maximum(-distance, 0)
    exact = buckets // 2
    ratio = ops.cast(ops.maximum(distance, 1), "float32") / exact
    steps = ops.log(ratio) / math.log(shape.max_distance / exact) * (buckets - exact)
    far = ops.minimum(exact + ops.cast(steps, "int32"), buckets - 1)
    bucket = ops.where(ops.less(distance, exact), distance, far)
    return bucket if first is None else bucket + first


def _t5_bias(shape: Architecture, distances: Any, name: str) -> Any:
    """Returns what every distance adds to the scores, `(1, heads, length, length)`."""
    bias = layers.Embedding(
        shape.buckets, shape.heads, embeddings_initializer=normal(shape.width**-0.5), name=name
    )(distances)
    return ops.expand_dims(ops.transpose(bias, (2, 0, 1)), 0)


def _rms(shape: Architecture, name: str) -> layers.Layer:
    return layers.RMSNormalization(epsilon=shape.epsilon, name=name)


def _t5_attention(
    shape: Architecture, x: Any, source: Any, mask: Any, bias: Any, name: str, dropout: float
) -> Any:
    """Adds T5's attention; to itself where `source` is `x`. It does not scale the scores."""
    stddev = shape.width**-0.5
    y = _rms(shape, f"{name}_attention_norm")(x)
    seen = y if source is x else source
    query = heads(
        shape, f"{name}_query", bias=False, stddev=(shape.width * shape.head_width) ** -0.5
    )(y)
    key = heads(shape, f"{name}_key", bias=False, stddev=stddev)(seen)
    value = heads(shape, f"{name}_value", bias=False, stddev=stddev)(seen)
    scores = ops.einsum("btnh,bsnh->bnts", query, key)
    if bias is not None:
        scores = ops.add(scores, bias)
    y = weighted(scores, value, mask, name, dropout)
    y = joined(
        shape,
        f"{name}_attention_output",
        bias=False,
        stddev=(shape.heads * shape.head_width) ** -0.5,
    )(y)
    y = layers.Dropout(dropout, name=f"{name}_attention_dropout")(y)
    return layers.Add(name=f"{name}_attention_add")([x, y])


def _t5_inner(shape: Architecture, x: Any, name: str, dropout: float) -> Any:
    """Adds T5's feed-forward part."""
    stddev = shape.width**-0.5
    y = _rms(shape, f"{name}_outer_norm")(x)
    inner = dense(shape.inner, f"{name}_inner", bias=False, stddev=stddev)(y)
    inner = activated(inner, shape.activation, f"{name}_activation")
    if shape.gated:
        gate = dense(shape.inner, f"{name}_gate", bias=False, stddev=stddev)(y)
        inner = layers.Multiply(name=f"{name}_gated")([inner, gate])
    inner = layers.Dropout(dropout, name=f"{name}_inner_dropout")(inner)
    y = dense(shape.width, f"{name}_outer", bias=False, stddev=shape.inner**-0.5)(inner)
    y = layers.Dropout(dropout, name=f"{name}_outer_dropout")(y)
    return layers.Add(name=f"{name}_outer_add")([x, y])
