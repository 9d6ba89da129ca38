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

import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerastune_ft.data import inspection
from kerastune_ft.data.tables import Arrays, Encoded, Files, Pictures
from kerastune_ft.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from kerastune_ft.data import Split
    from kerastune_ft.data.sampling import Sampling

Resize = Literal["squash", "crop", "pad"]
Tensor: TypeAlias = Any  # TensorFlow ships no types


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


def decode(data: Tensor, through_pillow: Tensor, orientation: Tensor, channels: int = 3) -> Tensor:
    """Decodes a picture and turns it upright, inside a graph or outside.

    Args:
        data: Scalar string: a whole picture file that `inspection.inspect` found usable.
        through_pillow: Scalar bool, from the inspection.
        orientation: Scalar integer 1..8, from the inspection.
        channels: 3 for RGB, 1 for grey (`inspection.grey`); others are in `.npy` files only.

    Returns:
        `float32 (height, width, channels)` in 0..255.
    """

    def by_tensorflow() -> Tensor:
        # Of its own accord TensorFlow makes grey by other weights for every format.
        image = tf.io.decode_image(data, channels=3, expand_animations=False)
        image = upright(tf.ensure_shape(image, (None, None, 3)), orientation)
        return _with_channels(tf.cast(image, tf.float32), 3, channels)

    def pixels(raw: Any) -> NDArray[np.float32]:  # bytes in a graph, an array outside of one
        return inspection.decode(np.asarray(raw, object).item(), channels)

    def by_pillow() -> Tensor:  # which turns the picture itself
        return tf.numpy_function(pixels, [data], tf.float32)

    if channels in inspection.COLOURS:
        image = tf.cond(through_pillow, by_pillow, by_tensorflow)
    else:
        image = by_pillow()
    return tf.ensure_shape(image, (None, None, channels))


def upright(image: Tensor, orientation: Tensor) -> Tensor:
    """Turns a picture `(height, width, channels)` stored under an EXIF orientation 1..8."""

    def transposed() -> Tensor:
        return tf.transpose(image, (1, 0, 2))

    turns: list[Callable[[], Tensor]] = [
        lambda: image,
        lambda: image[:, ::-1],
        lambda: image[::-1, ::-1],
        lambda: image[::-1],
        transposed,
        lambda: transposed()[:, ::-1],
        lambda: transposed()[::-1, ::-1],
        lambda: transposed()[::-1],
    ]
    return tf.switch_case(tf.cast(orientation, tf.int32) - 1, turns)


def resize(
    image: Tensor, image_size: tuple[int, int], how: Resize = "squash", channels: int = 3
) -> Tensor:
    """Brings a picture `(height, width, channels)` to a size; untouched if it has that size.

    Bilinear, with antialiasing where it shrinks. That costs about 1 ms a photograph on a CPU, and
    without it fine patterns of large photographs turn into noise that no weights were trained on.

    Args:
        image: In 0..255, of any number type.
        image_size: Height and width wanted, in pixels.
        how: `squash` changes the proportions; `crop` cuts the longer side off evenly; `pad` fits
            the whole picture and fills up with black, as Keras's `pad_to_aspect_ratio` does.
        channels: Of the picture.

    Returns:
        `float32 (height, width, channels)` in 0..255.
    """
    height, width = image_size
    image = tf.cast(image, tf.float32)
    shape = tf.shape(image)
    if how == "crop":
        image = _central_window(image, shape, height, width)
        shape = tf.shape(image)
    target = tf.constant([height, width])
    if how == "pad":
        scale = tf.reduce_min(
            tf.constant([height, width], tf.float64) / tf.cast(shape[:2], tf.float64)
        )
        fitted = tf.round(tf.cast(shape[:2], tf.float64) * scale)
        target = tf.clip_by_value(tf.cast(fitted, tf.int32), 1, target)
    image = _bilinear(image, shape, target)
    if how == "pad":
        before = (tf.constant([height, width]) - target) // 2
        after = tf.constant([height, width]) - target - before
        image = tf.pad(image, [[before[0], after[0]], [before[1], after[1]], [0, 0]])
    return tf.ensure_shape(image, (height, width, channels))


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
    with tf.device("/CPU:0"):
        through_pillow = tf.constant(found.through_pillow)
        image = decode(tf.constant(data), through_pillow, found.orientation, channels)
        return np.asarray(resize(image, image_size, resize_how, channels))


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
        for row, stored in _misfits(split.names, _pictures(split), channels)
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

    Returns:
        Batches of images `float32 (batch, height, width, channels)` in 0..255, labels
        `float32 (batch, num_classes)` and, with `class_weights`, weights `float32 (batch,)`.

    Raises:
        DataError: If there are pictures that cannot be read with so many channels.
    """
    epochs = range(1) if epochs is None else epochs
    n, per_epoch = len(content), steps(len(content), batch_size)
    shape = (*image_size, channels)
    names = content.paths if isinstance(content, Files) else [f"picture {i}" for i in range(n)]
    if wrong := [(names[row], stored) for row, stored in _misfits(names, content, channels)]:
        raise _wrong_channels(wrong, channels)
    assert class_weights is None or np.ndim(labels) == 1, "only classes have weights"
    with tf.device("/CPU:0"):  # tf.data runs there; a table on the GPU would travel back
        picture_of = loader(content, image_size, channels, resize, seed, augment)
        label_of = _labeller(labels, n, num_classes)
        weights = tf.constant(
            np.asarray(1.0 if class_weights is None else class_weights, "float32")
        )

    def load(turn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        epoch, index, _, key = tf.unstack(turn, 4)
        # A filler only completes the last batch of an epoch; `finish` cuts it off.
        image = tf.cond(index < 0, lambda: tf.zeros(shape), lambda: picture_of(index, epoch, key))
        label = label_of(tf.maximum(index, 0))
        return tf.ensure_shape(image, shape), label, turn

    def finish(images: Tensor, targets: Tensor, turns: Tensor) -> tuple[Tensor, ...]:
        real = tf.reduce_sum(tf.cast(turns[:, 1] >= 0, tf.int32))
        images, targets = images[:real], targets[:real]
        if augment is not None:
            key = tf.stack([tf.cast(seed, tf.int64), turns[0, 0], turns[0, 2]])
            images, targets = augment.batch(images, targets, key)
            images = tf.ensure_shape(images, (None, *shape))
        if class_weights is None:
            return images, targets
        return images, targets, tf.linalg.matvec(targets, weights)

    turns = _turns(n, batch_size, epochs, seed if shuffle else None, sampling)
    batches = (
        turns.skip(first_step * batch_size)
        .map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(batch_size, drop_remainder=True)
        .map(finish, num_parallel_calls=1, deterministic=True)
        .apply(tf.data.experimental.assert_cardinality(len(epochs) * per_epoch - first_step))
        .prefetch(2)
    )
    options = tf.data.Options()
    # Sharding by file cannot apply to numbers; without this MirroredStrategy warns and tries.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return batches.with_options(options)


_resize = resize  # `loader` has an argument of that name


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
    """
    read = _reader(content, channels)

    def picture(index: Tensor, epoch: Tensor, key: Tensor) -> Tensor:
        image = _resize(read(index), image_size, resize, channels)
        if augment is not None:
            image = augment.example(image, tf.stack([tf.cast(seed, tf.int64), epoch, key]))
        return image

    return picture


def _labeller(labels: ArrayLike, n: int, width: int) -> Callable[[Tensor], Tensor]:
    """Returns a graph function from an example's number to its label, `float32 (width,)`."""
    table = np.asarray(labels)
    assert len(table) == n, f"{len(table)} labels for {n} pictures"
    if table.ndim == 2:
        assert table.shape[1] == width, f"labels of {table.shape[1]} numbers for {width} outputs"
        rows = tf.constant(table.astype(np.float32))
        return lambda index: rows[index]
    assert table.ndim == 1, f"labels of shape {table.shape}"
    numbers = table.astype(np.int64)
    assert not n or 0 <= numbers.min() <= numbers.max() < width, "label out of range"
    classes = tf.constant(numbers)
    return lambda index: tf.one_hot(classes[index], width)


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


def _reader(content: Pictures, channels: int) -> Callable[[Tensor], Tensor]:
    """Returns a graph function from an example's number to its picture, `(height, width, c)`."""
    if isinstance(content, Arrays):
        return _array_reader(content, channels)
    through_pillow = tf.constant(content.through_pillow)
    orientations = tf.constant(content.orientations)
    if isinstance(content, Files):
        paths = tf.constant([os.fsencode(path) for path in content.paths], tf.string)

        def read(index: Tensor) -> Tensor:
            return tf.io.read_file(paths[index])

    else:

        def read(index: Tensor) -> Tensor:  # a constant tensor would copy all of them
            return tf.numpy_function(lambda i: content.data[i], [index], tf.string)

    def decoded(index: Tensor) -> Tensor:
        return decode(read(index), through_pillow[index], orientations[index], channels)

    return decoded


def _array_reader(content: Arrays, channels: int) -> Callable[[Tensor], Tensor]:
    values = content.values if content.values.ndim == 4 else content.values[..., None]
    assert values.dtype in (np.uint8, np.uint16), values.dtype
    table = tf.constant(values)
    unit = 1.0 if values.dtype == np.uint8 else 257.0

    def read(index: Tensor) -> Tensor:
        image = tf.cast(table[index], tf.float32) / unit
        return _with_channels(image, values.shape[-1], channels)

    return read


def _with_channels(image: Tensor, stored: int, channels: int) -> Tensor:
    if stored == channels:
        return image
    return tf.repeat(image, 3, axis=2) if stored == 1 else inspection.grey(image)


def _pictures(split: Split) -> Pictures:
    content = split.content
    assert isinstance(content, Files | Encoded | Arrays), type(content)
    return content


def _misfits(
    names: Sequence[str], content: Pictures, channels: int
) -> list[tuple[int, int | None]]:
    """Returns the row and the stored channels of each picture that does not give `channels`."""
    if isinstance(content, Arrays):
        stored = content.values.shape[3] if content.values.ndim == 4 else 1
        fit = inspection.gives(stored, channels)
        return [] if fit else [(row, stored) for row in range(len(content))]
    wrong: list[tuple[int, int | None]] = []
    for row, through_pillow in enumerate(content.through_pillow.tolist()):
        found = None
        if through_pillow:
            picture = Path(content.paths[row]) if isinstance(content, Files) else content.data[row]
            try:
                found = inspection.stored_channels(picture)
            except (OSError, ValueError) as error:
                raise _cannot_be_opened(names[row], error) from error
        if not inspection.gives(found, channels):
            wrong.append((row, found))
    return wrong


def _bilinear(image: Tensor, shape: Tensor, target: Tensor) -> Tensor:
    def shrunk() -> Tensor:
        # The weights of the antialiasing kernel can sum to a hair more than 1.
        resized = tf.image.resize(image, target, method="bilinear", antialias=True)
        return tf.clip_by_value(resized, 0.0, 255.0)

    def enlarged() -> Tensor:  # the same figures as with antialiasing, six times faster
        return tf.image.resize(image, target, method="bilinear")

    return tf.case(
        [
            (tf.reduce_all(tf.equal(shape[:2], target)), lambda: image),
            (tf.reduce_any(shape[:2] > target), shrunk),
        ],
        default=enlarged,
    )


def _central_window(image: Tensor, shape: Tensor, height: int, width: int) -> Tensor:
    """Cuts out the largest centred window that has the proportions of `height` to `width`."""
    tall, wide = tf.cast(shape[0], tf.float64), tf.cast(shape[1], tf.float64)
    scale = tf.minimum(tall / height, wide / width)
    window_height = tf.maximum(tf.cast(tf.round(height * scale), tf.int32), 1)
    window_width = tf.maximum(tf.cast(tf.round(width * scale), tf.int32), 1)
    top, left = (shape[0] - window_height) // 2, (shape[1] - window_width) // 2
    return image[top : top + window_height, left : left + window_width]


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
    "decode_bytes", "decode_file", "loader", "order", "resize", "steps", "upright",
]  # fmt: skip
