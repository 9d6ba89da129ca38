"""Versions that come, go and fail while a model is served, and how a server ends."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from serving_models import (
    Running,
    ask,
    new_version,
    picture,
    running,
    save,
    slow,
    steps_for,
    until,
    write_pictures,
    write_toys,
)
from test_cli import ENVIRONMENT, KFT, refused

from kerastune_ft.errors import ServingError
from kerastune_ft.serving import registry, server, signatures
from kerastune_ft.serving.batching import Limits
from kerastune_ft.serving.refusals import RefusedError
from kerastune_ft.serving.registry import Export, Registry


class Constant(tf.Module):
    """Answers with its own number."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = tf.Variable(number)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"number": x * 0 + self.number}


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A SavedModel for each number, which it answers with."""
    folder = tmp_path_factory.mktemp("numbered")
    made = {}
    for number in (1, 2, 3):
        module = Constant(float(number))
        made[number] = save(module, folder / str(number), {"serving_default": module.serve})
    return made


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toys(tmp_path_factory.mktemp("toys") / "toys")


def export(base: Path, numbered: dict[int, Path], *numbers: int) -> Path:
    base.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        shutil.copytree(numbered[number], base / str(number))
    return base


def damaged(base: Path, number: int, source: Path) -> None:
    """Lets a version appear that cannot be loaded."""
    copy = base / f".{number}"
    shutil.copytree(source, copy)
    (copy / "saved_model.pb").write_bytes(b"\x08\x01\xff\xff no protobuf")
    copy.rename(base / str(number))


def says(found: Running, suffix: str = "") -> float:
    answer = found.ask(f"{suffix}:predict", {"instances": [0.0]})
    assert answer.status == 200, answer.body
    return float(answer.json["predictions"][0])


def test_a_new_version_takes_over_and_no_request_fails(
    tmp_path: Path, numbered: dict[int, Path]
) -> None:
    base = export(tmp_path / "model", numbered, 1)
    seen: list[float] = []
    failed: list[BaseException] = []
    done = threading.Event()
    with running(base) as found:

        def hammer() -> None:
            try:
                while not done.is_set():
                    seen.append(says(found))
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=hammer) for _ in range(3)]
        for thread in threads:
            thread.start()
        for number in (2, 3):
            new_version(base, number, numbered[number])
            until(lambda number=number: found.states().get(number) == "AVAILABLE")
            until(lambda number=number: says(found) == number)
        until(lambda: found.states() == {1: "END", 2: "END", 3: "AVAILABLE"})
        assert found.figure("kft_served_version") == 3
        done.set()
        for thread in threads:
            thread.join(30)
        assert found.said.count("version 2 is served") == 1
        assert "version 1 is no longer served" in found.said
    assert not failed
    assert set(seen) == {1.0, 2.0, 3.0}
    assert len(seen) > 20


def test_a_version_that_cannot_be_loaded_says_so_and_the_old_one_goes_on(
    tmp_path: Path, numbered: dict[int, Path]
) -> None:
    base = export(tmp_path / "model", numbered, 1)
    with running(base) as found:
        damaged(base, 2, numbered[2])
        until(lambda: found.states().get(2) == "END")
        (status, _) = found.ask("").json["model_version_status"]
        assert status["version"] == "2"
        assert status["status"]["error_code"] != "OK"
        assert "damaged" in status["status"]["error_message"]
        assert str(tmp_path) not in json.dumps(status), "where the model lies is nobody's business"
        assert found.states()[1] == "AVAILABLE"
        assert says(found) == 1
        said = [line for line in found.said if "cannot be loaded" in line]
        time.sleep(0.5)
        assert [line for line in found.said if "cannot be loaded" in line] == said, "tried again"
        assert found.ask("/versions/2:predict", {"instances": [0.0]}).status == 404
        # Mended, it is tried again.
        (base / "2" / "saved_model.pb").write_bytes((numbered[2] / "saved_model.pb").read_bytes())
        until(lambda: found.states().get(2) == "AVAILABLE")
        until(lambda: says(found) == 2)


def wrecked(folder: Path) -> Any:
    """Loads a version as the server does, unless a file `broken` lies there."""
    assert folder.is_absolute()
    if (folder / "broken").exists():
        raise ServingError(f"'{folder}' holds 1 broken file and 3 others.")
    return signatures.Model({}, {}, {"number": int(folder.name)})


def bare(base: Path, *numbers: int, broken: tuple[int, ...] = ()) -> Path:
    """Makes versions for `wrecked`."""
    for number in (*numbers, *broken):
        (base / str(number) / "assets.extra").mkdir(parents=True, exist_ok=True)
    for number in broken:
        (base / str(number) / "broken").touch()
    return base


def test_a_broken_version_does_not_displace_the_newest_beside_a_labelled_one(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    export = Export(bare(tmp_path, 1, 2))
    found = Registry("model", export, "latest", {"stable": 1}, wrecked, said.append)
    found.refresh()
    assert found.numbers == [1, 2]
    bare(tmp_path, broken=(3,))
    for _ in range(2):
        found.refresh()
        assert found.numbers == [1, 2]
        with found.borrow() as version:
            assert version.number == 2
    assert "version 2 is no longer served" not in said
    (tmp_path / "3" / "broken").unlink()
    found.refresh()
    assert found.numbers == [1, 3]


def test_the_newest_version_that_can_be_loaded_is_served_from_the_start(tmp_path: Path) -> None:
    found = Registry("model", Export(bare(tmp_path, 1, 2, broken=(3, 4))), load=wrecked)
    found.refresh()
    assert found.numbers == [2]
    assert {status.version: status.state for status in found.statuses()} == {
        4: "END",
        3: "END",
        2: "AVAILABLE",
    }
    shutil.rmtree(tmp_path / "2")
    found.refresh()
    assert found.numbers == [1], "going back is removing the newest that answers"


def test_a_version_is_tried_again_when_any_of_its_files_changes(tmp_path: Path) -> None:
    tried: list[int] = []
    extra = tmp_path / "1" / "assets.extra" / "kft.json"

    def load(folder: Path) -> Any:
        tried.append(1)
        if not extra.exists() or extra.read_text() != "{}":
            raise ServingError("'kft.json' is damaged")
        return wrecked(folder)

    found = Registry("model", Export(bare(tmp_path, 1)), load=load)
    for text in ("{", "{{", "{}"):
        extra.write_text(text)
        found.refresh()
        found.refresh()
    assert found.numbers == [1]
    assert len(tried) == 3


def test_what_is_said_of_a_version_served_by_a_relative_path_stays_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bare(tmp_path, broken=(1, 3)))
    found = Registry("model", Export(Path()), "all", load=wrecked)
    found.refresh()
    assert [status.message for status in found.statuses()] == [
        "'model/3' holds 1 broken file and 3 others.",
        "'model/1' holds 1 broken file and 3 others.",
    ]


def test_going_back_is_removing_the_newest_version(
    tmp_path: Path, numbered: dict[int, Path]
) -> None:
    base = export(tmp_path / "model", numbered, 1, 2)
    with running(base) as found:
        assert says(found) == 2
        assert found.states() == {2: "AVAILABLE"}
        shutil.rmtree(base / "2")
        until(lambda: found.states() == {1: "AVAILABLE", 2: "END"})
        assert says(found) == 1
        shutil.rmtree(base / "1")
        time.sleep(0.4)
        assert says(found) == 1, "what answers goes on when everything is removed"


def test_unfinished_and_foreign_folders_are_passed_over(
    tmp_path: Path, numbered: dict[int, Path]
) -> None:
    base = export(tmp_path / "model", numbered, 1)
    shutil.copytree(numbered[3], base / ".3")
    shutil.copytree(numbered[3], base / "best")
    (base / "7").write_text("no folder")
    (base / "models.config").write_text("")
    with running(base) as found:
        time.sleep(0.3)
        assert found.states() == {1: "AVAILABLE"}


def test_all_versions_or_some_of_them_are_served_when_asked_for(
    tmp_path: Path, numbered: dict[int, Path]
) -> None:
    base = export(tmp_path / "model", numbered, 1, 2, 3)
    with running(base, policy="all", labels={"old": 1}) as found:
        assert found.states() == dict.fromkeys((1, 2, 3), "AVAILABLE")
        assert [says(found, f"/versions/{number}") for number in (1, 2, 3)] == [1, 2, 3]
        assert says(found, "/labels/old") == 1
        assert says(found) == 3
    with running(base, policy=registry.policy("1,2")) as found:
        assert found.states() == dict.fromkeys((1, 2), "AVAILABLE")
        assert says(found) == 2
    with running(base, labels={"old": 1}) as found:
        assert found.states() == dict.fromkeys((1, 3), "AVAILABLE")


def test_one_versions_folder_is_served_alone(tmp_path: Path, numbered: dict[int, Path]) -> None:
    base = export(tmp_path / "model", numbered, 1, 2)
    with running(base / "1") as found:
        assert found.addresses.model == "model"
        assert found.states() == {1: "AVAILABLE"}
        assert says(found, "/versions/1") == 1
    (base / "1").rename(base / "best")
    with running(base / "best", name="mine") as found:
        assert found.addresses.model == "mine"
        assert found.states() == {1: "AVAILABLE"}


def test_a_run_is_served_by_its_export(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    write_pictures(run / "export")
    (run / "recipe.yaml").write_text("")
    assert registry.find(run) == Export(run / "export")
    assert registry.find(run).name() == "colours", "what kft.json says"
    (run / "export" / "1" / "assets.extra" / "kft.json").unlink()
    assert registry.find(run).name() == "mine"


def test_a_version_that_is_used_stays_until_it_has_answered(tmp_path: Path, toys: Path) -> None:
    base = tmp_path / "toys"
    shutil.copytree(toys, base)
    with running(base) as found:
        steps = steps_for(found, 3)
        answers = []
        asking = threading.Thread(target=lambda: answers.append(found.ask(":predict", slow(steps))))
        asking.start()
        until(lambda: found.figure("kft_open_requests") == 1)
        new_version(base, 2, base / "1")
        until(lambda: found.states() == {1: "UNLOADING", 2: "AVAILABLE"}, 3)
        asking.join(60)
        until(lambda: found.states() == {1: "END", 2: "AVAILABLE"})
        assert answers[0].json == {"predictions": [steps]}


def test_a_version_that_is_retired_while_a_request_arrives_answers_it(
    tmp_path: Path, numbered: dict[int, Path]
) -> None:
    base = export(tmp_path / "model", numbered, 1)
    with running(base) as found:
        host, _, port = found.url.removeprefix("http://").partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        with contextlib.closing(connection):
            body = json.dumps({"instances": [0.0]}).encode()
            connection.putrequest("POST", f"{found.model}/versions/1:predict")
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body[:5])
            until(lambda: found.figure("kft_open_requests") == 1)
            new_version(base, 2, numbered[2])
            until(lambda: found.states() == {1: "UNLOADING", 2: "AVAILABLE"})
            connection.send(body[5:])
            response = connection.getresponse()
            assert (response.status, json.loads(response.read())) == (200, {"predictions": [1.0]})
        until(lambda: found.states() == {1: "END", 2: "AVAILABLE"})


def test_a_registry_lets_go_of_what_it_unloads(tmp_path: Path, numbered: dict[int, Path]) -> None:
    import gc
    import weakref

    base = export(tmp_path / "model", numbered, 1)
    found = Registry("model", Export(base))
    found.refresh()
    with found.borrow() as version:
        gone = weakref.ref(version.model)
        new_version(base, 2, numbered[2])
        found.refresh()
        assert [status.state for status in found.statuses(1)] == ["UNLOADING"]
    del version
    assert [status.state for status in found.statuses(1)] == ["END"]
    gc.collect()
    assert gone() is None
    with pytest.raises(RefusedError, match=r"Specific\(model, 1\)"), found.borrow(1):
        pass


def test_warm_up_requests_run_before_a_version_answers_and_must_succeed(
    tmp_path: Path, toys: Path
) -> None:
    from tensorflow_serving.apis import classification_pb2, predict_pb2, prediction_log_pb2

    def warmed(folder: Path, value: float) -> Path:
        shutil.copytree(toys / "1", folder)
        request = predict_pb2.PredictRequest()
        request.model_spec.signature_name = "fussy"
        request.inputs["x"].CopyFrom(tf.make_tensor_proto([value], tf.float32))
        logs = [
            prediction_log_pb2.PredictionLog(
                predict_log=prediction_log_pb2.PredictLog(request=request)
            )
        ]
        classify = classification_pb2.ClassificationRequest()
        classify.model_spec.signature_name = "features"
        classify.input.example_list.examples.add()
        logs.append(
            prediction_log_pb2.PredictionLog(
                classify_log=prediction_log_pb2.ClassifyLog(request=classify)
            )
        )
        (folder / "assets.extra").mkdir()
        with tf.io.TFRecordWriter(str(folder / signatures.WARM_UP)) as writer:
            for log in logs:
                writer.write(log.SerializeToString())
        return folder

    assert "fussy" in signatures.load(warmed(tmp_path / "1", 4.0)).signatures
    with pytest.raises(ServingError, match=r"warm-up requests fail.*no number below 0"):
        signatures.load(warmed(tmp_path / "2", -4.0))
    (tmp_path / "1" / signatures.WARM_UP).write_bytes(bytes(range(100)))
    with pytest.raises(ServingError, match="warm-up requests fail"):
        signatures.load(tmp_path / "1")


@pytest.mark.slow
def test_operations_of_tensorflow_text_are_known(tmp_path: Path) -> None:
    """Loaded in a process of its own: here, the package may have been imported before."""
    pytest.importorskip("tensorflow_text")
    write = (
        "import sys, tensorflow as tf, tensorflow_text\n"
        "class Split(tf.Module):\n"
        "    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name='text')])\n"
        "    def serve(self, text):\n"
        "        return {'words': tensorflow_text.regex_split(text, r'\\s').row_lengths()}\n"
        "made = Split()\n"
        "tf.saved_model.save(made, sys.argv[1], signatures={'serving_default': made.serve})\n"
    )
    read = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from kerastune_ft.serving import signatures\n"
        "from kerastune_ft.serving.messages import strings\n"
        "assert 'tensorflow_text' not in sys.modules\n"
        "found = signatures.load(Path(sys.argv[1])).signature('')\n"
        "print(found.run({'text': strings([b'a b c', b'd'])})['words'].tolist())\n"
    )
    done = [
        subprocess.run(
            [sys.executable, "-c", text, str(tmp_path / "1")],
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            timeout=240,
        )
        for text in (write, read)
    ]
    assert done[1].returncode == 0, done[0].stderr + done[1].stderr
    assert done[1].stdout.strip().splitlines()[-1] == "[3, 1]"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "'nowhere' is no folder; give an export such as"),
        (["."], "holds no version of a SavedModel"),
        (["run"], "is not exported yet; 'kft export .*run' does it"),
        (["model", "--versions", "new"], "--versions: expected latest, all, or numbers"),
        (["model", "--versions", "9"], "no version that --versions wants is in .*there are: 1"),
        (["model", "--label", "stable"], "--label: expected LABEL=VERSION"),
        (["model", "--name", "a/b"], "--name: expected letters"),
        (["broken"], "version 1 cannot be loaded: .*damaged"),
        (["model", "--host", "203.0.113.1"], "--port: 203.0.113.1:0 cannot be listened on"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_answers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    numbered: dict[int, Path],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("")
    if arguments[0] == "model":
        export(tmp_path / "model", numbered, 1)
    if arguments[0] == "broken":
        (tmp_path / "broken").mkdir()
        damaged(tmp_path / "broken", 1, numbered[1])
    ports = ("--port", "0", "--grpc-port", "0")
    assert re.search(said, refused("serve", *arguments, *ports))


def test_a_taken_port_is_said_for_both_protocols(tmp_path: Path, numbered: dict[int, Path]) -> None:
    base = export(tmp_path / "model", numbered, 1)
    with running(base, grpc_port=0) as found:
        port = found.url.rpartition(":")[2]
        assert found.addresses.grpc is not None
        other = found.addresses.grpc.rpartition(":")[2]
        said = refused("serve", base, "--port", port, "--no-grpc")
        assert f"--port: 127.0.0.1:{port} cannot be listened on" in said
        said = refused("serve", base, "--port", 0, "--grpc-port", other)
        assert f"--grpc-port: 127.0.0.1:{other} cannot be listened on" in said


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbered: dict[int, Path]
) -> None:
    base = export(tmp_path / "model", numbered, 1)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    said = refused("serve", base, "--port", 0, "--no-grpc")
    assert "kft serve needs the package 'uvicorn'" in said
    assert 'pip install "kerastune_ft[serve]"' in said


@contextlib.contextmanager
def process(base: Path, *options: object) -> Iterator[tuple[Any, dict[str, str]]]:
    """Runs `kft serve` as a user does; yields the process and the lines that it says."""
    command = [*KFT, "serve", str(base), "--port", "0", "--grpc-port", "0", *map(str, options)]
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    said: dict[str, str] = {}
    try:
        assert started.stdout is not None
        while "page" not in said:
            line = started.stdout.readline()
            assert line, started.communicate()[1]
            word, _, rest = line.partition(" ")
            said[word] = rest.strip()
        yield started, said
    finally:
        started.kill()
        started.communicate()


@pytest.mark.slow
def test_sigterm_lets_open_requests_finish_and_takes_no_more(toys: Path) -> None:
    with process(toys, "--drain-seconds", 30) as (started, said):
        url = said["page"].rstrip("/")
        assert said["REST"] == f"{url}/v1/models/toys:predict"
        assert said["gRPC"].startswith("127.0.0.1:")
        path = "/v1/models/toys:predict"
        steps, took = 1000, 0.0
        while took < 0.5:
            steps *= 3
            begin = time.perf_counter()
            assert ask(url, path, slow(steps)).status == 200
            took = time.perf_counter() - begin
        steps = int(steps * 3 / took)
        answers = []
        asking = threading.Thread(target=lambda: answers.append(ask(url, path, slow(steps))))
        asking.start()
        time.sleep(0.7)
        begin = time.monotonic()
        started.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(OSError):
            ask(url, "/readyz", timeout=5)
        asking.join(60)
        assert answers[0].json == {"predictions": [steps]}
        assert started.wait(20) == 143
        assert time.monotonic() - begin > 1, "it did not wait"
        assert started.stderr.read() == ""


def test_a_signal_while_the_first_version_fails_to_load_is_what_ends_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbered: dict[int, Path]
) -> None:
    def load(self: Registry) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Registry, "refresh", load)
    damaged(tmp_path, 1, numbered[1])
    found = registry.find(tmp_path)
    with pytest.raises(SystemExit) as caught:
        server.serve(found, server.Settings(name="model", port=0, grpc_port=None), print)
    assert caught.value.code == 143


@pytest.mark.slow
def test_the_drain_is_bounded_even_if_a_model_computes_for_ever(toys: Path) -> None:
    with process(toys, "--drain-seconds", 1, "--timeout", 600) as (started, said):
        url = said["page"].rstrip("/")
        body = slow(2**31 - 1)

        def work() -> None:
            with contextlib.suppress(OSError):
                ask(url, "/v1/models/toys:predict", body)

        asking = threading.Thread(target=work, daemon=True)
        asking.start()
        time.sleep(1)
        begin = time.monotonic()
        started.send_signal(signal.SIGINT)
        assert started.wait(20) == 130
        assert time.monotonic() - begin < 10
        asking.join(20)


@pytest.mark.slow
def test_a_second_signal_ends_the_server_at_once(toys: Path) -> None:
    with process(toys, "--drain-seconds", 600, "--timeout", 600) as (started, said):
        url = said["page"].rstrip("/")

        def work() -> None:
            with contextlib.suppress(OSError):
                ask(url, "/v1/models/toys:predict", slow(2**31 - 1))

        asking = threading.Thread(target=work, daemon=True)
        asking.start()
        time.sleep(1)
        started.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            started.wait(2)
        started.send_signal(signal.SIGTERM)
        assert started.wait(5) == 143
        asking.join(20)


def test_a_server_in_a_thread_drains_when_it_is_stopped(toys: Path) -> None:
    with running(toys, limits=Limits(workers=1), grpc_port=0) as found:
        steps = steps_for(found, 2)
        answers = []
        asking = threading.Thread(target=lambda: answers.append(found.ask(":predict", slow(steps))))
        asking.start()
        until(lambda: found.figure("kft_open_requests") == 1)
        found.stop.set()
        found.thread.join(60)
        asking.join(1)
        assert answers[0].json == {"predictions": [steps]}
        with pytest.raises(OSError):
            found.ask(":predict", {"instances": [1.0]})


@pytest.mark.slow
def test_the_command_says_what_is_served(tmp_path: Path) -> None:
    base = write_pictures(tmp_path / "export")
    with process(base, "--name", "mine", "--no-grpc") as (_, said):
        assert said["model"] == "mine version 1: image_classification, 3 classes"
        assert said["gRPC"] == "off"
        page = ask(said["page"].rstrip("/"), "/")
        assert page.status == 200
        assert "image classification" in page.body.decode()
        row = {"b64": base64.b64encode(picture("green")).decode()}
        found = ask(said["page"].rstrip("/"), "/v1/models/mine:predict", {"instances": [row]})
        assert found.json["predictions"][0]["label"] == "green"
