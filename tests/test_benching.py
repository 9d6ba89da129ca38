"""`kft bench`: what limits the speed, measured on whole steps; nothing is kept."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from kerastune_ft import benching, data
from kerastune_ft import recipe as recipes
from kerastune_ft.cli import main

PICTURES = (
    "data.source=image_folder",
    "data.augment=light",
    "data.batch_size=8",
    "backbone.image_size=32",
    "backbone.name=mobilenet",
    "backbone.weights=none",
    "backbone.alpha=0.25",
    "train.stages=[{trainable_blocks: 0, epochs: 1, learning_rate: 0.001},"
    " {trainable_blocks: 2, epochs: 1, learning_rate: 0.001}]",
)


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.slow
def test_pictures_are_measured_and_nothing_else_is_written(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = str(Path(__file__).parents[1] / "recipes" / "mobilenet.yaml")
    arguments = ["bench", recipe, f"data.path={photos}", *PICTURES, "--json", "found.json"]
    before = files(tmp_path)
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert files(tmp_path) - before == {tmp_path / "found.json"}
    home = Path(os.environ["KFT_HOME"])
    assert {path.suffix for path in files(home) if path.is_file()} <= {".sqlite"}
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["unit"] == "images"
    assert found["batch_size"] == 8
    assert found["bottleneck"] in ("pipeline", "model")
    assert found["advice"]
    assert [stage["name"] for stage in found["stages"]] == ["1 head", "2 top 2 blocks"]
    rates = [found["pipeline"], found["unchanged"], found["kept"]]
    rates += [stage[key] for stage in found["stages"] for key in ("model", "together")]
    assert min(rates) > 0
    assert "bottleneck" in done.output
    assert "1 head" in done.output


def test_pictures_that_are_drawn_unevenly_are_measured(photos: Path) -> None:
    path = Path(__file__).parents[1] / "recipes" / "mobilenet.yaml"
    recipe = recipes.load(path, [f"data.path={photos}", "data.sampling=balanced", *PICTURES])
    splits = data.load(recipe.data)
    few = benching._few(splits, recipe)
    assert few is not None
    for split in (few, splits.train):
        pictures, labels = next(benching._stream(splits, split, recipe))
        assert len(pictures) == len(labels) == 8


@pytest.mark.slow
def test_texts_are_measured(tmp_path: Path) -> None:
    rows = [{"text": "good film " * (n % 9 + 1), "label": "ab"[n % 2]} for n in range(60)]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    mapping = {
        "task": {"name": "text_classification"},
        "backbone": {"name": "bert", "weights": "none", "sequence_length": 24},
        "data": {
            "source": "jsonl", "path": str(path), "batch_size": 16, "leakage": "warn",
            "split": {"keep_together": "none"},
        },
        "train": {"stages": [{"trainable_blocks": -1, "epochs": 1, "learning_rate": 1e-3}]},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(mapping))
    found = benching.bench(recipes.load(tmp_path / "recipe.yaml"), Console(quiet=True), seconds=0.2)
    assert found.unit == "texts"
    assert found.kept is None
    assert found.unchanged is None
    assert len(found.stages) == 1
    assert min(found.pipeline, found.stages[0].model, found.stages[0].together) > 0
    assert found.record()["bottleneck"] == found.bottleneck


def bench(pipeline: float, model: float, **more: object) -> benching.Bench:
    speed = benching.StageSpeed("a", model, min(pipeline, model))
    made = benching.Bench("images", 32, "cpu", pipeline, None, None, (speed,))
    return dataclasses.replace(made, **more)


def test_the_bottleneck_is_what_is_slower_and_advice_is_about_it() -> None:
    recipe = recipes.load(Path(__file__).parents[1] / "recipes" / "mobilenet.yaml")

    def advice(found: benching.Bench) -> str:
        return "\n".join(benching._advice(found, recipe))

    slow = bench(100, 1000, unchanged=500.0, kept=110.0)
    assert slow.bottleneck == "pipeline"
    assert "data.augment=none, or fewer changes: 5.0 times" in advice(slow)
    assert "data.cache" not in advice(slow)
    assert "data.cache=disk (now auto)" in advice(bench(100, 1000, kept=900.0))
    fast = bench(1000, 100)
    assert fast.bottleneck == "model"
    assert "train.cache" not in advice(fast)
    frozen = (benching.StageSpeed("head", 100, 100, still_blocks=3),)
    assert "train.cache (now auto): the frozen blocks of 'head'" in advice(
        bench(1000, 100, stages=frozen)
    )
    assert "train.precision" in advice(bench(1000, 100, device="gpu"))


def test_a_folder_that_is_not_there_is_named_before_anything_is_read(tmp_path: Path) -> None:
    recipe = str(Path(__file__).parents[1] / "recipes" / "mobilenet.yaml")
    gone = str(tmp_path / "gone" / "a.json")
    done = CliRunner().invoke(main, ["bench", recipe, "--json", gone])
    assert done.exit_code == 2
