"""Frozen features of every example: what the pre-trained network sees before anything is trained.

    found = features.of_survey(recipe, survey, progress)
    found.values                        # float16 (n, width), mapped from the cache, not read
    found.take(rows)                    # float32 (len(rows), width)

They are computed in batches and kept in a file of the cache, under what decides them: network,
weights, size, and the content of every example. A second call reads the file. Those used last are
kept, up to `KEPT_BYTES`.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import keras
import numpy as np
from numpy.typing import NDArray

from kerastune_ft import backbones, heads, models, text_models
from kerastune_ft.backbones import weights
from kerastune_ft.backbones.facts import Wheel
from kerastune_ft.data import inspection, tokenizing
from kerastune_ft.data import texts as texts_
from kerastune_ft.data.tables import Arrays, Content, Encoded, Files, Pictures, Table
from kerastune_ft.data.texts import Batching, Texts
from kerastune_ft.stores import Store, StoreError

if TYPE_CHECKING:
    from kerastune_ft.checks.examined import Examined
    from kerastune_ft.data import Survey
    from kerastune_ft.recipe import Recipe

Progress: TypeAlias = Callable[[str, int, int], None]

KEPT_BYTES = 5 * 2**30
SAMPLE = 5_000
"""Examples that transfer and drift are measured on at most; suspected labels look at all."""

_VERSION = 3  # raised when what is kept changes
_BATCH = 32
_LARGEST = 65_000.0  # of float16
_SMALLEST = 1e-30  # standard deviation that float32 still has digits for
_SEEN = 64  # examples that random weights are scaled by
_WEIGHT_FILES = (".keras", ".h5", ".safetensors", ".bin", ".json", ".txt", ".model")


@dataclass(frozen=True)
class Features:
    """What a network says of examples.

    Args:
        values: `float16 (n, width)`, perhaps mapped from a file.
        rows: Of the survey, that each is of, `(n,)`, ascending.
    """

    values: NDArray[np.float16]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns those of some rows of the survey, `float32 (len(rows), width)`.

        Args:
            rows: Each must be one of `self.rows`.
        """
        places = np.searchsorted(self.rows, rows)
        assert np.array_equal(self.rows[places], rows), "no features of some rows"
        return np.asarray(self.values[places], np.float32)


def of_survey(
    recipe: Recipe,
    survey: Survey,
    progress: Progress = lambda words, done, total: None,
    *,
    rows: NDArray[np.int64] | None = None,
) -> Features:
    """Returns the features that a recipe's frozen network has of examples.

    Of pictures they are what the head gets; of texts the mean over tokens, which serves nearly all
    weights best as long as nothing is trained.

    Args:
        recipe: Says backbone, weights and sizes.
        survey: What was read.
        progress: Called as `progress(words, done, total)` after every batch.
        rows: Of the survey, ascending; None means all.

    Raises:
        WeightsError: If the weights cannot be had.
    """
    return _kept(recipe, survey, progress, rows, random_weights=False)


def with_random_weights(
    recipe: Recipe,
    survey: Survey,
    progress: Progress = lambda words, done, total: None,
    *,
    rows: NDArray[np.int64] | None = None,
) -> Features:
    """Returns what the same network would see had it never been trained; otherwise as `of_survey`.

    The random numbers are the same every time. Features are scaled to those of some examples:
    they vanish on their way up.
    """
    return _kept(recipe, survey, progress, rows, random_weights=True)


def of_sample(examined: Examined) -> Features:
    """Returns features of at most `SAMPLE` examples, the classes in their proportions."""
    found: Features = examined.features
    rows = sample(examined.survey, SAMPLE, found.rows)
    return Features(found.values[np.searchsorted(found.rows, rows)], rows)


def sample(survey: Survey, count: int, among: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Returns rows of a survey, ascending: all, or `count` with every part and class alike.

    Args:
        survey: What was read.
        count: The most there are to be.
        among: Rows to choose from; None means all.
    """
    rows = np.arange(len(survey.parts)) if among is None else np.asarray(among, np.int64)
    if len(rows) <= count:
        return rows
    shuffled = np.random.default_rng(0).permutation(rows)
    keys = [survey.parts[shuffled]]
    if survey.kind == "class":
        keys.append(survey.labels[shuffled])
    shuffled = shuffled[np.lexsort(keys[::-1])]
    # Every so manieth of a list that is sorted by part and class keeps their shares.
    return np.sort(shuffled[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)])


def penultimate(model: keras.Model) -> keras.Model:
    """Returns the part of a model that makes what its last dense layer gets.

    Args:
        model: Made by a builder of pictures or texts that has a head, or reloaded.
    """
    last = next(layer for layer in model.layers if layer.name in (heads.LOGITS, heads.STANDARDISED))
    return keras.Model(model.inputs, last.input, name="features")


def of_model(
    network: keras.Model,
    content: Content,
    recipe: Recipe,
    progress: Progress = lambda words, done, total: None,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yields what a network returns for every example, batch by batch, in inference mode.

    Args:
        network: Takes pictures, or the tokens of its `preprocessor`'s tokenizer.
        content: Pictures, or texts or their tokens.
        recipe: Says how pictures are resized and texts are cut.
        progress: Called after every batch.

    Yields:
        Rows of the content, `(batch,)`, and `float32 (batch, width)`.
    """
    done, total = 0, len(content)
    for rows, inputs in _batches(network, content, recipe):
        yield rows, np.asarray(network.predict_on_batch(inputs), np.float32)
        done += len(rows)
        progress("features", done, total)


def _batches(
    network: keras.Model, content: Content, recipe: Recipe
) -> Iterator[tuple[NDArray[np.int64], Any]]:
    if isinstance(content, Pictures):
        start = 0
        for images in _pictures(content, recipe):
            yield np.arange(start, start + len(images)), images
            start += len(images)
        return
    if isinstance(content, Texts):
        reads = network.preprocessor
        batching = Batching.of(_BATCH, None, reads.sequence_length)
        content, _ = tokenizing.read(
            content, reads.tokenizer, batching, reads.segments, recipe.data.truncation
        )
    for rows in texts_.plan(content.lengths, content.batching):
        yield rows, content.padded(rows)


def _pictures(content: Pictures, recipe: Recipe) -> Iterator[NDArray[np.float32]]:
    from kerastune_ft.data import images

    choice = recipe.backbone
    stream = images.dataset(
        content,
        np.zeros((len(content), 1), np.float32),
        image_size=choice.side,
        channels=choice.channels,
        batch_size=_BATCH,
        num_classes=1,
        resize=recipe.data.resize,
    )
    for batch, _ in stream.as_numpy_iterator():
        yield batch


def build(recipe: Recipe, content: Content, *, random_weights: bool = False) -> keras.Model:
    """Builds a recipe's frozen network up to its pooled features; texts have a `preprocessor`.

    Args:
        recipe: Says backbone and weights.
        content: Gives a network without weights its words, and statistics to one with random ones.
        random_weights: In place of the recipe's.

    Raises:
        WeightsError: If the weights cannot be had.
    """
    choice = recipe.backbone
    row, tag = backbones.get(choice.name), choice.tag
    unknown = tag == "none" or tag.startswith("none:")
    wanted = tag if unknown or not random_weights else _random_tag(row, recipe)
    with _own_chance():
        if isinstance(content, Pictures):
            model = models.image_classifier(
                choice.name,
                2,
                weights=wanted,
                image_size=choice.side,
                channels=choice.channels,
                alpha=choice.alpha,
                pooling=recipe.task.pooling or "avg",
                dropout=0.0,
                seed=0,
            )
        else:
            known = [*content.first, *(content.second or ())] if isinstance(content, Texts) else []
            tokenizer = tokenizing.tokenizer_of(row, tag.removeprefix("none:"), known)
            model = text_models.text_classifier(
                choice.name,
                2,
                weights=wanted,
                sequence_length=choice.sequence_length,
                pooling="avg",
                dropout=0.0,
                tokenizer=tokenizer,
                seed=0,
            )
    made = penultimate(model)
    made.preprocessor = getattr(model, "preprocessor", None)
    return _scaled(made, model, content, recipe) if unknown or random_weights else made


def _random_tag(row: backbones.Backbone, recipe: Recipe) -> str:
    choice = recipe.backbone
    if row.family == backbones.HUB or (row.language is None and choice.weights_path is not None):
        return "none"
    return f"none:{choice.tag}"


@contextlib.contextmanager
def _own_chance() -> Iterator[None]:
    """Draws the same first weights every time, and leaves the order of others' draws alone.

    Keras takes the seeds of layers without one from Python's generator.
    """
    state = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(state)


def _scaled(
    network: keras.Model, model: keras.Model, content: Content, recipe: Recipe
) -> keras.Model:
    """Returns a network of random weights whose features have the size of trained ones.

    Without statistics of BatchNormalization a random network is nearly linear: its features are
    tiny, and once they are scaled they tell more than those of one that has statistics (flowers5:
    0.42 against 0.32 of a linear probe). So these are filled in only where nothing is left.
    """
    some = content.take(np.linspace(0, len(content) - 1, min(_SEEN, len(content))).astype(np.int64))

    def moments() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        values = np.concatenate([batch for _, batch in of_model(network, some, recipe)])
        return values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)

    mean, std = moments()
    if not _SMALLEST < std.max() < np.inf:
        _fill_statistics(model, some, recipe)
        mean, std = moments()
    scale = np.divide(1.0, std, out=np.zeros_like(std), where=std > _SMALLEST)
    layer = keras.layers.Rescaling(scale.tolist(), (-mean * scale).tolist(), dtype="float32")
    made = keras.Model(network.inputs, layer(network.outputs[0]), name=network.name)
    made.preprocessor = network.preprocessor
    return made


def _fill_statistics(model: keras.Model, content: Content, recipe: Recipe) -> None:
    """Gives BatchNormalization the statistics of some examples."""
    network, _ = models.backbone_of(model)
    layers = [
        layer
        for layer in network._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    _, inputs = next(_batches(model, content, recipe))
    momenta = [layer.momentum for layer in layers]
    models.unfreeze(model, -1, batch_norm="train")
    for layer in layers:
        layer.momentum = 0.0
    model(inputs, training=True)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    models.freeze(model)


def _kept(
    recipe: Recipe,
    survey: Survey,
    progress: Progress,
    rows: NDArray[np.int64] | None,
    random_weights: bool,
) -> Features:
    """Takes features from the cache, or computes them and keeps them there."""
    every = np.arange(len(survey.parts))
    chosen = every if rows is None else np.asarray(rows, np.int64)
    table = survey.table if rows is None else survey.table.take(chosen)
    content = _content(table, recipe)
    key = _key(recipe, table, content, random_weights)
    store = Store(weights.kept("features"), KEPT_BYTES)
    values = store.get(key)
    if values is None:
        network = build(recipe, content, random_weights=random_weights)
        words = "features of random weights" if random_weights else "features"

        def told(_: str, done: int, total: int) -> None:
            progress(words, done, total)

        shape = (len(chosen), int(network.output_shape[-1]))
        facts = {"backbone": recipe.backbone.name, "examples": len(chosen)}
        batches = of_model(network, content, recipe, told)
        try:
            with store.writing(key, shape, np.float16, facts) as kept:
                _fill(kept, batches)
            values = store.get(key)
        except StoreError:  # what cannot be kept costs no more than time
            values = None
        if values is None:
            values = np.empty(shape, np.float16)
            _fill(values, of_model(network, content, recipe, told))
    return Features(values, chosen)


def _fill(
    table: NDArray[Any], batches: Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]
) -> None:
    for rows, values in batches:
        table[rows] = np.clip(values, -_LARGEST, _LARGEST)


def _content(table: Table, recipe: Recipe) -> Content:
    """Returns the examples; of texts that are gone on with, what follows belongs to them."""
    content = table.content
    if isinstance(content, Texts) and recipe.task.name == "text_generation":
        pairs = zip(content.first, table.labels, strict=True)
        return Texts(tuple(f"{prompt} {follows}".strip() for prompt, follows in pairs))
    return content


def _key(recipe: Recipe, table: Table, content: Content, random_weights: bool) -> str:
    choice = recipe.backbone
    facts: list[Any] = [_VERSION, choice.name, choice.tag, _weights_digest(recipe), random_weights]
    facts.append(keras.config.dtype_policy().name)
    if isinstance(content, Texts):
        facts += [choice.sequence_length, recipe.data.truncation, content.second is not None]
    else:
        facts += [choice.side, choice.channels, choice.alpha]
        facts += [recipe.task.pooling or "avg", recipe.data.resize, inspection.PIXELS]
    key = hashlib.sha256(repr(facts).encode())
    for digest in _digests(table, content):
        key.update(digest)
    return key.hexdigest()[:32]


def _digests(table: Table, content: Content) -> list[bytes]:
    """Returns of each example a digest of what a network gets of it, to the letter.

    What counts as a copy, whatever its case and spaces, is `copies.identities`'s to say.
    """
    if isinstance(content, Texts):
        second = content.second or ("",) * len(content)
        joined = (f"{a}\0{b}" for a, b in zip(content.first, second, strict=True))
        return [hashlib.sha256(text.encode("utf-8", "replace")).digest() for text in joined]
    if isinstance(content, Arrays):
        shape = repr((content.values.dtype, content.values.shape[1:])).encode()
        return [hashlib.sha256(shape + value.tobytes()).digest() for value in content.values]
    if table.looks is not None and len(table.looks) == len(content):
        return [digest.tobytes() for digest in table.looks.digest]
    if isinstance(content, Encoded):
        return [hashlib.sha256(data).digest() for data in content.data]
    assert isinstance(content, Files), type(content)
    return [_file_digest(Path(path)) for path in content.paths]


def _weights_digest(recipe: Recipe) -> str:
    """Returns what tells weights from others of the same name."""
    choice = recipe.backbone
    facts = backbones.get(choice.name).weights.get(choice.tag.removeprefix("none:"))
    if facts is not None:
        source = facts.source
        return source.member_sha256 if isinstance(source, Wheel) else str(source)
    path = Path(choice.tag.removeprefix("none:")).expanduser()
    if path.is_file():
        return _file_digest(path).hex()
    if not path.is_dir():
        return ""
    whole = hashlib.sha256()
    for file in sorted(path.iterdir()):
        of_run = (path / "recipe.yaml").is_file()
        wanted = (
            file.name in ("model.keras", "tokenizer.json")
            if of_run
            else (file.suffix in _WEIGHT_FILES)
        )
        if wanted and file.is_file():
            whole.update(file.name.encode() + _file_digest(file))
    return whole.hexdigest()


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
