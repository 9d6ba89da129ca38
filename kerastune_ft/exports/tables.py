"""The table of the files that were written of a run: `export/formats.json`.

    add(base, [row_of(path, contract, report)])     # in place of the row of the same file
    console.print(shown(read(base)))

Size, latency and score are measured where the export was made, in a fresh process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.table import Table

from kerastune_ft import files
from kerastune_ft.errors import ExportError
from kerastune_ft.exports.contract import Contract
from kerastune_ft.tasks import TASKS

NAME = "formats.json"

_KEY = ("format", "quantize", "version")
_LOCK = ".formats.lock"


def folder_of(target: str, quantize: str) -> str:
    """Returns where versions of a format lie, below the folder of versions; "" is that itself."""
    if target == "saved_model":
        return ""
    return target if quantize == "none" else f"{target}-{quantize}"


def row_of(path: Path, contract: Contract, report: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the table says of a file.

    Args:
        path: Of the version.
        contract: Of the version.
        report: What was found when it was compared: the fields of `verification.Verified`.
    """
    assert contract.file is not None
    found = dict(report["row"])
    return {
        "format": contract.file.format,
        "quantize": contract.file.quantize,
        "version": contract.version,
        "file": f"{path.parent.name}/{path.name}/{contract.file.name}",
        "headline": TASKS[contract.task].headline,
        **{key: value for key, value in found.items() if key not in _KEY},
        "created": contract.created,
    }


def read(base: Path) -> list[dict[str, Any]]:
    """Returns the rows of a folder of versions; [] if there is no table.

    Raises:
        ExportError: If it is damaged.
    """
    path = base / NAME
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["formats"]
        for row in rows:
            [row[key] for key in _KEY]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"'{path}' is damaged: {error}; remove it, and export again.") from error
    return list(rows)


def add(base: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds rows to the table, each in place of one of the same format and version."""
    with FileLock(base / _LOCK, timeout=60):
        new = {tuple(row[key] for key in _KEY): row for row in rows}
        kept = [row for row in read(base) if tuple(row[key] for key in _KEY) not in new]
        content = {"formats": [*kept, *new.values()]}
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        files.write_text(base / NAME, text + "\n")
        # While it is held: whoever waits for this file sees that it is gone, and makes another.
        (base / _LOCK).unlink(missing_ok=True)


def shown(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Returns rows of one task as they are printed."""
    headline = rows[0]["headline"]
    table = Table(box=None, pad_edge=False)
    titles = ("MiB", "ms for 1", "ms for 8", "agreement", headline, "of the run")
    for title in ("file", *titles):
        table.add_column(title, justify="left" if title == "file" else "right")
    for row in rows:
        figures = (row["agreement"], row[headline], row[f"float_{headline}"])
        table.add_row(
            row["file"],
            f"{row['size_mib']:.2f}",
            f"{row['latency_ms_1']:.2f}",
            f"{row['latency_ms_8']:.2f}",
            *("-" if figure is None else f"{figure:.4f}" for figure in figures),
        )
    return table
