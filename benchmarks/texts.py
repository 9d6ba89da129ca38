"""The ways that learn texts and are too slow to run whole: a few batches, and what all would take.

The recipe's ways run whole, in `ours`. KerasHub's classifier pads every text to 512 tokens: its
seconds are those of `timed` batches after `warm_up`, times the batches of all epochs. What it would
validate, and its first, traced, batches, are left out.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from benchmarks import text_throughput


def scaled(settings: dict[str, Any]) -> dict[str, Any]:
    """Times a few batches.

    Args:
        settings: `data`, a table with the column `split`; `way`, ours or KerasHub's; `layers` that
            train, from the top, null for all; `warm_up` and `timed` batches; `epochs`.

    Returns:
        `training`, the seconds of so many epochs at this speed, and no other figure of the
        process, which did not run whole.
    """
    texts, labels = read(settings["data"])
    counted = settings["warm_up"], settings["timed"]
    if settings["way"] == "ours":
        assert settings["layers"] is None
        seconds, _ = text_throughput.ours(texts, labels, counted)
    else:
        way, layers = settings["way"], settings["layers"]
        seconds, _ = text_throughput.keras_hub(texts, labels, way, layers, counted)
    batches = math.ceil(len(texts) / text_throughput.BATCH) * settings["epochs"]
    training = seconds / settings["timed"] * batches
    return {"training": training, "whole": None, "processor": None}


def throughput(settings: dict[str, Any]) -> dict[str, Any]:
    """Times KerasHub's classifier: first of the head, then of everything.

    Args:
        settings: `data`; `warm_up` and `timed` batches; `stages`, which of the two are timed.

    Returns:
        `head` and `full`: milliseconds of training per text.
    """
    texts, labels = read(settings["data"])
    counted = settings["warm_up"], settings["timed"]
    found = {}
    for name, layers in (("head", 0), ("full", None)):
        if name not in settings["stages"]:
            continue
        seconds, count = text_throughput.keras_hub(texts, labels, "keras_hub", layers, counted)
        found[name] = seconds / count * 1000
    return found


def read(path: str) -> tuple[list[str], list[int]]:
    """Returns texts and class numbers of the training split."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    names = sorted({row["label"] for row in rows})
    return [row["text"] for row in rows], [names.index(row["label"]) for row in rows]
