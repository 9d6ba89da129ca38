"""Compares what fine-tuning costs on each backbone of the shipped recipes, relative to the first.

    python benchmarks/backbones.py                          # every shipped image recipe
    python benchmarks/backbones.py mobilenet:backbone.image_size=224 resnet50 --rounds 5

Every network is built as its recipe says (side, head, stages) with random weights, which cost as
much as real ones, and trained on noise: one timing per round, each in a process of its own, the
recipes in turn, so that a machine that slows down slows all of them. Printed are medians over the
rounds: pictures per second in the first and the last stage as ratios to the first recipe's, and
the peak memory of the process. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

PICTURES = 32
"""Per batch; every recipe is timed with the same."""

RECIPES = (
    "mobilenet:backbone.image_size=224",  # the recipe's own side is that of digits
    "efficientnet_b0",
    "resnet50",
    "vgg16",
    "inception_v3",
    "inception_resnet_v2",
)


def measure(name: str, batches: int) -> dict[str, float]:
    """Builds one recipe's network and times its first and its last stage.

    Args:
        name: Of a shipped recipe; overrides follow after colons.
        batches: Timed per stage, after one that is not.

    Returns:
        `first` and `last` in pictures per second, `memory` in MB.
    """
    import keras
    import numpy as np

    from kerastune_ft import models, recipe

    name, *overrides = name.split(":")
    read = recipe.load(recipe.packaged()[name], overrides)
    keras.utils.set_random_seed(0)
    model = models.image_classifier(
        read.backbone.name,
        10,
        weights="none",
        image_size=read.backbone.side,
        pooling=read.task.pooling,
        hidden=read.task.hidden,
    )
    noise = np.random.default_rng(0)
    x = noise.uniform(0, 255, (PICTURES, *read.backbone.side, 3)).astype("float32")
    y = noise.integers(0, 10, PICTURES)
    speeds = {}
    for key, stage in (("first", read.train.stages[0]), ("last", read.train.stages[-1])):
        models.unfreeze(model, stage.trainable_blocks, batch_norm=stage.batch_norm)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        optimizer = keras.optimizers.AdamW(1e-5)
        optimizer.build(model.trainable_variables)
        model.compile(optimizer, loss)
        model.train_on_batch(x, y)
        began = time.perf_counter()
        for _ in range(batches):
            model.train_on_batch(x, y)
        speeds[key] = batches * PICTURES / (time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**speeds, "memory": peak}


def main() -> None:
    """Parses the arguments, measures in turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--json", type=Path, help="also write the medians to this file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(chosen.one, chosen.batches)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in chosen.recipes}
    for _ in range(chosen.rounds):
        for name in chosen.recipes:
            command = [sys.executable, __file__, "--one", name, "--batches", str(chosen.batches)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[name].append(json.loads(output.splitlines()[-1]))
    medians = {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        for name, rows in found.items()
    }
    base = medians[chosen.recipes[0]]
    print(f"{'recipe':<38}{'first stage':>12}{'last stage':>12}{'memory MB':>11}")
    for name, row in medians.items():
        ratios = (row[key] / base[key] for key in ("first", "last"))
        first, last = (f"{ratio:.2f}" for ratio in ratios)
        print(f"{name:<38}{first:>12}{last:>12}{row['memory']:>11.0f}")
    if chosen.json:
        chosen.json.write_text(json.dumps(medians, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
