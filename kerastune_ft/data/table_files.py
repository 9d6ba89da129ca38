"""Reads tables from files, row by row: CSV, JSON lines, Parquet.

    for cells in records(Path("reviews.csv"), "utf-8"):
        cells["text"], cells["label"]

A row with more fields than the header names is an error, with its line: the rest of an unquoted
text must not become the label. Of files separated by tabs, a lone quotation mark is a quotation
mark. What UTF-8 cannot hold is replaced by `mended`.
"""

from __future__ import annotations

import csv
import io
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerastune_ft.errors import DataError
from kerastune_ft.recipe_text import ENDINGS

if TYPE_CHECKING:
    import pandas as pd

Cells = Mapping[str, Any]

_TABS = (".tsv", ".tab")
# A field of a file with tabs: quoted over several lines, quoted around tabs, or not quoted. Over
# both it is none: two lone marks would swallow the rows between them.
_FIELD = re.compile(
    r'(?:"[^"\t]*(?:""[^"\t]*)*"|"[^"\n]*(?:""[^"\n]*)*"|[^"\t\r\n]*)(?:\t|\r?\n|\r|\Z)'
)


class NoTextError(DataError):
    """Says that a file cannot be read, or that its bytes are no text in the encoding.

    Args:
        message: As of any `DataError`.
        kind: Of the finding about such a file: `unreadable` or `not_text`.
    """

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


def records(path: Path, encoding: str) -> Iterator[Cells]:
    """Yields the rows of a table by column; a file with another ending is read as CSV.

    Raises:
        DataError: If it is no such table.
    """
    yield from READERS[ENDINGS.get(path.suffix.lower(), "csv")](path, encoding)


def decoded(content: bytes, encoding: str, path: Path) -> str:
    """Returns the text of a file's bytes.

    Raises:
        NoTextError: If they are no such text.
        DataError: If the encoding is unknown.
    """
    try:
        text = content.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise NoTextError(
            f"{path}:{line}: byte {error.start} is no {encoding} text; save the file as UTF-8, or "
            "say how it is written with data.encoding, such as data.encoding=latin-1.",
            "not_text",
        ) from error
    except LookupError as error:
        raise DataError(
            f"data.encoding: '{encoding}' is unknown; expected a name such as utf-8, latin-1 or "
            "cp1252."
        ) from error
    if "\0" in text[:10_000]:
        message = f"{path}: holds zero bytes and is no {encoding} text; save it as UTF-8."
        raise NoTextError(message, "not_text")
    return text


def read(path: Path) -> bytes:
    """Returns a file's bytes.

    Raises:
        NoTextError: If it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise NoTextError(f"{path}: cannot be read: {error.strerror}.", "unreadable") from error


def mended(value: Any) -> Any:
    """Returns a cell without lone surrogates, which no file can hold: U+FFFD stands for each."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return value
    if isinstance(value, list | tuple):
        return [mended(item) for item in value]
    return value


def frame(text: str, path: Path, what: str = "table") -> pd.DataFrame:
    """Returns the table of a CSV file's text, every cell text, a missing one "".

    Args:
        text: Of the file.
        path: Where it was; `.tsv` and `.tab` are separated by tabs.
        what: The file is to be, for messages.

    Raises:
        DataError: If it is empty or no such table.
    """
    import pandas as pd

    separator = separator_of(path)
    plain = separator == "\t" and not _quotes_are_csv(text)
    try:
        with warnings.catch_warnings():
            # Without an index, pandas cuts rows that are longer than the header, and warns.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(
                io.StringIO(text),
                dtype=str,
                keep_default_na=False,
                sep=separator,
                index_col=False,
                quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL,
            )
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{path}: is empty; expected a header line and rows.") from error
    except (pd.errors.ParserError, pd.errors.ParserWarning, ValueError) as error:
        line, reason = _longer_row(text, separator, plain) or ("", str(error).strip())
        raise DataError(f"{path}{line}: is no readable {what}: {reason}.") from error


def separator_of(path: Path) -> str:
    """Returns what separates the columns of a CSV file."""
    return "\t" if path.suffix.lower() in _TABS else ","


def _quotes_are_csv(text: str) -> bool:
    """Whether quotation marks stand around whole fields alone, and doubled within them."""
    place = 0 if '"' in text else len(text)
    while place < len(text):
        field = _FIELD.match(text, place)
        if field is None:
            return False
        place = field.end()
    return True


def _longer_row(text: str, separator: str, plain: bool) -> tuple[str, str] | None:
    """Returns the line of the first row that is longer than the header, and what to do."""
    lines = io.StringIO(text, newline="")
    rows = csv.reader(
        lines, delimiter=separator, quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL
    )
    try:
        columns = len(next(rows))
        fields = next((len(row) for row in rows if len(row) > columns), None)
    except (csv.Error, StopIteration):  # a field of more than 128 KiB, for one
        return None
    if fields is None:
        return None
    name = "tab" if separator == "\t" else "comma"
    remedy = "leave it out of the text" if plain else 'put it in quotes, "like, this"'
    return (
        f":{rows.line_num}",
        f"{fields} fields under a header of {columns}; where a text holds a {name}, {remedy}",
    )


def _csv_rows(path: Path, encoding: str) -> Iterator[Cells]:
    separator = separator_of(path)
    table = frame(decoded(read(path), encoding, path), path)
    only = str(table.columns[0]) if len(table.columns) == 1 else ""
    for other, name in ((";", "semicolons"), ("\t", "tabs")):
        if other in only and separator not in only:
            raise DataError(f"{path}: seems to be separated by {name}; save it with commas.")
    for cells in table.to_dict("records"):
        yield {str(column): value for column, value in cells.items()}


def _json_rows(path: Path, encoding: str) -> Iterator[Cells]:
    for number, line in enumerate(decoded(read(path), encoding, path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}:{number}: is no JSON ({error}); expected one object a line."
            ) from error
        if not isinstance(cells, dict):
            raise DataError(
                f"{path}:{number}: expected a JSON object a line, such as "
                '{"text": "...", "label": "..."}, got ' + type(cells).__name__ + "."
            )
        yield cells


def _parquet_rows(path: Path, encoding: str) -> Iterator[Cells]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is no readable Parquet file: {error}.") from error
    yield from rows


READERS: dict[str, Callable[[Path, str], Iterator[Cells]]] = {
    "csv": _csv_rows,
    "jsonl": _json_rows,
    "parquet": _parquet_rows,
}
