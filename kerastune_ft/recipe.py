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

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from kerastune_ft import backbones, recipe_checks, recipe_tree
from kerastune_ft.errors import RecipeError
from kerastune_ft.recipe_checks import NAME, SETTINGS

Text = Annotated[str, MinLen(1)]
Count = Annotated[int, Ge(1)]
# NumPy, scikit-learn and Keras all take seeds of 32 bits.
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
Share = Annotated[float, Ge(0), Le(1)]
ShareBelowOne = Annotated[float, Ge(0), Lt(1)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]


def _name_or_settings(value: object) -> str | None:
    if isinstance(value, str):
        return NAME
    return SETTINGS if isinstance(value, Mapping | BaseModel) else None


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Task(_Section):
    """What is learned: head, loss and labels."""

    name: Literal["image_classification", "image_multilabel", "image_regression"] = Field(
        default="image_classification",
        description="One class per picture, any number of classes, or numbers.",
    )
    pooling: Literal["avg", "max", "gem", "token"] = Field(
        default="avg",
        description="How the features of all places become one vector: mean, maximum, the "
        "generalised mean of power 3 between the two, or a transformer's first token.",
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
        description="What image_regression minimises, in standard deviations of each target; "
        "null is mse. The other tasks have one loss.",
    )


class BackboneChoice(_Section):
    """The pre-trained network, its weights and the size of its pictures."""

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
        ".weights.h5 file, or the folder of a former run; null takes the network's first tag.",
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

    @property
    def tag(self) -> str:
        """What `weights` says, or the network's first tag."""
        return self.weights or next(iter(backbones.get(self.name).weights))

    @property
    def side(self) -> tuple[int, int]:
        """Height and width of the pictures the network gets, in pixels."""
        size = self.image_size or backbones.get(self.name).image_size
        return (size, size) if isinstance(size, int) else size

    @property
    def weights_path(self) -> Path | None:
        """Where the weights are if a file or a former run is meant, None for a tag or `none`."""
        if self.tag in {*backbones.get(self.name).weights, "none"}:
            return None
        return Path(self.tag)


class Split(_Section):
    """How examples are divided, where the source has no division of its own."""

    validation: ShareBelowOne = Field(
        default=0.15, description="Share of the examples that early stopping looks at, 0 to 1."
    )
    test: ShareBelowOne = Field(
        default=0.15, description="Share of the examples kept for the final score, 0 to 1."
    )
    stratify: bool = Field(default=True, description="Keep the share of each class in every part.")
    seed: Seed = Field(default=0, description="Decides who goes where; train.seed does not.")


class RandAugment(_Section):
    """Random operations drawn from a fixed list, for every picture anew."""

    num_ops: Annotated[int, Ge(1), Le(10)] = Field(default=2, description="Operations per picture.")
    factor: Share = Field(default=0.3, description="Strength of each operation, 0 to 1.")


class Augment(_Section):
    """Random changes to training pictures; everything is off unless set."""

    horizontal_flip: bool = Field(
        default=False, description="Mirror left and right, half of the time."
    )
    vertical_flip: bool = Field(
        default=False, description="Mirror top and bottom, half of the time."
    )
    rotation: Annotated[float, Ge(0), Le(0.5)] = Field(
        default=0.0, description="Largest rotation either way, as a fraction of a full turn."
    )
    zoom: ShareBelowOne = Field(
        default=0.0, description="Largest zoom in or out, as a share of the side."
    )
    translation: ShareBelowOne = Field(
        default=0.0, description="Largest shift in both directions, as a share of the side."
    )
    contrast: Share = Field(default=0.0, description="Largest change of contrast, 0 to 1.")
    brightness: Share = Field(default=0.0, description="Largest change of brightness, 0 to 1.")
    rand_augment: RandAugment | None = Field(
        default=None, description="Random operations from a fixed list; null is off."
    )
    random_erasing: Share = Field(
        default=0.0, description="Largest part erased, as a share of the picture's area."
    )
    mixup: NotNegative = Field(
        default=0.0,
        description="Alpha of the beta distribution that blends pairs of pictures; 0 is off.",
    )
    cutmix: NotNegative = Field(
        default=0.0, description="Alpha of the beta distribution that pastes patches; 0 is off."
    )


_LIGHT = Augment(horizontal_flip=True, rotation=0.03, zoom=0.1)
_MEDIUM = _LIGHT.model_copy(update={"translation": 0.1, "contrast": 0.2})
_STRONG = {"rand_augment": RandAugment(), "random_erasing": 0.2, "mixup": 0.2}
AUGMENTATIONS: dict[str, Augment] = {
    "none": Augment(),
    "light": _LIGHT,
    "medium": _MEDIUM,
    "strong": _MEDIUM.model_copy(update=_STRONG),
}


class Data(_Section):
    """Where examples come from and what happens to them before the network."""

    source: Literal["image_folder", "image_csv", "tfds", "sklearn"] = Field(
        description="Kind of the data; 'kft ls sources' explains them."
    )
    path: Text = Field(
        description="What to read: a folder of class folders, a CSV file, the name of a TensorFlow "
        "Datasets set or its prepared folder, or a scikit-learn set (digits)."
    )
    image_column: Text = Field(
        default="path", description="Column of the picture's path; image_csv only."
    )
    label_column: Text | tuple[Text, ...] = Field(
        default="label",
        description="Column of the class name, of several names or of the number, as the task "
        "wants; a list for classes marked 0 or 1, or for several numbers. Of image_csv; of tfds "
        "the features that image_regression learns.",
    )
    label_separator: Text = Field(
        default=";",
        description="Between the names where one column holds several; image_multilabel only.",
    )
    batch_size: Count = Field(default=32, description="Examples per training step.")
    split: Split = Field(default=Split(), description="Shares for validation and test.")
    resize: Literal["squash", "crop", "pad"] = Field(
        default="squash",
        description="How a picture gets the network's shape: squash ignores its proportions, crop "
        "cuts the edges off, pad adds bars.",
    )
    augment: Annotated[
        Annotated[Literal["none", "light", "medium", "strong"], Tag(NAME)]
        | Annotated[Augment, Tag(SETTINGS)],
        Discriminator(_name_or_settings),
    ] = Field(
        default="light", description="Random changes to training pictures: a name, or settings."
    )
    on_error: Literal["skip", "stop"] = Field(
        default="skip", description="Leave unreadable examples out and count them, or stop."
    )

    @property
    def augmentation(self) -> Augment:
        """The settings that `augment` stands for."""
        return AUGMENTATIONS[self.augment] if isinstance(self.augment, str) else self.augment


class Optimizer(_Section):
    """The update rule; learning rates belong to the stages."""

    name: Literal[
        "adam", "adamw", "sgd", "rmsprop", "lion", "nadam", "adamax", "adagrad", "adadelta",
        "adafactor",
    ] = Field(default="adamw", description="Keras's optimizer of that name.")  # fmt: skip
    weight_decay: NotNegative | None = Field(
        default=1e-4,
        description="Decoupled weight decay per step, times the learning rate; null is off.",
    )
    momentum: ShareBelowOne | None = Field(
        default=None, description="Momentum, 0 to 1; sgd and rmsprop only."
    )
    nesterov: bool = Field(default=False, description="Nesterov's form of momentum; sgd only.")
    clipnorm: Positive | None = Field(
        default=None, description="Largest norm of each weight's gradient; null is off."
    )
    global_clipnorm: Positive | None = Field(
        default=None, description="Largest norm of all gradients together; null is off."
    )


Schedule = Literal[
    "constant", "linear", "cosine", "polynomial", "exponential", "one_cycle", "step",
    "inverse_sqrt", "plateau",
]  # fmt: skip
BatchNorm = Literal["frozen", "affine", "train"]
Decay = Annotated[float, Gt(0), Le(1)]


class EarlyStopping(_Section):
    """Ends a stage, not the run, when it no longer gets better."""

    monitor: Literal[
        "val_loss", "val_accuracy", "val_auc_pr", "val_mae", "loss", "accuracy", "auc_pr", "mae",
    ] = Field(
        default="val_loss",
        description="What has to get better: the loss, or the task's own metric (accuracy, auc_pr "
        "of image_multilabel, mae of image_regression).",
    )  # fmt: skip
    patience: Count = Field(
        default=3, description="Epochs without improvement before the stage ends."
    )
    min_delta: NotNegative = Field(
        default=0.0, description="Smallest change that counts as better."
    )
    restore_best_weights: bool = Field(
        default=True,
        description="Go on from the best epoch so far, of this stage or one before, not from the "
        "last.",
    )


class Stage(_Section):
    """A span of training with one set of trainable blocks and one learning-rate schedule."""

    name: Text | None = Field(default=None, description="Shown in progress and reports.")
    trainable_blocks: Annotated[int, Ge(-1)] | Text | Annotated[tuple[Text, ...], MinLen(1)] = (
        Field(
            description="Backbone blocks that train beside the head. A number counts from the top: "
            "0 the head alone, -1 all. Names, or regular expressions that match whole names, "
            "choose blocks wherever they are."
        )
    )
    parameters: Literal["all", "biases"] = Field(
        default="all",
        description="What trains in those blocks: everything, or biases and the offsets of "
        "normalisation alone.",
    )
    epochs: Count = Field(description="Passes over the training examples, at most.")
    learning_rate: Positive = Field(description="Highest learning rate of the stage.")
    head_learning_rate: Positive | None = Field(
        default=None, description="Highest learning rate of the head; null is learning_rate."
    )
    schedule: Schedule = Field(
        default="constant",
        description="How the learning rate falls after the warm-up; plateau divides it by 5 when "
        "the monitored figure has not got better for 2 epochs.",
    )
    warmup_epochs: NotNegative = Field(
        default=0.0,
        description="Epochs in which the learning rate rises from 0; fractions are fine.",
    )
    rate_decay: Decay = Field(
        default=1.0,
        description="Learning rate of each block as a share of the one above it; the top block's "
        "is this share of learning_rate.",
    )
    batch_norm: BatchNorm = Field(
        default="frozen",
        description="Whether batch normalisation of unfrozen blocks stays as it is, trains its "
        "scale and offset alone, or moves its statistics too.",
    )
    optimizer: Optimizer | None = Field(
        default=None, description="For this stage alone; null takes train.optimizer."
    )
    early_stopping: Annotated[
        Annotated[Literal["as_train", "off"], Tag(NAME)] | Annotated[EarlyStopping, Tag(SETTINGS)],
        Discriminator(_name_or_settings),
    ] = Field(
        default="as_train",
        description="When this stage ends before its last epoch: as train.early_stopping says, "
        "never, or settings of its own.",
    )


class Strategy(_Section):
    """Writes the list of stages; 'kft plan RECIPE --stages' prints it, to be edited."""

    name: Literal[
        "linear_probe", "full", "lp_ft", "gradual", "progressive", "discriminative", "surgical",
        "bitfit",
    ] = Field(description="'kft ls strategies' explains them.")  # fmt: skip
    epochs: Count = Field(default=10, description="Of all stages together.")
    head_epochs: Count | None = Field(
        default=None,
        description="Of the first stage, which trains the head alone; null is a third of all.",
    )
    blocks: Count | Annotated[tuple[Text, ...], MinLen(1)] | None = Field(
        default=None,
        description="How many blocks from the top train in the end; of surgical, names. null is "
        "all, a quarter of them for gradual and surgical.",
    )
    step: Count | None = Field(
        default=None,
        description="Blocks added per stage of gradual, or by the first of progressive, whose "
        "steps double; null is as few as the epochs allow.",
    )
    learning_rate: Positive = Field(
        default=2e-4, description="Of the first stage that trains blocks of the backbone."
    )
    head_learning_rate: Positive = Field(
        default=1e-3, description="Of stages that train the head alone."
    )
    rate_factor: Decay = Field(
        default=0.8,
        description="Learning rate of each further stage as a share of the one before, as more "
        "becomes trainable.",
    )
    rate_decay: Decay | None = Field(
        default=None,
        description="Stage's rate_decay, per block; null is 0.8 for discriminative, else 1.",
    )
    schedule: Schedule = Field(default="cosine", description="Of stages that train blocks.")
    warmup_epochs: NotNegative = Field(default=0.5, description="Of stages that train blocks.")
    batch_norm: BatchNorm = Field(default="frozen", description="Of every stage.")
    transition: Literal["epochs", "plateau"] = Field(
        default="epochs",
        description="Whether a stage gives way to the next after its epochs, or as soon as "
        "train.early_stopping's figure stops getting better for `patience` epochs.",
    )
    patience: Count = Field(default=2, description="Of transition: plateau, in epochs.")


class Averaging(_Section):
    """Averages of weights, which often generalise better than the last ones."""

    ema: Annotated[float, Gt(0), Lt(1)] | None = Field(
        default=None,
        description="Momentum of an exponential moving average of the weights, which validation "
        "sees and the run keeps; null is off.",
    )
    soup: Count | None = Field(
        default=None,
        description="Greedy soup: average the best so many epochs as long as validation gains; "
        "null is off.",
    )
    wise_ft: Annotated[float, Ge(0), Le(1)] | Literal["auto"] | None = Field(
        default=None,
        description="Go back this share of the way to the weights before the backbone was "
        "touched; auto takes the share with the best validation loss; null is off.",
    )


class Checkpoint(_Section):
    """When the run is saved so that it can be resumed exactly; at the end of a stage always."""

    every_steps: Count | None = Field(default=None, description="Training steps; null is off.")
    every_seconds: Positive | None = Field(default=60.0, description="Seconds; null is off.")
    keep: Annotated[int, Ge(1)] = Field(default=2, description="Newest checkpoints kept.")


class Train(_Section):
    """How the model is trained."""

    seed: Seed = Field(
        default=0, description="Of the head's weights, order, dropout and augmentation."
    )
    optimizer: Optimizer = Field(default=Optimizer(), description="The update rule of every stage.")
    strategy: (
        Annotated[
            Annotated[
                Literal[
                    "linear_probe", "full", "lp_ft", "gradual", "progressive", "discriminative",
                    "surgical", "bitfit",
                ],
                Tag(NAME),
            ]
            | Annotated[Strategy, Tag(SETTINGS)],
            Discriminator(_name_or_settings),
        ]
        | None
    ) = Field(
        default=None, description="Writes the stages, in place of `stages`; a name, or settings."
    )  # fmt: skip
    stages: Annotated[tuple[Stage, ...], MinLen(1)] = Field(
        default=(
            Stage(trainable_blocks=0, epochs=5, learning_rate=1e-3),
            Stage(
                trainable_blocks=4,
                epochs=10,
                learning_rate=1e-4,
                schedule="cosine",
                warmup_epochs=0.5,
            ),
        ),
        description="One after the other, each from the weights of the one before.",
    )
    early_stopping: EarlyStopping | None = Field(
        default=EarlyStopping(), description="When to end a stage early; null never does."
    )
    class_weight: (
        Annotated[
            Annotated[Literal["balanced"], Tag(NAME)]
            | Annotated[dict[str, Positive], Tag(SETTINGS), MinLen(1)],
            Discriminator(_name_or_settings),
        ]
        | None
    ) = Field(
        default=None,
        description="Weight of each class in the loss by name, or balanced; null is 1 for all.",
    )
    l2_sp: Positive | None = Field(
        default=None,
        description="Pull of the backbone's weights towards the pre-trained ones, per step, times "
        "the learning rate; null is off.",
    )
    averaging: Averaging = Field(default=Averaging(), description="Of weights; off unless set.")
    checkpoint: Checkpoint = Field(
        default=Checkpoint(), description="When the run is saved for --resume."
    )
    accumulate_steps: Count = Field(
        default=1,
        description="Batches whose gradients are averaged into one update: the effective batch is "
        "so many times data.batch_size.",
    )
    device: Literal["auto", "cpu", "gpu", "tpu"] = Field(
        default="auto", description="Where training runs; auto takes GPUs if there are some."
    )
    replicas: Count | None = Field(
        default=None,
        description="Devices that share each batch on this machine; null is every GPU, or 1.",
    )
    hosts: Count = Field(
        default=1, description="Machines that share each batch; more than one on JAX alone."
    )
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = Field(
        default="float32", description="Of the computation; weights stay float32."
    )
    deterministic: bool = Field(
        default=True,
        description="The same seed gives the same weights, at some cost in speed on a GPU.",
    )
    tensorboard: bool = Field(
        default=True, description="Write logs for TensorBoard into the run folder."
    )


class Recipe(_Section):
    """Fully describes one run."""

    task: Task = Field(default=Task(), description="What is learned, and the head that learns it.")
    backbone: BackboneChoice = Field(description="The pre-trained network.")
    data: Data = Field(description="Where examples come from.")
    train: Train = Field(default=Train(), description="Seed, optimizer, stages and when they end.")


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Returns the recipe of a file: defaults, overruled by the file, overruled by `overrides`.

    Args:
        path: YAML 1.2, UTF-8.
        overrides: `key=value` with a dotted key; items of a list by index. The value is a YAML
            scalar or flow collection; the last of several for one key counts. A key below
            `data.augment: light` changes that one setting of `light`.

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
    stages = [
        {"trainable_blocks": stage.trainable_blocks, **stage.model_dump(exclude_defaults=True)}
        for stage in recipe.train.stages
    ]
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


def _meant(path: recipe_tree.KeyPath, value: object) -> Any:
    if value is None:
        shape = recipe_checks.at(Recipe, path)
        value = shape.field.get_default() if shape and shape.field else None
    if isinstance(value, str):
        named = AUGMENTATIONS.get(value) if path == ("data", "augment") else None
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
    mistakes += recipe_checks.combinations(recipe_checks.Values(Recipe, raw, wrong))
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
