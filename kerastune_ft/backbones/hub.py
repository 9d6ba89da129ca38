"""Builds networks of KerasHub as plain functional Keras models."""

from __future__ import annotations

from typing import Any

import keras

from kerastune_ft.backbones.facts import Backbone


def construct(row: Backbone, name: str, size: tuple[int, int], channels: int) -> keras.Model:
    """Builds the network of a row of EfficientNet-Lite with random weights.

    KerasHub's "v1" blocks are ordinary layers, which reload without KerasHub, but pad as PyTorch
    does; the weights are TensorFlow's and want its padding 'same'. So each depthwise convolution
    gets that, and the padding layer before it goes.

    Args:
        row: Its builder is a dotted name in `keras_hub.models`.
        name: Of the model.
        size: Height and width, in pixels.
        channels: Of the pictures.

    Returns:
        A functional model from `float32 (batch, height, width, channels)` to the last feature
        map; `keras.models.load_model` reloads it, without `import keras_hub`.
    """
    import keras_hub

    builder = getattr(keras_hub.models, row.builder.rpartition(".")[2])
    options: dict[str, Any] = dict(row.options)
    backbone = builder(input_shape=(*size, channels), **options)

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        settings = layer.get_config()
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            settings["padding"] = "same"
        return layer.__class__.from_config(settings)

    def call(layer: keras.layers.Layer, *inputs: Any, **arguments: Any) -> Any:
        if isinstance(layer, keras.layers.ZeroPadding2D):
            return inputs[0]
        return layer(*inputs, **arguments)

    plain = keras.Model(backbone.input, backbone.output, name=name)  # no class of KerasHub's
    return keras.models.clone_model(plain, clone_function=clone, call_function=call)
