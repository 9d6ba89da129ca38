"""Writes data with every defect that `kft data check` looks for, and clean data beside it."""

from __future__ import annotations

import csv
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

Planted = dict[str, set[str]]

SUBJECTS = (
    "baker teacher neighbour engineer painter farmer captain doctor singer student lawyer "
    "gardener driver writer tourist officer fisherman waiter builder nurse"
)
VERBS = (
    "repaired described visited bought remembered painted ignored carried followed noticed "
    "borrowed cleaned measured promised counted opened praised crossed watched sold"
)
OBJECTS = (
    "bridge letter garden violin window bicycle kitchen machine harbour ticket blanket ladder "
    "castle bottle mirror market picture engine village carpet"
)
PLACES = (
    "yesterday before breakfast",
    "during the long winter",
    "behind the old station",
    "with great care",
    "after the second meeting",
    "near the northern border",
    "because nobody else wanted to",
    "for the third time",
    "without saying a word",
    "while it was raining outside",
    "on the way to the airport",
    "in spite of the heat",
    "under a cloudy evening sky",
    "against the advice of friends",
    "at the end of summer",
)


def photo(rng: np.random.Generator, width: int = 240, height: int = 180) -> Image.Image:
    """Returns a picture as smooth, as coloured and as textured as a photograph; no two alike."""
    base = np.zeros((height, width, 3), np.float32)
    for cells, strength in ((4, 70), (9, 35), (40, 18), (120, 10)):
        shape = (cells * 3 // 4, cells, 3)
        field = np.clip(rng.normal(128, 60, shape), 0, 255).astype(np.uint8)
        field = Image.fromarray(field).resize((width, height), Image.Resampling.BICUBIC)
        base += (np.asarray(field, np.float32) - 128) / 64 * strength
    pixels = np.clip(base + 122, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


def sentence(rng: np.random.Generator) -> str:
    def one(words: str | tuple[str, ...]) -> str:
        return str(rng.choice(words.split() if isinstance(words, str) else words))

    first = f"The {one(SUBJECTS)} {one(VERBS)} the {one(OBJECTS)} {one(PLACES)}"
    return f"{first}, and the {one(SUBJECTS)} {one(VERBS)} a {one(OBJECTS)} {one(PLACES)}."


def distinct_sentences(rng: np.random.Generator, count: int) -> list[str]:
    """Returns sentences of which no two are nearly the same."""

    def pieces(text: str) -> set[str]:
        return {text[i : i + 5] for i in range(len(text) - 4)}

    made: list[str] = []
    known: list[set[str]] = []
    while len(made) < count:
        text = sentence(rng)
        own = pieces(text)
        if all(len(own & other) < 0.6 * len(own | other) for other in known):
            made.append(text)
            known.append(own)
    return made


def clean_folder(folder: Path) -> Path:
    rng = np.random.default_rng(1)
    for split, count in (("train", 24), ("validation", 6), ("test", 6)):
        for label in ("cat", "dog", "owl"):
            place = folder / split / label
            place.mkdir(parents=True)
            for number in range(count):
                photo(rng).save(place / f"{number:02d}.jpg", quality=92)
    return folder


def messy_folder(folder: Path) -> Planted:
    """Writes train, validation and test folders and returns what is wrong with them, by kind."""
    rng = np.random.default_rng(0)
    planted: Planted = defaultdict(set)
    sizes = {
        "train": {"cat": 40, "dog": 30, "Cat": 2, "dgo": 2, "fox": 1},
        "validation": {"cat": 6, "dog": 6, "owl": 2},
        "test": {"cat": 3, "dog": 30},
    }
    for split, classes in sizes.items():
        for label, count in classes.items():
            place = folder / split / label
            place.mkdir(parents=True)
            for number in range(count):
                photo(rng).save(place / f"{number:02d}.jpg", quality=92)
    planted["label_spelling"] = {"Cat"}
    planted["label_typo"] = {"dgo"}
    planted["small_class"] = {"Cat", "dgo", "fox"}
    planted["untrained_class"] = {"owl"}
    planted["class_absent"] = {"Cat", "dgo", "fox", "owl"}
    planted["label_shift"] = {"test"}
    planted["imbalance"] = {"Cat", "dgo", "fox"}

    def put(kinds: str, name: str, picture: Image.Image, **how: object) -> None:
        path = folder / name
        picture.save(path, **how)
        for kind in kinds.split():
            planted[kind].add(name)

    train = "train/cat"
    for number, colour in enumerate(((200, 40, 40), (30, 90, 200), (90, 160, 60))):
        put("blank", f"{train}/blank{number}.png", Image.new("RGB", (240, 180), colour))
    for number in range(2):
        dark = photo(rng).point(lambda value: value // 8)
        put("dark", f"{train}/dark{number}.png", dark)
        bright = photo(rng).point(lambda value: 228 + value // 10)
        put("bright", f"{train}/bright{number}.png", bright)
    for number in range(3):
        soft = photo(rng).filter(ImageFilter.GaussianBlur(8))
        put("blurred", f"{train}/blurred{number}.jpg", soft, quality=92)
        grey = photo(rng).convert("L")
        put("grey_among_colour", f"{train}/grey{number}.jpg", grey, quality=92)
        tiny = photo(rng, 60, 45)
        put("small_pictures mixed_sizes", f"{train}/tiny{number}.jpg", tiny, quality=92)
    put("odd_mode", f"{train}/cmyk.jpg", photo(rng).convert("CMYK"), quality=92)
    put("odd_mode", f"{train}/palette.png", photo(rng).convert("P"))
    for number in range(2):
        exif = Image.Exif()
        exif[0x0112] = 6
        put("turned", f"{train}/turned{number}.jpg", photo(rng), quality=92, exif=exif)
        put("odd_shape", f"{train}/wide{number}.jpg", photo(rng, 480, 120), quality=92)
        large = photo(rng, 720, 540)
        put("mixed_sizes", f"{train}/large{number}.jpg", large, quality=92)

    def copy(kind: str, source: str, name: str) -> None:
        shutil.copy(folder / source, folder / name)
        planted[kind].add(name)

    for number in range(2):
        copy("duplicates", f"train/dog/0{number}.jpg", f"train/dog/copy{number}.jpg")
        shutil.copy(folder / f"train/dog/1{number}.jpg", folder / f"test/dog/leak{number}.jpg")
        planted["leaked_copies"].add(f"train/dog/1{number}.jpg")
        planted["duplicates"].add(f"train/dog/1{number}.jpg")
        with Image.open(folder / f"train/cat/0{number}.jpg") as original:
            smaller = original.resize((200, 150), Image.Resampling.LANCZOS)
        put("near_duplicates", f"{train}/near{number}.jpg", smaller, quality=70)
    copy("conflicting_labels", "train/cat/20.jpg", "train/dog/20b.jpg")
    with Image.open(folder / "train/dog/25.jpg") as original:
        original.save(folder / "validation/dog/near.jpg", quality=60)
    planted["leaked_near_copies"].add("train/dog/25.jpg")
    planted["near_duplicates"].add("validation/dog/near.jpg")

    whole = (folder / "train/dog/05.jpg").read_bytes()
    (folder / train / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    planted["truncated"].add(f"{train}/cut.jpg")
    (folder / train / "nothing.jpg").touch()
    planted["empty_file"].add(f"{train}/nothing.jpg")
    (folder / train / "words.jpg").write_text("no picture at all")
    planted["unreadable"].add(f"{train}/words.jpg")
    (folder / train / "notes.txt").write_text("taken in May")
    planted["not_a_picture"].add(f"{train}/notes.txt")
    put("extension_mismatch", f"{train}/wrong.jpg", photo(rng), format="PNG")
    (folder / "train" / "bear").mkdir()
    planted["empty_class"].add("train/bear")
    (folder / train / "loop").symlink_to(folder / train, target_is_directory=True)
    return planted


def write_table(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def clean_table(path: Path) -> Path:
    texts = distinct_sentences(np.random.default_rng(1), 120)
    rows = []
    for number, text in enumerate(texts):
        label = ("news", "sport", "music")[number % 3]
        split = "test" if number < 18 else "validation" if number < 36 else "train"
        own = {"text": text, "label": label, "split": split, "author": f"a{number}", "note": "x"}
        rows.append(own)
    return write_table(path, rows)


def messy_table(path: Path) -> Planted:
    """Writes a CSV file and returns what is wrong with it: kinds, and words that names begin with.

    The names of rows are `messy.csv:NUMBER`, without the digest that follows them.
    """
    rng = np.random.default_rng(2)
    planted: Planted = defaultdict(set)
    texts = iter(distinct_sentences(rng, 220))
    rows: list[dict[str, str]] = []

    def add(kinds: str = "", text: str | None = None, label: str = "news", split: str = "train",
            author: str | None = None, note: str = "x") -> str:  # fmt: skip
        text = next(texts) if text is None else text
        author = author or f"a{len(rows)}"
        rows.append({"text": text, "label": label, "split": split, "author": author, "note": note})
        name = f"{path.name}:{len(rows)}"
        for kind in kinds.split():
            planted[kind].add(name)
        return name

    for number in range(120):
        label = ("news", "sport")[number % 2]
        add(label=label, split=("train", "train", "test", "validation")[number // 2 % 4])
    for mark in ("<br />", "<b>", "&amp;"):
        add("html", f"{next(texts)[:-1]} {mark} once more.")
    add("control_characters", next(texts).replace(" the ", " \x07the ", 1))
    add("control_characters", next(texts).replace("the ", "th\u200be ", 1))
    add("control_characters", "\ufeff" + next(texts))
    for word in ("cafe\u0301", "nai\u0308ve"):
        add("not_nfc", f"{next(texts)[:-1]} in a {word} manner.")
    for word in ("cafÃ©", "donâ€™t"):
        add("mojibake", f"{next(texts)[:-1]} {word} twice.")
    for _ in range(2):
        add("replacement_characters", next(texts).replace("a", "\ufffd", 1))
    for text in (
        "Der Zug nach Berlin hat heute leider fast zwei Stunden Verspätung, sagte der Schaffner.",
        "Le gouvernement français a annoncé hier une nouvelle réforme des retraites pour tous.",
        "Сегодня утром в Москве прошёл сильный дождь, и многие улицы оказались под водой.",
    ):
        add("other_language", text)
    for text in ("Yes", "Thanks!", "..."):
        add("short_text", text)
    for _ in range(2):
        parts = [sentence(rng) for _ in range(14)]
        add("long_text", " ".join(parts))
    add("huge_text", " ".join(sentence(rng) for _ in range(1000)))
    for _ in range(2):
        text = next(texts)
        add(text=text)
        add("duplicates", f" {text.upper()}  ")
        text = next(texts)
        add("leaked_copies", text)
        add("duplicates", text, split="test")
    text = next(texts)
    add(text=text)
    add("conflicting_labels", text, label="sport")
    text = next(texts)
    add(text=text)
    add("near_duplicates", text.replace("The", "A", 1))
    text = next(texts)
    add("leaked_near_copies", text)
    add("near_duplicates", text.replace("The", "A", 1), split="test")
    for group in ("anna", "bert"):
        add(author=group)
        add(author=group, split="test")
        planted["leaked_groups"].add(group)
    add("no_group", author=" ")
    for _ in range(5):
        add(note="")
    add(note="N/A")
    planted["missing_values"] |= {"note", "text", "label", "author"}
    add("empty_text", "  ")
    add("missing_label", label="")
    add("label_spaces", label="news ")
    add("label_spaces", label=" sport")
    add(label="News")
    add(label="News")
    planted["label_spelling"] = {"News"}
    add(label="spotr")
    planted["label_typo"] = {"spotr"}
    planted["small_class"] = {"News", "spotr"}
    planted["imbalance"] = {"News", "spotr"}
    planted["class_absent"] = {"News", "spotr"}
    write_table(path, rows)
    return planted
