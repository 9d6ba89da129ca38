"""Asks a server over REST, with the standard library alone: `kft serve` or TensorFlow Serving.

found = predict("http://127.0.0.1:8501", "mobilenet", "serving_default",
                {"image_bytes": [Path("photo.jpg").read_bytes()]})
found["probabilities"]                           # float32 (1, classes)
metadata("http://127.0.0.1:8501", "mobilenet")["serving_default"]["outputs"]
"""

from __future__ import annotations

import base64
import ipaddress
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerastune_ft.errors import ServingError

_DTYPES = {
    "DT_FLOAT": np.float32,
    "DT_DOUBLE": np.float64,
    "DT_HALF": np.float16,
    "DT_BFLOAT16": np.float32,
    "DT_INT8": np.int8,
    "DT_INT16": np.int16,
    "DT_INT32": np.int32,
    "DT_INT64": np.int64,
    "DT_UINT8": np.uint8,
    "DT_UINT16": np.uint16,
    "DT_UINT32": np.uint32,
    "DT_UINT64": np.uint64,
    "DT_BOOL": np.bool_,
    "DT_STRING": np.object_,
}
_LARGEST_ANSWER = 2**30


def predict(
    url: str,
    name: str,
    signature: str,
    inputs: Mapping[str, Any],
    version: int | None = None,
    timeout: float = 60.0,
) -> dict[str, NDArray[Any]]:
    """Returns what a served model gives for inputs.

    Args:
        url: Where the REST API is, such as `http://127.0.0.1:8501`.
        name: Of the model.
        signature: Such as `serving_default`.
        inputs: An array, or nested lists, for each input. `bytes` are sent as they are, `str` in
            UTF-8.
        version: The newest one by default.
        timeout: Seconds of waiting, for each of the two requests that are made.

    Returns:
        An array for each output, of the type that the signature says; strings are `bytes` in an
        array of objects.

    Raises:
        ServingError: If the server cannot be reached, refuses, or answers something else.
    """
    described = metadata(url, name, version, timeout)
    if signature not in described:
        known = ", ".join(sorted(described)) or "none"
        raise ServingError(f"{url}: '{name}' has no signature '{signature}'; there are: {known}.")
    columns = {key: _sent(value) for key, value in inputs.items()}
    body = json.dumps({"signature_name": signature, "inputs": columns}).encode("ascii")
    address = f"{_model(url, name, version)}:predict"
    content = _asked(address, body, timeout)
    outputs = described[signature]["outputs"]
    found = content.get("outputs")
    if len(outputs) == 1:
        found = {next(iter(outputs)): found}  # a single output goes without its name
    if not isinstance(found, dict) or found.keys() != outputs.keys():
        raise ServingError(f"{address}: expected the outputs {', '.join(sorted(outputs))}.")
    return {key: _received(value, outputs[key], key, address) for key, value in found.items()}


def metadata(
    url: str, name: str, version: int | None = None, timeout: float = 60.0
) -> dict[str, dict[str, Any]]:
    """Returns the signatures of a served model, as its `SignatureDef` protobufs in JSON.

    Args:
        url: Where the REST API is.
        name: Of the model.
        version: The newest one by default.
        timeout: Seconds of waiting.

    Returns:
        By name: `inputs` and `outputs` (each by name, with `dtype` and `tensor_shape`) and
        `method_name`.

    Raises:
        ServingError: If the server cannot be reached, refuses, or answers something else.
    """
    address = f"{_model(url, name, version)}/metadata"
    content = _asked(address, None, timeout)
    try:
        listed = content["metadata"]["signature_def"]["signature_def"]
        return {
            key: {"inputs": {}, "outputs": {}, **definition}
            for key, definition in listed.items()
            if not key.startswith("__")
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ServingError(f"{address}: this is not TensorFlow Serving's API.") from error


def is_loopback(host: str) -> bool:
    """Whether a host can be reached from its own machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _opener(address: str) -> urllib.request.OpenerDirector:
    """Returns what asks: through the proxy of the environment, unless the server is right here."""
    host = urllib.parse.urlsplit(address).hostname or ""
    handlers = [urllib.request.ProxyHandler({})] if is_loopback(host) else []
    return urllib.request.build_opener(*handlers)


def _model(url: str, name: str, version: int | None) -> str:
    """Returns the address of a model, or of one of its versions."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise ServingError(f"'{url}': expected an address such as http://127.0.0.1:8501.")
    address = f"{url.rstrip('/')}/v1/models/{urllib.parse.quote(name, safe='')}"
    return address if version is None else f"{address}/versions/{version}"


def _asked(address: str, body: bytes | None, timeout: float) -> dict[str, Any]:
    """Returns the JSON object that a server answers; a body is posted."""
    headers = {"Content-Type": "application/json"} if body is not None else {}
    request = urllib.request.Request(address, body, headers)
    try:
        with _opener(address).open(request, timeout=timeout) as response:
            text = response.read(_LARGEST_ANSWER)
    except urllib.error.HTTPError as error:
        raise ServingError(f"{address}: {error.code}: {_reason(error)}") from error
    except (OSError, ValueError) as error:  # refused, reset, timed out, no such host, no address
        reason = getattr(error, "reason", error)
        raise ServingError(
            f"{address}: no answer: {reason}; is the server running, and the address right?"
        ) from error
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ServingError(f"{address}: the answer is no JSON.") from error
    if not isinstance(content, dict):
        raise ServingError(f"{address}: the answer is no JSON object.")
    return content


def _reason(error: urllib.error.HTTPError) -> str:
    """Returns what a server says of its refusal."""
    text = error.read(65_536).decode("utf-8", errors="replace")
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    said = content.get("error") if isinstance(content, dict) else None
    return said if isinstance(said, str) else text[:200] or str(error.reason)


def _sent(value: Any) -> Any:
    """Returns nested lists with `{"b64": "..."}` for bytes."""
    if isinstance(value, np.ndarray):
        # NumPy's own byte strings lose zeros at their end; arrays of objects keep them.
        return _sent(value.tolist())
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [_sent(item) for item in value]
    return value


def _received(value: Any, info: Mapping[str, Any], name: str, address: str) -> NDArray[Any]:
    dtype = _DTYPES.get(info.get("dtype", ""))
    if dtype is None:
        raise ServingError(f"{address}: output '{name}' is {info.get('dtype')}, which is not read.")
    try:
        if dtype is np.object_:
            return _strings(value)
        return np.array(value, dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise ServingError(f"{address}: output '{name}' is no array: {error}.") from error


def _strings(value: Any) -> NDArray[Any]:
    """Returns nested lists of strings as an array of `bytes`."""
    shape = []
    inner = value
    while isinstance(inner, list):
        shape.append(len(inner))
        inner = inner[0] if inner else None
    flat: list[bytes] = []
    _collect(value, flat)
    array = np.empty(len(flat), object)
    array[:] = flat
    return array.reshape(shape)


def _collect(value: Any, flat: list[bytes]) -> None:
    if isinstance(value, list):
        for item in value:
            _collect(item, flat)
    elif isinstance(value, dict):
        flat.append(base64.b64decode(value["b64"], validate=True))
    else:
        flat.append(value.encode("utf-8"))
