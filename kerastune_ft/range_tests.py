"""Makes the learning-rate range test of a recipe's stages: `kft lr-find`.

curves = find_rates(recipe.load("recipes/mobilenet.yaml"), console, steps=100)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from kerastune_ft import (
    figures,
    models,
    predictions,
    rate_finder,
    resuming,
    showing,
    training,
    workflow,
)
from kerastune_ft.errors import RunError
from kerastune_ft.runs import Run
from kerastune_ft.tasks import TASKS

if TYPE_CHECKING:
    import keras
    from rich.console import Console

    from kerastune_ft.data import Splits
    from kerastune_ft.recipe import Recipe


def find_rates(
    recipe: Recipe,
    console: Console,
    *,
    stage: str | int | None = None,
    steps: int = 100,
    lowest: float = 1e-7,
    highest: float = 1.0,
    run: str | Path | None = None,
    output: str | Path | None = None,
) -> list[rate_finder.Curve]:
    """Makes the learning-rate range test of a recipe's stages, on one device.

    Args:
        recipe: From `recipe.load`.
        console: Shows what happens.
        stage: Name or number, from 1, of one stage; None for all.
        steps: Updates per stage, 10 or more.
        lowest: Rate of the first update.
        highest: Rate of the last update.
        run: A run of the same network and outputs whose model every stage starts from; None for
            what `fit` would start from.
        output: A folder for `lr_find.csv` and `lr_find.png`; None for none.

    Raises:
        KftError: On a user's mistake.
    """
    rate_finder.check(steps, lowest, highest)
    recipe = workflow.fold_of(recipe, 1)
    alone = recipe.train.model_copy(update={"replicas": 1, "hosts": 1})
    recipe = resuming.resolved(recipe.model_copy(update={"train": alone}))
    workflow.prepare(recipe)
    splits = workflow.read(recipe)
    showing.show_data(console, splits)
    training.check(recipe, splits)
    if run is None:
        workflow.fetch_weights(recipe, console)
        model = workflow.build(recipe, splits)
        workflow.take_over_head(console, recipe, model, splits)
    else:
        model = predictions.load_model(Run.open(run))
        _check_same_network(Path(run), model, recipe, splits)
    recipe = workflow.settled(console, recipe, splits, model)
    curves = rate_finder.find(
        model,
        recipe,
        splits,
        stage=stage,
        steps=steps,
        lowest=lowest,
        highest=highest,
        show=lambda name: console.print(f"  trying rates of stage '{escape(name)}' ..."),
    )
    if output is not None:
        rate_finder.write(curves, Path(output) / "lr_find.csv")
        figures.draw_rate_curves(curves, Path(output) / "lr_find.png", recipe.backbone.name)
    return curves


def _shape(recipe: Recipe) -> tuple[int | None, ...]:
    choice = recipe.backbone
    if TASKS[recipe.task.name].modality == "text":
        return (choice.sequence_length,)
    return (*choice.side, choice.channels)


def _check_same_network(path: Path, model: keras.Model, recipe: Recipe, splits: Splits) -> None:
    former, outputs = predictions.contract(Run.open(path))
    choice = recipe.backbone
    theirs = (former.task.name, models.backbone_of(model)[1].name, _shape(former))
    ours = (recipe.task.name, choice.name, _shape(recipe))
    if theirs != ours or outputs.names != splits.outputs.names:
        raise RunError(
            f"run '{path}': its model is for {theirs} and {', '.join(outputs.names[:5])}, the "
            f"recipe's for {ours} and {', '.join(splits.outputs.names[:5])}; give a run of this "
            "recipe, or leave --run out."
        )
