"""Predicting texts: rows without a text, prompts or none, files as one text; tiny networks."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from click.testing import CliRunner  # noqa: E402
from test_text_tasks import make_recipe, sentences, write  # noqa: E402

from kerastune_ft import cli, predictions, workflow  # noqa: E402
from kerastune_ft.errors import DataError  # noqa: E402


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A run that compares two texts."""
    folder = tmp_path_factory.mktemp("pairs")
    path = write(folder / "a.jsonl", "text_pair_classification", n=48)
    made = make_recipe(path, "text_pair_classification", epochs=1)
    return workflow.fit(made, runs_dir=folder / "runs", name="one")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run that was trained on class folders of text files."""
    folder = tmp_path_factory.mktemp("folders")
    for i, (words, mood, _) in enumerate(sentences(48)):
        place = folder / "texts" / ("good", "bad")[mood]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.txt").write_text("\n".join(words))
    where = {"source": "text_folder", "path": str(folder / "texts")}
    made = make_recipe(folder, "text_classification", epochs=1, data=where)
    return workflow.fit(made, runs_dir=folder / "runs", name="one")


@pytest.mark.slow
def test_texts_without_prompts_are_learned_scored_and_written(tmp_path):
    path = tmp_path / "a.csv"
    lines = (" ".join(words) for words, _, _ in sentences(48))
    path.write_text("\n".join(["text", *lines]) + "\n")
    where = {"source": "csv", "text_column": None, "label_column": "text"}
    made = make_recipe(path, "text_generation", epochs=1, data=where)
    run = workflow.fit(made, runs_dir=tmp_path / "runs", name="one")
    scores = run.read_json("scores")
    assert np.isfinite(scores["test"]["perplexity"])
    _, _, found = predictions.evaluate(run)
    assert found.scores["loss"] == pytest.approx(scores["test"]["loss"], rel=1e-4)
    _, split, _ = predictions.evaluate(run, str(path))
    assert len(split) == 48
    rows = list(predictions.predict(run, [path], ["a good"]))
    assert [row["error"] for row in rows] == [None] * 49
    assert [row["text"] for row in rows] == [""] * 48 + ["a good"]
    assert len({row["predicted"] for row in rows[:48]}) == 1


def test_a_pair_needs_both_texts(tmp_path, pairs):
    path = tmp_path / "a.jsonl"
    rows = [
        {"text": "a good film", "pair": "good"},
        {"text": "a good film", "pair": " "},
        {"text": "a good film", "pair": None},
        {"text": "a good film"},
        {"pair": "good"},
        {"text": "half \ud800", "pair": "good"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    said = list(predictions.predict(pairs, [path]))
    nothing = "there is no text"
    missing = ["there is no 'pair'", "there is no 'text'"]
    assert [row["error"] for row in said] == [None, nothing, nothing, *missing, None]
    assert [row["predicted"] is None for row in said] == [bool(row["error"]) for row in said]
    path.write_text('{"text": "x"}\n{"text": "y"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl: no column 'pair'; the columns are 'text'"):
        list(predictions.predict(pairs, [path]))
    plain = tmp_path / "lines.txt"
    plain.write_text("one\n")
    with pytest.raises(DataError, match=r"lines\.txt: this run's model compares two texts"):
        list(predictions.predict(pairs, [plain]))


def test_json_is_read_wherever_jsonl_is(tmp_path, pairs):
    path = write(tmp_path / "a.json", "text_pair_classification", n=6)
    assert len(list(predictions.predict(pairs, [path]))) == 6
    _, split, _ = predictions.evaluate(pairs, str(path))
    assert len(split) == 6


def test_lines_end_at_line_feeds_alone(tmp_path, pairs, folders):
    assert pairs.path != folders.path
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "a\u2028b\fc", "pair": "d"}, ensure_ascii=False), "utf-8")
    (row,) = predictions.predict(pairs, [path])
    assert row["text"] == "a\u2028b\fc"
    text = tmp_path / "a.txt"
    text.write_bytes("good\u2028film\r\nbad\x0cfilm\x85\n\nlast".encode())
    made = make_recipe(write(tmp_path / "b.jsonl", "text_classification"), "text_classification")
    from kerastune_ft import text_predictions

    rows = list(text_predictions._rows(text, made))
    texts = ["good\u2028film", "bad\x0cfilm\x85", "", "last"]
    assert [row.shown["text"] for row in rows] == texts
    assert [row.shown["row"] for row in rows] == [f"a.txt:{i}" for i in range(1, 5)]


def test_a_run_of_text_folders_takes_a_file_as_one_text(tmp_path, folders):
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "1.txt").write_text("a good film\n\nand a lovely song\n")
    (folder / "2.txt").write_bytes(b"\xff\xfe")
    (folder / "3.txt").write_text("\n")
    one, two, three = predictions.predict(folders, [folder])
    assert one["text"] == "a good film\n\nand a lovely song\n"
    assert one["error"] is None
    assert one["row"] == str(folder / "1.txt")
    assert "is no utf-8 text" in two["error"]
    assert three["error"] == "there is no text"


def test_predictions_are_written_as_utf_8(tmp_path, pairs, monkeypatch):
    path = tmp_path / "a.jsonl"
    rows = [{"text": "süß 好 \ud800", "pair": "good"}, {"text": "x", "pair": ""}]
    path.write_text("\n".join(map(json.dumps, rows)))
    real = Path.open

    def opened(self, mode="r", *rest, encoding=None, **named):
        """As on a system whose own encoding is ASCII."""
        plain = encoding or (None if "b" in mode else "ascii")
        return real(self, mode, *rest, encoding=plain, **named)

    monkeypatch.setattr(Path, "open", opened)
    output = tmp_path / "said.csv"
    arguments = ["predict", str(pairs.path), str(path), "--output", str(output)]
    done = CliRunner().invoke(cli.main, arguments)
    assert done.exit_code == 1
    assert "1 text is empty or cannot be read" in done.output
    with output.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["text"] for row in found] == ["süß 好 \ufffd", "x"]


def test_a_run_learns_from_halves_of_characters(tmp_path):
    path = write(tmp_path / "a.jsonl", "text_classification", n=48)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["text"] += " \ud800"
        row["label"] += "\udfff"
    path.write_text("\n".join(map(json.dumps, rows)))
    made = make_recipe(path, "text_classification", epochs=1)
    run = workflow.fit(made, runs_dir=tmp_path / "runs", name="one")
    assert "\ufffd" in run.predictions_path.read_text("utf-8")
    assert "bad_unicode" in {found["kind"] for found in run.read_json("data")["findings"]}
