"""Averages of weights: against NumPy, and never worse on what they are chosen by."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kerastune_ft import averaging


def small_model(seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((3,))
    x = keras.layers.Dense(4, name="body")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(x))


def values(model):
    return [np.array(keras.ops.convert_to_numpy(weight)) for weight in model.weights]


def same(one, other):
    return all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


@pytest.fixture
def model():
    return small_model()


@pytest.fixture
def swap(model):
    rng = np.random.default_rng(0)
    averages = [
        keras.Variable(rng.normal(size=tuple(v.shape)).astype("float32"), trainable=False)
        for v in model.trainable_variables
    ]
    return averaging.Swap(model, list(zip(model.trainable_variables, averages, strict=True)))


def sides(swap):
    return [
        [np.array(keras.ops.convert_to_numpy(pair[side])) for pair in swap.pairs] for side in (0, 1)
    ]


# Swap


def test_weights_and_averages_change_places_bit_by_bit_and_back(swap):
    weights, averages = sides(swap)
    assert not same(weights, averages)
    swap.swap_in()
    assert same(sides(swap)[0], averages)
    assert same(sides(swap)[1], weights)
    swap.swap_out()
    assert same(sides(swap)[0], weights)
    assert same(sides(swap)[1], averages)


def test_swapping_twice_in_one_direction_is_swapping_once(swap):
    weights, averages = sides(swap)
    swap.swap_out()
    assert same(sides(swap)[0], weights)
    swap.swap_in()
    swap.swap_in()
    assert same(sides(swap)[0], averages)
    swap.swap_out()
    swap.swap_out()
    assert same(sides(swap)[0], weights)


def test_blocks_leave_the_model_as_they_found_it_however_they_are_nested(swap):
    weights, averages = sides(swap)
    with swap.inside():
        assert same(sides(swap)[0], averages)
        with swap.out():
            assert same(sides(swap)[0], weights)
            with swap.inside():
                assert same(sides(swap)[0], averages)
            assert same(sides(swap)[0], weights)
        assert same(sides(swap)[0], averages)
        with swap.inside():
            pass
        assert same(sides(swap)[0], averages)
    assert same(sides(swap)[0], weights)
    with swap.out():
        assert same(sides(swap)[0], weights)
    assert same(sides(swap)[0], weights)


@pytest.mark.parametrize("block", ["inside", "out"])
def test_an_error_in_a_block_leaves_the_model_as_it_was(swap, block):
    weights, _ = sides(swap)
    with pytest.raises(ZeroDivisionError), getattr(swap, block)():
        1 / 0  # noqa: B018
    assert same(sides(swap)[0], weights)


@pytest.mark.parametrize("inside", [False, True])
def test_adopted_averages_are_the_weights_for_good(swap, inside):
    _, averages = sides(swap)
    if inside:
        swap.swap_in()
    swap.adopt()
    assert same(sides(swap)[0], averages)
    swap.swap_out()
    assert same(sides(swap)[0], averages)


def test_without_averages_nothing_happens(model):
    swap, before = averaging.Swap(model, []), values(model)
    with swap.inside():
        assert same(values(model), before)
    swap.adopt()
    assert same(values(model), before)


# greedy_soup


def epochs_of(model, count, seed):
    rng = np.random.default_rng(seed)
    return [
        {
            f"weight/{i}": rng.normal(size=tuple(v.shape)).astype("float32")
            for i, v in enumerate(model.weights)
        }
        for _ in range(count)
    ]


def distance(model, target):
    return sum(float(((a - b) ** 2).sum()) for a, b in zip(values(model), target, strict=True))


def reference_soup(ingredients, target):
    """The greedy soup as the paper has it: a set of weights, and the mean of it each time."""

    def mean(chosen):
        sets = [ingredients[i].values() for i in chosen]
        return [np.mean(layer, axis=0, dtype="float64") for layer in zip(*sets, strict=True)]

    def score(chosen):
        arrays = [array.astype("float32") for array in mean(chosen)]
        return sum(float(((a - b) ** 2).sum()) for a, b in zip(arrays, target, strict=True))

    chosen, best = [0], score([0])
    for i in range(1, len(ingredients)):
        if score([*chosen, i]) <= best:
            chosen, best = [*chosen, i], score([*chosen, i])
    return chosen, mean(chosen), best


@pytest.mark.parametrize("seed", range(12))
def test_the_soup_is_the_greedy_one_and_never_worse_than_the_best_epoch(model, seed):
    rng = np.random.default_rng(100 + seed)
    target = [rng.normal(0, 0.3, tuple(v.shape)).astype("float32") for v in model.weights]
    ingredients = epochs_of(model, 5, seed)
    ingredients.sort(
        key=lambda x: sum(((a - b) ** 2).sum() for a, b in zip(x.values(), target, strict=True))
    )
    numbers = [7, 3, 9, 2, 5]
    said = averaging.greedy_soup(
        model,
        numbers,
        lambda epoch: ingredients[numbers.index(epoch)],
        lambda: distance(model, target),
    )
    chosen, expected, best = reference_soup(ingredients, target)
    assert said["epochs"] == [numbers[i] for i in chosen]
    for found, array in zip(values(model), expected, strict=True):
        np.testing.assert_allclose(found, array, atol=1e-6)
    first, last = said["scores"]
    assert last <= first
    assert last == pytest.approx(best, rel=1e-5)
    assert distance(model, target) == pytest.approx(last, rel=1e-5)


def test_an_epoch_that_makes_it_worse_stays_out_and_the_next_is_still_tried(model):
    shapes = [tuple(v.shape) for v in model.weights]
    levels = {1: 1.0, 2: 5.0, 3: -0.5}
    asked = []

    def weights_of(epoch):
        asked.append(epoch)
        return {str(i): np.full(shape, levels[epoch], "float32") for i, shape in enumerate(shapes)}

    zero = [np.zeros(shape, "float32") for shape in shapes]
    said = averaging.greedy_soup(model, [1, 2, 3], weights_of, lambda: distance(model, zero))
    assert said["epochs"] == [1, 3]
    assert sorted(set(asked)) == [1, 2, 3]
    assert all(np.array_equal(found, np.full(found.shape, 0.25)) for found in values(model))
    assert "before" in said["figures"] and "after" in said["figures"]


def test_a_soup_of_one_epoch_is_that_epoch(model):
    (only,) = epochs_of(model, 1, 0)
    said = averaging.greedy_soup(model, [4], lambda _: only, lambda: 1.5)
    assert (said["epochs"], said["scores"]) == ([4], [1.5, 1.5])
    assert same(values(model), only.values())


def test_an_epoch_that_scores_nan_stays_out(model):
    pair = epochs_of(model, 2, 0)
    scores = iter([1.0, float("nan")])
    said = averaging.greedy_soup(model, [0, 1], lambda i: pair[i], lambda: next(scores))
    assert said["epochs"] == [0]
    assert same(values(model), pair[0].values())


# wise_ft


@pytest.fixture
def ends(model):
    """Start and end of a fine-tuning, the head's places marked as not taking part."""
    (start,) = epochs_of(model, 1, 1)
    mixed = ["head" not in weight.path for weight in model.weights]
    assert mixed.count(False) == 2
    return start, values(model), mixed


def test_no_share_of_the_way_back_is_the_fine_tuned_model_bit_by_bit(model, ends):
    start, end, mixed = ends
    said = averaging.wise_ft(model, start, mixed, [0.0], lambda: pytest.fail("asked"))
    assert (said["share"], said["scores"]) == (0.0, {})
    assert same(values(model), end)


def test_the_whole_way_back_is_the_start_and_the_head_stays(model, ends):
    start, end, mixed = ends
    averaging.wise_ft(model, start, mixed, [1.0], lambda: pytest.fail("asked"))
    expected = [s if m else e for s, e, m in zip(start.values(), end, mixed, strict=True)]
    assert same(values(model), expected)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_share_is_that_share_of_the_way(model, ends, share):
    start, end, mixed = ends
    averaging.wise_ft(model, start, mixed, [share], lambda: pytest.fail("asked"))
    for found, s, e, m in zip(values(model), start.values(), end, mixed, strict=True):
        wanted = e + share * (s.astype("float64") - e) if m else e
        np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("wanted", averaging.SHARES)
def test_of_several_shares_the_best_is_taken(model, ends, wanted):
    start, end, mixed = ends
    target = [
        wanted * s + (1 - wanted) * e if m else e
        for s, e, m in zip(start.values(), end, mixed, strict=True)
    ]
    said = averaging.wise_ft(model, start, mixed, averaging.SHARES, lambda: distance(model, target))
    assert said["share"] == wanted
    assert list(said["scores"]) == [f"{share:g}" for share in averaging.SHARES]
    assert min(said["scores"].values()) == said["scores"][f"{wanted:g}"]
    for found, array in zip(values(model), target, strict=True):
        np.testing.assert_allclose(found, array, atol=1e-6)


def test_of_equal_shares_the_one_that_changes_least_is_taken(model, ends):
    start, end, mixed = ends
    said = averaging.wise_ft(model, start, mixed, averaging.SHARES, lambda: 1.0)
    assert said["share"] == 0.0
    assert same(values(model), end)


def test_the_first_share_tried_is_the_fine_tuned_model():
    """So that the choice can never be worse than no averaging."""
    assert averaging.SHARES[0] == 0.0
    assert sorted(set(averaging.SHARES)) == list(averaging.SHARES)
    assert averaging.SHARES[-1] <= 1.0
