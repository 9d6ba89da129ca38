"""Loads `kft serve` on this machine: how fast, how it refuses, whether it is right, what it weighs.

    python -m benchmarks.serving                               # a small MobileNetV2, four minutes
    python -m benchmarks.serving --model runs/clothing/export  # pictures or texts
    python -m benchmarks.serving --seconds 1 --requests 1000   # does everything run?

The server is a process of its own, and so are the clients: one process, on connections that are
kept, each sending the next request when the last is answered. They share the processors with the
server. Measured are

- throughput and latency with 1, 8 and 64 clients, over REST and gRPC, with joined batches (as by
  default) and without (`--max-batch 1`);
- overload: 256 clients before a queue of 16; who is refused asks again after 50 ms. Then how long
  a newcomer waits for a good answer, and the throughput of 8 clients, as it was before;
- 10,000 requests of 32 clients by REST and 32 by gRPC at once, every answer compared with what the
  graph says of that one picture alone, and the resident memory after each thousand.

Without `--model`, the network is MobileNetV2, a third as wide, 96 pixels, with random weights and a
head that was trained for an epoch on scikit-learn's digits: what it says is of no interest, but it
says something else of each picture. Everything is bounded by counts and seconds. Written are a
Markdown table and, beside it as JSON, all figures. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks import processes
from benchmarks.__main__ import machine

CLIENTS = (1, 8, 64)
CROWD, QUEUE, PAUSE_SECONDS = 256, 16, 0.05
PROTOCOLS = ("rest", "grpc")
CLOSE = 1e-4
_EXAMPLES = 48
_STEP = 1000
_WARM_SECONDS = 1.0
_LONGEST_SECONDS = 120.0  # of what ends by a count
_REFUSED = {"503", "RESOURCE_EXHAUSTED"}

Send: TypeAlias = Callable[[int], Awaitable[tuple[str, Any]]]
"""Asks about an example by its number; returns a status and, of 200 and OK, probabilities."""


# What is served, and what is right


def prepare(settings: dict[str, Any]) -> dict[str, Any]:
    """Makes an export, or takes the one that is given, and asks its graph about each example."""
    from kerastune_ft import exports
    from kerastune_ft.exports import contract, verification
    from kerastune_ft.serving import registry

    folder = Path(settings["into"])
    if settings["model"]:
        base = Path(settings["model"])
    else:
        base = exports.export(_run(folder), examples=20).path.parent
    found = registry.find(base).versions()
    path = found[max(found)]
    facts = contract.read(path)
    if facts.modality == "image" and facts.inputs == ("image_bytes",):
        raw: list[Any] = [{"b64": base64.b64encode(one).decode()} for one in _photographs()]
        inputs: list[Any] = [base64.b64decode(row["b64"]) for row in raw]
    elif facts.inputs == ("text",):
        raw = _texts()
        inputs = [(text,) for text in raw]
    else:
        raise SystemExit(f"'{path}' takes {', '.join(facts.inputs)}; give one of files or texts.")
    answers = verification.of_version(path, facts)
    right = [[float(value) for value in answers([one])[0]] for one in inputs]
    content = {"key": facts.inputs[0], "examples": raw, "right": right}
    (folder / "examples.json").write_text(json.dumps(content), encoding="utf-8")
    return {"base": str(base), "name": facts.name, "task": facts.task, "different": _kinds(right)}


def _run(folder: Path) -> Any:
    """Trains a head of a network whose random weights behave like trained ones."""
    import keras
    import numpy as np

    from kerastune_ft import models, workflow
    from kerastune_ft import recipe as recipes

    keras.utils.set_random_seed(0)
    name, shape = "mobilenet_v2", {"image_size": 96, "alpha": 0.35}
    model = models.image_classifier(name, 10, weights="none", seed=0, **shape)
    network, _ = models.backbone_of(model)
    # Of random weights every layer would pass on less than it got, were it not normalised.
    layers = [
        layer
        for layer in network._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    models.unfreeze(model, -1, batch_norm="train")
    for layer in layers:
        layer.momentum = 0.0
    noise = np.random.default_rng(0).uniform(0, 255, (16, 96, 96, 3)).astype("float32")
    model(noise, training=True)
    for layer in layers:
        layer.momentum = 0.999
    models.freeze(model)
    model.save(folder / "random.keras")
    mapping = {
        "backbone": {"name": name, "weights": str(folder / "random.keras"), **shape},
        "data": {"source": "sklearn", "path": "digits"},
        "train": {
            "stages": [{"trainable_blocks": 0, "epochs": 1, "learning_rate": 1e-2}],
            "tensorboard": False,
        },
    }
    return workflow.fit(recipes.from_mapping(mapping), runs_dir=folder / "runs", name="load")


def _photographs() -> list[bytes]:
    """Returns parts of two real photographs as JPEG files of some kilobytes."""
    import io

    import numpy as np
    from PIL import Image
    from sklearn import datasets

    random, found = np.random.default_rng(0), []
    photos = [Image.fromarray(pixels) for pixels in datasets.load_sample_images().images]
    for number in range(_EXAMPLES):
        photo = photos[number % len(photos)]
        side = int(random.integers(120, 320))
        left, top = (int(random.integers(length - side)) for length in photo.size)
        file = io.BytesIO()
        part = photo.crop((left, top, left + side, top + side)).resize((160, 160))
        part.save(file, "JPEG", quality=85)
        found.append(file.getvalue())
    return found


def _texts() -> list[str]:
    """Returns sentences, no two alike."""
    praise = ("lovely", "dull", "brave", "awful", "clever", "long", "tender", "loud")
    things = ("film", "play", "story", "cast", "ending", "book")
    return [f"What a {word} {thing}, number {len(word)}." for word in praise for thing in things]


def _kinds(right: Sequence[Sequence[float]]) -> int:
    """Returns how many answers can be told apart by the tolerance of the comparison."""
    kinds: list[Sequence[float]] = []
    for row in right:
        if all(_differ(row, other) for other in kinds):
            kinds.append(row)
    return len(kinds)


def _differ(said: Sequence[float], right: Sequence[float]) -> bool:
    return len(said) != len(right) or any(
        not abs(one - other) <= CLOSE for one, other in zip(said, right, strict=True)
    )


# Clients


@dataclass
class Load:
    """What clients were told.

    Args:
        milliseconds: From request to answer, by status.
        wrong: Answers that were others than the right ones.
        began: When the first request was sent, in seconds of the monotonic clock.
        ended: When the last answer came.
        recovered: Seconds from the last request of the crowd to a newcomer's first good answer.
        memory: Of the server in MiB, at the beginning and after each thousand answers.
    """

    milliseconds: dict[str, list[float]] = field(default_factory=dict)
    wrong: int = 0
    began: float = 0.0
    ended: float = 0.0
    recovered: float | None = None
    memory: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """Returns figures for JSON."""
        good = [*self.milliseconds.get("200", []), *self.milliseconds.get("OK", [])]
        refused = [ms for code in _REFUSED for ms in self.milliseconds.get(code, [])]
        count, seconds = sum(map(len, self.milliseconds.values())), self.ended - self.began
        return {
            "requests": count,
            "seconds": seconds,
            "good": len(good),
            "per_second": len(good) / seconds if seconds else 0.0,
            "p50_ms": percentile(good, 50),
            "p99_ms": percentile(good, 99),
            "refused": len(refused),
            "refused_share": len(refused) / count if count else 0.0,
            "refused_p50_ms": percentile(refused, 50),
            "refused_p99_ms": percentile(refused, 99),
            "other": count - len(good) - len(refused),
            "statuses": {code: len(each) for code, each in self.milliseconds.items()},
            "wrong": self.wrong,
            "recovered_ms": None if self.recovered is None else 1000 * self.recovered,
            "memory_mib": self.memory,
        }


def percentile(values: Sequence[float], percent: int) -> float | None:
    """Returns the value that so many percent do not exceed; None of no values."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)] if ordered else None


def load(settings: dict[str, Any]) -> dict[str, Any]:
    """Asks, with several clients at once, for some seconds or a number of times.

    Args:
        settings: `clients` by protocol, `rest`, `grpc`, `name` and `examples` of the server,
            `seconds` at most, `count` of requests at most (0: no bound), `warm_seconds` that do not
            count, the server's `pid`, whose memory is noted if it is given, and `newcomer`: the
            protocol of one more client, that comes when the others send nothing more.

    Returns:
        `Load.figures`.
    """
    return asyncio.run(_load(settings)).figures()


async def _load(settings: dict[str, Any]) -> Load:
    content = json.loads(Path(settings["examples"]).read_text(encoding="utf-8"))
    right, found = content["right"], Load()
    numbers, told = iter(range(sys.maxsize)), 0
    warm = settings.get("warm_seconds", 0.0)

    async def client(send: Send, seconds: float, counts: bool) -> None:
        nonlocal told
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            number = next(numbers)
            if counts and settings["count"] and number >= settings["count"]:
                return
            example = number * 7919 % len(right)  # neighbours are no neighbours in the table
            began = time.monotonic()
            code, said = await send(example)
            now = time.monotonic()
            good = code in ("200", "OK")
            if good and _differ(said, right[example]):
                found.wrong += 1
            if not counts:
                continue
            found.milliseconds.setdefault(code, []).append(1000 * (now - began))
            found.ended = now
            told += 1
            if told % _STEP == 0 and settings.get("pid"):
                found.memory.append(memory(settings["pid"]))
            if code in _REFUSED:
                await asyncio.sleep(PAUSE_SECONDS)

    async def newcomer(send: Send) -> None:
        await asyncio.sleep(settings["seconds"])
        began, code, said = time.monotonic(), "", None
        while code not in ("200", "OK") and time.monotonic() < began + 60:
            code, said = await send(0)
        found.recovered = time.monotonic() - began
        found.wrong += said is None or _differ(said, right[0])

    async with contextlib.AsyncExitStack() as stack:

        async def opened(name: str) -> Send:
            return await stack.enter_async_context(_PROTOCOLS[name](settings, content))

        sends = [
            await opened(name) for name, many in settings["clients"].items() for _ in range(many)
        ]
        last = await opened(settings["newcomer"]) if settings.get("newcomer") else None
        if warm:
            await asyncio.gather(*(client(send, warm, False) for send in sends))
            numbers = iter(range(sys.maxsize))
        if settings.get("pid"):
            found.memory.append(memory(settings["pid"]))
        found.began = found.ended = time.monotonic()
        asking = [client(send, settings["seconds"], True) for send in sends]
        await asyncio.gather(*asking, *([newcomer(last)] if last else []))
    return found


@contextlib.asynccontextmanager
async def _rest(settings: dict[str, Any], content: dict[str, Any]) -> AsyncIterator[Send]:
    """Opens a connection that is kept."""
    host, _, port = settings["rest"].removeprefix("http://").partition(":")
    path = f"/v1/models/{settings['name']}:predict"
    requests: list[bytes] = content.setdefault("rest", [])
    for example in content["examples"] if not requests else ():
        body = json.dumps({"instances": [example]}).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
        requests.append(head.encode() + body)
    reader, writer = await asyncio.open_connection(host, int(port))

    async def send(example: int) -> tuple[str, Any]:
        writer.write(requests[example])
        head = await reader.readuntil(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines if line)
        body = await reader.readexactly(int(fields["content-length"]))
        code = status.split(" ")[1]
        if code != "200":
            return code, None
        (row,) = json.loads(body)["predictions"]
        return code, _answer(row)

    try:
        yield send
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def _grpc(settings: dict[str, Any], content: dict[str, Any]) -> AsyncIterator[Send]:
    """Opens a channel of its own."""
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    requests: list[Any] = content.setdefault("grpc", [])
    for example in content["examples"] if not requests else ():
        raw = base64.b64decode(example["b64"]) if isinstance(example, dict) else example
        request = predict_pb2.PredictRequest()
        request.model_spec.name = settings["name"]
        request.inputs[content["key"]].CopyFrom(tf.make_tensor_proto([raw]))
        requests.append(request)
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(settings["grpc"], options) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        await channel.channel_ready()

        async def send(example: int) -> tuple[str, Any]:
            try:
                response = await stub.Predict(requests[example], timeout=60)
            except grpc.aio.AioRpcError as error:
                return error.code().name, None
            outputs = {key: tf.make_ndarray(value)[0] for key, value in response.outputs.items()}
            return "OK", _answer(outputs)

        yield send


_PROTOCOLS = {"rest": _rest, "grpc": _grpc}


def _answer(row: Any) -> list[float]:
    """Returns probabilities, or numbers, of a row with several outputs or one."""
    if isinstance(row, dict):
        row = row["probabilities"] if "probabilities" in row else row["values"]
    return [float(value) for value in row]


def memory(pid: int) -> float:
    """Returns what a process holds in memory, in MiB."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


# Server


@contextlib.contextmanager
def serving(base: str, *options: object) -> Iterator[dict[str, Any]]:
    """Runs `kft serve` on free ports of the loopback; yields where it answers."""
    command = [sys.executable, "-m", "kerastune_ft", "serve", base, "--port", "0"]
    command += ["--grpc-port", "0", *map(str, options)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(processes.ROOT)}
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    said: dict[str, str] = {}
    try:
        assert started.stdout is not None
        while "page" not in said:
            line = started.stdout.readline()
            if not line:
                raise SystemExit("the server has ended; see above.")
            word, _, rest = line.partition(" ")
            said[word] = rest.strip()
        yield {"rest": said["page"].rstrip("/"), "grpc": said["gRPC"], "pid": started.pid}
    finally:
        started.terminate()
        try:
            started.wait(40)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


class Session:
    """Measures, and keeps what was found.

    Args:
        options: Of the command line.
        work: A folder for everything that is made.
    """

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options = options
        self.work = work
        self.began = time.monotonic()
        self.model: dict[str, Any] = {}
        self.speed: list[dict[str, Any]] = []
        self.overload: dict[str, dict[str, Any]] = {}
        self.right: dict[str, Any] = {}

    def run(self) -> None:
        """Makes what is served, and measures."""
        model = str(self.options.model.resolve()) if self.options.model else ""
        wanted = {"into": str(self.work), "model": model}
        self.model = processes.run("serving:prepare", wanted, self.work)
        self._say(f"{self.model['name']}: {self.model['different']} answers that differ")
        for batching, words in (("on", ()), ("off", ("--max-batch", 1))):
            with serving(self.model["base"], *words) as server:
                for protocol in PROTOCOLS:
                    for clients in CLIENTS:
                        found = self._load(server, {protocol: clients}, warm=_WARM_SECONDS)
                        row = {"protocol": protocol, "batching": batching, "clients": clients}
                        self.speed.append({**row, **found})
                        self._say(f"{row}: {found['per_second']:.0f} a second")
        for protocol in PROTOCOLS:
            self._overload(protocol)
        self._right()

    def _overload(self, protocol: str) -> None:
        with serving(self.model["base"], "--max-queue", QUEUE) as server:
            before = self._load(server, {protocol: 8}, warm=_WARM_SECONDS)
            crowd = self._load(server, {protocol: CROWD}, newcomer=protocol)
            after = self._load(server, {protocol: 8})
        found = {"before": before, "crowd": crowd, "after": after}
        self.overload[protocol] = found
        self._say(f"overload, {protocol}: {crowd['refused_share']:.0%} refused")

    def _right(self) -> None:
        with serving(self.model["base"]) as server:
            clients = {"rest": 32, "grpc": 32}
            self.right = self._load(
                server, clients, warm=_WARM_SECONDS, count=self.options.requests, watched=True
            )
        self._say(f"{self.right['wrong']} of {self.right['requests']} answers were wrong")

    def _load(
        self,
        server: dict[str, Any],
        clients: dict[str, int],
        warm: float = 0.0,
        count: int = 0,
        watched: bool = False,
        newcomer: str = "",
    ) -> dict[str, Any]:
        settings = {
            "clients": clients,
            "rest": server["rest"],
            "grpc": server["grpc"],
            "pid": server["pid"] if watched else None,
            "name": self.model["name"],
            "examples": str(self.work / "examples.json"),
            "seconds": _LONGEST_SECONDS if count else self.options.seconds,
            "count": count,
            "warm_seconds": warm,
            "newcomer": newcomer,
        }
        return processes.run("serving:load", settings, self.work)

    def _say(self, line: str) -> None:
        print(f"{time.monotonic() - self.began:6.0f} s  {line}", file=sys.stderr, flush=True)

    def record(self) -> dict[str, Any]:
        """Returns everything for JSON."""
        return {
            "machine": machine(),
            "load": os.getloadavg(),
            "model": self.model,
            "speed": self.speed,
            "overload": self.overload,
            "right": self.right,
        }

    @property
    def failed(self) -> bool:
        """Whether an answer was wrong, or neither good nor a refusal."""
        loads = [*self.speed, self.right]
        loads += [each for found in self.overload.values() for each in found.values()]
        return any(each["wrong"] or each["other"] for each in loads)


def markdown(record: dict[str, Any]) -> str:
    """Returns the tables."""
    lines = ["| | batches | 1 client | 8 clients | 64 clients |", "|---|---|---|---|---|"]
    for protocol in PROTOCOLS:
        for batching in ("on", "off"):
            cells = [
                f"{row['per_second']:.0f} /s, {row['p50_ms']:.1f}, {row['p99_ms']:.1f} ms"
                for row in record["speed"]
                if (row["protocol"], row["batching"]) == (protocol, batching)
            ]
            said = {"on": "joined", "off": "`--max-batch 1`"}[batching]
            lines.append(f"| {protocol} | {said} | {' | '.join(cells)} |")
    lines.append("")
    for protocol, found in record["overload"].items():
        crowd, before, after = found["crowd"], found["before"], found["after"]
        lines.append(
            f"- {CROWD} clients before a queue of {QUEUE}, {protocol}: "
            f"{crowd['refused_share']:.0%} of {crowd['requests']:,} refused, within "
            f"{_ms(crowd['refused_p50_ms'])} (p50) and {_ms(crowd['refused_p99_ms'])} (p99); "
            f"{crowd['per_second']:.0f} /s answered. When they stop, a newcomer has a good answer "
            f"after {_ms(crowd['recovered_ms'])}; {after['per_second']:.0f} /s with 8 clients, "
            f"{before['per_second']:.0f} /s before."
        )
    right = record["right"]
    held = right["memory_mib"]
    lines.append(
        f"- {right['requests']:,} requests of 64 clients over both protocols: {right['wrong']} "
        f"wrong answers, {right['other'] + right['refused']} without an answer "
        f"({record['model']['different']} answers that differ), {right['per_second']:.0f} /s."
    )
    lines.append(
        f"- Memory of the server: {held[0]:.0f} MiB before, then by thousands: "
        + ", ".join(f"{value:.0f}" for value in held[1:])
        + f" MiB; from the second half on {growth(held):+.1f} MiB a thousand."
    )
    return "\n".join(lines) + "\n"


def growth(held: Sequence[float]) -> float:
    """Returns by how much memory grows a thousand requests, over the second half of them.

    The first ones fill pools that stay.
    """
    half = held[len(held) // 2 :]
    steps = [after - before for before, after in itertools.pairwise(half)]
    return statistics.fmean(steps) if steps else 0.0


def _ms(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f} ms"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, help="folder of versions, a version, or a run")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--requests", type=int, default=10_000, help="whose answers are compared")
    parser.add_argument("--output", type=Path, default=Path("runs") / "serving.md")
    options = parser.parse_args(arguments)
    if options.model and not options.model.is_dir():
        parser.error(f"--model: '{options.model}' is no folder")
    return options


def main() -> int:
    """Measures and prints the tables; ends with 1 if an answer was wrong."""
    options = parse()
    with tempfile.TemporaryDirectory(prefix="kft-serving-") as folder:
        session = Session(options, Path(folder))
        session.run()
    record = session.record()
    text = markdown(record)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text, encoding="utf-8")
    options.output.with_suffix(".json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    print(text)
    return int(session.failed)


if __name__ == "__main__":
    sys.exit(main())
