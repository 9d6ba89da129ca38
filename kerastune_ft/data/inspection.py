"""Looks at each picture once, before training: can it be decoded, by whom, and is it turned?

TensorFlow's decoders are used where they are right, because they run beside training without
Python. Measured against Pillow (tensorflow 2.21): 16-bit greyscale loses its low byte or clips,
palette BMP shows palette numbers, alpha is dropped instead of composited, and 1-bit BMP, WebP with
alpha or animation, TIFF and the rest fail. Those pictures go through Pillow.

    inspection.inspect(Path("a.jpg"))     # Inspected(...), or Unusable("truncated", "...")
    inspection.decode_with_pillow(data)   # uint8 (height, width, 3)

Refused: pictures above `MAX_PIXELS`, formats whose reader starts another program (EPS, WMF), and
pixels without a fixed range (32-bit integers, floats).
"""

from __future__ import annotations

import functools
import io
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

# Decoding takes 3 bytes a pixel, resizing 12 more; Pillow warns from here on.
MAX_PIXELS = 89_478_485
FORMATS = (
    "JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO",
    "PCX", "QOI", "SGI", "TGA",
)  # fmt: skip
_EXTENSIONS = {
    ".jpg": ("JPEG", "MPO"), ".jpeg": ("JPEG", "MPO"), ".jpe": ("JPEG", "MPO"),
    ".jfif": ("JPEG", "MPO"), ".mpo": ("JPEG", "MPO"), ".png": ("PNG",), ".apng": ("PNG",),
    ".gif": ("GIF",), ".bmp": ("BMP",), ".dib": ("BMP", "DIB"), ".webp": ("WEBP",),
    ".tif": ("TIFF",), ".tiff": ("TIFF",), ".avif": ("AVIF",), ".jp2": ("JPEG2000",),
    ".ppm": ("PPM",), ".pgm": ("PPM",), ".pbm": ("PPM",), ".ico": ("ICO",), ".pcx": ("PCX",),
    ".qoi": ("QOI",), ".sgi": ("SGI",), ".tga": ("TGA",),
}  # fmt: skip
# What people call pictures although nothing here reads them: losing one must be said aloud.
_OTHER_PICTURES = frozenset(
    {".heic", ".heif", ".jxl", ".svg", ".eps", ".psd", ".raw", ".dng", ".cr2", ".nef", ".arw"}
)
_ORIENTATION = 0x0112
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
        format: Pillow's name of it, such as `JPEG`; what the file is, not what it is called.
        through_pillow: TensorFlow would read it wrongly or not at all.
        orientation: EXIF's 1..8; 1 if `through_pillow`, which turns the picture itself.
    """

    format: str
    through_pillow: bool
    orientation: int


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


def extension_fits(name: str, format: str) -> bool:
    """Tells whether a file's extension is one of its format's, or no picture's at all."""
    expected = _EXTENSIONS.get(Path(name).suffix.lower())
    return expected is None or format in expected


def inspect(picture: Path | bytes) -> Inspected | Unusable:
    """Decodes a picture once, cheaply, by the decoder that training will use.

    A JPEG is decoded at an eighth of its size: the same files fail as at full size.
    """
    try:
        if isinstance(picture, bytes):
            return _inspect(io.BytesIO(picture), len(picture))
        with picture.open("rb") as file:
            return _inspect(file, picture.stat().st_size)
    except OSError as error:
        return Unusable("unreadable", error.strerror or str(error))


def inspect_all(
    pictures: Sequence[Path | bytes], log: Callable[[str], None] | None = None
) -> list[Inspected | Unusable]:
    """Inspects pictures in threads; the answers are in the order of the pictures.

    Args:
        pictures: Paths, or encoded pictures.
        log: Receives a line of progress now and then.
    """
    results: list[Inspected | Unusable] = []
    with (
        warnings.catch_warnings(),  # for the whole process: not to be entered inside a thread
        ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool,
    ):
        warnings.simplefilter("ignore")
        for result in pool.map(inspect, pictures):
            results.append(result)
            if log and len(results) % 5000 == 0:
                log(f"{len(results):,} of {len(pictures):,} pictures checked")
    return results


def decode_with_pillow(data: bytes) -> NDArray[np.uint8]:
    """Decodes a picture, turned as EXIF says, alpha composited over white.

    16-bit greyscale is scaled by 1/257, not clipped. Of an animation, the first frame.

    Returns:
        `uint8 (height, width, 3)`, RGB.

    Raises:
        ValueError: If the pixels have no fixed range.
        Exception: What Pillow raises on a damaged picture, which can be of any class.
    """
    with Image.open(io.BytesIO(data), formats=_formats()) as image:
        return _to_rgb(image)


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
        return Unusable("truncated" if cut_off else "unreadable", detail, recognised)


def _check(image: Image.Image, file: BinaryIO) -> Inspected | Unusable:
    if image.width * image.height > MAX_PIXELS:
        return Unusable("too_large", f"{image.width:,} x {image.height:,} pixels", is_picture=True)
    if _range(image) is None:
        detail = f"{image.format} with pixels of mode {image.mode}"
        return Unusable("unsupported_format", detail, is_picture=True)
    format = image.format or "unknown"
    if _tensorflow_is_right(image, file):
        orientation = _orientation(image)
        file.seek(0)
        if _tensorflow_decodes(file.read(), format):
            return Inspected(format, through_pillow=False, orientation=orientation)
        file.seek(0)
        with Image.open(file, formats=_formats()) as again:  # `image` may be half decoded
            _to_rgb(again)
    else:
        _to_rgb(image)
    return Inspected(format, through_pillow=True, orientation=1)


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


def _tensorflow_decodes(data: bytes, format: str) -> bool:
    import tensorflow as tf

    with tf.device("/CPU:0"):
        try:
            if format in ("JPEG", "MPO"):
                tf.io.decode_jpeg(data, channels=3, ratio=8)
            else:
                tf.io.decode_image(data, channels=3, expand_animations=False)
        except tf.errors.InvalidArgumentError:
            return False
    return True


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


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    largest = _range(image)
    if largest is None:
        raise ValueError(f"pixels of mode {image.mode} have no fixed range")
    image.load()
    turn = _TURNS.get(_orientation(image))
    if turn is not None:
        transparency = image.info.get("transparency")
        image = image.transpose(turn)
        if transparency is not None:
            image.info["transparency"] = transparency
    if largest == 65535:
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257
        return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        with_alpha = image.convert("RGBA")
        white = Image.new("RGBA", with_alpha.size, "white")
        image = Image.alpha_composite(white, with_alpha)
    return np.asarray(image.convert("RGB"))
