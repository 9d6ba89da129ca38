"""Augmentation as a function of (seed, epoch, example)."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerastune_ft.data import feeding, images
from kerastune_ft.data.augmentation import Augmentation, example_layers
from kerastune_ft.data.tables import Arrays
from kerastune_ft.data.texts import Batching, Ragged, Texts, Tokens
from kerastune_ft.recipe import Augment, RandAugment

SIZE = (24, 20)
PICTURES = np.random.default_rng(0).uniform(0, 255, (8, *SIZE, 3)).astype("float32")
KINDS = {
    "horizontal_flip": Augment(horizontal_flip=True),
    "vertical_flip": Augment(vertical_flip=True),
    "rotation": Augment(rotation=0.1),
    "zoom": Augment(zoom=0.3),
    "translation": Augment(translation=0.3),
    "contrast": Augment(contrast=0.5),
    "brightness": Augment(brightness=0.5),
    "rand_augment": Augment(rand_augment=RandAugment()),
    "random_erasing": Augment(random_erasing=0.3),
}


def key(seed, epoch, example):
    return tf.constant([seed, epoch, example], tf.int64)


def changed(augment, seed=0, epoch=0, examples=range(8), originals=PICTURES):
    """Runs the augmentation inside tf.data, as training does, over the examples in that order."""
    augmentation = Augmentation(augment, SIZE, channels=originals.shape[-1])
    pictures = tf.constant(originals)
    dataset = tf.data.Dataset.from_tensor_slices(list(examples)).map(
        lambda i: augmentation.example(
            pictures[i], tf.stack([tf.constant(seed, tf.int64), epoch, tf.cast(i, tf.int64)])
        )
    )
    return np.stack([np.asarray(image) for image in dataset])


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_gets_the_same_whatever_came_before_it(kind):
    forward = changed(KINDS[kind])
    backward = changed(KINDS[kind], examples=range(7, -1, -1))
    alone = changed(KINDS[kind], examples=[5])
    np.testing.assert_array_equal(forward, backward[::-1])
    np.testing.assert_array_equal(forward[5], alone[0])


def test_streams_are_left_untuned():
    picture, size = Arrays(np.zeros((5, 4, 4), np.uint8)), {"image_size": (4, 4), "batch_size": 2}
    ids = Ragged.joined([np.arange(length) for length in (1, 3, 2)])
    tokens = Tokens(Texts(("a", "b", "c")), ids, 0, Batching(2, None, (4,)))
    for stream in (
        images.dataset(picture, [0, 1, 0, 1, 0], num_classes=2, **size),
        feeding.of_tokens(tokens, [0, 1, 0], 2),
    ):
        assert stream.options().autotune.enabled is False
        assert stream.map(lambda inputs, labels: inputs).options().autotune.enabled is False


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_change_keep_their_shape_and_stay_within_0_and_255(kind):
    found = changed(KINDS[kind])
    assert found.shape == PICTURES.shape
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 255
    assert not np.array_equal(found, PICTURES)


@pytest.mark.parametrize("kind", ["horizontal_flip", "rotation", "contrast"])
def test_seed_epoch_and_example_each_make_a_difference(kind):
    first = changed(KINDS[kind])
    assert not np.array_equal(first, changed(KINDS[kind], seed=1))
    assert not np.array_equal(first, changed(KINDS[kind], epoch=1))
    same_picture = Augmentation(KINDS[kind], SIZE)
    variants = {
        np.asarray(same_picture.example(tf.constant(PICTURES[0]), key(0, 0, example))).tobytes()
        for example in range(12)
    }
    assert len(variants) > 1


def test_half_of_the_pictures_are_flipped_and_flips_are_exact():
    augmentation = Augmentation(Augment(horizontal_flip=True), SIZE)
    picture = tf.constant(PICTURES[0])
    flipped = 0
    for example in range(200):
        found = np.asarray(augmentation.example(picture, key(3, 1, example)))
        if np.array_equal(found, PICTURES[0][:, ::-1]):
            flipped += 1
        else:
            np.testing.assert_array_equal(found, PICTURES[0])
    assert 70 < flipped < 130


def test_nothing_asked_for_changes_nothing():
    np.testing.assert_array_equal(changed(Augment()), PICTURES)


@pytest.mark.parametrize("augment", [Augment(mixup=0.4), Augment(cutmix=1.0)])
def test_mixed_labels_are_the_shares_of_the_pictures_mixed(augment):
    """With pictures of one constant each, the share of a class can be read off the pixels.

    Keras computes CutMix's shares from a box that it then rounds to whole pixels: the picture may
    be off by a pixel at two edges.
    """
    side = 160
    levels = np.array([10.0, 60.0, 110.0, 160.0, 210.0, 250.0], "float32")
    pictures = np.ones((6, side, side, 3), "float32") * levels[:, None, None, None]
    one_hot = np.eye(6, dtype="float32")
    augmentation = Augmentation(augment, (side, side))
    rounding = (levels.max() - levels.min()) * 2 / side if augment.cutmix else 0.01
    images, labels = augmentation.batch(tf.constant(pictures), tf.constant(one_hot), key(0, 0, 0))
    np.testing.assert_allclose(np.asarray(labels).sum(axis=1), 1.0, rtol=1e-5)
    expected = np.asarray(labels) @ levels
    np.testing.assert_allclose(np.asarray(images).mean(axis=(1, 2, 3)), expected, atol=rounding)
    assert not np.array_equal(np.asarray(labels), one_hot)
    again, _ = augmentation.batch(tf.constant(pictures), tf.constant(one_hot), key(0, 0, 0))
    np.testing.assert_array_equal(np.asarray(images), np.asarray(again))
    other, _ = augmentation.batch(tf.constant(pictures), tf.constant(one_hot), key(0, 1, 0))
    assert not np.array_equal(np.asarray(images), np.asarray(other))


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_takes_any_number_of_channels_and_stays_keyed(kind, channels):
    originals = np.random.default_rng(1).uniform(0, 255, (8, *SIZE, channels)).astype("float32")
    found = changed(KINDS[kind], originals=originals)
    assert found.shape == originals.shape
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 255
    assert not np.array_equal(found, originals)
    backward = changed(KINDS[kind], originals=originals, examples=[6, 3])
    np.testing.assert_array_equal(found[[6, 3]], backward)


@pytest.mark.parametrize(
    "kind", ["horizontal_flip", "vertical_flip", "rotation", "zoom", "translation"]
)
def test_geometry_moves_all_channels_together(kind):
    grey = PICTURES[..., :1]
    alone = changed(KINDS[kind], originals=grey)
    for channels in (2, 3, 5):
        found = changed(KINDS[kind], originals=np.repeat(grey, channels, axis=-1))
        np.testing.assert_array_equal(found, np.repeat(alone, channels, axis=-1))


def test_rand_augment_leaves_out_the_colour_operation_alone_and_only_where_there_is_no_colour():
    (colour,) = example_layers(Augment(rand_augment=RandAugment()), SIZE)
    (grey,) = example_layers(Augment(rand_augment=RandAugment()), SIZE, channels=1)
    known = keras.layers.RandAugment._AUGMENT_LAYERS
    assert list(colour._AUGMENT_LAYERS) == list(known)
    assert set(known) - set(grey._AUGMENT_LAYERS) == {"random_color_degeneration"}


@pytest.mark.parametrize("augment", [Augment(mixup=0.4), Augment(cutmix=1.0)])
def test_batches_of_any_channels_are_mixed_alike_in_each(augment):
    pictures, labels = PICTURES[..., :1], np.eye(8, dtype="float32")
    alone, shares = Augmentation(augment, SIZE, 1).batch(pictures, labels, key(0, 0, 0))
    many = np.repeat(pictures, 4, axis=-1)
    found, same = Augmentation(augment, SIZE, 4).batch(many, labels, key(0, 0, 0))
    np.testing.assert_array_equal(same, shares)
    np.testing.assert_array_equal(found, np.repeat(alone, 4, axis=-1))
    assert not np.array_equal(found, many)


@pytest.mark.parametrize("factor", [0.1, 0.3, 1.0])
def test_rand_augment_leaves_pictures_most_of_their_levels(factor):
    """Keras's own posterization leaves two levels of 256 at the factor of `strong`."""
    (layer,) = example_layers(Augment(rand_augment=RandAugment(factor=factor)), SIZE)
    posterized = np.asarray(layer.random_posterization(PICTURES, training=True))
    assert np.abs(posterized - PICTURES).max() <= 2 ** max(1, round(4 * factor))
    low, high = layer.random_rotation.factor
    assert -30 <= low * 360 < 0 < high * 360 <= 30 + 1e-6
