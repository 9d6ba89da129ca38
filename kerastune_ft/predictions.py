"""Uses a finished run: scores it again, on its own or on other data, and predicts.

run = Run.open("runs/mobilenet")
evaluate(run).scores["accuracy"]
for prediction in predict(run, [Path("photo.jpg")]): ...
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kerastune_ft import data, evaluation
from kerastune_ft import recipe as recipes
from kerastune_ft.data import Split, images
from kerastune_ft.errors import DataError, RunError
from kerastune_ft.evaluation import Evaluation
from kerastune_ft.recipe import Recipe
from kerastune_ft.runs import Run


def load_model(run: Run) -> keras.Model:
    """Loads a run's model.

    Raises:
        RunError: If there is none yet, or it cannot be read.
    """
    if not run.model_path.is_file():
        raise RunError(f"run '{run.path}' has no model yet; it is {run.state}.")
    try:
        return keras.models.load_model(run.model_path, compile=False, safe_mode=True)
    except (ValueError, OSError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise RunError(
            f"'{run.model_path}' is damaged: {error}; restore it, or run "
            f"'kft fit {run.recipe_path}' again."
        ) from error


def evaluate(run: Run, path: str | None = None) -> tuple[Recipe, Split, Evaluation]:
    """Scores a run's model on its test split, or on other data.

    Args:
        run: A run with a model.
        path: A folder of class sub-folders or a CSV file with the run's label column. All of it
            is scored or, if it has splits of its own, its test split. `None` for the run's own
            test split (its validation split if it has no other), which must not have changed.

    Returns:
        The recipe, what was scored and how it went.

    Raises:
        DataError: If the data changed, or has a class that the run does not know.
    """
    recipe, class_names = _contract(run)
    split = _own_split(run, recipe) if path is None else _other_data(recipe, path, class_names)
    return recipe, split, evaluation.evaluate(load_model(run), recipe, split, class_names)


def predict(run: Run, paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Predicts pictures, one after the other, in batches.

    Args:
        run: A run with a model.
        paths: Files, or folders whose files are taken in order of their names.

    Yields:
        `path`, `predicted`, `probability`, `p:<class>` for each class, and `error`: None, or for
        a file that is not a readable picture the reason, with the figures None.

    Raises:
        DataError: If a path does not exist or there is no file.
    """
    recipe, class_names = _contract(run)
    found = list(_files(paths))
    if not found:
        raise DataError("nothing to predict: expected at least one file or a folder with files.")
    model = load_model(run)
    size = recipe.backbone.side
    columns = ("path", "predicted", "probability", *(f"p:{name}" for name in class_names))
    nothing: dict[str, Any] = dict.fromkeys(columns)
    for start in range(0, len(found), recipe.data.batch_size):
        names = found[start : start + recipe.data.batch_size]
        pictures: list[np.ndarray | str] = []
        for path in names:
            try:
                pictures.append(images.decode_file(path, size, recipe.data.resize))
            except DataError as error:
                pictures.append(str(error))
        good = [picture for picture in pictures if not isinstance(picture, str)]
        # One shape for every batch but the last, so that Keras traces once.
        shares = iter(
            evaluation.probabilities(np.asarray(model.predict(np.stack(good), verbose=0)))
            if good
            else ()
        )
        for path, picture in zip(names, pictures, strict=True):
            if isinstance(picture, str):
                yield {**nothing, "path": str(path), "error": picture}
            else:
                row = evaluation.prediction_row(str(path), next(shares), class_names)
                yield {**row, "error": None}


def _contract(run: Run) -> tuple[Recipe, tuple[str, ...]]:
    return recipes.load(run.recipe_path), tuple(run.read_json("data")["class_names"])


def _own_split(run: Run, recipe: Recipe) -> Split:
    splits = data.load(recipe.data)
    recorded = run.read_json("data")["split_fingerprint"]
    if splits.fingerprint != recorded:
        raise DataError(
            f"'{recipe.data.path}' has changed since run '{run.name}' was trained, so its test "
            "split is no longer the one that was held out; score with --data PATH on data that "
            "the run has not seen."
        )
    return splits.test if len(splits.test.labels) else splits.validation


def _other_data(recipe: Recipe, path: str, class_names: tuple[str, ...]) -> Split:
    source = "image_csv" if Path(path).is_file() else "image_folder"
    return data.load_all(
        recipe.data.model_copy(update={"source": source, "path": path}), class_names
    )


def _files(paths: Iterable[Path]) -> Iterator[Path]:
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
