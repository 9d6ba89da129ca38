"""Reads a PyTorch state dict into NumPy arrays, without PyTorch and without pickle.

Such a file is a pickle program, which `pickle` would run. Here a stack machine of some twenty
opcodes runs it instead: it knows text, numbers, tuples, dicts and three names of PyTorch's, so that
there is nothing to call. Both layouts are read: the stream of pickles (before PyTorch 1.6) and
the zip archive. Refused: other names and opcodes, tensors that reach past their storage, overlap
themselves or run backwards, storages that the file does not hold, compressed archives, bfloat16.

    state = read_pth("mobilenet_v2-b0353104.pth")
    state["features.0.0.weight"].shape     # (32, 3, 3, 3)
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kerastune_ft.errors import WeightsError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DTYPES = {
    "BoolStorage": np.dtype("?"),
    "ByteStorage": np.dtype("u1"),
    "CharStorage": np.dtype("i1"),
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "IntStorage": np.dtype("<i4"),
    "LongStorage": np.dtype("<i8"),
    "ShortStorage": np.dtype("<i2"),
}
_MARK = object()


@dataclass(frozen=True)
class _Name:
    """Stands for a name that the program asks for; it is never looked up."""

    text: str


@dataclass(frozen=True)
class _Storage:
    """Stands for a block of numbers elsewhere in the file."""

    key: str
    dtype: np.dtype[Any]
    count: int


@dataclass(frozen=True)
class _Tensor:
    """Stands for a view of a storage, as the program states it, unchecked."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


def read_pth(path: Path | str) -> dict[str, np.ndarray]:
    """Reads the tensors of a state dict.

    Args:
        path: Of a file that `torch.save` wrote: names and tensors, nothing else.

    Returns:
        Contiguous copies of the tensors, by name, in the file's order.

    Raises:
        WeightsError: If the file is damaged, hostile or holds something else.
    """
    path = Path(path)
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        return _read_stream(path.read_bytes())
    except (
        ValueError,
        KeyError,
        IndexError,
        EOFError,
        OSError,
        OverflowError,
        RuntimeError,
        NotImplementedError,
        struct.error,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise WeightsError(
            f"{path}: cannot be read as a PyTorch state dict: {error}; "
            "fetch the file again, or save its weights alone with torch.save(model.state_dict())."
        ) from error


def _read_zip(path: Path) -> dict[str, np.ndarray]:
    room = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        programs = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(programs) != 1:
            raise ValueError(f"expected one data.pkl in the archive, found {len(programs)}")
        root = programs[0].removesuffix("data.pkl")

        def member(name: str) -> bytes:
            nonlocal room
            info = archive.getinfo(root + name)
            # PyTorch stores plainly; so no member can be larger than the file, nor all together.
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"'{name}' is compressed, which PyTorch never does")
            room -= info.file_size
            if room < 0:
                raise ValueError(f"'{name}' claims more bytes than the file has")
            return archive.read(info)

        if root + "byteorder" in archive.namelist() and member("byteorder").strip() != b"little":
            raise ValueError("its numbers are big-endian")
        state = _run(io.BytesIO(member("data.pkl")))
        cached: dict[str, bytes] = {}

        def content(storage: _Storage) -> bytes:
            if storage.key not in cached:
                cached[storage.key] = member(f"data/{storage.key}")
            return cached[storage.key]

        return _arrays(state, content, path.stat().st_size)


def _read_stream(content: bytes) -> dict[str, np.ndarray]:
    file = io.BytesIO(content)
    if not content:
        raise ValueError("it is empty")
    if content[:1] != b"\x80" or _run(file) != _MAGIC:
        raise ValueError("it does not begin as one")
    if _run(file) != _PROTOCOL:
        raise ValueError("it is of an unknown protocol version")
    system = _run(file)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise ValueError("its numbers are big-endian")
    state = _run(file)
    keys = _run(file)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("its list of storages is no list of names")
    counts = {
        tensor.storage.key: tensor.storage
        for tensor in (state.values() if isinstance(state, dict) else ())
        if isinstance(tensor, _Tensor) and isinstance(tensor.storage, _Storage)
    }
    places: dict[str, bytes | memoryview] = {}
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        if key not in counts:
            raise ValueError(f"no tensor uses its storage '{key}'")
        size = count * counts[key].dtype.itemsize
        if not 0 <= size <= len(content) - file.tell():
            raise ValueError(f"storage '{key}' claims more bytes than the file has")
        places[key] = memoryview(content)[file.tell() : file.tell() + size]
        file.seek(size, io.SEEK_CUR)
    return _arrays(state, lambda storage: places[storage.key], len(content))


def _arrays(
    state: Any, content: Callable[[_Storage], bytes | memoryview], size: int
) -> dict[str, np.ndarray]:
    """Copies every tensor out of its storage, once all its numbers are known to be in there.

    Args:
        state: What the program made.
        content: Returns the bytes of a storage.
        size: Of the file; shared storages may not blow the copies up to much more.
    """
    if not isinstance(state, dict) or not state:
        raise ValueError("it holds no dict of tensors")
    arrays: dict[str, np.ndarray] = {}
    room = 4 * size
    for name, tensor in state.items():
        if not isinstance(tensor, _Tensor):
            raise ValueError(f"'{name}' is no tensor")
        _check(name, tensor)
        storage = tensor.storage
        itemsize = storage.dtype.itemsize
        buffer = content(storage)
        if len(buffer) != storage.count * itemsize:
            raise ValueError(
                f"the storage of '{name}' has {len(buffer)} bytes, not {storage.count * itemsize}"
            )
        room -= math.prod(tensor.shape) * itemsize
        if room < 0:
            raise ValueError("its tensors share storages until they are larger than the file")
        # A stride along a side of 1 is never taken and may be any number.
        strides = [
            stride * itemsize if side > 1 else 0
            for side, stride in zip(tensor.shape, tensor.strides, strict=True)
        ]
        if 0 in tensor.shape:
            arrays[name] = np.empty(tensor.shape, storage.dtype)
            continue
        flat = np.frombuffer(buffer, storage.dtype)[tensor.offset :]
        arrays[name] = np.array(
            np.lib.stride_tricks.as_strided(flat, tensor.shape, strides), order="C"
        )
    return arrays


def _check(name: str, tensor: _Tensor) -> None:
    """Checks that a view lies within its storage."""
    shape, strides, offset, storage = tensor.shape, tensor.strides, tensor.offset, tensor.storage
    if not isinstance(storage, _Storage):
        raise ValueError(f"'{name}' has no storage")
    if not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise ValueError(f"'{name}' has no shape")
    if len(shape) != len(strides) or len(shape) > 32:
        raise ValueError(f"'{name}' has {len(shape)} sides and {len(strides)} strides")
    if any(type(n) is not int or not 0 <= n < 2**31 for n in (*shape, *strides, offset)):
        raise ValueError(f"'{name}' has a shape, stride or offset that is no natural number")
    if math.prod(side or 1 for side in shape) > max(storage.count, 2**31 if 0 in shape else 0):
        raise ValueError(f"'{name}' has more numbers than its storage")
    if 0 in shape:
        return
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    if last >= storage.count:
        raise ValueError(f"'{name}' reaches past its storage")


def _run(file: io.BytesIO) -> Any:
    """Runs one pickle program, up to its STOP, on a stack machine that can call nothing.

    Raises:
        ValueError: At an opcode, a name or an operand that a state dict has no need of.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        for place in range(len(stack) - 1, -1, -1):
            if stack[place] is _MARK:
                items = stack[place + 1 :]
                del stack[place:]
                return items
        raise ValueError("a mark is missing")

    def last(count: int) -> tuple[Any, ...]:
        if len(stack) < count:
            raise ValueError("its stack is too short")
        items = tuple(stack[len(stack) - count :])
        del stack[len(stack) - count :]
        return items

    operand: Any
    for opcode, operand, _ in pickletools.genops(file):
        match opcode.name:
            case "STOP":
                (result,) = last(1)
                return result
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                stack.append(_MARK)
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case (
                "BININT"
                | "BININT1"
                | "BININT2"
                | "LONG1"
                | "BINFLOAT"
                | "BINUNICODE"
                | "SHORT_BINUNICODE"
                | "BINSTRING"
                | "SHORT_BINSTRING"
            ):
                stack.append(operand)
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                (memo[len(memo) if operand is None else operand],) = stack[-1:]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[operand])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(last(int(opcode.name[-1])))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "APPEND" | "APPENDS":
                items = list(last(1)) if opcode.name == "APPEND" else since_mark()
                if not stack or not isinstance(stack[-1], list):
                    raise ValueError("it appends to what is no list")
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = list(last(2)) if opcode.name == "SETITEM" else since_mark()
                if not stack or not isinstance(stack[-1], dict):
                    raise ValueError("it sets items of what is no dict")
                _set_items(stack[-1], items)
            case "GLOBAL":
                stack.append(_Name(operand.replace(" ", ".")))
            case "STACK_GLOBAL":
                module, name = last(2)
                stack.append(_Name(f"{module}.{name}"))
            case "BINPERSID":
                stack.append(_storage(*last(1)))
            case "REDUCE":
                stack.append(_call(*last(2)))
            case "BUILD":
                # PyTorch hangs `_metadata` on its dict; we have no use for it.
                last(1)
                if not stack or not isinstance(stack[-1], dict):
                    raise ValueError("it sets attributes of what is no dict")
            case name:
                raise ValueError(f"it uses the pickle opcode {name}, which no state dict needs")
    raise ValueError("it ends too early")


def _set_items(target: dict[str, Any], items: list[Any]) -> None:
    """Sets keys and values in turn; only text is a key, whose hash is cheap and safe."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) is not str:
            raise ValueError("it has a key that is no text")
        target[key] = value


def _storage(reference: Any) -> _Storage:
    """Reads a persistent id: ('storage', type, key, device, count[, view])."""
    match reference:
        case ("storage", _Name(text), str(key), _, int(count), *view) if count >= 0 and (
            not view or view == [None]
        ):
            dtype = _DTYPES.get(text.removeprefix("torch."))
            if dtype is None:
                raise ValueError(f"it holds {text}, which is not supported")
            return _Storage(key, dtype, count)
    raise ValueError("it refers to a storage in an unknown way")


def _call(target: Any, arguments: Any) -> Any:
    """Does what the few names of a state dict would do."""
    name = target.text if isinstance(target, _Name) else type(target).__name__
    match name, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "collections.OrderedDict", (list(pairs),):  # as Python 2 wrote it
            made: dict[str, Any] = {}
            for pair in pairs:
                if not isinstance(pair, list | tuple) or len(pair) != 2:
                    raise ValueError("it makes a dict of what are no pairs")
                _set_items(made, list(pair))
            return made
        case "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2", (
            storage,
            offset,
            shape,
            strides,
            *_,
        ):
            return _Tensor(storage, offset, shape, strides)
        case "torch._utils._rebuild_parameter", (_Tensor() as tensor, *_):
            return tensor
    raise ValueError(f"it asks to call '{name}', which is refused")
