"""What an export says of itself: `kft.json`, in `assets.extra` of a SavedModel, or beside a file.

    found = contract.read(Path("runs/mobilenet/export/1"))
    found.classes, found.task
    found = contract.read(Path("runs/mobilenet/export/litert/1"))
    found.file.format, found.file.inputs

Nothing here imports TensorFlow. What is read is checked, and never run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kerastune_ft import files
from kerastune_ft.errors import ExportError
from kerastune_ft.tasks import TASKS

FORMAT = 1
EXTRA = "assets.extra"
"""A folder that TensorFlow Serving leaves alone, but for the requests to warm up with."""

_NAME = "kft.json"


@dataclass(frozen=True)
class Input:
    """What a file takes.

    Args:
        name: As the file calls it.
        shape: With None for any number.
        dtype: NumPy's name of the type.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class File:
    """What there is to know of a file of another format than a SavedModel.

    Args:
        format: A key of `TARGETS`.
        quantize: As it was asked for.
        name: Of the file, beside the contract.
        sha256: By the name of each file that belongs to it.
        bytes: Of all of them.
        inputs: What it takes.
        output: What it calls what it returns: `probabilities` or `values`.
        pixels: Between which numbers those of pictures lie; None of texts. The file does the rest.
        batch: Examples that it takes at once; None for any number.
        length: Most tokens of a text; None of pictures.
        needs: Packages, beside what runs the format, without which it cannot be opened.
        remarks: Sentences that a user should read.
        notes: More of how it was made: ONNX's opset, what an int8 file was calibrated on, and what
            it computes in float32.
    """

    format: str
    quantize: str
    name: str
    sha256: dict[str, str]
    bytes: int
    inputs: tuple[Input, ...]
    output: str
    pixels: tuple[int, int] | None
    batch: int | None
    length: int | None
    needs: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)


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
        file: None of a SavedModel.
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
    file: File | None = None

    @property
    def exact(self) -> bool:
        """Whether it has to answer as training did to the last digits: it is not quantised."""
        return self.file is None or self.file.quantize == "none"


def extra(folder: Path) -> Path:
    """Returns where the contract of a version lies, and what else travels with it."""
    is_graph = (folder / EXTRA).is_dir() or (folder / "saved_model.pb").is_file()
    return folder / EXTRA if is_graph else folder


def is_version(folder: Path) -> bool:
    """Returns whether a folder is a version of an export, whole or not."""
    return (folder / "saved_model.pb").is_file() or (folder / _NAME).is_file()


def other_format(path: Path) -> str:
    """Returns the format of a version, or of a folder of versions, that are no SavedModels."""
    folders = [path, *(sorted(path.iterdir()) if path.is_dir() else [])]
    for folder in folders:
        if (folder / _NAME).is_file() and not (folder / "saved_model.pb").is_file():
            file = read(folder).file
            return file.format if file else ""
    return ""


_KEYS = tuple(key.name for key in dataclasses.fields(Contract) if key.name != "file")


def labels_digest(classes: tuple[str, ...]) -> str:
    """Returns the sha256 of names in their order: another order is another contract."""
    return digest(json.dumps(list(classes), ensure_ascii=False))


def digest(text: str) -> str:
    """Returns the sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def write(folder: Path, contract: Contract) -> None:
    """Writes the contract of the version in a folder."""
    extra(folder).mkdir(exist_ok=True)
    content = {"format": FORMAT, **dataclasses.asdict(contract)}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    files.write_text(extra(folder) / _NAME, text + "\n")


def read(folder: Path) -> Contract:
    """Reads the contract of the version in a folder.

    Raises:
        ExportError: If there is none, it is damaged, or contradicts itself.
    """
    path = extra(folder) / _NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExportError(
            f"'{folder}' is no export of kft: it holds no '{path.relative_to(folder)}'; give the "
            "folder of a version, such as 'runs/mobilenet/export/1'."
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
        values = {key: content[key] for key in _KEYS}
    except KeyError as error:
        raise ExportError(f"'{path}' is damaged: {error} is missing; export again.") from error
    for name in ("classes", "inputs", "text_inputs"):
        right = isinstance(values[name], list) and all(isinstance(x, str) for x in values[name])
        if not right:
            raise ExportError(f"'{path}' is damaged: '{name}' is no list of names; export again.")
        values[name] = tuple(values[name])
    if values["thresholds"] is not None:
        values["thresholds"] = _thresholds(values["thresholds"], len(values["classes"]), path)
    if not isinstance(values["task"], str) or values["task"] not in TASKS:
        raise ExportError(
            f"'{path}': task {values['task']!r} is unknown; update kerastune_ft, or export again."
        )
    if values["modality"] != TASKS[values["task"]].modality:
        raise ExportError(
            f"'{path}' is damaged: {values['task']} is not of modality {values['modality']!r}; "
            "export again."
        )
    if not isinstance(values["name"], str) or type(values["version"]) is not int:
        raise ExportError(f"'{path}' is damaged: its name or version is none; export again.")
    if labels_digest(values["classes"]) != values["label_contract"]:
        raise ExportError(
            f"'{path}': the classes are not those that were exported, or in another order; "
            "export again."
        )
    return Contract(**values, file=_file(content.get("file"), path))


def _thresholds(found: Any, count: int, path: Path) -> tuple[float, ...]:
    right = isinstance(found, list) and len(found) == count
    if not right or not all(type(x) in (int, float) and math.isfinite(x) for x in found):
        raise ExportError(
            f"'{path}' is damaged: expected {count} thresholds, one number of each label; export "
            "again."
        )
    return tuple(map(float, found))


def _file(content: Any, path: Path) -> File | None:
    if content is None:
        return None
    try:
        values = {key.name: content[key.name] for key in dataclasses.fields(File)}
        inputs = [Input(**{**each, "shape": tuple(each["shape"])}) for each in values["inputs"]]
        name = str(values["name"])
        if Path(name).name != name or name not in values["sha256"]:
            raise ValueError(f"'{name}' is no file of it")
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(f"'{path}' is damaged: file: {error}; export again.") from error
    several = {key: tuple(values[key]) for key in ("needs", "remarks")}
    pixels = values["pixels"] and tuple(values["pixels"])
    return File(**{**values, **several, "inputs": tuple(inputs), "pixels": pixels})
