"""Gradual unfreezing inside one plain `model.fit`, and this package's schedules as a callback.

For any Keras script, on the TensorFlow and the JAX backend. Between stages the optimizer keeps its
slots, count and rate. Several devices, and what `optimizers.convert` does not know, are refused.

    unfreezing = GradualUnfreezing(step=2, blocks=8, epochs_per_stage=2, warmup_steps=100)
    model.fit(data, epochs=10, callbacks=[unfreezing])
    unfreezing.history
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Literal, get_args

import keras
import numpy as np

from kerastune_ft import models, optimizers
from kerastune_ft.errors import ModelError, TrainingError, did_you_mean
from kerastune_ft.models import BatchNorm, Block
from kerastune_ft.states import digest_of, sync


class GradualUnfreezing(keras.callbacks.Callback):
    """Unfreezes a model from the head down, stage by stage, within one fit.

    The optimizer that the model was compiled with is replaced by its layer-wise twin, and the
    model keeps that: it corrects Adam's bias by each variable's own updates, so that no step of a
    newly unfrozen variable exceeds its rate. To load the saved model import this module first.

    At the end of each stage it is checked that something moved in every trainable block and that
    frozen weights are bit-identical; other callbacks must not change weights meanwhile.

    A further fit starts again with the first stage. One with `initial_epoch` goes straight to the
    stage of that epoch; `patience` is counted anew. So does one that BackupAndRestore resumes, but
    beyond the first stage with a fresh optimizer: Keras restores it before the stage is known.

    EarlyStopping and ReduceLROnPlateau count on over the stages: with less patience than a stage is
    long, the fit can end before the next one. `FreezeAudit` knows the first stage alone.

    Args:
        stages: What trains beside the head in each stage, each as `models.unfreeze` takes it.
            Instead of `step` and `blocks`.
        step: Blocks added by each stage after the first, which trains the head alone.
        blocks: How many train in the last stage; None is all.
        epochs_per_stage: One number for all stages, or one for each; the last stage lasts to the
            end of the fit, whatever its number. 1 by default. With `monitor` these are limits,
            and None sets none.
        monitor: A figure, such as `val_loss`; a stage ends when it has stopped getting better.
        patience: Epochs without improvement that end a stage.
        min_delta: Smallest change that counts as better.
        mode: Of the figure, `min`, `max` or, where Keras knows it, `auto`.
        restore_best: Whether a stage starts from the best epoch of the one before, by `monitor`.
        rate_factor: Multiplies the learning rate at each new stage: the rate itself if it is a
            number, the optimizer's `rate_scale` under a schedule.
        rate_decay: Learning rate of each block as a share of the one above it, the head's being
            the full rate. Replaces `rates` that the optimizer has.
        warmup_steps: Updates over which the rate of a variable rises linearly after it was
            unfrozen. The first stage's variables are not warmed up.
        batch_norm: As in `models.unfreeze`.
        groups: The blocks of a model that no builder of this package made, bottom first: each a
            list of layer names, or regular expressions that match whole names, at any depth of
            nested models. They are called `group_1`, `group_2` and so on. Layers in none are the
            head and always train, BatchNormalization in every respect.
        verbose: 1 prints a line per stage.

    Attributes:
        history: A dictionary per stage: `epoch` and `stage`, both from 0, `trainable_blocks`,
            `parameters` that train, `learning_rate`, and `rates`, shares of it by block.

    Raises:
        ValueError: If an argument is out of range, or two contradict each other.
        ModelError: When training begins, if backend, optimizer, devices or blocks forbid it.
        TrainingError: At the end of a stage, if the wrong weights moved or `monitor` is missing.

    Reference:
        Howard & Ruder 2018, gradual unfreezing. https://arxiv.org/abs/1801.06146
    """

    def __init__(
        self,
        stages: Sequence[int | str | Sequence[str]] | None = None,
        *,
        step: int = 1,
        blocks: int | None = None,
        epochs_per_stage: int | Sequence[int] | None = None,
        monitor: str | None = None,
        patience: int = 2,
        min_delta: float = 0.0,
        mode: Literal["auto", "min", "max"] = "auto",
        restore_best: bool = False,
        rate_factor: float = 1.0,
        rate_decay: float = 1.0,
        warmup_steps: int = 0,
        batch_norm: BatchNorm = "frozen",
        groups: Sequence[Sequence[str]] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__()
        if epochs_per_stage is None and monitor is None:
            epochs_per_stage = 1
        lengths = epochs_per_stage if isinstance(epochs_per_stage, Sequence) else [epochs_per_stage]
        listed = groups is None or (groups and all(g and not isinstance(g, str) for g in groups))
        for name, fine, expected in (
            ("stages", stages is None or (stages and not isinstance(stages, str)), "some choices"),
            (
                "stages",
                stages is None or (step == 1 and blocks is None),
                "no step or blocks with it",
            ),
            ("step", step >= 1, "1 or more"),
            ("blocks", blocks is None or blocks >= 0, "0 or more"),
            ("epochs_per_stage", all(n is None or n >= 1 for n in lengths), "1 or more"),
            ("patience", patience >= 1, "1 or more"),
            ("restore_best", monitor or not restore_best, "monitor with it"),
            ("rate_factor", rate_factor > 0.0, "a number above 0"),
            ("rate_decay", rate_decay > 0.0, "a number above 0"),
            ("warmup_steps", warmup_steps >= 0, "0 or more"),
            ("batch_norm", batch_norm in get_args(BatchNorm), "frozen, affine or train"),
            ("groups", listed, "lists of layer names, bottom first"),
        ):
            if not fine:
                raise ValueError(f"{name}: expected {expected}.")
        self.stages = stages
        self.step = step
        self.blocks = blocks
        self.epochs_per_stage = epochs_per_stage
        self.monitor = monitor
        self.patience = patience
        self.min_delta = min_delta
        self.mode = mode
        self.restore_best = restore_best
        self.rate_factor = rate_factor
        self.rate_decay = rate_decay
        self.warmup_steps = warmup_steps
        self.batch_norm = batch_norm
        self.groups = groups
        self.verbose = verbose
        self.history: list[dict[str, Any]] = []
        self._blocks: list[Block] = []
        self._choices: list[frozenset[int]] = []
        self._lengths: list[int | None] = []
        self._stage = self._next = self._first_epoch = 0
        self._stage_by_epoch: dict[int, int] = {}
        self._former: dict[int, int] = {}  # of the fit before
        self._begun = self._audited = self._monitored = False
        self._origin: Any = None
        self._left: tuple[Any, float, float] | None = None
        self._undo: float | None = None
        self._watch: keras.callbacks.EarlyStopping | None = None
        self._digests: dict[int, bytes] = {}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Puts the first stage in place."""
        _check(self.model)
        self._blocks = self._find_blocks()
        self._choices = self._choose()
        self._former, self._stage_by_epoch = self._stage_by_epoch, {}
        self.history = []
        self._begun = self._audited = self._monitored = False
        self._origin = self.model.optimizer
        self.model.train_function = None  # may be traced with other flags
        self._undo = None
        if self._left is not None:
            # If nobody else set the rate since the last fit, it holds the factors of its stages.
            optimizer, rate, held = self._left
            if optimizer is self._origin and rate == _number(optimizer.learning_rate):
                self._undo = 1.0 / held
        self._enter(0, 0, self._origin, self._undo or 1.0)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Changes to the stage of the epoch."""
        sync(self.model)
        self._audited = False
        if not self._begun:
            self._begun = True
            if epoch > 0:
                self._resume(epoch)
            self._report(epoch)
        elif self._next != self._stage:
            if self.restore_best and self._watch is not None:
                self._watch.on_train_end()
            self._enter(self._next, epoch, self.model.optimizer, self.rate_factor)
            self._report(epoch)
        self._stage_by_epoch[epoch] = self._stage

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Decides whether the stage is over, and if it is checks what moved."""
        sync(self.model)
        if self._stage + 1 < len(self._choices):
            length = self._lengths[self._stage]
            full = length is not None and epoch + 1 - self._first_epoch >= length
            if self._stalled(epoch, logs or {}) or full:
                self._next = self._stage + 1
        self._stage_by_epoch[epoch + 1] = self._next
        ends = self.model.stop_training or epoch + 1 == self.params.get("epochs")
        if ends or self._next != self._stage:
            self._audit()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Checks what moved in the last stage, if fit ended without notice."""
        if self._begun and not self._audited:
            sync(self.model)
            self._audit()
        rate = _number(self.model.optimizer.learning_rate)
        self._left = (self.model.optimizer, rate, self.rate_factor**self._stage)
        if self.monitor is not None and self._watch is not None and not self._monitored:
            raise TrainingError(
                f"GradualUnfreezing: no epoch reported '{self.monitor}', so that no stage could "
                "end by it; pass validation_data to fit, or monitor='loss'."
            )

    def _find_blocks(self) -> list[Block]:
        """Returns the blocks, bottom first, the head last."""
        if self.groups is not None:
            return _grouped(self.model, self.groups)
        try:
            return models.blocks(self.model)
        except ModelError as error:
            raise ModelError(f"{error} Or pass groups, names of its layers.") from error

    def _choose(self) -> list[frozenset[int]]:
        """Returns which blocks train beside the head, by place from the bottom, stage by stage."""
        names = [block.name for block in self._blocks[:-1]]
        most = len(names) if self.blocks is None else self.blocks
        choices = self.stages or [*range(0, most, self.step), most]
        chosen = [models.select(names, choice, self.model.name) for choice in choices]
        lengths = self.epochs_per_stage
        self._lengths = list(lengths) if isinstance(lengths, Sequence) else [lengths] * len(chosen)
        if len(chosen) - len(self._lengths) not in (0, 1):
            raise ModelError(
                f"epochs_per_stage: model '{self.model.name}' has {len(chosen)} stages; expected "
                f"as many numbers, or one fewer, got {len(self._lengths)}."
            )
        return chosen

    def _resume(self, epoch: int) -> None:
        """Goes to the stage of an epoch that is the first of its fit, and not epoch 0."""
        stages = self._former
        if self.monitor is None:
            lengths = [length or 0 for length in self._lengths[: len(self._choices) - 1]]
            ends = np.array([*accumulate(lengths)])
            stages = {i: int((ends <= i).sum()) for i in range(epoch + 1)}
        if epoch not in stages or stages[epoch] >= len(self._choices):
            raise ModelError(
                f"GradualUnfreezing: fit begins with epoch {epoch}, and with monitor nothing but "
                "the callback of the former fit knows what stage that is; pass that one, or begin "
                "with epoch 0 and the stages that are left."
            )
        stage, before = stages[epoch], stages.get(epoch - 1, 0)
        first = min(i for i in stages if stages[i] == stage)
        if stage == 0:
            return
        factor = self.rate_factor**stage
        source, inner = self._origin, _inner(self._origin)
        if before == 0:
            source = self.model.optimizer  # has all there is; BackupAndRestore may have set it
        elif self._undo is not None:
            factor *= self._undo
        elif hasattr(inner, "rate_scale") and _number(inner.iterations) > 0:
            factor /= self.rate_factor**before  # saved by a fit like this one
        self._enter(stage, first, source, factor)

    def _enter(self, stage: int, epoch: int, old: Any, factor: float) -> None:
        """Makes the model train what a stage trains, from its first epoch on.

        It knows what the old optimizer learned, and has its learning rate times the factor.
        """
        model, chosen = self.model, self._choices[stage]
        self._stage = self._next = stage
        self._first_epoch = epoch
        if self.groups is None:
            names = [re.escape(self._blocks[i].name) for i in sorted(chosen)]
            models.unfreeze(model, names, batch_norm=self.batch_norm)
        else:
            models._set_trainable(model, True, "train")
            for index, block in enumerate(self._blocks[:-1]):
                for layer in block.layers:
                    models._set_trainable(layer, index in chosen, self.batch_norm)
        variables = model.trainable_variables
        if not variables:
            raise ModelError(
                f"model '{model.name}': stage {stage + 1} trains nothing; leave the layers of the "
                "head out of groups."
            )
        shares = self._shares()
        share = {id(x): shares[block.name] for block in self._blocks for x in block.weights}
        rates = {x.path: share.get(id(x), 1.0) for x in variables}
        fresh: frozenset[int] = frozenset()
        for before, after in zip(self._choices, self._choices[1 : stage + 1], strict=False):
            fresh = (fresh | (after - before)) & after
        newborn = {id(x) for i in fresh for x in self._blocks[i].weights}
        _replace_optimizer(
            model,
            old,
            rates=None if set(rates.values()) == {1.0} else rates,
            newborn=[x.path for x in variables if id(x) in newborn],
            warmup_steps=self.warmup_steps,
        )
        _multiply_rate(model.optimizer, factor)
        self._digests = {id(weight): digest_of(weight) for weight in model.weights}
        self._watch = None
        if self.monitor is not None and stage + 1 < len(self._choices):
            self._watch = keras.callbacks.EarlyStopping(
                self.monitor, self.min_delta, self.patience, 0, self.mode, None, self.restore_best
            )
            self._watch.set_model(model)
            self._watch.on_train_begin()

    def _shares(self) -> dict[str, float]:
        """Returns each block's share of the learning rate."""
        from_the_head = enumerate(reversed(self._blocks))
        return {block.name: self.rate_decay**depth for depth, block in from_the_head}

    def _stalled(self, epoch: int, logs: dict[str, Any]) -> bool:
        """Returns whether the figure has not got better for too long."""
        if self._watch is None or self.monitor is None:
            return False
        if self.monitor not in logs:
            if self.monitor.startswith("val_") and not any(x.startswith("val_") for x in logs):
                return False  # Of the epochs fit may validate only some.
            raise TrainingError(
                f"GradualUnfreezing: monitor '{self.monitor}' is not reported"
                f"{did_you_mean(self.monitor, logs) or ';'} the figures are {', '.join(logs)}."
            )
        self._monitored = True
        # EarlyStopping would stop the fit; of its decision we want to know only.
        stopped, self.model.stop_training = self.model.stop_training, False
        self._watch.on_epoch_end(epoch, logs)
        stalled, self.model.stop_training = self.model.stop_training, stopped
        return bool(stalled)

    def _audit(self) -> None:
        """Compares every weight with what it was when the stage began."""
        self._audited = True
        moved = {id(x) for x in self.model.weights if digest_of(x) != self._digests.get(id(x))}
        trained = {id(x) for x in self.model.trainable_variables}
        may_move = trained | _states(self.model)
        wrong = [x.path for x in self.model.weights if id(x) in moved - may_move]
        still = [
            block.name
            for block in self._blocks
            if block.trainable and not any(id(x) in trained & moved for x in block.weights)
        ]
        parts = [f"{len(wrong)} frozen weights moved ({', '.join(wrong[:5])})"] if wrong else []
        parts += [f"nothing moved in {', '.join(still)}"] if still else []
        if parts:
            raise TrainingError(
                f"GradualUnfreezing: stage {self._stage + 1} failed its check: {'; '.join(parts)}. "
                "Does another callback set weights or flags, or is the learning rate 0?"
            )

    def _report(self, epoch: int) -> None:
        """Adds the stage that begins to the history."""
        shares = self._shares()
        training = [block for block in self._blocks if block.trainable]
        entry: dict[str, Any] = {
            "epoch": epoch,
            "stage": self._stage,
            "trainable_blocks": [block.name for block in training],
            "parameters": sum(block.trainable_parameters for block in training),
            "learning_rate": _number(self.model.optimizer.learning_rate),
            "rates": {block.name: shares[block.name] for block in training},
        }
        self.history.append(entry)
        if self.verbose:
            names = entry["trainable_blocks"]
            shown = names if len(names) < 4 else [names[0], "...", *names[-2:]]
            print(
                f"stage {self._stage + 1} of {len(self._choices)} from epoch {epoch + 1}: "
                f"{', '.join(shown)} train, {entry['parameters']:,} parameters, "
                f"learning rate {entry['learning_rate']:.3g}"
            )


class StageRates(keras.callbacks.Callback):
    """Sets the learning rate before each batch, as a `StageSchedule` would.

    The optimizer keeps a plain number as its learning rate. Each fit starts anew; `initial_epoch`
    begins where it belongs. What else sets the rate, such as ReduceLROnPlateau or
    `GradualUnfreezing(rate_factor=...)`, is overwritten: there compile with the schedule itself.
    On JAX each change costs milliseconds, to bring the state of the fit back into the variables.

    Args:
        decay: As in `optimizers.StageSchedule`.
        learning_rate: The peak.
        epochs: Length of the schedule; afterwards its last rate stays.
        steps_per_epoch: In batches; needed where fit does not know its number of batches.
        warmup_epochs: In which the rate rises from 0; fractions are fine.

    Raises:
        ValueError: If the decay is unknown or a number is out of range.
        ModelError: When training begins, if the optimizer's rate cannot be set, one call runs
            several batches, or the number of batches is unknown.
    """

    def __init__(
        self,
        decay: str,
        learning_rate: float,
        epochs: int,
        steps_per_epoch: int | None = None,
        warmup_epochs: float = 0.0,
    ) -> None:
        super().__init__()
        optimizers.StageSchedule(decay, learning_rate, steps=1)  # refuses unknown decays
        if not 0.0 <= warmup_epochs < epochs:
            raise ValueError(f"warmup_epochs: expected 0 to below {epochs}, got {warmup_epochs}.")
        self.decay = decay
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.warmup_epochs = warmup_epochs
        self._steps = self._first_step = 0
        self._rates: list[float] = []
        self._set: float | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Works out the rate of every step."""
        optimizer = _inner(self.model.optimizer)
        settable = isinstance(getattr(optimizer, "_learning_rate", None), keras.Variable)
        steps = self.steps_per_epoch or self.params.get("steps")
        problem = ""
        if not settable:
            problem = "the rate cannot be set; compile with one optimizer and a number as rate"
        elif self.model.steps_per_execution != 1:
            problem = "steps_per_execution gives several batches one rate; compile with 1"
        elif not steps:
            problem = "fit does not know its number of batches; pass steps_per_epoch"
        if problem:
            raise ModelError(f"StageRates: {problem}.")
        total = self.epochs * steps
        warmup_steps = min(round(self.warmup_epochs * steps), total - 1)
        schedule = optimizers.StageSchedule(self.decay, self.learning_rate, total, warmup_steps)
        rates = keras.ops.convert_to_numpy(schedule(np.arange(total)))
        self._steps, self._rates, self._set = steps, rates.tolist(), None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Finds the place of the epoch."""
        self._first_step = epoch * self._steps

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the rate, unless it is set already."""
        rate = self._rates[min(self._first_step + batch, len(self._rates) - 1)]
        if rate != self._set:
            # A JAX fit reads the variables again after it was synchronised, and only then.
            sync(self.model)
            self.model.optimizer.learning_rate = rate
            self._set = rate


def _check(model: keras.Model) -> None:
    """Refuses what the callback cannot do."""
    backend = keras.backend.backend()
    several = False
    if backend == "jax":
        import jax

        several = jax.process_count() > 1 or keras.distribution.distribution() is not None
    elif backend == "tensorflow":
        several = model.distribute_strategy.num_replicas_in_sync > 1
    paths = Counter(weight.path for weight in model.weights)
    path, count = max(paths.items(), key=lambda item: item[1], default=("", 0))
    alone = "fit each stage by itself"
    problem = ""
    if backend not in ("tensorflow", "jax"):
        problem = f"the backend is {backend}, expected tensorflow or jax; {alone}"
    elif model.optimizer is None:
        problem = "the model has no optimizer; compile it with one"
    elif several:
        problem = f"a fit over several devices cannot change its optimizer; use one, or {alone}"
    elif not all(layer.built for layer in models.layers_of(model)):
        problem = f"model '{model.name}' is not built; call it once on a batch"
    elif count > 1:
        problem = f"{count} weights have the path '{path}'; give their layers other names"
    if problem:
        raise ModelError(f"GradualUnfreezing: {problem}.")


def _units(model: keras.Model, names: tuple[str, ...] = ()) -> Iterator[tuple[Any, set[str]]]:
    """Yields every layer that is no model, with its name and those of the models around it."""
    for layer in model.layers:
        around = (*names, layer.name)
        if isinstance(layer, keras.Model):
            yield from _units(layer, around)
        else:
            yield layer, set(around)


def _grouped(model: keras.Model, groups: Sequence[Sequence[str]]) -> list[Block]:
    """Returns the layers of each group as a block, and all others as the head."""
    units: dict[int, tuple[Any, set[str]]] = {}
    for layer, names in _units(model):
        units.setdefault(id(layer), (layer, set()))[1].update(names)
    known = sorted(set().union(*(names for _, names in units.values())))
    home: dict[int, int] = {}
    for number, patterns in enumerate(groups):
        for pattern in patterns:
            try:
                rule = re.compile(pattern)
            except re.error as error:
                raise ModelError(
                    f"groups: '{pattern}' is no regular expression: {error}."
                ) from None
            found = [key for key, (_, names) in units.items() if any(map(rule.fullmatch, names))]
            if not found:
                raise ModelError(
                    f"groups: '{pattern}' matches no layer of '{model.name}'"
                    f"{did_you_mean(pattern, known) or ';'} the layers are {', '.join(known)}."
                )
            for key in found:
                if home.setdefault(key, number) != number:
                    raise ModelError(
                        f"groups: layer '{units[key][0].name}' is in group {home[key] + 1} and in "
                        f"group {number + 1}; expected one of them."
                    )
    members: list[list[Any]] = [[] for _ in range(len(groups) + 1)]
    for key, (layer, _) in units.items():
        members[home.get(key, len(groups))].append(layer)
    titles = [*(f"group_{number + 1}" for number in range(len(groups))), "head"]
    return [Block(title, tuple(layers)) for title, layers in zip(titles, members, strict=True)]


def _replace_optimizer(
    model: keras.Model,
    old: keras.optimizers.Optimizer,
    rates: dict[str, float] | None,
    newborn: list[str],
    warmup_steps: int,
) -> None:
    """Gives a model the layer-wise twin of an optimizer, on what is trainable now."""
    variables = model.trainable_variables
    inner = _inner(old)
    if (
        old is model.optimizer
        and model.train_function is not None
        and (getattr(inner, "rates", ""), getattr(inner, "newborn", "")) == (rates, newborn)
        and inner.warmup_steps == warmup_steps
        and [id(x) for x in inner._trainable_variables] == [id(x) for x in variables]
    ):
        return  # To trace the same step again would only cost time.
    new = optimizers.convert(old, rates=rates, newborn=newborn, warmup_steps=warmup_steps, ages={})
    new.build(variables)
    if old.built:
        optimizers.carry_over(old, new, continue_iterations=True)
    # Not `compile`: it would make new metrics and set `stop_training`.
    model.optimizer = new
    if hasattr(model, "_compile_config"):
        model._compile_config.config["optimizer"] = new  # what `save` writes
    # JAX keeps the traces of a function as long as it lives, and finds the old one if the new
    # variables have the shapes of the old ones: evaluation would read the wrong weights.
    if keras.backend.backend() == "jax":
        model.test_function = model.predict_function = None
    model.train_function = None
    model.make_train_function()


def _multiply_rate(optimizer: keras.optimizers.Optimizer, factor: float) -> None:
    inner = _inner(optimizer)
    # Not always `rate_scale`: ReduceLROnPlateau reads the product of both and sets the rate.
    own = isinstance(inner._learning_rate, keras.Variable)
    target = inner._learning_rate if own else inner.rate_scale
    target.assign(_number(target) * factor)


def _states(model: keras.Model) -> set[int]:
    """Returns the ids of weights that no gradient reaches but that their layer moves itself."""
    return {
        id(weight)
        for layer in models.layers_of(model)
        if layer.trainable
        and (
            not isinstance(layer, keras.layers.BatchNormalization) or models.statistics_move(layer)
        )
        for weight in layer._non_trainable_variables
    }


def _inner(optimizer: Any) -> Any:
    """Returns what a LossScaleOptimizer holds, any other optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def _number(variable: Any) -> float:
    return float(keras.ops.convert_to_numpy(variable))
