"""What watches a figure over the epochs: when a stage ends, which epoch was best, lower rates.

All of them can say their state as JSON and take it back, so that a resumed run decides as the
uninterrupted one would have.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import keras

Mode = Literal["min", "max"]


@dataclass
class Best:
    """Remembers the best epochs of a whole run, over all stages.

    Args:
        monitor: The figure, such as `val_loss`.
        mode: Which way is better.
        count: How many epochs are remembered.
        epochs: Number (from 1) and figure, best first.
    """

    monitor: str
    mode: Mode
    count: int = 1
    epochs: list[tuple[int, float]] = field(default_factory=list)

    def offer(self, epoch: int, value: float) -> bool:
        """Takes an epoch in if it is among the best; returns whether it is."""
        if not math.isfinite(value):
            return False
        self.epochs = [*(pair for pair in self.epochs if pair[0] != epoch), (epoch, value)]
        # Of equal epochs the earlier one is the better: it needed less training.
        self.epochs.sort(key=lambda pair: (pair[1] if self.mode == "min" else -pair[1], pair[0]))
        self.epochs = self.epochs[: self.count]
        return any(number == epoch for number, _ in self.epochs)

    def state(self) -> dict[str, Any]:
        """Returns it for `json`."""
        return asdict(self)

    @classmethod
    def of(cls, state: dict[str, Any]) -> Best:
        """Returns what `state` said."""
        pairs = [(int(epoch), float(value)) for epoch, value in state["epochs"]]
        return cls(state["monitor"], state["mode"], state["count"], pairs)


class StageStopping(keras.callbacks.Callback):
    """Ends a stage when the monitored figure has not got better for some epochs of this stage.

    Unlike Keras's `EarlyStopping` it can be resumed, and leaves weights alone: which epoch of the
    run was best is `Best`'s business (Keras forgets it at every `fit`, keras 22967).

    Args:
        monitor: A column of the history.
        mode: Which way is better.
        patience: Epochs without improvement before the stage ends, 1 or more.
        min_delta: Smallest change that counts, 0 or more.
    """

    def __init__(self, monitor: str, mode: Mode, patience: int, min_delta: float = 0.0) -> None:
        super().__init__()
        self.monitor = monitor
        self.mode = mode
        self.patience = patience
        self.min_delta = min_delta
        self.best: float | None = None
        self.wait = 0

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks."""
        if self.monitor not in (logs or {}):
            return
        value = float((logs or {})[self.monitor])
        if is_better(value, self.best, self.mode, self.min_delta):
            self.best, self.wait = value, 0
            return
        self.wait += 1
        if self.wait >= self.patience:
            self.model.stop_training = True

    def state(self) -> dict[str, Any]:
        """Returns it for `json`."""
        return {"best": self.best, "wait": self.wait}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` said."""
        self.best, self.wait = state["best"], state["wait"]


class PlateauRate(keras.callbacks.Callback):
    """Divides the learning rate when the monitored figure no longer gets better.

    Needs an optimizer of this package: it moves `rate_scale`, so that warm-up and the rates of
    blocks keep their shape, and the scale is saved with the optimizer.

    Args:
        monitor: A column of the history.
        mode: Which way is better.
        factor: What the rate is multiplied by, between 0 and 1.
        patience: Epochs without improvement before that, 1 or more.
    """

    def __init__(self, monitor: str, mode: Mode, factor: float = 0.2, patience: int = 2) -> None:
        super().__init__()
        self.monitor = monitor
        self.mode = mode
        self.factor = factor
        self.patience = patience
        self.best: float | None = None
        self.wait = 0

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks, and lowers."""
        value = float((logs or {}).get(self.monitor, math.nan))
        if is_better(value, self.best, self.mode, 0.0):
            self.best, self.wait = value, 0
            return
        self.wait += 1
        if self.wait >= self.patience:
            optimizer = self.model.optimizer
            scale = getattr(optimizer, "inner_optimizer", optimizer).rate_scale
            scale.assign(scale * self.factor)
            self.wait = 0

    def state(self) -> dict[str, Any]:
        """Returns it for `json`; the scale itself is one of the optimizer's variables."""
        return {"best": self.best, "wait": self.wait}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` said."""
        self.best, self.wait = state["best"], state["wait"]


def is_better(value: float, best: float | None, mode: Mode, min_delta: float = 0.0) -> bool:
    """Whether a figure beats the best one so far; NaN beats nothing."""
    if math.isnan(value):
        return False
    if best is None:
        return True
    return value < best - min_delta if mode == "min" else value > best + min_delta
