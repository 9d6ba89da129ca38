"""Says what is wrong between the keys of a recipe that has to do with language.

As `recipe_checks.combinations`, which knows the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

from kerastune_ft import backbones
from kerastune_ft.backbones import pairing
from kerastune_ft.errors import ModelError
from kerastune_ft.recipe_checks import Mistake, UnknownError, Values

ENDINGS = {
    ".csv": "csv", ".tsv": "csv", ".tab": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".json": "jsonl", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
"""Which source reads a table of texts, by the ending of its name."""

_IMAGE_SOURCES = ("image_folder", "image_csv", "tfds", "sklearn")
_TEXT_SOURCES = ("csv", "jsonl", "parquet", "text_folder", "tfds", "wheel")
_TABLES = ("csv", "jsonl", "parquet", "tfds")
_TASK, _NAME, _SOURCE = ("task", "name"), ("backbone", "name"), ("data", "source")
_WRITING = ("text_to_text", "text_generation")
_HEAD_FIRST = ("linear_probe", "lp_ft", "gradual", "progressive", "surgical")
_OF_PICTURES = ("image_size", "alpha")
_OF_LANGUAGE = (
    ("backbone", "sequence_length"),
    ("backbone", "reinitialize_blocks"),
    ("data", "pair_column"),
    ("data", "batch_tokens"),
)


def combinations(values: Values) -> Iterator[Mistake]:
    """Yields what is wrong between keys, from every check whose own keys are right."""
    checks: tuple[Callable[[Values], Iterator[Mistake]], ...] = (
        _pair,
        _sources,
        _columns,
        _out_of_place,
        _pooling,
        _weights,
        _no_classes,
        _no_head,
        _stages,
        _strategy,
    )
    for check in checks:
        with suppress(UnknownError):
            yield from check(values)


def _row(values: Values) -> backbones.Backbone:
    name = values(*_NAME)
    try:
        return backbones.get(name)
    except ModelError as error:
        raise UnknownError from error


def _is_text(task: str) -> bool:
    return task in pairing.TEXT_TASKS


def _pair(values: Values) -> Iterator[Mistake]:
    reason = pairing.refusal(_row(values), values(*_TASK))
    if reason is not None:
        yield Mistake((_TASK, _NAME), reason)


def _sources(values: Values) -> Iterator[Mistake]:
    task, source = values(*_TASK), values(*_SOURCE)
    known = _TEXT_SOURCES if _is_text(task) else _IMAGE_SOURCES
    if source not in known:
        message = f"source '{source}' has no {'texts' if _is_text(task) else 'pictures'}"
        yield Mistake((_SOURCE, _TASK), f"{message} for {task}; expected {', '.join(known)}")
        return
    if _is_text(task) and source not in _TABLES and task != "text_classification":
        message = f"source '{source}' gives one class per text; {task} needs {', '.join(_TABLES)}"
        yield Mistake((_SOURCE, _TASK), message)
    if task == "token_classification" and source == "csv":
        message = "a word with a tag each needs lists, which jsonl and parquet hold"
        yield Mistake((_SOURCE, _TASK), message)


def _columns(values: Values) -> Iterator[Mistake]:
    task = values(*_TASK)
    pair, columns = values("data", "pair_column"), values("data", "label_column")
    if task == "text_pair_classification" and pair is None:
        message = "text_pair_classification needs the column of the second text, data.pair_column"
        yield Mistake((("data", "pair_column"), _TASK), message)
    if pair is not None and task not in ("text_pair_classification", "text_regression"):
        other = {
            "text_classification": "text_pair_classification compares two texts",
            "text_to_text": "join the texts in one column",
        }.get(task, "leave pair_column out")
        yield Mistake((("data", "pair_column"), _TASK), f"{task} reads one text; {other}")
    if pair is not None and pair == values("data", "text_column"):
        message = "the two texts of a pair are in two columns"
        yield Mistake((("data", "pair_column"), ("data", "text_column")), message)
    if values("data", "text_column") is None and task != "text_generation":
        yield Mistake((("data", "text_column"), _TASK), "only text_generation can do without")
    if _is_text(task) and values(*_SOURCE) in _TABLES:
        labels = columns if isinstance(columns, tuple) else (columns,)
        for key in ("text_column", "pair_column"):
            if values("data", key) in labels:
                message = f"column '{values('data', key)}' is what is learned, and cannot be read"
                yield Mistake((("data", key), ("data", "label_column")), message)
    if _is_text(task) and isinstance(columns, tuple):
        if task not in ("text_multilabel", "text_regression"):
            message = f"{task} reads one column; text_multilabel reads several"
            yield Mistake((("data", "label_column"), _TASK), message)
        elif not columns or len(set(columns)) < len(columns):
            message = "expected one or more columns, each once"
            yield Mistake((("data", "label_column"),), message)


def _out_of_place(values: Values) -> Iterator[Mistake]:
    """What is set and has no meaning here."""
    if _is_text(values(*_TASK)):
        for key in _OF_PICTURES:
            if values("backbone", key) is not None:
                yield Mistake((("backbone", key), _NAME), "a network of language has none")
        return
    for path in _OF_LANGUAGE:
        if values(*path):
            yield Mistake((path, _TASK), "is for tasks with texts")


def _pooling(values: Values) -> Iterator[Mistake]:
    pooling, task = values("task", "pooling"), values(*_TASK)
    if pooling is None:
        return
    path = ("task", "pooling")
    if task in ("token_classification", "text_to_text", "text_generation"):
        yield Mistake((path, _TASK), f"{task} pools nothing; leave pooling out")
    elif _is_text(task) and pooling == "gem":
        yield Mistake((path, _TASK), "gem is for pictures; expected avg, max, token or last")
    elif not _is_text(task) and pooling == "last":
        yield Mistake((path, _TASK), "last is for texts; expected avg, max, gem or token")


def _weights(values: Values) -> Iterator[Mistake]:
    row = _row(values)
    if row.language is not None and not row.weights and values("backbone", "weights") is None:
        message = f"{row.name} has no preset; give the folder of its weights, or none"
        yield Mistake((("backbone", "weights"), _NAME), message)


def _no_classes(values: Values) -> Iterator[Mistake]:
    task = values(*_TASK)
    if task in ("token_classification", *_WRITING) and values("train", "class_weight") is not None:
        message = f"{task} has no classes of whole texts; leave class_weight out"
        yield Mistake((("train", "class_weight"), _TASK), message)


def _no_head(values: Values) -> Iterator[Mistake]:
    task = values(*_TASK)
    if task not in _WRITING:
        return
    if values("task", "hidden"):
        message = f"{task} has no layers of its own after the network; leave hidden out"
        yield Mistake((("task", "hidden"), _TASK), message)
    if values("backbone", "reinitialize_blocks"):
        message = f"{task} needs every block as it was trained; leave reinitialize_blocks out"
        yield Mistake((("backbone", "reinitialize_blocks"), _TASK), message)


def _stages(values: Values) -> Iterator[Mistake]:
    task = values(*_TASK)
    if task not in _WRITING or values("train", "strategy") is not None:
        return
    for i in range(len(values("train", "stages"))):
        path = ("train", "stages", i, "trainable_blocks")
        with suppress(UnknownError):
            if values(*path) == 0:
                message = f"{task} has no head, so nothing would train; expected -1 (all) or more"
                yield Mistake((path, _TASK), message)


def _strategy(values: Values) -> Iterator[Mistake]:
    task, choice = values(*_TASK), values("train", "strategy")
    if task not in _WRITING or choice is None:
        return
    path = ("train", "strategy")
    name = choice if isinstance(choice, str) else values(*path, "name")
    if name in _HEAD_FIRST:
        message = f"{name} begins with the head alone, and {task} has none; take full"
        yield Mistake((path, _TASK), f"{message} or discriminative")
