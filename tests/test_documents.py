"""README, recipes and help: what they say is so."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from test_cli import DOCUMENTED, ENVIRONMENT

import kerastune_ft as kft
from kerastune_ft import cli, recipe
from kerastune_ft.backbones import BACKBONES, PICTURES, pairing

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Returns every `kft` command of the README's shell blocks and sentences, as words."""
    lines = [line for text in blocks("bash") for line in text.replace("\\\n", " ").splitlines()]
    lines = [part for line in lines for part in line.split("&&")]
    lines += re.findall(r"`(kft [^`\n]+)`", README)
    found = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in found if words and words[0] == "kft" and "..." not in words]


def walk(group: click.Group) -> list[click.Command]:
    found: list[click.Command] = []
    for command in group.commands.values():
        found += [command, *(walk(command) if isinstance(command, click.Group) else [])]
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_of_the_readme_can_be_parsed(words: list[str], tmp_path: Path) -> None:
    if "--wheel" in words or words[0].startswith("-"):
        pytest.skip("needs a file, or is an option alone")
    command: click.Command = cli.main
    while isinstance(command, click.Group) and words:
        name, *words = words
        assert name in command.commands, f"there is no command '{name}'"
        command = command.commands[name]
    if words:
        command.make_context(command.name, list(words))
    if words and words[0].startswith("recipes/"):
        recipe.load(ROOT / words[0], [word for word in words[1:] if "=" in word])


def test_the_readme_has_commands_and_the_two_that_set_up() -> None:
    assert len(commands()) > 8
    assert "python3 -m pip install -e . && kft fit recipes/mobilenet.yaml\n" in blocks("bash")
    assert 'python3 -m pip install -e ".[test]" && pytest\n' in blocks("bash")


def test_the_recipe_of_the_readme_is_valid(tmp_path: Path) -> None:
    (text,) = blocks("yaml")
    (tmp_path / "r.yaml").write_text(text)
    assert len(recipe.load(tmp_path / "r.yaml").train.stages) == 2


def test_the_scripts_of_the_readme_use_public_names() -> None:
    text = "".join(blocks("python"))
    used = {
        node.attr
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "kft"
    }
    assert {"image_classifier", "unfreeze"} <= used <= set(kft.__all__)


@pytest.mark.network
@pytest.mark.slow
def test_the_script_of_the_readme_reaches_what_the_recipe_reaches(tmp_path: Path) -> None:
    first, _, second = blocks("python")  # the last goes on from the first
    command = [sys.executable, "-c", first + second]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    accuracy = re.search(r"^test accuracy (\S+)$", done.stdout, re.MULTILINE)
    assert accuracy
    assert float(accuracy[1]) >= 0.97


@pytest.mark.network
@pytest.mark.slow
def test_the_script_of_the_readme_for_texts_runs(tmp_path: Path) -> None:
    _, script, _ = blocks("python")
    begin = (
        "import keras, kerastune_ft as kft\n"
        "texts, labels = ['a good film', 'a bad film'] * 16, [1, 0] * 16\n"
    )
    command = [sys.executable, "-c", begin + script]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


SOMETIMES = {
    "thresholds.json", "tokenizer.json", "network.json", "folds", "out_of_fold.csv", "export",
}  # fmt: skip


def test_the_readme_lists_the_files_of_a_run() -> None:
    table = README.split("## What a run leaves")[1].split("##")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    names = [name.rstrip("/") for row in rows for name in re.findall("`([^`]+)`", row)]
    # Of several labels, of texts, of folds, and of exports.
    assert sorted(names) == sorted(DOCUMENTED | SOMETIMES)


def test_the_readme_lists_the_backbones_with_their_facts() -> None:
    for row in PICTURES.values():
        top1 = max(facts.top1 for facts in row.weights.values())
        line = (
            f"| `{row.name}` | {len(row.cuts)} | {row.parameters / 1e6:.1f} M | {top1:.3f} | "
            f"{', '.join(row.weights)} |"
        )
        assert line in README, line


def test_the_readme_says_which_network_does_which_task() -> None:
    rows = [row for row in BACKBONES.values() if row.language]
    head = f"| task | {' | '.join(f'`{row.name}`' for row in rows)} |"
    assert head in README
    for task in pairing.TEXT_TASKS:
        able = ("yes" if pairing.refusal(row, task) is None else "no" for row in rows)
        assert f"| `{task}` | {' | '.join(able)} |" in README
    for row in rows:
        tags = [tag for tag in row.weights if tag != "minilm"]
        assert f"| {row.language.pooling} | {', '.join(tags) or 'none: give a folder'} |" in README


def test_modules_and_links_of_the_documents_exist() -> None:
    house = README.split("## The house")[1].split("```")[1]
    modules = re.findall(r"\b(\w+\.py)\b", house)
    assert len(modules) > 8
    present = {path.name for path in (ROOT / "kerastune_ft").rglob("*.py")}
    assert set(modules) <= present
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


@pytest.mark.parametrize(
    "path", [*DOCUMENTS, *sorted((ROOT / "recipes").glob("*.yaml"))], ids=lambda path: path.name
)
def test_nothing_is_left_to_be_filled_in(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"@[A-Z]+@|to be filled in|TODO|FIXME|XXX", text)


@pytest.mark.parametrize("command", walk(cli.main), ids=lambda command: command.name)
def test_every_command_and_option_says_what_it_does(command: click.Command) -> None:
    assert command.help
    first = command.help.splitlines()[0]
    assert first.endswith(".")
    assert first.split()[0].endswith("s"), "third person: 'Lists ...'"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{command.name}: {parameter.opts}"
