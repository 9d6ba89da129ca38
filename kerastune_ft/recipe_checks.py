"""Says in plain English what is wrong with a recipe.

`explain` turns what pydantic found into "expected an integer >= 1, got 'five'"; `combinations`
are the checks that need more than one key. Both work on the plain values of a recipe, whatever
else is wrong with it, and know nothing of files and lines.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from kerastune_ft import backbones
from kerastune_ft.backbones import BACKBONES, Backbone
from kerastune_ft.backbones.text import may_be_preset
from kerastune_ft.errors import did_you_mean
from kerastune_ft.recipe_tree import KeyPath

# The tags of "a name or settings" unions; pydantic puts them into locations, `explain` takes them
# out again.
NAME, SETTINGS = "<name>", "<settings>"
_SIGNS = ((Ge, "ge", ">="), (Gt, "gt", ">"), (Le, "le", "<="), (Lt, "lt", "<"))


class Shape(NamedTuple):
    """What may stand at a key: an annotation, its constraints, and the key's field."""

    annotation: Any
    constraints: tuple[Any, ...] = ()
    field: FieldInfo | None = None


def options(shape: Shape) -> list[Shape]:
    """Returns the shapes of a union, or the shape itself; annotations become constraints."""
    origin, arguments = get_origin(shape.annotation), get_args(shape.annotation)
    if origin is Annotated:
        return options(Shape(arguments[0], shape.constraints + arguments[1:]))
    if origin in (Union, UnionType):
        return [option for argument in arguments for option in options(Shape(argument))]
    return [shape]


def _model(shape: Shape) -> type[BaseModel] | None:
    annotation = shape.annotation
    if get_origin(annotation) is None and isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) else None
    return None


def below(shape: Shape, part: str | int) -> Shape | None:
    """Returns the shape of a key, of an item of a list or of a class name, or None."""
    for option in options(shape):
        origin, arguments = get_origin(option.annotation), get_args(option.annotation)
        model = _model(option)
        if model and part in model.model_fields:
            field = model.model_fields[str(part)]
            return Shape(field.annotation, tuple(field.metadata), field)
        if origin is tuple and arguments[-1] is Ellipsis and str(part).isdecimal():
            return Shape(arguments[0])
        if origin is dict:
            return Shape(arguments[1])
    return None


def at(root: type[BaseModel], path: Iterable[str | int]) -> Shape | None:
    """Returns the shape of a whole path, or None."""
    shape: Shape | None = Shape(root)
    for part in path:
        shape = below(shape, part) if shape else None
    return shape


def names(shape: Shape) -> tuple[str, ...]:
    """Returns the names that may stand at a key, such as the optimizers; empty for other keys."""
    return tuple(
        name
        for option in options(shape)
        if get_origin(option.annotation) is Literal
        for name in get_args(option.annotation)
    )


def expected(shape: Shape) -> str:
    """Returns what may stand at a key: `an integer >= 1 or null`."""
    phrases = [_phrase(option) for option in options(shape)]
    if len(phrases) < 3:
        return " or ".join(phrases)
    return ", ".join(phrases[:-1]) + " or " + phrases[-1]


def _phrase(shape: Shape) -> str:
    origin, arguments = get_origin(shape.annotation), get_args(shape.annotation)
    if origin is Literal:
        return f"'{arguments[0]}'" if len(arguments) == 1 else f"one of {', '.join(arguments)}"
    if origin is dict:
        return f"a mapping from name to {expected(Shape(arguments[1]))}"
    if origin is tuple:
        if arguments[-1] is not Ellipsis:
            return f"a list of {len(arguments)}, each {expected(Shape(arguments[0]))}"
        item = expected(Shape(arguments[0]))
        if item.startswith("an "):
            return f"a list, each {item}"
        return f"a list of {item}s".replace("a list of a ", "a list of ")
    if _model(shape):
        return "a mapping"
    nouns = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
    limits = [
        f"{sign} {getattr(limit, name)}"
        for limit in shape.constraints
        for kind, name, sign in _SIGNS
        if isinstance(limit, kind)
    ]
    return f"{nouns.get(shape.annotation, 'null')} {' and '.join(limits)}".rstrip()


def shown(value: object) -> str:
    """Returns a value as a message shows it, in YAML's words and never long."""
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, tuple | list):
        if not value:
            return "an empty list"
        flat = not any(isinstance(item, tuple | list | Mapping) for item in value)
        return f"[{', '.join(map(shown, value))}]" if flat and len(value) <= 4 else "a list"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


class Mistake(NamedTuple):
    """One mistake: the keys it may be blamed on, most likely first, and what to say.

    `spoils` tells whether the value at the first key is unfit for further checks.
    """

    paths: tuple[KeyPath, ...]
    message: str
    spoils: bool = False


def explain(root: type[BaseModel], raw: Any, errors: Sequence[ErrorDetails]) -> Iterator[Mistake]:
    """Yields what pydantic's errors mean to a person.

    Args:
        root: The model that was tried.
        raw: What it was tried on: dicts, tuples and scalars.
        errors: From `ValidationError.errors()`.
    """
    for error in errors:
        path: KeyPath = ()
        shape = Shape(root)
        for part in error["loc"]:
            if part in (NAME, SETTINGS):
                continue
            inner = below(shape, part)
            if inner is None:
                break
            path, shape = (*path, part), inner
        if error["type"] == "extra_forbidden":
            key = str(error["loc"][-1])
            yield Mistake(((*path, key),), _unknown_key(root, shape, path, key))
        elif error["type"] == "missing":
            yield Mistake((path,), f"missing; expected {_needed(shape)}", spoils=True)
        else:
            value = raw
            for part in path:
                value = value[part]
            # One bad item also makes pydantic call its list too short.
            if error["type"] != "too_short" or not value:
                yield Mistake((path,), _unexpected(shape, value), spoils=True)


def _needed(shape: Shape) -> str:
    model = next(filter(None, map(_model, options(shape))), None)
    keys = (
        [key for key, field in model.model_fields.items() if field.is_required()] if model else []
    )
    description = (shape.field.description or "") if shape.field else ""
    if keys:
        return f"a mapping with at least {' and '.join(keys)}"
    return expected(shape) + (f" ({description.rstrip('.')})" if description else "")


def _unexpected(shape: Shape, value: object) -> str:
    message = f"expected {expected(shape)}, got {shown(value)}"
    kinds = {option.annotation for option in options(shape)}
    takes_text = str in kinds and not kinds & {int, float}
    if isinstance(value, str):
        return message + did_you_mean(value, names(shape))
    if takes_text and isinstance(value, int | float):
        return message + "; put it in quotes"
    if value is None and shape.field and not shape.field.is_required():
        return message + "; leave the key out to take its default"
    return message


def _unknown_key(root: type[BaseModel], shape: Shape, path: KeyPath, key: str) -> str:
    here = ".".join(map(str, path))
    model = next(filter(None, map(_model, options(shape))))
    everywhere = list(_all_keys(Shape(root), ""))
    exact = [f"'{name}'" for name in everywhere if name.rpartition(".")[2] == key]
    if exact:
        return f"unknown key here; it belongs at {' or '.join(exact[:4])}"
    near = difflib.get_close_matches(key, list(model.model_fields), n=1, cutoff=0.6)
    if near:
        return f"unknown key; did you mean '{here}{'.' if here else ''}{near[0]}'?"
    elsewhere = {name.rpartition(".")[2]: name for name in reversed(everywhere)}
    near = difflib.get_close_matches(key, list(elsewhere), n=1, cutoff=0.75)
    if near:
        return f"unknown key; did you mean '{elsewhere[near[0]]}'?"
    owner = f"'{here}'" if here else "a recipe"
    return f"unknown key; the keys of {owner} are {', '.join(model.model_fields)}"


def _all_keys(shape: Shape, prefix: str) -> Iterator[str]:
    for option in options(shape):
        model = _model(option)
        for key, field in model.model_fields.items() if model else ():
            yield f"{prefix}{key}"
            yield from _all_keys(Shape(field.annotation), f"{prefix}{key}.")
        if get_origin(option.annotation) is tuple and get_args(option.annotation)[-1] is Ellipsis:
            yield from _all_keys(Shape(get_args(option.annotation)[0]), f"{prefix}N.")


class UnknownError(Exception):
    """What a check wants to look at is itself wrong, and reported already."""


class Values:
    """Looks up values of a recipe of which parts may be wrong, defaults where nothing is written.

    Args:
        root: The recipe's model.
        raw: Dicts, tuples and scalars.
        wrong: Paths of wrong values.
    """

    def __init__(self, root: type[BaseModel], raw: Any, wrong: Iterable[KeyPath]) -> None:
        self.root, self.raw, self.wrong = root, raw, list(wrong)

    def __call__(self, *path: str | int) -> Any:
        """Returns the value at a path; raises `UnknownError` if it is one of the wrong ones."""
        if any(path[: len(wrong)] == wrong for wrong in self.wrong):
            raise UnknownError
        value: Any = self.raw
        shape = Shape(self.root)
        for part in path:
            inner = below(shape, part)
            assert inner is not None, path
            if isinstance(value, BaseModel):
                value = getattr(value, str(part))
            elif isinstance(value, tuple):
                value = value[int(part)]
            elif part in value:
                value = value[part]
            else:
                assert inner.field is not None, path
                value = inner.field.get_default(call_default_factory=True)
            shape = inner
        return value

    def default(self, *path: str | int) -> Any:
        """Returns the default at a path."""
        return Values(self.root, {path[0]: {}}, ())(*path)


def combinations(values: Values) -> Iterator[Mistake]:
    """Yields what is wrong between keys, from every check whose own keys are right."""
    checks: tuple[Callable[[Values], Iterator[Mistake]], ...] = (
        _backbone_name, _weights, _alpha, _side, _split, _optimizers, _stages, _strategy, _monitor,
        _averaging, _devices, _task, _labels,
    )  # fmt: skip
    for check in checks:
        with suppress(UnknownError):
            yield from check(values)


_NAME_PATH: KeyPath = ("backbone", "name")
_WEIGHTS_PATH: KeyPath = ("backbone", "weights")
_ALPHA_PATH: KeyPath = ("backbone", "alpha")


def _row(values: Values) -> Backbone:
    name = values(*_NAME_PATH)
    if name not in BACKBONES:  # a preset of KerasHub is checked when it is loaded
        raise UnknownError
    return BACKBONES[name]


def _is_preset(name: str) -> bool:
    prefix = f"{backbones.HUB}:"
    return name.startswith(prefix) and name != prefix


def _list(items: Iterable[object]) -> str:
    return ", ".join(map(str, items))


def _backbone_name(values: Values) -> Iterator[Mistake]:
    name = values(*_NAME_PATH)
    if _is_preset(name):
        return
    if name not in BACKBONES:
        hint = did_you_mean(name, BACKBONES) or ";"
        message = f"backbone '{name}' is unknown{hint} 'kft ls backbones' lists all"
        yield Mistake((_NAME_PATH,), message)


def _weights(values: Values) -> Iterator[Mistake]:
    name, weights = values(*_NAME_PATH), values(*_WEIGHTS_PATH)
    if weights is None:
        return
    row = backbones.get(name) if _is_preset(name) else _row(values)
    is_path = weights.endswith((".keras", ".weights.h5")) or "/" in weights or "\\" in weights
    weights = weights.removeprefix("none:") if row.language else weights
    if row.language and weights.endswith(".weights.h5"):
        message = f"'{weights}' holds no architecture; give the folder or the .keras file"
        yield Mistake((_WEIGHTS_PATH, _NAME_PATH), message)
        return
    if weights in (*row.weights, "none") or is_path or Path(weights).is_dir():
        return
    if row.language and may_be_preset(weights, row.weights):  # KerasHub knows when it is loaded
        return
    file = "a folder or .keras file" if row.language else "a .keras or .weights.h5 file"
    message = (
        f"backbone '{row.name}' has no '{weights}' weights, and no folder of that name is here; it "
        f"has {_list([*row.weights, 'none'])}, or give {file}{did_you_mean(weights, row.weights)}"
    )
    yield Mistake((_WEIGHTS_PATH, _NAME_PATH), message)


def _alpha(values: Values) -> Iterator[Mistake]:
    row, alpha = _row(values), values(*_ALPHA_PATH)
    if not row.alphas:
        if alpha is not None and row.language is None:
            message = f"backbone '{row.name}' has no width multiplier; leave alpha out"
            yield Mistake((_ALPHA_PATH, _NAME_PATH), message)
        return
    alpha = 1.0 if alpha is None else alpha
    if alpha not in row.alphas:
        expected_alphas = f"expected one of {_list(row.alphas)} for backbone '{row.name}'"
        yield Mistake((_ALPHA_PATH, _NAME_PATH), f"{expected_alphas}, got {alpha}")
        return
    weights = values(*_WEIGHTS_PATH) or next(iter(row.weights))
    facts = row.weights.get(weights)
    if facts and facts.alphas and alpha not in facts.alphas:
        others = [
            f"weights '{tag}' exist for {_list(other.alphas)}"
            for tag, other in row.weights.items()
            if alpha in other.alphas
        ]
        message = (
            f"backbone '{row.name}' has no '{weights}' weights for alpha {alpha}; they exist for "
            f"{_list(facts.alphas)}" + "".join(f"; {other}" for other in others)
        )
        yield Mistake((_ALPHA_PATH, _WEIGHTS_PATH), message)


def _side(values: Values) -> Iterator[Mistake]:
    row, size = _row(values), values("backbone", "image_size")
    if (
        row.language is None
        and size is not None
        and min(size if isinstance(size, tuple) else (size,)) < row.smallest_side
    ):
        message = (
            f"backbone '{row.name}' needs a height and width of at least {row.smallest_side} "
            f"pixels, got {shown(size)}; its usual side is {row.image_size}"
        )
        yield Mistake((("backbone", "image_size"), _NAME_PATH), message)


def _split(values: Values) -> Iterator[Mistake]:
    paths: tuple[KeyPath, ...] = (("data", "split", "validation"), ("data", "split", "test"))
    validation, test = (values(*path) for path in paths)
    if validation + test >= 1:
        message = (
            f"validation {validation} and test {test} leave nothing to train on; "
            "together they must be less than 1"
        )
        yield Mistake(paths, message)


def _stage_count(values: Values) -> int:
    return len(values("train", "stages"))


def _optimizers(values: Values) -> Iterator[Mistake]:
    places: list[KeyPath] = [("train", "optimizer")]
    with suppress(UnknownError):
        places += (("train", "stages", i, "optimizer") for i in range(_stage_count(values)))
    for place in places:
        with suppress(UnknownError):
            clips: list[KeyPath] = [(*place, "global_clipnorm"), (*place, "clipnorm")]
            if values(*place) is not None and all(values(*clip) for clip in clips):
                message = "clip by clipnorm or by global_clipnorm; Keras takes one of them"
                yield Mistake(tuple(clips), message)
        with suppress(UnknownError):
            if values(*place) is None:
                continue
            name, momentum = values(*place, "name"), values(*place, "momentum")
            nesterov = values(*place, "nesterov")
            if momentum is not None and name not in ("sgd", "rmsprop"):
                message = f"optimizer '{name}' has no momentum; sgd and rmsprop have"
                yield Mistake(((*place, "momentum"), (*place, "name")), message)
            if nesterov and name != "sgd":
                message = f"optimizer '{name}' has no nesterov; sgd has"
                yield Mistake(((*place, "nesterov"), (*place, "name")), message)
            elif nesterov and not momentum:
                message = "nesterov needs a momentum, such as momentum: 0.9"
                yield Mistake(((*place, "nesterov"), (*place, "momentum")), message)


def _stages(values: Values) -> Iterator[Mistake]:
    for i in range(_stage_count(values)):
        stage: KeyPath = ("train", "stages", i)
        with suppress(UnknownError):
            warmup, epochs = values(*stage, "warmup_epochs"), values(*stage, "epochs")
            if warmup >= epochs:
                message = f"warmup_epochs must be less than epochs; they are {warmup} and {epochs}"
                yield Mistake(((*stage, "warmup_epochs"), (*stage, "epochs")), message)
        with suppress(UnknownError):
            blocks, row = values(*stage, "trainable_blocks"), _row(values)
            if said := _blocks_mistake(blocks, row, "trainable_blocks"):
                yield Mistake(((*stage, "trainable_blocks"), _NAME_PATH), said)


def _blocks_mistake(blocks: Any, row: Backbone, key: str) -> str | None:
    """Says what is wrong with a choice of blocks, None if nothing is."""
    if not row.cuts:  # of language: as many as the weights say
        return None
    if isinstance(blocks, int):
        if blocks <= len(row.cuts):
            return None
        return (
            f"backbone '{row.name}' has {len(row.cuts)} blocks, got {key} {blocks}; -1 trains all"
        )
    for pattern in (blocks,) if isinstance(blocks, str) else blocks:
        try:
            found = any(re.fullmatch(pattern, cut) for cut in row.cuts)
        except re.error as error:
            return f"{shown(pattern)} is no regular expression: {error}"
        if not found:
            near = did_you_mean(pattern, row.cuts) or ";"
            return (
                f"{shown(pattern)} matches no block of '{row.name}'{near} the blocks are "
                f"{_list(row.cuts)}"
            )
    return None


_STRATEGY_PATH: KeyPath = ("train", "strategy")


def _strategy(values: Values) -> Iterator[Mistake]:
    choice = values(*_STRATEGY_PATH)
    if choice is None:
        return
    if values("train", "stages") != values.default("train", "stages"):
        message = "a strategy writes the stages; leave one of the two out"
        yield Mistake((_STRATEGY_PATH, ("train", "stages")), message)
    if isinstance(choice, str):
        return
    with suppress(UnknownError):
        blocks, row = values(*_STRATEGY_PATH, "blocks"), _row(values)
        path: KeyPath = (*_STRATEGY_PATH, "blocks")
        if blocks is not None and (said := _blocks_mistake(blocks, row, "blocks")):
            yield Mistake((path, _NAME_PATH), said)
        name = values(*_STRATEGY_PATH, "name")
        if isinstance(blocks, tuple) and name in ("gradual", "progressive"):
            message = f"{name} counts blocks from the top; surgical takes names"
            yield Mistake((path,), message)
    with suppress(UnknownError):
        plateau = values(*_STRATEGY_PATH, "transition") == "plateau"
        if plateau and values("train", "early_stopping") is None:
            message = "plateau needs train.early_stopping to say what is watched"
            yield Mistake(((*_STRATEGY_PATH, "transition"), ("train", "early_stopping")), message)


def _averaging(values: Values) -> Iterator[Mistake]:
    folds = values("train", "folds") > 1 or values("data", "split", "folds")
    if folds or values("data", "source") != "sklearn" or values("data", "split", "validation") > 0:
        return
    for key, needs in (("soup", True), ("wise_ft", values("train", "averaging", "wise_ft"))):
        if values("train", "averaging", key) is not None and needs in (True, "auto"):
            message = "weights are compared on validation, but data.split.validation is 0"
            path: KeyPath = ("train", "averaging", key)
            yield Mistake((path, ("data", "split", "validation")), message)


def _devices(values: Values) -> Iterator[Mistake]:
    size, replicas = values("data", "batch_size"), values("train", "replicas") or 1
    shares = replicas * values("train", "hosts")
    if size % shares:
        message = (
            f"{shares} devices share each batch of {size}; expected a multiple, such as "
            f"{(size // shares + 1) * shares}"
        )
        yield Mistake((("data", "batch_size"), ("train", "replicas"), ("train", "hosts")), message)


def _monitor(values: Values) -> Iterator[Mistake]:
    # Others may bring a validation split of their own, and folds make one.
    folds = values("train", "folds") > 1 or values("data", "split", "folds")
    if folds or values("data", "source") != "sklearn" or values("data", "split", "validation") > 0:
        return
    for place in _stoppings(values):
        with suppress(UnknownError):
            monitor = values(*place, "monitor")
            if monitor.startswith("val_"):
                message = f"early stopping monitors '{monitor}', but data.split.validation is 0; "
                message += "monitor 'loss' or 'accuracy', or set train.early_stopping to null"
                yield Mistake(((*place, "monitor"), ("data", "split", "validation")), message)


_TASK_PATH: KeyPath = ("task", "name")
_METRICS = {"multilabel": "auc_pr", "regression": "mae"}


def _task(values: Values) -> Iterator[Mistake]:
    """What a task has no use for."""
    task = values(*_TASK_PATH)
    regression = task.endswith("_regression")
    with suppress(UnknownError):
        row = _row(values)
        if values("task", "pooling") == "token" and row.language is None:
            message = f"'{row.name}' has a map of features and no token; expected avg, max or gem"
            yield Mistake((("task", "pooling"), _NAME_PATH), message)
    with suppress(UnknownError):
        if values("task", "loss") is not None and not regression:
            message = f"task '{task}' has one loss; regression has several"
            yield Mistake((("task", "loss"), _TASK_PATH), message)
    with suppress(UnknownError):
        if values("task", "label_smoothing") and regression:
            message = "numbers have no classes to spread over; leave label_smoothing out"
            yield Mistake((("task", "label_smoothing"), _TASK_PATH), message)
    with suppress(UnknownError):
        if values("train", "class_weight") is not None and regression:
            message = "numbers have no classes; leave class_weight out"
            yield Mistake((("train", "class_weight"), _TASK_PATH), message)
    with suppress(UnknownError):
        augment = values("data", "augment")
        if not isinstance(augment, str) and regression and values("data", "augment", "cutmix"):
            message = "a patch of another picture does not change a number in proportion; use mixup"
            yield Mistake((("data", "augment", "cutmix"), _TASK_PATH), message)
    for place in _stoppings(values):
        with suppress(UnknownError):
            path: KeyPath = (*place, "monitor")
            metric = values(*path).removeprefix("val_")
            own = _METRICS.get(task.rpartition("_")[2], "accuracy")
            if metric not in ("loss", own):
                message = f"task '{task}' has no '{metric}'; monitor val_loss or val_{own}"
                yield Mistake((path, _TASK_PATH), message)


def _stoppings(values: Values) -> Iterator[KeyPath]:
    """Yields where settings of early stopping stand: for all stages, and for single ones."""
    with suppress(UnknownError):
        if values("train", "early_stopping") is not None:
            yield ("train", "early_stopping")
    for i in range(_stage_count(values)):
        with suppress(UnknownError):
            if not isinstance(values("train", "stages", i, "early_stopping"), str):
                yield ("train", "stages", i, "early_stopping")


def _labels(values: Values) -> Iterator[Mistake]:
    """Whether the source can say what the task learns."""
    task, source = values(*_TASK_PATH), values("data", "source")
    if not task.startswith("image_"):
        return  # `recipe_text` knows
    if source not in ("image_folder", "sklearn", "image_csv", "tfds"):
        return
    if task != "image_classification" and source not in ("image_csv", "tfds"):
        message = f"source '{source}' gives one class per picture; {task} needs image_csv or tfds"
        yield Mistake((("data", "source"), _TASK_PATH), message)
    columns = values("data", "label_column")
    if isinstance(columns, tuple):
        if task == "image_classification":
            message = "image_classification reads one column; image_multilabel reads several"
            yield Mistake((("data", "label_column"), _TASK_PATH), message)
        elif source == "tfds" and task == "image_multilabel":
            message = "a set of TensorFlow Datasets lists its labels itself; leave label_column out"
            yield Mistake((("data", "label_column"), ("data", "source")), message)
        elif not columns or len(set(columns)) < len(columns):
            message = "expected one or more columns, each once"
            yield Mistake((("data", "label_column"),), message)
