"""Scaling while decoding, and pictures that are kept: the same pixels wherever they come from."""

from __future__ import annotations

import io
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kerastune_ft import recipe as recipes
from kerastune_ft.backbones import weights
from kerastune_ft.data import decoding, images, inspection, load, picture_cache
from kerastune_ft.data.augmentation import Augmentation
from kerastune_ft.data.tables import Encoded, Prepared
from kerastune_ft.recipe import Augment

HOWS = ("squash", "crop", "pad")
GENERATOR = np.random.default_rng(0)


def photograph(width: int, height: int) -> Image.Image:
    """Smooth and rough parts, as photographs have."""
    rough = GENERATOR.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    picture = Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)
    noise = GENERATOR.normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


def encoded(picture: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def array(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def full(data: bytes, size: tuple[int, int], how: decoding.Resize) -> np.ndarray:
    """What was served before the decoder scaled anything."""
    look = inspection.inspect(data)
    assert isinstance(look, inspection.Inspected)
    image = images.decode(tf.constant(data), tf.constant(look.through_pillow), look.orientation)
    return images.resize(image, size, how).numpy()


def scaled_shape(data: bytes, orientation: int, size: tuple[int, int], how: decoding.Resize):
    image, whole, ratio, _ = decoding.scaled(tf.constant(data), orientation, size, how)
    return tuple(image.shape[:2]), tuple(whole.numpy()), int(ratio)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_decoder_leaves_no_side_shorter_than_wanted_and_no_ratio_unused(
    how: decoding.Resize, orientation: int
) -> None:
    """Over sizes around every border, among them odd ones."""
    for width, height in ((64, 64), (127, 96), (128, 97), (250, 61), (257, 511), (33, 400)):
        data = encoded(photograph(width, height), exif=exif(orientation))
        upright = (width, height) if orientation > 4 else (height, width)
        for size in ((16, 16), (32, 20), (31, 33), (8, 64)):
            found, whole, chosen = scaled_shape(data, orientation, size, how)
            assert whole == upright
            wanted = size
            if how == "pad":
                scale = min(size[0] / upright[0], size[1] / upright[1])
                wanted = tuple(
                    min(max(1, round(side * scale)), most)
                    for side, most in zip(upright, size, strict=True)
                )
            fit = [
                ratio
                for ratio in decoding.RATIOS
                if all(-(-a // ratio) >= b for a, b in zip(upright, wanted, strict=True))
            ]
            ratio = max(fit, default=1)
            assert chosen == ratio
            assert found == tuple(-(-side // ratio) for side in upright)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    "kind", ["photo", "grey", "progressive", "turned", "mirrored", "named png", "cmyk", "mpo"]
)
def test_scaled_pictures_are_close_to_those_decoded_in_full(
    kind: str, how: decoding.Resize, tmp_path: Path
) -> None:
    photo = photograph(333, 250)
    data = {
        "grey": lambda: encoded(photo.convert("L")),
        "progressive": lambda: encoded(photo, progressive=True),
        "turned": lambda: encoded(photo, exif=exif(6)),
        "mirrored": lambda: encoded(photo, exif=exif(3)),
        "cmyk": lambda: encoded(photo.convert("CMYK")),
        "mpo": lambda: encoded(photo, "MPO", save_all=True, append_images=[photo]),
    }.get(kind, lambda: encoded(photo))()
    path = tmp_path / ("a.png" if kind == "named png" else "a.jpg")
    path.write_bytes(data)
    for size in ((40, 40), (60, 25), (100, 120)):
        found = images.decode_file(path, size, how)
        reference = full(data, size, how)
        assert found.dtype == np.float32
        assert np.array_equal(found, np.rint(found))
        # Of patches of 8 pixels; a stretch by one pixel in 84 made it 10.
        assert np.abs(found - reference).mean() < 7
        if kind == "cmyk":  # Pillow decodes it, in full
            assert np.abs(found - reference).max() <= 0.5


def test_antialiasing_gives_the_figures_of_tensorflow_to_the_bit() -> None:
    for shape, size in (((250, 188), (160, 160)), ((97, 301), (31, 200)), ((50, 9), (16, 16))):
        pixels = GENERATOR.integers(0, 256, (*shape, 3), np.uint8)
        expected = tf.image.resize(pixels, size, antialias=True)
        expected = tf.clip_by_value(expected, 0.0, 255.0).numpy()
        assert np.array_equal(images.resize(pixels, size).numpy(), expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("how", HOWS)
def test_pictures_of_8_bits_are_whole_numbers_and_deeper_ones_are_not(
    how: decoding.Resize, channels: int
) -> None:
    deep = GENERATOR.integers(0, 65536, (60, 50), np.uint16)
    for data in (encoded(photograph(60, 50)), encoded(photograph(60, 50), "PNG")):
        found = images.decode_bytes(data, (20, 24), how, name="x")
        assert np.array_equal(found, np.rint(found))
        grey = images.decode_bytes(data, (20, 24), how, name="x", channels=1)
        assert np.array_equal(grey, inspection.grey(found))
    found = images.decode_bytes(array(deep), (20, 24), how, name="x", channels=channels)
    assert not np.array_equal(found, np.rint(found))
    grey16 = images.decode_bytes(encoded(Image.fromarray(deep), "PNG"), (20, 24), how, name="x")
    assert np.array_equal(grey16, np.rint(grey16))  # RGB has 8 bits


def mixture() -> dict[str, bytes]:
    photo = photograph(90, 70)
    see_through = photo.copy()
    see_through.putalpha(Image.new("L", photo.size, 100))
    return {
        "a.jpg": encoded(photo),
        "b.jpg": encoded(photo.convert("L"), exif=exif(8)),
        "c.jpg": encoded(photo.convert("CMYK")),
        "d.png": encoded(see_through, "PNG"),
        "e.png": encoded(photograph(36, 33), "PNG"),  # of the size wanted
        "f.webp": encoded(photograph(40, 70), "WEBP"),
        "g.gif": encoded(photo.convert("P"), "GIF"),
        "h.jpg": encoded(photograph(9, 7)),
        "i.png": encoded(photo),  # a JPEG
        "j.npy": array(GENERATOR.integers(0, 256, (33, 44, 3), np.uint8)),
    }


DEEP = {
    "k.npy": array(GENERATOR.integers(0, 65536, (50, 40), np.uint16)),
    "l.npy": array(GENERATOR.uniform(0, 255, (50, 40, 3)).astype(np.float32)),
    "m.png": encoded(
        Image.fromarray(GENERATOR.integers(0, 65536, (50, 40), np.uint16)), "PNG"
    ),
}  # fmt: skip
SIZE = (33, 36)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of pictures of every kind."""
    for name in ("one", "two"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(2):
            for file, data in mixture().items():
                (tmp_path / "data" / name / f"{number}{file}").write_bytes(data)
    return tmp_path / "data"


def recipe(folder: Path, *more: str) -> recipes.Recipe:
    return recipes.load(
        Path(__file__).parents[1] / "recipes" / "mobilenet.yaml",
        [
            "data.source=image_folder", f"data.path={folder}", "data.batch_size=4",
            f"backbone.image_size=[{SIZE[0]}, {SIZE[1]}]", "backbone.weights=none",
            "data.augment=none", *more,
        ],
    )  # fmt: skip


def kept(made: recipes.Recipe) -> tuple:
    said: list[str] = []
    splits = load(made.data)
    return splits, picture_cache.kept(splits, made, said.append), said


def batches(split, made: recipes.Recipe, **options: object) -> list:
    stream = images.dataset(
        split.content, split.labels, image_size=SIZE, batch_size=4, num_classes=2,
        channels=made.backbone.channels, resize=made.data.resize, seed=3, shuffle=True,
        **options,
    )  # fmt: skip
    return [tuple(part.numpy() for part in batch) for batch in stream]


def same(one: list, other: list) -> bool:
    return len(one) == len(other) > 0 and all(
        a.dtype == b.dtype and np.array_equal(a, b)
        for left, right in zip(one, other, strict=True)
        for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize(
    ("how", "channels", "deep", "where"),
    [
        ("squash", 3, False, "disk"),
        ("crop", 3, True, "disk"),
        ("pad", 1, False, "disk"),
        ("squash", 1, True, "memory"),
        ("crop", 1, False, "memory"),
        ("pad", 3, True, "memory"),
    ],
)
def test_kept_pictures_give_the_batches_of_decoded_ones_to_the_bit(
    folder: Path, how: str, channels: int, deep: bool, where: str
) -> None:
    for file, data in DEEP.items() if deep else ():
        (folder / "one" / file).write_bytes(data)
    made = recipe(
        folder, f"data.resize={how}", f"data.cache={where}", f"backbone.channels={channels}"
    )
    splits, held, said = kept(made)
    assert len(said) == 1
    assert "kept" in said[0]
    augment = Augmentation(Augment(horizontal_flip=True, zoom=0.2), SIZE, channels)
    mixed = Augmentation(Augment(mixup=0.3), SIZE, channels)
    for split in held.all:
        assert isinstance(split.content, Prepared)
        assert split.content.values.dtype == (np.float32 if deep else np.uint8)
    assert same(batches(splits.test, made), batches(held.test, made))
    for options in (
        {"epochs": range(1, 3), "first_step": 3, "class_weights": [1.0, 3.0]},
        {"epochs": range(0, 2), "augment": augment, "first_step": 1},
        {"epochs": range(0, 2), "augment": mixed},
    ):
        assert same(batches(splits.train, made, **options), batches(held.train, made, **options))
    row = held.train.names.index(splits.train.names[0])
    alone = images.decode_file(
        Path(splits.train.content.paths[row]), SIZE, how, channels=channels
    )  # fmt: skip
    unshuffled = images.dataset(
        held.train.content, held.train.labels, image_size=SIZE, batch_size=1, num_classes=2,
        channels=channels, resize=how,
    )  # fmt: skip
    assert np.array_equal(next(iter(unshuffled))[0][0], alone)


def entries() -> list[Path]:
    return sorted(weights.kept("pictures").glob("[!.]*.npy"))


def test_runs_share_what_is_kept_whatever_their_division(folder: Path) -> None:
    kept(recipe(folder, "data.cache=disk"))
    (entry,) = entries()
    before = entry.stat().st_ino
    _, held, said = kept(recipe(folder, "data.cache=disk", "data.split.seed=5"))
    assert [path.stat().st_ino for path in entries()] == [before]
    assert "former run" in said[0]
    assert isinstance(held.train.content, Prepared)


@pytest.mark.parametrize(
    "more", ["data.resize=crop", "backbone.image_size=40", "backbone.channels=1"]
)
def test_other_pixels_are_another_entry(folder: Path, more: str) -> None:
    kept(recipe(folder, "data.cache=disk"))
    kept(recipe(folder, "data.cache=disk", more))
    assert len(entries()) == (1 if more == "backbone.channels=1" else 2)


def test_other_content_is_another_entry_and_never_the_old_pixels(folder: Path) -> None:
    made = recipe(folder, "data.cache=disk")
    kept(made)
    path = folder / "one" / "0a.jpg"
    stamp = path.stat()
    path.write_bytes(encoded(photograph(80, 60)))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    splits, held, _ = kept(made)
    assert len(entries()) == 2
    assert same(batches(splits.train, made), batches(held.train, made))


def test_a_file_that_changed_after_it_was_inspected_is_not_kept(folder: Path) -> None:
    made = recipe(folder, "data.cache=disk")
    splits = load(made.data)
    (folder / "one" / "0a.jpg").write_bytes(encoded(photograph(80, 60)))
    said: list[str] = []
    assert picture_cache.kept(splits, made, said.append) is splits
    assert "0a.jpg' changed after being inspected" in said[0]
    assert not entries()


def test_a_damaged_entry_is_made_anew(folder: Path) -> None:
    made = recipe(folder, "data.cache=disk")
    kept(made)
    (entry,) = entries()
    whole = bytearray(entry.read_bytes())
    whole[-100] ^= 255
    entry.write_bytes(bytes(whole))
    splits, held, said = kept(made)
    assert "decoded once" in said[0]
    assert same(batches(splits.train, made), batches(held.train, made))


def test_what_does_not_fit_is_streamed_and_it_is_said_why(folder: Path) -> None:
    made = recipe(folder, "data.cache=disk", "train.cache_gib=1e-6")
    splits, held, said = kept(made)
    assert held is splits
    assert "more than its limit" in said[0]


def test_a_folder_that_cannot_be_written_is_no_obstacle(folder: Path) -> None:
    weights.kept("pictures").parent.mkdir(parents=True, exist_ok=True)
    weights.kept("pictures").write_text("in the way")
    splits, held, said = kept(recipe(folder, "data.cache=disk"))
    assert held is splits
    assert "cannot be written" in said[0]
    _, held, said = kept(recipe(folder, "data.cache=auto"))
    assert isinstance(held.train.content, Prepared)
    assert "in memory" in said[0]


def test_auto_keeps_what_is_read_twice_and_says_so(folder: Path) -> None:
    once = [
        "train.strategy=null",
        "train.stages=[{epochs: 1, trainable_blocks: 1, learning_rate: 1e-3}]",
    ]
    splits, held, said = kept(recipe(folder, *once))
    assert held is splits
    assert said == []
    twice = ["train.stages=[{epochs: 2, trainable_blocks: 1, learning_rate: 1e-3}]"]
    _, held, said = kept(recipe(folder, *twice))
    assert isinstance(held.train.content, Prepared)
    assert len(said) == 1
    assert said[0].endswith("read 2 times")
    splits, held, said = kept(recipe(folder, *twice, "data.cache=off"))
    assert held is splits
    assert said == []


def test_copies_are_kept_once(folder: Path) -> None:
    shutil.copy(folder / "one" / "0a.jpg", folder / "one" / "copy.jpg")
    _, held, _ = kept(recipe(folder, "data.cache=memory"))
    values = held.train.content.values
    different = {path.read_bytes() for path in folder.rglob("*.*")}
    assert len(values) == len(different) < sum(len(split) for split in held.all)


def test_pictures_in_memory_are_kept_too() -> None:
    files = list(mixture().values())
    looks = [inspection.inspect(data) for data in files]
    content = Encoded(
        tuple(files),
        np.asarray([look.orientation for look in looks], np.uint8),
        np.asarray([look.through_pillow for look in looks], bool),
    )
    made = recipe(Path("unused"), "data.cache=memory")
    splits = load(recipes.load(Path("recipes/mobilenet.yaml")).data)
    part = replace(
        splits.train, names=tuple(map(str, range(10))), labels=np.arange(10) % 2, content=content
    )
    none = replace(splits.test, names=(), labels=np.zeros(0, int), content=content.take([]))
    splits = replace(splits, train=part, validation=none, test=none)
    held = picture_cache.kept(splits, made, lambda line: None)
    assert isinstance(held.train.content, Prepared)
    assert same(batches(splits.train, made), batches(held.train, made))
