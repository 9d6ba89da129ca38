"""Writes down what is kept of data and who goes where: `kft data clean`, `kft data split`.

write_clean(recipe, Path("clean.csv"), None, console)       # and clean-quarantine.csv
write_division(recipe, Path("splits.csv"), console)         # and splits.json

No source file is changed. What is left out stands in the quarantine with its reason.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from rich.markup import escape
from rich.table import Table as Grid

from kerastune_ft import data, files, resuming, showing
from kerastune_ft.checks import relabelling
from kerastune_ft.data import Survey, inspection
from kerastune_ft.data.tables import SPLITS, Arrays, Encoded, Files, label_columns
from kerastune_ft.data.texts import Texts
from kerastune_ft.errors import DataError
from kerastune_ft.tasks import TASKS

if TYPE_CHECKING:
    from rich.console import Console

    from kerastune_ft.recipe import Recipe

_MOST_ROWS = 40
_QUALITY = 95
Row = dict[str, Any]


def write_clean(recipe: Recipe, output: Path, reencode: Path | None, console: Console) -> None:
    """Writes a manifest of what the rules of `data.cleaning` keep, and of what they leave out.

    Args:
        recipe: Says the data and the rules.
        output: A `.csv` file, or `.jsonl` for texts; must not exist. Beside it appears
            `NAME-quarantine.csv`.
        reencode: A new folder for upright RGB copies of all pictures that are kept: JPEG of
            JPEG, PNG of all others.
        console: Says what was written and how to go on.

    Raises:
        DataError: If the data cannot be read, a file would be overwritten, or pictures that lie
            in no folder are not re-encoded.
    """
    quarantine = output.with_name(f"{output.stem}-quarantine.csv")
    _check_new(output, quarantine)
    survey = relabelling.read(resuming.resolved(recipe))
    content = survey.table.content
    if isinstance(content, Texts):
        if reencode is not None:
            raise DataError("--reencode: texts are not re-encoded; leave it out.")
        rows, source, root = list(_text_rows(recipe, survey)), "csv", None
        if output.suffix.lower() == ".jsonl":
            source = "jsonl"
        elif content.words is not None:
            raise DataError(f"--output: words with tags each need a .jsonl file, got '{output}'.")
    else:
        root = _root(recipe, reencode)
        rows, source = list(_picture_rows(recipe, survey, reencode)), "image_csv"
    if source == "jsonl":
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        files.write_text(output, "".join(f"{line}\n" for line in lines))
    else:
        files.write_text(output, _csv(rows))
    gone = _gone(survey)
    mended = any(found.kind in ("mended_text", "renamed_label") for found in survey.findings)
    files.write_text(quarantine, _csv(gone, ("name", "reason", "detail")))
    counts = Counter(row["reason"] for row in gone)
    console.print(
        f"{survey.table.found:,} found = {len(rows):,} kept + {len(gone):,} left out"
        + "".join(f"\n  {count:,} {reason}" for reason, count in counts.most_common()),
        highlight=False,
    )
    console.print(f"written: {escape(str(output))}, {escape(str(quarantine))}", highlight=False)
    options = [f"data.source={source}", f"data.path={output}"]
    if root is not None:
        options.append(f"data.root={root}")
    choice = recipe.data
    if not gone and not mended:
        console.print(
            "nothing was left out or mended: no rule of data.cleaning is set, or none applied",
            highlight=False,
        )
    if survey.table.groups is not None:
        options.append("data.group_column=group")
    # What is done already would look for what is no longer there.
    already = {"group_pattern": choice.group_pattern, "cleaning.exclude": choice.cleaning.exclude}
    options += [f"data.{key}=null" for key, value in already.items() if value is not None]
    if choice.cleaning.rename_labels:
        options.append("data.cleaning.rename_labels={}")
    if choice.cleaning.suspected_labels != "keep":  # to judge again would find others
        options.append("data.cleaning.suspected_labels=keep")
    console.print(f"to train on it: kft fit RECIPE {escape(' '.join(options))}", highlight=False)


def write_division(recipe: Recipe, output: Path, console: Console) -> None:
    """Divides data and writes who goes where, with a fingerprint, for `data.split.file`.

    Args:
        recipe: Says the data and how it is divided.
        output: Must not exist; beside it appears a `.json` file with the fingerprints.
        console: Shows how many of each class are in each split.

    Raises:
        DataError: If the data cannot be divided as asked.
    """
    record_path = output.with_suffix(".json")
    _check_new(output, record_path)
    if recipe.train.folds > 1:
        raise DataError("train.folds: 'kft fit' divides into folds itself; leave it out here.")
    # What leaks and what is suspected is left out anew by the recipe that follows the file.
    rules = recipe.data.cleaning.model_copy(update={"suspected_labels": "keep"})
    choice = recipe.data.model_copy(update={"leakage": "warn", "cleaning": rules})
    task = TASKS[recipe.task.name]
    splits = data.of_survey(choice, data.survey(choice, task.labels, task.modality))
    record = splits.record()
    kept = ("source", "path", "examples", "removed", "class_names", "splits")
    fingerprints = ("split_fingerprint", "content_fingerprint")
    facts = {key: record[key] for key in (*kept, *fingerprints)}
    facts["split"] = recipe.data.split.model_dump()
    splits.write(output)
    files.write_text(record_path, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    grid = Grid(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    grid.add_column("class")
    for name in SPLITS:
        grid.add_column(name, justify="right")
    counts = {name: part.get("per_class", {}) for name, part in record["splits"].items()}
    for name in list(splits.class_names)[:_MOST_ROWS] if counts["train"] else ():
        grid.add_row(escape(name), *(f"{counts[part].get(name, 0):,}" for part in SPLITS))
    grid.add_row("all", *(f"{len(split):,}" for split in splits.all))
    console.print(grid)
    showing.show_findings(console, [f for f in splits.findings if f.kind.startswith("leaked")])
    console.print(f"fingerprint {record['split_fingerprint'][:16]}", highlight=False)
    console.print(
        f"written: {escape(str(output))}; train on it with data.split.file={escape(str(output))}",
        highlight=False,
    )


def _check_new(*paths: Path) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raise DataError(f"--output: '{path}' exists already; it is not overwritten.")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise DataError(f"--output: nothing can be written in a folder '{path.parent}'.")


def _gone(survey: Survey) -> list[Row]:
    """Returns what was left out: by the source, and by rules."""
    rows = [
        {"name": name, "reason": found.kind, "detail": found.message.partition(": ")[0]}
        for found in survey.table.findings
        if found.severity == "fail"
        for name in found.names
    ]
    return rows + [row._asdict() for row in survey.removed]


def _root(recipe: Recipe, reencode: Path | None) -> Path | None:
    if reencode is not None:
        return reencode
    choice = recipe.data
    if choice.source == "image_folder":
        return Path(choice.path)
    if choice.source == "image_csv":
        return Path(choice.root) if choice.root else Path(choice.path).parent
    return None


def _labels(recipe: Recipe, survey: Survey) -> Iterator[Row]:
    """Yields the columns of labels, as the recipe reads them again."""
    columns = label_columns(recipe.data)
    for label in survey.table.labels:
        if survey.kind == "numbers":
            yield dict(zip(columns, map(repr, label), strict=True))
        elif survey.kind == "classes" and not isinstance(recipe.data.label_column, str):
            yield {column: int(column in label) for column in columns}
        elif survey.kind == "classes":
            yield {columns[0]: recipe.data.label_separator.join(map(str, label))}
        else:
            yield {columns[0]: list(label) if survey.kind == "tags" else label}


def _common(recipe: Recipe, survey: Survey) -> Iterator[Row]:
    """Yields the columns of split, group and time, where there are some."""
    table, column = survey.table, recipe.data.time_column
    # What was judged or guessed was so in training alone, and must stay there.
    fixed = recipe.data.cleaning.suspected_labels != "keep" or bool(table.guessed)
    for row in range(len(table.names)):
        more: Row = {}
        if table.official is not None:
            more["split"] = table.official[row]
        elif fixed:
            more["split"] = str(survey.parts[row])
        if table.groups is not None:
            alone = table.groups[row].startswith("\0")
            more["group"] = "" if alone else table.groups[row]
        if table.times is not None and column is not None:
            more[column] = "" if np.isnan(table.times[row]) else repr(float(table.times[row]))
        yield more


def _picture_rows(recipe: Recipe, survey: Survey, reencode: Path | None) -> Iterator[Row]:
    content = survey.table.content
    if not isinstance(content, Files) and reencode is None:
        raise DataError(
            f"{recipe.data.path}: its pictures lie in no folder; give --reencode FOLDER, which "
            "writes them into one."
        )
    if reencode is not None:
        if reencode.exists() and any(reencode.iterdir()):
            raise DataError(f"--reencode: '{reencode}' is not empty; nothing is overwritten.")
        reencode.mkdir(parents=True, exist_ok=True)
    column = "path" if recipe.data.source != "image_csv" else recipe.data.image_column
    taken: set[str] = set()
    pairs = zip(_labels(recipe, survey), _common(recipe, survey), strict=True)
    for row, (label, more) in enumerate(pairs):
        name = survey.table.names[row]
        if reencode is not None:
            name = _reencoded(survey, row, reencode, taken)
        elif isinstance(content, Files) and recipe.data.source == "image_folder":
            path = Path(content.paths[row])  # whose name may have been made printable
            name = path.relative_to(Path(recipe.data.path).expanduser()).as_posix()
        yield {column: name, **label, **more}


def _reencoded(survey: Survey, row: int, folder: Path, taken: set[str]) -> str:
    """Writes an upright RGB copy of a picture and returns its path in the folder."""
    content, name = survey.table.content, Path(survey.table.names[row])
    ending = ".jpg" if name.suffix.lower() in (".jpg", ".jpeg", ".jpe", ".jfif") else ".png"
    if isinstance(content, Arrays):
        values = content.values[row]
        scaled = (values // 257 if values.dtype == np.uint16 else values).astype(np.uint8)
        picture = Image.fromarray(scaled.squeeze()).convert("RGB")
    else:
        assert isinstance(content, Files | Encoded)
        raw = (
            Path(content.paths[row]).read_bytes()
            if isinstance(content, Files)
            else (content.data[row])
        )
        pixels = inspection.decode(raw, 3)
        picture = Image.fromarray(np.round(pixels).clip(0, 255).astype(np.uint8))
    made = name.with_suffix(ending).as_posix()
    number = 2
    while made.casefold() in taken:
        made = name.with_name(f"{name.stem}-{number}{ending}").as_posix()
        number += 1
    taken.add(made.casefold())
    target = folder / made
    target.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(target) as temporary:
        picture.save(temporary, quality=_QUALITY, subsampling=0) if ending == ".jpg" else (
            picture.save(temporary)
        )
    return made


def _text_rows(recipe: Recipe, survey: Survey) -> Iterator[Row]:
    content, choice = survey.table.content, recipe.data
    assert isinstance(content, Texts)
    for row, (label, more) in enumerate(
        zip(_labels(recipe, survey), _common(recipe, survey), strict=True)
    ):
        made: Row = {}
        if choice.text_column:
            words = content.words
            made[choice.text_column] = list(words[row]) if words else content.first[row]
        if choice.pair_column and content.second is not None:
            made[choice.pair_column] = content.second[row]
        yield {**made, **label, **more}


def _csv(rows: Sequence[Row], columns: Sequence[str] = ()) -> str:
    text = io.StringIO(newline="")
    fields = list(dict.fromkeys([*columns, *(key for row in rows[:1] for key in row)]))
    # A lone carriage return in a text is quoted only if everything is.
    writer = csv.DictWriter(text, fields, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
