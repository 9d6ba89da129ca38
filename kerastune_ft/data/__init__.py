"""Turns what a recipe says about data into train, validation and test splits.

    splits = load(recipe.data)
    splits.train.content, splits.train.labels        # for images.dataset
    splits.record()                                   # data.json

Importing this package does not import TensorFlow.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from kerastune_ft.data import splitting
from kerastune_ft.data.sources import SOURCES
from kerastune_ft.data.tables import Content, Finding, Table, because, first_few, natural
from kerastune_ft.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from kerastune_ft.recipe import Data


@dataclass(frozen=True)
class Split:
    """One part of the data; may be empty.

    Args:
        name: `train`, `validation` or `test`.
        names: Unique names of the examples.
        labels: Class numbers, `int32 (n,)`.
        content: The pictures, in the order of `names`.
        findings: What was odd about them, where they were read on their own by `load_all`.
    """

    name: str
    names: tuple[str, ...]
    labels: NDArray[np.int32]
    content: Content
    findings: tuple[Finding, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Splits:
    """A data set, divided.

    Args:
        train: Never empty, and has every class.
        validation: Empty if no share was asked for.
        test: As `validation`.
        class_names: In the order of the label numbers: the label contract.
        findings: What was odd about the data.
        fingerprint: sha256 of who is in which split with which label.
        source: The source's name.
        path: What it read.
        found: Examples there were before some were left out.
    """

    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    findings: tuple[Finding, ...]
    fingerprint: str
    source: str
    path: str
    found: int

    @property
    def all(self) -> tuple[Split, Split, Split]:
        """Train, validation, test."""
        return self.train, self.validation, self.test

    def class_weights(
        self, how: Literal["balanced"] | Mapping[str, float] | None
    ) -> NDArray[np.float32] | None:
        """Returns the weight of each class in the loss; see the function `class_weights`."""
        return class_weights(self.train.labels, self.class_names, how)

    def record(self) -> dict[str, Any]:
        """Returns what `data.json` says; all names of every finding included."""
        kept = sum(len(split) for split in self.all)
        return {
            "source": self.source,
            "path": self.path,
            "examples": {"found": self.found, "kept": kept, "left_out": self.found - kept},
            "class_names": list(self.class_names),
            "class_names_sha256": label_contract(self.class_names),
            "splits": {
                split.name: {
                    "examples": len(split),
                    "per_class": dict(zip(self.class_names, self._counts(split), strict=True)),
                }
                for split in self.all
            },
            "split_fingerprint": self.fingerprint,
            "findings": [
                {
                    "kind": finding.kind,
                    "severity": finding.severity,
                    "message": finding.message,
                    "count": finding.count,
                    "names": list(finding.names),
                }
                for finding in self.findings
            ],
        }

    def write(self, path: Path) -> None:
        """Writes `splits.csv`, sorted by name."""
        splitting.write_splits(path, *_columns(self.all, self.class_names))

    def _counts(self, split: Split) -> list[int]:
        return [int(n) for n in np.bincount(split.labels, minlength=len(self.class_names))]


def load(data: Data, *, log: Callable[[str], None] | None = None) -> Splits:
    """Reads and divides the data that a recipe names.

    Args:
        data: The recipe's `data` section.
        log: Receives a line per thing worth knowing while it goes on.

    Raises:
        DataError: If there is nothing to train on, or something is wrong under `on_error: stop`.
    """
    say = log or (lambda line: None)
    say(f"reading {data.source} {data.path}")
    table: Table = SOURCES[data.source](data)
    _check_classes(data, table)
    number = {name: i for i, name in enumerate(table.class_names)}
    labels = np.asarray([number[label] for label in table.labels], np.int32)
    parts = splitting.split(
        labels,
        validation=data.split.validation,
        test=data.split.test,
        stratify=data.split.stratify,
        seed=data.split.seed,
        official=table.official,
    )
    _check(data, table.class_names, labels, parts)
    findings = (*table.findings, *splitting.absences(labels, parts, table.class_names))
    made = {}
    for name in ("train", "validation", "test"):
        rows = np.flatnonzero(parts == name)
        made[name] = Split(
            name, tuple(table.names[row] for row in rows), labels[rows], table.content.take(rows)
        )
    for finding in findings:
        say(f"{finding.severity}: {finding.message}")
    say(
        f"{len(labels):,} pictures of {len(number)} classes: {len(made['train']):,} train, "
        f"{len(made['validation']):,} validation, {len(made['test']):,} test"
    )
    columns = _columns(tuple(made.values()), table.class_names)
    return Splits(
        **made,
        class_names=table.class_names,
        findings=findings,
        fingerprint=splitting.fingerprint(*columns),
        source=data.source,
        path=data.path,
        found=table.found,
    )


def load_all(data: Data, class_names: Sequence[str]) -> Split:
    """Reads data to score a trained model on.

    Args:
        data: A `data` section; its `split` is not used.
        class_names: The model's, in their order. The data may lack some.

    Returns:
        Everything, as a split named `all`; of data that comes with splits, its test split, or
        its validation split if that is all there is: the rest may have been trained on.

    Raises:
        DataError: If the data has a class that the model does not know.
    """
    table: Table = SOURCES[data.source](data)
    unknown = sorted(set(table.labels) - set(class_names), key=natural)
    if unknown:
        raise DataError(
            f"{data.path}: classes that the model does not know: {first_few(unknown)}; "
            f"it knows {first_few(class_names, 20)}."
        )
    number = {name: i for i, name in enumerate(class_names)}
    labels = np.asarray([number[label] for label in table.labels], np.int32)
    name, rows = "all", np.arange(len(labels))
    for part in ("test", "validation"):
        if table.official and part in table.official:
            name, rows = part, np.flatnonzero(np.asarray(table.official) == part)
            break
    names = tuple(table.names[i] for i in rows)
    return Split(name, names, labels[rows], table.content.take(rows), table.findings)


def class_weights(
    labels: NDArray[np.int32],
    class_names: Sequence[str],
    how: Literal["balanced"] | Mapping[str, float] | None,
) -> NDArray[np.float32] | None:
    """Returns the weight of each class in the loss, `float32 (classes,)`, or None.

    Args:
        labels: Class numbers of the training examples.
        class_names: In the order of the numbers.
        how: `balanced`: scikit-learn's rule, n / (classes * examples of the class). A mapping:
            weights by class name; a class it does not name weighs 1.

    Raises:
        DataError: If the mapping names a class that the data lacks.
    """
    if how is None:
        return None
    weights = np.ones(len(class_names), np.float32)
    if how == "balanced":
        counts = np.bincount(labels, minlength=len(class_names))
        present = counts > 0
        weights[present] = len(labels) / (present.sum() * counts[present])
        return weights
    for name, weight in how.items():
        if name not in class_names:
            raise DataError(
                f"train.class_weight: no class '{name}'{did_you_mean(name, class_names) or ';'} "
                f"the classes are {first_few(class_names, 20)}."
            )
        weights[list(class_names).index(name)] = weight
    return weights


def label_contract(class_names: Sequence[str]) -> str:
    """Returns the sha256 of the class names in their order."""
    return hashlib.sha256(json.dumps(list(class_names)).encode()).hexdigest()


def _check_classes(data: Data, table: Table) -> None:
    present = set(table.labels)
    if len(present) < 2:
        raise DataError(
            f"{data.path}: all pictures are of one class, '{table.labels[0]}'{because(table)}; "
            "a classifier needs at least two."
        )
    trained = present
    if table.official is not None:
        pairs = zip(table.labels, table.official, strict=True)
        trained = {label for label, part in pairs if part == "train"}
    unseen = sorted(present - trained, key=natural)
    if unseen:
        raise DataError(
            f"{data.path}: classes in validation or test that the training split lacks: "
            f"{first_few(unseen)}{because(table)}; every class needs pictures to train on."
        )
    empty = [name for name in table.class_names if name not in present]
    if empty:
        raise DataError(
            f"{data.path}: classes without any picture: {first_few(empty)}{because(table)}."
        )


def _check(
    data: Data, class_names: Sequence[str], labels: NDArray[np.int32], parts: NDArray[np.str_]
) -> None:
    training = set(labels[parts == "train"].tolist())
    untrained = [name for i, name in enumerate(class_names) if i not in training]
    if untrained:
        raise DataError(
            f"{data.path}: no training example of {first_few(untrained)} is left after splitting; "
            "set data.split.stratify=true, or add pictures of it."
        )
    for name in ("validation", "test"):
        if getattr(data.split, name) > 0 and not (parts == name).any():
            raise DataError(
                f"{data.path}: {len(labels):,} pictures of {len(class_names)} classes are too few "
                f"for a {name} split; set data.split.{name}=0, or add pictures."
            )


def _columns(
    splits: Sequence[Split], class_names: Sequence[str]
) -> tuple[list[str], list[str], list[str]]:
    rows = sorted(
        (name, class_names[label], split.name)
        for split in splits
        for name, label in zip(split.names, split.labels, strict=True)
    )
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]
