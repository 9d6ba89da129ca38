"""What a killed run goes on from: arrays and notes in files that appear whole or not at all.

A checkpoint is a `.npz` archive of every array of the training state and one JSON text of
everything else. Nothing in it can be executed. Each member carries a checksum, so that a damaged
file is noticed, and the one before it is used. Epochs whose weights may be wanted again (the best,
candidates for a soup, the start) are kept as archives of their own, and checkpoints refer to them.

    store = Checkpoints(run.checkpoints_path, keep=2)
    store.save(State(position, arrays, notes))
    state = store.newest(warn=print)            # None if there is none
"""

from __future__ import annotations

import errno
import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerastune_ft import files
from kerastune_ft.errors import TrainingError

Arrays = dict[str, NDArray[Any]]

_NOTES = "notes.json"
# What reading a damaged archive can raise: sizes, flags and methods may all be wrong.
_DAMAGE = (
    OSError, KeyError, ValueError, TypeError, EOFError, NotImplementedError, RuntimeError,
    OverflowError, MemoryError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_FORMAT = 2
# NumPy's file format has no name for these; they are stored as integers of their width.
_CARRIERS = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}


@dataclass(frozen=True)
class Position:
    """Where in a run training stands, in order.

    Args:
        stage: Number of the stage, from 0.
        epoch: Number of the epoch over all stages, from 0.
        step: Batches of the epoch that are done.
        updates: Batches of the whole run that are done; the checkpoint's number.
        stage_done: Whether the stage has ended, but nothing after it has begun.
    """

    stage: int = 0
    epoch: int = 0
    step: int = 0
    updates: int = 0
    stage_done: bool = False


@dataclass
class State:
    """A training state.

    Args:
        position: Where.
        arrays: By name: `model/...`, `optimizer/...`, `metric/...`.
        notes: Anything JSON can hold: history, early stopping, audits.
    """

    position: Position
    arrays: Arrays
    notes: dict[str, Any] = field(default_factory=dict)


class DamagedError(Exception):
    """Reports an archive that is not whole."""


def write(path: Path, arrays: Mapping[str, NDArray[Any]], notes: Mapping[str, Any]) -> None:
    """Writes an archive, whole or not at all.

    Args:
        path: Its folder must exist.
        arrays: Any shapes and number types.
        notes: JSON; numbers that are not finite are refused.

    Raises:
        OSError: If the disk is full or cannot be written; what lay at `path` is still there.
    """
    kinds = {name: str(array.dtype) for name, array in arrays.items()}
    text = json.dumps({"format": _FORMAT, "dtypes": kinds, "notes": notes}, allow_nan=False)
    with files.replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr(_NOTES, text)
        for number, array in enumerate(arrays.values()):
            plain = np.asarray(array, order="C")
            carrier = _CARRIERS.get(str(plain.dtype))
            with archive.open(f"{number}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(
                    member, plain.view(carrier) if carrier else plain, allow_pickle=False
                )


def read(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Reads an archive and proves its checksums.

    Raises:
        DamagedError: If it is missing, cut off, changed, or of another version.
    """
    arrays: Arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            header = json.loads(archive.read(_NOTES))
            if header["format"] != _FORMAT:
                raise DamagedError(f"format {header['format']}, expected {_FORMAT}")
            for number, (name, kind) in enumerate(header["dtypes"].items()):
                # Reading to the end is what makes zipfile compare the checksum.
                data = io.BytesIO(archive.read(f"{number}.npy"))
                array = np.lib.format.read_array(data, allow_pickle=False)
                arrays[name] = array.view(_dtype(kind)) if kind in _CARRIERS else array
            return arrays, header["notes"]
    except _DAMAGE as error:
        raise DamagedError(f"{type(error).__name__}: {error}") from error


def _dtype(kind: str) -> Any:
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, kind))


class Checkpoints:
    """The checkpoints and kept epochs of one run.

    Args:
        folder: Made when the first one is written.
        keep: How many of the newest checkpoints stay.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, state: State) -> Path:
        """Writes a checkpoint and removes those that are no longer kept.

        Raises:
            TrainingError: If the disk is full; the checkpoints before it are whole.
        """
        number = state.position.updates
        path = self.folder / f"step-{number:09d}{'-end' if state.position.stage_done else ''}.npz"
        notes = {"position": vars(state.position), "notes": state.notes}
        self._write(path, state.arrays, notes)
        self._clean(state.notes.get("epochs", ()))
        return path

    def newest(self, warn: Callable[[str], None] = lambda line: None) -> State | None:
        """Returns the newest checkpoint that is whole, None if there is none at all.

        Args:
            warn: Receives a line per damaged file.

        Raises:
            TrainingError: If there are checkpoints, and all are damaged.
        """
        paths = self._paths()
        for number, path in enumerate(paths):
            try:
                arrays, notes = read(path)
                missing = [n for n in notes["notes"].get("epochs", ()) if not self.has_epoch(n)]
                if missing:
                    raise DamagedError(f"weights of epoch {missing[0]} are gone")
                for damaged in paths[:number]:  # they would count among those that are kept
                    damaged.unlink(missing_ok=True)
                return State(Position(**notes["position"]), arrays, notes["notes"])
            except DamagedError as error:
                warn(f"checkpoint {path.name} is damaged ({error}); trying the one before it")
        if paths:
            raise TrainingError(
                f"'{self.folder}': every checkpoint is damaged; start the run again under another "
                "name."
            )
        return None

    def keep_epoch(self, number: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keeps the weights of an epoch; 0 is the start. They stay while checkpoints name them."""
        self._write(self._epoch_path(number), arrays, {"epoch": number})

    def epoch(self, number: int) -> Arrays:
        """Returns the weights kept of an epoch.

        Raises:
            TrainingError: If they are damaged.
        """
        try:
            return read(self._epoch_path(number))[0]
        except DamagedError as error:
            raise TrainingError(
                f"'{self._epoch_path(number)}' is damaged: {error}; start the run again under "
                "another name."
            ) from error

    def has_epoch(self, number: int) -> bool:
        """Whether an epoch's weights are here and whole."""
        try:
            read(self._epoch_path(number))
        except DamagedError:
            return False
        return True

    def clear(self, but: Iterable[int] = ()) -> None:
        """Removes everything but the weights of some epochs; for a finished run."""
        for path in self._paths():
            path.unlink(missing_ok=True)
        self._remove_epochs(set(but))

    def _write(self, path: Path, arrays: Mapping[str, NDArray[Any]], notes: Any) -> None:
        try:
            self.folder.mkdir(exist_ok=True)
            write(path, arrays, notes)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            size = sum(array.nbytes for array in arrays.values()) / 2**20
            raise TrainingError(
                f"'{path}' cannot be written: {'the disk is full' if full else error.strerror}; "
                f"the run stops, and its last checkpoint is whole. Free {size:.0f} MiB or more, "
                f"then 'kft resume {self.folder.parent}'."
            ) from error

    def _clean(self, named: Iterable[int]) -> None:
        kept, wanted = self._paths()[: self.keep], set(named)
        for path in self._paths()[self.keep :]:
            path.unlink(missing_ok=True)
        for path in kept[1:]:
            try:
                with zipfile.ZipFile(path) as archive:
                    notes = json.loads(archive.read(_NOTES))["notes"]["notes"]
                wanted |= set(notes.get("epochs", ()))
            except _DAMAGE:
                continue  # it is of no use, and found damaged when it is needed
        self._remove_epochs(wanted)
        for path in self.folder.glob(".*"):  # what a killed process left half written
            path.unlink(missing_ok=True)

    def _remove_epochs(self, but: set[int]) -> None:
        for path in self.folder.glob("epoch-*.npz"):
            found = re.fullmatch(r"epoch-(\d+)\.npz", path.name)
            if found and int(found[1]) not in but:
                path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        """Returns the checkpoints, newest first."""
        # "-end" stands for a later moment than the same number without it.
        return sorted(self.folder.glob("step-*.npz"), key=lambda path: path.stem, reverse=True)

    def _epoch_path(self, number: int) -> Path:
        return self.folder / f"epoch-{number:05d}.npz"
