"""Compares every strategy at equal epochs: test accuracy and seconds, mean and spread over seeds.

    python -m benchmarks.strategies photos/ --epochs 6 --seeds 3
    python -m benchmarks.strategies texts/ --texts --epochs 4 --seeds 3

`photos/` is a folder as the source `image_folder` reads it. Of folders that are divided into
`train`, `validation` and `test`, `--per-class` pictures of each class of `train` are used: small
data sets are what the strategies differ on. `texts/` holds `train.csv` and `test.csv` with the
columns `text` and `label`, of which as many texts of each class are taken; the network is MiniLM.
Every run is an ordinary one, with real weights (MobileNetV2's of pictures) and the default settings
of its strategy, without early stopping; the last weights count. Prints a Markdown table; seconds
are those of training, relative to `linear_probe`.
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


def few_texts(folder: Path, per_class: int, into: Path) -> Path:
    """Returns a folder with `per_class` training texts of each class and all test texts."""
    import pandas as pd

    into.mkdir(parents=True)
    for part in ("train", "test"):
        frame = pd.read_csv(folder / f"{part}.csv", dtype=str, keep_default_na=False)
        if part == "train":
            frame = frame.groupby("label").head(per_class)
        frame.to_csv(into / f"{part}.csv", index=False)
    return into


def once(
    data: Path, strategy: str, seed: int, side: int, epochs: int, runs: Path, texts: bool = False
) -> dict:
    """Returns what one run scored."""
    keras.utils.clear_session()
    pictures = {
        "backbone": {"name": "mobilenet_v2", "weights": "torchvision", "image_size": side},
        "data": {"source": "image_folder", "path": str(data), "leakage": "warn"},
    }
    language = {
        "task": {"name": "text_classification", "dropout": 0.1},
        "backbone": {"name": "bert", "weights": "minilm", "sequence_length": 64},
        "data": {"source": "csv", "path": str(data), "leakage": "warn"},
    }
    recipe = recipes.from_mapping(
        {
            **(language if texts else pictures),
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
    parser.add_argument("data", type=Path)
    parser.add_argument("--texts", action="store_true", help="The folder holds texts.")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--per-class", type=int, default=60)
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES))
    parser.add_argument("--log", type=Path, help="A line of JSON for every run.")
    options = parser.parse_args()
    found: dict[str, list[dict]] = {name: [] for name in options.strategies}
    with tempfile.TemporaryDirectory() as scratch:
        make = few_texts if options.texts else subset
        data = make(options.data, options.per_class, Path(scratch) / "data")
        for seed in range(options.seeds):
            for name in options.strategies:
                result = once(
                    data,
                    name,
                    seed,
                    options.side,
                    options.epochs,
                    Path(scratch) / "runs",
                    options.texts,
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
