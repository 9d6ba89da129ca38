"""Decoding, resizing and batching pictures, with Pillow as the reference."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kerastune_ft.data import Split, images, inspection
from kerastune_ft.data.augmentation import Augmentation
from kerastune_ft.data.tables import Arrays, Encoded, Files
from kerastune_ft.errors import DataError
from kerastune_ft.recipe import Augment

HEIGHT, WIDTH = 24, 32


def _photo() -> Image.Image:
    rough = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def _see_through() -> Image.Image:
    picture = _photo()
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[:8], alpha[8:16] = 255, 128
    picture.putalpha(Image.fromarray(alpha))
    return picture


def _encode(picture: Image.Image, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


GREY16 = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 83 % 65536).astype(np.uint16)


def _kinds() -> dict[str, bytes]:
    photo, see_through = _photo(), _see_through()
    inverted = Image.fromarray(255 - np.asarray(photo))
    palette = photo.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    return {
        "jpeg": _encode(photo, "JPEG", quality=90),
        "jpeg grey": _encode(photo.convert("L"), "JPEG"),
        "jpeg progressive": _encode(photo, "JPEG", progressive=True),
        "jpeg cmyk": _encode(photo.convert("CMYK"), "JPEG"),
        "jpeg of several pictures": _encode(photo, "MPO", save_all=True, append_images=[inverted]),
        "png": _encode(photo, "PNG"),
        "png 1 bit": _encode(photo.convert("1"), "PNG"),
        "png grey": _encode(photo.convert("L"), "PNG"),
        "png grey alpha": _encode(see_through.convert("LA"), "PNG"),
        "png palette": _encode(palette, "PNG"),
        "png palette transparent": _encode(palette, "PNG", transparency=3),
        "png palette alphas": _encode(palette, "PNG", transparency=bytes(range(0, 256, 16))),
        "png one colour transparent": _encode(photo, "PNG", transparency=(0, 0, 0)),
        "png alpha": _encode(see_through, "PNG"),
        "png 16 bit grey": _encode(Image.fromarray(GREY16), "PNG"),
        "gif": _encode(palette, "GIF"),
        "gif transparent": _encode(palette, "GIF", transparency=2),
        "gif animated": _encode(palette, "GIF", save_all=True, append_images=[inverted]),
        "bmp": _encode(photo, "BMP"),
        "bmp grey": _encode(photo.convert("L"), "BMP"),
        "bmp palette": _encode(palette, "BMP"),
        "bmp 1 bit": _encode(photo.convert("1"), "BMP"),
        "bmp 32 bit": _encode(see_through, "BMP"),
        "webp lossy": _encode(photo, "WEBP", quality=80),
        "webp lossless": _encode(photo, "WEBP", lossless=True),
        "webp alpha": _encode(see_through, "WEBP", lossless=True),
        "webp animated": _encode(
            photo, "WEBP", save_all=True, append_images=[inverted], lossless=True
        ),
        "tiff": _encode(photo, "TIFF"),
        "tiff 16 bit grey": _encode(Image.fromarray(GREY16), "TIFF"),
        "ppm": _encode(photo, "PPM"),
    }


KINDS = _kinds()


def _reference(data: bytes) -> np.ndarray:
    """Pillow's own answer, written as differently from the product as possible."""
    picture = Image.open(io.BytesIO(data))
    picture.seek(0)
    if picture.mode.startswith("I"):
        grey = np.rint(np.asarray(picture).astype(float) / 257)
        return np.repeat(grey[..., None], 3, axis=2)
    rgba = np.asarray(picture.convert("RGBA")).astype(float)
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


def _decoded(data: bytes) -> np.ndarray:
    return images.decode_bytes(data, (HEIGHT, WIDTH), name="x")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_is_read_as_pillow_reads_it(kind: str) -> None:
    found = _decoded(KINDS[kind])
    # JPEG leaves the rounding of the inverse transform to the decoder.
    tolerance = 4 if "jpeg" in kind else 1
    assert found.dtype == np.float32
    assert np.abs(found - _reference(KINDS[kind])).max() <= tolerance


def test_plain_kinds_are_left_to_tensorflow_and_the_rest_to_pillow() -> None:
    looks = {kind: inspection.inspect(data) for kind, data in KINDS.items()}
    by_tensorflow = {
        kind
        for kind, look in looks.items()
        if isinstance(look, inspection.Inspected) and not look.through_pillow
    }
    assert by_tensorflow == {
        "jpeg", "jpeg grey", "jpeg progressive", "jpeg of several pictures", "png", "png 1 bit",
        "png grey", "png palette", "gif", "gif animated", "bmp", "webp lossy", "webp lossless",
    }  # fmt: skip


def test_16_bit_greyscale_is_scaled_and_not_clipped() -> None:
    found = _decoded(KINDS["png 16 bit grey"])
    assert len(np.unique(found)) > 200
    assert np.abs(found[..., 0] - GREY16 / 257).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(format: str, orientation: int) -> None:
    from PIL import ImageOps

    options = {"lossless": True} if format == "WEBP" else {}
    data = _encode(_photo(), format, exif=_exif(orientation), **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    expected = np.asarray(upright.convert("RGB")).astype(float)
    found = images.decode_bytes(data, expected.shape[:2], name="x")
    assert np.abs(found - expected).max() <= (4 if format == "JPEG" else 0)


def test_orientation_is_honoured_where_pillow_decodes() -> None:
    data = _encode(_photo().convert("CMYK"), "JPEG", exif=_exif(6))
    found = images.decode_bytes(data, (WIDTH, HEIGHT), name="x")
    expected = np.rot90(_reference(data), -1)
    assert np.abs(found - expected).max() <= 4


def test_broken_exif_does_not_lose_the_picture() -> None:
    plain = _encode(_photo(), "JPEG", exif=_exif(6))
    start = plain.index(b"Exif\0\0") + 6
    broken = plain[:start] + b"\xff" * 12 + plain[start + 12 :]
    look = inspection.inspect(broken)
    assert isinstance(look, inspection.Inspected)
    assert look.orientation == 1


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "empty_file"),
        (b"no picture at all", "unreadable"),
        (KINDS["jpeg"][: len(KINDS["jpeg"]) // 2], "truncated"),
        (KINDS["jpeg"][:-10], "truncated"),
        (KINDS["png"][: len(KINDS["png"]) // 2], "truncated"),
        (KINDS["tiff"][: len(KINDS["tiff"]) // 2], "unreadable|truncated"),
        (_encode(Image.new("F", (4, 4)), "TIFF"), "unsupported_format"),
        (_encode(Image.new("1", (10_000, 10_000)), "PNG"), "too_large"),
        (_encode(_photo(), "EPS"), "unreadable"),
    ],
)
def test_what_cannot_be_decoded_is_told_apart(data: bytes, kind: str) -> None:
    look = inspection.inspect(data)
    assert isinstance(look, inspection.Unusable)
    assert look.kind in kind.split("|")
    with pytest.raises(DataError, match=r"bad\.jpg: cannot be read as a picture"):
        images.decode_bytes(data, (8, 8), name="bad.jpg")


def test_damaged_pictures_never_pass_inspection_and_then_fail(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    survivors = []
    for kind in ("jpeg", "png", "gif", "bmp", "webp lossy", "png alpha", "tiff"):
        for _ in range(12):
            data = bytearray(KINDS[kind])
            for place in generator.integers(0, len(data), 3):
                data[place] = generator.integers(256)
            damaged = bytes(data[: generator.integers(len(data) // 2, len(data) + 40)])
            look = inspection.inspect(damaged)
            if isinstance(look, inspection.Inspected):
                survivors.append((damaged, look))
    assert survivors
    content = Encoded(
        tuple(data for data, _ in survivors),
        np.asarray([look.orientation for _, look in survivors], np.uint8),
        np.asarray([look.through_pillow for _, look in survivors]),
    )
    labels = np.zeros(len(content), int)
    stream = images.dataset(content, labels, image_size=(8, 8), batch_size=7, num_classes=2)
    assert sum(len(batch) for batch, _ in stream) == len(survivors)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg: .*No such file"):
        images.decode_file(tmp_path / "gone.jpg", (8, 8))


@pytest.mark.parametrize("how", ["squash", "crop", "pad"])
@pytest.mark.parametrize("size", [(10, 10), (30, 12), (12, 30), (80, 80), (HEIGHT, WIDTH)])
def test_resizing_follows_pillow(how: images.Resize, size: tuple[int, int]) -> None:
    photo = _photo()
    found = images.resize(np.asarray(photo), size, how).numpy()
    height, width = size
    if how == "squash":
        expected = np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR))
    elif how == "crop":
        scale = min(HEIGHT / height, WIDTH / width)
        tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
        top, left = (HEIGHT - tall) // 2, (WIDTH - wide) // 2
        window = photo.crop((left, top, left + wide, top + tall))
        expected = np.asarray(window.resize((width, height), Image.Resampling.BILINEAR))
    else:
        scale = min(height / HEIGHT, width / WIDTH)
        tall, wide = round(HEIGHT * scale), round(WIDTH * scale)
        expected = np.zeros((height, width, 3))
        top, left = (height - tall) // 2, (width - wide) // 2
        inner = photo.resize((wide, tall), Image.Resampling.BILINEAR)
        expected[top : top + tall, left : left + wide] = np.asarray(inner)
    assert found.shape == (height, width, 3)
    assert np.abs(found - expected).max() <= 1.5


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    pixels = np.asarray(_photo())
    for how in ("squash", "crop", "pad"):
        assert np.array_equal(images.resize(pixels, (HEIGHT, WIDTH), how), pixels)


@pytest.mark.parametrize("how", ["squash", "crop", "pad"])
def test_extreme_proportions_survive_resizing(how: images.Resize) -> None:
    for shape in ((1, 3000, 3), (3000, 1, 3), (1, 1, 3)):
        found = images.resize(np.full(shape, 200, np.uint8), (16, 20), how).numpy()
        assert found.shape == (16, 20, 3)
        assert found.max() == pytest.approx(200, abs=0.01)


def test_pixels_stay_within_the_range() -> None:
    white = np.full((213, 160, 3), 255, np.uint8)
    found = images.resize(white, (96, 96)).numpy()
    assert 254.99 < found.min() <= found.max() <= 255.0


def test_an_order_is_a_permutation_and_depends_on_seed_and_epoch_alone() -> None:
    first = images.order(100, 3, 5)
    assert sorted(first) == list(range(100))
    assert first.dtype == np.int64
    assert np.array_equal(first, images.order(100, 3, 5))
    assert not np.array_equal(first, images.order(100, 3, 6))
    assert not np.array_equal(first, images.order(100, 4, 5))


N = 11


def _numbered() -> Arrays:
    """Pictures whose pixels are the number of the picture."""
    values = np.zeros((N, 4, 4), np.uint8)
    values[:] = np.arange(N)[:, None, None]
    return Arrays(values)


def _stream(**options: object) -> list[tuple[list[int], list[int]]]:
    labels = np.arange(N) % 3
    stream = images.dataset(
        _numbered(), labels, image_size=(4, 4), batch_size=4, num_classes=3, **options
    )
    return [
        ([int(n) for n in batch[0][:, 0, 0, 0]], [int(n) for n in np.argmax(batch[1], 1)])
        for batch in stream
    ]


def test_without_shuffling_the_order_is_the_tables() -> None:
    batches = _stream()
    assert [len(numbers) for numbers, _ in batches] == [4, 4, 3]
    assert [n for numbers, _ in batches for n in numbers] == list(range(N))


def test_every_epoch_goes_by_its_order_and_batches_do_not_span_epochs() -> None:
    batches = _stream(shuffle=True, seed=7, epochs=range(3, 6))
    assert [len(numbers) for numbers, _ in batches] == [4, 4, 3] * 3
    for place, epoch in enumerate(range(3, 6)):
        seen = [n for numbers, _ in batches[3 * place : 3 * place + 3] for n in numbers]
        assert seen == images.order(N, 7, epoch).tolist()
    for numbers, labels in batches:
        assert labels == [number % 3 for number in numbers]


def test_a_stream_can_start_at_any_epoch_and_step() -> None:
    whole = _stream(shuffle=True, seed=7, epochs=range(0, 4))
    assert _stream(shuffle=True, seed=7, epochs=range(2, 4)) == whole[6:]
    assert _stream(shuffle=True, seed=7, epochs=range(2, 4), first_step=2) == whole[8:]


def test_the_number_of_batches_is_known() -> None:
    stream = images.dataset(
        _numbered(), np.zeros(N, int), image_size=(4, 4), batch_size=4, num_classes=2,
        epochs=range(2, 5), first_step=1,
    )  # fmt: skip
    assert int(stream.cardinality()) == 8 == len(list(stream))
    assert stream.element_spec[0].shape.as_list() == [None, 4, 4, 3]
    assert stream.element_spec[1].shape.as_list() == [None, 2]


class _Recorder:
    """Writes the keys it is given into the pictures."""

    def example(self, image: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        assert key.shape == (3,)
        assert key.dtype == tf.int64
        return tf.zeros_like(image) + tf.cast(key, tf.float32)

    def batch(self, pictures: tf.Tensor, labels: tf.Tensor, key: tf.Tensor) -> tuple:
        step = tf.cast(key, tf.float32)[None, None, None] * 1000
        return pictures + step, labels * 0.5 + labels[::-1] * 0.5


def test_augmentation_is_keyed_by_seed_epoch_and_example_or_step() -> None:
    stream = images.dataset(
        _numbered(), np.arange(N) % 3, image_size=(4, 4), batch_size=4, num_classes=3, seed=7,
        shuffle=True, epochs=range(3, 5), augment=_Recorder(), class_weights=[1.0, 2.0, 4.0],
    )  # fmt: skip
    batches = list(stream)
    assert len(batches) == 6
    for number, (pictures, labels, weights) in enumerate(batches):
        epoch, step = 3 + number // 3, number % 3
        keys = pictures.numpy()[:, 0, 0].astype(int)
        indices = images.order(N, 7, epoch)[4 * step : 4 * step + 4]
        assert (keys % 1000 == [[7, epoch, index] for index in indices]).all()
        assert (keys // 1000 == [7, epoch, step]).all()
        assert np.allclose(weights, labels.numpy() @ [1.0, 2.0, 4.0])


def test_class_weights_become_sample_weights() -> None:
    stream = images.dataset(
        _numbered(), np.arange(N) % 3, image_size=(4, 4), batch_size=N, num_classes=3,
        class_weights=[1.0, 2.0, 4.0],
    )  # fmt: skip
    ((_, _, weights),) = stream
    assert weights.numpy().tolist() == [[1.0, 2.0, 4.0][i % 3] for i in range(N)]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int32, bool])
def test_labels_of_several_numbers_stay_as_they_are(dtype: type) -> None:
    table = np.random.default_rng(0).normal(0, 3, (N, 5)).astype(dtype)
    stream = images.dataset(
        _numbered(), table, image_size=(4, 4), batch_size=4, num_classes=5, seed=7, shuffle=True,
        epochs=range(3, 5),
    )  # fmt: skip
    assert stream.element_spec[1].shape.as_list() == [None, 5]
    batches = list(stream)
    assert [len(labels) for _, labels in batches] == [4, 4, 3] * 2
    for pictures, labels in batches:
        assert labels.dtype == tf.float32
        numbers = pictures.numpy()[:, 0, 0, 0].astype(int)
        assert np.array_equal(labels, table[numbers].astype(np.float32))


def test_a_single_number_a_picture_is_a_table_of_one_column() -> None:
    targets = np.linspace(-1, 1, N)[:, None]
    stream = images.dataset(_numbered(), targets, image_size=(4, 4), batch_size=N, num_classes=1)
    ((_, labels),) = stream
    assert np.array_equal(labels, targets.astype(np.float32))


@pytest.mark.parametrize(
    ("labels", "options", "said"),
    [
        (np.zeros((N, 2)), {"num_classes": 3}, "labels of 2 numbers for 3 outputs"),
        (np.zeros((N - 1, 2)), {"num_classes": 2}, "10 labels for 11 pictures"),
        (np.zeros((N, 2)), {"num_classes": 2, "class_weights": [1, 2]}, "only classes"),
        (np.full(N, 2), {"num_classes": 2}, "label out of range"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: np.ndarray, options: dict, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        images.dataset(_numbered(), labels, image_size=(4, 4), batch_size=4, **options)


@pytest.mark.parametrize("augment", [Augment(mixup=0.4), Augment(cutmix=1.0)])
def test_labels_of_several_numbers_are_mixed_as_their_pictures(augment: Augment) -> None:
    """A label is a linear function of its picture's level, so that the mix must be as well."""
    side, levels = 160, np.linspace(10, 250, 6)
    values = np.ones((6, side, side), np.uint8) * levels.astype(np.uint8)[:, None, None]
    targets = np.stack([levels, 100 - 2 * levels], axis=1)
    stream = images.dataset(
        Arrays(values), targets, image_size=(side, side), batch_size=6, num_classes=2,
        augment=Augmentation(augment, (side, side)),
    )  # fmt: skip
    ((pictures, labels),) = stream
    # Keras rounds CutMix's box to whole pixels after it has computed the shares from it.
    rounding = 240 * 2 / side if augment.cutmix else 0.05
    means = pictures.numpy().mean(axis=(1, 2, 3))
    assert not np.allclose(labels, targets)
    assert np.allclose(labels[:, 0], means, atol=rounding)
    assert np.allclose(labels[:, 1], 100 - 2 * means, atol=2 * rounding)


def test_files_memory_and_single_pictures_give_the_same_pixels(tmp_path: Path) -> None:
    paths, looks = [], []
    for number, data in enumerate(KINDS.values()):
        paths.append(tmp_path / f"{number}")
        paths[-1].write_bytes(data)
        looks.append(inspection.inspect(data))
    facts = (
        np.asarray([look.orientation for look in looks], np.uint8),
        np.asarray([look.through_pillow for look in looks]),
    )
    contents = [
        Files(tuple(str(path) for path in paths), *facts),
        Encoded(tuple(KINDS.values()), *facts),
    ]
    alone = [images.decode_file(path, (16, 16), "pad") for path in paths]
    for content in contents:
        stream = images.dataset(
            content, np.zeros(len(paths), int), image_size=(16, 16), batch_size=8,
            num_classes=1, resize="pad",
        )  # fmt: skip
        found = np.concatenate([batch for batch, _ in stream])
        assert np.array_equal(found, alone)


def test_16_bit_arrays_and_colour_arrays_are_scaled_to_255() -> None:
    deep = np.asarray([0, 257, 65535], np.uint16).reshape(3, 1, 1)
    colours = np.arange(9, dtype=np.uint8).reshape(3, 1, 1, 3)
    for values, expected in ((deep, [[0] * 3, [1] * 3, [255] * 3]), (colours, np.arange(9))):
        stream = images.dataset(
            Arrays(values), [0, 0, 0], image_size=(1, 1), batch_size=3, num_classes=1
        )
        ((found, _),) = stream
        assert np.array_equal(found.numpy().ravel(), np.ravel(expected))


def test_no_more_than_a_few_batches_are_decoded_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    class Watched(tuple):
        def __getitem__(self, index: int) -> bytes:
            read.append(int(index))
            return super().__getitem__(index)

    n = 400
    content = Encoded(
        Watched([KINDS["png"]] * n), np.ones(n, np.uint8), np.zeros(n, bool)
    )  # fmt: skip
    stream = images.dataset(
        content, np.zeros(n, int), image_size=(8, 8), batch_size=4, num_classes=1
    )
    iterator = iter(stream)
    next(iterator)
    import time

    time.sleep(0.5)
    assert len(read) < n // 2


def test_keras_fits_on_the_stream_with_every_epoch_whole() -> None:
    import keras

    model = keras.Sequential(
        [keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
    stream = images.dataset(
        _numbered(), np.arange(N) % 3, image_size=(4, 4), batch_size=4, num_classes=3,
        shuffle=True, epochs=range(2, 4),
    )  # fmt: skip
    history = model.fit(
        stream, steps_per_epoch=images.steps(N, 4), initial_epoch=2, epochs=4, verbose=0
    )
    assert history.epoch == [2, 3]


@pytest.mark.slow
def test_the_stream_feeds_jax_too() -> None:
    pytest.importorskip("jax")
    script = (
        "import numpy as np, keras; from kerastune_ft.data import images;"
        "from kerastune_ft.data.augmentation import Augmentation;"
        "from kerastune_ft.data.tables import Arrays; from kerastune_ft.recipe import Augment;"
        "changes = Augmentation(Augment(horizontal_flip=True, rotation=0.1, zoom=0.2), (4, 4));"
        "assert keras.backend.backend() == 'jax';"
        "d = images.dataset(Arrays(np.zeros((5, 4, 4), np.uint8)), [0, 1, 0, 1, 0],"
        " image_size=(4, 4), batch_size=2, num_classes=2, shuffle=True, epochs=range(2),"
        " augment=changes);"
        "m = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(),"
        " keras.layers.Dense(2)]);"
        "m.compile('sgd', keras.losses.CategoricalCrossentropy(from_logits=True));"
        "m.fit(d, steps_per_epoch=3, epochs=2, verbose=0)"
    )
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, cwd=root)


def test_three_channels_are_the_default_and_whole_numbers_as_the_decoder_gives_them() -> None:
    """Of what is stored in 8 bits, what leaves is what TensorFlow or Pillow decodes, untouched."""
    for data in KINDS.values():
        look = inspection.inspect(data)
        assert isinstance(look, inspection.Inspected)
        assert look.channels is None
        through_pillow = tf.constant(look.through_pillow)
        found = images.decode(tf.constant(data), through_pillow, look.orientation)
        assert found.dtype == tf.float32
        assert np.array_equal(found, np.rint(found))
        if not look.through_pillow:
            raw = tf.io.decode_image(data, channels=3, expand_animations=False)
            assert np.array_equal(found, raw)
        named = images.decode_bytes(data, (10, 14), "pad", name="x", channels=3)
        assert np.array_equal(named, images.decode_bytes(data, (10, 14), "pad", name="x"))


@pytest.mark.parametrize("kind", KINDS)
def test_grey_is_the_luma_of_the_picture_as_pillow_has_it(kind: str) -> None:
    """Pillow rounds to whole levels; whoever decodes, alpha is composited before."""
    found = images.decode_bytes(KINDS[kind], (HEIGHT, WIDTH), name="x", channels=1)
    assert found.shape == (HEIGHT, WIDTH, 1)
    assert found.dtype == np.float32
    colours = np.rint(_decoded(KINDS[kind])).astype(np.uint8)
    expected = np.asarray(Image.fromarray(colours).convert("L")).astype(float)
    assert np.abs(found[..., 0] - expected).max() <= 0.5 + 1e-4
    by_tensorflow = tf.image.rgb_to_grayscale(
        colours.astype(np.float32)
    )  # its weights sum to 0.9999
    assert np.abs(found - by_tensorflow).max() <= (0.53 if "16 bit" in kind else 0.03)


def test_a_grey_file_comes_out_as_it_is_stored() -> None:
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = Image.fromarray(stored)
    files = {f: _encode(picture, f) for f in ("PNG", "BMP", "TIFF", "PPM", "GIF")}
    files["WEBP"] = _encode(picture, "WEBP", lossless=True)
    files["PNG of RGB"] = _encode(picture.convert("RGB"), "PNG")
    for data in files.values():
        found = images.decode_bytes(data, (16, 16), name="x", channels=1)
        assert np.array_equal(found[..., 0], stored)


def test_16_bit_greyscale_keeps_its_levels_as_grey() -> None:
    for kind in ("png 16 bit grey", "tiff 16 bit grey"):
        found = images.decode_bytes(KINDS[kind], (HEIGHT, WIDTH), name="x", channels=1)
        assert np.array_equal(found[..., 0], GREY16.astype(np.float32) / np.float32(257))


def test_luma_of_grey_is_exact_and_within_the_range() -> None:
    levels = np.concatenate([np.arange(256), np.nextafter(np.float32(255), [0])])
    levels = levels.astype(np.float32)[:, None].repeat(3, axis=1)
    for found in (inspection.grey(levels), inspection.grey(tf.constant(levels)).numpy()):
        assert np.array_equal(found[:256, 0], np.arange(256))
        assert found.max() <= 255
    colours = np.eye(3, dtype=np.float32) * 255
    assert inspection.grey(colours).ravel() == pytest.approx([76.245, 149.685, 29.07], abs=0.01)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured_in_grey(orientation: int) -> None:
    for picture, format in (
        (_photo(), "PNG"),
        (_photo(), "TIFF"),
        (Image.fromarray(GREY16), "PNG"),
    ):
        data = _encode(picture, format, exif=_exif(orientation))
        size = (WIDTH, HEIGHT) if orientation > 4 else (HEIGHT, WIDTH)
        found = images.decode_bytes(data, size, name="x", channels=1)
        colours = images.decode_bytes(data, size, name="x")
        assert np.abs(found - inspection.grey(colours)).max() <= 0.5 + 1e-4


def _npy(values: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, values, version, allow_pickle=True)
    return stream.getvalue()


def _pixels(dtype: str, channels: int | None) -> np.ndarray:
    largest = 65535 if dtype.endswith("u2") else 255
    shape = (HEIGHT, WIDTH) if channels is None else (HEIGHT, WIDTH, channels)
    return np.random.default_rng(1).uniform(0, largest, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_arrays_come_back_as_they_were_written(dtype: str, channels: int) -> None:
    values = _pixels(dtype, channels)
    expected = values.astype(np.float32) / (257 if dtype.endswith("u2") else 1)
    for stored in (values, np.asfortranarray(values)):
        for version in ((1, 0), (2, 0)):
            data = _npy(stored, version)
            look = inspection.inspect(data)
            largest = float(values.max()) if dtype[1] == "f" else None
            assert look == inspection.Inspected("NPY", True, 1, channels, largest)
            assert inspection.stored_channels(data) == channels
            found = images.decode_bytes(data, (HEIGHT, WIDTH), name="x", channels=channels)
            assert found.dtype == np.float32
            assert np.array_equal(found, expected)


def test_an_array_without_channels_is_grey() -> None:
    flat = _npy(_pixels("u1", None))
    assert inspection.stored_channels(flat) == 1
    grey = images.decode_bytes(flat, (HEIGHT, WIDTH), name="x", channels=1)
    assert np.array_equal(grey[..., 0], _pixels("u1", None))
    for data in (flat, _npy(_pixels("u1", None)[..., None])):
        found = images.decode_bytes(data, (HEIGHT, WIDTH), name="x")
        assert np.array_equal(found, grey.repeat(3, axis=2))


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_an_rgb_array_gives_grey_by_its_luma(dtype: str) -> None:
    data = _npy(_pixels(dtype, 3))
    colours = images.decode_bytes(data, (HEIGHT, WIDTH), name="x")
    found = images.decode_bytes(data, (HEIGHT, WIDTH), name="x", channels=1)
    assert np.array_equal(found, inspection.grey(colours))


def test_one_black_or_dark_array_of_floats_is_a_picture(tmp_path: Path) -> None:
    for value in (0.0, 1.0):
        path = tmp_path / f"{value}.npy"
        np.save(path, np.full((6, 5, 3), value, np.float32))
        assert (images.decode_file(path, (6, 5)) == value).all()


def test_an_array_of_a_photo_gives_what_the_photo_gives() -> None:
    photo = np.asarray(_photo())
    for channels in (1, 3):
        for size in ((10, 30), (40, 20)):
            a, b = (
                images.decode_bytes(data, size, "crop", name="x", channels=channels)
                for data in (_npy(photo), KINDS["png"])
            )
            assert np.array_equal(a, b)


def _with_header(shape: tuple[int, ...], behind: bytes = b"", descr: str = "|u1") -> bytes:
    stream = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + behind


def _one_value(value: float) -> bytes:
    values = _pixels("f4", 4)
    values[3, 4, 1] = value
    return _npy(values)


@pytest.mark.parametrize(
    ("data", "kind", "said"),
    [
        (_npy(_pixels("u1", 4))[:-1], "truncated", "1 bytes are missing"),
        (_npy(_pixels("u1", 4))[:40], "truncated", "EOF"),
        (_npy(_pixels("u1", 4))[:7], "truncated", "EOF"),
        (_npy(_pixels("u1", 4)) + b"xy", "unreadable", "2 bytes follow the array"),
        (_one_value(np.nan), "unreadable", "nan"),
        (_one_value(np.inf), "unreadable", "to inf"),
        (_one_value(-0.5), "unreadable", "values from -0.5 to"),
        (_one_value(255.5), "unreadable", "to 255.5; floats must be in 0..255"),
        (_npy(_pixels("i4", 4)), "unsupported_format", "array of int32"),
        (_npy(_pixels("f2", 4)), "unsupported_format", "array of float16"),
        (_npy(np.zeros((4, 4), bool)), "unsupported_format", "array of bool"),
        (_npy(np.zeros((4, 4), "u1,u2")), "unsupported_format", "array of void"),
        (_npy(np.zeros((4, 4), "u1,u2"), (3, 0)), "unreadable", "version 3.0"),
        (_npy(np.zeros(16, "u1")), "unsupported_format", r"shape \(16,\)"),
        (_npy(np.zeros((2, 4, 4, 3), "u1")), "unsupported_format", r"\(2, 4, 4, 3\)"),
        (_npy(np.zeros((4, 0, 3), "u1")), "unsupported_format", r"\(4, 0, 3\)"),
        (_with_header((-4, -4, 3), bytes(48)), "unsupported_format", r"\(-4, -4, 3\)"),
        (_with_header((10_000, 10_000, 4)), "too_large", "10,000 x 10,000 x 4"),
        (_with_header((10, 10, 10**15)), "too_large", "1,000,000,000,000,000"),
        (_with_header((9_000, 9_000, 3), bytes(9)), "truncated", "242,999,991 bytes are missing"),
        (_with_header((4, 4), bytes(16)).replace(b"shape", b"shake"), "unreadable", "keys"),
        (b"\x93NUMPY\x01\x00\x60\xea" + b"(" * 60_000, "unreadable", "."),
    ],
)
def test_arrays_that_are_no_pictures_are_told_apart(data: bytes, kind: str, said: str) -> None:
    look = inspection.inspect(data)
    assert isinstance(look, inspection.Unusable)
    assert (look.kind, look.is_picture) == (kind, True)
    with pytest.raises(DataError, match=rf"(?s)bad\.npy: cannot be read .*{kind}.*{said}"):
        images.decode_bytes(data, (8, 8), name="bad.npy", channels=4)
    with pytest.raises(ValueError, match=rf"(?s).*{said}"):
        inspection.decode(data, 4)


class _Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_an_array_of_objects_is_refused_and_never_unpickled(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    data = _npy(np.asarray([[_Trap(sprung)] * 4] * 4, object))
    look = inspection.inspect(data)
    assert isinstance(look, inspection.Unusable)
    assert look.kind == "unsupported_format"
    assert "object" in look.detail
    with pytest.raises(ValueError, match="object"):
        inspection.decode(data, 1)
    inspection.stored_channels(data)
    assert not sprung.exists()
    np.load(io.BytesIO(data), allow_pickle=True)  # the trap does work
    assert sprung.exists()


def test_damaged_arrays_are_either_told_apart_or_pictures() -> None:
    generator = np.random.default_rng(0)
    whole = _npy(_pixels("f4", 4))
    survivors = 0
    for _ in range(300):
        data = bytearray(whole)
        for place in generator.integers(6, 160, 2):
            data[place] = generator.integers(256)
        look = inspection.inspect(bytes(data))
        if isinstance(look, inspection.Inspected) and look.channels is not None:
            survivors += 1
            found = inspection.decode(bytes(data), look.channels)
            assert 0 <= found.min() <= found.max() <= 255
    assert 0 < survivors < 300


def test_an_array_is_known_by_its_content_and_called_npy(tmp_path: Path) -> None:
    assert inspection.has_picture_extension("a.NPY")
    assert inspection.extension_fits("a.npy", "NPY")
    assert not inspection.extension_fits("a.png", "NPY")
    assert not inspection.extension_fits("a.npy", "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(_npy(_pixels("u1", 3)))
    found = images.decode_file(path, (HEIGHT, WIDTH))
    assert np.array_equal(found, _pixels("u1", 3))


@pytest.mark.parametrize(
    ("data", "channels", "said"),
    [
        (KINDS["jpeg"], 4, r"'x' \(a picture of 1 or 3 channels\): .*: 4; set .* to 3 or 1, or "),
        (KINDS["png alpha"], 4, r"give \.npy files of shape \(height, width, 4\)"),
        (KINDS["tiff"], 2, r"backbone\.channels: 2"),
        (_npy(_pixels("u1", 5)), 3, r"\(5 channels\): .* set .* to 5, or give pictures or \.npy"),
        (_npy(_pixels("u1", 5)), 1, r"\(5 channels\)"),
        (_npy(_pixels("u1", 3)), 4, r"\(3 channels\): .*: 4; set backbone\.channels to 3, or"),
        (_npy(_pixels("u1", None)), 2, r"\(1 channel\)"),
    ],
)
def test_channels_that_a_picture_lacks_are_refused(data: bytes, channels: int, said: str) -> None:
    with pytest.raises(DataError, match=said):
        images.decode_bytes(data, (8, 8), name="x", channels=channels)
    with pytest.raises(ValueError, match="cannot be read"):
        inspection.decode(data, channels)


def _content(files: list[bytes], folder: Path | None = None) -> Files | Encoded:
    looks = [inspection.inspect(data) for data in files]
    facts = (
        np.asarray([look.orientation for look in looks], np.uint8),
        np.asarray([look.through_pillow for look in looks], bool),
    )
    if folder is None:
        return Encoded(tuple(files), *facts)
    paths = [folder / f"{number}.npy" for number in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    return Files(tuple(str(path) for path in paths), *facts)


def _split(content: Files | Encoded | Arrays, name: str = "train") -> Split:
    names = tuple(f"{name}/{number}" for number in range(len(content)))
    return Split(name, names, np.zeros(len(content), np.int32), content)


def test_pictures_of_other_channels_are_found_before_training(tmp_path: Path) -> None:
    four, three, jpeg = _npy(_pixels("u1", 4)), _npy(_pixels("f4", 3)), KINDS["jpeg"]
    for folder in (None, tmp_path):
        images.check_channels([_split(_content([four] * 3, folder))], 4)
        mixed = _content([four, three, jpeg], folder)
        with pytest.raises(DataError) as caught:
            images.check_channels([_split(_content([jpeg, three])), _split(mixed, "test")], 4)
        said = str(caught.value)
        for place in ("'train/0' (a picture", "'train/1' (3 c", "'test/1' (3 c", "'test/2' (a "):
            assert place in said
        assert "'test/0'" not in said
        for channels in (1, 3):
            with pytest.raises(DataError, match=r"^'train/0' \(4 channels\): .* to 4, or"):
                images.check_channels([_split(mixed)], channels)


def test_many_wrong_pictures_are_counted() -> None:
    content = _content([_npy(_pixels("u1", 4))] * 12)
    with pytest.raises(DataError, match=r"'train/4' \(4 channels\) and 7 more: "):
        images.check_channels([_split(content)], 3)


def test_an_array_that_is_gone_is_named_when_channels_are_checked(tmp_path: Path) -> None:
    content = _content([_npy(_pixels("u1", 4))], tmp_path)
    assert isinstance(content, Files)
    Path(content.paths[0]).unlink()
    with pytest.raises(DataError, match=r"train/0: .*No such file"):
        images.check_channels([_split(content)], 4)


@pytest.mark.parametrize(("stored", "fits"), [(None, (1, 3)), (1, (1, 3)), (3, (1, 3)), (4, (4,))])
def test_arrays_in_memory_are_checked_too(stored: int | None, fits: tuple[int, ...]) -> None:
    content = Arrays(np.ones((5, 4, 6) if stored is None else (5, 4, 6, stored), np.uint8))
    for channels in (1, 2, 3, 4):
        options = {"image_size": (4, 6), "batch_size": 5, "num_classes": 1, "channels": channels}
        if channels in fits:
            images.check_channels([_split(content)], channels)
            ((found, _),) = images.dataset(content, np.zeros(5, int), **options)
            assert found.shape == (5, 4, 6, channels)
            assert np.array_equal(found, np.ones_like(found))
        else:
            with pytest.raises(DataError, match="'train/0'"):
                images.check_channels([_split(content)], channels)
            with pytest.raises(DataError, match="'picture 0'"):
                images.dataset(content, np.zeros(5, int), **options)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_batches_of_any_channels_are_those_of_single_pictures(
    channels: int, tmp_path: Path
) -> None:
    """From files and from memory, in a rectangular size, augmented, in the order of the seed."""
    generator = np.random.default_rng(0)
    files = [
        _npy(generator.integers(0, 256, (*generator.integers(4, 40, 2), channels), np.uint8))
        for _ in range(N)
    ]
    if channels in (1, 3):
        files[2:2] = [KINDS["jpeg"], KINDS["png 16 bit grey"], KINDS["webp alpha"]]
    n, size = len(files), (9, 14)
    options = {
        "image_size": size, "batch_size": 4, "num_classes": 1, "channels": channels, "seed": 5,
        "shuffle": True, "epochs": range(1, 3), "resize": "pad",
    }  # fmt: skip
    alone = np.stack(
        [images.decode_bytes(f, size, "pad", name="x", channels=channels) for f in files]
    )
    augment = Augmentation(Augment(horizontal_flip=True, zoom=0.2, mixup=0.2), size, channels)
    changed = []
    for content in (_content(files), _content(files, tmp_path)):
        stream = images.dataset(content, np.zeros(n, int), **options)
        assert stream.element_spec[0].shape.as_list() == [None, *size, channels]
        found = np.concatenate([pictures for pictures, _ in stream])
        orders = np.concatenate([images.order(n, 5, epoch) for epoch in (1, 2)])
        assert np.array_equal(found, alone[orders])
        stream = images.dataset(content, np.zeros(n, int), **options, augment=augment)
        changed.append(np.concatenate([pictures for pictures, _ in stream]))
    assert np.array_equal(*changed)
    assert not np.array_equal(changed[0], found)


@pytest.mark.parametrize("how", ["squash", "crop", "pad"])
def test_each_channel_is_resized_as_if_it_were_alone(how: images.Resize) -> None:
    pixels = _pixels("u1", 5)
    found = images.resize(pixels, (10, 20), how, channels=5).numpy()
    for channel in range(5):
        alone = images.resize(pixels[..., channel : channel + 1], (10, 20), how, channels=1)
        assert np.allclose(found[..., channel], alone[..., 0], atol=1e-4)
