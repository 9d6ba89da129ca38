"""Protobufs to arrays and back: what gRPC clients and warm-up files hold.

Refused: tensors that claim to be larger than a message may be, of another type than the
signature's, or with a shape that their content does not fill.

    arrays = request_arrays(request.inputs, signature.inputs, limit_bytes=2**25)
    rows = serialized(request.input)                 # of classify and regress
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kerastune_ft.serving.refusals import invalid
from kerastune_ft.serving.tensors import Array, Arrays, Tensor

_DIMENSIONS = 32
_ITEM = 8  # bytes of a string's place in an array


def request_arrays(
    protos: Mapping[str, Any], inputs: Mapping[str, Tensor], limit_bytes: int
) -> Arrays:
    """Returns the arrays of a PredictRequest.

    Args:
        protos: `TensorProto` by name.
        inputs: What the signature takes, by name.
        limit_bytes: Of one array. A proto may say "a million times this number" in a few bytes.

    Raises:
        RefusedError: If request and signature do not go together.
    """
    extra, missing = sorted(set(protos) - set(inputs)), sorted(set(inputs) - set(protos))
    if extra or missing:
        raise invalid(
            f"input size does not match signature: {len(protos)}!={len(inputs)}. "
            f"Sent extra: {{{','.join(extra)[:200]}}}. "
            f"Missing but required: {{{','.join(missing)[:200]}}}."
        )
    arrays = {}
    for name, tensor in inputs.items():
        arrays[name] = _array(protos[name], tensor, limit_bytes)
        tensor.check(arrays[name])
    return arrays


def tensor_proto(array: Array) -> Any:
    """Returns an array as a `TensorProto`."""
    import tensorflow as tf

    return tf.make_tensor_proto(array)


def serialized(given: Any, repeat: Callable[[int], None] = lambda count: None) -> list[bytes]:
    """Returns the serialized examples of an `Input`, each with the context's features.

    Args:
        given: The `Input`.
        repeat: Is told of the bytes that the context takes in all examples, before it does.

    Raises:
        RefusedError: If there are none.
    """
    kind = given.WhichOneof("kind")
    if kind == "example_list":
        rows = [example.SerializeToString() for example in given.example_list.examples]
    elif kind == "example_list_with_context":
        listed = given.example_list_with_context
        common = listed.context.SerializeToString()
        repeat(len(common) * len(listed.examples))
        rows = [common + example.SerializeToString() for example in listed.examples]
    else:
        rows = []
    if not rows:
        raise invalid("Input is empty.")
    return rows


def strings(rows: list[bytes]) -> Array:
    """Returns byte strings as an array `(rows,)`."""
    made = np.empty(len(rows), object)
    made[:] = rows
    return made


def _array(proto: Any, tensor: Tensor, limit_bytes: int) -> Array:
    import tensorflow as tf

    place = f"input '{tensor.name}'"
    try:
        kind = tf.as_dtype(proto.dtype).name
    except TypeError as error:
        raise invalid(f"{place}: tensor parsing error: unknown type.") from error
    if kind != tensor.kind:
        raise invalid(f"{place}: expected {tensor.kind}, got {kind}.")
    sizes = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or min(sizes, default=0) < 0 or len(sizes) > _DIMENSIONS:
        raise invalid(f"{place}: tensor parsing error: not a shape.")
    count = 1
    for size in sizes:
        count *= size  # Python's own numbers do not overflow
    item = _ITEM if tensor.kind == "string" else tensor.dtype.itemsize
    if count * item > limit_bytes:
        raise invalid(f"{place}: {count} values; at most {limit_bytes // item} are taken.")
    if tensor.kind == "string" and count and not proto.string_val:
        raise invalid(f"{place}: tensor parsing error: no values.")
    try:
        return np.asarray(tf.make_ndarray(proto))
    except (ValueError, TypeError, OverflowError) as error:
        raise invalid(f"{place}: tensor parsing error: the values do not fill it.") from error


def as_arrays(found: Mapping[str, Any]) -> Arrays:
    """Returns what a signature gave, as arrays; strings as `bytes` in arrays of objects."""
    arrays = {}
    for name, value in found.items():
        array = value.numpy()
        arrays[name] = array if isinstance(array, np.ndarray) else np.asarray(array, _kind(array))
    return arrays


def _kind(scalar: Any) -> Any:
    return object if isinstance(scalar, bytes) else None
