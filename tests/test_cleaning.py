"""Rules of `data.cleaning`: what they leave out, what they mend, and that it adds up."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image
from test_dividing import load, noise, section, table

from kerastune_ft import cli_data, data, recipe
from kerastune_ft.checks import suspects
from kerastune_ft.data import cleaning
from kerastune_ft.data.labels import LABELS
from kerastune_ft.data.texts import Texts
from kerastune_ft.errors import DataError, RecipeError

ALL = {"split": {"validation": 0.0, "test": 0.0}}


def kept(path, source="csv", **rules):
    splits = load(path, source, **ALL, cleaning=rules)
    record = splits.record()["examples"]
    assert record["found"] == record["kept"] + record["left_out"] + record["removed"]
    assert record["removed"] == len(splits.record()["removed"]) == len(splits.removed)
    return splits


def rows_of(splits):
    return [name.split("#")[0].split(":")[1] for name in splits.train.names]


COPIES = [
    ("one good film", "a"),
    ("One  good FILM ", "a"),
    ("another film", "b"),
    ("a third", "a"),
    ("another film", "a"),
    ("a third", "a"),
    ("alone", "b"),
    ("by itself", "b"),
]


@pytest.mark.parametrize(
    ("rules", "left"),
    [
        ({}, "12345678"),
        ({"duplicates": "first"}, "134578"),  # a label of its own is no copy
        ({"duplicates": "drop"}, "3578"),
        ({"conflicting_labels": "drop"}, "124678"),
        ({"conflicting_labels": "drop", "duplicates": "first"}, "1478"),
    ],
)
def test_copies_are_left_out_as_the_rule_says(tmp_path, rules, left):
    splits = kept(table(tmp_path, COPIES), **rules)
    assert "".join(rows_of(splits)) == left
    for row in splits.removed:
        assert row.reason in rules
        assert row.detail


def test_of_copies_in_official_splits_the_one_held_out_is_kept(tmp_path):
    rows = [(f"text {i}", "ab"[i % 2], "train") for i in range(8)]
    rows += [("text 3", "b", "test"), ("text 4", "a", "val"), ("other", "a", "test")]
    path = table(tmp_path, rows, ("text", "label", "split"))
    splits = kept(path, duplicates="first")
    assert sorted(row.name.split("#")[0] for row in splits.removed) == ["a.csv:4", "a.csv:5"]
    assert [len(part) for part in splits.all] == [6, 1, 2]


def test_near_copies_and_pictures_of_one_colour_are_left_out(tmp_path):
    for number in range(12):
        noise(tmp_path / "ab"[number % 2] / f"{number}.png", number)
    with Image.open(tmp_path / "a" / "4.png") as image:
        image.resize((60, 60)).save(tmp_path / "a" / "4b.jpg", quality=90)
    Image.new("RGB", (30, 30), (90, 90, 90)).save(tmp_path / "b" / "blank.png")
    splits = kept(tmp_path, "image_folder", near_duplicates="first", blank="drop")
    assert {row.name: row.reason for row in splits.removed} == {
        "a/4b.jpg": "near_duplicates",
        "b/blank.png": "blank",
    }


def test_spellings_are_merged_and_labels_renamed(tmp_path):
    labels = (
        ["cat"] * 4 + ["Cat", "CAT"] + ["dog"] * 3 + ["pine tree", "pine_tree", "Pine-Tree"] * 2
    )
    path = table(tmp_path, [(f"text {i}", label) for i, label in enumerate(labels)])
    assert len(kept(path).class_names) == 7
    splits = kept(path, label_spelling="merge", rename_labels={"dog": "hound"})
    assert splits.class_names == ("cat", "hound", "pine tree")
    counts = Counter(splits.train.labels.tolist())
    assert counts == {0: 6, 1: 3, 2: 6}
    (found,) = [f for f in splits.findings if f.kind == "renamed_label"]
    assert found.count == 2 + 3 + 4
    assert "Cat -> cat" in found.details
    with pytest.raises(DataError, match="rename_labels: no class 'dgo'; did you mean 'dog'"):
        kept(path, rename_labels={"dgo": "x"})


def test_signs_and_dashes_at_the_ends_of_names_stay(tmp_path):
    labels = ["-1", "0", "1", "B", "B-", "_x", "x", "a b", "A_b"] * 2
    path = table(tmp_path, [(f"text {i}", label) for i, label in enumerate(labels)])
    merged = kept(path, label_spelling="merge").class_names
    assert set(merged) == set(labels) - {"A_b"}


def test_what_was_renamed_and_merged_is_scored_as_it_was_learned(tmp_path):
    rows = [
        (f"text {i}", label) for i, label in enumerate(["Cat"] * 5 + ["Catt"] * 2 + ["dog"] * 3)
    ]
    path = table(tmp_path, rows)
    rules = {"rename_labels": {"Catt": "cat"}, "label_spelling": "merge"}
    splits = kept(path, **rules)
    assert splits.class_names == ("Cat", "dog")
    split = data.load_all(section(path, cleaning=rules), splits.class_names, "class", "text")
    assert split.labels.tolist() == splits.train.labels.tolist()


def test_listed_texts_are_found_where_rows_have_moved(tmp_path):
    rows = [(f"text {i % 6}", "ab"[i % 2]) for i in range(12)]
    path = table(tmp_path, rows)
    names = data.survey(section(path), "class", "text").table.names
    listed = tmp_path / "q.csv"
    listed.write_text("name\n" + "".join(f"{name}\n" for name in (names[7], names[4])))
    path = table(tmp_path, [("first of all", "a"), *rows])
    splits = kept(path, exclude=str(listed))
    assert sorted(splits.train.content.first) == sorted(
        ["first of all", *(f"text {i}" for i in range(6)), *(f"text {i}" for i in (0, 2, 3, 5))]
    )


def test_a_guessed_label_is_learned_from_and_never_scored(tmp_path):
    rows = [(f"text {i}", "" if i % 4 == 0 else "ab"[i % 3 > 0]) for i in range(60)]
    path = table(tmp_path, rows)
    choice = section(path, cleaning={"missing_label": "most_frequent"})
    splits = data.load(choice, "class", "text")
    blank = {f"text {i}" for i in range(0, 60, 4)}
    assert blank & set(splits.train.content.first)
    assert not blank & set(splits.validation.content.first + splits.test.content.first)
    gone = [row for row in splits.removed if row.reason == "missing_label"]
    assert len(gone) + len(blank & set(splits.train.content.first)) == 15
    assert splits.found == sum(map(len, splits.all)) + len(splits.removed)
    scored = data.load_all(choice, splits.class_names, "class", "text")
    assert len(scored) == 45


def test_no_class_is_not_a_missing_label(tmp_path):
    rows = [
        (noise(tmp_path / f"{i}.png", i).name, ("dog", "", "cat;dog")[i % 3]) for i in range(12)
    ]
    path = table(tmp_path, rows, ("path", "label"))
    choice = recipe.from_mapping(
        {
            "task": {"name": "image_multilabel"},
            "backbone": {"name": "mobilenet_v2"},
            "data": {
                "source": "image_csv",
                "path": str(path),
                "cleaning": {"missing_label": "most_frequent"},
            },
        }
    ).data
    plain = choice.model_copy(update={"cleaning": recipe.Cleaning()})
    assert data.load(choice, "classes").fingerprint == data.load(plain, "classes").fingerprint


def test_the_word_nan_is_a_text(tmp_path):
    path = table(tmp_path, [("Nan", "a"), ("two", "b"), ("three", "a"), ("", "b")])
    splits = kept(path, missing_text="constant")
    assert list(splits.train.content.first) == ["Nan", "two", "three", "(empty)"]


def test_rare_classes_and_listed_examples_are_left_out(tmp_path):
    rows = [(f"text {i}", "a" if i < 6 else "b" if i < 12 else "c") for i in range(14)]
    path = table(tmp_path, rows)
    splits = kept(path, fewest_per_class=3)
    assert splits.class_names == ("a", "b")
    assert {row.reason for row in splits.removed} == {"fewest_per_class"}
    names = [row.name for row in splits.removed]
    listed = tmp_path / "q.csv"
    listed.write_text("name,why\n" + "".join(f"{name},bad\n" for name in names))
    assert rows_of(kept(path, exclude=str(listed))) == rows_of(splits)
    with pytest.raises(DataError, match=r"exclude: .*no column 'name'; the columns are 'text'"):
        kept(path, exclude=str(path))
    with pytest.raises(DataError, match="cleaning leaves out all 14 examples"):
        kept(path, fewest_per_class=50)


MISSING = [("one", "a"), ("", "a"), ("two", ""), ("three", "b"), ("four", "a"), ("one", "nan")]


@pytest.mark.parametrize(
    ("rules", "texts", "labels"),
    [
        ({}, ["one", "three", "four"], "aba"),
        ({"missing_label": "most_frequent"}, ["one", "two", "three", "four", "one"], "aabaa"),
        ({"missing_label": "constant"}, ["one", "two", "three", "four", "one"], "aMbaM"),
        ({"missing_text": "most_frequent"}, ["one", "one", "three", "four"], "aaba"),
        (
            {"missing_text": "constant", "missing_text_value": "none"},
            ["one", "none", "three", "four"],
            "aaba",
        ),
    ],
)
def test_missing_cells_are_dropped_or_filled_in(tmp_path, rules, texts, labels):
    splits = kept(table(tmp_path, MISSING), **rules)
    assert list(splits.train.content.first) == texts
    said = [splits.class_names[number] for number in splits.train.labels]
    assert [name if name != "missing" else "M" for name in said] == list(labels)
    filled = sum(f.count for f in splits.findings if f.kind == "filled_in")
    assert filled == len(texts) - 3


NUMBERS = ("1", "2", "3", "4", "50")


def test_a_missing_number_becomes_the_median(tmp_path):
    path = table(tmp_path, [(f"text {i}", value) for i, value in enumerate(NUMBERS)])
    with path.open("a") as file:
        file.write("unknown,\n")
    choice = recipe.from_mapping(
        {
            "task": {"name": "text_regression"},
            "backbone": {"name": "bert", "weights": "none"},
            "data": {
                "source": "csv",
                "path": str(path),
                "cleaning": {"missing_label": "most_frequent"},
                **ALL,
            },
            "train": {"early_stopping": None},
        }
    ).data
    splits = data.load(choice, "numbers", "text")
    assert splits.train.labels[:, 0].tolist() == [1, 2, 3, 4, 50, 3]


def test_pictures_without_a_label_can_have_a_class_of_their_own(tmp_path):
    rows = [(noise(tmp_path / f"{i}.png", i).name, "ab"[i % 2] if i else "") for i in range(9)]
    path = table(tmp_path, rows, ("path", "label"))
    assert len(kept(path, "image_csv").train) == 8
    splits = kept(path, "image_csv", missing_label="constant", missing_label_value="other")
    assert splits.class_names == ("a", "b", "other")


@pytest.mark.parametrize(
    ("rules", "text", "wanted"),
    [
        ({"whitespace": True}, "  a \t b\u00a0\n c ", "a b c"),
        (
            {"html": True},
            "a <bb and c> d <ada@x.org> <B class='x'>e</B>",
            "a <bb and c> d <ada@x.org> e",
        ),
        ({"html": True}, "<!-- <!-- open", "<!-- <!-- open"),
        (
            {"control": True},
            "one\x0ctwo\x85three \U0001f3f4\U000e0067",
            "one two three \U0001f3f4\U000e0067",
        ),
        ({"html": True}, "<p>a&amp;b<br/>c <b>d</b> 1 < 2 <!-- x --></p>", " a&b c d 1 < 2 "),
        ({"control": True}, "\ufeffa\x07\u200bb\u200d\tc\n", "ab\u200d\tc\n"),
        ({"unicode": "nfc"}, "cafe\u0301 \ufb01", "café \ufb01"),
        ({"unicode": "nfkc"}, "cafe\u0301 \ufb01", "café fi"),
        ({"mojibake": True}, "cafÃ© and café", "café and café"),
        ({}, " <b>\x07 ", " <b>\x07 "),
    ],
)
def test_texts_are_mended_as_the_rules_say_and_once_is_enough(rules, text, wanted):
    choice = recipe.TextCleaning(**rules)
    made = cleaning.mended(text, choice)
    assert made == wanted
    if "html" not in rules:  # what was an entity may be a tag now: it is text
        assert cleaning.mended(made, choice) == made
    assert cleaning.mends(choice) == bool(rules)


def test_mended_texts_are_what_training_and_predictions_see(tmp_path):
    rows = [(f"<b>text</b>  {i}", "ab"[i % 2]) for i in range(12)] + [("<br>", "a")]
    splits = kept(table(tmp_path, rows), text={"html": True, "whitespace": True})
    assert set(splits.train.content.first) == {f"text {i}" for i in range(12)}
    assert {f.kind: f.count for f in splits.findings} == {"mended_text": 13, "removed": 1}
    with pytest.raises(DataError, match=r"cleaning\.text leaves nothing of 'a\.csv:13#"):
        load(tmp_path / "a.csv", **ALL, on_error="stop", cleaning={"text": {"html": True}})
    words = Texts(("a <b>",), None, (("a", "<b>"),))
    rules = recipe.TextCleaning(html=True)
    assert cleaning.mended_texts(words, rules).words == (("a", "<b>"),)  # a tag for every word


def test_data_scored_later_is_mended_alike_and_kept_whole(tmp_path):
    rows = [("<b>x</b>", "Cat"), ("<b>x</b>", "pup"), ("y", "cat")]
    rules = {
        "label_spelling": "merge",
        "rename_labels": {"pup": "dog"},
        "duplicates": "first",
        "text": {"html": True},
    }
    choice = section(table(tmp_path, rows), cleaning=rules)
    split = data.load_all(choice, ("cat", "dog"), "class", "text")
    assert split.content.first == ("x", "x", "y")
    assert split.labels.tolist() == [0, 1, 0]


def test_rules_for_one_class_are_refused_elsewhere():
    mapping = {
        "task": {"name": "image_regression"},
        "backbone": {"name": "mobilenet_v2"},
        "data": {
            "source": "image_csv",
            "path": "x.csv",
            "cleaning": {"suspected_labels": "drop"},
        },
    }
    with pytest.raises(RecipeError, match=r"cleaning\.suspected_labels: is for one class per"):
        recipe.from_mapping(mapping)


# Manifests


def run(*words):
    return CliRunner().invoke(cli_data.data, [str(word) for word in words], catch_exceptions=False)


def test_a_clean_manifest_of_pictures_holds_what_is_kept_and_adds_up(tmp_path):
    root = tmp_path / "photos"
    for number in range(20):
        noise(root / "ab"[number % 2] / f"{number}.png", number)
    shutil.copy(root / "a" / "2.png", root / "a" / "z.png")
    (root / "b" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    before = {path: path.read_bytes() for path in root.rglob("*.*")}
    done = run("clean", root, "data.cleaning.duplicates=first", "--output", tmp_path / "clean.csv")
    assert done.exit_code == 0, done.output
    assert "22 found = 20 kept + 2 left out" in done.output
    assert {path: path.read_bytes() for path in root.rglob("*.*")} == before
    gone = list(csv.DictReader((tmp_path / "clean-quarantine.csv").open()))
    assert {row["name"]: row["reason"] for row in gone} == {
        "a/z.png": "duplicates",
        "b/broken.jpg": "unreadable",
    }
    splits = load(tmp_path / "clean.csv", "image_csv", root=str(root))
    assert sum(map(len, splits.all)) == 20
    assert f"data.root={root}" in done.output
    with pytest.raises(DataError, match="exists already"):
        run("clean", root, "--output", tmp_path / "clean.csv")


def test_reencoded_pictures_are_upright_rgb_in_a_new_folder(tmp_path):
    root = tmp_path / "photos"
    for number in range(8):
        noise(root / "ab"[number % 2] / f"{number}.png", number)
    with Image.open(root / "a" / "0.png") as image:
        tall = image.resize((40, 20))
        exif = Image.Exif()
        exif[0x0112] = 6
        tall.save(root / "a" / "turned.jpg", exif=exif, quality=95)
        image.convert("CMYK").save(root / "a" / "print.jpg")
        image.convert("P").save(root / "a" / "palette.gif")
    copies_ = tmp_path / "copies"
    done = run("clean", root, "--output", tmp_path / "c.csv", "--reencode", copies_)
    assert done.exit_code == 0, done.output
    found = sorted(path.relative_to(copies_).as_posix() for path in copies_.rglob("*.*"))
    assert len(found) == 11
    assert "a/palette.png" in found
    for path in copies_.rglob("*.*"):
        with Image.open(path) as image:
            assert image.mode == "RGB"
            assert image.getexif().get(0x0112, 1) == 1
    with Image.open(copies_ / "a" / "turned.jpg") as image:
        assert image.size == (20, 40)
    splits = load(tmp_path / "c.csv", "image_csv", root=str(copies_))
    assert not any(f.kind == "extension_mismatch" for f in splits.findings)
    with pytest.raises(DataError, match="is not empty; nothing is overwritten"):
        run("clean", root, "--output", tmp_path / "d.csv", "--reencode", copies_)


def test_a_manifest_is_read_again_by_the_recipe_it_was_made_with(tmp_path):
    rows = [
        (noise(tmp_path / f"site{i // 6}-{i}.png", i).name, ("cat", "Catt")[i % 2 and i % 3 == 0])
        if i % 2
        else (noise(tmp_path / f"site{i // 6}-{i}.png", i).name, "dog")
        for i in range(48)
    ]
    path = table(tmp_path, rows, ("path", "label"))
    settings = {"group_pattern": "site[0-9]+", "cleaning": {"rename_labels": {"Catt": "cat"}}}
    done = run(
        "clean", path, "data.group_pattern=site[0-9]+", "data.cleaning.rename_labels={Catt: cat}",
        "--output", tmp_path / "c.csv",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    printed = done.output.split("kft fit RECIPE ")[1].split()
    (tmp_path / "r.yaml").write_text(
        "backbone: {name: mobilenet_v2}\n"
        f"data: {{source: image_csv, path: {path}, group_pattern: 'site[0-9]+',\n"
        "  cleaning: {rename_labels: {Catt: cat}}}\n"
    )
    again = data.load(recipe.load(tmp_path / "r.yaml", printed).data)
    assert again.fingerprint == load(path, "image_csv", **settings).fingerprint


def test_times_and_carriage_returns_survive_a_manifest(tmp_path):
    rows = [(f"text {i}\rmore", "ab"[i % 2], f"2026-01-{i + 1:02d}") for i in range(20)]
    path = tmp_path / "a.jsonl"
    lines = (json.dumps(dict(zip(("text", "label", "day"), row, strict=True))) for row in rows)
    path.write_text("\n".join(lines))
    (tmp_path / "r.yaml").write_text(
        "task: {name: text_classification}\nbackbone: {name: bert, weights: none}\n"
        f"data: {{source: jsonl, path: {path}, time_column: day}}\n"
    )
    done = run("clean", tmp_path / "r.yaml", "--output", tmp_path / "c.csv")
    assert done.exit_code == 0, done.output
    one = load(path, "jsonl", time_column="day")
    other = load(tmp_path / "c.csv", time_column="day")
    for part in ("train", "validation", "test"):
        assert getattr(one, part).content.first == getattr(other, part).content.first


def test_texts_emptied_by_mending_are_in_the_quarantine(tmp_path):
    rows = [(f"text {i}", "ab"[i % 2]) for i in range(8)] + [("<br>", "a"), ("<p></p>", "b")]
    path = table(tmp_path, rows)
    done = run("clean", path, "data.cleaning.text.html=true", "--output", tmp_path / "c.csv")
    assert "10 found = 8 kept + 2 left out" in done.output
    gone = list(csv.DictReader((tmp_path / "c-quarantine.csv").open()))
    assert [row["reason"] for row in gone] == ["empty_text", "empty_text"]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_clean_manifest_of_texts_is_read_as_the_same_texts(tmp_path, ending):
    rows = [
        (f'<i>text</i>, "{i}"\nmore', "ab"[i % 2], "test" if i < 4 else "train") for i in range(16)
    ]
    path = table(tmp_path, rows, ("text", "label", "split"))
    output = tmp_path / f"clean.{ending}"
    done = run("clean", path, "data.cleaning.text.html=true", "--output", output)
    assert done.exit_code == 0, done.output
    splits = load(output, "jsonl" if ending == "jsonl" else "csv", split={"validation": 0.0})
    assert [len(part) for part in splits.all] == [12, 0, 4]
    assert splits.train.content.first[0] == 'text, "4"\nmore'


def test_a_division_is_written_with_its_fingerprint_and_followed(tmp_path):
    path = table(tmp_path, [(f"text {i}", "ab"[i % 2]) for i in range(40)])
    done = run("split", path, "data.split.test=0.3", "--output", tmp_path / "s.csv")
    assert done.exit_code == 0, done.output
    facts = json.loads((tmp_path / "s.json").read_text())
    splits = load(path, split={"file": str(tmp_path / "s.csv")})
    assert splits.fingerprint == facts["split_fingerprint"]
    assert facts["splits"]["test"]["examples"] == 12 == len(splits.test)
    rows = pd.read_csv(tmp_path / "s.csv")
    assert list(rows) == ["name", "label", "split"]
    assert len(rows) == 40


def test_kinds_of_labels_keep_their_columns_in_a_manifest(tmp_path):
    rows = [(noise(tmp_path / f"{i}.png", i).name, i % 2, i % 3 == 0) for i in range(12)]
    path = table(tmp_path, [(n, a, int(b)) for n, a, b in rows], ("path", "cat", "dog"))
    text = (
        "task: {name: image_multilabel}\nbackbone: {name: mobilenet_v2}\n"
        f"data: {{source: image_csv, path: {path}, label_column: [cat, dog]}}\n"
    )
    (tmp_path / "r.yaml").write_text(text)
    done = run("clean", tmp_path / "r.yaml", "--output", tmp_path / "c.csv")
    assert done.exit_code == 0, done.output
    chosen = recipe.load(tmp_path / "r.yaml", [f"data.path={tmp_path / 'c.csv'}"]).data
    one = data.load(recipe.load(tmp_path / "r.yaml").data, "classes")
    other = data.load(chosen, "classes")
    assert one.fingerprint == other.fingerprint
    assert np.array_equal(one.train.labels, other.train.labels)
    assert LABELS["classes"].name == one.kind


def test_a_manifest_made_with_judged_labels_keeps_who_was_training(tmp_path, monkeypatch):
    path = table(tmp_path, [(f"text {i}", "ab"[i % 2]) for i in range(40)])

    def judge(recipe_, survey, progress, rows):
        few = rows[:3]
        given = np.asarray(survey.labels)[few]
        return suspects.Suspects(few, given, 1 - given, np.zeros(3), np.ones(3), len(rows), 0.9)

    monkeypatch.setattr(suspects, "of_survey", judge)
    before = load(path)
    done = run(
        "clean", path, "data.cleaning.suspected_labels=drop", "--output", tmp_path / "new/c.csv"
    )
    assert done.exit_code == 0, done.output
    after = load(tmp_path / "new/c.csv")
    assert after.test.content.first == before.test.content.first
    assert after.validation.content.first == before.validation.content.first
    assert len(after.train) == len(before.train) - 3


def test_a_manifest_without_a_rule_says_that_it_is_one(tmp_path):
    path = table(tmp_path, [(f"text {i}", "ab"[i % 2]) for i in range(10)])
    done = run("clean", path, "--output", tmp_path / "c.csv")
    assert "nothing was left out or mended" in done.output


def test_a_division_says_what_leaks(tmp_path):
    rows = [(f"text {i}", "ab"[i % 2], "test" if i % 4 == 0 else "train") for i in range(40)]
    path = table(tmp_path, [*rows, ("text 4", "a", "train")], ("text", "label", "split"))
    done = run("split", path, "--output", tmp_path / "s.csv")
    assert done.exit_code == 0, done.output
    assert "training texts with a copy in validation or test: 1" in done.output


def test_fit_says_that_class_names_differ_in_spelling_alone(tmp_path):
    path = table(tmp_path, [(f"text {i}", ("Cat", "cat", "dog")[i % 3]) for i in range(60)])
    (found,) = load(path).findings
    assert (found.kind, found.severity) == ("label_spelling", "warn")
    assert found.details == ("'cat' and 'Cat'",)


def test_a_division_of_data_with_guessed_labels_is_followed(tmp_path):
    rows = [(f"text {i}", "" if i % 4 == 0 else "ab"[i % 3 > 0]) for i in range(60)]
    path = table(tmp_path, rows)
    rule = "data.cleaning.missing_label=most_frequent"
    assert run("split", path, rule, "--output", tmp_path / "s.csv").exit_code == 0
    settings = {"cleaning": {"missing_label": "most_frequent"}}
    splits = load(path, split={"file": str(tmp_path / "s.csv")}, **settings)
    assert splits.fingerprint == load(path, **settings).fingerprint
    assert run("clean", path, rule, "--output", tmp_path / "c.csv").exit_code == 0
    after = load(tmp_path / "c.csv")
    assert after.test.content.first == splits.test.content.first
