"""Losses and metrics of the tasks against references, and a small run of each task."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerastune_ft import losses, recipe
from kerastune_ft.data.labels import LABELS
from kerastune_ft.tasks import TASKS, Outputs, mae_scale

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 4, (16, 5)).astype("float32")
PRESENT = (RNG.random((16, 5)) < 0.3).astype("float32")


def test_every_task_of_a_recipe_has_a_row_and_labels() -> None:
    assert set(TASKS) == set(recipe.choices("task.name"))
    for name, row in TASKS.items():
        assert row.name == name
        assert row.labels in LABELS
        monitors = recipe.choices("train.early_stopping.monitor")
        assert {row.metric, f"val_{row.metric}"} <= set(monitors)
    assert {row.labels for row in TASKS.values()} == set(LABELS)


# losses


@pytest.mark.parametrize("weights", [[1.0] * 5, [0.1, 1.0, 3.0, 10.0, 2.5]])
def test_the_weighted_loss_is_tensorflows(weights: list[float]) -> None:
    expected = tf.nn.weighted_cross_entropy_with_logits(PRESENT, LOGITS, np.float32(weights))
    found = losses.WeightedBinaryCrossentropy(weights)(PRESENT, LOGITS)
    assert float(found) == pytest.approx(float(tf.reduce_mean(expected)), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_without_weights_it_is_keras_own_loss(smoothing: float) -> None:
    expected = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=smoothing)
    found = losses.WeightedBinaryCrossentropy(label_smoothing=smoothing)
    assert float(found(PRESENT, LOGITS)) == pytest.approx(
        float(expected(PRESENT, LOGITS)), rel=1e-5
    )


def test_large_logits_give_finite_losses_and_gradients() -> None:
    logits = tf.constant([[1e4, -1e4]])
    for labels in ([[1.0, 0.0]], [[0.0, 1.0]]):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = losses.WeightedBinaryCrossentropy([2.0, 3.0])(tf.constant(labels), logits)
        assert np.isfinite(float(loss))
        assert np.isfinite(tape.gradient(loss, logits).numpy()).all()


STD = np.array([0.01, 250.0], "float32")
MEAN = np.array([3.0, -1000.0], "float32")


@pytest.mark.parametrize(
    ("error", "reference"),
    [
        ("mse", keras.losses.MeanSquaredError()),
        ("mae", keras.losses.MeanAbsoluteError()),
        ("huber", keras.losses.Huber(delta=1.0)),
    ],
)
def test_the_loss_and_its_gradient_are_those_of_standardised_targets(
    error: losses.Error, reference: keras.losses.Loss
) -> None:
    """What the dense layer gets, before the model gives its output the targets' units."""
    dense = tf.constant(RNG.normal(0, 2, (32, 2)).astype("float32"))
    targets = RNG.normal(0, 1, (32, 2)).astype("float32")

    def gradient(loss_of):
        with tf.GradientTape() as tape:
            tape.watch(dense)
            loss = loss_of(dense)
        return float(loss), tape.gradient(loss, dense).numpy()

    ours = losses.StandardisedError(error, STD)
    found = gradient(lambda x: ours(targets * STD + MEAN, x * STD + MEAN))
    expected = gradient(lambda x: reference(targets, x))
    # Numbers of 3 and spread 0.01 have lost three digits before any loss sees them.
    assert found[0] == pytest.approx(expected[0], rel=1e-3)
    np.testing.assert_allclose(found[1], expected[1], atol=2e-4)


def test_losses_come_back_from_their_configuration() -> None:
    for loss in (
        losses.WeightedBinaryCrossentropy([1.0, 2.0, 3.0, 4.0, 5.0], 0.1),
        losses.StandardisedError("huber", [1.0, 2.0, 3.0, 4.0, 5.0]),
    ):
        again = type(loss).from_config(loss.get_config())
        assert float(again(PRESENT, LOGITS)) == float(loss(PRESENT, LOGITS))


# metrics


def test_the_area_is_near_scikit_learns_average_precision_and_reads_shares_of_labels() -> None:
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(1)
    true = (rng.random((4000, 3)) < (0.1, 0.3, 0.6)).astype("float32")
    logits = rng.normal(0, 1, (4000, 3)) + 1.5 * true
    metric = losses.LabelAUC(3)
    metric.update_state(true, logits)
    expected = average_precision_score(true, logits, average="macro")
    assert float(metric.result()) == pytest.approx(expected, abs=0.01)
    mixed = losses.LabelAUC(3)
    mixed.update_state(true * 0.6 + 0.2, logits)
    assert float(mixed.result()) == float(metric.result())
    again = losses.LabelAUC.from_config(metric.get_config())
    again.update_state(true, logits)
    assert float(again.result()) == float(metric.result())


def test_mae_is_in_the_unit_of_one_target_and_in_standard_deviations_of_several() -> None:
    true = RNG.normal(0, 1, (10, 2)).astype("float32") * STD
    predicted = np.zeros_like(true)
    (several,) = TASKS["image_regression"].metrics(Outputs(("a", "b"), (0.0, 0.0), tuple(STD)))
    several.update_state(true, predicted)
    assert float(several.result()) == pytest.approx(np.abs(true / STD).mean(), rel=1e-5)
    one = Outputs(("b",), (0.0,), (250.0,))
    (single,) = TASKS["image_regression"].metrics(one)
    single.update_state(true[:, 1:], predicted[:, 1:])
    assert float(single.result()) == pytest.approx(np.abs(true[:, 1]).mean(), rel=1e-5)
    assert single.name == several.name == TASKS["image_regression"].metric
    assert mae_scale(one) == (1.0,)
