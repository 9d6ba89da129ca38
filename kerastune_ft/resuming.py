"""Which run is meant, and whether it can go on: recipe, data and machine as they were.

run = former_run(recipe, Path("runs"), "mobilenet", "mobilenet")
check_same_data(run, splits)
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from kerastune_ft import backbones, devices, models, strategies, text_models
from kerastune_ft import recipe as recipes
from kerastune_ft.checkpoints import State
from kerastune_ft.errors import ModelError, RecipeError, RunError
from kerastune_ft.runs import Run, base_name, check_name
from kerastune_ft.tasks import TASKS

_BEGINNING = {
    "environment.json", "data.json", "splits.csv", "tokenizer.json", "network.json",
    "status.json", ".lock",
}  # fmt: skip

if TYPE_CHECKING:
    import keras
    from rich.console import Console

    from kerastune_ft.data import Splits
    from kerastune_ft.recipe import Recipe


def copied(run: Run) -> Run:
    """Returns a copy of a run for a host that is not the first, which works on the run itself."""
    folder = Path(tempfile.mkdtemp(prefix="kft-")) / run.name
    shutil.copytree(run.path, folder, ignore=shutil.ignore_patterns("logs", "step-*", ".*"))
    return Run(folder)


def former_run(recipe: Recipe, runs_dir: Path, name: str | None, default: str) -> Run | None:
    """Returns the run that `--resume` means, None if there is none to go on with."""
    if name is not None:
        check_name(name)
        folder = runs_dir / name
        if not folder.is_dir():
            return None
        run = Run(folder)
        if not run.recipe_path.is_file():  # killed before it had read its data
            names = {path.name for path in folder.iterdir()}
            # What `files.replacing` was at work on is hidden.
            strange = {name for name in names if not name.startswith(".")} - _BEGINNING
            if strange:
                raise RunError(
                    f"'{folder}' is not a run, and holds {', '.join(sorted(strange)[:3])}; choose "
                    "another --name."
                )
            with run.locked():
                run.discard()
            return None
        changed = _changed(recipe, run)
        if changed:
            raise RunError(
                f"run '{folder}' has another recipe ({', '.join(changed[:5])} differ); 'kft resume "
                f"{folder}' goes on with its own, another --name starts anew."
            )
        return run
    default = base_name(default)
    for folder in sorted(runs_dir.glob(f"{default}*"), key=lambda path: path.stat().st_mtime)[::-1]:
        run = Run(folder)
        numbered = re.fullmatch(rf"{re.escape(default)}(-\d+)?", folder.name)
        begun = numbered and run.recipe_path.is_file() and run.state != "finished"
        with contextlib.suppress(RunError):  # one whose recipe is damaged is not meant
            if begun and not _changed(recipe, run):
                return run
    return None


def _changed(recipe: Recipe, run: Run) -> list[str]:
    """Returns the keys in which a recipe differs from that of a run."""
    try:
        theirs = recipes.load(run.recipe_path)
    except RecipeError as error:
        raise RunError(f"run '{run.path}': its recipe cannot be read: {error}") from error
    ours = resolved(recipe)
    row = backbones.get(recipe.backbone.name)
    if row.cuts:
        ours = expanded(ours, len(row.cuts))
    flat, their_flat = (dict(_flat(side.model_dump())) for side in (ours, theirs))
    keys = [key for key in {**flat, **their_flat} if flat.get(key) != their_flat.get(key)]
    # How many stages a strategy writes for a preset is known when the network is built.
    if not row.cuts and recipe.train.strategy is not None:
        keys = [key for key in keys if not key.startswith(("train.stages", "train.strategy"))]
    # A run writes settings in place of auto.
    for name in ("augment", "text_augment"):
        one, other = getattr(ours.data, name), getattr(theirs.data, name)
        if one == "auto" and not isinstance(other, str):
            keys = [key for key in keys if not f"{key}.".startswith(f"data.{name}.")]
    return keys


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        if isinstance(inner, dict | tuple | list) and inner:
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def with_stages(recipe: Recipe, model: keras.Model) -> Recipe:
    """Writes out the stages of a strategy: a run's recipe says all that it does."""
    return expanded(recipe, len(models.blocks(model)) - 1)


def expanded(recipe: Recipe, blocks: int) -> Recipe:
    """Returns the recipe with the stages that its strategy writes for so many blocks."""
    train = recipe.train
    if train.strategy is None:
        return recipe
    update = {"strategy": None, "stages": strategies.stages(train, blocks)}
    return recipe.model_copy(update={"train": train.model_copy(update=update)})


def where(state: State | None) -> str:
    """Returns where in a run a checkpoint stands, as words."""
    if state is None:
        return "from the beginning: it was stopped before its first checkpoint"
    at = state.position
    if at.stage_done:
        return f"after stage '{state.notes['stage']}'"
    return f"in stage '{state.notes['stage']}', epoch {at.epoch + 1}, after {at.step} steps"


def check_same_data(run: Run, splits: Splits) -> None:
    """Raises `RunError` if the splits are not those that the run began with."""
    before = run.read_json("data")["split_fingerprint"]
    if splits.fingerprint != before:
        raise RunError(
            f"run '{run.path}': the data are no longer those it began with (fingerprint "
            f"{splits.fingerprint[:12]}, expected {before[:12]}); put them back, or start "
            "a new run."
        )


def show_changes(console: Console, run: Run) -> None:
    """Warns if versions are others than when the run began."""
    now, before = devices.environment(), run.read_json("environment")
    changed = [
        f"{name} {before['versions'].get(name)} -> {version}"
        for name, version in now["versions"].items()
        if before["versions"].get(name) != version
    ]
    changed += [
        f"{key} {before.get(key)} -> {now[key]}"
        for key in ("backend", "devices", "platform")
        if before.get(key) != now[key]
    ]
    if changed:
        said = escape(", ".join(changed))
        console.print(
            f"  [yellow]warning[/]  not as when the run began: {said}; results may differ"
        )


def resolved(recipe: Recipe) -> Recipe:
    """Writes out the defaults that depend on the backbone."""
    row = backbones.get(recipe.backbone.name)
    if row.language is not None:
        return _resolved_text(recipe, row.language)
    alpha = recipe.backbone.alpha if recipe.backbone.alpha or not row.alphas else 1.0
    height, width = recipe.backbone.side
    size: Any = height if height == width else (height, width)
    if row.family == backbones.HUB and recipe.backbone.image_size is None:
        from kerastune_ft.backbones import hub

        size = hub.image_size(row) or size
    choice = recipe.backbone.model_copy(
        update={"image_size": size, "alpha": alpha, "weights": recipe.backbone.tag}
    )
    return recipe.model_copy(update={"backbone": choice})


def _resolved_text(recipe: Recipe, language: backbones.Language) -> Recipe:
    from kerastune_ft.backbones import text_networks

    row, choice = backbones.get(recipe.backbone.name), recipe.backbone
    limit = text_networks.max_length(row, choice.tag)
    length = choice.sequence_length or min(language.sequence_length, limit or 2**31)
    if limit is not None and length > limit:
        raise ModelError(
            f"backbone.sequence_length: these weights of '{row.name}' have positions for {limit} "
            f"tokens; expected {limit} or less, got {length}."
        )
    update = {"sequence_length": length, "weights": choice.tag}
    task = recipe.task
    if task.pooling is None and TASKS[task.name].labels not in ("tags", "text"):
        task = task.model_copy(update={"pooling": text_models.pooling_of(row, choice.tag)})
    backbone = choice.model_copy(update=update)
    return recipe.model_copy(update={"backbone": backbone, "task": task})
