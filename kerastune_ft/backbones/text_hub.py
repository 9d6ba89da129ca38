"""Reads the numbers of a KerasHub preset of text, layer by layer; KerasHub is imported when asked.

found = read(folder, shape, whole=False)      # {'layer_0_query': [kernel, bias], ...}
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kerastune_ft.backbones.text_architectures import Architecture
from kerastune_ft.backbones.text_tensors import Arrays
from kerastune_ft.errors import WeightsError


def read(folder: Path, shape: Architecture, whole: bool) -> Arrays:
    """Reads a preset.

    Args:
        folder: Of the preset.
        shape: What its `config.json` describes.
        whole: Whether T5's decoder is wanted, too.

    Returns:
        The arrays of every layer, by its name, in Keras's order.

    Raises:
        WeightsError: If KerasHub cannot load it.
    """
    try:
        import keras_hub
    except ImportError as error:
        raise WeightsError(
            f"{folder}: is a preset of KerasHub, which is not installed; "
            "'pip install keras-hub' installs it."
        ) from error
    try:
        backbone = keras_hub.models.Backbone.from_preset(str(folder))
    except Exception as error:  # Keras wraps whatever a layer raises
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"{folder}: KerasHub cannot load it: {re.sub(chr(27) + r'[^m]*m', '', line)[:300]}"
        ) from error
    found = _t5(backbone, shape, whole) if shape.family == "t5" else _stack(backbone, shape)
    return {
        name: [np.asarray(keras.ops.convert_to_numpy(value)) for value in values]
        for name, values in found.items()
    }


def _stack(backbone: Any, shape: Architecture) -> dict[str, list[Any]]:
    """Returns the variables of a network of TransformerEncoder or TransformerDecoder layers."""
    names = {layer.name: layer for layer in backbone.layers}
    found: dict[str, list[Any]] = {"token_embedding": [backbone.token_embedding.embeddings]}
    if "position_embedding" in names:
        positions = names["position_embedding"].position_embeddings
    else:
        positions = backbone.embeddings.position_embedding.position_embeddings
    found["position_embedding"] = [positions]
    if "segment_embedding" in names:
        found["segment_embedding"] = [names["segment_embedding"].embeddings]
    for theirs, ours in (
        ("embeddings_layer_norm", "embeddings_norm"),
        ("embeddings_projection", "embeddings_project"),
        ("layer_norm", "final_norm"),
    ):
        if theirs in names:
            found[ours] = list(names[theirs].weights)
    for i in range(shape.layers):
        layer, name = names[f"transformer_layer_{i}"], f"layer_{i}"
        attention = layer._self_attention_layer
        for part in ("query", "key", "value"):
            found[f"{name}_{part}"] = list(getattr(attention, f"_{part}_dense").weights)
        found[f"{name}_attention_output"] = list(attention._output_dense.weights)
        found[f"{name}_attention_norm"] = list(layer._self_attention_layer_norm.weights)
        found[f"{name}_inner"] = list(layer._feedforward_intermediate_dense.weights)
        found[f"{name}_outer"] = list(layer._feedforward_output_dense.weights)
        found[f"{name}_outer_norm"] = list(layer._feedforward_layer_norm.weights)
    return found


def _t5(backbone: Any, shape: Architecture, whole: bool) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {
        "token_embedding": [backbone.token_embedding.embeddings],
        "final_norm": list(backbone.encoder_layer_norm.weights),
    }
    stacks = [("layer", backbone.encoder_transformer_layers)]
    if whole:
        stacks.append(("decoder", backbone.decoder_transformer_layers))
        found["decoder_final_norm"] = list(backbone.decoder_layer_norm.weights)
        if not shape.tied:
            found["decoder_logits"] = [backbone.token_embedding.reverse_embeddings]
    for kind, layers in stacks:
        bias = layers[0].self_attention.relative_attention_bias
        found[f"{kind}_0_relative_attention_bias"] = [bias]
        for i, layer in enumerate(layers):
            name = f"{kind}_{i}"
            _t5_attention(found, layer.self_attention, layer.self_attention_layer_norm, name, shape)
            if kind == "decoder":
                norm = layer.cross_attention_layer_norm
                _t5_attention(found, layer.cross_attention, norm, f"{name}_cross", shape)
            found[f"{name}_inner"] = list(layer.input_projector.weights)
            if shape.gated:
                found[f"{name}_gate"] = list(layer.gate_projector.weights)
            found[f"{name}_outer"] = list(layer.output_projector.weights)
            found[f"{name}_outer_norm"] = list(layer.layer_norm.weights)
    return found


def _t5_attention(
    found: dict[str, list[Any]], attention: Any, norm: Any, name: str, shape: Architecture
) -> None:
    by_head = (shape.width, shape.heads, shape.head_width)
    for part in ("query", "key", "value"):
        kernel = getattr(attention, f"{part}_projector").weights[0]
        found[f"{name}_{part}"] = [keras.ops.reshape(kernel, by_head)]
    output = attention.output_projector.weights[0]
    found[f"{name}_attention_output"] = [
        keras.ops.reshape(output, (shape.heads, shape.head_width, shape.width))
    ]
    found[f"{name}_attention_norm"] = list(norm.weights)
