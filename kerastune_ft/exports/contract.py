"""What an export says of itself, beside its graph: `assets.extra/kft.json`.

    found = contract.read(Path("runs/mobilenet/export/1"))
    found.classes, found.task

Nothing here imports TensorFlow. What is read is checked, and never run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kerastune_ft import files
from kerastune_ft.errors import ExportError

FORMAT = 1
EXTRA = "assets.extra"
"""A folder that TensorFlow Serving leaves alone, but for the requests to warm up with."""

_NAME = "kft.json"


@dataclass(frozen=True)
class Contract:
    """What whoever serves or calls a model has to know.

    Args:
        name: Of the model, as it is served.
        version: Of the export, from 1.
        task: As in recipes.
        modality: What an example is.
        classes: Or labels, or targets of a regression, in the order of the outputs.
        label_contract: `labels_digest` of `classes`.
        thresholds: Probability from which a label is given, one per label; None if the task has
            none.
        inputs: Names of what `serving_default` takes.
        text_inputs: Names of the texts of an example; () of pictures.
        tokenizer_inside: Whether texts can be given; else why numbers of tokens are wanted.
        recipe_sha256: Of the run's `recipe.yaml`.
        run: The run's name.
        created: In UTC, ISO 8601.
        versions: Of what made it.
    """

    name: str
    version: int
    task: str
    modality: Literal["image", "text"]
    classes: tuple[str, ...]
    label_contract: str
    thresholds: tuple[float, ...] | None
    inputs: tuple[str, ...]
    text_inputs: tuple[str, ...]
    tokenizer_inside: bool | str
    recipe_sha256: str
    run: str
    created: str
    versions: dict[str, str]


def labels_digest(classes: tuple[str, ...]) -> str:
    """Returns the sha256 of names in their order: another order is another contract."""
    return digest(json.dumps(list(classes), ensure_ascii=False))


def digest(text: str) -> str:
    """Returns the sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def write(folder: Path, contract: Contract) -> None:
    """Writes the contract of the version in a folder."""
    (folder / EXTRA).mkdir(exist_ok=True)
    content = {"format": FORMAT, **dataclasses.asdict(contract)}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    files.write_text(folder / EXTRA / _NAME, text + "\n")


def read(folder: Path) -> Contract:
    """Reads the contract of the version in a folder.

    Raises:
        ExportError: If there is none, it is damaged, or contradicts itself.
    """
    path = folder / EXTRA / _NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExportError(
            f"'{folder}' is no export of kft: it holds no '{EXTRA}/{_NAME}'; give the folder of a "
            "version, such as 'runs/mobilenet/export/1'."
        ) from error
    except ValueError as error:
        raise ExportError(f"'{path}' is damaged: {error}; export again.") from error
    return _checked(content, path)


def _checked(content: Any, path: Path) -> Contract:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ExportError(
            f"'{path}': format {found}, this version reads {FORMAT}; update kerastune_ft, or "
            "export again."
        )
    try:
        values = {field.name: content[field.name] for field in dataclasses.fields(Contract)}
    except KeyError as error:
        raise ExportError(f"'{path}' is damaged: {error} is missing; export again.") from error
    for name in ("classes", "inputs", "text_inputs"):
        right = isinstance(values[name], list) and all(isinstance(x, str) for x in values[name])
        if not right:
            raise ExportError(f"'{path}' is damaged: '{name}' is no list of names; export again.")
        values[name] = tuple(values[name])
    if values["thresholds"] is not None:
        values["thresholds"] = tuple(map(float, values["thresholds"]))
    if labels_digest(values["classes"]) != values["label_contract"]:
        raise ExportError(
            f"'{path}': the classes are not those that were exported, or in another order; "
            "export again."
        )
    return Contract(**values)
