"""Pictures as `tf.data` batches: decode, turn, resize, augment - never normalise.

Every picture leaves as `float32` in 0..255, RGB unless other channels are asked for: 1 is grey, any
other number is read from `.npy` files. Scaling belongs to the model. The order of examples
is `order(n, seed, epoch)`, or a `sampling`'s, and an augmentation's key is (seed, epoch, example),
so that any step of any epoch can be produced without having produced those before it.

    train = images.dataset(split.content, split.labels, image_size=(160, 160), batch_size=32,
                           num_classes=10, seed=0, shuffle=True, epochs=range(0, 5))
    model.fit(train, steps_per_epoch=images.steps(len(split.labels), 32), epochs=5)
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerastune_ft.data import inspection
from kerastune_ft.data.decoding import Preparation, Resize, Tensor, decode, resize, upright
from kerastune_ft.data.tables import Arrays, Encoded, Files, Pictures, Prepared
from kerastune_ft.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from kerastune_ft.data import Split
    from kerastune_ft.data.sampling import Sampling


class Augment(Protocol):
    """Changes pictures at random, but as a function of a key alone."""

    def example(self, image: Tensor, key: Tensor) -> Tensor:
        """Changes one `float32 (height, width, channels)`; `key` is (seed, epoch, example).

        An example that is drawn again in an epoch has another number then: `Draws.keys`.
        """

    def batch(self, images: Tensor, labels: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Changes a batch and its labels, `float32`, 2-D; `key` is (seed, epoch, step)."""


def order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Returns the order of `n` examples in an epoch: a permutation, the same on every machine."""
    return np.random.default_rng([seed, epoch]).permutation(n).astype(np.int64)


def steps(n: int, batch_size: int) -> int:
    """Returns how many batches an epoch has; the last may be smaller."""
    return math.ceil(n / batch_size)


def decode_bytes(
    data: bytes,
    image_size: tuple[int, int],
    resize_how: Resize = "squash",
    *,
    name: str,
    channels: int = 3,
) -> NDArray[np.float32]:
    """Decodes and resizes one picture exactly as training does.

    Args:
        data: A picture file.
        image_size: Height and width wanted, in pixels.
        resize_how: As for `resize`.
        name: What an error calls the picture.
        channels: As for `decode`.

    Returns:
        `float32 (height, width, channels)`, RGB if there are 3, in 0..255.

    Raises:
        DataError: If it is no picture that can be read, or not with so many channels.
    """
    found = inspection.inspect_all([data])[0]
    if isinstance(found, inspection.Unusable):
        raise _cannot_be_read(name, found)
    if not inspection.gives(found.channels, channels):
        raise _wrong_channels([(name, found.channels)], channels)
    deep = found.through_pillow and inspection.header(data, channels)[1]
    how = Preparation(image_size, resize_how, channels, _colours(channels), whole=not deep)
    with tf.device("/CPU:0"):
        pixels = how.prepared(tf.constant(data), found.through_pillow, found.orientation, deep)
        return np.asarray(how.shown(pixels))


def decode_file(
    path: Path, image_size: tuple[int, int], resize_how: Resize = "squash", *, channels: int = 3
) -> NDArray[np.float32]:
    """Reads one picture file as `decode_bytes` does; errors name the file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _cannot_be_opened(str(path), error) from error
    return decode_bytes(data, image_size, resize_how, name=str(path), channels=channels)


def check_channels(splits: Iterable[Split], channels: int) -> None:
    """Raises `DataError` if there are pictures that cannot be read with so many channels.

    Reads no more than the first bytes of files, and only of those that TensorFlow does not decode.

    Args:
        splits: Of pictures; the error names them as the split does.
        channels: What the network takes.
    """
    wrong = [
        (split.names[row], stored)
        for split in splits
        for row, stored in _headers(split.names, _pictures(split), channels)[0]
    ]
    if wrong:
        raise _wrong_channels(wrong, channels)


def dataset(
    content: Pictures,
    labels: ArrayLike,
    *,
    image_size: tuple[int, int],
    batch_size: int,
    num_classes: int,
    channels: int = 3,
    resize: Resize = "squash",
    seed: int = 0,
    shuffle: bool = False,
    epochs: range | None = None,
    augment: Augment | None = None,
    class_weights: ArrayLike | None = None,
    first_step: int = 0,
    sampling: Sampling | None = None,
    watch: Callable[[int, bytes], None] | None = None,
) -> tf.data.Dataset:
    """Returns a finite stream of batches over whole epochs, in a reproducible order.

    A batch never spans two epochs: the last one of an epoch may be smaller. Give `fit`
    `steps_per_epoch=steps(len(labels), batch_size)`. At no time are more pictures decoded than a
    few batches.

    Args:
        content: The pictures.
        labels: Class numbers, `(n,)`, which become one-hot; or numbers of any kind, such as several
            labels of 0 and 1 or targets of a regression, `(n, outputs)`, which stay as they are.
        image_size: Height and width, in pixels.
        batch_size: Examples per batch.
        num_classes: Width of the labels: the classes, or the outputs of 2-D labels.
        channels: 3 for RGB, 1 for grey (`inspection.grey`); others only of arrays and `.npy` files.
        resize: How pictures of another shape are brought to `image_size`.
        seed: Of the order, and first part of the keys for `augment`.
        shuffle: Whether an epoch goes by `order(n, seed, epoch)`; else by the table.
        epochs: The numbers of the epochs to stream; None is `range(1)`.
        augment: Changes pictures after resizing.
        class_weights: `(num_classes,)`: adds sample weights. Mixed labels get mixed weights. Only
            for class numbers.
        first_step: Batches of the first epoch to leave out, without decoding them.
        sampling: Draws the examples of an epoch, where it is not every one once; with `shuffle`.
        watch: As for `reader`.

    Returns:
        Batches of images `float32 (batch, height, width, channels)` in 0..255, labels
        `float32 (batch, num_classes)` and, with `class_weights`, weights `float32 (batch,)`.

    Raises:
        DataError: If there are pictures that cannot be read with so many channels.
    """
    epochs = range(1) if epochs is None else epochs
    n, per_epoch = len(content), steps(len(content), batch_size)
    shape = (*image_size, channels)
    assert class_weights is None or np.ndim(labels) == 1, "only classes have weights"
    with tf.device("/CPU:0"):  # tf.data runs there; a table on the GPU would travel back
        how, read = reader(content, image_size, channels, resize, watch)
        labels_of = _labeller(labels, n, num_classes)
        weights = tf.constant(
            np.asarray(1.0 if class_weights is None else class_weights, "float32")
        )

    # What changes no single picture need not take them one by one.
    single = augment is not None and getattr(augment, "changes_examples", True)
    together = isinstance(content, Prepared) and not single

    def load(turn: Tensor) -> tuple[Tensor, Tensor]:
        epoch, index, _, key = tf.unstack(turn, 4)

        def picture() -> Tensor:
            pixels = read(index)
            if augment is None or not single:
                return pixels
            return augment.example(how.shown(pixels), _key(seed, epoch, key))

        kind = (shape, "float32") if single else (how.shape, how.dtype)
        # A filler only completes the last batch of an epoch; `finish` cuts it off.
        image = tf.cond(index < 0, lambda: tf.zeros(*kind), picture)
        return tf.ensure_shape(image, kind[0]), turn

    def load_together(turns: Tensor) -> tuple[Tensor, Tensor]:
        turns = turns[turns[:, 1] >= 0]
        return read(turns[:, 1]), turns

    def finish(images: Tensor, turns: Tensor) -> tuple[Tensor, ...]:
        turns = turns[turns[:, 1] >= 0]
        images, targets = images[: tf.shape(turns)[0]], labels_of(turns[:, 1])
        if not single:
            images = how.shown(images)
        if augment is not None:
            images, targets = augment.batch(images, targets, _key(seed, turns[0, 0], turns[0, 2]))
        images = tf.ensure_shape(images, (None, *shape))
        if class_weights is None:
            return images, targets
        return images, targets, tf.linalg.matvec(targets, weights)

    turns = _turns(n, batch_size, epochs, seed if shuffle else None, sampling)
    turns = turns.skip(first_step * batch_size)
    ahead = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True}
    if together:
        loaded = turns.batch(batch_size, drop_remainder=True).map(load_together, **ahead)
    else:
        loaded = turns.map(load, **ahead).batch(batch_size, drop_remainder=True)
    batches = (
        loaded.map(finish, num_parallel_calls=1, deterministic=True)
        .apply(tf.data.experimental.assert_cardinality(len(epochs) * per_epoch - first_step))
        .prefetch(2)
    )
    return batches.with_options(options())


def options() -> tf.data.Options:
    """Returns what every stream wants.

    TensorFlow's tuning of a stream runs in a thread that sleeps longer and longer, and whoever is
    done with the stream can be made to wait until it wakes up: ten seconds were seen, in which
    nothing was computed. Without it, what runs in parallel has a thread per processor, at most 16.
    """
    made = tf.data.Options()
    made.autotune.enabled = False
    # Sharding by file cannot apply to numbers; without this MirroredStrategy warns and tries.
    made.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return made


def loader(
    content: Pictures,
    image_size: tuple[int, int],
    channels: int = 3,
    resize: Resize = "squash",
    seed: int = 0,
    augment: Augment | None = None,
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Returns the graph function that makes of an example what the network gets of it.

    Args:
        content: The pictures.
        image_size: Height and width, in pixels.
        channels: Of what the function returns.
        resize: How pictures of another shape are brought to `image_size`.
        seed: First part of the keys for `augment`.
        augment: Changes pictures after resizing.

    Returns:
        From the example's row, the epoch and the example's number in its key, all `int64 ()`, to
        `float32 (height, width, channels)` in 0..255.

    Raises:
        DataError: If there are pictures that cannot be read with so many channels.
    """
    how, read = reader(content, image_size, channels, resize)

    def picture(index: Tensor, epoch: Tensor, key: Tensor) -> Tensor:
        image = how.shown(read(index))
        return image if augment is None else augment.example(image, _key(seed, epoch, key))

    return picture


def _key(seed: int, epoch: Tensor, number: Tensor) -> Tensor:
    return tf.stack([tf.cast(seed, tf.int64), epoch, number])


def _labeller(labels: ArrayLike, n: int, width: int) -> Callable[[Tensor], Tensor]:
    """Returns a graph function from examples' numbers to their labels, `float32 (batch, width)`."""
    table = np.asarray(labels)
    assert len(table) == n, f"{len(table)} labels for {n} pictures"
    if table.ndim == 2:
        assert table.shape[1] == width, f"labels of {table.shape[1]} numbers for {width} outputs"
        rows = tf.constant(table.astype(np.float32))
        return lambda indices: tf.gather(rows, indices)
    assert table.ndim == 1, f"labels of shape {table.shape}"
    numbers = table.astype(np.int64)
    assert not n or 0 <= numbers.min() <= numbers.max() < width, "label out of range"
    classes = tf.constant(numbers)
    return lambda indices: tf.one_hot(tf.gather(classes, indices), width)


def _turns(
    n: int, batch_size: int, epochs: range, seed: int | None, sampling: Sampling | None
) -> tf.data.Dataset:
    """Streams `int64 (4,)`: epoch, example, step, the example's number in its key.

    Whole batches only: the last one of an epoch is filled up with examples of number -1.
    """
    step = np.arange(steps(n, batch_size) * batch_size, dtype=np.int64) // batch_size

    def one_epoch(epoch: NDArray[np.int64]) -> NDArray[np.int64]:
        examples = np.full((2, len(step)), -1, np.int64)
        if seed is not None and sampling is not None:
            drawn = sampling.draws(seed, int(epoch))
            examples[:, :n] = drawn.rows, drawn.keys
        else:
            examples[:, :n] = np.arange(n) if seed is None else order(n, seed, int(epoch))
        return np.stack([np.full_like(step, epoch), examples[0], step, examples[1]], axis=1)

    def rows(epoch: Tensor) -> tf.data.Dataset:
        table = tf.numpy_function(one_epoch, [epoch], tf.int64)
        return tf.data.Dataset.from_tensor_slices(tf.ensure_shape(table, (len(step), 4)))

    return tf.data.Dataset.range(epochs.start, epochs.stop, epochs.step).flat_map(rows)


def reader(
    content: Pictures,
    image_size: tuple[int, int],
    channels: int,
    resize: Resize,
    watch: Callable[[int, bytes], None] | None = None,
) -> tuple[Preparation, Callable[[Tensor], Tensor]]:
    """Returns how pictures are prepared, and a graph function that prepares one.

    Args:
        content: The pictures.
        image_size: Height and width, in pixels.
        channels: Of what the network gets.
        resize: How pictures of another shape are brought to `image_size`.
        watch: Is called with the row and the bytes of every file that is read.

    Returns:
        The preparation, and a function from a row, `int64 ()`, to what `Preparation.prepared`
        returns of it; of `Prepared` from several rows as well.

    Raises:
        DataError: If there are pictures that cannot be read with so many channels.
    """
    if isinstance(content, Prepared):
        return _prepared_reader(content, image_size, channels, resize)
    n = len(content)
    names = content.paths if isinstance(content, Files) else [f"picture {i}" for i in range(n)]
    wrong, deep = _headers(names, content, channels)
    if wrong:
        raise _wrong_channels([(names[row], stored) for row, stored in wrong], channels)
    if isinstance(content, Arrays):
        return _array_reader(content, image_size, channels, resize)
    how = Preparation(image_size, resize, channels, _colours(channels), whole=not deep.any())
    # What no picture needs is left out of the graph.
    facts = [
        _column(content.through_pillow, False),
        _column(content.orientations, 1),
        _column(deep, False),
    ]
    if watch is not None:
        seen = watch

        def load(row: Any) -> bytes:
            if isinstance(content, Files):
                data = Path(content.paths[row]).read_bytes()
            else:
                data = content.data[row]
            seen(int(row), data)
            return data

        def read(index: Tensor) -> Tensor:
            return tf.numpy_function(load, [index], tf.string)

    elif isinstance(content, Files):
        paths = tf.constant([os.fsencode(path) for path in content.paths], tf.string)

        def read(index: Tensor) -> Tensor:
            return tf.io.read_file(paths[index])

    else:

        def read(index: Tensor) -> Tensor:  # a constant tensor would copy all of them
            return tf.numpy_function(lambda i: content.data[i], [index], tf.string)

    return how, lambda index: how.prepared(read(index), *(fact(index) for fact in facts))


def watcher(
    content: Files | Encoded, digests: NDArray[Any], changed: list[str]
) -> Callable[[int, bytes], None]:
    """Returns a `watch` for `reader` that lists pictures which are not what was inspected.

    Args:
        content: The pictures.
        digests: Of each the beginning of its sha256, `(n,)`.
        changed: Receives their names.
    """

    def watch(row: int, data: bytes) -> None:
        if hashlib.sha256(data).digest()[: digests.itemsize] != digests[row].tobytes():
            changed.append(content.paths[row] if isinstance(content, Files) else f"picture {row}")

    return watch


def _prepared_reader(
    content: Prepared, image_size: tuple[int, int], channels: int, resize: Resize
) -> tuple[Preparation, Callable[[Tensor], Tensor]]:
    values, rows = content.values, content.rows
    assert (*image_size, channels) == (*values.shape[1:3], content.channels), "of another size"
    assert resize == content.resize, "resized otherwise"
    whole = values.dtype == np.uint8
    colours = values.shape[3] if whole else _colours(channels)
    how = Preparation(image_size, resize, channels, colours, whole)

    def read(index: Tensor) -> Tensor:  # a constant tensor would copy all of them
        pixels = tf.numpy_function(lambda i: values[rows[i]], [index], how.dtype)
        return tf.ensure_shape(pixels, (*index.shape, *how.shape))

    return how, read


def _column(values: NDArray[Any], usual: Any) -> Callable[[Tensor], Any]:
    if (values == usual).all():
        return lambda index: usual
    table = tf.constant(values)
    return lambda index: table[index]


def _colours(channels: int) -> int:
    """Returns what files of 8 bits are resized in."""
    return 3 if channels in inspection.COLOURS else channels


def _array_reader(
    content: Arrays, image_size: tuple[int, int], channels: int, resize: Resize
) -> tuple[Preparation, Callable[[Tensor], Tensor]]:
    values = content.values if content.values.ndim == 4 else content.values[..., None]
    assert values.dtype in (np.uint8, np.uint16), values.dtype
    whole = values.dtype == np.uint8
    how = Preparation(image_size, resize, channels, values.shape[3], whole)
    table = tf.constant(values)

    def read(index: Tensor) -> Tensor:
        image = table[index]
        return how.of_array(image if whole else tf.cast(image, tf.float32) / 257.0)

    return how, read


def _pictures(split: Split) -> Pictures:
    content = split.content
    assert isinstance(content, Pictures), type(content)
    return content


def _headers(
    names: Sequence[str], content: Pictures, channels: int
) -> tuple[list[tuple[int, int | None]], NDArray[np.bool_]]:
    """Returns the row and the stored channels of each picture that does not give `channels`.

    And which pictures have more than 8 bits, `bool (n,)`.
    """
    deep = np.zeros(len(content), bool)
    if isinstance(content, Prepared):
        return [], deep
    if isinstance(content, Arrays):
        stored = content.values.shape[3] if content.values.ndim == 4 else 1
        fit = inspection.gives(stored, channels)
        return [] if fit else [(row, stored) for row in range(len(content))], deep
    wrong: list[tuple[int, int | None]] = []
    asked = content.through_pillow | (channels not in inspection.COLOURS)
    for row in np.flatnonzero(asked).tolist():
        found = None
        if content.through_pillow[row]:
            picture = Path(content.paths[row]) if isinstance(content, Files) else content.data[row]
            try:
                found, deep[row] = inspection.header(picture, channels)
            except (OSError, ValueError) as error:
                raise _cannot_be_opened(names[row], error) from error
        if not inspection.gives(found, channels):
            wrong.append((row, found))
    return wrong, deep


def _cannot_be_read(name: str, found: inspection.Unusable) -> DataError:
    formats = ", ".join(inspection.FORMATS)
    return DataError(
        f"{name}: cannot be read as a picture ({found.kind}: {found.detail}); "
        f"readable formats are {formats}."
    )


def _cannot_be_opened(name: str, error: Exception) -> DataError:
    said = error.strerror if isinstance(error, OSError) else None
    return _cannot_be_read(name, inspection.Unusable("unreadable", said or str(error)))


def _wrong_channels(wrong: Sequence[tuple[str, int | None]], channels: int) -> DataError:
    """Returns the error for pictures, each with its name and the channels it stores."""
    stores = {None: "a picture of 1 or 3 channels", 1: "1 channel"}
    shown = [f"'{name}' ({stores.get(n, f'{n} channels')})" for name, n in wrong[:5]]
    more = f" and {len(wrong) - 5:,} more" if len(wrong) > 5 else ""
    ways = []
    if len(kinds := {stored for _, stored in wrong}) == 1:
        ways.append(f"set backbone.channels to {kinds.pop() or '3 or 1'}")
    either = "pictures or " if channels in inspection.COLOURS else ""
    ways.append(f"give {either}.npy files of shape (height, width, {channels})")
    return DataError(
        f"{', '.join(shown)}{more}: cannot be read with backbone.channels: {channels}; "
        f"{', or '.join(ways)}."
    )


__all__ = [
    "Arrays", "Augment", "Encoded", "Files", "Resize", "check_channels", "dataset", "decode",
    "decode_bytes", "decode_file", "loader", "order", "reader", "resize", "steps", "upright",
]  # fmt: skip
