"""Joins requests that wait for the same signature, so that the model computes them together.

Requests are joined along the first dimension when signature, types and all other dimensions are the
same. If a joined batch fails, each of its requests is tried alone: one bad picture spoils nobody's
answer. What cannot be joined, such as inputs of different lengths, runs by itself; so does what is
answered as wide as its longest example, such as texts that are written: it would be padded to the
width of its neighbours.

    batcher = Batcher(Limits(examples=32, wait_seconds=0.002), metrics)
    await batcher.start()
    outputs = await batcher.submit(signature, arrays, deadline)
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from kerastune_ft.serving import refusals
from kerastune_ft.serving.refusals import RefusedError
from kerastune_ft.serving.signatures import Signature
from kerastune_ft.serving.tensors import Arrays

if TYPE_CHECKING:
    from kerastune_ft.serving.metrics import Metrics


@dataclass(frozen=True)
class Limits:
    """How requests are joined.

    Args:
        examples: Rows of a batch, at most. A longer request is computed in parts.
        wait_seconds: How long the first request of a batch waits for others.
        queue: Requests that wait, at most; further ones are refused.
        workers: Batches that are computed at once.
    """

    examples: int = 32
    wait_seconds: float = 0.002
    queue: int = 256
    workers: int = 2


@dataclass(eq=False)
class _Waiting:
    """A request in the queue.

    Args:
        signature: What it asks.
        arrays: Its inputs.
        rows: Examples in it; `None` if that cannot be told.
        answer: Receives outputs or an error.
    """

    signature: Signature
    arrays: Arrays
    rows: int | None
    answer: asyncio.Future[Arrays]


@dataclass(eq=False)
class _Batch:
    """Requests that will be computed together.

    Args:
        key: What they have in common; `None` if nobody may join.
        opened: When the first one came, in the event loop's time.
        requests: At least one, unless their clients have left.
    """

    key: Hashable | None
    opened: float
    requests: list[_Waiting] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(waiting.rows or 0 for waiting in self.requests)


class Batcher:
    """The queue before a model and the workers behind it. For one event loop.

    Args:
        limits: Of batches and queue.
        metrics: Is told of batches.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._batches: list[_Batch] = []
        self._change = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._pool = ThreadPoolExecutor(limits.workers, "kft-serve-model")
        self._undivided: weakref.WeakSet[Signature] = weakref.WeakSet()
        self._computing = 0
        self._lock = threading.Lock()

    @property
    def computing(self) -> int:
        """Batches that are computed right now; they cannot be interrupted."""
        with self._lock:
            return self._computing

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return sum(len(batch.requests) for batch in self._batches)

    async def start(self) -> None:
        """Starts the workers."""
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._limits.workers)]

    async def stop(self) -> None:
        """Stops the workers and refuses what is not answered yet."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for batch in self._batches:
            _refuse(batch, _going_away())
        self._batches.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def submit(self, signature: Signature, arrays: Arrays, deadline: float) -> Arrays:
        """Returns what a signature gives for arrays, once they were computed.

        Args:
            signature: Of a version that stays in memory for as long.
            arrays: One for each input, checked.
            deadline: In the event loop's time.

        Raises:
            RefusedError: If the queue is full, the deadline passes or the model fails.
        """
        if self.waiting >= self._limits.queue:
            raise RefusedError(
                "RESOURCE_EXHAUSTED",
                f"the queue is full: {self.waiting} requests wait; try again later.",
            )
        loop = asyncio.get_running_loop()
        rows = _rows(arrays)
        waiting = _Waiting(signature, arrays, rows, loop.create_future())
        batch = self._join(waiting, self._key(waiting), loop.time())
        self._changed()
        try:
            async with asyncio.timeout_at(deadline):
                return await waiting.answer
        except TimeoutError as error:
            raise RefusedError(
                "DEADLINE_EXCEEDED", "the answer was not there in time; ask for less, or later."
            ) from error
        finally:
            waiting.answer.cancel()
            if batch in self._batches:
                batch.requests.remove(waiting)
                self._changed()

    def _key(self, waiting: _Waiting) -> Hashable | None:
        """Returns what requests that can be joined have in common."""
        signature = waiting.signature
        fixed = any(
            tensor.shape is not None and (not tensor.shape or tensor.shape[0] is not None)
            for tensor in signature.inputs.values()
        )
        wide = any(
            tensor.shape is None or None in tensor.shape[1:]
            for tensor in signature.outputs.values()
        )
        if fixed or wide or not waiting.rows or signature in self._undivided:
            return None
        shapes = [(name, array.shape[1:]) for name, array in sorted(waiting.arrays.items())]
        return signature, tuple(shapes)

    def _join(self, waiting: _Waiting, key: Hashable | None, now: float) -> _Batch:
        """Puts a request into the batch that is open for it, or opens one."""
        rows = waiting.rows or 0
        for batch in reversed(self._batches if key is not None else []):
            if batch.key == key:
                if batch.rows + rows <= self._limits.examples:
                    batch.requests.append(waiting)
                    return batch
                break
        batch = _Batch(key, now, [waiting])
        self._batches.append(batch)
        return batch

    def _changed(self) -> None:
        self._metrics.queue.set(self.waiting)
        self._change.set()

    async def _work(self) -> None:
        while True:
            # Nothing here names the batch: a worker that waits would keep it and its version.
            await self._worked_off(await self._next())

    async def _worked_off(self, batch: _Batch) -> None:
        try:
            await self._answer(batch)
        except asyncio.CancelledError:
            _refuse(batch, _going_away())
            raise
        except Exception as error:
            _refuse(batch, refusals.of(error))

    async def _next(self) -> _Batch:
        """Takes the oldest batch that is full or has waited for long enough."""
        loop = asyncio.get_running_loop()
        while True:
            found, ripe_at = self._ripe(loop.time())
            if found is not None:
                return found
            self._change.clear()
            try:
                async with asyncio.timeout_at(ripe_at):
                    await self._change.wait()
            except TimeoutError:
                continue

    def _ripe(self, now: float) -> tuple[_Batch | None, float | None]:
        """Takes a batch that need not wait, or says when the first one will be so far."""
        self._batches = [batch for batch in self._batches if batch.requests]
        ripe_at = None
        for batch in self._batches:
            ripe = batch.opened + self._limits.wait_seconds
            if batch.key is None or batch.rows >= self._limits.examples or ripe <= now:
                self._batches.remove(batch)
                self._metrics.queue.set(self.waiting)
                return batch, None
            ripe_at = ripe if ripe_at is None else min(ripe, ripe_at)
        return None, ripe_at

    async def _answer(self, batch: _Batch) -> None:
        """Computes a batch and hands out its parts; on failure, each request by itself."""
        requests = [waiting for waiting in batch.requests if not waiting.answer.done()]
        if len(requests) > 1:
            rows = [waiting.rows or 0 for waiting in requests]
            signature = requests[0].signature
            try:
                arrays = {
                    name: np.concatenate([waiting.arrays[name] for waiting in requests])
                    for name in requests[0].arrays
                }
                outputs = await self._compute(signature, arrays, sum(rows))
            except Exception:
                self._metrics.batches_failed.labels(signature.name).inc()
            else:
                if _has_rows(outputs, sum(rows)):
                    for waiting, part in zip(requests, _divided(outputs, rows), strict=True):
                        self._hand_out(waiting, part)
                    return
                self._undivided.add(signature)  # it is not asked for several at once again
        for waiting in requests:
            if waiting.answer.done():
                continue
            try:
                self._hand_out(waiting, await self._alone(waiting))
            except Exception as error:
                if not waiting.answer.done():
                    waiting.answer.set_exception(refusals.of(error))

    async def _alone(self, waiting: _Waiting) -> Arrays:
        """Computes one request, in parts if it is longer than a batch may be."""
        signature, rows, most = waiting.signature, waiting.rows, self._limits.examples
        if rows is None or rows <= most or self._key(waiting) is None:
            return await self._compute(signature, waiting.arrays, rows or 1)
        parts = []
        for start in range(0, rows, most):
            count = min(most, rows - start)
            arrays = {name: array[start : start + count] for name, array in waiting.arrays.items()}
            part = await self._compute(signature, arrays, count)
            if not _has_rows(part, count):
                self._undivided.add(signature)
                return await self._compute(signature, waiting.arrays, rows)
            parts.append(part)
            if waiting.answer.done():
                break  # its client has left
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    async def _compute(self, signature: Signature, arrays: Arrays, rows: int) -> Arrays:
        loop = asyncio.get_running_loop()
        self._metrics.batch_examples.labels(signature.name).observe(rows)
        return await loop.run_in_executor(self._pool, self._timed, signature, arrays)

    def _timed(self, signature: Signature, arrays: Arrays) -> Arrays:
        begin = time.perf_counter()
        with self._lock:
            self._computing += 1
        try:
            return signature.run(arrays)
        finally:
            with self._lock:
                self._computing -= 1
            seconds = time.perf_counter() - begin
            self._metrics.batch_seconds.labels(signature.name).observe(seconds)

    def _hand_out(self, waiting: _Waiting, outputs: Arrays) -> None:
        if not waiting.answer.done():
            self._metrics.examples.labels(waiting.signature.name).inc(waiting.rows or 1)
            waiting.answer.set_result(outputs)


def _rows(arrays: Arrays) -> int | None:
    """Returns how many rows all of the arrays have, if it is the same number."""
    sizes = {array.shape[0] if array.ndim else None for array in arrays.values()}
    return sizes.pop() if len(sizes) == 1 else None


def _has_rows(outputs: Arrays, rows: int) -> bool:
    return all(array.ndim and array.shape[0] == rows for array in outputs.values())


def _divided(outputs: Arrays, rows: Sequence[int]) -> list[Arrays]:
    """Returns each request's rows of the outputs of a joined batch."""
    ends = np.cumsum(rows)
    return [
        {name: array[end - count : end] for name, array in outputs.items()}
        for end, count in zip(ends, rows, strict=True)
    ]


def _going_away() -> RefusedError:
    return RefusedError("UNAVAILABLE", "the server is going away; ask another one, or later.")


def _refuse(batch: _Batch, error: RefusedError) -> None:
    for waiting in batch.requests:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)
