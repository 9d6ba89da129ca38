"""Lays XLNet's encoder out as a plain Keras graph: the content stream, which fine-tuning uses.

KerasHub's XLNetBackbone mixes the positions of different texts as soon as a batch holds two
(its embedding reshapes where it would have to transpose), so it is not used.

Reference:
    Yang et al. 2019, XLNet. https://arxiv.org/abs/1906.08237
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import layers, ops

from kerastune_ft.backbones.text_architectures import Architecture
from kerastune_ft.backbones.text_layers import (
    EMBEDDINGS_END,
    activated,
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

BIASES = ("content", "position", "segment")
"""What is added to the queries before they meet keys, distances and segments."""


def encoder(shape: Architecture, inputs: dict[str, Any], dropout: float) -> Any:
    """Returns the features of XLNet.

    Args:
        shape: What to build.
        inputs: `token_ids`, `padding_mask` and `segment_ids`, int32 `(batch, length)`.
        dropout: Rate.

    Returns:
        `(batch, length, width)`.
    """
    x = token_embedding(shape)(inputs["token_ids"])
    x = layers.Dropout(dropout, name=EMBEDDINGS_END)(x)
    places = positions(inputs["token_ids"])
    distances = _distances(shape, places)
    distances = layers.Dropout(dropout, name="layer_0_distances_dropout")(distances)
    # Row i of the scores by distance begins with distance `length`; that of token j is i - j.
    columns = ops.max(places) + 1 + ops.expand_dims(places, 0) - ops.expand_dims(places, 1)
    segments = inputs["segment_ids"]
    # One row per text: Keras cannot broadcast one row to a batch that may be empty.
    columns = ops.expand_dims(columns + 0 * ops.expand_dims(segments, 1), 1)
    others = ops.not_equal(ops.expand_dims(segments, 2), ops.expand_dims(segments, 1))
    others = ops.expand_dims(others, 1)
    mask = padding(inputs["padding_mask"])
    for i in range(shape.layers):
        name = f"layer_{i}"
        query = heads(shape, f"{name}_query", bias=False)(x)
        key = heads(shape, f"{name}_key", bias=False)(x)
        value = heads(shape, f"{name}_value", bias=False)(x)
        content, position, segment = (
            ops.add(query, _vector(shape, places, f"{name}_{bias}_bias")) for bias in BIASES
        )
        scores = ops.einsum("btnh,bsnh->bnts", content, key)
        distance = _distance_heads(shape, f"{name}_distance")(distances)
        by_distance = ops.einsum("btnh,pnh->bntp", position, distance)
        scores = ops.add(scores, ops.take_along_axis(by_distance, columns, axis=-1))
        by_segment = ops.transpose(
            _segment_heads(shape, f"{name}_segment")(segment), (0, 2, 1, 3)
        )  # (batch, heads, length, 2): towards tokens of the same segment, and of another
        scores = ops.add(
            scores, ops.where(others, by_segment[:, :, :, 1:], by_segment[:, :, :, :1])
        )
        scores = ops.multiply(scores, shape.head_width**-0.5)
        y = weighted(scores, value, mask, name, dropout)
        y = joined(shape, f"{name}_attention_output", bias=False)(y)
        y = layers.Dropout(dropout, name=f"{name}_attention_dropout")(y)
        x = layers.Add(name=f"{name}_attention_add")([x, y])
        x = norm(shape, f"{name}_attention_norm")(x)
        y = dense(shape.inner, f"{name}_inner")(x)
        y = activated(y, shape.activation, f"{name}_activation")
        y = layers.Dropout(dropout, name=f"{name}_inner_dropout")(y)
        y = dense(shape.width, f"{name}_outer")(y)
        y = layers.Dropout(dropout, name=f"{name}_outer_dropout")(y)
        x = layers.Add(name=f"{name}_outer_add")([x, y])
        x = norm(shape, f"{name}_outer_norm")(x)
    return layers.Dropout(dropout, name="final_dropout")(x)


def _distances(shape: Architecture, places: Any) -> Any:
    """Returns sines and cosines of length, ..., 1, 0, -1, ..., 1 - length; `(2 length, width)`."""
    distance = ops.cast(ops.concatenate([ops.flip(places) + 1, -places], axis=0), "float32")
    if shape.clamp:
        distance = ops.clip(distance, -float(shape.clamp), float(shape.clamp))
    steps = np.arange(0, shape.width, 2, dtype="float32") / shape.width
    frequencies = (1 / np.power(np.float32(10000), steps)).astype("float32")
    angles = ops.expand_dims(distance, 1) * frequencies
    return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)


def _vector(shape: Architecture, places: Any, name: str) -> Any:
    """Returns a trainable vector per head, `(1, 1, heads, head width)`.

    Keras has no layer that adds one without a kernel; an embedding of one row is a vector.
    """
    row = layers.Embedding(
        1, shape.heads * shape.head_width, embeddings_initializer=normal(0.02), name=name
    )(places[:1,])
    return ops.reshape(row, (-1, 1, shape.heads, shape.head_width))


def _distance_heads(shape: Architecture, name: str) -> layers.Layer:
    return layers.EinsumDense(
        "pc,cde->pde",
        output_shape=(shape.heads, shape.head_width),
        kernel_initializer=normal(0.02),
        name=name,
    )


def _segment_heads(shape: Architecture, name: str) -> layers.Layer:
    return layers.EinsumDense(
        "abde,sde->abds",
        output_shape=(None, shape.heads, 2),
        kernel_initializer=normal(0.02),
        name=name,
    )
