"""What both protocols do with a request: find the version, check the inputs, compute, answer.

service = Service(registry, batcher, metrics, Bounds())
with service.admitted() as request:
    request.grow(len(body))
    with service.borrow(Target("mobilenet", number=3)) as version:
        found = await service.predict(version, "serving_default", read, deadline)
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kerastune_ft.serving import examples, messages, refusals
from kerastune_ft.serving.refusals import RefusedError, invalid
from kerastune_ft.serving.signatures import DEFAULT, Signature
from kerastune_ft.serving.tensors import Arrays

if TYPE_CHECKING:
    from kerastune_ft.serving.batching import Batcher
    from kerastune_ft.serving.metrics import Metrics
    from kerastune_ft.serving.registry import Registry, Version

SIGNATURE_DEF = "signature_def"
"""The only part of a model's metadata that there is."""


@dataclass(frozen=True)
class Bounds:
    """What a client may ask for.

    Args:
        request_bytes: Of one request.
        open_requests: That are read, wait or are computed; further ones are refused.
        open_bytes: Of all of them together.
        seconds: From the first byte of a request to its answer.
    """

    request_bytes: int = 32 * 2**20
    open_requests: int = 512
    open_bytes: int = 512 * 2**20
    seconds: float = 30.0


@dataclass(frozen=True)
class Target:
    """Which version a request is for: a number, a label, or the newest one.

    Args:
        name: Of the model.
        number: Or `None`.
        label: Or `None`; not both.
    """

    name: str
    number: int | None = None
    label: str | None = None


@dataclass(frozen=True)
class Found:
    """What a model gave.

    Args:
        number: Of the version that answered.
        signature: That was asked.
        outputs: By name.
    """

    number: int
    signature: Signature
    outputs: Arrays


@dataclass
class Admitted:
    """A request that is being worked on. Several threads may count its bytes.

    Args:
        service: Which has let it in.
        size: Bytes of it that were received, or that it grew to.
        ended: Whether it is over; a thread may find out later.
    """

    service: Service
    size: int = 0
    ended: bool = False

    def grow(self, count: int, what: str = "the request") -> None:
        """Counts bytes that were received.

        Args:
            count: How many there are now in addition.
            what: Is too large if they are too many.

        Raises:
            RefusedError: If they are too many, for one request or for all.
        """
        bounds = self.service.bounds
        with self.service.lock:
            self.size += count
            if not self.ended:
                self.service.open_bytes += count
            size, together = self.size, self.service.open_bytes
        if size > bounds.request_bytes:
            raise RefusedError(
                "RESOURCE_EXHAUSTED",
                f"{what} is too large: at most {bounds.request_bytes} bytes are taken.",
                status=413,
            )
        if together > bounds.open_bytes:
            raise RefusedError("RESOURCE_EXHAUSTED", "too many requests at once; try again later.")

    def repeat(self, count: int) -> None:
        """Counts bytes of a context, which becomes a part of every example.

        Raises:
            RefusedError: As `grow`.
        """
        self.grow(count, "the request, with its 'context' in every example,")


class Service:
    """Answers requests for one model. For one event loop.

    Args:
        registry: The versions.
        batcher: What computes.
        metrics: What is counted.
        bounds: What is refused.
    """

    def __init__(
        self, registry: Registry, batcher: Batcher, metrics: Metrics, bounds: Bounds
    ) -> None:
        self.registry = registry
        self.batcher = batcher
        self.metrics = metrics
        self.bounds = bounds
        self.draining = False
        self.open_requests = 0
        self.open_bytes = 0
        self.lock = threading.Lock()

    @property
    def ready(self) -> bool:
        """Whether further requests will be answered."""
        return self.registry.ready and not self.draining

    def deadline(self, seconds: float | None = None) -> float:
        """Returns when a request that begins now has to be answered, in the loop's time."""
        allowed = self.bounds.seconds if seconds is None else min(seconds, self.bounds.seconds)
        return asyncio.get_running_loop().time() + allowed

    @contextlib.contextmanager
    def admitted(self) -> Iterator[Admitted]:
        """Lets a request in until the block ends.

        Raises:
            RefusedError: If there are too many, or the server is going away.
        """
        if self.draining:
            raise RefusedError("UNAVAILABLE", "the server is going away; ask another one.")
        if self.open_requests >= self.bounds.open_requests:
            raise RefusedError(
                "RESOURCE_EXHAUSTED",
                f"the queue is full: {self.open_requests} requests are open; try again later.",
            )
        request = Admitted(self)
        self.open_requests += 1
        self.metrics.open.set(self.open_requests)
        try:
            yield request
        finally:
            self.open_requests -= 1
            with self.lock:
                self.open_bytes -= request.size
                request.ended = True
            self.metrics.open.set(self.open_requests)

    @contextlib.contextmanager
    def borrow(self, target: Target) -> Iterator[Version]:
        """Yields the version that a request is for, which stays in memory until the block ends.

        Raises:
            RefusedError: If there is none.
        """
        self._check_name(target)
        with self.registry.borrow(target.number, target.label) as version:
            yield version

    async def predict(
        self,
        version: Version,
        name: str,
        read: Callable[[Signature], Arrays],
        deadline: float,
    ) -> Found:
        """Returns what a signature gives.

        Args:
            version: From `borrow`, for as long as this takes.
            name: Of the signature; empty for the default one.
            read: Returns the request's inputs, checked; it runs in another thread.
            deadline: In the event loop's time.

        Raises:
            RefusedError: If the request is wrong, the server is busy or the model fails.
        """
        signature = version.model.signature(name)
        arrays = await asyncio.to_thread(read, signature)
        outputs = await self.batcher.submit(signature, arrays, deadline)
        return Found(version.number, signature, outputs)

    async def infer(
        self,
        version: Version,
        method: str,
        name: str,
        rows: list[bytes],
        deadline: float,
    ) -> Found:
        """Returns what a signature for examples gives.

        Args:
            version: From `borrow`, for as long as this takes.
            method: `classify` or `regress`.
            name: Of the signature; empty for the default one.
            rows: Serialized examples.
            deadline: In the event loop's time.

        Raises:
            RefusedError: As `predict`, or if the signature is of another kind.
        """
        found = version.model.signatures.get(name or DEFAULT)
        if found is None:
            raise invalid(f"No signature was found with the name: {(name or DEFAULT)[:60]}")
        key = examples.check(method, found.method, found.inputs)
        arrays = {key: messages.strings(rows)}
        found.inputs[key].check(arrays[key])
        outputs = await self.batcher.submit(found, arrays, deadline)
        return Found(version.number, found, outputs)

    def status(self, target: Target) -> Any:
        """Returns how far versions got, as a `GetModelStatusResponse`.

        Raises:
            RefusedError: If there are none.
        """
        from tensorflow_serving.apis import get_model_status_pb2

        if target.name != self.registry.name:
            raise RefusedError(
                "NOT_FOUND", f"Could not find any versions of model {target.name[:60]}"
            )
        response = get_model_status_pb2.GetModelStatusResponse()
        states = get_model_status_pb2.ModelVersionStatus.State
        for found in self.registry.statuses(target.number, target.label):
            one = response.model_version_status.add()
            one.version = found.version
            one.state = states.Value(found.state)
            one.status.error_code = refusals.number_of(found.code)
            one.status.error_message = found.message
        return response

    def metadata(self, target: Target) -> Any:
        """Returns a version's signatures, as a `GetModelMetadataResponse`.

        Raises:
            RefusedError: If there is none.
        """
        from tensorflow_serving.apis import get_model_metadata_pb2

        with self.borrow(target) as version:
            listed = get_model_metadata_pb2.SignatureDefMap()
            for name, definition in version.model.definitions.items():
                listed.signature_def[name].CopyFrom(definition)
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            response.model_spec.name = version.name
            response.model_spec.version.value = version.number
            response.metadata[SIGNATURE_DEF].Pack(listed)
            return response

    def _check_name(self, target: Target) -> None:
        if target.name == self.registry.name:
            return
        asked = (
            f"Latest({target.name[:60]})"
            if target.number is None
            else f"Specific({target.name[:60]}, {target.number})"
        )
        raise RefusedError("NOT_FOUND", f"Servable not found for request: {asked}")
