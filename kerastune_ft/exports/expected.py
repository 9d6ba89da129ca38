"""What the training process says of examples: the truth that an export is compared with.

for name, raw, said in of_odd(served, tokenizer): ...
said = of_split(run, served, split)         # float64 (n, outputs)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerastune_ft import ensembles, predictions, quiet, text_predictions
from kerastune_ft import recipe as recipes
from kerastune_ft.backbones.tokenizers import Tokenizer
from kerastune_ft.data import Split, images, tokenizing
from kerastune_ft.data.inspection import COLOURS
from kerastune_ft.data.texts import Texts
from kerastune_ft.evaluation import EVALUATORS
from kerastune_ft.exports import examples

if TYPE_CHECKING:
    from kerastune_ft.exports.asked import Answer
    from kerastune_ft.exports.graphs import Served
    from kerastune_ft.recipe import Recipe
    from kerastune_ft.runs import Run

NAMELESS = "a picture"
"""Stands in messages for a file that came as bytes."""


def of_split(run: Run, served: Served, split: Split) -> Sequence[Answer]:
    """Returns what a run's models say of a split, as when the run was scored.

    Returns:
        Probabilities or numbers, `float64 (n, outputs)`; or texts: what is written, or the tags of
        all words.
    """
    if served.writes or served.tags:
        assert isinstance(split.content, Texts), type(split.content)
        return _texts(served, split.content)
    how = EVALUATORS[served.recipe.task.name]
    runs = predictions.members(run, served.recipe)
    said = [
        predictions.answers(member, model, served.recipe, split, served.outputs)
        for member, model in zip(runs, served.models, strict=True)
    ]
    return list(np.asarray(how.activate(ensembles.joint(said, how.average)), np.float64))


def of_odd(
    served: Served, tokenizer: Tokenizer | None
) -> Iterator[tuple[str, bytes | tuple[str, ...], Answer]]:
    """Yields name, content and answer of every odd picture or text, as `kft predict` gives it."""
    if tokenizer is None:
        yield from _of_pictures(served)
        return
    rows = odd_rows(served)
    if served.writes or served.tags:
        told: Sequence[Answer] = _texts(served, _held(rows, served.tags))
    else:
        told = list(_activated(served, _tokens(rows, tokenizer, served.recipe)))
    for at, said in enumerate(told):
        yield f"odd text {at + 1}", rows[at], said


def _texts(served: Served, texts: Texts) -> list[str]:
    """Returns what `kft predict` says of texts, where that is a text."""
    readers = [(model, model.preprocessor.tokenizer) for model in served.models]
    say = text_predictions.speaker(readers, served.recipe, served.outputs)
    with quiet.untold():
        return [row["predicted"] for row in say(texts)]


def _held(rows: Sequence[tuple[str, ...]], tags: bool) -> Texts:
    columns = [tuple(column) for column in zip(*rows, strict=True)]
    words = tuple(tuple(text.split()) for text in columns[0]) if tags else None
    return Texts(columns[0], columns[1] if len(columns) > 1 else None, words)


def odd_rows(served: Served) -> list[tuple[str, ...]]:
    """Returns our odd texts, or pairs of them."""
    texts: tuple[str, ...] = examples.ODD_TEXTS
    if served.tags or served.writes:  # which say nothing of an empty text
        texts = tuple(text for text in texts if text.strip())
    if len(served.text_inputs) < 2:
        return [(text,) for text in texts]
    return [(text, texts[-1 - at]) for at, text in enumerate(texts)]


def _of_pictures(served: Served) -> Iterator[tuple[str, bytes, NDArray[np.float64]]]:
    choice, data = served.recipe.backbone, served.recipe.data
    known = choice.channels in COLOURS
    files = examples.odd_pictures() if known else examples.odd_arrays(choice.channels)
    pixels = [
        images.decode_bytes(raw, choice.side, data.resize, name=name, channels=choice.channels)
        for name, raw in files.items()
    ]
    said = _activated(served, np.stack(pixels))
    yield from zip(files, files.values(), said, strict=True)


def _activated(served: Served, inputs: Any) -> NDArray[np.float64]:
    how = EVALUATORS[served.recipe.task.name]
    with quiet.untold():
        raw = [np.asarray(model.predict_on_batch(inputs)) for model in served.models]
    return np.asarray(how.activate(ensembles.joint(raw, how.average)), np.float64)


def tokens_of_bundle(folder: Path) -> Callable[[Sequence[Any]], dict[str, NDArray[np.int32]]]:
    """Returns what makes numbers of tokens of texts, by what travels with an export.

    Args:
        folder: Holds `recipe.yaml` and `tokenizer.json`.
    """
    recipe = recipes.load(folder / "recipe.yaml")
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    return lambda rows: _tokens(rows, tokenizer, recipe)


def texts_of_bundle(folder: Path, ids: NDArray[np.integer[Any]]) -> list[str]:
    """Returns the texts of tokens that were written, by what travels with an export.

    Args:
        folder: Holds `tokenizer.json`.
        ids: `(n, length)`, filled up behind the end.
    """
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    return [tokenizer.decode(row) for row in ids]


def arrays_of_bundle(folder: Path) -> Callable[[Sequence[Any]], dict[str, NDArray[np.float32]]]:
    """Returns what decodes pictures that no server reads, such as `.npy` files.

    Args:
        folder: Holds `recipe.yaml`.
    """
    recipe = recipes.load(folder / "recipe.yaml")
    size, how, channels = recipe.backbone.side, recipe.data.resize, recipe.backbone.channels

    def decoded(raw: bytes) -> NDArray[np.float32]:
        return images.decode_bytes(raw, size, how, name=NAMELESS, channels=channels)

    return lambda rows: {"images": np.stack([decoded(raw) for raw in rows])}


def _tokens(
    rows: Sequence[tuple[str, ...]], tokenizer: Tokenizer, recipe: Recipe
) -> dict[str, NDArray[np.int32]]:
    tokens, _ = tokenizing.inputs_of(_held(rows, tags=False), tokenizer, recipe)
    return tokens.padded(np.arange(len(rows)))
