"""Recipes to start from: the shipped ones, and one written for the user's own data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kerastune_ft import files, recipe_tree
from kerastune_ft import recipe as recipes
from kerastune_ft.errors import DataError, RecipeError, RunError, did_you_mean

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
        data: The user's folder or CSV file.

    Raises:
        DataError: If the data does not exist.
        RunError: If the destination exists or cannot be written.
    """
    if data is not None and not data.exists():
        raise DataError(f"--data: '{data}': no such file or folder.")
    source = "image_csv" if data is not None and data.is_file() else "image_folder"
    text = _TEMPLATE.format(
        schema=_schema(),
        name=destination,
        source=source,
        path=_scalar(data) if data else "photos/                    # a sub-folder per class",
    )
    _write_new(destination, text)
    return f"written to {destination}; next: kft plan {destination}"


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
