"""A model's state as arrays and back, and as the file that a run keeps.

arrays = get_weights(model)
set_weights(model, arrays)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from kerastune_ft import files, models
from kerastune_ft.checkpoints import Arrays
from kerastune_ft.errors import TrainingError

if TYPE_CHECKING:
    from kerastune_ft.runs import Run


def save(model: keras.Model, run: Run) -> None:
    """Writes a run's `model.keras`: the network alone, which loads without this package.

    What `compile` added is left out: the optimizer's schedule is a class of this package, and its
    slots would triple the file.

    Args:
        model: Made by a builder.
        run: Where to.

    Raises:
        TrainingError: If the disk is full; the file that was there before is whole.
    """
    sync(model)
    bare = keras.Model(model.inputs, model.outputs, name=model.name)
    try:
        with files.replacing(run.model_path) as path, models.dropout_as_built(model):
            bare.save(path)
    except OSError as error:
        raise TrainingError(
            f"'{run.model_path}' cannot be written: {error.strerror or error}; what was written "
            f"before is whole. Make room, then 'kft resume {run.path}'."
        ) from error


def get_weights(model: keras.Model) -> Arrays:
    """Returns a model's weights by place, for `set_weights`."""
    return values("weight", model.weights)


def set_weights(model: keras.Model, arrays: Arrays) -> None:
    """Puts weights back that `get_weights` returned of the same network."""
    assign(dict(named("weight", model.weights)), arrays)


def named(kind: str, variables: list[keras.Variable]) -> Iterator[tuple[str, keras.Variable]]:
    """Names variables by place: automatic names depend on what a process built before."""
    return ((f"{kind}/{number}", variable) for number, variable in enumerate(variables))


def values(kind: str, variables: list[keras.Variable]) -> Arrays:
    """Returns variables as arrays, named by place."""
    return {name: array_of(variable) for name, variable in named(kind, variables)}


def array_of(variable: keras.Variable) -> Any:
    """Returns a copy of a variable as an array."""
    return np.array(keras.ops.convert_to_numpy(variable))


def digest_of(variable: keras.Variable) -> bytes:
    """Returns the sha256 of a variable's value."""
    return hashlib.sha256(array_of(variable).tobytes()).digest()


def sync(model: keras.Model) -> None:
    """Brings the state of a running JAX fit back into the variables; a no-op elsewhere."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


def assign(variables: dict[str, keras.Variable], arrays: Arrays) -> None:
    """Puts arrays into variables of the same names and shapes; else raises `TrainingError`."""
    if variables.keys() != arrays.keys() or any(
        tuple(variables[name].shape) != array.shape for name, array in arrays.items()
    ):
        raise TrainingError(
            "the checkpoint is of another network or of another version of kerastune-ft; start "
            "the run again under another name."
        )
    for name, array in arrays.items():
        variables[name].assign(array)
