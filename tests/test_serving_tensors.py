"""JSON to arrays and back, and what is refused on the way."""

from __future__ import annotations

import base64
import json
import math
import random

import numpy as np
import pytest

from kerastune_ft.serving import examples, messages, refusals, tensors
from kerastune_ft.serving.refusals import RefusedError
from kerastune_ft.serving.tensors import Tensor


def tensor(kind: str, *shape: int | None, name: str = "x") -> Tensor:
    dtype = np.dtype(object) if kind == "string" else np.dtype(kind)
    return Tensor(name, kind, dtype, shape)


def read(content: dict, *inputs: Tensor) -> dict[str, np.ndarray]:
    text = json.dumps(content).encode()
    return tensors.request_arrays(tensors.parse(text), {row.name: row for row in inputs})[0]


def test_floats_come_back_as_they_were_sent() -> None:
    rng = np.random.default_rng(0)
    sent = np.concatenate(
        [rng.normal(size=500), 10 ** rng.uniform(-44, 38, 500), [0.0, -0.0, 1.0, 0.2]]
    ).astype(np.float32)
    text = tensors.text_of(tensors.answer({"x": sent}, row_format=True))
    again = json.loads(text)["predictions"]
    np.testing.assert_array_equal(np.array(again, np.float32), sent)
    found = read({"instances": again}, tensor("float32", None))["x"]
    np.testing.assert_array_equal(found, sent)


def test_a_float32_is_written_with_its_own_digits() -> None:
    text = tensors.text_of(tensors.answer({"x": np.array([0.2, 1, 1e30], np.float32)}, True))
    assert text == b'{"predictions": [0.2, 1.0, 1e+30]}'


def test_what_is_not_finite_is_written_as_tensorflow_serving_does() -> None:
    values = np.array([np.nan, np.inf, -np.inf], np.float32)
    text = tensors.text_of(tensors.answer({"x": values}, row_format=False))
    assert text == b'{"outputs": [NaN, Infinity, -Infinity]}'
    found = tensors.request_arrays(
        tensors.parse(b'{"inputs": [NaN, Infinity, -Infinity]}'), {"x": tensor("float32", None)}
    )[0]["x"]
    assert math.isnan(found[0])
    assert found[1:].tolist() == [math.inf, -math.inf]


@pytest.mark.parametrize("shape", [(0,), (1,), (3,), (2, 3), (2, 0), (2, 1, 3), (2, 3, 1, 2)])
@pytest.mark.parametrize("kind", ["float32", "int64", "bool", "string"])
def test_arrays_of_any_shape_survive_the_way_there_and_back(
    kind: str, shape: tuple[int, ...]
) -> None:
    numbers = np.arange(math.prod(shape)).reshape(shape)
    sent = numbers.astype("U").astype(object) if kind == "string" else numbers.astype(kind)
    content = tensors.answer({"x": sent}, row_format=False)
    lists = json.loads(tensors.text_of(content))["outputs"]
    found = read({"inputs": lists}, tensor(kind, *shape))["x"]
    expected = np.vectorize(str.encode, [object])(sent) if kind == "string" and sent.size else sent
    assert found.shape == shape
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["uint8", "int8", "int16", "uint16", "uint32", "int64", "uint64"])
def test_whole_numbers_are_taken_up_to_their_bounds(kind: str) -> None:
    bounds = np.iinfo(kind)
    ends = [int(bounds.min), int(bounds.max)]
    assert read({"instances": ends}, tensor(kind, None))["x"].tolist() == ends
    for wrong in (bounds.min - 1, bounds.max + 1):
        with pytest.raises(RefusedError, match=f"does not fit {kind}"):
            read({"instances": [int(wrong)]}, tensor(kind, None))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("float32", "1.0"),
        ("float32", True),
        ("float32", None),
        ("float32", {"b64": "AA=="}),
        ("float32", {"a": 1}),
        ("int32", 1.0),
        ("int32", "1"),
        ("int32", False),
        ("bool", 1),
        ("bool", "true"),
        ("string", 1),
        ("string", None),
        ("string", {"b64": 1}),
        ("string", {"b64": "AA==", "more": 1}),
        ("float32", 1e39),
        ("float32", 10**400),
        ("float64", 10**400),
    ],
)
def test_values_of_another_type_are_refused_not_turned(kind: str, value: object) -> None:
    for content in (
        {"instances": [{"x": value}]},
        {"inputs": {"x": [value]}},
        {"inputs": {"x": [[value]]}},
    ):
        with pytest.raises(RefusedError) as caught:
            read(content, tensor(kind, None))
        assert caught.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "rows",
    [
        [[1, 2], [3]],
        [[1, 2], 3],
        [1, [2, 3]],
        [[[1]], [[2, 3]]],
        [[1], [[2]]],
        [[], [1]],
        [[1], []],
    ],
)
def test_ragged_rows_are_refused(rows: list) -> None:
    for content in ({"instances": rows}, {"inputs": rows}):
        with pytest.raises(RefusedError, match=r"expected a list of|different depths"):
            read(content, Tensor("x", "float32", np.dtype(np.float32), None))


def test_base64_is_taken_with_blanks_and_without_padding() -> None:
    for raw in (b"", b"a", b"ab", b"abc", bytes(range(256))):
        text = base64.b64encode(raw).decode()
        for given in (text, text.rstrip("="), "\n".join(text), f" {text} "):
            assert tensors.decoded({"b64": given}) == raw
    for wrong in ("a", "ab$=", "=", "a===", "ä", "-_-_"):
        with pytest.raises(RefusedError, match="base64"):
            tensors.decoded({"b64": wrong})


def test_half_a_surrogate_pair_is_refused_and_can_be_told() -> None:
    with pytest.raises(RefusedError, match="surrogate"):
        read({"instances": ["\ud800"]}, tensor("string", None))
    with pytest.raises(RefusedError) as caught:
        read({"instances": [1], "\ud800": 1}, tensor("string", None))
    assert b"unknown key" in tensors.text_of({"error": caught.value.message})


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"  ",
        b"{",
        b"[1]",
        b"null",
        b"{} {}",
        b"\xff\xfe",
        b'{"instances": [01]}',
        b"{'instances': [1]}",
        b'{"instances": ' + b"[" * 100_000,
        b'{"instances": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"instances": [' + b"1" * 10_000 + b"]}",
    ],
)
def test_what_is_no_json_object_is_refused(text: bytes) -> None:
    with pytest.raises(RefusedError) as caught:
        tensors.request_arrays(tensors.parse(text), {"x": tensor("float32", None)})
    assert caught.value.status == 400


def test_rows_that_cannot_be_told_apart_are_refused() -> None:
    for outputs in (
        {"x": np.zeros(2), "y": np.zeros(3)},
        {"x": np.zeros(2), "y": np.float32(1).reshape(())},
        {"x": np.float32(1).reshape(())},
    ):
        with pytest.raises(RefusedError, match="row by row"):
            tensors.answer(outputs, row_format=True)
        assert tensors.answer(outputs, row_format=False)["outputs"] is not None


def test_bytes_are_told_in_base64_and_text_as_text() -> None:
    raw = np.array([b"\xff\x00", "ü".encode()], object)
    found = tensors.answer({"x_bytes": raw, "x": raw}, row_format=False)["outputs"]
    assert [base64.b64decode(row["b64"]) for row in found["x_bytes"]] == raw.tolist()
    assert found["x"] == ["\ufffd\x00", "ü"]


def test_features_become_an_example_of_the_right_kinds() -> None:
    import tensorflow as tf

    content = {
        "context": {"place": "here"},
        "examples": [
            {"a": 1, "b": 1.5, "c": True, "d": {"b64": "AAE="}, "e": [], "f": [1, 2]},
            {"a": [0.5, 1.0]},
        ],
    }
    found = [tf.train.Example.FromString(row) for row in examples.serialized(content, [].append)]
    features = found[0].features.feature
    assert list(features["a"].int64_list.value) == [1]
    assert list(features["b"].float_list.value) == [1.5]
    assert list(features["c"].int64_list.value) == [1]
    assert list(features["d"].bytes_list.value) == [b"\x00\x01"]
    assert features["e"].WhichOneof("kind") is None
    assert list(features["f"].int64_list.value) == [1, 2]
    assert all(list(one.features.feature["place"].bytes_list.value) == [b"here"] for one in found)
    assert list(found[1].features.feature["a"].float_list.value) == [0.5, 1.0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "'examples' is expected"),
        ({"examples": {}}, "to be a list"),
        ({"examples": []}, "empty list"),
        ({"examples": [1]}, "object of features"),
        ({"examples": [{"a": None}]}, "expected numbers, strings"),
        ({"examples": [{"a": [[1]]}]}, "expected numbers, strings"),
        ({"examples": [{"a": {"b": 1}}]}, "expected numbers, strings"),
        ({"examples": [{"a": [1, "x"]}]}, "different types"),
        ({"examples": [{"a": [1, 1.5]}]}, "different types"),
        ({"examples": [{"a": 2**63}]}, "int64"),
        ({"examples": [{"a": 1e39}]}, "float32"),
        ({"examples": [{"a": "\ud800"}]}, "surrogate"),
        ({"examples": [{"\ud800": 1}]}, "surrogate"),
        ({"examples": [{"a": 1}], "context": [1]}, "object of features"),
        ({"examples": [{"a": 1}], "context": {"a": 2}}, "in 'context' as well"),
        ({"examples": [{"a": 1}], "instances": [1]}, "unknown key 'instances'"),
    ],
)
def test_examples_that_cannot_be_one_are_refused(content: dict, said: str) -> None:
    with pytest.raises(RefusedError, match=said):
        examples.serialized(content, [].append)


def test_a_tensor_proto_cannot_claim_more_than_a_message_holds() -> None:
    import tensorflow as tf

    huge = tf.make_tensor_proto(np.zeros(1, np.float32))
    huge.tensor_shape.dim[0].size = 2**40
    inputs = {"x": tensor("float32", None)}
    with pytest.raises(RefusedError, match="at most"):
        messages.request_arrays({"x": huge}, inputs, limit_bytes=2**20)
    for sizes in ([2**62, 2**62], [-1], [3]):
        wrong = tf.make_tensor_proto(np.zeros(2, np.float32))
        del wrong.tensor_shape.dim[:]
        for size in sizes:
            wrong.tensor_shape.dim.add().size = size
        with pytest.raises(RefusedError) as caught:
            messages.request_arrays({"x": wrong}, inputs, limit_bytes=2**20)
        assert caught.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.array([[True, False]]),
        np.array([b"\xff", b"", "ü".encode()], object),
        np.zeros((0, 3), np.int64),
        np.array(3, np.int32),
    ],
)
def test_arrays_survive_a_tensor_proto(array: np.ndarray) -> None:
    kind = "string" if array.dtype == object else array.dtype.name
    inputs = {"x": tensor(kind, *array.shape)}
    found = messages.request_arrays({"x": messages.tensor_proto(array)}, inputs, 2**20)["x"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_random_json_is_read_or_refused_and_nothing_else() -> None:
    generator = random.Random(0)
    read_count = 0

    def value(depth: int) -> object:
        kinds = [None, True, 1, -1.5, "x", {"b64": "AA=="}, 10**30, float("nan"), "\ud800", {}]
        if depth < 4 and generator.random() < 0.5:
            return [value(depth + 1) for _ in range(generator.randrange(4))]
        if depth < 3 and generator.random() < 0.2:
            return {generator.choice("xyz"): value(depth + 1) for _ in range(2)}
        return generator.choice(kinds)

    for _ in range(3000):
        kind = generator.choice(["float32", "int32", "string", "bool"])
        inputs = [tensor(kind, *[None] * generator.randrange(4), name=name) for name in "xy"]
        inputs = inputs[: generator.randrange(1, 3)]
        content = {generator.choice(["instances", "inputs"]): value(0)}
        try:
            read(content, *inputs)
            read_count += 1
        except RefusedError as error:
            assert error.status == 400
    assert read_count > 20


def test_what_tensorflow_says_is_told_without_graph_and_files() -> None:
    said = (
        "Graph execution error:\n\nDetected at node map/while/DecodeImage defined at (most recent "
        'call last):\n  File "/home/me/train.py", line 3, in <module>\n\nUnknown image file format.'
        " One of JPEG, PNG required.\n\t [[{{node map/while/DecodeImage}}]] "
        "[Op:__inference_signature_wrapper_12]"
    )
    assert refusals.plain(said) == "Unknown image file format. One of JPEG, PNG required."
    assert refusals.plain("{{function_node __wrapped__X}} bad [Op:X] name: ") == "bad name:"
    several = (
        "2 root error(s) found.\n  (0) INVALID_ARGUMENT: bad picture\n\t [[{{node a}}]]\n"
        "  (1) INVALID_ARGUMENT: bad picture\n0 successful operations.\n0 derived errors ignored."
    )
    assert refusals.plain(several) == "bad picture"
    assert refusals.plain("") == "the model failed."
