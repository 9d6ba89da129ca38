"""Gradual unfreezing inside one plain `model.fit`, and this package's schedules as a callback.

Both work in any Keras script, on the TensorFlow and the JAX backend. Between stages the optimizer
keeps its slots, its count and its learning rate, and the other callbacks notice nothing. Several
devices, optimizers that are not layer-wise and untraceable changes are refused.

    unfreezing = GradualUnfreezing(step=2, blocks=8, epochs_per_stage=2, warmup_steps=100)
    model.fit(data, epochs=10, callbacks=[unfreezing])
    unfreezing.history
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import keras
import numpy as np

from kerastune_ft import models, optimizers
from kerastune_ft.errors import ModelError, TrainingError, did_you_mean
from kerastune_ft.models import BatchNorm, Block


class GradualUnfreezing(keras.callbacks.Callback):
    """Unfreezes a model from the head down, stage by stage, within one fit.

    The optimizer that the model was compiled with is replaced by its layer-wise twin, which the
    model keeps: one that corrects Adam's bias by each variable's own updates, so that no first
    step of a newly unfrozen variable exceeds its rate. Load this package before the saved model.

    At the end of each stage it is checked that something moved in every trainable block and that
    frozen weights are bit-identical; so do not change weights in other callbacks.

    A further fit starts again with the first stage. One with `initial_epoch` goes straight to the
    stage of that epoch and takes the learning rate on; so does one that BackupAndRestore resumes,
    with a fresh optimizer, whose slots it cannot load. Patience is counted anew.

    EarlyStopping and ReduceLROnPlateau count on over the stages; a patience below the length of a
    stage can end the fit before the next one. The same for `FreezeAudit`: it knows the first stage
    alone, and is not needed.

    Args:
        stages: What trains beside the head in each stage, as `models.unfreeze` takes it. Instead
            of `step` and `blocks`.
        step: Blocks added by each stage after the first, which trains the head alone.
        blocks: How many train in the last stage; None is all.
        epochs_per_stage: One number for all stages, or one for each; the last stage lasts to the
            end of the fit, whatever its number. 1 by default. With `monitor` a stage may end
            sooner, and None sets no limit.
        monitor: A figure, such as `val_loss`; a stage ends when it has stopped getting better.
        patience: Epochs without improvement that end a stage.
        min_delta: Smallest change that counts as better.
        mode: Of the figure, `min`, `max` or, where Keras knows it, `auto`.
        restore_best: Whether a stage starts from the best epoch of the one before, by `monitor`.
        rate_factor: Multiplies the learning rate at each new stage: the rate itself if it is a
            number, `optimizer.rate_scale` under a schedule.
        rate_decay: Learning rate of each block as a share of the one above it, the head's being
            the full rate. Replaces `rates` that the optimizer has.
        warmup_steps: Updates over which a newly unfrozen variable's rate rises linearly. The first
            stage's variables are not warmed up.
        batch_norm: As in `models.unfreeze`.
        groups: The blocks of a model that no builder of this package made, bottom first: each a
            list of layer names or regular expressions that match whole names, at any depth of
            nested models. They are called `group_1`, `group_2` and so on; layers in none are the
            head and train always, BatchNormalization too.
        verbose: 1 prints a line per stage.

    Attributes:
        history: A dictionary per stage: `epoch` (from 0) and `stage` (from 0), `trainable_blocks`,
            `parameters` that train, `learning_rate`, and `rates`, a share of it by block.

    Raises:
        ValueError: If arguments are out of range or contradict each other.
        ModelError: When training begins, if the backend, the optimizer or several devices forbid
            it, or if the blocks do not fit the model.
        TrainingError: At the end of a stage, if the wrong weights moved.

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
        if stages is not None and (isinstance(stages, str) or not stages):
            raise ValueError(f"stages: expected a list of at least one choice, got {stages!r}.")
        if stages is not None and (step != 1 or blocks is not None):
            raise ValueError("stages: leave step and blocks out, or stages.")
        for name, value, least in (
            ("step", step, 1),
            ("patience", patience, 1),
            ("warmup_steps", warmup_steps, 0),
        ):
            if value < least:
                raise ValueError(f"{name}: expected {least} or more, got {value}.")
        for name, share in (("rate_factor", rate_factor), ("rate_decay", rate_decay)):
            if not 0.0 < share < float("inf"):
                raise ValueError(f"{name}: expected a number above 0, got {share}.")
        if restore_best and monitor is None:
            raise ValueError("restore_best: needs monitor, or no epoch is the best.")
        if groups is not None and any(isinstance(g, str) or not g for g in groups):
            raise ValueError("groups: expected a list of lists of layer names, none of them empty.")
        if epochs_per_stage is None and monitor is None:
            epochs_per_stage = 1
        lengths = [epochs_per_stage] if isinstance(epochs_per_stage, int) else epochs_per_stage
        if lengths is not None and (not lengths or min(lengths) < 1):
            raise ValueError(f"epochs_per_stage: expected 1 or more, got {epochs_per_stage}.")
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
        self._stage = 0
        self._next = 0
        self._first_epoch = 0
        self._started = False
        self._origin: Any = None
        self._newborn: set[str] = set()
        self._watch: keras.callbacks.EarlyStopping | None = None
        self._seen = False
        self._digests: dict[int, bytes] = {}
        self._audited = False
        # What the last fit ended with: stage by epoch, optimizer, learning rate, factor in it.
        self._former: dict[int, int] = {}
        self._left: tuple[Any, float, float] | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Puts the first stage in place."""
        _check_supported(self.model)
        self._blocks = self._find_blocks()
        self._choices = self._choose()
        self._former = self._by_epoch() if self._left is not None else {}
        self._started = self._seen = False
        self._newborn = set()
        self.history = []
        self._origin = self.model.optimizer
        self._origin_rate = _rate(self._origin) if self._origin.built else None
        if self._left is not None:
            optimizer, rate, factor = self._left
            if optimizer is self._origin and rate == _rate(optimizer):
                _multiply_rate(optimizer, 1.0 / factor)
        self._enter(0, 0, self._origin, 1.0)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Changes to the epoch's stage."""
        _sync(self.model)
        if not self._started:
            self._started = True
            if epoch > 0:
                self._resume(epoch)
            self._report(epoch)
        elif self._next != self._stage:
            if self.restore_best and self._watch is not None:
                self._watch.on_train_end()
            factor = self.rate_factor ** (self._next - self._stage)
            self._enter(self._next, epoch, self.model.optimizer, factor)
            self._report(epoch)
        self._audited = False

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Decides whether the stage is over, and checks it if it is."""
        _sync(self.model)
        self._next = self._stage
        if self._stage + 1 < len(self._choices):
            stalled = self._stalled(epoch, logs or {})
            length = self._length(self._stage)
            over = length is not None and epoch + 1 - self._first_epoch >= length
            self._next += stalled or over
        last = epoch + 1 >= self.params.get("epochs", epoch + 2) or self.model.stop_training
        if self._next != self._stage or last:
            self._audit()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Checks the last stage."""
        if not self._started:
            return
        if not self._audited:
            _sync(self.model)
            self._audit()
        optimizer = self.model.optimizer
        self._left = (optimizer, _rate(optimizer), self.rate_factor**self._stage)
        if self.monitor is not None and not self._seen and len(self._choices) > 1:
            raise TrainingError(
                f"GradualUnfreezing: no epoch reported '{self.monitor}', so no stage could end; "
                "pass validation_data to fit, or monitor='loss'."
            )

    def _find_blocks(self) -> list[Block]:
        """Returns the blocks, bottom first, the head last."""
        if self.groups is not None:
            return _grouped(self.model, self.groups)
        try:
            return models.blocks(self.model)
        except ModelError as error:
            raise ModelError(
                f"{error} For a model of your own pass GradualUnfreezing(groups=[...]), lists of "
                "its layers' names, bottom first."
            ) from error

    def _choose(self) -> list[frozenset[int]]:
        """Returns the places of the blocks that train beside the head, by stage."""
        names = [block.name for block in self._blocks[:-1]]
        choices: Sequence[int | str | Sequence[str]]
        if self.stages is not None:
            choices = self.stages
        else:
            most = len(names) if self.blocks in (None, -1) else self.blocks
            assert most is not None
            choices = [*range(0, most, self.step), most]
        chosen = [models.select(names, choice, self.model.name) for choice in choices]
        lengths = self.epochs_per_stage
        if isinstance(lengths, Sequence) and len(lengths) not in (len(chosen), len(chosen) - 1):
            raise ModelError(
                f"epochs_per_stage: '{self.model.name}' has {len(chosen)} stages; expected as many "
                f"numbers, or one fewer, got {len(lengths)}."
            )
        return chosen

    def _length(self, stage: int) -> int | None:
        """Returns the largest number of epochs of a stage that is not the last."""
        if isinstance(self.epochs_per_stage, Sequence):
            return self.epochs_per_stage[stage]
        return self.epochs_per_stage

    def _stage_of(self, epoch: int) -> int:
        """Returns the stage of an epoch and sets nothing; only without `monitor`."""
        for stage in range(len(self._choices) - 1):
            epoch -= self._length(stage) or 0
            if epoch < 0:
                return stage
        return len(self._choices) - 1

    def _begin_of(self, stage: int) -> int:
        return sum(self._length(earlier) or 0 for earlier in range(stage))

    def _by_epoch(self) -> dict[int, int]:
        """Returns the stage of each epoch of the former fit, and of the one after it."""
        found: dict[int, int] = {}
        ends = [entry["epoch"] for entry in self.history[1:]] + [self._ended]
        for entry, end in zip(self.history, ends, strict=True):
            found |= dict.fromkeys(range(entry["epoch"], end), entry["stage"])
        found[self._ended] = min(self._next, len(self._choices) - 1)
        return found

    def _resume(self, epoch: int) -> None:
        """Goes to the stage of the first epoch of a fit that is not its epoch 0."""
        if self.monitor is None:
            before, stage = self._stage_of(epoch - 1), self._stage_of(epoch)
        elif epoch in self._former:
            before, stage = self._former.get(epoch - 1, 0), self._former[epoch]
        else:
            raise ModelError(
                f"GradualUnfreezing: fit starts at epoch {epoch}, and with monitor nothing tells "
                "which stage that is; use the callback of the former fit again, or start at epoch "
                "0 with the stages that are left."
            )
        power = stage
        if self._origin_rate is not None and optimizers.convert_keeps(self._origin):
            power = stage - before
        self._enter(stage, epoch, self._origin, self.rate_factor**power)

    def _enter(self, stage: int, epoch: int, old: Any, factor: float) -> None:
        """Makes the model train what a stage trains, with all that the optimizer has learned."""
