"""Writes findings as one page of HTML that needs nothing beside it.

    text = page(report)       # findings.html: counts, findings, and the examples themselves

Whatever comes from the data is escaped: a class may be called `<script>`.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kerastune_ft import __version__
from kerastune_ft.checks.examined import rgb
from kerastune_ft.checks.texts import visible
from kerastune_ft.data import inspection
from kerastune_ft.data.advice import ADVICE
from kerastune_ft.data.labels import LABELS
from kerastune_ft.data.tables import SPLITS, Arrays, Encoded, Files, Finding, Table
from kerastune_ft.data.texts import Texts

if TYPE_CHECKING:
    from kerastune_ft.checks.report import Report

_MOST_PICTURES = 24  # of a finding
_MOST_TEXTS = 12
_MOST_NAMES = 60
_SIDE = 160  # pixels of the longer side
_QUALITY = 75
_LETTERS = 300
_SAID_BY_CAPTIONS = frozenset(
    {"duplicates", "near_duplicates", "conflicting_labels", "leaked_copies", "leaked_near_copies"}
)
_WORDS = {"fail": "failure", "warn": "warning", "note": "note"}


@dataclass(frozen=True)
class Shown:
    """One example on the page.

    Args:
        name: Of it.
        caption: Its split and label, "" if it is no example of the table.
        picture: As the address of an `img`, or None.
        text: The beginning of it, or None.
    """

    name: str
    caption: str = ""
    picture: str | None = None
    text: str | None = None


def page(report: Report) -> str:
    """Returns the page of a report."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kerastune_ft"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    examples = _Examples(report)
    table = report.survey.table
    text = environment.get_template("findings.html").render(
        version=__version__,
        origin=f"{report.recipe.data.source} {report.recipe.data.path}",
        verdict=report.verdict,
        failed=report.failed,
        noun=table.noun,
        kept=len(table.names),
        left_out=table.found - len(table.names),
        splits=SPLITS,
        sizes=report.sizes,
        counted="words of class" if report.survey.kind == "tags" else "class",
        counts=list(_counts(report)),
        findings=[_described(found, examples) for found in report.findings],
    )
    return text.encode("utf-8", "replace").decode()  # half a character cannot be written


def _counts(report: Report) -> Iterator[dict[str, Any]]:
    """Yields a row per class: name, count by split, and its bar, 0..100 of the largest."""
    if not report.counts:
        return
    largest = max(1, *(int(counts.max(initial=0)) for counts in report.counts.values()))
    for number in report.shown_classes():
        if number is None:
            yield {"name": None}
            continue
        counts = [int(report.counts[name][number]) for name in SPLITS]
        yield {
            "name": visible(report.survey.table.class_names[number]),
            "counts": counts,
            "bar": round(100 * counts[0] / largest, 1),
        }


def _described(found: Finding, examples: _Examples) -> dict[str, Any]:
    advice = ADVICE[found.kind]
    rows = examples.shown(found)
    listed = [] if rows else list(_listed(found))
    return {
        "kind": found.kind,
        "severity": found.severity,
        "word": _WORDS[found.severity],
        "title": advice.title,
        "message": visible(found.message),
        "effect": advice.effect,
        "remedy": advice.remedy,
        "count": found.count,
        "examples": rows,
        "listed": listed,
        "more": found.count - len(rows or listed),
    }


def _listed(found: Finding) -> Iterator[tuple[str, str]]:
    """Yields name and detail of what is no example of the table: classes, columns, lost files."""
    for place, name in enumerate(found.names[:_MOST_NAMES]):
        yield visible(name), visible(found.details[place]) if found.details else ""


class _Examples:
    """Finds the examples that findings name, and makes them small enough for a page."""

    def __init__(self, report: Report) -> None:
        self.table = report.survey.table
        self.rows = {name: row for row, name in enumerate(self.table.names)}
        self.parts = report.survey.parts
        kind = report.survey.kind
        labels = report.survey.labels
        self.labels = (
            [str(label) for label in labels]
            if kind == "text"
            else LABELS[kind].texts(labels, self.table.class_names)
        )
        self.one = functools.lru_cache(maxsize=2000)(self._one)

    def shown(self, found: Finding) -> list[dict[str, Any]]:
        """Returns the first examples of a finding; [] if it is not about examples."""
        if not any(name in self.rows for name in found.names):
            return []
        most = _MOST_TEXTS if isinstance(self.table.content, Texts) else _MOST_PICTURES
        made = []
        for place, name in enumerate(found.names[:most]):
            partner = found.partners[place] if found.partners else ""
            told = not found.details or (partner and found.kind in _SAID_BY_CAPTIONS)
            made.append(
                {
                    "example": self.one(name),
                    "partner": self.one(partner) if partner in self.rows else None,
                    "detail": "" if told else visible(found.details[place]),
                }
            )
        return made

    def _one(self, name: str) -> Shown:
        row = self.rows.get(name)
        if row is None:
            return Shown(visible(name))
        label = self.labels[row]
        caption = visible(f"{self.parts[row]} · {label[:80]}")
        if isinstance(self.table.content, Texts):
            return Shown(visible(name), caption, text=_excerpt(self.table, row))
        return Shown(visible(name), caption, picture=_thumbnail(self.table, row))


def _excerpt(table: Table, row: int) -> str:
    assert isinstance(table.content, Texts)
    texts = [table.content.first[row]]
    if table.content.second is not None:
        texts.append(table.content.second[row])
    return "\n— ".join(
        visible(text[:_LETTERS]) + (" …" if len(text) > _LETTERS else "") for text in texts
    )


def _thumbnail(table: Table, row: int) -> str | None:
    """Returns a small JPEG as a `data:` address, None if the picture is not there any more."""
    try:
        pixels = _pixels(table, row)
    # Pillow's plug-ins raise anything on a damaged file; the page then shows the name alone.
    except Exception:
        return None
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE), reducing_gap=2.0)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _pixels(table: Table, row: int) -> NDArray[np.uint8]:
    content = table.content
    if isinstance(content, Arrays):
        return rgb(content.values[row])
    assert isinstance(content, Files | Encoded)
    if isinstance(content, Files):
        data = Path(content.paths[row]).read_bytes()
    else:
        data = content.data[row]
    channels = inspection.stored_channels(data)
    return rgb(inspection.decode(data, 3 if channels is None else channels))
