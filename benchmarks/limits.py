"""What caching a frozen prefix can gain at most: how much of a training step is its forward pass.

measure({"side": 160, "blocks": [0, 1, 2], "steps": 10, "seed": 0})
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

BATCH = 32


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Times MobileNetV2 on noise, in the process that calls it.

    Args:
        settings: `side`, in pixels; `blocks`, how many train in each stage; `steps` that are timed.

    Returns:
        `stages`: of each `blocks`, and `step` and `prefix`, seconds per batch of 32: of the whole
        training step, and of the forward pass of everything below the lowest block that trains.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    from kerastune_ft import models

    keras.utils.set_random_seed(settings["seed"])
    side = settings["side"]
    model = models.image_classifier("mobilenet_v2", 10, weights="torchvision", image_size=side)
    network, _ = models.backbone_of(model)
    cuts = [block.name for block in models.blocks(model)[:-1]]
    noise = np.random.default_rng(0)
    pixels = noise.uniform(0, 255, (BATCH, side, side, 3)).astype("float32")
    labels = noise.integers(0, 10, BATCH)
    scaled = tf.constant(pixels / 128 - 1)
    stages = []
    for blocks in settings["blocks"]:
        models.unfreeze(model, blocks)
        optimizer = keras.optimizers.AdamW(1e-5)
        optimizer.build(model.trainable_variables)
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        below = network.get_layer(cuts[len(cuts) - 1 - blocks]).output
        prefix = keras.Model(network.inputs, below)
        forward = tf.function(lambda values, prefix=prefix: prefix(values, training=False))
        stages.append(
            {
                "blocks": blocks,
                "step": _timed(lambda: model.train_on_batch(pixels, labels), settings["steps"]),
                "prefix": _timed(lambda call=forward: call(scaled), settings["steps"]),
            }
        )
    return {"stages": stages}


def _timed(call: Callable[[], Any], count: int) -> float:
    """Returns the median seconds of a call, without the first two."""
    seconds = []
    for _ in range(count + 2):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[2:])


def most(step: float, prefix: float, epochs: int) -> tuple[float, float]:
    """Returns how many times as fast a stage can become.

    Args:
        step: Seconds of a whole training step.
        prefix: Seconds of it that the prefix takes.
        epochs: Of the stage.

    Returns:
        Of an epoch that reads the cache; and of all epochs, the first of which fills it by one
        pass through the prefix.
    """
    rest = max(step - prefix, 1e-9)
    return step / rest, epochs * step / (prefix + epochs * rest)
