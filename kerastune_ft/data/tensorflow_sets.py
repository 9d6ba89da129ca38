"""Reads TensorFlow Datasets: a name, or the folder of a prepared set.

    table = read(data)          # data: the recipe's `data` section, source `tfds`

Pictures are kept encoded in memory, up to `MEMORY_LIMIT_BYTES`, and decoded like files. A set that
is not on this machine is downloaded only if its host has an address: tfds itself would try for
minutes before it says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kerastune_ft.backbones.weights import KERAS_HOST, check_reachable
from kerastune_ft.data.tables import (
    DataChoice,
    Example,
    Findings,
    Table,
    first_few,
    split_named,
    tabulate,
)
from kerastune_ft.errors import DataError, did_you_mean

MEMORY_LIMIT_BYTES = 4 * 1024**3
_OFFLINE = "image_folder, image_csv, sklearn, and tfds with the path of a prepared folder"


def read(data: DataChoice) -> Table:
    """Reads the train, validation and test splits of a set with one picture and one label."""
    import tensorflow_datasets

    builder = _builder(data.path)
    image_key, label_key = _features(data.path, builder.info.features)
    findings = Findings()
    parts = _parts(data.path, builder, findings)
    class_names = list(builder.info.features[label_key].names)
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
            name, label = f"{split}/{number:05d}", int(row[label_key])
            if not 0 <= label < len(class_names):
                findings.add("missing_label", "fail", "examples without a label, left out", name)
                continue
            picture = bytes(row[image_key])
            size += len(picture)
            if size > MEMORY_LIMIT_BYTES:
                raise _too_much(data.path, size)
            examples.append(Example(name, class_names[label], part, picture))
    return tabulate(data, examples, findings, class_names=class_names)


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


def _features(name: str, features: Mapping[str, Any]) -> tuple[str, str]:
    import tensorflow_datasets

    kinds = tensorflow_datasets.features
    images = [k for k, v in features.items() if isinstance(v, kinds.Image)]
    labels = [k for k, v in features.items() if isinstance(v, kinds.ClassLabel)]
    if len(images) != 1 or len(labels) != 1:
        listed = ", ".join(f"{key}: {type(value).__name__}" for key, value in features.items())
        raise DataError(
            f"data.path: TFDS set '{name}' is no picture classification: expected exactly one "
            f"Image and one ClassLabel, got {listed}."
        )
    return images[0], labels[0]


def _parts(name: str, builder: Any, findings: Findings) -> list[tuple[str, str | None]]:
    """Returns the set's splits to read, each with the split it stands for here."""
    splits = sorted(builder.info.splits)
    if len(splits) == 1:
        return [(splits[0], None)]
    parts = [(split, split_named(split)) for split in splits]
    for split, meaning in parts:
        if meaning is None:
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


def _too_much(name: str, size: int) -> DataError:
    return DataError(
        f"data.path: TFDS set '{name}' has over {size / 1024**3:.1f} GiB of pictures; this source "
        f"keeps up to {MEMORY_LIMIT_BYTES / 1024**3:.0f} GiB in memory. Write them to a folder per "
        "class and use image_folder, which reads from disk."
    )
