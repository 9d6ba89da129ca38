"""Predicts texts: from tables, from files with a text per line, or given one by one.

for row in predict(model, recipe, outputs, tokenizer, [Path("reviews.csv")], []):
    row["text"], row["predicted"]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kerastune_ft import text_evaluation
from kerastune_ft.data import text_sources, tokenizing
from kerastune_ft.data.texts import Texts, plan
from kerastune_ft.errors import DataError
from kerastune_ft.evaluation import EVALUATORS
from kerastune_ft.tasks import TASKS, Outputs

if TYPE_CHECKING:
    import keras

    from kerastune_ft.backbones.tokenizers import Tokenizer
    from kerastune_ft.recipe import Recipe

_TABLES = {
    ".csv": "csv", ".tsv": "csv", ".tab": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip


def source_of(path: Path) -> str:
    """Returns which source reads a file or folder of texts.

    Raises:
        DataError: If there is none.
    """
    if path.is_dir():
        inside = {_TABLES.get(file.suffix.lower()) for file in path.iterdir()} - {None}
        return str(inside.pop()) if len(inside) == 1 else "text_folder"
    source = _TABLES.get(path.suffix.lower())
    if source is None:
        raise DataError(
            f"'{path}': expected a table that ends in {', '.join(_TABLES)}, or a folder of texts."
        )
    return source


def predict(
    model: keras.Model,
    recipe: Recipe,
    outputs: Outputs,
    tokenizer: Tokenizer | None,
    paths: Sequence[Path],
    texts: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """Predicts texts.

    Args:
        model: Of a run.
        recipe: It was trained by.
        outputs: What it returns.
        tokenizer: Of the run.
        paths: Tables, or files with a text per line.
        texts: Texts themselves.

    Yields:
        `row`, `text`, `pair` where there is one, what the model says, and `error`: None, or why
        there is nothing to predict.

    Raises:
        DataError: If there is nothing, or a table lacks a column.
    """
    assert tokenizer is not None
    rows = [row for path in paths for row in _rows(path, recipe)]
    if texts and recipe.data.pair_column:
        raise DataError(
            "--text: this run's model compares two texts; give a table with the columns "
            f"'{recipe.data.text_column}' and '{recipe.data.pair_column}'."
        )
    rows += [({"row": f"text {i}", "text": text}, None) for i, text in enumerate(texts, 1)]
    if not rows:
        raise DataError(
            "nothing to predict: expected a table, a file with a text per line, or texts."
        )
    tags = TASKS[recipe.task.name].labels == "tags"
    usable = [i for i, (row, _) in enumerate(rows) if str(row["text"]).strip()]
    said: dict[int, dict[str, Any]] = {}
    if usable:
        first = tuple(str(rows[i][0]["text"]) for i in usable)
        pairs = tuple(str(rows[i][0]["pair"]) for i in usable) if recipe.data.pair_column else None
        words = [rows[i][1] or tuple(text.split()) for i, text in zip(usable, first, strict=True)]
        held = Texts(first, pairs, tuple(words) if tags else None)
        found = _say(model, recipe, outputs, tokenizer, held)
        said = dict(zip(usable, found, strict=True))
    nothing: dict[str, Any] = dict.fromkeys(next(iter(said.values()), {"predicted": None}))
    for i, (row, _) in enumerate(rows):
        error = None if i in said else "there is no text"
        yield {**row, **said.get(i, nothing), "error": error}


def _say(
    model: keras.Model, recipe: Recipe, outputs: Outputs, tokenizer: Tokenizer, texts: Texts
) -> list[dict[str, Any]]:
    tokens = tokenizing.inputs_of(texts, tokenizer, recipe)
    kind = TASKS[recipe.task.name].labels
    if kind == "text":
        written = text_evaluation.write(model, recipe, tokens)
        return [{"predicted": text} for text in written]
    if kind == "tags":
        found = text_evaluation.tags(model, tokens, outputs)
        return [{"predicted": " ".join(names)} for names in found]
    how = EVALUATORS[recipe.task.name]
    raw: list[Any] = [None] * len(tokens)
    for rows in plan(tokens.lengths, tokens.batching):
        batch = np.asarray(model.predict_on_batch(tokens.padded(rows)))
        for row, values in zip(rows, how.activate(batch), strict=True):
            raw[row] = values
    return [how.says(values, outputs) for values in raw]


def _rows(path: Path, recipe: Recipe) -> Iterator[tuple[dict[str, Any], tuple[str, ...] | None]]:
    """Yields what tells each text of a file apart, and its words where they are given."""
    data = recipe.data
    if path.suffix.lower() not in _TABLES:
        text = text_sources.decoded(text_sources.read(path), data.encoding, path)
        for number, line in enumerate(text.splitlines(), 1):
            yield {"row": f"{path.name}:{number}", "text": line}, None
        return
    wanted = [c for c in (data.text_column, data.pair_column) if c]
    for number, cells in enumerate(text_sources.records(path, data.encoding), 1):
        for column in wanted:
            if column not in cells:
                raise DataError(
                    f"{path}: row {number}: no column '{column}'; the columns are "
                    f"{', '.join(map(str, cells))}."
                )
        value = cells[data.text_column] if data.text_column else ""
        words = tuple(map(str, value)) if isinstance(value, list | tuple) else None
        shown = " ".join(words) if words is not None else "" if value is None else str(value)
        pair = {"pair": cells[data.pair_column] or ""} if data.pair_column else {}
        yield {"row": f"{path.name}:{number}", "text": shown, **pair}, words
