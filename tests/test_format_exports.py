"""Files of other formats: from `kft export` to a folder that is verified and asked."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import test_text_tasks
from click.testing import CliRunner, Result
from conftest import write_photos

keras = pytest.importorskip("keras")
if keras.backend.backend() != "tensorflow":
    pytest.skip("models are exported on TensorFlow", allow_module_level=True)

from kerastune_ft import cli, exports, folds, formats, predictions, recipe_export  # noqa: E402
from kerastune_ft import recipe as recipes  # noqa: E402
from kerastune_ft.errors import ExportError, RecipeError  # noqa: E402
from kerastune_ft.exports import (  # noqa: E402
    artefacts,
    asking,
    contract,
    elsewhere,
    examples,
    tables,
    trials,
    verification,
)
from kerastune_ft.exports.trials import Limits  # noqa: E402
from kerastune_ft.recipe_export import QUANTIZATIONS  # noqa: E402
from kerastune_ft.runs import Run  # noqa: E402

FILES = [name for name in QUANTIZATIONS if name != "saved_model"]
PAIRS = recipe_export.pairs(FILES, ("none",)) + [
    (name, quantize) for name in FILES for quantize in QUANTIZATIONS[name] if quantize != "none"
]
COLUMNS = {
    "format", "quantize", "version", "file", "headline", "size_mib", "latency_ms_1",
    "latency_ms_8", "agreement", "accuracy", "float_accuracy", "largest_difference", "examples",
    "created",
}  # fmt: skip
BESIDE = {"kft.json", "recipe.yaml", "verification.json", "verification"}


def needs(name: str) -> None:
    """Skips a test where what a format needs is not installed."""
    if name in formats.FORMATS and formats.FORMATS[name].missing:
        missing = ", ".join(formats.FORMATS[name].missing)
        pytest.skip(f"{missing} missing: pip install 'kerastune_ft[export]'")


def kft(*words: object) -> Result:
    return CliRunner().invoke(cli.main, [str(word) for word in words])


def picture_recipe(folder: Path, weights: Path, **settings: Any) -> Any:
    photos = folder / "photos"
    return recipes.from_mapping(
        {
            "task": {"dropout": 0.0},
            "backbone": {
                "name": "mobilenet",
                "weights": str(weights),
                "image_size": 32,
                "alpha": 0.25,
            },
            "data": {
                "source": "image_folder",
                "path": str(photos if photos.is_dir() else write_photos(photos)),
                "batch_size": 8,
                "split": {"validation": 0.2, "test": 0.3},
            },
            "train": {
                "stages": [{"trainable_blocks": -1, "epochs": 6, "learning_rate": 1e-3}],
                "early_stopping": None,
                "tensorboard": False,
                **settings.pop("train", {}),
            },
            **settings,
        }
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, weights_file: Path) -> Run:
    """A picture classifier whose recipe writes LiteRT files, in float32 and in float16."""
    needs("litert")
    folder = tmp_path_factory.mktemp("pictures")
    export = {"targets": ["litert"], "quantize": ["none", "float16"]}
    recipe = picture_recipe(folder, weights_file, export=export)
    return folds.fit(recipe, runs_dir=folder / "runs", name="colours")


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("texts")
    path = test_text_tasks.write(folder / "a.jsonl", "text_classification")
    recipe = test_text_tasks.make_recipe(path, "text_classification", epochs=6)
    return folds.fit(recipe, runs_dir=folder / "runs", name="moods")


@pytest.fixture
def version(run: Run, tmp_path: Path) -> Path:
    """A copy of a LiteRT version that can be changed."""
    shutil.copytree(run.path / "export" / "litert" / "1", tmp_path / "litert" / "1")
    return tmp_path / "litert" / "1"


def photos_of(run: Run) -> list[Path]:
    return sorted((run.path.parents[1] / "photos").rglob("*.jpg"))


def change(path: Path, key: str, value: Any) -> None:
    content = json.loads(path.read_text())
    content[key] = value
    path.write_text(json.dumps(content))


def replace_file(version: Path, other: Path) -> None:
    """Puts another file in the place of a version's, as if it had been exported so."""
    shutil.copyfile(other, version / other.name)
    digest = hashlib.sha256(other.read_bytes()).hexdigest()
    file = json.loads((version / "kft.json").read_text())["file"]
    change(version / "kft.json", "file", {**file, "sha256": {other.name: digest}})


# what a recipe leaves


def test_a_recipe_leaves_files_and_their_table_at_the_end_of_fit(run: Run) -> None:
    base = run.path / "export"
    assert {path.name for path in base.iterdir()} == {"litert", "litert-float16", tables.NAME}
    assert exports.versions(base) == []  # a server finds nothing that it cannot read
    rows = json.loads((base / tables.NAME).read_text())["formats"]
    assert [(row["format"], row["quantize"], row["version"]) for row in rows] == [
        ("litert", "none", 1),
        ("litert", "float16", 1),
    ]
    for row in rows:
        assert set(row) == COLUMNS
        size = (base / row["file"]).stat().st_size
        assert row["size_mib"] == pytest.approx(size / 2**20)
        assert row["latency_ms_1"] > 0 and row["latency_ms_8"] > 0
        assert row["examples"] == len(predictions.own_split(run, recipes.load(run.recipe_path)))
        assert row["float_accuracy"] == pytest.approx(run.read_json("scores")["test"]["accuracy"])
        assert row["agreement"] >= recipe_export.LEAST_AGREEMENT
    assert rows[0]["largest_difference"] < 1e-4 < rows[1]["largest_difference"]
    assert rows[1]["size_mib"] < 0.6 * rows[0]["size_mib"]


@pytest.mark.parametrize("name", ["litert", "litert-float16"])
def test_a_version_says_what_it_is(run: Run, name: str) -> None:
    folder = run.path / "export" / name / "1"
    assert {path.name for path in folder.iterdir()} == {"model.tflite", *BESIDE}
    assert not list((run.path / "export" / name).glob(".*"))
    found = contract.read(folder)
    assert found.classes == ("blue", "green", "red") and found.task == "image_classification"
    assert found.label_contract == contract.labels_digest(found.classes)
    assert found.recipe_sha256 == contract.digest((folder / "recipe.yaml").read_text())
    assert found.file is not None
    assert (found.file.format, found.file.name) == ("litert", "model.tflite")
    assert found.file.inputs == (contract.Input("images", (None, 32, 32, 3), "float32"),)
    assert found.file.pixels == (0, 255) and found.file.length is None
    assert found.exact == (name == "litert")
    assert set(found.file.notes["versions"]) == {"ai-edge-litert"}


def test_samples_are_training_pictures_and_always_the_same(run: Run) -> None:
    recipe = recipes.load(run.recipe_path)
    first, again = (artefacts.samples_of(run, recipe, 5) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (5, 32, 32, 3) and first.dtype == np.float32
    training = predictions.training_split(run, recipe)
    from kerastune_ft.data import feeding

    every = feeding.pictures(training, recipe, range(len(training)), [None])
    known = {views[0].tobytes() for views in every}
    assert {picture.tobytes() for picture in first} <= known


def test_a_run_is_exported_once_by_its_recipe(run: Run) -> None:
    before = (run.path / "export" / tables.NAME).read_text()
    from rich.console import Console

    exports.of_recipe(run, Console(quiet=True))
    assert (run.path / "export" / tables.NAME).read_text() == before


# verified


@pytest.mark.parametrize(("name", "said"), [("litert", "answers"), ("litert-float16", "decides")])
def test_verify_compares_a_file_again(run: Run, tmp_path: Path, name: str, said: str) -> None:
    report = tmp_path / "report.json"
    done = kft("verify", run.path / "export" / name / "1", "--report", report)
    assert done.exit_code == 0, done.output
    assert f"{said} as training did" in done.output and "22 odd ones" in done.output
    found = json.loads(report.read_text())
    assert found["differences"] == [] and found["shortfalls"] == [] and found["message"] == ""
    assert found["examples"] > 5 and found["odd"] == len(examples.odd_pictures())


def test_a_corrupted_file_is_found(version: Path) -> None:
    path = version / "model.tflite"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    done = kft("verify", version)
    assert done.exit_code == 2 and "is damaged: it is not the file" in done.output
    with pytest.raises(ExportError, match="is damaged"):
        asking.opened(version)
    path.unlink()
    with pytest.raises(ExportError, match="is missing"):
        verification.verify(version)


def test_another_file_under_the_right_digest_is_found_by_its_answers(
    run: Run, version: Path
) -> None:
    replace_file(version, run.path / "export" / "litert-float16" / "1" / "model.tflite")
    done = kft("verify", version)
    assert done.exit_code == 1
    assert "does not answer as the training process did" in done.output


def test_another_number_of_outputs_is_refused(
    version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = types.SimpleNamespace(said=np.zeros((27, 2)))
    monkeypatch.setattr(elsewhere, "tried", lambda *_: said)
    with pytest.raises(ExportError, match=r"returns \(27, 2\), the run's model \(\d+, 3\)"):
        verification.verify(version)


def test_a_quantised_file_that_decides_otherwise_is_found(run: Run, tmp_path: Path) -> None:
    version = tmp_path / "1"
    shutil.copytree(run.path / "export" / "litert-float16" / "1", version)
    path = version / "verification.json"
    rows = json.loads(path.read_text())["examples"]
    for row in rows:
        row["expected"] = row["expected"][1:] + row["expected"][:1]
    change(path, "examples", rows)
    done = kft("verify", version)
    assert done.exit_code == 1
    assert "does not decide as the run's model does" in done.output
    assert "agreement 0.000 of" in done.output and rows[0]["name"] in done.output


def test_limits_travel_with_a_version(run: Run, tmp_path: Path) -> None:
    version = tmp_path / "1"
    shutil.copytree(run.path / "export" / "litert-float16" / "1", version)
    path = version / "verification.json"
    assert json.loads(path.read_text())["limits"] == {"least_agreement": 0.9, "most_lost": 0.05}
    change(path, "limits", {"least_agreement": 1.1, "most_lost": 0.05})
    found = verification.verify(version)
    assert found.shortfalls and "at least 1.1 is wanted" in found.shortfalls[0]


def test_swapped_classes_are_found(version: Path) -> None:
    change(version / "kft.json", "classes", ["red", "green", "blue"])
    with pytest.raises(ExportError, match="another order"):
        verification.verify(version)


@pytest.mark.parametrize(
    ("change_", "expected"),
    [
        ({"name": "../other.tflite"}, "is no file of it"),
        ({"inputs": [{"nam": "images"}]}, "damaged: file"),
        ({"sha256": None}, "damaged: file"),
    ],
)
def test_a_damaged_contract_is_refused(
    version: Path, change_: dict[str, Any], expected: str
) -> None:
    file = json.loads((version / "kft.json").read_text())["file"]
    change(version / "kft.json", "file", {**file, **change_})
    with pytest.raises(ExportError, match=expected):
        contract.read(version)


def test_a_server_has_no_files(version: Path) -> None:
    with pytest.raises(ExportError, match="is a file of litert; servers have none"):
        verification.verify(version, url="http://localhost:1")


# limits


NAMES = ("a", "b", "c")


@pytest.mark.parametrize(
    ("task", "said", "agreement"),
    [
        ("image_classification", [[0.6, 0.3, 0.1], [0.5, 0.2, 0.3]], 0.5),
        ("image_multilabel", [[0.9, 0.4, 0.2], [0.2, 0.9, 0.9]], 1.0),
        ("image_multilabel", [[0.9, 0.6, 0.2], [0.2, 0.9, 0.9]], 0.5),
        ("image_regression", [[0.95, 0.1, 0.0], [0.1, 0.5, 0.85]], 0.5),
    ],
)
def test_what_counts_as_the_same(task: str, said: Any, agreement: float) -> None:
    expected = np.array([[0.9, 0.05, 0.05], [0.05, 0.5, 0.6]])
    from kerastune_ft.tasks import Outputs

    alike = trials._alike(np.array(said), expected, task, Outputs(NAMES), np.ones(3))
    assert alike.mean() == agreement


@pytest.mark.parametrize(
    ("row", "said", "expected"),
    [
        ({"agreement": 0.9}, 0.0, []),
        ({"agreement": 0.89}, 0.0, ["agreement 0.890 of 2 examples, at least 0.9"]),
        ({"accuracy": 0.84}, 0.0, ["accuracy 0.8400 instead of 0.9000"]),
        ({"accuracy": None}, 0.0, ["accuracy is not defined instead of 0.9000"]),
        ({"accuracy": None, "float_accuracy": None}, 0.0, []),
        ({}, np.nan, ["no number"]),
    ],
)
def test_limits_are_kept_to(run: Run, row: Any, said: float, expected: list[str]) -> None:
    whole = {"agreement": 1.0, "accuracy": 0.9, "float_accuracy": 0.9, **row}
    facts = contract.read(run.path / "export" / "litert-float16" / "1")
    found = trials._shortfalls(
        whole, np.full((2, 3), said), np.array([True, False]), ["one", "two"], facts, Limits()
    )
    assert len(found) == len(expected)
    assert all(part in line for part, line in zip(expected, found, strict=True))


# refused


def test_the_tables_of_formats_agree() -> None:
    assert set(QUANTIZATIONS) == set(get_args(recipe_export.Target))
    assert set(formats.FORMATS) == set(QUANTIZATIONS) - {"saved_model", "keras"}
    for name, row in formats.FORMATS.items():
        assert row.quantize == QUANTIZATIONS[name]
    assert QUANTIZATIONS["litert"] == get_args(recipe_export.Quantize)  # --quantize offers these


WRONG = [
    (["onnx"], ["int8"], "image_classification", "onnx: quantize: expected none or float16, got"),
    (["litert", "openvino"], ["int8"], "image_classification", "openvino: quantize"),
    (["saved_model"], ["int8"], "image_classification", "saved_model cannot be quantised"),
    (["keras"], ["float16"], "image_classification", "keras cannot be quantised"),
    (["litert"], ["int8"], "text_classification", "int8 would ruin texts"),
    (["litert"], [], "image_classification", "expected one or more of none"),
    *((["keras"], ["none"], task, "saved_model does") for task in recipe_export.UNFIT),
]


@pytest.mark.parametrize(("targets", "quantize", "task", "expected"), WRONG)
def test_what_does_not_go_together_is_refused(
    targets: list[str], quantize: list[str], task: str, expected: str
) -> None:
    with pytest.raises(ExportError, match=expected):
        exports.check(targets, quantize, task)


def test_what_goes_together_is_written_once() -> None:
    found = recipe_export.pairs(("saved_model", "litert", "litert"), ("none", "int8"))
    assert found == [("saved_model", "none"), ("litert", "none"), ("litert", "int8")]
    assert len(PAIRS) == len(set(PAIRS)) == sum(len(QUANTIZATIONS[name]) for name in FILES)


def test_a_recipe_that_cannot_be_exported_is_refused(tmp_path: Path, weights_file: Path) -> None:
    for export in (
        {"targets": ["onnx"], "quantize": ["int8"]},
        {"quantize": ["int8"]},
        {"targets": ["tflite"]},
    ):
        with pytest.raises(RecipeError, match="export"):
            picture_recipe(tmp_path, weights_file, export=export)


def test_the_command_refuses_before_anything_is_computed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kerastune_ft.exports import graphs

    monkeypatch.setattr(graphs.Served, "of", lambda run: pytest.fail("a model was loaded"))
    done = kft("export", run.path, "--format", "onnx", "--quantize", "int8")
    assert isinstance(done.exception, ExportError) or done.exit_code == 2
    assert "onnx: quantize" in done.output + str(done.exception)
    done = kft("export", run.path, "--format", "litert", "--version", "1")
    assert "is there already" in done.output + str(done.exception)
    with pytest.raises(ExportError, match="format 'tflite' is unknown"):
        exports.export_all(run, ["tflite"])
    assert not (run.path / "export" / "onnx").exists()


def test_a_missing_package_is_named_before_training(
    tmp_path: Path, weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    row = dataclasses.replace(formats.FORMATS["onnx"], needs={"no_such_module": "no-such-package"})
    monkeypatch.setitem(formats.FORMATS, "onnx", row)
    recipe = picture_recipe(tmp_path, weights_file, export={"targets": ["onnx"]})
    with pytest.raises(ExportError, match=r"no-such-package.*pip install \"kerastune_ft\[export\]"):
        folds.fit(recipe, runs_dir=tmp_path / "runs", name="one")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_what_decides_otherwise_is_never_seen(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    black = np.zeros((8, 32, 32, 3), np.float32)  # no range of any activation is right
    monkeypatch.setattr(artefacts, "samples_of", lambda run, recipe: black)
    base = tmp_path / "models" / "colours"
    with pytest.raises(ExportError, match="does not decide as the run's model does") as caught:
        exports.export_all(run, ["litert"], ["int8"], output=base)
    assert str(base / "litert-int8" / "1") in str(caught.value)
    assert "at least 0.9 is wanted; it says otherwise of" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# asked


def test_predict_says_of_a_file_what_it_says_of_the_run(run: Run, tmp_path: Path) -> None:
    paths = photos_of(run)[::4]
    (tmp_path / "no.jpg").write_text("no picture")
    rows = list(predictions.predict(run, paths))
    version = run.path / "export" / "litert" / "1"
    done = kft("predict", version, *paths, tmp_path / "no.jpg", "--output", tmp_path / "said.jsonl")
    assert done.exit_code == 1, done.output
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert len(said) == len(rows) + 1
    for row, told in zip(rows, said, strict=False):
        assert list(row) == list(told) and row["predicted"] == told["predicted"]
        for name in ("blue", "green", "red"):
            assert told[f"p:{name}"] == pytest.approx(row[f"p:{name}"], abs=1e-4)
    assert "cannot be read as a picture" in said[-1]["error"] and said[-1]["predicted"] is None
    assert said[-1]["error"].startswith(f"{said[-1]['path']}: cannot be read")
    assert len({row["predicted"] for row in rows}) == 3


@pytest.mark.slow
def test_texts_go_from_the_command_to_a_file_that_is_asked(text_run: Run, tmp_path: Path) -> None:
    needs("litert")
    done = kft("export", text_run.path, "--format", "litert", "--output", tmp_path)
    assert done.exit_code == 0, (done.output, done.exception)
    assert "answers as training did" in done.output and "ms for 8" in done.output
    version = tmp_path / "litert" / "1"
    found = contract.read(version)
    assert found.file is not None and found.file.length == 24 and found.file.pixels is None
    assert {value.name for value in found.file.inputs} == set(found.inputs)
    assert (version / "tokenizer.json").is_file() and "litert" in str(found.tokenizer_inside)
    texts = ["a good film", "the awful book and a dull dinner"]
    rows = list(predictions.predict(text_run, texts=texts))
    said = list(asking.opened(version).predict([], texts))
    for row, told in zip(rows, said, strict=True):
        assert told["predicted"] == row["predicted"] and told["truncated"] == row["truncated"]
        assert told["probability"] == pytest.approx(row["probability"], abs=1e-4)
    path = version / "verification.json"
    odd = json.loads(path.read_text())["odd"]
    assert len(odd) == len(examples.ODD_TEXTS)
    odd[3]["expected"] = odd[3]["expected"][::-1]
    change(path, "odd", odd)
    with pytest.raises(ExportError, match=odd[3]["name"]):
        verification.verify(version).check(version)


# the table


def test_a_row_takes_the_place_of_that_of_the_same_version(tmp_path: Path) -> None:
    def row(version: int, size: float) -> dict[str, Any]:
        return {"format": "onnx", "quantize": "none", "version": version, "size_mib": size}

    tables.add(tmp_path, [row(1, 1.0), row(2, 2.0)])
    tables.add(tmp_path, [row(1, 3.0)])
    assert tables.read(tmp_path) == [row(2, 2.0), row(1, 3.0)]
    assert [path.name for path in tmp_path.iterdir()] == [tables.NAME]
    (tmp_path / tables.NAME).write_text('{"formats": [{}]}')
    with pytest.raises(ExportError, match="damaged: 'format'"):
        tables.add(tmp_path, [row(1, 1.0)])


def test_what_asks_elsewhere_imports_no_framework() -> None:
    code = (
        "import sys; from kerastune_ft.exports import elsewhere; "
        "print({'keras', 'tensorflow'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# longer ones


@pytest.mark.slow
def test_what_answers_otherwise_is_never_seen(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(artefacts._ACTIVATIONS, "class", "sigmoid")
    with pytest.raises(ExportError, match="does not answer as the training process did") as caught:
        exports.export_all(run, ["litert"], output=tmp_path / "models")
    assert str(tmp_path / "models" / "litert" / "1") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_command_allows_more_when_it_is_told_to(run: Run, tmp_path: Path) -> None:
    words = ("export", run.path, "--format", "litert", "--quantize", "int8", "--output", tmp_path)
    done = kft(*words, "--least-agreement", "0.3", "--most-lost", "0.7")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "at least 0.3 was wanted" in done.output
    version = tmp_path / "litert-int8" / "1"
    training = predictions.training_split(run, recipes.load(run.recipe_path))
    assert contract.read(version).file.notes["calibrated_on"] == len(training)
    (row,) = tables.read(tmp_path)
    assert row["agreement"] >= 0.3 and row["size_mib"] < 1
    assert "at least 0.3 was wanted" in kft("verify", version).output


@pytest.mark.slow
@pytest.mark.network
def test_int8_of_real_weights_decides_as_the_run_does(tmp_path: Path) -> None:
    needs("litert")
    recipe = recipes.load(
        Path(__file__).parents[1] / "recipes" / "mobilenet.yaml",
        ["export.targets=[litert]", "export.quantize=[int8_weights, int8]"],
    )
    run = folds.fit(recipe, runs_dir=tmp_path, name="digits")
    rows = tables.read(run.path / "export")
    assert [row["quantize"] for row in rows] == ["int8_weights", "int8"]
    for row in rows:
        assert row["agreement"] >= 0.95 and row["accuracy"] >= row["float_accuracy"] - 0.03
        assert row["size_mib"] < 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "quantize"), [pair for pair in PAIRS if pair != ("litert", "int8")]
)
def test_pictures_are_answered_in_every_format(
    run: Run, tmp_path: Path, name: str, quantize: str
) -> None:
    needs(name)
    (made,) = exports.export_all(run, [name], [quantize], output=tmp_path)
    assert made.path == tmp_path / tables.folder_of(name, quantize) / "1"
    (row,) = tables.read(tmp_path)
    assert set(row) == COLUMNS and row["format"] == name and row["quantize"] == quantize
    assert (row["largest_difference"] < 1e-4) == (quantize == "none")
    paths = photos_of(run)[::3]
    rows = list(predictions.predict(run, paths))
    said = list(asking.opened(made.path).predict(paths))
    same = [told["predicted"] == row["predicted"] for row, told in zip(rows, said, strict=True)]
    assert np.mean(same) >= (1.0 if quantize == "none" else 0.9)
    path = made.path / contract.read(made.path).file.name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ExportError, match="is damaged"):
        verification.verify(made.path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "quantize"), [pair for pair in PAIRS if pair != ("litert", "int8")]
)
def test_texts_are_answered_in_every_format(
    text_run: Run, tmp_path: Path, name: str, quantize: str
) -> None:
    needs(name)
    (made,) = exports.export_all(text_run, [name], [quantize], output=tmp_path)
    texts = ["a good film", "dull book dinner journey play song film"]
    rows = list(predictions.predict(text_run, texts=texts))
    said = list(asking.opened(made.path).predict([], texts))
    limit = 1e-4 if quantize == "none" else 0.05
    for row, told in zip(rows, said, strict=True):
        assert told["probability"] == pytest.approx(row["probability"], abs=limit)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["text_pair_classification", "text_multilabel", "text_regression"])
def test_other_tasks_are_answered_too(tmp_path: Path, task: str) -> None:
    needs("onnx")
    path = test_text_tasks.write(tmp_path / "a.jsonl", task)
    recipe = test_text_tasks.make_recipe(path, task)
    run = folds.fit(recipe, runs_dir=tmp_path / "runs", name="texts")
    whole, _ = exports.export_all(run, ["onnx"], ["none", "float16"])
    assert whole.report["examples"] > 5 and whole.report["largest"] < 1e-4
    (table,) = [row for row in tables.read(run.path / "export") if row["quantize"] == "float16"]
    assert table["agreement"] >= 0.9 and table["headline"] in table
    rows = list(predictions.predict(run, [path]))[:6]
    said = list(asking.opened(whole.path).predict([path]))[:6]
    assert [row.get("predicted") for row in said] == [row.get("predicted") for row in rows]
    if task == "text_regression":
        told = [row["predicted:label"] for row in said]
        assert told == pytest.approx([row["predicted:label"] for row in rows], rel=1e-3)


@pytest.mark.slow
def test_a_keras_file_is_read_by_keras_alone(run: Run, tmp_path: Path) -> None:
    (made,) = exports.export_all(run, ["keras"], output=tmp_path)
    assert contract.read(made.path).file.needs == ()
    code = (
        "import sys, keras, numpy; model = keras.models.load_model(sys.argv[1]); "
        "said = model.predict(numpy.full((2, 32, 32, 3), 100.0), verbose=0); "
        "assert 'kerastune_ft' not in sys.modules; print(said.sum(axis=1).round(4).tolist())"
    )
    command = [sys.executable, "-c", code, str(made.path / "model.keras")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.splitlines()[-1] == "[1.0, 1.0]"


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_models_of_all_folds_become_one_file(tmp_path: Path, weights_file: Path, name: str) -> None:
    needs(name)
    recipe = picture_recipe(tmp_path, weights_file, train={"folds": 2})
    run = folds.fit(recipe, runs_dir=tmp_path / "runs", name="both")
    (made,) = exports.export_all(run, [name])
    assert made.report["examples"] > 5 and made.report["largest"] < 1e-4
    paths = sorted((tmp_path / "photos").rglob("*.jpg"))[::6]
    rows = list(predictions.predict(run, paths))
    said = list(asking.opened(made.path).predict(paths))
    for row, told in zip(rows, said, strict=True):
        assert told["probability"] == pytest.approx(row["probability"], abs=1e-4)


@pytest.mark.slow
def test_an_export_that_is_killed_is_not_seen_and_is_cleared_away(run: Run, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kerastune_ft", "export", str(run.path), "--format", "litert"]
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    base = tmp_path / "litert"
    child = subprocess.Popen(
        [*command, "--output", str(tmp_path)], env=environment, stdout=subprocess.DEVNULL
    )
    try:
        for _ in range(1200):
            if list(base.glob(".version-*/*/model.tflite")):
                break
            assert child.poll() is None
            time.sleep(0.1)
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
    assert list(base.glob(".version-*")) and exports.versions(base) == []
    assert not (tmp_path / tables.NAME).exists()
    (made,) = exports.export_all(run, ["litert"], output=tmp_path)
    assert made.path == base / "1" and not list(base.glob(".*"))


def test_keras_is_the_only_format_beside_those_of_formats() -> None:
    assert set(FILES) - set(formats.FORMATS) == {elsewhere.KERAS}
