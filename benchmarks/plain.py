"""The ways of others: plain Keras after its guide to transfer learning, and its reading of folders.

The script is the guide's, https://www.tensorflow.org/tutorials/images/transfer_learning:
`image_dataset_from_directory`, `prefetch(AUTOTUNE)`, a frozen network called with `training=False`,
average pooling, dropout of 0.2, a dense layer. Network and weights are those of `kft fit`, out of
one `.keras` file (MobileNetV2 with its pixel layer) that is made beforehand.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks import clock as clocks

BATCH = 32


def transfer(settings: dict[str, Any]) -> dict[str, Any]:
    """Trains the head, as the guide does.

    Args:
        settings: `data`, a folder with train, validation and test; `base`; `side`; `epochs`;
            `learning_rate`; `augmented`; `seed`.

    Returns:
        `training` in seconds, from `compile` to the end of `fit`; `accuracy` on test.
    """
    import keras

    keras.utils.set_random_seed(settings["seed"])
    train, validation, test, classes = _read(settings)
    _, model = _network(settings, classes)
    began = time.monotonic()
    _compile(model, settings["learning_rate"])
    model.fit(train, epochs=settings["epochs"], validation_data=validation, verbose=2)
    ended = time.monotonic()
    _, accuracy = model.evaluate(test, verbose=2)
    return {"training": ended - began, "accuracy": accuracy}


def throughput(settings: dict[str, Any]) -> dict[str, Any]:
    """Trains the head, then everything, as the guide goes on.

    Args:
        settings: As of `transfer`; `head_epochs` and `full_epochs`.

    Returns:
        `head` and `full`: milliseconds of training per example, without the first epoch of each.
    """
    clock = clocks.watch()
    import keras

    keras.utils.set_random_seed(settings["seed"])
    train, validation, _, classes = _read(settings)
    base_model, model = _network(settings, classes)
    first = settings["head_epochs"]
    _compile(model, settings["learning_rate"])
    model.fit(train, epochs=first, validation_data=validation, verbose=2)
    base_model.trainable = True
    _compile(model, settings["learning_rate"] / 10)
    model.fit(train, epochs=settings["full_epochs"], validation_data=validation, verbose=2)
    head = clock.step_seconds(range(1, first))
    full = clock.step_seconds(range(first + 1, len(clock.epochs)))
    assert head is not None and full is not None
    return {"head": head * 1000 / BATCH, "full": full * 1000 / BATCH}


def _read(settings: dict[str, Any]) -> tuple[Any, Any, Any, int]:
    import keras
    import tensorflow as tf

    folder, side = Path(settings["data"]), settings["side"]

    def part(name: str, shuffle: bool) -> Any:
        return keras.utils.image_dataset_from_directory(
            folder / name,
            image_size=(side, side),
            batch_size=BATCH,
            shuffle=shuffle,
            seed=settings["seed"],
        )

    train, validation, test = part("train", True), part("validation", False), part("test", False)
    classes = len(train.class_names)
    ahead = (split.prefetch(tf.data.AUTOTUNE) for split in (train, validation, test))
    return (*ahead, classes)


def _network(settings: dict[str, Any], classes: int) -> tuple[Any, Any]:
    """Returns the network that is frozen, and the model around it."""
    import keras

    base_model = keras.models.load_model(settings["base"])
    base_model.trainable = False
    inputs = keras.Input((settings["side"], settings["side"], 3))
    x = inputs
    if settings.get("augmented"):
        x = keras.layers.RandomFlip("horizontal")(x)
        x = keras.layers.RandomRotation(0.1)(x)
        x = keras.layers.RandomZoom(0.1)(x)
    x = base_model(x, training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(0.2)(x)
    return base_model, keras.Model(inputs, keras.layers.Dense(classes)(x))


def _compile(model: Any, learning_rate: float) -> None:
    import keras

    model.compile(
        keras.optimizers.AdamW(learning_rate, weight_decay=1e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
