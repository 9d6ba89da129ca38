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
    "efficientnet_lite0:imagenet",  # of those that are served with real weights
    # of KerasHub
    "cspnet_cs3", "darknet", "deit", "efficientnet_v1", "resnet_v2", "vit_bare",
}  # fmt: skip
"""Others that differ from a tested network of their family in little but depth and width."""


LONG = (
    "test_containers.py::test_the_steps_of_train_work_in_a_fresh_environment",
    "test_devices.py::test_a_host_that_is_killed_ends_the_other_with_its_name[0]",
    "test_devices.py::test_two_mirrored_replicas_end_with_the_weights_of_one_device[True]",
    "test_folds.py::test_every_task_is_averaged_over_its_folds[text_multilabel]",
    "test_folds.py::test_every_task_is_averaged_over_its_folds[text_regression]",
    "test_folds.py::test_interrupted_in_the_second_fold_it_goes_on_there",
    *(
        f"test_format_exports.py::test_{what}_are_answered_in_every_format[{format}-float16"
        for what in ("pictures", "texts")
        for format in ("litert", "onnx", "openvino")
    ),
    *(
        f"test_format_exports.py::test_models_of_all_folds_become_one_file[{format}"
        for format in ("keras", "litert", "onnx", "openvino")
    ),
    "test_exports.py::test_every_family_of_tokenizers_is_served[roberta",
    "test_exports.py::test_texts_are_served_as_they_were_trained_on[text_multilabel",
    "test_format_exports.py::test_other_tasks_are_answered_too[text_multilabel",
    "test_format_exports.py::test_other_tasks_are_answered_too[text_pair",
    "test_format_exports.py::test_texts_are_answered_in_every_format[keras",
    "test_formats.py::test_other_networks_of_pictures_answer_like_keras[convnext_tiny",
    "test_formats.py::test_other_networks_of_pictures_answer_like_keras[mobilenet-",
    "test_formats.py::test_other_networks_of_pictures_answer_like_keras[resnet50",
    "test_formats.py::test_other_networks_of_texts_answer_like_keras[distilbert",
    "test_formats.py::test_other_networks_of_texts_answer_like_keras[electra",
    "test_mismatch.py::test_real_data_gain_from_real_weights[flowers5",
    "test_optimizers.py::test_all_of_this_holds_on_the_jax_backend",
    "test_prefix_cache.py::test_texts_of_all_lengths_learn_as_without[gpt2]",
    "test_prefix_cache.py::test_texts_of_all_lengths_learn_as_without[t5]",
    "test_rate_finder.py::test_on_digits_the_suggestion_trains",
    "test_rate_finder.py::test_the_command_starts_from_a_run_of_the_same_network",
    "test_resume.py::test_a_signal_at_the_last_batch_of_an_epoch_or_in_validation_loses_nothing"
    "[end_batch]",
    "test_resume.py::test_a_signal_saves_exits_and_the_run_goes_on[2-130]",
    "test_shared_training.py::test_two_replicas_end_where_one_device_ends",
    "test_suspects.py::test_wrong_labels_of_real_photographs_are_found[flowers5",
)
"""Tests of half a minute to three minutes that have a shorter sister."""


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
        long = item.nodeid.removeprefix("tests/").startswith(LONG)
        if long or (item.get_closest_marker("slow") and named & left):
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
