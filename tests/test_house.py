"""The rules of the house that a script can see."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "kerastune_ft"
MODULES = sorted(PACKAGE.rglob("*.py"))
# A module may import those of its own level and of the levels before it.
LEVELS = [
    {"errors", "files", "interrupts", "prediction_files", "quiet", "stores"},
    {"backbones", "checkpoints", "watchdog", "hosts"},
    {
        "recipe",
        "recipe_checks",
        "recipe_data",
        "recipe_export",
        "recipe_text",
        "recipe_training",
        "recipe_tree",
        "recipe_values",
    },
    {"losses", "tasks", "schedules", "optimizers", "strategies", "runs", "devices", "starters"},
    {"serving"},
    {"data"},
    {"heads", "models", "states"},
    {"prefixes", "preprocessing", "text_models", "generation"},
    {
        "averaging",
        "callbacks",
        "diagnosis",
        "gradual",
        "policies",
        "resuming",
        "stage_callbacks",
        "stages",
        "stopping",
    },
    {"checks"},
    {"history", "prefix_cache"},
    {"rate_finder", "training"},
    {"ensembles", "figures", "text_evaluation"},
    {"evaluation"},
    {"runtimes"},
    {"conversions"},
    {"litert"},
    {"formats"},
    {"text_predictions"},
    {"predictions", "showing"},
    {"exports"},
    {"comparison", "workflow"},
    {"benching", "folds", "manifests", "previews", "range_tests"},
    {"listings"},
    {"doctor", "terminal"},
    {"cli_data", "cli_exports", "cli_serving"},
    {"cli"},
    {"__main__", "__init__"},
]


def home(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(path: Path) -> set[str]:
    """Names of the package's own modules that a file imports, however late."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kerastune_ft"):
            inner = (node.module or "").split(".")[1:]
            found |= {inner[0]} if inner else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = (alias.name.split(".") for alias in node.names)
            found |= {name[1] for name in names if name[0] == "kerastune_ft" and len(name) > 1}
    return {name for name in found if not name.startswith("__")}


def test_imports_point_one_way():
    level = {name: number for number, names in enumerate(LEVELS) for name in names}
    assert len(MODULES) > 20
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in MODULES
        for name in imports(path)
        if level[name] > level[home(path)]
    ]
    assert not wrong


def test_no_module_is_longer_than_600_lines():
    long = {path.name: len(path.read_text().splitlines()) for path in MODULES}
    assert {name: lines for name, lines in long.items() if lines > 600} == {}


def test_fit_is_called_and_trainable_is_set_in_one_module_each():
    def users(wanted):
        return {
            home(path)
            for path in MODULES
            for node in ast.walk(ast.parse(path.read_text()))
            if wanted(node)
        }

    def sets_trainable(node):
        targets = node.targets if isinstance(node, ast.Assign) else []
        return any(isinstance(t, ast.Attribute) and t.attr == "trainable" for t in targets)

    def calls_fit(node):
        return (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "fit"
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "model"
        )

    assert users(sets_trainable) == {"models"}
    assert users(calls_fit) == {"training"}


@pytest.mark.parametrize(
    "statement",
    [
        "import kerastune_ft",
        "import kerastune_ft; kerastune_ft.load_recipe('recipes/mobilenet.yaml')",
        "from kerastune_ft import listings; [listings.rows(n, __import__('pathlib').Path('runs'))"
        " for n in listings.LISTS]",
        "from kerastune_ft.recipe import json_schema; json_schema()",
    ],
)
def test_cheap_things_import_no_framework(statement):
    code = f"{statement}\nimport sys\nprint([m for m in sys.modules if m in " + (
        "('tensorflow', 'keras', 'jax', 'tensorflow_datasets', 'sklearn', 'pandas')])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
        timeout=60,
    )
    assert found.stdout.strip() == "[]"


def test_every_public_name_can_be_had():
    import kerastune_ft

    assert kerastune_ft.__all__
    for name in kerastune_ft.__all__:
        assert getattr(kerastune_ft, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        kerastune_ft.nothing  # noqa: B018
