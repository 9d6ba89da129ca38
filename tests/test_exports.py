"""Exports: what is read, what is refused, and that nothing is seen that answers otherwise."""

from __future__ import annotations

import io
import json
import shutil
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_text_tasks
from conftest import write_photos
from PIL import Image

from kerastune_ft import exports, predictions, workflow
from kerastune_ft import recipe as recipes
from kerastune_ft.backbones.tokenizers import Tokenizer
from kerastune_ft.data import images, inspection
from kerastune_ft.data.decoding import Preparation
from kerastune_ft.errors import ExportError, RunError
from kerastune_ft.exports import (
    contract,
    examples,
    graphs,
    operations,
    pictures,
    server_files,
    verification,
)
from kerastune_ft.exports.texts import Inside
from kerastune_ft.runs import Run

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
