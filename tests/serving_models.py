"""Tiny SavedModels as `kft export` writes them, and servers on free ports to ask them."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import queue
import shutil
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from kerastune_ft.serving import registry, server
from kerastune_ft.serving.server import Addresses, Settings

COLOURS = ("blue", "green", "red")
CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"


class Pictures(tf.Module):
    """Says how much of each colour there is: what a picture classifier's export answers."""

    def __init__(self, classes: tuple[str, ...] = COLOURS) -> None:
        super().__init__()
        self.scale = tf.Variable(8.0)
        self.classes = tf.constant(classes)

    def told(self, means: tf.Tensor) -> dict[str, tf.Tensor]:
        probabilities = tf.nn.softmax(tf.reverse(means, [1]) / 255 * self.scale)
        best = tf.argmax(probabilities, axis=1, output_type=tf.int32)
        top, order = tf.math.top_k(probabilities, 3)
        return {
            "label": tf.gather(self.classes, best),
            "class_id": best,
            "probability": tf.reduce_max(probabilities, axis=1),
            "probabilities": probabilities,
            "top_labels": tf.gather(self.classes, order),
            "top_probabilities": top,
        }

    def means(self, encoded: tf.Tensor) -> tf.Tensor:
        def mean(picture: tf.Tensor) -> tf.Tensor:
            pixels = tf.io.decode_image(picture, channels=3, expand_animations=False)
            return tf.reduce_mean(tf.cast(pixels, tf.float32), axis=[0, 1])

        return tf.map_fn(mean, encoded, fn_output_signature=tf.TensorSpec([3], tf.float32))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serve(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        return self.told(self.means(image_bytes))

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32, name="images")])
    def arrays(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        return self.told(tf.reduce_mean(images, axis=[1, 2]))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def classify(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        feature = tf.io.FixedLenFeature([], tf.string)
        parsed = tf.io.parse_example(inputs, {"image/encoded": feature})
        found = self.told(self.means(parsed["image/encoded"]))
        return {"classes": found["top_labels"], "scores": found["top_probabilities"]}


class Texts(tf.Module):
    """Counts letters: what the export of a classifier of pairs of texts answers."""

    def told(self, text: tf.Tensor, pair: tf.Tensor) -> dict[str, tf.Tensor]:
        lengths = tf.stack([tf.strings.length(text), tf.strings.length(pair)], axis=1)
        probabilities = tf.nn.softmax(tf.cast(lengths, tf.float32))
        best = tf.argmax(probabilities, axis=1, output_type=tf.int32)
        return {
            "label": tf.gather(tf.constant(["first", "second"]), best),
            "class_id": best,
            "probability": tf.reduce_max(probabilities, axis=1),
            "probabilities": probabilities,
        }

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, name="text"),
            tf.TensorSpec([None], tf.string, name="pair"),
        ]
    )
    def serve(self, text: tf.Tensor, pair: tf.Tensor) -> dict[str, tf.Tensor]:
        return self.told(text, pair)


class SeveralLabels(Pictures):
    """Every colour that there is enough of."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serve(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        probabilities = tf.reverse(self.means(image_bytes), [1]) / 255
        present = probabilities >= 0.5
        spoken = tf.where(present, self.classes[None], "")
        return {
            "probabilities": probabilities,
            "present": present,
            "labels": tf.strings.reduce_join(spoken, axis=1, separator=" "),
        }


class Numbers(Pictures):
    """The mean of each colour, as the export of a regression answers."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serve(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"values": self.means(image_bytes)}


class Words(tf.Module):
    """Tags words and writes: what exports answer that are as wide as the longest text."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def tags(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        words = tf.strings.split(text)
        named = tf.strings.regex_full_match(words.to_tensor(""), "[A-Z].*")
        tagged = tf.strings.regex_replace(words, "^[A-Z].*$", "NAME")
        tagged = tf.strings.regex_replace(tagged, "^[a-z].*$", "O")
        return {
            "tags": tf.strings.reduce_join(tagged, axis=1, separator=" "),
            "word_tags": tagged.to_tensor(""),
            "word_probabilities": tf.one_hot(tf.cast(named, tf.int32), 2, 0.75, 0.25),
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def write(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        letters = tf.strings.unicode_decode(tf.strings.upper(text), "UTF-8")
        return {"written_ids": letters.to_tensor(0), "written": tf.strings.upper(text)}


def write_words(base: Path, signature: str) -> Path:
    """Writes a model that tags (`tags`) or writes (`write`); returns its version."""
    module = Words()
    task = {"tags": "token_classification", "write": "text_generation"}[signature]
    more = {"text_inputs": ["text"], "tokenizer_inside": True}
    classes = ("O", "NAME") if signature == "tags" else ()
    facts = facts_of(task, "text", classes, **more)
    return save(module, base / "1", {"serving_default": getattr(module, signature)}, facts=facts)


class Toys(tf.Module):
    """Signatures of all kinds: those of TensorFlow Serving's documentation, and awkward ones."""

    def __init__(self) -> None:
        super().__init__()
        self.half = tf.Variable(0.5)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def half_plus_three(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x * self.half + 3}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, name="tag"),
            tf.TensorSpec([None, 5], tf.float32, name="signal"),
            tf.TensorSpec([None, 2, 2], tf.int32, name="sensor"),
        ]
    )
    def named(self, tag: tf.Tensor, signal: tf.Tensor, sensor: tf.Tensor) -> dict[str, tf.Tensor]:
        return {
            "tag": tag,
            "total": tf.reduce_sum(signal, axis=1),
            "transposed": tf.transpose(sensor, [0, 2, 1]),
        }

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], kind, name=name)
            for name, kind in (
                ("truth", tf.bool),
                ("byte", tf.uint8),
                ("small", tf.int8),
                ("whole", tf.int32),
                ("long", tf.int64),
                ("single", tf.float32),
                ("double", tf.float64),
                ("word", tf.string),
            )
        ]
    )
    def kinds(self, truth, byte, small, whole, long, single, double, word):
        return {
            "truth": truth,
            "byte": byte,
            "small": small,
            "whole": whole,
            "long": long,
            "single": single,
            "double": double,
            "word": word,
            "word_bytes": word,
        }

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="x")])
    def matrix(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x * 2, "first": x[:, 0]}

    @tf.function(input_signature=[tf.TensorSpec(None, tf.float32, name="x")])
    def total(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"total": tf.reduce_sum(x)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def fussy(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.control_dependencies([tf.debugging.assert_non_negative(x, "no number below 0")]):
            return {"root": tf.sqrt(x)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="steps")])
    def slow(self, steps: tf.Tensor) -> dict[str, tf.Tensor]:
        end = tf.reduce_max(steps)
        count = tf.while_loop(
            lambda i: i < end, lambda i: (i + 1,), [tf.constant(0)], parallel_iterations=1
        )
        return {"steps": steps + 0 * count[0]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def regress(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([], tf.float32)})
        return {"outputs": parsed["x"] * self.half + 3}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def features(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(
            inputs,
            {
                "number": tf.io.FixedLenFeature([], tf.float32, default_value=0.0),
                "count": tf.io.VarLenFeature(tf.int64),
                "word": tf.io.FixedLenFeature([], tf.string, default_value=""),
            },
        )
        counts = tf.cast(tf.reduce_sum(tf.sparse.to_dense(parsed["count"]), axis=1), tf.float32)
        return {
            "classes": tf.stack([parsed["word"], tf.fill(tf.shape(parsed["word"]), "x")], axis=1),
            "scores": tf.stack([parsed["number"], counts], axis=1),
        }


def save(
    module: tf.Module,
    folder: Path,
    signatures: dict[str, Any],
    methods: dict[str, str] | None = None,
    facts: dict[str, Any] | None = None,
) -> Path:
    """Writes one version, and what it says of itself."""
    tf.saved_model.save(module, str(folder), signatures=signatures)
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(str(folder))
    for name, method in (methods or {}).items():
        updater.replace_method_name(name, method, tags="serve")
    updater.save(str(folder))
    if facts is not None:
        (folder / "assets.extra").mkdir(exist_ok=True)
        (folder / "assets.extra" / "kft.json").write_text(json.dumps(facts))
    return folder


def facts_of(task: str, modality: str, classes: tuple[str, ...], **more: Any) -> dict[str, Any]:
    """What `kft.json` says, as far as a server reads it."""
    return {
        "format": 1,
        "name": "colours",
        "version": 1,
        "task": task,
        "modality": modality,
        "classes": list(classes),
        "thresholds": None,
        **more,
    }


def write_pictures(base: Path, version: int = 1, classes: tuple[str, ...] = COLOURS) -> Path:
    """Writes a version of the picture classifier; returns the base folder."""
    module = Pictures(classes)
    signatures = {
        "serving_default": module.serve,
        "arrays": module.arrays,
        "classify": module.classify,
    }
    facts = facts_of("image_classification", "image", classes)
    save(module, base / str(version), signatures, {"classify": CLASSIFY}, facts)
    return base


def write_toys(base: Path) -> Path:
    """Writes the awkward model; returns the base folder."""
    module = Toys()
    signatures = {
        "serving_default": module.half_plus_three,
        "named": module.named,
        "kinds": module.kinds,
        "matrix": module.matrix,
        "total": module.total,
        "fussy": module.fussy,
        "slow": module.slow,
        "regress": module.regress,
        "features": module.features,
    }
    save(module, base / "1", signatures, {"regress": REGRESS, "features": CLASSIFY})
    return base


def picture(colour: str, size: tuple[int, int] = (6, 4), kind: str = "PNG") -> bytes:
    """Returns a picture file of one colour."""
    values = {"blue": (20, 30, 220), "green": (30, 210, 20), "red": (220, 30, 20)}
    file = io.BytesIO()
    Image.new("RGB", size, values[colour]).save(file, kind)
    return file.getvalue()


@dataclass(frozen=True)
class Answer:
    """What a server said."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    url: str,
    path: str,
    body: Any = None,
    method: str | None = None,
    headers: dict[str, str] | None = None,
    timeout: float = 60,
) -> Answer:
    """Asks a server; a body that is no bytes is sent as JSON."""
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
    with contextlib.closing(connection):
        connection.request(method or ("GET" if body is None else "POST"), path, body, headers or {})
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, response.read())


@dataclass
class Running:
    """A server in another thread."""

    addresses: Addresses
    said: list[str]
    stop: threading.Event
    thread: threading.Thread

    @property
    def url(self) -> str:
        return self.addresses.rest

    @property
    def model(self) -> str:
        return f"/v1/models/{self.addresses.model}"

    def ask(self, suffix: str, body: Any = None, **more: Any) -> Answer:
        """Asks about the model: `:predict`, `/metadata`."""
        return ask(self.url, self.model + suffix, body, **more)

    def figure(self, line: str) -> float:
        """Returns a figure of the metrics by how its line begins; 0 if it is not there."""
        text = ask(self.url, "/monitoring/prometheus/metrics").body.decode()
        found = [row for row in text.splitlines() if row.startswith(line + " ")]
        return float(found[0].rpartition(" ")[2]) if found else 0.0

    def states(self) -> dict[int, str]:
        """Returns the state of every version."""
        listed = self.ask("").json["model_version_status"]
        return {int(row["version"]): row["state"] for row in listed}


@contextlib.contextmanager
def running(export: Path, **settings: Any) -> Iterator[Running]:
    """Serves an export on free ports until the block ends."""
    settings = {"port": 0, "grpc_port": None, "poll_seconds": 0.1, "drain_seconds": 20, **settings}
    begun: queue.Queue[Addresses | BaseException] = queue.Queue()
    said: list[str] = []
    stop = threading.Event()

    def run() -> None:
        try:
            found = registry.find(export)
            server.serve(found, Settings(**settings), said.append, begun.put, stop)
        except BaseException as error:
            begun.put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    first = begun.get(timeout=120)
    if isinstance(first, BaseException):
        raise first
    try:
        yield Running(first, said, stop, thread)
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive(), "the server does not end"


def until(condition: Any, seconds: float = 30) -> None:
    """Waits until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not become so in time"
        time.sleep(0.02)


def steps_for(found: Running, seconds: float) -> int:
    """Returns how many steps keep this machine busy for so long in the signature `slow`."""
    steps = 2000
    while True:
        begin = time.perf_counter()
        assert found.ask(":predict", slow(steps)).status == 200
        took = time.perf_counter() - begin
        if took > 0.2:
            return int(steps * seconds / took)
        steps *= 2


def slow(steps: int) -> dict[str, Any]:
    """Returns a request that keeps the model busy."""
    return {"signature_name": "slow", "instances": [int(steps)]}


def new_version(base: Path, number: int, source: Path) -> None:
    """Lets a version appear as an export does: whole, by a rename."""
    shutil.copytree(source, base / f".{number}")
    (base / f".{number}").rename(base / str(number))


def as_lists(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns arrays as nested lists, strings as text."""
    return {
        name: [value.decode() for value in array] if array.dtype == object else array.tolist()
        for name, array in arrays.items()
    }
