"""From the bytes of a picture to pixels of the network's size, by operations of TensorFlow.

Training, validation, predictions, previews and features all come through `Preparation`, so that
what is served is what was trained. Nothing here needs Python while it runs, but for pictures that
TensorFlow reads wrongly.

    how = Preparation((160, 160), "squash", channels=3)
    pixels = how.prepared(data, through_pillow=False, orientation=1)    # what is cached: bytes
    image = how.shown(pixels)                                   # what the network gets: float32

A JPEG is scaled by its decoder as far as it stays no smaller than what is wanted. Pictures of 8
bits are rounded to whole numbers when they are resized, wherever that happens, so that a cache of
bytes holds exactly what is streamed without it. Deeper ones are not rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerastune_ft.data import inspection

Resize = Literal["squash", "crop", "pad"]
Tensor: TypeAlias = Any  # TensorFlow ships no types

RATIOS = (1, 2, 4, 8)
"""By which libjpeg can divide the sides of a picture while it decodes."""


# Whether height and width are mirrored, by orientation.
_MIRRORED = np.asarray(
    [[0, 0], [0, 0], [0, 1], [1, 1], [1, 0], [0, 0], [0, 1], [1, 1], [1, 0]], np.float32
)


@dataclass(frozen=True)
class Preparation:
    """How a stored picture becomes what the network gets of it.

    Args:
        image_size: Height and width, in pixels.
        how: As `resize` has it.
        channels: Of what the network gets: 3 for RGB, 1 for grey, others of arrays alone.
        colours: Channels that pictures of 8 bits are resized in. Grey is made afterwards, of whole
            numbers.
        whole: Whether all pictures are of 8 bits: none is `inspection.header`'s `deep`.
    """

    image_size: tuple[int, int]
    how: Resize = "squash"
    channels: int = 3
    colours: int = 3
    whole: bool = True

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of what `prepared` returns."""
        return (*self.image_size, self.colours if self.whole else self.channels)

    @property
    def dtype(self) -> str:
        """Of what `prepared` returns: bytes, or `float32` if there may be deeper pictures."""
        return "uint8" if self.whole else "float32"

    def prepared(
        self,
        data: Tensor,
        through_pillow: Tensor | bool,
        orientation: Tensor | int,
        deep: Tensor | bool = False,
    ) -> Tensor:
        """Decodes a picture file, turns it upright and resizes it, inside a graph or outside.

        Args:
            data: Scalar string: a whole picture file that `inspection.inspect` found usable.
            through_pillow: Scalar bool, from the inspection. A Python value builds no graph for
                what does not occur; likewise those that follow.
            orientation: Scalar integer 1..8, from the inspection.
            deep: Scalar bool, from `inspection.header`.

        Returns:
            `dtype (*shape)` in 0..255.
        """

        def pixels(raw: Any, deep: Any) -> NDArray[np.float32]:
            channels = self.channels if deep else self.colours
            return inspection.decode(np.asarray(raw, object).item(), channels)

        def by_pillow() -> Tensor:  # which turns the picture itself
            image = tf.numpy_function(pixels, [data, deep], tf.float32)
            image = tf.ensure_shape(image, (None, None, None))  # `_either` says how many
            image = _resized(image, self.image_size, self.how)
            return _either(
                deep,
                lambda: self._fine(image, self.channels),
                lambda: self._rounded(image, self.colours),
            )

        def by_tensorflow() -> Tensor:
            image, *origin = scaled(data, orientation, self.image_size, self.how)
            return self._rounded(_resized(image, self.image_size, self.how, *origin), 3)

        if self.channels in inspection.COLOURS:
            image = _either(through_pillow, by_pillow, by_tensorflow)
        else:
            image = by_pillow()
        return tf.ensure_shape(image, self.shape)

    def of_array(self, image: Tensor) -> Tensor:
        """Does for pixels in memory what `prepared` does for a file.

        Args:
            image: `(height, width, colours)` in 0..255; `uint8` if `whole`, else `float32`.
        """
        image = _resized(image, self.image_size, self.how)
        finish = self._rounded if self.whole else self._fine
        return tf.ensure_shape(finish(image, self.colours), self.shape)

    def shown(self, pixels: Tensor) -> Tensor:
        """Returns what the network gets, of one picture or of a batch.

        Args:
            pixels: `dtype (..., *shape)`, as `prepared` returned it.

        Returns:
            `float32 (..., height, width, channels)` in 0..255.
        """
        return _with_channels(tf.cast(pixels, tf.float32), self.shape[2], self.channels)

    def _rounded(self, image: Tensor, channels: int) -> Tensor:
        """Rounds a resized picture of 8 bits; halves go to the even number."""
        image = tf.cast(tf.round(tf.ensure_shape(image, (None, None, channels))), tf.uint8)
        return (
            image
            if self.whole
            else _with_channels(tf.cast(image, tf.float32), channels, self.channels)
        )

    def _fine(self, image: Tensor, channels: int) -> Tensor:
        """Leaves a resized picture of more than 8 bits as it is."""
        image = tf.clip_by_value(tf.ensure_shape(image, (None, None, channels)), 0.0, 255.0)
        return _with_channels(image, channels, self.channels)


def decode(data: Tensor, through_pillow: Tensor, orientation: Tensor, channels: int = 3) -> Tensor:
    """Decodes a picture at its full size and turns it upright, inside a graph or outside.

    Args:
        data: Scalar string: a whole picture file that `inspection.inspect` found usable.
        through_pillow: Scalar bool, from the inspection.
        orientation: Scalar integer 1..8, from the inspection.
        channels: 3 for RGB, 1 for grey (`inspection.grey`); others are in `.npy` files only.

    Returns:
        `float32 (height, width, channels)` in 0..255.
    """

    def by_tensorflow() -> Tensor:
        image = upright(_pixels(data), orientation)
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


def scaled(
    data: Tensor, orientation: Tensor | int, image_size: tuple[int, int], how: Resize
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Decodes what TensorFlow decodes, a JPEG no larger than it has to be, and turns it upright.

    The decoder divides the sides of a JPEG by the largest of `RATIOS` that leaves none of them
    shorter than `resize` makes it: it then computes fewer pixels, each a mean of many.

    Args:
        data: Scalar string: a whole picture file.
        orientation: 1..8.
        image_size: Height and width wanted, in pixels.
        how: As for `resize`.

    Returns:
        `uint8 (height, width, 3)`; the height and width that the picture has at full size,
        upright, `int32 (2,)`; the ratio, `int32 ()`; and how far from the upper left corner the
        picture begins, in pixels, `float32 (2,)`: where its sides are no multiples of the ratio,
        the last pixels stand for less, and those come first when it was turned.
    """

    def jpeg() -> tuple[Tensor, Tensor, Tensor]:
        size = tf.io.extract_jpeg_shape(data)[:2]
        full = _turned(size, orientation)
        wanted = _turned(_target(full, image_size, how), orientation)
        number = sum(
            tf.cast(tf.reduce_all((size + (ratio - 1)) // ratio >= wanted), tf.int32)
            for ratio in RATIOS[1:]
        )
        branches = [
            lambda ratio=ratio: tf.io.decode_jpeg(data, channels=3, ratio=ratio) for ratio in RATIOS
        ]
        return tf.switch_case(number, branches), full, tf.constant(RATIOS)[number]

    def other() -> tuple[Tensor, Tensor, Tensor]:
        image = _pixels(data)
        return image, _turned(tf.shape(image)[:2], orientation), tf.constant(1)

    image, full, ratio = tf.cond(tf.io.is_jpeg(data), jpeg, other)
    image = upright(tf.ensure_shape(image, (None, None, 3)), orientation)
    if isinstance(orientation, int) and orientation == 1:
        return image, full, ratio, tf.zeros(2)
    left_over = tf.cast(tf.shape(image)[:2], tf.float32) - _per(full, ratio)
    return image, full, ratio, left_over * tf.gather(_MIRRORED, tf.cast(orientation, tf.int32))


def upright(image: Tensor, orientation: Tensor | int) -> Tensor:
    """Turns a picture `(height, width, channels)` stored under an EXIF orientation 1..8."""
    if isinstance(orientation, int) and orientation == 1:
        return image

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

    Bilinear, with antialiasing where it shrinks: without it fine patterns of large photographs
    turn into noise that no weights were trained on.

    Args:
        image: In 0..255, of any number type.
        image_size: Height and width wanted, in pixels.
        how: `squash` changes the proportions; `crop` cuts the longer side off evenly; `pad` fits
            the whole picture and fills up with black, as Keras's `pad_to_aspect_ratio` does.
        channels: Of the picture.

    Returns:
        `float32 (height, width, channels)` in 0..255, not rounded.
    """
    image = tf.ensure_shape(tf.convert_to_tensor(image), (None, None, channels))
    image = _resized(image, image_size, how)
    # The weights of the antialiasing kernel can sum to a hair more than 1.
    image = tf.clip_by_value(tf.cast(image, tf.float32), 0.0, 255.0)
    return tf.ensure_shape(image, (*image_size, channels))


def _with_channels(image: Tensor, stored: int, channels: int) -> Tensor:
    """Repeats grey `(..., 1)` or makes RGB `float32 (..., 3)` grey; what fits stays as it is."""
    if stored == channels:
        return image
    return tf.repeat(image, 3, axis=-1) if stored == 1 else inspection.grey(image)


def _pixels(data: Tensor) -> Tensor:
    # Of its own accord TensorFlow makes grey by other weights for every format.
    image = tf.io.decode_image(data, channels=3, expand_animations=False)
    return tf.ensure_shape(image, (None, None, 3))


def _either(choice: Tensor | bool, yes: Callable[[], Tensor], no: Callable[[], Tensor]) -> Tensor:
    if isinstance(choice, bool):
        return yes() if choice else no()
    return tf.cond(choice, yes, no)


def _turned(size: Tensor, orientation: Tensor | int) -> Tensor:
    """Exchanges height and width where an orientation does."""
    if isinstance(orientation, int):
        return size[::-1] if orientation > 4 else size
    return tf.where(tf.cast(orientation, tf.int32) > 4, size[::-1], size)


def _target(full: Tensor, image_size: tuple[int, int], how: Resize) -> Tensor:
    """Returns the height and width that a picture gets before bars are added, `int32 (2,)`."""
    wanted = tf.constant(image_size, tf.int32)
    if how != "pad":
        return wanted
    scale = tf.reduce_min(tf.constant(image_size, tf.float64) / tf.cast(full, tf.float64))
    fitted = tf.round(tf.cast(full, tf.float64) * scale)
    return tf.clip_by_value(tf.cast(fitted, tf.int32), 1, wanted)


def _resized(
    image: Tensor,
    image_size: tuple[int, int],
    how: Resize,
    full: Tensor | None = None,
    ratio: Tensor | int = 1,
    start: Tensor | None = None,
) -> Tensor:
    """Resizes as `resize` says.

    Args:
        image: `(height, width, channels)`, perhaps scaled by the decoder.
        image_size: Height and width wanted, in pixels.
        how: As for `resize`.
        full: Height and width before that, `int32 (2,)`, which decide what is cut off and added;
            None if it was not scaled.
        ratio: Of full pixels to pixels.
        start: Where the picture begins, in pixels, `float32 (2,)`; None at the corner.

    Returns:
        `float32 (*image_size, channels)` that can exceed 255 by a hair.
    """
    full = tf.shape(image)[:2] if full is None else full
    start = tf.zeros(2) if start is None else start
    extent = _per(full, ratio)
    if how == "crop":
        top, window = _central_window(full, image_size)
        start, extent = start + _per(top, ratio), _per(window, ratio)
        first = tf.cast(tf.floor(start), tf.int32)
        last = tf.cast(tf.math.ceil(start + extent), tf.int32)
        image = image[first[0] : last[0], first[1] : last[1]]
        start -= tf.cast(first, tf.float32)
    target = _target(full, image_size, how)
    image = _bilinear(image, target, start, extent)
    if how == "pad":
        before = (tf.constant(image_size) - target) // 2
        after = tf.constant(image_size) - target - before
        image = tf.pad(image, [[before[0], after[0]], [before[1], after[1]], [0, 0]])
    return image


def _per(sides: Tensor, ratio: Tensor | int) -> Tensor:
    return tf.cast(sides, tf.float32) / tf.cast(ratio, tf.float32)


def _bilinear(image: Tensor, target: Tensor, start: Tensor, extent: Tensor) -> Tensor:
    """Resizes what begins at `start` and has the sides `extent`, in pixels, `float32 (2,)`."""
    shape = tf.shape(image)

    def enlarged() -> Tensor:  # the same figures as with antialiasing, six times faster
        return tf.image.resize(image, target, method="bilinear")

    return tf.case(
        [
            (tf.reduce_all(tf.equal(shape[:2], target)), lambda: tf.cast(image, tf.float32)),
            (
                tf.reduce_any(shape[:2] > target),
                lambda: _antialiased(image, shape, target, start, extent),
            ),
        ],
        default=enlarged,
    )


def _antialiased(
    image: Tensor, shape: Tensor, target: Tensor, start: Tensor, extent: Tensor
) -> Tensor:
    """Resizes with antialiasing: the figures of `tf.image.resize`, to the bit.

    TensorFlow's operation does one side after the other, and is slow at the second one, where it
    adds up three numbers at a time. Here each side is a picture of a single column whose channels
    are a whole row.
    """
    channels = image.shape[2] if image.shape[2] is not None else shape[2]
    scale = tf.cast(target, tf.float32) / extent
    shift = -start * scale
    image = _rows(image, shape[0], shape[1] * channels, target[0], scale[0], shift[0])
    image = tf.transpose(tf.reshape(image, [target[0], shape[1], channels]), (1, 0, 2))
    image = _rows(image, shape[1], target[0] * channels, target[1], scale[1], shift[1])
    return tf.transpose(tf.reshape(image, [target[1], target[0], channels]), (1, 0, 2))


def _rows(
    image: Tensor, rows: Tensor, numbers: Tensor, wanted: Tensor, scale: Tensor, shift: Tensor
) -> Tensor:
    """Makes of `rows` rows of so many numbers `wanted` rows, `float32 (wanted, numbers)`."""
    made = tf.raw_ops.ScaleAndTranslate(
        images=tf.reshape(image, [1, rows, 1, numbers]),
        size=tf.stack([wanted, 1]),
        scale=tf.stack([scale, 1.0]),
        translation=tf.stack([shift, 0.0]),
        kernel_type="triangle",
        antialias=True,
    )
    return tf.reshape(made, [wanted, numbers])


def _central_window(full: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Returns begin and size of the largest centred window that has the proportions wanted."""
    sides, wanted = tf.cast(full, tf.float64), tf.constant(image_size, tf.float64)
    scale = tf.reduce_min(sides / wanted)
    window = tf.maximum(tf.cast(tf.round(wanted * scale), tf.int32), 1)
    return (full - window) // 2, window
