"""What a source hands over: an indexable table of examples, and what was found on the way.

    findings = Findings()
    table = tabulate(data, [Example("cat/1.jpg", "cat", None, path)], findings)

Reading never alters anything. An example that cannot be used is left out and counted by a
finding; everything else stays, so that what was found is what was kept plus what was left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kerastune_ft.data import inspection, remembering
from kerastune_ft.data.advice import ADVICE
from kerastune_ft.data.labels import LABELS, Label, LabelKind, natural
from kerastune_ft.data.looks import Looks
from kerastune_ft.data.texts import Texts, Tokens
from kerastune_ft.errors import DataError

if TYPE_CHECKING:
    from kerastune_ft.recipe import Cleaning

Severity = Literal["fail", "warn", "note"]
SPLITS = ("train", "validation", "test")
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_FEW_ARRAYS = 3
_LEFT_OUT = {
    "empty_file": "files of 0 bytes, left out",
    "truncated": "pictures that end too early, left out",
    "unreadable": "files that cannot be read as a picture, left out",
    "unsupported_format": "pictures of a kind that is not supported, left out",
    "too_large": f"pictures of more than {inspection.MAX_PIXELS:,} pixels, left out",
}


@dataclass(frozen=True)
class Finding:
    """One kind of thing that is odd about the data.

    Args:
        kind: A word to search for, such as `truncated`.
        severity: `fail`: the examples named were left out. `warn`: they were kept, and may harm.
            `note`: nothing was lost.
        message: What it is, what was done, how many, and the first names.
        count: How many things it concerns.
        names: Every one of them.
        details: What exactly is odd about each, as many as names; or ().
        partners: The example that each is compared with, such as the one it is a copy of, "" for
            none, as many as names; or ().
    """

    kind: str
    severity: Severity
    message: str
    count: int
    names: tuple[str, ...]
    details: tuple[str, ...] = ()
    partners: tuple[str, ...] = ()

    @property
    def examples(self) -> tuple[str, ...]:
        """The first five names."""
        return self.names[:5]

    def record(self) -> dict[str, Any]:
        """Returns it as plain data, with what it does to training and what to do about it."""
        advice = ADVICE[self.kind]
        columns = {"details": list(self.details), "partners": list(self.partners)}
        return {
            "kind": self.kind,
            "severity": self.severity,
            "message": self.message,
            "count": self.count,
            "names": list(self.names),
            **{key: values for key, values in columns.items() if values},
            "effect": advice.effect,
            "remedy": advice.remedy,
        }


@dataclass(frozen=True)
class Files:
    """Picture files.

    Args:
        paths: Where they lie.
        orientations: EXIF's 1..8, `uint8 (n,)`; 1 where the decoder turns the picture itself.
        through_pillow: `bool (n,)`: TensorFlow reads the picture wrongly, or not at all.
    """

    paths: tuple[str, ...]
    orientations: NDArray[np.uint8]
    through_pillow: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> Files:
        """Returns the rows at `indices`, in that order."""
        rows = np.asarray(indices, np.int64)
        paths = tuple(self.paths[row] for row in rows)
        return Files(paths, self.orientations[rows], self.through_pillow[rows])


@dataclass(frozen=True)
class Encoded:
    """Picture files that lie in memory; otherwise as `Files`."""

    data: tuple[bytes, ...]
    orientations: NDArray[np.uint8]
    through_pillow: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.data)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> Encoded:
        """Returns the rows at `indices`, in that order; the pictures are shared, not copied."""
        rows = np.asarray(indices, np.int64)
        data = tuple(self.data[row] for row in rows)
        return Encoded(data, self.orientations[rows], self.through_pillow[rows])


@dataclass(frozen=True)
class Arrays:
    """Pixels of equal size in memory.

    Args:
        values: `uint8` or `uint16`, `(n, height, width)` or `(n, height, width, 1 or 3)`, over the
            whole range of its type.
    """

    values: NDArray[Any]

    def __len__(self) -> int:
        return len(self.values)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> Arrays:
        """Returns the rows at `indices`, in that order."""
        return Arrays(self.values[np.asarray(indices, np.int64)])


@dataclass(frozen=True)
class Prepared:
    """Pictures that were decoded and resized before: `picture_cache`.

    Args:
        values: What `decoding.Preparation` gave, `uint8` or `float32`, `(m, height, width, c)`,
            perhaps mapped from a file.
        rows: Which of them each example is, `int64 (n,)`.
        resize: How they were resized.
        channels: Of what the network gets.
    """

    values: NDArray[Any]
    rows: NDArray[np.int64]
    resize: str
    channels: int

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> Prepared:
        """Returns the rows at `indices`, in that order; the pixels are shared, not copied."""
        return replace(self, rows=self.rows[np.asarray(indices, np.int64)])


Pictures: TypeAlias = Files | Encoded | Arrays | Prepared
Content: TypeAlias = Pictures | Texts | Tokens


@dataclass(frozen=True)
class Table:
    """A labelled data set with random access.

    Args:
        names: Unique; a path relative to the data, or such as `digits/00012`.
        labels: Of each example: a class by name, names, or numbers; see `labels.LABELS`.
        official: The split each example comes in, if the data has splits of its own.
        class_names: In the order of the label numbers; of numbers, the targets' names.
        content: The pictures or texts, in the order of `names`.
        findings: What was odd.
        found: How many examples there were before some were left out.
        groups: What each example belongs to that must not be divided; None where nothing is.
        looks: Of pictures, what each looks like; None of texts and of pixels in memory.
        times: By which the examples are divided, `float64 (n,)`; None where they are not.
        guessed: Names of examples that were given the commonest label, having none.
    """

    names: tuple[str, ...]
    labels: tuple[Label, ...]
    official: tuple[str, ...] | None
    class_names: tuple[str, ...]
    content: Content
    findings: tuple[Finding, ...]
    found: int
    groups: tuple[str, ...] | None = None
    looks: Looks | None = None
    times: NDArray[np.float64] | None = None
    guessed: frozenset[str] = frozenset()

    def take(self, rows: NDArray[np.int64]) -> Table:
        """Returns some examples, in the order of `rows`."""

        def taken(column: tuple[Any, ...] | None) -> Any:
            return None if column is None else tuple(column[int(row)] for row in rows)

        return replace(
            self,
            names=taken(self.names),
            labels=taken(self.labels),
            official=taken(self.official),
            content=self.content.take(rows),
            groups=taken(self.groups),
            looks=None if self.looks is None else self.looks.take(rows),
            times=None if self.times is None else self.times[rows],
        )

    @property
    def one(self) -> str:
        """What an example is called in messages."""
        return "text" if isinstance(self.content, Texts | Tokens) else "picture"

    @property
    def noun(self) -> str:
        """What several examples are called."""
        return f"{self.one}s"


class DataChoice(Protocol):
    """What the sources read of a recipe's `data` section."""

    @property
    def source(self) -> str: ...  # noqa: D102

    @property
    def path(self) -> str: ...  # noqa: D102

    @property
    def image_column(self) -> str: ...  # noqa: D102

    @property
    def label_column(self) -> str | tuple[str, ...]: ...  # noqa: D102

    @property
    def label_separator(self) -> str: ...  # noqa: D102

    @property
    def on_error(self) -> str: ...  # noqa: D102

    @property
    def root(self) -> str | None: ...  # noqa: D102

    @property
    def group_column(self) -> str | None: ...  # noqa: D102

    @property
    def time_column(self) -> str | None: ...  # noqa: D102

    @property
    def cleaning(self) -> Cleaning: ...  # noqa: D102


@dataclass(frozen=True)
class Example:
    """A picture that has not been looked at yet.

    Args:
        name: Unique.
        label: Of it.
        official: Its split, or None.
        picture: Its file.
        group: What it belongs to that must not be divided, or None.
        time: By which the data is divided, or None.
        guessed: Whether it had no label and was given the commonest.
    """

    name: str
    label: Label
    official: str | None
    picture: Path | bytes
    group: str | None = None
    time: float | None = None
    guessed: bool = False


def finding(
    kind: str,
    severity: Severity,
    message: str,
    names: Iterable[str],
    *,
    details: Sequence[str] = (),
    partners: Sequence[str] = (),
) -> Finding:
    """Returns a finding whose message counts and shows the first names.

    Args:
        kind: A key of `advice.ADVICE`.
        severity: See `Finding`.
        message: What such things are and what was done, in the plural.
        names: Of the examples, or of whatever it is about. They are sorted, unless there are
            details or partners, whose order counts.
        details: See `Finding`.
        partners: See `Finding`.
    """
    every = tuple(names) if details or partners else tuple(sorted(names))
    assert len(details) in (0, len(every)) and len(partners) in (0, len(every)), kind
    shown = f"{message}: {len(every):,} ({first_few(every, 3)})"
    return Finding(kind, severity, shown, len(every), every, tuple(details), tuple(partners))


def times_of(values: Sequence[Any], column: str, path: object) -> list[float]:
    """Returns the cells of a column of times as numbers, NaN for those that are missing.

    Args:
        values: Numbers, or dates as ISO 8601 writes them, all of one kind.
        column: Its name, for messages.
        path: Of the table, for messages.

    Raises:
        DataError: If a cell is neither.
    """
    import pandas as pd

    cells = pd.Series(
        [None if pd.isna(value) or not str(value).strip() else str(value) for value in values],
        dtype=object,
    )
    numbers = pd.to_numeric(cells, errors="coerce")
    if not numbers[cells.notna()].isna().any():
        return [float(number) for number in numbers]
    dates = pd.to_datetime(cells, format="ISO8601", utc=True, errors="coerce")
    wrong = cells[cells.notna() & dates.isna()]
    if len(wrong):
        raise DataError(
            f"{path}: data.time_column '{column}': {first_few(wrong, 3)}; expected numbers, or "
            "dates such as 2026-11-26 or 2026-11-26T08:30."
        )
    return [float("nan") if pd.isna(date) else float(date.timestamp()) for date in dates]


class Findings:
    """Collects names by kind of finding."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, Severity, str], list[str]] = defaultdict(list)

    def add(self, kind: str, severity: Severity, message: str, name: str) -> None:
        """Adds a name; `message` says what such things are and what was done, in the plural."""
        self._kinds[kind, severity, message].append(name)

    def found(self) -> tuple[Finding, ...]:
        """Returns a finding per kind, severity and message."""
        return tuple(
            finding(kind, severity, message, names)
            for (kind, severity, message), names in sorted(self._kinds.items())
        )


def tabulate(
    data: DataChoice,
    examples: Sequence[Example],
    findings: Findings,
    *,
    kind: LabelKind = LABELS["class"],
    class_names: Sequence[str] | None = None,
    listed: bool = True,
) -> Table:
    """Looks at every picture and makes the table of those that can be used.

    Args:
        data: Says what happens with the others.
        examples: In the order of the table; all of them paths, or all of them bytes.
        findings: Of the source; receives those about pictures.
        kind: Of the labels.
        class_names: In the set's own order; None takes the labels' natural order.
        listed: Whether each file was named as an example. If not, one that neither is nor is
            called a picture is a stray, and no example.

    Raises:
        DataError: If none is left, one cannot be used under `on_error: stop`, or floats are in
            0..1 throughout.
    """
    kept: list[Example] = []
    looks: list[inspection.Inspected] = []
    results = remembering.inspect_all([example.picture for example in examples])
    for example, result in zip(examples, results, strict=True):
        if isinstance(result, inspection.Inspected):
            kept.append(example)
            looks.append(result)
            if not inspection.extension_fits(example.name, result.format):
                message = f"{result.format} pictures called something else, read as what they are"
                findings.add("extension_mismatch", "note", message, example.name)
        elif listed or inspection.has_picture_extension(example.name) or result.is_picture:
            findings.add(result.kind, "fail", _LEFT_OUT[result.kind], example.name)
        else:
            findings.add(
                "not_a_picture", "note", "files that are no picture, ignored", example.name
            )
    _check_floats(data, kept, looks, findings)
    labels = [example.label for example in kept]
    present = {name for label in labels for name in kind.classes(label)}
    listed_classes = {name for example in examples for name in kind.classes(example.label)}
    for name in sorted(listed_classes - present, key=natural):
        findings.add("empty_class", "warn", "classes without a picture that can be used", name)
    orientations = np.asarray([look.orientation for look in looks], np.uint8)
    through_pillow = np.asarray([look.through_pillow for look in looks], bool)
    paths = tuple(str(e.picture) for e in kept if isinstance(e.picture, Path))
    encoded = tuple(e.picture for e in kept if isinstance(e.picture, bytes))
    return finish(
        data,
        Table(
            names=tuple(printable(example.name) for example in kept),
            labels=tuple(labels),
            official=tuple(str(example.official) for example in kept)
            if any(example.official for example in kept)
            else None,
            class_names=tuple(class_names or sorted(present, key=natural)),
            content=Encoded(encoded, orientations, through_pillow)
            if encoded
            else Files(paths, orientations, through_pillow),
            findings=(found := findings.found()),
            found=len(kept) + sum(f.count for f in found if f.severity == "fail"),
            groups=tuple(str(e.group) for e in kept) if any(e.group for e in kept) else None,
            looks=Looks.joined([look.look for look in looks if look.look is not None]),
            times=np.asarray([e.time for e in kept], np.float64)
            if any(e.time is not None for e in kept)
            else None,
            guessed=frozenset(printable(e.name) for e in kept if e.guessed),
        ),
    )


def _check_floats(
    data: DataChoice,
    examples: Sequence[Example],
    looks: Sequence[inspection.Inspected],
    findings: Findings,
) -> None:
    """Refuses arrays of floats that all are in 0..1; of some it says so: they may be dark.

    A wholly black array tells nothing. So few that chance could have made all of them dark are
    only named.
    """
    pairs = zip(examples, looks, strict=True)
    lit = [(example.name, look.largest) for example, look in pairs if look.largest]
    low = [name for name, largest in lit if largest <= 1]
    if len(low) == len(lit) > _FEW_ARRAYS:
        raise DataError(
            f"{data.path}: floats must be in 0..255; these look like 0..1, multiply by 255: "
            f"{first_few(low, 3)}."
        )
    for name in low:
        message = "arrays of floats within 0..1, where 0..255 is expected, read as almost black"
        findings.add("dark_floats", "warn", message, name)


def finish(data: DataChoice, table: Table) -> Table:
    """Returns the table if it can be used under `data.on_error`, else raises `DataError`."""
    lost = [f for f in table.findings if f.severity == "fail"]
    if lost and data.on_error == "stop":
        lines = [f"  {f.kind}: {first_few(f.names, 10)}" for f in lost]
        raise DataError(
            f"{data.path}: {sum(f.count for f in lost):,} examples cannot be used and "
            "data.on_error is 'stop':\n" + "\n".join(lines) + "\n"
            "Mend or remove them, or set data.on_error=skip to go on without them."
        )
    if not table.names:
        raise DataError(f"{data.path}: no {table.one} that can be used{because(table)}.")
    assert len(set(table.names)) == len(table.names) == len(table.content), "names not unique"
    return table


def label_columns(data: DataChoice) -> tuple[str, ...]:
    """Returns the columns that hold labels: `data.label_column`, one or several."""
    columns = data.label_column
    return (columns,) if isinstance(columns, str) else tuple(columns)


def label_separator(data: DataChoice) -> str | None:
    """Returns what stands between several names in one column; None for a list of columns."""
    return data.label_separator if isinstance(data.label_column, str) else None


def because(table: Table) -> str:
    """Returns what was left out, in brackets, to go on with a message; "" if nothing was."""
    lost = [f for f in table.findings if f.severity == "fail"]
    if not lost:
        return ""
    count = sum(f.count for f in lost)
    shown = f"{count:,} could not be used, such as {first_few(lost[0].names, 3)}"
    if lost[0].kind == "missing_file":
        shown += "; no such files are there: their paths count from data.root"
    return f" ({shown})"


def split_named(word: str) -> str | None:
    """Returns which split a word such as `val` means, or None."""
    return _SPLIT_WORDS.get(word.strip().lower())


def first_few(names: Iterable[str], limit: int = 5) -> str:
    """Returns the first names in quotes and how many more there are, for a message."""
    listed = list(names)
    shown = ", ".join(f"'{name}'" for name in listed[:limit])
    return shown + (f" and {len(listed) - limit:,} more" if len(listed) > limit else "")


def printable(name: str) -> str:
    """Returns a name that can be written as UTF-8, whatever bytes the file system holds."""
    return name.encode("utf-8", "backslashreplace").decode()
