"""Lets a model write: the likeliest token each time, or the likeliest of several beginnings.

    ids = write(model, tokens, beams=4, max_new_tokens=64)      # tokens: of `data.tokenizing`
    [tokenizer.decode(row) for row in ids]

An encoder reads each text once. What was written is read anew for every token, padded to a few
lengths, so that nothing is traced or compiled for every length.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerastune_ft import models
from kerastune_ft.data import texts
from kerastune_ft.data.texts import BUCKETS, Tokens
from kerastune_ft.errors import ModelError

ENCODED = "final_dropout"
"""The last layer of an encoder that a decoder looks at."""

ROWS = 64
"""Beginnings that are gone on with at once."""

Step = Callable[[NDArray[np.int32]], NDArray[np.float32]]
"""Takes what was written so far, `(rows, length)`, returns logits of what follows `(rows, v)`."""


def write(
    model: keras.Model, tokens: Tokens, *, beams: int = 1, max_new_tokens: int = 64
) -> list[NDArray[np.int32]]:
    """Returns the tokens that a model writes for each text, without the end.

    Args:
        model: Of `text_models.text_to_text` or `text_models.text_generator`, or reloaded.
        tokens: What it reads.
        beams: How many beginnings are followed at once; 1 is greedy.
        max_new_tokens: Where to stop, 1 or more.

    Returns:
        For each text what is written, in the order of the texts. Of several beginnings the one
        with the highest mean log-probability per token, the end included.

    Raises:
        ModelError: If a number is out of its range, or the model does not write.
    """
    if beams < 1 or max_new_tokens < 1:
        raise ModelError(
            f"beams and max_new_tokens: expected 1 or more, got {beams} and {max_new_tokens}."
        )
    reads = {tensor.name for tensor in model.inputs}
    language = models.backbone_of(model)[1].language
    kind: type[_Encoded | _Prompted] | None = None
    if language is not None and language.decoder and _Encoded.inputs <= reads:
        kind = _Encoded
    elif language is not None and language.causal and len(model.output_shape) == 3:
        kind = _Prompted
    if kind is None:
        raise ModelError(
            f"model '{model.name}': writes no texts; expected one of text_to_text or "
            "text_generator."
        )
    tokenizer = tokens.tokenizer
    assert tokenizer is not None and tokenizer.eos_id is not None
    writer = kind(model, tokens, max_new_tokens)
    written: list[Any] = [None] * len(tokens)
    # Of equal lengths alone, where what is read stands before what is written.
    for rows in _batches(tokens, kind is _Prompted, beams):
        step, begin = writer.begin(rows, beams)
        found = _search(
            step, begin, len(rows), beams, writer.room(rows), tokenizer.eos_id, tokenizer.pad_id
        )
        for row, ids in zip(rows, found, strict=True):
            written[row] = ids
    return written


def write_texts(
    model: keras.Model, texts_: Sequence[str], *, beams: int = 1, max_new_tokens: int = 64
) -> list[str]:
    """Returns what a model writes for each text.

    Args:
        model: Of `text_to_text` or `text_generator`, with its preprocessor.
        texts_: One or more; for `text_generator` the beginnings, which may be empty.
        beams: How many beginnings are followed at once; 1 is greedy.
        max_new_tokens: Where to stop, 1 or more.

    Raises:
        DataError: If there are no texts, or something is no text.
        ModelError: If a number is out of its range, or the model does not write.
    """
    preprocessor = getattr(model, "preprocessor", None)
    if preprocessor is None:
        raise ModelError(
            f"model '{model.name}': has no preprocessor; a reloaded model gets that of a new one: "
            "model.preprocessor = text_to_text(...).preprocessor."
        )
    tokens = preprocessor.tokens(texts_, max_new_tokens=max_new_tokens)
    written = write(model, tokens, beams=beams, max_new_tokens=max_new_tokens)
    return [preprocessor.tokenizer.decode(ids) for ids in written]


def _at(logits: Any, place: Any) -> Any:
    """Returns the logits of one place of each row, `float32 (rows, vocabulary)`."""
    one = keras.ops.take_along_axis(logits, keras.ops.expand_dims(place, -1), axis=1)
    return keras.ops.cast(keras.ops.squeeze(one, 1), "float32")


def encoder_and_decoder(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Returns the halves of a model that reads a text and writes another.

    Returns:
        From `encoder_token_ids` and `encoder_padding_mask` to features; and from features,
        `encoder_padding_mask`, `decoder_token_ids`, `decoder_padding_mask` and a place `int32
        (rows, 1)` to the logits of what follows that place, `float32 (rows, vocabulary)`.
    """
    network, _ = models.backbone_of(model)
    inputs = network.input
    read = {name: inputs[name] for name in ("encoder_token_ids", "encoder_padding_mask")}
    features = network.get_layer(ENCODED).output
    written = [inputs["decoder_token_ids"], inputs["decoder_padding_mask"]]
    place = keras.Input((1,), dtype="int32", name="place")
    reads = [features, read["encoder_padding_mask"], *written, place]
    return keras.Model(read, features), keras.Model(reads, _at(network.output, place))


def follower(model: keras.Model) -> keras.Model:
    """Returns a model that writes on.

    Returns:
        From `token_ids`, `padding_mask` and a place `int32 (rows, 1)` to the logits of what follows
        that place, `float32 (rows, vocabulary)`.
    """
    place = keras.Input((1,), dtype="int32", name="place")
    inputs = {tensor.name: tensor for tensor in model.inputs}
    read = [inputs["token_ids"], inputs["padding_mask"]]
    return keras.Model([*read, place], _at(model.outputs[0], place))


def _batches(tokens: Tokens, equal: bool, beams: int) -> list[NDArray[np.int64]]:
    size = max(1, ROWS // beams)
    batching = dataclasses.replace(tokens.batching, batch_size=size, batch_tokens=None)
    planned = texts.plan(tokens.ids.lengths, batching)
    if not equal:
        return planned
    lengths = tokens.ids.lengths
    return [
        rows[lengths[rows] == length] for rows in planned for length in np.unique(lengths[rows])
    ]


class _Encoded:
    """Writes with a decoder that looks at an encoder's features."""

    inputs = frozenset({"encoder_token_ids", "decoder_token_ids"})

    def __init__(self, model: keras.Model, tokens: Tokens, max_new_tokens: int) -> None:
        self.encoder, self.decoder = encoder_and_decoder(model)
        self.tokens = tokens
        self.max_new_tokens = max_new_tokens

    def begin(self, rows: NDArray[np.int64], beams: int) -> tuple[Step, NDArray[np.int32]]:
        """Reads some texts; returns how to go on, and what stands before the first token."""
        tokens = self.tokens
        length = texts.bucket(int(tokens.ids.lengths[rows].max()), tokens.batching)
        ids = tokens.ids.padded(rows, length, tokens.pad_id).astype(np.int32)
        mask = (np.arange(length) < tokens.ids.lengths[rows, None]).astype(np.int32)
        read = {"encoder_token_ids": ids, "encoder_padding_mask": mask}
        features = np.repeat(np.asarray(self.encoder.predict_on_batch(read)), beams, axis=0)
        mask = np.repeat(mask, beams, axis=0)

        def step(written: NDArray[np.int32]) -> NDArray[np.float32]:
            padded, seen = _padded(written, tokens.pad_id)
            place = np.full((len(written), 1), written.shape[1] - 1, np.int32)
            return np.asarray(self.decoder.predict_on_batch([features, mask, padded, seen, place]))

        start = np.full((len(rows) * beams, 1), tokens.pad_id, np.int32)
        return step, start

    def room(self, rows: NDArray[np.int64]) -> int:
        """Returns how many tokens may be written."""
        return self.max_new_tokens


class _Prompted:
    """Writes on from what it has read, all texts of a batch being equally long."""

    def __init__(self, model: keras.Model, tokens: Tokens, max_new_tokens: int) -> None:
        self.model = follower(model)
        self.tokens = tokens
        self.max_new_tokens = max_new_tokens

    def begin(self, rows: NDArray[np.int64], beams: int) -> tuple[Step, NDArray[np.int32]]:
        """Returns how to go on, and what was read."""
        tokens = self.tokens
        length = int(tokens.ids.lengths[rows].max())
        ids = tokens.ids.padded(rows, length, tokens.pad_id).astype(np.int32)
        if not length:  # something must stand before the first token
            assert tokens.tokenizer is not None
            ids = np.full((len(rows), 1), tokens.tokenizer.eos_id, np.int32)

        def step(written: NDArray[np.int32]) -> NDArray[np.float32]:
            padded, seen = _padded(written, tokens.pad_id, self.limit)
            place = np.full((len(written), 1), written.shape[1] - 1, np.int32)
            return np.asarray(self.model.predict_on_batch([padded, seen, place]))

        return step, np.repeat(ids, beams, axis=0)

    @property
    def limit(self) -> int:
        """The most tokens that fit, read and written."""
        return self.tokens.batching.buckets[-1]

    def room(self, rows: NDArray[np.int64]) -> int:
        """Returns how many tokens may be written."""
        length = max(int(self.tokens.ids.lengths[rows].max()), 1)
        return max(min(self.max_new_tokens, self.limit - length), 0)


def _padded(
    written: NDArray[np.int32], pad_id: int, limit: int | None = None
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Fills up to one of a few lengths; returns tokens and which of them are real."""
    length = written.shape[1]
    whole = next((b for b in BUCKETS if b >= length), length)
    whole = max(min(whole, limit or whole), length)
    padded = np.full((len(written), whole), pad_id, np.int32)
    padded[:, :length] = written
    seen = np.zeros_like(padded)
    seen[:, :length] = 1
    return padded, seen


@dataclass
class _Hypothesis:
    """A text that came to its end."""

    score: float
    ids: NDArray[np.int32]


def _search(
    step: Step,
    begin: NDArray[np.int32],
    count: int,
    beams: int,
    room: int,
    end_id: int,
    pad_id: int,
) -> list[NDArray[np.int32]]:
    """Follows the likeliest beginnings of each text until their end or as far as there is room."""
    written, read = begin, begin.shape[1]
    scores = np.full((count, beams), -np.inf)
    scores[:, 0] = 0.0  # all beams begin alike: the others would only repeat the first
    best: list[_Hypothesis | None] = [None] * count
    done = np.zeros(count, bool)
    for length in range(1, room + 1):
        shares = _log_softmax(step(written)).reshape(count, beams, -1)
        totals = scores[:, :, None] + shares
        vocabulary = totals.shape[-1]
        flat = totals.reshape(count, -1)
        # Twice as many as beams, for as many of them may be ends.
        wanted = min(2 * beams, flat.shape[1])
        top = np.argpartition(-flat, wanted - 1, axis=1)[:, :wanted]
        order = np.argsort(-np.take_along_axis(flat, top, axis=1), axis=1, kind="stable")
        top = np.take_along_axis(top, order, axis=1)
        next_rows = np.zeros((count, beams), np.int64)
        next_ids = np.full((count, beams), pad_id, np.int32)
        next_scores = np.full((count, beams), -np.inf)
        for text in range(count):
            if done[text]:
                continue
            kept = 0
            for place in top[text]:
                beam, token = divmod(int(place), vocabulary)
                score = float(flat[text, place])
                if not math.isfinite(score) or kept == beams:
                    break
                if token == end_id:
                    if place in top[text, :beams]:
                        ids = written[text * beams + beam, read:]
                        _offer(best, text, score / length, ids)
                    continue
                next_rows[text, kept], next_ids[text, kept] = beam, token
                next_scores[text, kept] = score
                kept += 1
            # A longer text has a lower sum: its mean can be no better than this.
            hope = next_scores[text].max() / room
            found = best[text]
            done[text] = not kept or (found is not None and (beams == 1 or found.score >= hope))
        scores = next_scores
        rows = (np.arange(count)[:, None] * beams + next_rows).ravel()
        written = np.concatenate([written[rows], next_ids.reshape(-1, 1)], axis=1)
        if done.all():
            break
    for text in range(count):
        if not done[text] and math.isfinite(scores[text].max()):
            beam = int(scores[text].argmax())
            length = written.shape[1] - read
            ids = written[text * beams + beam, read:]
            _offer(best, text, float(scores[text, beam]) / max(length, 1), ids)
    empty = np.zeros(0, np.int32)
    return [empty if found is None else found.ids for found in best]


def _offer(best: list[_Hypothesis | None], text: int, score: float, ids: NDArray[np.int32]) -> None:
    former = best[text]
    if former is None or score > former.score:
        best[text] = _Hypothesis(score, ids.copy())


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype("float64") - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
