"""Cross-validation: a run for every fold, and one above them that averages what they say.

    run = fit(recipe.load("my.yaml", ["train.folds=5"]), runs_dir="runs", name="mine")
    run.fold(2).read_json("scores")["validation"]["accuracy"]    # runs/mine/folds/2
    run.read_json("scores")["test"]["accuracy"]                   # of the mean probabilities

Every fold is an ordinary run. Recipes without folds go to `workflow`.
"""

from __future__ import annotations

import statistics
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
from rich.console import Console
from rich.markup import escape

from kerastune_ft import (
    devices,
    evaluation,
    exports,
    interrupts,
    predictions,
    quiet,
    resuming,
    showing,
    workflow,
)
from kerastune_ft import recipe as recipes
from kerastune_ft.evaluation import EVALUATORS
from kerastune_ft.runs import Run
from kerastune_ft.tasks import TASKS

if TYPE_CHECKING:
    from kerastune_ft.recipe import Recipe


def fit(
    recipe: Recipe,
    *,
    runs_dir: str | Path = "runs",
    name: str | None = None,
    default_name: str = "run",
    console: Console | None = None,
    resume: bool = False,
) -> Run:
    """Carries out a recipe: one training, or with `train.folds` one for every fold.

    Args:
        recipe: From `recipe.load`.
        runs_dir: Where the run's folder is made; its folds lie in `NAME/folds/`.
        name: Of the run; must not be taken. `None` takes the first free `default_name-N`.
        default_name: Usually the recipe's file name.
        console: Shows what happens; nothing is shown by default.
        resume: Go on with the unfinished run of this recipe, if there is one. Folds that are
            finished are not trained again.

    Returns:
        The finished run.

    Raises:
        KftError: On a user's mistake. Before training began, no folder is left behind.
        KeyboardInterrupt: After what was trained has been saved; SIGTERM likewise ends in
            `SystemExit(143)`.
    """
    console = console or Console(quiet=True)
    exports.ready(recipe)
    how: dict[str, Any] = {"runs_dir": runs_dir, "name": name, "default_name": default_name}
    fit_ = workflow.fit if recipe.train.folds == 1 else _fit
    run = fit_(recipe, **how, console=console, resume=resume)
    exports.of_recipe(run, console)
    return run


def _fit(
    recipe: Recipe,
    *,
    runs_dir: str | Path,
    name: str | None,
    default_name: str,
    console: Console,
    resume: bool,
) -> Run:
    """Cross-validates."""
    with interrupts.catching():
        former = None
        if resume:
            former = resuming.former_run(recipe, Path(runs_dir), name, default_name)
        if former is not None:
            return _resume(former, console)
        run = Run.create(runs_dir, name, default_name)
        try:
            with run.locked():
                recipe = _begin(run, recipe, console)
                _carry_out(run, recipe, console)
        except BaseException as error:
            # What a fold trained is kept, and an interrupted run can go on before that.
            kept = isinstance(error, KeyboardInterrupt | SystemExit) and run.recipe_path.is_file()
            if not kept and not _has_begun(run):
                run.discard()
            raise
    return run


def resume(path: str | Path, console: Console | None = None) -> Run:
    """Goes on with a run that was killed or interrupted; see `workflow.resume`.

    Of a cross-validated run, with the fold that was interrupted.
    """
    run, console = Run.open(path), console or Console(quiet=True)
    if recipes.load(run.recipe_path).train.folds == 1:
        run = workflow.resume(path, console)
    else:
        with interrupts.catching():
            run = _resume(run, console)
    exports.of_recipe(run, console)
    return run


def _resume(run: Run, console: Console) -> Run:
    if run.state == "finished":
        console.print(f"{escape(str(run.path))} is finished; there is nothing to resume.")
        return run
    with run.locked():
        run.sweep()
        recipe = recipes.load(run.recipe_path)
        resuming.check_same_data(run, predictions.pooled(recipe))
        console.print(f"[bold]resuming[/] {escape(str(run.path))}")
        _carry_out(run, recipe, console)
    return run


def _has_begun(run: Run) -> bool:
    return any(run.folds_path.glob("*/recipe.yaml"))


def _begin(run: Run, recipe: Recipe, console: Console) -> Recipe:
    """Checks that the data can be cut into folds, and writes down what is going to be done."""
    recipe = workflow.made_ready(recipe, console)
    splits = predictions.pooled(recipe)
    run.write_json("environment", devices.environment())
    run.write_json("data", splits.record())
    splits.write(run.splits_path)
    run.write_recipe(recipes.dump(recipe))  # last: with it the run can be resumed
    return recipe


def _carry_out(run: Run, recipe: Recipe, console: Console) -> None:
    """Trains the folds that are not finished, then averages."""
    count = recipe.train.folds
    with quiet.untold(), workflow.recorded(run, console):
        for number in range(1, count + 1):
            fold = run.fold(number)
            if fold.state == "finished":
                silent = Console(quiet=True)
                workflow.resume(fold.path, silent)  # which sweeps up what a kill left behind
                continue
            console.print(f"[bold]fold {number} of {count}[/]")
            workflow.fit(
                workflow.fold_of(recipe, number),
                runs_dir=run.folds_path,
                name=fold.name,
                console=console,
                resume=True,
            )
            keras.utils.clear_session()  # the next one needs the memory
        scores = _average(run, recipe)
    _show(console, run, recipe, scores)


def _average(run: Run, recipe: Recipe) -> dict[str, Any]:
    """Scores every example by the model that did not see it, and test by all models together.

    As of an ordinary run, pictures are drawn when all figures are written.
    """
    splits, folds = predictions.pooled(recipe), predictions.members(run, recipe)
    resuming.check_same_data(run, splits)
    pool, how = splits.train, EVALUATORS[recipe.task.name]
    said, numbers, of_test = predictions.out_of_fold(
        folds, recipe, pool, splits.outputs, splits.test
    )
    found = evaluation.score(said, recipe, pool, splits.outputs, tune=True)
    rows = [{"fold": fold, **row} for fold, row in zip(numbers, found.rows, strict=True)]
    run.write_table(run.out_of_fold_path, rows)
    if found.outputs.thresholds:
        run.write_json("thresholds", evaluation.threshold_record(found))
    scores: dict[str, Any] = {"validation": found.scores}
    name = "out of fold"
    if len(splits.test):
        name = "test"
        found = evaluation.score(of_test, recipe, splits.test, found.outputs)
        scores["test"] = found.scores
        run.write_table(run.predictions_path, found.rows)
    each = [fold.read_json("scores") for fold in folds]
    scores["folds"] = {
        "count": len(folds),
        **{
            part: _spread([row[part] for row in each])
            for part in ("validation", "test")
            if all(part in row for row in each)
        },
    }
    scores["training"] = _training(each)
    run.write_json("scores", scores)
    title = f"{run.name}: {name}, {how.headline(found.scores)[0]}"
    figure = run.figure_path(how.figure)
    how.draw(found.true, found.predicted, found.outputs, figure, title)
    return scores


def _spread(scores: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns mean and standard deviation, of a sample, of every figure that all folds have."""
    names = [
        name for name in scores[0] if all(type(row.get(name)) in (int, float) for row in scores)
    ]
    return {
        name: {
            "mean": statistics.fmean(values),
            "std": statistics.stdev(values),
            "each": values,
        }
        for name in names
        for values in [[row[name] for row in scores]]
    }


def _training(scores: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns what there is to say about all trainings together."""
    each = [row["training"] for row in scores]
    verdicts = [row["diagnosis"]["verdict"] for row in each]
    ((commonest, count), *_) = Counter(verdicts).most_common()
    told = "; ".join(
        f"fold {number}: {row['diagnosis']['reason'].rstrip('.')}"
        for number, row in enumerate(each, 1)
        if row["diagnosis"]["verdict"] != "good"
    )
    reason = f"{count} of {len(each)} folds" + (f"; {told}." if told else ".")
    return {
        "epochs": sum(row["epochs"] for row in each),
        "seconds": sum(row["seconds"] for row in each),
        "stopped_early": [row["stopped_early"] for row in each],
        "best_epoch": [row["best_epoch"] for row in each],
        "warnings": [line for row in each for line in row["warnings"]],
        "diagnosis": {"verdict": commonest, "reason": reason, "gap": []},
    }


def _show(console: Console, run: Run, recipe: Recipe, scores: dict[str, Any]) -> None:
    name = TASKS[recipe.task.name].headline
    for part, said in (("validation", "each on its fold"), ("test", "each alone on test")):
        spread = scores["folds"].get(part, {}).get(name)
        if spread is not None:
            console.print(
                f"[bold]folds[/]    {name} {spread['mean']:.4f}, standard deviation "
                f"{spread['std']:.4f}, {said}",
                highlight=False,
            )
    first, *rest = EVALUATORS[recipe.task.name].headline(scores["validation"])
    console.print(f"[bold]out of fold {first}[/]  {'  '.join(rest)}", highlight=False)
    showing.show_scores(console, run, recipe, scores)
