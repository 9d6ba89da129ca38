"""What stands on a backbone's features: pooling, hidden layers, one dense layer, units.

A head is made of Keras's own pieces alone, so that plain `keras.models.load_model` reads it. Its
output is float32 under every precision policy. Nothing here decides what is trainable.

    head = Head("logits", outputs=5, pooling="gem", hidden=(128,), dropout=0.3, seed=0)
    logits = head.apply(features)                  # (batch, h, w, c) or (batch, tokens, c)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np

from kerastune_ft.errors import ModelError, did_you_mean

Pooling = Literal["avg", "max", "gem", "token", "last"]

LOGITS, STANDARDISED, UNITS = "logits", "standardised", "units"
"""Names of the last dense layer of a classifier and of a regressor, and of the regressor's
`Rescaling` after it."""

_GEM_POWER = 3.0
_GEM_SMALLEST = 1e-6  # the root has no slope at 0


@dataclass(frozen=True)
class Units:
    """The scale of the targets that a regressor learns.

    Args:
        mean: One number per target, in its own units.
        std: One number per target, in its own units, above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, targets: int, mean: Sequence[float] | None, std: Sequence[float] | None) -> Units:
        """Returns checked units; None means 0 for the mean and 1 for the standard deviation.

        Raises:
            ModelError: If there are not as many numbers as targets, one is not finite, or a
                standard deviation is not above 0.
        """
        found = cls(
            (0.0,) * targets if mean is None else tuple(float(value) for value in mean),
            (1.0,) * targets if std is None else tuple(float(value) for value in std),
        )
        for name, values in (("mean", found.mean), ("std", found.std)):
            if len(values) != targets:
                raise ModelError(
                    f"{name}: expected {targets} numbers, one per target, got {len(values)}."
                )
            if not all(math.isfinite(value) for value in values):
                raise ModelError(f"{name}: expected finite numbers, got {list(values)}.")
        if min(found.std) <= 0:
            raise ModelError(
                f"std: expected numbers above 0, got {list(found.std)}; a target that never "
                "changes cannot be learned, leave it out."
            )
        return found


@dataclass(frozen=True)
class Head:
    """The settings of a head, checked when it is made.

    Args:
        name: Of the last dense layer.
        outputs: Its width, 1 or more.
        pooling: How the features of all places become one vector; a key of `POOLINGS`, or of
            `TEXT_POOLINGS` for texts.
        hidden: Widths of dense ReLU layers, 1 or more each.
        dropout: Share of the features dropped before each dense layer while training, 0 to 1.
        seed: Of first weights and of dropout; None takes Keras's global one.
        units: Of a regressor's targets.

    Raises:
        ModelError: If a setting is out of its range.
    """

    name: str
    outputs: int
    pooling: str = "avg"
    hidden: tuple[int, ...] = ()
    dropout: float = 0.2
    seed: int | None = None
    units: Units | None = None

    def __post_init__(self) -> None:
        known = {**POOLINGS, **TEXT_POOLINGS}
        if self.pooling not in known:
            raise ModelError(
                f"pooling: expected {', '.join(known)}, got '{self.pooling}'"
                f"{did_you_mean(self.pooling, known) or '.'}"
            )
        if any(width < 1 for width in self.hidden):
            raise ModelError(f"hidden: expected widths of 1 or more, got {list(self.hidden)}.")
        if not 0 <= self.dropout < 1:
            raise ModelError(f"dropout: expected 0 or more and less than 1, got {self.dropout}.")

    def apply(self, features: Any, mask: Any = None) -> Any:
        """Puts the head on features.

        Args:
            features: A Keras tensor, `(batch, height, width, channels)` or
                `(batch, tokens, channels)`.
            mask: Of texts, `(batch, tokens)`: 1 where a token is, 0 where the batch is filled up.

        Returns:
            A Keras tensor, `float32 (batch, outputs)`.

        Raises:
            ModelError: If the pooling does not fit features of this kind.
        """
        x = _pooled(features, self.pooling) if mask is None else self._of_tokens(features, mask)
        return self._layers(x)

    def of_each(self, features: Any) -> Any:
        """Puts the head on the features of every token: `(batch, tokens, outputs)`."""
        return self._layers(features)

    def _of_tokens(self, features: Any, mask: Any) -> Any:
        if self.pooling not in TEXT_POOLINGS:
            raise ModelError(
                f"pooling: '{self.pooling}' is for pictures; expected {', '.join(TEXT_POOLINGS)}."
            )
        inputs = keras.Input(features.shape[1:], dtype=features.dtype)
        real = keras.Input((None,), dtype="int32")
        pooled = TEXT_POOLINGS[self.pooling](inputs, real)
        return keras.Model([inputs, real], pooled, name="pooling")([features, mask])

    def _layers(self, x: Any) -> Any:
        for number, width in enumerate(self.hidden, start=1):
            x = self._dropout(x, f"dropout_{number}")
            x = self._dense(x, width, f"hidden_{number}", "relu", None)
        x = self._dropout(x, "dropout")
        x = self._dense(x, self.outputs, self.name, None, "float32")
        if self.units is not None:
            scale, offset = list(self.units.std), list(self.units.mean)
            x = keras.layers.Rescaling(scale, offset, dtype="float32", name=UNITS)(x)
        return x

    def _dropout(self, x: Any, name: str) -> Any:
        return keras.layers.Dropout(self.dropout, seed=self._seed(name), name=name)(x)

    def _dense(
        self, x: Any, width: int, name: str, activation: str | None, dtype: str | None
    ) -> Any:
        initializer = keras.initializers.GlorotUniform(seed=self._seed(name))
        return keras.layers.Dense(
            width, activation=activation, kernel_initializer=initializer, dtype=dtype, name=name
        )(x)

    def _seed(self, layer: str) -> int | None:
        """Returns a layer's own seed: layers that share one draw the same numbers."""
        if self.seed is None or layer == self.name:
            return self.seed
        words = [self.seed, *layer.encode()]
        return int(np.random.SeedSequence(words).generate_state(1)[0])


def _average(features: Any) -> Any:
    tokens = len(features.shape) == 3
    layer = keras.layers.GlobalAveragePooling1D if tokens else keras.layers.GlobalAveragePooling2D
    return layer(name="pooling")(features)


def _maximum(features: Any) -> Any:
    tokens = len(features.shape) == 3
    layer = keras.layers.GlobalMaxPooling1D if tokens else keras.layers.GlobalMaxPooling2D
    return layer(name="pooling")(features)


def _generalised_mean(features: Any) -> Any:
    """Takes the root of the mean power of what is above 0, between the mean and the maximum.

    In float32: bfloat16 has no room for third powers.

    Reference:
        Radenović et al. 2019. https://arxiv.org/abs/1711.02512
    """
    inputs = keras.Input(features.shape[1:], dtype="float32")
    powers = keras.ops.power(keras.ops.maximum(inputs, _GEM_SMALLEST), _GEM_POWER)
    places = tuple(range(1, len(features.shape) - 1))
    root = keras.ops.power(keras.ops.mean(powers, axis=places), 1 / _GEM_POWER)
    return keras.Model(inputs, root, name="pooling")(features)


def _first_token(features: Any) -> Any:
    if len(features.shape) != 3:
        raise ModelError(
            "pooling: 'token' takes a transformer's first token, and this backbone has a map of "
            "features; expected avg, max or gem."
        )
    inputs = keras.Input(features.shape[1:], dtype=features.dtype)
    return keras.Model(inputs, inputs[:, 0], name="pooling")(features)


POOLINGS: dict[str, Callable[[Any], Any]] = {
    "avg": _average,
    "max": _maximum,
    "gem": _generalised_mean,
    "token": _first_token,
}


def _average_of_tokens(features: Any, mask: Any) -> Any:
    real = keras.ops.cast(mask, features.dtype)[..., None]
    return keras.ops.sum(features * real, axis=1) / keras.ops.maximum(
        keras.ops.sum(real, axis=1), 1
    )


def _largest_of_tokens(features: Any, mask: Any) -> Any:
    lowest = keras.ops.cast(-3e4, features.dtype)  # which float16 holds
    return keras.ops.max(keras.ops.where(mask[..., None] > 0, features, lowest), axis=1)


def _first_of_tokens(features: Any, mask: Any) -> Any:
    return features[:, 0]


def _last_of_tokens(features: Any, mask: Any) -> Any:
    place = keras.ops.maximum(keras.ops.sum(mask, axis=1) - 1, 0)
    return keras.ops.take_along_axis(features, place[:, None, None], axis=1)[:, 0]


TEXT_POOLINGS: dict[str, Callable[[Any, Any], Any]] = {
    "avg": _average_of_tokens,
    "max": _largest_of_tokens,
    "token": _first_of_tokens,
    "last": _last_of_tokens,
}
"""Of texts; each looks at tokens alone, not at what fills a batch up."""


def _pooled(features: Any, pooling: str) -> Any:
    """Returns `(batch, channels)`."""
    assert len(features.shape) in (3, 4), features.shape
    if pooling not in POOLINGS:
        raise ModelError(f"pooling: '{pooling}' is for texts; expected {', '.join(POOLINGS)}.")
    return POOLINGS[pooling](features)


def take_over(
    model: keras.Model,
    former: keras.Model,
    former_names: Sequence[str],
    names: Sequence[str],
) -> str:
    """Copies the head of a former model if it fits; see `models.take_over_head`."""
    misfit = _misfit(model, former, former_names, names)
    if misfit is not None:
        return f"head is new: {misfit}"
    *hidden, last = _dense_layers(model)
    *former_hidden, former_last = _dense_layers(former)
    kernel, bias = (np.asarray(array, "float64") for array in former_last.get_weights())
    order = [list(former_names).index(name) for name in names]
    kernel, bias = kernel[:, order], bias[order]
    how = "" if order == sorted(order) else ", in another order"
    if last.name == STANDARDISED:
        (scale, offset), (old_scale, old_offset) = _units(model), _units(former)
        old_scale, old_offset = old_scale[order], old_offset[order]
        kernel = kernel * old_scale / scale
        bias = (bias * old_scale + old_offset - offset) / scale
        same = np.array_equal(scale, old_scale) and np.array_equal(offset, old_offset)
        how += "" if same else ", converted to the new mean and standard deviation"
    for layer, former_layer in zip(hidden, former_hidden, strict=True):
        layer.set_weights(former_layer.get_weights())
    last.set_weights([kernel.astype("float32"), bias.astype("float32")])
    count = len(names)
    return f"head taken over: {count} output{'s' if count > 1 else ''} matched by name{how}"


def _misfit(
    model: keras.Model,
    former: keras.Model,
    former_names: Sequence[str],
    names: Sequence[str],
) -> str | None:
    """Returns why a former head cannot be used, or None."""
    layers, former_layers = _dense_layers(model), _dense_layers(former)
    if not layers:
        return "a network that writes has none of its own, its weights bring all"
    if not former_layers or former_layers[-1].name != layers[-1].name:
        found = f"'{former_layers[-1].name}'" if former_layers else "nothing of the kind"
        return f"the outputs here are '{layers[-1].name}', the former model has {found}"
    if former_layers[-1].units != len(former_names):
        return (
            f"the former model has {former_layers[-1].units} outputs, but {len(former_names)} "
            "names are kept for them"
        )
    missing = [name for name in names if name not in former_names]
    gone = [name for name in former_names if name not in names]
    if missing or gone:
        parts = [f"has no {_some(missing)}"] * bool(missing)
        parts += [f"has {_some(gone)}, which is not asked for"] * bool(gone)
        return f"the former model {' and '.join(parts)}"
    if _pooling_of(model) != _pooling_of(former):
        return "the former model pools its features in another way"
    shapes, former_shapes = (
        [tuple(layer.kernel.shape) for layer in found] for found in (layers, former_layers)
    )
    if shapes != former_shapes:
        return (
            f"its dense layers are {_shapes(shapes)}, those of the former model "
            f"{_shapes(former_shapes)}"
        )
    return None


def _dense_layers(model: keras.Model) -> list[Any]:
    return [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]


def _units(model: keras.Model) -> tuple[np.ndarray, np.ndarray]:
    layer = model.get_layer(UNITS)
    return np.asarray(layer.scale, "float64"), np.asarray(layer.offset, "float64")


def _pooling_of(model: keras.Model) -> list[str]:
    """Returns the kinds of pieces that the pooling is made of."""
    layer = next((layer for layer in model.layers if layer.name == "pooling"), None)
    if layer is None:  # something is said of every token
        return []
    pieces = layer.operations if isinstance(layer, keras.Model) else [layer]
    return [type(piece).__name__ for piece in pieces]


def _some(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:5]) + (", ..." if len(names) > 5 else "")


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes)
