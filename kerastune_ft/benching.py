"""Measures what limits the speed of a recipe: `kft bench`.

The input pipeline alone, the train step of the first and of the last stage alone, on one batch that
stays in memory, and both together, as training has them. Whole steps of the real stages on the real
data, but with random weights; nothing is kept and nothing is downloaded for pictures.

    found = bench(recipe.load("recipes/mobilenet.yaml"), console)
    found.show(console)
    found.record()                            # plain data

Where caches would help they are not filled: `data.cache` is measured on the few pictures that are
read, in memory, and what `train.cache` would keep is only named.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from kerastune_ft import devices, models, resuming, showing, stages, training, workflow
from kerastune_ft.data import Split, Splits, feeding, picture_cache
from kerastune_ft.data.texts import Tokens
from kerastune_ft.tasks import TASKS

if TYPE_CHECKING:
    import keras
    from rich.console import Console

    from kerastune_ft.recipe import Recipe

_WARM_UP = 3  # batches, of which the first is traced
_BATCHES = 60
_PARTS = 3  # whose median counts
_CLOSE = 1.25  # pipelines that are not so many times faster than the model hold it up


@dataclass(frozen=True)
class StageSpeed:
    """One stage, in examples a second.

    Args:
        name: Of the stage.
        model: The train step alone.
        together: Train steps on what the pipeline brings.
        still_blocks: Blocks whose activations `train.cache` can keep.
    """

    name: str
    model: float
    together: float
    still_blocks: int = 0


@dataclass(frozen=True)
class Bench:
    """What was measured, in examples a second.

    Args:
        unit: `images` or `texts`.
        batch_size: Examples of the batch that was measured on.
        device: `cpu` or `gpu`.
        pipeline: The input pipeline alone.
        unchanged: Without augmentation; None where there is none.
        kept: From pictures that are kept, with augmentation; None where they cannot be.
        stages: The first and the last stage, or the only one.
        advice: What to change, the most promising first.
    """

    unit: str
    batch_size: int
    device: str
    pipeline: float
    unchanged: float | None
    kept: float | None
    stages: tuple[StageSpeed, ...]
    advice: tuple[str, ...] = ()

    @property
    def bottleneck(self) -> str:
        """`pipeline` if that holds up the last stage, else `model`."""
        return "pipeline" if self.pipeline < _CLOSE * self.stages[-1].model else "model"

    def record(self) -> dict[str, Any]:
        """Returns it as plain data."""
        return {**dataclasses.asdict(self), "bottleneck": self.bottleneck}

    def show(self, console: Console) -> None:
        """Prints a table and what would help."""
        table = Table(title=f"{self.unit} per second, {self.batch_size} a batch, {self.device}")
        for column in ("", "pipeline", "model", "together"):
            table.add_column(column, justify="right" if column else "left")
        table.add_row("input pipeline", _figure(self.pipeline), "", "")
        if self.unchanged is not None:
            table.add_row("  without augmentation", _figure(self.unchanged), "", "")
        if self.kept is not None:
            table.add_row("  pictures kept (data.cache)", _figure(self.kept), "", "")
        for stage in self.stages:
            figures = (_figure(stage.model), _figure(stage.together))
            table.add_row(f"stage '{escape(stage.name)}'", "", *figures)
        console.print(table)
        console.print(f"[bold]bottleneck[/] {self.bottleneck}")
        for line in self.advice:
            console.print(f"  {escape(line)}", highlight=False)


def bench(recipe: Recipe, console: Console, *, seconds: float = 4.0) -> Bench:
    """Measures a recipe on one device, in about a minute; most of it goes by in tracing.

    Args:
        recipe: From `recipe.load`.
        console: Says what is being measured.
        seconds: For each figure.

    Raises:
        KftError: On a user's mistake.
    """
    recipe = workflow.fold_of(recipe, 1)
    alone = recipe.train.model_copy(update={"replicas": 1, "hosts": 1})
    recipe = resuming.resolved(recipe.model_copy(update={"train": alone}))
    machine = workflow.prepare(recipe)
    splits = workflow.read(recipe)
    showing.show_data(console, splits)
    training.check(recipe, splits)
    recipe = workflow.blank(recipe)
    with machine.scope():
        model = workflow.build(recipe, splits)
        recipe = workflow.settled(console, recipe, splits)
        recipe = resuming.with_stages(recipe, model)
        made = _measured(recipe, splits, model, machine, console, seconds)
    return dataclasses.replace(made, advice=tuple(_advice(made, recipe)))


def _measured(
    recipe: Recipe,
    splits: Splits,
    model: keras.Model,
    machine: devices.Devices,
    console: Console,
    seconds: float,
) -> Bench:
    texts = isinstance(splits.train.content, Tokens)

    def say(what: str) -> None:
        console.print(f"  measuring {what} ...")

    say("the input pipeline")
    pipeline = _rate(_stream(splits, splits.train, recipe), seconds)
    unchanged = kept = None
    if not texts:
        if any(recipe.data.augmentation.model_dump().values()):
            plain = recipe.model_copy(
                update={"data": recipe.data.model_copy(update={"augment": "none"})}
            )
            unchanged = _rate(_stream(splits, splits.train, plain), seconds)
        few = _few(splits, recipe)
        if few is not None:
            kept = _rate(_stream(splits, few, recipe), seconds)
    plans = stages.plan(model, recipe.train, feeding.steps(splits.train, recipe))
    batch = next(_stream(splits, splits.train, recipe))
    speeds = []
    for plan in plans if len(plans) == 1 else (plans[0], plans[-1]):
        say(f"stage '{escape(plan.name)}'")
        _enter(model, plan, recipe, splits)
        step = _step(model)
        held = _rate(itertools.repeat(batch), seconds, step)
        together = _rate(_stream(splits, splits.train, recipe), seconds, step)
        speeds.append(StageSpeed(plan.name, held, together, plan.still_blocks))
    return Bench(
        unit="texts" if texts else "images",
        batch_size=len(batch[1]),
        device=machine.kind,
        pipeline=pipeline,
        unchanged=unchanged,
        kept=kept,
        stages=tuple(speeds),
    )


def _enter(model: keras.Model, plan: stages.StagePlan, recipe: Recipe, splits: Splits) -> None:
    """Compiles a model as the stage does."""
    task, train = TASKS[recipe.task.name], recipe.train
    plan.enter(model)
    models.set_stochastic_depth(model, train.stochastic_depth)
    weights = splits.class_weights(train.class_weight)
    positives = weights.tolist() if weights is not None and task.weighs == "positives" else None
    optimizer = plan.optimizer(model, train, plan.schedule(), average=train.averaging.ema)
    loss = task.loss(recipe.task, splits.outputs, positives)
    model.compile(optimizer, loss, metrics=task.metrics(splits.outputs))


def _step(model: keras.Model) -> Callable[[Any], Any]:
    return lambda batch: model.train_on_batch(*batch)


def _stream(splits: Splits, split: Split, recipe: Recipe) -> Iterator[Any]:
    """Streams training batches over as many epochs as are wanted."""
    weighs = TASKS[recipe.task.name].weighs
    weights = splits.class_weights(recipe.train.class_weight) if weighs == "examples" else None
    if split is not splits.train:  # some of its pictures, which nothing is drawn from
        data = recipe.data.model_copy(update={"sampling": "natural"})
        recipe = recipe.model_copy(update={"data": data})
    return iter(
        feeding.dataset(
            split,
            recipe,
            len(splits.class_names),
            training=True,
            epochs=range(10_000),
            class_weights=weights,
            sampling=splits.sampling(recipe.data.sampling),
        )
    )


def _few(splits: Splits, recipe: Recipe) -> Split | None:
    """Returns some training pictures that are kept in memory, None if they cannot be."""
    count = min(len(splits.train), 8 * recipe.data.batch_size)
    rows = np.linspace(0, len(splits.train) - 1, count).astype(np.int64)
    whole = splits.train
    few = dataclasses.replace(
        whole,
        names=tuple(whole.names[row] for row in rows),
        labels=whole.labels[rows],
        content=whole.content.take(rows),
        digests=None if whole.digests is None else whole.digests[rows],
    )
    nothing = dataclasses.replace(
        few, names=(), labels=few.labels[:0], content=few.content.take([])
    )
    data = recipe.data.model_copy(update={"cache": "memory"})
    some = dataclasses.replace(splits, train=few, validation=nothing, test=nothing)
    held = picture_cache.kept(some, recipe.model_copy(update={"data": data}), lambda line: None)
    return None if held is some else held.train


def _rate(
    batches: Iterator[Any], seconds: float, use: Callable[[Any], Any] = lambda batch: None
) -> float:
    """Returns how many examples a second go through, the median of a few parts.

    Args:
        batches: Endless; labels are second.
        seconds: About how long to measure.
        use: What is done with each batch.
    """
    begin = time.perf_counter()
    for _, batch in zip(range(_WARM_UP), batches, strict=False):
        begin = time.perf_counter()
        use(batch)
    each = max(time.perf_counter() - begin, 1e-4)
    count = max(1, min(_BATCHES, int(seconds / each)) // _PARTS)
    rates = []
    for _ in range(_PARTS):
        begin, examples = time.perf_counter(), 0
        for _, batch in zip(range(count), batches, strict=False):
            use(batch)
            examples += len(batch[1])
        rates.append(examples / (time.perf_counter() - begin))
    return statistics.median(rates)


def _advice(found: Bench, recipe: Recipe) -> Iterator[str]:
    """Yields what would help, the most promising first."""
    texts, last = found.unit == "texts", found.stages[-1]
    if found.bottleneck == "pipeline":
        yield from _pipeline_advice(found, recipe)
        if not texts:
            yield "backbone.image_size: smaller pictures are cheaper to read and to train on"
        return
    if any(stage.still_blocks for stage in found.stages):
        names = ", ".join(f"'{s.name}'" for s in found.stages if s.still_blocks)
        state = recipe.train.cache
        kept = f"train.cache (now {state}): the frozen blocks of {names} once, not every epoch"
        yield kept + _by_itself(state, "where that saves time; these figures are without it")
    if last.together < last.model / _CLOSE:
        for line in _pipeline_advice(found, recipe):
            yield f"{line}; the pipeline takes processors from the model"
    if found.device == "gpu" and recipe.train.precision == "float32":
        yield "train.precision=mixed_bfloat16 (or mixed_float16): faster on most GPUs"
    if found.device == "gpu" and not recipe.data.batch_tokens:
        yield f"data.batch_size={2 * recipe.data.batch_size}, if the memory holds it"
    if texts:
        yield "backbone.sequence_length: shorter texts are cheaper; data.batch_tokens fills batches"
    else:
        yield "backbone.image_size: a side of three quarters is about half of the work"
    yield "fewer trainable blocks in the stages, or a smaller network (`kft ls backbones`)"


def _pipeline_advice(found: Bench, recipe: Recipe) -> Iterator[str]:
    if found.unit == "texts":
        if feeding.changes_of(recipe) is not None:
            yield "data.text_augment=none: changed texts are tokenised anew in every epoch"
        return
    state = recipe.data.cache
    itself = _by_itself(state, "of pictures that are read more than once")
    for rate, said, more in (
        (found.unchanged, "data.augment=none, or fewer changes", ""),
        (found.kept, f"data.cache=disk (now {state}), from the second pass on", itself),
    ):
        if rate is not None and rate > _CLOSE * found.pipeline:
            yield f"{said}: {rate / found.pipeline:.1f} times as many{more}"


def _by_itself(state: str, when: str) -> str:
    """Returns what to add to an advice that `auto` follows without being told."""
    return f"; `kft fit` does so by itself, {when}" if state == "auto" else ""


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
