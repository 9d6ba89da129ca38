"""Turns what a recipe says about data into train, validation and test splits.

    splits = load(recipe.data, "class")             # or "classes", "numbers": labels.LABELS
    splits.train.content, splits.train.labels        # for images.dataset
    splits.record()                                   # data.json

Importing this package does not import TensorFlow.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from kerastune_ft.data import cleaning, copies, dividing, leakage, sampling, splitting
from kerastune_ft.data.labels import (
    LABELS,
    Kind,
    LabelKind,
    Labels,
    Target,
    class_counts,
    natural,
    targets,
)
from kerastune_ft.data.sampling import Sampling
from kerastune_ft.data.sources import SOURCES
from kerastune_ft.data.tables import Content, Finding, Table, because, finding, first_few
from kerastune_ft.data.text_sources import SOURCES as TEXT_SOURCES
from kerastune_ft.errors import DataError, did_you_mean
from kerastune_ft.tasks import Modality, Outputs

if TYPE_CHECKING:
    from kerastune_ft.recipe import Data

_LARGEST_BALANCE = 10.0
_LARGEST_STEP = 0.01  # of float32, in standard deviations of a number that is learned


@dataclass(frozen=True)
class Split:
    """One part of the data; may be empty.

    Args:
        name: `train`, `validation` or `test`.
        names: Unique names of the examples.
        labels: Class numbers `int32 (n,)`; of several classes, 0 and 1 `float32 (n, classes)`;
            numbers in their own units, `float64 (n, targets)`; what is to be written, texts
            `(n,)`; or for every word its class, `(n,)` arrays of `int32`.
        content: The pictures or texts, in the order of `names`.
        findings: What was odd about them, where they were read on their own by `load_all`.
        digests: Of the bytes of each picture, `(n,)`, where they are known.
    """

    name: str
    names: tuple[str, ...]
    labels: Labels
    content: Content
    findings: tuple[Finding, ...] = ()
    digests: NDArray[Any] | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Splits:
    """A data set, divided.

    Args:
        kind: Of the labels: a key of `labels.LABELS`.
        train: Never empty, and has every class.
        validation: Empty if no share was asked for.
        test: As `validation`.
        class_names: In the order of the label numbers; of numbers, what they are called. The label
            contract.
        targets: Of numbers, their statistics in the training split; () of classes.
        findings: What was odd about the data.
        fingerprint: sha256 of who is in which split with which label.
        source: The source's name.
        path: What it read.
        found: Examples there were before some were left out.
        removed: What the rules of `data.cleaning` left out.
        relabelled: Examples whose label was replaced, each with the new one.
        contents: sha256 of which example has which content; see `dividing.contents`.
    """

    kind: Kind
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    targets: tuple[Target, ...]
    findings: tuple[Finding, ...]
    fingerprint: str
    source: str
    path: str
    found: int
    removed: tuple[cleaning.Removed, ...] = ()
    relabelled: Mapping[str, str] = field(default_factory=dict)
    contents: str | None = None

    @property
    def all(self) -> tuple[Split, Split, Split]:
        """Train, validation, test."""
        return self.train, self.validation, self.test

    @property
    def outputs(self) -> Outputs:
        """What a model of this data returns."""
        return Outputs(
            self.class_names,
            mean=tuple(target.mean for target in self.targets),
            std=tuple(target.std for target in self.targets),
        )

    def class_weights(
        self, how: Literal["balanced"] | Mapping[str, float] | None
    ) -> NDArray[np.float32] | None:
        """Returns the weight of each class in the loss; see the function `class_weights`."""
        return class_weights(self.train.labels, self.class_names, how)

    def sampling(
        self, how: Literal["natural", "balanced"] | Mapping[str, float]
    ) -> Sampling | None:
        """Returns how epochs of training examples are drawn; see `sampling.of`."""
        return sampling.of(self.train.labels, self.class_names, how)

    def record(self) -> dict[str, Any]:
        """Returns what `data.json` says; all names of every finding included."""
        kept = sum(len(split) for split in self.all)
        return {
            "source": self.source,
            "path": self.path,
            "examples": {
                "found": self.found,
                "kept": kept,
                "left_out": self.found - kept - len(self.removed),
                "removed": len(self.removed),
            },
            "removed": [row._asdict() for row in self.removed],
            **({"relabelled": dict(self.relabelled)} if self.relabelled else {}),
            "labels": self.kind,
            "class_names": list(self.class_names),
            "class_names_sha256": label_contract(self.class_names),
            **self._target_records(),
            "splits": {split.name: self._split_record(split) for split in self.all},
            "split_fingerprint": self.fingerprint,
            "content_fingerprint": self.contents,
            "findings": [finding.record() for finding in self.findings],
        }

    def write(self, path: Path) -> None:
        """Writes `splits.csv`, sorted by name."""
        splitting.write_splits(path, *_columns(self.all, LABELS[self.kind], self.class_names))

    def _target_records(self) -> dict[str, Any]:
        if not self.targets:
            return {}
        pairs = zip(self.class_names, self.targets, strict=True)
        return {"targets": {name: target.record() for name, target in pairs}}

    def _split_record(self, split: Split) -> dict[str, Any]:
        if self.kind in ("numbers", "text"):
            return {"examples": len(split)}
        counts = (int(n) for n in class_counts(split.labels, len(self.class_names)))
        return {
            "examples": len(split),
            "per_class": dict(zip(self.class_names, counts, strict=True)),
        }


def load(
    data: Data,
    kind: Kind = "class",
    modality: Modality = "image",
    *,
    log: Callable[[str], None] | None = None,
) -> Splits:
    """Reads and divides the data that a recipe names.

    Args:
        data: The recipe's `data` section.
        kind: Of the labels that the task learns: a key of `labels.LABELS`.
        modality: What the examples are: `image` or `text`.
        log: Receives a line per thing worth knowing while it goes on.

    Raises:
        DataError: If there is nothing to train on, the source has no labels of that kind, or
            something is wrong under `on_error: stop`.
    """
    say = log or (lambda line: None)
    say(f"reading {data.source} {data.path}")
    made = of_survey(data, survey(data, kind, modality))
    for said in made.findings:
        say(f"{said.severity}: {said.message}")
    counts = ", ".join(f"{len(split):,} {split.name}" for split in made.all)
    outputs = "targets" if kind == "numbers" else "classes"
    say(f"{sum(map(len, made.all)):,} examples, {len(made.class_names)} {outputs}: {counts}")
    return made


def of_survey(data: Data, found: Survey) -> Splits:
    """Returns surveyed data as splits to train on.

    Raises:
        DataError: If it cannot be trained on, or not without deceiving oneself: a class that
            training lacks, examples on both sides of the splits, and so on.
    """
    kind, table, labels, parts = found.kind, found.table, found.labels, found.parts
    how = LABELS[kind]
    if kind not in ("numbers", "text"):
        _check_classes(data, table, how)
    _check_sizes(data, table, parts)
    findings = found.findings
    training = labels[parts == "train"]
    if kind == "numbers":
        _check_numbers(data, table, training)
    elif kind != "text":
        _check_trained(data, table, training)
        alike = cleaning.spellings(class_counts_of(table)) if kind == "class" else {}
        if alike:
            shown = [f"'{name}' and '{better}'" for name, better in alike.items()]
            message = "class names that differ in spelling alone, learned as different classes"
            findings += (finding("label_spelling", "warn", message, alike, details=shown),)
        if kind != "tags":
            findings += splitting.absences(labels, parts, table.class_names)
            findings += _everywhere(training, table.class_names)
    leakage.refuse(data, findings)
    made = {}
    for name in ("train", "validation", "test"):
        rows = np.flatnonzero(parts == name)
        made[name] = Split(
            name,
            tuple(table.names[row] for row in rows),
            labels[rows],
            table.content.take(rows),
            digests=None if table.looks is None else table.looks.digest[rows],
        )
    columns = _columns(tuple(made.values()), how, table.class_names)
    return Splits(
        **made,
        kind=kind,
        class_names=table.class_names,
        targets=targets(training) if kind == "numbers" else (),
        findings=findings,
        fingerprint=splitting.fingerprint(*columns),
        source=data.source,
        path=data.path,
        found=table.found,
        removed=found.removed,
        relabelled=found.relabelled,
        contents=dividing.contents(table),
    )


@dataclass(frozen=True)
class Survey:
    """Data as it was read and divided, before anything is refused.

    Args:
        kind: Of the labels.
        table: Every example that can be used.
        labels: Encoded, in the order of the table; see `labels.LABELS`.
        parts: The split of each example, `(n,)`: `train`, `validation` or `test`.
        findings: Of reading, cleaning and dividing.
        removed: What cleaning left out.
        first: For each example the row of the first one of the same content, `(n,)`.
        near: Pairs of rows that are nearly the same, `(k, 2)`. Of texts they are looked for only
            where the recipe keeps them together.
        relabelled: Examples whose label was replaced after dividing, each with the new one.
    """

    kind: Kind
    table: Table
    labels: Labels
    parts: NDArray[np.str_]
    findings: tuple[Finding, ...]
    removed: tuple[cleaning.Removed, ...]
    first: NDArray[np.int64]
    near: NDArray[np.int64]
    relabelled: Mapping[str, str] = field(default_factory=dict)

    def without(self, gone: Mapping[int, tuple[str, str]]) -> Survey:
        """Returns the survey without some examples.

        Args:
            gone: Rows, each with the rule that leaves it out and why.
        """
        if not gone:
            return self
        removed = [cleaning.Removed(self.table.names[row], *gone[row]) for row in sorted(gone)]
        keep = np.setdiff1d(np.arange(len(self.parts)), list(gone))
        table = self.table.take(keep)
        return replace(
            self,
            table=table,
            labels=self.labels[keep],
            parts=self.parts[keep],
            findings=(*self.findings, *cleaning.said_of(removed)),
            removed=(*self.removed, *removed),
            first=copies.identities(table),
            near=copies.among(keep, self.near),
        )


def survey(data: Data, kind: Kind = "class", modality: Modality = "image") -> Survey:
    """Reads and divides data as `load` does, but refuses nothing that can be read.

    Args:
        data: The recipe's `data` section.
        kind: Of the labels that the task learns: a key of `labels.LABELS`.
        modality: What the examples are: `image` or `text`.

    Raises:
        DataError: If nothing can be read, or cannot be divided as asked.
    """
    how = LABELS[kind]
    table, removed, said = cleaning.clean(_table(data, how, modality), data, how)
    table = dividing.grouped(table, data)
    labels = how.encode(table.labels, table.class_names)
    first = copies.identities(table)
    near = dividing.NO_PAIRS
    if table.looks is not None or data.split.keep_together == "near":
        near = copies.near_pairs(table)
    parts, odd = dividing.divide(data, table, how, labels, first, near)
    found = Survey(kind, table, labels, parts, (*table.findings, *said, *odd), removed, first, near)
    held = [row for row in np.flatnonzero(parts != "train") if table.names[row] in table.guessed]
    why = ("missing_label", "without a label it cannot be scored on")
    found = found.without({int(row): why for row in held})
    if data.leakage == "drop":
        found = found.without(leakage.leaked_rows(found.table, found.parts, found.first))
    leaks = leakage.findings(data, found.table, found.parts, found.first, found.near)
    return replace(found, findings=(*found.findings, *leaks))


def load_all(
    data: Data, class_names: Sequence[str], kind: Kind = "class", modality: Modality = "image"
) -> Split:
    """Reads data to score a trained model on.

    Args:
        data: A `data` section; its `split` is not used.
        class_names: The model's, in their order. The data may lack some classes.
        kind: Of the model's labels: a key of `labels.LABELS`.
        modality: What the examples are: `image` or `text`.

    Returns:
        Everything, as a split named `all`; of data that comes with splits, its test split, or
        its validation split if that is all there is: the rest may have been trained on.

    Raises:
        DataError: If the data has a class that the model does not know.
    """
    how = LABELS[kind]
    if data.cleaning.missing_label == "most_frequent":  # a guess is nothing to score on
        rules = data.cleaning.model_copy(update={"missing_label": "drop"})
        data = data.model_copy(update={"cleaning": rules})
    table = cleaning.mended_table(_table(data, how, modality), data.cleaning, how, class_names)
    present = {name for label in table.labels for name in how.classes(label)}
    unknown = sorted(present - set(class_names), key=natural)
    if unknown:
        raise DataError(
            f"{data.path}: classes that the model does not know: {first_few(unknown)}; "
            f"it knows {first_few(class_names, 20)}."
        )
    labels = how.encode(table.labels, class_names)
    name, rows = "all", np.arange(len(labels))
    for part in ("test", "validation"):
        if table.official and part in table.official:
            name, rows = part, np.flatnonzero(np.asarray(table.official) == part)
            break
    names = tuple(table.names[i] for i in rows)
    return Split(name, names, labels[rows], table.content.take(rows), table.findings)


def _table(data: Data, kind: LabelKind, modality: Modality) -> Table:
    known = TEXT_SOURCES if modality == "text" else SOURCES
    if data.source not in known:
        raise DataError(
            f"data.source: '{data.source}' has no {modality}s; expected {', '.join(known)}."
        )
    return known[data.source](data, kind)


def class_weights(
    labels: Labels,
    class_names: Sequence[str],
    how: Literal["balanced"] | Mapping[str, float] | None,
) -> NDArray[np.float32] | None:
    """Returns the weight of each class in the loss, `float32 (classes,)`, or None.

    Of one class per picture, it is the weight of the class's examples; of several, that of the
    pictures that show the class against those that do not.

    Args:
        labels: Of the training examples: class numbers `(n,)`, or 0 and 1 `(n, classes)`.
        class_names: In the order of the numbers.
        how: `balanced`: scikit-learn's rule, n / (classes * examples of the class); of several
            classes per picture, pictures without the class / pictures with it, but no less than
            0.1 and no more than 10, lest a few pictures rule the loss. A mapping: weights by
            class name; a class it does not name weighs 1.

    Raises:
        DataError: If the mapping names a class that the data lacks.
    """
    if how is None:
        return None
    weights = np.ones(len(class_names), np.float32)
    if how == "balanced":
        counts = class_counts(labels, len(class_names))
        present = counts > 0
        if labels.ndim == 2:
            weights[present] = (len(labels) - counts[present]) / counts[present]
            return weights.clip(1 / _LARGEST_BALANCE, _LARGEST_BALANCE)
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


def outputs_of(record: Mapping[str, Any], kind: Kind) -> Outputs:
    """Returns what a model returns that was trained on data with this `Splits.record()`.

    Raises:
        KeyError, TypeError, ValueError: If the record is damaged.
    """
    names = tuple(str(name) for name in record["class_names"])
    targets = [record["targets"][name] for name in names] if kind == "numbers" else []
    return Outputs(
        names,
        mean=tuple(float(target["mean"]) for target in targets),
        std=tuple(float(target["std"]) for target in targets),
    )


def label_contract(class_names: Sequence[str]) -> str:
    """Returns the sha256 of the class names in their order."""
    return hashlib.sha256(json.dumps(list(class_names)).encode()).hexdigest()


def class_counts_of(table: Table) -> dict[str, int]:
    """Returns how many examples of one class each there are, by name."""
    return dict(Counter(str(label) for label in table.labels))


def _check_classes(data: Data, table: Table, kind: LabelKind) -> None:
    named = [kind.classes(label) for label in table.labels]
    present = {name for names in named for name in names}
    if kind.name == "class" and len(present) < 2:
        raise DataError(
            f"{data.path}: all {table.noun} are of one class, '{table.labels[0]}'{because(table)}; "
            "a classifier needs at least two."
        )
    if not present:
        raise DataError(f"{data.path}: no {table.one} has a class{because(table)}.")
    trained = present
    if table.official is not None:
        pairs = zip(named, table.official, strict=True)
        trained = {name for names, part in pairs if part == "train" for name in names}
    unseen = sorted(present - trained, key=natural)
    if unseen:
        raise DataError(
            f"{data.path}: classes in validation or test that the training split lacks: "
            f"{first_few(unseen)}{because(table)}; every class needs some to train on."
        )
    empty = [name for name in table.class_names if name not in present]
    if empty:
        raise DataError(
            f"{data.path}: classes without any {table.one}: {first_few(empty)}{because(table)}."
        )


def _check_trained(data: Data, table: Table, training: Labels) -> None:
    counts = class_counts(training, len(table.class_names))
    untrained = [name for name, count in zip(table.class_names, counts, strict=True) if not count]
    if untrained:
        # Stratified, or in groups, every class keeps an example if there is one.
        helps = not data.split.stratify and table.groups is None
        remedy = "set data.split.stratify=true, or add" if helps else "add"
        raise DataError(
            f"{data.path}: no training example of {first_few(untrained)} is left after splitting; "
            f"{remedy} examples of it."
        )


def _everywhere(training: Labels, class_names: Sequence[str]) -> tuple[Finding, ...]:
    """Returns a finding if every training picture shows a class: nothing tells it from others."""
    if training.ndim != 2:
        return ()
    names = tuple(name for name, n in zip(class_names, training.min(axis=0), strict=True) if n)
    message = "classes that every training picture shows, which therefore cannot be learned"
    return (finding("class_everywhere", "warn", message, names),) if names else ()


def _check_numbers(data: Data, table: Table, training: Labels) -> None:
    for name, numbers in zip(table.class_names, training.T, strict=True):
        if numbers.min() == numbers.max():
            raise DataError(
                f"{data.path}: column '{name}' is {numbers[0]:g} for every training {table.one}"
                f"{because(table)}; a number that never changes cannot be learned, leave it out "
                "of data.label_column."
            )
        step = float(np.spacing(np.float32(np.abs(numbers).max())))
        if step > numbers.std() * _LARGEST_STEP:
            raise DataError(
                f"{data.path}: column '{name}' has too few digits in float32, which steps by "
                f"{step:g} there, and the standard deviation is {numbers.std():.3g}; subtract a "
                "constant such as its smallest value from it, or scale it if it is tiny."
            )


def _check_sizes(data: Data, table: Table, parts: NDArray[np.str_]) -> None:
    if not (parts == "train").any():
        raise DataError(f"{data.path}: nothing to train on{because(table)}.")
    for name in ("validation", "test") if data.split.folds is None else ("test",):
        if getattr(data.split, name) > 0 and not (parts == name).any():
            raise DataError(
                f"{data.path}: {len(parts):,} {table.noun} are too few for a {name} split"
                f"{because(table)}; set data.split.{name}=0, or add some."
            )


def _columns(
    splits: Sequence[Split], kind: LabelKind, class_names: Sequence[str]
) -> tuple[list[str], list[str], list[str]]:
    rows = sorted(
        (name, text, split.name)
        for split in splits
        for name, text in zip(split.names, kind.texts(split.labels, class_names), strict=True)
    )
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]
