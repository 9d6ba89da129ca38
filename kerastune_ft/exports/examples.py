"""What an export is tried on: odd pictures and texts of our own, and examples of a run's data.

odd_pictures()["turned.jpg"]            # bytes
examples = of_run(run, recipe, 200)     # as users would send them, with what training reads
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kerastune_ft import predictions
from kerastune_ft.data import Split
from kerastune_ft.data.tables import Arrays, Encoded, Files
from kerastune_ft.data.texts import Texts

if TYPE_CHECKING:
    from kerastune_ft.recipe import Recipe
    from kerastune_ft.runs import Run

_ORIENTATION = 0x0112

ODD_TEXTS = (
    "A good film, and a bad one!",
    "",
    "   \t two  spaces,\nand a line ",
    "Ça coûte 3 €: déjà-vu, naïve, Straße, İstanbul",
    "漢字とかな 한국어 кириллица עברית العربية",
    "👍🏽 emoji 👩‍👩‍👧 and ﬁ ligatures ½ ™",
    "don't can't e-mail: a.b@c.org https://x.org/?q=1&r=2",
    "zero\u200bwidth soft\u00adhyphen non\u00a0breaking",
    "UPPER lower MiXeD 1,234.56 -7 +8 #tag @name $$$ ~~~",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "word " * 700,
    "x" * 150,
)


@dataclass(frozen=True)
class Examples:
    """Examples as they are sent to a server, and as a run reads them.

    Args:
        split: What training reads.
        raw: Of each example the bytes of a picture file, a text, or a pair of texts; None where
            there is no such form: arrays with other channels.
    """

    split: Split
    raw: tuple[bytes | tuple[str, ...] | None, ...]

    def digests(self) -> list[str]:
        """Returns the sha256 of each example as it is sent."""
        return [digest(raw) for raw in self.raw]


def digest(raw: bytes | Sequence[str] | None) -> str:
    """Returns the sha256 of what is sent."""
    if raw is None:
        return ""
    if not isinstance(raw, bytes):
        raw = "\0".join(raw).encode("utf-8", "surrogatepass")
    return hashlib.sha256(raw).hexdigest()


def of_run(run: Run, recipe: Recipe, count: int) -> Examples:
    """Returns examples of a run's test split, or of what else it kept back, spread evenly.

    Args:
        run: A finished run.
        recipe: Its own.
        count: How many at most.

    Raises:
        DataError: If the data are gone, or have changed since.
    """
    split = predictions.own_split(run, recipe)
    rows = np.unique(np.linspace(0, len(split) - 1, min(count, len(split))).astype(np.int64))
    part = replace(
        split,
        names=tuple(split.names[row] for row in rows),
        labels=[split.labels[row] for row in rows]
        if isinstance(split.labels, list)
        else split.labels[rows],
        content=split.content.take(rows),
    )
    return Examples(part, tuple(_raw(part.content)))


def _raw(content: Any) -> list[bytes | tuple[str, ...] | None]:
    if isinstance(content, Texts):
        columns = [content.first, *([content.second] if content.second is not None else [])]
        return list(zip(*columns, strict=True))
    if isinstance(content, Files):
        return [Path(path).read_bytes() for path in content.paths]
    if isinstance(content, Encoded):
        return list(content.data)
    assert isinstance(content, Arrays), type(content)
    return [_png(pixels) for pixels in content.values]


def _png(pixels: NDArray[Any]) -> bytes | None:
    """Returns pixels as a file without loss; None if there is no such picture."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim == 3 and (pixels.shape[2] != 3 or pixels.dtype != np.uint8):
        return None
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def odd_pictures() -> dict[str, bytes]:
    """Returns picture files of every kind that is served, by name; always the same."""
    colours = _drawn(96, 128)
    alpha = np.dstack([colours, _drawn(96, 128)[..., 2]])
    grey = colours[..., 0].astype(np.uint16) * 257 + 100
    see_through = Image.fromarray(colours).quantize(16)
    made = {
        "plain.jpg": _file(colours, "JPEG", quality=92),
        "progressive.jpg": _file(colours, "JPEG", progressive=True),
        "grey.jpg": _file(colours[..., 0], "JPEG"),
        "large.jpg": _file(_drawn(700, 1100), "JPEG", quality=70),
        "plain.png": _file(colours, "PNG"),
        "alpha.png": _file(alpha, "PNG"),
        "grey_alpha.png": _file(alpha[..., 2:], "PNG"),
        "deep.png": _file(grey, "PNG"),
        "palette.png": _saved(see_through, "PNG"),
        "clear_palette.png": _saved(see_through, "PNG", transparency=3),
        "plain.bmp": _file(colours, "BMP"),
        "lossy.webp": _file(colours, "WEBP", quality=90),
        "lossless.webp": _file(colours, "WEBP", lossless=True),
    }
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[_ORIENTATION] = orientation
        made[f"turned_{orientation}.jpg"] = _file(colours, "JPEG", exif=exif.tobytes())
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    made["turned.png"] = _file(colours, "PNG", exif=exif.tobytes())
    made["turned.webp"] = _file(colours, "WEBP", exif=exif.tobytes())
    return made


def odd_arrays(channels: int) -> dict[str, bytes]:
    """Returns `.npy` files of pictures with so many channels, by name; always the same."""
    made = {}
    for name, height, width in (
        ("plain.npy", 96, 128),
        ("small.npy", 20, 30),
        ("tall.npy", 300, 70),
    ):
        layers = [_drawn(height + at, width)[at : at + height, :, at % 3] for at in range(channels)]
        file = io.BytesIO()
        np.save(file, np.stack(layers, axis=-1))
        made[name] = file.getvalue()
    return made


def _drawn(height: int, width: int) -> NDArray[np.uint8]:
    """Returns a picture with edges, slopes and fine patterns, `uint8 (height, width, 3)`."""
    y, x = np.mgrid[0:height, 0:width]
    disc = (x - 0.3 * width) ** 2 + (y - 0.4 * height) ** 2 < (0.25 * height) ** 2
    red = np.where(disc, 220, 255 * x / width)
    green = 255 * y / height * (1 - 0.4 * disc)
    blue = 127 + 120 * np.sin(x / 3) * np.cos(y / 5)
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def _file(pixels: NDArray[Any], format: str, **options: Any) -> bytes:
    return _saved(Image.fromarray(pixels), format, **options)


def _saved(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()
