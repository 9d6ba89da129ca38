"""Asks a run or an exported version the same things, and gets the same rows.

model = opened(Path("runs/mobilenet/export/1"))
for row in model.predict([Path("photos/")]): ...
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kerastune_ft import predictions, text_predictions
from kerastune_ft import recipe as recipes
from kerastune_ft.backbones.tokenizers import Tokenizer
from kerastune_ft.data import tokenizing
from kerastune_ft.data.texts import Texts
from kerastune_ft.errors import DataError, ExportError
from kerastune_ft.evaluation import EVALUATORS
from kerastune_ft.exports import asked, expected, verification
from kerastune_ft.exports import contract as contracts
from kerastune_ft.runs import Run
from kerastune_ft.tasks import Outputs

_BATCH = 32


@dataclass(frozen=True)
class Opened:
    """Something that predicts.

    Args:
        identity: Changes whenever its answers might.
        reads_texts: Whether examples are texts.
        predict: From paths, texts and the names of examples that are left out to rows, as
            `predictions.predict` has them.
    """

    identity: str
    reads_texts: bool
    predict: Callable[..., Iterator[dict[str, Any]]]


def opened(path: Path) -> Opened:
    """Opens a run, or a version of an export.

    Raises:
        RunError: If it is neither.
        ExportError: If it is a version that is damaged.
    """
    if contracts.is_version(path):
        return _version(path)
    run = Run.open(path)
    recipe, _ = predictions.contract(run)

    def predict(
        paths: Sequence[Path], texts: Sequence[str] = (), known: Container[str] = ()
    ) -> Iterator[dict[str, Any]]:
        return predictions.predict(run, paths, texts, known)

    models = [member.model_path for member in predictions.members(run, recipe)]
    files = [run.recipe_path, *models, run.path / "thresholds.json"]
    return Opened(_digest(files), run.reads_texts, predict)


def _version(folder: Path) -> Opened:
    contract = contracts.read(folder)
    extra = contracts.extra(folder)
    recipe = recipes.load(extra / "recipe.yaml")
    outputs = Outputs(contract.classes, thresholds=contract.thresholds or ())
    how = EVALUATORS[contract.task]
    files = sorted(path for path in folder.rglob("*") if path.is_file())

    def ask(raw: Sequence[asked.Raw]) -> list[Any]:
        """Returns probabilities or numbers of each, or why there are none."""
        try:
            return list(answers(raw))
        except ExportError as error:
            if len(raw) == 1:
                return [verification.plain(str(error))]
        return [one for each in raw for one in ask([each])]

    def say_pictures(paths: Sequence[Path]) -> list[Any]:
        read = [_bytes(path) for path in paths]
        said = iter(ask(good) if (good := [raw for raw in read if isinstance(raw, bytes)]) else ())
        every = [next(said) if isinstance(raw, bytes) else raw for raw in read]
        pairs = zip(every, paths, strict=True)
        return [_named(one, path) if isinstance(one, str) else one for one, path in pairs]

    def say_texts(texts: Texts) -> list[dict[str, Any]]:
        _, cut = tokenizing.inputs_of(texts, tokenizer, recipe)
        columns = [texts.first, *([texts.second] if texts.second is not None else [])]
        rows = list(zip(*columns, strict=True))
        order = np.argsort([len(row[0]) for row in rows], kind="stable")
        said: dict[int, Any] = {}
        for start in range(0, len(rows), _BATCH):
            some = [int(at) for at in order[start : start + _BATCH]]
            said |= dict(zip(some, answers([rows[at] for at in some]), strict=True))
        return [{**shown(said[at]), "truncated": bool(cut[at])} for at in range(len(rows))]

    def shown(said: asked.Answer) -> dict[str, Any]:
        return {"predicted": said} if isinstance(said, str) else how.says(said, outputs)

    def predict(
        paths: Sequence[Path], texts: Sequence[str] = (), known: Container[str] = ()
    ) -> Iterator[dict[str, Any]]:
        if contract.modality == "text":
            found = list(predictions.files_of(paths))
            return text_predictions.predict(say_texts, recipe, found, texts, known)
        if texts:
            raise DataError("--text: this model sees pictures; give files or folders.")
        found = predictions.pictures_of(paths)
        return predictions.of_pictures(say_pictures, found, recipe, outputs, known)

    answers = verification.of_version(folder, contract)
    if contract.modality == "text":
        tokenizer = Tokenizer.load(extra / "tokenizer.json")
    return Opened(_digest(files), contract.modality == "text", predict)


def _named(error: str, path: Path) -> str:
    """Returns an error with the name of the file, which whoever decodes it does not know."""
    said = error.removeprefix(f"{expected.NAMELESS}: ")
    return said if said.startswith(f"{path}: ") else f"{path}: {said}"


def _bytes(path: Path) -> bytes | str:
    try:
        return path.read_bytes()
    except OSError as error:
        return f"{path}: cannot be read as a picture ({error.strerror})"


def _digest(files: Sequence[Path]) -> str:
    """Returns a sha256 over the contents of files; one that is missing is an empty one."""
    whole = hashlib.sha256()
    for path in files:
        content = hashlib.sha256()
        if path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256")
        whole.update(path.name.encode() + b"\0" + content.digest())
    return whole.hexdigest()
