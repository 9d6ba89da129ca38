"""Compares every strategy at equal epochs: test accuracy and seconds, mean and spread over seeds.

    python -m benchmarks.strategies photos/ --epochs 6 --seeds 3

`photos/` is a folder as the source `image_folder` reads it. Of folders that are divided into
`train`, `validation` and `test`, `--per-class` pictures of each class of `train` are used: small
data sets are what the strategies differ on. Every run is an ordinary one, with MobileNetV2's real
weights and the default settings of its strategy, without early stopping; the last weights count.
Prints a Markdown table; seconds are those of training, relative to `linear_probe`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import keras
from rich.console import Console

from kerastune_ft import recipe as recipes
from kerastune_ft import workflow
from kerastune_ft.strategies import STRATEGIES


def subset(folder: Path, per_class: int, into: Path) -> Path:
    """Returns a folder of links to the first `per_class` training pictures of each class."""
    if not (folder / "train").is_dir():
        return folder
    for part in ("train", "validation", "test"):
        for kind in sorted(path for path in (folder / part).iterdir() if path.is_dir()):
            made = into / part / kind.name
            made.mkdir(parents=True)
            pictures = sorted(kind.iterdir())
            for picture in pictures[:per_class] if part == "train" else pictures:
                (made / picture.name).symlink_to(picture.resolve())
    return into


def once(photos: Path, strategy: str, seed: int, side: int, epochs: int, runs: Path) -> dict:
    """Returns what one run scored."""
    keras.utils.clear_session()
    recipe = recipes.from_mapping(
        {
            "backbone": {"name": "mobilenet_v2", "weights": "torchvision", "image_size": side},
            "data": {"source": "image_folder", "path": str(photos)},
            "train": {
                "seed": seed,
                "strategy": {"name": strategy, "epochs": epochs},
                "early_stopping": None,
                "tensorboard": False,
            },
        }
    )
    run = workflow.fit(
        recipe, runs_dir=runs, name=f"{strategy}-{seed}", console=Console(quiet=True)
    )
    scores = run.read_json("scores")
    return {
        "accuracy": scores["test"]["accuracy"],
        "validation": scores["validation"]["accuracy"],
        "seconds": scores["training"]["seconds"],
        "verdict": scores["training"]["diagnosis"]["verdict"],
    }


def main() -> None:
    """Runs them all and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--per-class", type=int, default=60)
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES))
    parser.add_argument("--log", type=Path, help="A line of JSON for every run.")
    options = parser.parse_args()
    found: dict[str, list[dict]] = {name: [] for name in options.strategies}
    with tempfile.TemporaryDirectory() as scratch:
        photos = subset(options.photos, options.per_class, Path(scratch) / "photos")
        for seed in range(options.seeds):
            for name in options.strategies:
                result = once(
                    photos, name, seed, options.side, options.epochs, Path(scratch) / "runs"
                )
                found[name].append(result)
                line = json.dumps({"strategy": name, "seed": seed, **result})
                print(line, flush=True)
                if options.log:
                    with options.log.open("a") as file:
                        file.write(line + "\n")
    first = statistics.median(r["seconds"] for r in next(iter(found.values())))
    print("| strategy | test accuracy | lowest to highest | training time |")
    print("|---|---|---|---|")
    for name, results in found.items():
        scores = [result["accuracy"] for result in results]
        seconds = statistics.median(result["seconds"] for result in results)
        spread = f"{min(scores):.3f} to {max(scores):.3f}"
        print(f"| `{name}` | {statistics.mean(scores):.3f} | {spread} | {seconds / first:.1f} |")


if __name__ == "__main__":
    main()
