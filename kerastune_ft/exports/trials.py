"""Judges a file of another format: its answers, its figures, and whether they are good enough.

    found = judged(folder, contract, inputs, named, labels, scale, Limits())
    found.row["latency_ms_1"], found.row["agreement"], found.shortfalls

A file of floats is held to the answers themselves, by `verification`. A quantised one answers
otherwise by design: it is held to what it decides, and to the score that it reaches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerastune_ft import formats
from kerastune_ft.errors import ExportError
from kerastune_ft.exports import elsewhere
from kerastune_ft.exports.contract import Contract
from kerastune_ft.recipe_export import LEAST_AGREEMENT, MOST_LOST
from kerastune_ft.tasks import TASKS, Outputs

NEAR = 0.1
"""Standard deviations of the training examples: two numbers that are nearer count as the same."""

_SHOWN = 5


@dataclass(frozen=True)
class Limits:
    """What is asked of a quantised file.

    Args:
        least_agreement: Share of examples for which it decides as the run's model does: the same
            class, the same labels, or numbers that are `NEAR`.
        most_lost: Of the task's headline score, on the same examples.
    """

    least_agreement: float = LEAST_AGREEMENT
    most_lost: float = MOST_LOST


@dataclass(frozen=True)
class Judged:
    """What a trial found.

    Args:
        said: Of every example, `float64 (n, outputs)`.
        row: Of the table: as `formats.table` has it, with `examples` and, for all tasks, the
            `agreement` that was judged.
        shortfalls: Which limits are missed; () of a file that is not quantised.
    """

    said: NDArray[np.float64]
    row: dict[str, Any]
    shortfalls: tuple[str, ...]


def judged(
    folder: Path,
    contract: Contract,
    inputs: Mapping[str, Any],
    named: Sequence[tuple[str, Any]],
    labels: Sequence[Any],
    scale: NDArray[np.float64],
    limits: Limits,
) -> Judged:
    """Lets a file answer in a fresh process, and judges what it says.

    Figures are of the run's own examples where there are any; of our odd ones otherwise, which
    have no labels.

    Args:
        folder: Of the version.
        contract: Of the version.
        inputs: What the model takes, of all examples.
        named: Of every example the name and what the run's model said.
        labels: What is true of the last ones, which are the run's own.
        scale: What differences of outputs are divided by.
        limits: For a quantised file.

    Raises:
        ExportError: If the file is damaged, or cannot be used in a fresh process.
    """
    assert contract.file is not None
    elsewhere.check_files(folder, contract.file)
    trial = elsewhere.tried(folder, contract.file, inputs)
    said = np.asarray(trial.said, np.float64)
    expected = np.stack([answer for _, answer in named])
    if said.shape != expected.shape:
        raise ExportError(
            f"'{folder}' returns {said.shape}, the run's model {expected.shape}; export again."
        )
    own = slice(len(named) - len(labels), None) if labels else slice(None)
    numbers = TASKS[contract.task].labels == "numbers"
    outputs = Outputs(
        contract.classes,
        mean=(0.0,) * len(scale) if numbers else (),  # of a baseline that the table does not have
        std=tuple(scale) if numbers else (),
        thresholds=contract.thresholds or (),
    )
    (row,) = formats.table(
        [replace(trial, said=said[own])],
        expected[own],
        contract.task,
        outputs,
        np.asarray(labels) if labels else None,
    )
    alike = _alike(said[own], expected[own], contract.task, outputs, scale)
    row |= {"agreement": float(alike.mean()), "examples": len(alike)}
    shortfalls: list[str] = []
    if not contract.exact:
        names = [name for name, _ in named][own]
        shortfalls = list(_shortfalls(row, said, alike, names, contract, limits))
    return Judged(said, row, tuple(shortfalls))


def _alike(
    said: NDArray[Any],
    expected: NDArray[Any],
    task: str,
    outputs: Outputs,
    scale: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Returns of each example whether the same is decided."""
    if TASKS[task].labels == "numbers":
        return np.asarray((np.abs(said - expected) / scale <= NEAR).all(axis=1))
    return np.asarray(formats.same(said, expected, task, outputs))


def _shortfalls(
    row: Mapping[str, Any],
    said: NDArray[Any],
    alike: NDArray[np.bool_],
    names: Sequence[str],
    contract: Contract,
    limits: Limits,
) -> list[str]:
    found = []
    if not np.isfinite(said).all():
        found.append("it answers with what is no number")
    if row["agreement"] < limits.least_agreement:
        others = [name for name, same in zip(names, alike, strict=True) if not same]
        shown = ", ".join(others[:_SHOWN]) + (", ..." if len(others) > _SHOWN else "")
        found.append(
            f"agreement {row['agreement']:.3f} of {len(alike)} examples, at least "
            f"{limits.least_agreement:g} is wanted; it says otherwise of {shown}"
        )
    headline = TASKS[contract.task].headline
    score, whole = row[headline], row[f"float_{headline}"]
    if whole is not None and (score is None or whole - score > limits.most_lost):
        found.append(
            f"{headline} {_shown(score)} instead of {whole:.4f}; at most {limits.most_lost:g} may "
            "be lost"
        )
    return found


def _shown(score: float | None) -> str:
    return "is not defined" if score is None else f"{score:.4f}"
