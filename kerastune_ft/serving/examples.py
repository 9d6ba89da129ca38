"""Classify and regress: JSON examples to `tf.train.Example`, and results back.

Refused: features of mixed or unknown types, nested lists, features that are in the context as well.

    rows = serialized(content, admitted.repeat)      # bytes, one example each
    classes(outputs, len(rows))                      # [[("cat", 0.9), ("dog", 0.1)], ...]

Reference:
    https://www.tensorflow.org/tfx/serving/api_rest, "Classify and Regress API"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kerastune_ft.serving import tensors
from kerastune_ft.serving.refusals import RefusedError, invalid
from kerastune_ft.serving.tensors import Array

CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"
METHODS = {"classify": CLASSIFY, "regress": REGRESS}
"""What a signature must say that it is, for each of the two."""

_WORDS = {"classify": "classification", "regress": "regression"}
_KEYS = {"signature_name", "context", "examples"}
_INT64 = np.iinfo(np.int64)


def serialized(content: Mapping[str, Any], repeat: Callable[[int], None]) -> list[bytes]:
    """Returns the examples of a classify or regress request, each with the context's features.

    Args:
        content: From `tensors.parse`.
        repeat: Is told of the bytes that the context takes in all examples, before it does.

    Raises:
        RefusedError: If an example cannot be one.
    """
    tensors.only(content, _KEYS)
    if "examples" not in content:
        raise invalid("key 'examples' is expected and was not found.")
    rows = content["examples"]
    if not isinstance(rows, list):
        raise invalid("expecting 'examples' value to be a list.")
    if not rows:
        raise invalid("'examples' value is an empty list.")
    context = content.get("context", {})
    common = _serialized(context, "context")
    made = []
    for number, row in enumerate(rows):
        place = f"examples[{number}]"
        if isinstance(row, dict) and not row.keys().isdisjoint(context):
            twice = sorted(row.keys() & context.keys())[0]
            raise invalid(f"{place}: '{twice[:60]}' is in 'context' as well.")
        made.append(_serialized(row, place))
    repeat(len(common) * len(made))
    # Two protobufs one after the other are their union.
    return [common + row for row in made]


def check(method: str, found: str, inputs: Mapping[str, Any]) -> str:
    """Returns the name of the input of a signature that takes examples.

    Args:
        method: `classify` or `regress`.
        found: What the signature says that it is.
        inputs: Of the signature.

    Raises:
        RefusedError: If the signature is of another kind.
    """
    if found != METHODS[method]:
        raise invalid(
            f"Expected {_WORDS[method]} signature method_name to be {METHODS[method]}. "
            f"Was: {found}. Name a signature that is, in 'signature_name'."
        )
    if set(inputs) != {"inputs"}:
        raise RefusedError("FAILED_PRECONDITION", f"No {_WORDS[method]} inputs found in signature.")
    return "inputs"


def classes(outputs: Mapping[str, Array], rows: int) -> list[list[tuple[str, float]]]:
    """Returns label and score of every class for each example; `""` or 0 where there is none.

    Raises:
        RefusedError: If the model returned something else.
    """
    labels, scores = outputs.get("classes"), outputs.get("scores")
    if labels is None and scores is None:
        raise RefusedError(
            "FAILED_PRECONDITION", "Expected signature outputs to contain 'classes' or 'scores'."
        )
    found = [array for array in (labels, scores) if array is not None]
    if any(array.ndim != 2 or array.shape != (rows, found[0].shape[1]) for array in found):
        raise invalid("Expected Tensor shape: [batch_size num_classes].")
    width = found[0].shape[1]
    names = (
        [[""] * width] * rows
        if labels is None
        else [[_text(value) for value in row] for row in labels]
    )
    numbers = [[0.0] * width] * rows if scores is None else tensors.decimals(scores)
    return [list(zip(*pair, strict=True)) for pair in zip(names, numbers, strict=True)]


def values(outputs: Mapping[str, Array], rows: int) -> list[float]:
    """Returns the number that a regression gives for each example.

    Raises:
        RefusedError: If the model returned something else.
    """
    found = outputs.get("outputs")
    if found is None:
        raise RefusedError("FAILED_PRECONDITION", "No regression outputs found in signature.")
    if found.shape not in ((rows,), (rows, 1)):
        raise invalid("Expected output Tensor shape to be either [batch_size] or [batch_size, 1].")
    return tensors.decimals(found.reshape(-1))


def _serialized(row: Any, place: str) -> bytes:
    import tensorflow as tf

    if not isinstance(row, dict):
        raise invalid(f"{place}: expected an object of features.")
    example = tf.train.Example()
    for name, value in row.items():
        where = f"{place}: feature '{name[:60]}'"
        tensors.encoded(name)
        feature = example.features.feature[name]
        for single in value if isinstance(value, list) else [value]:
            kind, known = _kind(single, where)
            if feature.WhichOneof("kind") not in (None, kind):
                raise invalid(f"{where}: elements of different types.")
            getattr(feature, kind).value.append(known)
    return bytes(example.SerializeToString())


def _kind(value: Any, where: str) -> tuple[str, bytes | float | int]:
    """Returns where in a feature a value belongs, and the value."""
    if isinstance(value, str):
        return "bytes_list", tensors.encoded(value)
    if tensors.is_binary(value):
        return "bytes_list", tensors.decoded(value)
    if isinstance(value, bool):
        return "int64_list", int(value)
    if isinstance(value, int):
        if not _INT64.min <= value <= _INT64.max:
            raise invalid(f"{where}: only int64 is supported.")
        return "int64_list", value
    if isinstance(value, float):
        with np.errstate(over="ignore"):
            narrow = np.float32(value)
        if np.isinf(narrow) and not np.isinf(value):
            raise invalid(f"{where}: a number does not fit float32.")
        return "float_list", float(narrow)
    raise invalid(f'{where}: expected numbers, strings or {{"b64": "..."}}.')


def _text(value: Any) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
