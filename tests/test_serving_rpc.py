"""gRPC as TensorFlow Serving speaks it, through its own client code and real channels."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serving_models import (
    COLOURS,
    Running,
    picture,
    running,
    steps_for,
    until,
    write_pictures,
    write_toys,
)
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from kerastune_ft.serving import registry
from kerastune_ft.serving.batching import Limits
from kerastune_ft.serving.metrics import Metrics
from kerastune_ft.serving.service import Bounds, Service


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toys(tmp_path_factory.mktemp("toys") / "toys")


@pytest.fixture(scope="module")
def server(toys: Path) -> Iterator[Running]:
    limits = Limits(wait_seconds=0.02)
    with running(toys, grpc_port=0, limits=limits, labels={"stable": 1}) as found:
        yield found


@pytest.fixture(scope="module")
def channel(server: Running) -> Iterator[grpc.Channel]:
    assert server.addresses.grpc is not None
    with grpc.insecure_channel(server.addresses.grpc) as opened:
        yield opened


@pytest.fixture(scope="module")
def predictions(channel: grpc.Channel) -> Any:
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def predict(name: str = "", model: str = "toys", **inputs: Any) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = name
    for key, value in inputs.items():
        proto = value if not isinstance(value, np.ndarray | list) else tf.make_tensor_proto(value)
        request.inputs[key].CopyFrom(proto)
    return request


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def arrays(response: predict_pb2.PredictResponse) -> dict[str, np.ndarray]:
    return {key: tf.make_ndarray(proto) for key, proto in response.outputs.items()}


def refusal(call: Any, request: Any, **more: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, **{"timeout": 30, **more})
    return caught.value


def test_predict_gives_what_rest_gives(server: Running, predictions: Any) -> None:
    response = predictions.Predict(predict(x=floats(1, 2, 5)), timeout=30)
    assert arrays(response)["y"].tolist() == [3.5, 4.0, 5.5]
    assert response.model_spec.name == "toys"
    assert response.model_spec.signature_name == "serving_default"
    assert response.model_spec.version.value == 1
    inputs = {
        "truth": np.array([True, False]),
        "byte": np.array([0, 255], np.uint8),
        "small": np.array([-128, 127], np.int8),
        "whole": np.array([-7, 7], np.int32),
        "long": np.array([-(2**62), 2**62]),
        "single": floats(0.2, np.nan),
        "double": np.array([1e300, np.inf]),
        "word": np.array([b"\xff\x00", "ü".encode()], object),
    }
    found = arrays(predictions.Predict(predict("kinds", **inputs), timeout=30))
    for name, sent in inputs.items():
        np.testing.assert_array_equal(found[name], sent)
        assert found[name].dtype == sent.dtype
    np.testing.assert_array_equal(found["word_bytes"], inputs["word"])
    told = server.ask(":predict", {"signature_name": "named", "inputs": NAMED}).json["outputs"]
    named = {key: np.array(value, TYPES[key]) for key, value in NAMED.items()}
    found = arrays(predictions.Predict(predict("named", **named), timeout=30))
    np.testing.assert_array_equal(found["transposed"], told["transposed"])
    np.testing.assert_allclose(found["total"], told["total"])


NAMED = {
    "tag": ["foo", "bar"],
    "signal": [[1, 2, 3, 4, 5], [3, 4, 1, 2, 5]],
    "sensor": [[[1, 2], [3, 4]], [[4, 5], [6, 8]]],
}
TYPES = {"tag": object, "signal": np.float32, "sensor": np.int32}


def test_versions_and_labels_are_chosen_in_the_model_spec(predictions: Any) -> None:
    request = predict(x=floats(1))
    request.model_spec.version.value = 1
    assert arrays(predictions.Predict(request, timeout=30))["y"].tolist() == [3.5]
    request.model_spec.version_label = "stable"
    assert arrays(predictions.Predict(request, timeout=30))["y"].tolist() == [3.5]


def test_an_output_filter_leaves_out_the_others(predictions: Any) -> None:
    request = predict("matrix", x=np.ones((1, 2), np.float32))
    request.output_filter.append("first")
    assert list(predictions.Predict(request, timeout=30).outputs) == ["first"]
    request.output_filter.append("nobody")
    assert "output tensor alias not found" in refusal(predictions.Predict, request).details()
    request.output_filter[1] = "first"
    assert "duplicate" in refusal(predictions.Predict, request).details()


def broken(size: int) -> tf.compat.v1.TensorProto:
    proto = tf.make_tensor_proto(floats(1))
    proto.tensor_shape.dim[0].size = size
    return proto


REFUSED: dict[str, tuple[predict_pb2.PredictRequest, str, str]] = {
    "an unknown model": (predict(model="half", x=floats(1)), "NOT_FOUND", "Latest(half)"),
    "no model": (predict(model="", x=floats(1)), "INVALID_ARGUMENT", "ModelSpec"),
    "an unknown signature": (
        predict("nobody", x=floats(1)),
        "FAILED_PRECONDITION",
        "nobody",
    ),
    "no inputs": (predict(), "INVALID_ARGUMENT", "Missing but required: {x}"),
    "an unknown input": (
        predict(x=floats(1), y=floats(1)),
        "INVALID_ARGUMENT",
        "Sent extra: {y}",
    ),
    "another type": (predict(x=np.array([1.0])), "INVALID_ARGUMENT", "expected float32"),
    "no rows": (predict(x=floats()), "INVALID_ARGUMENT", "at least one row, got none"),
    "another shape": (
        predict("matrix", x=np.ones((1, 3), np.float32)),
        "INVALID_ARGUMENT",
        "expected float32 (any, 2), got shape (1, 3)",
    ),
    "a tensor of a trillion values": (predict(x=broken(2**40)), "INVALID_ARGUMENT", "at most"),
    "a negative dimension": (predict(x=broken(-5)), "INVALID_ARGUMENT", "not a shape"),
    "what the model refuses": (
        predict("fussy", x=floats(-1)),
        "INVALID_ARGUMENT",
        "no number below 0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_carry_a_code_and_say_why(predictions: Any, case: str) -> None:
    request, code, said = REFUSED[case]
    error = refusal(predictions.Predict, request)
    assert error.code() is getattr(grpc.StatusCode, code), error.details()
    assert said in error.details()


def test_an_unknown_version_is_not_found_and_an_unknown_label_invalid(predictions: Any) -> None:
    request = predict(x=floats(1))
    request.model_spec.version.value = 99
    assert refusal(predictions.Predict, request).code() is grpc.StatusCode.NOT_FOUND
    request.model_spec.version_label = "nobody"
    assert refusal(predictions.Predict, request).code() is grpc.StatusCode.INVALID_ARGUMENT


def test_classify_and_regress_take_examples_with_and_without_a_context(predictions: Any) -> None:
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = "toys"
    request.model_spec.signature_name = "features"
    listed = request.input.example_list_with_context
    listed.context.features.feature["word"].bytes_list.value.append(b"cat")
    for number in (0.5, 1.5):
        example = listed.examples.add()
        example.features.feature["number"].float_list.value.append(number)
    found = predictions.Classify(request, timeout=30)
    assert found.model_spec.version.value == 1
    told = [[(one.label, one.score) for one in row.classes] for row in found.result.classifications]
    assert told == [[("cat", 0.5), ("x", 0.0)], [("cat", 1.5), ("x", 0.0)]]
    request.model_spec.signature_name = ""
    error = refusal(predictions.Classify, request)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "tensorflow/serving/classify" in error.details()
    request.ClearField("input")
    assert "empty" in refusal(predictions.Classify, request).details()

    regress = regression_pb2.RegressionRequest()
    regress.model_spec.name = "toys"
    regress.model_spec.signature_name = "regress"
    for number in (1.0, 2.0):
        example = regress.input.example_list.examples.add()
        example.features.feature["x"].float_list.value.append(number)
    values = [one.value for one in predictions.Regress(regress, timeout=30).result.regressions]
    assert values == [3.5, 4.0]


def test_a_context_cannot_grow_without_bound_in_the_examples(
    server: Running, predictions: Any
) -> None:
    word, rows = "x" * 60_000, 2_000
    content = {"signature_name": "features", "context": {"word": word}, "examples": [{}] * rows}
    answer = server.ask(":classify", content)
    assert answer.status == 413
    assert "with its 'context' in every example, is too large" in answer.json["error"]
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = "toys"
    request.model_spec.signature_name = "features"
    listed = request.input.example_list_with_context
    listed.context.features.feature["word"].bytes_list.value.append(word.encode())
    for _ in range(rows):
        listed.examples.add()
    error = refusal(predictions.Classify, request)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == answer.json["error"]
    content["examples"] = [{}] * 20
    assert len(server.ask(":classify", content).json["results"]) == 20


def test_what_a_thread_counts_after_the_end_of_a_request_is_not_kept(toys: Path) -> None:
    export = registry.find(toys)
    batcher: Any = None
    service = Service(registry.Registry("toys", export), batcher, Metrics(), Bounds())
    with service.admitted() as admitted:
        admitted.grow(10)
        assert service.open_bytes == 10
    admitted.grow(1000)
    assert service.open_bytes == 0


def test_metadata_and_status_are_those_of_rest(
    server: Running, channel: grpc.Channel, predictions: Any
) -> None:
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = "toys"
    assert "metadata_field" in refusal(predictions.GetModelMetadata, request).details()
    request.metadata_field.append("signature_def")
    response = predictions.GetModelMetadata(request, timeout=30)
    listed = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(listed)
    told = server.ask("/metadata").json["metadata"]["signature_def"]
    assert json_format.ParseDict(told, get_model_metadata_pb2.SignatureDefMap()) == listed
    request.metadata_field.append("nobody")
    assert "not supported" in refusal(predictions.GetModelMetadata, request).details()

    models = model_service_pb2_grpc.ModelServiceStub(channel)
    asked = get_model_status_pb2.GetModelStatusRequest()
    asked.model_spec.name = "toys"
    (status,) = models.GetModelStatus(asked, timeout=30).model_version_status
    assert status.version == 1
    assert status.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE
    assert status.status.error_code == 0
    asked.model_spec.version.value = 7
    assert refusal(models.GetModelStatus, asked).code() is grpc.StatusCode.NOT_FOUND


def test_what_is_not_offered_says_so(channel: grpc.Channel, predictions: Any) -> None:
    error = refusal(predictions.MultiInference, inference_pb2.MultiInferenceRequest())
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    models = model_service_pb2_grpc.ModelServiceStub(channel)
    error = refusal(models.HandleReloadConfigRequest, model_management_pb2.ReloadConfigRequest())
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_health_service_says_that_it_serves(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", "tensorflow.serving.PredictionService"):
        found = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=30)
        assert found.status == health_pb2.HealthCheckResponse.SERVING
    error = refusal(health.Check, health_pb2.HealthCheckRequest(service="nobody"))
    assert error.code() is grpc.StatusCode.NOT_FOUND


def test_bytes_that_are_no_message_harm_nobody(
    server: Running, channel: grpc.Channel, predictions: Any
) -> None:
    send = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    rng = np.random.default_rng(0)
    good = predict(x=floats(1, 2, 3)).SerializeToString()
    codes = set()
    for _ in range(200):
        text = bytearray(good)
        for _ in range(rng.integers(1, 5)):
            text[rng.integers(len(text))] = rng.integers(256)
        try:
            send(bytes(text), timeout=30)
        except grpc.RpcError as error:
            codes.add(error.code())
    assert codes <= {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
    }
    assert grpc.StatusCode.INVALID_ARGUMENT in codes
    assert (
        server.figure('kft_requests_total{code="INTERNAL",method="predict",protocol="grpc"}') == 0
    )
    assert arrays(predictions.Predict(predict(x=floats(1)), timeout=30))["y"].tolist() == [3.5]


def test_requests_of_both_protocols_are_joined(server: Running, predictions: Any) -> None:
    def rows() -> float:
        return server.figure('kft_batch_examples_count{signature="serving_default"}')

    before, answers = rows(), []

    def work(number: int) -> None:
        if number % 2:
            found = server.ask(":predict", {"instances": [float(number)]}).json["predictions"]
        else:
            response = predictions.Predict(predict(x=floats(number)), timeout=30)
            found = arrays(response)["y"].tolist()
        answers.append(found == [number / 2 + 3])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [True] * 32
    assert rows() - before < 32


def test_the_clients_deadline_is_kept(toys: Path) -> None:
    with running(toys, grpc_port=0, limits=Limits(examples=1, workers=1)) as found:
        steps = steps_for(found, 2)
        with grpc.insecure_channel(str(found.addresses.grpc)) as opened:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(opened)
            request = predict("slow", steps=np.array([steps], np.int32))
            begin = time.monotonic()
            error = refusal(stub.Predict, request, timeout=0.4)
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert time.monotonic() - begin < 1.5
            until(lambda: found.figure("kft_open_requests") == 0, 1.5)
            # The worker is still busy: what waits behind it is given up without being computed.
            examples = found.figure('kft_examples_total{signature="serving_default"}')
            error = refusal(stub.Predict, predict(x=floats(1)), timeout=0.3)
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            time.sleep(2)
            assert found.figure('kft_examples_total{signature="serving_default"}') == examples


def test_calls_that_never_send_their_message_are_given_up(toys: Path) -> None:
    ended = threading.Event()

    def nothing() -> Iterator[bytes]:
        ended.wait(60)
        yield from ()

    with running(toys, grpc_port=0, bounds=Bounds(seconds=0.5)) as found:
        assert found.addresses.grpc is not None
        with grpc.insecure_channel(found.addresses.grpc) as opened:
            call = opened.stream_unary("/tensorflow.serving.PredictionService/Predict")
            begin = time.monotonic()
            error = refusal(call, nothing())
            assert time.monotonic() - begin < 10
            ended.set()
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "did not arrive in time" in error.details()
            assert refusal(call, iter(())).code() is grpc.StatusCode.INVALID_ARGUMENT
            stub = prediction_service_pb2_grpc.PredictionServiceStub(opened)
            assert stub.Predict(predict(x=floats(1)), timeout=30)


def test_the_servers_own_deadline_is_told_as_such(server: Running, toys: Path) -> None:
    steps = np.array([steps_for(server, 1.5)], np.int32)
    with (
        running(toys, grpc_port=0, bounds=Bounds(seconds=0.3)) as found,
        grpc.insecure_channel(str(found.addresses.grpc)) as opened,
    ):
        stub = prediction_service_pb2_grpc.PredictionServiceStub(opened)
        error = refusal(stub.Predict, predict("slow", steps=steps))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "not there in time" in error.details()


def test_messages_that_are_too_long_and_full_queues_are_refused(toys: Path) -> None:
    limits = Limits(examples=1, queue=1, workers=1)
    bounds = Bounds(request_bytes=100_000)
    with (
        running(toys, grpc_port=0, limits=limits, bounds=bounds) as found,
        grpc.insecure_channel(str(found.addresses.grpc)) as opened,
    ):
        stub = prediction_service_pb2_grpc.PredictionServiceStub(opened)
        for count in (30_000, 1_000_000):  # refused by the service, and by gRPC itself
            error = refusal(stub.Predict, predict(x=np.zeros(count, np.float32)))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        steps = np.array([steps_for(found, 0.8)], np.int32)
        codes = []

        def work() -> None:
            try:
                stub.Predict(predict("slow", steps=steps), timeout=30)
                codes.append(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                codes.append(error.code())

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_a_server_that_drains_finishes_what_is_open_and_is_unavailable_to_others(
    toys: Path,
) -> None:
    with running(toys, grpc_port=0, limits=Limits(workers=1)) as found:
        steps = steps_for(found, 3)
        address = str(found.addresses.grpc)
        with grpc.insecure_channel(address) as opened:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(opened)
            waiting = stub.Predict.future(
                predict("slow", steps=np.array([steps], np.int32)), timeout=60
            )
            until(lambda: found.figure("kft_open_requests") == 1)
            found.stop.set()
            time.sleep(0.5)
            error = refusal(stub.Predict, predict(x=floats(1)), timeout=5)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert arrays(waiting.result())["steps"].tolist() == [steps]


def test_pictures_are_answered_over_both_protocols_alike(tmp_path: Path) -> None:
    base = write_pictures(tmp_path / "export")
    with running(base, grpc_port=0) as found:
        with grpc.insecure_channel(str(found.addresses.grpc)) as opened:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(opened)
            files = [picture(name) for name in COLOURS]
            sent = np.array(files, object)
            told = arrays(stub.Predict(predict(model="colours", image_bytes=sent), timeout=60))
        rows = [{"b64": base64.b64encode(file).decode()} for file in files]
        rest = found.ask(":predict", {"inputs": rows}).json["outputs"]
    assert [label.decode() for label in told["label"]] == list(COLOURS) == rest["label"]
    np.testing.assert_allclose(told["probabilities"], rest["probabilities"], rtol=1e-6)
