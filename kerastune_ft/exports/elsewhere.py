"""Asks a file in a process of its own, which has neither Keras nor TensorFlow, and times it there.

    trial = tried(Path("runs/mobilenet/export/litert/1"), contract, pixels)
    trial.said, trial.one.median_ms
    answers = opened("litert", Path("model.tflite"))        # here, for `kft predict`

A `.keras` file is read by Keras alone, as by anybody who has nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kerastune_ft import formats
from kerastune_ft.conversions import PICTURES, Made
from kerastune_ft.errors import ExportError
from kerastune_ft.exports.contract import File
from kerastune_ft.formats import Artefact, Latency, Trial
from kerastune_ft.runtimes import Answers, Inputs

KERAS = "keras"
_ROUNDS = 20
_CHILD = "import sys; from kerastune_ft.exports import elsewhere; elsewhere.answer(sys.argv[1])"
_QUESTION, _INPUTS, _SAID, _REPLY = "question.json", "inputs.npz", "said.npy", "reply.json"


def check_files(folder: Path, file: File) -> None:
    """Makes sure that the files of a version are those that were exported.

    Raises:
        ExportError: If one is missing or another one.
    """
    for name, digest in file.sha256.items():
        path = folder / Path(name).name
        if not path.is_file():
            raise ExportError(f"'{path}' is missing; restore it, or export again.")
        with path.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != digest:
            raise ExportError(
                f"'{path}' is damaged: it is not the file that was exported; restore it, or "
                "export again."
            )


def opened(format: str, path: Path) -> Answers:
    """Opens a file for running, in this process.

    Args:
        format: `keras`, or a key of `FORMATS`.
        path: Of the file.

    Raises:
        ExportError: If it cannot be opened, or a package is missing.
    """
    return _by_keras(path) if format == KERAS else formats.open_artefact(format, path)


def artefact(folder: Path, file: File) -> Artefact:
    """Returns what `formats` says of a file that it wrote."""
    made = Made(batch=file.batch, length=file.length)
    return Artefact(file.format, folder / file.name, file.quantize, file.bytes, made)  # type: ignore[arg-type]


def tried(folder: Path, file: File, inputs: Mapping[str, Any]) -> Trial:
    """Lets a file answer examples in a fresh process.

    Args:
        folder: Of the version.
        file: Of its contract.
        inputs: What a model takes, by name; every example.

    Raises:
        ExportError: If it cannot be opened there, or fails.
    """
    with tempfile.TemporaryDirectory() as place:
        path = Path(place)
        np.savez(path / _INPUTS, **inputs)
        question = {"format": file.format, "path": str((folder / file.name).resolve())}
        (path / _QUESTION).write_text(json.dumps(question), encoding="utf-8")
        environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
        ended = subprocess.run(
            [sys.executable, "-c", _CHILD, place],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        if ended.returncode:
            lines = ended.stderr.strip().splitlines() or [f"it ended with {ended.returncode}"]
            raise ExportError(f"'{folder}' cannot be used in a fresh process: {lines[-1][:300]}")
        reply = json.loads((path / _REPLY).read_text(encoding="utf-8"))
        said = np.load(path / _SAID)
    one, eight = (Latency(**reply[key]) for key in ("one", "eight"))
    return Trial(artefact(folder, file), said, one, eight)


def answer(place: str) -> None:
    """Answers a question of `tried`, in the fresh process.

    Args:
        place: The folder where it lies, and where the reply goes.
    """
    path = Path(place)
    question = json.loads((path / _QUESTION).read_text(encoding="utf-8"))
    with np.load(path / _INPUTS) as stored:
        arrays = dict(stored)
    inputs: Inputs = arrays.get(PICTURES, arrays)
    name, file = question["format"], Path(question["path"])
    trial = formats.try_out(
        Artefact(name, file, "none", 0, Made()), opened(name, file), inputs, _ROUNDS
    )
    strangers = {"keras", "tensorflow"} & sys.modules.keys()
    assert name == KERAS or not strangers, strangers
    np.save(path / _SAID, trial.said)
    times = {key: dataclasses.asdict(getattr(trial, key)) for key in ("one", "eight")}
    (path / _REPLY).write_text(json.dumps(times), encoding="utf-8")


def _by_keras(path: Path) -> Answers:
    """Opens a `.keras` file as anybody does who has Keras."""
    import keras

    try:
        model = keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras raises what its parts raise
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(f"'{path}': is no file that Keras can read: {line[:200]}.") from error
    names = [tensor.name for tensor in model.inputs]

    def answers(inputs: Inputs) -> Any:
        given = inputs
        if isinstance(inputs, Mapping):
            given = {name: inputs[name] for name in names} if len(names) > 1 else inputs[PICTURES]
        return np.asarray(model.predict_on_batch(given))

    return answers
