"""Whether sets of examples can be told apart, and by what."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from kerastune_ft import data
from kerastune_ft import recipe as recipes
from kerastune_ft.checks import drift
from kerastune_ft.checks.examined import Examined


def drawn(count, width=40, shift=0.0, seed=0):
    return np.random.default_rng(seed).normal(shift, 1, (count, width))


def test_random_divisions_are_not_called_different():
    rng = np.random.default_rng(0)
    alarms, areas = 0, []
    for seed in range(25):
        count = int(rng.integers(60, 300))
        values = drawn(count, width=int(rng.integers(5, 300)), seed=seed)
        values[: count // 3] += 2  # classes, as data have them
        one = rng.random(count) < rng.uniform(0.5, 0.7)
        said = drift.between(values[one], values[~one])
        if said is not None:
            alarms += said.different
            areas.append(said.auc)
    assert len(areas) > 15 and alarms == 0
    assert abs(np.mean(areas) - 0.5) < 0.05


def test_sets_that_differ_are_told_apart_and_the_strangest_come_first():
    one, other = drawn(200), drawn(150, seed=1)
    other[:50] += 0.8
    said = drift.between(one, other)
    assert said.different and said.interval[0] < said.auc < said.interval[1]
    assert np.mean(said.telling < 50) > 0.9
    assert "told apart" in said.verdict and f"{said.auc:.2f}" in said.numbers
    strong = drift.between(one, other + 3)
    assert strong.auc > 0.99 and "nearly always" in strong.verdict
    assert drift.between(one, other[:20]) is None


def test_copies_on_both_sides_do_not_hide_that_sets_are_alike():
    values = drawn(120)
    groups = np.tile(np.arange(120), 2)
    said = drift.between(values, values, groups)
    assert not said.different and said.verdict == "cannot be told apart by more than chance"


def test_figures_of_random_divisions_are_not_called_shifted():
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(100):
        values = {name: rng.lognormal(size=200) for name in "abcdef"}
        one = rng.random(200) < 0.6
        alarms += bool(
            drift.shifted(
                {name: v[one] for name, v in values.items()},
                {name: v[~one] for name, v in values.items()},
            )
        )
    assert alarms <= 3


def test_a_shifted_figure_is_named_with_both_medians():
    rng = np.random.default_rng(0)
    one = {"brightness": rng.normal(100, 20, 300), "colour": rng.normal(50, 10, 300)}
    other = {"brightness": rng.normal(140, 20, 200), "colour": rng.normal(50, 10, 200)}
    [(name, said)] = drift.shifted(one, other)
    assert name == "brightness" and said.startswith("median 13") and "against 98" in said
    # Of very many examples chance explains nothing, but so small a difference does no harm.
    many = {"brightness": rng.normal(100, 20, 50_000)}
    assert not drift.shifted(many, {"brightness": rng.normal(102, 20, 50_000)})


def test_texts_have_figures():
    found = drift.figures(None, ["Go NOW 12", "ok", ""])
    assert found["words"].tolist() == [3, 1, 0]
    assert found["share of capitals"][0] == pytest.approx(4 / 9)
    assert found["share of digits"].tolist() == [pytest.approx(2 / 9), 0, 0]


def test_a_dark_test_split_is_found_by_figures_and_by_features(tmp_path, weights_file):
    rng = np.random.default_rng(0)
    for part, count, light in (("train", 40, 1.0), ("test", 20, 0.4)):
        for label, colour in (("blue", (60, 80, 220)), ("red", (220, 80, 60))):
            folder = tmp_path / part / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.normal(colour, 25, (32, 32, 3)) * light
                path = folder / f"{number}.png"
                Image.fromarray(np.clip(pixels, 0, 255).astype("uint8")).save(path)
    recipe = recipes.from_mapping(
        {
            "backbone": {
                "name": "mobilenet", "weights": str(weights_file), "image_size": 32, "alpha": 0.25,
            },
            "data": {"source": "image_folder", "path": str(tmp_path)},
        }
    )  # fmt: skip
    examined = Examined(recipe, data.survey(recipe.data))
    [simple] = drift.split_figures(examined)
    assert simple.kind == "figure_drift" and "brightness" in simple.names
    [found] = drift.splits(examined)
    assert found.kind == "split_drift" and found.severity == "warn"
    assert all(name.startswith("test/") for name in found.names) and len(found.details) == 20
    assert "training and test can be told apart" in found.message
