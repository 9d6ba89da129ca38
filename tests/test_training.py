"""The stages: what is planned is what moves, and nothing else."""

from __future__ import annotations

import csv
import math

import keras
import numpy as np
import pytest
from conftest import fill_batch_norm_statistics
from rich.console import Console

from kerastune_ft import callbacks, data, models, training
from kerastune_ft import recipe as recipes
from kerastune_ft.errors import DataError, TrainingError
from kerastune_ft.runs import Run
from kerastune_ft.tasks import TASKS

STAGES = [
    {"trainable_blocks": 0, "epochs": 2, "learning_rate": 1e-2},
    {"trainable_blocks": 2, "epochs": 2, "learning_rate": 1e-3, "schedule": "cosine"},
]


def make_recipe(photos, **train):
    return recipes.from_mapping(
        {
            "backbone": {
                "name": "mobilenet",
                "weights": "none",
                "image_size": 32,
                "alpha": 0.25,
            },
            "data": {
                "source": "image_folder",
                "path": str(photos),
                "batch_size": 8,
                "augment": "light",
                "split": {"validation": 0.25, "test": 0.25},
            },
            "train": {"stages": STAGES, "tensorboard": False, **train},
        }
    )


def small_classifier(seed):
    keras.utils.set_random_seed(seed)
    model = models.image_classifier(
        "mobilenet", 3, weights="none", image_size=32, alpha=0.25, seed=seed
    )
    fill_batch_norm_statistics(model)
    return model


@pytest.fixture
def classifier():
    """A MobileNet a quarter as wide: the network whose train step TensorFlow traces fastest."""
    return small_classifier(seed=0)


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "runs", "one")


def snapshot(model):
    return {
        path: keras.ops.convert_to_numpy(weight).copy()
        for _, path, weight in models.named_weights(model)
    }


def train(classifier, recipe, run, console=None):
    splits = data.load(recipe.data)
    return training.train(classifier, recipe, splits, run, console or Console(quiet=True))


def test_the_plan_names_blocks_parameters_and_steps(classifier, photos):
    recipe = make_recipe(photos)
    head, top = training.plan(classifier, recipe.train, steps=3)
    assert (head.name, head.trainable_blocks) == ("1 head", ("head",))
    assert head.trainable_parameters == 256 * 3 + 3
    assert top.trainable_blocks == ("conv_pw_12_relu", "conv_pw_13_relu", "head")
    assert (head.steps, head.first_epoch, top.first_epoch, top.last_epoch) == (3, 0, 2, 4)
    assert [block.name for block in models.blocks(classifier) if block.trainable] == ["head"]


def test_stages_of_one_name_are_told_apart(classifier, photos):
    stages = [{**stage, "name": "mine"} for stage in STAGES]
    plans = training.plan(classifier, make_recipe(photos, stages=stages).train, steps=3)
    assert [stage_plan.name for stage_plan in plans] == ["mine", "2 mine"]


def test_each_stage_moves_what_the_plan_says_and_nothing_else(classifier, photos, run):
    recipe = make_recipe(photos, early_stopping=None)
    plans = training.plan(classifier, recipe.train, steps=3)
    before = snapshot(classifier)
    blocks = {path: block for block, path, _ in models.named_weights(classifier)}
    history = train(classifier, recipe, run)
    after = snapshot(classifier)
    moved = {blocks[path] for path in before if not np.array_equal(before[path], after[path])}
    assert moved == set(plans[-1].trainable_blocks)
    assert all(report.passed for report in history.audits.values())
    frozen = [report.frozen for report in history.audits.values()]
    total = len(before)
    assert frozen[0] == total - 2
    assert frozen[1] == total - len(classifier.trainable_variables)
    assert set(run.read_json("audit")) == {"1 head", "2 top 2 blocks"}


def test_history_is_one_row_per_epoch_counted_over_the_stages(classifier, photos, run):
    history = train(classifier, make_recipe(photos, early_stopping=None), run)
    with run.history_path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["stage"] for row in rows] == ["1 head"] * 2 + ["2 top 2 blocks"] * 2
    assert [float(row["learning_rate"]) for row in rows[:2]] == pytest.approx([0.01, 0.01])
    assert float(rows[3]["learning_rate"]) < float(rows[2]["learning_rate"]) < 1e-3
    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "seconds", "examples_per_second"):
        assert all(math.isfinite(float(row[name])) for row in rows), name
    assert [row["loss"] for row in history.rows] == [float(row["loss"]) for row in rows]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_does_not(photos, tmp_path):
    def once(name, seed):
        stages = [{"trainable_blocks": 1, "epochs": 2, "learning_rate": 1e-3}]
        recipe = make_recipe(photos, seed=seed, stages=stages, early_stopping=None)
        model = small_classifier(seed)
        train(model, recipe, Run.create(tmp_path, name))
        return model.get_weights()

    first, again, other = once("first", 1), once("again", 1), once("other", 2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_early_stopping_ends_the_stage_restores_its_best_and_the_next_begins(
    classifier, photos, run
):
    stages = [
        # A rate at which the loss cannot keep falling, so that patience runs out.
        {"trainable_blocks": 0, "epochs": 30, "learning_rate": 5.0},
        {"trainable_blocks": 1, "epochs": 1, "learning_rate": 1e-6},
    ]
    stopping = {"monitor": "val_loss", "patience": 1}
    history = train(classifier, make_recipe(photos, stages=stages, early_stopping=stopping), run)
    first = [row for row in history.rows if row["stage"] == "1 head"]
    assert len(first) < 30
    assert history.stopped_early == ["1 head"]
    assert [row["epoch"] for row in history.rows] == list(range(1, len(history.rows) + 1))
    best = min(row["val_loss"] for row in first)
    # At a millionth the second stage hardly moves: it must start from the best, not the last.
    assert history.rows[-1]["val_loss"] == pytest.approx(best, rel=0.05)


@pytest.mark.parametrize(
    ("task", "monitor", "mode"),
    [
        ("image_classification", "val_accuracy", "max"),
        ("image_multilabel", "val_auc_pr", "max"),
        ("image_multilabel", "val_loss", "min"),
        ("image_regression", "mae", "min"),
    ],
)
def test_early_stopping_knows_which_way_is_better(photos, task, monitor, mode):
    stopping = {"monitor": monitor, "patience": 4, "min_delta": 0.5}
    settings = recipes.EarlyStopping(**stopping)
    train_ = make_recipe(photos).train.model_copy(update={"early_stopping": settings})
    (callback,) = training._early_stopping(train_, TASKS[task])
    assert (callback.mode, callback.monitor, callback.patience) == (mode, monitor, 4)


def test_pictures_without_the_channels_asked_for_are_refused(photos):
    recipe = make_recipe(photos)
    splits = data.load(recipe.data)
    backbone = recipe.backbone.model_copy(update={"channels": 4})
    with pytest.raises(DataError, match=r"channels"):
        training.check(recipe.model_copy(update={"backbone": backbone}), splits)


@pytest.mark.slow
def test_the_model_on_disk_after_an_epoch_needs_no_optimizer(classifier, photos, run):
    train(classifier, make_recipe(photos, early_stopping=None), run)
    reloaded = keras.models.load_model(run.model_path)
    assert not reloaded.compiled
    pictures = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
    np.testing.assert_allclose(
        reloaded.predict(pictures, verbose=0), classifier.predict(pictures, verbose=0), atol=1e-6
    )
    assert run.model_path.stat().st_size < 8 * classifier.count_params()


def test_a_loss_that_is_not_finite_stops_with_the_stage_and_a_way_out(classifier, photos, run):
    stages = [{"name": "too fast", "trainable_blocks": 0, "epochs": 9, "learning_rate": 1e38}]
    recipe = make_recipe(photos, stages=stages, optimizer={"name": "sgd"}, early_stopping=None)
    with pytest.raises(TrainingError, match=r"too fast: the loss is (nan|inf) at epoch \d"):
        train(classifier, recipe, run)


def test_a_metric_of_validation_without_validation_is_refused(photos):
    recipe = make_recipe(photos)
    split = recipe.data.split.model_copy(update={"validation": 0.0})
    splits = data.load(recipe.data.model_copy(update={"split": split}))
    with pytest.raises(TrainingError, match="needs a validation split and there is none"):
        training.check(recipe, splits)


class Tamper(keras.callbacks.Callback):
    """Moves one frozen weight by the smallest amount there is."""

    def on_epoch_end(self, epoch, logs=None):
        weight = models.blocks(self.model)[3].weights[0]
        array = keras.ops.convert_to_numpy(weight).copy()
        array.flat[0] = np.nextafter(array.flat[0], np.float32(np.inf))
        weight.assign(array)


PICTURES = np.random.default_rng(0).uniform(0, 255, (8, 32, 32, 3)).astype("float32")
LABELS = np.eye(3, dtype="float32")[np.arange(8) % 3]


def compiled(model):
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, keras.losses.CategoricalCrossentropy(from_logits=True))
    return model


def test_the_audit_sees_one_frozen_weight_moved_by_one_bit(classifier):
    audit = callbacks.FreezeAudit()
    with pytest.raises(TrainingError, match=r"1 frozen weights moved \(conv_dw_3/0"):
        compiled(classifier).fit(PICTURES, LABELS, verbose=0, callbacks=[Tamper(), audit])


def test_the_audit_sees_an_unfreezing_without_compile(classifier):
    """The trap of the official guides: Keras traces once, and a flag set later does nothing."""
    compiled(classifier).fit(PICTURES, LABELS, verbose=0)
    models.unfreeze(classifier, 2)
    with pytest.raises(TrainingError, match=r"nothing moved in conv_pw_12_relu, conv_pw_13_relu"):
        classifier.fit(PICTURES, LABELS, verbose=0, callbacks=[callbacks.FreezeAudit()])


def test_the_audit_can_report_instead_of_raising(classifier):
    audit = callbacks.FreezeAudit(raises=False)
    compiled(classifier).fit(PICTURES, LABELS, verbose=0, callbacks=[Tamper(), audit])
    assert audit.report is not None
    assert not audit.report.passed
    assert len(audit.report.frozen_moved) == 1
    compiled(classifier).fit(PICTURES, LABELS, verbose=0, callbacks=[audit])
    assert audit.report.passed
    assert audit.report.trained == 2


def test_the_audit_lets_batch_norm_statistics_move_where_their_layer_trains(classifier):
    models.unfreeze(classifier, 2, batch_norm="train")
    audit = callbacks.FreezeAudit()
    compiled(classifier).fit(PICTURES, LABELS, verbose=0, callbacks=[audit])
    report = audit.report
    assert report is not None
    assert report.passed
    # two blocks of MobileNet, two BatchNormalization layers each, mean and variance
    assert (report.statistics, report.statistics_still) == (8, 0)
    assert report.trained + report.statistics + report.frozen == len(classifier.weights)


def test_progress_is_one_line_per_epoch_where_there_is_no_terminal(classifier, photos, run):
    console = Console(width=160, record=True, force_terminal=False, quiet=False)
    with console.capture() as captured:
        train(classifier, make_recipe(photos, early_stopping=None), run, console)
    lines = captured.get().splitlines()
    epochs = [line for line in lines if line.startswith("  epoch")]
    assert len(epochs) == 4
    assert all("examples/s" in line and "rate" in line for line in epochs)
    assert sum("audit passed" in line for line in lines) == 2
    assert sum(line.startswith("stage ") for line in lines) == 2
