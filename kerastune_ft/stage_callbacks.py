"""What ties a stage of training to the fits that run it."""

from __future__ import annotations

import functools
import time
from typing import Any, Protocol

import keras

from kerastune_ft import interrupts


class Stage(Protocol):
    """What a stage wants to be told."""

    def begin_epoch(self) -> None:
        """An epoch begins; Keras has reset the metrics."""

    def end_batch(self) -> None:
        """A batch has been trained on."""

    def begin_validation(self) -> None:
        """The epoch's batches are done."""

    def end_validation(self) -> None:
        """The figures of validation are known."""

    def end_epoch(self, logs: dict[str, float]) -> None:
        """All figures of the epoch are known."""

    def save(self, at_validation: bool = False) -> None:
        """A checkpoint is wanted now."""


class StageCallbacks(keras.callbacks.CallbackList):
    """A stage's callbacks, whose training begins and ends with the stage and not with every fit."""

    def begin(self) -> None:
        """Tells them that the stage begins."""
        self.saved = time.monotonic()
        super().on_train_begin()

    def finish(self) -> None:
        """Tells them that the stage has ended."""
        super().on_train_end()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Is called by every fit."""

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Is called by every fit."""


class FilledLoss(keras.callbacks.Callback):
    """Takes out of the validation loss what examples add that only fill a batch up.

    They weigh nothing, but Keras divides by their number too.

    Args:
        share: Examples with them, over examples.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Corrects it, before anybody looks."""
        if logs and "val_loss" in logs:
            logs["val_loss"] *= self.share


class Keeper(keras.callbacks.Callback):
    """Tells the stage what happens."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Passes it on."""
        self.stage.begin_epoch()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Passes it on."""
        self.stage.end_batch()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Passes it on."""
        self.stage.begin_validation()

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stops if a signal came in."""
        interrupts.check(functools.partial(self.stage.save, at_validation=True))

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Passes it on."""
        self.stage.end_validation()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Passes it on."""
        self.stage.end_epoch({name: float(value) for name, value in (logs or {}).items()})
