"""Fixtures: a small network with random weights, pictures on disk, a cache of the test's own."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Threads of two libraries on two cores fight; the tests' networks are tiny.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

SHARED = Path(__file__).parents[2] / "shared"


HUGE = 40e6
"""Parameters from which on slow tests of a network run only where KFT_EXHAUSTIVE is set."""
ALONE = ("inception_resnet_v2",)
"""Larger ones that have no smaller sister."""
SISTERS = {
    "densenet169", "densenet201", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3",
    "efficientnet_b4", "efficientnet_b5", "efficientnet_lite1", "efficientnet_v2_b1",
    "efficientnet_v2_b2", "efficientnet_v2_b3", "vgg19",
}  # fmt: skip
"""Others that differ from a smaller network of their family in depth and width alone."""


def pytest_collection_modifyitems(items):
    """Leaves larger sisters of each family to `make torture`: they take CI half an hour."""
    from kerastune_ft.backbones import PICTURES

    if "KFT_EXHAUSTIVE" in os.environ:
        return
    huge = {row.name for row in PICTURES.values() if row.parameters > HUGE} - set(ALONE)
    left = huge | SISTERS
    for item in items:
        values = getattr(item, "callspec", None)
        named = {v for v in values.params.values() if isinstance(v, str)} if values else set()
        if item.get_closest_marker("slow") and named & left:
            item.add_marker(pytest.mark.skip(reason="takes long; KFT_EXHAUSTIVE=1 runs it"))


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory, monkeypatch, request):
    """Keeps tests out of the user's cache; networked tests share one to download once."""
    if request.node.get_closest_marker("network") is None:
        monkeypatch.setenv("KFT_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def classifier():
    """A MobileNetV2 a third as wide, random weights, 3 classes, 32 pixels a side."""
    import keras

    from kerastune_ft import models

    keras.utils.set_random_seed(0)
    model = models.image_classifier(
        "mobilenet_v2", 3, weights="none", image_size=32, alpha=0.35, seed=0
    )
    fill_batch_norm_statistics(model)
    return model


def fill_batch_norm_statistics(model):
    """Makes random weights behave like trained ones: without statistics, features vanish."""
    import keras

    from kerastune_ft import models

    network, _ = models.backbone_of(model)
    parts = network._flatten_layers()
    layers = [x for x in parts if isinstance(x, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in layers]
    models.unfreeze(model, -1, batch_norm="train")
    for layer in layers:
        layer.momentum = 0.0
    shape = (8, *model.input_shape[1:])
    model(np.random.default_rng(0).uniform(0, 255, shape).astype("float32"), training=True)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    models.freeze(model)


@pytest.fixture(scope="session")
def weights_file(tmp_path_factory):
    """A `.keras` file of a narrow MobileNet, for `backbone.weights`: 32 pixels, alpha 0.25.

    Its random weights behave like trained ones, so that a fit learns colours within an epoch.
    MobileNet has half the layers of MobileNetV2 and is traced in half the time.
    """
    import keras

    from kerastune_ft import models

    keras.utils.set_random_seed(0)
    model = models.image_classifier(
        "mobilenet", 3, weights="none", image_size=32, alpha=0.25, seed=0
    )
    fill_batch_norm_statistics(model)
    path = tmp_path_factory.mktemp("weights") / "narrow.keras"
    model.save(path)
    return path


@pytest.fixture
def photos(tmp_path):
    """A folder with 3 classes of 12 tiny JPEGs that a network can tell apart by colour."""
    return write_photos(tmp_path / "photos")


def write_photos(folder):
    """Writes such a folder and returns it."""
    from PIL import Image

    rng = np.random.default_rng(0)
    colours = {"blue": (30, 40, 200), "green": (30, 190, 40), "red": (200, 30, 40)}
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        for number in range(12):
            pixels = np.clip(rng.normal(colour, 25, (40, 48, 3)), 0, 255).astype("uint8")
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.jpg")
    return folder
