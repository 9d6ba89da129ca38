"""Writes the files beside a SavedModel: Keras, LiteRT, ONNX, OpenVINO, each with its contract.

    file = write(folder, run, served, "litert", "int8")
    answers = of_file(folder, contract)     # from pictures and texts to probabilities

A file takes arrays, not what users hold: pictures are decoded, and texts become numbers of tokens,
by training's own preparation. Models of a cross-validated run become one that gives their mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerastune_ft import conversions, formats, predictions
from kerastune_ft.conversions import PICTURES
from kerastune_ft.data import feeding, tokenizing
from kerastune_ft.errors import DataError, ExportError
from kerastune_ft.exports import elsewhere
from kerastune_ft.exports.contract import Contract, File, Input
from kerastune_ft.exports.elsewhere import KERAS
from kerastune_ft.tasks import TASKS

if TYPE_CHECKING:
    import keras

    from kerastune_ft.exports.asked import Answer, Raw
    from kerastune_ft.exports.graphs import Served
    from kerastune_ft.recipe import Recipe
    from kerastune_ft.runs import Run

SAMPLES = 128
"""Training pictures between whose activations the ranges of an int8 file lie."""

_ACTIVATIONS = {"class": "softmax", "classes": "sigmoid", "numbers": "linear"}
_KERAS_FILE = "model.keras"
_AT_ONCE = 32


def model_of(served: Served) -> keras.Model:
    """Returns the model that files hold: from pixels or tokens to probabilities or numbers.

    Raises:
        ExportError: If the models of a cross-validated run cannot be joined.
    """
    import keras

    activation = _ACTIVATIONS[TASKS[served.recipe.task.name].labels]

    def last(logits: Any, name: str) -> Any:
        return keras.layers.Activation(activation, dtype="float32", name=name)(logits)

    first, output = served.models[0], _output(served)
    # Of a model that was loaded, texts are a list; files call them by their names.
    takes = {tensor.name: tensor for tensor in first.inputs}
    given = takes if served.reads_texts else first.inputs[0]
    if len(served.models) == 1:
        return keras.Model(given, last(first.outputs[0], output), name=first.name)
    said = []
    for number, model in enumerate(served.models, 1):
        model.name = f"fold_{number}"  # layers of one model have names of their own
        inner = [takes[tensor.name] for tensor in model.inputs] if served.reads_texts else given
        (logits,) = keras.tree.flatten(model(inner))
        said.append(last(logits, f"{output}_{number}"))
    mean = keras.layers.Average(dtype="float32", name=output)(said)
    return keras.Model(given, mean, name="folds")


def samples_of(run: Run, recipe: Recipe, count: int = SAMPLES) -> NDArray[np.float32]:
    """Returns training pictures as the network gets them, without augmentation; always the same.

    Args:
        run: A finished run.
        recipe: Its own.
        count: How many at most.

    Raises:
        ExportError: If the data are gone, or have changed since.
    """
    try:
        split = predictions.training_split(run, recipe)
        order = np.random.default_rng(recipe.train.seed).permutation(len(split))
        rows = np.sort(order[:count]).tolist()
        return np.stack([views[0] for views in feeding.pictures(split, recipe, rows, [None])])
    except (DataError, OSError) as error:
        raise ExportError(f"int8 is calibrated on pictures of the training split: {error}") from (
            error
        )


def write(folder: Path, run: Run, served: Served, format: str, quantize: Any) -> File:
    """Writes a file of a format, and returns what its contract says of it.

    Args:
        folder: Of the version; must not exist.
        run: That is exported.
        served: What is exported of it.
        format: `keras`, or a key of `FORMATS`.
        quantize: How.

    Raises:
        ExportError: If it cannot be written so.
    """
    model, recipe = model_of(served), served.recipe
    folder.mkdir()
    takes = conversions.inputs_of(model)
    length = None if PICTURES in takes else tokenizing.length_of(recipe)
    batch: int | None = None
    needs: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    notes: dict[str, Any] = {}
    if format == KERAS:
        model = conversions.plain(model)
        path = folder / _KERAS_FILE
        model.save(path)
        needs = _packages(model)
        names = [tensor.name for tensor in model.inputs]
        takes = dict(zip(names, takes.values(), strict=True)) if len(names) == 1 else takes
    else:
        path = folder / formats.FORMATS[format].file
        samples = None
        if quantize == "int8":
            pictures = samples_of(run, recipe)
            samples = lambda: _batches(pictures)  # noqa: E731
        written = formats.write(
            format,
            model,
            path,
            quantize=quantize,
            samples=samples,
            length=length,
            output=_output(served),
        )
        made = written.made
        batch, remarks = made.batch, written.remarks
        notes = {
            key: value
            for key in ("opset", "calibrated_on", "float_operations")
            if (value := getattr(made, key)) not in (None, ())
        } | {"versions": dict(written.versions)}
        if format == "litert" and length is not None:
            length = made.length
    parts = sorted(part for part in folder.iterdir() if part.is_file())
    fixed = length if format == "litert" else None
    return File(
        format=format,
        quantize=quantize,
        name=path.name,
        sha256={part.name: hashlib.sha256(part.read_bytes()).hexdigest() for part in parts},
        bytes=sum(part.stat().st_size for part in parts),
        inputs=tuple(
            Input(name, (batch, *tensor.shape[1:]), "float32")
            if length is None
            else Input(name, (batch, fixed), "int32")
            for name, tensor in takes.items()
        ),
        output=_output(served),
        pixels=(0, 255) if length is None else None,
        batch=batch,
        length=length,
        needs=needs,
        remarks=remarks,
        notes=notes,
    )


def of_file(
    folder: Path, contract: Contract, wanted: Callable[[Sequence[Raw]], dict[str, Any]]
) -> Callable[[Sequence[Raw]], Sequence[Answer]]:
    """Returns what asks a file, in this process.

    Args:
        folder: Of the version.
        contract: Of the version.
        wanted: Makes of examples what the model takes.

    Raises:
        ExportError: If the file is damaged; the function raises it for what cannot be read.
    """
    assert contract.file is not None
    elsewhere.check_files(folder, contract.file)
    ask = elsewhere.opened(contract.file.format, folder / contract.file.name)

    def answers(raw: Sequence[Raw]) -> Sequence[Answer]:
        try:
            inputs = wanted(raw)
        except DataError as error:
            raise ExportError(str(error)) from error
        return list(np.asarray(ask(inputs), np.float64))

    return answers


def _batches(pictures: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(pictures), _AT_ONCE):
        yield pictures[start : start + _AT_ONCE]


def _output(served: Served) -> str:
    return "values" if TASKS[served.recipe.task.name].labels == "numbers" else "probabilities"


def _packages(model: keras.Model) -> tuple[str, ...]:
    """Returns the packages whose layers a model has, beside Keras."""
    used = {type(layer).__module__.partition(".")[0] for layer in model._flatten_layers()}
    return tuple(sorted(used - {"keras"}))
