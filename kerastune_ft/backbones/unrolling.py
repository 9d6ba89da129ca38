"""Lays the encoders of KerasHub's networks out, so that each of their steps is layers of its own.

Some backbones of KerasHub keep a whole encoder in one layer, which could only be trained or
frozen as a whole, and some of those layers do not reload from their own configuration. What comes
out here computes the same and does reload.

    network = unrolled(backbone, "keras_hub.vit_base_patch16_224_imagenet")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

Step = Callable[[Any, Any], Any]
"""Takes a tensor and the layer to lay out; returns the tensor behind it."""


def unrolled(backbone: keras.Model, name: str) -> keras.Model | None:
    """Returns a network whose encoder is laid out, or None if it has none that this knows.

    Args:
        backbone: Of KerasHub, a chain of layers; not to be used afterwards.
        name: Of the network that is returned.
    """
    inputs, *layers = backbone.layers
    if not any(type(layer).__name__ in STEPS for layer in layers):
        return None
    x = images = keras.Input(inputs.batch_shape[1:], name="images")
    for layer in layers:
        step = STEPS.get(type(layer).__name__)
        # A layer that stood in two graphs would have no one output to cut at.
        x = _copied(layer, layer.name, x) if step is None else step(x, layer)
    return keras.Model(images, x, name=name)


def _copied(layer: keras.layers.Layer, name: str, *inputs: Any) -> Any:
    """Applies a copy of a layer, with its weights, under a name that is unique in the network."""
    copy = layer.__class__.from_config({**layer.get_config(), "name": name})
    outputs = copy(*inputs)
    copy.set_weights(layer.get_weights())
    return outputs


def _dropped(x: Any, rate: float, name: str) -> Any:
    return keras.layers.Dropout(rate, name=name)(x) if rate else x


def _transformer(x: Any, name: str, block: Any, dense: tuple[Any, Any], rates: list[float]) -> Any:
    """Applies one transformer layer that normalises first.

    Args:
        x: `(batch, tokens, width)`.
        name: Beginning of the names of its layers.
        block: Holds `layer_norm_1`, `mha` and `layer_norm_2`.
        dense: Its two dense layers.
        rates: Of dropout after attention and after each dense layer.
    """
    y = _copied(block.layer_norm_1, f"{name}_ln_1", x)
    y = _copied(block.mha, f"{name}_mha", y, y)
    y = _dropped(y, rates[0], f"{name}_attention_dropout")
    x = keras.layers.Add(name=f"{name}_attention_add")([y, x])
    y = _copied(block.layer_norm_2, f"{name}_ln_2", x)
    for number, layer in enumerate(dense, 1):
        y = _copied(layer, f"{name}_dense_{number}", y)
        y = _dropped(y, rates[number], f"{name}_dropout_{number}")
    return keras.layers.Add(name=f"{name}_add")([y, x])


def _vit_encoder(x: Any, encoder: Any) -> Any:
    rate = encoder.dropout_rate
    x = _dropped(x, rate, "encoder_dropout")
    for block in encoder.encoder_layers:
        dense = (block.mlp.dense_1, block.mlp.dense_2)
        x = _transformer(x, block.name, block, dense, [rate] * 3)
    return _copied(encoder.layer_norm, "encoder_ln", x)


def _deit_encoder(x: Any, encoder: Any) -> Any:
    for block in encoder.encoder_layers:
        dense = (block.mlp.dense, block.output_layer.dense)
        x = _transformer(x, block.name, block, dense, [0.0, 0.0, encoder.dropout_rate])
    return _copied(encoder.layer_norm, "encoder_ln", x)


def _tokens(x: Any, embedding: Any, special: list[Any], positions: Any) -> Any:
    """Applies patches, special tokens and positions.

    A special token and its position are two learned rows that are only ever added. Here they are
    one: empty rows are put before the patches, and the sum stands among the positions.

    Args:
        x: `(batch, height, width, 3)`.
        embedding: Holds `patch_embedding`.
        special: Learned rows `(1, 1, width)` before the patches.
        positions: Learned rows `(tokens, width)`, special ones first.
    """
    from keras_hub.layers import PositionEmbedding

    x = _copied(embedding.patch_embedding, "embedding_patches", x)
    x = keras.layers.Reshape((-1, x.shape[-1]), name="embedding_rows")(x)
    rows = np.array(keras.ops.convert_to_numpy(positions))
    if special:
        x = keras.layers.ZeroPadding1D((len(special), 0), name="embedding_tokens")(x)
        for index, row in enumerate(special):
            rows[index] += keras.ops.convert_to_numpy(row)[0, 0]
    layer = PositionEmbedding(len(rows), name="embedding_positions")
    x = keras.layers.Add(name="embedding_add")([x, layer(x)])
    layer.set_weights([rows])
    return x


def _vit_embedding(x: Any, embedding: Any) -> Any:
    special = [embedding.class_token] if embedding.use_class_token else []
    return _tokens(x, embedding, special, embedding.position_embedding.embeddings)


def _deit_embedding(x: Any, embedding: Any) -> Any:
    special = [embedding.class_token, embedding.distillation_token]
    x = _tokens(x, embedding, special, embedding.position_embedding[0])
    return _dropped(x, embedding.dropout_rate, "embedding_dropout")


def _dinov2_encoder(x: Any, encoder: Any) -> Any:
    for number, layer in enumerate(encoder.layers, 1):
        x = _copied(layer, f"transformer_block_{number}", x)
    return x


def _hgnet_encoder(x: Any, encoder: Any) -> Any:
    for stage, layer in enumerate(encoder.stages_list, 1):
        if layer.downsample_layer.weights:
            x = _copied(layer.downsample_layer, f"stage{stage}_block1_downsample", x)
        for number, block in enumerate(layer.blocks_list, 1):
            x = _copied(block, f"stage{stage}_block{number}_layers", x)
    return x


STEPS: dict[str, Step] = {
    "DINOV2Encoder": _dinov2_encoder,
    "DeiTEmbeddings": _deit_embedding,
    "DeiTEncoder": _deit_encoder,
    "HGNetV2Encoder": _hgnet_encoder,
    "ViTEncoder": _vit_encoder,
    "ViTPatchingAndEmbedding": _vit_embedding,
}
"""By class of KerasHub: the layers that are laid out."""
