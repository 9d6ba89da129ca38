"""A training for `test_devices.py` to start in processes of its own: prints ready, writes weights.

python tests/hosts_script.py weights.npz '{"device": "cpu", "replicas": 2}' '{"epochs": 3}'
"""

from __future__ import annotations

import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np


def data(settings):
    from kerastune_ft.data import images, tables

    rng = np.random.default_rng(0)
    n, batch_size = settings.get("examples", 21), settings.get("batch_size", 8)
    batches = images.dataset(
        tables.Arrays(rng.integers(0, 255, (n, 8, 8, 3)).astype("uint8")),
        rng.integers(0, 3, n),
        image_size=(8, 8),
        batch_size=batch_size,
        num_classes=3,
        shuffle=True,
        epochs=range(settings["epochs"]),
        class_weights=[0.5, 1.0, 2.0] if settings.get("class_weights") else None,
    )
    return batches, images.steps(n, batch_size)


def build(keras, settings):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(4, 3, kernel_regularizer="l2")(x)
    frozen = keras.layers.BatchNormalization()
    frozen.trainable = False
    x = keras.layers.ReLU()(frozen(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(3, activation="softmax", dtype="float32")(x)
    model = keras.Model(inputs, outputs)
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9, **settings.get("optimizer", {})),
        "categorical_crossentropy",
        weighted_metrics=["accuracy"],
    )
    return model


def main():
    out, asked, settings = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    import keras

    from kerastune_ft import devices
    from kerastune_ft.errors import KftError

    try:
        found = devices.prepare(**asked)
    except KftError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
    print(found.describe(), flush=True)
    with found.scope():
        model = build(keras, settings)
    batches, steps = data(settings)
    if found.replicas * found.hosts > 1:
        batches = devices.even_batches(batches, found.replicas * found.hosts)
    if found.hosts > 1:
        batches = devices.local_rows(batches, found.hosts, found.rank)
    history = []

    def on_epoch_end(epoch, logs):
        history.append(logs["loss"])
        if epoch == 1:
            print("ready", flush=True)
        if epoch == 2 and settings.get("fails_on") == found.rank:
            raise ValueError("this host has a bug")

    said = keras.callbacks.LambdaCallback(on_epoch_end=on_epoch_end)
    model.fit(
        batches,
        steps_per_epoch=steps,
        epochs=settings["epochs"],
        verbose=0,
        shuffle=False,
        callbacks=[said],
    )
    np.savez(out, *[np.asarray(weight) for weight in model.get_weights()])
    if settings.get("sleep"):
        import time

        time.sleep(settings["sleep"][found.rank])
    devices.finish()
    print("finished", flush=True)


if __name__ == "__main__":
    main()
