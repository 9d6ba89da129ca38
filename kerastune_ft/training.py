"""Runs the stages of a recipe: the only place that calls `model.fit`.

A stage sets what is trainable, compiles with an optimizer of its own that takes over the slots of
variables which go on training, trains, must pass the freeze audit, and goes back to the best
weights of the run before the next one begins. Epochs are counted over all stages, and an epoch's
order and augmentation follow from its number: a run that was killed goes on from its last
checkpoint as if nothing had happened.

    stages = plan(model, recipe.train, steps=40)
    history = train(model, recipe, splits, run, console)
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from kerastune_ft import (
    averaging,
    callbacks,
    devices,
    diagnosis,
    interrupts,
    models,
    optimizers,
    prefix_cache,
    stage_callbacks,
    states,
)
from kerastune_ft.checkpoints import Arrays, Checkpoints, Position, State
from kerastune_ft.data import Splits, feeding
from kerastune_ft.errors import NotFiniteError, TrainingError
from kerastune_ft.history import History, audit_line, epoch_line, headline, show_epoch
from kerastune_ft.stages import StagePlan, check, plan
from kerastune_ft.states import save
from kerastune_ft.stopping import Best, PlateauRate, StageStopping
from kerastune_ft.tasks import TASKS, TaskRow

if TYPE_CHECKING:
    from rich.console import Console

    from kerastune_ft.recipe import EarlyStopping, Recipe, Train
    from kerastune_ft.runs import Run

__all__ = ["History", "StagePlan", "check", "epoch_line", "plan", "save", "train"]


def train(
    model: keras.Model,
    recipe: Recipe,
    splits: Splits,
    run: Run,
    console: Console,
    *,
    resume: State | None = None,
    machine: devices.Devices | None = None,
) -> History:
    """Trains a model stage by stage; `model` ends with the weights that the run keeps.

    Args:
        model: Made by a builder.
        recipe: Says how.
        splits: The data; the test split is not looked at.
        run: Receives `history.csv`, `audit.json`, TensorBoard logs, checkpoints, and `model.keras`
            at the end and after epochs.
        console: Shows the progress.
        resume: A checkpoint of this run to go on from.
        machine: From `devices.prepare`; the model must have been built under its scope.

    Raises:
        TrainingError: If the loss is not finite, a freeze audit fails or the disk is full.
    """
    return _Training(model, recipe, splits, run, console, machine).run_all(resume)


class _Training:
    """The state of a training run between its stages."""

    def __init__(
        self,
        model: keras.Model,
        recipe: Recipe,
        splits: Splits,
        run: Run,
        console: Console,
        machine: devices.Devices | None,
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.splits = splits
        self.run = run
        self.console = console
        self.machine = machine or devices.Devices("cpu")
        self.task = TASKS[recipe.task.name]
        self.history = History()
        self.store = Checkpoints(run.checkpoints_path, recipe.train.checkpoint.keep)
        self.plans = plan(model, recipe.train, feeding.steps(splits.train, recipe))
        moving = [p.name for p in self.plans if p.stage.batch_norm == "train"]
        if moving and self.machine.parts > 1:
            raise TrainingError(
                f"stage '{moving[0]}': batch_norm: train with {self.machine.parts} devices would "
                "take its statistics from parts of a batch; set batch_norm to affine or frozen, or "
                "train.replicas=1."
            )
        self.class_weights = splits.class_weights(recipe.train.class_weight)
        self.sampling = splits.sampling(recipe.data.sampling)
        self.saved = 0.0
        self.best = self._best()
        self.start: str | None = None
        self.cache = prefix_cache.PrefixCache(
            model, recipe, splits, self.plans, run, console, self.machine.parts, self.machine.kind
        )
        self.optimizer: keras.optimizers.Optimizer | None = None

    def run_all(self, resume: State | None) -> History:
        """Runs every stage that is not done."""
        first, done, updates = 0, 0, 0
        if resume is not None:
            first = resume.position.stage
            done, updates = resume.notes["first_epoch"], resume.position.updates
            self.history = History.of(resume.notes["history"])
            self.start = resume.notes["start"]
            if resume.notes["best"] and self.best:
                self.best = Best.of(resume.notes["best"])
        for number, stage_plan in enumerate(self.plans):
            if number < first:
                continue
            state = resume if resume is not None and number == first else None
            stage = _StageRun(self, number, stage_plan, done, updates)
            try:
                stage.begin(state)
                stage.train()
            except NotFiniteError as error:
                raise NotFiniteError(f"{error} {self._go_back()}") from error
            done, updates = stage.epoch, stage.updates
            self.optimizer = stage.optimizer
            self._keep_best(stage_plan)
        if self.recipe.train.stochastic_depth:  # of training alone, and this is over
            models.set_stochastic_depth(self.model, 0.0)
        self._average()
        states.save(self.model, self.run)
        return self.history

    def _best(self) -> Best | None:
        """Returns what decides which epochs are worth keeping, None if nothing does."""
        train_ = self.recipe.train
        choices = [train_.early_stopping, *(plan_.stopping(train_) for plan_ in self.plans)]
        stopping = next(filter(None, choices), None)
        if stopping is not None:
            monitor = stopping.monitor
        elif len(self.splits.validation):
            monitor = "val_loss"
        else:
            return None
        return Best(monitor, _mode(monitor, self.task), train_.averaging.soup or 1)

    def _keep_best(self, stage_plan: StagePlan) -> None:
        """Goes back to the best epoch of the run, where the recipe wants it."""
        stopping = stage_plan.stopping(self.recipe.train) or self.recipe.train.early_stopping
        if self.best and self.best.epochs and stopping and stopping.restore_best_weights:
            epoch = self.best.epochs[0][0]
            if epoch != self.history.best_epoch or epoch != self.history.rows[-1]["epoch"]:
                states.set_weights(self.model, self.store.epoch(epoch))
                value = self.best.epochs[0][1]
                self.console.print(f"  back to epoch {epoch} ({self.best.monitor} {value:.4g})")
            self.history.best_epoch = epoch

    def _average(self) -> None:
        """Averages weights at the end of training, where the recipe wants it."""
        choice = self.recipe.train.averaging
        if choice.ema is not None:
            self.history.averaging["ema"] = {"momentum": choice.ema}
        if choice.soup and self.best and self.best.epochs:
            score = functools.partial(self._score, self.best)
            epochs = [epoch for epoch, _ in self.best.epochs]
            said = averaging.greedy_soup(self.model, epochs, self.store.epoch, score)
            self.history.averaging["soup"] = said
            self.console.print(f"  soup of epochs {said['epochs']}: {said['figures']}")
        if choice.wise_ft is not None and self.start:
            # A share that is given needs no validation, and none is asked then.
            best = self.best or Best("val_loss", "min")
            score = functools.partial(self._score, best)
            shares = averaging.SHARES if choice.wise_ft == "auto" else (float(choice.wise_ft),)
            *_, head = models.blocks(self.model)
            own = {id(weight) for weight in head.weights} if self.start == "backbone" else set()
            mixed = [id(weight) not in own for weight in self.model.weights]
            said = averaging.wise_ft(self.model, self.store.epoch(0), mixed, shares, score)
            self.history.averaging["wise_ft"] = said
            self.console.print(f"  wise_ft: {said['share']:g} of the way back: {said['figures']}")

    def _score(self, best: Best) -> float:
        """Returns the monitored figure on validation, turned so that less is better."""
        assert self.validation is not None
        found = self.model.evaluate(self.validation, return_dict=True, verbose=0)
        value = float(found[best.monitor.removeprefix("val_")])
        return value if best.mode == "min" else -value

    def _go_back(self) -> str:
        """Puts the last good weights in place and saves them; returns a sentence on it."""
        if self.best and self.best.epochs:
            epoch, value = self.best.epochs[0]
            states.set_weights(self.model, self.store.epoch(epoch))
            said = f"the best epoch, {epoch} ({self.best.monitor} {value:.4f})"
        else:
            state = self.store.newest()
            if state is None:
                return "Nothing was trained before that."
            weights = {k: v for k, v in state.arrays.items() if k.startswith("model/")}
            states.assign(dict(states.named("model", self.model.variables)), weights)
            said = f"step {state.position.updates}"
        states.save(self.model, self.run)
        return f"The weights of {said} are in {self.run.model_path}."

    @functools.cached_property
    def validation(self) -> Any:
        """The validation split as the model takes it, None if there is none."""
        split = self.splits.validation
        return self._data(split) if len(split) else None

    def save_model(self) -> None:
        """Writes `model.keras`, but of epochs that are over sooner than it is written only some.

        A twentieth of the time may go into it; whatever ends the run writes it once more.
        """
        begin = time.monotonic()
        if begin < self.saved:
            return
        states.save(self.model, self.run)
        self.saved = (now := time.monotonic()) + 19 * (now - begin)

    def _data(self, split: Any, training: bool = False, **options: Any) -> Any:
        width = len(self.splits.class_names)
        made = feeding.dataset(split, self.recipe, width, training=training, **options)
        return devices.distribute(made, self.machine, training=training)


class _StageRun:
    """One stage while it runs: everything a checkpoint has to hold of it.

    Args:
        training: The whole run.
        number: Of the stage, from 0.
        stage_plan: What it does.
        done: Epochs before it.
        updates: Batches before it.
    """

    def __init__(
        self, training: _Training, number: int, stage_plan: StagePlan, done: int, updates: int
    ) -> None:
        self.training = training
        self.model = training.model
        self.number = number
        self.plan = stage_plan
        self.epochs = range(done, done + stage_plan.stage.epochs)
        self.epoch = done
        self.updates = updates
        self.first_step = 0
        self.logs: dict[str, float] | None = None
        self.metrics: Arrays = {}
        self.over = False
        self.name = stage_plan.name
        self.audit = callbacks.FreezeAudit(whole=self.model)
        self.optimizer: keras.optimizers.Optimizer

    def begin(self, state: State | None) -> None:
        """Sets what trains and compiles; from a checkpoint also takes everything back."""
        training = self.training
        train_ = training.recipe.train
        self.plan.enter(self.model)
        if train_.stochastic_depth:
            models.set_stochastic_depth(self.model, train_.stochastic_depth)
        self.optimizer = self.plan.optimizer(
            self.model, train_, self.plan.schedule(), average=train_.averaging.ema
        )
        former = training.optimizer
        if former is not None:
            optimizers.carry_over(former, self.optimizer, continue_iterations=False)
            for weight, average in optimizers.averages(self.optimizer):
                # Which may be those of an earlier epoch; a copy, since JAX donates both buffers.
                average.assign(states.array_of(weight))
        positives = None
        if training.class_weights is not None and training.task.weighs == "positives":
            positives = training.class_weights.tolist()
        outputs = training.splits.outputs
        loss = training.task.loss(training.recipe.task, outputs, positives)
        # Added examples weigh nothing, and must not count.
        kind = "weighted_metrics" if training.machine.parts > 1 else "metrics"
        self.part = training.cache.part(self.number)
        self.fitted = self.part.model if self.part else self.model
        for model in {id(made): made for made in (self.model, self.fitted)}.values():
            model.compile(self.optimizer, loss, **{kind: training.task.metrics(outputs)})
        self.callbacks = self._callbacks(train_)
        self.average = averaging.Swap(self.model, optimizers.averages(self.optimizer))
        if state is not None:
            self._take_back(state)
        if self.part and not self.over and not self.part.fill():
            self.begin(state)  # there is no room for them: without
            return
        touched = [name for name in self.plan.trainable_blocks if name != "head"]
        if train_.averaging.wise_ft is not None and touched and training.start is None:
            training.store.keep_epoch(0, states.get_weights(self.model))
            # A head that nothing has trained yet is nothing to go back to.
            training.start = "whole" if self.number else "backbone"
        training.console.print(headline(self.number + 1, len(training.plans), self.plan))

    def _callbacks(self, train_: Train) -> stage_callbacks.StageCallbacks:
        training, plan_ = self.training, self.plan
        self.bar = callbacks.ProgressBar(training.console, self.epochs.stop, plan_.steps)
        receivers: list[Callable[[dict[str, Any]], None]] = [
            training.history.rows.append,
            lambda row: training.run.write_table(training.run.history_path, training.history.rows),
            functools.partial(show_epoch, training.console, self.epochs.stop),
            lambda row: training.run.write_status(
                "running", stage=row["stage"], epoch=row["epoch"]
            ),
        ]
        self.nan = callbacks.StopOnNaN(plan_.name)
        self.rows = callbacks.EpochRows(plan_.name, len(training.splits.train), receivers)
        self.watchers: list[StageStopping | PlateauRate] = [
            *_early_stopping(train_, training.task, plan_.stopping(train_)),
            *_plateau(train_, training.task, plan_),
        ]
        listed = [
            *_corrected(training),
            self.bar,
            self.nan,
            self.rows,
            *self.watchers,
            *_tensorboard(train_, training.run),
            stage_callbacks.Keeper(self),
            self.audit,
        ]
        return stage_callbacks.StageCallbacks(
            listed, add_history=True, model=self.fitted, epochs=self.epochs.stop
        )

    def train(self) -> None:
        """Trains the epochs that are left, and audits."""
        training = self.training
        try:
            with interrupts.deferred():
                self.callbacks.begin()
                if not self.updates:
                    self.save()
                if not self.over:
                    self._fit()
                self.bar.close()
                self.callbacks.finish()
                if not self.over:
                    self.over = True
                    self.save()
        except (KeyboardInterrupt, SystemExit):
            states.sync(self.fitted)
            self.average.swap_in()  # the run is going to keep what the model has
            raise
        finally:
            states.sync(self.fitted)  # which has the variables of the whole model in its hands
            self.bar.close()
            _record_audit(training.run, training.history, self.name, self.audit)
        stopped = self.epoch < self.epochs.stop
        if stopped and self.name not in training.history.stopped_early:
            training.history.stopped_early.append(self.name)
        training.console.print(audit_line(training.history.audits[self.name], stopped))
        self.average.adopt()

    def _fit(self) -> None:
        """Fits what is left: first the rest of an epoch that was broken off, then whole ones."""
        self.fitted.stop_training = False
        rest = self.plan.steps - self.first_step
        if self.first_step and not rest:
            self._validate()
        elif self.first_step:
            self._fit_epochs(range(self.epoch, self.epoch + 1), rest)
        if not self.fitted.stop_training and self.epoch < self.epochs.stop:
            self._fit_epochs(range(self.epoch, self.epochs.stop), self.plan.steps)

    def _fit_epochs(self, epochs: range, steps: int) -> None:
        training = self.training
        stream = training._data(
            training.splits.train,
            training=True,
            epochs=epochs,
            class_weights=training.class_weights if training.task.weighs == "examples" else None,
            first_step=self.first_step,
            sampling=training.sampling,
            held=self.part.train if self.part else None,
        )
        if self.metrics:
            self._build_metrics(stream)
        model = self.fitted
        model.fit(
            stream,
            steps_per_epoch=steps,
            initial_epoch=epochs.start,
            epochs=epochs.stop,
            validation_data=self.validation,
            shuffle=False,  # the stream is in the epoch's order already
            verbose=0,
            callbacks=self.callbacks,
        )

    def _build_metrics(self, stream: Any) -> None:
        """Makes the variables of metrics, which Keras would make at the first step."""
        if getattr(self.fitted._compile_metrics, "built", False):
            return
        x, y = keras.tree.map_structure(
            lambda part: np.zeros([1, *(side or 1 for side in part.shape[1:])], "float32"),
            tuple(stream.element_spec[:2]),
        )
        self.fitted._compile_metrics.build(y, self.fitted(x, training=False))

    @functools.cached_property
    def validation(self) -> Any:
        """What is validated on, None if there is nothing."""
        training = self.training
        if self.part is None or self.part.validation is None:
            return training.validation
        return training._data(training.splits.validation, held=self.part.validation)

    def _validate(self) -> None:
        """Ends an epoch whose batches were done when the run was stopped during validation."""
        assert self.logs is not None
        logs = dict(self.logs)
        self.callbacks.on_epoch_begin(self.epoch)
        if self.validation is not None:
            found = self.fitted.evaluate(
                self.validation, return_dict=True, verbose=0, callbacks=self.callbacks
            )
            logs |= {f"val_{name}": value for name, value in found.items()}
        self.callbacks.on_epoch_end(self.epoch, logs)

    def save(self, at_validation: bool = False) -> None:
        """Writes a checkpoint, unless a weight is not finite."""
        states.sync(self.fitted)
        training, model = self.training, self.model
        with self.average.out():
            arrays = states.values("model", model.variables)
            arrays |= {
                f"optimizer/{name}": states.array_of(v)
                for name, v in optimizers.slots(self.optimizer).items()
            }
        # They begin anew with every epoch, and in validation they are those of validation.
        if 0 < self.first_step < self.plan.steps and not at_validation:
            arrays |= states.values("metric", self.fitted.metrics_variables)
        if not all(np.isfinite(a).all() for a in arrays.values() if a.dtype.kind == "f"):
            return
        epochs = [epoch for epoch, _ in training.best.epochs] if training.best else []
        notes = {
            "stage": self.name,
            "network": models.network_tag(model),
            "first_epoch": self.epochs.start,
            "logs": self.logs,
            "ages": optimizers.ages(self.optimizer),
            "audit": self.audit.state(),
            "rows": self.rows.state(),
            "watchers": [watcher.state() for watcher in self.watchers],
            "best": training.best.state() if training.best else None,
            "start": training.start,
            "history": training.history.record(),
            "epochs": [*epochs, *([0] if training.start else [])],
        }
        position = Position(self.number, self.epoch, self.first_step, self.updates, self.over)
        if self.training.machine.rank == 0:
            training.store.save(State(position, arrays, notes))

    def _take_back(self, state: State) -> None:
        position, notes = state.position, state.notes
        states.assign(
            {
                **dict(states.named("model", self.model.variables)),
                **{f"optimizer/{n}": v for n, v in optimizers.slots(self.optimizer).items()},
            },
            {k: v for k, v in state.arrays.items() if not k.startswith("metric/")},
        )
        optimizers.set_ages(self.optimizer, notes["ages"])
        self.epoch, self.first_step = position.epoch, position.step
        self.updates, self.over = position.updates, position.stage_done
        self.nan.first_step = position.step
        self.bar.first_step = position.step
        self.logs = notes["logs"]
        self.metrics = {k: v for k, v in state.arrays.items() if k.startswith("metric/")}
        self.audit.restore(notes["audit"])
        self.rows.restore(notes["rows"])
        for watcher, said in zip(self.watchers, notes["watchers"], strict=True):
            watcher.restore(said)

    def begin_epoch(self) -> None:
        """Puts back what Keras resets when an epoch begins."""
        if self.metrics:
            states.assign(dict(states.named("metric", self.fitted.metrics_variables)), self.metrics)
            self.metrics = {}

    def end_batch(self) -> None:
        """Counts, and saves when it is time."""
        self.first_step += 1
        self.updates += 1
        if self.first_step == self.plan.steps:
            if interrupts.requested():
                self._note_logs()
                interrupts.check(functools.partial(self.save, at_validation=True))
            return  # the end of the epoch comes soon, and is simpler to go on from
        interrupts.check(self.save)
        if self.due():
            self.save()

    def due(self) -> bool:
        """Whether the recipe wants a checkpoint now."""
        choice = self.training.recipe.train.checkpoint
        if choice.every_steps and self.updates % choice.every_steps == 0:
            return True
        if not choice.every_seconds:
            return False
        now = time.monotonic()
        if now - self.callbacks.saved < choice.every_seconds:
            return False
        self.callbacks.saved = now
        return True

    def begin_validation(self) -> None:
        """Remembers the figures of training, which validation is going to reset."""
        self._note_logs()
        self.average.swap_in()

    def end_validation(self) -> None:
        """Lets training go on with its own weights."""
        self.average.swap_out()

    def _note_logs(self) -> None:
        if self.logs is None:
            states.sync(self.fitted)
            found = self.fitted.get_metrics_result()
            self.logs = {k: float(keras.ops.convert_to_numpy(v)) for k, v in found.items()}

    def end_epoch(self, logs: dict[str, float]) -> None:
        """Keeps the epoch if it is one of the best, and saves when it is time."""
        training = self.training
        self.epoch += 1
        self.first_step, self.logs = 0, None
        states.sync(self.fitted)
        best = training.best
        with self.average.inside():
            if best and best.monitor in logs and best.offer(self.epoch, logs[best.monitor]):
                training.store.keep_epoch(self.epoch, states.get_weights(self.model))
            training.save_model()
        said = diagnosis.divergence(training.history.rows)
        if said:
            training.history.warnings.append(said)
            training.console.print(f"  [yellow]warning[/]  {said}", highlight=False)
        if self.fitted.stop_training or self.epoch == self.epochs.stop:
            return  # the stage is over, and saved as such
        interrupts.check(self.save)
        if self.due():
            self.save()


def _mode(monitor: str, task: TaskRow) -> Any:
    return "min" if monitor.endswith("loss") else task.metric_mode


def _early_stopping(
    train: Train, task: TaskRow, choice: EarlyStopping | str | None = "as_train"
) -> list[StageStopping]:
    stopping: Any = train.early_stopping if choice == "as_train" else choice
    if stopping is None:
        return []
    mode = _mode(stopping.monitor, task)
    return [StageStopping(stopping.monitor, mode, stopping.patience, stopping.min_delta)]


def _plateau(train: Train, task: TaskRow, stage_plan: StagePlan) -> list[PlateauRate]:
    if stage_plan.stage.schedule != "plateau":
        return []
    stopping = stage_plan.stopping(train) or train.early_stopping
    monitor = stopping.monitor if stopping else "loss"
    return [PlateauRate(monitor, _mode(monitor, task))]


def _corrected(training: _Training) -> list[keras.callbacks.Callback]:
    split = training.splits.validation
    filled = feeding.filled(split, training.recipe, training.machine.parts) if len(split) else 0
    share = (len(split) + filled) / max(len(split), 1)
    return [stage_callbacks.FilledLoss(share)] if filled else []


def _tensorboard(train: Train, run: Run) -> list[keras.callbacks.Callback]:
    board = keras.callbacks.TensorBoard
    return [board(run.logs_path, write_graph=False)] if train.tensorboard else []


def _record_audit(run: Run, history: History, name: str, audit: callbacks.FreezeAudit) -> None:
    if audit.report is not None:
        history.audits[name] = audit.report
        records = {stage: report.record() for stage, report in history.audits.items()}
        run.write_json("audit", records)
