"""Rewrites the graph of a network of `keras.applications`; what it computes stays the same.

Out comes a flat graph of ordinary layers whose names do not depend on what else the process has
built. Layers that scale pixels are taken off, for only one layer of a model may do that.

    front(network)                    # [Rescaling, Normalization]: what EfficientNet begins with
    network = rewritten(network, "efficientnet_b0.imagenet", Convention())
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import keras

from kerastune_ft.backbones.weights import Convention

_SCALES = (keras.layers.Rescaling, keras.layers.Normalization)


def fresh_names(named: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns the names that a fresh process would have given to layers that were given none.

    Keras numbers such layers per class and process: InceptionV3's first convolution is `conv2d`
    or `conv2d_94`. Their order tells which is which.

    Args:
        named: Class in snake case and name of every layer.

    Returns:
        From the present names to the fresh ones, for the automatic names alone.
    """
    numbered: dict[str, dict[int, str]] = defaultdict(dict)
    for kind, name in named:
        match = re.fullmatch(rf"{re.escape(kind)}(?:_([1-9]\d*))?", name)
        if match:
            numbered[kind][int(match[1] or 0)] = name
    return {
        found[number]: f"{kind}_{rank}" if rank else kind
        for kind, found in numbered.items()
        for rank, number in enumerate(sorted(found))
    }


def front(network: keras.Model) -> list[keras.layers.Layer]:
    """Returns the layers of the network's own that scale pixels, in order."""
    found = []
    for layer in network.layers[1:]:
        if not isinstance(layer, _SCALES):
            break
        found.append(layer)
    return found


def owners(network: keras.Model) -> list[tuple[keras.layers.Layer, list[keras.Variable]]]:
    """Returns the layers, at any depth, that own variables, each with what it owns itself."""
    found = []

    def visit(layer: keras.layers.Layer) -> None:
        inner = list(layer._flatten_layers(include_self=False, recursive=False))
        theirs = {id(variable) for one in inner for variable in one.weights}
        own = [variable for variable in layer.weights if id(variable) not in theirs]
        if own:
            found.append((layer, own))
        for one in inner:
            visit(one)

    for layer in network.layers:
        visit(layer)
    return found


def stop_dropout(network: keras.Model) -> None:
    """Sets the rate of every dropout layer, at any depth, to 0; stochastic depth is one, too."""
    for layer in network._flatten_layers():
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0


def rewritten(network: keras.Model, name: str, convention: Convention) -> keras.Model:
    """Returns a network under another name that computes the same after its own pixel layers.

    Args:
        network: Made by `keras.applications`; not to be used afterwards.
        name: Of the network that is returned.
        convention: Padding and epsilon of the network that is returned.

    Returns:
        The same layers under that name where nothing is to be changed. Otherwise a copy with the
        same weights: layers that scale pixels are left out, automatic names are those of a fresh
        process, a nested Sequential is laid flat, `x + y` is an `Add` layer, so that every step has
        a name that `get_layer` knows, and a LayerScale is a depthwise convolution.
    """
    taken_off = front(network)
    begin = taken_off[-1].output if taken_off else network.input
    kinds = [
        (_snake_case(type(operation).__name__), operation.name)
        for operation in network.operations[1 + len(taken_off) :]
    ]
    names = fresh_names(kinds)
    nested = any(isinstance(layer, keras.Sequential) for layer in network.layers)
    # The answer depends on the network alone, never on the process: copying draws random numbers.
    if not (taken_off or names or nested or convention != Convention()):
        return keras.Model(network.input, network.output, name=name)
    return _copy(keras.Model(begin, network.output, name=name), names, convention)


def _copy(network: keras.Model, names: dict[str, str], convention: Convention) -> keras.Model:
    """Builds every layer anew, under its fresh name and by the convention."""
    pairs: list[tuple[keras.layers.Layer, keras.layers.Layer]] = []

    def clone(layer: Any) -> Any:
        if isinstance(layer, keras.Sequential):
            return [clone(inner) for inner in layer.layers]
        new = _new(layer, names.get(layer.name, layer.name), convention)
        if isinstance(layer, keras.layers.Layer):
            pairs.append((layer, new))
        return new

    def call(layer: Any, *inputs: Any, **arguments: Any) -> Any:
        if isinstance(layer, list):
            (x,) = inputs
            for inner in layer:
                x = inner(x)
            return x
        if convention.symmetric_padding and layer.name in convention.explicit_padding:
            padding = keras.layers.ZeroPadding2D(1, name=f"{layer.name}_pad")
            return layer(padding(inputs[0]), *inputs[1:], **arguments)
        if _is_sum(layer, inputs):
            return keras.layers.Add(name=layer.name)(list(inputs))
        return layer(*inputs, **arguments)

    inputs = keras.Input(network.input_shape[1:], dtype=network.input.dtype, name="input_layer")
    copy = keras.models.clone_model(
        network, input_tensors=inputs, clone_function=clone, call_function=call
    )
    for old, new in pairs:
        for variable, value in zip(new.weights, old.get_weights(), strict=True):
            variable.assign(value.reshape(variable.shape))
    return copy


def _new(layer: Any, name: str, convention: Convention) -> Any:
    """Returns a layer with the settings of another, changed to what a convention wants."""
    if type(layer).__name__ == "LayerScale":
        # ConvNeXt's own class leaves its variable without a name, so that Keras numbers it by what
        # the process did before, at every loading anew. A depthwise kernel of one pixel is the
        # same factor per channel.
        first = keras.initializers.Constant(layer.init_values)
        return keras.layers.DepthwiseConv2D(
            1, use_bias=False, depthwise_initializer=first, name=name, dtype=layer.dtype_policy
        )
    settings = layer.get_config()
    settings["name"] = name
    if isinstance(layer, keras.layers.BatchNormalization) and convention.epsilon is not None:
        settings["epsilon"] = convention.epsilon
    if convention.symmetric_padding:
        if isinstance(layer, keras.layers.ZeroPadding2D):
            # Keras pads (0, 1) before a stride of 2 where PyTorch pads (1, 1): the same
            # network would see the picture shifted by a pixel at every such layer.
            settings["padding"] = ((1, 1), (1, 1))
        if layer.name in convention.explicit_padding:
            settings["padding"] = "valid"
    return layer.__class__.from_config(settings)


def _is_sum(operation: Any, inputs: tuple[Any, ...]) -> bool:
    """Tells whether an operation is `x + y` of two tensors: no layer, and unknown to get_layer."""
    return (
        not isinstance(operation, keras.layers.Layer)
        and type(operation).__name__ == "Add"
        and len(inputs) == 2
        and all(keras.backend.is_keras_tensor(value) for value in inputs)
    )


def _snake_case(kind: str) -> str:
    """Returns the name of a class as Keras begins the automatic names of its layers."""
    kind = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", kind)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", kind).lower()
