"""Runs models in the formats of other runtimes, without Keras and without TensorFlow.

Each function opens a file and returns a function from inputs to what the model says of them.
Everything computes in float32 on the CPU, unless the file itself is quantised.

    answers = open_litert(Path("model.tflite"))
    answers(pictures)               # float32 (batch, height, width, channels), 0..255
    answers({"token_ids": ids, "padding_mask": mask})     # int32 (batch, length)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerastune_ft import quiet
from kerastune_ft.errors import ExportError

Inputs = NDArray[Any] | Mapping[str, NDArray[Any]]
Answers = Callable[[Inputs], NDArray[Any]]


def open_litert(path: Path, threads: int | None = None) -> Answers:
    """Opens a LiteRT file.

    A file with room for one example is run once for each. Texts shorter than the file's length are
    filled up; their mask says so.

    Args:
        path: Of a `.tflite` file with one signature.
        threads: Of the processor; all of them by default.
    """
    from ai_edge_litert.interpreter import Interpreter

    with quiet.unheard():  # it tells of its delegate
        opened = Interpreter(model_path=str(path), num_threads=threads or cores())
    run = opened.get_signature_runner()
    details = run.get_input_details()
    types = {name: detail["dtype"] for name, detail in details.items()}
    shape = [int(side) for side in next(iter(details.values()))["shape_signature"]]
    length = shape[1] if len(shape) == 2 else -1

    def answer(inputs: Inputs) -> NDArray[Any]:
        arrays = _arrays(inputs, types, path)
        if length >= 0:
            arrays = {name: lengthened(array, length) for name, array in arrays.items()}
        if shape[0] < 0:
            return _only(run(**arrays))
        count = len(next(iter(arrays.values())))
        single = ({name: array[i : i + 1] for name, array in arrays.items()} for i in range(count))
        return np.concatenate([_only(run(**one)) for one in single])

    return answer


def open_onnx(path: Path, threads: int | None = None) -> Answers:
    """Opens an ONNX file with onnxruntime, on the CPU.

    Args:
        path: Of an `.onnx` file.
        threads: Of the processor; all of them by default.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or cores()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )
    types = {
        held.name: np.dtype("int32" if held.type == "tensor(int32)" else "float32")
        for held in session.get_inputs()
    }

    def answer(inputs: Inputs) -> NDArray[Any]:
        (found,) = session.run(None, _arrays(inputs, types, path))
        return np.asarray(found)

    return answer


def open_openvino(path: Path, threads: int | None = None) -> Answers:
    """Opens a model of OpenVINO on the CPU, in float32: its own choice may be bfloat16.

    Args:
        path: Of an `.xml` file with its `.bin` beside it.
        threads: Of the processor; all of them by default.
    """
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads or cores()}
    compiled = core.compile_model(core.read_model(str(path)), "CPU", settings)
    types = {
        held.get_any_name(): np.dtype(held.get_element_type().to_dtype())
        for held in compiled.inputs
    }

    def answer(inputs: Inputs) -> NDArray[Any]:
        # What it returns lies in memory that the next call fills again.
        return np.array(compiled(_arrays(inputs, types, path))[0])

    return answer


def lengthened(array: NDArray[Any], length: int) -> NDArray[Any]:
    """Fills texts up with zeros, which in a mask stand for nothing.

    Args:
        array: `(batch, tokens)`.
        length: Tokens that are wanted.

    Raises:
        ExportError: If the texts are longer.
    """
    missing = length - array.shape[1]
    if missing < 0:
        raise ExportError(
            f"texts: have {array.shape[1]} tokens, and this model was written for {length}; cut "
            "them, or write it again with a larger length."
        )
    return np.pad(array, ((0, 0), (0, missing)))


def cores() -> int:
    """Returns how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _arrays(inputs: Inputs, types: Mapping[str, Any], path: Path) -> dict[str, NDArray[Any]]:
    """Returns what a model takes, by name and of its types."""
    given = inputs if isinstance(inputs, Mapping) else dict.fromkeys(list(types)[:1], inputs)
    missing = [name for name in types if name not in given]
    if missing:
        raise ExportError(
            f"'{path}': takes {', '.join(types)}; {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing."
        )
    return {name: np.ascontiguousarray(given[name], kind) for name, kind in types.items()}


def _only(outputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    (found,) = outputs.values()
    return np.asarray(found)
