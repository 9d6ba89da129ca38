"""Optimizers and learning-rate schedules by name.

Schedules are made for one stage: they know its number of steps, start with an optional linear
warm-up and end where the stage ends.

    rate = schedule("cosine", learning_rate=1e-4, steps=500, warmup_steps=50)
    optimizer = make(recipe.train.optimizer, rate)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
from keras import ops

if TYPE_CHECKING:
    from kerastune_ft.recipe import Optimizer

OPTIMIZERS: dict[str, type[keras.optimizers.Optimizer]] = {
    "adadelta": keras.optimizers.Adadelta,
    "adafactor": keras.optimizers.Adafactor,
    "adagrad": keras.optimizers.Adagrad,
    "adam": keras.optimizers.Adam,
    "adamax": keras.optimizers.Adamax,
    "adamw": keras.optimizers.AdamW,
    "lion": keras.optimizers.Lion,
    "nadam": keras.optimizers.Nadam,
    "rmsprop": keras.optimizers.RMSprop,
    "sgd": keras.optimizers.SGD,
}

END_SHARE = 0.01
"""Share of the learning rate left at the end of a decaying schedule."""


@keras.saving.register_keras_serializable("kerastune_ft")
class StageSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Warms the learning rate up linearly, then follows a decay to the end of the stage.

    Args:
        decay: `constant`, `linear`, `cosine`, `polynomial` (power 2) or `exponential`. The last
            four end at a hundredth of the rate.
        learning_rate: The peak, reached after the warm-up.
        steps: Length of the stage, in optimizer steps, warm-up included.
        warmup_steps: Length of the warm-up; its first step is at `learning_rate / warmup_steps`.

    Raises:
        ValueError: If the decay is unknown or the warm-up is not shorter than the stage.
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
        """Returns the rate at an optimizer step, counted from 0 (the stage's first)."""
        step = ops.cast(step, "float32")
        warm = (step + 1.0) / max(1, self.warmup_steps)
        span = max(1, self.steps - self.warmup_steps - 1)
        progress = ops.clip((step - self.warmup_steps) / span, 0.0, 1.0)
        share = SCHEDULES[self.decay](progress)
        return self.learning_rate * ops.where(step < self.warmup_steps, warm, share)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {
            "decay": self.decay,
            "learning_rate": self.learning_rate,
            "steps": self.steps,
            "warmup_steps": self.warmup_steps,
        }


SCHEDULES: dict[str, Any] = {
    "constant": lambda progress: ops.ones_like(progress),
    "linear": lambda progress: 1.0 - (1.0 - END_SHARE) * progress,
    "cosine": lambda progress: (
        END_SHARE + (1.0 - END_SHARE) * 0.5 * (1.0 + ops.cos(3.141592653589793 * progress))
    ),
    "polynomial": lambda progress: END_SHARE + (1.0 - END_SHARE) * (1.0 - progress) ** 2,
    "exponential": lambda progress: END_SHARE**progress,
}
"""Share of the learning rate as a function of the progress after the warm-up, 0..1."""


def make(
    choice: Optimizer, learning_rate: float | keras.optimizers.schedules.LearningRateSchedule
) -> keras.optimizers.Optimizer:
    """Makes the Keras optimizer that a recipe names.

    Weight decay leaves out biases and the scale and offset of normalisation: pulling those to
    zero does not regularise, it shifts.

    Args:
        choice: The recipe's `train.optimizer`.
        learning_rate: A number or a schedule.
    """
    options: dict[str, Any] = {"weight_decay": choice.weight_decay or None}
    if choice.clipnorm is not None:
        options["clipnorm"] = choice.clipnorm
    if choice.momentum is not None:
        options["momentum"] = choice.momentum
    if choice.nesterov:
        options["nesterov"] = True
    if choice.name == "adamw":
        options["weight_decay"] = choice.weight_decay or 0.0
    optimizer = OPTIMIZERS[choice.name](learning_rate=learning_rate, **options)
    if choice.weight_decay:
        optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
    return optimizer
