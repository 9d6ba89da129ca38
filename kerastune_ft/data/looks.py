"""What pictures look like, measured once on a small version of each while it is inspected.

    look = look_of(pixels, digest=b"...", size=48_211, width=640, height=480, mode="RGB")
    looks = Looks.joined([look, ...])          # columns, for a whole table

Two files with one digest are the same file. Two whose perceptual hashes differ in a few bits, and
whose thumbnails agree, are one picture that was saved twice: at another size, quality or format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 96
"""Longer side, in pixels, of the version that sharpness is measured on."""

BLANK = 2.0
"""Contrast below which a picture is of one colour."""

THUMBNAIL = 16
_HASH_SIDE = 32
DIGEST = 16
BLANK = 2.0
"""Contrast below which a picture is of one colour."""


@dataclass(frozen=True)
class Look:
    """One picture.

    Args:
        digest: The first 16 bytes of the sha256 of the file.
        size: Of the file, in bytes.
        width: In pixels, upright.
        height: In pixels, upright.
        mode: Pillow's word for how pixels are stored, such as `RGB`, `CMYK` or `I;16`.
        brightness: Mean luma, 0..255.
        contrast: Standard deviation of the luma, 0..127.5.
        sharpness: Variance of the Laplacian of the luma at `SIDE` pixels; below about 50 a
            photograph is blurred.
        colour: Mean difference between the largest and the smallest of red, green and blue, 0..255;
            0 of grey pictures.
        phash: Perceptual hash of 64 bits.
        thumbnail: Luma at 16 x 16, row by row, 256 bytes.
    """

    digest: bytes
    size: int
    width: int
    height: int
    mode: str
    brightness: float
    contrast: float
    sharpness: float
    colour: float
    phash: int
    thumbnail: bytes


@dataclass(frozen=True)
class Looks:
    """Those of many pictures, a column each, `(n,)`; `thumbnail` is `uint8 (n, 16, 16)`."""

    digest: NDArray[np.bytes_]
    size: NDArray[np.int64]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    mode: NDArray[np.str_]
    brightness: NDArray[np.float32]
    contrast: NDArray[np.float32]
    sharpness: NDArray[np.float32]
    colour: NDArray[np.float32]
    phash: NDArray[np.uint64]
    thumbnail: NDArray[np.uint8]

    @classmethod
    def joined(cls, looks: Sequence[Look]) -> Looks:
        """Returns the columns of looks given one by one."""
        types: dict[str, Any] = {
            # Not "S16", which would lose zero bytes at the end.
            "digest": np.dtype((np.void, DIGEST)),
            "size": np.int64,
            "width": np.int32,
            "height": np.int32,
            "mode": np.str_,
            "brightness": np.float32,
            "contrast": np.float32,
            "sharpness": np.float32,
            "colour": np.float32,
            "phash": np.uint64,
        }
        columns = {
            name: np.array([getattr(look, name) for look in looks], dtype)
            for name, dtype in types.items()
        }
        thumbnails = np.frombuffer(b"".join(look.thumbnail for look in looks), np.uint8)
        return cls(**columns, thumbnail=thumbnails.reshape(-1, THUMBNAIL, THUMBNAIL))

    def __len__(self) -> int:
        return len(self.size)

    def take(self, rows: NDArray[np.int64]) -> Looks:
        """Returns the looks of some rows, in their order."""
        return Looks(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def look_of(
    pixels: NDArray[np.uint8],
    *,
    digest: bytes,
    size: int,
    width: int,
    height: int,
    mode: str,
) -> Look:
    """Measures a picture.

    Args:
        pixels: `uint8 (height, width, 3)`, upright; best no smaller than `SIDE` on its longer
            side, unless the picture itself is.
        digest: See `Look`, as all that follows.
        size: Of the file.
        width: Of the picture itself.
        height: Of the picture itself.
        mode: Of the picture itself.
    """
    image = Image.fromarray(pixels)
    longer = max(image.size)
    if longer > SIDE:
        shape = (max(1, image.width * SIDE // longer), max(1, image.height * SIDE // longer))
        image = image.resize(shape, Image.Resampling.BILINEAR, reducing_gap=2.0)
    luma = image.convert("L")
    values = np.asarray(luma, np.float32)
    small = np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)).astype(np.int16)
    thumbnail = luma.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return Look(
        digest=digest,
        size=size,
        width=width,
        height=height,
        mode=mode,
        brightness=float(values.mean()),
        contrast=float(values.std()),
        sharpness=_sharpness(values),
        colour=float((small.max(axis=2) - small.min(axis=2)).mean()),
        phash=perceptual_hash(luma),
        thumbnail=thumbnail.tobytes(),
    )


def perceptual_hash(luma: Image.Image) -> int:
    """Returns imagehash's perceptual hash of a picture of mode `L`, as a number of 64 bits.

    Reference:
        Zauner 2010, Implementation and benchmarking of perceptual image hash functions.
    """
    import imagehash

    bits = imagehash.phash(luma).hash.reshape(-1)
    return int(np.packbits(bits).view(">u8")[0])


def _sharpness(luma: NDArray[np.float32]) -> float:
    if min(luma.shape) < 3:
        return 0.0
    inner = luma[1:-1, 1:-1]
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * inner
    return float(laplacian.var())
