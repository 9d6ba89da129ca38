"""Writes Keras models for LiteRT, whole or quantised, of builtin operations alone.

Full int8 takes ranges from examples and keeps inputs and outputs float32. Refused: texts without a
fixed length, texts in int8, operations that need TensorFlow to run.

    made = to_litert(Wanted(model, quantize="int8", samples=pictures), Path("model.tflite"))
    made.float_operations                # what could not be quantised
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerastune_ft import quiet, runtimes
from kerastune_ft.conversions import (
    PICTURES,
    Made,
    Wanted,
    inputs_of,
    length_of,
    quietly,
    saved,
    unfit,
)
from kerastune_ft.errors import ExportError

Calibration = Callable[[], Iterator[dict[str, NDArray[Any]]]]


def to_litert(wanted: Wanted, path: Path) -> Made:
    """Writes a LiteRT file.

    It takes any number of examples, or where the runtime cannot do that, one. `int8` keeps inputs
    and outputs float32; what cannot be computed in int8 is computed in float32 and named.

    Args:
        wanted: Of texts with a length, or a model that has one.
        path: To write.

    Raises:
        ExportError: If it cannot be converted, texts have no length, or `int8` has no examples.
    """
    inputs = inputs_of(wanted.model)
    length = length_of(wanted, inputs)
    if PICTURES not in inputs and length is None:
        raise ExportError(
            "litert: texts want a fixed number of tokens, which this model does not have; give "
            "length, such as the sequence_length of the recipe."
        )
    if PICTURES not in inputs and wanted.quantize == "int8":
        raise ExportError(
            "litert: int8 would ruin texts: the number that masks a token is so large that no "
            "range of 256 steps holds it beside scores; 'int8_weights' is as small."
        )
    seen = 0

    def calibration() -> Iterator[dict[str, NDArray[Any]]]:
        nonlocal seen
        seen = 0
        for example in _examples(wanted):
            seen += 1
            yield example

    if wanted.quantize == "int8" and next(calibration(), None) is None:
        raise ExportError(
            "litert: int8 wants examples, to see between which numbers activations lie; give "
            "samples, such as 100 pictures of the training data."
        )
    reasons: list[Exception] = []
    for batch in (None, 1):
        try:
            content = _converted(wanted, batch, length, calibration, path.parent)
            path.write_bytes(content)
            _try_out(path, inputs, length)
        except ExportError:
            raise
        except Exception as error:  # the converter raises what its parts raise
            reasons.append(error)
        else:
            whole = wanted.quantize == "int8"
            return Made(
                batch=batch,
                length=length,
                calibrated_on=seen if whole else None,
                float_operations=_float_operations(content) if whole else (),
            )
    raise unfit("litert", wanted, reasons[-1]) from reasons[-1]


def _converted(
    wanted: Wanted,
    batch: int | None,
    length: int | None,
    calibration: Calibration,
    folder: Path,
) -> bytes:
    import tensorflow as tf

    operations = tf.lite.OpsSet
    with quietly(), saved(wanted, folder, batch, length) as place:
        converter = tf.lite.TFLiteConverter.from_saved_model(str(place))
        # Without TensorFlow's own operations, which the runtime does not have.
        converter.target_spec.supported_ops = [operations.TFLITE_BUILTINS]
        if wanted.quantize != "none":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if wanted.quantize == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if wanted.quantize == "int8":
            both = [operations.TFLITE_BUILTINS_INT8, operations.TFLITE_BUILTINS]
            converter.target_spec.supported_ops = both
            converter.representative_dataset = calibration
        with quiet.unheard():  # MLIR prints what it is doing, and of an error what is raised anyway
            return bytes(converter.convert())


def _try_out(path: Path, inputs: Mapping[str, Any], length: int | None) -> None:
    """Runs a file, and raises an error if an example alone gives something else than among others.

    The runtime resizes what depends on the number of examples, and not everything can be resized.
    """
    generator = np.random.default_rng(0)
    examples = {}
    for name, tensor in inputs.items():
        shape, limit = (tensor.shape[1:], 256) if name == PICTURES else ((length,), 2)
        examples[name] = generator.integers(0, limit, (3, *shape))
    if PICTURES not in inputs:
        examples["padding_mask"][:] = 1
    answers = runtimes.open_litert(path)
    several = answers(examples)
    last = answers({name: array[2:] for name, array in examples.items()})
    if len(several) != 3 or not np.allclose(several[2:], last, rtol=1e-2, atol=1e-2):
        raise RuntimeError("an example gives something else among others")


def _examples(wanted: Wanted) -> Iterator[dict[str, NDArray[Any]]]:
    """Yields the pictures that ranges come from, one by one."""
    for batch in wanted.samples() if wanted.samples is not None else ():
        given = batch.get(PICTURES, ()) if isinstance(batch, Mapping) else batch
        pictures = np.asarray(given, "float32")
        wants = wanted.model.inputs[0].shape
        if pictures.ndim != 4 or pictures.shape[1:] != wants[1:]:
            raise ExportError(
                f"samples: expected batches of pictures {tuple(wants)}, got {pictures.shape}."
            )
        for picture in pictures:
            yield {PICTURES: picture[None]}


def _float_operations(content: bytes) -> tuple[str, ...]:
    """Returns which operations of a quantised file read or write float32, with their number.

    Those that only turn numbers into int8 and back are left out.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content, 0)
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}
    found: Counter[str] = Counter()
    for number in range(model.SubgraphsLength()):
        graph = model.Subgraphs(number)
        for place in range(graph.OperatorsLength()):
            operation = graph.Operators(place)
            code = model.OperatorCodes(operation.OpcodeIndex())
            name = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            used = [operation.Inputs(i) for i in range(operation.InputsLength())]
            used += [operation.Outputs(i) for i in range(operation.OutputsLength())]
            types = {graph.Tensors(tensor).Type() for tensor in used if tensor >= 0}
            if schema.TensorType.FLOAT32 in types and name not in ("QUANTIZE", "DEQUANTIZE"):
                found[name] += 1
    return tuple(f"{name} ({count})" for name, count in sorted(found.items()))
