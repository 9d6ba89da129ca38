"""Reads picture files inside a graph as training read them, without Python.

Training asks Pillow which files TensorFlow reads wrongly, and how each is turned. A server has no
Pillow, so the same questions are answered here by TensorFlow's operations, from the bytes:

    reader = Reader(Preparation((160, 160), "squash"))
    images = reader.batch(data)      # string (batch,) -> float32 (batch, 160, 160, 3), 0..255

Read: JPEG of one or three colours, PNG (transparency over white, 16-bit grey), BMP of 24 bits,
WebP without transparency and animation; turned as EXIF, or XMP in a JPEG, says. Everything else
is refused with a message, where training would have gone through Pillow: never read differently.
Refused as in training, before anything is decoded: more than `MAX_PIXELS` pixels, which a file of
a few bytes can claim; and of arrays: NaN, and what is outside of 0..255.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import tensorflow as tf

from kerastune_ft.data.decoding import Preparation, upright
from kerastune_ft.data.inspection import MAX_PIXELS

Tensor: TypeAlias = Any

REFUSAL = (
    "this picture cannot be read here as training read it: expected a JPEG of one or three "
    "colours, a PNG, a BMP of 24 bits, or a WebP without transparency and animation, of at most "
    f"{MAX_PIXELS:,} pixels"
)
"""What the error of a request says."""

ARRAYS_REFUSAL = "images: expected numbers in 0..255, as training took them"
"""Likewise, of pictures that are decoded already."""

_PLAIN, _ALPHA, _DEEP, _REFUSED = range(4)
_ORIENTATION = 0x0112
_XMP = b"http://ns.adobe.com/xap/1.0/\x00"
# Markers of a JPEG without a length, of the frame's header, and where the picture itself begins.
_ALONE = (0x01, *range(0xD0, 0xD9))
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_ENDS = (0xD9, 0xDA)
# Octets of a value of EXIF by its kind; 0 of those that Pillow passes over.
_KINDS = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 0)


@dataclass(frozen=True)
class Reader:
    """Makes of picture files what a network gets.

    Args:
        how: As training prepared pictures of 8 bits; 1 or 3 `channels`.
    """

    how: Preparation

    def batch(self, data: Tensor) -> Tensor:
        """Returns pictures `float32 (batch, height, width, channels)` in 0..255.

        Args:
            data: `string (batch,)`, a whole picture file each. One that is refused fails all.
        """
        shape = (*self.how.image_size, self.how.channels)
        return tf.map_fn(self.picture, data, fn_output_signature=tf.TensorSpec(shape, tf.float32))

    def arrays(self, images: Tensor) -> Tensor:
        """Returns the same of pictures that are decoded already.

        Args:
            images: `float32 (batch, height, width, channels)` in 0..255. What needs no resizing
                stays as it is; else it is resized as training resized pictures of 8 bits.
                One that is outside, or not a number, fails all.
        """
        right = tf.reduce_all((images >= 0.0) & (images <= 255.0))
        with tf.control_dependencies([tf.debugging.Assert(right, [ARRAYS_REFUSAL])]):
            images = tf.identity(images)
        size, channels = self.how.image_size, self.how.channels
        how = replace(self.how, colours=channels, whole=True)

        def fitting() -> Tensor:
            return tf.ensure_shape(images, (None, *size, channels))

        def resized() -> Tensor:
            return tf.map_fn(
                lambda image: tf.cast(how.of_array(image), tf.float32),
                images,
                fn_output_signature=tf.TensorSpec((*size, channels), tf.float32),
            )

        return tf.cond(tf.reduce_all(tf.shape(images)[1:3] == size), fitting, resized)

    def picture(self, data: Tensor) -> Tensor:
        """Returns one picture `float32 (height, width, channels)`.

        Args:
            data: `string ()`.
        """
        how = replace(self.how, colours=3, whole=True)
        kind, orientation = facts(data)

        def plain() -> Tensor:
            return how.shown(how.prepared(data, False, orientation))

        def alpha() -> Tensor:
            return how.shown(how.of_array(upright(over_white(data), orientation)))

        def deep() -> Tensor:
            levels = tf.io.decode_png(data, channels=1, dtype=tf.uint16)
            levels = upright(levels, orientation)
            if how.channels == 1:  # which keeps what 8 bits cannot
                fine = replace(how, colours=1, whole=False)
                return fine.shown(fine.of_array(tf.cast(levels, tf.float32) / 257.0))
            grey = tf.cast((tf.cast(levels, tf.int32) + 128) // 257, tf.uint8)
            return how.shown(how.of_array(tf.repeat(grey, 3, axis=2)))

        def refused() -> Tensor:
            with tf.control_dependencies([tf.debugging.Assert(tf.constant(False), [REFUSAL])]):
                return tf.zeros((*how.image_size, how.channels))

        return tf.switch_case(kind, [plain, alpha, deep, refused])


def over_white(data: Tensor) -> Tensor:
    """Returns a PNG with transparency over white, `uint8 (height, width, 3)`.

    With the whole-number arithmetic of Pillow's `alpha_composite`, to the bit.
    """
    image = tf.cast(tf.io.decode_png(data, channels=4), tf.int32)
    colour, alpha = image[..., :3], image[..., 3:]
    sums = (colour * alpha + 255 * (255 - alpha) + 128) * 128
    return tf.cast((sums // 256 + sums) // 256 // 128, tf.uint8)


def facts(data: Tensor) -> tuple[Tensor, Tensor]:
    """Returns how a picture file is to be read, and its orientation 1..8, both `int32 ()`.

    Args:
        data: `string ()`.
    """
    # Never shorter than a header, so that no place that is looked at is missing.
    octets = tf.cast(tf.io.decode_raw(tf.strings.join([data, b"\x00" * 64]), tf.uint8), tf.int32)
    size = tf.strings.length(data)
    known: list[tuple[Tensor, Callable[[], tuple[Tensor, Tensor]]]] = [
        (_begins(octets, 0, b"\xff\xd8\xff"), lambda: _jpeg(data, octets, size)),
        (_begins(octets, 0, b"\x89PNG\r\n\x1a\n"), lambda: _png(octets, size)),
        (
            _begins(octets, 0, b"RIFF") & _begins(octets, 8, b"WEBP"),
            lambda: _webp(octets, size),
        ),
        (_begins(octets, 0, b"BM"), lambda: _bmp(octets)),
    ]
    kind, orientation = tf.case(known, default=lambda: (tf.constant(_REFUSED), tf.constant(1)))
    return kind, orientation


def _small_enough(height: Tensor, width: Tensor) -> Tensor:
    """Returns whether a picture has no more pixels than training reads."""
    # A BMP that is told from top to bottom has a negative height.
    pixels = tf.abs(tf.cast(height, tf.int64)) * tf.abs(tf.cast(width, tf.int64))
    return pixels <= MAX_PIXELS


def _most_steps(size: Tensor) -> Tensor:
    """Returns how many parts of a file are looked at: walking costs no more than decoding.

    A step takes as long as decoding thousands of octets, and an empty part has a dozen. Encoders
    write parts of kilobytes.
    """
    return 64 + size // 512


def _jpeg(data: Tensor, octets: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Walks over the segments of a JPEG up to the picture itself."""

    def goes_on(place: Tensor, *found: Tensor) -> Tensor:
        inside = place + 4 <= size
        marker = octets[tf.minimum(place, size)], octets[tf.minimum(place + 1, size)]
        return inside & (marker[0] == 0xFF) & ~_one_of(marker[1], _ENDS)

    def step(place: Tensor, colours: Tensor, *found: Tensor) -> tuple[Tensor, ...]:
        fits, exif, exif_end, xmp, xmp_end = found
        marker = octets[place + 1]

        def filler() -> tuple[Tensor, ...]:
            return place + 1, colours, *found

        def alone() -> tuple[Tensor, ...]:
            return place + 2, colours, *found

        def segment() -> tuple[Tensor, ...]:
            after = place + 2 + tf.maximum(_number(octets, place + 2, 2), 2)
            first = place + 4
            app1 = marker == 0xE1
            is_exif = app1 & _begins(octets, first, b"Exif\x00\x00") & (exif < 0)
            is_xmp = app1 & _begins(octets, first, _XMP) & (xmp < 0)
            is_frame = _one_of(marker, _FRAMES)
            height, width = _number(octets, place + 5, 2), _number(octets, place + 7, 2)
            return (
                after,
                tf.where(is_frame, _at(octets, place + 9), colours),
                fits & (~is_frame | _small_enough(height, width)),
                tf.where(is_exif, first + 6, exif),
                tf.where(is_exif, after, exif_end),
                tf.where(is_xmp, first + len(_XMP), xmp),
                tf.where(is_xmp, after, xmp_end),
            )

        made: tuple[Tensor, ...] = tf.case(
            [(marker == 0xFF, filler), (_one_of(marker, _ALONE), alone)], default=segment
        )
        return made

    none = tf.constant(-1)
    place, colours, fits, exif, exif_end, xmp, xmp_end = tf.while_loop(
        goes_on,
        step,
        (tf.constant(2), tf.constant(0), tf.constant(True), none, none, none, none),
        maximum_iterations=_most_steps(size),
    )
    fits &= ~goes_on(place)
    end = tf.minimum(exif_end, size)
    orientation = tf.cond(exif < 0, lambda: tf.constant(0), lambda: _exif(octets, exif, end))
    told = tf.cond(
        (orientation < 0) | (exif < 0) & (xmp >= 0),
        lambda: _xmp(data, xmp, tf.minimum(xmp_end, size)),
        lambda: tf.maximum(orientation, 1),
    )
    right = fits & ((colours == 1) | (colours == 3))
    return tf.where(right, _PLAIN, _REFUSED), told


def _png(octets: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Walks over the chunks of a PNG."""

    def goes_on(place: Tensor, *found: Tensor) -> Tensor:
        return (place + 12 <= size) & ~_begins(octets, place + 4, b"IEND")

    def step(
        place: Tensor, pixels: Tensor, clear: Tensor, exif: Tensor, end: Tensor
    ) -> tuple[Tensor, ...]:
        length = _number(octets, place, 4)
        length = tf.where((length < 0) | (length > size), size, length)
        pixels |= _begins(octets, place + 4, b"IDAT")
        clear |= _begins(octets, place + 4, b"tRNS") & ~pixels
        is_exif = _begins(octets, place + 4, b"eXIf") & (exif < 0)
        first = place + 8
        exif, end = tf.where(is_exif, first, exif), tf.where(is_exif, first + length, end)
        return first + length + 4, pixels, clear, exif, end

    no, none = tf.constant(False), tf.constant(-1)
    place, _, clear, exif, end = tf.while_loop(
        goes_on,
        step,
        (tf.constant(8), no, no, none, none),
        maximum_iterations=_most_steps(size),
    )
    depth, colour = octets[24], octets[25]
    alpha = clear | (colour == 4) | (colour == 6)
    deep = (colour == 0) & (depth == 16)
    fits = _small_enough(_number(octets, 20, 4), _number(octets, 16, 4)) & ~goes_on(place)
    # Transparent 16-bit grey is one that Pillow itself has no mode for.
    kind = tf.case(
        [
            (deep & clear | ~fits, lambda: tf.constant(_REFUSED)),
            (deep, lambda: tf.constant(_DEEP)),
            (alpha, lambda: tf.constant(_ALPHA)),
        ],
        default=lambda: tf.constant(_PLAIN),
    )
    return kind, _told(octets, exif, tf.minimum(end, size))


def _webp(octets: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Walks over the chunks of a WebP."""

    def goes_on(place: Tensor, *found: Tensor) -> Tensor:
        return place + 8 <= size

    def step(place: Tensor, strange: Tensor, exif: Tensor, end: Tensor) -> tuple[Tensor, ...]:
        length = _number(octets, place + 4, 4, little=True)
        length = tf.where((length < 0) | (length > size), size, length)
        lossy, lossless = _begins(octets, place, b"VP8 "), _begins(octets, place, b"VP8L")
        extended = _begins(octets, place, b"VP8X")
        # Sides of 14 bits: after the frame's tag and a start code, or, less one, after an octet.
        width = _number(octets, place + 14, 2, little=True) & 0x3FFF
        height = _number(octets, place + 16, 2, little=True) & 0x3FFF
        strange |= lossy & ~_small_enough(height, width)
        sides = _number(octets, place + 9, 4, little=True)
        width, height = 1 + (sides & 0x3FFF), 1 + (tf.bitwise.right_shift(sides, 14) & 0x3FFF)
        strange |= lossless & ~_small_enough(height, width)
        # The bit after two sides of 14 bits; the flags of transparency and animation.
        strange |= lossless & (_at(octets, place + 12) & 0x10 != 0)
        strange |= extended & (_at(octets, place + 8) & 0x12 != 0)
        start = place + 8
        start = tf.where(_begins(octets, start, b"Exif\x00\x00"), start + 6, start)
        is_exif = _begins(octets, place, b"EXIF") & (exif < 0)
        after = place + 8 + length
        exif, end = tf.where(is_exif, start, exif), tf.where(is_exif, after, end)
        return after + length % 2, strange, exif, end

    none = tf.constant(-1)
    place, strange, exif, end = tf.while_loop(
        goes_on,
        step,
        (tf.constant(12), tf.constant(False), none, none),
        maximum_iterations=_most_steps(size),
    )
    return tf.where(strange | goes_on(place), _REFUSED, _PLAIN), _told(
        octets, exif, tf.minimum(end, size)
    )


def _bmp(octets: Tensor) -> tuple[Tensor, Tensor]:
    """Takes what has 24 bits a pixel and is not compressed."""
    header = _number(octets, 14, 4, little=True)
    bits, compression = octets[28] + 256 * octets[29], _number(octets, 30, 4, little=True)
    width, height = (_number(octets, place, 4, little=True) for place in (18, 22))
    right = (header >= 40) & (bits == 24) & (compression == 0) & _small_enough(height, width)
    return tf.where(right, _PLAIN, _REFUSED), tf.constant(1)


def _told(octets: Tensor, exif: Tensor, end: Tensor) -> Tensor:
    told = tf.cond(exif < 0, lambda: tf.constant(1), lambda: _exif(octets, exif, end))
    return tf.maximum(told, 1)


def _exif(octets: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Returns the orientation of a block of EXIF, 1 if it is odd, and -1 if none is given.

    Of a damaged block what stands before the damage counts, as Pillow has it.

    Args:
        octets: Of the file.
        start: Where the block begins.
        end: Where it ends.
    """
    little = _begins(octets, start, b"II*\x00")
    big = _begins(octets, start, b"MM\x00*")

    def number(place: Tensor, count: int) -> Tensor:
        return tf.where(
            little, _number(octets, place, count, little=True), _number(octets, place, count)
        )

    folder = start + number(start + 4, 4)
    inside = (little | big) & (folder >= start) & (folder + 2 <= end)

    def read() -> Tensor:
        count = tf.minimum(number(folder, 2), tf.maximum(end - folder - 2, 0) // 12)
        places = folder + 2 + 12 * tf.range(count)
        sizes = tf.cast(number(places + 4, 4), tf.int64) & 0xFFFFFFFF
        kinds = tf.clip_by_value(number(places + 2, 2), 0, len(_KINDS) - 1)
        sizes *= tf.gather(tf.constant(_KINDS, tf.int64), kinds)
        offsets = tf.cast(number(places + 8, 4), tf.int64) & 0xFFFFFFFF
        apart, room = sizes > 4, tf.cast(end - start, tf.int64)
        passed = apart & (tf.cumsum(tf.where(apart, sizes, 0)) > room)
        outside = apart & ~passed & (offsets + sizes > room)
        whole = (tf.cumsum(tf.cast(outside, tf.int32)) == 0) & ~passed & (sizes > 0)
        chosen = tf.boolean_mask(places, whole & (number(places, 2) == _ORIENTATION))

        def value() -> Tensor:
            place = chosen[0]
            kind, count = number(place + 2, 2), number(place + 4, 4)
            said = tf.case(
                [
                    (kind == 1, lambda: _at(octets, place + 8)),
                    (kind == 3, lambda: number(place + 8, 2)),
                    (kind == 4, lambda: number(place + 8, 4)),
                ],
                default=lambda: tf.constant(1),
            )
            right = (count == 1) & (said >= 1) & (said <= 8)
            return tf.where(right, said, 1)

        return tf.cond(tf.size(chosen) > 0, value, lambda: tf.constant(-1))

    return tf.cond(inside, read, lambda: tf.constant(1))


def _xmp(data: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Returns the orientation that XMP gives, else 1."""

    def read() -> Tensor:
        text = tf.strings.substr(data, start, tf.maximum(end - start, 0))
        pattern = r'(?s).*?tiff:Orientation(?:="|>)([1-8]).*'
        digit = tf.strings.regex_replace(text, pattern, r"\1")
        right = tf.strings.regex_full_match(text, pattern)
        return tf.cond(right, lambda: tf.strings.to_number(digit, tf.int32), lambda: tf.constant(1))

    return tf.cond(start < 0, lambda: tf.constant(1), read)


def _at(octets: Tensor, place: Tensor) -> Tensor:
    """Returns the octets at places, 0 behind the end."""
    last = tf.size(octets) - 1
    return tf.gather(octets, tf.clip_by_value(place, 0, last))


def _begins(octets: Tensor, place: Tensor | int, start: bytes) -> Tensor:
    """Returns whether so many octets stand at a place."""
    found = _at(octets, place + tf.range(len(start)))
    return tf.reduce_all(found == tf.constant(list(start), tf.int32))


def _number(octets: Tensor, place: Tensor | int, count: int, little: bool = False) -> Tensor:
    """Returns whole numbers of `count` octets; those of four that are too large are negative."""
    order = range(count) if little else range(count - 1, -1, -1)
    parts = [
        tf.bitwise.left_shift(_at(octets, place + i), 8 * power) for i, power in enumerate(order)
    ]
    return tf.add_n(parts)


def _one_of(value: Tensor, values: tuple[int, ...]) -> Tensor:
    return tf.reduce_any(value == tf.constant(values, tf.int32))
