"""A run's folder: the only module that knows the file names inside `runs/<name>/`.

Every file is replaced as a whole. `status.json` tells how far a run got: `running`, `finished`,
`interrupted` or `failed`.

    run = Run.create("runs", "mobilenet")
    run.write_json("scores", {...})
    Run.open("runs/mobilenet").read_json("scores")
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from kerastune_ft import files
from kerastune_ft.errors import RunError

Document = Literal["status", "environment", "data", "audit", "scores", "thresholds", "cache"]
State = Literal["running", "finished", "interrupted", "failed"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def base_name(default: str) -> str:
    """Returns what runs are called, before their number, after a recipe of that name."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", default).lstrip("._-") or "run"


def check_name(name: str) -> None:
    """Raises `RunError` if a run cannot be called so."""
    if not _NAME.fullmatch(name):
        raise RunError(
            f"run name '{name}': expected letters, digits, '.', '_' and '-', the first a "
            "letter or a digit."
        )


@dataclass(frozen=True)
class Run:
    """One execution of a recipe.

    Args:
        path: Its folder.
    """

    path: Path

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer of a run that reads or writes texts."""
        return self.path / "tokenizer.json"

    @property
    def network_path(self) -> Path:
        """What the network of such a run is built like; its weights are elsewhere."""
        return self.path / "network.json"

    @classmethod
    def create(cls, runs_dir: str | Path, name: str | None, default: str = "run") -> Run:
        """Makes a new run folder.

        Args:
            runs_dir: Where runs lie; made if missing.
            name: Must not be taken. If `None`, the first free one of `default`, `default-2`, ...
            default: Usually the recipe's name.

        Raises:
            RunError: If the name is taken or odd, or nothing can be written there.
        """
        folder = Path(runs_dir)
        if name is not None:
            check_name(name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if name is not None:
                (folder / name).mkdir()
                return cls(folder / name)
            number, base = 1, base_name(default)
            while True:
                path = folder / (base if number == 1 else f"{base}-{number}")
                try:
                    path.mkdir()
                    return cls(path)
                except FileExistsError:
                    number += 1
        except FileExistsError as error:
            if not folder.is_dir():
                raise RunError(f"runs folder '{folder}': it is a file, not a folder.") from error
            raise RunError(
                f"run name '{name}' is already taken in '{folder}'; go on with it by --resume, "
                f"choose another --name, or remove '{folder / str(name)}'."
            ) from error
        except OSError as error:
            raise RunError(
                f"runs folder '{folder}' cannot be written: {error.strerror}; give another with "
                "--runs-dir."
            ) from error

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Opens the folder of a former run.

        Raises:
            RunError: If there is no such folder or it holds no recipe.
        """
        folder = Path(path)
        if not folder.is_dir():
            known = sorted(p.parent.name for p in folder.parent.glob("*/recipe.yaml"))
            hint = f" '{folder.parent}' holds: {', '.join(known)}." if known else ""
            raise RunError(
                f"no such run: '{folder}'; give the run's folder, such as 'runs/mobilenet'.{hint} "
                "'kft ls runs' lists them."
            )
        run = cls(folder)
        if not run.recipe_path.is_file():
            raise RunError(f"'{folder}' is not a run: it holds no '{run.recipe_path.name}'.")
        return run

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.name

    @property
    def recipe_path(self) -> Path:
        """The resolved recipe, itself runnable."""
        return self.path / "recipe.yaml"

    @property
    def model_path(self) -> Path:
        """The model in Keras's own format; written after every epoch and at the end."""
        return self.path / "model.keras"

    @property
    def splits_path(self) -> Path:
        """Which example stands in which split, and its label."""
        return self.path / "splits.csv"

    @property
    def history_path(self) -> Path:
        """A row per epoch."""
        return self.path / "history.csv"

    @property
    def predictions_path(self) -> Path:
        """A row per example of the test split."""
        return self.path / "predictions.csv"

    @property
    def out_of_fold_path(self) -> Path:
        """Of a cross-validated run: a row per example that is not test, by the model that did not
        see it."""
        return self.path / "out_of_fold.csv"

    @property
    def folds_path(self) -> Path:
        """Of a cross-validated run: where its folds lie, each a run of its own."""
        return self.path / "folds"

    def fold(self, number: int) -> Run:
        """Returns one of the folds of a cross-validated run, from 1, whether it is there or not."""
        return Run(self.folds_path / str(number))

    @property
    def reads_texts(self) -> bool:
        """Whether its models, or those of its folds, have a tokenizer."""
        return self.tokenizer_path.is_file() or self.fold(1).tokenizer_path.is_file()

    @property
    def checkpoints_path(self) -> Path:
        """What a killed run is resumed from."""
        return self.path / "checkpoints"

    @property
    def logs_path(self) -> Path:
        """TensorBoard's folder."""
        return self.path / "logs"

    def sweep(self) -> None:
        """Removes what a killed process left half written. Only under the lock."""
        for path in self.path.glob(".*-*"):
            if path.is_file():
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from working on the run; a killed one holds nothing.

        Raises:
            RunError: If another process is at work on it.
        """
        path = self.path / ".lock"
        lock = FileLock(path, blocking=False)
        try:
            lock.acquire()
        except Timeout as error:
            raise RunError(
                f"run '{self.path}' is being worked on by another process; wait for it, or stop it."
            ) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            lock.release()

    @property
    def abandoned(self) -> bool:
        """Whether it says `running` and no process is at work on it: that one was killed."""
        if self.state != "running":
            return False
        try:
            with (self.path / ".lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # not there any more, or a file system without locks
            return not (self.path / ".lock").exists()
        return True

    def figure_path(self, name: str) -> Path:
        """A picture of the results, such as `confusion_matrix`."""
        return self.path / f"{name}.png"

    def write_recipe(self, text: str) -> None:
        """Writes the resolved recipe."""
        files.write_text(self.recipe_path, text)

    def write_json(self, name: Document, content: Mapping[str, Any]) -> None:
        """Writes one of the run's JSON documents."""
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        files.write_text(self.path / f"{name}.json", text + "\n")

    def has(self, name: Document) -> bool:
        """Whether the run has one of its JSON documents."""
        return (self.path / f"{name}.json").is_file()

    def read_json(self, name: Document) -> dict[str, Any]:
        """Reads one of the run's JSON documents.

        Raises:
            RunError: If it is missing or damaged.
        """
        path = self.path / f"{name}.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            state = "" if name == "status" else f" The run is {self.state}."
            raise RunError(f"run '{self.path}' has no '{path.name}'.{state}") from error
        except ValueError as error:
            raise RunError(f"'{path}' is damaged: {error}.") from error
        return dict(content)

    def write_table(self, path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes a CSV file whose columns are the keys of the first row and what later ones add."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        files.write_text(path, text.getvalue())

    def write_status(self, state: State, **facts: Any) -> None:
        """Records how far the run got.

        Args:
            state: See `State`.
            facts: What else to tell: `stage`, `epoch`, `error`.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.write_json("status", {"state": state, "time": now, "process": os.getpid(), **facts})

    @property
    def state(self) -> str:
        """What `status.json` says, `unknown` without one."""
        if not (self.path / "status.json").exists():
            return "unknown"
        return str(self.read_json("status")["state"])

    def discard(self) -> None:
        """Removes the folder of a run that failed before it trained anything."""
        shutil.rmtree(self.path, ignore_errors=True)
