"""Reads recipes: a YAML file and command-line overrides become one frozen `Recipe`.

Every mistake is reported at once, with its line. Refuses unknown keys, duplicate keys, YAML tags
and values of a wrong type: nothing is converted, but a whole number may stand for a number. Never
imports Keras, reads no data and asks no network: checks that need those come later.

    recipe = recipe.load("recipes/mobilenet.yaml", ["train.seed=3", "train.stages.0.epochs=2"])
    recipe.train.stages[0].learning_rate        # 0.001
    recipe.dump(recipe)                         # every default written out, loadable again
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge
from pydantic import BaseModel, Field, ValidationError

from kerastune_ft import (
    backbones,
    recipe_checks,
    recipe_data,
    recipe_export,
    recipe_text,
    recipe_tree,
)
from kerastune_ft.errors import RecipeError
from kerastune_ft.recipe_data import AUGMENTATIONS as AUGMENTATIONS
from kerastune_ft.recipe_data import TEXT_AUGMENTATIONS as TEXT_AUGMENTATIONS
from kerastune_ft.recipe_data import Augment as Augment
from kerastune_ft.recipe_data import Cleaning as Cleaning
from kerastune_ft.recipe_data import Data as Data
from kerastune_ft.recipe_data import RandAugment as RandAugment
from kerastune_ft.recipe_data import Split as Split
from kerastune_ft.recipe_data import TextAugment as TextAugment
from kerastune_ft.recipe_data import TextCleaning as TextCleaning
from kerastune_ft.recipe_export import Export as Export
from kerastune_ft.recipe_training import Averaging as Averaging
from kerastune_ft.recipe_training import Checkpoint as Checkpoint
from kerastune_ft.recipe_training import EarlyStopping as EarlyStopping
from kerastune_ft.recipe_training import Optimizer as Optimizer
from kerastune_ft.recipe_training import Stage as Stage
from kerastune_ft.recipe_training import Strategy as Strategy
from kerastune_ft.recipe_training import Train as Train
from kerastune_ft.recipe_values import (
    Count,
    Positive,
    Section,
    ShareBelowOne,
    Text,
)


class Task(Section):
    """What is learned: head, loss and labels."""

    name: Literal[
        "image_classification", "image_multilabel", "image_regression", "text_classification",
        "text_pair_classification", "text_multilabel", "text_regression", "token_classification",
        "text_to_text", "text_generation",
    ] = Field(
        default="image_classification",
        description="What is learned; 'kft ls tasks' explains each.",
    )  # fmt: skip
    pooling: Literal["avg", "max", "gem", "token", "last"] | None = Field(
        default=None,
        description="How the features of all places become one vector: mean, maximum, the "
        "generalised mean of power 3 between the two, a transformer's first token, or its last; "
        "null is what suits the weights, avg of pictures.",
    )
    hidden: tuple[Count, ...] = Field(
        default=(), description="Widths of dense ReLU layers between the features and the output."
    )
    dropout: ShareBelowOne = Field(
        default=0.2,
        description="Share of the features dropped before each dense layer in training, 0 to 1.",
    )
    label_smoothing: ShareBelowOne = Field(
        default=0.0, description="Share of each label spread evenly over all classes, 0 to 1."
    )
    loss: Literal["mse", "mae", "huber"] | None = Field(
        default=None,
        description="What a regression minimises, in standard deviations of each target; "
        "null is mse. The other tasks have one loss.",
    )
    learn_prompt: bool = Field(
        default=False,
        description="Whether text_generation learns data.text_column as well, or what follows it "
        "alone.",
    )
    beams: Count = Field(
        default=1,
        description="Beginnings that text_to_text and text_generation follow at once when they "
        "write; 1 always takes the likeliest token.",
    )
    max_new_tokens: Count = Field(
        default=64, description="The longest text that is written for scores and samples."
    )


class BackboneChoice(Section):
    """The pre-trained network, its weights and the size of its pictures or texts."""

    name: str = Field(
        description="Pre-trained network: a name of 'kft ls backbones', or keras_hub: and the name "
        "or folder of a KerasHub preset.",
        json_schema_extra={
            "anyOf": [{"enum": list(backbones.BACKBONES)}, {"pattern": "^keras_hub:.+"}]
        },
    )
    weights: Text | None = Field(
        default=None,
        description="A tag of the network (imagenet, ...), none for random weights, a .keras or "
        ".weights.h5 file, or the folder of a former run; null takes the network's first tag. Of "
        "language: a preset of KerasHub, its address (kaggle://, hf://) or folder, a folder of "
        "Hugging Face's, none for a tiny random network, none:WEIGHTS for a random one of a size.",
    )
    image_size: Count | tuple[Count, Count] | None = Field(
        default=None,
        description="Side, or [height, width], in pixels; null takes the network's usual side.",
    )
    channels: Count = Field(
        default=3,
        description="Of the pictures: 1 is grey, 3 is RGB, others are read from .npy files. The "
        "first convolution is summed or averaged to fit.",
    )
    alpha: Positive | None = Field(
        default=None, description="Width multiplier of networks that have one; null is 1.0."
    )
    sequence_length: Count | None = Field(
        default=None,
        description="The most tokens of a text that a network of language sees; batches of shorter "
        "texts are shorter. null takes the network's usual length.",
    )
    dropout: ShareBelowOne = Field(
        default=0.1, description="Inside unfrozen blocks of a network of language, 0 to 1."
    )
    reinitialize_blocks: Annotated[int, Ge(0)] = Field(
        default=0,
        description="Blocks from the top that begin with random weights, which can help when a "
        "network of language has few examples.",
    )

    @property
    def tag(self) -> str:
        """What `weights` says, or the network's first tag."""
        return self.weights or next(iter(backbones.get(self.name).weights), "none")

    @property
    def side(self) -> tuple[int, int]:
        """Height and width of the pictures the network gets, in pixels."""
        size = self.image_size or backbones.get(self.name).image_size
        return (size, size) if isinstance(size, int) else size

    @property
    def weights_path(self) -> Path | None:
        """Where the weights are if a file or a former run is meant, None for a tag or `none`."""
        tag = self.tag
        if tag in {*backbones.get(self.name).weights, "none"} or tag.startswith("none:"):
            return None
        if "://" in tag:
            return None
        return Path(self.tag)


class Recipe(Section):
    """Fully describes one run."""

    task: Task = Field(default=Task(), description="What is learned, and the head that learns it.")
    backbone: BackboneChoice = Field(description="The pre-trained network.")
    data: Data = Field(description="Where examples come from.")
    train: Train = Field(default=Train(), description="Seed, optimizer, stages and when they end.")
    export: Export = Field(default=Export(), description="What is written for servers, devices.")


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Returns the recipe of a file: defaults, overruled by the file, overruled by `overrides`.

    Args:
        path: YAML 1.2, UTF-8.
        overrides: `key=value` with a dotted key; items of a list by index. The value is a YAML
            scalar or flow collection; the last of several for one key counts. A key below
            `data.augment: light` changes that one setting of `light`. A strategy takes the place
            of the file's stages, and stages that of its strategy.

    Raises:
        RecipeError: With every problem found.
    """
    source = str(path)
    problems: list[recipe_tree.Problem] = []
    tree = recipe_tree.parse(_read(Path(path)), source, problems)
    if tree is None or not isinstance(tree.value, dict):
        value = None if tree is None else recipe_tree.plain(tree)
        got = "is empty" if value is None else f"holds {recipe_checks.shown(value)}"
        keys = ", ".join(Recipe.model_fields)
        raise RecipeError([f"{source}: {got}; a recipe is a mapping of {keys}. {_LIST_RECIPES}."])
    _make_way(tree, overrides)
    for text in overrides:
        tree = recipe_tree.override(tree, text, _meant, _takes_text_alone, problems)
    return _resolve(tree, source, problems)


def from_mapping(mapping: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Returns the recipe of a Python mapping, checked as a file is.

    Args:
        mapping: Nested mappings, lists or tuples, and scalars; paths may be `Path`.
        source: Named in error messages.

    Raises:
        RecipeError: With every problem found.
    """
    problems: list[recipe_tree.Problem] = []
    place = recipe_tree.Place(0, source)
    if not isinstance(mapping, Mapping):
        raise RecipeError([f"{source}: expected a mapping, got {recipe_checks.shown(mapping)}."])
    return _resolve(recipe_tree.tree_of(mapping, place, problems), source, problems)


def dump(recipe: Recipe) -> str:
    """Returns YAML with every default written out; loading it gives an equal recipe."""
    return "\n".join(recipe_tree.emit(recipe.model_dump())) + "\n"


def dump_stages(recipe: Recipe) -> str:
    """Returns the stages as YAML, to stand below `train:`; what has its default is left out."""
    stages = tuple(
        {"trainable_blocks": stage.trainable_blocks, **stage.model_dump(exclude_defaults=True)}
        for stage in recipe.train.stages
    )
    return "\n".join(recipe_tree.emit({"train": {"stages": stages}})) + "\n"


def json_schema() -> dict[str, Any]:
    """Returns the JSON Schema (draft 2020-12) from which editors complete and explain keys."""
    draft = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": draft, **Recipe.model_json_schema()}


def fingerprint(recipe: Recipe) -> str:
    """Returns the sha256 of the recipe's canonical JSON: equal recipes, equal fingerprints."""
    text = json.dumps(recipe.model_dump(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def choices(key: str) -> tuple[str, ...]:
    """Returns the names a key can take, such as those of `train.optimizer.name`.

    Raises:
        KeyError: If there is no such key.
    """
    shape = recipe_checks.at(Recipe, key.split("."))
    if shape is None:
        raise KeyError(key)
    return recipe_checks.names(shape)


def packaged() -> dict[str, Path]:
    """Returns the recipes that come with the package, by name."""
    from importlib.util import find_spec

    spec = find_spec("kerastune_ft.recipes")
    # In a checkout that is not installed, the folder lies beside the package, not in it.
    inside = list(spec.submodule_search_locations or ()) if spec else []
    folder = Path(inside[0]) if inside else Path(__file__).parents[1] / "recipes"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


_LIST_RECIPES = "'kft ls recipes' lists those that come with kft"


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"not a recipe: byte {error.start} is not UTF-8. Save the file as UTF-8 text"
    except IsADirectoryError:
        files = sorted(path.glob("*.yaml"))
        message = "a folder; name the YAML file" + (f", such as '{files[0]}'" if files else "")
    except (FileNotFoundError, NotADirectoryError):
        # A bare name, or one without its ending, is most often a packaged recipe.
        known = {file.name: file for file in sorted(path.parent.glob("*.y*ml"))}
        known = {**packaged(), **known} if path.suffix else {**known, **packaged()}
        names = difflib.get_close_matches(path.name, known, n=1)
        near = "".join(f"; did you mean '{known[name]}'?" for name in names)
        message = f"no such file{near or ';'} {_LIST_RECIPES}"
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
    raise RecipeError([f"{path}: {message}."])


def _make_way(tree: recipe_tree.Node, overrides: Sequence[str]) -> None:
    """Takes out of a file what the command line puts another thing in the place of."""
    keys = {text.partition("=")[0] for text in overrides}
    named = {key for key in ("strategy", "stages") if any(_is_below(k, key) for k in keys)}
    train = tree.value.get("train")
    if len(named) == 1 and train is not None and isinstance(train.value, dict):
        (other,) = {"strategy", "stages"} - named
        train.value.pop(other, None)


def _is_below(key: str, part: str) -> bool:
    return key == f"train.{part}" or key.startswith(f"train.{part}.")


def _meant(path: recipe_tree.KeyPath, value: object) -> Any:
    if value is None:
        shape = recipe_checks.at(Recipe, path)
        value = shape.field.get_default() if shape and shape.field else None
    if isinstance(value, str):
        tables: dict[recipe_tree.KeyPath, Mapping[str, BaseModel]] = {
            ("data", "augment"): AUGMENTATIONS,
            ("data", "text_augment"): TEXT_AUGMENTATIONS,
        }
        named = tables.get(path, {}).get(value)
        return named and named.model_dump()
    return [item.model_dump() for item in value] if isinstance(value, tuple) else None


def _takes_text_alone(path: recipe_tree.KeyPath) -> bool:
    shape = recipe_checks.at(Recipe, path)
    kinds = {option.annotation for option in recipe_checks.options(shape)} if shape else set()
    return str in kinds and kinds <= {str, type(None)}


def _resolve(tree: recipe_tree.Node, source: str, problems: list[recipe_tree.Problem]) -> Recipe:
    raw = recipe_tree.plain(tree)
    mistakes: list[recipe_checks.Mistake] = []
    recipe = None
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        mistakes += recipe_checks.explain(Recipe, raw, found)
    wrong = [mistake.paths[0] for mistake in mistakes if mistake.spoils]
    values = recipe_checks.Values(Recipe, raw, wrong)
    for module in (recipe_checks, recipe_text, recipe_data, recipe_export):
        mistakes += module.combinations(values)
    for mistake in mistakes:
        place, path = _blame(tree, source, mistake.paths)
        problems.append(recipe_tree.Problem(place, ".".join(map(str, path)), mistake.message))
    if problems:
        raise RecipeError(dict.fromkeys(str(problem) for problem in sorted(problems)))
    assert recipe is not None
    return recipe


def _blame(
    tree: recipe_tree.Node, source: str, paths: Sequence[recipe_tree.KeyPath]
) -> tuple[recipe_tree.Place, recipe_tree.KeyPath]:
    """Returns the place and key to name: what the command line wrote, else what is written."""
    found = [(recipe_tree.descend(tree, path), path) for path in paths]
    written = [(node.place, path) for (node, steps), path in found if steps == len(path)]
    for place, path in written:
        if place is recipe_tree.COMMAND_LINE:
            return place, path
    if written:
        return written[0]
    (node, steps), path = found[0]
    # The root's own line says nothing: a section that is missing has no line.
    return (node.place if steps else recipe_tree.Place(0, source)), path
