"""Pictures as `tf.data` batches: decode, turn, resize, augment - never normalise.

Every picture leaves as `float32` RGB in 0..255; scaling belongs to the model. The order of examples
is `order(n, seed, epoch)` and an augmentation's key is (seed, epoch, example), so that any step of
any epoch can be produced without having produced those before it.

    train = images.dataset(split.content, split.labels, image_size=(160, 160), batch_size=32,
                           num_classes=10, seed=0, shuffle=True, epochs=range(0, 5))
    model.fit(train, steps_per_epoch=images.steps(len(split.labels), 32), epochs=5)
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerastune_ft.data import inspection
from kerastune_ft.data.tables import Arrays, Content, Encoded, Files
from kerastune_ft.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Resize = Literal["squash", "crop", "pad"]
Tensor: TypeAlias = Any  # TensorFlow ships no types


class Augment(Protocol):
    """Changes pictures at random, but as a function of a key alone."""

    def example(self, image: Tensor, key: Tensor) -> Tensor:
        """Changes one `float32 (height, width, 3)`; `key` is (seed, epoch, example)."""

    def batch(self, images: Tensor, labels: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Changes a batch and its labels, `float32`, 2-D; `key` is (seed, epoch, step)."""


def order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Returns the order of `n` examples in an epoch: a permutation, the same on every machine."""
    return np.random.default_rng([seed, epoch]).permutation(n).astype(np.int64)


def steps(n: int, batch_size: int) -> int:
    """Returns how many batches an epoch has; the last may be smaller."""
    return math.ceil(n / batch_size)


def decode(data: Tensor, through_pillow: Tensor, orientation: Tensor) -> Tensor:
    """Decodes a picture and turns it upright, inside a graph or outside.

    Args:
        data: Scalar string: a whole picture file that `inspection.inspect` found usable.
        through_pillow: Scalar bool, from the inspection.
        orientation: Scalar integer 1..8, from the inspection.

    Returns:
        `uint8 (height, width, 3)`, RGB.
    """

    def by_tensorflow() -> Tensor:
        return tf.io.decode_image(data, channels=3, expand_animations=False)

    def pixels(raw: Any) -> NDArray[np.uint8]:  # bytes in a graph, an array outside of one
        return inspection.decode_with_pillow(np.asarray(raw, object).item())

    def by_pillow() -> Tensor:
        return tf.numpy_function(pixels, [data], tf.uint8)

    image = tf.cond(through_pillow, by_pillow, by_tensorflow)
    return upright(tf.ensure_shape(image, (None, None, 3)), orientation)


def upright(image: Tensor, orientation: Tensor) -> Tensor:
    """Turns a picture `(height, width, 3)` that was stored under an EXIF orientation 1..8."""

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


def resize(image: Tensor, image_size: tuple[int, int], how: Resize = "squash") -> Tensor:
    """Brings a picture `(height, width, 3)` in 0..255 to a size; untouched if it has that size.

    Bilinear, with antialiasing where it shrinks. That costs about 1 ms a photograph on a CPU, and
    without it fine patterns of large photographs turn into noise that no weights were trained on.

    Args:
        image: Any number type.
        image_size: Height and width wanted, in pixels.
        how: `squash` changes the proportions; `crop` cuts the longer side off evenly; `pad` fits
            the whole picture and fills up with black, as Keras's `pad_to_aspect_ratio` does.

    Returns:
        `float32 (height, width, 3)` in 0..255.
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
    return tf.ensure_shape(image, (height, width, 3))


def decode_bytes(
    data: bytes, image_size: tuple[int, int], resize_how: Resize = "squash", *, name: str
) -> NDArray[np.float32]:
    """Decodes and resizes one picture exactly as training does.

    Args:
        data: A picture file.
        image_size: Height and width wanted, in pixels.
        resize_how: As for `resize`.
        name: What an error calls the picture.

    Returns:
        `float32 (height, width, 3)`, RGB in 0..255.

    Raises:
        DataError: If it is no picture that can be read.
    """
    found = inspection.inspect_all([data])[0]
    if isinstance(found, inspection.Unusable):
        raise _cannot_be_read(name, found)
    with tf.device("/CPU:0"):
        image = decode(tf.constant(data), tf.constant(found.through_pillow), found.orientation)
        return np.asarray(resize(image, image_size, resize_how))


def decode_file(
    path: Path, image_size: tuple[int, int], resize_how: Resize = "squash"
) -> NDArray[np.float32]:
    """Reads one picture file as `decode_bytes` does; errors name the file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        unusable = inspection.Unusable("unreadable", error.strerror or str(error))
        raise _cannot_be_read(str(path), unusable) from error
    return decode_bytes(data, image_size, resize_how, name=str(path))


def dataset(
    content: Content,
    labels: ArrayLike,
    *,
    image_size: tuple[int, int],
    batch_size: int,
    num_classes: int,
    resize: Resize = "squash",
    seed: int = 0,
    shuffle: bool = False,
    epochs: range | None = None,
    augment: Augment | None = None,
    class_weights: ArrayLike | None = None,
    first_step: int = 0,
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
        resize: How pictures of another shape are brought to `image_size`.
        seed: Of the order, and first part of the keys for `augment`.
        shuffle: Whether an epoch goes by `order(n, seed, epoch)`; else by the table.
        epochs: The numbers of the epochs to stream; None is `range(1)`.
        augment: Changes pictures after resizing.
        class_weights: `(num_classes,)`: adds sample weights. Mixed labels get mixed weights. Only
            for class numbers.
        first_step: Batches of the first epoch to leave out, without decoding them.

    Returns:
        Batches of images `float32 (batch, height, width, 3)` RGB in 0..255, labels
        `float32 (batch, num_classes)` and, with `class_weights`, weights `float32 (batch,)`.
    """
    epochs = range(1) if epochs is None else epochs
    n, per_epoch = len(content), steps(len(content), batch_size)
    assert class_weights is None or np.ndim(labels) == 1, "only classes have weights"
    with tf.device("/CPU:0"):  # tf.data runs there; a table on the GPU would travel back
        read = _reader(content)
        label_of = _labeller(labels, n, num_classes)
        weights = tf.constant(
            np.asarray(1.0 if class_weights is None else class_weights, "float32")
        )

    def load(turn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        epoch, index = turn[0], turn[1]

        def picture() -> Tensor:
            image = _resize(read(index), image_size, resize)
            if augment is not None:
                image = augment.example(image, tf.stack([tf.cast(seed, tf.int64), epoch, index]))
            return image

        # A filler only completes the last batch of an epoch; `finish` cuts it off.
        image = tf.cond(index < 0, lambda: tf.zeros((*image_size, 3)), picture)
        label = label_of(tf.maximum(index, 0))
        return tf.ensure_shape(image, (*image_size, 3)), label, turn

    def finish(images: Tensor, targets: Tensor, turns: Tensor) -> tuple[Tensor, ...]:
        real = tf.reduce_sum(tf.cast(turns[:, 1] >= 0, tf.int32))
        images, targets = images[:real], targets[:real]
        if augment is not None:
            key = tf.stack([tf.cast(seed, tf.int64), turns[0, 0], turns[0, 2]])
            images, targets = augment.batch(images, targets, key)
            images = tf.ensure_shape(images, (None, *image_size, 3))
        if class_weights is None:
            return images, targets
        return images, targets, tf.linalg.matvec(targets, weights)

    turns = _turns(n, batch_size, epochs, seed if shuffle else None).skip(first_step * batch_size)
    batches = (
        turns.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(batch_size, drop_remainder=True)
        .map(finish, num_parallel_calls=1, deterministic=True)
        .apply(tf.data.experimental.assert_cardinality(len(epochs) * per_epoch - first_step))
        .prefetch(2)
    )
    options = tf.data.Options()
    # Sharding by file cannot apply to numbers; without this MirroredStrategy warns and tries.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return batches.with_options(options)


_resize = resize  # `dataset` has an argument of that name


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


def _turns(n: int, batch_size: int, epochs: range, seed: int | None) -> tf.data.Dataset:
    """Streams `int64 (3,)`: epoch, example or -1 for a filler, step; whole batches only."""
    step = np.arange(steps(n, batch_size) * batch_size, dtype=np.int64) // batch_size

    def one_epoch(epoch: NDArray[np.int64]) -> NDArray[np.int64]:
        examples = np.full(len(step), -1, np.int64)
        examples[:n] = np.arange(n) if seed is None else order(n, seed, int(epoch))
        return np.stack([np.full_like(step, epoch), examples, step], axis=1)

    def rows(epoch: Tensor) -> tf.data.Dataset:
        table = tf.numpy_function(one_epoch, [epoch], tf.int64)
        return tf.data.Dataset.from_tensor_slices(tf.ensure_shape(table, (len(step), 3)))

    return tf.data.Dataset.range(epochs.start, epochs.stop, epochs.step).flat_map(rows)


def _reader(content: Content) -> Callable[[Tensor], Tensor]:
    """Returns a graph function from an example's number to its picture, `(height, width, 3)`."""
    if isinstance(content, Arrays):
        return _array_reader(content)
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
        return decode(read(index), through_pillow[index], orientations[index])

    return decoded


def _array_reader(content: Arrays) -> Callable[[Tensor], Tensor]:
    values = content.values if content.values.ndim == 4 else content.values[..., None]
    assert values.dtype in (np.uint8, np.uint16), values.dtype
    assert values.shape[-1] in (1, 3), values.shape
    table = tf.constant(values)
    unit = 1.0 if values.dtype == np.uint8 else 257.0

    def read(index: Tensor) -> Tensor:
        image = tf.cast(table[index], tf.float32) / unit
        return tf.broadcast_to(image, (*values.shape[1:3], 3))

    return read


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


__all__ = [
    "Arrays", "Augment", "Encoded", "Files", "Resize", "dataset", "decode", "decode_bytes",
    "decode_file", "order", "resize", "steps", "upright",
]  # fmt: skip
