"""Finds a learning rate by trying them all: a range test for every stage of a recipe.

A copy of the model trains on mini-batches while the rate rises geometrically from one that moves
nothing to one that breaks everything; where the loss falls steepest is a rate to train with.
Nothing else changes: not the model, not how it is compiled, no random state.

    curves = find(model, recipe, splits, steps=100)
    curve = find_learning_rate(model, x, y, loss="mse", optimizer="sgd")
    curve.suggestion, curve.verdict()

References:
    - Smith 2017, cyclical learning rates. https://arxiv.org/abs/1506.01186
    - Howard & Gugger 2020, fastai. https://arxiv.org/abs/2002.04688
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras.src.backend.common import global_state

from kerastune_ft import files, models, optimizers
from kerastune_ft.data import Splits, augmentation, images
from kerastune_ft.errors import ModelError, TrainingError, did_you_mean
from kerastune_ft.stages import StagePlan, plan
from kerastune_ft.tasks import TASKS

if TYPE_CHECKING:
    from kerastune_ft.recipe import Recipe

LAG = 0.05
"""How far the smoothed loss lags behind, as a share of all steps."""

DIVERGED = 4.0
"""A smoothed loss so many times the best one ends the test."""


@dataclass(frozen=True)
class Curve:
    """Holds how the loss of one stage went as the rate rose.

    Args:
        stage: Its name.
        recipe_rate: The stage's `learning_rate`, None of a script. Rates of single blocks and of
            the head rise in proportion to it.
        rates: One per update that was made.
        losses: Of the batches of each update, before it.
        smoothed: Their exponential average, corrected for its beginning.
        steepest: The rate at which the smoothed loss falls fastest per decade; None if it does not
            fall by more than it scatters.
        minimum: The rate at which it is lowest; None likewise.
        diverged: Whether the loss exploded, or was no number, before the highest rate.
    """

    stage: str
    recipe_rate: float | None
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
        """Returns what the test says of the recipe's rate, or of the test itself."""
        if self.suggestion is None or self.minimum is None:
            return "no suggestion: the loss does not fall by more than it scatters; more steps?"
        said = []
        if self.recipe_rate is not None:
            share = self.recipe_rate / self.suggestion
            how = "within a factor 3"
            if not 1 / 3 <= share <= 3:
                how = f"{max(share, 1 / share):.2g} times {'higher' if share > 1 else 'lower'}"
            if self.diverged and self.recipe_rate >= self.rates[-1]:
                how += f"; the loss diverges at {self.rates[-1]:.2g}"
            elif self.recipe_rate > self.minimum:
                how += "; the loss rises there"
            said.append(f"recipe's {self.recipe_rate:g} is {how}")
        if not self.diverged and self.minimum == self.rates[-1]:
            said.append("the loss still falls at the highest rate: raise it")
        return "; ".join(said) or "the loss falls and rises again"


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
        steps: Updates; each takes `train.accumulate_steps` batches.
        lowest: Rate of the first update.
        highest: Rate of the last update.
        show: Is called with the name of each stage as it begins.

    Raises:
        ModelError: If the model cannot be copied.
        TrainingError: If there is no such stage, or a number is out of its range.
    """
    ladder = _ladder(steps, lowest, highest)
    task, train = TASKS[recipe.task.name], recipe.train
    class_weights = splits.class_weights(train.class_weight)
    positives = None
    if class_weights is not None and task.weighs == "positives":
        positives = class_weights.tolist()
    count = images.steps(len(splits.train), recipe.data.batch_size)
    curves = []
    with _untouched(model):
        twin = _copy(model)
        plans = plan(twin, train, len(splits.train), recipe.data.batch_size)
        for stage_plan in _chosen(plans, stage):
            show(stage_plan.name)
            _copy_values(model, twin)
            stage_plan.enter(twin)
            optimizer = _optimizer(twin, recipe, stage_plan, lowest)
            twin.compile(optimizer, task.loss(recipe.task, splits.outputs, positives))
            batches = images.dataset(
                splits.train.content,
                splits.train.labels,
                image_size=recipe.backbone.side,
                channels=recipe.backbone.channels,
                batch_size=recipe.data.batch_size,
                num_classes=len(splits.class_names),
                resize=recipe.data.resize,
                seed=train.seed,
                shuffle=True,
                epochs=range(math.ceil(steps * train.accumulate_steps / count)),
                augment=augmentation.Augmentation(
                    recipe.data.augmentation, recipe.backbone.side, recipe.backbone.channels
                ),
                class_weights=class_weights if task.weighs == "examples" else None,
            )
            losses, diverged = _climb(
                twin, ladder, batches.as_numpy_iterator(), train.accumulate_steps
            )
            rate = stage_plan.stage.learning_rate
            curves.append(_curve(stage_plan.name, rate, ladder, losses, diverged))
    return curves


def find_learning_rate(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    loss: Any,
    optimizer: str | keras.optimizers.Optimizer = "adam",
    batch_size: int = 32,
    steps: int = 100,
    lowest: float = 1e-7,
    highest: float = 1.0,
    seed: int = 0,
) -> Curve:
    """Makes the range test of a model of your own script, as its flags are now.

    Args:
        model: Built, and made of layers that a configuration describes; stays as it is.
        x: Arrays of examples; without `y`, batches `(x, y)` or `(x, y, weights)` such as a
            `tf.data.Dataset`, which is begun again where it ends.
        y: Labels or targets.
        loss: As `compile` takes it.
        optimizer: As `compile` takes it; a copy is used, with its settings but the rate.
        batch_size: Examples per batch, of arrays.
        steps: Updates.
        lowest: Rate of the first update.
        highest: Rate of the last update.
        seed: Of the order, of arrays.

    Raises:
        ModelError: If the model cannot be copied.
        TrainingError: If a number is out of its range, or there are no batches.
    """
    ladder = _ladder(steps, lowest, highest)
    with _untouched(model):
        twin = _copy(model)
        _copy_values(model, twin)
        _copy_flags(model, twin)
        given = keras.optimizers.get(optimizer)
        config = {**given.get_config(), "learning_rate": lowest}
        own = type(given).from_config(config)
        twin.compile(own, loss)
        batches = _batches(x, y, batch_size, seed)
        accumulate = own.gradient_accumulation_steps or 1
        losses, diverged = _climb(twin, ladder, batches, accumulate)
    return _curve(model.name, None, ladder, losses, diverged)


def write(curves: Sequence[Curve], path: Path) -> None:
    """Writes a CSV file: a row per update of each stage."""
    with files.replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("stage", "step", "learning_rate", "loss", "smoothed_loss"))
        for curve in curves:
            rows = zip(curve.rates, curve.losses, curve.smoothed, strict=True)
            writer.writerows((curve.stage, step, *row) for step, row in enumerate(rows, 1))


def fingerprint(model: keras.Model) -> str:
    """Returns a sha256 of all that training changes: of the model and of every random state.

    That is weights, statistics, seeds, flags, what `compile` made and its variables; the states of
    Python, NumPy and Keras, and the numbers that Keras gives to names.
    """
    state = hashlib.sha256()

    def add(*values: Any) -> None:
        state.update(repr(values).encode())

    optimizer = getattr(model, "optimizer", None)
    kept = [*model.variables, *model.metrics_variables, *(optimizer.variables if optimizer else ())]
    generator = global_state.get_global_attribute("global_seed_generator")
    for variable in kept + ([generator.state] if generator is not None else []):
        add(variable.path, variable.trainable, variable.dtype)
        state.update(np.array(keras.ops.convert_to_numpy(variable)).tobytes())
    for layer in models.layers_of(model):
        add(layer.name, layer._trainable, "call" in vars(layer))
    compiled = ("optimizer", "train_function", "_compile_loss", "_compile_metrics", "_loss_tracker")
    add(*(id(getattr(model, name, None)) for name in compiled), model.compiled)
    numpy_state = np.random.get_state()
    add(random.getstate(), [getattr(x, "tolist", lambda x=x: x)() for x in numpy_state])
    add(id(generator), global_state.get_global_attribute("global_random_seed"), _names())
    return state.hexdigest()


@contextlib.contextmanager
def _untouched(model: keras.Model) -> Iterator[None]:
    """Puts the random states and name counters back, and holds the model to be as it was."""
    before = fingerprint(model)
    python, numpy_, names = random.getstate(), np.random.get_state(), _names()
    generator = global_state.get_global_attribute("global_seed_generator")
    seeds = generator and np.array(keras.ops.convert_to_numpy(generator.state))
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_)
        global_state.set_global_attribute("global_seed_generator", generator)
        if generator is not None:
            generator.state.assign(seeds)
        counters = global_state.get_global_attribute("object_name_uids")
        if counters is not None:
            counters.clear()
            counters.update(names)
    assert fingerprint(model) == before, "the range test has changed the model or a random state"


def _names() -> dict[str, int]:
    """Returns how often Keras has given each automatic name."""
    return dict(global_state.get_global_attribute("object_name_uids") or {})


def _copy(model: keras.Model) -> keras.Model:
    """Returns a model of the same layers, with variables of its own."""
    try:
        twin = type(model).from_config(model.get_config())
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ModelError(
            f"model '{model.name}' cannot be copied: {error}; expected one that 'model.save' and "
            "'keras.models.load_model' bring back."
        ) from error
    ours, theirs = ([(v.name, tuple(v.shape)) for v in one.variables] for one in (twin, model))
    if ours != theirs or not theirs:
        raise ModelError(
            f"model '{model.name}' cannot be copied: its configuration does not give the same "
            "variables; build it first, and let 'get_config' say all that it is made of."
        )
    return twin


def _copy_values(source: keras.Model, target: keras.Model) -> None:
    """Copies weights, statistics and seeds, by way of numpy: JAX donates buffers."""
    for theirs, ours in zip(source.variables, target.variables, strict=True):
        ours.assign(np.array(keras.ops.convert_to_numpy(theirs)))


def _copy_flags(source: keras.Model, target: keras.Model) -> None:
    """Makes the same trainable; a container's property would overwrite what is inside it."""
    pairs = zip(models.layers_of(source), models.layers_of(target), strict=True)
    for theirs, ours in pairs:
        ours._trainable = theirs._trainable
        if isinstance(ours, keras.layers.BatchNormalization):
            models._hold_statistics(ours, "call" in vars(theirs))
    for variable, other in zip(target.variables, source.variables, strict=True):
        variable._trainable = other.trainable


def _chosen(plans: list[StagePlan], stage: str | int | None) -> list[StagePlan]:
    names = [stage_plan.name for stage_plan in plans]
    if stage is None:
        return plans
    if stage in names:
        return [plans[names.index(str(stage))]]
    if str(stage).isdecimal() and 1 <= int(stage) <= len(plans):
        return [plans[int(stage) - 1]]
    raise TrainingError(
        f"stage '{stage}' is not in the recipe{did_you_mean(str(stage), names) or ';'} expected 1 "
        f"to {len(plans)}, or one of {', '.join(names)}."
    )


def _optimizer(
    model: keras.Model, recipe: Recipe, stage_plan: StagePlan, rate: float
) -> keras.optimizers.Optimizer:
    train = recipe.train
    optimizer = optimizers.make(
        stage_plan.stage.optimizer or train.optimizer,
        rate,
        rates=stage_plan.rates(model),
        accumulate_steps=train.accumulate_steps,
        pull=train.l2_sp,
        unpulled=[weight.path for weight in models.blocks(model)[-1].weights],
    )
    if train.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
    return optimizer


def _ladder(steps: int, lowest: float, highest: float) -> list[float]:
    if steps < 10:
        raise TrainingError(f"steps: expected 10 or more, got {steps}.")
    if not 0 < lowest < highest < math.inf:
        raise TrainingError(
            f"rates: expected them to rise from above 0, got {lowest:g} to {highest:g}."
        )
    return [lowest * (highest / lowest) ** (step / (steps - 1)) for step in range(steps)]


def _batches(x: Any, y: Any, batch_size: int, seed: int) -> Iterator[Sequence[Any]]:
    """Streams batches without an end."""
    for epoch in itertools.count():
        found: Iterable[Any] = x
        if y is not None:
            order = np.random.default_rng((seed, epoch)).permutation(len(x))
            starts = range(0, len(x), batch_size)
            rows = (order[start : start + batch_size] for start in starts)
            found = ((np.asarray(x)[row], np.asarray(y)[row]) for row in rows)
        number = 0
        for number, batch in enumerate(found, 1):  # noqa: B007
            yield tuple(np.asarray(part) for part in batch)
        if not number:
            raise TrainingError("the data gives no batches; expected (x, y) at least once.")


def _climb(
    model: keras.Model, ladder: Sequence[float], batches: Iterator[Any], accumulate: int
) -> tuple[list[float], bool]:
    """Trains while the rate rises; returns the loss of each update, and whether it exploded."""
    losses: list[float] = []
    best = math.inf
    for rate in ladder:
        model.optimizer.learning_rate = rate
        parts = [_loss(model, batch) for batch in itertools.islice(batches, accumulate)]
        losses.append(float(np.mean(parts)))
        if not math.isfinite(losses[-1]):
            return losses, True
        smoothed = _smooth(losses, len(ladder))[-1]
        best = min(best, smoothed)
        # As 4 times the best, and right for losses below 0 too.
        if len(losses) > LAG * len(ladder) and smoothed > best + (DIVERGED - 1) * abs(best):
            return losses, True
    return losses, False


def _loss(model: keras.Model, batch: Sequence[Any]) -> float:
    return float(model.train_on_batch(*batch, return_dict=True)["loss"])


def _smooth(losses: Sequence[float], steps: int) -> list[float]:
    """Returns the exponential average of losses, corrected for its beginning at 0."""
    keep = _kept(steps)
    mean, smoothed = 0.0, []
    for number, loss in enumerate(losses, 1):
        mean = keep * mean + (1 - keep) * loss
        smoothed.append(mean / (1 - keep**number))
    return smoothed


def _kept(steps: int) -> float:
    """Returns the average's share that each step keeps; it lags by `keep / (1 - keep)` steps."""
    return LAG * steps / (1 + LAG * steps)


def _curve(
    name: str,
    recipe_rate: float | None,
    ladder: Sequence[float],
    losses: list[float],
    diverged: bool,
) -> Curve:
    """Reads the two rates off a curve."""
    steps, rates = len(ladder), ladder[: len(losses)]
    smoothed = _smooth(losses, steps)
    finite = np.array(smoothed)[np.isfinite(smoothed)]
    first = min(math.ceil(LAG * steps), len(finite) - 1)  # the average of few is a bad start
    steepest = minimum = None
    if len(finite) > first + 2:
        lowest = first + int(np.argmin(finite[first:]))
        flat = np.array(losses[: max(first, steps // 5)])
        # Neighbours differ by noise alone, even where the loss falls.
        scatter = float(np.std(np.diff(flat))) / math.sqrt(2)
        keep = _kept(steps)
        noise = scatter * math.sqrt((1 - keep) / (1 + keep))
        reach = max(1, steps // 50)
        ahead = np.minimum(np.arange(len(finite)) + reach, len(finite) - 1)
        behind = np.maximum(np.arange(len(finite)) - reach, 0)
        slopes = (finite[ahead] - finite[behind]) / (ahead - behind)
        if finite[lowest] < float(np.mean(flat)) - 3 * noise:
            steepest = rates[first + int(np.argmin(slopes[first : lowest + 1]))]
            minimum = rates[lowest]
    return Curve(
        name,
        recipe_rate,
        tuple(rates),
        tuple(losses),
        tuple(smoothed),
        steepest,
        minimum,
        diverged,
    )
