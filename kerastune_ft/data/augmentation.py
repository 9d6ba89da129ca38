"""Random changes to training pictures, as a pure function of (seed, epoch, example).

The changes are Keras's own layers. Those draw from a running `SeedGenerator`, so that what an
example gets would depend on what was drawn before it; here the generator is replaced by one that
hands out keys derived from the example, and any epoch can be replayed from its number alone.
MixUp and CutMix mix a batch and are keyed by (seed, epoch, step).

RandAugment's posterization and rotation are replaced: Keras's own destroy pictures. All of the
changes take any number of channels, but for one: the colour operation of RandAugment, a mix
with the picture's grey, is left off its list where there are other than 3. Contrast, equalisation
and the like treat each channel alone, brightness moves all of them alike.

    augmentation = Augmentation(recipe.data.augmentation, image_size=(160, 160))
    image = augmentation.example(image, key)            # key: int64 (3,): seed, epoch, index
    images, labels = augmentation.batch(images, labels, key)      # seed, epoch, step
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

if TYPE_CHECKING:
    from kerastune_ft.recipe import Augment, RandAugment

_VALUE_RANGE = (0.0, 255.0)


class KeyedSeeds(keras.random.SeedGenerator):
    """Hands out seeds that depend on a key and on how many were asked for, on nothing else.

    Keras's random functions take a seed from `next()`; while a pipeline is traced, the counter
    gives every draw of a picture a number of its own.
    """

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.restart(tf.zeros((3,), tf.int64))

    def restart(self, key: tf.Tensor) -> None:
        """Sets the key, `int64 (3,)`, and starts counting anew."""
        self._key, self._draws = key, 0

    def next(self, ordered: bool = True) -> tf.Tensor:
        """Returns the next seed, `int32 (2,)`."""
        self._draws += 1
        seed, turn, example = tf.unstack(self._key)
        root = tf.stack([seed, tf.constant(self._draws, tf.int64)])
        folded = tf.random.experimental.stateless_fold_in(root, turn)
        folded = tf.random.experimental.stateless_fold_in(folded, example)
        return tf.cast(tf.bitwise.bitwise_and(folded, 0x7FFFFFFF), tf.int32)


def example_layers(
    augment: Augment, image_size: tuple[int, int], channels: int = 3
) -> list[keras.layers.Layer]:
    """Returns the Keras layers that change one picture at a time, in the order they are applied.

    Args:
        augment: What the recipe asks for; anything at 0 or off adds no layer.
        image_size: Height and width of the pictures, in pixels.
        channels: Of the pictures.
    """
    layers = keras.layers
    flips = {
        (True, False): "horizontal",
        (False, True): "vertical",
        (True, True): "horizontal_and_vertical",
    }
    flip = flips.get((augment.horizontal_flip, augment.vertical_flip))
    made: list[keras.layers.Layer] = []
    if flip:
        made.append(layers.RandomFlip(flip, seed=0))
    if augment.rotation:
        made.append(layers.RandomRotation(augment.rotation, seed=0))
    if augment.zoom:
        made.append(layers.RandomZoom(augment.zoom, seed=0))
    if augment.translation:
        made.append(layers.RandomTranslation(augment.translation, augment.translation, seed=0))
    if augment.contrast:
        made.append(layers.RandomContrast(augment.contrast, value_range=_VALUE_RANGE, seed=0))
    if augment.brightness:
        made.append(layers.RandomBrightness(augment.brightness, value_range=_VALUE_RANGE, seed=0))
    if augment.rand_augment:
        made.append(_rand_augment(augment.rand_augment, channels))
    if augment.random_erasing:
        made.append(
            layers.RandomErasing(
                scale=(0.02, max(0.02, augment.random_erasing)), value_range=_VALUE_RANGE, seed=0
            )
        )
    for layer in made:
        layer.build((None, *image_size, channels))
    return made


def _rand_augment(settings: RandAugment, channels: int) -> keras.layers.Layer:
    layer = keras.layers.RandAugment(
        value_range=_VALUE_RANGE, num_ops=settings.num_ops, factor=settings.factor, seed=0
    )
    # At a factor of 0.3 Keras's own keeps one bit of each colour, and more the higher the factor,
    # and turns by up to 108 degrees. Cubuk et al. 2019 (https://arxiv.org/abs/1909.13719): four
    # bits at least, and 30 degrees at most.
    bits = 8 - max(1, round(4 * settings.factor))
    layer.random_posterization = keras.layers.RandomPosterization(
        factor=(bits, 8), value_range=_VALUE_RANGE, seed=0
    )
    layer.random_rotation = keras.layers.RandomRotation(settings.factor / 12, seed=0)
    if channels != 3:  # Keras's own list, without what raises on other than RGB
        operations = list(layer._AUGMENT_LAYERS)
        operations.remove("random_color_degeneration")
        layer._AUGMENT_LAYERS = operations
    return layer


def batch_layers(augment: Augment) -> list[keras.layers.Layer]:
    """Returns the Keras layers that mix the pictures and labels of a batch."""
    made: list[keras.layers.Layer] = []
    if augment.mixup:
        made.append(keras.layers.MixUp(augment.mixup, seed=0))
    if augment.cutmix:
        made.append(keras.layers.CutMix(augment.cutmix, seed=0))
    return made


class Augmentation:
    """Applies a recipe's augmentation to pictures `float32 (height, width, channels)` in 0..255.

    Args:
        augment: The recipe's settings.
        image_size: Height and width of the pictures, in pixels.
        channels: Of the pictures.
    """

    def __init__(self, augment: Augment, image_size: tuple[int, int], channels: int = 3) -> None:
        self._seeds = KeyedSeeds()
        self._shape = (*image_size, channels)
        self._example_layers = example_layers(augment, image_size, channels)
        self._batch_layers = batch_layers(augment)
        for layer in [*self._example_layers, *self._batch_layers]:
            _draw_from(layer, self._seeds)

    @property
    def changes_examples(self) -> bool:
        """Whether `example` does anything."""
        return bool(self._example_layers)

    def example(self, image: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """Returns the changed picture, same shape, `float32` in 0..255.

        Args:
            image: `float32 (height, width, channels)` in 0..255.
            key: `int64 (3,)`: seed, epoch, number of the example in its table.
        """
        if not self._example_layers:
            return image
        self._seeds.restart(key)
        images = tf.ensure_shape(image, self._shape)[None]
        for layer in self._example_layers:
            images = layer(images, training=True)
        return tf.clip_by_value(tf.cast(images[0], tf.float32), *_VALUE_RANGE)

    def batch(
        self, images: tf.Tensor, labels: tf.Tensor, key: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns mixed pictures and labels.

        Args:
            images: `float32 (batch, height, width, channels)` in 0..255.
            labels: `float32 (batch, outputs)`, one-hot or any numbers. They are mixed by the shares
                of the pictures, CutMix's by area.
            key: `int64 (3,)`: seed, epoch, number of the batch in the epoch.
        """
        if not self._batch_layers:
            return images, labels
        self._seeds.restart(key)
        mixed: dict[str, Any] = {"images": images, "labels": labels}
        for layer in self._batch_layers:
            mixed = layer(mixed, training=True)
        return tf.cast(mixed["images"], tf.float32), tf.cast(mixed["labels"], tf.float32)


def _draw_from(layer: keras.layers.Layer, seeds: KeyedSeeds) -> None:
    """Makes a Keras augmentation layer, and those inside it, draw from `seeds`."""
    layer._get_seed_generator = lambda backend=None: seeds
    for inner in layer._layers:
        if hasattr(inner, "_get_seed_generator"):
            _draw_from(inner, seeds)
