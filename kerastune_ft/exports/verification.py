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
from kerastune_ft.errors import ExportError, KftError
from kerastune_ft.exports import asked, trials
from kerastune_ft.exports import contract as contracts
from kerastune_ft.exports import examples as examples_
from kerastune_ft.exports.asked import Answer, Answers, Other, Raw, Said
from kerastune_ft.exports.contract import Contract
from kerastune_ft.exports.trials import Limits
from kerastune_ft.runs import Run

if TYPE_CHECKING:
    from kerastune_ft.exports.examples import Examples
    from kerastune_ft.exports.graphs import Served

TOLERANCE = 1e-4
"""Of a probability; of a number, in standard deviations of the training examples."""

MOST_REFUSED = 0.5
"""Share of the examples of the data that an export may refuse, because only training reads them."""

_NAME, _ODD = "verification.json", "verification"
_BATCH = 16
_ROUNDS = 20
_SHOWN = 5
_CLOSE = 1e-3
_BY = " by "
_OTHER_TEXT, _ERROR = 1.0, 2.0

_Told: TypeAlias = tuple[str, Answer, Said | ExportError]
"""Name of an example, what training said of it, and what is said now."""


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
        answers: How many answers were, by all signatures.
        missing: Why no more of them were, "" if all were.
        refused: Names of examples of the data that an export cannot read, and says so. Odd ones it
            has to read.
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
    answers: int
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

    @property
    def _refuses_too_much(self) -> bool:
        return len(self.refused) > MOST_REFUSED * (self.examples + len(self.refused))

    def check(self, folder: Path) -> None:
        """Raises `ExportError` if something differs, with what differs most."""
        if self._refuses_too_much and not self.differences:
            some = ", ".join(self.refused[:_SHOWN])
            raise ExportError(
                f"'{folder}' refuses {len(self.refused)} of {self.examples + len(self.refused)} "
                f"examples of the run's data, at most {MOST_REFUSED:.0%} may be: {some}; convert "
                "them to JPEG or PNG, as a server will be sent them, and train again."
            )
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
            f"{self.answers} answers differ by more than {TOLERANCE:g}, at most by "
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

    Raises:
        ExportError: If they answer with what is no number.
    """
    from kerastune_ft import predictions
    from kerastune_ft.exports import expected

    odd, pictures = [], {}
    for name, raw, said in expected.of_odd(served, predictions.tokenizer_of(_first(run, served))):
        row: dict[str, Any] = {"name": name, "expected": _plain(said, name, run)}
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
            {"name": name, "sha256": digest, "expected": _plain(said, name, run)}
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

    Where examples are taken as they are, all that is said beside an answer is held to it and to the
    classes of the contract, and the odd examples are put to the other signatures too. A server
    with other labels, or in another order, differs.

    Args:
        folder: Of a version.
        url: Of a server that serves it, such as `http://localhost:8501`; None loads the graph
            here.
        run: Where the run lies, if it was moved.

    Raises:
        ExportError: If there is no such export, or it is damaged.
        ServingError: If there is no such server, or it does not have this version.
    """
    contract = contracts.read(folder)
    record = _record(folder)
    if url and contract.file is not None:
        raise ExportError(f"'{folder}' is a file of {contract.file.format}; servers have none.")
    scale = np.asarray(record["scale"], np.float64)
    inputs = [(row["name"], _odd_input(folder, row), _read(row)) for row in record["odd"]]
    more, missing, labels = _examples(record, run)
    if not inputs and not more:
        raise ExportError(
            f"'{folder}': there is nothing to compare: {missing}, and no odd ones; export again, "
            "where the run's data are."
        )
    told: list[_Told]
    row: Mapping[str, Any] | None = None
    shortfalls: tuple[str, ...] = ()
    latency: Mapping[int, float] = {}
    limits = None if contract.exact else Limits(**record.get("limits", {}))
    beside: list[_Told] = []
    if contract.file is None:
        version = (
            asked.of_server(url, folder, contract) if url else asked.of_graph(folder, contract)
        )
        told = _answered(version.default(), inputs + more)
        for other in version.others():
            beside += _of_other(other, inputs)
        if not url:
            good = [
                raw
                for (_, raw, _), each in zip(inputs + more, told, strict=True)
                if isinstance(each[2], Said)
            ]
            latency = _latency(version.answers(), good)
    else:
        every = inputs + more
        of_all = asked.wanted_of(folder, contract)([raw for _, raw, _ in every])
        found = trials.judged(
            folder,
            contract,
            of_all,
            [(name, expected) for name, _, expected in every],
            labels,
            scale,
            limits or Limits(),
        )
        row, shortfalls = found.row, found.shortfalls
        latency = {1: found.row["latency_ms_1"], 8: found.row["latency_ms_8"]}
        told = [(*pair[::2], Said(said)) for pair, said in zip(every, found.said, strict=True)]
    own = told[len(inputs) :]
    refused = tuple(name for name, _, said in own if _refuses(said))
    compared = [*told[: len(inputs)], *(each for each in own if not _refuses(each[2]))]
    tolerance = float(record["tolerance"]) if contract.exact else None
    differences, errors, same = _differences(compared, scale, tolerance)
    others, more_errors, _ = _differences(beside, scale, tolerance)
    known = {row.name for row in differences}
    others = [row for row in others if row.name.rsplit(_BY, 1)[0] not in known]
    return Verified(
        odd=len(inputs),
        examples=len(own) - len(refused),
        answers=len(compared) + len(beside),
        missing=missing,
        refused=refused,
        largest=max([*errors, *more_errors], default=0.0),
        agreement=None if "regression" in contract.task else float(np.mean(same or [False])),
        differences=tuple(sorted(differences + others, key=lambda row: -row.largest)),
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
    wanted = asked.wanted_of(folder, contract)
    return [("serving_default", wanted(some)) for some in (raw[:1], raw)]


def _answered(
    ask: Callable[[Sequence[Raw]], Sequence[Said]],
    inputs: Sequence[tuple[str, Raw, Answer]],
    batch: int = _BATCH,
) -> list[_Told]:
    """Asks in batches; one that fails is asked again one by one, to know which it was."""
    told: list[_Told] = []
    for start in range(0, len(inputs), batch):
        some = inputs[start : start + batch]
        said: Sequence[Said | ExportError]
        try:
            said = ask([raw for _, raw, _ in some])
        except ExportError:
            said = [_alone(ask, raw) for _, raw, _ in some]
        told += [(name, expected, one) for (name, _, expected), one in zip(some, said, strict=True)]
    return told


def _alone(ask: Callable[[Sequence[Raw]], Sequence[Said]], raw: Raw) -> Said | ExportError:
    try:
        return ask([raw])[0]
    except ExportError as error:
        return error


def _of_other(other: Other, inputs: Sequence[tuple[str, Raw, Answer]]) -> list[_Told]:
    """Puts odd examples to a signature beside the default one."""
    named = [
        (f"{name}{_BY}'{other.name}'", raw, expected)
        for name, raw, expected in inputs[: other.most]
    ]
    return _answered(other.ask, named, other.batch or _BATCH)


def _differences(
    told: Sequence[_Told], scale: NDArray[np.float64], tolerance: float | None
) -> tuple[list[Difference], list[float], list[bool]]:
    """Returns what differs, all errors of what was answered, and whether each names the same.

    Args:
        told: What was expected, and what was said.
        scale: What differences of outputs are divided by.
        tolerance: None of what does not have to be exact.
    """
    differences, errors, same = [], [], []
    for name, expected, said in told:
        if isinstance(said, ExportError):
            differences.append(Difference(name, _shown(expected), plain(str(said)), _ERROR))
            same.append(False)
            continue
        error, alike = _compared(expected, said.answer, scale)
        errors.append(error)
        same.append(alike and not said.wrong)
        if tolerance is None:
            continue
        if said.wrong:
            largest = max(_OTHER_TEXT, error)
            differences.append(Difference(name, _shown(expected), said.wrong, largest))
        elif not error <= tolerance:
            differences.append(Difference(name, _shown(expected), _shown(said.answer), error))
    return differences, errors, same


def _compared(expected: Answer, said: Answer, scale: NDArray[np.float64]) -> tuple[float, bool]:
    """Returns the difference of two answers, and whether both name the same."""
    if isinstance(expected, str) or isinstance(said, str):
        alike = isinstance(said, str) and said == expected
        return (0.0 if alike else _OTHER_TEXT), alike
    if said.shape != expected.shape:
        return _ERROR, False
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


def _refuses(said: Said | ExportError) -> bool:
    return isinstance(said, ExportError) and _is_refusal(str(said))


def of_version(folder: Path, contract: Contract) -> Answers:
    """Returns what asks a version itself, in this process.

    It raises `ExportError` where the graph does, or of what cannot be read.
    """
    if contract.file is None:
        return asked.of_graph(folder, contract).answers()
    from kerastune_ft.exports import artefacts

    return artefacts.of_file(folder, contract, asked.wanted_of(folder, contract))


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
    """Measures requests of 1, 8 and 32 examples, in milliseconds; {} if there are none."""
    found: dict[int, float] = {}
    for size in (1, 8, 32) if raw else ():
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


def _plain(said: Answer, name: str, run: Run) -> str | list[float]:
    """Returns an answer as JSON has it, which has no NaN."""
    if not isinstance(said, str) and not np.isfinite(said).all():
        raise ExportError(
            f"run '{run.path}': its model answers to {name} with what is no number; nothing can be "
            "compared with that. Train it again, with a smaller learning rate."
        )
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
