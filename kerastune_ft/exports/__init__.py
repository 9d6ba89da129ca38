"""Writes what is served, and lets nobody see it before it answers as the training process did.

    version = export(Run.open("runs/mobilenet"))        # runs/mobilenet/export/1
    found = verification.verify(version)                # any time later

A version is written into a hidden folder, loaded in a fresh process, asked, and only then renamed
to its number. What fails leaves nothing.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape

from kerastune_ft import files
from kerastune_ft import recipe as recipes
from kerastune_ft.errors import DataError, ExportError
from kerastune_ft.exports import contract as contracts
from kerastune_ft.exports import server_files
from kerastune_ft.exports.contract import EXTRA, Contract
from kerastune_ft.runs import Run, check_name

if TYPE_CHECKING:
    from kerastune_ft.exports.graphs import Served

EXAMPLES = 200
"""So many examples of a run's data are compared."""

_PACKAGES = ("kerastune_ft", "keras", "tensorflow", "numpy")
_FAILED = 1
"""Exit code of `kft verify` where something differs."""


@dataclass(frozen=True)
class Exported:
    """A version that was written.

    Args:
        path: Its folder.
        report: What `kft verify` found in a fresh process: the fields of `Verified`.
        inside: Whether texts are taken as they are; else why numbers of tokens are.
    """

    path: Path
    report: dict[str, Any]
    inside: bool | str


def export(
    run: Run,
    *,
    output: str | Path | None = None,
    version: int | None = None,
    name: str | None = None,
    examples: int = EXAMPLES,
    console: Console | None = None,
) -> Exported:
    """Exports a finished run as a SavedModel for TensorFlow Serving.

    Args:
        run: It.
        output: The folder of versions; None is `export` in the run's.
        version: From 1; None takes the one after the largest there is.
        name: Under which the model is served; None is the run's.
        examples: How many examples of the run's data are compared, at most.
        console: Shows what happens; nothing is shown by default.

    Raises:
        ExportError: If the run is not finished, the version is there already, the task cannot be
            exported, or what was written answers otherwise than the training process did.
        RunError: If the run lacks something.
    """
    from kerastune_ft.exports import graphs

    console = console or Console(quiet=True)
    if run.state != "finished":
        raise ExportError(
            f"run '{run.path}' is {run.state}; 'kft resume {run.path}' goes on with it, then "
            "export."
        )
    check_name(name or run.name)
    base = Path(output) if output is not None else run.path / "export"
    served = graphs.Served.of(run)
    with _new_version(base, version) as (temporary, number):
        found = _examples(run, served, examples)
        served = served.settled(_texts(served, found))
        console.print("[bold]export[/]   writing the graph ...")
        served.save(temporary)
        _write_beside(temporary, run, served, number, name or run.name, found)
        console.print("[bold]export[/]   comparing it in a fresh process ...")
        report = _verified(temporary, run)
        if report.get("differences"):
            raise ExportError(report["message"].replace(str(temporary), str(base / str(number))))
    path = base / str(number)
    server_files.write(base, name or run.name, report["latency"])
    _show(console, path, report, served.takes)
    return Exported(path, report, served.takes)


def of_recipe(run: Run, console: Console) -> None:
    """Exports a run that has just been finished, if its recipe says so and nothing is there yet.

    Raises:
        ExportError: As `export` does; the run itself stays finished.
    """
    if not run.recipe_path.is_file():  # one of several hosts: the first one has the run
        return
    wanted = recipes.load(run.recipe_path).export
    if not wanted.targets or versions(run.path / "export"):
        return
    if _backend() == "tensorflow":
        export(run, name=wanted.name, examples=wanted.examples, console=console)
        return
    command = [sys.executable, "-m", "kerastune_ft", "export", str(run.path)]
    command += [
        "--examples",
        str(wanted.examples),
        *(["--name", wanted.name] if wanted.name else []),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
    if ended.returncode:
        raise ExportError(ended.stderr.strip().removeprefix("error: "))
    console.print(escape(ended.stdout.rstrip()), highlight=False)


def _backend() -> str:
    import keras

    return str(keras.backend.backend())


def _environment() -> dict[str, str]:
    return {**os.environ, "KERAS_BACKEND": "tensorflow"}


def _show(console: Console, path: Path, report: dict[str, Any], inside: bool | str) -> None:
    compared = f"{report['examples']} examples of its data and {report['odd']} odd ones"
    agreement = report["agreement"]
    labels = "" if agreement is None else f", the same class for {agreement:.1%}"
    console.print(f"[bold]export[/]   {escape(str(path))}", highlight=False)
    largest = f"largest difference {report['largest']:.1e}"
    console.print(f"  answers as training did: {compared}, {largest}{labels}", highlight=False)
    if report["missing"]:
        console.print(f"  [yellow]warning[/]  not compared: {escape(report['missing'])}")
    if report["refused"]:
        shown = ", ".join(report["refused"][:3])
        console.print(
            f"  [yellow]warning[/]  {len(report['refused'])} cannot be read by a server, and are "
            f"refused: {escape(shown)}",
            highlight=False,
        )
    if inside is not True:
        console.print(f"  takes numbers of tokens: {escape(str(inside))}", highlight=False)
    times = ", ".join(f"{size}: {ms:.1f} ms" for size, ms in report["latency"].items())
    console.print(f"  a request takes here, by its examples: {times}", highlight=False)


@contextlib.contextmanager
def _new_version(base: Path, version: int | None) -> Iterator[tuple[Path, int]]:
    """Yields a hidden folder that does not exist yet, which becomes a version if all goes well."""
    if version is not None and version < 1:
        raise ExportError(f"--version {version}: expected a whole number from 1.")
    was_there = base.is_dir()
    try:
        base.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(
            f"'{base}' cannot be written: {error.strerror}; choose another --output."
        ) from error
    lock = FileLock(base / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise ExportError(
            f"'{base}' is being exported to by another process; wait for it."
        ) from error
    except OSError as error:
        raise ExportError(
            f"'{base}' cannot be written: {error.strerror}; choose another --output."
        ) from error
    try:
        for left in base.glob(".version-*"):  # of processes that were killed
            shutil.rmtree(left, ignore_errors=True)
        number = version or max(versions(base), default=0) + 1
        if (base / str(number)).exists():
            raise ExportError(
                f"'{base / str(number)}' is there already; a version never changes: take the next "
                "number, or remove it."
            )
        with tempfile.TemporaryDirectory(prefix=".version-", dir=base) as folder:
            temporary = Path(folder) / str(number)
            yield temporary, number
            os.sync()  # TensorFlow does not sync what it writes
            temporary.rename(base / str(number))
    finally:
        (base / ".lock").unlink(missing_ok=True)
        lock.release()
        if not was_there and not any(base.iterdir()):
            base.rmdir()


def _cannot_be_written(base: Path, error: OSError) -> ExportError:
    return ExportError(f"'{base}' cannot be written: {error.strerror}; choose another --output.")


def versions(base: Path) -> list[int]:
    """Returns the versions that lie in a folder, ascending."""
    names = [path.name for path in base.iterdir() if path.is_dir()] if base.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))


def _examples(run: Run, served: Served, count: int) -> Any:
    """Returns examples of a run's data, or why there are none."""
    from kerastune_ft.exports import examples

    if not count:
        return "no examples were asked for"
    try:
        return examples.of_run(run, served.recipe, count)
    except (DataError, OSError) as error:
        return str(error)


def _texts(served: Served, found: Any) -> list[tuple[str, ...]]:
    """Returns the texts on which a tokenizer is tried."""
    from kerastune_ft.exports import expected

    given = [] if isinstance(found, str) else [raw for raw in found.raw if isinstance(raw, tuple)]
    return [*expected.odd_rows(served), *given]


def _write_beside(
    folder: Path, run: Run, served: Served, number: int, name: str, found: Any
) -> None:
    """Writes what travels with the graph."""
    from kerastune_ft import predictions
    from kerastune_ft.exports import operations, verification, warming

    operations.check(folder)
    extra = folder / EXTRA
    extra.mkdir(exist_ok=True)
    names = served.outputs.names
    recipe = run.recipe_path.read_text(encoding="utf-8")
    contracts.write(
        folder,
        Contract(
            name=name,
            version=number,
            task=served.recipe.task.name,
            modality="text" if served.reads_texts else "image",
            classes=names,
            label_contract=contracts.labels_digest(names),
            thresholds=served.outputs.thresholds or None,
            inputs=served.inputs,
            text_inputs=served.text_inputs,
            tokenizer_inside=served.inside
            if isinstance(served.inside, str) and served.inside
            else True,
            recipe_sha256=contracts.digest(recipe),
            run=run.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions={package: importlib.metadata.version(package) for package in _PACKAGES},
        ),
    )
    files.write_text(extra / "recipe.yaml", recipe)
    if served.reads_texts:
        tokenizer = predictions.members(run, served.recipe)[0].tokenizer_path
        shutil.copyfile(tokenizer, extra / "tokenizer.json")
    verification.expect(folder, run, served, found)
    warming.write(extra, name, verification.requests(folder))


def _verified(folder: Path, run: Run) -> dict[str, Any]:
    """Runs `kft verify` in a fresh process, and returns its report."""
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.json"
        command = [sys.executable, "-m", "kerastune_ft", "verify", str(folder)]
        ended = subprocess.run(
            [*command, "--run", str(run.path), "--report", str(report)],
            capture_output=True,
            text=True,
            env=_environment(),
            check=False,
        )
        if ended.returncode not in (0, _FAILED) or not report.is_file():
            said = (ended.stderr.strip() or ended.stdout.strip()).splitlines()
            raise ExportError(
                "what was exported cannot be used in a fresh process: "
                + (said[-1] if said else f"it ended with {ended.returncode}")
            )
        return dict(json.loads(report.read_text(encoding="utf-8")))
