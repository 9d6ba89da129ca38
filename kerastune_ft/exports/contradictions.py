"""Finds where an answer contradicts itself, or names other classes than the export's.

    for wrong in contradictions(contract, {"label": ..., "probabilities": ...}): ...   # "" if right

Probabilities are compared with training elsewhere; here what is told beside them is held to them:
a graph, or a server, that has its labels in another order gives itself away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kerastune_ft.data.labels import JOINT
from kerastune_ft.exports.contract import Contract
from kerastune_ft.tasks import TASKS

Row: TypeAlias = Mapping[str, Any]

_CLOSE = 1e-5
"""Probabilities that are nearer count as the same: either may come first, or reach a threshold."""


def contradictions(contract: Contract, said: Mapping[str, NDArray[Any]], count: int) -> list[str]:
    """Returns of each example what is wrong in its answer, "" of nothing.

    Args:
        contract: Of the export.
        said: What a signature returned: of classes or labels all that they have, of other tasks
            anything.
        count: Of examples.
    """
    kind = TASKS[contract.task].labels
    if kind not in _CHECKS:
        return [""] * count
    outputs, check = _CHECKS[kind]
    lacking = [name for name in outputs if name not in said]
    if lacking:
        return [f"there is no output '{lacking[0]}'"] * count
    short = [name for name in outputs if len(said[name]) != count]
    if short:
        return [f"'{short[0]}' is not of {count} examples"] * count
    rows = [{name: said[name][at] for name in outputs} for at in range(count)]
    return [_of_row(row, contract, check) for row in rows]


def text_of(value: Any) -> str:
    """Returns a string of a tensor."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _of_row(row: Row, contract: Contract, check: Callable[[Row, Contract], str]) -> str:
    wanted = (len(contract.classes),)
    for name in ("probabilities", "present"):
        if name in row and np.shape(row[name]) != wanted:
            return f"'{name}' has the shape {np.shape(row[name])}, expected {wanted}"
    return check(row, contract)


def _of_classes(row: Row, contract: Contract) -> str:
    names, shares = contract.classes, row["probabilities"]
    label, at = text_of(row["label"]), int(row["class_id"])
    if label not in names:
        return f"label {label!r} is no class of the run"
    if not 0 <= at < len(names) or names[at] != label:
        return f"label {label!r} has not the class_id {at}"
    if shares.max() - shares[at] > _CLOSE:
        return f"label {label!r} is not the most probable class, {names[int(shares.argmax())]!r}"
    if abs(row["probability"] - shares.max()) > _CLOSE:
        return f"probability {row['probability']:.6g} is not the largest, {shares.max():.6g}"
    return _of_top([text_of(name) for name in row["top_labels"]], row, names)


def _of_top(found: Sequence[str], row: Row, names: Sequence[str]) -> str:
    shares, told = row["probabilities"], np.asarray(row["top_probabilities"])
    if not found or len(set(found)) != len(found) or not set(found) <= set(names):
        return f"top_labels {', '.join(found)} are no classes of the run"
    if told.shape != (len(found),):
        return "top_probabilities are not as many as top_labels"
    if np.abs(told - np.sort(shares)[::-1][: len(told)]).max() > _CLOSE:
        return "top_probabilities are not the largest probabilities"
    own = shares[[names.index(name) for name in found]]
    if np.abs(told - own).max() > _CLOSE:
        return f"top_labels {', '.join(found)} are not the most probable classes in their order"
    return ""


def _of_labels(row: Row, contract: Contract) -> str:
    names, shares = contract.classes, row["probabilities"]
    limits = np.asarray(contract.thresholds or [0.5] * len(names), np.float32)
    present = np.asarray(row["present"], bool)
    for name, share, limit, here in zip(names, shares, limits, present, strict=True):
        if abs(share - limit) > _CLOSE and here != (share >= limit):
            word = "present" if here else "absent"
            return f"{name!r} is {word} at {share:.6g}, its threshold is {limit:.6g}"
    labels = JOINT.join(name for name, here in zip(names, present, strict=True) if here)
    if text_of(row["labels"]) != labels:
        return f"labels {text_of(row['labels'])!r} are not those that are present, {labels!r}"
    return ""


_CHECKS: dict[str, tuple[tuple[str, ...], Callable[[Row, Contract], str]]] = {
    "class": (
        ("probabilities", "label", "class_id", "probability", "top_labels", "top_probabilities"),
        _of_classes,
    ),
    "classes": (("probabilities", "present", "labels"), _of_labels),
}
