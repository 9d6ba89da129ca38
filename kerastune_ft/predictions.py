"""Uses a finished run: scores it again, on its own or on other data, and predicts.

run = Run.open("runs/mobilenet")
recipe, split, found = evaluate(run)
found.scores["accuracy"]
for prediction in predict(run, [Path("photo.jpg")]): ...
"""

from __future__ import annotations

import zipfile
from collections.abc import (
    Callable,
    Collection,
    Container,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerastune_ft import (
    data,
    ensembles,
    evaluation,
    quiet,
    recipe_data,
    text_models,
    text_predictions,
)
from kerastune_ft import recipe as recipes
from kerastune_ft.backbones.tokenizers import Tokenizer
from kerastune_ft.checks import relabelling
from kerastune_ft.data import (
    Split,
    Splits,
    feeding,
    images,
    inspection,
    splitting,
    tables,
    tokenizing,
)
from kerastune_ft.data.looks import DIGEST
from kerastune_ft.data.tables import Finding
from kerastune_ft.data.texts import Texts
from kerastune_ft.errors import DataError, KftError, RunError
from kerastune_ft.evaluation import EVALUATORS, Evaluation
from kerastune_ft.recipe import Data, Recipe
from kerastune_ft.runs import Document, Run
from kerastune_ft.tasks import TASKS, Outputs

_Content = TypeVar("_Content")


def load_model(run: Run | str | Path) -> keras.Model:
    """Loads a run's model; that of a run with texts has its `preprocessor`.

    Args:
        run: Or its folder.

    Raises:
        RunError: If there is none yet, or it cannot be read.
    """
    if not isinstance(run, Run):
        run = Run.open(run)
    if run.folds_path.is_dir():
        raise RunError(
            f"run '{run.path}' has no model of its own, but one for every fold; take one of them, "
            f"such as '{run.fold(1).path}'."
        )
    if not run.model_path.is_file():
        raise RunError(f"run '{run.path}' has no model yet; it is {run.state}.")
    try:
        model = keras.models.load_model(run.model_path, compile=False, safe_mode=True)
    except (ValueError, OSError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise RunError(
            f"'{run.model_path}' is damaged: {error}; restore it, or run "
            f"'kft fit {run.recipe_path}' again."
        ) from error
    if run.tokenizer_path.is_file():
        recipe = recipes.load(run.recipe_path)
        tokenizer = tokenizer_of(run)
        assert tokenizer is not None
        model.preprocessor = text_models.preprocessor_of(recipe, tokenizer)
    return model


def evaluate(run: Run, path: str | None = None) -> tuple[Recipe, Split, Evaluation]:
    """Scores a run's model on its test split, or on other data.

    Of a cross-validated run, the models of all folds answer together; without a test split, each
    example is scored by the model that did not see it.

    Args:
        run: A run with a model, or with folds.
        path: A CSV file with the run's columns or, where the task is one class per picture, a
            folder of class sub-folders. All of it is scored or, if it has splits of its own, its
            test split. `None` for the run's own test split (its validation split if it has no
            other), which must not have changed.

    Returns:
        The recipe, what was scored and how it went, with the run's own thresholds.

    Raises:
        DataError: If the data changed, is not of the task's kind, or has a class that the run does
            not know.
        RunError: If a document of the run or its model is missing or damaged.
    """
    recipe, outputs = contract(run)
    folds = members(run, recipe) if recipe.train.folds > 1 else ()
    if path is None:
        split = own_split(run, recipe)
    else:
        split = _other_data(recipe, path, outputs)
        split = replace(split, findings=split.findings + _trained_on(run, recipe, split))
    tuned_here = path is None and split.name == "validation"
    if tuned_here and folds:
        said = out_of_fold(folds, recipe, split, outputs)[0]
        return recipe, split, evaluation.score(said, recipe, split, outputs, tuned_here=True)
    if folds:
        said = together(folds, recipe, split, outputs)
        split = _tokenized(folds[0], recipe, split)
        return recipe, split, evaluation.score(said, recipe, split, outputs)
    split = _tokenized(run, recipe, split)
    model = load_model(run)
    found = evaluation.evaluate(model, recipe, split, outputs, tuned_here=tuned_here)
    return recipe, split, found


def _tokenized(run: Run, recipe: Recipe, split: Split) -> Split:
    """Returns a split of texts as a run reads them, with a finding about those that are cut."""
    tokenizer = tokenizer_of(run)
    if tokenizer is None:
        return split
    tokens, was_cut = tokenizing.tokens_of(split, tokenizer, recipe)
    cut = [name for name, cut in zip(split.names, was_cut, strict=True) if cut]
    findings = split.findings + tokenizing.cut_finding(cut, len(split), recipe)
    return replace(split, content=tokens, findings=findings)


def members(run: Run, recipe: Recipe) -> tuple[Run, ...]:
    """Returns the runs whose models answer together: a run's folds, or the run alone.

    Raises:
        RunError: If a fold is not finished.
    """
    if recipe.train.folds == 1:
        return (run,)
    folds = tuple(run.fold(number) for number in range(1, recipe.train.folds + 1))
    for fold in folds:
        if fold.state != "finished":
            raise RunError(
                f"run '{run.path}': fold {fold.name} is not finished; 'kft resume {run.path}' goes "
                "on with it."
            )
    return folds


def together(folds: Sequence[Run], recipe: Recipe, split: Split, outputs: Outputs) -> Any:
    """Returns what the models of all folds say together of a split; one is loaded at a time."""
    said = [answers(fold, load_model(fold), recipe, split, outputs) for fold in folds]
    return ensembles.joint(said, EVALUATORS[recipe.task.name].average)


def out_of_fold(
    folds: Sequence[Run], recipe: Recipe, pool: Split, outputs: Outputs, test: Split | None = None
) -> tuple[Any, list[int], Any]:
    """Returns what is said of each example by the model that it validated.

    Args:
        folds: All of them.
        recipe: Of the whole run.
        pool: Every example that is not test.
        outputs: What the models return.
        test: What all models are asked about besides, so that each is loaded once.

    Returns:
        Answers; the fold of each example, from 1; and what all say together of `test`.

    Raises:
        RunError: If the folds are not those of these examples.
    """
    row_of = {name: row for row, name in enumerate(pool.names)}
    said: list[Any] = [None] * len(pool)
    numbers = [0] * len(pool)
    of_test = []
    for number, fold in enumerate(folds, 1):
        names, _, parts = splitting.read_splits(fold.splits_path)
        held = [name for name, part in zip(names, parts, strict=True) if part == "validation"]
        if not row_of.keys() >= set(held):
            raise RunError(f"'{fold.splits_path}' is not of these data; restore it.")
        rows = np.sort(np.asarray([row_of[name] for name in held], np.int64))
        part = replace(
            pool,
            names=tuple(pool.names[row] for row in rows),
            labels=pool.labels[rows],
            content=pool.content.take(rows),
        )
        model = load_model(fold)
        for row, answer in zip(rows, answers(fold, model, recipe, part, outputs), strict=True):
            said[row], numbers[row] = answer, number
        if test is not None and len(test):
            of_test.append(answers(fold, model, recipe, test, outputs))
    if not all(numbers):
        raise RunError("the folds leave examples out; restore their splits.csv.")
    how = EVALUATORS[recipe.task.name]
    joint = ensembles.joint(of_test, how.average) if of_test else None
    return (said if how.places else np.stack(said)), numbers, joint


def answers(fold: Run, model: keras.Model, recipe: Recipe, split: Split, outputs: Outputs) -> Any:
    """Returns what a run's model says of a split, read as the run reads it; see `evaluation`."""
    with quiet.untold():
        return evaluation.answers(model, recipe, _tokenized(fold, recipe, split), outputs)


def pooled(recipe: Recipe) -> Splits:
    """Reads the data of a cross-validated run: what is not test is its training split."""
    split = recipe.data.split.model_copy(update={"folds": recipe.train.folds, "fold": None})
    task = TASKS[recipe.task.name]
    return data.load(recipe.data.model_copy(update={"split": split}), task.labels, task.modality)


def tokenizer_of(run: Run) -> Tokenizer | None:
    """Returns the tokenizer of a run that reads texts, None for pictures.

    Raises:
        RunError: If its file is missing or damaged.
    """
    recipe = recipes.load(run.recipe_path)
    if TASKS[recipe.task.name].modality != "text":
        return None
    try:
        return Tokenizer.load(run.tokenizer_path)
    except KftError as error:
        raise RunError(
            f"'{run.tokenizer_path}' is missing or damaged: {error} Restore it, or run "
            f"'kft fit {run.recipe_path}' again."
        ) from error


def predict(
    run: Run,
    paths: Sequence[Path] = (),
    texts: Sequence[str] = (),
    known: Container[str] = (),
) -> Iterator[dict[str, Any]]:
    """Predicts pictures or texts, one after the other, in batches.

    Of a cross-validated run, the models of all folds answer together.

    Args:
        run: A run with a model, or with folds.
        paths: Files, or folders whose files are taken in order of their names, but for strays
            among pictures (`divided`). Of texts: tables with the columns of the run's data, or
            files with a text per line.
        texts: Texts themselves.
        known: Names of examples that are left out, as `path` or `row` has them.

    Yields:
        `path`, or `row` and `text`; what the model says: `predicted`, `probability` of one class,
        `p:<class>` for each class, or `predicted:<target>` for each number; and `error`: None, or
        for a file that is not a readable picture, or no text, the reason, with the figures None.

    Raises:
        DataError: If a path does not exist or there is no file.
    """
    recipe, outputs = contract(run)
    how = EVALUATORS[recipe.task.name]
    runs = members(run, recipe)
    if TASKS[recipe.task.name].modality == "text":
        readers = [(load_model(member), tokenizer_of(member)) for member in runs]
        files = list(files_of(paths))
        speaker = text_predictions.speaker(readers, recipe, outputs)
        yield from text_predictions.predict(speaker, recipe, files, texts, known)
        return
    if texts:
        raise DataError("--text: this run's model sees pictures; give files or folders.")
    found = pictures_of(paths)
    loaded = [load_model(member) for member in runs]
    size, channels = recipe.backbone.side, recipe.backbone.channels

    def say(paths: Sequence[Path]) -> list[Any]:
        pictures: list[np.ndarray | str] = []
        for path in paths:
            try:
                pictures.append(
                    images.decode_file(path, size, recipe.data.resize, channels=channels)
                )
            except DataError as error:
                pictures.append(str(error))
        good = [picture for picture in pictures if not isinstance(picture, str)]
        # One shape for every batch but the last, so that Keras traces once.
        with quiet.untold():
            raw = [_ask(model, np.stack(good)) for model in loaded if good]
        said = iter(how.activate(ensembles.joint(raw, how.average)) if good else ())
        return [one if isinstance(one, str) else next(said) for one in pictures]

    yield from of_pictures(say, found, recipe, outputs, known)


def _ask(model: keras.Model, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns what a model says of a few pictures, a batch as large as Keras makes it."""
    stream = tf.data.Dataset.from_tensor_slices(pictures).batch(32)
    return np.asarray(model.predict(stream.with_options(images.options()), verbose=0))


def of_pictures(
    say: Callable[[Sequence[Path]], list[Any]],
    paths: Sequence[Path],
    recipe: Recipe,
    outputs: Outputs,
    known: Container[str] = (),
) -> Iterator[dict[str, Any]]:
    """Yields a row for each picture file, in batches; see `predict`.

    Args:
        say: Returns for each file probabilities or numbers, or why there are none.
        paths: The files.
        recipe: Of the run.
        outputs: What its model returns.
        known: Files that are left out.
    """
    how = EVALUATORS[recipe.task.name]
    nothing: dict[str, Any] = dict.fromkeys(how.says(np.zeros(len(outputs.names)), outputs))
    wanted = [path for path in paths if str(path) not in known]
    for start in range(0, len(wanted), recipe.data.batch_size):
        names = wanted[start : start + recipe.data.batch_size]
        for path, one in zip(names, say(names), strict=True):
            if isinstance(one, str):
                yield {"path": str(path), **nothing, "error": one}
            else:
                yield {"path": str(path), **how.says(one, outputs), "error": None}


def contract(run: Run) -> tuple[Recipe, Outputs]:
    """Returns a run's recipe and what its model returns.

    Thresholds of labels are those that the run tuned when it was finished; 0.5 before.

    Raises:
        RunError: If a document of the run is missing or damaged.
        RecipeError: If its recipe is no longer valid.
    """
    recipe = recipes.load(run.recipe_path)
    kind = TASKS[recipe.task.name].labels
    outputs = _read(run, "data", lambda record: data.outputs_of(record, kind))
    if run.has("thresholds"):
        thresholds = _read(run, "thresholds", lambda record: _thresholds(record, outputs.names))
        outputs = replace(outputs, thresholds=thresholds)
    return recipe, outputs


def _thresholds(record: Mapping[str, Any], names: Sequence[str]) -> tuple[float, ...]:
    return tuple(float(record["classes"][name]["threshold"]) for name in names)


def _read(run: Run, name: Document, content: Callable[[Mapping[str, Any]], _Content]) -> _Content:
    """Returns the content of a document of a run, or says that it is damaged."""
    try:
        return content(run.read_json(name))
    except (KeyError, TypeError, ValueError) as error:
        missing = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise RunError(
            f"'{run.path / name}.json' is damaged: {missing}; restore it, or run "
            f"'kft fit {run.recipe_path}' again."
        ) from error


def own_split(run: Run, recipe: Recipe) -> Split:
    """Returns the examples that a run kept back: its test split, or its validation split.

    Raises:
        DataError: If the data have changed since the run was trained.
    """
    splits = _own_splits(
        run,
        recipe,
        "so its test split is no longer the one that was held out; score with --data PATH on data "
        "that the run has not seen",
    )
    if recipe.train.folds > 1 and not len(splits.test):
        return replace(splits.train, name="validation")
    return splits.test if len(splits.test) else splits.validation


def training_split(run: Run, recipe: Recipe) -> Split:
    """Returns the examples that a run was trained on; of a cross-validated one, all but the test.

    Raises:
        DataError: If the data have changed since the run was trained.
    """
    return _own_splits(run, recipe, "so nobody knows which examples it saw").train


def _own_splits(run: Run, recipe: Recipe, consequence: str) -> Splits:
    folds = recipe.train.folds > 1
    splits = pooled(recipe) if folds else data.of_survey(recipe.data, relabelling.read(recipe, run))
    recorded = _read(run, "data", lambda record: record["split_fingerprint"])
    if splits.fingerprint != recorded:
        raise DataError(
            f"'{recipe.data.path}' has changed since run '{run.name}' was trained, {consequence}."
        )
    return splits


def _other_data(recipe: Recipe, path: str, outputs: Outputs) -> Split:
    kind, columns = TASKS[recipe.task.name].labels, tables.label_columns(recipe.data)
    if TASKS[recipe.task.name].modality == "text":
        source = text_predictions.source_of(Path(path).expanduser())
        return data.load_all(elsewhere(recipe, source, path), outputs.names, kind, "text")
    if kind != "class" and not Path(path).expanduser().is_file():
        wrong = "is a folder" if Path(path).expanduser().is_dir() else "does not exist"
        expected = tables.first_few([recipe.data.image_column, *columns], 20)
        raise DataError(
            f"--data: this run's task needs a CSV file with the columns {expected}; '{path}' "
            f"{wrong}."
        )
    source = "image_csv" if Path(path).expanduser().is_file() else "image_folder"
    return data.load_all(elsewhere(recipe, source, path), outputs.names, kind)


def _trained_on(run: Run, recipe: Recipe, split: Split) -> tuple[Finding, ...]:
    """Returns a finding about examples of other data that a run was trained on, if there are.

    Or may be: nobody knows where the run's own data have changed or cannot be had.
    """
    try:
        known = set(_contents(training_split(run, recipe)))
    except (KftError, OSError):
        message = (
            "whether the run was trained on some of them is not known: its own data have changed "
            "or cannot be read"
        )
        return (tables.Finding("trained_on", "note", message, 0, ()),)
    pairs = zip(split.names, _contents(split), strict=True)
    names = [name for name, content in pairs if content in known]
    if not names:
        return ()
    message = "examples that the run was trained on, and therefore answers too well"
    return (tables.finding("trained_on", "warn", message, names),)


def _contents(split: Split) -> list[Hashable]:
    """Returns of each example what it is the same by: a digest, or its texts."""
    content = split.content
    if isinstance(content, Texts):
        columns = [content.first, *([content.second] if content.second is not None else [])]
        return list(zip(*columns, strict=True))
    # Inspection keeps the first half of what `feeding` computes where nothing was inspected.
    return [bytes(digest)[:DIGEST] for digest in feeding.digests(split)]


def elsewhere(recipe: Recipe, source: str, path: str) -> Data:
    """Returns a run's `data` section for data that it was not trained on.

    How they are read stays; what divides those of training does not concern them, and their paths
    count from their own folder.
    """
    update = {
        "source": source,
        "path": path,
        "root": None,
        "group_column": None,
        "group_pattern": None,
        "time_column": None,
        "split": recipe_data.Split(validation=0, test=0),
    }
    return recipe.data.model_copy(update=update)


def pictures_of(paths: Collection[Path]) -> list[Path]:
    """Returns files, each once, and those of folders but for strays: see `divided`.

    Raises:
        DataError: If a path does not exist or there is no file.
    """
    found, _ = divided(paths)
    if not found:
        raise DataError("nothing to predict: expected at least one picture or a folder with some.")
    return found


def divided(paths: Collection[Path]) -> tuple[list[Path], list[Path]]:
    """Divides files into pictures and strays: `inspection.is_stray`, in a folder, not given itself.

    Raises:
        DataError: If a path does not exist.
    """
    given, found = set(paths), dict.fromkeys(files_of(paths))
    strays = {file for file in found if file not in given and inspection.is_stray(file)}
    return [f for f in found if f not in strays], [f for f in found if f in strays]


def files_of(paths: Iterable[Path]) -> Iterator[Path]:
    """Yields files, and those of folders in the order of their names, without hidden ones.

    Raises:
        DataError: If a path does not exist.
    """
    for path in paths:
        if path.is_dir():
            yield from sorted(
                file
                for file in path.rglob("*")
                if file.is_file()
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
            )
        elif path.exists():
            yield path
        else:
            raise DataError(f"'{path}': no such file or folder.")
