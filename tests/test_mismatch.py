"""Data against the pre-training."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import SHARED
from PIL import Image

from kerastune_ft import data
from kerastune_ft import recipe as recipes
from kerastune_ft.backbones.tokenizers import Tokenizer
from kerastune_ft.checks import features, mismatch
from kerastune_ft.checks.examined import Examined
from kerastune_ft.data.advice import ADVICE
from kerastune_ft.errors import WeightsError


def pictures_at(folder, side=(64, 64), *, grey=False, light=1.0):
    rng = np.random.default_rng(0)
    for label in ("one", "two"):
        (folder / label).mkdir(parents=True)
        for number in range(6):
            pixels = rng.uniform(0, 255, (*side, 1 if grey else 3)) * light
            pixels = np.broadcast_to(pixels, (*side, 3)).astype("uint8")
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


def examined_at(folder, **backbone):
    chosen = {"name": "mobilenet_v2", "weights": "torchvision", "image_size": 160, **backbone}
    source = {"source": "image_folder", "path": str(folder)}
    recipe = recipes.from_mapping({"backbone": chosen, "data": source})
    return Examined(recipe, data.survey(recipe.data))


def test_usual_pictures_are_no_mismatch(tmp_path):
    examined = examined_at(pictures_at(tmp_path / "data"))
    assert not list(mismatch.resolution(examined)) and not list(mismatch.colours(examined))


def test_a_side_far_from_that_of_the_weights_is_noted(tmp_path):
    folder = pictures_at(tmp_path / "data")
    [found] = mismatch.resolution(examined_at(folder, image_size=96))
    assert (found.kind, found.severity) == ("resolution_mismatch", "note")
    assert "96 x 96 pixels, and its weights were trained at 224" in found.message
    assert "2.3 times as large" in found.message
    [found] = mismatch.resolution(examined_at(folder, image_size=512))
    assert "2.3 times as small" in found.message


def test_wide_pictures_that_are_squashed_are_warned_of(tmp_path):
    folder = pictures_at(tmp_path / "data", (40, 120))
    [found] = mismatch.resolution(examined_at(folder))
    assert found.kind == "aspect_mismatch" and "squashed 3.0 times" in found.message
    assert not list(mismatch.resolution(examined_at(folder, image_size=[80, 240])))


def test_grey_and_dark_pictures_are_unlike_the_pre_training(tmp_path):
    [found] = mismatch.colours(examined_at(pictures_at(tmp_path / "a", grey=True)))
    assert found.severity == "note" and "100% of the pictures are grey" in found.message
    dark = examined_at(pictures_at(tmp_path / "b", grey=True, light=0.2))
    [found] = mismatch.colours(dark)
    assert found.severity == "warn" and "they are dark (mean 2" in found.message
    assert "contrast is flat" in found.message
    assert not list(mismatch.colours(examined_at(tmp_path / "b", weights="none")))


@pytest.mark.parametrize("row", ["bert", "roberta", "t5"])
def test_words_and_unknown_tokens_are_counted(row):
    tokenizer = Tokenizer.tiny(row, ["the cat sat on a mat"] * 5)
    known = mismatch.words_of(["the cat sat", "a mat"], tokenizer)
    assert known.words == 5 and known.unknown == 0 and not len(known.affected)
    strange = mismatch.words_of(["the cat", "\u4f60\u597d", "", "on a \u4f60"], tokenizer)
    assert strange.words == 2 + 2 + 0 + 3
    if row == "bert":
        assert strange.affected.tolist() == [1, 3] and strange.unknown >= 2


def test_the_gain_is_clear_where_features_know_classes_and_random_ones_do_not():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 100)
    noise = rng.normal(size=(300, 30))
    good = noise + rng.normal(0, 1.5, (3, 30))[labels]
    said = mismatch.transfer(good, noise, labels)
    assert said.clear and said.gain > 0.5 and said.linear.value > 0.95 < said.nearest.value + 0.05
    assert abs(said.random_linear.value - 1 / 3) < 0.1 and said.majority == pytest.approx(1 / 3)
    low, high = said.random_linear.interval
    assert low < said.random_linear.value < high
    assert not mismatch.transfer(noise, noise, labels).clear
    assert not mismatch.transfer(good, good + 0.1 * noise, labels).clear


def test_a_gain_is_reported_with_its_numbers_and_random_weights_have_none(photos, weights_file):
    examined = examined_at(
        photos, name="mobilenet", weights=str(weights_file), image_size=32, alpha=0.25
    )
    [found] = mismatch.transfer_gain(examined)
    assert found.kind in ("transfer_gain", "low_transfer_gain", "easy_classes")
    assert "of 36 examples" in found.message and "95 % intervals" in found.details[0]
    none = examined_at(photos, weights="none")
    assert not list(mismatch.transfer_gain(none))


@pytest.mark.parametrize(
    ("apart", "kind", "severity"),
    [(9.0, "easy_classes", "note"), (0.0, "low_transfer_gain", "warn")],
)
def test_classes_that_random_features_know_are_easy_and_no_fault(
    photos, weights_file, monkeypatch, apart, kind, severity
):
    examined = examined_at(
        photos, name="mobilenet", weights=str(weights_file), image_size=32, alpha=0.25
    )
    labels = examined.survey.labels
    noise = np.random.default_rng(0).normal(size=(len(labels), 8))
    values = noise + apart * np.eye(8)[labels]
    made = features.Features(values.astype("float16"), np.arange(len(labels)))
    for name in ("of_survey", "with_random_weights"):
        monkeypatch.setattr(features, name, lambda *args, **options: made)
    [found] = mismatch.transfer_gain(examined)
    assert (found.kind, found.severity) == (kind, severity)
    assert ("Unfreeze deep" in ADVICE[found.kind].remedy) is (severity == "warn")


def test_weights_that_cannot_be_had_are_said_to_be_missing(photos, tmp_path):
    examined = examined_at(photos, weights=str(tmp_path / "nothing.keras"))
    with pytest.raises(WeightsError, match=r"nothing\.keras"):
        list(mismatch.transfer_gain(examined))


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least", "most_random"), [("flowers5/images", 0.84, 0.6), ("trec6", 0.78, 0.75)]
)
def test_real_data_gain_from_real_weights(name, least, most_random):
    folder = SHARED / "assets/data" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    from kerastune_ft import starters

    overrides = ["backbone.image_size=128"] if "flowers" in name else []
    recipe = starters.recipe_of(folder, overrides)
    modality = "image" if "flowers" in name else "text"
    examined = Examined(recipe, data.survey(recipe.data, "class", modality))
    [found] = mismatch.transfer_gain(examined)
    assert found.kind == "transfer_gain"
    linear, random = (float(found.details[0].split(word)[1][:5]) for word in ("probe ", "weights "))
    assert linear > least and random < most_random
