"""Predicts texts: from tables, from files with a text per line, or given one by one.

say = speaker([(model, tokenizer)], recipe, outputs)
for row in predict(say, recipe, [Path("reviews.csv")], []):
    row["text"], row["predicted"]
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from kerastune_ft import ensembles, quiet, text_evaluation
from kerastune_ft.data import cleaning, table_files, tables, tokenizing
from kerastune_ft.data.texts import Texts, Tokens, plan
from kerastune_ft.errors import DataError
from kerastune_ft.evaluation import EVALUATORS
from kerastune_ft.recipe_text import ENDINGS
from kerastune_ft.tasks import TASKS, Outputs

if TYPE_CHECKING:
    import keras

    from kerastune_ft.backbones.tokenizers import Tokenizer
    from kerastune_ft.recipe import Recipe

Speaker: TypeAlias = Callable[[Texts], list[dict[str, Any]]]

_NO_TEXT = "there is no text"
_AT_ONCE = 4096


@dataclass(frozen=True)
class _Asked:
    """A text to be predicted.

    Args:
        shown: What tells it apart: `row`, `text`, and `pair` where there is one.
        words: Its words where they are given.
        error: Why there is nothing to predict, or None.
    """

    shown: dict[str, str]
    words: tuple[str, ...] | None = None
    error: str | None = None


def source_of(path: Path) -> str:
    """Returns which source reads a file or folder of texts.

    Raises:
        DataError: If there is none.
    """
    if path.is_dir():
        inside = {ENDINGS.get(file.suffix.lower()) for file in path.iterdir()} - {None}
        return str(inside.pop()) if len(inside) == 1 else "text_folder"
    source = ENDINGS.get(path.suffix.lower())
    if source is None:
        raise DataError(
            f"'{path}': expected a table that ends in {', '.join(ENDINGS)}, or a folder of texts."
        )
    return source


def predict(
    say: Speaker,
    recipe: Recipe,
    paths: Sequence[Path],
    texts: Sequence[str],
    known: Container[str] = (),
) -> Iterator[dict[str, Any]]:
    """Predicts texts, some thousands at a time.

    Args:
        say: Returns the columns of what is said of each of some texts; of `speaker`.
        recipe: Of the run.
        paths: Tables, or files with a text per line; of a run that was trained on a folder of
            texts, each file is one.
        texts: Texts themselves.
        known: Rows that are left out, as `row` has them.

    Yields:
        `row`, `text`, `pair` where there is one, what the model says, `truncated`, whether it saw
        a part of the text alone, and `error`: None, or why there is nothing to predict.

    Raises:
        DataError: If there is nothing, or a table lacks a column.
    """
    if texts and recipe.data.pair_column:
        raise _pairs_wanted("--text", recipe)
    of_paths = (row for path in paths for row in _rows(path, recipe))
    given = (_line(f"text {i}", text, recipe) for i, text in enumerate(texts, 1))
    asked = itertools.chain(of_paths, given)
    first = next(asked, None)
    if first is None:
        raise DataError(
            "nothing to predict: expected a table, a file with a text per line, or texts."
        )
    wanted = (row for row in itertools.chain([first], asked) if row.shown["row"] not in known)
    columns: dict[str, None] | None = None
    while some := list(itertools.islice(wanted, _AT_ONCE)):
        said = _said(say, recipe, some)
        if said and columns is None:
            columns = dict.fromkeys(next(iter(said.values())))
        nothing: dict[str, Any] = dict.fromkeys(columns or {"predicted": None})
        for i, row in enumerate(some):
            yield {**row.shown, **said.get(i, nothing), "error": row.error}


def _said(say: Speaker, recipe: Recipe, asked: Sequence[_Asked]) -> dict[int, dict[str, Any]]:
    """Returns what is said of those that are texts, by their place."""
    usable = [i for i, row in enumerate(asked) if row.error is None]
    if not usable:
        return {}
    rows = [asked[i] for i in usable]
    first = tuple(row.shown["text"] for row in rows)
    pairs = tuple(row.shown["pair"] for row in rows) if recipe.data.pair_column else None
    words = tuple(row.words or tuple(row.shown["text"].split()) for row in rows)
    tags = TASKS[recipe.task.name].labels == "tags"
    with quiet.untold():
        found = say(Texts(first, pairs, words if tags else None))
    return dict(zip(usable, found, strict=True))


def speaker(
    readers: Sequence[tuple[keras.Model, Tokenizer | None]], recipe: Recipe, outputs: Outputs
) -> Speaker:
    """Returns what asks models.

    Args:
        readers: The model of a run and its tokenizer; of several, which answer together.
        recipe: They were trained by.
        outputs: What they return.
    """
    return functools.partial(_say, readers, recipe, outputs)


def _say(
    readers: Sequence[tuple[keras.Model, Tokenizer | None]],
    recipe: Recipe,
    outputs: Outputs,
    texts: Texts,
) -> list[dict[str, Any]]:
    kind, how = TASKS[recipe.task.name].labels, EVALUATORS[recipe.task.name]
    raw: list[Any] = []
    cut = np.zeros(len(texts), bool)
    for model, tokenizer in readers:
        assert tokenizer is not None
        tokens, was_cut = tokenizing.inputs_of(texts, tokenizer, recipe)
        cut |= was_cut
        if kind == "text":
            raw.append(text_evaluation.write(model, recipe, tokens))
        elif kind == "tags":
            raw.append(text_evaluation.word_logits(model, tokens))
        else:
            raw.append(_logits(model, tokens))
    together = ensembles.joint(raw, how.average)
    if kind == "text":
        said = [{"predicted": text} for text in together]
    elif kind == "tags":
        tags = text_evaluation.tags_of(together, outputs)
        said = [{"predicted": " ".join(names)} for names in tags]
    else:
        said = [how.says(values, outputs) for values in how.activate(together)]
    return [{**row, "truncated": bool(was_cut)} for row, was_cut in zip(said, cut, strict=True)]


def _logits(model: keras.Model, tokens: Tokens) -> np.ndarray:
    raw: list[Any] = [None] * len(tokens)
    for rows in plan(tokens.lengths, tokens.batching):
        batch = np.asarray(model.predict_on_batch(tokens.padded(rows)))
        for row, values in zip(rows, batch, strict=True):
            raw[row] = values
    return np.stack(raw)


def texts_of(path: Path, recipe: Recipe) -> tuple[tuple[str, ...], Texts]:
    """Returns the texts of a file that can be read, and what each is called; labels are not read.

    Args:
        path: A table with the columns of a run's data, or a file with a text per line.
        recipe: Of the run.

    Raises:
        DataError: If there is none, or a table lacks a column.
    """
    rows = [row for row in _rows(path, recipe) if row.error is None]
    if not rows:
        raise DataError(f"'{path}': there is no text in it.")
    pairs = tuple(row.shown["pair"] for row in rows) if recipe.data.pair_column else None
    tags = TASKS[recipe.task.name].labels == "tags"
    words = tuple(row.words or tuple(row.shown["text"].split()) for row in rows) if tags else None
    names = tuple(row.shown["row"] for row in rows)
    return names, Texts(tuple(row.shown["text"] for row in rows), pairs, words)


def _rows(path: Path, recipe: Recipe) -> Iterator[_Asked]:
    """Yields the texts of a file."""
    data = recipe.data
    name = tables.printable(path.name)
    if path.suffix.lower() in ENDINGS:
        yield from _table_rows(path, name, recipe)
        return
    if data.pair_column:
        raise _pairs_wanted(str(path), recipe)
    if data.source == "text_folder":
        yield _whole(path, recipe)
        return
    lines = table_files.decoded(table_files.read(path), data.encoding, path).split("\n")
    for number, line in enumerate(lines[:-1] if not lines[-1] else lines, 1):
        yield _line(f"{name}:{number}", line.removesuffix("\r"), recipe)


def _line(row: str, text: str, recipe: Recipe) -> _Asked:
    text = table_files.mended(text)
    nothing = not cleaning.mended(text, recipe.data.cleaning.text).strip()
    return _Asked({"row": row, "text": text}, error=_NO_TEXT if nothing else None)


def _whole(path: Path, recipe: Recipe) -> _Asked:
    """Returns a file as one text, as a network was trained on whole files."""
    name = tables.printable(str(path))
    try:
        text = table_files.decoded(table_files.read(path), recipe.data.encoding, path)
    except table_files.NoTextError as error:
        return _Asked({"row": name, "text": ""}, error=tables.printable(str(error)))
    return _line(name, text, recipe)


def _table_rows(path: Path, name: str, recipe: Recipe) -> Iterator[_Asked]:
    data = recipe.data
    rows = list(table_files.records(path, data.encoding))
    wanted = [column for column in (data.text_column, data.pair_column) if column]
    for column in wanted:
        if not any(column in cells for cells in rows):
            known = dict.fromkeys(key for cells in rows for key in cells)
            shown = tables.first_few(map(tables.printable, known), 20) or "none"
            raise DataError(f"{path}: no column '{column}'; the columns are {shown}.")
    for number, cells in enumerate(rows, 1):
        yield _table_row(f"{name}:{number}", cells, recipe)


def _table_row(row: str, cells: Mapping[str, Any], recipe: Recipe) -> _Asked:
    data = recipe.data
    value = cells.get(data.text_column) if data.text_column else ""
    words = None
    if isinstance(value, list | tuple):
        words = tuple(_cell(word) for word in value)
        value = " ".join(words)
    shown = {"row": row, "text": _cell(value)}
    if data.pair_column:
        shown["pair"] = _cell(cells.get(data.pair_column))
    rules = data.cleaning
    if rules.missing_text == "constant" and data.text_column:  # as in training
        for key in ("text", "pair"):
            if key in shown and not shown[key].strip():
                shown[key] = rules.missing_text_value
    error = None
    # Without a column of prompts, a text is written from nothing.
    mended = [cleaning.mended(shown[key], rules.text) for key in ("text", "pair") if key in shown]
    if not all(text.strip() for text in mended):
        error = _NO_TEXT if data.text_column else None
    elif words is not None and not all(word.strip() for word in words):
        error = "there is an empty word"
    for column in (data.text_column, data.pair_column):
        if column and column not in cells:
            error = f"there is no '{column}'"
    return _Asked(shown, words, error)


def _cell(value: Any) -> str:
    """Returns a cell as text; a missing one is ""."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return "" if value is None or value != value else str(table_files.mended(value))


def _pairs_wanted(place: str, recipe: Recipe) -> DataError:
    return DataError(
        f"{place}: this run's model compares two texts; give a table with the columns "
        f"'{recipe.data.text_column}' and '{recipe.data.pair_column}'."
    )
