"""Joined requests get what they would get alone, and one that fails spoils no other."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_models import picture, write_pictures, write_toys, write_words

from kerastune_ft.serving import signatures
from kerastune_ft.serving.batching import Batcher, Limits
from kerastune_ft.serving.messages import strings
from kerastune_ft.serving.metrics import Metrics
from kerastune_ft.serving.refusals import RefusedError
from kerastune_ft.serving.signatures import Model, Signature


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return signatures.load(write_toys(tmp_path_factory.mktemp("toys")) / "1")


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Model:
    base: Path = tmp_path_factory.mktemp("pictures")
    return signatures.load(write_pictures(base) / "1")


class Counted:
    """A signature that remembers the rows of every call."""

    def __init__(self, signature: Signature) -> None:
        self.calls: list[int] = []

        def run(arrays: Any) -> Any:
            first = next(iter(arrays.values()))
            self.calls.append(first.shape[0] if first.ndim else -1)
            return signature.run(arrays)

        self.signature = Signature(
            signature.name, signature.method, signature.inputs, signature.outputs, run
        )


def batched(limits: Limits, work: Callable[[Batcher], Awaitable[Any]]) -> Any:
    """Runs work with a batcher."""

    async def run() -> Any:
        batcher = Batcher(limits, Metrics())
        await batcher.start()
        try:
            return await asyncio.wait_for(work(batcher), 60)
        finally:
            await batcher.stop()

    return asyncio.run(run())


def together(limits: Limits, signature: Signature, requests: list[dict[str, Any]]) -> list[Any]:
    """Submits requests at once; returns outputs, or what was raised."""

    async def work(batcher: Batcher) -> list[Any]:
        deadline = asyncio.get_running_loop().time() + 60
        jobs = [batcher.submit(signature, arrays, deadline) for arrays in requests]
        return await asyncio.gather(*jobs, return_exceptions=True)

    return batched(limits, work)


def floats(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.array(values, np.float32)}


def test_requests_that_come_together_are_computed_together(toys: Model) -> None:
    counted = Counted(toys.signature(""))
    requests = [floats(1), floats(2, 3), floats(4)]
    found = together(Limits(wait_seconds=0.05, workers=2), counted.signature, requests)
    assert counted.calls == [4]
    for outputs, arrays in zip(found, requests, strict=True):
        np.testing.assert_array_equal(outputs["y"], arrays["x"] / 2 + 3)


def test_joined_pictures_are_answered_as_alone(colours: Model) -> None:
    signature = colours.signature("")
    rng = np.random.default_rng(0)
    requests = []
    for _ in range(20):
        names = rng.choice(["blue", "green", "red"], size=rng.integers(1, 4))
        files = [picture(name, tuple(rng.integers(1, 30, 2).tolist())) for name in names]
        requests.append({"image_bytes": strings(files)})
    counted = Counted(signature)
    found = together(Limits(examples=16, wait_seconds=0.05), counted.signature, requests)
    assert len(counted.calls) < len(requests)
    assert max(counted.calls) <= 16
    for outputs, arrays in zip(found, requests, strict=True):
        alone = signature.run(arrays)
        assert list(outputs) == list(alone)
        for name in alone:
            if alone[name].dtype == object:
                np.testing.assert_array_equal(outputs[name], alone[name])
            else:
                np.testing.assert_allclose(outputs[name], alone[name], rtol=1e-6)


def test_one_that_fails_is_refused_and_the_others_are_answered(toys: Model) -> None:
    counted = Counted(toys.signature("fussy"))
    requests = [floats(4), floats(9, -1), floats(16), floats(25, 36)]
    found = together(Limits(wait_seconds=0.05, workers=1), counted.signature, requests)
    assert counted.calls == [6, 1, 2, 1, 2]
    assert isinstance(found[1], RefusedError)
    assert found[1].code == "INVALID_ARGUMENT"
    assert "no number below 0" in found[1].message
    assert [row["root"].tolist() for row in (found[0], found[2], found[3])] == [[2], [4], [5, 6]]


def test_what_has_other_dimensions_is_not_joined(toys: Model) -> None:
    counted = Counted(toys.signature("total"))
    requests = [
        {"x": np.ones((2, 3), np.float32)},
        {"x": np.ones((2, 4), np.float32)},
        {"x": np.float32(7).reshape(())},
    ]
    found = together(Limits(wait_seconds=0.02), counted.signature, requests)
    assert sorted(counted.calls) == [-1, 2, 2]
    assert [float(row["total"]) for row in found] == [6, 8, 7]


def test_another_versions_signature_of_the_same_name_is_another_one(toys: Model) -> None:
    old, new = Counted(toys.signature("")), Counted(toys.signature(""))

    async def work(batcher: Batcher) -> list[Any]:
        deadline = asyncio.get_running_loop().time() + 60
        jobs = [
            batcher.submit(counted.signature, floats(1, 2), deadline)
            for counted in (old, new, old, new)
        ]
        return await asyncio.gather(*jobs)

    assert len(batched(Limits(wait_seconds=0.05), work)) == 4
    assert (old.calls, new.calls) == ([4], [4])


def test_outputs_without_rows_are_never_divided(toys: Model) -> None:
    """The sum over a joined batch is nobody's answer, and is not asked for a second time."""
    counted = Counted(toys.signature("total"))
    limits = Limits(examples=4, wait_seconds=0.05, workers=1)

    async def work(batcher: Batcher) -> list[Any]:
        deadline = asyncio.get_running_loop().time() + 60
        found = []
        for _ in range(2):
            jobs = [batcher.submit(counted.signature, floats(i, 1), deadline) for i in (1, 2)]
            found += await asyncio.gather(*jobs)
        found.append(await batcher.submit(counted.signature, floats(*range(9)), deadline))
        return found

    found = batched(limits, work)
    assert [float(row["total"]) for row in found] == [2, 3, 2, 3, 36]
    assert counted.calls == [4, 2, 2, 2, 2, 9]


def test_a_long_request_is_computed_in_parts(toys: Model) -> None:
    counted = Counted(toys.signature(""))
    (found,) = together(Limits(examples=4), counted.signature, [floats(*range(11))])
    assert counted.calls == [4, 4, 3]
    np.testing.assert_array_equal(found["y"], np.arange(11) / 2 + 3)


@pytest.mark.parametrize("name", ["tags", "write"])
def test_answers_as_wide_as_the_longest_are_neither_joined_nor_put_together(
    tmp_path: Path, name: str
) -> None:
    """Joined, a short text would be padded to its neighbour's width; in parts, none would fit."""
    signature = signatures.load(write_words(tmp_path, name)).signature("")
    texts = [[b"Anna"], [b"a dog sees Bob here"], [b"who is it", b"x", b"I am Eve", b"yes", b"no"]]
    requests = [{"text": strings(row)} for row in texts]
    counted = Counted(signature)
    found = together(Limits(examples=2, wait_seconds=0.05), counted.signature, requests)
    assert sorted(counted.calls) == [1, 1, 5]
    for outputs, arrays in zip(found, requests, strict=True):
        alone = signature.run(arrays)
        assert list(outputs) == list(alone)
        for key in alone:
            np.testing.assert_array_equal(outputs[key], alone[key])


def test_a_worker_that_waits_keeps_no_version_in_memory(toys: Model) -> None:
    async def work(batcher: Batcher) -> list[Any]:
        deadline = asyncio.get_running_loop().time() + 60
        gone = []
        for _ in range(3):
            signature = Counted(toys.signature("")).signature
            await batcher.submit(signature, floats(1), deadline)
            gone.append(weakref.ref(signature))
            del signature
            await asyncio.sleep(0.05)
        gc.collect()
        return [reference() for reference in gone]

    assert batched(Limits(workers=2), work) == [None, None, None]


def test_batches_are_no_larger_than_allowed(toys: Model) -> None:
    counted = Counted(toys.signature(""))
    requests = [floats(*range(1 + i % 3)) for i in range(40)]
    limits = Limits(examples=5, wait_seconds=0.02, workers=1)
    found = together(limits, counted.signature, requests)
    assert max(counted.calls) <= 5
    assert sum(counted.calls) == sum(len(row["x"]) for row in requests)
    assert len(counted.calls) < len(requests) / 1.5
    for outputs, arrays in zip(found, requests, strict=True):
        np.testing.assert_array_equal(outputs["y"], arrays["x"] / 2 + 3)


def test_an_empty_request_is_answered_by_the_model(toys: Model) -> None:
    (found,) = together(Limits(), toys.signature(""), [floats()])
    assert found["y"].shape == (0,)


def test_a_full_queue_is_refused_at_once(toys: Model) -> None:
    requests = [floats(1)] * 10
    found = together(Limits(queue=4, wait_seconds=0.02), toys.signature(""), requests)
    refused = [row for row in found if isinstance(row, RefusedError)]
    assert len(refused) == 6
    assert {row.code for row in refused} == {"RESOURCE_EXHAUSTED"}
    assert {row.status for row in refused} == {503}


def test_a_deadline_passes_in_the_queue_without_a_computation(toys: Model) -> None:
    counted = Counted(toys.signature(""))

    async def work(batcher: Batcher) -> tuple[Any, int]:
        loop = asyncio.get_running_loop()
        with pytest.raises(RefusedError, match="not there in time") as caught:
            await batcher.submit(counted.signature, floats(1), loop.time() + 0.05)
        assert batcher.waiting == 0
        await asyncio.sleep(0.6)
        return caught.value.code, batcher.waiting

    assert batched(Limits(wait_seconds=0.5), work) == ("DEADLINE_EXCEEDED", 0)
    assert counted.calls == []


def test_what_still_waits_at_the_end_is_refused(toys: Model) -> None:
    async def run() -> Any:
        batcher = Batcher(Limits(wait_seconds=30), Metrics())
        await batcher.start()
        deadline = asyncio.get_running_loop().time() + 60
        job = asyncio.create_task(batcher.submit(toys.signature(""), floats(1), deadline))
        await asyncio.sleep(0.1)
        await batcher.stop()
        return await asyncio.gather(job, return_exceptions=True)

    (found,) = asyncio.run(run())
    assert isinstance(found, RefusedError)
    assert found.code == "UNAVAILABLE"


def test_a_fault_of_ours_is_told_as_such_and_the_worker_goes_on(
    toys: Model, caplog: pytest.LogCaptureFixture
) -> None:
    good = toys.signature("")

    def run(arrays: Any) -> Any:
        if arrays["x"][0] < 0:
            raise ZeroDivisionError("a secret path")
        return good.run(arrays)

    odd = Signature(good.name, good.method, good.inputs, good.outputs, run)
    found = together(Limits(workers=1, wait_seconds=0), odd, [floats(-1)])
    assert found[0].code == "INTERNAL"
    assert "secret" not in found[0].message
    assert "ZeroDivisionError" in caplog.text
    assert together(Limits(workers=1), odd, [floats(2)])[0]["y"].tolist() == [4]
