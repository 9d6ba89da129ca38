"""What a history is taken for: every verdict, and both sides of every threshold."""

from __future__ import annotations

import pytest

from kerastune_ft import diagnosis


def history(losses, val_losses=None, stages=None, metric="accuracy"):
    rows = []
    for i, loss in enumerate(losses):
        row = {"epoch": i + 1, "stage": stages[i] if stages else "one", "learning_rate": 1e-3}
        row |= {"loss": loss, metric: 0.5 + 0.01 * i}
        if val_losses is not None:
            row |= {"val_loss": val_losses[i], f"val_{metric}": 0.4 + 0.01 * i}
        rows.append(row)
    return rows


def verdict(losses, val_losses=None):
    return diagnosis.verdict(history(losses, val_losses), "accuracy", "max")["verdict"]


# divergence


@pytest.mark.parametrize("losses", [[], [1.0]])
def test_one_epoch_cannot_diverge(losses):
    assert diagnosis.divergence(history(losses)) is None


@pytest.mark.parametrize(("newest", "told"), [(0.59, False), (0.6, False), (0.61, True)])
def test_a_stage_that_begins_at_more_than_half_as_much_again_has_diverged(newest, told):
    rows = history([0.8, 0.4, newest], stages=["head", "head", "top"])
    said = diagnosis.divergence(rows)
    assert (said is not None) == told
    if said:
        assert said.startswith("stage 'top': the loss rose from 0.4000 to 0.6100 after unfreezing")
        assert "learning rate of 0.0002" in said


@pytest.mark.parametrize(("newest", "told"), [(0.44, False), (0.46, True)])
def test_within_a_stage_the_best_epoch_of_the_stage_counts(newest, told):
    said = diagnosis.divergence(history([0.9, 0.3, 0.4, newest]))
    assert (said is not None) == told
    if said:
        assert "rose from 0.3000 to 0.4600 within the stage" in said


def test_the_last_epoch_before_the_stage_counts_and_not_the_best():
    stages = ["head", "head", "top"]
    assert diagnosis.divergence(history([0.2, 0.5, 0.7], stages=stages)) is None
    assert diagnosis.divergence(history([0.5, 0.2, 0.7], stages=stages))


@pytest.mark.parametrize(("newest", "told"), [(0.074, False), (0.076, True)])
def test_a_leap_from_next_to_nothing_to_little_is_none(newest, told):
    assert (diagnosis.divergence(history([0.001, newest])) is not None) == told


def told_of(losses, stages=None):
    """Numbers of the epochs at which a run would say something."""
    rows = history(losses, stages=stages)
    return [n for n in range(1, len(rows) + 1) if diagnosis.divergence(rows[:n])]


def test_a_loss_that_stays_high_is_told_of_once():
    assert told_of([0.4, 0.7, 0.8, 0.75, 0.9]) == [2]


def test_a_stage_is_told_of_once_though_it_recovers_in_between():
    assert told_of([0.4, 0.7, 0.5, 0.7]) == [2]


def test_every_stage_is_told_of_for_itself():
    stages = ["head", "head", "top", "top", "all"]
    assert told_of([0.4, 0.3, 0.5, 0.3, 0.6], stages) == [3, 5]


@pytest.mark.parametrize("losses", [[1.0, 0.9, 0.8], [1.0, 1.0, 1.0], [0.5, 0.6, 0.5, 0.6]])
def test_a_history_that_falls_or_wobbles_has_not_diverged(losses):
    assert told_of(losses) == []


# verdict


def test_without_validation_or_with_one_epoch_nothing_is_known():
    assert verdict([1.0, 0.5]) == "unknown"
    assert verdict([1.0], [1.0]) == "unknown"
    assert verdict([], []) == "unknown"
    rows = history([1.0, 0.5], [1.0, 0.5])
    del rows[0]["val_loss"]
    found = diagnosis.verdict(rows, "accuracy", "max")
    assert found == {
        "verdict": "unknown",
        "reason": "one epoch, or no validation, is too little to tell.",
        "gap": [],
    }


@pytest.mark.parametrize(("last", "expected"), [(0.75, "good"), (0.76, "unstable")])
def test_a_training_loss_half_as_much_again_as_its_lowest_is_unstable(last, expected):
    assert verdict([0.9, 0.5, last], [0.9, 0.5, 0.5]) == expected


@pytest.mark.parametrize(("last", "expected"), [(0.074, "good"), (0.076, "unstable")])
def test_next_to_nothing_is_never_unstable(last, expected):
    assert verdict([0.9, 0.0, last], [0.9, 0.1, 0.1]) == expected


@pytest.mark.parametrize(("last", "expected"), [(0.549, "good"), (0.551, "overfitting")])
def test_validation_risen_by_a_tenth_while_training_fell_is_overfitting(last, expected):
    assert verdict([0.9, 0.4, 0.3], [0.9, 0.5, last]) == expected


def test_it_is_no_overfitting_where_training_did_not_fall_or_is_the_worse():
    assert verdict([0.9, 0.4, 0.4], [0.9, 0.5, 0.6]) == "good"  # training stood still
    assert verdict([0.9, 0.8, 0.7], [0.9, 0.5, 0.6]) == "good"  # dropout, augmentation


def test_overfitting_names_the_best_epoch():
    found = diagnosis.verdict(history([0.9, 0.4, 0.2], [0.9, 0.5, 0.8]), "accuracy", "max")
    assert found["verdict"] == "overfitting"
    assert "lowest after epoch 2 (0.5000) and rose to 0.8000" in found["reason"]


@pytest.mark.parametrize(
    ("training", "validation", "expected"),
    [
        (0.979, 0.979, "underfitting"),
        (0.981, 0.979, "good"),
        (0.979, 0.981, "good"),
        (0.98, 0.98, "good"),
    ],
)
def test_both_losses_that_fall_by_more_than_two_in_a_hundred_are_underfitting(
    training, validation, expected
):
    assert verdict([1.2, 1.0, training], [1.2, 1.0, validation]) == expected


def test_unstable_comes_before_overfitting():
    assert verdict([0.5, 0.1, 0.3], [0.9, 0.5, 2.0]) == "unstable"


def test_every_verdict_has_a_reason_that_ends_as_a_sentence():
    histories = {
        "unknown": ([1.0], [1.0]),
        "unstable": ([0.9, 0.3, 0.9], [0.9, 0.5, 0.5]),
        "overfitting": ([0.9, 0.4, 0.2], [0.9, 0.5, 0.8]),
        "underfitting": ([1.0, 0.8], [1.0, 0.8]),
        "good": ([1.0, 0.5, 0.5], [1.0, 0.5, 0.5]),
    }
    for expected, losses in histories.items():
        found = diagnosis.verdict(history(*losses), "accuracy", "max")
        assert found["verdict"] == expected
        assert found["reason"].endswith(".")


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_the_gap_is_what_training_is_better_by(mode, sign):
    rows = history([1.0, 0.5], [1.0, 0.5], metric="mae")
    assert diagnosis.verdict(rows, "mae", mode)["gap"] == pytest.approx([sign * 0.1] * 2)
