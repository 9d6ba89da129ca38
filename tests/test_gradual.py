"""Gradual unfreezing inside one fit; the checks of both backends are in gradual_script.py."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import gradual_script as script
import keras
import numpy as np
import pytest

from kerastune_ft.errors import ModelError
from kerastune_ft.gradual import GradualUnfreezing, StageRates

SLOW = {
    "each_stage_of_a_built_model_moves_what_it_says_and_nothing_else",
    "no_adam_step_of_a_newly_unfrozen_variable_exceeds_its_rate",
    "compiled_steps_eager_steps_and_several_steps_per_call_do_the_same",
    "a_branch_does_not_notice_that_another_is_unfrozen",
    "a_fit_with_initial_epoch_goes_on_where_the_last_one_ended",
    "a_stage_ends_when_its_figure_stalls",
    "other_callbacks_count_on_over_the_stages",
    "rates_set_by_batch_equal_the_schedule",
    "rates_by_batch_and_unfreezing_work_together",
    "nested_models_are_grouped_by_their_own_name_or_their_layers",
    "the_rate_is_multiplied_at_each_stage",
    "depth_decays_the_rate_of_a_block",
    "a_saved_model_reloads_with_its_optimizer_and_trains_on_alike",
    "backup_and_restore_resumes_weights_and_stage",
    "a_stage_starts_from_the_best_epoch_of_the_one_before",
    "a_second_stage_with_the_same_weights_keeps_the_train_function",
}


@pytest.mark.parametrize(
    "check",
    [pytest.param(x, marks=pytest.mark.slow) if x in SLOW else x for x in script.CHECKS],
)
def test_on_tensorflow(check):
    script.CHECKS[check]()


@pytest.fixture(scope="module")
def jax_results(tmp_path_factory):
    """What a process of its own found with the JAX backend."""
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed")
    path = Path(script.__file__)
    found = subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(path.parents[1])},
        cwd=tmp_path_factory.mktemp("jax"),
        capture_output=True,
        text=True,
        timeout=1800,
    )
    lines = [json.loads(x) for x in found.stdout.splitlines() if x.startswith('{"check"')]
    assert len(lines) == len(script.CHECKS), found.stderr[-2000:]
    return {line["check"]: line for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize("check", script.CHECKS)
def test_on_jax(check, jax_results):
    assert not jax_results[check]["error"], jax_results[check]["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": []}, "stages: expected some choices"),
        ({"stages": "top"}, "stages: expected some choices"),
        ({"stages": [0, 1], "step": 2}, "stages: expected no step or blocks"),
        ({"stages": [0, 1], "blocks": 2}, "stages: expected no step or blocks"),
        ({"step": 0}, "step: expected 1 or more"),
        ({"blocks": -1}, "blocks: expected 0 or more"),
        ({"patience": 0}, "patience: expected 1 or more"),
        ({"warmup_steps": -1}, "warmup_steps: expected 0 or more"),
        ({"rate_factor": 0.0}, "rate_factor: expected a number above 0"),
        ({"rate_decay": -1.0}, "rate_decay: expected a number above 0"),
        ({"batch_norm": "thaw"}, "batch_norm: expected frozen, affine or train"),
        ({"restore_best": True}, "restore_best: expected monitor"),
        ({"groups": ["stem"]}, "groups: expected lists of layer names"),
        ({"groups": []}, "groups: expected lists of layer names"),
        ({"epochs_per_stage": 0}, "epochs_per_stage: expected 1 or more"),
        ({"epochs_per_stage": [1, 0]}, "epochs_per_stage: expected 1 or more"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GradualUnfreezing(**arguments)


def begin(model, callback, **params):
    callback.set_model(model)
    callback.set_params({"epochs": 3, "steps": 3, **params})
    callback.on_train_begin()


@pytest.mark.parametrize(
    ("groups", "more", "message"),
    [
        ([["stm_conv"]], {}, "matches no layer of 'own'; did you mean 'stem_conv'"),
        ([["("]], {}, "is no regular expression"),
        ([["stem_.*"], ["stem_conv"]], {}, "'stem_conv' is in group 1 and in group 2"),
        ([[".*"]], {}, "stage 1 trains nothing"),
        (script.GROUPS, {"blocks": 4}, "has 3 blocks"),
        (script.GROUPS, {"stages": ["group_9"]}, "matches no block"),
        (script.GROUPS, {"epochs_per_stage": [1, 1]}, "has 4 stages; expected as many numbers"),
        (None, {}, "no backbone found.*Or pass groups"),
    ],
)
def test_blocks_that_do_not_fit_the_model_are_refused(groups, more, message):
    model = script.compiled(script.own_model())
    with pytest.raises(ModelError, match=message):
        begin(model, GradualUnfreezing(groups=groups, **more))


def test_what_cannot_change_its_optimizer_is_refused(monkeypatch):
    groups = script.GROUPS
    model = script.own_model()
    for optimizer, message in (
        (keras.optimizers.Nadam(1e-3), "'Nadam' cannot be converted"),
        (keras.optimizers.Adam(1e-3, use_ema=True), "use_ema=True"),
    ):
        with pytest.raises(ModelError, match=message):
            begin(script.compiled(model, optimizer), GradualUnfreezing(groups=groups))
    model.compile(optimizer=None, loss="mse")
    with pytest.raises(ModelError, match="has no optimizer"):
        begin(model, GradualUnfreezing(groups=groups))
    fresh = script.compiled(keras.Sequential([keras.layers.Dense(2, name="one")]))
    with pytest.raises(ModelError, match="is not built"):
        begin(fresh, GradualUnfreezing(groups=[["one"]]))
    inputs = keras.Input((2,))
    inner = [
        keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="same")], name=name)
        for name in "ab"
    ]
    outputs = inner[1](inner[0](inputs))
    twice = script.compiled(keras.Model(inputs, outputs))
    paths = [weight.path for weight in twice.weights]
    if len(set(paths)) < len(paths):
        with pytest.raises(ModelError, match="2 weights have the path"):
            begin(twice, GradualUnfreezing(groups=[["a"]]))
    model = script.compiled(script.own_model())
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ModelError, match="backend is torch, expected tensorflow or jax"):
        begin(model, GradualUnfreezing(groups=groups))


@pytest.mark.slow
def test_several_devices_are_refused():
    code = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import gradual_script as script
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    model = script.compiled(script.own_model())
unfreezing = script.GradualUnfreezing(groups=script.GROUPS)
x, y = script.pictures()
script.expect(
    script.ModelError, "several devices", lambda: model.fit(x, y, callbacks=[unfreezing])
)
print("refused")
"""
    folder = Path(script.__file__).parent
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{folder}:{folder.parent}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "refused" in found.stdout, found.stderr[-2000:]


def test_a_line_per_stage_says_what_trains(capsys):
    x, y = script.pictures()
    model = script.compiled(script.own_model(), keras.optimizers.SGD(0.1))
    unfreezing = GradualUnfreezing(groups=script.GROUPS, verbose=1, rate_factor=0.5)
    model.fit(x, y, epochs=2, callbacks=[unfreezing], **script.PLAIN)
    assert capsys.readouterr().out.splitlines() == [
        "stage 1 of 4 from epoch 1: head train, 15 parameters, learning rate 0.1",
        "stage 2 of 4 from epoch 2: group_3, head train, 163 parameters, learning rate 0.05",
    ]


def test_blocks_and_step_make_stages():
    model = script.compiled(script.own_model())
    for arguments, expected in (
        ({}, [0, 1, 2, 3]),
        ({"step": 2}, [0, 2, 3]),
        ({"blocks": 2}, [0, 1, 2]),
        ({"blocks": 0}, [0]),
        ({"step": 9}, [0, 3]),
    ):
        unfreezing = GradualUnfreezing(groups=script.GROUPS, **arguments)
        begin(model, unfreezing)
        assert [len(choice) for choice in unfreezing._choices] == expected


def test_another_mode_of_batch_norm_is_traced_anew_in_a_second_fit():
    x, y = script.pictures()
    model = script.compiled(script.own_model())
    for batch_norm in ("affine", "train"):
        record = script.Record()
        unfreezing = GradualUnfreezing([3], groups=script.GROUPS, batch_norm=batch_norm)
        model.fit(x, y, callbacks=[unfreezing, record], **script.PLAIN)
        changed = script.moved(record.begins[0], record.ends[0])
        assert any("moving" in path for path in changed) == (batch_norm == "train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cosin", 0.1, 2), "decay: expected one of"),
        (("cosine", 0.1, 2, 3, 2.0), "warmup_epochs: expected 0 to below 2, got 2.0"),
    ],
)
def test_impossible_rates_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        StageRates(*arguments)


def test_rates_that_cannot_be_set_are_refused():
    model = script.own_model()
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 9)
    rates = StageRates("cosine", 0.1, 2)
    with pytest.raises(ModelError, match="the rate cannot be set"):
        begin(script.compiled(model, keras.optimizers.SGD(schedule)), rates)
    with pytest.raises(ModelError, match="steps_per_execution"):
        begin(script.compiled(model, steps_per_execution=2), rates)
    with pytest.raises(ModelError, match="pass steps_per_epoch"):
        begin(script.compiled(model), rates, steps=None)
    begin(script.compiled(model), StageRates("cosine", 0.1, 2, steps_per_epoch=4), steps=None)
    assert np.isfinite(rates._rates).all()
