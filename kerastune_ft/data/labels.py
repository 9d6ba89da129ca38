"""What a label is: a class, several, numbers, a text, a tag a word. A kind is a row of `LABELS`.

    kind = LABELS["classes"]
    label = kind.read(("dog; cat",), ("label",), ";")          # ("dog", "cat")
    rows = kind.encode([label, ()], ("cat", "dog"))            # float32 (2, 2): [[1, 1], [0, 0]]
    kind.texts(rows, ("cat", "dog"))                           # ["cat; dog", ""]

A label that is missing is left out and counted; one that cannot be meant so, such as `3,5` for a
number, is an error: a whole column is written like it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Kind = Literal["class", "classes", "numbers", "text", "tags"]
Label: TypeAlias = str | tuple[str, ...] | tuple[float, ...]
Labels: TypeAlias = NDArray[Any]

JOINT = "; "
"""Between the names or numbers of one picture, in the files of a run."""
_MISSING = ("", "nan")
_MARKS = {"0": False, "1": True, "false": False, "true": True, "no": False, "yes": True}
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_INFINITE = re.compile(r"[+-]?inf(inity)?")
_MOST_BINS = 10
_BIN_SIZE = 10  # examples of a bin of numbers, at least: smaller ones have no share to keep


class UnusableLabelError(Exception):
    """Says that an example has no label to learn from: it is left out and counted.

    Args:
        kind: Of the finding.
        message: What such rows are, in the plural.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class MisreadLabelError(Exception):
    """Says that a column is written in another way than expected.

    Args:
        column: Its name.
        message: What is wrong and what would be right.
    """

    def __init__(self, column: str, message: str) -> None:
        super().__init__(message)
        self.column = column
        self.message = message


@dataclass(frozen=True)
class LabelKind:
    """How labels of one kind are read, encoded, written and divided.

    Args:
        name: A key of `LABELS`.
        read: Makes a label of the cells of a row: `(cells, columns, separator)`, the separator
            None where each column is a class of its own. Raises `UnusableLabelError` and
            `MisreadLabelError`.
        names: What is learned as far as the columns say, `(columns, separator)`, or None.
        classes: The classes that a label names.
        encode: Makes an array of labels, given the names in their order; see `LABELS`.
        texts: Makes what `splits.csv` and predictions say of encoded labels.
        strata: Makes of encoded labels what `splitting.split` keeps the shares of.
    """

    name: Kind
    read: Callable[[Sequence[str], Sequence[str], str | None], Label]
    names: Callable[[Sequence[str], str | None], tuple[str, ...] | None]
    classes: Callable[[Label], tuple[str, ...]]
    encode: Callable[[Sequence[Label], Sequence[str]], Labels]
    texts: Callable[[Labels, Sequence[str]], list[str]]
    strata: Callable[[Labels], Labels]


@dataclass(frozen=True)
class Target:
    """A number that is learned, as the training split has it; all in the number's own units.

    Args:
        mean: Of the training examples.
        std: Their standard deviation (of the population), above 0.
        min: The smallest.
        max: The largest.
    """

    mean: float
    std: float
    min: float
    max: float

    def record(self) -> dict[str, float]:
        """Returns it as plain data for `data.json`."""
        return asdict(self)


def targets(labels: Labels) -> tuple[Target, ...]:
    """Returns the statistics of numbers `(n, targets)`, n at least 1."""
    numbers = np.asarray(labels, np.float64)
    return tuple(
        Target(float(c.mean()), float(c.std()), float(c.min()), float(c.max())) for c in numbers.T
    )


def class_counts(labels: Labels, classes: int) -> NDArray[np.int64]:
    """Returns how many examples each class has, `(classes,)`.

    Args:
        labels: Class numbers `(n,)`, 0 and 1 `(n, classes)`, or `(n,)` arrays of class numbers.
        classes: How many there are.
    """
    if labels.ndim == 2:
        return np.asarray(labels.sum(axis=0), np.int64)
    if labels.dtype == object:  # a class for every word
        labels = np.concatenate([*labels, np.zeros(0, np.int32)])
    return np.bincount(labels, minlength=classes).astype(np.int64)


def join(names: Iterable[str]) -> str:
    """Returns the names of one picture as one text."""
    return JOINT.join(names)


def natural(text: str) -> tuple[list[Any], str]:
    """Returns a sort key under which `class 2` comes before `class 10`."""
    parts = re.split(r"(\d+)", text)
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)], text


def _read_class(cells: Sequence[str], columns: Sequence[str], separator: str | None) -> Label:
    (label,) = cells
    return _present(label)


def _read_text(cells: Sequence[str], columns: Sequence[str], separator: str | None) -> Label:
    """Returns a text as it is: spaces and the word NaN may be what is to be written."""
    (text,) = cells
    if not text.strip():
        raise _missing()
    return text


def _read_classes(cells: Sequence[str], columns: Sequence[str], separator: str | None) -> Label:
    if separator is None:
        marks = [_mark(cell, column) for cell, column in zip(cells, columns, strict=True)]
        return tuple(name for name, marked in zip(columns, marks, strict=True) if marked)
    text = cells[0].strip()
    if text.lower() == "nan":
        raise _missing()
    if (text[:1], text[-1:]) in (("[", "]"), ("{", "}")):
        raise MisreadLabelError(
            columns[0],
            f"'{text}' looks like a list of JSON or Python; expected names separated by "
            f"data.label_separator '{separator}', such as dog{separator}cat",
        )
    names = (name.strip() for name in text.split(separator))
    return tuple(sorted({name for name in names if name}, key=natural))


def _read_numbers(cells: Sequence[str], columns: Sequence[str], separator: str | None) -> Label:
    return tuple(_number(cell, column) for cell, column in zip(cells, columns, strict=True))


def _present(cell: str) -> str:
    text = cell.strip()
    if text.lower() in _MISSING:
        raise _missing()
    return text


def _missing() -> UnusableLabelError:
    return UnusableLabelError("missing_label", "rows without a label, left out")


def _mark(cell: str, column: str) -> bool:
    text = _present(cell)
    if text.lower() not in _MARKS:
        raise MisreadLabelError(column, f"expected 0 or 1 (or true, false, yes, no), got '{text}'")
    return _MARKS[text.lower()]


def _number(cell: str, column: str) -> float:
    text = _present(cell)
    if _INFINITE.fullmatch(text.lower()):
        raise UnusableLabelError("bad_number", "rows whose number is not finite, left out")
    if not _NUMBER.fullmatch(text):
        raise MisreadLabelError(column, f"'{text}' is no number; {_remedy(text)}")
    number = float(text)
    with np.errstate(over="ignore"):
        if not np.isfinite(np.float32(number)):
            message = "rows whose number is too large for float32, left out"
            raise UnusableLabelError("bad_number", message)
    return number


def _remedy(text: str) -> str:
    if re.fullmatch(r"[+-]?\d*,\d+", text):
        if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+", text):  # which of the two, nobody can tell
            return f"write {text.replace(',', '')}, or {text.replace(',', '.', 1)} if that is meant"
        return f"write a decimal point, {text.replace(',', '.')}"
    if re.fullmatch(r"[+-]?[\d,_' ]+(\.\d+)?", text):
        return f"write it without separators, {re.sub('[^0-9.+-]', '', text)}"
    unit = re.match(rf"({_NUMBER.pattern})\s*\D+$", text)
    if unit:
        return f"write the number alone, {unit[1]}, and the unit into the column's name"
    return "write a number such as 3.5 or 1e-3, or leave the cell empty if it is not known"


def _class_of(label: Label) -> tuple[str, ...]:
    return (str(label),)


def _classes_of(label: Label) -> tuple[str, ...]:
    return tuple(str(name) for name in label)


def _no_classes(label: Label) -> tuple[str, ...]:
    return ()


def _encode_class(labels: Sequence[Label], names: Sequence[str]) -> Labels:
    number = {name: i for i, name in enumerate(names)}
    return np.asarray([number[str(label)] for label in labels], np.int32)


def _encode_classes(labels: Sequence[Label], names: Sequence[str]) -> Labels:
    number = {name: i for i, name in enumerate(names)}
    rows = np.zeros((len(labels), len(names)), np.float32)
    for row, label in zip(rows, labels, strict=True):
        row[[number[str(name)] for name in label]] = 1
    return rows


def _encode_numbers(labels: Sequence[Label], names: Sequence[str]) -> Labels:
    return np.asarray(labels, np.float64).reshape(len(labels), len(names))


def _encode_objects(labels: Sequence[Label], names: Sequence[str]) -> Labels:
    rows = np.empty(len(labels), object)
    rows[:] = [str(label) for label in labels]
    return rows


def _encode_tags(labels: Sequence[Label], names: Sequence[str]) -> Labels:
    number = {name: i for i, name in enumerate(names)}
    rows = np.empty(len(labels), object)
    for row, label in enumerate(labels):
        rows[row] = np.asarray([number[str(tag)] for tag in label], np.int32)
    return rows


def _text_digests(labels: Labels, names: Sequence[str]) -> list[str]:
    return [hashlib.sha256(str(label).encode("utf-8", "replace")).hexdigest() for label in labels]


def _tag_texts(labels: Labels, names: Sequence[str]) -> list[str]:
    return [" ".join(names[int(number)] for number in row) for row in labels]


def _alike(labels: Labels) -> Labels:
    return np.zeros(len(labels), np.int64)


def _presence(labels: Labels) -> Labels:
    """Returns which classes each example has a word of, `bool (n, classes)`."""
    classes = 1 + max((int(row.max()) for row in labels if len(row)), default=0)
    rows = np.zeros((len(labels), classes), bool)
    for row, numbers in zip(rows, labels, strict=True):
        row[numbers] = True
    return rows


def _class_texts(labels: Labels, names: Sequence[str]) -> list[str]:
    return [names[int(number)] for number in labels]


def _classes_texts(labels: Labels, names: Sequence[str]) -> list[str]:
    return [join(names[int(number)] for number in np.flatnonzero(row)) for row in labels]


def _number_texts(labels: Labels, names: Sequence[str]) -> list[str]:
    return [join(repr(float(number)) for number in row) for row in labels]


def _bins(labels: Labels) -> Labels:
    """Returns the bin of the first number of each example: bins of about equal size, `(n,)`."""
    first = labels[:, 0]
    bins = min(_MOST_BINS, len(first) // _BIN_SIZE)
    if bins < 2:
        return np.zeros(len(first), np.int64)
    edges = np.unique(np.quantile(first, np.arange(1, bins) / bins))
    return np.searchsorted(edges, first, side="right").astype(np.int64)


LABELS: dict[Kind, LabelKind] = {
    # Class numbers, int32 (n,).
    "class": LabelKind(
        name="class",
        read=_read_class,
        names=lambda columns, separator: None,
        classes=_class_of,
        encode=_encode_class,
        texts=_class_texts,
        strata=lambda labels: labels,
    ),
    # 1 where a picture shows the class, else 0: float32 (n, classes).
    "classes": LabelKind(
        name="classes",
        read=_read_classes,
        names=lambda columns, separator: tuple(columns) if separator is None else None,
        classes=_classes_of,
        encode=_encode_classes,
        texts=_classes_texts,
        strata=lambda labels: labels > 0,
    ),
    # What is to be written, text (n,).
    "text": LabelKind(
        name="text",
        read=_read_text,
        names=lambda columns, separator: tuple(columns),
        classes=_no_classes,
        encode=_encode_objects,
        texts=_text_digests,
        strata=_alike,
    ),
    # A class number for every word: (n,) arrays of int32.
    "tags": LabelKind(
        name="tags",
        read=_read_class,
        names=lambda columns, separator: None,
        classes=_classes_of,
        encode=_encode_tags,
        texts=_tag_texts,
        strata=_presence,
    ),
    # Numbers in their own units, float64 (n, targets).
    "numbers": LabelKind(
        name="numbers",
        read=_read_numbers,
        names=lambda columns, separator: tuple(columns),
        classes=_no_classes,
        encode=_encode_numbers,
        texts=_number_texts,
        strata=_bins,
    ),
}
