"""The page of what the network sees: exactly what training gets, and nothing that runs."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from kerastune_ft import previews, resuming, workflow
from kerastune_ft import recipe as recipes
from kerastune_ft.backbones.tokenizers import Tokenizer
from kerastune_ft.data import feeding

QUIET = Console(quiet=True)
EVIL = "<script>alert(1)</script>"


def pictures_recipe(photos, **data):
    return recipes.from_mapping(
        {
            "backbone": {"name": "mobilenet", "weights": "imagenet", "image_size": 32},
            "data": {"source": "image_folder", "path": str(photos), "batch_size": 8, **data},
            "train": {"stages": [{"trainable_blocks": 0, "epochs": 1, "learning_rate": 1e-3}]},
        }
    )


def texts_recipe(path, task="text_classification", backbone="bert", **data):
    return recipes.from_mapping(
        {
            "task": {"name": task},
            "backbone": {"name": backbone, "weights": "none", "sequence_length": 12},
            "data": {"source": "jsonl", "path": str(path), **data},
            "train": {"stages": [{"trainable_blocks": -1, "epochs": 1, "learning_rate": 1e-3}]},
        }
    )


def pixels(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def write_texts(path, n=40, **columns):
    rows = []
    for i in range(n):
        words = " ".join(np.random.default_rng(i).choice(["fox", "dog", "cat", "sun"], 3 + i % 20))
        row = {"text": f"{EVIL} {words} {i}", "label": f"{EVIL}{i % 2}"}
        rows.append(row | {name: value(i) for name, value in columns.items()})
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("augment", ["light", "medium"])
@pytest.mark.parametrize("sampling", ["natural", {"red": 3.0}])
def test_pictures_are_those_of_the_stream_to_the_pixel(photos, sampling, augment):
    recipe = pictures_recipe(photos, sampling=sampling, augment=augment)
    shown = previews.page(recipe, 100, QUIET)
    train = [item for item in shown["examples"] if item["split"] == "train"]
    splits = workflow.read(resuming.resolved(recipe))
    assert len(train) == len(splits.train)
    by_row = {item["row"]: item for item in train}
    drawn = splits.sampling(recipe.data.sampling)
    for epoch in (0, 3):
        stream = feeding.dataset(
            splits.train, recipe, 3, training=True, epochs=range(epoch, epoch + 1), sampling=drawn
        )
        images = np.concatenate([batch[0] for batch in stream.as_numpy_iterator()])
        if drawn is None:
            order = feeding.images.order(len(splits.train), 0, epoch)
        else:
            draws = drawn.draws(0, epoch)
            first = draws.turns == 0
            order, images = draws.rows[first], images[first]
        for row, image in zip(order.tolist(), images, strict=True):
            np.testing.assert_array_equal(
                pixels(by_row[row]["versions"][epoch]), np.rint(image).astype(np.uint8)
            )
    plain = next(feeding.dataset(splits.train, recipe, 3).as_numpy_iterator())[0]
    for row, image in enumerate(plain):
        np.testing.assert_array_equal(pixels(by_row[row]["plain"]), np.rint(image).astype(np.uint8))


def test_a_mixed_batch_is_the_first_of_the_stream_with_its_labels(photos):
    recipe = pictures_recipe(photos, augment={"mixup": 0.4})
    shown = previews.page(recipe, 6, QUIET)
    splits = workflow.read(resuming.resolved(recipe))
    images, labels = next(
        feeding.dataset(splits.train, recipe, 3, training=True).as_numpy_iterator()
    )
    for item, image, shares in zip(shown["batch"], images, labels, strict=True):
        np.testing.assert_array_equal(pixels(item["picture"]), np.rint(image).astype(np.uint8))
        largest = splits.class_names[shares.argmax()]
        assert item["label"].startswith(f"{largest} {shares.max():.0%}")
    assert all(not item["versions"] for item in shown["examples"])


def test_the_page_says_what_there_is_to_know_and_changes_training_alone(photos, tmp_path):
    recipe = pictures_recipe(photos, sampling="balanced", resize="pad")
    shown = previews.page(recipe, 9, QUIET)
    assert len(shown["examples"]) == 9
    assert {item["split"] for item in shown["examples"]} == {"train", "validation", "test"}
    for item in shown["examples"]:
        assert len(item["versions"]) == (4 if item["split"] == "train" else 0)
    assert {item["label"] for item in shown["examples"][:6]} == {"blue", "green", "red"}
    assert sum(row["drawn"] for row in shown["shares"]) == shown["counts"]["train"]
    previews.write(recipe, tmp_path / "page.html", 9, QUIET)
    text = (tmp_path / "page.html").read_text()
    for said in (
        "32 x 32",
        "resize: pad",
        "3, RGB",
        "-1..1",
        "balanced",
        "as stored: JPEG 48 x 40",
    ):
        assert said in text
    assert not re.search(r'(src|href)="(?!data:image/)', text)


def test_names_of_classes_and_files_are_escaped(photos, tmp_path):
    (photos / "red").rename(photos / "<script>alert(1)")
    first = next((photos / "blue").iterdir())
    first.rename(first.with_name("<img src=x onerror=alert(1)>.jpg"))
    recipe = pictures_recipe(photos, split={"validation": 0, "test": 0}, augment="none")
    previews.write(recipe, tmp_path / "page.html", 500, QUIET)
    text = (tmp_path / "page.html").read_text()
    assert "&lt;script&gt;alert(1)" in text
    assert "&lt;img src=x" in text
    assert "<script" not in text
    assert "<img src=x" not in text


def test_grey_tiny_and_other_pictures_are_shown(tmp_path):
    recipe = pictures_recipe("digits", source="sklearn", augment="none")
    previews.write(recipe, tmp_path / "page.html", 5, QUIET)
    assert "8 x 8 pixels in memory" in (tmp_path / "page.html").read_text()
    for number in range(12):
        folder = tmp_path / "many" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).integers(0, 255, (20, 24, 5), np.uint8)
        np.save(folder / f"{number}.npy", values)
    recipe = recipes.from_mapping(
        {
            "backbone": {
                "name": "mobilenet", "weights": "none", "image_size": 32, "channels": 5,
            },
            "data": {"source": "image_folder", "path": str(tmp_path / "many"), "augment": "light"},
            "train": {"stages": [{"trainable_blocks": 0, "epochs": 1, "learning_rate": 1e-3}]},
        }
    )  # fmt: skip
    shown = previews.page(recipe, 5, QUIET)
    assert shown["examples"][0]["note"] == "24 x 20, 5 channels"


def test_tokens_are_those_of_the_stream_and_what_is_cut_is_struck(tmp_path):
    recipe = texts_recipe(write_texts(tmp_path / "a.jsonl"), text_augment="strong")
    shown = previews.page(recipe, 30, QUIET)
    resolved = resuming.resolved(recipe)
    splits = workflow.read(resolved)
    tokens = splits.train.content
    changes = feeding.changes_of(resolved)
    train = [item for item in shown["examples"] if item["split"] == "train"]
    assert any(item["cut"] for item in train)
    for item in train:
        kept = [piece for piece in item["pieces"] if piece.kept]
        same = tokens.tokenizer.pieces_of(tokens.ids[item["row"]])
        assert [piece.text for piece in kept] == [piece.text for piece in same]
        assert item["kept"] == tokens.ids.lengths[item["row"]]
        for epoch, version in enumerate(item["versions"]):
            assert version["text"] == changes.text(item["raw"], epoch, item["row"])
    assert all(len(item["versions"]) == 4 for item in train)
    previews.write(recipe, tmp_path / "page.html", 30, QUIET)
    text = (tmp_path / "page.html").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "token cut" in text


@pytest.mark.parametrize(
    ("task", "backbone", "columns"),
    [
        ("text_pair_classification", "bert", {"other": lambda i: f"second {EVIL} {i}"}),
        ("text_regression", "bert", {"label": lambda i: i / 7}),
        ("text_multilabel", "bert", {"label": lambda i: ["a", EVIL][: 1 + i % 2]}),
        ("token_classification", "bert", {
            "text": lambda i: ["a", EVIL, f"b{i}"], "label": lambda i: ["O", "B-X", "O"],
        }),
        ("text_to_text", "t5", {"label": lambda i: f"write {EVIL}"}),
        ("text_generation", "gpt2", {"label": lambda i: f"write {EVIL}"}),
    ],
)  # fmt: skip
def test_every_task_with_texts_has_a_page(tmp_path, task, backbone, columns):
    path = write_texts(tmp_path / "a.jsonl", **columns)
    pair = {"pair_column": "other"} if "other" in columns else {}
    previews.write(texts_recipe(path, task, backbone, **pair), tmp_path / "p.html", 6, QUIET)
    text = (tmp_path / "p.html").read_text()
    assert "<script" not in text
    assert text.count("<article") == 6


@pytest.mark.parametrize("truncation", ["head", "tail", "head_tail"])
@pytest.mark.parametrize("family", ["bert", "roberta", "t5", "xlnet"])
def test_pieces_that_are_kept_are_what_encode_returns(family, truncation):
    generator = np.random.default_rng(0)
    tokenizer = Tokenizer.tiny(family, ["fox dog cat sun moon tree"])
    for _ in range(20):
        one, two = (
            " ".join(generator.choice(["fox", "dog", "sun", "tree"], generator.integers(0, 30)))
            for _ in range(2)
        )
        for second in (None, two):
            made = tokenizer.encode(
                [one], None if second is None else [second], length=16, truncation=truncation
            )
            pieces = tokenizer.pieces(one, second, length=16, truncation=truncation)
            kept = [piece.text for piece in pieces if piece.kept]
            assert kept == [piece.text for piece in tokenizer.pieces_of(made.ids)]
            assert made.truncated[0] == any(not piece.kept for piece in pieces)


def test_the_command_writes_the_page(photos, tmp_path):
    from click.testing import CliRunner

    from kerastune_ft import cli

    found = CliRunner().invoke(
        cli.main,
        ["data", "preview", str(photos), "--output", str(tmp_path / "p.html"), "--count", "4"],
    )
    assert found.exit_code == 0, found.output
    assert (tmp_path / "p.html").read_text().count("<article") == 4


def test_what_fit_refuses_can_be_looked_at_and_cleaned_texts_are_shown(tmp_path):
    rows = [{"text": f"<i>fox</i> {i}", "label": "ab"[i % 2], "split": "train"} for i in range(30)]
    rows += [{**row, "split": "test"} for row in rows[:3]]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    chosen = texts_recipe(path, cleaning={"text": {"html": True}}, split={"validation": 0.2})
    page = previews.page(chosen, 6, QUIET)
    assert page["examples"]
    for shown in page["examples"]:
        assert shown["raw"].startswith("<i>fox</i> ")
        assert shown["cleaned"] == shown["raw"].replace("<i>", "").replace("</i>", "")
