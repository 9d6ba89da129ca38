"""Texts in a plain Keras script: builders, their preprocessor, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

keras = pytest.importorskip("keras")

import kerastune_ft as kft  # noqa: E402
from kerastune_ft import text_models  # noqa: E402
from kerastune_ft.backbones.tokenizers import Tokenizer  # noqa: E402
from kerastune_ft.errors import DataError, ModelError, WeightsError  # noqa: E402

TEXTS = ["a good film", "a bad film", "good", "bad song and dull book", "fine", "awful"] * 8
LABELS = [1, 0, 1, 0, 1, 0] * 8


def logits_loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "xlnet"])
def test_a_script_of_five_lines_learns(name):
    keras.utils.set_random_seed(0)
    model = kft.text_classifier(name, 2, weights="none", trainable_blocks=-1, seed=0)
    batches = model.preprocessor.dataset(TEXTS, LABELS, batch_size=16, seed=0, epochs=12)
    model.compile(keras.optimizers.Adam(5e-3), logits_loss(), metrics=["accuracy"])
    model.fit(batches, epochs=12, steps_per_epoch=len(batches) // 12, verbose=0)
    said = np.asarray(model.predict(model.preprocessor(TEXTS), verbose=0)).argmax(axis=1)
    assert (said == LABELS).mean() >= 0.95


@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        *(("bert", how) for how in ("avg", "max", "token", "last")),
        *((name, None) for name in ("roberta", "distilbert", "xlnet", "gpt2", "t5")),
    ],
)
def test_padding_changes_nothing(name, pooling):
    model = kft.text_classifier(name, 2, weights="none", pooling=pooling)
    together = model.predict_on_batch(model.preprocessor(["one", "one two three four"]))
    alone = model.predict_on_batch(model.preprocessor(["one"]))
    assert np.allclose(together[:1], alone, atol=1e-5)


def test_pairs_have_segments_where_the_network_has_them():
    model = kft.text_classifier("bert", 2, weights="none")
    inputs = model.preprocessor(["one"], ["two"])
    assert inputs["segment_ids"].max() == 1
    assert set(kft.text_classifier("roberta", 2, weights="none").preprocessor(["one"])) == {
        "token_ids",
        "padding_mask",
    }


def test_dropout_acts_in_unfrozen_blocks_alone():
    model = kft.text_classifier("bert", 2, weights="none", backbone_dropout=0.5, dropout=0.0)
    inputs = model.preprocessor(TEXTS[:4])
    features = [np.asarray(model(inputs, training=True)) for _ in range(2)]
    assert (features[0] == features[1]).all()
    kft.unfreeze(model, 1)
    features = [np.asarray(model(inputs, training=True)) for _ in range(2)]
    assert (features[0] != features[1]).any()
    kft.unfreeze(model, 0)
    features = [np.asarray(model(inputs, training=True)) for _ in range(2)]
    assert (features[0] == features[1]).all()


def test_reinitialized_blocks_are_new_and_the_others_are_not():
    import tempfile

    keras.utils.set_random_seed(1)
    first = kft.text_classifier("bert", 2, weights="none")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.keras"
        first.save(path)
        first.preprocessor.tokenizer.save(f"{folder}/tokenizer.json")
        keras.utils.set_random_seed(2)
        second = kft.text_classifier(
            "bert", 2, weights=path, reinitialize_blocks=1,
            tokenizer=Tokenizer.load(f"{folder}/tokenizer.json"),
        )  # fmt: skip
    *_, top, _ = kft.blocks(first)
    for one, other in zip(kft.blocks(first), kft.blocks(second), strict=True):
        if one.name == "head":
            continue
        kernels = [
            (a, b)
            for a, b in zip(one.weights, other.weights, strict=True)
            if a.path.endswith(("kernel", "embeddings"))
        ]
        assert kernels
        same = [bool((np.asarray(a) == np.asarray(b)).all()) for a, b in kernels]
        assert all(same) if one.name != top.name else not any(same)
    with pytest.raises(ModelError, match="has 3 blocks, embeddings included"):
        kft.text_classifier("bert", 2, weights="none", reinitialize_blocks=3)


def test_words_with_tags_in_a_script():
    keras.utils.set_random_seed(0)
    model = kft.token_classifier("bert", 2, weights="none", trainable_blocks=-1)
    words = [text.split() for text in TEXTS]
    tags = [[int(word in ("good", "bad", "dull")) for word in row] for row in words]
    batches = model.preprocessor.dataset(words, tags, batch_size=16, seed=0, epochs=10)
    model.compile(keras.optimizers.Adam(5e-3), kft.losses.TokenCrossentropy(),
                  metrics=[kft.losses.TokenAccuracy()])  # fmt: skip
    history = model.fit(batches, epochs=10, steps_per_epoch=len(batches) // 10, verbose=0)
    assert history.history["accuracy"][-1] > 0.9
    with pytest.raises(DataError, match="one per word"):
        model.preprocessor.dataset([["a", "b"]], [[1]])


@pytest.mark.slow
def test_a_script_writes():
    keras.utils.set_random_seed(0)
    model = kft.text_to_text("t5", weights="none")
    targets = ["yes" if label else "no" for label in LABELS]
    batches = model.preprocessor.dataset(TEXTS, targets, batch_size=16, seed=0, epochs=25)
    model.compile(keras.optimizers.Adam(1e-2), kft.losses.TokenCrossentropy())
    model.fit(batches, epochs=25, steps_per_epoch=len(batches) // 25, verbose=0)
    said = kft.write_texts(model, TEXTS[:6], max_new_tokens=6)
    assert said == targets[:6]
    with pytest.raises(DataError, match="write_texts"):
        model.preprocessor(TEXTS)


@pytest.mark.slow
def test_a_text_is_gone_on_with():
    keras.utils.set_random_seed(0)
    model = kft.text_generator("gpt2", weights="none", sequence_length=32)
    batches = model.preprocessor.dataset(TEXTS, ["the end"] * len(TEXTS), seed=0, epochs=20)
    model.compile(keras.optimizers.Adam(1e-2), kft.losses.TokenCrossentropy())
    model.fit(batches, epochs=20, steps_per_epoch=len(batches) // 20, verbose=0)
    assert kft.write_texts(model, ["a good film"], max_new_tokens=10)[0].strip() == "the end"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: kft.text_classifier("mobilenet_v2", 2), ModelError, "sees pictures"),
        (lambda: kft.text_classifier("bert", 1, weights="none"), ModelError, "num_classes"),
        (lambda: kft.text_to_text("bert", weights="none"), ModelError, "no decoder"),
        (lambda: kft.text_generator("t5", weights="none"), ModelError, "not trained to go on"),
        (lambda: kft.token_classifier("gpt2", 3, weights="none"), ModelError, "before it"),
        (lambda: kft.text_classifier("bert", 2, weights="none", pooling="gem"), ModelError, "gem"),
        (lambda: kft.text_classifier("bert", 2, weights="nothing"), WeightsError, "nothing"),
        (
            lambda: kft.text_classifier("bert", 2, weights="none", sequence_length=999),
            ModelError,
            "positions for 128",
        ),
        (
            lambda: kft.image_classifier("bert", 2, weights="none"),
            ModelError,
            "reads texts",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_tokenizer_of_other_weights_is_refused():
    words = [f"word{i}x{j}" for i in range(60) for j in range(60)]
    other = Tokenizer.tiny("bert", words, vocabulary_size=3000)
    model = kft.text_classifier("bert", 2, weights="none")
    small = model.preprocessor.tokenizer
    assert other.vocabulary_size > small.vocabulary_size
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        with pytest.raises(WeightsError, match="does not belong"):
            kft.text_classifier("bert", 2, weights=f"{folder}/model.keras", tokenizer=other)


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        ("one text", [1], "a list of one or more"),
        ([], [], "a list of one or more"),
        ([None], [1], "expected text, got NoneType"),
        ([3.5], [1], "expected text, got float"),
        (["a"], [1, 2], "one per text"),
        (["a"], ["pos"], "expected numbers"),
    ],
)
def test_what_is_no_text_is_refused(texts, labels, message):
    model = kft.text_classifier("bert", 2, weights="none")
    with pytest.raises(DataError, match=message):
        model.preprocessor.dataset(texts, labels)


def test_odd_texts_are_read():
    model = kft.text_classifier("bert", 2, weights="none", sequence_length=32)
    texts = ["", " ", "x" * 100_000, "word " * 20_000, "\ud800 lone", "🎬🎬", "\0\1", "naïve café"]
    logits = np.asarray(model.predict(model.preprocessor(texts), verbose=0))
    assert logits.shape == (8, 2)
    assert np.isfinite(logits).all()


def test_blocks_are_the_embeddings_and_each_layer():
    model = text_models.text_classifier("bert", 2, weights="none")
    assert len(kft.blocks(model)) == 4  # embeddings, two layers, head
    writer = text_models.text_to_text("t5", weights="none")
    assert len(kft.blocks(writer)) == 6  # embeddings, two and two layers, no head
    with pytest.raises(ModelError, match="matches no block"):
        kft.unfreeze(model, "layer_7.*")


def test_a_reloaded_model_still_has_dropout(tmp_path):
    from kerastune_ft import models, states
    from kerastune_ft.runs import Run

    model = kft.text_classifier("bert", 2, weights="none", backbone_dropout=0.3)
    states.save(model, Run(tmp_path))
    again = keras.models.load_model(tmp_path / "model.keras")
    kft.unfreeze(again, -1)
    rates = {
        layer.rate for layer in models.layers_of(again) if isinstance(layer, keras.layers.Dropout)
    }
    assert rates == {0.3, 0.1}
    kft.unfreeze(model, 0)
    frozen, _ = models.backbone_of(model)
    assert {part.rate for part in frozen.layers if isinstance(part, keras.layers.Dropout)} == {0.0}


def test_biases_and_norms_do_not_decay_under_any_name():
    for name in ("xlnet", "t5", "bert"):
        model = kft.text_classifier(name, 2, weights="none", trainable_blocks=-1)
        made = kft.optimizers.LayerwiseAdamW(1e-3, weight_decay=0.1)
        for variable in model.trainable_variables:
            decays = made._decays(variable)
            spared = any(word in variable.path for word in ("bias", "norm"))
            assert decays != spared, variable.path


def test_a_preprocessor_goes_to_another_process(tmp_path):
    model = kft.text_classifier("bert", 2, weights="none", sequence_length=20)
    path = tmp_path / "p.json"
    model.preprocessor.save(path)
    again = kft.Preprocessor.load(path)
    before, after = model.preprocessor(TEXTS), again(TEXTS)
    assert all((before[name] == after[name]).all() for name in before)
    path.write_text('{"tokenizer": 3}')
    with pytest.raises(DataError, match="no saved preprocessor"):
        kft.Preprocessor.load(path)
    with pytest.raises(DataError, match="no saved preprocessor"):
        kft.Preprocessor.load(tmp_path / "nothing.json")
