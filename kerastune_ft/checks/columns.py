"""Looks at the columns of a table as it was written, those that training does not read too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kerastune_ft.checks.examined import Examined
from kerastune_ft.data import cleaning, table_files
from kerastune_ft.data.tables import SPLITS, Finding, finding, label_columns, printable, split_named
from kerastune_ft.recipe_text import ENDINGS

_TABLES = ("csv", "jsonl", "parquet", "image_csv")
_WORDS = ("null", "none", "n/a", "#n/a", "na", "-", "?")
"""What people write into a cell for nothing; training reads it as a value."""


def missing_values(examined: Examined) -> Iterator[Finding]:
    """Finds columns with cells that have no value, or a word for none."""
    if examined.recipe.data.source not in _TABLES:
        return
    rows = 0
    empty: Counter[str] = Counter()
    words: dict[str, Counter[str]] = {}
    present: Counter[str] = Counter()
    for cells in _records(examined):
        rows += 1
        for column, value in cells.items():
            present[column] += 1
            if cleaning.is_missing(value) or (isinstance(value, list | dict) and not value):
                empty[column] += 1
            elif isinstance(value, str) and value.strip().lower() in _WORDS:
                words.setdefault(column, Counter())[value.strip()] += 1
    read = _read(examined)
    for wanted, severity in ((True, "warn"), (False, "note")):
        found = []
        for column in present:
            lacking = empty[column] + rows - present[column]  # of JSON, a key that is not there
            if (column in read) != wanted or not (lacking or column in words):
                continue
            said = [f"{lacking:,} of {rows:,} empty ({lacking / rows:.1%})"] if lacking else []
            said += [f"{n:,} times '{w}'" for w, n in words.get(column, Counter()).most_common(3)]
            found.append((printable(str(column)), ", ".join(said)))
        if found:
            use = "that are read" if wanted else "that are not read"
            yield finding(
                "missing_values",
                "warn" if severity == "warn" else "note",
                f"columns {use} with cells without a value",
                [column for column, _ in found],
                details=[said for _, said in found],
            )


def _read(examined: Examined) -> set[str]:
    """Returns the columns that the recipe reads."""
    data = examined.recipe.data
    columns = {*label_columns(data), data.group_column, data.time_column}
    pictures = data.source == "image_csv"
    columns |= {data.image_column} if pictures else {data.text_column, data.pair_column}
    return {column for column in columns if column}


def _records(examined: Examined) -> Iterator[Mapping[str, Any]]:
    data = examined.recipe.data
    root = Path(data.path).expanduser()
    source = "csv" if data.source == "image_csv" else data.source
    paths = [root]
    if root.is_dir():
        endings = [ending for ending, meant in ENDINGS.items() if meant == source]
        named = (p for p in sorted(root.iterdir()) if split_named(p.stem) in SPLITS)
        paths = [path for path in named if path.suffix.lower() in endings]
    encoding = "utf-8" if data.source == "image_csv" else data.encoding
    for path in paths:
        yield from table_files.READERS[source](path, encoding)
