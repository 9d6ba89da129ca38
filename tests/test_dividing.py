"""Who goes where: copies together, groups, time, files, and a minimum per class."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kerastune_ft import data, recipe
from kerastune_ft.data import copies, dividing
from kerastune_ft.errors import DataError, RecipeError


def section(path, source="csv", **settings):
    pictures = source.startswith("image")
    return recipe.from_mapping(
        {
            "task": {"name": "image_classification" if pictures else "text_classification"},
            "backbone": {"name": "mobilenet_v2" if pictures else "bert", "weights": "none"},
            "data": {"source": source, "path": str(path), **settings},
            "train": {"early_stopping": None},
        }
    ).data


def load(path, source="csv", **settings):
    modality = "image" if source.startswith("image") else "text"
    return data.load(section(path, source, **settings), "class", modality)


def where(splits):
    return {name.split("#")[0]: part.name for part in splits.all for name in part.names}


def table(tmp_path, rows, columns=("text", "label")):
    pd.DataFrame(rows, columns=list(columns)).to_csv(tmp_path / "a.csv", index=False)
    return tmp_path / "a.csv"


def noise(path, seed, side=40):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (5, 5, 3), np.uint8)
    Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.mark.parametrize("seed", range(5))
def test_copies_are_never_divided_and_every_example_is_kept(tmp_path, seed):
    rng = np.random.default_rng(seed)
    texts = [f"question {n} about thing {n * 7}" for n in rng.integers(0, 120, 300)]
    rows = [(text, "ab"[sum(map(ord, text)) % 2]) for text in texts]
    path = table(tmp_path, rows)
    splits = load(path, split={"seed": seed})
    sides = {}
    for part in splits.all:
        for text in part.content.first:
            sides.setdefault(text, set()).add(part.name)
    assert all(len(found) == 1 for found in sides.values())
    assert sum(map(len, splits.all)) == 300
    assert [len(part) for part in splits.all] == pytest.approx([210, 45, 45], abs=25)
    apart = data.survey(
        section(path, split={"seed": seed, "keep_together": "none"}), "class", "text"
    )
    assert any(found.kind == "leaked_copies" for found in apart.findings)


def test_without_copies_nothing_is_divided_otherwise(tmp_path):
    path = table(tmp_path, [(f"text {i}", "abc"[i % 3]) for i in range(90)])
    apart = load(path, split={"keep_together": "none"})
    assert where(load(path)) == where(apart)


def test_near_copies_stay_together_if_asked(tmp_path):
    for number in range(30):
        first = noise(tmp_path / "ab"[number % 2] / f"{number:02d}.png", number)
        with Image.open(first) as image:  # saved anew: another size, another quality
            image.resize((64, 64)).save(first.with_name(f"{number:02d}-again.jpg"), quality=60)
    survey = data.survey(section(tmp_path, "image_folder"), "class", "image")
    names = survey.table.names
    pairs = {(names[a], names[b]) for a, b in survey.near}
    saved = {(f"{n[:-4]}-again.jpg", n) for n in names if n.endswith(".png")}
    assert pairs <= saved and len(pairs) >= 0.9 * len(saved)
    assert any(found.kind == "leaked_near_copies" for found in survey.findings)
    splits = load(tmp_path, "image_folder", split={"keep_together": "near"})
    place = where(splits)
    assert all(place[one] == place[other] for one, other in pairs)
    assert not any("leaked" in found.kind for found in splits.findings)


def test_a_copy_in_official_splits_is_refused_with_its_names_unless_told_otherwise(tmp_path):
    for part, count in (("train", 12), ("test", 4)):
        for number in range(count):
            noise(
                tmp_path / part / "ab"[number % 2] / f"{number}.png",
                number + 100 * (part == "test"),
            )
    shutil.copy(tmp_path / "test/a/2.png", tmp_path / "train/a/copied.png")
    with pytest.raises(DataError) as caught:
        load(tmp_path, "image_folder", split={"validation": 0.0})
    for word in ("'train/a/copied.png' = 'test/a/2.png'", "data.leakage=drop", "kft data check"):
        assert word in str(caught.value)
    kept = load(tmp_path, "image_folder", split={"validation": 0.0}, leakage="warn")
    assert [(f.kind, f.severity) for f in kept.findings] == [("leaked_copies", "warn")]
    dropped = load(tmp_path, "image_folder", split={"validation": 0.0}, leakage="drop")
    assert [tuple(row) for row in dropped.removed] == [
        ("train/a/copied.png", "leakage", "'test/a/2.png' in test is the same")
    ]
    record = dropped.record()
    assert record["examples"] == {"found": 17, "kept": 16, "left_out": 0, "removed": 1}
    assert record["removed"][0]["name"] == "train/a/copied.png"


def test_a_pattern_finds_groups_in_names(tmp_path):
    for number in range(60):
        noise(tmp_path / "ab"[number % 2] / f"patient{number // 5}-{number}.png", number)
    splits = load(tmp_path, "image_folder", group_pattern=r"patient(\d+)")
    sides = {}
    for name, part in where(splits).items():
        sides.setdefault(name.split("-")[0][2:], set()).add(part)
    assert len(sides) == 12
    assert all(len(found) == 1 for found in sides.values())
    with pytest.raises(
        DataError, match=r"group_pattern: 'site\(\.\)' is found in no name, such as"
    ):
        load(tmp_path, "image_folder", group_pattern="site(.)")
    with pytest.raises(RecipeError, match="group_pattern: is no regular expression"):
        section(tmp_path, "image_folder", group_pattern="(")


def test_pictures_have_groups_by_column(tmp_path):
    rows = []
    for number in range(60):
        noise(tmp_path / f"{number}.png", number)
        rows.append((f"{number}.png", "ab"[number % 2], f"site {number // 6}" if number else ""))
    path = table(tmp_path, rows, ("path", "label", "site"))
    splits = load(path, "image_csv", group_column="site")
    assert [(f.kind, f.count) for f in splits.findings] == [("no_group", 1)]
    groups = {name: group for name, _, group in rows}
    sides = {}
    for name, part in where(splits).items():
        sides.setdefault(groups[name] or name, set()).add(part)
    assert all(len(found) == 1 for found in sides.values())
    with pytest.raises(
        DataError, match=r"data\.group_column: no column 'sight'; did you mean 'site'"
    ):
        load(path, "image_csv", group_column="sight")


@pytest.mark.parametrize("form", ["dates", "numbers"])
def test_by_time_the_newest_are_held_out_and_one_time_is_never_divided(tmp_path, form):
    days = np.random.default_rng(0).integers(0, 20, 200)
    cells = [f"2026-01-{day + 1:02d}" if form == "dates" else f"{day}" for day in days]
    rows = [(f"text {i}", "ab"[i % 2], cell) for i, cell in enumerate(cells)]
    rows.append(("undated", "a", ""))
    splits = load(table(tmp_path, rows, ("text", "label", "day")), time_column="day")
    place = where(splits)
    held = [place[f"a.csv:{i + 1}"] for i in range(200)]
    spans = {
        part: [day for day, side in zip(days, held, strict=True) if side == part]
        for part in ("train", "validation", "test")
    }
    assert max(spans["train"]) < min(spans["validation"]) <= max(spans["validation"])
    assert max(spans["validation"]) < min(spans["test"])
    assert len(spans["test"]) >= 30 <= len(spans["validation"])
    assert place["a.csv:201"] == "train"
    assert [(f.kind, f.names) for f in splits.findings] == [("no_time", (splits.train.names[-1],))]


def test_times_that_nobody_can_order_are_refused(tmp_path):
    rows = [(f"text {i}", "ab"[i % 2], "03/04/2026") for i in range(20)]
    path = table(tmp_path, rows, ("text", "label", "day"))
    with pytest.raises(
        DataError, match=r"time_column 'day': '03/04/2026'.*expected numbers, or dat"
    ):
        load(path, time_column="day")
    same = [(text, label, "7") for text, label, _ in rows]
    path = table(tmp_path, same, ("text", "label", "day"))
    with pytest.raises(DataError, match="nothing is left to train on: 1 different times"):
        load(path, time_column="day")
    with pytest.raises(RecipeError, match="a group may have to be divided"):
        section(path, time_column="day", group_column="label")


@pytest.mark.parametrize("seed", range(4))
def test_every_part_has_its_fewest_of_each_class_or_it_is_refused(tmp_path, seed):
    labels = ["common"] * 150 + ["rare"] * 9
    path = table(tmp_path, [(f"text {i}", label) for i, label in enumerate(labels)])
    splits = load(path, split={"fewest_per_class": 3, "seed": seed})
    for part in splits.record()["splits"].values():
        assert min(part["per_class"].values()) >= 3
    with pytest.raises(DataError, match=r"fewest_per_class is 4, but 'rare' has \d in "):
        load(path, split={"fewest_per_class": 4, "seed": seed})


@pytest.mark.parametrize("kind", ["time", "official", "near", "file"])
def test_the_fewest_never_undo_the_division(tmp_path, kind):
    rows = [(f"text {i}", "rare" if i >= 92 else "common", f"{i}") for i in range(100)]
    columns, settings = ("text", "label", "day"), {}
    if kind == "time":
        settings = {"time_column": "day"}
        rows = [(text, "rare" if i % 12 == 0 else "common", day)
                for i, (text, _, day) in enumerate(rows)]  # fmt: skip
    elif kind == "official":
        rows = [(text, label, "test" if 70 <= i < 92 else "train") for i, (text, label, _) in
                enumerate(rows)]  # fmt: skip
        columns = ("text", "label", "split")
    elif kind == "near":  # every rare text has a near copy: none of them can be moved alone
        rows = [(f"the {i} long sentence about number {i // 2}", label, "") if label == "rare"
                else (text, label, "") for i, (text, label, _) in enumerate(rows)]  # fmt: skip
        settings = {"split": {"keep_together": "near"}}
    path = table(tmp_path, rows, columns)
    if kind == "file":
        load(path, split={"stratify": False, "seed": 3}).write(tmp_path / "s.csv")
        settings = {"split": {"file": str(tmp_path / "s.csv")}}
    before = where(load(path, **settings))
    settings["split"] = {**settings.get("split", {}), "fewest_per_class": 4}
    with pytest.raises(DataError, match=r"fewest_per_class is 4, but 'rare' has \d in"):
        load(path, **settings)
    settings["split"]["fewest_per_class"] = 0
    assert where(load(path, **settings)) == before


def test_the_fewest_are_of_one_class_per_example():
    mapping = {
        "task": {"name": "image_regression"},
        "backbone": {"name": "mobilenet_v2"},
        "data": {"source": "image_csv", "path": "x", "split": {"fewest_per_class": 2}},
    }
    with pytest.raises(RecipeError, match="fewest_per_class: is for one class per example"):
        recipe.from_mapping(mapping)


def test_frames_of_one_camera_take_no_square_of_their_number():
    from kerastune_ft.data.looks import Look, Looks
    from kerastune_ft.data.tables import Files, Table

    n, rng = 6000, np.random.default_rng(0)
    scene = rng.integers(60, 190, 256).astype(np.uint8)
    looks = [
        Look(i.to_bytes(16, "little"), 1, 64, 64, "RGB", 100.0, 30.0, 90.0, 9.0,
             0b1010 if i % 3 else 0b1011, (scene + i % 2).tobytes())
        for i in range(n)
    ]  # fmt: skip
    names = tuple(f"{i:05d}.jpg" for i in range(n))
    flags = np.zeros(n, bool)
    frames = Table(names, ("a",) * n, None, ("a",), Files(names, flags.astype(np.uint8), flags),
                   (), n, looks=Looks.joined(looks))  # fmt: skip
    pairs = copies.near_pairs(frames)
    assert len(pairs) < 1.1 * n
    assert len(np.unique(copies.families(n, np.arange(n), pairs))) == 1


def test_texts_of_one_template_take_no_square_of_their_number(tmp_path):
    rows = [(f"your order number {i:06d} has been shipped to you today, thank you for your order",
             "ab"[i % 2]) for i in range(1500)]  # fmt: skip
    found = data.survey(section(table(tmp_path, rows), split={"keep_together": "near"}), "class",
                        "text")  # fmt: skip
    assert len(found.near) < 1.1 * len(rows)


def test_what_is_dropped_after_dividing_may_be_dropped_again(tmp_path):
    rows = [(f"text {i}", "ab"[i % 2], "train" if i < 30 else "test") for i in range(40)]
    rows.append(("text 35", "b", "train"))
    path = table(tmp_path, rows, ("text", "label", "split"))
    first = load(path, leakage="drop")
    assert len(first.removed) == 1
    run = tmp_path / "run"
    run.mkdir()
    first.write(run / "splits.csv")
    (run / "data.json").write_text(json.dumps(first.record()))
    again = load(path, leakage="drop", split={"file": str(run / "splits.csv")})
    assert again.fingerprint == first.fingerprint
    assert again.contents == first.contents is not None


def test_copies_in_validation_and_test_are_told(tmp_path):
    rows = [(f"text {i}", "ab"[i % 2], ("train", "val", "test")[i % 3]) for i in range(60)]
    rows.append(("text 1", "b", "test"))
    splits = load(table(tmp_path, rows, ("text", "label", "split")))
    assert [(f.kind, f.severity, f.count) for f in splits.findings] == [
        ("held_out_twice", "warn", 1)
    ]


def test_times_may_be_missing_in_parquet(tmp_path):
    days = [float(i) if i % 5 else None for i in range(50)]
    frame = pd.DataFrame({"text": [f"t {i}" for i in range(50)], "label": ["a", "b"] * 25})
    frame.assign(day=days).to_parquet(tmp_path / "a.parquet")
    splits = load(tmp_path / "a.parquet", "parquet", time_column="day")
    assert [(f.kind, f.count) for f in splits.findings] == [("no_time", 10)]


def test_a_file_of_splits_is_followed_and_held_against_the_data(tmp_path):
    path = table(tmp_path, [(f"text {i}", "ab"[i % 2]) for i in range(40)])
    first = load(path, split={"seed": 3})
    first.write(tmp_path / "s.csv")
    facts = {"split_fingerprint": first.fingerprint}
    survey = data.survey(section(path), "class", "text")
    facts["content_fingerprint"] = dividing.contents(survey.table)
    (tmp_path / "s.json").write_text(json.dumps(facts))
    chosen = {"file": str(tmp_path / "s.csv")}
    assert load(path, split=chosen).fingerprint == first.fingerprint

    text = (tmp_path / "s.csv").read_text()
    (tmp_path / "s.csv").write_text(text.replace(",test\n", ",train\n", 1))
    with pytest.raises(DataError, match=r"was changed after it was written"):
        load(path, split=chosen)
    (tmp_path / "s.csv").write_text(text)
    frame = pd.read_csv(path)
    for change, match in (
        (frame.iloc[:-1], r"has 'a\.csv:40#\w+', which .* lacks"),
        (pd.concat([frame, frame.assign(text="new")[:1]]), r"lacks 'a\.csv:41"),
        (frame.assign(label=["b", *frame.label[1:]]), r"has other labels for 'a\.csv:1#"),
    ):
        change.to_csv(path, index=False)
        with pytest.raises(DataError, match=match):
            load(path, split=chosen)
    with pytest.raises(DataError, match="cannot be read"):
        load(path, split={"file": str(tmp_path / "none.csv")})


def test_pictures_changed_under_their_names_are_noticed(tmp_path):
    root = tmp_path / "photos"
    for number in range(20):
        noise(root / "ab"[number % 2] / f"{number}.png", number)
    first = load(root, "image_folder")
    first.write(tmp_path / "s.csv")
    table_ = data.survey(section(root, "image_folder"), "class", "image").table
    facts = {
        "split_fingerprint": first.fingerprint,
        "content_fingerprint": dividing.contents(table_),
    }
    (tmp_path / "s.json").write_text(json.dumps(facts))
    chosen = {"file": str(tmp_path / "s.csv")}
    assert where(load(root, "image_folder", split=chosen)) == where(first)
    noise(root / "a" / "0.png", 999)
    with pytest.raises(DataError, match="names are the same, but the content of"):
        load(root, "image_folder", split=chosen)


@pytest.mark.parametrize("image", ["../secret.png", "/etc/hostname", "in/../../secret.png"])
def test_a_table_that_points_outside_its_root_is_refused(tmp_path, image):
    root = tmp_path / "photos"
    for number in range(8):
        noise(root / f"{number}.png", number)
    noise(tmp_path / "secret.png", 99)
    rows = [(f"{number}.png", "ab"[number % 2]) for number in range(8)] + [(image, "a")]
    pd.DataFrame(rows, columns=["path", "label"]).to_csv(root / "a.csv", index=False)
    with pytest.raises(DataError, match=r"paths that leave '.*photos': .*; set data\.root"):
        load(root / "a.csv", "image_csv")


def test_a_root_says_what_paths_count_from(tmp_path):
    for number in range(20):
        noise(tmp_path / "photos" / f"{number}.png", number)
    rows = [(f"{number}.png", "ab"[number % 2]) for number in range(19)]
    rows.append((str(tmp_path / "photos" / "19.png"), "b"))  # absolute, and inside
    path = table(tmp_path, rows, ("path", "label"))
    splits = load(path, "image_csv", root=str(tmp_path / "photos"))
    assert sum(map(len, splits.all)) == 20
    with pytest.raises(DataError, match=r"data\.root: no folder"):
        load(path, "image_csv", root=str(tmp_path / "nowhere"))


def test_families_join_whatever_is_tied():
    first = np.asarray([0, 1, 0, 3, 4])
    pairs = np.asarray([[1, 4], [2, 3]])
    assert copies.families(5, first, pairs).tolist() == [0, 1, 0, 0, 1]
