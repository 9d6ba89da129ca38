"""Scores of words and of written texts, against counting by hand and Keras."""

from __future__ import annotations

import math

import numpy as np
import pytest

keras = pytest.importorskip("keras")

import kerastune_ft as kft  # noqa: E402
from kerastune_ft import losses, text_evaluation  # noqa: E402
from kerastune_ft.data import feeding  # noqa: E402
from kerastune_ft.tasks import Outputs  # noqa: E402

SENTENCES = [["a", "good", "film"], ["bad"], ["one", "two", "three", "four", "five", "six"]] * 3
TAGS = [[0, 1, 0], [1], [0, 0, 1, 1, 0, 0]] * 3


def tagger():
    keras.utils.set_random_seed(0)
    return kft.token_classifier("bert", 2, weights="none")


def test_the_loss_is_a_mean_over_places_in_fit_and_in_scores():
    model = tagger()
    tokens = model.preprocessor.tokens(SENTENCES, labels=TAGS)
    scores, chosen = text_evaluation.score_places(model, tokens)
    total, right, places = 0.0, 0, 0
    for words, tags in zip(SENTENCES, TAGS, strict=True):
        logits = np.asarray(model.predict(model.preprocessor([words]), verbose=0))[0]
        marks = model.preprocessor.tokens([words], labels=[tags]).marked(np.asarray([0]))[0]
        for place in np.flatnonzero(marks[: len(logits)] >= 0):
            shares = np.exp(logits[place]) / np.exp(logits[place]).sum()
            total -= math.log(shares[marks[place]])
            right += int(logits[place].argmax() == marks[place])
            places += 1
    assert places == sum(map(len, TAGS)) == scores["places"]
    assert scores["loss"] == pytest.approx(total / places, rel=1e-4)
    assert scores["accuracy"] == pytest.approx(right / places)
    assert [len(numbers) for numbers in chosen] == list(map(len, TAGS))
    model.compile("sgd", losses.TokenCrossentropy(), metrics=[losses.TokenAccuracy()])
    stream = feeding.of_tokens(tokens, (), 0)
    found = model.evaluate(stream, return_dict=True, verbose=0)
    assert found["loss"] == pytest.approx(scores["loss"], rel=1e-4)
    assert found["accuracy"] == pytest.approx(scores["accuracy"], rel=1e-5)


def test_a_training_batch_weighs_its_places_alike():
    model = tagger()
    tokens = model.preprocessor.tokens(SENTENCES, labels=TAGS)
    stream = feeding.of_tokens(tokens, (), 0, seed=0)
    for inputs, marks, weights in stream.as_numpy_iterator():
        logits = model.predict_on_batch(inputs)
        loss = losses.TokenCrossentropy()(marks, logits, sample_weight=weights)
        each = losses.TokenCrossentropy().call(marks, logits)
        places = int((marks >= 0).sum())
        assert float(loss) == pytest.approx(float(np.sum(np.asarray(each))) / places, rel=1e-5)


def test_a_batch_shared_by_devices_gives_the_loss_of_the_whole():
    from kerastune_ft import devices

    model = tagger()
    tokens = model.preprocessor.tokens(SENTENCES[:3], labels=TAGS[:3])
    stream = feeding.of_tokens(tokens, (), 0, seed=0)
    (whole,) = stream.as_numpy_iterator()
    (even,) = devices.even_batches(stream, 2).as_numpy_iterator()
    assert len(even[1]) == 4

    def loss(inputs, marks, weights):
        logits = model.predict_on_batch(inputs)
        return float(losses.TokenCrossentropy()(marks, logits, sample_weight=weights))

    parts = [
        loss({k: v[half] for k, v in even[0].items()}, even[1][half], even[2][half])
        for half in (slice(0, 2), slice(2, 4))
    ]
    assert np.mean(parts) == pytest.approx(loss(*whole), rel=1e-5)


def test_words_without_a_token_do_not_shift_the_others():
    model = tagger()
    words = [["alpha", "\u200b", "beta"], ["", "gamma"]]
    tokens = model.preprocessor.tokens(words, labels=[[0, 1, 0], [1, 0]])
    assert [tokens.words[row].tolist() for row in range(2)] == [[0, 2], [1]]
    found = text_evaluation.tags(model, tokens, Outputs(("O", "B")))
    assert [len(row) for row in found] == [3, 2]
    assert found[0][1] == found[1][0] == "O"


@pytest.mark.parametrize(
    "text", ["the same text", "одинаковый текст", "同じ文章です", "le même été"]
)
def test_a_text_written_as_it_should_be_scores_one_in_every_script(text):
    found = text_evaluation.text_scores([text], [text])
    assert found["rouge_1"] == found["rouge_l"] == 1.0
    assert text_evaluation.text_scores([text], ["xyz"])["rouge_l"] == 0.0


def test_bleu_and_rouge_are_those_of_their_libraries():
    import sacrebleu
    from rouge_score import rouge_scorer

    true = ["the cat sat on the mat today", "a good film about two brothers and a dog"]
    said = ["the cat sat on a mat today", "a film about two good brothers"]
    found = text_evaluation.text_scores(true, said)
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(said, [true]).score)
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    expected = np.mean([scorer.score(*p)["rougeL"].fmeasure for p in zip(true, said, strict=True)])
    assert found["rouge_l"] == pytest.approx(expected)


def test_long_beginnings_leave_room_to_go_on():
    model = kft.text_generator("gpt2", weights="none", sequence_length=32)
    written = kft.write_texts(model, ["word " * 100], max_new_tokens=8)
    tokens = model.preprocessor.tokens(["word " * 100], max_new_tokens=8)
    assert int(tokens.lengths[0]) == 24
    assert isinstance(written[0], str)


def test_a_stage_that_trains_nothing_is_refused(tmp_path):
    from kerastune_ft import recipe, training
    from kerastune_ft.errors import TrainingError

    model = kft.text_to_text("t5", weights="none")
    train = recipe.Train(stages=(recipe.Stage(trainable_blocks=0, epochs=1, learning_rate=1e-3),))
    with pytest.raises(TrainingError, match="nothing would train"):
        training.plan(model, train, steps=3)


def test_tags_and_written_texts_are_drawn(tmp_path):
    from PIL import Image

    outputs = Outputs(("O", "B-$^$"))
    true, said = [["O", "B-$^$"], ["O"]], [["O", "O"], ["O"]]
    text_evaluation.draw_tags(true, said, outputs, tmp_path / "tags.png", "a $ title")
    words = Outputs(("summary",))
    text_evaluation.draw_lengths(["a b", "c"], ["a", "c d"], words, tmp_path / "lengths.png", "b")
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            assert np.asarray(picture.convert("L")).std() > 5
