"""Cross-validation: folds that are fair, runs that go on, and averages that are the averages."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import time
from typing import Any

import keras
import numpy as np
import pytest
import test_text_tasks
from conftest import write_photos
from test_cli import ENVIRONMENT, KFT, kft, refused, rows_of

from kerastune_ft import data, ensembles, evaluation, folds, predictions
from kerastune_ft import recipe as recipes
from kerastune_ft.data import folding, images, splitting
from kerastune_ft.data.labels import LABELS
from kerastune_ft.errors import DataError, RecipeError, RunError
from kerastune_ft.runs import Run

RNG = np.random.default_rng(0)


# who is in which fold


def draws(count=30):
    """Label sets of random sizes and shares, each with a number of folds and a seed."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        count = int(rng.integers(2, 8))
        classes = int(rng.integers(2, 12))
        n = int(rng.integers(40, 400))
        yield rng, count, classes, n, seed


def validated(strata, parts, folds_, seed, **how):
    """Returns the fold that validates each example, 0 for those of the test split."""
    found = np.zeros(len(parts), int)
    for fold in range(1, folds_ + 1):
        made = folding.divide(strata, parts, folds=folds_, fold=fold, seed=seed, **how)
        again = folding.divide(strata, parts, folds=folds_, fold=fold, seed=seed, **how)
        assert np.array_equal(made, again)
        assert np.array_equal(made == "test", parts == "test")
        assert not (found[made == "validation"]).any()  # once
        found[made == "validation"] = fold
    assert ((found > 0) == (parts != "test")).all()
    return found


def test_every_class_is_spread_over_the_folds_to_the_example():
    for rng, count, classes, n, seed in draws():
        labels = np.sort(rng.integers(0, classes, n))
        labels = np.concatenate([labels, np.repeat(np.arange(classes), 3)]).astype(np.int32)
        parts = splitting.split(labels, validation=0.2, test=0.2, seed=seed)
        found = validated(labels, parts, count, seed, class_names=[f"{i}" for i in range(classes)])
        sizes = np.bincount(found[found > 0], minlength=count + 1)[1:]
        assert np.ptp(sizes) <= 1
        for number in range(classes):
            per_fold = np.bincount(found[(labels == number) & (found > 0)], minlength=count + 1)
            assert np.ptp(per_fold[1:]) <= 1


def test_sets_of_classes_are_spread_almost_as_evenly():
    worst = 0.0
    for rng, count, classes, n, seed in draws(12):
        present = rng.random((n, classes)) < rng.uniform(0.03, 0.5, classes)
        present[: 3 * classes] |= np.tile(np.eye(classes, dtype=bool), (3, 1))
        parts = splitting.split(present, validation=0.1, test=0.1, seed=seed)
        found = validated(present, parts, count, seed, class_names=[f"{i}" for i in range(classes)])
        sizes = np.bincount(found[found > 0], minlength=count + 1)[1:]
        assert np.ptp(sizes) <= 1
        for column in present.T:
            here = np.bincount(found[column & (found > 0)], minlength=count + 1)[1:]
            assert (here > 0).sum() > 1
            worst = max(worst, float(np.abs(here - here.mean()).max()))
    assert worst < 2.5


def test_large_groups_do_not_keep_a_class_to_one_fold():
    freed = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        groups = rng.integers(0, 20, 60)
        present = np.zeros((60, 15), bool)
        for column in present.T:
            column[rng.choice(60, 3, replace=False)] = True
        found = folding.numbers(present, folds=3, seed=seed, groups=groups)
        raw = folding._whole(present, np.unique(groups, return_inverse=True)[1], 3, seed)
        bound = [
            sum(len(set(numbers[c])) < 2 and len(set(groups[c])) > 1 for c in present.T)
            for numbers in (raw, found)
        ]
        assert bound[1] == 0
        assert all(len(set(found[groups == group])) == 1 for group in groups)
        freed += bound[0]
    assert freed


def test_numbers_are_spread_by_size():
    for rng, count, _, n, seed in draws(10):
        numbers = rng.lognormal(0, 1, (n, 1))
        strata = LABELS["numbers"].strata(numbers)
        parts = splitting.split(strata, validation=0.2, test=0.2, seed=seed)
        found = validated(strata, parts, count, seed)
        for bin_ in np.unique(strata):
            here = np.bincount(found[(strata == bin_) & (found > 0)], minlength=count + 1)[1:]
            assert np.ptp(here) <= 1


@pytest.mark.parametrize("several", [False, True])
def test_groups_stay_whole_and_every_fold_gets_its_share(several):
    for rng, count, classes, n, seed in draws(12):
        groups = [f"patient {i}" for i in np.sort(rng.integers(0, 12 * count, n))]
        labels = rng.integers(0, classes, n)
        strata = np.eye(classes, dtype=bool)[labels] if several else labels
        parts = splitting.split(strata, validation=0.1, test=0.1, seed=seed, groups=groups)
        found = validated(strata, parts, count, seed, groups=groups)
        where = {}
        for group, fold in zip(groups, found, strict=True):
            assert where.setdefault(group, fold) == fold
        sizes = np.bincount(found[found > 0], minlength=count + 1)[1:]
        assert sizes.min() > 0.5 * sizes.mean()
        assert sizes.max() < 1.6 * sizes.mean()


def test_without_stratification_folds_are_as_large_and_other_seeds_cut_otherwise():
    labels = RNG.integers(0, 3, 101)
    parts = np.full(101, "train", "U10")
    one = validated(labels, parts, 4, 1, stratify=False)
    assert np.ptp(np.bincount(one)[1:]) <= 1
    assert not np.array_equal(one, validated(labels, parts, 4, 2, stratify=False))
    assert not np.array_equal(validated(labels, parts, 4, 1), validated(labels, parts, 4, 2))


def test_what_cannot_be_cut_into_folds_is_said():
    parts = np.full(6, "train", "U10")
    labels = np.array([0, 0, 0, 0, 0, 1])
    names = ("cat", "dog")
    with pytest.raises(DataError, match=r"fewer than 2 examples that are not test: 'dog'; when"):
        folding.divide(labels, parts, folds=2, fold=1, class_names=names)
    with pytest.raises(DataError, match="6 examples that are not test are too few for 7 folds"):
        folding.divide(labels, parts, folds=7, fold=1)
    with pytest.raises(DataError, match="2 groups that are not test are too few for 3 folds"):
        folding.divide(labels, parts, folds=3, fold=1, groups=list("aaabbb"))
    labels = np.array([0, 0, 0, 0, 1, 1])
    with pytest.raises(DataError, match=r"all in one fold.*: 'dog'; such a class needs two groups"):
        folding.divide(labels, parts, folds=2, fold=1, groups=list("abcdee"), class_names=names)
    labels = np.zeros(100, int)
    labels[[7, 50]] = 1
    messages = []
    for seed in range(10):
        try:
            folding.divide(
                labels, np.full(100, "train", "U10"), folds=2, fold=1, seed=seed,
                stratify=False, class_names=names,
            )  # fmt: skip
        except DataError as error:
            messages.append(str(error))
    assert messages
    assert all("set data.split.stratify=true" in message for message in messages)


def test_an_official_validation_split_is_cut_anew_and_the_test_split_stays():
    labels = np.tile(np.arange(3), 20)
    parts = np.asarray((["train"] * 30 + ["validation"] * 18 + ["test"] * 12), "U10")
    found = validated(labels, parts, 3, 0)
    assert set(found[parts == "validation"]) == {1, 2, 3}
    assert not found[parts == "test"].any()


def test_the_test_split_is_that_without_folds(photos):
    choice = make_recipe(photos, None).data
    plain = data.load(choice)
    for fold in (1, 2, 3):
        split = choice.split.model_copy(update={"folds": 3, "fold": fold})
        found = data.load(choice.model_copy(update={"split": split}))
        assert found.test.names == plain.test.names
        assert len(found.validation) in (9, 9)


# averages


def test_probabilities_of_mean_logits_are_mean_probabilities():
    raw = [RNG.normal(0, 30, (50, 4)).astype("float32") for _ in range(5)]
    raw[0][0] = [800, -800, 0, 0]
    raw[1][0] = [-800, 800, 0, 0]
    mean = np.mean([ensembles.probabilities(each) for each in raw], axis=0)
    found = ensembles.probabilities(ensembles.mean_logits(raw))
    np.testing.assert_allclose(found, mean, rtol=1e-12, atol=1e-300)
    mean = np.mean([ensembles.label_probabilities(each) for each in raw], axis=0)
    logits = ensembles.mean_label_logits(raw)
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(ensembles.label_probabilities(logits), mean, rtol=1e-12)
    np.testing.assert_allclose(
        ensembles.mean_numbers(raw), np.mean(np.float64(raw), axis=0), rtol=1e-12
    )


def test_words_that_a_model_does_not_see_are_left_to_the_others():
    one, other = RNG.normal(0, 2, (2, 3, 4))
    one[1], one[2], other[2] = np.nan, np.nan, np.nan
    (found,) = ensembles.mean_word_logits([[one], [other]])
    both = [ensembles.probabilities(each[:1]) for each in (one, other)]
    np.testing.assert_allclose(ensembles.probabilities(found[:1]), np.mean(both, axis=0))
    np.testing.assert_allclose(
        ensembles.probabilities(found[1:2]), ensembles.probabilities(other[1:2])
    )
    assert np.isnan(found[2]).all()


def test_writing_tasks_have_no_average_and_folds_are_refused():
    writing = {name for name, row in evaluation.EVALUATORS.items() if row.average is None}
    assert writing == {"text_to_text", "text_generation"}
    with pytest.raises(RecipeError, match=r"text_to_text writes texts, which cannot be averaged"):
        recipes.from_mapping(
            {
                "task": {"name": "text_to_text"},
                "backbone": {"name": "t5", "weights": "none"},
                "data": {"source": "jsonl", "path": "a.jsonl"},
                "train": {"folds": 3},
            }
        )


# a run


def make_recipe(photos, weights_file, count=1, **train):
    return recipes.from_mapping(
        {
            "backbone": {
                "name": "mobilenet",
                "weights": "none" if weights_file is None else str(weights_file),
                "image_size": 32,
                "alpha": 0.25,
            },
            "data": {
                "source": "image_folder",
                "path": str(photos),
                "batch_size": 8,
                "augment": "none",
                "split": {"validation": 0.25, "test": 0.25},
            },
            "train": {
                "folds": count,
                "stages": [{"trainable_blocks": 1, "epochs": 2, "learning_rate": 1e-2}],
                "checkpoint": {"every_steps": 2, "every_seconds": None, "keep": 2},
                "early_stopping": None,
                "tensorboard": False,
                **train,
            },
        }
    )


@pytest.fixture(scope="module")
def beginning(tmp_path_factory, weights_file):
    """A folder with photos and a recipe of three folds."""
    folder = tmp_path_factory.mktemp("folds")
    photos = write_photos(folder / "photos")
    (folder / "my.yaml").write_text(recipes.dump(make_recipe(photos, weights_file, 3)))
    return folder


@pytest.fixture(scope="module")
def setting(beginning):
    """The same folder, with the run that nothing interrupted."""
    folder = beginning
    done = subprocess.run(
        [*KFT, "fit", "my.yaml", "--name", "whole"],
        env=ENVIRONMENT, cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for said in ("fold 1 of 3", "fold 3 of 3", "out of fold accuracy", "each alone on test"):
        assert said in done.stdout
    return folder


@pytest.fixture(scope="module")
def whole(setting):
    return Run.open(setting / "runs" / "whole")


@pytest.mark.slow
def test_a_cross_validated_run_leaves_its_documents_and_a_run_per_fold(whole):
    assert {path.name for path in whole.path.iterdir()} == {
        "recipe.yaml", "environment.json", "data.json", "splits.csv", "scores.json", "status.json",
        "predictions.csv", "out_of_fold.csv", "confusion_matrix.png", "folds",
    }  # fmt: skip
    assert whole.state == "finished"
    assert sorted(path.name for path in whole.folds_path.iterdir()) == ["1", "2", "3"]
    held_out = [row["name"] for row in rows_of(whole.splits_path) if row["split"] == "test"]
    said = [row["path"] for row in rows_of(whole.predictions_path)]
    assert sorted(said) == sorted(held_out)
    assert len(said) == 9
    seen = rows_of(whole.out_of_fold_path)
    assert len(seen) == len({row["path"] for row in seen}) == 27
    for fold in "123":
        assert recipes.load(whole.fold(fold).recipe_path).data.split.fold == int(fold)
        mine = {row["name"] for row in rows_of(whole.fold(fold).splits_path)
                if row["split"] == "validation"}  # fmt: skip
        assert mine == {row["path"] for row in seen if row["fold"] == fold}
        tests = [r["name"] for r in rows_of(whole.fold(fold).splits_path) if r["split"] == "test"]
        assert sorted(tests) == sorted(held_out)


def pixels(folder, rows):
    paths = [folder / "photos" / row["path"] for row in rows]
    return np.stack([images.decode_file(path, (32, 32), "crop") for path in paths])


def softmax(logits):
    return np.asarray(keras.ops.softmax(np.float64(logits)))


@pytest.mark.slow
def test_the_test_score_is_that_of_the_mean_probabilities_by_hand(setting, whole):
    rows = rows_of(whole.predictions_path)
    recipe = recipes.load(whole.recipe_path)
    pictures = np.stack(
        [
            images.decode_file(setting / "photos" / row["path"], (32, 32), recipe.data.resize)
            for row in rows
        ]
    )
    models = [keras.models.load_model(whole.fold(n).model_path) for n in (1, 2, 3)]
    shares = [softmax(model.predict(pictures, verbose=0)) for model in models]
    assert np.abs(shares[0] - shares[1]).max() > 1e-3
    mean = np.mean(shares, axis=0)
    names = whole.read_json("data")["class_names"]
    said = np.array([[float(row[f"p:{name}"]) for name in names] for row in rows])
    np.testing.assert_allclose(said, mean, atol=2e-6)
    true = np.array([names.index(row["true"]) for row in rows])
    scores = whole.read_json("scores")["test"]
    assert scores["accuracy"] == pytest.approx((mean.argmax(axis=1) == true).mean())
    log_loss = -np.log(mean[np.arange(len(true)), true]).mean()
    assert scores["loss"] == pytest.approx(log_loss, rel=1e-4)


@pytest.mark.slow
def test_the_scores_have_mean_and_spread_of_the_folds_and_every_example_once(whole):
    scores = whole.read_json("scores")
    each = [whole.fold(n).read_json("scores") for n in (1, 2, 3)]
    for part in ("validation", "test"):
        for name in ("accuracy", "loss"):
            values = [row[part][name] for row in each]
            found = scores["folds"][part][name]
            assert found["each"] == values
            assert found["mean"] == pytest.approx(np.mean(values))
            assert found["std"] == pytest.approx(np.std(values, ddof=1))
    # All folds have 9 examples, so that the mean over folds is the mean over examples.
    for name in ("accuracy", "loss"):
        mean = scores["folds"]["validation"][name]["mean"]
        assert scores["validation"][name] == pytest.approx(mean, rel=1e-4)
    assert scores["validation"]["examples"] == 27
    assert scores["training"]["epochs"] == 6


@pytest.mark.slow
def test_evaluate_and_predict_ask_all_folds(setting, whole):
    scores = whole.read_json("scores")["test"]
    done = kft("evaluate", whole.path)
    assert done.exit_code == 0, done.output
    assert f"accuracy {scores['accuracy']:.4f}" in done.output
    assert f"loss {scores['loss']:.4f}" in done.output
    done = kft("evaluate", whole.path, "--data", setting / "photos")
    assert done.exit_code == 0, done.output
    assert "36 examples" in done.output
    rows = rows_of(whole.predictions_path)
    paths = [setting / "photos" / row["path"] for row in rows]
    found = list(predictions.predict(whole, paths))
    assert list(found[0]) == ["path", "predicted", "probability", "p:blue", "p:green", "p:red",
                              "error"]  # fmt: skip
    for ours, row in zip(found, rows, strict=True):
        assert ours["predicted"] == row["predicted"]
        assert ours["p:red"] == pytest.approx(float(row["p:red"]), abs=2e-6)


@pytest.mark.slow
def test_it_is_one_row_of_the_list_of_runs(setting, whole):
    done = kft("ls", "runs", "--runs-dir", setting / "runs", "--json")
    (row,) = [row for row in json.loads(done.output) if row["name"] == "whole"]
    assert row["state"] == "finished"
    assert row["score"] == pytest.approx(whole.read_json("scores")["test"]["accuracy"], abs=1e-4)
    assert row["epochs"] == 6


@pytest.mark.slow
def test_a_fold_can_be_a_backbone_and_the_whole_cannot(setting, whole):
    said = refused(
        "fit", setting / "my.yaml", "train.folds=1", f"backbone.weights={whole.path}",
        "--runs-dir", setting / "other",
    )  # fmt: skip
    assert f"such as '{whole.path}/folds/1'" in said
    with pytest.raises(RunError, match="has no model of its own, but one for every fold"):
        predictions.load_model(whole)


@pytest.mark.slow
def test_a_finished_one_is_not_resumed_and_another_recipe_not_taken_for_it(setting, whole):
    before = whole.path.joinpath("scores.json").stat().st_mtime_ns
    done = kft("resume", whole.path)
    assert done.exit_code == 0, done.output
    assert "nothing to resume" in done.output
    assert whole.path.joinpath("scores.json").stat().st_mtime_ns == before
    said = refused(
        "fit", setting / "my.yaml", "train.folds=4", "--name", "whole", "--resume",
        "--runs-dir", setting / "runs",
    )  # fmt: skip
    assert "train.folds differ" in said


def test_plan_says_how_many_trainings(beginning):
    done = kft("plan", beginning / "my.yaml")
    assert done.exit_code == 0, done.output
    assert "3 trainings, each validated on another fold" in done.output
    assert "18 train, 9 validation, 9 test" in done.output


@pytest.mark.slow
def test_rates_are_tried_on_the_first_fold(setting, tmp_path):
    done = kft("lr-find", setting / "my.yaml", "--steps", "10", "--output", tmp_path)
    assert done.exit_code == 0, done.output
    assert "18 train, 9 validation, 9 test" in done.output


def test_nothing_is_left_behind_where_a_class_is_too_rare(beginning, tmp_path):
    photos = write_photos(tmp_path / "photos")
    for path in sorted((photos / "red").iterdir())[1:]:
        path.unlink()
    said = refused(
        "fit", beginning / "my.yaml", f"data.path={photos}", "--runs-dir", tmp_path / "runs"
    )
    assert "fewer than 2 examples that are not test: 'red'" in said
    assert list((tmp_path / "runs").iterdir()) == []


# other tasks


@pytest.mark.slow
@pytest.mark.parametrize(
    "task", ["text_multilabel", "text_regression", "text_classification", "token_classification"]
)
def test_every_task_is_averaged_over_its_folds(tmp_path, task):
    path = test_text_tasks.write(tmp_path / "a.jsonl", task)
    recipe = test_text_tasks.make_recipe(path, task, train={"folds": 2})
    run = folds.fit(recipe, runs_dir=tmp_path / "runs", name="one")
    scores = run.read_json("scores")
    _, split, found = predictions.evaluate(run)
    assert split.name == "test"
    assert found.scores == scores["test"]
    assert scores["validation"]["examples"] + scores["test"]["examples"] == 96
    rows = rows_of(run.predictions_path)
    each = [rows_of(run.fold(number).predictions_path) for number in (1, 2)]
    figures = [key for key in rows[0] if key.startswith(("p:", "predicted:"))]
    assert figures or task == "token_classification"
    for row, one, other in zip(rows, *each, strict=True):
        assert row["text"] == one["text"] == other["text"]
        for key in figures:
            mean = (float(one[key]) + float(other[key])) / 2
            assert float(row[key]) == pytest.approx(mean, rel=1e-4, abs=2e-6)
    if task == "text_multilabel":
        seen = rows_of(run.out_of_fold_path)
        record = run.read_json("thresholds")["classes"]
        for name in run.read_json("data")["class_names"]:
            true = np.array([name in row["true"].split("; ") for row in seen])
            shares = np.array([float(row[f"p:{name}"]) for row in seen])
            expected = evaluation.best_threshold(true, shares)
            assert record[name]["threshold"] == pytest.approx(expected, abs=2e-6)
            assert scores["test"]["per_class"][name]["threshold"] == record[name]["threshold"]
    said = list(predictions.predict(run, [path]))
    assert len(said) == 96
    assert not any(row["error"] for row in said)
    if figures:
        by_text = {row["text"]: row for row in rows}
        asked = [row for row in said if row["text"] in by_text]
        assert len(asked) >= len(by_text)
        for row in asked:
            for key in figures:
                assert row[key] == pytest.approx(
                    float(by_text[row["text"]][key]), rel=1e-3, abs=1e-5
                )


@pytest.mark.slow
def test_without_a_test_split_every_example_is_scored_out_of_fold(tmp_path):
    path = test_text_tasks.write(tmp_path / "a.jsonl", "text_multilabel", n=48)
    settings = {"train": {"folds": 2}, "data": {"split": {"test": 0, "validation": 0}}}
    recipe = test_text_tasks.make_recipe(path, "text_multilabel", epochs=1, **settings)
    run = folds.fit(recipe, runs_dir=tmp_path / "runs", name="one")
    scores = run.read_json("scores")
    assert "test" not in scores
    assert scores["validation"]["examples"] == 48
    _, split, found = predictions.evaluate(run)
    assert split.name == "validation"
    assert found.scores == scores["validation"]


# going on


def comparable(run):
    """Returns what two runs of one recipe must have in common, times left out."""
    found: dict[str, Any] = {
        name: (run.path / name).read_bytes()
        for name in ("predictions.csv", "out_of_fold.csv", "splits.csv", "recipe.yaml")
    }
    scores = run.read_json("scores")
    scores["training"].pop("seconds")
    found["scores"] = scores
    for number in (1, 2, 3):
        model = keras.models.load_model(run.fold(number).model_path)
        found[f"weights {number}"] = b"".join(w.tobytes() for w in model.get_weights())
        with run.fold(number).history_path.open() as file:
            found[f"history {number}"] = [
                {k: v for k, v in row.items() if k not in ("seconds", "examples_per_second")}
                for row in csv.DictReader(file)
            ]
    return found


def start(folder, name, *more):
    command = [*KFT, "fit", "my.yaml", "--name", name, *more]
    return subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def wait_for(process, *paths):
    deadline = time.monotonic() + 120
    while not all(path.parent.is_dir() and list(path.parent.glob(path.name)) for path in paths):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_interrupted_in_the_second_fold_it_goes_on_there(setting, whole):
    process = start(setting, "signal")
    run = Run(setting / "runs" / "signal")
    wait_for(process, run.fold(2).checkpoints_path / "step-*")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "'kft resume runs/signal' goes on" in output
    assert (run.state, run.fold(1).state, run.fold(2).state) == (
        "interrupted", "finished", "interrupted",
    )  # fmt: skip
    trained = run.fold(1).model_path.stat().st_mtime_ns
    with pytest.raises(RunError, match="fold 2 is not finished; 'kft resume"):
        predictions.evaluate(run)
    done = subprocess.run(
        [*KFT, "resume", "runs/signal"],
        env=ENVIRONMENT, cwd=setting, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fold 1 of 3" not in done.stdout
    assert run.fold(1).model_path.stat().st_mtime_ns == trained
    assert comparable(run) == comparable(whole)


@pytest.mark.slow
def test_killed_again_and_again_it_ends_as_if_it_had_not_been(setting, whole):
    rng = random.Random(0)
    run = Run(setting / "runs" / "killed")
    kills = 0
    while True:
        process = start(setting, "killed", "--resume")
        if kills < 8:
            time.sleep(rng.uniform(4, 16))
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
        output, _ = process.communicate(timeout=300)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, output
    assert kills > 2
    assert comparable(run) == comparable(whole)
