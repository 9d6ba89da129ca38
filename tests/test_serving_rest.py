"""The REST API, held against TensorFlow Serving's documentation over real sockets."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import math
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from serving_models import (
    COLOURS,
    Answer,
    Running,
    ask,
    picture,
    running,
    slow,
    steps_for,
    until,
    write_pictures,
    write_toys,
)

from kerastune_ft.serving.batching import Limits
from kerastune_ft.serving.service import Bounds

PAGE = "https://www.tensorflow.org/tfx/serving/api_rest"
"""What TensorFlow Serving's API is; the table below names its sections."""
CODE = "https://github.com/tensorflow/serving: tensorflow_serving/"
"""Where the page says nothing: the server's own source."""


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toys(tmp_path_factory.mktemp("toys") / "toys")


@pytest.fixture(scope="module")
def server(toys: Path) -> Iterator[Running]:
    with running(toys, labels={"stable": 1, "gone": 7}) as found:
        yield found


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    base = write_pictures(tmp_path_factory.mktemp("pictures") / "export")
    with running(base) as found:
        yield found


def kinds(**changed: Any) -> dict[str, Any]:
    """Returns one value for each input of the signature `kinds`."""
    return {
        "truth": True,
        "byte": 255,
        "small": -128,
        "whole": -7,
        "long": 2**62,
        "single": 0.2,
        "double": 1e300,
        "word": "Hello World!",
        **changed,
    }


# method and path; body; status; what the answer is, or a part of what it says; the source.
DOCUMENTED: dict[str, tuple[str, Any, int, Any, str]] = {
    "row format, one input: a list of scalars": (
        "POST :predict",
        {"instances": [1.0, 2.0, 5.0]},
        200,
        {"predictions": [3.5, 4.0, 5.5]},
        "Example > Make REST API calls to ModelServer",
    ),
    "row format, one input by its name": (
        "POST :predict",
        {"instances": [{"x": 1.0}, {"x": 2.0}]},
        200,
        {"predictions": [3.5, 4.0]},
        "Predict API > Specifying input tensors in row format",
    ),
    "column format, one input without its name": (
        "POST :predict",
        {"inputs": [1.0, 2.0]},
        200,
        {"outputs": [3.5, 4.0]},
        "Predict API > Specifying input tensors in column format",
    ),
    "column format, one input by its name": (
        "POST :predict",
        {"inputs": {"x": [1.0, 2.0]}},
        200,
        {"outputs": [3.5, 4.0]},
        "Predict API > Specifying input tensors in column format",
    ),
    "whole numbers are numbers": (
        "POST :predict",
        {"instances": [1, 2]},
        200,
        {"predictions": [3.5, 4.0]},
        "JSON mapping",
    ),
    "exponent notation is accepted": (
        "POST :predict",
        b'{"instances": [1e0, 2.0E+0]}',
        200,
        {"predictions": [3.5, 4.0]},
        "JSON mapping",
    ),
    "lists of one more dimension": (
        "POST :predict",
        {"signature_name": "matrix", "instances": [[1, 2], [3, 4]]},
        200,
        {"predictions": [{"y": [2.0, 4.0], "first": 1.0}, {"y": [6.0, 8.0], "first": 3.0}]},
        "Predict API > Response format",
    ),
    "several inputs and outputs, row by row": (
        "POST :predict",
        {
            "signature_name": "named",
            "instances": [
                {"tag": "foo", "signal": [1, 2, 3, 4, 5], "sensor": [[1, 2], [3, 4]]},
                {"tag": "bar", "signal": [3, 4, 1, 2, 5], "sensor": [[4, 5], [6, 8]]},
            ],
        },
        200,
        {
            "predictions": [
                {"tag": "foo", "total": 15.0, "transposed": [[1, 3], [2, 4]]},
                {"tag": "bar", "total": 15.0, "transposed": [[4, 6], [5, 8]]},
            ]
        },
        "Predict API > Specifying input tensors in row format",
    ),
    "several inputs and outputs, column by column": (
        "POST :predict",
        {
            "signature_name": "named",
            "inputs": {
                "tag": ["foo", "bar"],
                "signal": [[1, 2, 3, 4, 5], [3, 4, 1, 2, 5]],
                "sensor": [[[1, 2], [3, 4]], [[4, 5], [6, 8]]],
            },
        },
        200,
        {
            "outputs": {
                "tag": ["foo", "bar"],
                "total": [15.0, 15.0],
                "transposed": [[[1, 3], [2, 4]], [[4, 6], [5, 8]]],
            }
        },
        "Predict API > Specifying input tensors in column format",
    ),
    "an output without rows, column by column": (
        "POST :predict",
        {"signature_name": "total", "inputs": [[1, 2], [3, 4]]},
        200,
        {"outputs": 10.0},
        "Predict API > Response format",
    ),
    "a scalar as the only input": (
        "POST :predict",
        {"signature_name": "total", "inputs": 7},
        200,
        {"outputs": 7.0},
        "Predict API > Request format: <value>",
    ),
    "every type of the table, and bytes by the suffix of a name": (
        "POST :predict",
        {"signature_name": "kinds", "instances": [kinds()]},
        200,
        {"predictions": [kinds(word_bytes={"b64": "SGVsbG8gV29ybGQh"})]},
        "JSON mapping; Predict API > Output of binary values",
    ),
    "binary values in base64": (
        "POST :predict",
        {"signature_name": "kinds", "instances": [kinds(word={"b64": "/wA="})]},
        200,
        {"predictions": [kinds(word="\ufffd\x00", word_bytes={"b64": "/wA="})]},
        "Encoding binary values",
    ),
    "NaN and Infinity, there and back": (
        "POST :predict",
        b'{"instances": [NaN, Infinity, -Infinity]}',
        200,
        {"predictions": [math.nan, math.inf, -math.inf]},
        "JSON conformance",
    ),
    "a version by its number": (
        "POST /versions/1:predict",
        {"instances": [1.0]},
        200,
        {"predictions": [3.5]},
        "Predict API > URL",
    ),
    "a version by its label": (
        "POST /labels/stable:predict",
        {"instances": [1.0]},
        200,
        {"predictions": [3.5]},
        "Predict API > URL",
    ),
    "regress": (
        "POST :regress",
        {"signature_name": "regress", "examples": [{"x": 1.0}, {"x": 2.0}]},
        200,
        {"results": [3.5, 4.0]},
        "Example > Make REST API calls to ModelServer",
    ),
    "classify, with features of every kind": (
        "POST :classify",
        {
            "signature_name": "features",
            "examples": [
                {"number": 0.5, "count": [1, 2], "word": "cat"},
                {"number": 1.5, "count": True, "word": {"b64": "ZG9n"}},
            ],
        },
        200,
        {"results": [[["cat", 0.5], ["x", 3.0]], [["dog", 1.5], ["x", 1.0]]]},
        "Classify and Regress API > Request format, Response format",
    ),
    "classify, with a context that all examples share": (
        "POST :classify",
        {
            "signature_name": "features",
            "context": {"word": "cat"},
            "examples": [{"number": 1.0}, {"number": 2.0}],
        },
        200,
        {"results": [[["cat", 1.0], ["x", 0.0]], [["cat", 2.0], ["x", 0.0]]]},
        "Classify and Regress API > Request format: context",
    ),
    "status of all versions": (
        "GET ",
        None,
        200,
        {
            "model_version_status": [
                {
                    "version": "1",
                    "state": "AVAILABLE",
                    "status": {"error_code": "OK", "error_message": ""},
                }
            ]
        },
        "Model status API; Example",
    ),
    "status of a version": (
        "GET /versions/1",
        None,
        200,
        {
            "model_version_status": [
                {
                    "version": "1",
                    "state": "AVAILABLE",
                    "status": {"error_code": "OK", "error_message": ""},
                }
            ]
        },
        "Model status API > URL",
    ),
    "an unknown model": (
        "POST /v1/models/half:predict",
        {"instances": [1.0, 5.0]},
        404,
        "Servable not found for request: Latest(half)",
        "Example, its last lines",
    ),
    "an unknown version": (
        "POST /versions/99:predict",
        {"instances": [1.0]},
        404,
        "Servable not found for request: Specific(toys, 99)",
        CODE + "model_servers/http_rest_api_handler_test.cc PredictModelNameVersionErrors",
    ),
    "an unknown label": (
        "POST /labels/nobody:predict",
        {"instances": [1.0]},
        400,
        "Unrecognized servable version label: nobody",
        CODE + "model_servers/http_rest_api_handler_test.cc PredictRequestErrors",
    ),
    "the label of a version that is not there": (
        "POST /labels/gone:predict",
        {"instances": [1.0]},
        404,
        "Specific(toys, 7)",
        CODE + "core/basic_manager.cc",
    ),
    "status of an unknown version": (
        "GET /versions/99",
        None,
        404,
        "Could not find version 99 of model toys",
        CODE + "model_servers/get_model_status_impl.cc",
    ),
    "status of an unknown model": (
        "GET /v1/models/half",
        None,
        404,
        "Could not find any versions of model half",
        CODE + "model_servers/get_model_status_impl.cc",
    ),
    "metadata of an unknown model": (
        "GET /v1/models/half/metadata",
        None,
        404,
        "Servable not found",
        CODE + "servables/tensorflow/get_model_metadata_impl.cc",
    ),
    "no model name": (
        "GET /v1/models",
        None,
        400,
        "Missing model name in request",
        CODE + "model_servers/http_rest_api_handler_test.cc UnsupportedApiCalls",
    ),
    "GET of something that is posted": (
        "GET :predict",
        None,
        400,
        "Malformed request: GET /v1/models/toys:predict",
        CODE + "model_servers/http_rest_api_handler_test.cc UnsupportedApiCalls",
    ),
    "POST of something that is got": (
        "POST /metadata",
        {},
        400,
        "Malformed request: POST",
        CODE + "model_servers/http_rest_api_handler_test.cc UnsupportedApiCalls",
    ),
    "a path that is none": (
        "GET /v1/foo",
        None,
        400,
        "Malformed request",
        CODE + "model_servers/http_rest_api_handler_test.cc UnsupportedApiCalls",
    ),
    "a version that is no number": (
        "POST /versions/HELLO:regress",
        {},
        400,
        "Malformed request",
        CODE + "model_servers/http_rest_api_handler_test.cc UnsupportedApiCalls",
    ),
    "a version too large for a number": (
        f"POST /versions/{2**64 - 1}:regress",
        {},
        400,
        "Failed to convert version",
        CODE + "model_servers/http_rest_api_handler_test.cc UnsupportedApiCalls",
    ),
    "a version and a label": (
        "POST /versions/50/labels/some_label:regress",
        {},
        400,
        "Malformed request",
        CODE + "model_servers/http_rest_api_handler_test.cc UnsupportedApiCalls",
    ),
    "a method that does not exist": (
        "POST :explain",
        {"instances": [1.0]},
        400,
        "Malformed request",
        CODE + "model_servers/http_rest_api_util.cc",
    ),
    "another verb": (
        "PUT :predict",
        {"instances": [1.0]},
        400,
        "Malformed request: PUT",
        CODE + "model_servers/http_rest_api_handler.cc",
    ),
    "outside /v1/": ("GET /index", None, 404, "", CODE + "model_servers/http_server.cc"),
    "an empty body": (
        "POST :predict",
        b"",
        400,
        "JSON Parse error: The document is empty",
        CODE + "model_servers/http_rest_api_handler_test.cc PredictRequestErrors",
    ),
    "no JSON": (
        "POST :predict",
        b"instances = [1, 2]",
        400,
        "JSON Parse error",
        CODE + "model_servers/http_rest_api_handler_test.cc PredictRequestErrors",
    ),
    "a text for a number": (
        "POST :predict",
        {"instances": ["x", "y"]},
        400,
        "not of expected type: float",
        CODE + "model_servers/http_rest_api_handler_test.cc PredictRequestErrors",
    ),
    "a signature name that is no text": (
        "POST :predict",
        {"signature_name": 100, "instances": [1.0]},
        400,
        "'signature_name' key must be a string value",
        CODE + "model_servers/http_rest_api_handler_test.cc PredictRequestErrors",
    ),
    "an unknown signature": (
        "POST :predict",
        {"signature_name": "nobody", "instances": [1.0]},
        400,
        'Serving signature name: "nobody" not found in signature def',
        CODE + "model_servers/http_rest_api_handler.cc GetInfoMap",
    ),
    "both formats at once": (
        "POST :predict",
        {"instances": [1.0], "inputs": [1.0]},
        400,
        "only one of 'inputs' or 'instances'",
        "Predict API > Request format",
    ),
    "neither format": (
        "POST :predict",
        {},
        400,
        "Missing 'inputs' or 'instances' key",
        "Predict API > Request format",
    ),
    "no rows": (
        "POST :predict",
        {"instances": []},
        400,
        "'instances'",
        CODE + "util/json_tensor.cc FillPredictRequestFromJson",
    ),
    "no rows in columns": (
        "POST :predict",
        {"inputs": []},
        400,
        "input 'x': expected at least one row, got none",
        "Predict API > Specifying input tensors in column format",
    ),
    "a key that is there twice": (
        "POST :predict",
        b'{"instances": [1.0], "instances": [2.0]}',
        400,
        "key 'instances' is there twice",
        "Predict API > Request format",
    ),
    "a key that is there twice in a row": (
        "POST :predict",
        b'{"instances": [{"x": 1.0, "x": 2.0}]}',
        400,
        "key 'x' is there twice",
        "Predict API > Specifying input tensors in row format",
    ),
    "rows that are no list": (
        "POST :predict",
        {"instances": 1.0},
        400,
        "'instances' to be a list",
        CODE + "util/json_tensor.cc FillPredictRequestFromJson",
    ),
    "a list where objects are needed": (
        "POST :predict",
        {"signature_name": "named", "instances": ["foo"]},
        400,
        "expecting a list of objects",
        CODE + "util/json_tensor.cc FillTensorMapFromInstancesList",
    ),
    "a missing input in a row": (
        "POST :predict",
        {"signature_name": "named", "instances": [{"tag": "foo"}]},
        400,
        "keys must be equal to",
        CODE + "util/json_tensor.cc FillTensorMapFromInstancesList",
    ),
    "an unknown input in a row": (
        "POST :predict",
        {"instances": [{"x": 1.0, "y": 2.0}]},
        400,
        "keys must be equal to",
        CODE + "util/json_tensor.cc FillTensorMapFromInstancesList",
    ),
    "a missing input in columns": (
        "POST :predict",
        {"signature_name": "named", "inputs": {"tag": ["foo"]}},
        400,
        "Missing named input",
        CODE + "util/json_tensor.cc FillTensorMapFromInputsMap",
    ),
    "rows of different lengths": (
        "POST :predict",
        {"signature_name": "matrix", "instances": [[1, 2], [3]]},
        400,
        "instances[1]",
        CODE + "util/json_tensor.cc AddInstanceItem",
    ),
    "objects and values mixed": (
        "POST :predict",
        {"instances": [{"x": 1.0}, 2.0]},
        400,
        "instances[1]: expected an object",
        CODE + "util/json_tensor.cc FillTensorMapFromInstancesList",
    ),
    "broken base64": (
        "POST :predict",
        {"signature_name": "kinds", "instances": [kinds(word={"b64": "$"})]},
        400,
        "Unable to base64 decode",
        CODE + "util/json_tensor.cc JsonDecodeBase64Object",
    ),
    "outputs without rows, row by row": (
        "POST :predict",
        {"signature_name": "total", "instances": [1.0, 2.0]},
        400,
        "row by row",
        CODE + "util/json_tensor.cc MakeRowFormatJsonFromTensors",
    ),
    "what the model itself refuses": (
        "POST :predict",
        {"signature_name": "fussy", "instances": [4.0, -1.0]},
        400,
        "no number below 0",
        CODE + "model_servers/http_server.cc ToHTTPStatusCode",
    ),
    "classify with a signature of another kind": (
        "POST :classify",
        {"examples": [{"x": 1.0}]},
        400,
        "Expected classification signature method_name to be tensorflow/serving/classify",
        CODE + "servables/tensorflow/classifier.cc GetClassificationSignatureDef",
    ),
    "regress with a signature of another kind": (
        "POST :regress",
        {"signature_name": "features", "examples": [{"x": 1.0}]},
        400,
        "Expected regression signature method_name to be tensorflow/serving/regress",
        CODE + "servables/tensorflow/regressor.cc GetRegressionSignatureDef",
    ),
    "classify with an unknown signature": (
        "POST :classify",
        {"signature_name": "nobody", "examples": [{"x": 1.0}]},
        400,
        "No signature was found with the name: nobody",
        CODE + "servables/tensorflow/classifier.cc GetClassificationSignatureDef",
    ),
    "no examples": (
        "POST :classify",
        {"signature_name": "features", "examples": []},
        400,
        "empty list",
        CODE + "util/json_tensor.cc FillClassifyRegressRequestFromJson",
    ),
    "an example without a feature that is needed": (
        "POST :regress",
        {"signature_name": "regress", "examples": [{"z": 1.0}]},
        400,
        "Feature: x",
        CODE + "model_servers/http_server.cc ToHTTPStatusCode",
    ),
}
# What TensorFlow Serving passes over in silence is an error here: a typing error must be noticed.
STRICTER: dict[str, tuple[str, Any, int, Any, str]] = {
    "an unknown key": (
        "POST :predict",
        {"instances": [1.0], "signature": "matrix"},
        400,
        "unknown key 'signature'",
        "kft serve",
    ),
    "an unknown input in columns": (
        "POST :predict",
        {"inputs": {"x": [1.0], "y": [1.0]}},
        400,
        "unknown key 'y'",
        "kft serve",
    ),
    "a shape that the signature does not take": (
        "POST :predict",
        {"signature_name": "matrix", "instances": [[1, 2, 3]]},
        400,
        "expected float32 (any, 2), got shape (1, 3)",
        "kft serve",
    ),
    "a number that does not fit": (
        "POST :predict",
        {"signature_name": "kinds", "instances": [kinds(byte=256)]},
        400,
        "does not fit uint8",
        "kft serve",
    ),
    "an encoding that is not known": (
        "POST :predict gzip-not",
        {"instances": [1.0]},
        415,
        "Content-Encoding",
        "kft serve",
    ),
}


@pytest.mark.parametrize("case", [*DOCUMENTED, *STRICTER])
def test_the_api_is_the_documented_one(server: Running, case: str) -> None:
    asked, body, status, expected, source = {**DOCUMENTED, **STRICTER}[case]
    assert source
    method, path, *encoding = asked.split(" ")
    path = path if path.startswith("/v1") or path == "/index" else server.model + path
    headers = {"Content-Encoding": encoding[0]} if encoding else {}
    found = ask(server.url, path, body, method, headers)
    assert found.status == status, found.body
    assert found.headers["content-type"] == "application/json"
    if isinstance(expected, str):
        assert list(found.json) == ["error"]
        assert expected in found.json["error"]
    else:
        np.testing.assert_equal(found.json, expected)


def test_the_table_names_the_pages_sections() -> None:
    sections = [row[-1] for row in DOCUMENTED.values() if not row[-1].startswith(CODE)]
    assert len(sections) >= 20
    assert PAGE.startswith("https://www.tensorflow.org/")
    for name in ("Predict API", "Classify and Regress API", "JSON mapping", "Model status API"):
        assert any(name in section for section in sections)


def test_addresses_are_read_without_regard_to_case(server: Running) -> None:
    body = {"instances": [1.0]}
    assert ask(server.url, "/V1/MODELS/toys:PREDICT", body).json == {"predictions": [3.5]}
    assert ask(server.url, "/v1/models/TOYS:predict", body).status == 404


def test_addresses_are_unquoted_after_they_are_taken_apart(server: Running) -> None:
    body = {"instances": [1.0]}
    assert ask(server.url, "/v1/models/t%6fys:predict", body).json == {"predictions": [3.5]}
    found = ask(server.url, "/v1/models/..%2f..%2fetc%2fpasswd:predict", body)
    assert found.status == 404
    assert found.json["error"].endswith("Latest(../../etc/passwd)")


def test_metadata_is_the_signature_definitions(server: Running, toys: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow_serving.apis import get_model_metadata_pb2

    found = server.ask("/metadata").json
    assert found["model_spec"] == {"name": "toys", "signature_name": "", "version": "1"}
    assert list(found["metadata"]) == ["signature_def"]
    told = json_format.ParseDict(
        found["metadata"]["signature_def"], get_model_metadata_pb2.SignatureDefMap()
    )
    content = (toys / "1" / "saved_model.pb").read_bytes()
    stored = saved_model_pb2.SavedModel.FromString(content).meta_graphs[0].signature_def
    assert dict(told.signature_def) == dict(stored)
    # As the file in TensorFlow Serving's own tests has it:
    # servables/tensorflow/testdata/saved_model_half_plus_two_2_versions_metadata.json
    signature = found["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert signature["inputs"]["x"]["tensor_shape"] == {
        "dim": [{"size": "-1", "name": ""}],
        "unknown_rank": False,
    }
    assert signature["method_name"] == "tensorflow/serving/predict"
    for suffix in ("/versions/1/metadata", "/labels/stable/metadata"):
        assert server.ask(suffix).json == found


def test_pictures_are_answered_as_the_export_promises(colours: Running) -> None:
    files = [picture("red"), picture("green", (9, 7), "JPEG"), picture("blue", (3, 3), "BMP")]
    rows = [{"b64": base64.b64encode(file).decode()} for file in files]
    found = colours.ask(":predict", {"instances": rows}).json["predictions"]
    assert [row["label"] for row in found] == ["red", "green", "blue"]
    assert [row["class_id"] for row in found] == [2, 1, 0]
    for row in found:
        assert math.isclose(sum(row["probabilities"]), 1, abs_tol=1e-6)
        assert row["top_labels"][0] == row["label"]
        assert row["top_probabilities"] == sorted(row["probabilities"], reverse=True)
        assert row["probability"] == row["top_probabilities"][0]
    examples = [{"image/encoded": row} for row in rows]
    classes = colours.ask(":classify", {"signature_name": "classify", "examples": examples}).json[
        "results"
    ]
    assert [row[0][0] for row in classes] == ["red", "green", "blue"]
    assert [[label for label, _ in row] for row in classes] == [row["top_labels"] for row in found]
    np.testing.assert_allclose(
        [[score for _, score in row] for row in classes],
        [row["top_probabilities"] for row in found],
        rtol=1e-6,
    )
    pixels = [[[220.0, 30.0, 20.0]] * 4] * 6
    arrays = colours.ask(":predict", {"signature_name": "arrays", "instances": [pixels]})
    np.testing.assert_allclose(
        arrays.json["predictions"][0]["probabilities"], found[0]["probabilities"], rtol=1e-6
    )
    assert set(COLOURS) == set(found[0]["top_labels"])


def test_a_file_that_is_no_picture_is_the_clients_fault_and_is_told_plainly(
    colours: Running,
) -> None:
    found = colours.ask(":predict", {"instances": [{"b64": "bm8gcGljdHVyZQ=="}]})
    assert found.status == 400
    said = found.json["error"]
    assert "image file format" in said
    assert "node" not in said
    assert "inference" not in said
    assert "\n" not in said


def test_gzipped_bodies_are_read_and_cannot_grow_without_bound(toys: Path) -> None:
    zipped = {"Content-Encoding": "gzip"}
    with running(toys, bounds=Bounds(request_bytes=100_000)) as found:
        body = gzip.compress(json.dumps({"instances": [1.0] * 1000}).encode())
        assert found.ask(":predict", body, headers=zipped).json["predictions"] == [3.5] * 1000
        bomb = gzip.compress(b'{"instances": [' + b" " * 50_000_000)
        assert len(bomb) < 100_000
        assert found.ask(":predict", bomb, headers=zipped).status == 413
        assert found.ask(":predict", body[:-9], headers=zipped).status == 400
        assert found.ask(":predict", b"no gzip", headers=zipped).status == 400
        for more in (body, b"!"):
            answer = found.ask(":predict", body + more, headers=zipped)
            assert answer.status == 400
            assert "goes on after the end of its gzip stream" in answer.json["error"]


def test_what_a_gzipped_body_grows_to_is_counted_for_all_requests_together(toys: Path) -> None:
    zipped = {"Content-Encoding": "gzip"}
    with running(toys, bounds=Bounds(open_bytes=3 * 2**20)) as found:
        body = json.dumps({"instances": [1.0]}).encode()
        for size, status in ((2 * 2**20, 200), (4 * 2**20, 503), (2 * 2**20, 200)):
            answer = found.ask(":predict", gzip.compress(body + b" " * size), headers=zipped)
            assert answer.status == status


def test_bodies_that_are_too_long_are_refused_however_they_come(toys: Path) -> None:
    with running(toys, bounds=Bounds(request_bytes=10_000)) as found:
        body = json.dumps({"instances": [1.0] * 1000}).encode()
        assert len(body) < 10_000
        assert found.ask(":predict", body).status == 200
        long = body + b" " * 10_000
        refused = found.ask(":predict", long)
        assert refused.status == 413
        assert "too large" in refused.json["error"]
        assert chunked(found, long) == 413
        assert chunked(found, body) == 200
        # A length alone, without a body that would take long to send.
        assert raw(found, "Content-Length: 99999999999\r\n").startswith(b"HTTP/1.1 413")


def chunked(found: Running, body: bytes) -> int:
    host = found.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=30)
    pieces = (body[start : start + 1000] for start in range(0, len(body), 1000))
    connection.request("POST", found.model + ":predict", pieces, encode_chunked=True)
    status = connection.getresponse().status
    connection.close()
    return status


def raw(found: Running, headers: str) -> bytes:
    host, _, port = found.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        text = f"POST {found.model}:predict HTTP/1.1\r\nHost: x\r\n{headers}\r\n"
        connection.sendall(text.encode())
        return connection.recv(65_536)


def test_no_request_of_a_thousand_bad_ones_is_a_fault_of_the_server(server: Running) -> None:
    """Changed bytes, cut and joined bodies, odd values: an answer each time, and no 500."""
    generator = random.Random(0)
    good = [
        json.dumps(row[1], ensure_ascii=generator.random() < 0.5).encode()
        for row in DOCUMENTED.values()
        if isinstance(row[1], dict)
    ]
    paths = [f"{server.model}:{name}" for name in ("predict", "classify", "regress")]
    statuses = []
    for _ in range(1000):
        body = bytearray(generator.choice(good))
        for _ in range(generator.randrange(1, 6)):
            place = generator.randrange(len(body) + 1)
            kind = generator.randrange(4)
            if kind == 0:
                body[place:place] = generator.choice([b"[", b"]", b"{", b'"', b"null", b"1e999"])
            elif kind == 1:
                del body[place : place + generator.randrange(1, 9)]
            elif kind == 2:
                body[place:place] = bytes([generator.randrange(256)])
            else:
                body[place:] = generator.choice(good)
        statuses.append(ask(server.url, generator.choice(paths), bytes(body), timeout=30).status)
    assert set(statuses) <= {200, 400}
    assert statuses.count(400) > 500
    assert server.ask(":predict", {"instances": [1.0]}).status == 200


def test_deeply_nested_and_huge_numbers_are_refused_in_time(server: Running) -> None:
    begin = time.monotonic()
    for body in (
        b'{"instances": ' + b"[" * 500_000,
        b'{"instances": ' + b"[" * 40 + b"1" + b"]" * 40 + b"}",
        b'{"a":' * 100_000,
        b'{"instances": [' + b"9" * 100_000 + b"]}",
        b'{"instances": [' + b"[],[[]],".join([b""] * 1000) + b"1]}",
        '{"instances": ["\ud800"]}'.encode("utf-8", "surrogatepass"),
    ):
        assert server.ask(":predict", body).status == 400
    assert time.monotonic() - begin < 20


def test_what_is_no_http_is_refused_and_harms_nobody(server: Running) -> None:
    host, _, port = server.url.removeprefix("http://").partition(":")
    generator = random.Random(0)
    for text in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"POST /v1/models/toys:predict HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/models/toys:predict HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        *(generator.randbytes(200) + b"\r\n\r\n" for _ in range(20)),
    ):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(text)
            connection.shutdown(socket.SHUT_WR)
            try:
                said = connection.recv(4096)
            except ConnectionResetError:
                said = b""
        assert not said or said.startswith(b"HTTP/1.1 4")
    assert server.ask(":predict", {"instances": [1.0]}).status == 200


def test_no_answer_waits_for_the_acknowledgement_of_its_first_part(server: Running) -> None:
    """On a connection that is kept: where a server's sockets delay, every answer takes 40 ms."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    seconds = []
    for _ in range(20):
        begin = time.perf_counter()
        connection.request("POST", server.model + ":predict", b'{"instances": [1.0]}')
        assert connection.getresponse().read() == b'{"predictions": [3.5]}'
        seconds.append(time.perf_counter() - begin)
    connection.close()
    assert min(seconds) < 0.03


def test_probes_and_figures_are_there(server: Running) -> None:
    assert ask(server.url, "/healthz").json == {"alive": True}
    assert ask(server.url, "/readyz").json == {"ready": True}
    before = server.figure('kft_requests_total{code="200",method="predict",protocol="rest"}')
    examples = server.figure('kft_examples_total{signature="serving_default"}')
    assert server.ask(":predict", {"instances": [1.0, 2.0]}).status == 200
    wanted = 'kft_requests_total{code="200",method="predict",protocol="rest"}'
    assert server.figure(wanted) == before + 1
    assert server.figure('kft_examples_total{signature="serving_default"}') == examples + 2
    assert server.figure('kft_request_seconds_count{method="predict",protocol="rest"}') > 0
    assert server.figure("kft_served_version") == 1
    assert server.figure("kft_open_requests") == 0
    assert server.figure("kft_queue_requests") == 0


def test_the_readme_names_every_figure_and_no_other(server: Running) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    section = readme.split("\n## Serving\n")[1].split("\n## ")[0]
    text = ask(server.url, "/monitoring/prometheus/metrics").body.decode()
    there = set(re.findall(r"^# TYPE (kft_\w+) ", text, re.MULTILINE))
    there = {name for name in there if not name.endswith("_created")}
    assert set(re.findall(r"`(kft_\w+)`", section)) == there


def in_threads(count: int, work: Any) -> list[Any]:
    """Runs work in threads, each with its number, and returns what they give."""
    found: list[Any] = [None] * count

    def run(number: int) -> None:
        found[number] = work(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return found


def test_everybody_gets_the_own_answer_when_many_ask_at_once(colours: Running) -> None:
    def work(number: int) -> list[str]:
        names = [COLOURS[(number + i) % 3] for i in range(1 + number % 3)]
        rows = [{"b64": base64.b64encode(picture(name)).decode()} for name in names]
        found = colours.ask(":predict", {"instances": rows})
        assert found.status == 200, found.body
        assert [row["label"] for row in found.json["predictions"]] == names
        return names

    assert all(in_threads(60, work))
    batches = colours.figure('kft_batch_examples_count{signature="serving_default"}')
    rows = colours.figure('kft_batch_examples_sum{signature="serving_default"}')
    assert rows / batches > 1.2, "nothing was joined"


def test_a_bad_picture_spoils_nobodys_answer(tmp_path: Path) -> None:
    base = write_pictures(tmp_path / "export")
    with running(base, limits=Limits(examples=16, wait_seconds=0.3, workers=1)) as found:

        def work(number: int) -> Answer:
            file = b"no picture" if number == 3 else picture(COLOURS[number % 3])
            row = {"b64": base64.b64encode(file).decode()}
            return found.ask(":predict", {"instances": [row]})

        answers = in_threads(8, work)
        assert found.figure('kft_batches_failed_total{signature="serving_default"}') >= 1
    for number, answer in enumerate(answers):
        if number == 3:
            assert answer.status == 400
        else:
            assert answer.json["predictions"][0]["label"] == COLOURS[number % 3]


def test_a_full_queue_is_refused_and_what_waits_is_answered(toys: Path) -> None:
    with running(toys, limits=Limits(examples=1, queue=3, workers=1)) as found:
        steps = steps_for(found, 0.5)
        answers = in_threads(12, lambda number: found.ask(":predict", slow(steps)))
        assert sorted({answer.status for answer in answers}) == [200, 503]
        refused = [answer for answer in answers if answer.status == 503]
        assert len(refused) >= 6
        for answer in refused:
            assert answer.headers["retry-after"] == "1"
            assert "the queue is full" in answer.json["error"]
        assert found.ask(":predict", {"instances": [1.0]}).status == 200


def test_too_many_open_requests_are_refused_before_they_are_read(toys: Path) -> None:
    bounds = Bounds(open_requests=2)
    with running(toys, bounds=bounds, limits=Limits(examples=1, workers=1)) as found:
        steps = steps_for(found, 1.0)
        answers = in_threads(6, lambda number: found.ask(":predict", slow(steps)))
        assert [answer.status for answer in answers].count(200) == 2
        assert {answer.status for answer in answers} == {200, 503}


def test_open_requests_may_be_so_long_together_and_no_longer(toys: Path) -> None:
    bounds = Bounds(request_bytes=8000, open_bytes=10_000)
    with running(toys, bounds=bounds, limits=Limits(examples=1, workers=1)) as found:
        steps = steps_for(found, 1.5)

        def padded(content: dict[str, Any]) -> bytes:
            return json.dumps(content).encode() + b" " * 6000

        answers = []
        asking = threading.Thread(
            target=lambda: answers.append(found.ask(":predict", padded(slow(steps))))
        )
        asking.start()
        until(lambda: found.figure("kft_open_requests") == 1)
        until(lambda: found.ask(":predict", padded({"instances": [1.0]})).status == 503, 1.2)
        asking.join(60)
        assert answers[0].status == 200
        assert found.ask(":predict", padded({"instances": [1.0]})).status == 200, "not given back"


def test_an_address_of_the_newer_kind_is_served(toys: Path) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with running(toys, host="::1", grpc_port=0) as found:
        assert found.url.startswith("http://[::1]:")
        assert str(found.addresses.grpc).startswith("[::1]:")
        assert found.ask(":predict", {"instances": [1.0]}).json == {"predictions": [3.5]}


def test_an_answer_that_takes_too_long_is_given_up(toys: Path) -> None:
    bounds = Bounds(seconds=0.5)
    with running(toys, bounds=bounds, limits=Limits(workers=1)) as found:
        steps = steps_for(found, 2.5)
        begin = time.monotonic()
        answer = found.ask(":predict", slow(steps))
        assert answer.status == 504
        assert time.monotonic() - begin < 2
        assert "not there in time" in answer.json["error"]
        until(lambda: found.ask(":predict", {"instances": [1.0]}).status == 200)


def test_a_body_that_does_not_arrive_is_given_up(toys: Path) -> None:
    with running(toys, bounds=Bounds(seconds=0.5)) as found:
        begin = time.monotonic()
        assert raw(found, "Content-Length: 100\r\n").startswith(b"HTTP/1.1 408")
        assert time.monotonic() - begin < 5


def test_the_request_of_a_client_that_has_left_makes_room(toys: Path) -> None:
    limits = Limits(examples=1, queue=1, workers=1)
    with running(toys, limits=limits) as found:
        steps = steps_for(found, 2.0)
        before = found.figure('kft_examples_total{signature="slow"}')
        first = threading.Thread(target=lambda: found.ask(":predict", slow(steps)))
        first.start()
        until(lambda: found.figure("kft_open_requests") == 1)
        time.sleep(0.2)
        host, _, port = found.url.removeprefix("http://").partition(":")
        body = json.dumps(slow(steps)).encode()
        head = f"POST {found.model}:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + b"\r\n\r\n" + body)
            until(lambda: found.figure("kft_queue_requests") == 1)
        until(lambda: found.figure("kft_queue_requests") == 0, 1.5)
        first.join()
        until(lambda: found.figure("kft_open_requests") == 0)
        assert found.figure('kft_examples_total{signature="slow"}') == before + 1
