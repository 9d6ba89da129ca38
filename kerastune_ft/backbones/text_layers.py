"""The layers that the graphs of language networks are made of.

x = weighted(scores, value, padding(padding_mask), "layer_0", dropout=0.1)
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from kerastune_ft.backbones.text_architectures import Architecture

EMBEDDINGS_END = "embeddings_dropout"
"""The last layer before the first transformer layer, in every family."""


def normal(stddev: float) -> keras.initializers.Initializer:
    """Returns the initialiser of a kernel."""
    return keras.initializers.TruncatedNormal(stddev=stddev)


def token_embedding(shape: Architecture) -> layers.Layer:
    """Returns the layer that turns tokens into vectors, and back into float32 logits."""
    return layers.ReversibleEmbedding(
        shape.vocabulary,
        shape.embedding_width,
        embeddings_initializer=normal(1.0 if shape.family == "t5" else 0.02),
        reverse_dtype="float32",
        name="token_embedding",
    )


def positions(token_ids: Any) -> Any:
    """Returns 0, 1, 2, ... for the tokens of a batch, int32 `(length,)`.

    Keras has no `arange` for a length that is not known yet. An empty batch gives zeros.
    """
    ones = ops.sum(ops.ones_like(token_ids[:1, :]), axis=0)
    return ops.maximum(ops.cumsum(ones) - 1, 0)


def padding(padding_mask: Any) -> Any:
    """Returns which tokens may be seen, bool `(batch, 1, 1, length)`."""
    return ops.cast(ops.expand_dims(ops.expand_dims(padding_mask, 1), 1), "bool")


def before(places: Any) -> Any:
    """Returns which tokens come no later, bool `(length, length)`."""
    return ops.greater_equal(ops.expand_dims(places, 1), ops.expand_dims(places, 0))


def activated(x: Any, activation: str, name: str) -> Any:
    """Applies an activation by the name of an `Architecture`."""
    if activation == "gelu_tanh":
        return ops.gelu(x, approximate=True)
    return layers.Activation(activation, name=name)(x)


def heads(shape: Architecture, name: str, bias: bool = True, stddev: float = 0.02) -> layers.Layer:
    """Returns the layer from `(batch, length, width)` to `(batch, length, heads, head width)`."""
    return layers.EinsumDense(
        "abc,cde->abde",
        output_shape=(None, shape.heads, shape.head_width),
        bias_axes="de" if bias else None,
        kernel_initializer=normal(stddev),
        name=name,
    )


def joined(shape: Architecture, name: str, bias: bool = True, stddev: float = 0.02) -> layers.Layer:
    """Returns the layer back from the heads to `(batch, length, width)`."""
    return layers.EinsumDense(
        "abde,dec->abc",
        output_shape=(None, shape.width),
        bias_axes="c" if bias else None,
        kernel_initializer=normal(stddev),
        name=name,
    )


def weighted(scores: Any, value: Any, mask: Any, name: str, dropout: float) -> Any:
    """Returns the sum of the values, weighted by the softmax of the scores.

    Args:
        scores: `(batch, heads, length, source length)`.
        value: `(batch, source length, heads, head width)`.
        mask: bool, broadcasts to the scores; True may be seen.
        name: Beginning of the names of its layers.
        dropout: Rate.
    """
    # In float32 under every precision policy: float16 has no room for the scores of masked tokens.
    chances = layers.Softmax(dtype="float32", name=f"{name}_softmax")(scores, mask=mask)
    chances = layers.Dropout(dropout, name=f"{name}_softmax_dropout")(chances)
    return ops.einsum("bnts,bsnh->btnh", chances, value)


def dense(units: int, name: str, bias: bool = True, stddev: float = 0.02) -> layers.Layer:
    """Returns a dense layer."""
    return layers.Dense(units, use_bias=bias, kernel_initializer=normal(stddev), name=name)


def norm(shape: Architecture, name: str) -> layers.Layer:
    """Returns a layer normalisation."""
    return layers.LayerNormalization(epsilon=shape.epsilon, name=name)
