"""Writes predictions as they come, and goes on where a call that was killed left off.

    with PredictionFile(Path("all.csv"), identity="sha256 of the model") as file:
        for row in predict(run, paths, known=file.known):
            file.add(row)

Rows lie in `.all.csv.partial`, a line of JSON each, until all are there; only then `all.csv`
appears. A later call with the same identity finds them. `.csv`, `.jsonl` and `.parquet` are
written; a column is there if any row has it.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO, TypeAlias

from kerastune_ft import files
from kerastune_ft.errors import KftError

ENDINGS = (".csv", ".jsonl", ".parquet")
Rows: TypeAlias = Callable[[], Iterator[dict[str, Any]]]

_GROUP = 10_000
_FLUSHED = 100


class PredictionFile:
    """A file of predictions that is being written.

    Args:
        path: Ends in one of `ENDINGS`.
        identity: What the rows depend on besides the examples; other rows are thrown away.

    Attributes:
        known: Names of the examples that are there already: `name_of` of their rows.
        failed: Names of those that could not be predicted.
        count: Of rows.
        columns: In the order in which they were met.
    """

    def __init__(self, path: Path, identity: str) -> None:
        if path.suffix not in ENDINGS:
            *most, last = ENDINGS
            raise KftError(f"--output: expected a {', '.join(most)} or {last} file, got '{path}'.")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise KftError(f"--output: nothing can be written in a folder '{path.parent}'.")
        self.path, self.identity = path, identity
        self.partial = path.with_name(f".{path.name}.partial")
        self.known: set[str] = set()
        self.failed: list[str] = []
        self.columns: dict[str, None] = {}
        self.count = 0
        self._file: TextIO | None = None

    @property
    def good(self) -> int:
        """How many examples were predicted."""
        return self.count - len(self.failed)

    def __enter__(self) -> PredictionFile:
        end = self._take_up()
        self._file = self.partial.open("r+" if end else "w", encoding="utf-8")
        self._file.seek(end)
        self._file.truncate()
        if not end:
            self._file.write(json.dumps({"identity": self.identity}) + "\n")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._file is not None
        self._file.close()
        if error is None:
            self._finish()
        elif not self.count:
            self.partial.unlink()

    def add(self, row: Mapping[str, Any]) -> None:
        """Writes a row."""
        assert self._file is not None
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._note(row)
        if self.count % _FLUSHED == 0:
            self._file.flush()

    def _note(self, row: Mapping[str, Any]) -> None:
        name = name_of(row)
        self.count += 1
        self.known.add(name)
        self.columns.update(dict.fromkeys(row))
        if row["error"] is not None:
            self.failed.append(name)

    def _take_up(self) -> int:
        """Reads what a call that was killed left; returns where its last whole line ends."""
        end = 0
        try:
            with self.partial.open("rb") as file:
                for number, line in enumerate(file):
                    content = json.loads(line)
                    if number == 0:
                        if content != {"identity": self.identity}:
                            return 0
                    elif line.endswith(b"\n"):
                        self._note(content)
                    else:
                        break
                    end += len(line)
        except FileNotFoundError:
            return 0
        except (ValueError, KeyError, TypeError):  # cut off, or nothing of ours
            pass
        return end

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields every row that was written."""
        with self.partial.open(encoding="utf-8") as file:
            next(file)
            for line in file:
                row = json.loads(line)
                yield {name: row.get(name) for name in self.columns}

    def _finish(self) -> None:
        with files.replacing(self.path) as temporary:
            {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[self.path.suffix](
                temporary, self.rows, list(self.columns)
            )
        self.partial.unlink()


def name_of(row: Mapping[str, Any]) -> str:
    """Returns what a row is about: its file, or the row of a table."""
    return str(row["path"] if "path" in row else row["row"])


def _csv(path: Path, rows: Rows, columns: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows())


def _jsonl(path: Path, rows: Rows, columns: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())


def _parquet(path: Path, rows: Rows, columns: list[str]) -> None:
    """Writes groups of rows; the kind of a column is that of all its values."""
    import pyarrow as pa
    from pyarrow import parquet

    kinds: dict[str, set[type]] = {name: set() for name in columns}
    for row in rows():
        for name, value in row.items():
            kinds[name].add(type(value))
    schema = pa.schema([(name, _kind(pa, found)) for name, found in kinds.items()])
    with parquet.ParquetWriter(path, schema) as writer:
        every = rows()
        while group := list(itertools.islice(every, _GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))


def _kind(pa: Any, found: set[type]) -> Any:
    """Returns the kind of a column with values of such types."""
    found = found - {type(None)}
    if found == {bool}:
        return pa.bool_()
    if found == {int}:
        return pa.int64()
    return pa.float64() if found and found <= {int, float} else pa.string()
