"""Writes a page of what the network will really see: before and after changes, and why.

Everything is made by the functions that feed training. Nothing is fetched for it and no network
built, unless `data.augment: auto` has to be measured; tokens want the weights' tokenizer.

    write(recipe, Path("preview.html"), 24, console)
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from kerastune_ft import backbones, files, resuming, workflow
from kerastune_ft.backbones import networks
from kerastune_ft.data import (
    Split,
    Splits,
    cleaning,
    feeding,
    images,
    inspection,
    survey,
    tokenizing,
)
from kerastune_ft.data.labels import LABELS, class_counts
from kerastune_ft.data.tables import Arrays, Encoded, Files, first_few
from kerastune_ft.data.texts import Texts, Tokens
from kerastune_ft.errors import RunError, WeightsError
from kerastune_ft.recipe import TextCleaning
from kerastune_ft.tasks import TASKS

if TYPE_CHECKING:
    from rich.console import Console

    from kerastune_ft.backbones.tokenizers import Piece
    from kerastune_ft.recipe import Recipe

EPOCHS = range(4)
"""Whose changes are shown."""

_TRAINING = 2 / 3  # of the examples shown
_BATCH = 8  # pictures of a mixed batch
_SIDE = 240  # pixels of an original, at most
_CLASSES = 60
_LETTERS = 4000


def write(recipe: Recipe, output: Path, count: int, console: Console) -> None:
    """Writes a page about the data of a recipe, which needs nothing beside it.

    Args:
        recipe: From `recipe.load`.
        output: Receives the page; it is replaced if it exists.
        count: Examples that are shown, at most.
        console: Shows what is done.

    Raises:
        KftError: If the data cannot be read, or the page cannot be written.
    """
    shown = page(recipe, count, console)
    where = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
    template = jinja2.Environment(loader=where, autoescape=True).get_template("preview.html")
    try:
        files.write_text(output, template.render(**shown))
    except OSError as error:
        raise RunError(f"'{output}' cannot be written: {error.strerror}.") from error
    console.print(f"written to {output}: {len(shown['examples'])} examples", highlight=False)


def page(recipe: Recipe, count: int, console: Console) -> dict[str, Any]:
    """Returns what the page says."""
    recipe = resuming.resolved(recipe)
    # Nothing is trained on here: what `fit` refuses can be looked at.
    looked_at = recipe.data.model_copy(update={"leakage": "warn"})
    splits = workflow.read(
        recipe if recipe.data.leakage == "drop" else recipe.model_copy(update={"data": looked_at})
    )
    text = TASKS[recipe.task.name].modality == "text"
    model = None
    measured = recipe.data.augment == "auto" and not recipe.backbone.tag.startswith("none")
    if measured and not text:
        model = workflow.build(recipe, splits)
    recipe = workflow.settled(console, recipe, splits, model)
    about = _of_texts if text else _of_pictures
    return {
        "title": f"{splits.source} {splits.path}",
        "task": recipe.task.name,
        "counts": {split.name: len(split) for split in splits.all},
        "epochs": list(EPOCHS),
        "shares": _shares(recipe, splits),
        "sampling": _said(recipe.data.sampling),
        **about(recipe, splits, count),
    }


def picked(split: Split, splits: Splits, count: int, seed: int) -> NDArray[np.int64]:
    """Returns rows of a split to show: of every class as many, as far as there are."""
    order = images.order(len(split), seed, 0)
    if splits.kind != "class":
        return order[:count]
    labels = np.asarray(split.labels)[order]
    rank = np.zeros(len(order), np.int64)
    for number in range(len(splits.class_names)):
        here = labels == number
        rank[here] = np.arange(here.sum())
    return order[np.lexsort((labels, rank))][:count]


def _parts(splits: Splits, count: int, seed: int) -> list[tuple[Split, NDArray[np.int64]]]:
    """Returns which rows of which split are shown, mostly of training."""
    others = [split for split in (splits.validation, splits.test) if len(split)]
    most = max(1, round(count * _TRAINING)) if others else count
    parts = [(splits.train, picked(splits.train, splits, most, seed))]
    left = count - len(parts[0][1])
    for number, split in enumerate(others):
        share = left // (len(others) - number)
        rows = picked(split, splits, share, seed)
        parts.append((split, rows))
        left -= len(rows)
    return parts


def _labels(split: Split, splits: Splits, rows: NDArray[np.int64]) -> list[str]:
    return LABELS[splits.kind].texts(split.labels[rows], splits.class_names)


def _shares(recipe: Recipe, splits: Splits) -> list[dict[str, Any]]:
    """Returns of each class how many training examples there are and how many an epoch draws."""
    if splits.kind in ("numbers", "text"):
        return []
    width = len(splits.class_names)
    counts = drawn = class_counts(splits.train.labels, width)
    sampling = splits.sampling(recipe.data.sampling)
    if sampling is not None:
        rows = sampling.draws(recipe.train.seed, 0).rows
        drawn = class_counts(np.asarray(splits.train.labels)[rows], width)
    total = max(int(drawn.sum()), 1)
    table = zip(splits.class_names, counts.tolist(), drawn.tolist(), strict=True)
    return [
        {"name": name, "examples": one, "drawn": other, "share": other / total}
        for name, one, other in list(table)[:_CLASSES]
    ]


def _said(value: Any) -> str:
    """Returns settings as words, without those that are off."""
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    if not isinstance(value, dict):
        return str(value)
    kept = {k: v for k, v in value.items() if v not in (None, False) and v != 0}
    return ", ".join(f"{k} {_said(v)}" if v is not True else k for k, v in kept.items()) or "none"


# Pictures.


def _of_pictures(recipe: Recipe, splits: Splits, count: int) -> dict[str, Any]:
    choice, data = recipe.backbone, recipe.data
    images.check_channels(splits.all, choice.channels)
    changed = any(
        value
        for key, value in data.augmentation.model_dump().items()
        if key not in ("mixup", "cutmix")
    )
    height, width = choice.side
    examples: list[dict[str, Any]] = []
    for split, rows in _parts(splits, count, recipe.train.seed):
        epochs = [None, *(EPOCHS if changed and split is splits.train else ())]
        made = feeding.pictures(split, recipe, rows.tolist(), epochs)
        labels = _labels(split, splits, rows)
        for row, label, pictures in zip(rows.tolist(), labels, made, strict=True):
            original, note = _original(split, row)
            examples.append(
                {
                    "name": split.names[row],
                    "label": label,
                    "split": split.name,
                    "row": row,
                    "original": original,
                    "note": note,
                    "plain": png(pictures[0]),
                    "versions": [png(picture) for picture in pictures[1:]],
                }
            )
    channels = {1: "1, grey", 3: "3, RGB"}.get(choice.channels, str(choice.channels))
    facts = {
        "network": f"{choice.name}, weights {choice.tag}",
        "size": f"{height} x {width} pixels (resize: {data.resize})",
        "channels": channels,
        "pixels": f"0 to 255 here; the network itself makes {_rule(recipe)} of them",
        "batch size": f"{data.batch_size}, {feeding.steps(splits.train, recipe)} steps an epoch",
        "augmentation": _said(data.augmentation),
        "sampling": _said(data.sampling),
        "seed": str(recipe.train.seed),
    }
    return {
        "kind": "pictures",
        "facts": facts,
        "examples": examples,
        "batch": _mixed(recipe, splits),
        "small": max(height, width) < 96,
    }


def _rule(recipe: Recipe) -> str:
    row, tag = backbones.get(recipe.backbone.name), recipe.backbone.tag
    try:
        return networks.rule(row, tag.removeprefix("none:")).name
    except WeightsError:  # of a file or folder, which is not opened for this
        return "what its weights want"


def _mixed(recipe: Recipe, splits: Splits) -> list[dict[str, str]]:
    """Returns some of the first batch where pictures are mixed, with the shares of its labels."""
    if not (recipe.data.augmentation.mixup or recipe.data.augmentation.cutmix):
        return []
    names = splits.class_names
    stream = feeding.dataset(
        splits.train,
        recipe,
        len(names),
        training=True,
        sampling=splits.sampling(recipe.data.sampling),
    )
    pictures, labels = next(stream.take(1).as_numpy_iterator())
    shown = []
    for picture, values in list(zip(pictures, labels, strict=True))[:_BATCH]:
        if splits.kind == "numbers":
            parts = [f"{name} {v:.4g}" for name, v in zip(names, values, strict=True)]
        else:
            largest = [i for i in np.argsort(-values) if values[i] >= 0.005]
            parts = [f"{names[i]} {values[i]:.0%}" for i in largest]
        shown.append({"picture": png(picture), "label": ", ".join(parts)})
    return shown


def png(picture: NDArray[Any]) -> str:
    """Returns a picture `(height, width, channels)` in 0..255 as a data URI, to whole numbers.

    Of other numbers of channels than 1 and 3, the first one is shown as grey.
    """
    pixels = np.rint(np.asarray(picture)).clip(0, 255).astype(np.uint8)
    pixels = pixels if pixels.shape[2] == 3 else pixels[..., 0]
    return _uri(Image.fromarray(pixels), "PNG")


def _uri(image: Image.Image, form: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _original(split: Split, row: int) -> tuple[str, str]:
    """Returns the stored picture, made small, and what is known of its file."""
    content = split.content
    assert isinstance(content, Files | Encoded | Arrays), type(content)
    if isinstance(content, Arrays):
        values = content.values[row].astype(np.float32)
        values = values if content.values.dtype == np.uint8 else values / 257
        values = values if values.ndim == 3 else values[..., None]
        return png(values), f"{values.shape[1]} x {values.shape[0]} pixels in memory"
    stored = content.data[row] if isinstance(content, Encoded) else Path(content.paths[row])
    data = stored if isinstance(stored, bytes) else stored.read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as image:
            facts = [f"{image.format} {image.width} x {image.height}", image.mode]
            turned = ImageOps.exif_transpose(image).size != image.size
            if content.orientations[row] != 1 or turned:
                facts.append("turned by EXIF")
            small = image.copy()
    except (OSError, ValueError):  # a .npy file, or what Pillow reads only with help
        channels = 3
        if data.startswith(b"\x93NUMPY"):
            values = np.load(io.BytesIO(data), allow_pickle=False)
            channels = 1 if values.ndim == 2 else values.shape[-1]
        decoded = inspection.decode(data, channels)
        return png(decoded), f"{decoded.shape[1]} x {decoded.shape[0]}, {channels} channels"
    small.thumbnail((_SIDE, _SIDE))
    if small.mode.startswith("I") or small.mode == "F":
        small = Image.fromarray((np.asarray(small, np.float32) / 257).astype(np.uint8))
    return _uri(small.convert("RGBA"), "PNG"), ", ".join(facts)


# Texts.


def _of_texts(recipe: Recipe, splits: Splits, count: int) -> dict[str, Any]:
    data, length = recipe.data, tokenizing.length_of(recipe)
    changes = feeding.changes_of(recipe)
    as_read = _as_read(recipe)
    examples = []
    for split, rows in _parts(splits, count, recipe.train.seed):
        tokens, labels = split.content, _labels(split, splits, rows)
        assert isinstance(tokens, Tokens), type(tokens)
        for row, label in zip(rows.tolist(), labels, strict=True):
            held = tokens.texts
            pair = None if held.second is None else held.second[row]
            pieces = _pieces(recipe, tokens, row)
            versions = []
            if changes is not None and split is splits.train:
                for epoch in EPOCHS:
                    made = changes.tokens(tokens, np.asarray([row]), epoch, [row])
                    second = made.texts.second
                    versions.append(
                        {
                            "text": made.texts.first[0][:_LETTERS],
                            "pair": second[0][:_LETTERS] if second else None,
                            "same": made.texts == held.take([row]),
                            "tokens": int(made.ids.lengths[0]),
                        }
                    )
            cleaned = held.first[row]
            raw = as_read.get(split.names[row], cleaned)
            examples.append(
                {
                    "name": split.names[row],
                    "label": label,
                    "split": split.name,
                    "row": row,
                    "raw": raw[:_LETTERS],
                    "cleaned": cleaned[:_LETTERS],
                    "pair": pair[:_LETTERS] if pair is not None else None,
                    "pieces": pieces,
                    "kept": sum(piece.kept for piece in pieces),
                    "cut": sum(not piece.kept for piece in pieces),
                    "target": _target(tokens, row),
                    "versions": versions,
                }
            )
    tokens = splits.train.content
    assert isinstance(tokens, Tokens), type(tokens)
    lengths = tokens.ids.lengths
    batch = f"{data.batch_size} texts"
    if data.batch_tokens:
        batch = f"{data.batch_tokens} tokens, padding included"
    kind = tokens.tokenizer.kind if tokens.tokenizer else ""
    facts = {
        "network": f"{recipe.backbone.name}, weights {recipe.backbone.tag}",
        "tokenizer": kind,
        "longest": f"{length} tokens; of longer texts the {data.truncation} is kept",
        "lengths": f"median {np.median(lengths):.0f}, 95 % have {np.percentile(lengths, 95):.0f} "
        f"or fewer, longest {lengths.max()}, in tokens of training texts",
        "padding": f"to {first_few(map(str, tokens.batching.buckets), 20)}".replace("'", ""),
        "batch": f"{batch}, {feeding.steps(splits.train, recipe)} steps an epoch",
        "augmentation": _said(data.text_augmentation),
        "sampling": _said(data.sampling),
        "seed": str(recipe.train.seed),
    }
    return {"kind": "texts", "facts": facts, "examples": examples, "batch": [], "small": False}


def _as_read(recipe: Recipe) -> dict[str, str]:
    """Returns texts by name as they were before `data.cleaning.text`; {} if it mends nothing."""
    rules = recipe.data.cleaning
    if not cleaning.mends(rules.text):
        return {}
    plain = rules.model_copy(update={"text": TextCleaning()})
    choice = recipe.data.model_copy(update={"cleaning": plain})
    table = survey(choice, TASKS[recipe.task.name].labels, "text").table
    assert isinstance(table.content, Texts), type(table.content)
    return dict(zip(table.names, table.content.first, strict=True))


def _pieces(recipe: Recipe, tokens: Tokens, row: int) -> Sequence[Piece]:
    """Returns the tokens of an example; of whole texts also those that are cut off."""
    assert tokens.tokenizer is not None
    if tokens.marks is not None:
        return tokens.tokenizer.pieces_of(tokens.ids[row])
    second = tokens.texts.second
    return tokens.tokenizer.pieces(
        tokens.texts.first[row],
        None if second is None else second[row],
        length=tokenizing.length_of(recipe),
        truncation=recipe.data.truncation,
    )


def _target(tokens: Tokens, row: int) -> Sequence[Piece]:
    """Returns the tokens that a network is to write, where it writes."""
    if tokens.targets is None or tokens.tokenizer is None:
        return ()
    return tokens.tokenizer.pieces_of(tokens.targets[row])
