"""Notes when training steps and epochs end, alike in `kft fit` and in a script of one's own.

clock = watch()                # before any `fit`
...
clock.step_seconds(range(1, 3))
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any


class Clock:
    """Times of this process, in seconds of the machine's monotonic clock.

    Args:
        steps: For every epoch that began, when each of its steps ended.
        epochs: When each epoch ended, validation included.
    """

    def __init__(self) -> None:
        self.steps: list[list[float]] = [[]]
        self.epochs: list[float] = []

    @property
    def first_step(self) -> float:
        """When the first step ended."""
        return self.steps[0][0]

    def step_seconds(self, epochs: Iterable[int], after: int = 0) -> float | None:
        """Returns the mean seconds of a step.

        Args:
            epochs: Numbers, from 0 over all stages. The first step of each is left out: it waits
                for the first batch of its stream.
            after: Steps of each epoch that are left out beside it.

        Returns:
            None if there are no such steps.
        """
        return mean_step([self.steps[epoch][after:] for epoch in epochs if epoch < len(self.steps)])

    def spans(self, began: float, epochs: int) -> list[float]:
        """Returns the seconds of stages of so many epochs each, from the end of the one before."""
        ends = self.epochs[epochs - 1 :: epochs]
        return [end - start for start, end in zip([began, *ends], ends, strict=False)]


def mean_step(epochs: Sequence[Sequence[float]]) -> float | None:
    """Returns the mean time between the ends of successive steps of the same epoch."""
    counted = [ends for ends in epochs if len(ends) > 1]
    steps = sum(len(ends) - 1 for ends in counted)
    return sum(ends[-1] - ends[0] for ends in counted) / steps if steps else None


def watch() -> Clock:
    """Has every `fit` of this process tell a clock; costs microseconds a step."""
    import keras

    clock = Clock()
    step_ended = keras.callbacks.CallbackList.on_train_batch_end
    epoch_ended = keras.callbacks.CallbackList.on_epoch_end

    def on_train_batch_end(self: Any, batch: int, logs: Any = None) -> None:
        step_ended(self, batch, logs)
        clock.steps[-1].append(time.monotonic())

    def on_epoch_end(self: Any, epoch: int, logs: Any = None) -> None:
        epoch_ended(self, epoch, logs)
        clock.epochs.append(time.monotonic())
        clock.steps.append([])

    keras.callbacks.CallbackList.on_train_batch_end = on_train_batch_end
    keras.callbacks.CallbackList.on_epoch_end = on_epoch_end
    return clock
