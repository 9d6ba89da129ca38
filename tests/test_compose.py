"""compose.yaml against the specification, the Dockerfile and the README."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import subprocess
from typing import Any

import pytest
from ruamel.yaml import YAML
from test_containers import DOCKERFILE, README, ROOT, TARGETS, health, requirements

from kerastune_ft import cli
from kerastune_ft.exports import server_files

COMPOSE = (ROOT / "compose.yaml").read_text(encoding="utf-8")


def composed(**variables: str) -> dict[str, Any]:
    """Returns compose.yaml as Docker Compose reads it: merged, with variables or their defaults."""

    def value(found: re.Match[str]) -> str:
        return variables.get(found[1]) or found[2]

    text = re.sub(r"\$\{(\w+):-([^}]*)\}", value, COMPOSE)
    assert "$" not in re.sub(r"(?m)^ *#.*$", "", text), "a variable without a default"
    return dict(YAML(typ="safe").load(text))


def services(**variables: str) -> dict[str, dict[str, Any]]:
    return dict(composed(**variables)["services"])


def test_compose_keeps_to_the_specification() -> None:
    compose_spec = pytest.importorskip("compose_spec")
    from compose_spec.models import ComposeSpecification

    for variables in ({}, {"MODEL_NAME": "minilm", "SERVE_CPUS": "0.5", "EXTRAS": "jax"}):
        content = composed(**variables)
        content = {name: part for name, part in content.items() if not name.startswith("x-")}
        compose_spec.PyCompose.from_json(json.dumps(content)).validate()
        read = ComposeSpecification.model_validate(content)
        # Keys that are not in the specification are left out by its model.
        kept = json.loads(read.model_dump_json(exclude_unset=True, by_alias=True))
        assert _keys(content) == _keys(kept)


def test_the_specification_would_be_held_against_compose() -> None:
    compose_spec = pytest.importorskip("compose_spec")
    wrong = composed()
    wrong["services"]["serve"]["restart"] = 5
    with pytest.raises(ValueError):
        compose_spec.PyCompose.from_json(json.dumps(wrong))


def _keys(content: object) -> set[str]:
    if isinstance(content, dict):
        inner = {f"{k}.{below}" for k, part in content.items() for below in _keys(part)}
        return inner | set(content)
    if isinstance(content, list):
        return {below for part in content for below in _keys(part)}
    return set()


def test_docker_compose_takes_it() -> None:
    docker = shutil.which("docker")
    command = [str(docker), "compose", "version"]
    if docker is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no Docker Compose is installed")
    subprocess.run([docker, "compose", "--profile", "*", "config", "-q"], cwd=ROOT, check=True)


def test_services_are_built_of_targets_with_arguments_that_exist() -> None:
    for name, service in services().items():
        build = service["build"]
        assert (ROOT / build["context"]).resolve() == ROOT
        assert (ROOT / build.get("dockerfile", "Dockerfile")).is_file()
        assert build["target"] in TARGETS, name
        scoped = {step.text.partition("=")[0] for step in DOCKERFILE.steps(build["target"], "ARG")}
        assert set(build.get("args", {})) <= scoped | set(DOCKERFILE.arguments), name
    gpu = services(EXTRAS="jax")["train-gpu"]["build"]["args"]["EXTRAS"]
    assert requirements(str(ROOT / "setup.cfg"), gpu).returncode == 0


def test_every_variable_is_explained_with_its_default() -> None:
    used = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", COMPOSE))
    comment = COMPOSE[: COMPOSE.index("\nx-train")]
    # "NAME, NAME [default, default] what it is"
    rows = re.findall(r"(?m)^#   ((?:[A-Z_]+(?:, )?)+) +\[([^]]*)\]", comment)
    told = {
        name: default
        for names, defaults in rows
        for name, default in zip(names.split(", "), defaults.split(", "), strict=True)
    }
    assert told == {name: default or "none" for name, default in used.items()}
    assert len(used) > 10


def test_ports_and_mounts_are_those_of_the_images() -> None:
    for name, service in services().items():
        target = service["build"]["target"]
        exposed = " ".join(step.text for step in DOCKERFILE.steps(target, "EXPOSE")).split()
        inside = [port.rsplit(":", 1)[1] for port in service.get("ports", [])]
        assert sorted(inside) == sorted(exposed), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for mount in service["volumes"]:
            if mount["type"] == "bind":
                # Docker would make a missing folder, as root.
                assert mount["bind"]["create_host_path"] is False
                assert mount.get("read_only", False) is (mount["target"] != "/work"), name


def test_exports_are_mounted_where_the_servers_look_for_them() -> None:
    found = services(MODEL_NAME="minilm", EXPORT="/exports/minilm")
    for name in ("serve", "serve-gpu"):
        (mount,) = found[name]["volumes"]
        assert mount["source"] == "/exports/minilm"
        assert found[name]["environment"]["MODEL_NAME"] == "minilm"
        assert f'base_path: "{mount["target"]}"' in server_files.models("minilm")
    (mount,) = found["serve-kft"]["volumes"]
    assert mount["target"] in (DOCKERFILE.last("serve-kft", "CMD").listed or [])


def test_training_is_mounted_where_the_image_works() -> None:
    mounts = {mount["target"] for mount in services()["train"]["volumes"]}
    home = shlex.split(DOCKERFILE.steps("train", "ENV")[0].text)
    (cache,) = (word.partition("=")[2] for word in home if word.startswith("KFT_HOME="))
    assert mounts == {DOCKERFILE.last("train", "WORKDIR").text, "/data", cache}
    assert set(composed()["volumes"]) == {"cache"}


def test_services_are_limited_and_come_back_only_if_they_serve() -> None:
    for name, service in services().items():
        limits = service["deploy"]["resources"]["limits"]
        assert float(limits["cpus"]) > 0 and re.fullmatch(r"\d+G", limits["memory"])
        serves = name.startswith("serve")
        assert service["restart"] == ("unless-stopped" if serves else "no")
        assert ("healthcheck" in service) is serves
        if serves:
            health(service["build"]["target"])  # the test itself is the image's
            assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["init"] is True
    cpus = [w.partition("=")[2] for w in services(SERVE_CPUS="3")["serve"]["command"]]
    assert cpus == ["3", "3"]


def test_gpus_are_asked_for_by_name_alone() -> None:
    found = services()
    gpus = {name for name, service in found.items() if "gpu" in service.get("profiles", [])}
    assert gpus == {"train-gpu", "serve-gpu"}
    for name, service in found.items():
        reserved = service["deploy"]["resources"].get("reservations", {}).get("devices", [])
        assert bool(reserved) is (name in gpus)
    tag = found["serve-gpu"]["build"]["args"]["SERVING_IMAGE"]
    assert tag == DOCKERFILE.arguments["SERVING_IMAGE"] + "-gpu"
    # `docker compose up` alone serves, and trains nothing.
    assert [name for name, service in found.items() if "profiles" not in service] == ["serve"]


def _commands(first: str) -> list[list[str]]:
    """Returns the README's shell commands that begin with a word, without variables before it."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            assert f"${{{words.pop(0).partition('=')[0]}:-" in COMPOSE
        if words[:1] == [first]:
            found.append(words)
    return found


def test_docker_commands_of_the_readme_name_what_there_is() -> None:
    commands = _commands("docker")
    assert len(commands) > 4
    known = services()
    for words in commands:
        if words[1] == "compose":
            (name,) = set(words) & set(known)
            rest = words[words.index(name) + 1 :]
            assert not rest or rest[0] in cli.main.commands, words
            continue
        options = dict(itertools.pairwise(words))
        target = options.get("--target", "train")
        assert words[:2] == ["docker", "build"] and target in TARGETS and words[-1] == "."
        if "--build-arg" in options:
            name = options["--build-arg"].partition("=")[0]
            assert name in {s.text.partition("=")[0] for s in DOCKERFILE.steps(target, "ARG")}
        if "--build-context" in options:
            assert options["--build-context"].partition("=")[0] in DOCKERFILE.stages
    for name in known:
        assert f"`{name}`" in README or f"docker compose up {name} " in README or name == "train"
