"""Batches of texts: who shares one, how long it is, and that nobody is lost."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from kerastune_ft.data import feeding, texts
from kerastune_ft.data.texts import Batching, Ragged, Texts, Tokens


def lengths_of(n, seed=0, longest=60):
    return np.random.default_rng(seed).integers(1, longest + 1, n)


def tokens_of(lengths, batching, **more):
    rows = [np.arange(1, length + 1, dtype=np.int32) + 100 * i for i, length in enumerate(lengths)]
    held = Texts(tuple(f"text {i}" for i in range(len(lengths))))
    return Tokens(held, Ragged.joined(rows), 0, batching, **more)


@pytest.mark.parametrize("batch_tokens", [None, 256])
@pytest.mark.parametrize("n", [1, 7, 64, 1000])
@pytest.mark.parametrize("seed", [None, 3])
def test_every_text_is_in_one_batch_and_epochs_have_the_same_number_of_batches(
    n, seed, batch_tokens
):
    lengths, batching = lengths_of(n), Batching.of(8, batch_tokens, 64)
    for epoch in range(3):
        planned = texts.plan(lengths, batching, seed=seed, epoch=epoch)
        assert sorted(np.concatenate(planned)) == list(range(n))
        assert len(planned) == texts.steps(lengths, batching)


def test_no_batch_is_larger_than_was_asked_for():
    lengths = lengths_of(500)
    assert max(map(len, texts.plan(lengths, Batching.of(8, None, 64), seed=0))) == 8
    batching = Batching.of(8, 300, 64)
    for rows in texts.plan(lengths, batching, seed=0):
        length = texts.bucket(int(lengths[rows].max()), batching)
        assert len(rows) * length <= 300


def test_a_text_longer_than_the_budget_has_a_batch_of_its_own():
    lengths = np.asarray([60, 60, 3])
    planned = texts.plan(lengths, Batching.of(8, 32, 64), seed=0)
    assert sorted(map(len, planned)) == [1, 1, 1]


def test_the_order_is_new_every_epoch_and_the_same_for_a_seed():
    lengths, batching = lengths_of(400), Batching.of(16, None, 64)

    def plan(seed, epoch):
        return [rows.tolist() for rows in texts.plan(lengths, batching, seed=seed, epoch=epoch)]

    assert plan(0, 5) == plan(0, 5)
    assert plan(0, 5) != plan(0, 6)
    assert plan(0, 5) != plan(1, 5)
    # Not only the batches' turn changes, their members do.
    assert {frozenset(rows) for rows in plan(0, 5)} != {frozenset(rows) for rows in plan(0, 6)}


def test_texts_are_shuffled_far_beyond_their_neighbours():
    # KerasHub's own fit leaves the order of a list of texts as it is.
    lengths, batching = lengths_of(2000), Batching.of(16, None, 64)
    order = np.concatenate(texts.plan(lengths, batching, seed=0))
    assert abs(np.corrcoef(order, np.arange(2000))[0, 1]) < 0.1
    by_turn = [lengths[rows].mean() for rows in texts.plan(lengths, batching, seed=0)]
    assert abs(np.corrcoef(by_turn, np.arange(len(by_turn)))[0, 1]) < 0.25


def test_batches_of_similar_length_are_padded_little():
    lengths, batching = lengths_of(3200, longest=120), Batching.of(32, None, 128)
    padded = sum(
        len(rows) * texts.bucket(int(lengths[rows].max()), batching)
        for rows in texts.plan(lengths, batching, seed=0)
    )
    assert padded < 1.25 * lengths.sum()
    assert padded < 0.6 * len(lengths) * 128


def test_scoring_goes_by_length_and_its_order_is_known():
    lengths, batching = lengths_of(100), Batching.of(8, None, 64)
    tokens = tokens_of(lengths, batching)
    order = feeding.plain_order(SimpleNamespace(content=tokens))
    assert (np.diff(lengths[order]) >= 0).all()
    labels = np.arange(100)
    stream = feeding.of_tokens(tokens, labels, 100)
    seen = np.concatenate([label.argmax(axis=1) for _, label in stream.as_numpy_iterator()])
    assert (seen == order).all()


def test_a_batch_holds_tokens_and_padding_where_they_belong():
    lengths = np.asarray([3, 10, 5])
    tokens = tokens_of(lengths, Batching.of(8, None, 64))
    made = tokens.padded(np.asarray([0, 2]))
    assert made["token_ids"].shape == made["padding_mask"].shape == (2, 8)
    assert made["token_ids"][0].tolist() == [1, 2, 3, 0, 0, 0, 0, 0]
    assert made["padding_mask"].sum(axis=1).tolist() == [3, 5]
    assert "segment_ids" not in made


def test_a_stream_can_begin_in_the_middle_of_an_epoch():
    tokens = tokens_of(lengths_of(50), Batching.of(8, None, 64))
    labels = np.arange(50) % 3

    def batches(**options):
        stream = feeding.of_tokens(tokens, labels, 3, seed=1, epochs=range(2, 4), **options)
        assert len(stream) == len(list(stream))
        return list(stream.as_numpy_iterator())

    whole, rest = batches(), batches(first_step=4)
    assert len(rest) == len(whole) - 4
    for (x, y), (x_, y_) in zip(whole[4:], rest, strict=True):
        assert (x["token_ids"] == x_["token_ids"]).all()
        assert (y == y_).all()


def test_class_weights_become_weights_of_examples():
    tokens = tokens_of(lengths_of(10), Batching.of(4, None, 64))
    stream = feeding.of_tokens(tokens, np.arange(10) % 2, 2, class_weights=[1.0, 5.0])
    for _, label, weight in stream.as_numpy_iterator():
        assert (weight == np.where(label[:, 1] == 1, 5.0, 1.0)).all()


def test_a_decoder_sees_what_stands_before_each_place():
    tokens = tokens_of([4, 2], Batching.of(4, None, 64))
    tokens = Tokens(
        tokens.texts,
        tokens.ids,
        0,
        tokens.batching,
        targets=Ragged.joined([np.asarray([7, 8, 1]), np.asarray([9, 1])]),
    )
    made = tokens.padded(np.asarray([0, 1]))
    assert made["decoder_token_ids"][0, :4].tolist() == [0, 7, 8, 1]
    assert made["decoder_token_ids"][1, :3].tolist() == [0, 9, 1]
    assert made["decoder_padding_mask"].sum(axis=1).tolist() == [3, 2]
    assert tokens.marked(np.asarray([0, 1]))[:, :4].tolist() == [[7, 8, 1, -1], [9, 1, -1, -1]]


def test_rows_can_be_taken_and_taken_again():
    tokens = tokens_of(lengths_of(20), Batching.of(4, None, 64))
    some = tokens.take([5, 3, 11]).take([2, 0])
    assert some.texts.first == ("text 11", "text 5")
    assert some.ids[0].tolist() == tokens.ids[11].tolist()
    assert len(some) == 2


def test_texts_without_tokens_make_an_empty_batch_of_the_smallest_bucket():
    tokens = tokens_of([0, 0], Batching.of(4, None, 64))
    made = tokens.padded(np.asarray([0, 1]))
    assert made["token_ids"].shape == (2, 8)
    assert made["padding_mask"].sum() == 0
