"""Suspected labels and the frozen features they are found by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from PIL import Image
from sklearn.metrics import roc_auc_score

from kerastune_ft import data
from kerastune_ft import recipe as recipes
from kerastune_ft.backbones import weights
from kerastune_ft.checks import features, probes, suspects
from kerastune_ft.stores import Store


def gaussian(classes=4, each=100, width=24, apart=2.0, seed=0):
    """Returns features and labels of classes that overlap a little."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, apart, (classes, width))
    labels = np.repeat(np.arange(classes), each)
    return centres[labels] + rng.normal(size=(len(labels), width)), labels


def planted(labels, share, seed=0):
    rng = np.random.default_rng(seed)
    wrong = rng.random(len(labels)) < share
    classes = labels.max() + 1
    return np.where(
        wrong, (labels + rng.integers(1, classes, len(labels))) % classes, labels
    ), wrong


@pytest.fixture
def recipe(photos, weights_file):
    return recipes.from_mapping(
        {
            "backbone": {
                "name": "mobilenet", "weights": str(weights_file), "image_size": 32, "alpha": 0.25,
            },
            "data": {"source": "image_folder", "path": str(photos)},
        }
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_planted_wrong_labels_are_found_with_the_right_suggestion(seed):
    values, labels = gaussian(seed=seed)
    noisy, wrong = planted(labels, 0.1, seed)
    found = suspects.find(values, noisy)
    hit = wrong[found.rows]
    assert hit.mean() > 0.9 and hit.sum() > 0.7 * wrong.sum()
    assert np.mean(found.suggested[hit] == labels[found.rows[hit]]) > 0.95
    assert np.array_equal(found.given, noisy[found.rows])


def test_labels_of_clean_data_are_hardly_suspected_and_the_worst_come_first():
    values, labels = gaussian(apart=1.0)
    assert len(suspects.find(values, labels)) < 0.03 * len(labels)
    found = suspects.find(values, planted(labels, 0.2)[0])
    assert len(found) and np.all(np.diff(found.confidence) >= 0)
    assert np.all(found.probability - found.confidence >= suspects.MARGIN)


@pytest.mark.parametrize("how", [*suspects.Filter.__args__])
def test_every_filter_finds_most_of_what_was_planted(how):
    values, labels = gaussian()
    noisy, wrong = planted(labels, 0.1)
    found = suspects.find(values, noisy, filter_by=how)
    assert wrong[found.rows].sum() > 0.5 * wrong.sum()


def test_copies_of_a_wrong_label_do_not_vouch_for_each_other():
    values, labels = gaussian(each=40)
    values, labels = np.repeat(values, 6, axis=0), np.repeat(labels, 6)
    groups = np.repeat(np.arange(len(labels) // 6), 6)
    noisy, wrong = planted(labels[::6], 0.1)
    found = suspects.find(values, np.repeat(noisy, 6), groups=groups)
    hit = np.repeat(wrong, 6)[found.rows]
    assert hit.sum() > 0.6 * 6 * wrong.sum() and hit.mean() > 0.8
    vouched = np.repeat(wrong, 6)[suspects.find(values, np.repeat(noisy, 6)).rows]
    assert vouched.sum() < 0.7 * hit.sum()


def test_rare_classes_single_classes_and_no_examples_are_not_judged():
    values, labels = gaussian()
    labels[:2] = 9
    assert not np.isin(suspects.find(values, labels).given, [9]).any()
    assert not np.isin([0, 1], suspects.find(values, labels).rows).any()
    assert len(suspects.find(values, np.zeros(len(values), int))) == 0
    assert suspects.find(values[:0], labels[:0]).judged == 0
    # Copies of one example are no more than one.
    groups = np.arange(len(labels))
    labels[:8], groups[:8] = 9, 0
    assert not np.isin(suspects.find(values, labels, groups=groups).given, [9]).any()


def test_folds_keep_groups_whole_and_classes_in_proportion():
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 4, 500), rng.integers(0, 180, 500)
    fold = probes.folds(labels, groups)
    for group in np.unique(groups):
        assert len(np.unique(fold[groups == group])) == 1
    alone = probes.folds(labels)
    for label in range(4):
        counts = np.bincount(alone[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert np.bincount(alone).max() - np.bincount(alone).min() <= 4
    assert np.array_equal(fold, probes.folds(labels, groups))


def test_what_shares_a_content_or_a_group_is_together():
    found = probes.together(["a", "b", "a", "c", "d"], ["x", "y", "z", "z", "w"])
    assert found[0] == found[2] == found[3] and len({found[0], found[1], found[4]}) == 3
    assert len(set(probes.together(["a", "b"], None).tolist())) == 2
    assert probes.together(["a"], ["b"]).tolist() == [0]


def test_copies_that_differ_in_case_alone_are_judged_by_probes_that_saw_neither(
    tmp_path, monkeypatch
):
    from kerastune_ft.checks import drift, mismatch
    from kerastune_ft.checks.examined import Examined

    lines = [f"{word} {n},{'ab'[n % 2]}" for n in range(40) for word in ("word", "WORD")]
    (tmp_path / "texts.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    recipe = recipes.from_mapping(
        {
            "task": {"name": "text_classification"},
            "backbone": {"name": "bert", "sequence_length": 16},
            "data": {"source": "csv", "path": str(tmp_path / "texts.csv")},
        }
    )
    survey = data.survey(recipe.data, "class", "text")
    values = np.random.default_rng(0).normal(size=(80, 4)).astype(np.float16)
    found = features.Features(values, np.arange(80))
    for name in ("of_survey", "with_random_weights"):
        monkeypatch.setattr(features, name, lambda *args, **options: found)
    asked = []
    real = probes.folds

    def told(labels, groups=None, count=probes.FOLDS):
        asked.append(groups)
        return real(labels, groups, count)

    monkeypatch.setattr(probes, "folds", told)
    monkeypatch.setattr(drift, "_FEWEST", 2)
    examined = Examined(recipe, survey)
    for check in (suspects.check, mismatch.transfer_gain, drift.splits):
        asked.clear()
        list(check(examined))
        assert asked, check
        for groups in asked:  # the default split keeps copies together, too
            assert np.all(np.unique(groups, return_counts=True)[1] == 2), check


def test_reduced_features_keep_what_a_full_probe_sees():
    values, labels = gaussian(classes=3, each=150, width=400, apart=0.3)
    small = probes.reduced(values)
    assert small.shape == (450, 256) and small.dtype == np.float32
    said = probes.out_of_fold(small, labels, probes.folds(labels))
    assert np.allclose(said.sum(axis=1), 1, atol=1e-6)
    assert (said.argmax(axis=1) == labels).mean() > 0.95
    constant = np.ones((40, 400), np.float16)
    assert np.isfinite(probes.reduced(constant)).all()


def test_area_and_interval_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    one, other = rng.normal(0, 1, 300).round(1), rng.normal(0.5, 1, 200).round(1)
    auc, low, high = probes.separability(one, other)
    labels = np.repeat([0, 1], [300, 200])
    assert auc == pytest.approx(roc_auc_score(labels, np.concatenate([one, other])))
    assert low < auc < high and high - low < 0.15
    assert probes.wilson(8, 10) == pytest.approx((0.490, 0.943), abs=1e-3)


def test_features_are_what_the_head_gets(recipe):
    from kerastune_ft import models
    from kerastune_ft.data import images

    survey = data.survey(recipe.data)
    found = features.of_survey(recipe, survey)
    model = models.image_classifier(
        "mobilenet", 3, weights=recipe.backbone.weights, image_size=32, alpha=0.25
    )
    pictures = [images.decode_file(Path(path), (32, 32)) for path in survey.table.content.paths[:5]]
    expected = features.penultimate(model).predict(np.stack(pictures), verbose=0)
    assert found.values.dtype == np.float16 and found.values.shape == (36, 256)
    np.testing.assert_allclose(found.values[:5], expected, rtol=2e-3, atol=2e-3)
    rows = np.asarray([3, 7, 20])
    few = features.of_survey(recipe, survey, rows=rows)
    np.testing.assert_allclose(few.values, found.values[rows], rtol=2e-3, atol=2e-3)
    np.testing.assert_array_equal(few.take(rows[1:]), few.values[1:].astype(np.float32))


@pytest.mark.slow
def test_features_are_kept_and_computed_anew_only_where_they_must(recipe, photos, monkeypatch):
    built = []
    real = features.build
    monkeypatch.setattr(
        features, "build", lambda *args, **options: built.append(1) or real(*args, **options)
    )
    survey = data.survey(recipe.data)
    first = np.array(features.of_survey(recipe, survey).values)
    assert np.array_equal(features.of_survey(recipe, survey).values, first) and len(built) == 1
    [kept] = (weights.home() / "features").glob("*.npy")
    content = kept.read_bytes()
    for damaged in (content[:-40], b"", content[:500] + b"?" + content[501:]):
        kept.write_bytes(damaged)
        assert Store(kept.parent, 10**9).get(kept.stem) is None
        assert not kept.exists()
        kept.write_bytes(damaged)
    np.testing.assert_allclose(features.of_survey(recipe, survey).values, first, rtol=1e-3)
    assert len(built) == 2 and kept.read_bytes()[:128] == content[:128]
    Image.new("RGB", (48, 40), (9, 9, 9)).save(photos / "red" / "00.jpg")
    changed = features.of_survey(recipe, data.survey(recipe.data)).values
    assert len(built) == 3 and not np.allclose(changed[24], first[24], atol=1e-2)
    keys = {
        features._key(recipe.model_copy(update=update), survey.table, survey.table.content, False)
        for update in (
            {},
            {"data": recipe.data.model_copy(update={"resize": "crop"})},
            {"backbone": recipe.backbone.model_copy(update={"image_size": 64})},
            {"backbone": recipe.backbone.model_copy(update={"weights": "none"})},
            {"task": recipe.task.model_copy(update={"pooling": "max"})},
        )
    }
    assert len(keys) == 5


@pytest.mark.slow
def test_only_the_newest_features_are_kept(recipe, monkeypatch):
    survey = data.survey(recipe.data)
    folder = weights.home() / "features"
    kept = {path.name for path in folder.glob("*.npy")}
    features.of_survey(recipe, survey, rows=np.arange(5))
    (size,) = {p.stat().st_size for p in folder.glob("*.npy") if p.name not in kept}
    monkeypatch.setattr(features, "KEPT_BYTES", 2 * size)
    found = [features.of_survey(recipe, survey, rows=np.arange(3 + n, 8 + n)) for n in range(3)]
    assert len(list(folder.glob("*.npy"))) == 2
    assert all(np.isfinite(some.values).all() for some in found)  # mapped files outlive their name


def test_a_cache_that_cannot_be_written_costs_no_more_than_time(recipe, monkeypatch, tmp_path):
    survey = data.survey(recipe.data)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KFT_HOME", str(tmp_path / "file" / "home"))
    found = features.of_survey(recipe, survey, rows=np.arange(6))
    assert np.isfinite(found.values).all() and len(found) == 6


@pytest.mark.slow
def test_random_weights_are_the_same_every_time_and_leave_chance_alone(recipe):
    import random

    survey, rows = data.survey(recipe.data), np.arange(8)
    random.seed(5)
    first = np.array(features.with_random_weights(recipe, survey, rows=rows).values)
    drawn = random.random()
    for path in (weights.home() / "features").glob("*.npy"):
        path.unlink()
    again = features.with_random_weights(recipe, survey, rows=rows).values
    np.testing.assert_allclose(again, first, rtol=1e-2, atol=1e-2)
    random.seed(5)
    assert drawn == random.random()
    assert first.std(axis=0).max() > 0.05  # without statistics all examples look alike
    assert not np.allclose(first, features.of_survey(recipe, survey, rows=rows).values, atol=0.05)


def test_texts_have_features_whatever_their_length(tmp_path):
    lines = [f"{'word ' * (n % 7 + 1)}{n},{'ab'[n % 2]}" for n in range(40)]
    (tmp_path / "texts.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    recipe = recipes.from_mapping(
        {
            "task": {"name": "text_classification"},
            "backbone": {"name": "bert", "weights": "none", "sequence_length": 16},
            "data": {"source": "csv", "path": str(tmp_path / "texts.csv")},
        }
    )
    survey = data.survey(recipe.data, "class", "text")
    found = features.of_survey(recipe, survey)
    few = features.build(recipe, survey.table.content)
    inputs = few.preprocessor(survey.table.content.first[:3])
    np.testing.assert_allclose(
        found.values[:3], few.predict(inputs, verbose=0), rtol=5e-3, atol=5e-3
    )


def test_a_sample_keeps_the_shares_of_parts_and_classes(recipe):
    survey = data.survey(recipe.data)
    rows = features.sample(survey, 18)
    assert len(set(rows.tolist())) == 18 and np.all(np.diff(rows) > 0)
    assert np.abs(np.bincount(survey.labels[rows]) - 6).max() <= 1
    assert np.array_equal(features.sample(survey, 99), np.arange(36))


def test_a_picture_in_the_wrong_folder_is_named(recipe, photos):
    from kerastune_ft.checks.examined import Examined

    (photos / "green" / "05.jpg").rename(photos / "red" / "99.jpg")
    [found] = suspects.check(Examined(recipe, data.survey(recipe.data)))
    assert found.kind == "suspected_label" and "red/99.jpg" in found.names
    where = found.names.index("red/99.jpg")
    assert found.details[where].startswith("labelled red, looks like green (0.")


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision", "recall", "clean"),
    [("clothing10", 0.65, 0.65, 0.06), ("flowers5/images", 0.8, 0.65, 0.03)],
)
def test_wrong_labels_of_real_photographs_are_found(name, precision, recall, clean):
    folder = SHARED / "assets/data" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    recipe = recipes.from_mapping(
        {
            "backbone": {"name": "mobilenet_v2", "weights": "torchvision", "image_size": 128},
            "data": {"source": "image_folder", "path": str(folder)},
        }
    )
    survey = data.survey(recipe.data)
    values = features.of_survey(recipe, survey).values
    noisy, wrong = planted(survey.labels, 0.1)
    found = suspects.find(values, noisy)
    assert wrong[found.rows].mean() > precision
    assert wrong[found.rows].sum() > recall * wrong.sum()
    assert len(suspects.find(values, survey.labels)) < clean * len(noisy)
