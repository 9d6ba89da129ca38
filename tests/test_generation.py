"""Writing texts: greedy and by beams, against counting every possibility and transformers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from kerastune_ft import generation, text_models  # noqa: E402
from kerastune_ft.data.texts import Batching, Ragged, Texts, Tokens  # noqa: E402
from kerastune_ft.errors import ModelError  # noqa: E402

END, PAD = 1, 0


def chain(seed, vocabulary=4):
    """A made-up model: what follows depends on the last two tokens."""
    table = np.random.default_rng(seed).normal(size=(vocabulary, vocabulary, vocabulary)) * 2

    def step(written):
        before = written[:, -2] if written.shape[1] > 1 else np.zeros(len(written), int)
        return table[before, written[:, -1]].astype("float32")

    return step


def log_shares(step, ids):
    logits = step(np.asarray([ids], np.int32)).astype("float64")[0]
    return logits - np.log(np.exp(logits).sum())


def best_of_all(step, room, vocabulary=4):
    """The text with the highest mean log-probability, by trying all."""
    found = []
    for length in range(1, room + 1):
        for ids in itertools.product(range(vocabulary), repeat=length):
            if END in ids[:-1] or (length < room and ids[-1] != END):
                continue
            total = sum(log_shares(step, (PAD, *ids[:i]))[ids[i]] for i in range(length))
            found.append((total / length, tuple(i for i in ids if i != END)))
    return max(found)[1]


@pytest.mark.parametrize("seed", range(20))
def test_enough_beams_find_the_best_of_all_texts(seed):
    step, room = chain(seed), 4
    begin = np.full((64, 1), PAD, np.int32)
    (found,) = generation._search(step, begin, 1, 64, room, END, PAD)
    assert tuple(found.tolist()) == best_of_all(step, room)


@pytest.mark.parametrize("seed", range(20))
def test_one_beam_takes_the_likeliest_token_each_time(seed):
    step, room = chain(seed, 6), 7
    (found,) = generation._search(step, np.full((1, 1), PAD, np.int32), 1, 1, room, END, PAD)
    expected, ids = [], [PAD]
    while len(expected) < room:
        token = int(log_shares(step, ids).argmax())
        if token == END:
            break
        expected.append(token)
        ids.append(token)
    assert found.tolist() == expected


@pytest.mark.parametrize("beams", [1, 3])
def test_texts_of_one_batch_do_not_mix(beams):
    step, room = chain(5, 6), 6
    starts = [2, 3, 4, 5]
    begins = np.repeat(np.asarray(starts, np.int32)[:, None], beams, axis=0)
    together = generation._search(step, begins, 4, beams, room, END, PAD)
    for start, found in zip(starts, together, strict=True):
        begin = np.full((beams, 1), start, np.int32)
        (alone,) = generation._search(step, begin, 1, beams, room, END, PAD)
        assert found.tolist() == alone.tolist()


def tokens_for(model, texts, length=24):
    tokenizer = model.preprocessor.tokenizer
    encoded = tokenizer.encode(texts, length=length)
    return Tokens(
        Texts(tuple(texts)),
        Ragged.of(encoded.ids, encoded.starts),
        tokenizer.pad_id,
        Batching.of(2, None, length),
        tokenizer=tokenizer,
    )


TEXTS = ["a", "a longer text than that", "some words", "x y z"]


@pytest.mark.parametrize("beams", [1, 3])
def test_what_is_written_does_not_depend_on_its_batch(beams):
    model = text_models.text_to_text("t5", weights="none")
    together = generation.write(model, tokens_for(model, TEXTS), beams=beams, max_new_tokens=5)
    for text, found in zip(TEXTS, together, strict=True):
        (alone,) = generation.write(model, tokens_for(model, [text]), beams=beams, max_new_tokens=5)
        assert found.tolist() == alone.tolist()


def test_greedy_writing_agrees_with_the_logits_of_the_whole_text():
    model = text_models.text_to_text("t5", weights="none")
    tokens = tokens_for(model, TEXTS)
    written = generation.write(model, tokens, max_new_tokens=5)
    for row, ids in enumerate(written):
        source = tokens.ids[row][None]
        target = np.concatenate([[tokens.pad_id], ids]).astype("int32")[None]
        logits = model.predict_on_batch(
            {
                "encoder_token_ids": source,
                "encoder_padding_mask": np.ones_like(source),
                "decoder_token_ids": target,
                "decoder_padding_mask": np.ones_like(target),
            }
        )
        assert np.asarray(logits)[0].argmax(axis=-1)[: len(ids)].tolist() == ids.tolist()


def test_a_text_goes_on_after_its_prompt():
    model = text_models.text_generator("gpt2", weights="none", sequence_length=16)
    tokens = tokens_for(model, ["a good", "film", ""], length=16)
    written = generation.write(model, tokens, max_new_tokens=30)
    for row, ids in enumerate(written):
        assert len(ids) + max(int(tokens.ids.lengths[row]), 1) <= 16
        prompt = tokens.ids[row] if len(tokens.ids[row]) else [tokens.tokenizer.eos_id]
        whole = np.concatenate([prompt, ids]).astype("int32")[None]
        inputs = {"token_ids": whole, "padding_mask": np.ones_like(whole)}
        logits = np.asarray(model.predict_on_batch(inputs))[0]
        assert logits.argmax(axis=-1)[len(prompt) - 1 : -1].tolist() == ids.tolist()


def test_a_model_that_does_not_write_is_refused():
    model = text_models.text_classifier("bert", 2, weights="none")
    with pytest.raises(ModelError, match="writes no texts"):
        generation.write(model, tokens_for(model, TEXTS))
    writer = text_models.text_to_text("t5", weights="none")
    with pytest.raises(ModelError, match="expected 1 or more"):
        generation.write(writer, tokens_for(writer, TEXTS), beams=0)
