"""Finds where the graph of a network can be cut into blocks.

A bottleneck is a layer whose output alone carries everything from the layers before it to those
after it. Only there can a network be cut in two that compose to the whole.

    cuts(network)      # ('stem_activation', 'block1a_add', ..., 'top_activation')
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import keras

_JOINS = (keras.layers.Add, keras.layers.Concatenate)
_NORMS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
)
# Layers whose names begin alike belong to one step: 'stack2_block0_1_conv', 'block3a_dwconv',
# 'transformer_block_4_mha', 'embedding_add'.
_STEP = re.compile(
    r"(?:(?:(?:stack|stage)\d+_|transformer_)?block_?\d+[a-z]?|embedding)(?=_(?:\d+_)?[a-z])"
)


def cuts(network: keras.Model) -> tuple[str, ...]:
    """Returns the last layer of every block of a network, stem first, output last.

    A block is what the names of layers call one, else one residual join, or one layer that has
    layers of its own. Layers without weights that follow belong to it; what comes before the
    first block is the stem. The answer depends on graph and names alone, so a reloaded network
    has the same.

    Args:
        network: Functional, with one input and one output.
    """
    layers = [layer for layer in network.layers if not isinstance(layer, keras.layers.InputLayer)]
    narrow = _bottlenecks(network)
    ends = _ends(layers, narrow)
    begin = _begin(layers, narrow, ends[0]) if ends else 0
    if begin and any(layer.weights for layer in layers[:begin]):
        ends.insert(0, begin - 1)
    rest = layers[ends[-1] + 1 :] if ends else layers
    if any(layer.weights and not isinstance(layer, _NORMS) for layer in rest):
        ends.append(len(layers) - 1)
    ends = [*(_with_name(layers, narrow, end) for end in ends[:-1]), len(layers) - 1]
    return tuple(layers[end].name for end in ends)


def _bottlenecks(network: keras.Model) -> set[str]:
    """Returns the names of the layers whose output alone reaches the layers behind them.

    Such a layer lies on all ways from input to output, so every other layer comes before it or
    after it in any order of computation.
    """
    order = network.operations
    place = {id(operation): index for index, operation in enumerate(order)}
    nodes = {id(node) for level in network._nodes_by_depth.values() for node in level}
    reach = [0] * len(order)  # the last operation that reads each one's output
    for index, operation in enumerate(order):
        for node in operation._inbound_nodes:
            if id(node) in nodes:
                for parent in node.parent_nodes:
                    first = place[id(parent.operation)]
                    reach[first] = max(reach[first], index)
    found, farthest = set(), -1
    for index, operation in enumerate(order):
        # Nothing before it is read behind it.
        if farthest <= index and isinstance(operation, keras.layers.Layer):
            found.add(operation.name)
        farthest = max(farthest, reach[index])
    return found


def _ends(layers: Sequence[keras.layers.Layer], narrow: set[str]) -> list[int]:
    """Returns the places of the layers that steps end with."""
    last = {_step(layer): index for index, layer in enumerate(layers)}
    ends = []
    for index, layer in enumerate(layers):
        step = _step(layer)
        ends_step = last[step] == index if step else _is_composite(layer) or _is_join(layer)
        if ends_step and layer.name in narrow:
            end = index
            while end + 1 < len(layers) and _follows(layers[end + 1], narrow):
                end += 1
            ends.append(end)
    return ends


def _begin(layers: Sequence[keras.layers.Layer], narrow: set[str], end: int) -> int:
    """Returns the place of the first layer of the first step, which ends at `end`."""
    while end and _follows(layers[end], narrow):
        end -= 1
    step = _step(layers[end])
    if step:
        begin = next(index for index, layer in enumerate(layers) if _step(layer) == step)
    else:
        begin = end if _is_composite(layers[end]) else end - 1
    while begin and layers[begin - 1].name not in narrow:
        begin -= 1
    return begin


def _with_name(layers: Sequence[keras.layers.Layer], narrow: set[str], end: int) -> int:
    """Returns a place that cuts as well, of a layer whose name its author chose, if there is one.

    An automatic name counts the layers of a process: some classes of KerasHub make new ones
    whenever they are reloaded.
    """
    place = end
    while _has_automatic_name(layers[place]) and not layers[place].weights:
        place -= 1
        if place < 0 or layers[place].name not in narrow:
            return end
    return end if _has_automatic_name(layers[place]) else place


def _has_automatic_name(layer: keras.layers.Layer) -> bool:
    kind = re.escape(type(layer).__name__.lower())
    return re.fullmatch(rf"{kind}\d*", layer.name.replace("_", "")) is not None


def _step(layer: keras.layers.Layer) -> str | None:
    """Returns the name of the step that a layer's name begins with."""
    match = _STEP.match(layer.name)
    return match[0] if match else None


def _follows(layer: keras.layers.Layer, narrow: set[str]) -> bool:
    """Tells whether a layer belongs to the step before it."""
    begins = isinstance(layer, keras.layers.ZeroPadding2D) or _is_join(layer) or _step(layer)
    return layer.name in narrow and not layer.weights and not begins


def _is_composite(layer: keras.layers.Layer) -> bool:
    return bool(layer.weights) and any(True for _ in layer._flatten_layers(include_self=False))


def _is_join(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, _JOINS)
