"""Changes to training texts as a function of (seed, epoch, example)."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from kerastune_ft import recipe as recipes
from kerastune_ft.backbones.tokenizers import Tokenizer
from kerastune_ft.data import feeding, sampling, tokenizing
from kerastune_ft.data.text_augmentation import Changes
from kerastune_ft.data.texts import Batching, Texts
from kerastune_ft.errors import RecipeError
from kerastune_ft.recipe import TextAugment

KINDS = {
    "word_dropout": TextAugment(word_dropout=0.3),
    "word_swap": TextAugment(word_swap=0.3),
    "word_repetition": TextAugment(word_repetition=0.3),
    "word_insertion": TextAugment(word_insertion=0.3),
    "typos": TextAugment(typos=0.5),
}
TEXT = "the quick brown fox jumps over a lazy dog near those old stone walls"
WORDS = TEXT.split()
VOCABULARY = [f"{a}{b}{c}" for a in "bdfglm" for b in "aeiou" for c in "kntrs"]


def changed(settings, text=TEXT, epochs=range(40), key=7, seed=0, place=0):
    changes = Changes(settings, "head", seed)
    return [changes.text(text, epoch, key, place) for epoch in epochs]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_a_function_of_seed_epoch_example_and_place(kind):
    forward = changed(KINDS[kind])
    assert forward == changed(KINDS[kind], epochs=range(39, -1, -1))[::-1]
    assert len(set(forward)) > 10
    for other in ({"key": 8}, {"seed": 1}, {"place": 1}):
        assert forward != changed(KINDS[kind], **other)


def test_dropout_leaves_words_out_in_order_and_as_many_as_asked():
    found = [text.split() for text in changed(KINDS["word_dropout"], epochs=range(300))]
    for words in found:
        left = iter(WORDS)
        assert all(word in left for word in words)
    share = 1 - np.mean([len(words) for words in found]) / len(WORDS)
    assert share == pytest.approx(0.3, abs=0.03)


def test_swaps_keep_the_words_and_move_neighbours():
    for text in changed(TextAugment(word_swap=0.1)):
        assert Counter(text.split()) == Counter(WORDS)


def test_repetition_says_words_twice_and_changes_nothing_else():
    for text in changed(KINDS["word_repetition"]):
        words = text.split()
        once = [
            word for word, next_ in zip(words, [*words[1:], None], strict=True) if word != next_
        ]
        assert once == WORDS


def test_insertion_puts_in_words_of_the_text_itself():
    found = [text.split() for text in changed(KINDS["word_insertion"], epochs=range(300))]
    for words in found:
        assert set(words) == set(WORDS)
        left = iter(words)
        assert all(word in left for word in WORDS)
    assert np.mean([len(w) for w in found]) == pytest.approx(1.3 * len(WORDS), rel=0.03)


def test_typos_change_places_of_letters_within_words():
    for text in changed(KINDS["typos"]):
        for one, other in zip(text.split(), WORDS, strict=True):
            assert Counter(one) == Counter(other)
            assert sum(a != b for a, b in zip(one, other, strict=True)) in (0, 2)
    assert changed(KINDS["typos"], text="12:30 ### aa 7") == ["12:30 ### aa 7"] * 40


ALL = TextAugment(
    word_dropout=0.9, word_swap=0.5, word_repetition=0.2, word_insertion=0.5, typos=0.5
)


@pytest.mark.parametrize("text", ["word", "a b", " a\n", "  two\n\nwords\t"])
def test_no_text_is_emptied_and_white_space_around_it_stays(text):
    for found in changed(ALL, text=text, epochs=range(200)):
        assert found.strip()
        assert found[: len(found) - len(found.lstrip())] == text[: len(text) - len(text.lstrip())]
        assert found[len(found.rstrip()) :] == text[len(text.rstrip()) :]


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_a_text_without_words_stays_as_it_is(text):
    assert set(changed(ALL, text=text)) == {text}


def test_a_text_that_no_draw_concerns_keeps_its_spaces():
    text = "one  two\n\nthree   four "
    found = changed(TextAugment(word_dropout=0.05), text=text)
    assert found.count(text) > 20
    lines = changed(TextAugment(word_swap=0.5), text="one\ntwo\nthree")
    assert all(found.count("\n") == 2 for found in lines)


@pytest.mark.parametrize(
    "text", ["naïve café déjà vu", "русский текст здесь", "\ud800 broken x", "日本語"]
)
def test_texts_of_any_script_are_changed_without_a_fault(text):
    for found in changed(ALL, text=text):
        assert set(found) - {" "} <= set(text)


# Streams.


def corpus(n=60, pairs=False, longest=30):
    generator = np.random.default_rng(0)

    def column():
        return tuple(
            " ".join(generator.choice(VOCABULARY, generator.integers(1, longest))) for _ in range(n)
        )

    return Texts(column(), column() if pairs else None)


def tokens_of(held, family="bert", batch_tokens=None, length=48, truncation="head"):
    tokenizer = Tokenizer.tiny(family, [*held.first, *(held.second or ())])
    batching = Batching.of(8, batch_tokens, length)
    return tokenizing.read(held, tokenizer, batching, family == "bert", truncation)[0]


LABELS = np.arange(60) % 3


def stream(tokens, changes, **options):
    options = {"seed": 3, "epochs": range(2), **options}
    made = feeding.of_tokens(tokens, LABELS, 3, changes=changes, **options)
    return list(made.as_numpy_iterator())


def assert_equal(one, other):
    assert len(one) == len(other)
    for (inputs, labels), (inputs_, labels_) in zip(one, other, strict=True):
        assert inputs.keys() == inputs_.keys()
        assert all(np.array_equal(inputs[key], inputs_[key]) for key in inputs)
        assert np.array_equal(labels, labels_)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("truncation", ["head", "tail", "head_tail"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_changes_that_change_nothing_give_the_stream_of_the_texts_as_they_are(
    family, truncation, pairs
):
    tokens = tokens_of(corpus(pairs=pairs), family, length=24, truncation=truncation)
    assert_equal(stream(tokens, None), stream(tokens, Changes(TextAugment(), truncation, seed=3)))


@pytest.mark.parametrize("batch_tokens", [None, 200])
def test_a_batch_holds_what_the_tokenizer_makes_of_the_changed_texts(batch_tokens):
    held = corpus(pairs=True)
    tokens = tokens_of(held, batch_tokens=batch_tokens)
    changes = Changes(TextAugment(word_dropout=0.2, word_repetition=0.1), "head", seed=3)
    batches = stream(tokens, changes, epochs=range(4, 5))
    assert len(batches) == feeding.texts.steps(tokens.lengths, tokens.batching)
    planned = feeding.texts.plan(tokens.lengths, tokens.batching, seed=3, epoch=4)
    for rows, (inputs, labels) in zip(planned, batches, strict=True):
        first = [changes.text(held.first[row], 4, row) for row in rows]
        second = [changes.text(held.second[row], 4, row, 1) for row in rows]
        length = 48
        if batch_tokens:
            length = feeding.texts.bucket(int(tokens.lengths[rows].max()), tokens.batching)
            assert inputs["token_ids"].size <= max(batch_tokens, length)
        made = tokens.tokenizer.encode(first, second, length=length)
        sizes = np.diff(made.starts)
        assert inputs["padding_mask"].sum(axis=1).tolist() == sizes.tolist()
        assert inputs["token_ids"][inputs["padding_mask"] == 1].tolist() == made.ids.tolist()
        assert inputs["segment_ids"][inputs["padding_mask"] == 1].tolist() == made.segments.tolist()
        # Padded to what these texts need, not to what they needed before.
        assert inputs["token_ids"].shape[1] == feeding.texts.bucket(sizes.max(), tokens.batching)
        assert labels.argmax(axis=1).tolist() == (rows % 3).tolist()


def test_a_stream_of_changed_texts_can_begin_at_any_step():
    tokens, changes = tokens_of(corpus()), Changes(ALL, "head", seed=3)
    whole = stream(tokens, changes, epochs=range(2, 5))
    assert_equal(whole[5:], stream(tokens, changes, epochs=range(2, 5), first_step=5))


def test_a_text_that_is_drawn_again_is_changed_otherwise():
    labels = np.array([0] * 55 + [1] * 5)
    drawn = sampling.of(labels, ("a", "b"), "balanced")
    tokens = tokens_of(corpus(longest=30), length=64)
    changes = Changes(TextAugment(word_dropout=0.5), "head", seed=3)
    draws = drawn.draws(3, 0)
    row = next(row for row in range(55, 60) if tokens.lengths[row] > 12)
    keys = draws.keys[draws.rows == row]
    assert len(keys) >= 5
    versions = {changes.text(tokens.texts.first[row], 0, int(key)) for key in keys}
    assert len(versions) > 1
    made = feeding.of_tokens(tokens, labels, 2, seed=3, sampling=drawn, changes=changes)
    assert len(list(made.as_numpy_iterator())) == len(made)


def recipe_of(task="text_classification", **data):
    pictures = task.startswith("image")
    return recipes.from_mapping(
        {
            "task": {"name": task},
            "backbone": {
                "name": "mobilenet_v2" if pictures else "t5" if task == "text_to_text" else
                "gpt2" if task == "text_generation" else "bert",
                "weights": "none",
            },
            "data": {
                "source": "image_folder" if pictures else "jsonl",
                "path": "x",
                **({"pair_column": "other"} if task == "text_pair_classification" else {}),
                **data,
            },
            "train": {"stages": [{"trainable_blocks": -1, "epochs": 1, "learning_rate": 1e-3}]},
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    "task", ["token_classification", "text_to_text", "text_generation", "image_classification"]
)
@pytest.mark.parametrize("choice", ["light", "auto", {"typos": 0.1}])
def test_tasks_whose_labels_would_not_fit_changed_words_refuse_them(task, choice):
    recipe_of(task)
    with pytest.raises(RecipeError, match=r"data\.text_augment: .*(changed words|with texts)"):
        recipe_of(task, text_augment=choice)


@pytest.mark.parametrize(
    "task",
    ["text_classification", "text_pair_classification", "text_multilabel", "text_regression"],
)
def test_tasks_that_learn_of_whole_texts_take_changed_words(task):
    recipe_of(task, text_augment="medium")


def test_scoring_and_training_without_changes_are_as_ever():
    tokens = tokens_of(corpus())
    split = SimpleNamespace(content=tokens, labels=LABELS)
    on, off = recipe_of(text_augment="strong"), recipe_of()

    def batches(recipe, training):
        made = feeding.dataset(split, recipe, 3, training=training)
        return list(made.as_numpy_iterator())

    assert_equal(batches(on, training=False), batches(off, training=False))
    assert_equal(batches(off, training=True), stream(tokens, None, seed=0, epochs=range(1)))
    some = zip(batches(on, training=True), batches(off, training=True), strict=True)
    assert any(
        one["token_ids"].shape != other["token_ids"].shape
        or (one["token_ids"] != other["token_ids"]).any()
        for (one, _), (other, _) in some
    )


def test_what_a_recipe_says_is_what_is_changed(tmp_path):
    made = recipe_of(text_augment={"word_dropout": 0.25})
    assert feeding.changes_of(made) == Changes(TextAugment(word_dropout=0.25), "head", 0)
    assert feeding.changes_of(recipe_of()) is None
    (tmp_path / "a.yaml").write_text(recipes.dump(made))
    assert recipes.load(tmp_path / "a.yaml").data.text_augment == made.data.text_augment
    assert json.loads(made.model_dump_json())["data"]["text_augment"]["word_dropout"] == 0.25
