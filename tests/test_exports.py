"""Exports: what is read, what is refused, and that nothing is seen that answers otherwise."""

from __future__ import annotations

import dataclasses
import io
import json
import resource
import shutil
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_text_tasks
from click.testing import CliRunner
from conftest import write_photos
from PIL import Image

from kerastune_ft import cli, exports, predictions, workflow
from kerastune_ft import recipe as recipes
from kerastune_ft.backbones.tokenizers import Tokenizer
from kerastune_ft.data import images, inspection
from kerastune_ft.data.decoding import Preparation
from kerastune_ft.errors import ExportError, RunError, ServingError
from kerastune_ft.exports import (
    asked,
    contract,
    contradictions,
    examples,
    expected,
    graphs,
    operations,
    pictures,
    server_files,
    verification,
    vocabularies,
)
from kerastune_ft.exports.texts import Inside
from kerastune_ft.runs import Run
from kerastune_ft.tasks import Outputs

tf = pytest.importorskip("tensorflow")

ODD = examples.odd_pictures()
_ORIENTATION = 0x0112

facts = tf.function(pictures.facts, input_signature=[tf.TensorSpec((), tf.string)])


# pictures


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("how", ["squash", "crop", "pad"])
def test_every_odd_picture_is_read_as_training_reads_it(how: Any, channels: int) -> None:
    reader = pictures.Reader(Preparation((48, 64), how, channels))
    served = tf.function(reader.picture, input_signature=[tf.TensorSpec((), tf.string)])
    assert len(ODD) > 15
    for name, raw in ODD.items():
        trained = images.decode_bytes(raw, (48, 64), how, name=name, channels=channels)
        np.testing.assert_array_equal(np.asarray(served(raw)), trained, err_msg=name)


def test_the_odd_pictures_differ_in_what_makes_them_odd() -> None:
    kinds = {name: tuple(int(fact) for fact in facts(raw)) for name, raw in ODD.items()}
    assert {orientation for _, orientation in kinds.values()} == set(range(1, 9))
    assert {kind for kind, _ in kinds.values()} == {0, 1, 2}


def saved(format: str, mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 4)).astype(np.uint8)
    image = Image.fromarray(pixels, "RGBA").convert(mode)
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "raw",
    [
        saved("JPEG", "CMYK"),
        saved("TIFF"),
        saved("GIF", "P"),
        saved("WEBP", "RGBA"),
        saved("WEBP", "RGBA", lossless=True),
        saved("BMP", "P"),
        saved("BMP", "1"),
        saved("ICO"),
        b"no picture",
        b"",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\x00\x00\x00\x00WEBP",
        b"BM",
    ],
    ids=lambda raw: repr(raw[:8]),
)
def test_what_training_reads_by_other_means_is_refused_with_a_message(raw: bytes) -> None:
    reader = pictures.Reader(Preparation((16, 16)))
    said = r"cannot be read here as training|[Dd]ecode|Uncompress|PNG|BMP|WebP"
    with pytest.raises(tf.errors.InvalidArgumentError, match=said):
        reader.batch(tf.constant([ODD["plain.jpg"], raw]))


def claiming(raw: bytes, width: int, height: int) -> bytes:
    """Returns a picture file whose header claims other sides than 32 x 24."""
    was, now = (32, 24), (width, height)
    if raw.startswith(b"\xff\xd8"):
        found, made = struct.pack(">HH", *was[::-1]), struct.pack(">HH", *now[::-1])
    elif raw.startswith(b"BM"):
        found, made = struct.pack("<ii", *was), struct.pack("<ii", *now)
    elif raw[12:16] == b"VP8 ":
        found, made = struct.pack("<HH", *was), struct.pack("<HH", *now)
    elif raw[12:16] == b"VP8L":
        found, made = (
            b"\x2f" + struct.pack("<I", wide - 1 | high - 1 << 14) for wide, high in (was, now)
        )
    else:
        found, made = struct.pack(">II", *was), struct.pack(">II", *now)
    assert raw.count(found) == 1
    return raw.replace(found, made)


@pytest.mark.parametrize(
    "raw",
    [
        saved("JPEG"),
        saved("JPEG", "L", progressive=True),
        saved("PNG"),
        saved("PNG", "RGBA"),
        saved("PNG", "L"),
        saved("WEBP"),
        saved("WEBP", lossless=True),
        saved("BMP"),
    ],
    ids=lambda raw: repr(raw[:16]),
)
def test_more_pixels_than_training_reads_are_refused_by_the_header(raw: bytes) -> None:
    whole, largest = int(facts(raw)[0]), inspection.MAX_PIXELS
    assert whole != int(facts(b"no picture")[0])
    side = 9460
    for height, fits in ((largest // side, True), (largest // side + 1, False)):
        assert (side * height <= largest) is fits
        kind = int(facts(claiming(raw, side, height))[0])
        assert kind == (whole if fits else int(facts(b"no picture")[0]))


def chunk(kind: bytes) -> bytes:
    return struct.pack(">I", 0) + kind + struct.pack(">I", zlib.crc32(kind))


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_a_file_of_a_great_many_empty_parts_is_refused_and_not_walked_through(kind: str) -> None:
    raw, count = ODD[{"jpg": "plain.jpg", "png": "plain.png", "webp": "lossy.webp"}[kind]], 200_000
    start = {"jpg": 2, "png": 33, "webp": 12}[kind]
    empty = {"jpg": b"\xff", "png": chunk(b"juNk"), "webp": b"juNk\0\0\0\0"}[kind]
    few, many = (raw[:start] + empty * n + raw[start:] for n in (40, count))
    if kind == "webp":
        few, many = (raw[:4] + struct.pack("<I", len(x) - 8) + x[8:] for x in (few, many))
    assert int(facts(few)[0]) == int(facts(raw)[0])
    begun = time.process_time()
    assert int(facts(many)[0]) == 3
    # Walking through all of them takes more than ten times as long.
    assert time.process_time() - begun < 5e-5 * count


def test_damaged_files_are_never_read_otherwise_than_in_training() -> None:
    """Wherever octets are changed: the same pixels, or an error."""
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[_ORIENTATION], exif[0x010E], exif[0x0131] = 6, "a description", "a program"
    begun = [
        saved("JPEG", exif=exif.tobytes()),
        saved("PNG", exif=exif.tobytes()),
        saved("WEBP", exif=exif.tobytes()),
        saved("PNG", "RGBA"),
        saved("BMP"),
    ]
    reader = pictures.Reader(Preparation((16, 16)))
    served = tf.function(reader.picture, input_signature=[tf.TensorSpec((), tf.string)])
    same = refused = 0
    for raw in begun:
        for _ in range(60):
            changed = bytearray(raw)
            for place in random.integers(0, min(len(raw), 220), random.integers(1, 4)):
                changed[place] = random.integers(0, 256)
            found = inspection.inspect(bytes(changed))
            try:
                got = np.asarray(served(bytes(changed)))
            except tf.errors.InvalidArgumentError:
                refused += 1
                continue
            if isinstance(found, inspection.Unusable):
                continue  # Pillow minds a checksum that TensorFlow does not
            trained = images.decode_bytes(bytes(changed), (16, 16), name="changed")
            np.testing.assert_array_equal(got, trained)
            same += 1
    assert same > 100 and refused > 10


@pytest.mark.parametrize("orientation", [1, 3, 8])
def test_an_orientation_in_xmp_alone_counts_as_it_does_in_training(orientation: int) -> None:
    xmp = f'<x:xmpmeta><rdf tiff:Orientation="{orientation}"/></x:xmpmeta>'
    raw = saved("JPEG", xmp=xmp.encode())
    found = inspection.inspect(raw)
    assert isinstance(found, inspection.Inspected)
    assert found.orientation == orientation == int(facts(raw)[1])


def test_arrays_of_any_size_are_resized_as_training_resizes_them() -> None:
    how = Preparation((32, 32))
    reader = pictures.Reader(how)
    random = np.random.default_rng(0)
    for size in ((32, 32), (50, 41), (20, 60)):
        pixels = random.integers(0, 256, (2, *size, 3)).astype(np.uint8)
        got = np.asarray(reader.arrays(tf.constant(pixels, tf.float32)))
        wanted = np.stack([np.asarray(how.shown(how.of_array(tf.constant(p)))) for p in pixels])
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5, 255.5])
@pytest.mark.parametrize("size", [(32, 32), (40, 20)])
def test_arrays_that_training_does_not_take_are_refused(
    value: float, size: tuple[int, int]
) -> None:
    reader = pictures.Reader(Preparation((32, 32)))
    pixels = np.full((2, *size, 3), 7, np.float32)
    assert np.asarray(reader.arrays(tf.constant(pixels))).min() == 7
    pixels[1, 3, 4, 2] = value
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"expected numbers in 0\.\.255"):
        reader.arrays(tf.constant(pixels))


# texts


def text_recipe(tmp_path: Path, task: str = "text_classification", **settings: Any) -> Any:
    path = test_text_tasks.write(tmp_path / "a.jsonl", task)
    return test_text_tasks.make_recipe(path, task, **settings)


@pytest.mark.parametrize("task", ["text_classification", "text_pair_classification"])
@pytest.mark.parametrize(
    "truncation",
    ["head", *(pytest.param(how, marks=pytest.mark.slow) for how in ("tail", "head_tail"))],
)
@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "t5", "xlnet"])
def test_tokens_in_the_graph_are_those_of_training(
    tmp_path: Path, task: str, truncation: str, family: str
) -> None:
    recipe = text_recipe(tmp_path, task, backbone=family, data={"truncation": truncation})
    words = ["film", "book", "awful", "déjà", "Straße", "x.y", "漢字", "don't", "  ", "\n", "42nd"]
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(words, random.integers(1, 40))) for _ in range(60)]
    texts += ["a film", "the book", "film"]
    tokenizer = Tokenizer.tiny(family, [*texts, *examples.ODD_TEXTS])
    inside = Inside.of(tokenizer, recipe)
    assert isinstance(inside, Inside), inside
    columns = [texts, texts[::-1]] if "pair" in task else [texts]
    rows = list(zip(*columns, strict=True))
    assert inside.differing(rows, tokenizer, recipe) == ""


@pytest.mark.parametrize(
    ("family", "task"),
    [
        (family, task)
        for family in ("bert", "roberta", "gpt2", "t5", "xlnet")
        for task in ("text_classification", "token_classification")
        if (family, task) != ("gpt2", "token_classification")  # which cannot be
    ],
)
def test_odd_texts_make_the_same_tokens(tmp_path: Path, family: str, task: str) -> None:
    recipe = text_recipe(tmp_path, task, backbone=family)
    tokenizer = Tokenizer.tiny(family, [*examples.ODD_TEXTS, "a film"])
    inside = Inside.of(tokenizer, recipe)
    assert isinstance(inside, Inside), inside
    rows = [(text,) for text in examples.ODD_TEXTS]
    assert inside.differing(rows, tokenizer, recipe) == ""


def test_other_tokens_are_found_and_keep_the_tokenizer_outside(tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path)
    tokenizer = Tokenizer.tiny("bert", ["a film", "the book"])
    inside = Inside.of(tokenizer, recipe)
    assert isinstance(inside, Inside)
    rows = [("a film",), ("the [MASK] book",), ("the book",)]
    assert inside.differing(rows, tokenizer, recipe) == "the [MASK] book"


def test_what_is_mended_beyond_tensorflow_keeps_the_tokenizer_outside(tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path, data={"cleaning": {"text": {"html": True}}})
    assert "html" in str(Inside.of(Tokenizer.tiny("bert", ["a film"]), recipe))


# whole exports


def picture_run(tmp_path: Path, weights: Path, **settings: Any) -> Run:
    mapping = {
        "task": {"dropout": 0.0, **settings.pop("task", {})},
        "backbone": {"name": "mobilenet", "weights": str(weights), "image_size": 32, "alpha": 0.25},
        "data": {
            "source": "image_folder",
            "path": str(write_photos(tmp_path / "photos")),
            "batch_size": 8,
            **settings.pop("data", {}),
        },
        "train": {
            "stages": [{"trainable_blocks": 0, "epochs": 2, "learning_rate": 1e-2}],
            "tensorboard": False,
            **settings.pop("train", {}),
        },
    }
    return workflow.fit(recipes.from_mapping(mapping), runs_dir=tmp_path / "runs", name="colours")


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, weights_file: Path
) -> tuple[Run, exports.Exported]:
    """A picture classifier and its first version."""
    run = picture_run(tmp_path_factory.mktemp("pictures"), weights_file)
    return run, exports.export(run)


def answers_of(path: Path, signature: str = "serving_default", **inputs: Any) -> dict[str, Any]:
    loaded = tf.saved_model.load(str(path))
    said = loaded.signatures[signature](**inputs)
    return {key: value.numpy() for key, value in said.items()}


def test_a_version_answers_as_predict_does(exported: tuple[Run, exports.Exported]) -> None:
    run, version = exported
    paths = sorted((run.path.parents[1] / "photos").rglob("*.jpg"))[::5]
    rows = list(predictions.predict(run, paths))
    said = answers_of(version.path, image_bytes=tf.constant([path.read_bytes() for path in paths]))
    names = contract.read(version.path).classes
    for at, row in enumerate(rows):
        assert said["label"][at].decode() == row["predicted"] == names[said["class_id"][at]]
        assert said["probability"][at] == pytest.approx(row["probability"], abs=1e-4)
        told = [row[f"p:{name}"] for name in names]
        np.testing.assert_allclose(said["probabilities"][at], told, atol=1e-4)
        assert said["top_labels"][at][0].decode() == row["predicted"]
    assert len({row["predicted"] for row in rows}) > 1
    assert said["top_probabilities"].shape == (len(paths), 3)


def test_a_version_has_all_that_a_server_needs(exported: tuple[Run, exports.Exported]) -> None:
    run, version = exported
    assert version.path == run.path / "export" / "1"
    assert version.report["examples"] > 0 and version.report["odd"] == len(ODD)
    assert version.report["agreement"] == 1.0 and version.report["largest"] < 1e-4
    found = contract.read(version.path)
    assert found.name == run.name and found.version == 1 and found.modality == "image"
    assert set(found.classes) == {"blue", "green", "red"}
    assert (version.path / "assets.extra" / "tf_serving_warmup_requests").stat().st_size > 1000
    assert 'name: "colours"' in (run.path / "export" / server_files.MODELS).read_text()
    assert not list((run.path / "export").glob(".*"))


@pytest.mark.slow
def test_tf_examples_are_classified(exported: tuple[Run, exports.Exported]) -> None:
    _, version = exported
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[ODD["plain.jpg"]]))
    example = tf.train.Example(
        features=tf.train.Features(feature={graphs.PICTURE_FEATURE: feature})
    )
    said = answers_of(
        version.path, "classify", inputs=tf.constant([example.SerializeToString()] * 2)
    )
    plain = answers_of(version.path, image_bytes=tf.constant([ODD["plain.jpg"]]))
    assert said["classes"][0][0] == plain["label"][0]
    assert said["scores"][1] == pytest.approx(sorted(plain["probabilities"][0])[::-1])
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel()
    model.ParseFromString((version.path / "saved_model.pb").read_bytes())
    signature = model.meta_graphs[0].signature_def["classify"]
    assert signature.method_name == "tensorflow/serving/classify"


def test_no_operation_is_missing_from_a_server(exported: tuple[Run, exports.Exported]) -> None:
    found = operations.used(exported[1].path)
    assert {"Conv2D", "DecodePng", "PartitionedCall"} & found
    operations.check(exported[1].path)


def test_an_operation_in_python_is_found(tmp_path: Path) -> None:
    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.float32)])
    def doubled(x: Any) -> Any:
        return {"y": tf.numpy_function(lambda value: 2 * value, [x], tf.float32)}

    module.doubled = doubled
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"serving_default": doubled})
    with pytest.raises(ExportError, match="PyFunc"):
        operations.check(tmp_path / "1")


@pytest.mark.slow
def test_a_later_version_takes_the_next_number_and_a_taken_one_is_refused(
    exported: tuple[Run, exports.Exported], tmp_path: Path
) -> None:
    run, version = exported
    base = tmp_path / "models"
    shutil.copytree(version.path, base / "6")
    with pytest.raises(ExportError, match="is there already"):
        exports.export(run, output=base, version=6, examples=0)
    made = exports.export(run, output=base, examples=0, name="hues")
    assert made.path == base / "7" and exports.versions(base) == [6, 7]
    assert contract.read(made.path).name == "hues"


@pytest.mark.slow
def test_what_answers_otherwise_is_never_seen(
    exported: tuple[Run, exports.Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = exported
    right = graphs.EXPORTED["image_classification"]
    wrong = graphs.Answer(lambda logits: tf.nn.softmax(0.9 * logits), right.named)
    monkeypatch.setitem(graphs.EXPORTED, "image_classification", wrong)
    with pytest.raises(ExportError, match="does not answer as the training process did"):
        exports.export(run, output=tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_swapped_label_is_found(exported: tuple[Run, exports.Exported], tmp_path: Path) -> None:
    path = tmp_path / "1"
    shutil.copytree(exported[1].path, path)
    file = path / "assets.extra" / "kft.json"
    content = json.loads(file.read_text())
    content["classes"] = content["classes"][::-1]
    file.write_text(json.dumps(content))
    with pytest.raises(ExportError, match="another order"):
        verification.verify(path)


@pytest.mark.slow
def test_verify_finds_what_was_changed_afterwards(
    exported: tuple[Run, exports.Exported], tmp_path: Path
) -> None:
    path = tmp_path / "1"
    shutil.copytree(exported[1].path, path)
    assert verification.verify(path).differences == ()
    file = path / "assets.extra" / "verification.json"
    content = json.loads(file.read_text())
    row = content["odd"][3]
    row["expected"] = row["expected"][::-1]
    file.write_text(json.dumps(content))
    found = verification.verify(path)
    assert [difference.name for difference in found.differences] == [row["name"]]
    with pytest.raises(ExportError, match=row["name"]):
        found.check(path)


@pytest.mark.slow
def test_data_that_are_gone_are_said_to_be(
    exported: tuple[Run, exports.Exported], tmp_path: Path
) -> None:
    found = verification.verify(exported[1].path, run=tmp_path / "nowhere")
    assert found.examples == 0 and "nowhere" in found.missing and found.odd == len(ODD)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("kft.json", "{", "damaged"),
        ("kft.json", '{"format": 9}', "format 9"),
        ("kft.json", '{"format": 1}', "'name' is missing"),
        ("verification.json", "[]", "damaged"),
    ],
)
def test_a_damaged_export_is_refused(
    exported: tuple[Run, exports.Exported], tmp_path: Path, name: str, content: str, expected: str
) -> None:
    path = tmp_path / "1"
    shutil.copytree(exported[1].path, path)
    (path / "assets.extra" / name).write_text(content)
    with pytest.raises(ExportError, match=expected):
        verification.verify(path)


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is no export of kft"):
        verification.verify(tmp_path)


def test_a_name_that_no_address_can_have_is_refused(
    exported: tuple[Run, exports.Exported], tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="expected letters"):
        exports.export(exported[0], output=tmp_path / "models", name="a/b")
    assert not (tmp_path / "models").exists()


def test_a_run_that_is_not_finished_is_refused(
    exported: tuple[Run, exports.Exported], tmp_path: Path
) -> None:
    shutil.copytree(exported[0].path, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    run.write_status("interrupted")
    with pytest.raises(ExportError, match="kft resume"):
        exports.export(run)


@pytest.mark.parametrize(
    "task",
    [
        pytest.param("text_classification", marks=pytest.mark.slow),
        pytest.param("text_pair_classification", marks=pytest.mark.slow),
        pytest.param("text_multilabel", marks=pytest.mark.slow),
    ],
)
def test_texts_are_served_as_they_were_trained_on(tmp_path: Path, task: str) -> None:
    run = workflow.fit(text_recipe(tmp_path, task), runs_dir=tmp_path / "runs", name="texts")
    made = exports.export(run)
    assert made.inside is True
    assert made.report["examples"] > 5 and made.report["odd"] == len(examples.ODD_TEXTS)
    assert made.report["largest"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["gpt2", "roberta", "t5", "xlnet"])
def test_every_family_of_tokenizers_is_served(tmp_path: Path, backbone: str) -> None:
    recipe = text_recipe(tmp_path, "text_classification", backbone=backbone)
    run = workflow.fit(recipe, runs_dir=tmp_path / "runs", name="texts")
    made = exports.export(run)
    assert made.inside is True
    assert made.report["examples"] > 5 and made.report["largest"] < 1e-4


@pytest.mark.parametrize(
    "task",
    [
        pytest.param("token_classification", marks=pytest.mark.slow),
        pytest.param("text_to_text", marks=pytest.mark.slow),
        pytest.param("text_generation", marks=pytest.mark.slow),
    ],
)
def test_what_is_said_in_words_is_served(tmp_path: Path, task: str) -> None:
    run = workflow.fit(text_recipe(tmp_path, task), runs_dir=tmp_path / "runs", name="texts")
    made = exports.export(run, examples=20)
    assert made.inside is True and made.report["agreement"] == 1.0
    texts = ["a good film", "dull book dinner journey play song film"]
    rows = list(predictions.predict(run, texts=texts))
    said = answers_of(made.path, text=tf.constant(texts))
    key = "tags" if task == "token_classification" else "written"
    assert [text.decode() for text in said[key]] == [row["predicted"] for row in rows]


@pytest.mark.slow
def test_numbers_of_tokens_are_served_where_the_tokenizer_stays_outside(tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path, data={"cleaning": {"text": {"html": True}}})
    run = workflow.fit(recipe, runs_dir=tmp_path / "runs", name="texts")
    made = exports.export(run)
    assert "html" in str(made.inside)
    assert made.report["examples"] > 5 and made.report["largest"] < 1e-4
    assert (made.path / "assets.extra" / "tokenizer.json").is_file()


@pytest.mark.slow
def test_numbers_are_served_in_their_own_units(tmp_path: Path) -> None:
    run = workflow.fit(
        text_recipe(tmp_path, "text_regression"), runs_dir=tmp_path / "runs", name="numbers"
    )
    made = exports.export(run)
    rows = list(predictions.predict(run, texts=["a good film", "dull book"]))
    said = answers_of(made.path, text=tf.constant(["a good film", "dull book"]))
    told = [row["predicted:label"] for row in rows]
    np.testing.assert_allclose(said["values"][:, 0], told, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_the_models_of_all_folds_answer_together(tmp_path: Path, weights_file: Path) -> None:
    from kerastune_ft import folds

    recipe = recipes.from_mapping(
        {
            "backbone": {
                "name": "mobilenet",
                "weights": str(weights_file),
                "image_size": 32,
                "alpha": 0.25,
            },
            "data": {
                "source": "image_folder",
                "path": str(write_photos(tmp_path / "photos")),
                "batch_size": 8,
            },
            "train": {
                "folds": 2,
                "stages": [{"trainable_blocks": 0, "epochs": 2, "learning_rate": 1e-2}],
                "tensorboard": False,
            },
        }
    )
    run = folds.fit(recipe, runs_dir=tmp_path / "runs", name="both")
    made = exports.export(run)
    assert made.report["largest"] < 1e-4 and made.report["agreement"] == 1.0


def test_warm_up_requests_are_what_tensorflow_serving_reads(
    exported: tuple[Run, exports.Exported],
) -> None:
    logs = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    path = exported[1].path / "assets.extra" / "tf_serving_warmup_requests"
    records = [logs.PredictionLog.FromString(r.numpy()) for r in tf.data.TFRecordDataset(str(path))]
    assert len(records) == 2
    request = records[1].predict_log.request
    assert request.model_spec.name == "colours"
    assert request.model_spec.signature_name == "serving_default"
    values = tf.make_ndarray(request.inputs["image_bytes"])
    assert list(values) == list(ODD.values())[:8]


def test_batching_follows_what_was_measured() -> None:
    joined = server_files.batching({1: 10.0, 8: 40.0, 32: 200.0})
    assert "max_execution_batch_size { value: 32 }" in joined and "micros { value: 1000 }" in joined
    alone = server_files.batching({"1": 10.0, "8": 82.0, "32": 330.0})
    assert "max_execution_batch_size { value: 1 }" in alone and "micros { value: 0 }" in alone


# what is said beside answers, and what is refused


def facts_of(task: str = "image_classification", **changes: Any) -> contract.Contract:
    names = ("a", "b", "c")
    facts: dict[str, Any] = {
        "name": "x", "version": 1, "task": task, "modality": "image", "classes": names,
        "label_contract": contract.labels_digest(names), "thresholds": None,
        "inputs": ("image_bytes",), "text_inputs": (), "tokenizer_inside": True,
        "recipe_sha256": "", "run": "x", "created": "", "versions": {}, **changes,
    }  # fmt: skip
    return contract.Contract(**facts)


def classes_of(names: Any, shares: Any) -> dict[str, Any]:
    return {
        key: value.numpy()
        for key, value in graphs._classes(tf.constant(shares), Outputs(names)).items()
    }


SHARES = np.array([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]], np.float32)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("label", np.array([b"b", b"c"], object), "has not the class_id 0"),
        ("label", np.array([b"b", b"z"], object), "is no class"),
        ("class_id", np.array([1, -7]), "has not the class_id -7"),
        ("probability", np.array([0.7, 0.2]), "probability 0.2"),
        ("top_labels", np.array([list("bca"), list("acz")], object), "no classes of the run"),
        ("top_labels", np.array([list("bca"), list("abc")], object), "not the most probable"),
        ("top_probabilities", SHARES[:, [1, 2, 0]], "not the largest"),
        ("probabilities", np.ones((2, 4)), "expected"),
        ("label", None, "no output 'label'"),
    ],
)
def test_what_is_said_beside_probabilities_is_held_to_them(
    name: str, value: Any, expected: str
) -> None:
    facts, said = facts_of(), classes_of(("a", "b", "c"), SHARES)
    assert contradictions.contradictions(facts, said, 2) == ["", ""]
    changed = {**said, name: value}
    if value is None:
        del changed[name]
    assert expected in contradictions.contradictions(facts, changed, 2)[1]


def test_classes_in_another_order_contradict_their_numbers_and_ties_do_not() -> None:
    other = classes_of(("a", "c", "b"), SHARES)
    assert contradictions.contradictions(facts_of(), other, 2)[0] == (
        "label 'c' has not the class_id 1"
    )
    tie = classes_of(("a", "b", "c"), np.array([[0.4, 0.4, 0.2]], np.float32))
    tie |= {"label": np.array([b"b"], object), "class_id": np.array([1])}
    tie["top_labels"] = np.array([list("bac")], object)
    assert contradictions.contradictions(facts_of(), tie, 1) == [""]


def test_labels_are_held_to_the_thresholds_of_the_run() -> None:
    limits = (0.5, 0.6, 0.1)
    facts = facts_of("image_multilabel", thresholds=limits)

    def told(names: Any, limits: Any) -> dict[str, Any]:
        said = graphs._labels(tf.constant(SHARES), Outputs(names, thresholds=limits))
        return {key: value.numpy() for key, value in said.items()}

    right = told(facts.classes, limits)
    assert contradictions.contradictions(facts, right, 2) == ["", ""]  # 0.5 is near a threshold
    found = contradictions.contradictions(facts, told(facts.classes, (0.5, 0.8, 0.1)), 2)
    assert found == ["'b' is absent at 0.7, its threshold is 0.6", ""]
    found = contradictions.contradictions(facts, told(("a", "c", "b"), limits), 2)
    assert found[0] == "labels 'c; b' are not those that are present, 'b; c'"


def replayed(path: Path, change: Any = None, refused: int = 0) -> asked.Asked:
    """Returns what says what training said of the odd pictures, but for what is changed."""
    facts = contract.read(path)
    rows = json.loads((path / "assets.extra" / "verification.json").read_text())["odd"]
    raws = [ODD[row["name"]] for row in rows]
    arrays = expected.arrays_of_bundle(path / "assets.extra")(raws)["images"]
    known = {raw: np.asarray(row["expected"]) for raw, row in zip(raws, rows, strict=True)}
    known |= {x.tobytes(): known[raw] for x, raw in zip(arrays, raws, strict=True)}
    no = set(raws[:refused])

    def call(signature: str, inputs: Any) -> dict[str, Any]:
        (given,) = inputs.values()
        if signature == "classify":
            parsed = [tf.train.Example.FromString(x).features.feature for x in given]
            given = [x[graphs.PICTURE_FEATURE].bytes_list.value[0] for x in parsed]
        if signature == "arrays":
            given = [x.tobytes() for x in given]
        if no & set(given):
            raise ExportError(f"Operation failed: {pictures.REFUSAL}")
        shares = np.stack([known[x] for x in given]).astype(np.float32)
        said = classes_of(facts.classes, shares)
        if signature == "classify":
            said = {"classes": said["top_labels"], "scores": said["top_probabilities"]}
        return change(signature, said) if change else said

    inputs = {"serving_default": "image_bytes", "arrays": "images", "classify": "inputs"}
    return asked.Asked(path, facts, call, {key: frozenset([x]) for key, x in inputs.items()})


def swapped(names: Any) -> Any:
    other = {b"red": b"blue", b"blue": b"red"}
    return np.vectorize(lambda x: other.get(x, x), otypes=[object])(names)


@pytest.mark.parametrize(
    ("signature", "output", "change", "expected"),
    [
        ("serving_default", "label", swapped, "has not the class_id"),
        ("serving_default", "top_labels", swapped, "not the most probable"),
        ("serving_default", "probabilities", lambda x: x[:, ::-1], "is not the most probable"),
        (
            "serving_default",
            "probabilities",
            lambda x: np.pad(x, [(0, 0), (0, 1)]),
            r"shape \(4,\)",
        ),
        ("arrays", "label", swapped, "by 'arrays'"),
        ("arrays", "probabilities", lambda x: x[::-1] * 0, "by 'arrays'"),
        ("classify", "classes", swapped, "by 'classify'"),
        ("classify", "classes", lambda x: np.where(x == b"red", b"rot", x), "'rot' is no class"),
    ],
)
def test_another_order_of_labels_differs_in_every_signature(
    exported: tuple[Run, exports.Exported],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signature: str,
    output: str,
    change: Any,
    expected: str,
) -> None:
    path = exported[1].path

    def changed(called: str, said: dict[str, Any]) -> dict[str, Any]:
        return {**said, output: change(said[output])} if called == signature else said

    monkeypatch.setattr(asked, "of_graph", lambda *_: replayed(path))
    found = verification.verify(path, run=tmp_path)
    found.check(path)
    assert found.odd == len(ODD) and found.answers == 3 * len(ODD)
    monkeypatch.setattr(asked, "of_graph", lambda *_: replayed(path, changed))
    with pytest.raises(ExportError, match=expected):
        verification.verify(path, run=tmp_path).check(path)


def test_an_odd_picture_that_is_refused_is_a_difference(
    exported: tuple[Run, exports.Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = exported[1].path
    for count in (1, len(ODD)):
        monkeypatch.setattr(asked, "of_graph", lambda *_, n=count: replayed(path, refused=n))
        found = verification.verify(path, run=tmp_path)
        assert len(found.differences) == count and found.refused == ()
        with pytest.raises(ExportError, match="cannot be read here as training read"):
            found.check(path)


@pytest.mark.parametrize("share", [0.4, 0.6])
def test_examples_that_are_refused_are_told_and_are_not_most_of_them(
    exported: tuple[Run, exports.Exported],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
) -> None:
    path = exported[1].path
    names = list(ODD)[:10]
    record = json.loads((path / "assets.extra" / "verification.json").read_text())
    rows = [row for row in record["odd"] if row["name"] in names]
    own = [(row["name"], ODD[row["name"]], np.asarray(row["expected"])) for row in rows]
    monkeypatch.setattr(
        verification, "_record", lambda _: {**record, "odd": record["odd"][10:], "examples": rows}
    )
    monkeypatch.setattr(verification, "_examples", lambda *_: (own, "", [0] * len(own)))
    count = int(10 * share)
    monkeypatch.setattr(asked, "of_graph", lambda *_: replayed(path, refused=count))
    found = verification.verify(path)
    assert found.examples == 10 - count and len(found.refused) == count
    done = CliRunner().invoke(cli.main, ["verify", str(path)])
    if share > verification.MOST_REFUSED:
        assert done.exit_code == 1 and f"refuses {count} of 10 examples" in done.output
    else:
        assert done.exit_code == 0, done.output
        assert f"refused, and not compared: {count} examples of its data" in done.output


def test_a_report_keeps_names_and_has_no_numbers_that_json_has_not(
    exported: tuple[Run, exports.Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = verification.Verified(
        odd=1, examples=1, answers=2, missing="", refused=("Infinity.jpg",), largest=np.inf,
        agreement=0.5, latency={1: 2.0},
        differences=(verification.Difference("NaN.jpg", (1.0,), (np.nan,), np.inf),),
    )  # fmt: skip
    monkeypatch.setattr(verification, "verify", lambda *_, **__: found)
    report = tmp_path / "report.json"
    CliRunner().invoke(cli.main, ["verify", str(tmp_path), "--report", str(report)])
    content = json.loads(report.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content["refused"] == ["Infinity.jpg"] and content["largest"] is None
    assert content["differences"][0]["got"] == [None]


def test_what_is_no_number_in_training_is_refused(
    exported: tuple[Run, exports.Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = exported[0]
    served = graphs.Served.of(run)
    odd = [("plain.jpg", ODD["plain.jpg"], np.array([np.nan, 0.5, 0.5]))]
    monkeypatch.setattr(expected, "of_odd", lambda *_: iter(odd))
    with pytest.raises(ExportError, match=r"answers to plain\.jpg with what is no number"):
        verification.expectation(run, served, "none")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("thresholds", [0.5], "expected 3 thresholds"),
        ("thresholds", [0.5, 0.5, float("nan")], "expected 3 thresholds"),
        ("thresholds", [0.5, 0.5, "x"], "expected 3 thresholds"),
        ("task", "image_guessing", "task 'image_guessing' is unknown"),
        ("task", ["image_classification"], "is unknown"),
        ("modality", "text", "modality 'text'"),
        ("version", "1", "name or version"),
    ],
)
def test_a_contract_that_cannot_be_is_refused(
    tmp_path: Path, name: str, value: Any, expected: str
) -> None:
    contract.write(tmp_path, facts_of())
    assert contract.read(tmp_path) == facts_of()
    content = json.loads((tmp_path / "kft.json").read_text())
    (tmp_path / "kft.json").write_text(json.dumps({**content, name: value}))
    with pytest.raises(ExportError, match=expected):
        contract.read(tmp_path)


@pytest.mark.slow
def test_a_server_is_asked_for_the_version_that_was_given(
    exported: tuple[Run, exports.Exported], tmp_path: Path
) -> None:
    import serving_models

    base = tmp_path / "colours"
    shutil.copytree(exported[1].path, base / "1")
    with serving_models.running(base) as server:
        found = verification.verify(base / "1", url=server.url)
        found.check(base / "1")
        assert found.odd == len(ODD) and found.examples > 0
        assert found.answers == found.odd * 2 + 4 + found.examples
    (base / "1").rename(base / "2")
    with (
        serving_models.running(base) as server,
        pytest.raises(ServingError, match="/versions/1"),
    ):
        verification.verify(exported[1].path, url=server.url)


@pytest.mark.slow
def test_pictures_with_four_channels_are_exported_from_arrays(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for at in range(24):
        folder = tmp_path / "data" / ("dark", "light")[at % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 120, (40, 36, 4)) + at % 2 * 120
        np.save(folder / f"{at}.npy", pixels.astype(np.uint8))
    recipe = recipes.from_mapping(
        {
            "backbone": {
                "name": "mobilenet", "weights": "none", "image_size": 32, "channels": 4,
                "alpha": 0.25,
            },
            "data": {"source": "image_folder", "path": str(tmp_path / "data"), "batch_size": 8},
            "train": {
                "stages": [{"trainable_blocks": -1, "epochs": 1, "learning_rate": 1e-3}],
                "tensorboard": False,
            },
        }
    )  # fmt: skip
    run = workflow.fit(recipe, runs_dir=tmp_path / "runs", name="four")
    made = exports.export(run)
    assert made.report["odd"] == len(examples.odd_arrays(4)) and made.report["examples"] > 0
    assert contract.read(made.path).inputs == ("images",) and "1" in made.report["latency"]
    assert exports.export(run, examples=0).report["examples"] == 0


@pytest.mark.slow
def test_what_a_server_is_started_with_lies_there_before_the_version_does(
    exported: tuple[Run, exports.Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    write = server_files.write

    def watched(base: Path, *rest: Any) -> None:
        seen.append(exports.versions(base))
        write(base, *rest)

    monkeypatch.setattr(server_files, "write", watched)
    monkeypatch.setattr(exports, "_compared", lambda *_: exported[1].report)
    exports.export(exported[0], output=tmp_path / "models", examples=0)
    assert seen == [[], [1]]


def test_odd_arrays_are_read_as_pictures_of_their_channels() -> None:
    found = examples.odd_arrays(5)
    assert len(found) > 1
    for name, raw in found.items():
        read = images.decode_bytes(raw, (48, 64), name=name, channels=5)
        assert read.shape == (48, 64, 5) and read.std() > 20


def test_what_is_no_saved_model_is_not_served(tmp_path: Path) -> None:
    file = contract.File(
        format="litert", quantize="none", name="model.tflite", sha256={"model.tflite": ""},
        bytes=1, inputs=(), output="probabilities", pixels=(0, 255), batch=None, length=None,
    )  # fmt: skip
    version = tmp_path / "export" / "litert" / "1"
    version.mkdir(parents=True)
    contract.write(version, dataclasses.replace(facts_of(), file=file))
    for path in (version, version.parent):
        done = CliRunner().invoke(cli.main, ["serve", str(path)])
        said = done.output + str(done.exception)
        assert done.exit_code and "holds files of litert" in said
        assert f"such as those in '{tmp_path / 'export'}'" in said


def test_nothing_is_measured_of_nothing() -> None:
    assert verification._latency(lambda raw: pytest.fail("asked"), []) == {}
    assert "was not tried" in server_files.batching({})


LETTERS = "ABCDEFabcdef0123456789+/"


def byte_pairs(texts: list[str]) -> tuple[Any, vocabularies.BytePairs]:
    """Returns byte pairs that were learned from texts, of `tokenizers` and of TensorFlow."""
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1500, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    rules = vocabularies._byte_pairs(json.loads(made.to_str()))
    assert isinstance(rules, vocabularies.BytePairs)
    return made, rules


def test_long_words_are_merged_as_training_merges_them_in_no_more_memory_than_they_are_long() -> (
    None
):
    random = np.random.default_rng(0)

    def word(length: int) -> str:
        return "".join(random.choice(list(LETTERS), length))

    texts = [word(3000), "a good film " * 40 + word(700) + " and more", "xxxxxxx" * 30, "", " "]
    texts += [" ".join(word(size) for size in (1, 2, 31, 32, 33, 34)), "déjà " * 9 + "漢字" * 50]
    trained, rules = byte_pairs(texts)
    tokens = tf.function(rules.tokens, input_signature=[tf.TensorSpec((None,), tf.string)])
    graph = tokens.get_concrete_function()
    said = graph(tf.constant(texts)).to_list()
    assert said == [trained.encode(text).ids for text in texts]
    assert len(rules.merges) > 500 and max(map(len, said)) < 2500
    assert graph(tf.constant([], tf.string)).to_list() == []
    # One long word beside many short ones: a table of all would have 3000 x 2000 numbers.
    many = word(3000) + " y" * 2000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert graph(tf.constant([many])).to_list() == [trained.encode(many).ids]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000  # KiB
