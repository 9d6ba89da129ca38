"""The range test: it finds rates that train, and leaves no trace."""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import fill_batch_norm_statistics
from rich.console import Console

from kerastune_ft import cli, data, models, optimizers, rate_finder, training
from kerastune_ft import recipe as recipes
from kerastune_ft.data import augmentation, images
from kerastune_ft.errors import TrainingError
from kerastune_ft.rate_finder import Curve
from kerastune_ft.runs import Run
from kerastune_ft.tasks import TASKS

ROOT = Path(__file__).parents[1]
HEAD = {"trainable_blocks": 0, "epochs": 1, "learning_rate": 1e-2}


def make_recipe(photos, stages=(HEAD,), dropout=0.2, data_=(), **train):
    return recipes.from_mapping(
        {
            "task": {"dropout": dropout},
            "backbone": {"name": "mobilenet", "weights": "none", "image_size": 32, "alpha": 0.25},
            "data": {
                "source": "image_folder",
                "path": str(photos),
                "batch_size": 9,
                "split": {"validation": 0.25, "test": 0.25},
                **dict(data_),
            },
            "train": {"stages": list(stages), "tensorboard": False, **train},
        }
    )


def small_classifier(classes=3, dropout=0.2):
    keras.utils.set_random_seed(0)
    model = models.image_classifier(
        "mobilenet",
        classes,
        weights="none",
        image_size=32,
        alpha=0.25,
        seed=0,
        dropout=dropout,
    )
    fill_batch_norm_statistics(model)
    return model


def whole_state(model):
    """All that must stay, looked up without the module's own fingerprint."""
    values = [np.array(keras.ops.convert_to_numpy(v)) for v in model.variables]
    values += [np.array(keras.ops.convert_to_numpy(v)) for v in model.optimizer.variables]
    layers = models.layers_of(model)
    numpy_state = np.random.get_state()
    return {
        "values": [value.tobytes() for value in values],
        "trainable": [layer.trainable for layer in layers],
        "variables": [variable.trainable for variable in model.variables],
        "held": [id(vars(layer).get("call")) for layer in layers],
        "compiled": {key: id(value) for key, value in vars(model).items()},
        "python": random.getstate(),
        "numpy": (numpy_state[1].tobytes(), *numpy_state[2:]),
        "name": keras.backend.get_uid("anything"),
    }


@pytest.mark.slow
def test_nothing_is_left_behind_and_two_tests_are_alike(photos):
    stages = [
        {"trainable_blocks": 2, "epochs": 1, "learning_rate": 1e-3, "batch_norm": "train"},
        {**HEAD, "parameters": "biases", "rate_decay": 0.9, "head_learning_rate": 0.1},
    ]
    recipe = make_recipe(photos, stages, dropout=0.5, data_={"augment": "light"})
    splits = data.load(recipe.data)
    model = small_classifier(dropout=0.5)
    models.unfreeze(model, 3, batch_norm="affine", parameters="biases")
    model.compile("adam", "mse")
    keras.random.uniform(())  # Keras's global generator begins
    random.random()
    np.random.rand()
    before = whole_state(model)
    drawn, curves = [], []
    for _ in range(2):
        seed = rate_finder._around()[3]
        curves.append(rate_finder.find(model, recipe, splits, steps=12, highest=1e-2))
        assert rate_finder._around()[3] == seed
        after = whole_state(model)
        drawn.append(after["name"])
        for key in before.keys() - {"name"}:
            assert after[key] == before[key], key
        random.random()
        np.random.rand()
        keras.random.uniform(())
        before |= {key: whole_state(model)[key] for key in ("python", "numpy")}
        keras.backend.get_uid("anything")
    assert drawn[0] == before["name"] + 1
    assert curves[0] == curves[1]
    assert [curve.stage for curve in curves[0]] == ["1 top 2 blocks", "2 head"]
    assert curves[0][0].losses != curves[0][1].losses


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenet_v3_small"])
def test_the_copy_is_the_same_function_and_shares_nothing(name):
    model = models.image_classifier(name, 3, weights="none", image_size=32, seed=0)
    twin = rate_finder._copy(model)
    for theirs, ours in zip(model.variables, twin.variables, strict=True):
        ours.assign(rate_finder._value(theirs))
    x = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    np.testing.assert_array_equal(model(x), twin(x))
    assert not {id(v) for v in model.variables} & {id(v) for v in twin.variables}
    assert [b.name for b in models.blocks(model)] == [b.name for b in models.blocks(twin)]
    if name.startswith("efficientnet"):
        models.unfreeze(twin, -1)
        models.set_stochastic_depth(twin, 0.9)
        rates = [getattr(layer, "rate", 0) for layer in models.layers_of(twin)]
        assert max(rates) > 0.5
        assert not np.array_equal(twin(x, training=True), twin(x, training=False))
        assert max(getattr(layer, "rate", 0) for layer in models.layers_of(model)) <= 0.2


def test_random_states_are_put_back_if_the_test_fails(photos):
    recipe = make_recipe(photos, [{**HEAD, "name": "head"}])
    splits = data.load(recipe.data)
    model = small_classifier()
    before = rate_finder.fingerprint(model)
    with pytest.raises(TrainingError, match="stage 'hand' is not in the recipe; did you mean"):
        rate_finder.find(model, recipe, splits, stage="hand")
    assert rate_finder.fingerprint(model) == before


@pytest.mark.parametrize("what", ["weight", "flag", "statistics", "numpy", "python", "optimizer"])
def test_a_change_is_seen(what):
    model = small_classifier()
    model.compile("sgd", "mse")
    before = rate_finder.fingerprint(model)
    assert rate_finder.fingerprint(model) == before
    if what == "weight":
        model.variables[3].assign(model.variables[3] + 1e-6)
    elif what == "flag":
        models.unfreeze(model, 1)
    elif what == "statistics":
        models.unfreeze(model, -1, batch_norm="affine")
        before = rate_finder.fingerprint(model)
        models.unfreeze(model, -1, batch_norm="train")
    elif what == "numpy":
        np.random.rand()
    elif what == "python":
        random.random()
    else:
        model.optimizer.learning_rate = 0.5
    assert rate_finder.fingerprint(model) != before


@pytest.mark.slow
def test_a_fit_after_the_test_is_bit_for_bit_one_without(photos, tmp_path):
    recipe = make_recipe(photos, [{**HEAD, "trainable_blocks": 1, "batch_norm": "train"}])
    splits = data.load(recipe.data)
    ends = []
    for name in ("without", "after"):
        model = small_classifier()
        if name == "after":
            rate_finder.find(model, recipe, splits, steps=10)
        run = Run.create(tmp_path / "runs", name)
        history = training.train(model, recipe, splits, run, Console(quiet=True))
        rows = [{k: v for k, v in row.items() if "second" not in k} for row in history.rows]
        ends.append((rows, [weight.tobytes() for weight in model.get_weights()]))
    assert ends[0] == ends[1]


@pytest.mark.slow
@pytest.mark.parametrize("weights", [None, "balanced"])
def test_batches_are_those_of_the_first_epochs_with_their_weights(weights, photos):
    for number in range(6):  # classes of unequal size
        (photos / "red" / f"{number:02d}.jpg").unlink()
    recipe = make_recipe(
        photos, dropout=0.0, data_={"augment": "light"}, class_weight=weights, seed=3
    )
    splits = data.load(recipe.data)
    model = small_classifier(dropout=0.0)
    (curve,) = rate_finder.find(model, recipe, splits, steps=10, lowest=1e-12, highest=1e-11)
    model.compile("sgd", TASKS["image_classification"].loss(recipe.task, splits.outputs, None))
    stream = images.dataset(
        splits.train.content,
        splits.train.labels,
        image_size=(32, 32),
        batch_size=9,
        num_classes=3,
        seed=3,
        shuffle=True,
        epochs=range(5),
        augment=augmentation.Augmentation(recipe.data.augmentation, (32, 32), 3),
        class_weights=splits.class_weights(weights),
    )
    expected = [model.test_on_batch(*batch) for batch in stream.as_numpy_iterator()][:10]
    np.testing.assert_allclose(curve.losses, expected, rtol=1e-4)


@pytest.mark.slow
def test_accumulated_batches_make_one_update_at_one_rate(photos):
    curves = []
    for size, count in ((9, 1), (3, 3)):
        recipe = make_recipe(
            photos,
            dropout=0.0,
            data_={"batch_size": size},
            accumulate_steps=count,
            optimizer={"name": "sgd"},
        )
        splits = data.load(recipe.data)
        assert len(splits.train) % 9 == 0
        curves += rate_finder.find(
            small_classifier(dropout=0.0), recipe, splits, steps=20, lowest=1e-3, highest=0.1
        )
    whole, parts = curves
    assert whole.losses[0] > 1.5 * min(whole.losses)
    np.testing.assert_allclose(parts.losses, whole.losses, rtol=1e-3)


@pytest.mark.slow
def test_ten_times_the_loss_is_a_tenth_of_the_rate(photos, monkeypatch):
    row = TASKS["image_classification"]
    found = []
    for scale in (1.0, 10.0):

        def loss(*arguments, scale=scale):
            inner = row.loss(*arguments)
            return lambda true, predicted: scale * inner(true, predicted)

        monkeypatch.setitem(TASKS, row.name, dataclasses.replace(row, loss=loss))
        # All examples in each batch, and no dropout: then nothing differs but the rate.
        recipe = make_recipe(
            photos,
            dropout=0.0,
            data_={"batch_size": 99, "augment": "none"},
            optimizer={"name": "sgd", "weight_decay": None},
        )
        model = small_classifier(dropout=0.0)
        (curve,) = rate_finder.find(model, recipe, data.load(recipe.data), highest=10)
        found.append(curve)
    one, ten = found
    assert one.suggestion and ten.suggestion
    assert 5 <= one.suggestion / ten.suggestion <= 20
    assert 5 <= one.minimum / ten.minimum <= 20


def test_a_loss_that_explodes_ends_the_test(photos):
    recipe = make_recipe(photos, [{**HEAD, "learning_rate": 1e3}], optimizer={"name": "sgd"})
    (curve,) = rate_finder.find(
        small_classifier(), recipe, data.load(recipe.data), lowest=1e-4, highest=1e6
    )
    assert curve.diverged
    assert len(curve.rates) == len(curve.losses) == len(curve.smoothed) < 90
    assert not curve.smoothed[-1] <= 4 * min(curve.smoothed)
    assert curve.suggestion is not None
    assert curve.suggestion < curve.rates[-1] / 10
    assert "times higher, where the loss rises or diverges" in curve.verdict()


@pytest.mark.slow
def test_on_digits_the_suggestion_trains_and_a_hundred_times_of_it_does_not():
    recipe = recipes.from_mapping(
        {
            "backbone": {"name": "mobilenet", "weights": "none", "image_size": 32, "alpha": 0.25},
            "data": {"source": "sklearn", "path": "digits", "batch_size": 32},
            "train": {
                "optimizer": {"name": "sgd", "momentum": 0.9},
                "stages": [{"trainable_blocks": -1, "epochs": 1, "learning_rate": 1e-3}],
            },
        }
    )
    splits = data.load(recipe.data)
    model = small_classifier(10)
    (curve,) = rate_finder.find(model, recipe, splits)
    assert curve.suggestion is not None
    start = model.get_weights()
    ends = []
    for rate in (curve.suggestion, 100 * curve.suggestion):
        model.set_weights(start)
        training.plan(model, recipe.train, steps=math.ceil(len(splits.train) / 32))
        model.compile(
            optimizers.make(recipe.train.optimizer, rate),
            TASKS["image_classification"].loss(recipe.task, splits.outputs, None),
        )
        stream = images.dataset(
            splits.train.content,
            splits.train.labels,
            image_size=(32, 32),
            batch_size=32,
            num_classes=10,
            shuffle=True,
            epochs=range(9, 11),
        )
        losses = [model.train_on_batch(*batch) for batch in stream.as_numpy_iterator()]
        ends.append(float(np.mean(losses[-10:])))
    begun = float(np.mean(curve.losses[:10]))
    assert ends[0] < 0.7 * begun
    assert not ends[1] < 0.9 * min(begun, math.log(10))


def drawn_curve(steps=200):
    """A stage whose loss falls around 1e-3 and rises from 1e-1 on."""
    ladder = [1e-7 * 1e7 ** (i / (steps - 1)) for i in range(steps)]
    noise = np.random.default_rng(0).normal(0, 0.02, steps)
    clean = [2 - 1 / (1 + (1e-3 / x) ** 2) + (x / 0.1) ** 2 for x in ladder]
    return ladder, list(clean + noise)


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (1e-3, "recipe's 0.001 is within a factor 3"),
        (1e-5, "times lower"),
        (1e-2, "times higher"),
        (0.5, "times higher, where the loss rises or diverges"),
    ],
)
def test_rates_are_read_off_where_the_loss_falls_and_where_it_is_lowest(rate, said, photos):
    plan_ = training.StagePlan("head", recipes_stage(rate), 0, 10, ("head",), 1)
    curve = rate_finder._curve(plan_, *drawn_curve(), diverged=False)
    assert 5e-4 < curve.steepest < 5e-3
    assert 5e-3 < curve.minimum < 1e-1
    assert curve.suggestion == min(curve.steepest, curve.minimum / 10)
    assert curve.verdict().endswith(said)


def recipes_stage(rate):
    from kerastune_ft.recipe import Stage

    return Stage(trainable_blocks=0, epochs=1, learning_rate=rate)


@pytest.mark.parametrize("steps", [20, 100, 200])
def test_noise_alone_suggests_nothing(steps):
    ladder, _ = drawn_curve(steps)
    plan_ = training.StagePlan("head", recipes_stage(1e-3), 0, 10, ("head",), 1)
    found = [
        rate_finder._curve(
            plan_, ladder, list(2 + np.random.default_rng(seed).normal(0, 0.2, steps)), False
        )
        for seed in range(40)
    ]
    silent = [curve for curve in found if curve.suggestion is None]
    assert len(silent) >= 38
    assert all(curve.verdict().startswith("no suggestion") for curve in silent)


def test_a_loss_that_is_no_number_counts_as_exploded():
    ladder, losses = drawn_curve(100)
    losses[60:] = [math.nan]
    plan_ = training.StagePlan("head", recipes_stage(1e-3), 0, 10, ("head",), 1)
    curve = rate_finder._curve(plan_, ladder, losses[:61], diverged=True)
    assert isinstance(curve, Curve)
    assert curve.minimum < ladder[60]


def test_the_smoothed_loss_is_a_weighted_mean_of_all_before():
    losses = np.random.default_rng(0).normal(size=30)
    keep = 5 / 6
    for number, smoothed in enumerate(rate_finder._smooth(list(losses), 100), 1):
        weights = keep ** np.arange(number)[::-1]
        assert smoothed == pytest.approx(np.average(losses[:number], weights=weights))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 9}, "steps: expected 10 or more, got 9"),
        ({"lowest": 0.0}, "expected them to rise above 0, got 0 to 1"),
        ({"lowest": 2.0}, "got 2 to 1"),
        ({"highest": math.nan}, "got 1e-07 to nan"),
    ],
)
def test_numbers_that_make_no_test_are_refused(options, said):
    with pytest.raises(TrainingError, match=said):
        rate_finder.check(**{"steps": 100, "lowest": 1e-7, "highest": 1.0, **options})


def kft(*arguments):
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def written(photos, weights_file, tmp_path):
    recipe = make_recipe(photos, [HEAD, {**HEAD, "name": "$again", "learning_rate": 3e-7}])
    path = tmp_path / "tiny.yaml"
    path.write_text(recipes.dump(recipe))
    return path


@pytest.mark.slow
def test_the_command_prints_a_row_per_stage_and_writes_a_table_and_a_picture(
    written, weights_file, tmp_path
):
    output = tmp_path / "new" / "folder"
    before = sorted(tmp_path.rglob("*"))
    options = ("--steps", 40, "--from", "1e-4", "--output", output)
    done = kft("lr-find", written, f"backbone.weights={weights_file}", *options)
    assert done.exit_code == 0, done.output
    assert "recipe's 0.01 is" in done.output
    assert "recipe's 3e-07 is" in done.output
    assert "not on what the stages before it train" in done.output
    with (output / "lr_find.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["stage"] for row in rows} == {"1 head", "$again"}
    assert float(rows[0]["learning_rate"]) == 1e-4
    assert all(math.isfinite(float(row["smoothed_loss"])) for row in rows[:20])
    assert (output / "lr_find.png").read_bytes()[1:4] == b"PNG"
    new = set(tmp_path.rglob("*")) - set(before)
    assert {p.name for p in new} == {"new", "folder", "lr_find.csv", "lr_find.png"}


@pytest.mark.slow
def test_the_command_starts_from_a_run_of_the_same_network(written, weights_file, tmp_path):
    weights = f"backbone.weights={weights_file}"
    fitted = kft("fit", written, weights, "--runs-dir", tmp_path / "runs", "--name", "one")
    assert fitted.exit_code == 0, fitted.output
    run = tmp_path / "runs" / "one"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    options = ("--stage", 1, "--steps", 10, "--output", tmp_path)
    done = kft("lr-find", written, "--run", run, *options)
    assert done.exit_code == 0, done.output
    assert f"the weights of {run}" in done.output
    with (tmp_path / "lr_find.csv").open() as file:
        trained = float(next(csv.DictReader(file))["loss"])
    kft("lr-find", written, weights, *options)
    with (tmp_path / "lr_find.csv").open() as file:
        assert trained < float(next(csv.DictReader(file))["loss"])
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    other = kft("lr-find", written, "--run", run, "backbone.image_size=64", *options)
    assert other.exit_code == 2
    assert "its model is for" in other.output


def test_mistakes_are_said_before_anything_is_built(written, tmp_path):
    (tmp_path / "file").touch()
    for options, said in (
        (("--steps", 3), "steps: expected 10 or more"),
        (("--from", 1, "--to", 0.1), "got 1 to 0.1"),
        (("--output", tmp_path / "file" / "in"), "nothing can be written"),
    ):
        done = kft("lr-find", written, *options)
        assert done.exit_code == 2, done.output
        assert said in done.output


def test_the_help_imports_no_framework():
    program = (
        "import sys\nfrom kerastune_ft.cli import main\n"
        "try:\n    main(['lr-find', '--help'])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert not {'tensorflow', 'keras', 'jax', 'matplotlib'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "--from" in done.stdout


@pytest.mark.slow
def test_it_works_on_jax_and_the_model_can_still_be_used(photos):
    pytest.importorskip("jax")
    script = f"""
import sys; sys.path.insert(0, "tests")
import keras, numpy as np
from test_rate_finder import HEAD, make_recipe, small_classifier
from kerastune_ft import data, models, rate_finder
assert keras.backend.backend() == "jax"
recipe = make_recipe({str(photos)!r}, [HEAD], data_={{"augment": "light"}})
splits = data.load(recipe.data)
model = small_classifier()
models.unfreeze(model, 1)
model.compile("adam", "mse")
x, y = np.full((4, 32, 32, 3), 99.0), np.eye(3)[[0, 1, 2, 0]]
model.train_on_batch(x, y)
before = rate_finder.fingerprint(model)
one, two = (rate_finder.find(model, recipe, splits, steps=20, highest=10.0) for _ in range(2))
assert rate_finder.fingerprint(model) == before
assert one == two, (one, two)
assert len(set(one[0].losses)) > 10 and one[0].losses[-1] != one[0].losses[0], one
model.train_on_batch(x, y)
assert rate_finder.fingerprint(model) != before
"""
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
