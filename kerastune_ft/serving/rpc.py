"""TensorFlow Serving's gRPC services over `grpc.aio`, and the standard health service.

Offered: Predict, Classify, Regress, GetModelMetadata of PredictionService; GetModelStatus of
ModelService. Refused as UNIMPLEMENTED: MultiInference, and changing the configuration from outside.

    server = Server(service)
    port = server.bind("127.0.0.1", 8500)
    await server.start()
    await server.stop(seconds=30)
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from kerastune_ft.errors import ServingError
from kerastune_ft.serving import examples, messages, refusals
from kerastune_ft.serving.refusals import RefusedError, invalid
from kerastune_ft.serving.service import SIGNATURE_DEF, Admitted, Found, Service, Target
from kerastune_ft.serving.signatures import DEFAULT, Signature
from kerastune_ft.serving.tensors import Arrays

_Message: TypeAlias = Any  # generated code has no types
_Context: TypeAlias = Any

_OVERHEAD = 2**16  # bytes that an error or a name may take beside the tensors
_PROBES = 64  # requests, such as those of probes, that are let in beside the others
_SERVICES = ("", "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService")


class Server:
    """A gRPC server for one model.

    Args:
        service: Answers.
    """

    def __init__(self, service: Service) -> None:
        bounds = service.bounds
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", bounds.request_bytes + _OVERHEAD),
                ("grpc.max_send_message_length", -1),
                # Otherwise two servers could be given the same port, and share its requests.
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=bounds.open_requests + _PROBES,
            interceptors=[_Reading(bounds.seconds)],
        )
        self._health = health.aio.HealthServicer()
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            Predictions(service), self._server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(Models(service), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    def bind(self, host: str, port: int) -> int:
        """Takes a port; 0 is any free one. Returns it.

        Raises:
            ServingError: If it cannot be had.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        bound = 0
        with contextlib.suppress(RuntimeError):
            bound = self._server.add_insecure_port(address)
        if bound == 0:
            raise ServingError(
                f"--grpc-port: {address} cannot be listened on; it is taken, or not an address of "
                "this machine. Give another one, or --no-grpc."
            )
        return int(bound)

    async def start(self) -> None:
        """Begins to answer."""
        for name in _SERVICES:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()

    async def stop(self, seconds: float) -> None:
        """Takes no further requests and waits, at most so long, for those that are open."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(seconds)


class _Unreadable:
    """What came in place of a message."""


class _Reading(grpc.aio.ServerInterceptor):
    """Hands on what cannot be read, and gives up what does not arrive.

    gRPC itself would log the one and blame the server; for the other it would wait for ever.

    Args:
        seconds: From the beginning of a call until its message is there.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Returns the handler of a call, with a gentler reader."""
        handler = await continuation(details)
        if handler is None or not details.method.startswith("/tensorflow.serving."):
            return handler

        def read(text: bytes) -> _Message:
            try:
                return handler.request_deserializer(text)
            except DecodeError:
                return _Unreadable()

        async def answer(arriving: Any, context: _Context) -> _Message:
            try:
                async with asyncio.timeout(self._seconds):
                    request = await anext(aiter(arriving), _Unreadable())
            except TimeoutError:
                late = "the request did not arrive in time."
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, late)
            return await handler.unary_unary(request, context)

        # On the wire one message is a stream of one; only of a stream can we say when we read it.
        return grpc.stream_unary_rpc_method_handler(answer, read, handler.response_serializer)


class Predictions(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers PredictionService."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def Predict(self, request: _Message, context: _Context) -> _Message:  # noqa: N802
        """Returns what a signature gives for tensors."""

        async def answer(admitted: Admitted, deadline: float) -> _Message:
            limit = self._service.bounds.request_bytes
            spec = request.model_spec

            def read(signature: Signature) -> Arrays:
                return messages.request_arrays(request.inputs, signature.inputs, limit)

            name = spec.signature_name
            with self._service.borrow(_target(spec)) as version:
                found = await self._service.predict(version, name, read, deadline)
            response = predict_pb2.PredictResponse()
            _tell_spec(response.model_spec, spec, found)
            for key in _filtered(request.output_filter, found):
                response.outputs[key].CopyFrom(messages.tensor_proto(found.outputs[key]))
            return response

        return await self._measured("predict", request, context, answer)

    async def Classify(self, request: _Message, context: _Context) -> _Message:  # noqa: N802
        """Returns label and score of classes for examples."""

        async def answer(admitted: Admitted, deadline: float) -> _Message:
            rows, found = await self._infer("classify", request, admitted, deadline)
            response = classification_pb2.ClassificationResponse()
            _tell_spec(response.model_spec, request.model_spec, found)
            for pairs in examples.classes(found.outputs, rows):
                classes = response.result.classifications.add().classes
                for label, score in pairs:
                    classes.add(label=label, score=score)
            return response

        return await self._measured("classify", request, context, answer)

    async def Regress(self, request: _Message, context: _Context) -> _Message:  # noqa: N802
        """Returns a number for each example."""

        async def answer(admitted: Admitted, deadline: float) -> _Message:
            rows, found = await self._infer("regress", request, admitted, deadline)
            response = regression_pb2.RegressionResponse()
            _tell_spec(response.model_spec, request.model_spec, found)
            for value in examples.values(found.outputs, rows):
                response.result.regressions.add(value=value)
            return response

        return await self._measured("regress", request, context, answer)

    async def GetModelMetadata(  # noqa: N802
        self, request: _Message, context: _Context
    ) -> _Message:
        """Returns a version's signatures."""

        async def answer(admitted: Admitted, deadline: float) -> _Message:
            if not request.metadata_field:
                raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
            for field in request.metadata_field:
                if field != SIGNATURE_DEF:
                    raise invalid(f"Metadata field {field[:60]} is not supported")
            return self._service.metadata(_target(request.model_spec))

        return await self._measured("metadata", request, context, answer)

    async def MultiInference(self, request: _Message, context: _Context) -> _Message:  # noqa: N802
        """Refuses: several signatures at once are several requests here."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "ask for one signature at a time.")

    async def _infer(
        self, method: str, request: _Message, admitted: Admitted, deadline: float
    ) -> tuple[int, Found]:
        rows = await asyncio.to_thread(messages.serialized, request.input, admitted.repeat)
        spec = request.model_spec
        name = spec.signature_name
        with self._service.borrow(_target(spec)) as version:
            found = await self._service.infer(version, method, name, rows, deadline)
        return len(rows), found

    async def _measured(
        self,
        method: str,
        request: _Message,
        context: _Context,
        answer: Callable[[Admitted, float], Awaitable[_Message]],
    ) -> _Message:
        return await measured(self._service, method, request, context, answer)


class Models(model_service_pb2_grpc.ModelServiceServicer):
    """Answers ModelService."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def GetModelStatus(self, request: _Message, context: _Context) -> _Message:  # noqa: N802
        """Returns how far versions got."""

        async def answer(admitted: Admitted, deadline: float) -> _Message:
            return self._service.status(_target(request.model_spec))

        return await measured(self._service, "status", request, context, answer)

    async def HandleReloadConfigRequest(  # noqa: N802
        self, request: _Message, context: _Context
    ) -> _Message:
        """Refuses: what is served is said when the server is started."""
        await context.abort(
            grpc.StatusCode.UNIMPLEMENTED, "restart 'kft serve' with other options."
        )


async def measured(
    service: Service,
    method: str,
    request: _Message,
    context: _Context,
    answer: Callable[[Admitted, float], Awaitable[_Message]],
) -> _Message:
    """Answers a request within its client's deadline, and counts it.

    Args:
        service: Whose metrics count.
        method: What is asked.
        request: A protobuf.
        context: gRPC's; is told of a refusal.
        answer: Takes what counts the request's bytes, and the deadline in the event loop's time.
    """
    begin, code, refused = time.perf_counter(), "CANCELLED", None
    try:
        try:
            with service.admitted() as admitted:
                _count(admitted, request)
                response = await answer(admitted, service.deadline(_allowed(context)))
            code = "OK"
        except Exception as error:
            refused = refusals.of(error)
            code = refused.code
    finally:
        service.metrics.answered("grpc", method, code, time.perf_counter() - begin)
    if refused is not None:
        await context.abort(getattr(grpc.StatusCode, refused.code), refused.message)
    return response


def _count(admitted: Admitted, request: _Message) -> None:
    if isinstance(request, _Unreadable):
        raise invalid("the message cannot be read: its bytes are damaged, or of another type.")
    size = request.ByteSize()
    if size > admitted.service.bounds.request_bytes:
        raise RefusedError("RESOURCE_EXHAUSTED", f"the request is too large: {size} bytes.")
    admitted.grow(size)


def _allowed(context: _Context) -> float | None:
    """Returns the seconds that the client waits, `None` if it said nothing."""
    seconds = context.time_remaining()
    return None if seconds is None or math.isinf(seconds) else max(0.0, float(seconds))


def _target(spec: _Message) -> Target:
    if not spec.name:
        raise invalid("Missing ModelSpec, or its name.")
    choice = spec.WhichOneof("version_choice")
    return Target(
        spec.name,
        spec.version.value if choice == "version" else None,
        spec.version_label if choice == "version_label" else None,
    )


def _tell_spec(told: _Message, asked: _Message, found: Found) -> None:
    told.name = asked.name
    told.signature_name = asked.signature_name or DEFAULT
    told.version.value = found.number


def _filtered(wanted: Any, found: Found) -> list[str]:
    """Returns the outputs that a request wants; all of them if it names none."""
    names = list(wanted)
    for name in names:
        if name not in found.outputs:
            known = ",".join(found.outputs)
            raise invalid(
                f"output tensor alias not found in signature: {name[:60]} Outputs expected to be "
                f"in the set {{{known}}}."
            )
    if len(set(names)) != len(names):
        raise invalid("duplicate output tensor alias.")
    return names or list(found.outputs)
