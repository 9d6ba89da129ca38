"""Looks at pictures: what they show, how they are stored, and what gives their class away.

All is judged by what was measured when they were read (`data.looks`); none is read again.
Measured on 8,875 photographs (clothing10, flowers5, weather4_messy): 12 of them are called
blurred, most of them of fog and clear sky; of the same, blurred by 2 of 96 pixels, 99 in 100 are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from kerastune_ft.checks.examined import Examined
from kerastune_ft.checks.figures import chi_square, robust_scale, separations
from kerastune_ft.data.looks import BLANK, Looks
from kerastune_ft.data.tables import Encoded, Files, Finding, Severity, finding

_DARKEST, _BRIGHTEST = 40.0, 215.0  # luma that nearly all of a picture is below, or above
_NEARLY_ALL = 0.98
_BLURRED = 20.0  # sharpness
_DOUBTFUL = 50.0  # sharpness that is a blur only where all others are far sharper
_FAR = 4.5  # robust standard deviations of the logarithm of sharpness
_SMALLEST = 32  # pixels of the longer side, below which a picture has no sharpness to judge
_LONGEST = 3.0  # longer side / shorter side
_SPREAD, _FACTOR = 3.0, 2.0
_GREY = 2.0  # colour, of 0..255
_CHANCE, _TOGETHER = 0.001, 0.3  # Cramer's V
_TELLS = 0.95  # area under the ROC curve
_USUAL = ("RGB", "L", "1", "uint8", "uint16", "float32", "float64")


def contents(examined: Examined) -> Iterator[Finding]:
    """Finds pictures that are of one colour, very dark, very bright or blurred."""
    looks = examined.looks
    if looks is None or not len(looks):
        return
    luma = looks.thumbnail.reshape(len(looks), -1)
    low, high = np.quantile(luma, (1 - _NEARLY_ALL, _NEARLY_ALL), axis=1)
    blank = looks.contrast < BLANK
    dark = ~blank & (high < _DARKEST)
    bright = ~blank & (low > _BRIGHTEST)
    blurred = ~blank & ~dark & ~bright & (looks.sharpness < sharpness_limit(looks))
    blurred &= np.maximum(looks.width, looks.height) >= _SMALLEST
    shades = [f"mean brightness {value:.0f} of 255" for value in looks.brightness]
    sharp = f"; the median of all is {np.median(looks.sharpness):.0f}"
    edges = [f"sharpness {value:.0f}{sharp}" for value in looks.sharpness]
    yield from _at(examined, "blank", "warn", "pictures of one colour", blank, shades)
    yield from _at(examined, "dark", "warn", "very dark pictures", dark, shades)
    yield from _at(examined, "bright", "warn", "very bright pictures", bright, shades)
    yield from _at(examined, "blurred", "warn", "blurred pictures", blurred, edges)


def sharpness_limit(looks: Looks) -> float:
    """Returns the sharpness below which a picture of this set is blurred."""
    logarithms = np.log(np.maximum(looks.sharpness.astype(np.float64), 1.0))
    middle, scale = robust_scale(logarithms)
    return float(np.clip(np.exp(middle - _FAR * scale), _BLURRED, _DOUBTFUL))


def storage(examined: Examined) -> Iterator[Finding]:
    """Finds pictures that are stored in unusual colours, or lying."""
    looks, content = examined.looks, examined.table.content
    if looks is None:
        return
    odd = ~np.isin(looks.mode, _USUAL)
    message = "pictures stored otherwise than in RGB or grey"
    yield from _at(examined, "odd_mode", "note", message, odd, [f"{mode}" for mode in looks.mode])
    if isinstance(content, Files | Encoded):
        turned = content.orientations > 1
        how = [f"EXIF orientation {value}" for value in content.orientations]
        yield from _at(examined, "turned", "note", "pictures that EXIF turns", turned, how)


def shapes(examined: Examined) -> Iterator[Finding]:
    """Finds pictures of odd proportions, of very different sizes, or of too few pixels."""
    looks = examined.looks
    if looks is None or not len(looks):
        return
    sizes = [f"{w} x {h} pixels" for w, h in zip(looks.width, looks.height, strict=True)]
    longer, shorter = np.maximum(looks.width, looks.height), np.minimum(looks.width, looks.height)
    odd = longer > _LONGEST * shorter
    message = f"pictures more than {_LONGEST:g} times as long as wide, or as wide as long"
    yield from _at(examined, "odd_shape", "warn", message, odd, sizes)
    middle = np.median(longer)
    if longer.max() >= _SPREAD * longer.min():
        far = (longer * _FACTOR < middle) | (longer > _FACTOR * middle)
        message = f"pictures less than half or more than twice as large as most, {middle:g} pixels"
        yield from _at(examined, "mixed_sizes", "note", message, far, sizes)
    height, width = examined.recipe.backbone.side
    small = (2 * looks.height < height) & (2 * looks.width < width)
    message = f"pictures of less than half the network's {height} x {width} pixels"
    severity: Severity = "warn" if small.mean() > 0.5 else "note"
    yield from _at(examined, "small_pictures", severity, message, small, sizes)


def colours(examined: Examined) -> Iterator[Finding]:
    """Finds grey pictures among coloured ones; worse if that goes with their class."""
    looks = examined.looks
    if looks is None:
        return
    grey = looks.colour < _GREY
    if not 0 < grey.mean() <= 0.5:
        return
    severity: Severity = "note"
    message = "grey pictures among coloured ones"
    if examined.kind == "class":
        counts = [
            np.bincount(examined.labels[m], minlength=len(examined.class_names))
            for m in (grey, ~grey)
        ]
        chance, effect = chi_square(np.stack(counts))
        if chance < _CHANCE and effect >= _TOGETHER:
            severity = "warn"
            most = examined.class_names[int((counts[0] / np.maximum(1, counts[1])).argmax())]
            message += f", which goes with their class (Cramer's V {effect:.2f}; most '{most}')"
    labels = [examined.place(row) for row in range(len(looks))]
    yield from _at(examined, "grey_among_colour", severity, message, grey, labels)


def giveaways(examined: Examined) -> Iterator[Finding]:
    """Finds classes that one figure of a picture tells from all others."""
    looks = examined.looks
    if looks is None or examined.kind != "class":
        return
    height, width = looks.height.astype(np.float64), looks.width.astype(np.float64)
    figures: dict[str, NDArray[np.floating]] = {
        "brightness": looks.brightness,
        "contrast": looks.contrast,
        "sharpness": looks.sharpness,
        "colour": looks.colour,
        "number of pixels": height * width,
        "proportions": width / height,
        "size of the file": looks.size.astype(np.float64),
    }
    names, details = [], []
    for what, values in figures.items():
        for number, area in separations(values, examined.labels, len(examined.class_names)):
            if area >= _TELLS:
                own = examined.labels == number
                names.append(examined.class_names[number])
                details.append(
                    f"{what}: median {np.median(values[own]):.4g}, of others "
                    f"{np.median(values[~own]):.4g}; tells it in {area:.0%} of pairs"
                )
    if names:
        message = "classes that a single figure of the picture tells from the others"
        yield finding("looks_give_away", "warn", message, names, details=details)


def _at(
    examined: Examined,
    kind: str,
    severity: Severity,
    message: str,
    chosen: NDArray[np.bool_],
    details: Sequence[str],
) -> Iterator[Finding]:
    """Yields a finding of the chosen rows, if there are any."""
    rows: list[int] = np.flatnonzero(chosen).tolist()
    if rows:
        names = [examined.table.names[row] for row in rows]
        yield finding(kind, severity, message, names, details=[details[row] for row in rows])
