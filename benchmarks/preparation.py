"""Makes what the ways read, before anything is measured; each in a process of its own.

Photographs are links into the folder that was given, drawn with a fixed seed; resized or varied
ones, and texts, are files of a temporary folder. Pre-trained weights are fetched and converted here
as well, so that no way pays for that.
"""

from __future__ import annotations

import csv
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

ENDINGS = {".jpg", ".jpeg", ".png"}
"""What `image_dataset_from_directory` reads as well; it leaves WebP out without a word."""

PARTS = ("train", "validation", "test")


def weights(settings: dict[str, Any]) -> dict[str, Any]:
    """Makes sure that the weights are in the cache, and returns their folder."""
    from kerastune_ft import backbones
    from kerastune_ft.backbones import weights as cache

    for name, tag in (("mobilenet_v2", "torchvision"), ("bert", "minilm")):
        cache.fetch(backbones.get(name), tag)
    return {"weights": str(cache.home() / "weights")}


def photographs(settings: dict[str, Any]) -> dict[str, Any]:
    """Links photographs of each class and part, and saves the network that a script loads.

    Args:
        settings: `photos`, a folder of class folders or of such folders per part; `count` of
            training; `side`, in pixels; `into`.

    Returns:
        `data`, the folder; `base`, a `.keras` file: pixels 0..255 to features; `examples` of
        training and of `test`.
    """
    into, count = Path(settings["into"]), settings["count"]
    parts = divided(Path(settings["photos"]))
    counts = {}
    for part in PARTS:
        wanted = count if part == "train" else max(count // 5, 1)
        chosen = drawn(parts[part], wanted)
        counts[part] = len(chosen)
        for number, path in enumerate(chosen):
            folder = into / "photos" / part / path.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:06d}{path.suffix}").symlink_to(path)
    save_base(into / "base.keras", settings["side"])
    return {
        "data": str(into / "photos"), "base": str(into / "base.keras"),
        "examples": counts["train"], "test": counts["test"],
    }  # fmt: skip


def divided(folder: Path) -> dict[str, list[Path]]:
    """Returns the photographs of each part: as the folders say, or 70, 15 and 15 of 100."""
    if (folder / "train").is_dir():
        return {part: listed(folder / part) for part in PARTS}
    parts: dict[str, list[Path]] = {part: [] for part in PARTS}
    for kind in classes(listed(folder)).values():
        mixed = random.Random(0).sample(kind, len(kind))
        first, second = round(0.7 * len(kind)), round(0.85 * len(kind))
        pieces = (mixed[:first], mixed[first:second], mixed[second:])
        for part, piece in zip(PARTS, pieces, strict=True):
            parts[part] += piece
    return parts


def listed(folder: Path) -> list[Path]:
    """Returns the photographs below a folder."""
    found = [path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS]
    return sorted(path.resolve() for path in found)


def classes(paths: list[Path]) -> dict[str, list[Path]]:
    """Returns photographs by the name of their folder."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        found[path.parent.name].append(path)
    return dict(found)


def drawn(paths: list[Path], count: int) -> list[Path]:
    """Returns about so many photographs, of each class its share and 2 at least."""
    share = min(1.0, count / max(len(paths), 1))
    found = []
    for kind in classes(paths).values():
        wanted = min(len(kind), max(2, round(share * len(kind))))
        found += random.Random(0).sample(kind, wanted)
    return found


def save_base(path: Path, side: int) -> None:
    """Saves MobileNetV2 with its pixel layer: one file that a plain script loads with Keras."""
    import keras

    from kerastune_ft import models

    built = models.image_classifier("mobilenet_v2", 2, weights="torchvision", image_size=side)
    network, _ = models.backbone_of(built)
    values = built.inputs[0]
    for layer in built.layers[1 : built.layers.index(network) + 1]:  # the pixel layer, the network
        values = layer(values)
    keras.Model(built.inputs[0], values, name="base").save(path)


def texts(settings: dict[str, Any]) -> dict[str, Any]:
    """Divides a table of texts: `count` of training, and up to a tenth of it for each other part.

    Args:
        settings: `texts`, a CSV file with the columns text and label; `count`; `into`.

    Returns:
        `data`, a CSV file with a column `split`; `examples` of training and of `test`.
    """
    with Path(settings["texts"]).open(encoding="utf-8", newline="") as file:
        rows = {row["text"]: row["label"] for row in csv.DictReader(file)}  # each text once
    mixed = random.Random(0).sample(sorted(rows.items()), len(rows))
    count = min(settings["count"], round(0.8 * len(mixed)))
    other = min(max(count // 10, 20), (len(mixed) - count) // 2)
    ends = {"train": count, "validation": count + other, "test": count + 2 * other}
    path = Path(settings["into"]) / "texts.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {label for _, label in mixed[:count]}
    begin = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "split"])
        for part, end in ends.items():
            for text, label in mixed[begin:end]:
                if label in known:
                    writer.writerow([text, label, part])
            begin = end
    return {"data": str(path), "examples": count, "test": other}


def resized(settings: dict[str, Any]) -> dict[str, Any]:
    """Saves photographs as JPEG files of one size, cut to its proportions.

    Args:
        settings: `photos`; `count`; `width` and `height`, in pixels; `into`.

    Returns:
        `data`, a folder of class folders; `examples`.
    """
    from PIL import Image, ImageOps

    into = Path(settings["into"]) / "pictures"
    chosen = drawn(listed(Path(settings["photos"])), settings["count"])
    for number in range(settings["count"]):
        path = chosen[number % len(chosen)]
        with Image.open(path) as image:
            made = ImageOps.fit(image.convert("RGB"), (settings["width"], settings["height"]))
        folder = into / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        made.save(folder / f"{number:06d}.jpg", quality=90)
    return {"data": str(into), "examples": settings["count"]}


def varied(settings: dict[str, Any]) -> dict[str, Any]:
    """Saves any number of different pictures: crops of photographs.

    Args:
        settings: `photos`; `count`; `side`, in pixels; `into`.

    Returns:
        `data`, a folder of class folders; `examples`.
    """
    from benchmarks import data_check

    into = Path(settings["into"]) / "pictures"
    photos = drawn(listed(Path(settings["photos"])), 300)
    data_check.write_pictures(into, settings["count"], settings["side"], photos)
    return {"data": str(into), "examples": settings["count"]}
