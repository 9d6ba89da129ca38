"""The REST API of TensorFlow Serving as an ASGI application, a page to try the model, and probes.

    POST /v1/models/NAME[/versions/N|/labels/L]:predict, :classify, :regress
    GET  /v1/models/NAME[/versions/N|/labels/L][/metadata]
    GET  /, /healthz, /readyz, /monitoring/prometheus/metrics

Refused: bodies that are too long (413), requests beyond the queue (503), answers that take too long
(504). No part of an address is ever taken for a file's.

Reference:
    https://www.tensorflow.org/tfx/serving/api_rest
"""

from __future__ import annotations

import asyncio
import re
import time
import zlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from kerastune_ft.serving import examples, metrics, page, refusals, tensors
from kerastune_ft.serving.refusals import RefusedError, invalid
from kerastune_ft.serving.registry import Version
from kerastune_ft.serving.service import Admitted, Service, Target
from kerastune_ft.serving.signatures import Signature

_Handler: TypeAlias = Callable[[Request], Awaitable[Response]]

_WHICH = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_ASKED = re.compile(
    rf"/v1/models/(?P<name>[^/:]+){_WHICH}:(?P<method>classify|regress|predict)",
    re.IGNORECASE | re.ASCII,
)
_TOLD = re.compile(
    rf"/v1/models(?:/(?P<name>[^/:]+))?{_WHICH}(?P<metadata>/metadata)?", re.IGNORECASE | re.ASCII
)
_LARGEST = 2**63 - 1
_CHUNK = 2**20  # bytes that are unzipped at a time
_RETRY_SECONDS = "1"
_HEADERS = {"X-Content-Type-Options": "nosniff"}
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def application(service: Service) -> Starlette:
    """Returns the application that answers for a model."""

    async def models(request: Request) -> Response:
        return await _measured(service, request)

    async def shown(request: Request) -> Response:
        return page.response(service)

    async def alive(request: Request) -> Response:
        return _json({"alive": True})

    async def ready(request: Request) -> Response:
        if service.ready:
            return _json({"ready": True})
        return _refused(RefusedError("UNAVAILABLE", "no version is served, or the server stops."))

    async def figures(request: Request) -> Response:
        content = await asyncio.to_thread(service.metrics.page)
        return Response(content, headers={"Content-Type": metrics.CONTENT_TYPE})

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = "NOT_FOUND" if error.status_code == 404 else "INVALID_ARGUMENT"
        said = f"{request.method} {request.url.path[:200]}: {error.detail}; the API is below /v1/."
        return _refused(RefusedError(code, said, status=error.status_code))

    routes = [
        Route("/", shown),
        Route("/healthz", alive),
        Route("/readyz", ready),
        Route("/monitoring/prometheus/metrics", figures),
        Route("/v1/{rest:path}", models, methods=_METHODS),
        Route("/V1/{rest:path}", models, methods=_METHODS),
    ]
    made = Starlette(routes=routes, exception_handlers={HTTPException: unknown})
    made.router.redirect_slashes = False
    return made


async def _measured(service: Service, request: Request) -> Response:
    """Answers, counts the answer, and turns whatever goes wrong into one."""
    begin = time.perf_counter()
    method = "other"
    try:
        method, handler = _route(service, request)
        response = await handler(request)
    except ClientDisconnect:
        response = _refused(RefusedError("CANCELLED", "the client has left."))
    except Exception as error:
        response = _refused(refusals.of(error))
    seconds = time.perf_counter() - begin
    service.metrics.answered("rest", method, str(response.status_code), seconds)
    return response


def _route(service: Service, request: Request) -> tuple[str, _Handler]:
    """Returns what an address below /v1/ asks for, and who answers it."""
    raw = request.scope.get("raw_path") or request.scope["path"].encode("utf-8", "replace")
    path = raw.decode("ascii", errors="replace").partition("?")[0]
    asked = _ASKED.fullmatch(path) if request.method == "POST" else None
    if asked is not None:
        method, target = asked["method"].lower(), _target(asked)

        async def answered(request: Request) -> Response:
            return await _answer(service, request, method, target)

        return method, answered
    told = _TOLD.fullmatch(path) if request.method == "GET" else None
    if told is None:
        raise invalid(f"Malformed request: {request.method} {path[:200]}")
    if told["name"] is None:
        raise invalid("Missing model name in request.")
    target = _target(told)
    which = "status" if told["metadata"] is None else "metadata"

    async def described(request: Request) -> Response:
        message = service.status(target) if which == "status" else service.metadata(target)
        return _json(_content(message, which))

    return which, described


def _target(match: re.Match[str]) -> Target:
    number = None
    if match["version"] is not None:
        number = int(match["version"]) if len(match["version"]) < 20 else _LARGEST + 1
        if number > _LARGEST:
            raise invalid(f"Failed to convert version: {match['version'][:40]} to numeric.")
    label = None if match["label"] is None else unquote(match["label"], errors="replace")
    return Target(unquote(match["name"], errors="replace"), number, label)


async def _answer(service: Service, request: Request, method: str, target: Target) -> Response:
    # Borrowed once: a version that is retired while the body arrives still answers.
    with service.admitted() as admitted, service.borrow(target) as version:
        deadline = service.deadline()
        body = await _body(request, admitted, deadline)
        work = (
            _predict(service, version, body, deadline)
            if method == "predict"
            else _infer(service, version, method, body, admitted, deadline)
        )
        content = await _while_connected(request, work)
        return Response(content, media_type="application/json", headers=_HEADERS)


async def _while_connected(request: Request, work: Coroutine[Any, Any, bytes]) -> bytes:
    """Returns what work gives; it is dropped when the client leaves, and makes room for others."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _predict(service: Service, version: Version, body: bytes, deadline: float) -> bytes:
    content = await asyncio.to_thread(tensors.parse, body)
    row_format = False

    def read(signature: Signature) -> tensors.Arrays:
        nonlocal row_format
        arrays, row_format = tensors.request_arrays(content, signature.inputs)
        return arrays

    found = await service.predict(version, tensors.signature_name(content), read, deadline)
    return await asyncio.to_thread(
        lambda: tensors.text_of(tensors.answer(found.outputs, row_format))
    )


async def _infer(
    service: Service,
    version: Version,
    method: str,
    body: bytes,
    admitted: Admitted,
    deadline: float,
) -> bytes:
    def read() -> tuple[str, list[bytes]]:
        content = tensors.parse(body)
        return tensors.signature_name(content), examples.serialized(content, admitted.repeat)

    name, rows = await asyncio.to_thread(read)
    found = await service.infer(version, method, name, rows, deadline)
    told = examples.classes if method == "classify" else examples.values
    return await asyncio.to_thread(
        lambda: tensors.text_of({"results": told(found.outputs, len(rows))})
    )


async def _body(request: Request, admitted: Admitted, deadline: float) -> bytes:
    """Reads a request's body, as far as it may be long and may take."""
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and len(length) < 20:
        limit = admitted.service.bounds.request_bytes
        if int(length) > limit:
            admitted.grow(limit + 1)
    chunks = []
    try:
        async with asyncio.timeout_at(deadline):
            async for chunk in request.stream():
                admitted.grow(len(chunk))
                chunks.append(chunk)
    except TimeoutError as error:
        raise RefusedError(
            "DEADLINE_EXCEEDED", "the request did not arrive in time.", status=408
        ) from error
    body = b"".join(chunks)
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding == "gzip":
        return await asyncio.to_thread(_unzipped, body, admitted)
    if encoding != "identity":
        raise RefusedError("UNIMPLEMENTED", "Content-Encoding: expected gzip, or none.", status=415)
    return body


def _unzipped(body: bytes, admitted: Admitted) -> bytes:
    """Returns a body's content; what it has more than the body is counted before it is kept."""
    reader = zlib.decompressobj(16 + zlib.MAX_WBITS)
    chunks, size, rest = [], 0, body
    while not reader.eof:
        try:
            chunk = reader.decompress(rest, _CHUNK)
        except zlib.error as error:
            raise invalid("the body is not gzip, as Content-Encoding says.") from error
        rest = reader.unconsumed_tail
        if not (chunk or rest or reader.eof):
            raise invalid("the body ends in the middle of its gzip stream.")
        size += len(chunk)
        admitted.grow(max(0, size - admitted.size))
        chunks.append(chunk)
    if reader.unused_data:
        raise invalid("the body goes on after the end of its gzip stream.")
    return b"".join(chunks)


def _content(message: Any, which: str) -> dict[str, Any]:
    """Returns a protobuf as TensorFlow Serving writes it: every field, in snake case."""
    from google.protobuf import json_format

    def told(part: Any) -> dict[str, Any]:
        return dict(
            json_format.MessageToDict(
                part, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
        )

    if which == "status":
        return told(message)
    # TensorFlow Serving writes the map itself, without the `@type` of the Any that holds it.
    metadata = {name: told(_unpacked(packed)) for name, packed in message.metadata.items()}
    return {"model_spec": told(message.model_spec), "metadata": metadata}


def _unpacked(packed: Any) -> Any:
    from tensorflow_serving.apis import get_model_metadata_pb2

    listed = get_model_metadata_pb2.SignatureDefMap()
    packed.Unpack(listed)
    return listed


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(
        tensors.text_of(content),
        status,
        media_type="application/json",
        headers={**_HEADERS, **(headers or {})},
    )


def _refused(error: RefusedError) -> Response:
    headers = {"Retry-After": _RETRY_SECONDS} if error.status == 503 else {}
    return _json({"error": error.message}, error.status, headers)
