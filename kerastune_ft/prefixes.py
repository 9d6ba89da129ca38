"""Cuts a model in two: what stays as it is, from the input up, and everything after.

The halves share the layers of the model, so that training the suffix trains the model.

    cut = Cut(model, still(model))                   # after models.unfreeze
    activations = Forward([cut])(inputs)[0]          # once for every example
    cut.suffix()({"activations": activations})       # equals model(inputs)
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerastune_ft import models, states
from kerastune_ft.data.activations import ACTIVATIONS

_POOLING = "pooling"
_CONSTANTS = 50_000_000  # weights up to which a prefix is made constant: they are held twice then
_NAMES = ("name", "seed", "trainable", "dtype", "registered_name", "build_config")


def still(model: keras.Model) -> int:
    """Returns how many blocks, counted from the input, give the same in every step of training.

    Args:
        model: Made by a builder, its blocks frozen or not by `models.unfreeze`.
    """
    *body, _ = models.blocks(model)
    count = 0
    for block in body:
        if block.trainable or any(_moves(layer) for layer in block.layers):
            break
        count += 1
    return count


def _moves(layer: keras.layers.Layer) -> bool:
    """Whether a layer, or one inside it, gives something else whenever it is called in training."""
    for part in layer._flatten_layers():
        if isinstance(part, keras.layers.BatchNormalization) and models.statistics_move(part):
            return True
        if _draws(part):
            return True
    return False


def _draws(layer: keras.layers.Layer) -> bool:
    """Whether a layer draws numbers when it is called in training, whatever it keeps them under.

    KerasHub's layers that skip paths hold a `SeedGenerator` under several names, or none at all.
    """
    rates = [getattr(layer, name) for name in ("rate", "drop_prob") if hasattr(layer, name)]
    if rates and all(rate == 0 for rate in rates):
        return False
    held = [*getattr(layer, "_seed_generators", ()), *vars(layer).values()]
    draws = any(isinstance(value, keras.random.SeedGenerator) for value in held)
    return draws or any(isinstance(rate, float) for rate in rates)


class Cut:
    """A model in two halves.

    Args:
        model: Made by a builder.
        blocks: How many blocks, counted from the input, make the prefix: 1 or more. All of them
            take the pooling with them, where there is one.
    """

    def __init__(self, model: keras.Model, blocks: int) -> None:
        *body, _ = models.blocks(model)
        assert 1 <= blocks <= len(body), (blocks, len(body))
        self.model = model
        self.blocks = blocks
        self.network, self.row = models.backbone_of(model)
        self._call = _call_of(self.network, model)
        pooling = [layer for layer in model.layers if layer.name == _POOLING]
        self.pooled = blocks == len(body) and bool(pooling) and not pooling[0].weights
        self.name = _POOLING if self.pooled else body[blocks - 1].name
        if self.pooled:
            self.tensor = _call_of(pooling[0], model).output_tensors[0]
        elif blocks == len(body):
            self.tensor = self.network.output
        else:
            self.tensor = self.network.get_layer(self.name).output

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Of one example's activations; the first is None where there is a row per token."""
        return tuple(self.tensor.shape[1:])

    @property
    def by_token(self) -> bool:
        """Whether an example has a row of activations per token."""
        return self.shape[0] is None

    @functools.cached_property
    def reads(self) -> tuple[str, ...]:
        """Names of the model's inputs that the suffix reads as well, such as `padding_mask`."""
        if self.pooled:
            wanted = _inputs_of(self.model.outputs, self.tensor)
        else:
            wanted = _inputs_of(self.model.outputs, self._call.output_tensors[0])
            wanted |= _inputs_of([self.network.output], self.tensor)
        return tuple(tensor.name for tensor in self.model.inputs if tensor.name in wanted)

    def suffix(self) -> keras.Model:
        """Builds the upper half; it shares the layers of the model.

        Returns:
            An uncompiled model from a dict, `activations` and the inputs in `reads`, to what the
            model returns.
        """
        held = keras.Input(self.shape, dtype=self.tensor.dtype, name=ACTIVATIONS)
        others = {
            tensor.name: keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=tensor.name)
            for tensor in self.model.inputs
            if tensor.name in self.reads
        }
        features, top = held, self.tensor
        if not self.pooled:
            features = _part(self.network, self.tensor, self.network.output, others)(held)
            top = self._call.output_tensors[0]
        outputs = _part(self.model, top, self.model.output, others)(features)
        return keras.Model({ACTIVATIONS: held, **others}, outputs, name=self.model.name)

    def multiplications(self, tokens: float = 1.0) -> float:
        """Returns about how many multiplications one example costs up to here.

        Every number of a kernel is one for every place of the output of its layer.

        Args:
            tokens: Of the example, if it is a text.
        """
        total = 0.0
        for operation in _operations(lower([self])):
            if not isinstance(operation, keras.layers.Layer):
                continue
            looked_up = {
                id(weight)
                for part in operation._flatten_layers()
                if isinstance(part, keras.layers.Embedding)
                for weight in part.weights
            }
            numbers = sum(
                int(np.prod(weight.shape))
                for weight in operation.weights
                if len(weight.shape) > 1 and id(weight) not in looked_up
            )
            if numbers:
                shape = operation._inbound_nodes[0].output_tensors[0].shape
                total += numbers * float(np.prod([side or tokens for side in shape[1:-1]]))
        return total

    def digest(self) -> str:
        """Returns a sha256 of all that decides what the prefix computes: layers and weights."""
        whole = hashlib.sha256()
        prefix = lower([self])
        for line in _described(prefix):
            whole.update(line.encode())
        for weight in prefix.weights:
            whole.update(states.digest_of(weight))
        return whole.hexdigest()


def lower(cuts: Sequence[Cut]) -> keras.Model:
    """Builds the prefix of a model with an output for each of several cuts, in inference mode.

    Args:
        cuts: Of one model.

    Returns:
        Takes what the model takes; returns a list, the activations at each cut.
    """
    first = cuts[0]
    model, network = first.model, first.network
    inner = [cut.tensor for cut in cuts if not cut.pooled]
    pooled = any(cut.pooled for cut in cuts)
    through = keras.Model(network.input, [*inner, *([network.output] if pooled else [])])
    arguments = first._call.arguments
    found = through(*arguments.args)
    found = list(found) if isinstance(found, list | tuple) else [found]
    if pooled:
        cut = next(cut for cut in cuts if cut.pooled)
        others = {tensor.name: tensor for tensor in model.inputs}
        top = first._call.output_tensors[0]
        end = _part(model, top, cut.tensor, others)(found.pop())
        at = next(index for index, cut in enumerate(cuts) if cut.pooled)
        found.insert(at, end)
    return keras.Model(model.input, found, name="prefix")


class Forward:
    """Computes activations as fast as the machine can.

    TensorFlow gets the prefix as constants, which lets it fold batch normalisation into
    convolutions.

    Args:
        cuts: Of one model; its weights are those of now.
    """

    def __init__(self, cuts: Sequence[Cut]) -> None:
        self.model = lower(cuts)
        self._fast: Any = None
        weights = sum(int(np.prod(weight.shape)) for weight in self.model.weights)
        if keras.backend.backend() == "tensorflow" and weights <= _CONSTANTS:
            self._fast = _with_constants(self.model)

    def __call__(self, inputs: Any) -> list[NDArray[Any]]:
        """Returns the activations at each cut, `(batch, ...)`, of a batch of inputs."""
        if self._fast is not None:
            return [np.asarray(part) for part in self._fast(inputs)]
        found = self.model.predict_on_batch(keras.tree.map_structure(np.asarray, inputs))
        return list(found) if isinstance(found, list | tuple) else [found]


def _with_constants(model: keras.Model) -> Any:
    """Returns a function from inputs to a list of tensors, with the weights as they are now."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    names = sorted(tensor.name for tensor in model.inputs)
    several = isinstance(model.input, Mapping)

    def run(*tensors: Any) -> Any:
        outputs = model(
            dict(zip(names, tensors, strict=True)) if several else tensors[0], training=False
        )
        return outputs if isinstance(outputs, list | tuple) else [outputs]

    specs = [
        tf.TensorSpec(tensor.shape, tensor.dtype, name=tensor.name)
        for tensor in sorted(model.inputs, key=lambda tensor: tensor.name)
    ]
    fast = convert_variables_to_constants_v2(tf.function(run).get_concrete_function(*specs))

    def call(inputs: Any) -> Any:
        parts = [inputs[name] for name in names] if several else [inputs]
        return fast(*map(tf.convert_to_tensor, parts))

    return call


def _call_of(layer: keras.layers.Layer, model: keras.Model) -> Any:
    """Returns the node of a model's graph at which it calls a layer."""
    nodes = (node for level in model._nodes_by_depth.values() for node in level)
    return next(node for node in nodes if node.operation is layer)


def _part(model: keras.Model, begin: Any, end: Any, others: Mapping[str, Any]) -> Any:
    """Returns a function of the value at `begin` alone, that computes what the graph has at `end`.

    Args:
        model: Whose graph it is.
        begin: A tensor of the graph.
        end: Another.
        others: What stands for those inputs of the model that are read on the way, by name.
    """
    if begin is end:
        return lambda value: value
    wanted = _inputs_of([end], begin)
    read = [tensor for tensor in model.inputs if tensor.name in wanted]
    places = [(tensor, tensor._keras_history) for tensor in read]
    part = keras.Model([begin, *read], end)
    # Keras copies the nodes between, and gives the model's own inputs, which it does not copy, to
    # the copies: the model could not be saved any more.
    for tensor, place in places:
        tensor._keras_history = place
        del place.operation._inbound_nodes[place.node_index + 1 :]
    return lambda value: part([value, *(others[tensor.name] for tensor in read)])


def _inputs_of(outputs: Sequence[Any], stop: Any) -> set[str]:
    """Returns the names of the inputs that outputs depend on other than through one tensor."""
    seen, found, rest = {id(stop)}, set(), list(outputs)
    while rest:
        tensor = rest.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        operation, place, _ = tensor._keras_history
        if isinstance(operation, keras.layers.InputLayer):
            found.add(tensor.name)
        else:
            rest += operation._inbound_nodes[place].input_tensors
    return found


def _operations(model: keras.Model) -> Iterator[Any]:
    """Yields the operations of a graph, those of the graphs inside it in their place."""
    for operation in model.operations:
        if isinstance(operation, keras.Model):
            yield from _operations(operation)
        else:
            yield operation


def _described(model: keras.Model) -> Iterator[str]:
    """Yields what the operations of a graph are, whatever they are called."""
    for operation in _operations(model):
        try:
            settings = operation.get_config()
        except NotImplementedError:  # an operation that says nothing but its kind
            settings = {}
        kept = {key: value for key, value in settings.items() if key not in _NAMES}
        # A reloaded network has lists where a built one has tuples.
        yield f"{type(operation).__name__} {json.dumps(kept, default=repr, sort_keys=True)}\n"
