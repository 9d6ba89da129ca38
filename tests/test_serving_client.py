"""The client, against a server: what was sent and what comes back, and what it says of failures."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_models import (
    COLOURS,
    Running,
    picture,
    running,
    write_pictures,
    write_toys,
)

from kerastune_ft.errors import KftError, ServingError
from kerastune_ft.serving import client, signatures


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toys(tmp_path_factory.mktemp("toys") / "toys")


@pytest.fixture(scope="module")
def server(toys: Path) -> Iterator[Running]:
    with running(toys) as found:
        yield found


KINDS: dict[str, Any] = {
    "truth": np.array([True, False]),
    "byte": np.array([0, 255], np.uint8),
    "small": np.array([-128, 127], np.int8),
    "whole": np.array([-7, 7], np.int32),
    "long": np.array([-(2**62), 2**62]),
    "single": np.array([0.2, np.nan], np.float32),
    "double": np.array([1e300, -np.inf]),
    "word": np.array([b"\xff\x00", "ü".encode()], object),
}


def test_answers_have_the_types_and_shapes_of_the_signature(server: Running, toys: Path) -> None:
    """Compared with the SavedModel itself."""
    inputs: dict[str, dict[str, Any]] = {
        "serving_default": {"x": np.array([1, 2, 5], np.float32)},
        "kinds": {**KINDS, "word": np.array([b"plain", "ü".encode()], object)},
        "matrix": {"x": np.arange(6, dtype=np.float32).reshape(3, 2)},
        "total": {"x": np.ones((2, 3), np.float32)},
    }
    model = signatures.load(toys / "1")
    for name, arrays in inputs.items():
        found = client.predict(server.url, "toys", name, arrays, version=1)
        expected = model.signature(name).run(arrays)
        assert found.keys() == expected.keys()
        for key, array in expected.items():
            np.testing.assert_array_equal(found[key], array)
            assert found[key].dtype == array.dtype
            assert found[key].shape == array.shape


def test_bytes_are_sent_as_they_are_and_come_back_so(server: Running) -> None:
    found = client.predict(server.url + "/", "toys", "kinds", KINDS)
    assert found["word_bytes"].tolist() == [b"\xff\x00", "ü".encode()]
    text = {**KINDS, "word": ["ä", "b"]}
    assert client.predict(server.url, "toys", "kinds", text)["word"].tolist() == [
        "ä".encode(),
        b"b",
    ]


def test_pictures_are_asked_about(tmp_path: Path) -> None:
    with running(write_pictures(tmp_path / "export")) as found:
        files = [picture(name) for name in COLOURS]
        told = client.predict(found.url, "colours", "serving_default", {"image_bytes": files})
        assert [label.decode() for label in told["label"]] == list(COLOURS)
        assert told["probabilities"].dtype == np.float32
        assert told["probabilities"].shape == (3, 3)
        assert told["class_id"].dtype == np.int32
        pixels = np.zeros((2, 3, 4, 3), np.float32)
        arrays = client.predict(found.url, "colours", "arrays", {"images": pixels})
        np.testing.assert_allclose(arrays["probabilities"], np.full((2, 3), 1 / 3), rtol=1e-6)


def test_metadata_names_inputs_and_outputs(server: Running) -> None:
    found = client.metadata(server.url, "toys")
    assert "serving_default" in found
    assert not any(name.startswith("__") for name in found)
    assert found["matrix"]["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert sorted(found["matrix"]["outputs"]) == ["first", "y"]
    assert found["regress"]["method_name"] == "tensorflow/serving/regress"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "half"}, "404: Servable not found"),
        ({"signature": "nobody"}, "has no signature 'nobody'; there are: .*serving_default"),
        ({"inputs": {"x": ["a"]}}, "400: .*not of expected type"),
        ({"version": 9}, "404: .*toys, 9"),
        ({"url": "127.0.0.1:8501"}, "expected an address such as http://"),
        ({"url": "file:///etc/passwd"}, "expected an address such as http://"),
        ({"url": "http://127.0.0.1:1"}, "is the server running"),
        ({"url": "http://no-such-host.invalid"}, "is the server running"),
    ],
)
def test_what_goes_wrong_is_an_error_of_the_users(
    server: Running, change: dict[str, Any], said: str
) -> None:
    asked: dict[str, Any] = {
        "url": server.url,
        "name": "toys",
        "signature": "serving_default",
        "inputs": {"x": [1.0]},
        "timeout": 20,
        **change,
    }
    with pytest.raises(ServingError, match=said):
        client.predict(**asked)
    assert issubclass(ServingError, KftError)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"hello", "no JSON"),
        (b"[1]", "no JSON object"),
        (b"{}", "not TensorFlow Serving's API"),
        (b'{"metadata": {"signature_def": [1]}}', "not TensorFlow Serving's API"),
    ],
)
def test_another_server_at_the_address_is_noticed(answer: bytes, said: str) -> None:
    with pytest.raises(ServingError, match=said), other(lambda path: answer) as url:
        client.metadata(url, "toys")


def test_answers_of_another_server_are_read_as_well() -> None:
    """With `@type` in the metadata, as other servers of the same API write it."""
    listed = {
        "serving_default": {
            "inputs": {"x": {"dtype": "DT_FLOAT"}},
            "outputs": {"y": {"dtype": "DT_FLOAT"}},
            "method_name": "tensorflow/serving/predict",
        }
    }
    described = {
        "metadata": {
            "signature_def": {
                "@type": "type.googleapis.com/tensorflow.serving.SignatureDefMap",
                "signature_def": listed,
            }
        }
    }

    def answer(path: str) -> bytes:
        return json.dumps(described if "metadata" in path else {"outputs": [1.5]}).encode()

    with other(answer) as url:
        found = client.predict(url, "m", "serving_default", {"x": [1.0]})
    assert found["y"].tolist() == [1.5]
    assert found["y"].dtype == np.float32


class other:  # noqa: N801
    """A server that answers something of the test's own."""

    def __init__(self, answer: Any) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                text = answer(self.path)
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_the_client_needs_no_framework() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from kerastune_ft.serving import client; "
        "print([m for m in ('tensorflow', 'keras', 'grpc', 'starlette') if m in sys.modules])"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr
