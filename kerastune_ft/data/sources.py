"""Reads labelled pictures from where they lie into a `Table`; never alters what it reads.

    table = SOURCES["image_folder"](data, LABELS["class"])    # data: the recipe's `data` section

Each source is one function and one row of `SOURCES`. It is told what kind of labels is wanted and
refuses a kind that it cannot give. An example that cannot be used becomes a
finding under `on_error: skip` and a `DataError` under `stop`. Refused: folders and tables that are
not laid out as documented, with what would be right.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kerastune_ft.data import cleaning, table_files, tensorflow_sets
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
    Arrays,
    Content,
    DataChoice,
    Encoded,
    Example,
    Files,
    Finding,
    Findings,
    Table,
    finish,
    first_few,
    label_columns,
    label_separator,
    split_named,
    tabulate,
    times_of,
)
from kerastune_ft.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

_NOT_DATA = frozenset({"__macosx", "thumbs.db", "desktop.ini"})


def image_folder(data: DataChoice, kind: LabelKind = LABELS["class"]) -> Table:
    """Reads class sub-folders, or train/validation/test folders of class sub-folders.

    A class is the folder; what lies deeper belongs to it. Hidden files are ignored, links are
    followed. Whatever decodes as a picture is one, whatever its extension.
    """
    _one_class_each(data, kind)
    findings = Findings()
    files = class_files(data.path, "image_folder", findings)
    return tabulate(data, [Example(*file) for file in files], findings, listed=False)


def class_files(
    place: str, source: str, findings: Findings
) -> list[tuple[str, str, str | None, Path]]:
    """Returns name, class, split or None, and path of the files in class folders, by name.

    Args:
        place: `data.path`.
        source: That asks, for messages.
        findings: Receives the folders without a file.

    Raises:
        DataError: If there are no class folders.
    """
    root = Path(place).expanduser()
    if not root.exists():
        where = "" if root.is_absolute() else f" in {Path.cwd()}"
        raise DataError(
            f"data.path: no folder '{root}'{where}{_near(root)}; give the folder of class folders."
        )
    if not root.is_dir():
        tables = "image_csv reads a table of paths" if source == "image_folder" else "csv reads one"
        raise DataError(f"data.path: '{root}' is a file; source {source} reads a folder, {tables}.")
    found = []
    for split, folder in _parts(root):
        for class_folder in _class_folders(folder, root):
            files = list(_walk(class_folder, tuple(map(_identity, {root, folder})), root, findings))
            for path in files:
                name = path.relative_to(root).as_posix()
                found.append((name, class_folder.name, split, path))
            if not files:
                name = class_folder.relative_to(root).as_posix()
                findings.add("empty_class", "warn", "class folders without a file", name)
    return sorted(found, key=lambda file: file[0])


def image_csv(data: DataChoice, kind: LabelKind = LABELS["class"]) -> Table:
    """Reads a CSV file with a column of paths, relative to the file, and columns of labels.

    The names of classes stay text: `007` is not 7. Several classes stand in one column, with
    `data.label_separator` between them, or have a column of 0 and 1 each; numbers have a column
    each. An optional column `split` says train, validation or test.
    """
    path = Path(data.path).expanduser()
    frame = _read_csv(path)
    columns = label_columns(data)
    keys: list[tuple[str, str | None]] = [("image_column", data.image_column)]
    keys += [("label_column", name) for name in columns]
    keys += [("group_column", data.group_column), ("time_column", data.time_column)]
    for key, column in keys:
        if column is not None and column not in frame.columns:
            raise DataError(
                f"{path}: data.{key}: no column '{column}'{_hint(column, list(frame.columns))} "
                f"the columns are {first_few(frame.columns, 20)}{_separator_hint(frame)}."
            )
    findings = Findings()
    frame, guessed = _filled(frame, data, kind, findings)
    examples = _csv_examples(path, frame, data, kind, findings, guessed)
    names = kind.names(columns, label_separator(data))
    return tabulate(data, examples, findings, kind=kind, class_names=names)


def sklearn(data: DataChoice, kind: LabelKind = LABELS["class"]) -> Table:
    """Reads a picture set that ships inside scikit-learn: `digits`, 1,797 of 8 x 8, 10 classes."""
    _one_class_each(data, kind)
    if data.path != "digits":
        raise DataError(
            f"data.path: scikit-learn ships no picture set '{data.path}'"
            f"{_hint(data.path, ['digits'])} 'digits' is the one it has."
        )
    from sklearn import datasets

    digits = datasets.load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    table = Table(
        names=tuple(f"digits/{number:05d}" for number in range(len(pixels))),
        labels=tuple(str(name) for name in digits.target),
        official=None,
        class_names=tuple(str(name) for name in digits.target_names),
        content=Arrays(pixels),
        findings=(),
        found=len(pixels),
    )
    return finish(data, table)


SOURCES: dict[str, Callable[[Any, LabelKind], Table]] = {
    "image_folder": image_folder,
    "image_csv": image_csv,
    "tfds": tensorflow_sets.read,
    "sklearn": sklearn,
}


def _parts(root: Path) -> list[tuple[str | None, Path]]:
    """Returns the folders that hold class folders, each with the split it stands for."""
    folders = _folders(root)
    if not folders:
        files = [path.name for path in root.iterdir() if not _ignored(path.name)]
        if not files:
            raise DataError(f"{root}: the folder is empty; expected one sub-folder per class.")
        raise DataError(
            f"{root}: no class sub-folders, {len(files):,} files lie directly in it "
            f"({first_few(files, 3)}); expected {root.name}/cat/1.jpg, {root.name}/dog/2.jpg, or "
            "train/, validation/ and test/ folders of class sub-folders."
        )
    named = [(split_named(folder.name), folder) for folder in folders]
    splits = [split for split, _ in named if split]
    if len(folders) == 1 and not splits:
        _check_depth(folders[0], root)
    if len(splits) < len(folders):  # 'train' beside 'car' and 'bus' is a class
        train = [folder for split, folder in named if split == "train"]
        if len(splits) > 1 and train and _folders(train[0]):
            others = [folder.name for split, folder in named if split is None]
            raise DataError(
                f"{root}: holds train and test folders and others beside them "
                f"({first_few(others)}); move those away, or give the folder of class sub-folders."
            )
        return [(None, root)]
    if len(folders) > 1 and not any(_folders(folder) for folder in folders):
        return [(None, root)]  # two classes that happen to be called 'train' and 'test'
    twice = [split for split in SPLITS if splits.count(split) > 1]
    if twice:
        same = [folder.name for split, folder in named if split == twice[0]]
        raise DataError(
            f"{root}: {first_few(same)} all mean the {twice[0]} split; there can be one."
        )
    if "train" not in splits:
        raise DataError(
            f"{root}: only {first_few(folder.name for folder in folders)}, no 'train' folder; "
            "expected train/ beside them, or one sub-folder per class."
        )
    return sorted(named, key=lambda part: SPLITS.index(str(part[0])))


def _check_depth(only: Path, root: Path) -> None:
    """Refuses a folder whose class folders lie one deeper: a single class cannot be learned."""
    deeper = _folders(only)
    if len(deeper) > 1:
        raise DataError(
            f"{root}: '{only.name}' would be the only class, and holds the folders "
            f"{first_few([folder.name for folder in deeper], 4)}; did you mean {only}?"
        )


def _class_folders(folder: Path, root: Path) -> list[Path]:
    found = _folders(folder)
    if not found:
        place = folder.relative_to(root.parent).as_posix()
        raise DataError(
            f"{place}: no class sub-folders; expected one per class, such as {place}/cat/1.jpg."
        )
    return found


def _folders(folder: Path) -> list[Path]:
    try:
        found = [path for path in folder.iterdir() if path.is_dir() and not _ignored(path.name)]
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}.") from error
    return sorted(found, key=lambda path: natural(path.name))


def _walk(
    folder: Path, above: tuple[tuple[int, int], ...], root: Path, findings: Findings
) -> Iterator[Path]:
    """Yields the files below a folder; a link back to a folder above ends there."""
    here = _identity(folder)
    if here in above:
        message = "links that lead back to a folder above, not followed"
        findings.add("link_loop", "warn", message, folder.relative_to(root).as_posix())
        return
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}.") from error
    for path in entries:
        if _ignored(path.name):
            continue
        if path.is_dir():
            yield from _walk(path, (*above, here), root, findings)
        elif path.is_file() or path.is_symlink():  # a broken link is a finding, a pipe is nothing
            yield path


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in _NOT_DATA


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    return did_you_mean(path.name, [p.name for p in path.parent.iterdir()]).rstrip("?")


def _hint(word: str, known: Sequence[str]) -> str:
    """Returns a did-you-mean that a sentence can follow."""
    return did_you_mean(word, list(known)) or ";"


def _read_csv(path: Path) -> pd.DataFrame:
    if not path.exists():
        raise DataError(f"data.path: no file '{path}'{_near(path)}; give a CSV file.")
    if path.is_dir():
        raise DataError(
            f"data.path: '{path}' is a folder; source image_csv reads a CSV file, "
            "image_folder reads a folder."
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8."
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    return table_files.frame(text, path, "CSV")


def _separator_hint(frame: pd.DataFrame) -> str:
    only = str(frame.columns[0]) if len(frame.columns) == 1 else ""
    for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if separator in only:
            return f" (the file seems to be separated by {name}; save it with commas)"
    return ""


def _one_class_each(data: DataChoice, kind: LabelKind) -> None:
    if kind.name != "class":
        raise DataError(
            f"{data.path}: source {data.source} gives one class per picture, and this task learns "
            "something else; image_csv reads a table with several classes or numbers per picture."
        )


def _csv_examples(
    path: Path,
    frame: pd.DataFrame,
    data: DataChoice,
    kind: LabelKind,
    findings: Findings,
    guessed: frozenset[int],
) -> list[Example]:
    """Returns the rows that can be examples, sorted by path."""
    officials: list[str | None] = [None] * len(frame)
    if "split" in frame.columns:
        officials = [split_named(value) for value in frame["split"]]
        unknown = sorted({v for v in frame["split"] if split_named(v) is None})
        if unknown:
            raise DataError(
                f"{path}: column split: {first_few(unknown)}; expected train, validation or test."
            )
    columns = label_columns(data)
    said: dict[str, list[tuple[Label, str | None, str | None, float | None]]] = defaultdict(list)
    cells = zip(*(frame[column] for column in columns), strict=True)
    groups: list[str | None] = [None] * len(frame)
    if data.group_column is not None:
        groups = [_group(cell, i, findings) for i, cell in enumerate(frame[data.group_column], 2)]
    times: list[float | None] = [None] * len(frame)
    if data.time_column is not None:
        times = [*times_of(list(frame[data.time_column]), data.time_column, path)]
    root = Path(data.root).expanduser() if data.root else path.parent
    if not root.is_dir():
        raise DataError(f"data.root: no folder '{root}'{_near(root)}; paths count from it.")
    check_inside(path, root, frame[data.image_column])
    rows = zip(frame[data.image_column], cells, officials, groups, times, strict=True)
    for number, (image, texts, official, group, time) in enumerate(rows, 2):
        name = name_in(image, root)
        row = f"row {number}"
        if kind.name == "class" and texts[0] != texts[0].strip():
            findings.add("label_spaces", "note", "labels with spaces around them, removed", row)
        if not image.strip():
            findings.add("missing_file", "fail", "rows without a path, left out", row)
            continue
        try:
            label = kind.read(texts, columns, label_separator(data))
        except UnusableLabelError as error:
            findings.add(error.kind, "fail", error.message, name)
            continue
        except MisreadLabelError as error:
            raise DataError(f"{path}: {row}, column '{error.column}': {error}.") from error
        if not (root / name).is_file():
            findings.add("missing_file", "fail", "rows whose file does not exist, left out", name)
        else:
            said[name].append((label, official, group, time))
    _look_for_separators(frame, data, kind, findings)
    guessed_names = {name_in(frame[data.image_column].iloc[row], root) for row in guessed}
    examples = []
    for name, statements in sorted(said.items()):
        if len({statement[:3] for statement in statements}) > 1:
            message = "rows that give one picture several labels or splits, left out"
            if kind.name == "classes":
                message += " (all classes of a picture belong into one row)"
            for _ in statements:
                findings.add("conflicting_rows", "fail", message, name)
            continue
        for _ in statements[1:]:
            findings.add("duplicate_row", "fail", "rows that repeat another, left out", name)
        label, official, group, time = statements[0]
        examples.append(
            Example(name, label, official, root / name, group, time, name in guessed_names)
        )
    return examples


def name_in(image: str, root: Path) -> str:
    """Returns a path of a table as it counts from the root."""
    path = Path(os.path.normpath(image.strip()))
    if path.is_absolute():
        path = Path(os.path.relpath(path, root.absolute()))
    return path.as_posix()


def check_inside(path: Path, root: Path, images: Iterable[str]) -> None:
    """Refuses a table that reaches for files outside the folder it is of.

    Raises:
        DataError: If it does.
    """
    outside = [image for image in images if name_in(image, root).partition("/")[0] == ".."]
    if outside:
        raise DataError(
            f"{path}: paths that leave '{root}': {first_few(outside, 3)}; set data.root to the "
            "folder that all pictures are in, or move the table there."
        )


def _group(cell: str, number: int, findings: Findings) -> str:
    if cell.strip():
        return cell.strip()
    message = "rows without a group, each a group of its own"
    findings.add("no_group", "note", message, f"row {number}")
    return f"\0row {number}"


def _filled(
    frame: pd.DataFrame, data: DataChoice, kind: LabelKind, findings: Findings
) -> tuple[pd.DataFrame, frozenset[int]]:
    """Returns the table with missing labels filled in as `data.cleaning` says; see `filled`."""
    if data.cleaning.missing_label == "drop":
        return frame, frozenset()
    columns = label_columns(data)
    rows: list[Any] = frame[list(columns)].to_dict("records")
    names = [f"row {number}" for number in range(2, len(rows) + 2)]
    made, guessed = cleaning.filled(rows, data.cleaning, kind, (), columns, findings, names)
    cells = {column: [row[column] for row in made] for column in columns}
    return frame.assign(**cells), guessed


def _look_for_separators(
    frame: pd.DataFrame, data: DataChoice, kind: LabelKind, findings: Findings
) -> None:
    """Notes that the separator is nowhere in a column of classes, but another may be."""
    separator = label_separator(data)
    if kind.name != "classes" or separator is None:
        return
    texts = list(frame[label_columns(data)[0]])
    if any(separator in text for text in texts):
        return
    for other in (";", ",", "|", "/"):
        rows = [f"row {number}" for number, text in enumerate(texts, 2) if other in text]
        if len(rows) > len(texts) // 10:
            message = (
                f"rows with '{other}' in a label and none with data.label_separator "
                f"'{separator}'; '{other}' may be the separator: set data.label_separator='{other}'"
            )
            for row in rows:
                findings.add("label_separator", "warn", message, row)
            return


__all__ = ["SOURCES", "Arrays", "Content", "Encoded", "Files", "Finding", "Table"]
