"""Checks of gradual unfreezing for any backend; run as a script they print a line of JSON each.

KERAS_BACKEND=jax python tests/gradual_script.py
"""

from __future__ import annotations

import contextlib
import csv
import json
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import keras
import numpy as np
from conftest import fill_batch_norm_statistics

from kerastune_ft import models, optimizers
from kerastune_ft.errors import ModelError, TrainingError
from kerastune_ft.gradual import GradualUnfreezing, StageRates

GROUPS = [["stem_.*"], ["middle_.*"], ["top_.*"]]
PLAIN = {"batch_size": 8, "shuffle": False, "verbose": 0}


def pictures(count=24, side=8, classes=3):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, side, side, 3)).astype("float32")
    return x, np.arange(count) % classes


def own_model(seed=0):
    """Three groups of convolution and normalisation, and a head."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    x = inputs = keras.Input((8, 8, 3))
    for name in ("stem", "middle", "top"):
        x = layers.Conv2D(4, 3, padding="same", name=f"{name}_conv")(x)
        x = layers.BatchNormalization(name=f"{name}_norm")(x)
        x = layers.Activation("tanh", name=f"{name}_tanh")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, name="logits")(x), name="own")


def compiled(model, optimizer=None, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = optimizer or keras.optimizers.Adam(1e-2)
    model.compile(optimizer, loss, metrics=["accuracy"], **options)
    return model


def values(model):
    return {x.path: keras.ops.convert_to_numpy(x).copy() for x in model.weights}


def moved(before, after):
    return {path for path in before if not np.array_equal(before[path], after[path])}


def number(x):
    return float(keras.ops.convert_to_numpy(x))


class Record(keras.callbacks.Callback):
    """Keeps weights, slots and rates of every epoch; stands after the callback it watches."""

    def __init__(self):
        super().__init__()
        self.begins, self.ends, self.slots_begin, self.slots_end = [], [], [], []
        self.rates, self.logs = [], []

    def _slots(self):
        found = optimizers.slots(self.model.optimizer)
        return {path: keras.ops.convert_to_numpy(x).copy() for path, x in found.items()}

    def on_epoch_begin(self, epoch, logs=None):
        self.begins.append(values(self.model))
        self.slots_begin.append(self._slots())
        self.rates.append(number(self.model.optimizer.learning_rate))

    def on_epoch_end(self, epoch, logs=None):
        self.ends.append(values(self.model))
        self.slots_end.append(self._slots())
        self.logs.append(dict(logs))


def each_stage_of_a_built_model_moves_what_it_says_and_nothing_else():
    for batch_norm in ("frozen", "train"):
        keras.utils.set_random_seed(0)
        model = models.image_classifier(
            "mobilenet", 3, weights="none", image_size=32, alpha=0.25, seed=0
        )
        fill_batch_norm_statistics(model)
        x, y = pictures(16, 32)
        record = Record()
        stages = [0, 2] if batch_norm != "frozen" else [0, 1, "conv_pw_1[23]_relu"]
        unfreezing = GradualUnfreezing(stages, batch_norm=batch_norm)
        compiled(model).fit(
            x * 50 + 120, y, epochs=len(stages), callbacks=[unfreezing, record], **PLAIN
        )
        block_of = {weight.path: block for block, _, weight in models.named_weights(model)}
        assert len(unfreezing.history) == len(stages)
        for entry, before, after in zip(
            unfreezing.history, record.begins, record.ends, strict=True
        ):
            changed = moved(before, after)
            assert {block_of[path] for path in changed} == set(entry["trainable_blocks"])
        statistics = {path for path in changed if "moving" in path}
        norms = {path for path in changed if path.endswith(("gamma", "beta"))}
        assert bool(statistics) == (batch_norm == "train"), batch_norm
        assert bool(norms) == (batch_norm != "frozen"), batch_norm
        assert unfreezing.history[-1]["trainable_blocks"] == [
            "conv_pw_12_relu",
            "conv_pw_13_relu",
            "head",
        ]


def each_stage_of_an_own_model_moves_its_groups_and_nothing_else():
    model = compiled(own_model())
    x, y = pictures()
    record = Record()
    unfreezing = GradualUnfreezing(groups=GROUPS, epochs_per_stage=[1, 2, 1], rate_decay=0.5)
    model.fit(x, y, epochs=6, callbacks=[unfreezing, record], **PLAIN)
    assert [entry["epoch"] for entry in unfreezing.history] == [0, 1, 3, 4]
    assert [len(entry["trainable_blocks"]) for entry in unfreezing.history] == [1, 2, 3, 4]
    names = ["logits", "top_conv", "middle_conv", "stem_conv"]
    for epoch, count in enumerate([1, 2, 2, 3, 4, 4]):
        changed = moved(record.begins[epoch], record.ends[epoch])
        assert changed == {f"{name}/{x}" for name in names[:count] for x in ("kernel", "bias")}
    assert unfreezing.history[-1]["rates"] == {
        "group_1": 0.125,
        "group_2": 0.25,
        "group_3": 0.5,
        "head": 1.0,
    }
    assert unfreezing.history[0]["parameters"] == 4 * 3 + 3


def nested_models_are_grouped_by_their_own_name_or_their_layers():
    for groups in ([["inner"]], [["one", "two"]]):
        keras.utils.set_random_seed(0)
        nested = keras.Input((4,))
        hidden = keras.layers.Dense(4, name="two")(keras.layers.Dense(4, name="one")(nested))
        inner = keras.Model(nested, hidden, name="inner")
        inputs = keras.Input((4,))
        model = keras.Model(inputs, keras.layers.Dense(1, name="out")(inner(inputs)))
        model.compile(keras.optimizers.SGD(0.1), "mse")
        record = Record()
        unfreezing = GradualUnfreezing(groups=groups)
        x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
        model.fit(x, x[:, :1], epochs=2, callbacks=[unfreezing, record], **PLAIN)
        assert len(moved(record.begins[0], record.ends[0])) == 2
        assert len(moved(record.begins[1], record.ends[1])) == 6


def staying_variables_keep_their_slots_and_new_ones_start_fresh():
    model = compiled(own_model(), keras.optimizers.Adam(1e-2))
    x, y = pictures()
    record = Record()
    unfreezing = GradualUnfreezing(groups=GROUPS)
    model.fit(x, y, epochs=4, callbacks=[unfreezing, record], **PLAIN)
    for end, begin in zip(record.slots_end[:-1], record.slots_begin[1:], strict=True):
        assert set(end) < set(begin)
        for path in begin:
            np.testing.assert_array_equal(begin[path], end.get(path, 0.0), err_msg=path)
    assert [int(slots["iterations"]) for slots in record.slots_end] == [3, 6, 9, 12]


def two_branches():
    """Two networks side by side, whose gradients do not depend on each other."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    outputs = [
        keras.layers.Dense(2, name=f"{name}_out")(
            keras.layers.Dense(5, activation="tanh", name=f"{name}_in")(inputs)
        )
        for name in ("a", "b")
    ]
    return keras.Model(inputs, keras.layers.Concatenate()(outputs))


def a_branch_does_not_notice_that_another_is_unfrozen():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 6)).astype("float32")
    y = rng.normal(size=(30, 4)).astype("float32")
    for optimizer in (
        keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        keras.optimizers.AdamW(1e-2, weight_decay=0.1),
        keras.optimizers.Adam(1e-2, gradient_accumulation_steps=3),
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, 20)),
    ):
        found = []
        for epochs in (1, 99):
            model = two_branches()
            model.compile(type(optimizer).from_config(optimizer.get_config()), "mse")
            unfreezing = GradualUnfreezing(groups=[["b_.*"]], epochs_per_stage=epochs)
            model.fit(x, y, epochs=3, callbacks=[unfreezing], **PLAIN)
            found.append(values(model))
        with_transition, without = found
        for path in without:
            if path.startswith("a_"):
                np.testing.assert_allclose(
                    with_transition[path], without[path], rtol=1e-6, atol=1e-7
                )
        assert {x[0] for x in moved(with_transition, without)} >= {"b"}


class Steps(keras.callbacks.Callback):
    """Keeps the weights around each of the first steps of an epoch."""

    def __init__(self, epoch, count):
        super().__init__()
        self.epoch, self.count, self.found, self.now = epoch, count, [], False

    def _keep(self):
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        self.found.append(values(self.model))

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch == self.epoch
        if self.now:
            self._keep()

    def on_train_batch_end(self, batch, logs=None):
        if self.now and batch < self.count:
            self._keep()


def no_adam_step_of_a_newly_unfrozen_variable_exceeds_its_rate():
    rate, epochs = 1e-3, 18
    x, y = pictures(30)
    plain = {**PLAIN, "batch_size": 1}

    def largest(unfreezing, warmup_steps=0):
        model = compiled(own_model(), keras.optimizers.Adam(rate))
        steps = Steps(epochs, 3)
        model.fit(x, y, epochs=epochs + 1, callbacks=[unfreezing, steps], **plain)
        assert int(number(model.optimizer.iterations)) == (epochs + 1) * 30
        return [
            max(np.abs(after[k] - before[k]).max() for k in after if k.startswith("top_conv"))
            for before, after in zip(steps.found[:-1], steps.found[1:], strict=True)
        ]

    class Naive(keras.callbacks.Callback):
        """What people do: slots copied or not, Adam's count goes on."""

        def on_epoch_begin(self, epoch, logs=None):
            for layer in self.model.layers:
                layer.trainable = layer.name in ("logits", "top_conv")[: 1 + (epoch == epochs)]
            if epoch in (0, epochs):
                optimizer = keras.optimizers.Adam(rate)
                optimizer.build(self.model.trainable_variables)
                optimizer._iterations.assign(epoch * 30)
                self.model.optimizer = optimizer
                self.model.make_train_function(force=True)

    naive = largest(Naive())
    # sqrt(1 - 0.999**541) * 0.1 / sqrt(0.001)
    np.testing.assert_allclose(naive[0], 2.045 * rate, rtol=1e-2)
    ours = largest(GradualUnfreezing(groups=GROUPS, epochs_per_stage=epochs))
    assert 0.9 * rate < ours[0] <= rate * 1.0001, ours
    assert max(ours) <= rate * 1.01, ours
    warmed = largest(GradualUnfreezing(groups=GROUPS, epochs_per_stage=epochs, warmup_steps=10))
    np.testing.assert_allclose(warmed[0], rate / 10, rtol=1e-2)
    assert all(step <= rate * (i + 1) / 10 * 1.01 for i, step in enumerate(warmed)), warmed
    return {"naive": float(naive[0] / rate), "ours": float(ours[0] / rate)}


def other_callbacks_count_on_over_the_stages():
    x, y = pictures()
    found = {}
    for epochs_per_stage in (2, 99):
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log.csv"
            stop = keras.callbacks.EarlyStopping("val_loss", patience=6, min_delta=100.0)
            reduce = keras.callbacks.ReduceLROnPlateau(
                "val_loss", patience=3, min_delta=100.0, factor=0.5
            )
            record = Record()
            model = compiled(own_model())
            model.fit(
                x,
                y,
                epochs=20,
                validation_data=(x, y),
                callbacks=[
                    GradualUnfreezing(groups=GROUPS, epochs_per_stage=epochs_per_stage),
                    stop,
                    reduce,
                    keras.callbacks.CSVLogger(str(log)),
                    keras.callbacks.TensorBoard(f"{folder}/board"),
                    keras.callbacks.ModelCheckpoint(f"{folder}/{{epoch}}.keras"),
                    record,
                ],
                **PLAIN,
            )
            with log.open() as file:
                rows = list(csv.DictReader(file))
            assert [int(row["epoch"]) for row in rows] == list(range(7))
            assert stop.wait == 6
            assert stop.stopped_epoch == 6
            assert list(Path(folder).glob("board/*/events*"))
            again = keras.models.load_model(Path(folder) / "7.keras")
            assert not moved(values(model), values(again))
        found[epochs_per_stage] = [row["learning_rate"] for row in rows]
        np.testing.assert_allclose(record.rates, [1e-2] * 4 + [5e-3] * 3, rtol=1e-6)
    assert found[2] == found[99]


def the_rate_is_multiplied_at_each_stage():
    x, y = pictures()
    schedule = keras.optimizers.schedules.ExponentialDecay(1e-2, 3, 0.9)
    for rate in (1e-2, schedule):
        model = compiled(own_model(), keras.optimizers.SGD(rate))
        record = Record()
        reduce = keras.callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=9.0, factor=0.1)
        others = [reduce] if rate == 1e-2 else []
        unfreezing = GradualUnfreezing(groups=GROUPS, rate_factor=0.5)
        model.fit(x, y, epochs=5, callbacks=[unfreezing, *others, record], **PLAIN)
        plain = [0.9**i for i in range(5)]
        if others:
            plain = [1, 1, 0.1, 0.01, 0.001]
        expected = [1e-2 * p * 0.5 ** min(i, 3) for i, p in enumerate(plain)]
        np.testing.assert_allclose(record.rates, expected, rtol=1e-5)
        np.testing.assert_allclose(
            [entry["learning_rate"] for entry in unfreezing.history], expected[:4], rtol=1e-5
        )


def depth_decays_the_rate_of_a_block():
    x, y = pictures()
    found = []
    for decay in (1.0, 0.25):
        model = compiled(own_model(), keras.optimizers.SGD(1e-2))
        unfreezing = GradualUnfreezing([3], groups=GROUPS, rate_decay=decay)
        before = values(model)
        model.fit(x, y, batch_size=24, epochs=1, shuffle=False, verbose=0, callbacks=[unfreezing])
        after = values(model)
        found.append({path: after[path] - before[path] for path in after})
    for depth, name in enumerate(("logits", "top_conv", "middle_conv", "stem_conv")):
        path = f"{name}/kernel"
        np.testing.assert_allclose(
            found[1][path], found[0][path] * 0.25**depth, rtol=2e-2, atol=2e-8
        )


def evaluation_reads_the_weights_of_its_own_stage():
    # On JAX a trace of the former stage fits the new stage's shapes.
    x, y = pictures()
    model = compiled(own_model())
    by_hand = []

    class Compare(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logits = self.model(x, training=False)
            loss = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
            by_hand.append((number(keras.ops.mean(loss)), logs["val_loss"]))

    stages = ["group_2", "group_3", "group_2"]
    unfreezing = GradualUnfreezing(stages, groups=GROUPS)
    record = Record()
    model.fit(
        x,
        y,
        epochs=3,
        validation_data=(x, y),
        callbacks=[unfreezing, Compare(), record],
        **PLAIN,
    )
    for expected, reported in by_hand:
        np.testing.assert_allclose(reported, expected, rtol=1e-5)
    for epoch, name in enumerate(("middle", "top", "middle")):
        changed = moved(record.begins[epoch], record.ends[epoch])
        assert {path.split("_")[0].split("/")[0] for path in changed} == {"logits", name}
    np.testing.assert_allclose(model.evaluate(x, y, verbose=0)[0], by_hand[-1][0], rtol=1e-5)
    np.testing.assert_allclose(
        model.predict(x, verbose=0), keras.ops.convert_to_numpy(model(x)), atol=1e-5
    )


def compiled_steps_eager_steps_and_several_steps_per_call_do_the_same():
    x, y = pictures(32)
    found = []
    for options in (
        {"jit_compile": False},
        {"jit_compile": True},
        {"run_eagerly": True},
        {"steps_per_execution": 2},
    ):
        model = compiled(own_model(), **options)
        record = Record()
        unfreezing = GradualUnfreezing([1, 3], groups=GROUPS, batch_norm="affine")
        model.fit(x, y, epochs=2, callbacks=[unfreezing, record], **PLAIN)
        changed = moved(record.begins[0], record.ends[0])
        assert changed == {
            *(f"logits/{x}" for x in ("kernel", "bias")),
            *(f"top_conv/{x}" for x in ("kernel", "bias")),
            *(f"top_norm/{x}" for x in ("gamma", "beta")),
        }
        found.append(values(model))
    for other in found[1:]:
        for path in other:
            np.testing.assert_allclose(other[path], found[0][path], atol=2e-3, err_msg=path)


def mixed_precision_trains_all_stages():
    x, y = pictures()
    try:
        for policy in ("mixed_bfloat16", "mixed_float16"):
            keras.config.set_dtype_policy(policy)
            model = compiled(own_model())
            wrapped = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
            assert wrapped == (policy == "mixed_float16")
            record = Record()
            model.fit(
                x,
                y,
                epochs=4,
                callbacks=[GradualUnfreezing(groups=GROUPS, rate_factor=0.5), record],
                **PLAIN,
            )
            assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == wrapped
            np.testing.assert_allclose(record.rates, [1e-2, 5e-3, 2.5e-3, 1.25e-3], rtol=1e-5)
            for end, begin in zip(record.slots_end[:-1], record.slots_begin[1:], strict=True):
                for path in set(end) - {"learning_rate"}:
                    np.testing.assert_array_equal(begin[path], end[path], err_msg=path)
    finally:
        keras.config.set_dtype_policy("float32")


def a_saved_model_reloads_with_its_optimizer_and_trains_on_alike():
    x, y = pictures()
    model = compiled(own_model())
    model.fit(
        x,
        y,
        epochs=3,
        callbacks=[GradualUnfreezing(groups=GROUPS, rate_decay=0.5, warmup_steps=5)],
        **PLAIN,
    )
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.save(f"{folder}/model.keras")
        again = keras.models.load_model(f"{folder}/model.keras")
    assert type(again.optimizer) is type(model.optimizer) is optimizers.LayerwiseAdam
    for both in (model, again):
        both.fit(x, y, epochs=1, **PLAIN)
    ours, theirs = optimizers.slots(model.optimizer), optimizers.slots(again.optimizer)
    assert set(ours) == set(theirs)
    for path in ours:
        np.testing.assert_allclose(number_list(ours[path]), number_list(theirs[path]), atol=1e-6)
    first, second = values(model), values(again)
    for path in first:
        np.testing.assert_allclose(first[path], second[path], atol=1e-6)


def number_list(variable):
    return keras.ops.convert_to_numpy(variable)


def a_second_fit_starts_again_with_the_first_stage_and_rate():
    x, y = pictures()
    model = compiled(own_model())
    unfreezing = GradualUnfreezing(groups=GROUPS, rate_factor=0.5)
    for rate in (1e-2, 1e-2, 4e-2):
        if rate == 4e-2:
            model.optimizer.learning_rate = rate
        record = Record()
        model.fit(x, y, epochs=3, callbacks=[unfreezing, record], **PLAIN)
        np.testing.assert_allclose(record.rates, [rate, rate / 2, rate / 4], rtol=1e-5)
        assert [entry["stage"] for entry in unfreezing.history] == [0, 1, 2]
        changed = moved(record.begins[0], record.ends[0])
        assert changed == {"logits/kernel", "logits/bias"}
    assert int(number(model.optimizer.iterations)) == 27


def a_fit_with_initial_epoch_goes_on_where_the_last_one_ended():
    x, y = pictures()

    def callback():
        return GradualUnfreezing(
            groups=GROUPS, epochs_per_stage=2, rate_factor=0.5, rate_decay=0.9, warmup_steps=4
        )

    def optimizer():
        return keras.optimizers.Adam(1e-2)

    whole = compiled(own_model(), optimizer())
    record = Record()
    whole.fit(x, y, epochs=7, callbacks=[callback(), record], **PLAIN)
    for border, ways in ((2, ["new"]), (3, ["loaded"]), (4, ["same", "loaded"])):
        for way in ways:
            model = compiled(own_model(), optimizer())
            first = second = callback()
            model.fit(x, y, epochs=border, callbacks=[first], **PLAIN)
            if way != "same":
                second = callback()
            if way == "loaded":
                with tempfile.TemporaryDirectory() as folder:
                    model.save(f"{folder}/model.keras")
                    model = keras.models.load_model(f"{folder}/model.keras")
            again = Record()
            model.fit(x, y, initial_epoch=border, epochs=7, callbacks=[second, again], **PLAIN)
            np.testing.assert_allclose(again.rates, record.rates[border:], rtol=1e-5)
            ours, theirs = values(model), values(whole)
            for path in ours:
                np.testing.assert_allclose(
                    ours[path], theirs[path], atol=1e-6, err_msg=f"{border} {way} {path}"
                )


def backup_and_restore_resumes_weights_and_stage():
    data = pictures()

    class Crash(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == self.at:
                raise KeyboardInterrupt

    found = {}
    for order, epochs in (("before", (1, 3)), ("after", (3,))):
        for at in epochs:
            with tempfile.TemporaryDirectory() as folder:

                def run(crash, record, order=order, folder=folder):
                    model = compiled(own_model())
                    unfreezing = GradualUnfreezing(groups=GROUPS, epochs_per_stage=2)
                    backup = keras.callbacks.BackupAndRestore(folder)
                    both = [unfreezing, backup] if order == "before" else [backup, unfreezing]
                    with contextlib.suppress(KeyboardInterrupt):
                        model.fit(*data, epochs=5, callbacks=[*both, record, *crash], **PLAIN)
                    return unfreezing

                crash, first, second = Crash(), Record(), Record()
                crash.at = at
                run([crash], first)
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always")
                    unfreezing = run([], second)
                assert unfreezing.history[0]["epoch"] == at
                assert unfreezing.history[0]["stage"] == at // 2
                assert not moved(first.ends[at - 1], second.begins[0])
                found[order, at] = (
                    int(second.slots_begin[0]["iterations"]) == at * 3,
                    any("Skipping variable loading" in str(x.message) for x in said),
                )
    assert found["before", 1] == (True, False), found
    assert found["before", 3] == found["after", 3] == (False, True), found
    return {f"{order} {at}": x for (order, at), x in found.items()}


def a_stage_ends_when_its_figure_stalls():
    x, y = pictures()
    model = compiled(own_model())
    unfreezing = GradualUnfreezing(groups=GROUPS, monitor="val_loss", min_delta=100.0, patience=2)
    history = model.fit(
        x, y, epochs=9, validation_data=(x, y), callbacks=[unfreezing], **PLAIN
    ).history
    # The first epoch of a stage is its best; two more end it.
    assert [entry["epoch"] for entry in unfreezing.history] == [0, 3, 6]
    assert len(history["loss"]) == 9
    # As if fit had been one: the patience of the stage is counted anew.
    model.fit(
        x,
        y,
        initial_epoch=9,
        epochs=13,
        validation_data=(x, y),
        callbacks=[unfreezing],
        **PLAIN,
    )
    assert [(entry["epoch"], entry["stage"]) for entry in unfreezing.history] == [(9, 3)]

    limited = GradualUnfreezing(groups=GROUPS, monitor="loss", patience=9, epochs_per_stage=2)
    compiled(own_model()).fit(x, y, epochs=5, callbacks=[limited], **PLAIN)
    assert [entry["epoch"] for entry in limited.history] == [0, 2, 4]

    fresh = GradualUnfreezing(groups=GROUPS, monitor="loss")
    expect(ModelError, "only|knows what stage", lambda: compiled(own_model()).fit(
        x, y, initial_epoch=2, epochs=3, callbacks=[fresh], **PLAIN))  # fmt: skip
    wrong = GradualUnfreezing(groups=GROUPS, monitor="val_lss")
    expect(TrainingError, "did you mean 'val_loss'", lambda: compiled(own_model()).fit(
        x, y, epochs=3, validation_data=(x, y), callbacks=[wrong], **PLAIN))  # fmt: skip
    missing = GradualUnfreezing(groups=GROUPS, monitor="val_loss")
    expect(TrainingError, "no epoch reported 'val_loss'", lambda: compiled(own_model()).fit(
        x, y, epochs=3, callbacks=[missing], **PLAIN))  # fmt: skip


def a_stage_starts_from_the_best_epoch_of_the_one_before():
    x, y = pictures()
    model = compiled(own_model(), keras.optimizers.SGD(1e-1))
    unfreezing = GradualUnfreezing(
        groups=GROUPS, monitor="val_loss", min_delta=100.0, patience=2, restore_best=True
    )
    record = Record()
    model.fit(x, y, epochs=5, validation_data=(x, y), callbacks=[unfreezing, record], **PLAIN)
    assert not moved(record.begins[3], record.ends[0])
    assert moved(record.begins[3], record.ends[2])


def wrong_movements_are_found():
    x, y = pictures()

    class Meddle(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            weight = self.model.get_layer("stem_norm").moving_mean
            weight.assign(weight + 1e-3)

    def fit(model, *callbacks):
        unfreezing = GradualUnfreezing(groups=GROUPS)
        return lambda: model.fit(x, y, epochs=3, callbacks=[unfreezing, *callbacks], **PLAIN)

    model = compiled(own_model())
    expect(TrainingError, "1 frozen weights moved .stem_norm/moving_mean", fit(model, Meddle()))
    still = compiled(own_model(), keras.optimizers.SGD(0.0))
    expect(TrainingError, "stage 1 failed its check: nothing moved in head", fit(still))

    class Freeze(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:  # as if the train function had never been rebuilt
                self.model.optimizer.learning_rate = 0.0

    stuck = compiled(own_model(), keras.optimizers.SGD(0.1))
    expect(TrainingError, "stage 2 failed its check: nothing moved in group_3, head", fit(
        stuck, Freeze()))  # fmt: skip

    # EarlyStopping that restores the weights of a former stage is no wrong movement.
    for order in (1, -1):
        stop = keras.callbacks.EarlyStopping(
            "loss", patience=3, min_delta=100.0, restore_best_weights=True
        )
        model = compiled(own_model())
        both = [GradualUnfreezing(groups=GROUPS), stop][::order]
        model.fit(x, y, epochs=9, callbacks=both, **PLAIN)
        assert stop.stopped_epoch == 3


def a_second_stage_with_the_same_weights_keeps_the_train_function():
    x, y = pictures()
    model = compiled(own_model())
    kept = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kept.append((id(self.model.optimizer), id(self.model.train_function)))

    unfreezing = GradualUnfreezing([0, 0, 1], groups=GROUPS, rate_factor=0.5)
    model.fit(x, y, epochs=3, callbacks=[unfreezing, Look()], **PLAIN)
    assert kept[0] == kept[1]
    assert len({*kept}) == 2
    assert len(unfreezing.history) == 3


def rates_set_by_batch_equal_the_schedule():
    x, y = pictures(40)
    for decay, warmup_epochs in (("cosine", 1.5), ("one_cycle", 0.0), ("constant", 0.4)):
        found = []
        steps = 5
        for way in ("schedule", "callback"):
            rate = 1e-2
            if way == "schedule":
                rate = optimizers.StageSchedule(
                    decay, 1e-2, 4 * steps, round(warmup_epochs * steps)
                )
            model = compiled(own_model(), keras.optimizers.SGD(rate, momentum=0.9))
            callback = StageRates(decay, 1e-2, epochs=4, warmup_epochs=warmup_epochs)
            callbacks = [callback] if way == "callback" else []
            record = Record()
            record._slots = dict
            model.fit(x, y, epochs=4, callbacks=[*callbacks, record], **PLAIN)
            found.append(values(model))
            if way == "callback":
                last = number(model.optimizer.learning_rate)
                expected = optimizers.StageSchedule(
                    decay, 1e-2, 4 * steps, round(warmup_epochs * steps)
                )
                np.testing.assert_allclose(last, number(expected(19)), rtol=1e-6)
                model.fit(x, y, epochs=1, callbacks=[callback], **PLAIN)
                again = number(model.optimizer.learning_rate)
                np.testing.assert_allclose(again, number(expected(4)), rtol=1e-6)
                model.fit(x, y, initial_epoch=2, epochs=3, callbacks=[callback], **PLAIN)
                third = number(model.optimizer.learning_rate)
                np.testing.assert_allclose(third, number(expected(14)), rtol=1e-6)
        for path in found[0]:
            np.testing.assert_allclose(found[1][path], found[0][path], atol=1e-6, err_msg=path)


def rates_by_batch_and_unfreezing_work_together():
    x, y = pictures(40)
    found = []
    for way in ("schedule", "callback"):
        schedule = optimizers.StageSchedule("cosine", 1e-2, 20, 2)
        rate = schedule if way == "schedule" else 1.0
        model = compiled(own_model(), keras.optimizers.Adam(rate))
        callbacks = [StageRates("cosine", 1e-2, epochs=4, warmup_epochs=0.4)]
        model.fit(
            x,
            y,
            epochs=4,
            callbacks=[
                GradualUnfreezing(groups=GROUPS),
                *(callbacks if way == "callback" else []),
            ],
            **PLAIN,
        )
        found.append(values(model))
    for path in found[0]:
        np.testing.assert_allclose(found[1][path], found[0][path], atol=2e-5, err_msg=path)


def expect(kind, words, call):
    """As pytest.raises does; the script runs without it."""
    import re

    try:
        call()
    except kind as error:
        assert re.search(words, str(error)), error
    else:
        raise AssertionError(f"no {kind.__name__} of {words!r}")


CHECKS = {
    check.__name__: check
    for check in (
        each_stage_of_a_built_model_moves_what_it_says_and_nothing_else,
        each_stage_of_an_own_model_moves_its_groups_and_nothing_else,
        nested_models_are_grouped_by_their_own_name_or_their_layers,
        staying_variables_keep_their_slots_and_new_ones_start_fresh,
        a_branch_does_not_notice_that_another_is_unfrozen,
        no_adam_step_of_a_newly_unfrozen_variable_exceeds_its_rate,
        other_callbacks_count_on_over_the_stages,
        the_rate_is_multiplied_at_each_stage,
        depth_decays_the_rate_of_a_block,
        evaluation_reads_the_weights_of_its_own_stage,
        compiled_steps_eager_steps_and_several_steps_per_call_do_the_same,
        mixed_precision_trains_all_stages,
        a_saved_model_reloads_with_its_optimizer_and_trains_on_alike,
        a_second_fit_starts_again_with_the_first_stage_and_rate,
        a_fit_with_initial_epoch_goes_on_where_the_last_one_ended,
        backup_and_restore_resumes_weights_and_stage,
        a_stage_ends_when_its_figure_stalls,
        a_stage_starts_from_the_best_epoch_of_the_one_before,
        wrong_movements_are_found,
        a_second_stage_with_the_same_weights_keeps_the_train_function,
        rates_set_by_batch_equal_the_schedule,
        rates_by_batch_and_unfreezing_work_together,
    )
}

if __name__ == "__main__":
    import time

    for name in sys.argv[1:] or CHECKS:
        begin = time.monotonic()
        try:
            said, found = "", CHECKS[name]()
        except Exception:
            said, found = traceback.format_exc(), None
        seconds = round(time.monotonic() - begin, 1)
        print(json.dumps({"check": name, "error": said, "found": found, "seconds": seconds}))
        sys.stdout.flush()
