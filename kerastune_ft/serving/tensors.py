"""JSON to arrays and back, by the rules of TensorFlow Serving's REST API.

Refused: ragged lists, values of another type than the signature's (no text for a number, no 1.5
for a whole one), numbers that do not fit, inputs that are missing or that the signature lacks, no
rows at all, and objects with a key twice.

    content = parse(body)                                   # {"instances": [...]}
    arrays, row_format = request_arrays(content, signature.inputs)
    answer(outputs, row_format)                             # {"predictions": [...]}

Reference:
    https://www.tensorflow.org/tfx/serving/api_rest
"""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kerastune_ft.serving.refusals import RefusedError, invalid

Array: TypeAlias = NDArray[Any]
Arrays: TypeAlias = dict[str, Array]

MOST_DIMENSIONS = 32
"""How deeply lists of numbers may be nested."""

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_WHOLE = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_NUMBERS = {int, float}
_PREDICT_KEYS = {"signature_name", "instances", "inputs"}


@dataclass(frozen=True)
class Tensor:
    """What a signature says of one input or output.

    Args:
        name: As clients call it.
        kind: TensorFlow's name of the type, such as `float32` or `string`.
        dtype: NumPy's; `object`, of `bytes`, for strings.
        shape: `None` for a dimension of any size, and in its place for any shape.
    """

    name: str
    kind: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        shape = "any shape" if self.shape is None else _shown(self.shape)
        return f"{self.kind} {shape}"

    def check(self, array: Array) -> None:
        """Raises `RefusedError` if an array has another shape, or no rows where any number fits."""
        if self.shape is None:
            return
        fits = len(self.shape) == array.ndim and all(
            wanted is None or wanted == size
            for wanted, size in zip(self.shape, array.shape, strict=True)
        )
        if not fits:
            raise invalid(f"input '{self.name}': expected {self}, got shape {_shown(array.shape)}.")
        if array.ndim and array.shape[0] == 0 and self.shape[0] is None:
            raise invalid(f"input '{self.name}': expected at least one row, got none.")


def parse(body: bytes) -> dict[str, Any]:
    """Reads the JSON object that a request is.

    `NaN`, `Infinity` and `-Infinity` are numbers, as TensorFlow Serving has it.

    Raises:
        RefusedError: If it is none.
    """
    if not body.strip():
        raise invalid("JSON Parse error: The document is empty.")
    try:
        content = json.loads(body, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise invalid("JSON Parse error: the text is not UTF-8.") from error
    except RecursionError as error:
        raise invalid("JSON Parse error: nested too deeply.") from error
    except ValueError as error:
        raise invalid(f"JSON Parse error: {error}.") from error
    if not isinstance(content, dict):
        raise invalid(f"the request is {_kind(content)}; expected a JSON object.")
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes a JSON object; of a key that is there twice, one value would be lost."""
    made = dict(pairs)
    if len(made) != len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise invalid(f"JSON Parse error: key '{twice[:60]}' is there twice in an object.")
    return made


def signature_name(content: Mapping[str, Any]) -> str:
    """Returns the signature that a request names; an empty text for the default one."""
    name = content.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(f"'signature_name' key must be a string value, got {_kind(name)}.")
    return name


def only(content: Mapping[str, Any], known: set[str]) -> None:
    """Raises `RefusedError` if a request has keys that nobody would read."""
    unknown = sorted(set(content) - known)
    if unknown:
        names = ", ".join(f"'{name[:60]}'" for name in unknown[:5])
        raise invalid(f"unknown key {names}; expected {', '.join(sorted(known))}.")


def request_arrays(content: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> tuple[Arrays, bool]:
    """Returns what a predict request holds for a signature.

    Args:
        content: From `parse`.
        inputs: What the signature takes, by name.

    Returns:
        An array for every input, and whether they came row by row (`instances`).

    Raises:
        RefusedError: If the request and the signature do not go together.
    """
    only(content, _PREDICT_KEYS)
    if not inputs:
        raise invalid("the signature takes no inputs.")
    if "instances" in content and "inputs" in content:
        raise invalid("expecting only one of 'inputs' or 'instances' keys to exist.")
    if "instances" in content:
        return _checked(_from_rows(content["instances"], inputs), inputs), True
    if "inputs" in content:
        return _checked(_from_columns(content["inputs"], inputs), inputs), False
    raise invalid("Missing 'inputs' or 'instances' key.")


def answer(outputs: Mapping[str, Array], row_format: bool) -> dict[str, Any]:
    """Returns the JSON content of a predict response; a single output goes without its name.

    Args:
        outputs: By name.
        row_format: Whether the request was.

    Raises:
        RefusedError: If outputs cannot be told row by row.
    """
    lists = {name: _listed(array, name) for name, array in outputs.items()}
    if not row_format:
        return {"outputs": lists if len(lists) > 1 else next(iter(lists.values()))}
    sizes = {array.shape[0] if array.ndim else None for array in outputs.values()}
    if len(sizes) > 1 or None in sizes:
        raise invalid(
            "the outputs have inconsistent batch sizes and cannot be told row by row; ask with "
            "'inputs' in place of 'instances'."
        )
    if len(lists) == 1:
        return {"predictions": next(iter(lists.values()))}
    rows = zip(*lists.values(), strict=True)
    return {"predictions": [dict(zip(lists, row, strict=True)) for row in rows]}


def text_of(content: Any) -> bytes:
    """Returns JSON with `NaN` and `Infinity` where TensorFlow Serving writes them."""
    # Half of a surrogate pair can come back in an error message; it is no reason to fail.
    return json.dumps(content, ensure_ascii=False).encode("utf-8", errors="replace")


def is_binary(value: Any) -> bool:
    """Whether a JSON value is `{"b64": "..."}`."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def decoded(value: Mapping[str, str]) -> bytes:
    """Returns the bytes of `{"b64": "..."}`; blanks in it and missing padding do no harm."""
    text = "".join(value["b64"].split())
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(f"Unable to base64 decode: {error}.") from error


def encoded(text: str) -> bytes:
    """Returns a JSON string in UTF-8."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise invalid("a string holds half of a surrogate pair, which is no text.") from error


def decimals(array: Array) -> list[Any]:
    """Returns floats, nested as the array is, with no more digits than tell them apart."""
    # `tolist` would make a float32 a float64 first: 0.2 would be written 0.20000000298023224.
    # Narrower types are told as float32, the least that `str` writes in decimals.
    narrow = array.astype(np.float32) if array.dtype.itemsize < 4 else array
    flat = [float(str(value)) for value in narrow.reshape(-1)]
    return _nested(flat, array.shape)  # type: ignore[no-any-return]


def _from_rows(rows: Any, inputs: Mapping[str, Tensor]) -> Arrays:
    if not isinstance(rows, list):
        raise invalid(f"expecting 'instances' to be a list, got {_kind(rows)}.")
    if not rows:
        raise invalid("no values in 'instances'.")
    named = isinstance(rows[0], dict) and not is_binary(rows[0])
    if not named:
        if len(inputs) > 1:
            raise invalid(
                "instances is a plain list, but expecting a list of objects, each with "
                f"{_names(inputs)}."
            )
        ((name, tensor),) = inputs.items()
        for number, row in enumerate(rows):
            if isinstance(row, dict) and not is_binary(row):
                raise invalid(f"instances[{number}]: expected a value or list, got an object.")
        return {name: _array(rows, tensor, "instances")}
    columns: dict[str, list[Any]] = {name: [] for name in inputs}
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or is_binary(row):
            raise invalid(f"instances[{number}]: expected an object, got {_kind(row)}.")
        if row.keys() != inputs.keys():
            raise invalid(
                f"instances[{number}]: keys must be equal to {_names(inputs)}, got {_names(row)}."
            )
        for name, value in row.items():
            columns[name].append(value)
    return {
        name: _array(columns[name], tensor, f"input '{name}'") for name, tensor in inputs.items()
    }


def _from_columns(value: Any, inputs: Mapping[str, Tensor]) -> Arrays:
    if isinstance(value, dict) and not is_binary(value):
        missing = [name for name in inputs if name not in value]
        if missing:
            raise invalid(f"Missing named input: {_names(missing)} in 'inputs' object.")
        only(value, set(inputs))
        return {
            name: _array(value[name], tensor, f"input '{name}'") for name, tensor in inputs.items()
        }
    if len(inputs) > 1:
        raise invalid(
            f"inputs is a plain value or list, but expecting an object with {_names(inputs)}."
        )
    ((name, tensor),) = inputs.items()
    return {name: _array(value, tensor, "inputs")}


def _checked(arrays: Arrays, inputs: Mapping[str, Tensor]) -> Arrays:
    for name, array in arrays.items():
        inputs[name].check(array)
    return arrays


def _array(value: Any, tensor: Tensor, place: str) -> Array:
    """Makes an array of nested lists, as deep and as long everywhere as where they begin."""
    shape: list[int] = []
    inner = value
    while isinstance(inner, list):
        if len(shape) == MOST_DIMENSIONS:
            raise invalid(f"{place}: nested more than {MOST_DIMENSIONS} levels deep.")
        shape.append(len(inner))
        inner = inner[0] if inner else None
    flat: list[Any] = []
    _flatten(value, shape, place, flat)
    return _typed(flat, tensor, place).reshape(shape)


def _flatten(value: Any, shape: Sequence[int], place: str, flat: list[Any]) -> None:
    if not shape:
        flat.append(value)
        return
    if not isinstance(value, list):
        raise invalid(f"{place}: expected a list of {shape[0]}, got {_kind(value)}: ragged rows.")
    if len(value) != shape[0]:
        raise invalid(f"{place}: expected a list of {shape[0]}, got one of {len(value)}.")
    if len(shape) == 1:
        flat.extend(value)
        return
    for number, row in enumerate(value):
        _flatten(row, shape[1:], f"{place}[{number}]", flat)


def _typed(flat: list[Any], tensor: Tensor, place: str) -> Array:
    """Makes an array of single values; none is turned into another type."""
    kinds = set(map(type, flat))
    if list in kinds:
        raise invalid(f"{place}: lists of different depths: ragged rows.")
    if tensor.kind == "string":
        made = np.empty(len(flat), object)
        made[:] = [_bytes(value, place) for value in flat]
        return made
    if tensor.kind in _FLOATS:
        return _floats(flat, kinds, tensor, place)
    if tensor.kind in _WHOLE:
        if not kinds <= {int}:
            raise _wrong(flat, {int}, tensor, place)
        return _whole(flat, tensor, place)
    if tensor.kind == "bool":
        if not kinds <= {bool}:
            raise _wrong(flat, {bool}, tensor, place)
        return np.array(flat, np.bool_)
    raise RefusedError("UNIMPLEMENTED", f"{place}: {tensor.kind} cannot be told in JSON.")


def _bytes(value: Any, place: str) -> bytes:
    if isinstance(value, str):
        return encoded(value)
    if is_binary(value):
        return decoded(value)
    raise invalid(f'{place}: expected a string or {{"b64": "..."}}, got {_kind(value)}.')


def _floats(flat: list[Any], kinds: set[type], tensor: Tensor, place: str) -> Array:
    if not kinds <= _NUMBERS:
        raise _wrong(flat, _NUMBERS, tensor, place)
    try:
        wide = np.array(flat, np.float64)
    except OverflowError as error:
        raise invalid(f"{place}: a number does not fit {tensor.kind}.") from error
    with np.errstate(over="ignore"):
        made = wide.astype(tensor.dtype)
    if (np.isinf(made.astype(np.float64)) & np.isfinite(wide)).any():
        raise invalid(f"{place}: a number does not fit {tensor.kind}.")
    return made


def _whole(flat: list[int], tensor: Tensor, place: str) -> Array:
    bounds = np.iinfo(tensor.dtype)
    if flat and not bounds.min <= min(flat) <= max(flat) <= bounds.max:
        raise invalid(f"{place}: a number does not fit {tensor.kind}.")
    return np.array(flat, tensor.dtype)


def _wrong(flat: list[Any], allowed: set[type], tensor: Tensor, place: str) -> RefusedError:
    found = next(value for value in flat if type(value) not in allowed)
    return invalid(f"{place}: {_kind(found)} is not of expected type: {tensor.kind}.")


def _listed(array: Array, name: str) -> Any:
    """Returns an array as nested lists that JSON can hold."""
    if array.dtype == object or array.dtype.kind in "SU":
        as_bytes = name.endswith("_bytes")
        flat = [_told(value, as_bytes) for value in array.reshape(-1)]
        return _nested(flat, array.shape)
    if array.dtype.kind in "biu":
        return array.tolist()
    if array.dtype.kind == "c":
        raise RefusedError("UNIMPLEMENTED", f"output '{name}': complex numbers are not JSON.")
    return decimals(array)


def _told(value: Any, as_bytes: bool) -> Any:
    raw = value.encode("utf-8") if isinstance(value, str) else bytes(value)
    if as_bytes:
        return {"b64": base64.b64encode(raw).decode("ascii")}
    return raw.decode("utf-8", errors="replace")


def _nested(flat: list[Any], shape: Sequence[int]) -> Any:
    if not shape:
        return flat[0]
    if len(shape) == 1:
        return flat
    step = len(flat) // shape[0] if shape[0] else 0
    return [_nested(flat[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


def _names(names: Mapping[str, Any] | Sequence[str]) -> str:
    shown = [f"'{name[:60]}'" for name in names]
    return ", ".join(shown[:10]) + (", ..." if len(shown) > 10 else "") or "none"


def _kind(value: Any) -> str:
    """Says what a JSON value is, without repeating what may be long or private."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value"}
    if value is None:
        return "null"
    return names.get(type(value), "a number")


def _shown(shape: Sequence[int | None]) -> str:
    sizes = ["any" if size is None else str(size) for size in shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
