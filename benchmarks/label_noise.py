"""Plants wrong labels among real photographs: how many are suspected, and does cleaning help?

    python -m benchmarks.label_noise ../shared/assets/data/clothing10 --seeds 3

The folder is divided into `train`, `validation` and `test`. A tenth of the labels of `train` are
drawn anew among the other classes, once per seed. Prints precision and recall of what
`checks.suspects` names, for every filter of cleanlab, and the test accuracy of one short recipe
(MobileNetV2 with ImageNet weights; the head, then the top blocks if `--blocks` says so; no
augmentation, no early stopping, the last weights count) trained on noisy labels, with suspects left
out, with suspects relabelled, and on the original labels. Validation and test are never touched.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import keras
import numpy as np
from rich.console import Console

from kerastune_ft import data, workflow
from kerastune_ft import recipe as recipes
from kerastune_ft.checks import features, probes, suspects

FILTERS: tuple[suspects.Filter, ...] = get_args(suspects.Filter)
VARIANTS = ("noisy", "dropped", "relabelled", "original")


def recipe_of(folder: Path, options: argparse.Namespace, seed: int) -> recipes.Recipe:
    """Returns the short recipe that all labels are compared by."""
    epochs = max(options.epochs, 1)
    stages = [{"trainable_blocks": 0, "epochs": epochs, "learning_rate": 3e-3}]
    if options.blocks:
        top = {"trainable_blocks": options.blocks, "epochs": epochs, "learning_rate": 3e-4}
        stages.append(top)
    return recipes.from_mapping(
        {
            "task": {"name": "image_classification", "dropout": 0.0},
            "backbone": {
                "name": "mobilenet_v2", "weights": "torchvision", "image_size": options.side,
            },
            "data": {
                "source": "image_folder", "path": str(folder), "augment": "none",
                "leakage": "warn",
            },
            "train": {
                "seed": seed, "stages": stages, "early_stopping": None, "tensorboard": False,
            },
        }
    )  # fmt: skip


def planted(labels: np.ndarray, classes: int, share: float, seed: int) -> np.ndarray:
    """Returns class numbers of which a share is drawn anew, evenly, among the other classes."""
    chance = np.random.default_rng(seed)
    wrong = chance.random(len(labels)) < share
    drawn = (labels + chance.integers(1, classes, len(labels))) % classes
    return np.where(wrong, drawn, labels)


def linked(source: Path, labels: Mapping[str, str], into: Path) -> Path:
    """Returns a folder of links whose training pictures have the labels given, by name."""
    for part in ("validation", "test"):
        (into / part).mkdir(parents=True)
        for kind in (path for path in (source / part).iterdir() if path.is_dir()):
            (into / part / kind.name).symlink_to(kind.resolve())
    for name, label in labels.items():
        (into / "train" / label).mkdir(parents=True, exist_ok=True)
        link = into / "train" / label / name.replace("/", "-")
        link.symlink_to((source / name).resolve())
    return into


def accuracy(recipe: recipes.Recipe, runs: Path) -> float:
    """Returns the test accuracy of a run."""
    keras.utils.clear_session()
    run = workflow.fit(recipe, runs_dir=runs, console=Console(quiet=True))
    return float(run.read_json("scores")["test"]["accuracy"])


def once(options: argparse.Namespace, seed: int, scratch: Path) -> dict[str, object]:
    """Returns what one planting of wrong labels gave."""
    recipe = recipe_of(options.data, options, seed)
    survey = data.survey(recipe.data)
    rows = np.flatnonzero(survey.parts == "train")
    names = survey.table.class_names
    files = [survey.table.names[row] for row in rows]
    found = features.of_survey(recipe, survey, rows=rows)
    groups = probes.together(survey.first[rows])
    original = np.asarray(survey.labels[rows], np.int64)
    noisy = planted(original, len(names), options.share, seed)
    wrong = noisy != original
    scores: dict[str, list[float]] = {}
    for how in FILTERS:
        for margin in (0.0, suspects.MARGIN):
            each = suspects.find(found.values, noisy, groups=groups, filter_by=how, margin=margin)
            hit = wrong[each.rows]
            precision, recall = float(hit.mean()), float(hit.sum() / wrong.sum())
            scores[f"{how}, margin {margin:g}"] = [precision, recall]
    on_clean = suspects.find(found.values, original, groups=groups)
    chosen = suspects.find(found.values, noisy, groups=groups)
    right = chosen.suggested == original[chosen.rows]
    relabelled = noisy.copy()
    relabelled[chosen.rows] = chosen.suggested
    dropped = np.setdiff1d(np.arange(len(rows)), chosen.rows)
    labels = {"noisy": noisy, "dropped": noisy, "relabelled": relabelled, "original": original}
    result: dict[str, object] = {
        "seed": seed,
        "wrong": int(wrong.sum()),
        "suspected": len(chosen),
        "suspected_of_clean": len(on_clean) / len(rows),
        "relabelled_right": float(right[wrong[chosen.rows]].mean()),
        "filters": scores,
    }
    print(json.dumps(result), flush=True)
    for variant in VARIANTS if options.epochs else ():
        kept = dropped if variant == "dropped" else np.arange(len(rows))
        said = {files[i]: names[labels[variant][i]] for i in kept}
        folder = linked(options.data, said, scratch / f"{variant}-{seed}")
        result[variant] = accuracy(recipe_of(folder, options, seed), scratch / "runs")
        print(json.dumps({"seed": seed, variant: result[variant]}), flush=True)
    return result


def main() -> None:
    """Runs them all and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=8, help="Of each stage; 0 trains nothing.")
    parser.add_argument("--blocks", type=int, default=0, help="Top blocks of a second stage.")
    parser.add_argument("--share", type=float, default=0.1)
    options = parser.parse_args()
    options.data = options.data.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        found = [once(options, seed, Path(scratch)) for seed in range(options.seeds)]
    print("| filter | precision | recall |\n|---|---|---|")
    for name in found[0]["filters"]:  # type: ignore[attr-defined]
        pairs = [one["filters"][name] for one in found]  # type: ignore[index]
        precision, recall = (statistics.mean(pair[i] for pair in pairs) for i in (0, 1))
        print(f"| `{name}` | {precision:.3f} | {recall:.3f} |")
    if not options.epochs:
        return
    print("\n| labels | test accuracy | lowest to highest |\n|---|---|---|")
    for variant in VARIANTS:
        scores = [float(one[variant]) for one in found]  # type: ignore[arg-type]
        spread = f"{min(scores):.3f} to {max(scores):.3f}"
        print(f"| {variant} | {statistics.mean(scores):.3f} | {spread} |")


if __name__ == "__main__":
    main()
