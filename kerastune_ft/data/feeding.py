"""Streams a split as training and scoring want it, whatever its content is.

stream = dataset(splits.train, recipe, width=5, training=True, epochs=range(3))
steps(splits.train, recipe)                       # batches per epoch
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerastune_ft.data import activations, augmentation, images, texts
from kerastune_ft.data.activations import ACTIVATIONS, Activations
from kerastune_ft.data.sampling import Sampling
from kerastune_ft.data.tables import Arrays, Encoded, Files, Pictures, first_few
from kerastune_ft.data.text_augmentation import Changes
from kerastune_ft.data.texts import Ragged, Tokens
from kerastune_ft.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from kerastune_ft.data import Split
    from kerastune_ft.recipe import Recipe


def steps(split: Split, recipe: Recipe) -> int:
    """Returns how many batches an epoch of a split has."""
    if isinstance(split.content, Tokens):
        return texts.steps(split.content.lengths, split.content.batching)
    return images.steps(len(split), recipe.data.batch_size)


def dataset(
    split: Split,
    recipe: Recipe,
    width: int,
    *,
    training: bool = False,
    epochs: range | None = None,
    class_weights: ArrayLike | None = None,
    first_step: int = 0,
    sampling: Sampling | None = None,
    held: Activations | None = None,
) -> tf.data.Dataset:
    """Returns a finite stream of batches over whole epochs, in a reproducible order.

    Args:
        split: Of pictures, or of texts that are tokenised.
        recipe: Says sizes, augmentation and seed.
        width: Outputs of the model.
        training: Whether the order is drawn anew for every epoch and examples are augmented.
        epochs: The numbers of the epochs to stream; None is `range(1)`.
        class_weights: `(width,)`: adds sample weights by class.
        first_step: Batches of the first epoch to leave out.
        sampling: `Splits.sampling` of the recipe; for training.
        held: Takes the place of the pictures or tokens, in the same order; changes are in it.

    Returns:
        Batches `(inputs, labels)` or `(inputs, labels, weights)`.
    """
    seed = recipe.train.seed
    drawn = training and recipe.data.sampling != "natural"
    assert drawn == (sampling is not None), "the recipe's sampling belongs to training alone"
    if isinstance(split.content, Tokens):
        return of_tokens(
            split.content,
            split.labels,
            width,
            seed=seed if training else None,
            epochs=epochs,
            class_weights=class_weights,
            first_step=first_step,
            sampling=sampling,
            changes=changes_of(recipe) if training else None,
            held=held,
        )
    choice = recipe.backbone
    if held is not None:
        weights = None if class_weights is None else np.asarray(class_weights, np.float32)
        return activations.dataset(
            held,
            _table(split.labels, width),
            batch_size=recipe.data.batch_size,
            seed=seed if training else None,
            epochs=range(1) if epochs is None else epochs,
            class_weights=weights,
            first_step=first_step,
            sampling=sampling,
        ).with_options(images.options())
    return images.dataset(
        _pictures(split),
        split.labels,
        image_size=choice.side,
        channels=choice.channels,
        batch_size=recipe.data.batch_size,
        num_classes=width,
        resize=recipe.data.resize,
        seed=seed,
        shuffle=training,
        epochs=epochs,
        augment=_augmentation(recipe) if training else None,
        class_weights=class_weights,
        first_step=first_step,
        sampling=sampling,
    )


def pictures(
    split: Split, recipe: Recipe, rows: Sequence[int], epochs: Sequence[int | None]
) -> Iterator[list[NDArray[np.float32]]]:
    """Yields what the network gets of some pictures, made as `dataset` makes it.

    Args:
        split: Of pictures.
        recipe: Says sizes, augmentation and seed.
        rows: Which pictures.
        epochs: What each is yielded for: an epoch whose changes it gets, as at its first draw; None
            for it unchanged, as in validation.

    Yields:
        Per row a list, one `float32 (height, width, channels)` in 0..255 per epoch.
    """
    choice, data = recipe.backbone, recipe.data
    facts = (_pictures(split), choice.side, choice.channels, data.resize, recipe.train.seed)
    with tf.device("/CPU:0"):
        plain = changed = images.loader(*facts)
        if any(epoch is not None for epoch in epochs):
            changed = images.loader(*facts, _augmentation(recipe))

    def load(turn: Any) -> Any:
        row, epoch = turn[0], turn[1]
        return tf.cond(epoch < 0, lambda: plain(row, epoch, row), lambda: changed(row, epoch, row))

    turns = [(row, -1 if epoch is None else epoch) for row in rows for epoch in epochs]
    table = np.asarray(turns, np.int64).reshape(-1, 2)
    stream = tf.data.Dataset.from_tensor_slices(table).map(load, num_parallel_calls=2)
    made = stream.with_options(images.options()).as_numpy_iterator()
    for _ in rows:
        yield [next(made) for _ in epochs]


def changes_of(recipe: Recipe) -> Changes | None:
    """Returns what a recipe changes in training texts, None if nothing."""
    settings = recipe.data.text_augmentation
    if not any(settings.model_dump().values()):
        return None
    return Changes(settings, recipe.data.truncation, recipe.train.seed)


def _augmentation(recipe: Recipe) -> augmentation.Augmentation:
    choice = recipe.backbone
    return augmentation.Augmentation(recipe.data.augmentation, choice.side, choice.channels)


def _pictures(split: Split) -> Pictures:
    content = split.content
    assert isinstance(content, Pictures), type(content)
    return content


def of_tokens(
    tokens: Tokens,
    labels: ArrayLike,
    width: int,
    *,
    seed: int | None = None,
    epochs: range | None = None,
    class_weights: ArrayLike | None = None,
    first_step: int = 0,
    sampling: Sampling | None = None,
    changes: Changes | None = None,
    held: Activations | None = None,
) -> tf.data.Dataset:
    """Streams batches of tokens, padded to the bucket of the longest of each.

    Args:
        tokens: What to stream.
        labels: Class numbers `(n,)`, which become one-hot; 2-D numbers, which stay as they are.
            Not looked at where every token has a label of its own.
        width: Of the labels.
        seed: Of the order; None streams the shortest first: `plain_order`.
        epochs: The numbers of the epochs; None is `range(1)`.
        class_weights: `(width,)`: adds sample weights by class.
        first_step: Batches of the first epoch to leave out.
        sampling: Draws the texts of an epoch, where it is not every one once; with `seed`.
        changes: What is changed in the texts, which are then tokenised batch by batch. Who shares
            a batch is decided by their lengths before.
        held: Takes the place of the tokens.

    Returns:
        Batches of inputs, a dict of `int32 (batch, length)`; labels `float32 (batch, width)`, or
        `int32 (batch, length)` with -1 where nothing is learned; and, with `class_weights` or
        where every token has a label, weights `float32 (batch,)`: of the class, or such that
        `losses.TokenCrossentropy` becomes a mean over places.
    """
    assert changes is None or (tokens.marks is None and tokens.targets is None and held is None)
    epochs = range(1) if epochs is None else epochs
    count = texts.steps(tokens.lengths, tokens.batching)
    by_token = tokens.marks is not None or tokens.targets is not None
    table = None if by_token else _table(labels, width)
    weights = None if class_weights is None else np.asarray(class_weights, np.float32)

    # Figures over all batches are means over all places only if every batch is weighed alike.
    places = tokens.places if by_token else np.zeros(0)
    evenly = len(tokens) / max(float(places.sum()), 1.0)

    def batch(rows: NDArray[np.int64], keys: NDArray[np.int64], epoch: int) -> tuple[Any, ...]:
        if changes is None:
            inputs = tokens.padded(rows)
        else:
            inputs = changes.tokens(tokens, rows, epoch, keys).padded(np.arange(len(rows)))
        if held is not None:
            inputs = held.inputs(rows, keys, epoch, inputs)
        if table is None:
            share = evenly if seed is None else len(rows) / max(float(places[rows].sum()), 1.0)
            return inputs, tokens.marked(rows), np.full(len(rows), share, np.float32)
        target = table[rows]
        return (inputs, target) if weights is None else (inputs, target, target @ weights)

    def generate() -> Iterator[tuple[Any, ...]]:
        skipped = first_step
        for epoch in epochs:
            lengths = tokens.lengths
            rows = keys = np.arange(len(lengths))
            if sampling is not None:
                assert seed is not None and tokens.batching.batch_tokens is None
                drawn = sampling.draws(seed, epoch)
                rows, keys, lengths = drawn.rows, drawn.keys, lengths[drawn.rows]
            planned = texts.plan(lengths, tokens.batching, seed=seed, epoch=epoch)
            for places in planned[skipped:]:
                yield batch(rows[places], keys[places], epoch)
            skipped = 0

    numbers = tf.TensorSpec((None, None), tf.int32)
    target = numbers if table is None else tf.TensorSpec((None, width), tf.float32)
    names = tokens.padded(np.zeros(1, np.int64)) if len(tokens) else {}
    specs: dict[str, Any] = dict.fromkeys(names, numbers)
    if held is not None:
        specs = {ACTIVATIONS: held.spec, **dict.fromkeys(held.reads, numbers)}
    signature: tuple[Any, ...] = (specs, target)
    if weights is not None or table is None:
        signature += (tf.TensorSpec((None,), tf.float32),)
    made = tf.data.Dataset.from_generator(generate, output_signature=signature)
    total = len(epochs) * count - first_step
    made = made.apply(tf.data.experimental.assert_cardinality(total)).prefetch(4)
    return made.with_options(images.options())


def plain(
    split: Split,
    recipe: Recipe,
    *,
    view: int | None,
    batch_size: int,
    digests: NDArray[Any] | None = None,
) -> Iterator[tuple[NDArray[np.int64], Any]]:
    """Yields every example once, in the order that is cheapest.

    Args:
        split: Of pictures, or of texts that are tokenised.
        recipe: Says sizes, augmentation and seed.
        view: The epoch whose changes pictures get; None for none.
        batch_size: Examples at a time.
        digests: Of the bytes of each picture that is read, `(n,)`; None asks nothing of them.

    Yields:
        Rows `(batch,)`, and what the model takes of them.

    Raises:
        DataError: If a picture is not the one of its digest.
    """
    content = split.content
    if isinstance(content, Tokens):
        batching = replace(content.batching, batch_size=batch_size, batch_tokens=None)
        for rows in texts.plan(content.lengths, batching):
            yield rows, content.padded(rows)
        return
    choice = recipe.backbone
    changed: list[str] = []
    watch = None
    if digests is not None and isinstance(content, Files | Encoded):
        watch = images.watcher(content, digests, changed)
    stream = images.dataset(
        _pictures(split),
        np.zeros((len(split), 1), np.float32),
        image_size=choice.side,
        channels=choice.channels,
        batch_size=batch_size,
        num_classes=1,
        resize=recipe.data.resize,
        seed=recipe.train.seed,
        epochs=range(view or 0, (view or 0) + 1),
        augment=None if view is None else _augmentation(recipe),
        watch=watch,
    )
    start, batches = 0, iter(stream)
    while True:
        try:
            pictures, _ = next(batches, (None, None))
        except tf.errors.OpError as error:  # what it is now cannot be read
            if watch is not None and isinstance(content, Files):
                changed += [path for path in content.paths if not Path(path).is_file()]
            if changed:
                raise _changed(changed) from error
            raise
        if changed:
            raise _changed(changed)
        if pictures is None:
            return
        yield np.arange(start, start + len(pictures)), pictures
        start += len(pictures)


def _changed(names: Sequence[str]) -> DataError:
    return DataError(
        f"{first_few(names, 3)} changed after being inspected; let nothing write there, "
        "and start the run again."
    )


def digests(split: Split) -> NDArray[Any]:
    """Returns of each example a digest of what a network gets of it, `(n,)`.

    Where inspection has digests of the files, those.
    """
    if split.digests is not None:
        return split.digests
    return np.asarray(list(_digests(split)), np.dtype((np.void, 32)))


def _digests(split: Split) -> Iterator[bytes]:
    """Yields of each example a digest of what a network gets of it."""
    content = split.content
    if isinstance(content, Tokens):
        columns: list[Ragged] = [content.ids]
        if content.segments is not None:
            columns.append(content.segments)
        facts = repr((content.pad_id, content.batching.buckets)).encode()
        for row in range(len(content)):
            texts = (np.int64(c.lengths[row]).tobytes() + c[row].tobytes() for c in columns)
            yield hashlib.sha256(facts + b"".join(texts)).digest()
    elif isinstance(content, Arrays):
        facts = repr((content.values.dtype, content.values.shape[1:])).encode()
        for value in content.values:
            yield hashlib.sha256(facts + value.tobytes()).digest()
    elif isinstance(content, Encoded):
        for data in content.data:
            yield hashlib.sha256(data).digest()
    else:
        assert isinstance(content, Files), type(content)
        for path in content.paths:
            with Path(path).open("rb") as file:
                yield hashlib.file_digest(file, "sha256").digest()


def filled(split: Split, recipe: Recipe, parts: int) -> int:
    """Returns how many examples fill up the batches of a split for so many devices."""
    if isinstance(split.content, Tokens):
        sizes = [len(rows) for rows in texts.plan(split.content.lengths, split.content.batching)]
    else:
        sizes = [len(split) % recipe.data.batch_size]
    return sum(-size % parts for size in sizes)


def plain_order(split: Split) -> NDArray[np.int64] | None:
    """Returns which example stands where in a stream that is not for training.

    Returns:
        Row numbers, `(n,)`; None if the examples keep their order.
    """
    if not isinstance(split.content, Tokens):
        return None
    planned = texts.plan(split.content.lengths, split.content.batching)
    return np.concatenate(planned) if planned else np.zeros(0, np.int64)


def _table(labels: ArrayLike, width: int) -> NDArray[np.float32]:
    numbers = np.asarray(labels)
    if numbers.ndim == 2:
        assert numbers.shape[1] == width, (numbers.shape, width)
        return numbers.astype(np.float32)
    return np.asarray(np.eye(width, dtype=np.float32)[numbers])
