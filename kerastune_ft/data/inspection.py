"""Looks at each picture once, before training: can it be decoded, by whom, and is it turned?

TensorFlow's decoders are used where they are right, because they run beside training without
Python. Measured against Pillow (tensorflow 2.21): 16-bit greyscale loses its low byte or clips,
palette BMP shows palette numbers, alpha is dropped instead of composited, and 1-bit BMP, WebP with
alpha or animation, TIFF and the rest fail. Those pictures go through Pillow.

Pictures with other channels than RGB or grey are NumPy's `.npy` files, `(height, width, channels)`
or `(height, width)`: `uint8`, `uint16` over its whole range, or floats in 0..255.

    inspection.inspect(Path("a.jpg"))     # Inspected(...), or Unusable("truncated", "...")
    inspection.decode(data, channels=1)   # float32 (height, width, 1)

Refused: pictures above `MAX_PIXELS`, formats whose reader starts another program (EPS, WMF),
pixels without a fixed range (32-bit integers, floats in TIFF), arrays of Python objects, and arrays
with NaN or with values outside 0..255.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from kerastune_ft.data import looks
from kerastune_ft.data.looks import Look

PIXELS = 2
"""Of what is made of a file; raised when the pixels that a network gets change."""

# Decoding takes 3 bytes a pixel, resizing 12 more; Pillow warns from here on.
MAX_PIXELS = 89_478_485
FORMATS = (
    "JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO",
    "PCX", "QOI", "SGI", "TGA", "NPY",
)  # fmt: skip
_EXTENSIONS = {
    ".jpg": ("JPEG", "MPO"), ".jpeg": ("JPEG", "MPO"), ".jpe": ("JPEG", "MPO"),
    ".jfif": ("JPEG", "MPO"), ".mpo": ("JPEG", "MPO"), ".png": ("PNG",), ".apng": ("PNG",),
    ".gif": ("GIF",), ".bmp": ("BMP",), ".dib": ("BMP", "DIB"), ".webp": ("WEBP",),
    ".tif": ("TIFF",), ".tiff": ("TIFF",), ".avif": ("AVIF",), ".jp2": ("JPEG2000",),
    ".ppm": ("PPM",), ".pgm": ("PPM",), ".pbm": ("PPM",), ".ico": ("ICO",), ".pcx": ("PCX",),
    ".qoi": ("QOI",), ".sgi": ("SGI",), ".tga": ("TGA",), ".npy": ("NPY",),
}  # fmt: skip
# What people call pictures although nothing here reads them: losing one must be said aloud.
_OTHER_PICTURES = frozenset(
    {".heic", ".heif", ".jxl", ".svg", ".eps", ".psd", ".raw", ".dng", ".cr2", ".nef", ".arw"}
)
# What any picture can be read with, whatever it stores.
COLOURS = (1, 3)
_ARRAY_TYPES = ("uint8", "uint16", "float32", "float64")
_ARRAY_HEADERS: dict[tuple[int, int], Callable[..., tuple[tuple[int, ...], bool, Any]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_ORIENTATION = 0x0112
_STEP = 100  # pictures between two words of progress
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Inspected:
    """A picture that can be decoded.

    Args:
        format: Pillow's name of it, such as `JPEG`, or `NPY`; what the file is, not what it is
            called.
        through_pillow: TensorFlow would read it wrongly or not at all; `decode` reads it.
        orientation: EXIF's 1..8; 1 if `through_pillow`, which turns the picture itself.
        channels: Of a `NPY` file. None of all others, which are read as RGB or as grey.
        largest: Value of a `NPY` file of floats; None of all others. One file cannot tell whether
            1 is its darkest level or, by mistake, its brightest; many can.
        look: What it looks like; `inspect` always says.
    """

    format: str
    through_pillow: bool
    orientation: int
    channels: int | None = None
    largest: float | None = None
    look: Look | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Unusable:
    """A picture that cannot be decoded.

    Args:
        kind: Of the finding, such as `truncated`.
        detail: What the decoder said.
        is_picture: Whether it was recognised as a picture at all.
    """

    kind: str
    detail: str
    is_picture: bool = False


def has_picture_extension(name: str) -> bool:
    """Tells whether a file is called a picture."""
    extension = Path(name).suffix.lower()
    return extension in _EXTENSIONS or extension in _OTHER_PICTURES


def is_stray(path: Path) -> bool:
    """Tells whether a file neither is nor is called a picture; one that cannot be read may be one.

    Nothing is decoded: a damaged picture is one.
    """
    if has_picture_extension(path.name):
        return False
    try:
        with path.open("rb") as file:
            if _is_array(file):
                return False
            Image.open(file, formats=_formats()).close()
    except UnidentifiedImageError:
        return True
    except Exception:  # whatever a plug-in runs into in what it took for its own
        return False
    return False


def extension_fits(name: str, format: str) -> bool:
    """Tells whether a file's extension is one of its format's, or no picture's at all."""
    expected = _EXTENSIONS.get(Path(name).suffix.lower())
    return expected is None or format in expected


def inspect(picture: Path | bytes) -> Inspected | Unusable:
    """Decodes a picture once, cheaply, by the decoder that training will use.

    A JPEG is decoded at down to an eighth of its size: the same files fail as at full size.
    """
    try:
        if isinstance(picture, bytes):
            return _inspect(io.BytesIO(picture), len(picture))
        with picture.open("rb") as file:
            return _inspect(file, picture.stat().st_size)
    except OSError as error:
        return Unusable("unreadable", error.strerror or str(error))


_watching: ContextVar[Callable[[int, int], None] | None] = ContextVar("_watching", default=None)


@contextlib.contextmanager
def watched(progress: Callable[[int, int], None]) -> Iterator[None]:
    """Lets `progress(done, total)` see how far inspections inside the block are."""
    token = _watching.set(progress)
    try:
        yield
    finally:
        _watching.reset(token)


def inspect_all(pictures: Sequence[Path | bytes]) -> list[Inspected | Unusable]:
    """Inspects pictures in threads; the answers are in the order of the pictures."""
    watch = _watching.get()
    results: list[Inspected | Unusable] = []
    with (
        warnings.catch_warnings(),  # for the whole process: not to be entered inside a thread
        ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool,
    ):
        warnings.simplefilter("ignore")
        for result in pool.map(inspect, pictures):
            results.append(result)
            if watch and len(results) % _STEP == 0:
                watch(len(results), len(pictures))
    return results


def gives(stored: int | None, channels: int) -> bool:
    """Tells whether a picture can be read with so many channels.

    Args:
        stored: The `channels` of its inspection.
        channels: What is asked for. RGB becomes grey and grey is repeated; nothing else changes.
    """
    return stored == channels or (channels in COLOURS and (stored is None or stored in COLOURS))


def stored_channels(picture: Path | bytes) -> int | None:
    """Returns the `channels` that `inspect` would find, from the first bytes of a usable picture.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is an array whose header is damaged.
    """
    return header(picture, 3)[0]


def header(picture: Path | bytes, channels: int) -> tuple[int | None, bool]:
    """Returns what the first bytes of a usable picture say: its `channels`, and if it is deep.

    Args:
        picture: What `decode` is going to read.
        channels: What is asked for.

    Returns:
        The `channels` that `inspect` would find, and whether `decode` gives more than 256 levels:
        of arrays that are not of bytes, and, as grey, of 16-bit pictures.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is an array whose header is damaged.
    """
    with io.BytesIO(picture) if isinstance(picture, bytes) else picture.open("rb") as file:
        if _is_array(file):
            shape, _, dtype = _array_header(file)
            return (shape[2] if len(shape) == 3 else 1), dtype != np.uint8
        if channels != 1:
            return None, False
        with Image.open(file, formats=_formats()) as image:
            return None, _range(image) == 65535


def decode(data: bytes, channels: int = 3) -> NDArray[np.float32]:
    """Decodes a picture without TensorFlow.

    Pillow turns it as EXIF says and composites alpha over white. 16-bit greyscale is scaled by
    1/257, not clipped, and rounded only for RGB. Of an animation, the first frame.

    Args:
        data: A picture file or a `.npy` file.
        channels: 3 for RGB, 1 for grey, as `grey` has it; others are in `.npy` files only.

    Returns:
        `float32 (height, width, channels)` in 0..255.

    Raises:
        ValueError: If the pixels have no fixed range, or there are no such channels.
        Exception: What Pillow raises on a damaged picture, which can be of any class.
    """
    file = io.BytesIO(data)
    if _is_array(file):
        values = _read_array(file, len(data))
        if isinstance(values, Unusable):
            raise ValueError(values.detail)
        return _with_channels(_scaled(values), channels)
    if channels not in COLOURS:
        raise ValueError(f"no .npy file: a picture cannot be read with {channels} channels")
    with Image.open(file, formats=_formats()) as image:
        if channels == 1 and _range(image) == 65535:
            deep = np.asarray(_upright(image)).clip(0, 65535)
            return _divided(deep)[..., None]
        return _with_channels(_to_rgb(image).astype(np.float32), channels)


def grey(image: Any) -> Any:
    """Returns the luma of ITU-R 601 of RGB pictures, with the whole-number weights of Pillow's "L".

    Unlike Pillow, it does not round. The weights sum to 1 exactly and every sum of theirs over
    8-bit pixels is exact in `float32`: grey stored as RGB comes back as it was.

    Args:
        image: Array or tensor, `float32 (..., 3)` in 0..255.

    Returns:
        The same kind, `float32 (..., 1)` in 0..255.

    Reference:
        ITU-R BT.601, 0.299 R + 0.587 G + 0.114 B.
    """
    red, green, blue = image[..., 0:1], image[..., 1:2], image[..., 2:3]
    return (red * 19595.0 + green * 38470.0 + blue * 7471.0) / 65536.0


@functools.cache
def _formats() -> tuple[str, ...]:
    """Returns the names under which this Pillow opens `FORMATS`; it opens MPO as JPEG."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _inspect(file: BinaryIO, size: int) -> Inspected | Unusable:
    if size == 0:
        return Unusable("empty_file", "0 bytes")
    recognised = False
    try:
        if _is_array(file):
            recognised = True
            values = _read_array(file, size)
            if isinstance(values, Unusable):
                return values
            largest = float(values.max()) if values.dtype.kind == "f" else None
            look = _look_of_array(values, file)
            return Inspected("NPY", True, 1, channels=values.shape[2], largest=largest, look=look)
        with Image.open(file, formats=_formats()) as image:
            recognised = True
            return _check(image, file)
    except UnidentifiedImageError:
        return Unusable("unreadable", "the content is no picture of a known format")
    except Image.DecompressionBombError:
        return Unusable("too_large", f"more than {MAX_PIXELS:,} pixels", is_picture=True)
    # Pillow's plug-ins raise whatever their parsing runs into (struct.error, SyntaxError,
    # IndexError, EOFError, ...): each means that this picture cannot be decoded.
    except Exception as error:
        detail = str(error) or type(error).__name__
        cut_off = "truncated" in detail.lower() or isinstance(error, EOFError)
        cut_off = cut_off or detail.startswith("EOF: ")  # NumPy's word, in a ValueError
        return Unusable("truncated" if cut_off else "unreadable", detail, recognised)


def _check(image: Image.Image, file: BinaryIO) -> Inspected | Unusable:
    if image.width * image.height > MAX_PIXELS:
        return Unusable("too_large", f"{image.width:,} x {image.height:,} pixels", is_picture=True)
    if _range(image) is None:
        detail = f"{image.format} with pixels of mode {image.mode}"
        return Unusable("unsupported_format", detail, is_picture=True)
    format, mode = image.format or "unknown", image.mode
    file.seek(0)
    digest = _digest(file)
    facts: dict[str, Any] = {"digest": digest, "size": file.tell(), "mode": mode}
    if _tensorflow_is_right(image, file):
        orientation = _orientation(image)
        file.seek(0)
        pixels = _tensorflow_pixels(file.read(), format, image.size)
        if pixels is not None:
            look = _look(pixels, orientation, image.size, facts)
            return Inspected(format, through_pillow=False, orientation=orientation, look=look)
        file.seek(0)
        with Image.open(file, formats=_formats()) as again:  # `image` may be half decoded
            upright = _to_rgb(again)
    else:
        upright = _to_rgb(image)
    size = (upright.shape[1], upright.shape[0])
    look = _look(upright, 1, size, facts)
    return Inspected(format, through_pillow=True, orientation=1, look=look)


def _digest(file: BinaryIO) -> bytes:
    """Returns the digest of what is left of a file, and goes to its end."""
    return hashlib.sha256(file.read()).digest()[: looks.DIGEST]


def _look_of_array(values: NDArray[Any], file: BinaryIO) -> Look:
    """Measures an array, one of other channels than RGB by their mean."""
    file.seek(0)
    digest = _digest(file)
    scaled = _scaled(values)
    if scaled.shape[2] != 3:
        scaled = np.repeat(scaled.mean(axis=2, keepdims=True), 3, axis=2)
    facts = {"digest": digest, "size": file.tell(), "mode": values.dtype.name}
    size = (values.shape[1], values.shape[0])
    return _look(scaled.astype(np.uint8), 1, size, facts)


def _look(
    pixels: NDArray[np.uint8], orientation: int, size: tuple[int, int], facts: dict[str, Any]
) -> Look:
    """Measures a picture as it is stored, which `orientation` turns upright."""
    width, height = size
    if orientation > 1:
        if max(pixels.shape) > 4 * looks.SIDE:  # turning costs less of a small one
            step = max(pixels.shape) // (2 * looks.SIDE)
            pixels = pixels[::step, ::step]
        turned = Image.fromarray(pixels).transpose(_TURNS[orientation])
        pixels = np.asarray(turned)
        if orientation > 4:
            width, height = height, width
    return looks.look_of(pixels, width=width, height=height, **facts)


def _tensorflow_is_right(image: Image.Image, file: BinaryIO) -> bool:
    if "transparency" in image.info:
        return False
    match image.format:
        case "JPEG" | "MPO":
            return image.mode in ("L", "RGB")
        case "PNG":
            return image.mode in ("1", "L", "P", "RGB")
        case "GIF":  # a first frame smaller than the canvas is left to Pillow
            tile = getattr(image, "tile", None)
            extents = tile[0][1] if tile else None
            return image.mode in ("L", "P") and extents == (0, 0, *image.size)
        case "BMP":
            file.seek(28)
            bits = int.from_bytes(file.read(2), "little")
            return image.mode == "RGB" and bits == 24 and image.info.get("compression") == 0
        case "WEBP":
            return image.mode == "RGB" and not getattr(image, "is_animated", False)
        case _:
            return False


def _tensorflow_pixels(data: bytes, format: str, size: tuple[int, int]) -> NDArray[np.uint8] | None:
    """Returns `uint8 (height, width, 3)`, perhaps smaller than stored; None if it is damaged."""
    import tensorflow as tf

    with tf.device("/CPU:0"):
        try:
            if format in ("JPEG", "MPO"):
                ratio = next((r for r in (8, 4, 2) if max(size) // r >= looks.SIDE), 1)
                pixels = tf.io.decode_jpeg(data, channels=3, ratio=ratio)
            else:
                pixels = tf.io.decode_image(data, channels=3, expand_animations=False)
        except tf.errors.InvalidArgumentError:
            return None
    return np.asarray(pixels)


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    # Cameras and editors write broken EXIF, on which Pillow raises almost anything; the pixels
    # are sound, and a damaged picture fails again when it is decoded.
    except Exception:
        return 1
    return orientation if orientation in range(1, 9) else 1


def _range(image: Image.Image) -> int | None:
    """Returns the largest value a pixel can have, or None if nothing fixes it."""
    if image.mode == "F":
        return None
    if image.mode == "I":  # Pillow's name for 16 bits in PNG (before 11) and PGM
        return 65535 if image.format in ("PNG", "PPM") else None
    return 65535 if image.mode.startswith("I;16") else 255


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    turn = _TURNS.get(_orientation(image))
    if turn is None:
        return image
    turned = image.transpose(turn)
    if "transparency" in image.info:
        turned.info["transparency"] = image.info["transparency"]
    return turned


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    largest = _range(image)
    if largest is None:
        raise ValueError(f"pixels of mode {image.mode} have no fixed range")
    image = _upright(image)
    if largest == 65535:
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257
        return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        with_alpha = image.convert("RGBA")
        white = Image.new("RGBA", with_alpha.size, "white")
        image = Image.alpha_composite(white, with_alpha)
    return np.asarray(image.convert("RGB"))


def _is_array(file: BinaryIO) -> bool:
    start = file.read(len(np.lib.format.MAGIC_PREFIX))
    file.seek(0)
    return start == np.lib.format.MAGIC_PREFIX


def _array_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Returns shape, whether in Fortran order, and type; `file` then stands behind the header."""
    version = np.lib.format.read_magic(file)
    reader = _ARRAY_HEADERS.get(version)
    if reader is None:  # 3.0 is for structured arrays with names that are not Latin
        raise ValueError(f"version {version[0]}.{version[1]} of the format is not for pictures")
    return reader(file)


def _read_array(file: BinaryIO, size: int) -> NDArray[Any] | Unusable:
    """Returns `(height, width, channels)`; nothing is allocated before the header is checked."""
    shape, _, dtype = _array_header(file)
    if dtype.name not in _ARRAY_TYPES:
        detail = f"array of {dtype.name}; {', '.join(_ARRAY_TYPES)} are read"
        return Unusable("unsupported_format", detail, is_picture=True)
    if len(shape) not in (2, 3) or min(shape) < 1:
        detail = f"array of shape {shape}; (height, width, channels) or (height, width) are read"
        return Unusable("unsupported_format", detail, is_picture=True)
    pixels, numbers = shape[0] * shape[1], math.prod(shape)
    if pixels > MAX_PIXELS or numbers > 3 * MAX_PIXELS:
        detail = " x ".join(f"{side:,}" for side in shape) + " numbers"
        return Unusable("too_large", detail, is_picture=True)
    missing = numbers * dtype.itemsize - (size - file.tell())
    if missing > 0:
        return Unusable("truncated", f"{missing:,} bytes are missing", is_picture=True)
    if missing < 0:
        return Unusable("unreadable", f"{-missing:,} bytes follow the array", is_picture=True)
    file.seek(0)
    values: NDArray[Any] = np.load(file, allow_pickle=False)
    low, high = values.min(), values.max()
    if dtype.kind == "f" and not (low >= 0 and high <= 255):  # true of NaN as well
        detail = f"values from {low:g} to {high:g}; floats must be in 0..255"
        return Unusable("unreadable", detail, is_picture=True)
    return values if values.ndim == 3 else values[..., None]


def _scaled(values: NDArray[Any]) -> NDArray[np.float32]:
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return _divided(values)
    return values.astype(np.float32)


def _divided(values: NDArray[Any]) -> NDArray[np.float32]:
    scaled: NDArray[np.float32] = np.divide(values, 257, dtype=np.float32)
    return scaled


def _with_channels(image: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    stored = image.shape[2]
    if not gives(stored, channels):
        raise ValueError(f"{stored} channels cannot be read as {channels}")
    if stored == channels:
        return image
    return np.repeat(image, 3, axis=2) if stored == 1 else np.asarray(grey(image))
