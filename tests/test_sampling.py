"""What an epoch is made of: who is drawn, how often, and that any epoch can be drawn alone."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import numpy as np
import pytest

from kerastune_ft import recipe as recipes
from kerastune_ft import stages
from kerastune_ft.data import feeding, images, sampling, texts
from kerastune_ft.data.tables import Arrays
from kerastune_ft.data.texts import Batching
from kerastune_ft.errors import DataError, RecipeError

NAMES = ("common", "middling", "rare")
COUNTS = (200, 31, 4)
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(3), COUNTS)).astype(np.int32)
N = len(LABELS)


def drawn(how, epochs, seed=0, labels=LABELS):
    made = sampling.of(labels, NAMES, how)
    return [made.draws(seed, epoch) for epoch in epochs]


def test_natural_is_no_sampling_at_all():
    assert sampling.of(LABELS, NAMES, "natural") is None


def test_balanced_epochs_have_as_many_draws_and_every_class_to_within_one():
    for draws in drawn("balanced", range(20)):
        assert len(draws.rows) == len(draws.turns) == N
        counts = np.bincount(LABELS[draws.rows], minlength=3)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("how", ["balanced", {"rare": 7.5, "common": 0.3}, {"middling": 3.0}])
def test_no_example_is_drawn_twice_more_than_another_of_its_class(how):
    for draws in drawn(how, range(12)):
        times = np.bincount(draws.rows, minlength=N)
        for number in range(3):
            assert np.ptp(times[number == LABELS]) <= 1


def test_no_example_is_drawn_again_before_all_of_its_class_were():
    for draws in drawn("balanced", range(5)):
        for number, count in enumerate(COUNTS):
            order = draws.rows[LABELS[draws.rows] == number]
            for start in range(0, len(order), count):
                part = order[start : start + count]
                assert len(set(part.tolist())) == len(part)


def test_a_large_class_is_seen_whole_in_as_few_epochs_as_it_can_be():
    # 78 or 79 draws of 200 examples: three epochs see them all.
    seen = np.concatenate([draws.rows for draws in drawn("balanced", range(3))])
    assert set(np.flatnonzero(LABELS == 0)) <= set(seen.tolist())


def test_turns_count_repetitions_and_keys_tell_them_apart():
    for draws in drawn("balanced", range(3)):
        before: dict[int, int] = {}
        for row, turn in zip(draws.rows.tolist(), draws.turns.tolist(), strict=True):
            assert turn == before.get(row, 0)
            before[row] = turn + 1
        assert len(set(draws.keys.tolist())) == N
        first = draws.turns == 0
        assert (draws.keys[first] == draws.rows[first]).all()


def test_draws_of_weighted_classes_are_on_average_weight_times_examples():
    weights = {"common": 0.37, "rare": 3.3}
    shares = np.array([0.37 * 200, 31, 3.3 * 4])
    expected = N * shares / shares.sum()
    counts = np.array(
        [np.bincount(LABELS[d.rows], minlength=3) for d in drawn(weights, range(400))]
    )
    assert (np.abs(counts - expected) < 1).all()
    np.testing.assert_allclose(counts.mean(axis=0), expected, atol=0.1)


def test_weights_that_are_all_one_draw_every_example_once():
    (draws,) = drawn({"rare": 1.0}, [4])
    assert sorted(draws.rows) == list(range(N))


def test_draws_are_a_function_of_seed_and_epoch_alone():
    forward = drawn("balanced", range(6))
    backward = drawn("balanced", range(5, -1, -1))[::-1]
    for one, other in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.turns, other.turns)
    assert not np.array_equal(forward[0].rows, forward[1].rows)
    assert not np.array_equal(forward[0].rows, drawn("balanced", [0], seed=1)[0].rows)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("how", ["balanced", {"rare": 1000.0}, {"rare": 1e-6}])
def test_odd_sizes_still_fill_an_epoch(how, seed):
    generator = np.random.default_rng(seed)
    labels = generator.choice(3, generator.integers(3, 40))
    for draws in drawn(how, range(8), seed, labels):
        assert len(draws.rows) == len(labels)
        assert 0 <= draws.rows.min() <= draws.rows.max() < len(labels)


def test_a_class_that_the_data_lacks_is_refused_with_its_likely_name():
    with pytest.raises(
        DataError, match=r"data.sampling: no class 'rara'; did you mean 'rare'\? the classes are"
    ):
        sampling.of(LABELS, NAMES, {"rara": 2.0})


# Streams.

PIXELS = np.zeros((N, 4, 4, 3), np.uint8)
PIXELS[:, 0, 0, 0], PIXELS[:, 0, 0, 1] = np.arange(N) % 256, np.arange(N) // 256


class Marked:
    """Writes the key's last number into a picture, where a test can read it."""

    def example(self, image, key):
        import tensorflow as tf

        mark = tf.fill((4, 4, 1), tf.cast(key[2], tf.float32))
        return tf.concat([image[..., :2], mark], axis=-1)

    def batch(self, pictures, labels, key):
        return pictures, labels


def stream_of_pictures(epochs, first_step=0):
    return images.dataset(
        Arrays(PIXELS), LABELS, image_size=(4, 4), batch_size=16, num_classes=3, seed=5,
        shuffle=True, epochs=epochs, augment=Marked(), first_step=first_step,
        sampling=sampling.of(LABELS, NAMES, "balanced"),
    )  # fmt: skip


def test_pictures_are_streamed_as_drawn_and_keyed_by_occurrence():
    (draws,) = drawn("balanced", [2], seed=5)
    batches = list(stream_of_pictures(range(2, 3)).as_numpy_iterator())
    assert len(batches) == images.steps(N, 16)
    pixels = np.concatenate([pictures[:, 0, 0] for pictures, _ in batches])
    np.testing.assert_array_equal(pixels[:, 0] + 256 * pixels[:, 1], draws.rows)
    np.testing.assert_array_equal(pixels[:, 2], draws.keys)
    labels = np.concatenate([labels.argmax(axis=1) for _, labels in batches])
    np.testing.assert_array_equal(labels, LABELS[draws.rows])


def test_a_stream_of_drawn_pictures_can_begin_at_any_step():
    whole = list(stream_of_pictures(range(2)).as_numpy_iterator())
    rest = list(stream_of_pictures(range(2), first_step=9).as_numpy_iterator())
    assert len(rest) == len(whole) - 9
    for one, other in zip(whole[9:], rest, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def stream_of_texts(epochs, **options):
    from test_texts import lengths_of, tokens_of

    tokens = tokens_of(lengths_of(N), Batching.of(16, None, 64))
    made = sampling.of(LABELS, NAMES, "balanced")
    stream = feeding.of_tokens(tokens, LABELS, 3, seed=5, epochs=epochs, sampling=made, **options)
    return tokens, stream


def test_texts_are_streamed_as_drawn_in_the_usual_number_of_batches():
    (draws,) = drawn("balanced", [1], seed=5)
    tokens, stream = stream_of_texts(range(1, 2))
    batches = list(stream.as_numpy_iterator())
    assert len(batches) == texts.steps(tokens.lengths, tokens.batching)
    # The first token of row i is 100 i + 1.
    rows = np.concatenate([inputs["token_ids"][:, 0] for inputs, _ in batches]) // 100
    assert sorted(rows) == sorted(draws.rows)
    labels = np.concatenate([labels.argmax(axis=1) for _, labels in batches])
    np.testing.assert_array_equal(labels, LABELS[rows])


def test_a_stream_of_drawn_texts_can_begin_at_any_step():
    whole = list(stream_of_texts(range(2, 4))[1].as_numpy_iterator())
    rest = list(stream_of_texts(range(2, 4), first_step=7)[1].as_numpy_iterator())
    assert len(rest) == len(whole) - 7
    for (one, _), (other, _) in zip(whole[7:], rest, strict=True):
        np.testing.assert_array_equal(one["token_ids"], other["token_ids"])


def test_batches_of_drawn_examples_are_shared_among_devices():
    from kerastune_ft import devices

    machine = devices.Devices("cpu", replicas=2)
    shared = devices.distribute(stream_of_pictures(range(1)), machine, training=True)
    sizes = [len(batch[0]) for batch in shared.as_numpy_iterator()]
    assert len(sizes) == images.steps(N, 16)
    assert all(size % 2 == 0 for size in sizes)


# Recipes.


def recipe_of(task="text_classification", **data):
    pictures = task.startswith("image")
    return recipes.from_mapping(
        {
            "task": {"name": task},
            "backbone": {"name": "mobilenet_v2" if pictures else "bert", "weights": "none"},
            "data": {"source": "image_csv" if pictures else "jsonl", "path": "x", **data},
            "train": {"stages": [{"trainable_blocks": -1, "epochs": 1, "learning_rate": 1e-3}]},
        }
    )


def test_a_budget_of_tokens_is_refused_with_sampling():
    recipe_of(batch_tokens=512)
    for how in ("balanced", {"a": 2.0}):
        with pytest.raises(RecipeError, match="number of batches would change"):
            recipe_of(batch_tokens=512, sampling=how)


def test_a_class_that_is_unknown_is_refused_before_anything_is_built(tmp_path):
    from kerastune_ft import data

    with (tmp_path / "a.csv").open("w", newline="") as file:
        rows = [("text", "label"), *((f"text {i}", "good" if i % 2 else "bad") for i in range(40))]
        csv.writer(file).writerows(rows)
    recipe = recipe_of(source="csv", path=str(tmp_path / "a.csv"), sampling={"god": 2.0})
    splits = data.load(recipe.data, "class", "text")
    with pytest.raises(DataError, match="did you mean 'good'"):
        stages.check(recipe, splits)


def test_a_stream_for_training_must_be_drawn_as_the_recipe_says():
    recipe = recipe_of("image_classification", sampling="balanced")
    split = SimpleNamespace(content=Arrays(PIXELS), labels=LABELS)
    with pytest.raises(AssertionError, match="sampling"):
        feeding.dataset(split, recipe, 3, training=True)
