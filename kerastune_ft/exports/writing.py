"""Lets a graph write: the likeliest token each time, until the end or as far as there is room.

    writer = writer_of(model, recipe, tokenizer)
    ids = writer(inputs)            # ragged int32 (batch, None), as `generation.write` gives it

What follows several beginnings at once is refused: a server answers with one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import tensorflow as tf

from kerastune_ft import generation
from kerastune_ft.data import tokenizing
from kerastune_ft.errors import ExportError

if TYPE_CHECKING:
    import keras

    from kerastune_ft.backbones.tokenizers import Tokenizer
    from kerastune_ft.recipe import Recipe

Tensor: TypeAlias = Any
Writer: TypeAlias = Callable[[Mapping[str, Tensor]], Any]
"""From `token_ids` and `padding_mask`, `int32 (batch, length)`, to what is written."""


def writer_of(model: keras.Model, recipe: Recipe, tokenizer: Tokenizer) -> Writer:
    """Returns what writes as a run's model does.

    Raises:
        ExportError: If the run follows several beginnings at once.
    """
    if recipe.task.beams > 1:
        raise ExportError(
            f"task.beams: {recipe.task.beams}: a graph follows one beginning; fit with "
            "task.beams=1."
        )
    assert tokenizer.eos_id is not None
    room, end, pad = recipe.task.max_new_tokens, tokenizer.eos_id, tokenizer.pad_id
    if recipe.task.name == "text_to_text":
        encoder, decoder = generation.encoder_and_decoder(model)
        return lambda inputs: _answered(encoder, decoder, inputs, room, end, pad)
    follower, most = generation.follower(model), tokenizing.length_of(recipe)
    return lambda inputs: _continued(follower, inputs, room, end, pad, most)


def _answered(
    encoder: keras.Model,
    decoder: keras.Model,
    inputs: Mapping[str, Tensor],
    room: int,
    end: int,
    pad: int,
) -> Any:
    """Writes with a decoder that looks at an encoder's features."""
    mask = inputs["padding_mask"]
    read = {"encoder_token_ids": inputs["token_ids"], "encoder_padding_mask": mask}
    features = encoder(read, training=False)

    def logits(written: Tensor, lengths: Tensor) -> Tensor:
        seen = tf.sequence_mask(lengths, tf.shape(written)[1], tf.int32)
        place = (lengths - 1)[:, tf.newaxis]
        return decoder([features, mask, written, seen, place], training=False)

    rows = tf.shape(mask)[0]
    begun = tf.fill([rows, 1], pad)
    return _grown(logits, begun, tf.ones([rows], tf.int32), tf.fill([rows], room), room, end, pad)


def _continued(
    follower: keras.Model, inputs: Mapping[str, Tensor], room: int, end: int, pad: int, most: int
) -> Any:
    """Writes on from what was read; texts of a batch may be of different lengths."""
    ids, lengths = inputs["token_ids"], tf.reduce_sum(inputs["padding_mask"], axis=1)
    # Something must stand before the first token.
    first = tf.where(lengths[:, tf.newaxis] > 0, ids[:, :1], end)
    ids, lengths = tf.concat([first, ids[:, 1:]], axis=1), tf.maximum(lengths, 1)
    rooms = tf.clip_by_value(most - lengths, 0, room)

    def logits(written: Tensor, lengths: Tensor) -> Tensor:
        written = written[:, :most]
        seen = tf.sequence_mask(lengths, tf.shape(written)[1], tf.int32)
        place = tf.minimum(lengths, most)[:, tf.newaxis] - 1
        return follower([written, seen, place], training=False)

    return _grown(logits, ids, lengths, rooms, room, end, pad)


def _grown(
    logits: Callable[[Tensor, Tensor], Tensor],
    begun: Tensor,
    lengths: Tensor,
    rooms: Tensor,
    room: int,
    end: int,
    pad: int,
) -> Any:
    """Adds the likeliest token to every row until it ends.

    Args:
        logits: From what was written, `int32 (rows, any)`, and lengths to what follows.
        begun: `int32 (rows, length)`.
        lengths: Of each row, `int32 (rows,)`.
        rooms: How many tokens each row may get.
        room: The largest of them.
        end: The token that ends a row, and is not part of it.
        pad: Stands behind the end.
    """
    rows, width = tf.shape(begun)[0], tf.shape(begun)[1]
    place = tf.tile(tf.range(width + room)[tf.newaxis], [rows, 1])
    begun = tf.pad(begun, [[0, 0], [0, room]], constant_values=pad)
    begun = tf.where(place < lengths[:, tf.newaxis], begun, pad)

    def goes_on(step: Tensor, written: Tensor, now: Tensor, done: Tensor) -> Tensor:
        return (step < room) & ~tf.reduce_all(done)

    def grow(step: Tensor, written: Tensor, now: Tensor, done: Tensor) -> tuple[Tensor, ...]:
        likeliest = tf.argmax(logits(written, now), axis=1, output_type=tf.int32)
        done = done | (likeliest == end)
        here = (place == now[:, tf.newaxis]) & ~done[:, tf.newaxis]
        written = tf.where(here, likeliest[:, tf.newaxis], written)
        now = tf.where(done, now, now + 1)
        return step + 1, written, now, done | (now - lengths >= rooms)

    state = (tf.constant(0), begun, lengths, rooms <= 0)
    _, written, now, _ = tf.while_loop(goes_on, grow, state)
    new = (place >= lengths[:, tf.newaxis]) & (place < now[:, tf.newaxis])
    return tf.ragged.boolean_mask(written, new)
