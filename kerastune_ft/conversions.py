"""Writes Keras models for other runtimes: what all formats share, and ONNX and OpenVINO.

A model is traced in inference mode and computes in float32, whatever precision it was trained in;
LoRA is merged. Its inputs are called `images`, or `token_ids`, `padding_mask` and `segment_ids`.
Refused: other backends than TensorFlow, pictures of open size, models that write texts.

    made = to_onnx(Wanted(plain(model), output="probabilities"), Path("model.onnx"))
    made.batch                           # None: any
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kerastune_ft.errors import ExportError
from kerastune_ft.runtimes import Inputs

if TYPE_CHECKING:
    import keras

Quantize = Literal["none", "float16", "int8_weights", "int8"]
Samples = Callable[[], Iterable[Inputs]]

PICTURES = "images"
TEXTS = ("token_ids", "padding_mask", "segment_ids")
OPSET = 17
"""Of ONNX: the last but one that tf2onnx knows, and years older than today's runtimes."""

_LARGEST_FLOAT16 = float(np.finfo("float16").max)
_NARROW = re.compile(r"(mixed_)?b?float16")
_MISSING = re.compile(r"^(Custom|Flex) ops: |^No Op registered|conversion rule found")
_QUIET = ("tensorflow", "absl", "tf2onnx")


@dataclass(frozen=True)
class Wanted:
    """What is to be written.

    Args:
        model: From `plain`.
        output: Name of what it returns.
        quantize: `none`; `float16` for weights of half the size; `int8_weights`; or `int8` for
            weights and what is computed of them.
        samples: Examples to see for `int8` between which numbers each activation lies: batches of
            inputs. Called several times.
        length: Of texts, in tokens; only LiteRT wants one.
    """

    model: keras.Model
    output: str = "probabilities"
    quantize: Quantize = "none"
    samples: Samples | None = None
    length: int | None = None


@dataclass(frozen=True)
class Made:
    """What there is to say of a file that was written.

    Args:
        batch: Examples that it takes at once; None for any number.
        length: Tokens of a text; None for any number, and of pictures.
        opset: Of ONNX.
        calibrated_on: How many examples the ranges of activations come from.
        float_operations: In an `int8` file, those that compute in float32, with their number.
    """

    batch: int | None = None
    length: int | None = None
    opset: int | None = None
    calibrated_on: int | None = None
    float_operations: tuple[str, ...] = ()


def inputs_of(model: keras.Model) -> dict[str, Any]:
    """Returns the Keras tensors that a model takes, by the names that they get.

    Raises:
        ExportError: If it takes neither pictures of a fixed size nor tokens, or gives several
            outputs.
    """
    import keras

    # A Sequential model that was built and never called has `inputs` alone.
    tensors = model.inputs if isinstance(model, keras.Sequential) else model.input
    if isinstance(tensors, list | tuple) and len(tensors) == 1:
        (tensors,) = tensors
    if isinstance(tensors, Mapping) and set(TEXTS[:2]) <= set(tensors) <= set(TEXTS):
        found = {name: tensors[name] for name in TEXTS if name in tensors}
    elif hasattr(tensors, "shape") and len(tensors.shape) == 4 and None not in tensors.shape[1:]:
        found = {PICTURES: tensors}
    else:
        given = ", ".join(f"{tensor.name} {tuple(tensor.shape)}" for tensor in model.inputs)
        raise ExportError(
            f"model '{model.name}': takes {given}; expected pictures (batch, height, width, "
            f"channels) of a fixed size, or {', '.join(TEXTS[:2])} and perhaps {TEXTS[2]}. Models "
            "that write texts are served as they are, not in other formats."
        )
    if len(model.outputs) != 1:
        raise ExportError(
            f"model '{model.name}': returns {len(model.outputs)} arrays; expected one, the "
            "probabilities or the numbers."
        )
    return found


def plain(model: keras.Model) -> keras.Model:
    """Returns a model that computes the same in float32, with LoRA merged into the weights.

    Other runtimes have no bfloat16 on a CPU, and int8 wants kernels that are constant.

    Args:
        model: Is returned itself where there is nothing to change.

    Raises:
        ExportError: If the backend is not TensorFlow.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ExportError(
            f"export: the backend is {keras.backend.backend()}; models are exported on TensorFlow, "
            "whatever they were trained on: set KERAS_BACKEND=tensorflow."
        )
    layers = model._flatten_layers()
    adapted = [layer for layer in layers if getattr(layer, "lora_enabled", False)]
    if not adapted and not any(_NARROW.fullmatch(layer.compute_dtype) for layer in layers):
        return model
    copy = type(model).from_config(_in_float32(model.get_config()))
    merged = {}
    for layer in adapted:
        for weight in layer.weights:
            if weight.name in ("kernel", "embeddings"):
                merged[id(weight)] = getattr(layer, weight.name)
            elif weight.name.startswith("lora_"):
                merged[id(weight)] = None
    values = (merged.get(id(weight), weight) for weight in model.weights)
    copy.set_weights([np.asarray(value) for value in values if value is not None])
    return copy


def _in_float32(settings: Any) -> Any:
    """Returns the settings of layers without LoRA and with every narrow float type replaced."""
    if isinstance(settings, Mapping):
        return {
            key: "float32" if key == "dtype" and _is_narrow(value) else _in_float32(value)
            for key, value in settings.items()
            if not key.startswith("lora_")
        }
    if isinstance(settings, list | tuple):
        return type(settings)(_in_float32(value) for value in settings)
    return settings


def _is_narrow(dtype: Any) -> bool:
    """Whether a type, or the settings of a policy, are of 16 bits."""
    name = dtype.get("config", {}).get("name") if isinstance(dtype, Mapping) else dtype
    return isinstance(name, str) and _NARROW.fullmatch(name) is not None


def to_onnx(wanted: Wanted, path: Path) -> Made:
    """Writes an ONNX file for any number of examples, and tokens.

    Args:
        wanted: `float16` stores weights so; they are widened when the file is opened.
        path: To write.

    Raises:
        ExportError: If it cannot be converted.
    """
    import onnx

    inputs = inputs_of(wanted.model)
    with quietly():
        said = os.environ.get("TF_CPP_MIN_LOG_LEVEL")
        try:
            import tf2onnx.convert  # sets the variable for the whole process
        finally:
            os.environ.pop("TF_CPP_MIN_LOG_LEVEL", None)
            if said is not None:
                os.environ["TF_CPP_MIN_LOG_LEVEL"] = said
        frozen = _frozen(traced(wanted))
        names = dict(zip((tensor.name for tensor in frozen.inputs), inputs, strict=True))
        (returned,) = (tensor.name for tensor in frozen.outputs)
        try:
            model, _ = tf2onnx.convert.from_graph_def(
                frozen.graph.as_graph_def(add_shapes=True),
                name=wanted.model.name,
                input_names=list(names),
                output_names=[returned],
                tensors_to_rename={**names, returned: wanted.output},
                opset=OPSET,
                custom_op_handlers={"Erfc": (_add_erfc, [])},
            )
        except Exception as error:  # the converter raises what its parts raise
            raise unfit("onnx", wanted, error) from error
    for tensor in (*model.graph.input, *model.graph.output):
        for axis, side in enumerate(tensor.type.tensor_type.shape.dim):
            if not side.HasField("dim_value"):
                side.dim_param = ("batch", "length")[axis] if axis < 2 else f"side_{axis}"
    if wanted.quantize == "float16":
        _halve(model)
    onnx.save(model, str(path))
    try:
        # The converter leaves operations that it does not know as they are, and says so nowhere.
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise unfit("onnx", wanted, error) from error
    return Made(length=length_of(wanted, inputs, open_if_it_can_be=True), opset=OPSET)


def _add_erfc(graph: Any, node: Any, name: str, arguments: Any) -> None:
    """Writes `erfc(x)`, which tf.nn.gelu is made of and tf2onnx does not know, as `1 + erf(-x)`.

    Where x is a product with a negated factor the factor is taken without its sign, which gives the
    form of GELU that onnxruntime recognises and computes at once.
    """
    import tf2onnx

    (inner,) = node.inputs
    if inner.type == "Mul" and inner.inputs[0].type == "Neg":
        negated = graph.make_node("Mul", [inner.inputs[0].input[0], inner.input[1]])
    else:
        negated = graph.make_node("Neg", node.input)
    error = graph.make_node("Erf", negated.output)
    one = graph.make_const(tf2onnx.utils.make_name("one"), np.float32(1.0))
    shapes, types = node.output_shapes, node.output_dtypes
    graph.remove_node(node.name)
    graph.make_node(
        "Add", [error.output[0], one.output[0]], outputs=node.output, shapes=shapes, dtypes=types
    )


def _halve(model: Any) -> None:
    """Stores the weights of an ONNX model as float16, and lets it widen them when it is opened.

    It computes in float32 as before: onnxruntime has hardly any operation in float16 on a CPU.
    """
    from onnx import TensorProto, helper, numpy_helper

    widened = []
    for index, tensor in enumerate(model.graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
            continue  # biases and scales are small, and sums are made of them
        values = numpy_helper.to_array(tensor)
        if np.abs(values).max(initial=0.0) > _LARGEST_FLOAT16:
            continue
        name, narrow = tensor.name, f"{tensor.name}_float16"
        halved = numpy_helper.from_array(values.astype("float16"), narrow)
        model.graph.initializer[index].CopyFrom(halved)
        widened.append(helper.make_node("Cast", [narrow], [name], to=TensorProto.FLOAT))
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*widened, *rest])


def to_openvino(wanted: Wanted, path: Path) -> Made:
    """Writes a model of OpenVINO, `.xml` and `.bin`, for any number of examples, and tokens.

    Args:
        wanted: `float16` stores weights so.
        path: To write; ends with `.xml`.

    Raises:
        ExportError: If it cannot be converted.
    """
    import openvino

    inputs = inputs_of(wanted.model)
    with quietly(), saved(wanted, path.parent) as folder:
        try:
            # Not openvino.convert_model, which Keras calls: it tells Google Analytics of its use.
            model = openvino.Core().read_model(str(folder))
        except RuntimeError as error:
            raise unfit("openvino", wanted, error) from error
        for port in model.inputs:
            (name,) = (name for name in inputs if any(name in known for known in port.get_names()))
            port.get_tensor().set_names({name})
            port.get_node().set_friendly_name(name)
        model.outputs[0].get_tensor().set_names({wanted.output})
        openvino.save_model(model, str(path), compress_to_fp16=wanted.quantize == "float16")
    return Made(length=length_of(wanted, inputs, open_if_it_can_be=True))


def length_of(
    wanted: Wanted, inputs: Mapping[str, Any], open_if_it_can_be: bool = False
) -> int | None:
    """Returns how many tokens the texts of a model have, None for any number and for pictures."""
    if PICTURES in inputs:
        return None
    fixed: int | None = next(iter(inputs.values())).shape[1]
    return fixed if fixed is not None or open_if_it_can_be else wanted.length


def traced(wanted: Wanted, batch: int | None = None, length: int | None = None) -> Any:
    """Returns a model as a concrete function of TensorFlow.

    Args:
        wanted: Its model and the name of its output.
        batch: Examples that it takes at once; None for any number.
        length: Of texts; None for as many as the model takes.

    Raises:
        ExportError: If the model is none of those that can be written.
    """
    import tensorflow as tf

    inputs = inputs_of(wanted.model)
    specs = []
    for name, tensor in inputs.items():
        shape = tensor.shape[1:] if name == PICTURES else (length or tensor.shape[1],)
        kind = "float32" if name == PICTURES else "int32"
        specs.append(tf.TensorSpec((batch, *shape), kind, name=name))

    def run(*values: Any) -> dict[str, Any]:
        given = values[0] if PICTURES in inputs else dict(zip(inputs, values, strict=True))
        returned = wanted.model(given, training=False)
        # Of a reloaded model a list of one array.
        (found,) = returned if isinstance(returned, list | tuple) else (returned,)
        return {wanted.output: found}

    # Keras computes grouped convolutions in functions for XLA, which nobody else can look into;
    # "eagerly" means that their operations become part of this function.
    eager = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        return tf.function(run, autograph=False).get_concrete_function(*specs)
    finally:
        tf.config.run_functions_eagerly(eager)


def _frozen(function: Any) -> Any:
    """Returns a concrete function whose variables and other captured tensors are constants."""
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    return convert_variables_to_constants_v2(
        function, lower_control_flow=False, aggressive_inlining=True
    )


@contextlib.contextmanager
def saved(
    wanted: Wanted, folder: Path, batch: int | None = None, length: int | None = None
) -> Iterator[Path]:
    """Yields a SavedModel with one signature, `serving_default`, which is gone afterwards.

    Args:
        wanted: As in `traced`.
        folder: Where it may lie.
        batch: As in `traced`.
        length: As in `traced`.
    """
    import tensorflow as tf

    function = traced(wanted, batch, length)
    held = tf.Module()
    held.held_variables = [variable.value for variable in wanted.model.variables]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saved-") as place:
        tf.saved_model.save(held, place, signatures={"serving_default": function})
        yield Path(place)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keeps from the user what converters say and nobody can act on."""
    loggers = [logging.getLogger(name) for name in _QUIET]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            # Calibration still runs tf.lite.Interpreter, which says that it will go.
            warnings.filterwarnings("ignore", message=r"(?s).*tf\.lite\.Interpreter is deprecated")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def unfit(name: str, wanted: Wanted, error: Exception) -> ExportError:
    """Returns what to tell of a conversion that failed.

    Args:
        name: Of the format.
        wanted: Whose model it is.
        error: What the converter raised.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # The operations that are missing stand somewhere in a long message.
    telling = [line for line in lines if _MISSING.search(line)]
    reason = (telling or lines or [type(error).__name__])[0]
    return ExportError(
        f"{name}: model '{wanted.model.name}' cannot be converted: {reason[:300]}; another format "
        "may take it, and the SavedModel holds it in any case."
    )
