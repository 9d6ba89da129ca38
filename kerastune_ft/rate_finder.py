"""Finds a learning rate by trying them all: a range test for every stage of a recipe.

A copy of the model trains on mini-batches while the rate rises geometrically from one that moves
nothing to one that breaks everything; where the loss falls steepest is a rate to train with.
Nothing else changes: not the model, not how it is compiled, no random state. After Smith 2017,
https://arxiv.org/abs/1506.01186, and fastai's `lr_find`, https://arxiv.org/abs/2002.04688.

    [(curve.suggestion, curve.verdict()) for curve in find(model, recipe, splits)]
"""

from __future__ import annotations

import collections
import contextlib
import csv
import hashlib
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras.src.backend.common import global_state

from kerastune_ft import files, models
from kerastune_ft.data import Splits, feeding
from kerastune_ft.errors import TrainingError, did_you_mean
from kerastune_ft.recipe import Recipe
from kerastune_ft.stages import StagePlan, plan
from kerastune_ft.tasks import TASKS

LAG = 0.05  # of the smoothed loss, and half the span of its slope: a share of all steps
DIVERGED = 4.0  # a smoothed loss so many times the best one ends the test


@dataclass(frozen=True)
class Curve:
    """Holds how the loss of one stage went as the rate rose.

    Args:
        stage: Its name.
        recipe_rate: Its `learning_rate`; rates of blocks and of the head rise in proportion.
        rates: One per update that was made.
        losses: Of the batches of each update, before it.
        smoothed: Their exponential average, corrected for its beginning.
        steepest: The rate at which that falls fastest per decade; None if by no more than noise.
        minimum: The rate at which it is lowest; None likewise.
        diverged: Whether the loss exploded, or was no number, and the test ended.
    """

    stage: str
    recipe_rate: float
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    steepest: float | None
    minimum: float | None
    diverged: bool

    @property
    def suggestion(self) -> float | None:
        """The smaller of the steepest and a tenth of the minimum."""
        if self.steepest is None or self.minimum is None:
            return None
        return min(self.steepest, self.minimum / 10)

    def verdict(self) -> str:
        """Returns a sentence on the recipe's rate."""
        if self.suggestion is None or self.minimum is None:
            return "no suggestion: the loss falls by no more than it scatters; more steps?"
        share = self.recipe_rate / self.suggestion
        how = f"{max(share, 1 / share):.2g} times {'higher' if share > 1 else 'lower'}"
        said = "within a factor 3" if 1 / 3 <= share <= 3 else how
        if self.recipe_rate > self.minimum:
            said += ", where the loss rises or diverges"
        elif self.minimum == self.rates[-1]:
            said += "; the loss still falls at the highest rate tried"
        return f"recipe's {self.recipe_rate:g} is {said}"


def find(
    model: keras.Model,
    recipe: Recipe,
    splits: Splits,
    *,
    stage: str | int | None = None,
    steps: int = 100,
    lowest: float = 1e-7,
    highest: float = 1.0,
    show: Callable[[str], None] = lambda name: None,
) -> list[Curve]:
    """Makes the range test of the stages of a recipe, on one device.

    Every stage is measured on the weights that `model` has now, with its own blocks, optimizer,
    shares of rates and batch normalisation, on the batches of the first epochs in their order.
    Stages after the first would begin with what those before them have trained.

    Args:
        model: Made by a builder, or reloaded; stays as it is.
        recipe: Says how to train.
        splits: The data; the training split alone is looked at.
        stage: Name or number, from 1, of one stage; None for all.
        steps: Updates, 10 or more; each takes `train.accumulate_steps` batches.
        lowest: Rate of the first update.
        highest: Rate of the last update.
        show: Is called with the name of each stage as it begins.

    Raises:
        TrainingError: If there is no such stage, or a number is out of its range.
    """
    check(steps, lowest, highest)
    ladder = [lowest * (highest / lowest) ** (step / (steps - 1)) for step in range(steps)]
    task, train = TASKS[recipe.task.name], recipe.train
    weights: dict[str | None, Any] = {task.weighs: splits.class_weights(train.class_weight)}
    curves = []
    with _untouched(model):
        twin = _copy(model)
        plans = plan(twin, train, feeding.steps(splits.train, recipe))
        for chosen in _chosen(plans, stage):
            show(chosen.name)
            for theirs, ours in zip(model.variables, twin.variables, strict=True):
                ours.assign(_value(theirs))
            chosen.enter(twin)
            models.set_stochastic_depth(twin, train.stochastic_depth)
            loss = task.loss(recipe.task, splits.outputs, weights.get("positives"))
            twin.compile(chosen.optimizer(twin, train, chosen.stage.learning_rate), loss)
            stream = feeding.dataset(
                splits.train,
                recipe,
                len(splits.class_names),
                training=True,
                epochs=range(math.ceil(steps * train.accumulate_steps / chosen.steps)),
                class_weights=weights.get("examples"),
                sampling=splits.sampling(recipe.data.sampling),
            ).as_numpy_iterator()
            losses, diverged = _climb(twin, ladder, stream, train.accumulate_steps)
            curves.append(_curve(chosen, ladder, losses, diverged))
    return curves


def check(steps: int, lowest: float, highest: float) -> None:
    """Refuses numbers that make no test; see `find`."""
    if steps < 10:
        raise TrainingError(f"steps: expected 10 or more, got {steps}.")
    if not 0 < lowest < highest < math.inf:
        raise TrainingError(f"rates: expected them to rise above 0, got {lowest:g} to {highest:g}.")


def write(curves: Sequence[Curve], path: Path) -> None:
    """Writes a CSV file with a row per update of each stage."""
    with files.replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("stage", "step", "learning_rate", "loss", "smoothed_loss"))
        for curve in curves:
            rows = zip(curve.rates, curve.losses, curve.smoothed, strict=True)
            writer.writerows((curve.stage, step, *row) for step, row in enumerate(rows, 1))


def fingerprint(model: keras.Model) -> str:
    """Returns a sha256 of a model's variables, flags and compile state, and of random states."""
    state = hashlib.sha256()
    slots = getattr(getattr(model, "optimizer", None), "variables", [])
    for variable in [*model.variables, *model.metrics_variables, *slots]:
        state.update(repr((variable.path, variable.trainable)).encode())
        state.update(_value(variable).tobytes())
    flags = [(x.name, x._trainable, "call" in vars(x)) for x in models.layers_of(model)]
    compiled = ("optimizer", "train_function", "_compile_loss", "_compile_metrics", "_loss_tracker")
    made = [model.compiled, *(id(getattr(model, name, None)) for name in compiled)]
    state.update(repr((flags, made, _around())).encode())
    return state.hexdigest()


def _around() -> tuple[Any, ...]:
    """Returns the states of Python, NumPy and Keras, and how often Keras gave each name."""
    generator = global_state.get_global_attribute("global_seed_generator")
    seed = None if generator is None else _value(generator.state).tolist()
    numpy_: Any = np.random.get_state()
    names = dict(global_state.get_global_attribute("object_name_uids") or {})
    return random.getstate(), (numpy_[0], numpy_[1].tolist(), *numpy_[2:]), generator, seed, names


@contextlib.contextmanager
def _untouched(model: keras.Model) -> Iterator[None]:
    """Puts back what lies around the model, and holds the model to be as it was."""
    before = fingerprint(model)
    python, numpy_, generator, seed, names = _around()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_)
        global_state.set_global_attribute("object_name_uids", collections.defaultdict(int, names))
        global_state.set_global_attribute("global_seed_generator", generator)
        if generator is not None:
            generator.state.assign(seed)
    assert fingerprint(model) == before, "the range test has changed the model or a random state"


def _value(variable: keras.Variable) -> Any:
    # A copy: on JAX a train step gives buffers away, and numpy would look into them.
    return np.array(keras.ops.convert_to_numpy(variable))


def _copy(model: keras.Model) -> keras.Model:
    def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
        if type(layer) is type(model):  # KerasHub's own networks copy themselves
            return keras.models.clone_model(layer, clone_function=copy)
        if not (isinstance(layer, keras.layers.Dropout) and layer._seed_generators):
            return type(layer).from_config(layer.get_config())
        copied = type(layer).from_config({**layer.get_config(), "rate": 0.5})
        if "_kft_rate" in vars(layer):
            vars(copied)["_kft_rate"] = vars(layer)["_kft_rate"]
        copied.rate = layer.rate  # with which Keras makes no generator if it is 0
        return copied

    twin = copy(model)
    ours, theirs = ([(v.name, tuple(v.shape)) for v in one.variables] for one in (twin, model))
    assert ours == theirs, f"the configuration of '{model.name}' gives other variables"
    return twin


def _chosen(plans: list[StagePlan], stage: str | int | None) -> list[StagePlan]:
    names = [one.name for one in plans]
    known = {str(n): one for n, one in enumerate(plans, 1)} | {one.name: one for one in plans}
    if stage is not None and str(stage) not in known:
        raise TrainingError(
            f"stage '{stage}' is not in the recipe{did_you_mean(str(stage), names) or ';'} "
            f"expected 1 to {len(plans)}, or one of {', '.join(names)}."
        )
    return plans if stage is None else [known[str(stage)]]


def _climb(
    model: keras.Model, ladder: Sequence[float], batches: Iterator[Any], accumulate: int
) -> tuple[list[float], bool]:
    """Trains while the rate rises; returns the loss of each update, and whether it exploded."""
    losses: list[float] = []
    best = math.inf
    for rate in ladder:
        model.optimizer.learning_rate = rate
        parts = itertools.islice(batches, accumulate)
        found = [model.train_on_batch(*part, return_dict=True)["loss"] for part in parts]
        losses.append(float(np.mean(found)))
        smoothed = _smooth(losses, len(ladder))[-1]
        if len(losses) > LAG * len(ladder):  # an average of few is a bad start
            best = min(best, smoothed)
        if not math.isfinite(smoothed) or smoothed > DIVERGED * best:
            return losses, True
    return losses, False


def _smooth(losses: Sequence[float], steps: int) -> list[float]:
    """Returns the exponential average that lags by `LAG * steps`, corrected for its beginning."""
    keep = LAG * steps / (1 + LAG * steps)
    mean, smoothed = 0.0, []
    for number, loss in enumerate(losses, 1):
        mean = keep * mean + (1 - keep) * loss
        smoothed.append(mean / (1 - keep**number))
    return smoothed


def _curve(one: StagePlan, ladder: Sequence[float], losses: list[float], diverged: bool) -> Curve:
    smoothed, reach = _smooth(losses, len(ladder)), math.ceil(LAG * len(ladder))
    values = np.array([loss for loss in smoothed if math.isfinite(loss)])
    steepest = minimum = None
    if len(values) > 3 * reach:
        lowest = reach + int(np.argmin(values[reach:]))
        flat = np.array(losses[: max(8, 2 * reach)])
        # Neighbours differ by noise alone, also where the loss falls; the average has less of it.
        scatter = float(np.std(np.diff(flat))) / math.sqrt(2 * (1 + 2 * LAG * len(ladder)))
        if values[lowest] < float(np.mean(flat)) - 5 * scatter:
            # A slope over a span: between neighbours it is noise.
            slopes = (values[2 * reach :] - values[: -2 * reach])[: lowest - reach + 1]
            steepest, minimum = ladder[reach + int(np.argmin(slopes))], ladder[lowest]
    every = (tuple(ladder[: len(losses)]), tuple(losses), tuple(smoothed))
    return Curve(one.name, one.stage.learning_rate, *every, steepest, minimum, diverged)
