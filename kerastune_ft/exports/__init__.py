"""Writes what is served, and lets nobody see it before it answers as the training process did.

    made = export(Run.open("runs/mobilenet"))           # runs/mobilenet/export/1
    made = export_all(run, ["litert"], ["none", "int8"])    # export/litert/1, export/litert-int8/1
    found = verification.verify(made[0].path)           # any time later

A version is written into a hidden folder, loaded in a fresh process, asked, and only then renamed
to its number. What fails leaves nothing.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape

from kerastune_ft import files, recipe_export
from kerastune_ft import recipe as recipes
from kerastune_ft.errors import DataError, ExportError, did_you_mean
from kerastune_ft.exports import contract as contracts
from kerastune_ft.exports import server_files, tables
from kerastune_ft.exports.contract import Contract, File
from kerastune_ft.exports.trials import Limits
from kerastune_ft.runs import Run, check_name

if TYPE_CHECKING:
    from kerastune_ft.exports.graphs import Served
    from kerastune_ft.exports.verification import Expectation
    from kerastune_ft.recipe import Recipe

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
        file: Of another format what its contract says of it; None of a SavedModel.
    """

    path: Path
    report: dict[str, Any]
    inside: bool | str
    file: File | None = None


def export(
    run: Run,
    *,
    output: str | Path | None = None,
    version: int | None = None,
    name: str | None = None,
    examples: int = EXAMPLES,
    console: Console | None = None,
) -> Exported:
    """Exports a finished run as a SavedModel for TensorFlow Serving; see `export_all`."""
    (made,) = export_all(
        run,
        output=output,
        version=version,
        name=name,
        examples=examples,
        console=console,
    )
    return made


def export_all(
    run: Run,
    targets: Sequence[str] = ("saved_model",),
    quantize: Sequence[str] = ("none",),
    *,
    output: str | Path | None = None,
    version: int | None = None,
    name: str | None = None,
    examples: int = EXAMPLES,
    limits: Limits | None = None,
    console: Console | None = None,
) -> list[Exported]:
    """Exports a finished run in several formats, one after the other.

    A SavedModel gets a number in the folder of versions; a file of another format one in a folder
    of its own below it, such as `litert-int8`, where servers do not look. What was written before
    one failed stays.

    Args:
        run: It.
        targets: Formats, keys of `recipe_export.QUANTIZATIONS`.
        quantize: How those that can be quantised are written, each as a file of its own.
        output: The folder of versions; None is `export` in the run's.
        version: From 1; None takes the one after the largest there is of each format.
        name: Under which the model is served; None is the run's.
        examples: How many examples of the run's data are compared, at most.
        limits: Of quantised files.
        console: Shows what happens; nothing is shown by default.

    Raises:
        ExportError: If the run is not finished, formats, quantisation and task do not go together,
            a package is missing, the version is there already, the task cannot be exported, or
            what was written answers otherwise than the training process did.
        RunError: If the run lacks something.
    """
    console = console or Console(quiet=True)
    if run.state != "finished":
        raise ExportError(
            f"run '{run.path}' is {run.state}; 'kft resume {run.path}' goes on with it, then "
            "export."
        )
    check_name(name or run.name)
    wanted = check(targets, quantize, recipes.load(run.recipe_path).task.name)
    base = Path(output) if output is not None else run.path / "export"
    for target, each in wanted:
        _check_version(base / tables.folder_of(target, each), version)
    from kerastune_ft.exports import graphs

    batch = _Batch(run, graphs.Served.of(run), name or run.name, examples, limits or Limits())
    made: list[Exported] = []
    rows: list[dict[str, Any]] = []
    for target, each in wanted:
        if target == "saved_model":
            made.append(_saved_model(batch, base, version, console))
            continue
        made.append(_file(batch, base / tables.folder_of(target, each), version, console,
                          target, each))  # fmt: skip
        rows.append(tables.row_of(made[-1].path, contracts.read(made[-1].path), made[-1].report))
        tables.add(base, rows[-1:])
    if rows:
        console.print(tables.shown(rows))
        console.print(f"  {escape(str(base / tables.NAME))} has these figures", highlight=False)
    return made


def check(targets: Sequence[str], quantize: Sequence[str], task: str) -> list[tuple[str, str]]:
    """Returns what is going to be written, if it can be.

    Args:
        targets: Formats.
        quantize: How those that can be quantised are.
        task: As in recipes.

    Raises:
        ExportError: If formats, quantisation and task do not go together, or a package is missing.
    """
    from kerastune_ft import formats

    for target in targets:
        if target not in recipe_export.QUANTIZATIONS:
            known = ", ".join(recipe_export.QUANTIZATIONS)
            near = did_you_mean(target, recipe_export.QUANTIZATIONS)
            raise ExportError(f"format '{target}' is unknown{near or ';'} expected {known}.")
    problems = list(recipe_export.wrong(targets, quantize, task))
    if problems:
        raise ExportError("\n".join(f"{problem}." for problem in problems))
    found = recipe_export.pairs(targets, quantize)
    for target, each in found:
        if target in formats.FORMATS:
            formats.check(target, each)  # type: ignore[arg-type]
    return found


class _Batch:
    """What the exports of a call have in common; computed once, when it is needed.

    Args:
        run: That is exported.
        served: What is exported of it.
        name: Of the model.
        examples: How many of the run's data are compared, at most.
        limits: Of quantised files.
    """

    def __init__(self, run: Run, served: Served, name: str, examples: int, limits: Limits) -> None:
        self.run, self.served, self.name, self.limits = run, served, name, limits
        self._count = examples

    @functools.cached_property
    def found(self) -> Any:
        """Examples of the run's data, or why there are none."""
        return _examples(self.run, self.served, self._count)

    @functools.cached_property
    def expectation(self) -> Expectation:
        """What the training process says of all examples."""
        from kerastune_ft.exports import verification

        return verification.expectation(self.run, self.served, self.found)


def _saved_model(batch: _Batch, base: Path, version: int | None, console: Console) -> Exported:
    """Writes a version for TensorFlow Serving."""
    with _new_version(base, version) as (temporary, number):
        served = batch.served.settled(_texts(batch.served, batch.found))
        console.print("[bold]export[/]   writing the graph ...")
        served.save(temporary)
        _write_beside(temporary, batch, served, number)
        report = _compared(temporary, base / str(number), batch.run, console)
        if not (base / server_files.MODELS).exists():  # a server finds them with the version
            server_files.write(base, batch.name, report["latency"])
    path = base / str(number)
    server_files.write(base, batch.name, report["latency"])
    _show(console, path, report, served.takes)
    return Exported(path, report, served.takes)


def _file(
    batch: _Batch, base: Path, version: int | None, console: Console, target: str, quantize: str
) -> Exported:
    """Writes a version of another format."""
    from kerastune_ft.exports import artefacts, verification

    run, served = batch.run, batch.served
    with _new_version(base, version) as (temporary, number):
        console.print(f"[bold]export[/]   writing {base.name} ...")
        expected = batch.expectation  # before the file is made: making it may change the models
        file = artefacts.write(temporary, run, served, target, quantize)
        inputs = served.token_inputs if served.reads_texts else ("images",)
        _write_contract(temporary, batch, served, number, inputs, file)
        verification.expect(temporary, expected, None if quantize == "none" else batch.limits)
        report = _compared(temporary, base / str(number), run, console)
    path = base / str(number)
    _show(console, path, report, True)
    for remark in file.remarks:
        console.print(f"  [yellow]note[/]  {escape(remark)}", highlight=False)
    return Exported(path, report, True, file)


def _compared(temporary: Path, final: Path, run: Run, console: Console) -> dict[str, Any]:
    """Verifies a version in a fresh process, and returns the report if nothing is wrong."""
    console.print("[bold]export[/]   comparing it in a fresh process ...")
    report = _verified(temporary, run)
    if report["message"]:
        raise ExportError(report["message"].replace(str(temporary), str(final)))
    return report


def ready(recipe: Recipe) -> None:
    """Makes sure, before a run is trained, that what its recipe exports can be written.

    Raises:
        ExportError: If it cannot, or a package is missing.
    """
    check(recipe.export.targets, recipe.export.quantize, recipe.task.name)


def of_recipe(run: Run, console: Console) -> None:
    """Exports a run that has just been finished, if its recipe says so and nothing is there yet.

    Raises:
        ExportError: As `export` does; the run itself stays finished.
    """
    if not run.recipe_path.is_file():  # one of several hosts: the first one has the run
        return
    wanted = recipes.load(run.recipe_path).export
    base = run.path / "export"
    missing = [
        pair
        for pair in recipe_export.pairs(wanted.targets, wanted.quantize)
        if not versions(base / tables.folder_of(*pair))
    ]
    for target, quantize in missing:
        if _backend() == "tensorflow":
            limits = Limits(wanted.least_agreement, wanted.most_lost)
            how: dict[str, Any] = {"name": wanted.name, "examples": wanted.examples}
            export_all(run, [target], [quantize], **how, limits=limits, console=console)
            continue
        command = [sys.executable, "-m", "kerastune_ft", "export", str(run.path)]
        command += ["--format", target, "--quantize", quantize]
        command += ["--examples", str(wanted.examples)]
        command += ["--least-agreement", str(wanted.least_agreement)]
        command += ["--most-lost", str(wanted.most_lost)]
        command += ["--name", wanted.name] if wanted.name else []
        ended = subprocess.run(
            command, capture_output=True, text=True, env=_environment(), check=False
        )
        if ended.returncode:
            raise ExportError(ended.stderr.strip().removeprefix("error: "))
        console.print(escape(ended.stdout.rstrip()), highlight=False)


def _backend() -> str:
    import keras

    return str(keras.backend.backend())


def _environment() -> dict[str, str]:
    return {**os.environ, "KERAS_BACKEND": "tensorflow"}


def _show(console: Console, path: Path, report: dict[str, Any], inside: bool | str) -> None:
    agreement = report["agreement"]
    unsaid = agreement is None or report["limits"]
    labels = "" if unsaid else f", the same class for {agreement:.1%}"
    console.print(f"[bold]export[/]   {escape(str(path))}", highlight=False)
    console.print(f"  {report['summary']}{labels}", highlight=False)
    if report["missing"]:
        console.print(f"  [yellow]warning[/]  not compared: {escape(report['missing'])}")
    if report["refused"]:
        shown = ", ".join(report["refused"][:3])
        console.print(
            f"  [yellow]warning[/]  {len(report['refused'])} of its data a server refuses, for "
            "want of operations that read them as training did (GIF, TIFF and other rare files): "
            f"{escape(shown)}",
            highlight=False,
        )
    if inside is not True:
        console.print(f"  takes numbers of tokens: {escape(str(inside))}", highlight=False)
    if report["row"] is not None:  # the table has them
        return
    times = ", ".join(f"{size}: {ms:.1f} ms" for size, ms in report["latency"].items())
    if not times:
        return
    console.print(f"  a request takes here, by its examples: {times}", highlight=False)


@contextlib.contextmanager
def _new_version(base: Path, version: int | None) -> Iterator[tuple[Path, int]]:
    """Yields a hidden folder that does not exist yet, which becomes a version if all goes well."""
    above = [folder for folder in (base, *base.parents) if not folder.exists()]
    lock = FileLock(base / ".lock", blocking=False)
    try:
        base.mkdir(parents=True, exist_ok=True)
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
        _check_version(base, version)
        number = version or max(versions(base), default=0) + 1
        with tempfile.TemporaryDirectory(prefix=".version-", dir=base) as folder:
            temporary = Path(folder) / str(number)
            yield temporary, number
            os.sync()  # TensorFlow does not sync what it writes
            temporary.rename(base / str(number))
    finally:
        (base / ".lock").unlink(missing_ok=True)
        lock.release()
        with contextlib.suppress(OSError):  # it holds something, or another process was faster
            for parent in above:  # the innermost first
                parent.rmdir()


def _check_version(base: Path, version: int | None) -> None:
    """Makes sure that a version can be written."""
    if version is None:
        return
    if version < 1:
        raise ExportError(f"--version {version}: expected a whole number from 1.")
    if (base / str(version)).exists():
        raise ExportError(
            f"'{base / str(version)}' is there already; a version never changes: take the next "
            "number, or remove it."
        )


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


def _write_beside(folder: Path, batch: _Batch, served: Served, number: int) -> None:
    """Writes what travels with a graph."""
    from kerastune_ft.exports import operations, verification, warming

    operations.check(folder)
    _write_contract(folder, batch, served, number, served.inputs, None)
    verification.expect(folder, batch.expectation)
    warming.write(contracts.extra(folder), batch.name, verification.requests(folder))


def _write_contract(
    folder: Path,
    batch: _Batch,
    served: Served,
    number: int,
    inputs: tuple[str, ...],
    file: File | None,
) -> None:
    """Writes the contract of a version, its recipe and its tokenizer."""
    from kerastune_ft import predictions

    run, names = batch.run, served.outputs.names
    recipe = run.recipe_path.read_text(encoding="utf-8")
    inside = served.takes
    if file is not None and served.reads_texts:
        inside = f"a file of {file.format} holds no tokenizer"
    contracts.write(
        folder,
        Contract(
            name=batch.name,
            version=number,
            task=served.recipe.task.name,
            modality="text" if served.reads_texts else "image",
            classes=names,
            label_contract=contracts.labels_digest(names),
            thresholds=served.outputs.thresholds or None,
            inputs=inputs,
            text_inputs=served.text_inputs,
            tokenizer_inside=inside,
            recipe_sha256=contracts.digest(recipe),
            run=run.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions={package: importlib.metadata.version(package) for package in _PACKAGES},
            file=file,
        ),
    )
    extra = contracts.extra(folder)
    files.write_text(extra / "recipe.yaml", recipe)
    if served.reads_texts:
        tokenizer = predictions.members(run, served.recipe)[0].tokenizer_path
        shutil.copyfile(tokenizer, extra / "tokenizer.json")


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
