"""Files of weights: what is not the network's, or not in the file, is refused."""

from __future__ import annotations

from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from kerastune_ft.backbones import BACKBONES, arrays, networks
from kerastune_ft.errors import WeightsError


@pytest.mark.slow
@pytest.mark.parametrize(
    ("larger", "name"),
    [("VGG19", "vgg16"), ("EfficientNetV2B1", "efficientnet_v2_b0"), ("ResNet101", "resnet50")],
)
def test_file_of_a_larger_sister_is_refused(larger: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.weights.h5"
    sister = getattr(keras.applications, larger)
    sister(weights=None, include_top=False, input_shape=(32, 32, 3)).save_weights(path)
    with pytest.raises(WeightsError, match=r"of a larger one; check backbone\.name"):
        networks.build(BACKBONES[name], image_size=(32, 32), weights=str(path))


def test_array_of_another_file_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as secret:
        secret["s"] = np.zeros((3, 3, 3, 8), "float32")
    row = BACKBONES["mobilenet"]
    path = tmp_path / "x.weights.h5"
    network = networks.build(row, image_size=(32, 32), weights="none", alpha=0.25)
    network.save_weights(path)
    with h5py.File(path, "a") as file:
        del file["layers/conv2d/vars/0"]
        file["layers/conv2d/vars/0"] = h5py.ExternalLink("secret.h5", "/s")
    with pytest.raises(WeightsError, match="outside the file; refused"):
        arrays.read(path)


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_lite0"])
def test_training_and_inference_give_the_same_features_of_frozen_blocks(name: str) -> None:
    keras.utils.set_random_seed(0)
    network = networks.build(BACKBONES[name], image_size=(32, 32), weights="none")
    dropouts = [x for x in network.layers if isinstance(x, keras.layers.Dropout)]
    assert len(dropouts) > 5
    network.trainable = False
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    trained, inferred = (np.asarray(network(images, training=flag)) for flag in (True, False))
    np.testing.assert_array_equal(trained, inferred)
    again = keras.models.clone_model(network)
    assert all(x.rate == 0 for x in again.layers if isinstance(x, keras.layers.Dropout))
