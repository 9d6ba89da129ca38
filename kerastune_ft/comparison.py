"""Data seen after training against what a run was trained on: what `kft data compare` does.

    report = compare(Run.open("runs/mobilenet"), "photos-of-today/", console=console)
    report.show(console)

All features are the run's own: what its head gets. The new data are compared with what the run held
out, since what it was trained on looks more familiar to it than anything new can.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerastune_ft import predictions, text_predictions
from kerastune_ft.checks import drift, features, probes, relabelling
from kerastune_ft.checks.figures import chi_square
from kerastune_ft.checks.report import Report
from kerastune_ft.data import (
    Survey,
    cleaning,
    copies,
    dividing,
    splitting,
    table_files,
    tables,
    text_sources,
)
from kerastune_ft.data import sources as picture_sources
from kerastune_ft.data.labels import LABELS, class_counts, natural
from kerastune_ft.data.tables import Content, Finding, Severity, Table, finding
from kerastune_ft.data.texts import Texts
from kerastune_ft.errors import DataError, RunError
from kerastune_ft.evaluation import EVALUATORS
from kerastune_ft.recipe_data import Data
from kerastune_ft.recipe_text import ENDINGS
from kerastune_ft.tasks import TASKS, Outputs

if TYPE_CHECKING:
    from rich.console import Console

    from kerastune_ft.recipe import Recipe
    from kerastune_ft.runs import Run

NO_LABEL = "(no label)"
_SAMPLE = 2_000  # examples of each side that are looked at, at most
_HELD_OUT = 100  # examples, from which on what was held out is compared with
_CHANCE = 0.01
_EFFECT = 0.1  # of Cramer's V
_SURE = 0.05  # of mean confidence


@dataclass(frozen=True)
class _Said:
    """What a run's model says of examples: features `(n, width)`, and its output or None."""

    features: NDArray[np.float32]
    output: NDArray[np.float32] | None


def compare(run: Run, path: str, *, console: Console) -> Report:
    """Tells how data differ from those that a run was trained on.

    Args:
        run: Finished.
        path: A folder of class folders, a folder of pictures or texts without labels, or a table;
            of texts also a file with a text per line. A table needs no labels.
        console: Shows what is being done, on a terminal.

    Raises:
        DataError: If the data of the run have changed, or those at `path` cannot be read.
        RunError: If the run has no model, or one for every fold, or a document is damaged.
    """
    recipe, outputs = predictions.contract(run)
    if recipe.train.folds > 1:
        raise RunError(
            f"run '{run.path}' has a model for every fold, and features of several models have no "
            f"mean; compare with one of them, such as '{run.fold(1).path}'."
        )
    task = TASKS[recipe.task.name]
    with console.status("reading"):
        own = _own(run, recipe)
        choice, survey = _new(recipe, path, outputs)
    held = np.flatnonzero(own.parts != "train")
    where = "what the run held out"
    if len(held) < _HELD_OUT:
        held, where = np.arange(len(own.parts)), "the data of the run, which it was trained on"
    rows = features.sample(own, _SAMPLE, held)
    some = features.sample(survey, _SAMPLE)
    with console.status("asking the model"):
        model = predictions.load_model(run)
        before = _ask(model, run, recipe, own.table.content.take(rows))
        now = _ask(model, run, recipe, survey.table.content.take(some))
    found = list(survey.findings)
    found += _domain(own, survey, rows, some, before, now, where)
    found += _figures(own, survey)
    labelled = survey.table.class_names != (NO_LABEL,)
    if labelled and task.labels in ("class", "classes", "tags"):
        found += _classes(own, survey, outputs.names)
    if task.labels == "class" and before.output is not None and now.output is not None:
        how = EVALUATORS[recipe.task.name]
        sure = how.activate(before.output), how.activate(now.output)
        found += _confidence(survey.table.names, some, *sure, where)
        if labelled:
            names = survey.table.class_names
            truth = [names[label] for label in survey.labels[some]]
            earlier = [own.table.class_names[label] for label in own.labels[rows]]
            if set(truth) & set(outputs.names):  # else nothing can be right
                found += _accuracy(outputs.names, *sure, earlier, truth, where)
    shown = recipe.model_copy(update={"data": choice})
    return Report.of(shown, survey, found)


def _own(run: Run, recipe: Recipe) -> Survey:
    """Returns the data of a run, which must not have changed."""
    survey = relabelling.read(recipe)
    texts = LABELS[survey.kind].texts(survey.labels, survey.table.class_names)
    rows = sorted(zip(survey.table.names, texts, survey.parts.tolist(), strict=True))
    now = splitting.fingerprint(*([row[i] for row in rows] for i in range(3)))
    try:
        before = run.read_json("data")["split_fingerprint"]
    except KeyError as error:
        raise RunError(f"'{run.path}/data.json' is damaged: {error} is missing.") from error
    if now != before:
        raise DataError(
            f"'{recipe.data.path}' has changed since run '{run.name}' was trained, so there is "
            "nothing to compare with; put it back as it was."
        )
    return survey


def _new(recipe: Recipe, path: str, outputs: Outputs) -> tuple[Data, Survey]:
    """Reads data with labels or without; all of it counts as one part, `test`."""
    task, place = TASKS[recipe.task.name], Path(path).expanduser()
    if not place.exists():
        raise DataError(f"'{path}': no such file or folder.")
    text = task.modality == "text"
    lines = text and place.is_file() and place.suffix.lower() not in ENDINGS
    source = "image_csv" if place.is_file() else "image_folder"
    if text:  # a file of lines is read as predictions read it
        source = recipe.data.source if lines else text_predictions.source_of(place)
    choice = predictions.elsewhere(recipe, source, path)
    kind, rules = LABELS[task.labels], choice.cleaning
    if lines or not _has_labels(place, choice):
        kind = LABELS["class"]
        table = _without_labels(place, recipe.model_copy(update={"data": choice}), text)
        if isinstance(table.content, Texts):
            table = replace(table, content=cleaning.mended_texts(table.content, rules.text))
    else:
        sources = text_sources.SOURCES if text else picture_sources.SOURCES
        table = sources[source](choice, kind)
        table = cleaning.mended_table(table, rules, kind, outputs.names)
        if kind.name == "class":
            present = sorted(set(map(str, table.labels)), key=natural)
            table = replace(table, class_names=tuple(present))
    labels, parts = kind.encode(table.labels, table.class_names), np.full(len(table.names), "test")
    first = copies.identities(table)
    return choice, Survey(
        kind.name, table, labels, parts, table.findings, (), first, dividing.NO_PAIRS
    )


def _has_labels(place: Path, choice: Data) -> bool:
    """Whether a folder has class folders, or a table its column of labels."""
    if place.is_dir():
        return any(path.is_dir() and not path.name.startswith(".") for path in place.iterdir()) or (
            choice.source in ("csv", "jsonl", "parquet")
        )
    wanted = tables.label_columns(choice)
    rows = table_files.records(place, choice.encoding)
    return all(column in next(iter(rows), {}) for column in wanted)


def _without_labels(place: Path, recipe: Recipe, text: bool) -> Table:
    if text:
        files = sorted(path for path in place.iterdir() if path.is_file()) if place.is_dir() else []
        read = [text_predictions.texts_of(path, recipe) for path in files or [place]]
        names = tuple(name for found, _ in read for name in found)
        return Table(
            names=names,
            labels=(NO_LABEL,) * len(names),
            official=None,
            class_names=(NO_LABEL,),
            content=Texts.joined([found for _, found in read]),
            findings=(),
            found=len(names),
        )
    findings = tables.Findings()
    if place.is_dir():
        root = place
        listed = sorted(
            path.name for path in place.iterdir() if path.is_file() and path.name[0] != "."
        )
    else:
        root, column = place.parent, recipe.data.image_column
        rows = table_files.records(place, recipe.data.encoding)
        cells = [str(row[column]) for row in rows if row.get(column)]
        picture_sources.check_inside(place, root, cells)
        listed = list(dict.fromkeys(picture_sources.name_in(cell, root) for cell in cells))
    found = []
    for name in listed:
        if (root / name).is_file():
            found.append(tables.Example(name, NO_LABEL, None, root / name))
        else:
            message = "rows whose file does not exist, left out"
            findings.add("missing_file", "fail", message, name)
    if not found:
        raise DataError(f"'{place}': there is no picture in it.")
    return tables.tabulate(recipe.data, found, findings, listed=False)


def _ask(model: keras.Model, run: Run, recipe: Recipe, content: Content) -> _Said:
    """Returns what the model of a run says; of one that says something of each token, features."""
    whole = TASKS[recipe.task.name].labels in ("class", "classes", "numbers")
    if whole:
        body = features.penultimate(model)
        width = int(body.outputs[0].shape[-1])
        joined = keras.layers.Concatenate(dtype="float32")([body.outputs[0], model.outputs[0]])
        network = keras.Model(model.inputs, joined)
        network.preprocessor = getattr(model, "preprocessor", None)
    else:
        weights = recipe.backbone.model_copy(update={"weights": str(run.path)})
        recipe = recipe.model_copy(update={"backbone": weights})
        network = features.build(recipe, content)
        width = int(network.outputs[0].shape[-1])
    made = np.zeros((len(content), int(network.outputs[0].shape[-1])), np.float32)
    for rows, values in features.of_model(network, content, recipe):
        made[rows] = values
    return _Said(made[:, :width], made[:, width:] if whole else None)


def _domain(
    own: Survey,
    survey: Survey,
    rows: NDArray[np.int64],
    some: NDArray[np.int64],
    before: _Said,
    now: _Said,
    where: str,
) -> Iterator[Finding]:
    sides = own.table.take(rows), survey.table.take(some)
    keys = [bytes(digest) for side in sides for digest in copies.digests(side)]
    said = drift.between(before.features, now.features, probes.together(keys))
    if said is None:
        message = f"{len(some):,} of these data are too few to be told apart from {where}"
        yield Finding("data_drift", "note", message, 0, ())
        return
    message = f"these data and {where} {said.verdict} by the model's features, {said.numbers}"
    if not said.different:
        yield Finding("data_drift", "note", message, 0, ())
        return
    names = [survey.table.names[some[place]] for place in said.telling]
    details = [f"looks like the new data with {said.other[place]:.2f}" for place in said.telling]
    message += "; the most telling examples"
    yield finding("data_drift", "warn", message, names, details=details)


def _figures(own: Survey, survey: Survey) -> Iterator[Finding]:
    def of(one: Survey, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        table = one.table.take(rows)
        texts = table.content.first if isinstance(table.content, Texts) else None
        looks = table.looks if table.looks and len(table.looks) == len(table.names) else None
        return drift.figures(looks, texts)

    training = features.sample(own, _SAMPLE, np.flatnonzero(own.parts == "train"))
    found = drift.shifted(of(own, training), of(survey, features.sample(survey, _SAMPLE)))
    if found:
        names, details = zip(*found, strict=True)
        message = "figures of these data that are distributed otherwise than in training"
        yield finding("figure_drift", "warn", message, names, details=details)


def _classes(own: Survey, survey: Survey, known: tuple[str, ...]) -> Iterator[Finding]:
    def counts(one: Survey, rows: NDArray[np.int64]) -> dict[str, int]:
        numbers = class_counts(one.labels[rows], len(one.table.class_names))
        return dict(zip(one.table.class_names, numbers.tolist(), strict=True))

    before = counts(own, np.flatnonzero(own.parts == "train"))
    now = counts(survey, np.arange(len(survey.parts)))
    new = sorted({name for name, n in now.items() if n} - set(known), key=natural)
    if new:
        details = [f"{now[name]:,} examples" for name in new]
        message = "classes that the run does not know"
        yield finding("unknown_class", "warn", message, new, details=details)
    pairs = np.asarray([[side.get(name, 0) for name in known] for side in (before, now)])
    if not pairs[1].sum():
        return
    chance, effect = chi_square(pairs)
    if chance >= _CHANCE or effect < _EFFECT:
        return
    shares = pairs / pairs.sum(axis=1, keepdims=True)
    order = np.argsort(-np.abs(shares[0] - shares[1]), kind="stable")[:10]
    yield finding(
        "label_shift",
        "warn",
        f"classes in other shares than in training (Cramer's V {effect:.2f}), the furthest first",
        [known[place] for place in order],
        details=[f"{shares[1][i]:.1%}, in training {shares[0][i]:.1%}" for i in order],
    )


def _confidence(
    names: tuple[str, ...],
    some: NDArray[np.int64],
    before: NDArray[Any],
    now: NDArray[Any],
    where: str,
) -> Iterator[Finding]:
    earlier, sure = before.max(axis=1), now.max(axis=1)
    said = [f"{one.mean():.2f}, below 0.5 for {(one < 0.5).mean():.1%}" for one in (sure, earlier)]
    error = np.sqrt(earlier.var() / len(earlier) + sure.var() / len(sure))
    fall = float(earlier.mean() - sure.mean())
    lower = fall > max(_SURE, 2 * error)
    severity: Severity = "warn" if lower else "note"
    word = "less sure" if lower else "about as sure as" if fall > -_SURE else "surer"
    than = "" if word.endswith("as") else " than"
    message = (
        f"the model is {word}{than} on {where}: mean probability of what it names {said[0]}; "
        f"before {said[1]}; those it is least sure of"
    )
    least = np.argsort(sure, kind="stable")[:20]
    listed = [names[some[place]] for place in least]
    details = [f"{sure[place]:.2f}" for place in least]
    yield finding("confidence", severity, message, listed, details=details)


def _accuracy(
    known: tuple[str, ...],
    before: NDArray[Any],
    now: NDArray[Any],
    earlier: list[str],
    truth: list[str],
    where: str,
) -> Iterator[Finding]:
    right, was_right = (
        sum(known[place] == name for place, name in zip(said.argmax(axis=1), names, strict=True))
        for said, names in ((now, truth), (before, earlier))
    )
    (low, high), (was_low, was_high) = (
        probes.wilson(right, len(truth)), probes.wilson(was_right, len(earlier))
    )  # fmt: skip
    worse = high < was_low
    word = "lower than" if worse else "higher than" if low > was_high else "about as"
    message = (
        f"accuracy is {right / len(truth):.3f} ({low:.3f} to {high:.3f}) of {len(truth):,} "
        f"examples, {word} {was_right / len(earlier):.3f} ({was_low:.3f} to {was_high:.3f}) on "
        f"{where}"
    )
    yield Finding("accuracy", "warn" if worse else "note", message, 0, ())
