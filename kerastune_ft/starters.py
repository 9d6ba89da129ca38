"""Recipes to start from: the shipped ones, and one written for the user's own data."""

from __future__ import annotations

import csv
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kerastune_ft import files, recipe_tree
from kerastune_ft import recipe as recipes
from kerastune_ft.errors import DataError, RecipeError, RunError, did_you_mean
from kerastune_ft.recipe_text import ENDINGS

_TEMPLATE = """\
# yaml-language-server: $schema={schema}
# MobileNetV2 on your own pictures: the head first, then the top of the network at a lower rate.
#   kft plan {name}      shows what will be done
#   kft fit {name}       does it
task:
  name: image_classification
  dropout: 0.2                    # share of features dropped while training the head
backbone:
  name: mobilenet_v2              # 'kft ls backbones' lists all
  weights: torchvision            # real ImageNet weights that need no model hub
  image_size: 160                 # pixels a side; 224 has twice the pixels
data:
  source: {source}
  path: {path}
{columns}\
  batch_size: 32
  split: {{validation: 0.15, test: 0.15, seed: 0}}   # ignored where the folder has its own split
  augment: light                  # none for writing and diagrams, which must not be mirrored
train:
  seed: 0
  optimizer: {{name: adamw, weight_decay: 1e-4}}
  early_stopping: {{monitor: val_loss, patience: 3}}  # ends a stage and restores its best weights
  stages:
    - {{trainable_blocks: 0, epochs: 5, learning_rate: 1e-3}}
    - {{trainable_blocks: 8, epochs: 10, learning_rate: 1e-4, schedule: cosine, warmup_epochs: 0.5}}
"""
_TEXT_TEMPLATE = """\
# yaml-language-server: $schema={schema}
# MiniLM, a small BERT, on your own texts: all of it at once, lower layers at lower rates.
#   kft plan {name}      shows what will be done
#   kft fit {name}       does it
task:
  name: text_classification       # 'kft ls tasks' lists all: pairs, several classes, numbers, tags
  dropout: 0.1
backbone:
  name: bert                      # 'kft ls backbones' lists all
  weights: minilm                 # real weights that need no model hub; English
  sequence_length: 128            # the most tokens; a batch is as long as its longest text
data:
  source: {source}
  path: {path}
{columns}\
  batch_size: 32
  split: {{validation: 0.15, test: 0.15, seed: 0}}   # ignored where the data has its own split
train:
  seed: 0
  optimizer: {{name: adamw, weight_decay: 0.01, global_clipnorm: 1.0}}
  early_stopping: {{monitor: val_loss, patience: 2}}  # restores the best weights
  stages:
    - {{trainable_blocks: -1, epochs: 3, learning_rate: 7e-5, head_learning_rate: 1e-3,
       schedule: linear, warmup_epochs: 0.3, rate_decay: 0.9}}
"""
_PICTURE_COLUMNS = ("path", "image")
_PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".npy")
_TEXT_COLUMNS = ("text", "sentence", "review", "content", "body", "message", "comment", "tweet")
_LABEL_COLUMNS = ("label", "class", "category", "target", "sentiment", "topic", "intent", "rating")
_TEXT_ENDINGS = (".txt", ".text", ".md")
_LOOKED_AT = 1000  # files of a folder


def shipped() -> list[dict[str, Any]]:
    """Returns the shipped recipes: name and the first sentence of their comment."""
    found = []
    for path in recipes.packaged().values():
        lines = path.read_text(encoding="utf-8").splitlines()
        comments = [line[1:].strip() for line in lines if line.startswith("#")]
        about = [line for line in comments if line and "yaml-language-server" not in line]
        found.append({"name": path.stem, "about": " ".join(about).partition(". ")[0]})
    return found


def copy(name: str, destination: Path | None = None) -> str:
    """Copies a shipped recipe and returns what to tell the user.

    Args:
        name: With or without `.yaml`.
        destination: Must not exist; by default the recipe's own name, here.

    Raises:
        RecipeError: If there is no recipe of that name.
        RunError: If the destination exists or cannot be written.
    """
    known = recipes.packaged()
    stem = name.removesuffix(".yaml")
    if stem not in known:
        hint = did_you_mean(stem, known) or "."
        raise RecipeError([f"recipe '{name}' is unknown{hint} There are {', '.join(known)}."])
    text = known[stem].read_text(encoding="utf-8")
    text = text.replace("$schema=schema.json", f"$schema={_schema()}")
    destination = destination or Path(f"{stem}.yaml")
    _write_new(destination, text)
    return f"written to {destination}; next: kft plan {destination}"


def write(destination: Path, data: Path | None) -> str:
    """Writes a commented recipe and returns what to tell the user.

    Args:
        destination: Must not exist.
        data: The user's folder or table, of pictures or texts.

    Raises:
        DataError: If the data does not exist.
        RunError: If the destination exists or cannot be written.
    """
    if data is not None and not data.exists():
        raise DataError(f"--data: '{data}': no such file or folder.")
    path = _scalar(data) if data else "photos/                    # a sub-folder per class"
    source, columns = _source(data) if data else ("image_folder", {})
    text = (_TEMPLATE if source.startswith("image_") else _TEXT_TEMPLATE).format(
        schema=_schema(),
        name=destination,
        source=source,
        path=path,
        columns="".join(f"  {line}\n" for line in recipe_tree.emit(columns)),
    )
    _write_new(destination, text)
    return f"written to {destination}; next: kft plan {destination}"


def recipe_of(target: Path, overrides: Sequence[str] = ()) -> recipes.Recipe:
    """Returns the recipe in a file, or one for a user's folder or table.

    Args:
        target: A recipe (`.yaml`, `.yml`), the folder of a run, or data.
        overrides: `key=value`, as `recipe.load` takes them.

    Raises:
        DataError: If there is nothing.
        RecipeError: If the recipe, or an override, is not valid.
    """
    if target.suffix.lower() in (".yaml", ".yml"):
        return recipes.load(target, overrides)
    if (target / "recipe.yaml").is_file() and (target / "data.json").is_file():
        return recipes.load(target / "recipe.yaml", overrides)
    if not target.exists():
        raise DataError(f"'{target}': no such recipe, folder or table.")
    source, columns = _source(target)
    pictures = source.startswith("image_")
    mapping = {
        "task": {"name": "image_classification" if pictures else "text_classification"},
        "backbone": {"name": "mobilenet_v2", "weights": "torchvision", "image_size": 160}
        if pictures
        else {"name": "bert", "weights": "minilm"},
        "data": {"source": source, "path": str(target), **columns},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{target.name or 'data'}.yaml"
        path.write_text("\n".join(recipe_tree.emit(mapping)) + "\n", encoding="utf-8")
        return recipes.load(path, overrides)


def _source(data: Path) -> tuple[str, dict[str, str]]:
    """Returns the source that reads a user's folder or file, and the columns that it seems to have.

    A table has texts unless one of its columns names pictures.
    """
    if data.is_dir():
        tables = [path for path in sorted(data.glob("train.*")) if path.suffix.lower() in ENDINGS]
        if tables:
            return ENDINGS[tables[0].suffix.lower()], _columns(_first_row(tables[0]))
        found = (path.suffix.lower() for path in data.rglob("*.*") if path.is_file())
        kinds = Counter(itertools.islice(found, _LOOKED_AT))
        texts = sum(kinds[ending] for ending in _TEXT_ENDINGS)
        return ("text_folder" if texts > kinds.total() / 2 else "image_folder"), {}
    source = ENDINGS.get(data.suffix.lower(), "csv")
    row = _first_row(data)
    pictures = [
        column
        for column, cell in row.items()
        if column in _PICTURE_COLUMNS or str(cell).strip().lower().endswith(_PICTURE_ENDINGS)
    ]
    if source == "csv" and (pictures or not row):
        named = {} if not pictures or "path" in row else {"image_column": pictures[0]}
        return "image_csv", named
    return source, _columns(row)


def _columns(row: Mapping[str, Any]) -> dict[str, str]:
    """Returns which columns hold text and label: by their names, else the longest, and the last."""

    by_name = {column.strip().lower(): column for column in row}

    def named(known: tuple[str, ...]) -> str | None:
        return next((by_name[name] for name in known if name in by_name), None)

    label = named(_LABEL_COLUMNS)
    others = [column for column in row if column != label]
    longest = max(others, key=lambda column: len(str(row[column])), default="text")
    text = named(_TEXT_COLUMNS) or longest
    if label is None:
        label = next((column for column in reversed(others) if column != text), "label")
    return {"text_column": text, "label_column": label}


def _first_row(path: Path) -> Mapping[str, Any]:
    """Returns the first row of a table, empty if it cannot be read: `kft plan` says why."""
    try:
        if ENDINGS.get(path.suffix.lower()) == "parquet":
            import pyarrow.parquet

            batches = pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1)
            return dict(next(row for batch in batches for row in batch.to_pylist()))
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            if ENDINGS.get(path.suffix.lower()) == "jsonl":
                return dict(json.loads(next(line for line in file if line.strip())))
            tabs = path.suffix.lower() in (".tsv", ".tab")
            rows = csv.reader(file, delimiter="\t" if tabs else ",")
            return dict(itertools.zip_longest(header := next(rows), next(rows, [])[: len(header)]))
    except (OSError, ValueError, TypeError, StopIteration, csv.Error):
        return {}


def _scalar(path: Path) -> str:
    """Returns a path as YAML wants it: quoted if it would otherwise mean something else."""
    return next(recipe_tree.emit({"path": str(path)})).removeprefix("path: ")


def _schema() -> Path:
    """Returns the JSON Schema that lies beside the shipped recipes."""
    return next(iter(recipes.packaged().values())).with_name("schema.json")


def _write_new(destination: Path, text: str) -> None:
    if destination.exists():
        raise RunError(f"'{destination}' exists already; it is not overwritten.")
    try:
        files.write_text(destination, text)
    except OSError as error:
        raise RunError(f"'{destination}' cannot be written: {error.strerror}.") from error
