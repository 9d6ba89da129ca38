"""Reads TensorFlow Datasets: a name, or the folder of a prepared set.

    table = read(data, LABELS["class"])     # data: the recipe's `data` section, source `tfds`

Pictures are kept encoded in memory, up to `MEMORY_LIMIT_BYTES`, and decoded like files. A set that
is not on this machine is downloaded only if its host has an address: tfds itself would try for
minutes before it says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kerastune_ft.backbones.weights import KERAS_HOST, check_reachable
from kerastune_ft.data.labels import LABELS, Label, LabelKind, UnusableLabelError, natural
from kerastune_ft.data.tables import (
    DataChoice,
    Example,
    Findings,
    Table,
    first_few,
    label_columns,
    split_named,
    tabulate,
)
from kerastune_ft.errors import DataError, did_you_mean

MEMORY_LIMIT_BYTES = 4 * 1024**3
_OFFLINE = "image_folder, image_csv, sklearn, and tfds with the path of a prepared folder"


def read(data: DataChoice, kind: LabelKind = LABELS["class"]) -> Table:
    """Reads the train, validation and test splits of a set with one picture and labels of a kind.

    One class is the set's only `ClassLabel`, several are its only sequence of them, numbers are
    the features that `data.label_column` names.
    """
    import tensorflow_datasets

    builder = _builder(data.path)
    features = builder.info.features
    image_key, label_keys = _features(data.path, features, kind, label_columns(data))
    findings = Findings()
    parts = _parts(data.path, builder, findings)
    class_names = list(label_keys)
    if kind.name != "numbers":
        class_names = _class_names(features[label_keys[0]], kind)
    examples: list[Example] = []
    size = 0
    for split, part in parts:
        # One file after the other: the order is that of the set, on every machine.
        rows = builder.as_dataset(
            split=split,
            decoders={image_key: tensorflow_datasets.decode.SkipDecoding()},
            shuffle_files=False,
            read_config=tensorflow_datasets.ReadConfig(
                interleave_cycle_length=1, try_autocache=False
            ),
        )
        for number, row in enumerate(rows.as_numpy_iterator()):
            name = f"{split}/{number:05d}"
            try:
                label = _label(row, label_keys, kind, class_names)
            except UnusableLabelError as error:
                findings.add(error.kind, "fail", error.message, name)
                continue
            picture = bytes(row[image_key])
            size += len(picture)
            if size > MEMORY_LIMIT_BYTES:
                raise _too_much(data.path, size)
            examples.append(Example(name, label, part, picture))
    return tabulate(data, examples, findings, kind=kind, class_names=class_names)


def rows(
    path: str, findings: Findings
) -> tuple[dict[str, list[str]], list[tuple[str, dict[str, Any], str | None]]]:
    """Reads every example of a set without pictures.

    Args:
        path: A name, or the folder of a prepared set.
        findings: Receives the splits that are not read.

    Returns:
        The class names of features that have some, by feature; and per example its place, its
        features and the split it stands for.

    Raises:
        DataError: If the set cannot be had or is too large to keep in memory.
    """
    import tensorflow_datasets

    kinds = tensorflow_datasets.features
    builder = _builder(path)
    features = builder.info.features
    names = {}
    for key, value in features.items():
        inner = value.feature if isinstance(value, kinds.Sequence) else value
        if isinstance(inner, kinds.ClassLabel):
            names[key] = list(inner.names)
    found = []
    for split, part in _parts(path, builder, findings):
        read = tensorflow_datasets.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        stored = builder.as_dataset(split=split, shuffle_files=False, read_config=read)
        for number, row in enumerate(stored.as_numpy_iterator()):
            cells = {key: _plain(value) for key, value in row.items() if key in features}
            found.append((f"{split}/{number:05d}", cells, part))
    return names, found


def _plain(value: Any) -> Any:
    """Returns a feature as text, number or list."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray) and value.ndim:
        return [_plain(item) for item in value.tolist()]
    return value.item() if isinstance(value, np.generic | np.ndarray) else value


def _label(
    row: Mapping[str, Any], keys: Sequence[str], kind: LabelKind, class_names: Sequence[str]
) -> Label:
    if kind.name == "numbers":
        return kind.read([str(row[key]) for key in keys], keys, None)
    numbers = [int(number) for number in np.atleast_1d(row[keys[0]])]
    if not all(0 <= number < len(class_names) for number in numbers):
        raise UnusableLabelError("missing_label", "examples without a label, left out")
    if kind.name == "class":
        return class_names[numbers[0]]
    return tuple(sorted({class_names[number] for number in numbers}, key=natural))


def _builder(path: str) -> Any:
    import tensorflow_datasets

    folder = Path(path).expanduser()
    if folder.is_dir():
        prepared = sorted(folder.rglob("dataset_info.json"))
        if len(prepared) != 1:
            found = first_few(p.parent.relative_to(folder).as_posix() for p in prepared)
            raise DataError(
                f"{folder}: is no prepared TFDS set, "
                + (f"but holds several: {found}" if prepared else "it has no dataset_info.json")
                + "; give the folder of one version, or a TFDS name."
            )
        return tensorflow_datasets.builder_from_directory(str(prepared[0].parent))
    base = path.split("/")[0].split(":")[0]
    known = tensorflow_datasets.list_builders(with_community_datasets=False)
    if base not in known:
        near = did_you_mean(base, known) or ";"
        raise DataError(
            f"data.path: TensorFlow Datasets has no set '{path}' and there is no such "
            f"folder{near} {len(known)} names are listed at "
            "https://www.tensorflow.org/datasets/catalog."
        )
    try:
        builder = tensorflow_datasets.builder(path)
    except (ValueError, tensorflow_datasets.core.registered.DatasetNotFoundError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise DataError(f"data.path: TFDS set '{path}': {first_line}") from error
    if builder.is_prepared():
        return builder
    if not check_reachable(KERAS_HOST):
        raise DataError(
            f"data.path: TFDS set '{path}' is not on this machine (looked in "
            f"{builder.data_dir}) and {KERAS_HOST} cannot be reached. Sources that work without "
            f"it: {_OFFLINE}; or prepare the set elsewhere and give its folder as data.path."
        )
    try:
        builder.download_and_prepare()
    # What goes wrong here is the network's or the publisher's, and of any class.
    except Exception as error:
        raise DataError(
            f"data.path: TFDS set '{path}' could not be downloaded: {type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else ''}. Try again, or "
            f"use a source that works without it: {_OFFLINE}."
        ) from error
    return builder


def _features(
    name: str,
    features: Mapping[str, Any],
    kind: LabelKind = LABELS["class"],
    columns: Sequence[str] = (),
) -> tuple[str, tuple[str, ...]]:
    """Returns the names of the picture's feature and of those of its labels."""
    import tensorflow_datasets

    images = [k for k, v in features.items() if isinstance(v, tensorflow_datasets.features.Image)]
    labels = [k for k, v in features.items() if _fits(v, kind)]
    wanted = {"class": "one ClassLabel", "classes": "one sequence of ClassLabel"}.get(kind.name)
    right = len(labels) == 1
    if kind.name == "numbers":
        wanted = f"the numbers that data.label_column names ({first_few(columns)})"
        right = set(columns) <= set(labels)
        labels = list(columns)
    if len(images) != 1 or not right:
        listed = ", ".join(f"{key}: {type(value).__name__}" for key, value in features.items())
        raise DataError(
            f"data.path: TFDS set '{name}' does not fit the task: expected exactly one Image and "
            f"{wanted}, got {listed}."
        )
    return images[0], tuple(labels)


def _fits(feature: Any, kind: LabelKind) -> bool:
    import tensorflow_datasets

    kinds = tensorflow_datasets.features
    if kind.name == "numbers":
        number = isinstance(feature, kinds.Tensor) and not isinstance(feature, kinds.ClassLabel)
        return number and feature.shape == () and np.issubdtype(feature.np_dtype, np.number)
    if kind.name == "classes":
        return isinstance(feature, kinds.Sequence) and isinstance(feature.feature, kinds.ClassLabel)
    return isinstance(feature, kinds.ClassLabel)


def _class_names(feature: Any, kind: LabelKind) -> list[str]:
    return list(feature.names if kind.name == "class" else feature.feature.names)


def _parts(name: str, builder: Any, findings: Findings) -> list[tuple[str, str | None]]:
    """Returns the set's splits to read, each with the split it stands for here."""
    splits = sorted(builder.info.splits)
    if len(splits) == 1:
        return [(splits[0], None)]
    parts = [(split, split_named(split)) for split in splits]
    taken = [meaning for _, meaning in parts]
    kinds = {split: _beginning(split) for split, meaning in parts if meaning is None}
    for split, kind in kinds.items():
        if kind is not None and kind not in taken and list(kinds.values()).count(kind) == 1:
            message = "splits of the set's own, read as what their names begin with"
            findings.add("split_by_beginning", "note", message, split)
            parts = [(name, kind if name == split else meaning) for name, meaning in parts]
        else:
            findings.add("split_not_read", "note", "splits of the set's own, not read", split)
    known: list[tuple[str, str | None]] = [(split, meaning) for split, meaning in parts if meaning]
    if "train" not in [meaning for _, meaning in known]:
        raise DataError(
            f"data.path: TFDS set '{name}' has no train split; its splits are {first_few(splits)}."
        )
    size = sum(builder.info.splits[split].num_bytes for split, _ in known)
    if size > MEMORY_LIMIT_BYTES:
        raise _too_much(name, size)
    return known


def _beginning(split: str) -> str | None:
    """Returns whether `validation_matched` and the like are for validation or test, or neither."""
    kind = split_named(re.split(r"[^a-z]", split.lower())[0])
    return None if kind == "train" else kind


def _too_much(name: str, size: int) -> DataError:
    return DataError(
        f"data.path: TFDS set '{name}' has over {size / 1024**3:.1f} GiB of pictures; this source "
        f"keeps up to {MEMORY_LIMIT_BYTES / 1024**3:.0f} GiB in memory. Write them to a folder per "
        "class and use image_folder, which reads from disk."
    )
