"""A model cut in two equals the whole, wherever it is cut."""

from __future__ import annotations

import importlib
from typing import Any

import keras
import numpy as np
import pytest
from conftest import fill_batch_norm_statistics

from kerastune_ft import models, prefixes, text_models
from kerastune_ft.backbones import get
from kerastune_ft.data import tokenizing
from kerastune_ft.data.activations import ACTIVATIONS
from kerastune_ft.prefixes import Cut, Forward

TEXTS = ("bert", "roberta", "distilbert", "gpt2", "t5", "xlnet")


@pytest.fixture(scope="module")
def pictures() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = models.image_classifier("mobilenet", 3, weights="none", image_size=32, alpha=0.25)
    fill_batch_norm_statistics(model)
    return model


@pytest.fixture(scope="module", params=TEXTS)
def texts(request: pytest.FixtureRequest) -> keras.Model:
    keras.utils.set_random_seed(0)
    tokenizer = tokenizing.tokenizer_of(get(request.param), "none", ["a b c d e f"] * 9)
    return text_models.text_classifier(request.param, 3, weights="none", tokenizer=tokenizer)


def some_pictures(count: int = 5) -> Any:
    return np.random.default_rng(0).uniform(0, 255, (count, 32, 32, 3)).astype("float32")


def some_texts(model: keras.Model, length: int = 11) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    rows = model.preprocessor.tokenizer.vocabulary_size
    mask = (np.arange(length) < np.array([length, 7, 3])[:, None]).astype("int32")
    ids = generator.integers(1, rows, mask.shape).astype("int32") * mask
    made = {"token_ids": ids, "padding_mask": mask, "segment_ids": np.zeros_like(ids)}
    return {tensor.name: made[tensor.name] for tensor in model.inputs}


def halves_equal_the_whole(model: keras.Model, inputs: Any) -> None:
    whole = np.asarray(model(inputs, training=False))
    assert whole.std() > 1e-3  # else anything would be equal
    *body, _ = models.blocks(model)
    for count in range(1, len(body) + 1):
        cut = Cut(model, count)
        (values,) = Forward([cut])(inputs)
        assert values.shape[-1] == cut.shape[-1]
        others = {name: inputs[name] for name in cut.reads}
        found = cut.suffix()({ACTIVATIONS: values, **others}, training=False)
        np.testing.assert_allclose(found, whole, rtol=1e-3, atol=1e-4 * np.abs(whole).max())


def test_pictures_cut_anywhere(pictures: keras.Model) -> None:
    halves_equal_the_whole(pictures, some_pictures())


def test_texts_cut_anywhere(texts: keras.Model) -> None:
    halves_equal_the_whole(texts, some_texts(texts))


def test_what_a_text_gives_does_not_depend_on_what_fills_its_batch_up(texts: keras.Model) -> None:
    longer, shorter = some_texts(texts), {k: v[2:, :3] for k, v in some_texts(texts).items()}
    cut = Cut(texts, 2)
    forward = Forward([cut])
    assert cut.by_token
    np.testing.assert_allclose(
        forward(shorter)[0][0], forward(longer)[0][2, :3], rtol=2e-4, atol=2e-5
    )


def test_several_cuts_are_computed_in_one_pass(pictures: keras.Model) -> None:
    counts = (len(models.blocks(pictures)) - 1, 3, 7)
    together = Forward([Cut(pictures, count) for count in counts])(some_pictures())
    for count, values in zip(counts, together, strict=True):
        (alone,) = Forward([Cut(pictures, count)])(some_pictures())
        np.testing.assert_allclose(values, alone, rtol=1e-4, atol=1e-5)


def test_the_suffix_trains_the_variables_of_the_model(pictures: keras.Model) -> None:
    for blocks in (0, 1, 4):
        models.unfreeze(pictures, blocks)
        cut = Cut(pictures, prefixes.still(pictures))
        ours = [id(variable) for variable in cut.suffix().trainable_variables]
        assert ours == [id(variable) for variable in pictures.trainable_variables]
    models.freeze(pictures)


def test_still_blocks_are_those_in_which_nothing_moves(pictures: keras.Model) -> None:
    *body, _ = models.blocks(pictures)
    names = [block.name for block in body]
    for blocks, expected in ((0, len(body)), (3, len(body) - 3), (-1, 0), ((names[4],), 4)):
        models.unfreeze(pictures, blocks)
        assert prefixes.still(pictures) == expected
    models.freeze(pictures)


def test_dropout_that_acts_in_a_frozen_block_is_no_part_of_the_prefix() -> None:
    model = models.image_classifier("efficientnet_b0", 3, weights="none", image_size=32)
    count = len(models.blocks(model)) - 1
    assert prefixes.still(model) == count
    *body, _ = models.blocks(model)
    place, layer = next(
        (place, layer)
        for place, block in enumerate(body)
        for layer in block.layers
        if isinstance(layer, keras.layers.Dropout)
    )
    layer.rate = 0.3
    if layer.seed_generator is None:
        layer.seed_generator = keras.random.SeedGenerator(0)
    assert prefixes.still(model) == place


def test_multiplications_are_counted_by_weights_and_places() -> None:
    model = models.image_classifier("mobilenet", 3, weights="none", image_size=224)
    *body, _ = models.blocks(model)
    counted = [Cut(model, count).multiplications() for count in range(1, len(body) + 1)]
    assert counted == sorted(counted)
    assert counted[-1] == pytest.approx(568e6, rel=0.03)  # Howard et al. 2017, table 4: 569 million


def test_a_text_costs_as_much_as_it_has_tokens(texts: keras.Model) -> None:
    few, many = (Cut(texts, 2).multiplications(tokens) for tokens in (10, 100))
    assert 0 < few < many <= 10 * few


@pytest.mark.parametrize("kind", ["mit", "mobilenetv5", "swin_transformer"])
def test_layers_that_skip_paths_move_whatever_their_rate_is_called(kind: str) -> None:
    made = importlib.import_module(f"keras_hub.src.models.{kind}.{kind}_layers").DropPath
    assert prefixes._moves(made(0.5))
    assert not prefixes._moves(made(0.0))


def test_layers_that_draw_under_another_name_move() -> None:
    class Noise(keras.layers.Layer):
        def __init__(self, many: bool) -> None:
            super().__init__()
            made = keras.random.SeedGenerator(0)
            self.source = [made] if many else made

    assert prefixes._moves(Noise(False)) and prefixes._moves(Noise(True))
    assert not prefixes._moves(keras.layers.Dropout(0.0))
    assert not prefixes._moves(keras.layers.Dense(3))


def test_the_digest_is_of_layers_and_weights_alone(pictures: keras.Model) -> None:
    digest = Cut(pictures, 5).digest()
    other = models.image_classifier("mobilenet", 9, weights="none", image_size=32, alpha=0.25)
    assert Cut(other, 5).digest() != digest
    for ours, theirs in zip(
        models.backbone_of(pictures)[0].weights, models.backbone_of(other)[0].weights, strict=True
    ):
        theirs.assign(ours)
    assert Cut(other, 5).digest() == digest  # whatever its head is
    assert Cut(pictures, 6).digest() != digest
    *body, _ = models.blocks(other)
    body[5].weights[0].assign(body[5].weights[0] + 1)
    assert Cut(other, 5).digest() == digest
    body[4].weights[0].assign(body[4].weights[0] + 1)
    assert Cut(other, 5).digest() != digest


def test_texts_saved_after_they_were_cut_are_whole(texts: keras.Model, tmp_path: Any) -> None:
    inputs = some_texts(texts)
    before = np.asarray(texts(inputs, training=False))
    for count in (1, 2, 3):
        Cut(texts, count).suffix()
    texts.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(inputs, training=False), before)
    assert Cut(again, 2).digest() == Cut(texts, 2).digest()


def test_a_model_saved_after_it_was_cut_is_whole(pictures: keras.Model, tmp_path: Any) -> None:
    Cut(pictures, 4).suffix()
    Forward([Cut(pictures, 6)])
    pictures.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        again.predict(some_pictures(), verbose=0), pictures.predict(some_pictures(), verbose=0)
    )
    assert Cut(again, 4).digest() == Cut(pictures, 4).digest()
