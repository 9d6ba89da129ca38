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

from kerastune_ft import ensembles, predictions, quiet
from kerastune_ft import recipe as recipes
from kerastune_ft.backbones.tokenizers import Tokenizer
from kerastune_ft.data import Split, images, tokenizing
from kerastune_ft.data.inspection import COLOURS
from kerastune_ft.data.texts import Texts
from kerastune_ft.evaluation import EVALUATORS
from kerastune_ft.exports import examples

if TYPE_CHECKING:
    from kerastune_ft.exports.graphs import Served
    from kerastune_ft.recipe import Recipe
    from kerastune_ft.runs import Run


def of_split(run: Run, served: Served, split: Split) -> NDArray[np.float64]:
    """Returns what a run's models say of a split, as when the run was scored.

    Returns:
        Probabilities or numbers, `float64 (n, outputs)`.
    """
    how = EVALUATORS[served.recipe.task.name]
    runs = predictions.members(run, served.recipe)
    said = [
        predictions.answers(member, model, served.recipe, split, served.outputs)
        for member, model in zip(runs, served.models, strict=True)
    ]
    return np.asarray(how.activate(ensembles.joint(said, how.average)), np.float64)


def of_odd(
    served: Served, tokenizer: Tokenizer | None
) -> Iterator[tuple[str, bytes | tuple[str, ...], NDArray[np.float64]]]:
    """Yields name, content and answer of every odd picture or text, as `kft predict` gives it."""
    if tokenizer is None:
        yield from _of_pictures(served)
        return
    rows = odd_rows(served)
    inputs = _tokens(rows, tokenizer, served.recipe)
    for at, said in enumerate(_activated(served, inputs)):
        yield f"odd text {at + 1}", rows[at], said


def odd_rows(served: Served) -> list[tuple[str, ...]]:
    """Returns our odd texts, or pairs of them."""
    texts = examples.ODD_TEXTS
    if len(served.text_inputs) < 2:
        return [(text,) for text in texts]
    return [(text, texts[-1 - at]) for at, text in enumerate(texts)]


def _of_pictures(served: Served) -> Iterator[tuple[str, bytes, NDArray[np.float64]]]:
    choice, data = served.recipe.backbone, served.recipe.data
    if choice.channels not in COLOURS:
        return
    files = examples.odd_pictures()
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


def arrays_of_bundle(folder: Path) -> Callable[[Sequence[Any]], dict[str, NDArray[np.float32]]]:
    """Returns what decodes pictures that no server reads, such as `.npy` files.

    Args:
        folder: Holds `recipe.yaml`.
    """
    recipe = recipes.load(folder / "recipe.yaml")
    size, how, channels = recipe.backbone.side, recipe.data.resize, recipe.backbone.channels

    def decoded(raw: bytes) -> NDArray[np.float32]:
        return images.decode_bytes(raw, size, how, name="a picture", channels=channels)

    return lambda rows: {"images": np.stack([decoded(raw) for raw in rows])}


def _tokens(
    rows: Sequence[tuple[str, ...]], tokenizer: Tokenizer, recipe: Recipe
) -> dict[str, NDArray[np.int32]]:
    first = tuple(row[0] for row in rows)
    second = tuple(row[1] for row in rows) if recipe.data.pair_column else None
    tokens, _ = tokenizing.inputs_of(Texts(first, second), tokenizer, recipe)
    return tokens.padded(np.arange(len(rows)))
