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
    assert record["examples"] == {"found": 18, "kept": 18, "left_out": 0, "removed": 0}


def test_a_folder_with_a_file_per_split_keeps_the_splits(tmp_path):
    for name, count in (("train", 12), ("dev", 3), ("test", 6)):
        write(tmp_path / f"{name}.csv", ROWS[:count])
    splits = load(tmp_path, leakage="warn")
    assert [len(split) for split in splits.all] == [12, 3, 6]


def test_a_column_called_split_divides(tmp_path):
    rows = [(*row, ("train", "val", "test")[i // 12]) for i, row in enumerate(ROWS * 2)]
    path = write(tmp_path / "a.csv", rows, ("text", "label", "split"))
    assert [len(split) for split in load(path, leakage="warn").all] == [12, 12, 12]


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
    assert splits.record()["examples"] == {"found": 23, "kept": 18, "left_out": 5, "removed": 0}
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


# Columns and rows


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.csv", "text,label\nhello, world,pos\n", 2),
        ("a.csv", "text,label\nhello, world,pos\ngood,neg\n", 2),
        ("a.csv", 'text,label\n"two\nlines",pos\ngood,neg\n\nhello, world,pos\n', 6),
        ("a.csv", "text,label\ngood,pos,\nbad,neg,\n", 2),
        ("a.tsv", "text\tlabel\ngood\tpos\nhello\tworld\tpos\n", 3),
    ],
)
def test_a_row_that_is_longer_than_the_header_is_named(tmp_path, name, content, line):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=rf"{name}:{line}: .* 3 fields under a header of 2"):
        load(path)


@pytest.mark.parametrize(
    "lines",
    [
        ['"So it goes\tpos', "He left\tneg", 'She said "no"\tneg', 'It ends"\tpos', "So\tneg"],
        ['"Yes" he said\tpos', "No\tneg", 'a 5" disk\tneg'],
        ['pos\t"one', 'neg\ttwo"'],
    ],
)
def test_a_lone_quotation_mark_of_a_tsv_swallows_no_row(tmp_path, lines):
    path = tmp_path / "a.tsv"
    header = "label\ttext" if lines[0].startswith("pos") else "text\tlabel"
    path.write_text("\n".join([header, *lines]) + "\n")
    column = header.split("\t").index("text")
    assert sorted(load(path).train.content.first) == sorted(x.split("\t")[column] for x in lines)


def test_quoted_fields_of_a_tsv_are_unquoted(tmp_path):
    rows = [("two\nlines", "pos"), ("a\ttab", "neg"), ('say "yes"', "pos"), ("plain", "neg")]
    splits = load(write(tmp_path / "a.tsv", rows))
    assert sorted(splits.train.content.first) == sorted(text for text, _ in rows)


def test_a_text_is_read_from_nothing_where_there_is_no_column_of_prompts(tmp_path):
    path = write(tmp_path / "a.csv", [(text,) for text, _ in ROWS], ("text",))
    changed = {"text_column": None, "label_column": "text"}
    splits = data.load(choice(path).model_copy(update=changed), "text", "text")
    assert splits.train.content.first == ("",) * 18
    assert sorted(splits.train.labels) == sorted(text for text, _ in ROWS)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson"])
def test_halves_of_characters_are_replaced_and_counted(tmp_path, name):
    path = tmp_path / name
    rows = [{"text": f"{i} \ud83d\ude00 \ud800", "label": f"{'ab'[i % 2]}\udcff"} for i in range(4)]
    rows += [{"text": "whole \U0001f600", "label": "c"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    splits = load(path, "jsonl")
    assert splits.class_names == ("a\ufffd", "b\ufffd", "c")
    assert "0 \U0001f600 \ufffd" in splits.train.content.first
    assert {f.kind: (f.severity, f.count) for f in splits.findings} == {"bad_unicode": ("note", 4)}
    splits.write(tmp_path / "splits.csv")


def test_what_is_to_be_written_is_kept_as_it_is(tmp_path):
    rows = [("a", "  indented\n"), ("b", "NaN"), ("c", "nan"), ("d", ""), ("e", "x")]
    splits = load(write(tmp_path / "a.csv", rows), kind="text")
    assert sorted(splits.train.labels) == sorted(label for _, label in rows if label)
    assert {f.kind: f.count for f in splits.findings} == {"missing_label": 1}


def listed(path, rows):
    path.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in rows))
    return path


def test_an_empty_name_in_a_list_is_no_class(tmp_path):
    good = [("x", ["a"]), ("y", ["b ", "a"]), ("z", [])]
    bad = [("n", ["a", None]), ("m", [""]), ("o", None)]
    splits = load(listed(tmp_path / "a.jsonl", good + bad), "jsonl", "classes")
    assert splits.class_names == ("a", "b")
    assert sum(f.count for f in splits.findings if f.kind == "missing_label") == 3
    assert splits.record()["examples"] == {"found": 6, "kept": 3, "left_out": 3, "removed": 0}
    good = [(["Ada", "wrote"], ["B-PER", "O"])] * 3
    bad = [(["Ada"], [None]), (["Ada"], [""]), (["Ada", None], ["O", "O"]), ([" "], ["O"])]
    splits = load(listed(tmp_path / "b.jsonl", good + bad), "jsonl", "tags")
    assert splits.class_names == ("B-PER", "O")
    assert sum(f.count for f in splits.findings if f.kind == "tags_misfit") == 4


def test_lists_do_not_fit_a_column_per_class(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": "x", "a": 1, "b": ["c"]}) for _ in range(3)))
    for columns in (("a", "b"), ("b",)):
        made = choice(path, "jsonl").model_copy(update={"label_column": columns})
        message = r"column 'b': expected 0 or 1, got list; .*named alone"
        with pytest.raises(DataError, match=message):
            data.load(made, "classes", "text")
    nested = listed(tmp_path / "b.jsonl", [("x", [["a"]])])
    with pytest.raises(DataError, match="expected a list of names, got list"):
        load(nested, "jsonl", "classes")


def test_a_file_that_is_no_text_is_left_out_of_class_folders(tmp_path):
    for i, (text, label) in enumerate(ROWS):
        (tmp_path / label).mkdir(exist_ok=True)
        (tmp_path / label / f"{i}.txt").write_text(text, "utf-8")
    (tmp_path / "pos" / "bad.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "pos" / "gone.txt").symlink_to(tmp_path / "nowhere")
    splits = load(tmp_path, "text_folder")
    assert len(splits.train) == 18
    assert {f.kind: f.names for f in splits.findings} == {
        "not_text": ("pos/bad.txt",),
        "unreadable": ("pos/gone.txt",),
    }
    with pytest.raises(DataError, match=r"not_text: 'pos/bad\.txt'"):
        load(tmp_path, "text_folder", on_error="stop")
    only = tmp_path / "only"
    (only / "a").mkdir(parents=True)
    (only / "a" / "bad.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"no text that can be used.*bad\.txt"):
        load(only, "text_folder")


# Groups


def grouped(path, rows, **settings):
    write(path, rows, ("text", "label", "film"))
    return load(path, group_column="film", **settings)


def test_official_splits_that_divide_a_group_are_refused_unless_told_otherwise(tmp_path):
    folder = tmp_path / "official"
    folder.mkdir()
    rows = [(f"text {i}", "ab"[i % 2], f"film {i // 4}") for i in range(40)]
    columns = ("text", "label", "film")
    write(folder / "train.csv", rows[:30], columns)
    write(folder / "test.csv", rows[30:], columns)
    with pytest.raises(DataError, match=r"scored on what it was trained on:\n.*groups.*'film 7'"):
        load(folder, group_column="film")
    splits = load(folder, group_column="film", leakage="warn")
    (found,) = splits.findings
    assert (found.kind, found.severity, found.names) == ("leaked_groups", "warn", ("film 7",))
    assert found.count == 1
    dropped = load(folder, group_column="film", leakage="drop")
    assert [row.name for row in dropped.removed] == [
        name
        for name in splits.train.names
        if name.split("#")[0] in ("train.csv:29", "train.csv:30")
    ]
    assert len(dropped.train) == len(splits.train) - 2


def test_rows_without_a_group_stand_alone(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"text": f"text {i}", "label": "ab"[i % 2], "film": f"{i % 9}"} for i in range(60)]
    for i in range(0, 30, 3):
        rows[i]["film"] = None
        del rows[i + 1]["film"]
    path.write_text("\n".join(map(json.dumps, rows)))
    splits = load(path, "jsonl", group_column="film", split={"validation": 0.25, "test": 0.25})
    (found,) = splits.findings
    assert (found.kind, found.severity, found.count) == ("no_group", "note", 20)
    assert [len(split) for split in splits.all] == pytest.approx([30, 15, 15], abs=2)


def test_classes_with_fewer_examples_than_folds_can_be_in_groups(tmp_path):
    rows = [(f"text {i}", f"class {i % 12}", f"film {i % 8}") for i in range(24)]
    splits = grouped(tmp_path / "a.csv", rows, split={"validation": 0.0, "test": 0.2})
    assert len(splits.test)
    alone = [(f"text {i}", "ab"[i], f"film {i}") for i in range(2)]
    with pytest.raises(DataError, match="too few for a test split"):
        grouped(tmp_path / "b.csv", alone, split={"validation": 0.0, "test": 0.5})


@pytest.mark.parametrize("shares", [(0.0, 0.4), (0.0, 0.6), (0.3, 0.3), (0.1, 0.75), (0.05, 0.05)])
def test_shares_of_groups_are_met(tmp_path, shares):
    rows = [(f"text {i}", "ab"[i % 3 == 0], f"film {i // 4}") for i in range(400)]
    sizes = {"validation": shares[0], "test": shares[1]}
    splits = grouped(tmp_path / "a.csv", rows, split=sizes)
    wanted = [400 * (1 - sum(shares)), 400 * shares[0], 400 * shares[1]]
    assert [len(split) for split in splits.all] == pytest.approx(wanted, abs=20)
    for split in splits.all:
        if len(split):
            assert split.labels.mean() == pytest.approx(1 / 3, abs=0.1)


@pytest.mark.parametrize("column", [None, "film"])
def test_a_rare_tag_is_trained_on(tmp_path, column):
    path = tmp_path / "a.jsonl"
    rows = [
        {"text": [f"Ada{i}", "wrote"], "label": ["B-PER", "O"], "film": f"{i // 3}"}
        for i in range(60)
    ]
    for i, tag in ((7, "B-LOC"), (31, "B-ORG"), (32, "B-ORG"), (55, "B-MISC")):
        rows[i]["label"] = [tag, "O"]
    path.write_text("\n".join(map(json.dumps, rows)))
    for seed in range(6):
        shares = {"validation": 0.2, "test": 0.3, "seed": seed}
        splits = load(path, "jsonl", "tags", group_column=column, split=shares)
        counts = splits.record()["splits"]["train"]["per_class"]
        assert all(counts.values())
        wanted = [30, 12, 18]
        assert [len(split) for split in splits.all] == pytest.approx(wanted, abs=9 if column else 0)


def test_scoring_other_data_needs_no_group(tmp_path):
    path = write(tmp_path / "a.csv")
    made = choice(path, group_column="film").model_copy(update={"group_column": None})
    assert len(data.load_all(made, ("neg", "pos"), "class", "text")) == 18


# Sets of TensorFlow Datasets


def test_splits_of_a_set_are_read_or_said_not_to_be():
    from types import SimpleNamespace

    from kerastune_ft.data import tables, tensorflow_sets

    def parts(*names):
        splits = {name: SimpleNamespace(num_bytes=1) for name in names}
        findings = tables.Findings()
        builder = SimpleNamespace(info=SimpleNamespace(splits=splits))
        read = dict(tensorflow_sets._parts("glue", builder, findings))
        return read, {found.kind: found.names for found in findings.found()}

    mnli = [f"{part}_{kind}" for part in ("validation", "test") for kind in ("matched", "mis")]
    assert parts("train", *mnli) == ({"train": "train"}, {"split_not_read": tuple(sorted(mnli))})
    assert parts("train", "validation_matched", "extra") == (
        {"train": "train", "validation_matched": "validation"},
        {"split_by_beginning": ("validation_matched",), "split_not_read": ("extra",)},
    )
    assert parts("train", "test", "test_hard", "testimony")[0] == {"train": "train", "test": "test"}


def test_a_prepared_set_of_texts_says_which_splits_are_not_read(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyTexts(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            label = tfds.features.ClassLabel(names=["no", "yes"])
            features = {"text": tfds.features.Text(), "label": label}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            names = ("train", "test_matched", "extra")
            return {name: self._generate_examples(name) for name in names}

        def _generate_examples(self, name):
            for i in range(6):
                yield i, {"text": f"text {i} of {name}", "label": i % 2}

    builder = TinyTexts(data_dir=str(tmp_path), file_format="tfrecord")
    builder.download_and_prepare()
    splits = load(builder.data_dir, "tfds")
    assert [len(split) for split in splits.all] == [6, 0, 6]
    assert {f.kind for f in splits.findings} == {"split_by_beginning", "split_not_read"}


# Recipes


def asked(name, task=None, **changes):
    mapping = {
        "task": {"name": name, **(task or {})},
        "backbone": {
            "name": {"text_to_text": "t5", "text_generation": "gpt2"}.get(name, "bert"),
            "weights": "none",
            **changes.pop("backbone", {}),
        },
        "data": {"source": "jsonl", "path": "x.jsonl", **changes.pop("data", {})},
        "train": {"strategy": "full", **changes.pop("train", {})},
    }
    assert not changes
    return recipe.from_mapping({key: value for key, value in mapping.items() if value})


STAGES = [{"trainable_blocks": n, "epochs": 1, "learning_rate": 1e-3} for n in (-1, 0)]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("text_classification", {"data": {"text_column": "label"}}, "'label' is what is learned"),
        (
            "text_regression",
            {"data": {"pair_column": "b", "label_column": ["a", "b"]}},
            r"data\.pair_column: column 'b' is what is learned",
        ),
        (
            "text_classification",
            {"data": {"source": "text_folder", "group_column": "film"}},
            "class folders have no columns; leave group_column out",
        ),
        *(
            (
                name,
                {"train": {"class_weight": "balanced", "strategy": "full"}},
                "no classes of whole texts",
            )
            for name in ("token_classification", "text_to_text", "text_generation")
        ),
        *(
            (name, changes, message)
            for name in ("text_to_text", "text_generation")
            for changes, message in (
                ({"backbone": {"reinitialize_blocks": 1}}, "leave reinitialize_blocks out"),
                ({"task": {"hidden": [8]}}, "leave hidden out"),
                ({"train": {"strategy": None, "stages": STAGES}}, r"stages\.1\.trainable_blocks"),
                ({"train": {"strategy": None}}, "has no head, so nothing would train"),
                ({"train": {"strategy": "linear_probe"}}, "begins with the head alone"),
                ({"train": {"strategy": {"name": "gradual"}}}, "begins with the head alone"),
            )
        ),
        (
            "text_classification",
            {"backbone": {"name": "xlnet", "weights": None}},
            "xlnet has no preset; give the folder of its weights",
        ),
    ],
)
def test_what_would_have_no_effect_is_refused(name, changes, message):
    with pytest.raises(RecipeError, match=message):
        asked(name, **changes)


def test_what_has_an_effect_is_allowed():
    asked("text_classification", backbone={"name": "xlnet"})
    asked("text_to_text", train={"strategy": "discriminative"})
    asked("text_generation", train={"strategy": None, "stages": STAGES[:1]})
    asked("token_classification", task={"hidden": [8]}, backbone={"reinitialize_blocks": 1})
    asked("text_generation", data={"text_column": None, "label_column": "text"})


def test_folders_of_pictures_have_no_column_of_groups():
    mapping = {
        "backbone": {"name": "mobilenet_v2"},
        "data": {"source": "image_folder", "path": "x", "group_column": "patient"},
    }
    with pytest.raises(RecipeError, match=r"data\.group_column: class folders have no columns"):
        recipe.from_mapping(mapping)
