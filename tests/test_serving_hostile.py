"""What clients send out of malice or by mistake: refused with a reason, and nobody else is harmed.

The model reads pictures by the graph of every export. Each bad request is sent among good ones that
it is computed together with; each of those must get its own answer.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import math
import re
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from serving_models import Answer, Running, ask, facts_of, running, save, until, write_toys
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from kerastune_ft.data import inspection
from kerastune_ft.data.decoding import Preparation
from kerastune_ft.exports import pictures
from kerastune_ft.serving.batching import Limits
from kerastune_ft.serving.service import Bounds

SIDE = 16
NEIGHBOURS = 6


class Means(tf.Module):
    """Says how much of each colour there is in a picture, read as an export reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = pictures.Reader(Preparation((SIDE, SIDE)))
        self.scale = tf.Variable(1.0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serve(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        images = self.reader.batch(image_bytes)
        return {"means": self.scale * tf.reduce_mean(images, axis=[1, 2])}

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32, name="images")])
    def arrays(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"means": self.scale * tf.reduce_mean(self.reader.arrays(images), axis=[1, 2])}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    base = tmp_path_factory.mktemp("means") / "export"
    module = Means()
    signatures = {"serving_default": module.serve, "arrays": module.arrays}
    facts = facts_of("image_classification", "image", ("a", "b", "c"))
    save(module, base / "1", signatures, facts={**facts, "name": "means"})
    # Long enough for neighbours to be joined on a busy machine.
    with running(base, grpc_port=0, limits=Limits(wait_seconds=0.2)) as found:
        yield found


@pytest.fixture(scope="module")
def stub(server: Running) -> Iterator[Any]:
    unbounded = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(str(server.addresses.grpc), unbounded) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def picture(colour: tuple[int, int, int], kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), colour).save(file, kind, **options)
    return file.getvalue()


def noise(kind: str, frames: int = 1, **options: Any) -> bytes:
    random = np.random.default_rng(0)
    made = [
        Image.fromarray(random.integers(0, 255, (24, 32, 3)).astype(np.uint8))
        for _ in range(frames)
    ]
    file = io.BytesIO()
    if frames > 1:
        options |= {"save_all": True, "append_images": made[1:]}
    made[0].save(file, kind, **options)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """Returns a PNG of few bytes and many pixels, whole and right in itself."""

    def chunk(name: bytes, content: bytes) -> bytes:
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    pressed, packer = [], zlib.compressobj(9)
    row = b"\x00" * (1 + (width + 7) // 8)
    for _ in range(height):
        pressed.append(packer.compress(row))
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    content = b"".join(pressed) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", content)
        + chunk(b"IEND", b"")
    )


BOMB = bomb(10_000, 9_000)

PICTURES: dict[str, tuple[bytes, str]] = {
    "a truncated JPEG": (noise("JPEG")[:400], "[Jj]peg|JPEG|Uncompress"),
    "a truncated PNG": (noise("PNG")[:400], "PNG"),
    "a truncated WebP": (noise("WEBP", lossless=True)[:400], "WebP"),
    "a truncated BMP": (noise("BMP")[:400], "Input size should match"),
    "a decompression bomb": (BOMB, "at most 89,478,485 pixels"),
    "a header that claims 2^31 rows": (
        noise("PNG").replace(struct.pack(">II", 32, 24), struct.pack(">II", 32, 2**31 - 1)),
        "PNG|at most 89,478,485 pixels",
    ),
    "an animated GIF": (noise("GIF", 3), "expected a JPEG"),
    "an animated WebP": (noise("WEBP", 3), "without transparency and animation"),
    "a TIFF": (noise("TIFF"), "expected a JPEG"),
    "a text": (b"no picture at all", "expected a JPEG"),
    "nothing": (b"", "expected a JPEG"),
    "zeros": (bytes(10_000), "expected a JPEG"),
    "an archive": (b"PK\x03\x04" + bytes(200), "expected a JPEG"),
    "XML that would grow": (b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "&b;">]>', "expected"),
    "the beginning of a JPEG alone": (b"\xff\xd8\xff", "expected a JPEG"),
}


def rest(server: Running, image: bytes) -> Answer:
    row = {"b64": base64.b64encode(image).decode()}
    return server.ask(":predict", {"instances": [row]})


def request_of(server: Running, signature: str = "", **inputs: Any) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = server.addresses.model
    request.model_spec.signature_name = signature
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return request


def refusal(stub: Any, request: predict_pb2.PredictRequest) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(request, timeout=60)
    return caught.value


def clear(said: str, expected: str) -> None:
    """Fails unless a message says what is wrong, and nothing of the graph or of our files."""
    assert re.search(expected, said), said
    for word in ("node", "Traceback", "site-packages", str(Path(__file__).parents[1]), "\n"):
        assert word not in said, said


@pytest.mark.parametrize("case", PICTURES)
def test_a_bad_picture_is_refused_and_its_neighbours_are_answered(
    server: Running, stub: Any, case: str
) -> None:
    bad, expected = PICTURES[case]
    failed = server.figure('kft_batches_failed_total{signature="serving_default"}')
    colours = [(40 * at, 255 - 40 * at, 7 * at) for at in range(NEIGHBOURS)]

    def good(colour: tuple[int, int, int]) -> list[float]:
        return rest(server, picture(colour)).json["predictions"][0]

    with ThreadPoolExecutor(NEIGHBOURS + 2) as pool:
        answers = [pool.submit(good, colour) for colour in colours[:3]]
        by_rest = pool.submit(rest, server, bad)
        by_grpc = pool.submit(refusal, stub, request_of(server, image_bytes=[bad]))
        answers += [pool.submit(good, colour) for colour in colours[3:]]
        for colour, answer in zip(colours, answers, strict=True):
            assert answer.result() == list(colour)
    assert by_rest.result().status == 400
    clear(by_rest.result().json["error"], expected)
    assert by_grpc.result().code() is grpc.StatusCode.INVALID_ARGUMENT
    clear(by_grpc.result().details(), expected)
    after = server.figure('kft_batches_failed_total{signature="serving_default"}')
    assert after > failed, "it was not computed together with others"


def test_the_bomb_is_one_and_training_refuses_it_too() -> None:
    assert len(BOMB) < 100_000
    found = inspection.inspect(BOMB)
    assert isinstance(found, inspection.Unusable)
    assert found.kind == "too_large"


def test_a_bad_picture_among_good_ones_of_one_request_fails_that_request_alone(
    server: Running,
) -> None:
    rows = [picture((9, 9, 9)), b"no picture", picture((8, 8, 8))]
    body = {"instances": [{"b64": base64.b64encode(row).decode()} for row in rows]}
    found = server.ask(":predict", body)
    assert found.status == 400
    assert list(found.json) == ["error"]
    assert rest(server, rows[0]).json["predictions"] == [[9, 9, 9]]


PIXELS = [[[10.0, 20.0, 30.0]] * 5] * 4

ARRAYS: dict[str, tuple[Any, str]] = {
    "NaN": ([[[[math.nan, 0.0, 0.0]] * 5] * 4], "expected numbers in 0..255"),
    "infinity": ([[[[math.inf, 0.0, 0.0]] * 5] * 4], "expected numbers in 0..255"),
    "negative numbers": ([[[[-1.0, 0.0, 0.0]] * 5] * 4], "expected numbers in 0..255"),
    "numbers that are too large": ([[[[0.0, 256.0, 0.0]] * 5] * 4], "expected numbers in 0..255"),
    "four channels": ([[[[1.0] * 4] * 5] * 4], r"expected float32 \(any, any, any, 3\), got shape"),
    "no channels": ([[[1.0] * 5] * 4], r"expected float32 \(any, any, any, 3\), got shape"),
    "numbers alone": ([1.0, 2.0], r"expected float32 \(any, any, any, 3\), got shape"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_a_bad_array_is_refused_and_its_neighbour_is_answered(
    server: Running, stub: Any, case: str
) -> None:
    rows, expected = ARRAYS[case]

    def asked(instances: Any) -> Answer:
        return server.ask(":predict", {"signature_name": "arrays", "instances": instances})

    request = request_of(server, "arrays", images=np.asarray(rows, np.float32))
    with ThreadPoolExecutor(3) as pool:
        by_rest, by_grpc = pool.submit(asked, rows), pool.submit(refusal, stub, request)
        good = pool.submit(asked, [PIXELS])
    assert by_rest.result().status == 400
    clear(by_rest.result().json["error"], expected)
    assert by_grpc.result().code() is grpc.StatusCode.INVALID_ARGUMENT
    clear(by_grpc.result().details(), expected)
    assert good.result().json == {"predictions": [[10, 20, 30]]}


def test_a_body_of_a_hundred_megabytes_is_refused_however_it_comes(
    server: Running, stub: Any
) -> None:
    size = 100_000_000
    host = server.url.removeprefix("http://")
    begin = time.monotonic()

    def asked(chunked: bool) -> Answer:
        connection = http.client.HTTPConnection(host, timeout=60)
        pieces = (b" " * 1_000_000 for _ in range(size // 1_000_000))
        headers = {} if chunked else {"Content-Length": str(size)}
        with contextlib.closing(connection):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(
                    "POST", server.model + ":predict", pieces, headers, encode_chunked=chunked
                )
            response = connection.getresponse()
            return Answer(response.status, {}, response.read())

    for chunked in (False, True):
        found = asked(chunked)
        assert found.status == 413
        clear(found.json["error"], "too large: at most 33554432 bytes")
        assert rest(server, picture((1, 2, 3))).json["predictions"] == [[1, 2, 3]]
    request = request_of(server, image_bytes=[b" " * size])
    error = refusal(stub, request)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    clear(error.details(), "larger than max|too large")
    assert rest(server, picture((1, 2, 3))).json["predictions"] == [[1, 2, 3]]
    assert server.figure("kft_open_requests") == 0
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "..", "means/../means", "means\x00", "C:\\x"]
)
def test_the_name_of_a_model_is_never_a_path(server: Running, stub: Any, name: str) -> None:
    quoted = "".join(f"%{octet:02x}" for octet in name.encode())
    body = {"instances": [{"b64": base64.b64encode(picture((1, 2, 3))).decode()}]}
    found = ask(server.url, f"/v1/models/{quoted}:predict", body)
    assert found.status == 404
    clear(found.json["error"], "Servable not found for request")
    if "/" in name:
        assert ask(server.url, f"/v1/models/{name}:predict", body).status == 400
    request = request_of(server, image_bytes=[picture((1, 2, 3))])
    request.model_spec.name = name
    error = refusal(stub, request)
    assert error.code() is grpc.StatusCode.NOT_FOUND
    clear(error.details(), "Servable not found for request")


# Slow clients


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    base = write_toys(tmp_path_factory.mktemp("toys") / "toys")
    with running(base, grpc_port=0, bounds=Bounds(seconds=0.8)) as found:
        yield found


def opened(found: Running) -> socket.socket:
    host, _, port = found.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def head(found: Running, length: int) -> bytes:
    return (
        f"POST {found.model}:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n".encode()
    )


def received(connection: socket.socket) -> bytes:
    """Reads until the server closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            parts.append(part)
    return b"".join(parts)


def dripped(connection: socket.socket, octets: bytes, seconds: float) -> None:
    """Sends an octet at a time for so long, or until the server has had enough."""
    end, at = time.monotonic() + seconds, 0
    connection.setblocking(False)
    with contextlib.suppress(OSError):
        while time.monotonic() < end:
            connection.send(octets[at % len(octets) :][:1])
            at += 1
            time.sleep(0.05)
            with contextlib.suppress(BlockingIOError):
                if connection.recv(1, socket.MSG_PEEK) is not None:
                    break
    connection.settimeout(30)


def answered(found: Running) -> bool:
    return found.ask(":predict", {"instances": [1.0]}).json == {"predictions": [3.5]}


def test_a_header_that_comes_drop_by_drop_is_given_up(impatient: Running) -> None:
    with opened(impatient) as connection:
        begin = time.monotonic()
        dripped(connection, head(impatient, 10), 10)
        said = received(connection)
        assert 0.5 < time.monotonic() - begin < 5
    assert said.startswith(b"HTTP/1.1 408 ")
    assert json.loads(said.partition(b"\r\n\r\n")[2]) == {
        "error": "the request did not arrive in time."
    }
    assert answered(impatient)


def test_a_body_that_comes_drop_by_drop_is_given_up(impatient: Running) -> None:
    with opened(impatient) as connection:
        connection.sendall(head(impatient, 1000) + b"\r\n")
        begin = time.monotonic()
        dripped(connection, b" ", 10)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 408 ")
        assert 0.5 < time.monotonic() - begin < 5
        dripped(connection, b" ", 0.3)  # nobody reads what was refused for ever
        received(connection)
        assert time.monotonic() - begin < 8
    assert answered(impatient)


def test_a_connection_without_a_request_is_closed(impatient: Running) -> None:
    with opened(impatient) as connection:
        begin = time.monotonic()
        assert received(connection) == b""
        assert time.monotonic() - begin < 5


def test_the_second_request_of_a_connection_is_bounded_like_the_first(impatient: Running) -> None:
    body = b'{"instances": [1.0]}'
    with opened(impatient) as connection:
        for _ in range(2):
            connection.sendall(head(impatient, len(body)) + b"\r\n" + body)
            said = b""
            while not said.endswith(b'{"predictions": [3.5]}'):  # it may come in two parts
                part = connection.recv(65_536)
                assert part, said
                said += part
            time.sleep(1.2)  # longer than a request may take: the connection itself is kept
        connection.sendall(b"POST /v1")
        begin = time.monotonic()
        assert received(connection).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - begin < 5


def test_slow_clients_keep_no_place_from_others(impatient: Running) -> None:
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(opened(impatient)) for _ in range(200)]
        for at, connection in enumerate(slow):
            connection.sendall(head(impatient, 100)[: at % 60] + (b"\r\n" if at % 2 else b""))
        host, _, port = str(impatient.addresses.grpc).partition(":")
        for text in (b"PRI * HTTP/2.0\r\n", b"\x00", b""):
            connection = stack.enter_context(socket.create_connection((host, int(port)), 30))
            connection.sendall(text)
        begin = time.monotonic()
        assert all(answered(impatient) for _ in range(10))
        with grpc.insecure_channel(str(impatient.addresses.grpc)) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            request = request_of(impatient, x=np.array([1.0], np.float32))
            outputs = stub.Predict(request, timeout=30).outputs
            assert tf.make_ndarray(outputs["y"]).tolist() == [3.5]
        assert time.monotonic() - begin < 5
        for connection in slow:
            received(connection)
    until(lambda: impatient.figure("kft_open_requests") == 0, 5)
