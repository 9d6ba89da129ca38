"""The files beside a SavedModel: LiteRT, ONNX and OpenVINO, how fast and how right they are.

A file takes what its Keras model takes, returns probabilities (or numbers), and runs without Keras.
It is tried before it appears. Refused: a quantisation that a format has not, a missing package.

    made = write("litert", served, Path("model.tflite"), quantize="int8", samples=pictures)
    answers = open_artefact("litert", made.path)      # in any process: pixels -> probabilities
    table([try_out(made, answers, inputs)], expected, task, outputs, labels)
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerastune_ft import conversions, files, litert, runtimes
from kerastune_ft.conversions import Made, Quantize, Samples, Wanted
from kerastune_ft.errors import ExportError, did_you_mean
from kerastune_ft.runtimes import Answers, Inputs

if TYPE_CHECKING:
    import keras

    from kerastune_ft.tasks import Outputs

_MIB = 2**20
_WARM_UP = 3  # rounds; the first one allocates
_BATCH = 8


@dataclass(frozen=True)
class Format:
    """A kind of file that a model can be written to.

    Args:
        name: Of the format.
        file: Usual name; what lies beside it has the same stem.
        needs: Packages, by the module that they bring.
        extra: Of this package, which installs them.
        quantize: What it can be asked for.
        convert: Writes the file.
        open: Opens it for running, with a number of threads.
    """

    name: str
    file: str
    needs: Mapping[str, str]
    extra: str
    quantize: tuple[Quantize, ...]
    convert: Callable[[Wanted, Path], Made]
    open: Callable[[Path, int | None], Answers]

    @property
    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [package for module, package in self.needs.items() if not _installed(module)]


FORMATS: dict[str, Format] = {
    "litert": Format(
        name="litert",
        file="model.tflite",
        needs={"ai_edge_litert": "ai-edge-litert"},
        extra="export",
        quantize=("none", "float16", "int8_weights", "int8"),
        convert=litert.to_litert,
        open=runtimes.open_litert,
    ),
    "onnx": Format(
        name="onnx",
        file="model.onnx",
        needs={"onnx": "onnx", "tf2onnx": "tf2onnx", "onnxruntime": "onnxruntime"},
        extra="export",
        quantize=("none", "float16"),
        convert=conversions.to_onnx,
        open=runtimes.open_onnx,
    ),
    "openvino": Format(
        name="openvino",
        file="model.xml",
        needs={"openvino": "openvino"},
        extra="export",
        quantize=("none", "float16"),
        convert=conversions.to_openvino,
        open=runtimes.open_openvino,
    ),
}


@dataclass(frozen=True)
class Artefact:
    """A file that was written.

    Args:
        format: A key of `FORMATS`.
        path: The file; what belongs to it lies beside it and has the same stem.
        quantize: As it was asked for.
        bytes: Of all its files.
        made: What else there is to say of it.
        remarks: Sentences that a user should read.
        versions: Of the packages that wrote it.
    """

    format: str
    path: Path
    quantize: Quantize
    bytes: int
    made: Made
    remarks: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Returns it as plain data, with the name of the file for its path."""
        facts = dataclasses.asdict(self)
        return {**facts, "path": self.path.name, **facts.pop("made")}


def write(
    name: str,
    served: keras.Model,
    path: Path,
    *,
    quantize: Quantize = "none",
    samples: Samples | None = None,
    length: int | None = None,
    output: str = "probabilities",
) -> Artefact:
    """Writes a model as a file of another format, whole or not at all.

    Args:
        name: A key of `FORMATS`.
        served: Takes `float32 (batch, height, width, channels)`, 0..255, of a fixed size; or a dict
            of `token_ids`, `padding_mask` and perhaps `segment_ids`, `int32 (batch, length)`.
            Returns probabilities or numbers, not logits. Stays as it is.
        path: The file; its folder must exist, and its suffix must be that of the format.
        quantize: `none`, `float16` (weights), `int8_weights`, or `int8` (all that can be).
        samples: For `int8`: returns batches of pictures of the training data, as the model takes
            them. A hundred pictures do; see the README.
        length: Tokens of a text, for a format that wants a fixed number.
        output: What the file calls what it returns.

    Raises:
        ExportError: If the format or the quantisation is unknown, a package is missing, or the
            model cannot be written so.
    """
    row = _row(name)
    check(name, quantize)
    suffix = Path(row.file).suffix
    if path.suffix != suffix:
        raise ExportError(f"{name}: '{path}': expected a name that ends with {suffix}.")
    if length is not None and length < 1:
        raise ExportError(f"{name}: length: expected 1 or more tokens, got {length}.")
    model = conversions.plain(served)
    wanted = Wanted(model, output, quantize, samples, length)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        temporary = Path(folder) / path.name
        made = row.convert(wanted, temporary)
        parts = sorted(Path(folder).iterdir(), key=lambda part: part == temporary)
        size = sum(part.stat().st_size for part in parts)
        for part in parts:  # the file itself comes last: where it is, the others are
            with files.replacing(path.parent / part.name) as place:
                part.replace(place)
    remarks = _remarks(name, made, model is not served)
    versions = {package: importlib.metadata.version(package) for package in row.needs.values()}
    return Artefact(name, path, quantize, size, made, remarks, versions)


def check(name: str, quantize: Quantize = "none") -> None:
    """Makes sure that a format can be written, before anything is computed.

    Args:
        name: A key of `FORMATS`.
        quantize: As for `write`.

    Raises:
        ExportError: If the format or the quantisation is unknown, or a package is missing.
    """
    row = _row(name)
    _check_installed(row)
    if quantize not in row.quantize:
        raise ExportError(
            f"{name}: quantize: expected {' or '.join(row.quantize)}, got '{quantize}'"
            f"{did_you_mean(quantize, row.quantize) or '.'}"
        )


def open_artefact(name: str, path: Path, threads: int | None = None) -> Answers:
    """Opens a file for running; neither Keras nor TensorFlow is imported.

    Args:
        name: A key of `FORMATS`.
        path: From `write`.
        threads: Of the processor; all of them by default.

    Returns:
        A function of what the model takes, a whole batch, to what it returns.

    Raises:
        ExportError: If the format is unknown, a package is missing, or the file is damaged. The
            function raises it, too, for inputs that are missing or too long.
    """
    row = _row(name)
    _check_installed(row)
    if not path.is_file():
        raise ExportError(f"'{path}': does not exist; 'kft export' writes it.")
    try:
        return row.open(path, threads)
    except Exception as error:  # every runtime has errors of its own
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(
            f"'{path}': is no file that {name} can run: {line[:200]}; restore it, or write it "
            "again with 'kft export'."
        ) from error


@dataclass(frozen=True)
class Latency:
    """How long an answer takes, in milliseconds.

    Args:
        median_ms: Half of the answers take no longer.
        p95_ms: 95 per cent of the answers take no longer.
    """

    median_ms: float
    p95_ms: float


def measure(answers: Answers, inputs: Inputs, rounds: int = 50) -> Latency:
    """Measures how long an answer takes.

    Args:
        answers: From `open_artefact`.
        inputs: One batch, given again and again.
        rounds: How often, after a few that do not count; 1 or more.
    """
    assert rounds >= 1, rounds
    seconds = []
    for _ in range(_WARM_UP + rounds):
        start = time.perf_counter()
        answers(inputs)
        seconds.append(time.perf_counter() - start)
    counted = seconds[_WARM_UP:]
    return Latency(1000 * statistics.median(counted), 1000 * float(np.percentile(counted, 95)))


@dataclass(frozen=True)
class Trial:
    """What a file says of examples, and how fast.

    Args:
        artefact: The file.
        said: Of every example.
        one: Latency of one example.
        eight: Latency of eight examples at once.
    """

    artefact: Artefact
    said: NDArray[Any]
    one: Latency
    eight: Latency


def try_out(artefact: Artefact, answers: Answers, inputs: Inputs, rounds: int = 50) -> Trial:
    """Lets a file answer examples, eight at a time, and measures it.

    Args:
        artefact: From `write`.
        answers: From `open_artefact`, in this process or another.
        inputs: One example or more.
        rounds: Of each measurement.
    """
    count = _count(inputs)
    batches = (np.arange(start, min(start + _BATCH, count)) for start in range(0, count, _BATCH))
    said = np.concatenate([answers(_take(inputs, rows)) for rows in batches])
    return Trial(
        artefact,
        said,
        measure(answers, _take(inputs, np.zeros(1, np.int64)), rounds),
        measure(answers, _take(inputs, np.arange(_BATCH) % count), rounds),
    )


def table(
    trials: Sequence[Trial],
    expected: NDArray[Any],
    task: str,
    outputs: Outputs,
    labels: NDArray[Any] | None = None,
    places: NDArray[np.bool_] | None = None,
) -> list[dict[str, Any]]:
    """Compares files with the Keras model that they were written of.

    Args:
        trials: Of the same examples.
        expected: What the model returns of them.
        task: A key of `TASKS`.
        outputs: What the model's outputs stand for.
        labels: What is true, as in a split; None where it is not known, or of every word.
        places: Of a model of words, `(n, length)`: which of them count.

    Returns:
        A row per file: `format`, `quantize`, `size_mib`, `latency_ms_1` and `latency_ms_8`
        (medians), `agreement` (the share of examples for which both decide the same; None for
        numbers), the task's headline figure, such as `accuracy`, and `float_accuracy` of the model,
        both None without labels, and `largest_difference` of a probability or number.
    """
    from kerastune_ft.tasks import TASKS

    headline = TASKS[task].headline
    of_model = _score(expected, task, outputs, labels)
    rows = []
    for trial in trials:
        said = trial.said
        pair = (said, expected) if places is None else (said[places], expected[places])
        rows.append(
            {
                "format": trial.artefact.format,
                "quantize": trial.artefact.quantize,
                "size_mib": trial.artefact.bytes / _MIB,
                "latency_ms_1": trial.one.median_ms,
                "latency_ms_8": trial.eight.median_ms,
                "agreement": agreement(*pair, task, outputs),
                headline: _score(said, task, outputs, labels),
                f"float_{headline}": of_model,
                "largest_difference": float(np.abs(pair[0] - pair[1]).max()),
            }
        )
    return rows


def agreement(
    said: NDArray[Any], expected: NDArray[Any], task: str, outputs: Outputs
) -> float | None:
    """Returns the share of examples, or places, for which the same is decided.

    Args:
        said: By a file, `(n, outputs)`.
        expected: By the model, likewise.
        task: A key of `TASKS`.
        outputs: What the model's outputs stand for.

    Returns:
        The share; None for numbers.
    """
    from kerastune_ft.tasks import TASKS

    if TASKS[task].labels == "numbers":
        return None
    return float(same(said, expected, task, outputs).mean())


def same(
    said: NDArray[Any], expected: NDArray[Any], task: str, outputs: Outputs
) -> NDArray[np.bool_]:
    """Returns of each example, or place, whether the same class or the same labels are decided.

    Args:
        said: As for `agreement`.
        expected: As for `agreement`.
        task: One that has classes or labels.
        outputs: As for `agreement`.
    """
    from kerastune_ft.tasks import TASKS

    if TASKS[task].labels == "classes":
        limits = np.asarray(outputs.thresholds or (0.5,) * said.shape[-1])
        return np.asarray(((said >= limits) == (expected >= limits)).all(axis=-1))
    return np.asarray(said.argmax(axis=-1) == expected.argmax(axis=-1))


def _score(
    said: NDArray[Any], task: str, outputs: Outputs, labels: NDArray[Any] | None
) -> float | None:
    """Returns the figure that stands for a task, as `scores.json` has it."""
    from kerastune_ft.evaluation import EVALUATORS
    from kerastune_ft.tasks import TASKS

    if labels is None or EVALUATORS[task].places:
        return None
    scores = EVALUATORS[task].score(np.asarray(labels), np.asarray(said, "float64"), outputs)
    found = scores[TASKS[task].headline]
    return None if found is None else float(found)


def _remarks(name: str, made: Made, changed: bool) -> tuple[str, ...]:
    """Returns what a user should know of a file."""
    found = []
    if changed:
        found.append("computes in float32, with LoRA merged, unlike the model it comes from")
    if made.batch is not None:
        found.append("takes one example at a time: the runtime cannot resize it")
    if made.float_operations:
        found.append(f"computed in float32: {', '.join(made.float_operations)}")
    return tuple(f"{name}: {remark}." for remark in found)


def _row(name: str) -> Format:
    if name not in FORMATS:
        raise ExportError(
            f"format '{name}' is unknown{did_you_mean(name, FORMATS) or ';'} expected "
            f"{', '.join(FORMATS)}."
        )
    return FORMATS[name]


def _check_installed(row: Format) -> None:
    if row.missing:
        several = len(row.missing) > 1
        raise ExportError(
            f"{row.name}: needs the package{'s' * several} {', '.join(row.missing)}, which "
            f"{'are' if several else 'is'} not installed; "
            f"'pip install \"kerastune_ft[{row.extra}]\"' installs all that formats need."
        )


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _count(inputs: Inputs) -> int:
    return len(next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs)


def _take(inputs: Inputs, rows: NDArray[np.int64]) -> Inputs:
    """Returns some of the examples."""
    if isinstance(inputs, Mapping):
        return {name: array[rows] for name, array in inputs.items()}
    return inputs[rows]
