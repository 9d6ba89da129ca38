"""Runs the stages of a recipe: the only place that calls `model.fit`.

A stage sets what is trainable, compiles with an optimizer of its own, trains, restores its best
weights and must pass the freeze audit before the next one begins. Epochs are counted over all
stages, and an epoch's order and augmentation follow from its number.

    stages = plan(model, recipe.train, examples=1257, batch_size=32)
    history = train(model, recipe, splits, run, console)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras

from kerastune_ft import callbacks, files, models, optimizers
from kerastune_ft.data import Splits, augmentation, images
from kerastune_ft.errors import TrainingError
from kerastune_ft.tasks import TASKS, TaskRow

if TYPE_CHECKING:
    from rich.console import Console

    from kerastune_ft.recipe import Recipe, Stage, Train
    from kerastune_ft.runs import Run


@dataclass(frozen=True)
class StagePlan:
    """What one stage will do, before it does it.

    Args:
        name: As the recipe says, or made from what is trainable; unique in a run.
        stage: The recipe's stage.
        first_epoch: Epochs of the stages before.
        steps: Per epoch.
        trainable_blocks: Names, bottom first, `head` last.
        trainable_parameters: Numbers that training moves.
    """

    name: str
    stage: Stage
    first_epoch: int
    steps: int
    trainable_blocks: tuple[str, ...]
    trainable_parameters: int

    @property
    def last_epoch(self) -> int:
        """Epochs when the stage is over, unless it stops early."""
        return self.first_epoch + self.stage.epochs

    def schedule(self) -> optimizers.StageSchedule:
        """Returns the stage's learning rate as a function of its optimizer steps."""
        steps = self.stage.epochs * self.steps
        return optimizers.StageSchedule(
            self.stage.schedule,
            self.stage.learning_rate,
            steps=steps,
            warmup_steps=min(round(self.stage.warmup_epochs * self.steps), steps - 1),
        )


@dataclass
class History:
    """What happened: one row per epoch, one audit per stage.

    Args:
        rows: See `callbacks.EpochRows`.
        audits: Stage name to audit report.
        stopped_early: Names of stages that ended before their last epoch.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    audits: dict[str, callbacks.AuditReport] = field(default_factory=dict)
    stopped_early: list[str] = field(default_factory=list)


def check(recipe: Recipe, splits: Splits) -> None:
    """Refuses what the recipe asks of its data and the data cannot give, before anything is built.

    Raises:
        DataError: If `train.class_weight` names a class that the data lacks, or pictures do not
            have `backbone.channels`.
        TrainingError: If early stopping monitors a validation split that is empty.
    """
    splits.class_weights(recipe.train.class_weight)
    images.check_channels(splits.all, recipe.backbone.channels)
    stopping = recipe.train.early_stopping
    if not len(splits.validation) and stopping and stopping.monitor.startswith("val_"):
        raise TrainingError(
            f"train.early_stopping.monitor: '{stopping.monitor}' needs a validation split and "
            "there is none; set data.split.validation, or monitor 'loss', or set "
            "train.early_stopping=null."
        )


def plan(model: keras.Model, train: Train, examples: int, batch_size: int) -> list[StagePlan]:
    """Lists what each stage will train. Leaves the model as the first stage wants it.

    Args:
        model: Made by a builder.
        train: The recipe's `train`.
        examples: In the training split.
        batch_size: Examples per step.

    Raises:
        ModelError: If a stage asks for more blocks than there are.
    """
    plans: list[StagePlan] = []
    steps = math.ceil(examples / batch_size)
    for number, stage in enumerate(train.stages, 1):
        models.unfreeze_top(model, stage.trainable_blocks, batch_norm=stage.batch_norm)
        trained = [block for block in models.blocks(model) if block.trainable]
        name = stage.name or f"{number} {_describe(stage.trainable_blocks)}"
        while name in {former.name for former in plans}:  # the audits are kept by name
            name = f"{number} {name}"
        plans.append(
            StagePlan(
                name=name,
                stage=stage,
                first_epoch=plans[-1].last_epoch if plans else 0,
                steps=steps,
                trainable_blocks=tuple(block.name for block in trained),
                trainable_parameters=sum(block.trainable_parameters for block in trained),
            )
        )
    first = train.stages[0]
    models.unfreeze_top(model, first.trainable_blocks, batch_norm=first.batch_norm)
    return plans


def train(
    model: keras.Model, recipe: Recipe, splits: Splits, run: Run, console: Console
) -> History:
    """Trains a model stage by stage; `model` ends with the last stage's best weights.

    Args:
        model: Made by a builder.
        recipe: Says how.
        splits: The data; the test split is not looked at.
        run: Receives `history.csv`, `audit.json`, TensorBoard logs, and `model.keras` after every
            epoch.
        console: Shows the progress.

    Raises:
        TrainingError: If the loss is not finite or a freeze audit fails.
    """
    history = History()
    task = TASKS[recipe.task.name]
    batch_size = recipe.data.batch_size
    size, channels = recipe.backbone.side, recipe.backbone.channels
    augment = augmentation.Augmentation(recipe.data.augmentation, size, channels)
    outputs = splits.outputs
    class_weights = splits.class_weights(recipe.train.class_weight)
    positive_weights = None
    if class_weights is not None and task.weighs == "positives":
        positive_weights = class_weights.tolist()
    validation = _validation_data(recipe, splits)
    plans = plan(model, recipe.train, len(splits.train), batch_size)
    done = 0
    for number, stage_plan in enumerate(plans, 1):
        stage = stage_plan.stage
        models.unfreeze_top(model, stage.trainable_blocks, batch_norm=stage.batch_norm)
        optimizer = optimizers.make(
            stage.optimizer or recipe.train.optimizer, stage_plan.schedule()
        )
        # Keras would create the slots while it traces the train step, and TensorFlow traces a
        # step that creates variables twice: this halves the time to the first step.
        optimizer.build(model.trainable_variables)
        loss = task.loss(recipe.task, outputs, positive_weights)
        model.compile(optimizer, loss, metrics=task.metrics(outputs))
        epochs = range(done, done + stage.epochs)
        console.print(_headline(number, len(plans), stage_plan))
        training = images.dataset(
            splits.train.content,
            splits.train.labels,
            image_size=size,
            channels=channels,
            batch_size=batch_size,
            num_classes=len(splits.class_names),
            resize=recipe.data.resize,
            seed=recipe.train.seed,
            shuffle=True,
            epochs=epochs,
            augment=augment,
            class_weights=class_weights if task.weighs == "examples" else None,
        )
        audit = callbacks.FreezeAudit()
        bar = callbacks.ProgressBar(console, epochs.stop, stage_plan.steps)
        receivers: list[Callable[[dict[str, Any]], None]] = [
            history.rows.append,
            lambda row: run.write_table(run.history_path, history.rows),
            functools.partial(_show_epoch, console, epochs.stop),
            lambda row: run.write_status("running", stage=row["stage"], epoch=row["epoch"]),
        ]
        try:
            model.fit(
                training,
                steps_per_epoch=stage_plan.steps,
                initial_epoch=epochs.start,
                epochs=epochs.stop,
                validation_data=validation,
                shuffle=False,  # the stream is in the epoch's order already
                verbose=0,
                callbacks=[
                    bar,
                    callbacks.StopOnNaN(stage_plan.name),
                    callbacks.EpochRows(stage_plan.name, len(splits.train), receivers),
                    *_early_stopping(recipe.train, task),
                    *_tensorboard(recipe.train, run),
                    SaveModel(run),
                    audit,
                ],
            )
        finally:
            bar.close()
            _record_audit(run, history, stage_plan.name, audit)
        stopped = history.rows[-1]["epoch"]
        if stopped < epochs.stop:
            history.stopped_early.append(stage_plan.name)
        done = stopped
        console.print(_audit_line(history.audits[stage_plan.name], stopped < epochs.stop))
    return history


class SaveModel(keras.callbacks.Callback):
    """Writes `model.keras` after every epoch, whole or not at all.

    Args:
        run: Where to.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes it."""
        save(self.model, self.run)


def save(model: keras.Model, run: Run) -> None:
    """Writes a run's `model.keras`: the network alone, which loads without this package.

    What `compile` added is left out: the optimizer's schedule is a class of this package, and its
    slots would triple the file.

    Args:
        model: Made by a builder.
        run: Where to.
    """
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()
    bare = keras.Model(model.inputs, model.outputs, name=model.name)
    with files.replacing(run.model_path) as path:
        bare.save(path)


def epoch_line(row: dict[str, Any], last_epoch: int) -> str:
    """Returns an epoch's row as one line for a terminal."""
    figures = [
        f"{name} {value:.4f}"
        for name, value in row.items()
        if name not in ("epoch", "stage", "learning_rate", "seconds", "examples_per_second")
    ]
    remaining = (last_epoch - row["epoch"]) * row["seconds"]
    return (
        f"  epoch {row['epoch']:>2}/{last_epoch}  {'  '.join(figures)}  "
        f"rate {row['learning_rate']:.2g}  {row['examples_per_second']:.0f} examples/s  "
        f"{_duration(row['seconds'])}" + (f"  {_duration(remaining)} left" if remaining else "")
    )


def _show_epoch(console: Console, last_epoch: int, row: dict[str, Any]) -> None:
    console.print(epoch_line(row, last_epoch))


def _validation_data(recipe: Recipe, splits: Splits) -> Any:
    if not len(splits.validation):
        return None
    return images.dataset(
        splits.validation.content,
        splits.validation.labels,
        image_size=recipe.backbone.side,
        channels=recipe.backbone.channels,
        batch_size=recipe.data.batch_size,
        num_classes=len(splits.class_names),
        resize=recipe.data.resize,
    )


def _early_stopping(train: Train, task: TaskRow) -> list[keras.callbacks.Callback]:
    choice = train.early_stopping
    if choice is None:
        return []
    return [
        keras.callbacks.EarlyStopping(
            monitor=choice.monitor,
            mode="min" if choice.monitor.endswith("loss") else task.metric_mode,
            patience=choice.patience,
            min_delta=choice.min_delta,
            restore_best_weights=choice.restore_best_weights,
        )
    ]


def _tensorboard(train: Train, run: Run) -> list[keras.callbacks.Callback]:
    if not train.tensorboard:
        return []
    return [keras.callbacks.TensorBoard(run.logs_path, write_graph=False)]


def _record_audit(run: Run, history: History, name: str, audit: callbacks.FreezeAudit) -> None:
    if audit.report is not None:
        history.audits[name] = audit.report
        records = {stage: report.record() for stage, report in history.audits.items()}
        run.write_json("audit", records)


def _describe(trainable_blocks: int) -> str:
    if trainable_blocks == 0:
        return "head"
    return "everything" if trainable_blocks == -1 else f"top {trainable_blocks} blocks"


def _headline(number: int, stages: int, stage_plan: StagePlan) -> str:
    stage = stage_plan.stage
    return (
        f"[bold]stage {number}/{stages}[/]  {stage_plan.name}: "
        f"{len(stage_plan.trainable_blocks) - 1} blocks and the head, "
        f"{stage_plan.trainable_parameters:,} parameters train; up to {stage.epochs} epochs of "
        f"{stage_plan.steps} steps at {stage.learning_rate:g}, {stage.schedule}"
    )


def _audit_line(report: callbacks.AuditReport, stopped_early: bool) -> str:
    early = "stopped early, best weights restored; " if stopped_early else ""
    return (
        f"  {early}audit passed: {report.frozen} frozen weights bit-identical, "
        f"{report.trained - len(report.trained_still)} of {report.trained} trained weights moved"
        + (f", {report.statistics} batch-norm statistics free" if report.statistics else "")
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
