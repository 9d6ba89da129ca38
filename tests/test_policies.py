"""What `auto` is settled to, and why."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from kerastune_ft import data, policies, resuming, workflow
from kerastune_ft import recipe as recipes
from kerastune_ft.data.tables import Arrays
from kerastune_ft.recipe import AUGMENTATIONS, TEXT_AUGMENTATIONS

STAGES = {"stages": [{"trainable_blocks": 0, "epochs": 1, "learning_rate": 1e-3}]}


def pictures_recipe(path, weights="none", **data):
    return resuming.resolved(
        recipes.from_mapping(
            {
                "backbone": {
                    "name": "mobilenet", "weights": weights, "image_size": 32, "alpha": 0.25,
                },
                "data": {"path": str(path), "source": "image_folder", "augment": "auto", **data},
                "train": {**STAGES, "early_stopping": None, "tensorboard": False},
            }
        )
    )  # fmt: skip


def write_sided(folder, n=90, names=("left", "right"), sided=True):
    """Writes pictures with a bright bar left or right, or top or bottom."""
    generator = np.random.default_rng(0)
    for number in range(n):
        name = names[number % 2]
        pixels = generator.normal(90, 25, (32, 32, 3))
        half = slice(2, 12) if name == names[0] else slice(20, 30)
        pixels[(slice(None), half) if sided else (half,)] += 120
        (folder / name).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels.clip(0, 255).astype("uint8"))
        image.save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize(("per_class", "name"), [(30, "strong"), (120, "medium"), (1100, "light")])
def test_few_pictures_are_changed_much_and_many_little(tmp_path, per_class, name):
    made = []
    for number in range(2 * per_class):
        made.append((f"{number}.png", "ab"[number % 2], "train"))
        Image.new("RGB", (4, 4), (number % 256, 0, 90)).save(tmp_path / f"{number}.png")
    rows = "\n".join(",".join(row) for row in [("path", "label", "split"), *made])
    (tmp_path / "a.csv").write_text(rows)
    recipe = pictures_recipe(
        tmp_path / "a.csv", source="image_csv", split={"validation": 0, "test": 0}, leakage="warn"
    )
    found, (line,) = policies.chosen(recipe, workflow.read(recipe))
    assert found.data.augment == AUGMENTATIONS[name]
    assert f"pictures: {name}, with {per_class:,} examples of a class" in line
    assert "not measured" in line


def test_tiny_grey_pictures_are_not_mirrored_unseen():
    recipe = pictures_recipe("digits", source="sklearn")
    found, (line,) = policies.chosen(recipe, workflow.read(recipe))
    assert not found.data.augmentation.horizontal_flip
    assert "tiny grey pictures" in line


@pytest.mark.slow
@pytest.mark.parametrize("sided", [True, False])
@pytest.mark.parametrize("validation", [0.5, 0])
def test_mirroring_is_left_out_where_a_probe_sees_that_it_changes_the_label(
    tmp_path, weights_file, sided, validation
):
    folder = write_sided(tmp_path / "p", n=180, sided=sided)
    split = {"validation": validation, "test": 0}
    recipe = pictures_recipe(folder, str(weights_file), split=split)
    splits = workflow.read(recipe)
    model = workflow.build(recipe, splits)
    before = [np.asarray(weight) for weight in model.weights]
    found, (line,) = policies.chosen(recipe, splits, model)
    assert found.data.augmentation.horizontal_flip is (not sided), line
    assert "a probe on frozen features scores" in line
    assert all(np.array_equal(a, b) for a, b in zip(before, model.weights, strict=True))
    again, _ = policies.chosen(recipe, splits, model)
    assert again == found


def write_texts(path, n, words):
    generator = np.random.default_rng(0)
    rows = [
        {"text": f"{i} " + " ".join(generator.choice(["fox", "dog", "sun"], words)),
         "label": "ab"[i % 2]}
        for i in range(n)
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize(
    ("n", "words", "name"),
    [(100, 20, "medium"), (100, 3, "light"), (600, 20, "light"), (600, 3, "none"),
     (3200, 20, "none")],
)  # fmt: skip
def test_few_long_texts_are_changed_most(tmp_path, n, words, name):
    recipe = texts_recipe(write_texts(tmp_path / "a.jsonl", n, words))
    found, (line,) = policies.chosen(recipe, workflow.read(recipe))
    assert found.data.text_augment == TEXT_AUGMENTATIONS[name]
    assert f"texts: {name}" in line


def texts_recipe(path, **data):
    return resuming.resolved(
        recipes.from_mapping(
            {
                "task": {"name": "text_classification"},
                "backbone": {"name": "bert", "weights": "none", "sequence_length": 24},
                "data": {"source": "jsonl", "path": str(path), "text_augment": "auto", **data},
                "train": {
                    "stages": [{"trainable_blocks": -1, "epochs": 1, "learning_rate": 1e-3}],
                    "tensorboard": False,
                },
            }
        )
    )


def test_a_recipe_without_auto_is_left_alone(photos):
    recipe = pictures_recipe(photos, augment="light")
    assert policies.chosen(recipe, workflow.read(recipe)) == (recipe, [])


@pytest.mark.slow
def test_a_run_says_what_auto_was_and_goes_on_with_it(photos, tmp_path):
    recipe = pictures_recipe(photos)
    console = Console(record=True, width=200, file=(tmp_path / "log").open("w"))
    run = workflow.fit(recipe, runs_dir=tmp_path, name="one", console=console)
    assert console.export_text().count("augment  pictures: strong") == 1
    written = recipes.load(run.recipe_path)
    expected, _ = policies.chosen(recipe, workflow.read(recipe))
    assert written.data.augment == expected.data.augment
    # The same recipe, with its auto, means this run.
    run.write_status("running")
    assert resuming.former_run(recipe, tmp_path, "one", "one") == run


@pytest.mark.network
def test_digits_are_not_mirrored_when_real_weights_have_looked_at_them():
    recipe = recipes.from_mapping(
        {
            "backbone": {"name": "mobilenet_v2", "weights": "torchvision", "image_size": 96},
            "data": {"source": "sklearn", "path": "digits", "augment": "auto"},
            "train": STAGES,
        }
    )
    splits = workflow.read(recipe)
    model = workflow.build(recipe, splits)
    found = policies.probe(model, recipe, splits.train, splits.validation, classes=True)
    assert found.tells
    assert found.plain - found.mirrored > 0.05
    chosen, (line,) = policies.chosen(recipe, splits, model)
    assert not chosen.data.augmentation.horizontal_flip
    assert "not mirrored, because a probe" in line


def test_a_class_that_is_too_rare_for_a_probe_is_no_error(tmp_path, weights_file, monkeypatch):
    folder = write_sided(tmp_path / "p", n=120)
    for path in sorted((folder / "right").iterdir())[1:]:
        path.unlink()
    split = {"validation": 0.3, "test": 0}
    recipe = pictures_recipe(folder, str(weights_file), split=split)
    splits = workflow.read(recipe)
    model = workflow.build(recipe, splits)
    monkeypatch.setattr(policies, "_FEWEST_HELD", 10)
    monkeypatch.setattr(policies, "_TRAIN", 6)
    found, (line,) = policies.chosen(recipe, splits, model)
    assert found.data.augmentation.horizontal_flip
    assert "all classes but one are too few to measure it" in line


def test_pictures_for_a_probe_are_drawn_with_every_class_in_its_share():
    labels = np.repeat([0, 1], [90, 10])
    split = data.Split("train", tuple(map(str, range(100))), labels, Arrays(np.zeros((100, 2, 2))))
    for seed in range(20):
        rows = policies._some(split, 20, [seed, 32], classes=True)
        assert len(set(rows.tolist())) == 20 and labels[rows].sum() == 2
    assert sorted(policies._some(split, 200, [0, 32], classes=True)) == list(range(100))
