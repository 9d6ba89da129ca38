"""Reading labelled texts: columns, encodings, splits, and what is wrong with a table."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from kerastune_ft import data, recipe
from kerastune_ft.errors import DataError, RecipeError

ROWS = [("a good film", "pos"), ("a bad film", "neg"), ("süß, «très» bien 好", "pos")] * 6


def choice(path, source="csv", **settings):
    settings = {"split": {"validation": 0.0, "test": 0.0}, **settings}
    made = recipe.from_mapping(
        {
            "task": {"name": "text_classification"},
            "backbone": {"name": "bert", "weights": "none"},
            "data": {"source": source, "path": str(path), **settings},
            "train": {"early_stopping": None},
        }
    )
    return made.data


def load(path, source="csv", kind="class", **settings):
    return data.load(choice(path, source, **settings), kind, "text")


def write(path, rows=ROWS, columns=("text", "label")):
    frame = pd.DataFrame(rows, columns=list(columns))
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        lines = (json.dumps(row, ensure_ascii=False) for row in frame.to_dict("records"))
        path.write_text("\n".join(lines) + "\n", "utf-8")
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize(
    ("name", "source"),
    [("a.csv", "csv"), ("a.tsv", "csv"), ("a.jsonl", "jsonl"), ("a.parquet", "parquet")],
)
def test_every_format_gives_the_same_texts(tmp_path, name, source):
    splits = load(write(tmp_path / name), source)
    assert sorted(splits.train.content.first) == sorted(text for text, _ in ROWS)
    assert splits.class_names == ("neg", "pos")
    assert len(splits.train) == 18
    record = splits.record()
    assert record["examples"] == {"found": 18, "kept": 18, "left_out": 0}


def test_a_folder_with_a_file_per_split_keeps_the_splits(tmp_path):
    for name, count in (("train", 12), ("dev", 3), ("test", 6)):
        write(tmp_path / f"{name}.csv", ROWS[:count])
    splits = load(tmp_path)
    assert [len(split) for split in splits.all] == [12, 3, 6]


def test_a_column_called_split_divides(tmp_path):
    rows = [(*row, ("train", "val", "test")[i // 12]) for i, row in enumerate(ROWS * 2)]
    path = write(tmp_path / "a.csv", rows, ("text", "label", "split"))
    assert [len(split) for split in load(path).all] == [12, 12, 12]


def test_class_folders_of_text_files_are_read(tmp_path):
    for i, (text, label) in enumerate(ROWS):
        (tmp_path / label).mkdir(exist_ok=True)
        (tmp_path / label / f"{i}.txt").write_text(text, "utf-8")
    (tmp_path / "pos" / "notes.pdf").write_bytes(b"%PDF")
    splits = load(tmp_path, "text_folder")
    assert len(splits.train) == 18
    assert [finding.kind for finding in splits.findings] == ["not_a_text"]


def test_columns_are_mapped(tmp_path):
    rows = [("x", "one", "two", f"{i % 4}") for i in range(8)]
    path = write(tmp_path / "a.csv", rows, ("id", "premise", "hypothesis", "gold"))
    splits = load(
        path, kind="numbers", text_column="premise", pair_column=None, label_column="gold"
    )
    assert splits.train.content.first == ("one",) * 8
    assert splits.train.labels[:, 0].tolist() == [i % 4 for i in range(8)]


def test_latin_1_is_read_when_it_is_said(tmp_path):
    path = tmp_path / "a.csv"
    text = "text,label\n" + "".join(f"é {i},{'ab'[i % 2]}\n" for i in range(6))
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.csv:2: byte \d+ is no utf-8 text.*data\.encoding="):
        load(path)
    assert load(path, encoding="latin-1").train.content.first[0].startswith("é")
    with pytest.raises(DataError, match=r"data\.encoding: .klingon. is unknown"):
        load(path, encoding="klingon")


@pytest.mark.parametrize("source", ["csv", "jsonl", "parquet"])
def test_rows_without_text_or_label_are_left_out_and_counted(tmp_path, source):
    rows = [*ROWS, ("", "pos"), ("   ", "neg"), ("no label", ""), (None, "pos"), ("x", None)]
    splits = load(write(tmp_path / f"a.{source}", rows), source)
    counts = {finding.kind: finding.count for finding in splits.findings}
    assert counts == {"empty_text": 3, "missing_label": 2}
    assert splits.record()["examples"] == {"found": 23, "kept": 18, "left_out": 5}
    with pytest.raises(DataError, match="5 examples cannot be used"):
        load(tmp_path / f"a.{source}", source, on_error="stop")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"text,label\n", "holds no rows"),
        (b"txt,label\na,b\n", "data.text_column: no column 'text'; did you mean 'txt'"),
        (b"text;label\na;b\n", "separated by semicolons"),
        (b"text,label\na,b\nc,d,e\n", "no readable table"),
        (b"text,label\nhello,a\nbye,a\n", "all texts are of one class, 'a'"),
        (b"a\0b,c\n", "zero bytes"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, content, message):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", r"a\.jsonl:2: is no JSON"),
        ("[1, 2]", r"a\.jsonl:2: expected a JSON object a line"),
        ('{"text": 5, "label": "a"}', "expected a text, got int 5"),
        ('{"text": ["a"], "label": "a"}', "expected a text, got list"),
    ],
)
def test_what_is_wrong_with_json_is_said(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x", "label": "b"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        load(path, "jsonl")


def test_a_file_that_is_no_parquet_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"text,label\n")
    with pytest.raises(DataError, match="no readable Parquet"):
        load(path, "parquet")


def test_a_missing_file_and_a_folder_without_train_are_named(tmp_path):
    with pytest.raises(DataError, match="no file or folder"):
        load(tmp_path / "nothing.csv")
    write(tmp_path / "test.csv")
    with pytest.raises(DataError, match=r"no file 'train\.csv', it holds 'test\.csv'"):
        load(tmp_path)
    write(tmp_path / "train.csv")
    write(tmp_path / "val.csv")
    write(tmp_path / "dev.csv")
    with pytest.raises(DataError, match="both mean the validation split"):
        load(tmp_path)


def test_a_label_that_was_never_trained_on_is_an_error(tmp_path):
    write(tmp_path / "train.csv", ROWS[:12])
    write(tmp_path / "test.csv", [*ROWS[:3], ("hm", "neutral")])
    with pytest.raises(DataError, match="training split lacks: 'neutral'"):
        load(tmp_path)


def test_no_group_is_on_two_sides_of_a_split(tmp_path):
    rows = [(f"text {i}", "ab"[i % 2], f"film {i // 5}") for i in range(300)]
    path = write(tmp_path / "a.csv", rows, ("text", "label", "film"))
    shares = {"validation": 0.15, "test": 0.2}
    splits = load(path, group_column="film", split=shares)
    film = {text: film for text, _, film in rows}
    sides = [{film[text] for text in split.content.first} for split in splits.all]
    assert all(sides)
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert [len(split) for split in splits.all] == pytest.approx([195, 45, 60], abs=12)
    assert load(path, group_column="film", split=shares).fingerprint == splits.fingerprint
    one = write(tmp_path / "b.csv", [(t, c, "one") for t, c, _ in rows], ("text", "label", "film"))
    with pytest.raises(DataError, match="groups are too few"):
        load(one, group_column="film", split=shares)


def test_words_with_tags_are_read_and_misfits_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"text": ["Ada", "wrote"], "label": ["B-PER", "O"]}] * 4
    rows += [{"text": ["Ada"], "label": ["B-PER", "O"]}, {"text": [], "label": []}]
    path.write_text("\n".join(map(json.dumps, rows)))
    splits = load(path, "jsonl", "tags")
    assert splits.class_names == ("B-PER", "O")
    assert splits.train.content.words[0] == ("Ada", "wrote")
    assert splits.train.labels[0].tolist() == [0, 1]
    assert {f.kind: f.count for f in splits.findings} == {"tags_misfit": 1, "empty_text": 1}


def test_the_fingerprint_knows_the_texts(tmp_path):
    one = load(write(tmp_path / "a.csv")).fingerprint
    changed = [("another text", "pos"), *ROWS[1:]]
    assert load(write(tmp_path / "a.csv", changed)).fingerprint != one


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {"name": "text_pair_classification"}}, "needs the column of the second text"),
        ({"task": {"name": "text_classification"}, "pair_column": "b"}, "reads one text"),
        ({"backbone": {"name": "mobilenet_v2"}}, "sees pictures"),
        ({"task": {"name": "image_classification"}}, "reads texts"),
        ({"task": {"name": "text_to_text"}}, "no decoder"),
        ({"task": {"name": "text_generation"}}, "not trained to go on"),
        ({"task": {"name": "token_classification"}}, "jsonl and parquet hold"),
        ({"source": "image_folder"}, "has no texts"),
        ({"task": {"name": "text_multilabel"}, "source": "text_folder"}, "one class per text"),
        ({"task": {"name": "text_classification", "pooling": "gem"}}, "gem is for pictures"),
        ({"backbone": {"name": "bert", "image_size": 64}}, "network of language has none"),
        ({"backbone": {"name": "bert", "weights": "bert_bas_en"}}, "no 'bert_bas_en' weights"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_before_anything_is_read(changes, message):
    mapping = {
        "task": {"name": "text_classification"},
        "backbone": {"name": "bert", "weights": "none"},
        "data": {"source": "csv", "path": "x.csv"},
    }
    for key, value in changes.items():
        if key in mapping:
            mapping[key] = value
        else:
            mapping["data"][key] = value
    with pytest.raises(RecipeError, match=message):
        recipe.from_mapping(mapping)
