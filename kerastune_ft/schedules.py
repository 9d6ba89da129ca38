"""Learning rates over one stage, by name.

A schedule knows its stage's number of steps, starts with an optional linear warm-up and ends where
the stage ends. Lowering the rate when a metric stalls is not here: `plateau` stays constant, and a
callback lowers the optimizer's `rate_scale`.

    rate = StageSchedule("cosine", learning_rate=1e-4, steps=500, warmup_steps=50)
    optimizer = keras.optimizers.SGD(rate)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

END_SHARE = 0.01
"""Share of the learning rate left at the end of a decaying schedule."""

_RISE = 0.3
_FIRST_SHARE = 1 / 25
_LAST_SHARE = 1e-4


@keras.saving.register_keras_serializable("kerastune_ft")
class StageSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Warms the learning rate up linearly, then follows a decay to the end of the stage.

    Keras counts steps in batches, also when an optimizer adds up the gradients of several batches
    before it updates: `steps` and `warmup_steps` are then batches too.

    Args:
        decay: What follows the warm-up.

            - `constant`: the rate itself.
            - `linear`, `cosine`, `polynomial` (power 2), `exponential`: fall to a hundredth.
            - `step`: a tenth from half of the way on, a hundredth from three quarters on.
            - `one_cycle`: rises along a cosine from 1/25 to the rate in the first 30 % of the
              steps, then falls along a cosine to 1/10000 of it. Ignores `warmup_steps`.
            - `inverse_sqrt`: falls with the root of the steps; at four times the length of the
              warm-up it is half the rate.
            - `plateau`: the rate itself; a callback lowers the optimizer's `rate_scale`.
        learning_rate: The peak, reached after the warm-up.
        steps: Length of the stage, in batches, warm-up included.
        warmup_steps: Length of the warm-up; its first step is at `learning_rate / warmup_steps`.

    Raises:
        ValueError: If the decay is unknown or the warm-up is not shorter than the stage.

    References:
        - cosine: Loshchilov & Hutter 2017, SGDR. https://arxiv.org/abs/1608.03983
        - step: He et al. 2016, deep residual learning. https://arxiv.org/abs/1512.03385
        - one_cycle: Smith 2018, a disciplined approach to hyper-parameters.
          https://arxiv.org/abs/1803.09820
        - inverse_sqrt: Vaswani et al. 2017, attention is all you need.
          https://arxiv.org/abs/1706.03762
        - warm-up: Goyal et al. 2017, large minibatch SGD. https://arxiv.org/abs/1706.02677
    """

    def __init__(self, decay: str, learning_rate: float, steps: int, warmup_steps: int = 0) -> None:
        super().__init__()
        if decay not in SCHEDULES:
            raise ValueError(f"decay: expected one of {', '.join(SCHEDULES)}, got {decay!r}.")
        if not 0 <= warmup_steps < steps:
            raise ValueError(f"warmup_steps: expected 0 to {steps - 1}, got {warmup_steps}.")
        self.decay = decay
        self.learning_rate = learning_rate
        self.steps = steps
        self.warmup_steps = warmup_steps

    def __call__(self, step: Any) -> Any:
        """Returns the rate at a step, counted from 0 (the stage's first)."""
        step = ops.cast(step, "float32")
        warmup = 0 if self.decay == "one_cycle" else self.warmup_steps
        warm = (step + 1.0) / max(1, warmup)
        span = max(1, self.steps - warmup - 1)
        progress = ops.clip((step - warmup) / span, 0.0, 1.0)
        if self.decay == "inverse_sqrt":
            share = inverse_sqrt(progress, span, warmup)
        else:
            share = SCHEDULES[self.decay](progress)
        return self.learning_rate * ops.where(step < warmup, warm, share)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {
            "decay": self.decay,
            "learning_rate": self.learning_rate,
            "steps": self.steps,
            "warmup_steps": self.warmup_steps,
        }


def inverse_sqrt(progress: Any, span: int = 99, warmup_steps: int = 0) -> Any:
    """Returns the share `sqrt(warm-up / steps so far)`.

    Args:
        progress: Share of `span` that is over, 0..1.
        span: From the first step after the warm-up to the last, in steps.
        warmup_steps: Length of the warm-up; 0 counts as 1.
    """
    return ops.sqrt(max(1, warmup_steps) / (warmup_steps + 1.0 + progress * span))


def _half_cosine(start: float, end: float, progress: Any) -> Any:
    return end + (start - end) * 0.5 * (1.0 + ops.cos(math.pi * progress))


def _step(progress: Any) -> Any:
    drops = ops.cast(progress >= 0.5, "float32") + ops.cast(progress >= 0.75, "float32")
    return 0.1**drops


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "constant": lambda progress: ops.ones_like(progress),
    "linear": lambda progress: 1.0 - (1.0 - END_SHARE) * progress,
    "cosine": lambda progress: _half_cosine(1.0, END_SHARE, progress),
    "polynomial": lambda progress: END_SHARE + (1.0 - END_SHARE) * (1.0 - progress) ** 2,
    "exponential": lambda progress: END_SHARE**progress,
    "one_cycle": lambda progress: ops.where(
        progress < _RISE,
        _half_cosine(_FIRST_SHARE, 1.0, progress / _RISE),
        _half_cosine(1.0, _LAST_SHARE, (progress - _RISE) / (1.0 - _RISE)),
    ),
    "step": _step,
    "inverse_sqrt": inverse_sqrt,
    "plateau": lambda progress: ops.ones_like(progress),
}
"""Share of the learning rate as a function of the progress after the warm-up, 0..1.

`inverse_sqrt` needs the number of steps too; by progress alone it is that of 100 steps.
"""
