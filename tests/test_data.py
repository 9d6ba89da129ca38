"""Sources, splits and what is said about the data."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_photos
from PIL import Image, PngImagePlugin

from kerastune_ft import data
from kerastune_ft.data import splitting, tensorflow_sets
from kerastune_ft.data.labels import LABELS, natural
from kerastune_ft.data.sources import SOURCES
from kerastune_ft.data.tables import Encoded, Files
from kerastune_ft.errors import DataError
from kerastune_ft.recipe import Data, Split

ASSETS = Path(__file__).parents[2] / "shared" / "assets" / "data"


def section(source: str, path: object, **changes: Any) -> Any:
    """Stands for the recipe's `data` section."""
    split = {
        "validation": 0.2,
        "test": 0.2,
        "stratify": True,
        "seed": 0,
        "folds": None,
        **changes.pop("split", {}),
    }
    return Data(source=source, path=str(path), split=Split(**split), **changes)


def picture(path: Path, shade: int = 100, **options: Any) -> Path:
    """Writes a picture whose bytes are no other's: copies are another matter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_text("name", str(path).encode("utf-8", "replace").decode("latin-1"))
    elif path.suffix == ".jpg":
        options["comment"] = str(path).encode("utf-8", "replace")
    Image.new("RGB", (9, 8), (shade, 50, 50)).save(path, **options)
    return path


def folder(root: Path, per_class: int = 10, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for name in classes:
        for number in range(per_class):
            picture(root / name / f"{number}.png", number)
    return root


def kinds(findings: Any) -> dict[str, int]:
    return {finding.kind: finding.count for finding in findings}


# image_folder


def test_class_folders_are_read_sorted_with_nested_folders(tmp_path: Path) -> None:
    folder(tmp_path, 3, ("class 10", "class 2"))
    picture(tmp_path / "class 2" / "deep" / "er" / "x.jpg")
    table = SOURCES["image_folder"](section("image_folder", tmp_path))
    assert table.class_names == ("class 2", "class 10")
    assert list(table.names) == sorted(table.names)
    assert "class 2/deep/er/x.jpg" in table.names
    assert table.labels.count("class 2") == 4
    assert table.official is None
    assert table.findings == ()


@pytest.mark.parametrize("validation", ["validation", "valid", "val"])
def test_official_split_folders_are_kept(tmp_path: Path, validation: str) -> None:
    for name, count in (("train", 6), (validation, 2), ("test", 3)):
        folder(tmp_path / name, count)
    splits = data.load(section("image_folder", tmp_path))
    assert [len(split) for split in splits.all] == [12, 4, 6]
    assert all(name.startswith("test/") for name in splits.test.names)


def test_a_missing_official_split_is_cut_out_of_train(tmp_path: Path) -> None:
    folder(tmp_path / "train", 10)
    folder(tmp_path / "test", 3)
    splits = data.load(section("image_folder", tmp_path))
    assert [len(split) for split in splits.all] == [16, 4, 6]
    assert all(name.startswith("train/") for name in splits.validation.names)


def test_train_beside_other_vehicles_is_a_class(tmp_path: Path) -> None:
    folder(tmp_path, 5, ("train", "car", "bus"))
    assert data.load(section("image_folder", tmp_path)).class_names == ("bus", "car", "train")


def test_hidden_files_are_ignored_and_strays_noted(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"x")
    (tmp_path / ".git" / "objects").mkdir(parents=True)
    (tmp_path / "cat" / "README").write_text("about cats")
    (tmp_path / "cat" / "empty.txt").touch()
    splits = data.load(section("image_folder", tmp_path, on_error="stop"))
    assert kinds(splits.findings) == {"not_a_picture": 2}
    assert splits.findings[0].severity == "note"
    assert splits.record()["examples"] == {"found": 20, "kept": 20, "left_out": 0, "removed": 0}


def test_pictures_of_any_extension_are_taken(tmp_path: Path) -> None:
    folder(tmp_path)
    picture(tmp_path / "cat" / "no_extension", format="PNG")
    picture(tmp_path / "cat" / "scan.tif")
    picture(tmp_path / "dog" / "really_a_png.jpg", format="PNG")
    splits = data.load(section("image_folder", tmp_path))
    assert splits.found == 23
    assert kinds(splits.findings) == {"extension_mismatch": 1}
    assert splits.findings[0].names == ("dog/really_a_png.jpg",)


def _spoil(root: Path) -> dict[str, str]:
    good = picture(root / "cat" / "whole.jpg").read_bytes()
    (root / "cat" / "whole.jpg").unlink()
    (root / "cat" / "zero.jpg").touch()
    (root / "cat" / "cut.jpg").write_bytes(good[: len(good) // 2])
    (root / "dog" / "text.jpg").write_text("not a picture")
    (root / "dog" / "broken_link.png").symlink_to(root / "nowhere.png")
    Image.new("F", (4, 4)).save(root / "dog" / "float.tif")
    return {
        "cat/zero.jpg": "empty_file",
        "cat/cut.jpg": "truncated",
        "dog/text.jpg": "unreadable",
        "dog/broken_link.png": "unreadable",
        "dog/float.tif": "unsupported_format",
    }


def test_unreadable_pictures_are_left_out_counted_and_named(tmp_path: Path) -> None:
    folder(tmp_path)
    spoilt = _spoil(tmp_path)
    splits = data.load(section("image_folder", tmp_path))
    found = {name: finding.kind for finding in splits.findings for name in finding.names}
    assert found == spoilt
    record = json.loads(json.dumps(splits.record()))
    assert record["examples"] == {"found": 25, "kept": 20, "left_out": 5, "removed": 0}
    assert sum(f["count"] for f in record["findings"] if f["severity"] == "fail") == 5
    assert {name for f in record["findings"] for name in f["names"]} == set(spoilt)


def test_unreadable_pictures_stop_the_run_if_asked(tmp_path: Path) -> None:
    folder(tmp_path)
    spoilt = _spoil(tmp_path)
    with pytest.raises(
        DataError, match=r"(?s)5 examples cannot be used.*data\.on_error=skip"
    ) as error:
        data.load(section("image_folder", tmp_path, on_error="stop"))
    assert all(name in str(error.value) for name in spoilt)


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat")
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    names = SOURCES["image_folder"](section("image_folder", tmp_path)).names
    assert len(names) == len(set(names))
    assert all(name.count("again") <= 1 for name in names)


def test_names_that_are_not_unicode_are_read_and_recorded(tmp_path: Path) -> None:
    from kerastune_ft.data import images

    folder(tmp_path / "d")
    try:
        picture(tmp_path / "d" / "cat" / os.fsdecode(b"caf\xe9.png"))
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    splits = data.load(section("image_folder", tmp_path / "d", split={"validation": 0, "test": 0}))
    splits.write(tmp_path / "splits.csv")
    stream = images.dataset(
        splits.train.content, splits.train.labels, image_size=(8, 8), batch_size=32, num_classes=2
    )
    assert sum(len(batch) for batch, _ in stream) == 21


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda root: root / "photoz", "no folder .*did you mean 'photos'"),
        (lambda root: picture(root / "x.png"), "is a file; source image_folder reads a folder"),
        (lambda root: (root / "none").mkdir() or root / "none", "the folder is empty"),
        (lambda root: picture(root / "flat" / "1.png").parent, "no class sub-folders.*cat/1.jpg"),
        (lambda root: folder(root / "one", 3, ("cat",)), "all pictures are of one class, 'cat'"),
        (
            lambda root: (folder(root / "e", 3, ("cat",)) / "dog").mkdir() or root / "e",
            "one class, 'cat'",
        ),
        (lambda root: folder(root / "t" / "test", 3).parent, "no 'train' folder"),
        (
            lambda root: (
                (folder(root / "s" / "train", 3), folder(root / "s" / "test", 3, ("cow",)))
                and root / "s"
            ),
            "training split lacks: 'cow'",
        ),
        (
            lambda root: (
                (folder(root / "v" / "train"), folder(root / "v" / "val"))
                and folder(root / "v" / "valid").parent
            ),
            "'val', 'valid' all mean the validation split",
        ),
        (
            lambda root: (
                (folder(root / "x" / "train"), folder(root / "x" / "test"))
                and folder(root / "x" / "old").parent
            ),
            "others beside them .'old'.",
        ),
    ],
)
def test_folders_that_cannot_be_trained_on_are_refused(
    tmp_path: Path, build: Any, message: str
) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=message):
        data.load(section("image_folder", build(tmp_path)))


def test_an_empty_class_folder_is_found(tmp_path: Path) -> None:
    (folder(tmp_path) / "emu").mkdir()
    splits = data.load(section("image_folder", tmp_path))
    assert splits.class_names == ("cat", "dog")
    assert kinds(splits.findings) == {"empty_class": 1}


# image_csv


def table_file(
    root: Path, rows: list[list[str]], header: tuple[str, ...] = ("path", "label")
) -> Path:
    path = root / "table.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def rows_of(root: Path, per_class: int = 10) -> list[list[str]]:
    folder(root / "pictures", per_class, ("007", "8"))
    return [[f"pictures/{c}/{n}.png", c] for c in ("8", "007") for n in range(per_class)]


def test_csv_labels_stay_text_and_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = table_file(tmp_path, rows_of(tmp_path))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    splits = data.load(section("image_csv", path))
    assert splits.class_names == ("007", "8")
    assert [len(split) for split in splits.all] == [12, 4, 4]
    assert isinstance(splits.train.content, Files)


def test_the_order_of_csv_rows_does_not_matter(tmp_path: Path) -> None:
    rows = rows_of(tmp_path)
    first = data.load(section("image_csv", table_file(tmp_path, rows)))
    second = data.load(section("image_csv", table_file(tmp_path, rows[::-1])))
    assert first.fingerprint == second.fingerprint
    assert first.train.names == second.train.names


def test_a_split_column_is_kept(tmp_path: Path) -> None:
    rows = rows_of(tmp_path)
    parts = ["train", "val", "test", "train", "train"] * 4
    rows = [[*row, part] for row, part in zip(rows, parts, strict=True)]
    path = table_file(tmp_path, rows, ("path", "label", "split"))
    assert [len(split) for split in data.load(section("image_csv", path)).all] == [12, 4, 4]
    rows[3][2] = "holdout"
    with pytest.raises(DataError, match="column split: 'holdout'; expected train, validation"):
        data.load(section("image_csv", table_file(tmp_path, rows, ("path", "label", "split"))))


def test_odd_csv_rows_are_found_or_stop(tmp_path: Path) -> None:
    rows = rows_of(tmp_path)
    rows += [
        ["pictures/8/0.png", "8"],
        ["pictures/./8/1.png", "007"],
        ["pictures/gone.png", "8"],
        ["", "8"],
    ]
    rows[12][1] = ""
    rows[13][1] = "NaN"
    rows[14][1] = " 007"
    path = table_file(tmp_path, rows)
    splits = data.load(section("image_csv", path))
    by_kind: dict[str, int] = {}
    for finding in splits.findings:
        by_kind[finding.kind] = by_kind.get(finding.kind, 0) + finding.count
    assert by_kind == {
        "conflicting_rows": 2,
        "duplicate_row": 1,
        "label_spaces": 1,
        "missing_file": 2,
        "missing_label": 2,
    }
    assert splits.record()["examples"] == {"found": 24, "kept": 17, "left_out": 7, "removed": 0}
    with pytest.raises(DataError, match="7 examples cannot be used"):
        data.load(section("image_csv", path, on_error="stop"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no file"),
        (b"", "is empty"),
        (b"path,lable\na.png,x\n", "no column 'label'; did you mean 'lable'\\? the columns are"),
        (b"path;label\na.png;x\n", "no column 'path'.*separated by semicolons"),
        (b"path,label\n\xff\xfe\x00,x\n", "is not UTF-8"),
        (b'path,label\n"a.png,x\n', "no readable CSV|no picture"),
        (b"path,label\na,b\nc,d,e\n", "is no readable CSV"),
        (b"path,label\na,b.png,x\n", r":2: is no readable CSV: 3 fields under a header of 2"),
        (b"path,label\n", "no picture that can be used"),
    ],
)
def test_csv_files_that_cannot_be_read_say_why(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "t.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        data.load(section("image_csv", path))


def test_a_folder_is_no_csv(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder; source image_csv reads a CSV file"):
        data.load(section("image_csv", tmp_path))


# sklearn


def test_digits_are_the_bundled_pictures_over_the_whole_range() -> None:
    from sklearn.datasets import load_digits

    table = SOURCES["sklearn"](section("sklearn", "digits"))
    values = table.content.values
    assert values.dtype == np.uint8
    assert np.array_equal(np.round(values / 255 * 16), load_digits().images)
    assert [int(label) for label in table.labels] == load_digits().target.tolist()
    assert (table.names[12], len(table.names)) == ("digits/00012", 1797)


def test_an_unknown_bundled_set_is_refused() -> None:
    with pytest.raises(DataError, match="no picture set 'digit'; did you mean 'digits'"):
        data.load(section("sklearn", "digit"))


# tfds


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TFDS set made by the library itself: 12 + 4 + 4 pictures, one extra split."""
    tfds = pytest.importorskip("tensorflow_datasets")
    root = tmp_path_factory.mktemp("tfds")
    pictures = [picture(root / "raw" / f"{n}.png", n) for n in range(12)]
    pictures[3].write_bytes(pictures[3].read_bytes()[:45])

    class TinyPictures(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = tfds.features.FeaturesDict(
                {
                    "photo": tfds.features.Image(),
                    "kind": tfds.features.ClassLabel(names=["zebra", "ant"]),
                    "name": tfds.features.Text(),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager: Any) -> Any:
            counts = {"train": 12, "dev": 4, "test": 4, "unlabelled": 2}
            return {name: self._generate_examples(count) for name, count in counts.items()}

        def _generate_examples(self, count: int) -> Any:
            for n in range(count):
                yield n, {"photo": str(pictures[n]), "kind": n % 2, "name": f"n{n}"}

    builder = TinyPictures(data_dir=root / "data")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def test_a_prepared_tfds_folder_is_read_with_its_splits(prepared: Path) -> None:
    splits = data.load(section("tfds", prepared, leakage="warn"))
    assert splits.class_names == ("zebra", "ant")
    assert [len(split) for split in splits.all] == [11, 3, 3]
    found = {"split_not_read": 1, "truncated": 3, "leaked_copies": 3, "held_out_twice": 3}
    assert kinds(splits.findings) == found
    content = splits.train.content
    assert isinstance(content, Encoded)
    shades = {int(np.asarray(_opened(picture))[0, 0, 0]) for picture in content.data}
    assert shades == set(range(12)) - {3}
    for encoded, label in zip(content.data, splits.train.labels, strict=True):
        assert int(np.asarray(_opened(encoded))[0, 0, 0]) % 2 == label
    again = data.load(section("tfds", prepared, leakage="warn"))
    assert again.fingerprint == splits.fingerprint


def _opened(encoded: bytes) -> Image.Image:
    import io

    return Image.open(io.BytesIO(encoded))


def test_the_folder_above_a_prepared_version_will_do(prepared: Path) -> None:
    assert data.load(section("tfds", prepared.parent, leakage="warn")).found == 20


def test_a_tfds_set_that_does_not_fit_in_memory_names_the_alternative(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorflow_sets, "MEMORY_LIMIT_BYTES", 100)
    with pytest.raises(DataError, match="Write them to a folder per class and use image_folder"):
        data.load(section("tfds", prepared))


def test_an_unknown_tfds_name_gets_a_suggestion_and_no_list() -> None:
    with pytest.raises(DataError, match="did you mean 'tf_flowers'") as error:
        data.load(section("tfds", "tf_flower"))
    assert len(str(error.value)) < 300


def test_a_folder_without_a_prepared_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no prepared TFDS set.*no dataset_info\.json"):
        data.load(section("tfds", tmp_path))


def test_a_tfds_set_without_one_picture_and_one_label_names_its_features() -> None:
    tfds = pytest.importorskip("tensorflow_datasets")
    kinds_ = tfds.features
    with pytest.raises(DataError, match="got text: Text, label: ClassLabel"):
        tensorflow_sets._features(
            "imdb", {"text": kinds_.Text(), "label": kinds_.ClassLabel(num_classes=2)}
        )


def test_an_unreachable_tfds_set_fails_soon_and_names_what_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tensorflow_sets, "KERAS_HOST", "storage.invalid")
    started = time.monotonic()
    with pytest.raises(DataError, match=r"cannot be reached.*image_folder, image_csv, sklearn"):
        data.load(section("tfds", "tf_flowers"))
    assert time.monotonic() - started < 15


# several classes, and numbers


def labelled(
    root: Path, texts: list[tuple[str, ...]], header: tuple[str, ...] = ("label",)
) -> Path:
    """Writes a picture and a row for each label."""
    rows = []
    for number, cells in enumerate(texts):
        picture(root / "p" / f"{number:03d}.png", number % 256)
        rows.append([f"p/{number:03d}.png", *cells])
    return table_file(root, rows, ("path", *header))


SEVERAL = [(text,) for text in ("dog; cat", "cat ;dog;cat", "", "emu", "dog;", "cat;emu")] * 5


def test_several_names_are_trimmed_counted_once_and_sorted(tmp_path: Path) -> None:
    path = labelled(tmp_path, SEVERAL)
    table = SOURCES["image_csv"](section("image_csv", path), LABELS["classes"])
    assert table.labels[:6] == (("cat", "dog"),) * 2 + ((), ("emu",), ("dog",), ("cat", "emu"))
    assert table.findings == ()
    splits = data.load(section("image_csv", path), "classes")
    assert splits.class_names == ("cat", "dog", "emu")
    assert splits.train.labels.dtype == np.float32
    found = {
        name: {splits.class_names[i] for i in np.flatnonzero(row)}
        for split in splits.all
        for name, row in zip(split.names, split.labels, strict=True)
    }
    assert found == dict(zip(table.names, map(set, table.labels), strict=True))
    per_class = [part["per_class"] for part in splits.record()["splits"].values()]
    assert sum(part["cat"] for part in per_class) == 15
    splits.write(tmp_path / "splits.csv")
    names, labels, parts = splitting.read_splits(tmp_path / "splits.csv")
    assert labels[:3] == ("cat; dog", "cat; dog", "")
    assert splitting.fingerprint(names, labels, parts) == splits.fingerprint


def test_columns_of_marks_are_the_classes_in_their_order(tmp_path: Path) -> None:
    marks = [("1", "no"), ("TRUE", "0"), ("0", "Yes"), ("false", "1")] * 5
    columns = ("zebra", "ant")
    chosen = section("image_csv", labelled(tmp_path, marks, columns), label_column=columns)
    splits = data.load(chosen, "classes")
    assert splits.class_names == columns
    rows = SOURCES["image_csv"](chosen, LABELS["classes"]).labels[:4]
    assert rows == (("zebra",), ("zebra",), ("ant",), ("ant",))
    alone = section("image_csv", labelled(tmp_path, marks, columns), label_column=("ant",))
    assert data.load(alone, "classes").class_names == ("ant",)


@pytest.mark.parametrize(
    ("cells", "columns", "message"),
    [
        (('["cat", "dog"]',), None, r"row 4, column 'label'.*list of JSON.*data\.label_separator"),
        (("{'cat'}",), None, "looks like a list"),
        (("2", "0"), ("a", "b"), "row 4, column 'a': expected 0 or 1 .*got '2'"),
        (("1", "maybe"), ("a", "b"), "column 'b': expected 0 or 1 .*got 'maybe'"),
    ],
)
def test_several_classes_that_are_written_otherwise_are_refused(
    tmp_path: Path, cells: tuple[str, ...], columns: tuple[str, ...] | None, message: str
) -> None:
    good = ("1", "0") if columns else ("cat;dog",)
    path = labelled(tmp_path, [good, good, cells], columns or ("label",))
    with pytest.raises(DataError, match=message):
        data.load(section("image_csv", path, label_column=columns or "label"), "classes")


def test_missing_marks_and_names_are_found_and_other_separators_suspected(tmp_path: Path) -> None:
    path = labelled(tmp_path, [("NaN",), *[("cat, dog",), ("emu",)] * 10])
    splits = data.load(section("image_csv", path), "classes")
    assert kinds(splits.findings) == {"missing_label": 1, "label_separator": 10}
    right = data.load(section("image_csv", path, label_separator=","), "classes")
    assert right.class_names == ("cat", "dog", "emu")
    assert kinds(right.findings) == {"missing_label": 1}
    marks = labelled(tmp_path, [("", "1"), *[("1", "0"), ("0", "1")] * 10], ("a", "b"))
    splits = data.load(section("image_csv", marks, label_column=("a", "b")), "classes")
    assert kinds(splits.findings) == {"missing_label": 1}
    assert splits.record()["examples"]["left_out"] == 1


def test_one_picture_in_several_rows_is_told_how_to_write_it(tmp_path: Path) -> None:
    path = labelled(tmp_path, [("cat",), ("dog",)] * 6)
    path.write_text(path.read_text() + "p/000.png,dog\n")
    found = data.load(section("image_csv", path), "classes").findings
    (conflict,) = [finding for finding in found if finding.kind == "conflicting_rows"]
    assert "all classes of a picture belong into one row" in conflict.message
    assert conflict.count == 2


@pytest.mark.parametrize(
    ("texts", "parts", "message"),
    [
        (["", "", ""], None, "no picture has a class"),
        (["a", "b", "a"], ["train", "test", "train"], "training split lacks: 'b'"),
        (["1", "2", "3"] * 4, "marks", "classes without any picture: 'b'"),
    ],
)
def test_classes_that_cannot_be_learned_are_refused(
    tmp_path: Path, texts: list[str], parts: Any, message: str
) -> None:
    columns: Any = "label"
    if parts == "marks":
        columns = ("a", "b")
        path = labelled(tmp_path, [("1", "0"), ("0", "0")] * 6, columns)
    elif parts:
        path = labelled(tmp_path, list(zip(texts, parts, strict=True)), ("label", "split"))
    else:
        path = labelled(tmp_path, [(text,) for text in texts])
    with pytest.raises(DataError, match=message):
        data.load(section("image_csv", path, label_column=columns), "classes")


def test_a_class_of_every_picture_is_a_finding(tmp_path: Path) -> None:
    path = labelled(tmp_path, [("a",), ("a;b",)] * 10)
    assert kinds(data.load(section("image_csv", path), "classes").findings) == {
        "class_everywhere": 1
    }


NUMBERS = [(text,) for text in ("0.1", "1e-3", " -2.5 ", "+4", ".5", "7.")] * 5


def test_numbers_are_read_exactly_and_come_back_from_splits_csv(tmp_path: Path) -> None:
    path = labelled(tmp_path, NUMBERS, ("age",))
    splits = data.load(section("image_csv", path, label_column="age"), "numbers")
    assert splits.class_names == ("age",)
    assert splits.train.labels.shape == (18, 1)
    splits.write(tmp_path / "splits.csv")
    names, labels, parts = splitting.read_splits(tmp_path / "splits.csv")
    by_name = {f"p/{i:03d}.png": float(text) for i, (text,) in enumerate(NUMBERS)}
    assert {name: float(text) for name, text in zip(names, labels, strict=True)} == by_name
    assert splitting.fingerprint(names, labels, parts) == splits.fingerprint


def test_the_scale_of_numbers_is_that_of_the_training_split(tmp_path: Path) -> None:
    rows = [(str(n), str(n % 7 * 1000)) for n in range(60)]
    columns = ("age", "weight")
    path = labelled(tmp_path, rows, columns)
    splits = data.load(section("image_csv", path, label_column=columns), "numbers")
    train = np.array([rows[int(name[2:5])] for name in splits.train.names], float)
    recorded = json.loads(json.dumps(splits.record()))["targets"]
    assert list(recorded) == list(columns)
    for column, numbers in zip(columns, train.T, strict=True):
        expected = [numbers.mean(), numbers.std(), numbers.min(), numbers.max()]
        assert list(recorded[column].values()) == pytest.approx(expected)
    assert len(train) == 36


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3,5", r"row 3, column 'age': '3,5' is no number; write a decimal point, 3\.5"),
        ("1,000", r"'1,000' is no number; write 1000, or 1\.000 if that is meant"),
        ("1,234.5", r"write it without separators, 1234\.5"),
        ("1_000", "write it without separators, 1000"),
        ("3 kg", "write the number alone, 3, and the unit into the column's name"),
        ("12%", "write the number alone, 12"),
        ("old", "'old' is no number; write a number such as"),
        ("NA", "leave the cell empty"),
        ("0x10", "is no number"),
    ],
)
def test_numbers_that_are_written_otherwise_are_refused_with_the_remedy(
    tmp_path: Path, text: str, message: str
) -> None:
    path = labelled(tmp_path, [("1",), (text,), *NUMBERS], ("age",))
    with pytest.raises(DataError, match=message):
        data.load(section("image_csv", path, label_column="age"), "numbers")


def test_numbers_that_are_missing_or_not_finite_are_left_out_or_stop(tmp_path: Path) -> None:
    odd = [("",), ("nan",), ("inf",), ("-Infinity",), ("1e300",)]
    path = labelled(tmp_path, [*odd, *NUMBERS], ("age",))
    splits = data.load(section("image_csv", path, label_column="age"), "numbers")
    by_kind: dict[str, int] = {}
    for finding in splits.findings:
        by_kind[finding.kind] = by_kind.get(finding.kind, 0) + finding.count
    assert by_kind == {"missing_label": 2, "bad_number": 3}
    assert splits.record()["examples"] == {"found": 35, "kept": 30, "left_out": 5, "removed": 0}
    with pytest.raises(DataError, match="5 examples cannot be used"):
        data.load(section("image_csv", path, label_column="age", on_error="stop"), "numbers")


def test_a_number_that_never_changes_is_refused(tmp_path: Path) -> None:
    path = labelled(tmp_path, [(str(n), "5") for n in range(20)], ("a", "b"))
    with pytest.raises(DataError, match=r"column 'b' is 5 for every training picture.*leave it"):
        data.load(section("image_csv", path, label_column=("a", "b")), "numbers")


@pytest.mark.parametrize(
    "texts",
    [
        [repr(1.7e9 + 20 + 5 * n) for n in range(30)],  # as seconds of an afternoon
        [repr(-1e6 - 0.1 * n) for n in range(30)],
        [repr(1.7e9 + n) for n in range(30)],  # all alike in float32
        [repr(n * 1e-50) for n in range(30)],
    ],
)
def test_numbers_that_float32_cannot_tell_apart_are_refused(
    tmp_path: Path, texts: list[str]
) -> None:
    path = labelled(tmp_path, [(text,) for text in texts], ("age",))
    match = r"column 'age' has too few digits in float32.*; subtract a constant such as its small"
    with pytest.raises(DataError, match=match):
        data.load(section("image_csv", path, label_column="age"), "numbers")


def test_the_same_numbers_less_their_smallest_are_taken(tmp_path: Path) -> None:
    for name, step in (("large", 5.0), ("small", 1e-7)):
        texts = [(repr(step * n),) for n in range(30)]
        path = labelled(tmp_path / name, texts, ("age",))
        splits = data.load(section("image_csv", path, label_column="age"), "numbers")
        assert len(splits.train) + len(splits.validation) + len(splits.test) == 30


def arrays(root: Path, largest: list[float]) -> Path:
    """Writes a float array for each largest value, in folders of two classes."""
    generator = np.random.default_rng(0)
    for number, value in enumerate(largest):
        path = root / "ab"[number % 2] / f"{number:02d}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.random((6, 5, 3)).astype(np.float32)
        np.save(path, pixels / pixels.max() * np.float32(value))
    return root


@pytest.mark.parametrize("largest", [[1.0] * 20, [0.9, 0.0] * 2 + [1.0] * 16])
def test_arrays_of_floats_up_to_one_are_refused(tmp_path: Path, largest: list[float]) -> None:
    root = arrays(tmp_path, largest)
    match = r"must be in 0\.\.255; these look like 0\.\.1, multiply by 255: 'a/00\.npy'"
    with pytest.raises(DataError, match=match):
        data.load(section("image_folder", root))
    with pytest.raises(DataError, match=match):
        data.load_all(section("image_folder", root), ("a", "b"))


def test_some_dark_arrays_are_a_finding_and_black_ones_are_none(tmp_path: Path) -> None:
    mixed = arrays(tmp_path / "mixed", [0.5, 1.0, 0.0, *np.linspace(150, 200, 17)])
    splits = data.load(section("image_folder", mixed))
    (found,) = splits.findings
    assert (found.kind, found.severity) == ("dark_floats", "warn")
    assert found.names == ("a/00.npy", "b/01.npy")
    assert splits.found == 20
    apart = {"keep_together": "none"}
    root = arrays(tmp_path / "black", [0.0] * 20)
    black = data.load(section("image_folder", root, split=apart, leakage="warn"))
    assert set(kinds(black.findings)) == {"leaked_copies", "held_out_twice"}
    few = data.load_all(section("image_folder", arrays(tmp_path / "few", [1.0] * 3)), ("a", "b"))
    assert kinds(few.findings) == {"dark_floats": 3}


def test_whole_numbers_up_to_one_are_dark_and_no_mistake(tmp_path: Path) -> None:
    root = arrays(tmp_path, [200.0] * 20)
    for path in root.glob("*/*.npy"):
        np.save(path, np.random.default_rng(len(str(path))).integers(0, 2, (6, 5, 3), np.uint8))
    apart = section("image_folder", root, split={"keep_together": "none"}, leakage="warn")
    assert "dark_floats" not in kinds(data.load(apart).findings)


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_sources_of_one_class_refuse_other_labels(tmp_path: Path, kind: Any) -> None:
    for chosen in (section("image_folder", folder(tmp_path)), section("sklearn", "digits")):
        with pytest.raises(DataError, match=r"gives one class per picture.*image_csv reads"):
            data.load(chosen, kind)


@pytest.fixture(scope="module")
def prepared_rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TFDS set with several classes and a number per picture, 20 of them, one split."""
    tfds = pytest.importorskip("tensorflow_datasets")
    root = tmp_path_factory.mktemp("tfds_rich")
    pictures = [picture(root / "raw" / f"{n}.png", n) for n in range(20)]

    class RichPictures(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            kind = tfds.features.ClassLabel(names=["zebra", "ant"])
            features = {
                "photo": tfds.features.Image(),
                "kinds": tfds.features.Sequence(kind),
                "age": np.float32,
                "name": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager: Any) -> Any:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            for n, path in enumerate(pictures):
                kinds_ = [[], [0], [1], [1, 0]][n % 4]
                age = float("nan") if n == 7 else n / 4
                yield n, {"photo": str(path), "kinds": kinds_, "age": age, "name": "x"}

    builder = RichPictures(data_dir=root / "data")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def _shade(encoded: bytes) -> int:
    return int(np.asarray(_opened(encoded))[0, 0, 0])


def test_several_classes_and_numbers_are_read_from_tfds(prepared_rich: Path) -> None:
    classes = data.load(section("tfds", prepared_rich), "classes")
    assert classes.class_names == ("zebra", "ant")
    expected = [[0, 0], [1, 0], [0, 1], [1, 1]]
    for split in classes.all:
        for encoded, row in zip(split.content.data, split.labels, strict=True):
            assert row.tolist() == expected[_shade(encoded) % 4]
    numbers = data.load(section("tfds", prepared_rich, label_column="age"), "numbers")
    assert kinds(numbers.findings) == {"missing_label": 1}
    for split in numbers.all:
        for encoded, row in zip(split.content.data, split.labels, strict=True):
            assert row.tolist() == [_shade(encoded) / 4]


@pytest.mark.parametrize(
    ("kind", "column", "message"),
    [
        ("class", "label", "exactly one Image and one ClassLabel"),
        ("numbers", "name", r"the numbers that data\.label_column names \('name'\)"),
        ("numbers", "nothing", "does not fit the task"),
    ],
)
def test_a_tfds_set_without_the_labels_of_the_task_is_refused(
    prepared_rich: Path, kind: Any, column: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        data.load(section("tfds", prepared_rich, label_column=column), kind)


def test_data_to_score_on_may_lack_classes_but_not_have_others(tmp_path: Path) -> None:
    chosen = section("image_csv", labelled(tmp_path, [("cat",), ("",), ("cat;emu",)]))
    split = data.load_all(chosen, ["ant", "cat", "emu"], "classes")
    assert split.labels.tolist() == [[0, 1, 0], [0, 0, 0], [0, 1, 1]]
    with pytest.raises(DataError, match="does not know: 'emu'"):
        data.load_all(chosen, ["ant", "cat"], "classes")


# splitting


@pytest.mark.parametrize("stratify", [True, False])
def test_splits_have_the_right_sizes_and_depend_on_the_seed_alone(stratify: bool) -> None:
    labels = np.random.default_rng(0).integers(0, 7, 503)
    how = {"validation": 0.15, "test": 0.1, "stratify": stratify}
    splits = splitting.split(labels, seed=1, **how)
    assert (splits == "test").sum() == round(503 * 0.1)
    assert (splits == "validation").sum() == round(503 * 0.15)
    assert np.array_equal(splits, splitting.split(labels, seed=1, **how))
    assert not np.array_equal(splits, splitting.split(labels, seed=2, **how))


def test_stratified_shares_are_within_one_example_of_exact() -> None:
    labels = np.repeat(np.arange(5), [200, 90, 41, 13, 3])
    splits = splitting.split(labels, validation=0.2, test=0.2)
    for label in range(5):
        for name in ("validation", "test"):
            count = (splits[labels == label] == name).sum()
            assert abs(count - 0.2 * (labels == label).sum()) < 1


def several_classes(seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    n, classes = int(generator.integers(60, 400)), int(generator.integers(2, 9))
    return generator.random((n, classes)) < generator.uniform(0.01, 0.6, classes)


@pytest.mark.parametrize("seed", range(12))
def test_each_of_several_classes_keeps_its_share_within_one_example(seed: int) -> None:
    labels = several_classes(seed)
    splits = splitting.split(labels, validation=0.15, test=0.2, seed=seed)
    for name, share in (("validation", 0.15), ("test", 0.2)):
        chosen = splits == name
        assert chosen.sum() == round(len(labels) * share)
        assert np.abs(labels[chosen].sum(0) - chosen.mean() * labels.sum(0)).max() < 1.5
    trained = labels[splits == "train"].any(0)
    assert np.array_equal(trained, labels.any(0))


def test_the_division_of_several_classes_depends_on_the_seed_alone() -> None:
    labels = several_classes(0)
    how = {"validation": 0.2, "test": 0.2}
    first = splitting.split(labels, seed=1, **how)
    assert np.array_equal(first, splitting.split(labels, seed=1, **how))
    assert not np.array_equal(first, splitting.split(labels, seed=2, **how))
    official = np.where(np.arange(len(labels)) % 3 == 0, "test", "train")
    kept = splitting.split(labels, official=official, **how)
    assert np.array_equal(kept == "test", official == "test")
    assert (kept == "validation").sum() == round(0.2 * (official == "train").sum())


def test_every_one_of_several_classes_keeps_a_training_example() -> None:
    labels = np.zeros((40, 12), bool)
    labels[np.arange(12), np.arange(12)] = True  # one example each
    labels[12:30, :6] = np.random.default_rng(0).random((18, 6)) < 0.4
    splits = splitting.split(labels, validation=0.3, test=0.3)
    assert labels[splits == "train"].any(0).all()


def test_numbers_are_divided_by_their_size() -> None:
    numbers = np.random.default_rng(0).lognormal(0, 2, (400, 1))
    strata = LABELS["numbers"].strata(numbers)
    assert len(np.unique(strata)) == 10
    order = np.argsort(numbers[:, 0])
    assert (np.diff(strata[order]) >= 0).all()
    splits = splitting.split(strata, validation=0.2, test=0.2)
    for stratum in range(10):
        assert abs((splits[strata == stratum] == "test").sum() - 8) <= 1
    assert len(np.unique(LABELS["numbers"].strata(numbers[:12]))) == 1


def test_every_class_keeps_a_training_example() -> None:
    labels = np.repeat(np.arange(20), [1] * 10 + [2] * 5 + [30] * 5)
    splits = splitting.split(labels, validation=0.45, test=0.45)
    assert set(labels[splits == "train"]) == set(range(20))


def test_the_smallest_group_of_a_class_is_given_back_to_training() -> None:
    labels = np.repeat([0, 1], [60, 8])
    groups = [f"{i // 6}" for i in range(60)] + ["one"] * 5 + ["two"] * 3
    for seed in range(8):
        how = {"validation": 0.3, "test": 0.4, "groups": groups, "seed": seed}
        splits = splitting.split(labels, **how)
        assert np.array_equal(splits, splitting.split(labels, **how))
        assert set(labels[splits == "train"]) == {0, 1}
        assert len({(group, part) for group, part in zip(groups, splits, strict=True)}) == 12


def test_apportioned_totals_are_exact_and_within_limits() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        sizes = generator.integers(1, 40, generator.integers(1, 9)).astype(np.int64)
        limits = np.maximum(sizes - generator.integers(0, 3, len(sizes)), 0)
        total = int(generator.integers(0, sizes.sum() + 1))
        portions = splitting.apportion(sizes, total, limits)
        assert portions.sum() == min(total, limits.sum())
        assert ((portions >= 0) & (portions <= limits)).all()


def test_a_class_absent_from_validation_is_a_finding(tmp_path: Path) -> None:
    folder(tmp_path, 20)
    picture(tmp_path / "emu" / "only.png")
    splits = data.load(section("image_folder", tmp_path))
    absent = [finding for finding in splits.findings if finding.kind == "class_absent"]
    assert [finding.names for finding in absent] == [("emu",), ("emu",)]
    assert splits.record()["splits"]["validation"]["per_class"]["emu"] == 0


def test_too_few_pictures_to_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"too few for a .* split; set data\.split"):
        data.load(section("image_folder", folder(tmp_path, 1)))


def test_unstratified_splits_that_lose_a_class_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, 1, tuple("abcdefghij"))
    with pytest.raises(DataError, match=r"no training example of .*data\.split\.stratify=true"):
        data.load(section("image_folder", tmp_path, split={"stratify": False}))


def test_splits_are_written_and_read_back(tmp_path: Path) -> None:
    splits = data.load(section("image_folder", folder(tmp_path / "d", 10, ('a "b", c', "é"))))
    path = tmp_path / "splits.csv"
    splits.write(path)
    names, labels, parts = splitting.read_splits(path)
    assert splitting.fingerprint(names, labels, parts) == splits.fingerprint
    assert {n for n, p in zip(names, parts, strict=True) if p == "test"} == set(splits.test.names)
    path.write_text("name,label,split\na,b,holdout\n")
    with pytest.raises(DataError, match=r"splits\.csv:2: expected name, label and a split"):
        splitting.read_splits(path)


def test_the_fingerprint_notices_a_moved_and_a_relabelled_example() -> None:
    whole = (["a", "b"], ["x", "y"], ["train", "test"])
    first = splitting.fingerprint(*whole)
    assert first == splitting.fingerprint(*(column[::-1] for column in whole))
    assert first != splitting.fingerprint(whole[0], whole[1], ["test", "train"])
    assert first != splitting.fingerprint(whole[0], ["y", "x"], whole[2])


# load


def test_balanced_class_weights_are_scikit_learns() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat(np.arange(3, dtype=np.int32), [50, 7, 3])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert np.allclose(data.class_weights(labels, ["a", "b", "c"], "balanced"), expected)


def test_balanced_weights_of_several_classes_are_negatives_by_positives_within_ten() -> None:
    labels = np.zeros((100, 4), np.float32)
    for column, count in enumerate((50, 20, 2, 99)):
        labels[:count, column] = 1
    weights = data.class_weights(labels, list("abcd"), "balanced")
    assert weights.tolist() == pytest.approx([1, 4, 10, 0.1])
    assert data.class_weights(labels, list("abcd"), {"c": 3.0}).tolist() == [1, 1, 3, 1]


def test_class_weights_by_name_default_to_one_and_refuse_unknown_classes() -> None:
    labels = np.zeros(3, np.int32)
    assert data.class_weights(labels, ["cat", "dog"], {"dog": 3.0}).tolist() == [1.0, 3.0]
    assert data.class_weights(labels, ["cat", "dog"], None) is None
    with pytest.raises(DataError, match="no class 'dgo'; did you mean 'dog'"):
        data.class_weights(labels, ["cat", "dog"], {"dgo": 3.0})


def test_the_label_contract_depends_on_names_and_order(tmp_path: Path) -> None:
    record = data.load(section("image_folder", folder(tmp_path))).record()
    assert record["class_names"] == ["cat", "dog"]
    assert record["class_names_sha256"] == data.label_contract(["cat", "dog"])
    assert record["class_names_sha256"] != data.label_contract(["dog", "cat"])


def test_data_to_score_on_keeps_the_models_label_numbers(tmp_path: Path) -> None:
    folder(tmp_path / "some", 3, ("dog",))
    split = data.load_all(section("image_folder", tmp_path / "some"), ["ant", "cat", "dog"])
    assert split.name == "all"
    assert split.labels.tolist() == [2, 2, 2]
    folder(tmp_path / "parts" / "train", 3)
    folder(tmp_path / "parts" / "test", 2)
    held_out = data.load_all(section("image_folder", tmp_path / "parts"), ["cat", "dog"])
    assert (held_out.name, len(held_out)) == ("test", 4)
    with pytest.raises(DataError, match="classes that the model does not know: 'dog'"):
        data.load_all(section("image_folder", tmp_path / "some"), ["cat", "cow"])


def test_numbers_inside_names_sort_as_numbers() -> None:
    assert sorted(["b10", "B2", "b1", "a"], key=natural) == ["a", "b1", "B2", "b10"]


def test_importing_the_package_is_cheap() -> None:
    script = (
        "import sys, kerastune_ft.data;"
        "heavy = {'tensorflow', 'keras', 'pandas', 'sklearn', 'tensorflow_datasets'};"
        "sys.exit(repr(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[1])


# real data


@pytest.mark.skipif(not ASSETS.is_dir(), reason="needs ../shared/assets/data")
def test_messy_photographs_are_read_completely() -> None:
    from kerastune_ft.data import images

    splits = data.load(section("image_folder", ASSETS / "weather4_messy" / "images"))
    assert splits.found == 1036 == sum(len(split) for split in splits.all)
    assert not any(found.kind == "leaked_copies" for found in splits.findings)
    odd = [found for found in splits.findings if found.kind != "leaked_near_copies"]
    assert {name for finding in odd for name in finding.names} == {
        "cloudy/cloudy131.jpg", "shine/shine127.jpg", "shine/shine131.jpg", "rain/rain141.jpg",
    }  # fmt: skip
    for split in splits.all:
        stream = images.dataset(
            split.content, split.labels, image_size=(96, 96), batch_size=32, num_classes=4
        )
        assert sum(len(batch) for batch, _ in stream) == len(split)


@pytest.mark.skipif(not ASSETS.is_dir(), reason="needs ../shared/assets/data")
def test_official_splits_of_real_photographs_are_kept() -> None:
    splits = data.load(section("image_folder", ASSETS / "clothing10"))
    assert [len(split) for split in splits.all] == [3068, 341, 372]
    assert len(splits.class_names) == 10


def test_class_folders_that_lie_one_deeper_are_named(tmp_path):
    write_photos(tmp_path / "photos" / "images")
    settings = Data(source="image_folder", path=str(tmp_path / "photos"))
    with pytest.raises(DataError, match=r"'images' would be the only class.*did you mean .*images"):
        data.load(settings, "class")


def test_a_table_none_of_whose_files_is_there_says_where_its_paths_count_from(tmp_path):
    table = tmp_path / "a.csv"
    table.write_text("path,label\na.jpg,cat\nb.jpg,dog\n")
    settings = Data(source="image_csv", path=str(table))
    with pytest.raises(
        DataError,
        match=r"'a.jpg', 'b.jpg'; no such files are there: their paths count from data.root",
    ):
        data.load(settings, "class")
