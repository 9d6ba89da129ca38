"""Compares what an export answers with what the training process answered.

    expect(folder, expectation(run, served, examples))      # writes `verification.json`
    found = verify(folder)                  # any time later, in a process that knows no Keras model
    found = verify(folder, url="http://localhost:8501")

Odd pictures and texts of our own travel with an export; examples of the run's data do not: only
their names, digests and answers do. They are compared where the run and its data are at hand. A
SavedModel is given what users hold; a file of another format arrays, which training's own
preparation made.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kerastune_ft import files
from kerastune_ft import recipe as recipes
from kerastune_ft.errors import ExportError, KftError, ServingError
from kerastune_ft.exports import contract as contracts
from kerastune_ft.exports import examples as examples_
from kerastune_ft.exports import trials
from kerastune_ft.exports.contract import Contract
from kerastune_ft.exports.trials import Limits
from kerastune_ft.runs import Run

if TYPE_CHECKING:
    from kerastune_ft.exports.examples import Examples
    from kerastune_ft.exports.graphs import Served

TOLERANCE = 1e-4
"""Of a probability; of a number, in standard deviations of the training examples."""

_NAME, _ODD = "verification.json", "verification"
_BATCH = 16
_ROUNDS = 20
_SHOWN = 5
_CLOSE = 1e-3
_OTHER_TEXT, _ERROR = 1.0, 2.0

Raw: TypeAlias = bytes | tuple[str, ...]
Answer: TypeAlias = NDArray[np.float64] | str
"""Probabilities or numbers, or a text."""

Answers: TypeAlias = Callable[[Sequence[Raw]], Sequence[Answer]]


@dataclass(frozen=True)
class Difference:
    """An example of which an export says something else.

    Args:
        name: Of the example.
        expected: What the training process said: probabilities, numbers, or a text.
        got: What the export says, or its error.
        largest: Difference, in the unit of `TOLERANCE`; 1 of texts, 2 of an error.
    """

    name: str
    expected: tuple[float, ...] | str
    got: tuple[float, ...] | str
    largest: float


@dataclass(frozen=True)
class Verified:
    """What a comparison found.

    Args:
        odd: How many odd pictures or texts were compared.
        examples: How many examples of the run's data were.
        missing: Why no more of them were, "" if all were.
        refused: Names of examples that an export cannot read, and says so.
        largest: Difference of all that answered, in the unit of `TOLERANCE`.
        agreement: Share of examples of which both name the same class, or say the same text; None
            of numbers.
        differences: Above `TOLERANCE`, the largest first.
        latency: Milliseconds of a request by its number of examples, median; {} over a network.
        row: Of a file, what the table of formats says of it; None of a SavedModel.
        shortfalls: Which limits a quantised file misses, and where it decides otherwise.
        limits: Of a quantised file; None of what has to answer to `TOLERANCE`.
    """

    odd: int
    examples: int
    missing: str
    refused: tuple[str, ...]
    largest: float
    agreement: float | None
    differences: tuple[Difference, ...]
    latency: Mapping[int, float] = field(default_factory=dict)
    row: Mapping[str, Any] | None = None
    shortfalls: tuple[str, ...] = ()
    limits: Limits | None = None

    def summary(self) -> str:
        """Returns a line about a comparison that went well."""
        compared = f"{self.examples} examples of its data and {self.odd} odd ones"
        if self.row is not None:  # it takes arrays
            compared += ", prepared as in training"
        largest = f"largest difference {self.largest:.1e}"
        if self.limits is None:
            return f"answers as training did: {compared}, {largest}"
        assert self.row is not None
        agreement, least = self.row["agreement"], self.limits.least_agreement
        return (
            f"decides as training did: agreement {agreement:.4f} of {self.row['examples']} "
            f"examples, at least {least:g} was wanted; {compared} were asked, {largest}"
        )

    def check(self, folder: Path) -> None:
        """Raises `ExportError` if something differs, with what differs most."""
        if self.shortfalls:
            lines = "\n".join(f"  {line}" for line in self.shortfalls)
            raise ExportError(
                f"'{folder}' does not decide as the run's model does:\n{lines}\nAnother --quantize "
                "is closer to it; --least-agreement and --most-lost of 'kft export' allow more."
            )
        if not self.differences:
            return
        shown = [
            f"  {row.name}: {_short(row.expected)} in training, {_short(row.got)} here"
            for row in self.differences[:_SHOWN]
        ]
        raise ExportError(
            f"'{folder}' does not answer as the training process did: {len(self.differences)} of "
            f"{self.odd + self.examples} examples differ by more than {TOLERANCE:g}, at most by "
            f"{max(row.largest for row in self.differences):.2g}:\n" + "\n".join(shown)
        )


@dataclass(frozen=True)
class Expectation:
    """What the training process answers, of all that an export is tried on.

    Args:
        content: Of `verification.json`.
        pictures: Content of odd pictures, by the name of the file.
    """

    content: Mapping[str, Any]
    pictures: Mapping[str, bytes]


def expectation(run: Run, served: Served, found: Examples | str) -> Expectation:
    """Asks the training process's models.

    Args:
        run: That is exported.
        served: What is exported of it.
        found: Examples of its data, or why there are none.
    """
    from kerastune_ft import predictions
    from kerastune_ft.exports import expected

    odd, pictures = [], {}
    for name, raw, said in expected.of_odd(served, predictions.tokenizer_of(_first(run, served))):
        row: dict[str, Any] = {"name": name, "expected": _plain(said)}
        if isinstance(raw, bytes):
            pictures[name] = raw
        else:
            row["texts"] = list(raw)
        odd.append(row)
    rows = []
    if not isinstance(found, str):
        told = expected.of_split(run, served, found.split)
        pairs = zip(found.split.names, found.digests(), told, strict=True)
        rows = [
            {"name": name, "sha256": digest, "expected": _plain(said)}
            for name, digest, said in pairs
        ]
    content = {
        "format": 1,
        "tolerance": TOLERANCE,
        "scale": list(served.outputs.std) or [1.0] * len(served.outputs.names),
        "run": str(run.path.resolve()),
        "missing": found if isinstance(found, str) else "",
        "odd": odd,
        "examples": rows,
    }
    return Expectation(content, pictures)


def expect(folder: Path, wanted: Expectation, limits: Limits | None = None) -> None:
    """Writes what the training process answers into a version's folder.

    Args:
        folder: Of the version.
        wanted: What it answers.
        limits: Of a quantised file.
    """
    extra = contracts.extra(folder)
    (extra / _ODD).mkdir(parents=True, exist_ok=True)
    for name, raw in wanted.pictures.items():
        (extra / _ODD / name).write_bytes(raw)
    content = {**wanted.content, **({"limits": asdict(limits)} if limits else {})}
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    files.write_text(extra / _NAME, text + "\n")


def verify(folder: Path, *, url: str | None = None, run: Path | None = None) -> Verified:
    """Compares an export, or a server, with what was expected when it was written.

    Args:
        folder: Of a version.
        url: Of a server that serves it, such as `http://localhost:8501`; None loads the graph
            here.
        run: Where the run lies, if it was moved.

    Raises:
        ExportError: If there is no such export, it is damaged, or the server has other labels.
    """
    contract = contracts.read(folder)
    record = _record(folder)
    if url and contract.file is not None:
        raise ExportError(f"'{folder}' is a file of {contract.file.format}; servers have none.")
    scale = np.asarray(record["scale"], np.float64)
    inputs = [(row["name"], _odd_input(folder, row), _read(row)) for row in record["odd"]]
    more, missing, labels = _examples(record, run)
    told: list[tuple[str, Answer, Answer | ExportError]]
    row: Mapping[str, Any] | None = None
    shortfalls: tuple[str, ...] = ()
    latency: Mapping[int, float] = {}
    limits = None if contract.exact else Limits(**record.get("limits", {}))
    if contract.file is None:
        answers = _of_server(url, folder, contract) if url else of_graph(folder, contract)
        told = _answered(answers, inputs + more)
        if not url and inputs:
            latency = _latency(answers, [raw for _, raw, _ in inputs])
    else:
        asked = inputs + more
        of_all = _wanted(folder, contract)([raw for _, raw, _ in asked])
        found = trials.judged(
            folder,
            contract,
            of_all,
            [(name, expected) for name, _, expected in asked],
            labels,
            scale,
            limits or Limits(),
        )
        row, shortfalls = found.row, found.shortfalls
        latency = {1: found.row["latency_ms_1"], 8: found.row["latency_ms_8"]}
        told = [(*pair[::2], said) for pair, said in zip(asked, found.said, strict=True)]
    differences, refused, errors, same = [], [], [], []
    for name, expected, said in told:
        if isinstance(said, ExportError):
            if _is_refusal(str(said)):
                refused.append(name)
            else:
                differences.append(Difference(name, _shown(expected), str(said), _ERROR))
            continue
        error, alike = _compared(expected, said, scale)
        errors.append(error)
        same.append(alike)
        if contract.exact and not error <= record["tolerance"]:
            differences.append(Difference(name, _shown(expected), _shown(said), error))
    if not errors:
        raise ExportError(f"'{folder}': there was nothing to compare; export again.")
    return Verified(
        odd=len(inputs),
        examples=len(more),
        missing=missing,
        refused=tuple(refused),
        largest=max(errors),
        agreement=None if "regression" in contract.task else float(np.mean(same)),
        differences=tuple(sorted(differences, key=lambda row: -row.largest)),
        latency=latency,
        row=row,
        shortfalls=shortfalls,
        limits=limits,
    )


def requests(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Returns signature and inputs of requests to warm a server up with: one, and several."""
    contract, record = contracts.read(folder), _record(folder)
    if not record["odd"]:
        return []
    raw = [_odd_input(folder, row) for row in record["odd"][:8]]
    wanted = _wanted(folder, contract)
    return [("serving_default", wanted(some)) for some in (raw[:1], raw)]


def _answered(
    answers: Answers, inputs: Sequence[tuple[str, Raw, Answer]]
) -> list[tuple[str, Answer, Answer | ExportError]]:
    """Asks in batches; one that fails is asked again one by one, to know which it was."""
    told: list[tuple[str, Answer, Answer | ExportError]] = []
    for start in range(0, len(inputs), _BATCH):
        some = inputs[start : start + _BATCH]
        said: Sequence[Answer | ExportError]
        try:
            said = answers([raw for _, raw, _ in some])
        except ExportError:
            said = [_alone(answers, raw) for _, raw, _ in some]
        told += [(name, expected, one) for (name, _, expected), one in zip(some, said, strict=True)]
    return told


def _alone(answers: Answers, raw: Raw) -> Answer | ExportError:
    try:
        return answers([raw])[0]
    except ExportError as error:
        return error


def _compared(expected: Answer, said: Answer, scale: NDArray[np.float64]) -> tuple[float, bool]:
    """Returns the difference of two answers, and whether both name the same."""
    if isinstance(expected, str) or isinstance(said, str):
        alike = isinstance(said, str) and said == expected
        return (0.0 if alike else _OTHER_TEXT), alike
    two = np.sort(expected)[-2:]
    tie = len(two) > 1 and two[1] - two[0] < _CLOSE
    alike = tie or bool(expected.argmax() == said.argmax())
    return float(np.max(np.abs(said - expected) / scale)), alike


def plain(said: str) -> str:
    """Returns what a graph's error says to people."""
    from kerastune_ft.exports.pictures import REFUSAL

    if _is_refusal(said):
        return REFUSAL
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[0][:300] if lines else said


def _is_refusal(said: str) -> bool:
    from kerastune_ft.exports.pictures import REFUSAL

    return REFUSAL[:40] in said


def of_version(folder: Path, contract: Contract) -> Answers:
    """Returns what asks a version itself, in this process.

    It raises `ExportError` where the graph does, or of what cannot be read.
    """
    if contract.file is None:
        return of_graph(folder, contract)
    from kerastune_ft.exports import artefacts

    return artefacts.of_file(folder, contract, _wanted(folder, contract))


def of_graph(folder: Path, contract: Contract) -> Answers:
    """Returns what asks the graph itself.

    It raises `ExportError` where the graph does.
    """
    import tensorflow as tf

    if contract.modality == "text":
        import tensorflow_text  # noqa: F401 - its operations

    try:
        loaded = tf.saved_model.load(str(folder))
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise ExportError(f"'{folder}' cannot be loaded: {error}; export again.") from error
    signature = loaded.signatures["serving_default"]
    wanted = _wanted(folder, contract)

    told = _teller(folder)

    def answers(raw: Sequence[Raw]) -> Sequence[Answer]:
        try:
            said = signature(**{key: tf.constant(value) for key, value in wanted(raw).items()})
        except tf.errors.OpError as error:
            raise ExportError(error.message) from error
        return told({key: value.numpy() for key, value in said.items()})

    answers.loaded = loaded  # type: ignore[attr-defined]  # owns the variables
    return answers


def _of_server(url: str, folder: Path, contract: Contract) -> Answers:
    """Returns what asks a server."""
    from kerastune_ft.serving import client

    wanted, told = _wanted(folder, contract), _teller(folder)

    client.metadata(url, contract.name)  # whose error says what is wrong with the server

    def answers(raw: Sequence[Raw]) -> Sequence[Answer]:
        try:
            said = client.predict(url, contract.name, "serving_default", wanted(raw))
        except ServingError as error:
            raise ExportError(str(error)) from error
        return told(said)

    return answers


def _wanted(folder: Path, contract: Contract) -> Callable[[Sequence[Raw]], dict[str, Any]]:
    """Returns what makes of examples the inputs of `serving_default`."""
    from kerastune_ft.exports import expected

    if contract.inputs == ("image_bytes",):
        return lambda raw: {"image_bytes": np.asarray(raw, object)}
    if contract.inputs == ("images",):
        return expected.arrays_of_bundle(contracts.extra(folder))
    if contract.inputs == contract.text_inputs:
        return lambda raw: {
            name: np.asarray([row[at] for row in raw], object)
            for at, name in enumerate(contract.inputs)
        }
    return expected.tokens_of_bundle(contracts.extra(folder))


def _teller(folder: Path) -> Callable[[Mapping[str, Any]], Sequence[Answer]]:
    """Returns what makes answers of the outputs of `serving_default`."""

    def told(said: Mapping[str, Any]) -> Sequence[Answer]:
        for name in ("written", "tags"):
            if name in said:
                return [_text(value) for value in said[name]]
        if "written_ids" in said:
            from kerastune_ft.exports import expected

            return expected.texts_of_bundle(contracts.extra(folder), said["written_ids"])
        values = said["probabilities"] if "probabilities" in said else said["values"]
        return list(np.asarray(values, np.float64))

    return told


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _examples(
    record: Mapping[str, Any], moved: Path | None
) -> tuple[list[tuple[str, Raw, Answer]], str, list[Any]]:
    """Returns the examples of the run's data that are at hand, why no more are, and the labels."""
    rows = record["examples"]
    if not rows:
        return [], str(record["missing"] or "none was exported with it"), []
    try:
        run = Run.open(moved or record["run"])
        found = examples_.of_run(run, recipes.load(run.recipe_path), len(rows))
    except (KftError, OSError) as error:
        return [], str(error), []
    known = dict(zip(found.digests(), zip(found.raw, found.split.labels, strict=True), strict=True))
    pairs = [(row, *known.get(row["sha256"], (None, None))) for row in rows]
    there = [(row["name"], raw, _read(row)) for row, raw, _ in pairs if raw]
    lost = sum(raw is None for _, raw, _ in pairs)
    labels = [label for _, raw, label in pairs if raw]
    return there, f"{lost} of {len(rows)} have changed" if lost else "", labels


def _odd_input(folder: Path, row: Mapping[str, Any]) -> Raw:
    if "texts" in row:
        return tuple(row["texts"])
    return (contracts.extra(folder) / _ODD / Path(row["name"]).name).read_bytes()


def _record(folder: Path) -> dict[str, Any]:
    path = contracts.extra(folder) / _NAME
    try:
        content = dict(json.loads(path.read_text(encoding="utf-8")))
        for name in ("tolerance", "scale", "run", "missing", "odd", "examples"):
            content[name]
    except (OSError, ValueError, KeyError) as error:
        raise ExportError(f"'{path}' is missing or damaged: {error}; export again.") from error
    return content


def _latency(answers: Answers, raw: Sequence[Raw]) -> dict[int, float]:
    """Measures requests of 1, 8 and 32 examples, in milliseconds."""
    found = {}
    for size in (1, 8, 32):
        batch = [raw[i % min(4, len(raw))] for i in range(size)]
        seconds = []
        answers(batch)
        for _ in range(max(_ROUNDS // size, 3)):
            began = time.perf_counter()
            answers(batch)
            seconds.append(time.perf_counter() - began)
        found[size] = round(1000 * statistics.median(seconds), 3)
    return found


def _first(run: Run, served: Served) -> Run:
    from kerastune_ft import predictions

    return predictions.members(run, served.recipe)[0]


def _plain(said: Answer) -> str | list[float]:
    """Returns an answer as JSON has it."""
    return said if isinstance(said, str) else [float(value) for value in said]


def _read(row: Mapping[str, Any]) -> Answer:
    expected = row["expected"]
    return expected if isinstance(expected, str) else np.asarray(expected, np.float64)


def _shown(said: Answer) -> tuple[float, ...] | str:
    return said if isinstance(said, str) else tuple(float(value) for value in said)


def _short(values: Sequence[float] | str) -> str:
    if isinstance(values, str):
        return repr(values)[:120]
    best = int(np.argmax(values))
    return f"output {best} is {values[best]:.6g}"
