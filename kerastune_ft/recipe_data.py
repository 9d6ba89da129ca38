"""The `data` section of a recipe."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Annotated, Literal

from annotated_types import Ge, Le, MinLen
from pydantic import Discriminator, Field, Tag

from kerastune_ft.recipe_checks import NAME, SETTINGS, Mistake, UnknownError, Values
from kerastune_ft.recipe_values import (
    Count,
    NotNegative,
    Positive,
    Section,
    Seed,
    Share,
    ShareBelowOne,
    Text,
    name_or_settings,
)


class Split(Section):
    """How examples are divided, where the source has no division of its own."""

    validation: ShareBelowOne = Field(
        default=0.15, description="Share of the examples that early stopping looks at, 0 to 1."
    )
    test: ShareBelowOne = Field(
        default=0.15, description="Share of the examples kept for the final score, 0 to 1."
    )
    stratify: bool = Field(default=True, description="Keep the share of each class in every part.")
    seed: Seed = Field(default=0, description="Decides who goes where; train.seed does not.")
    keep_together: Literal["none", "copies", "near"] = Field(
        default="copies",
        description="What is not divided: nothing, examples of the same content, or also pictures "
        "and texts that are nearly the same.",
    )
    fewest_per_class: Annotated[int, Ge(0)] = Field(
        default=0,
        description="Examples of each class that every part has at least, or an error says which "
        "has fewer; training always has one.",
    )
    file: Text | None = Field(
        default=None,
        description="A splits.csv of 'kft data split' or of a run that says who goes where; it "
        "must fit the data.",
    )
    folds: Annotated[int, Ge(2)] | None = Field(
        default=None,
        description="Parts that what is not test is cut into; one of them, `fold`, validates. "
        "train.folds sets both.",
    )
    fold: Annotated[int, Ge(1)] | None = Field(
        default=None, description="Which of the folds validates, from 1."
    )


class TextCleaning(Section):
    """What is mended in every text before it is read; predictions mend theirs alike."""

    unicode: Literal["none", "nfc", "nfkc"] = Field(
        default="none",
        description="Normal form: nfc joins letters and their accents, nfkc also replaces "
        "ligatures, wide letters and the like.",
    )
    whitespace: bool = Field(
        default=False, description="Make one space of many, and remove those at the ends."
    )
    html: bool = Field(
        default=False, description="Remove tags such as <br> and resolve entities such as &amp;."
    )
    control: bool = Field(
        default=False,
        description="Remove control characters, zero-width ones and byte order marks.",
    )
    mojibake: bool = Field(
        default=False, description="Repair text that was decoded with a wrong encoding (ftfy)."
    )


class Cleaning(Section):
    """What is left out or mended before the data is divided; no file is changed."""

    duplicates: Literal["keep", "first", "drop"] = Field(
        default="keep",
        description="Of examples with the same content and label: keep all, keep the first, or "
        "leave all of them out.",
    )
    near_duplicates: Literal["keep", "first"] = Field(
        default="keep",
        description="Of pictures or texts that are nearly the same and have one label: keep all, "
        "or the first.",
    )
    conflicting_labels: Literal["keep", "drop"] = Field(
        default="keep",
        description="Examples with the same content and different labels: keep them, or leave "
        "them out.",
    )
    suspected_labels: Literal["keep", "drop", "relabel"] = Field(
        default="keep",
        description="Training examples whose label a probe on frozen features holds for wrong: "
        "keep them, leave them out, or give them the label it holds for right.",
    )
    blank: Literal["keep", "drop"] = Field(default="keep", description="Pictures of one colour.")
    label_spelling: Literal["keep", "merge"] = Field(
        default="keep",
        description="Class names that differ in case, spaces or Unicode form alone: keep them "
        "apart, or give all the commonest spelling.",
    )
    rename_labels: dict[str, Text] = Field(
        default={}, description="Other names of classes: {Catt: cat}; two may become one."
    )
    missing_label: Literal["drop", "most_frequent", "constant"] = Field(
        default="drop",
        description="Examples without a label: leave them out, give them the commonest label (of "
        "numbers the median), or `missing_label_value`.",
    )
    missing_label_value: Text = Field(
        default="missing",
        description="Of missing_label: constant; a class of its own unless there is one so called.",
    )
    missing_text: Literal["drop", "most_frequent", "constant"] = Field(
        default="drop",
        description="Rows without a text: leave them out, give them the commonest text, or "
        "`missing_text_value`.",
    )
    missing_text_value: Text = Field(default="(empty)", description="Of missing_text: constant.")
    fewest_per_class: Annotated[int, Ge(0)] = Field(
        default=0, description="Classes with fewer examples are left out; 0 leaves none out."
    )
    exclude: Text | None = Field(
        default=None,
        description="A CSV file with a column `name` of examples to leave out, such as the "
        "NAME-quarantine.csv of 'kft data clean'.",
    )
    text: TextCleaning = Field(default=TextCleaning(), description="What is mended in texts.")


class RandAugment(Section):
    """Random operations drawn from a fixed list, for every picture anew."""

    num_ops: Annotated[int, Ge(1), Le(10)] = Field(default=2, description="Operations per picture.")
    factor: Share = Field(default=0.3, description="Strength of each operation, 0 to 1.")


class Augment(Section):
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


class TextAugment(Section):
    """Random changes to training texts, word by word; everything is off unless set."""

    word_dropout: ShareBelowOne = Field(
        default=0.0, description="Share of the words left out; one always stays."
    )
    word_swap: ShareBelowOne = Field(
        default=0.0, description="Share of the words that change places with their neighbour."
    )
    word_repetition: ShareBelowOne = Field(
        default=0.0, description="Share of the words that are said twice."
    )
    word_insertion: ShareBelowOne = Field(
        default=0.0,
        description="Words put in anywhere, as a share of the text's own; drawn from the text.",
    )
    typos: ShareBelowOne = Field(
        default=0.0, description="Share of the words in which two letters change places."
    )


_TEXT_LIGHT = TextAugment(word_dropout=0.05, word_swap=0.02)
_TEXT_MEDIUM = TextAugment(word_dropout=0.1, word_swap=0.05, word_insertion=0.05)
TEXT_AUGMENTATIONS: dict[str, TextAugment] = {
    "none": TextAugment(),
    "light": _TEXT_LIGHT,
    "medium": _TEXT_MEDIUM,
    "strong": TextAugment(word_dropout=0.2, word_swap=0.1, word_insertion=0.1, typos=0.05),
}


class Data(Section):
    """Where examples come from and what happens to them before the network."""

    source: Literal[
        "image_folder", "image_csv", "tfds", "sklearn", "csv", "jsonl", "parquet", "text_folder",
        "wheel",
    ] = Field(description="Kind of the data; 'kft ls sources' explains them.")  # fmt: skip
    path: Text = Field(
        description="What to read: a folder of class folders, a file, a folder with a file per "
        "split, the name of a TensorFlow Datasets set or its prepared folder, or a set that is "
        "part of scikit-learn (digits) or of a wheel (rotten_tomatoes)."
    )
    root: Text | None = Field(
        default=None,
        description="Folder that the paths of image_csv count from, and must not leave; null is "
        "the folder of the table.",
    )
    text_column: Text | None = Field(
        default="text",
        description="Column of the text; null where text_generation has no prompt.",
    )
    pair_column: Text | None = Field(
        default=None, description="Column of the second text of a pair."
    )
    group_column: Text | None = Field(
        default=None,
        description="Column of what must not be on two sides of a split, such as the author or "
        "the patient.",
    )
    group_pattern: Text | None = Field(
        default=None,
        description="Regular expression that finds the group in an example's name, in place of "
        "group_column: its first group, or all that it matches, such as '(patient\\d+)'.",
    )
    time_column: Text | None = Field(
        default=None,
        description="Column of dates or numbers by which the data is divided: the newest examples "
        "test, those before validate, the oldest train.",
    )
    encoding: Text = Field(default="utf-8", description="Of text files, such as latin-1.")
    truncation: Literal["head", "tail", "head_tail"] = Field(
        default="head",
        description="Which part of a text that is too long is kept: its beginning, its end, or a "
        "quarter from the beginning and the rest from the end.",
    )
    batch_tokens: Count | None = Field(
        default=None,
        description="Tokens per training step, padding included, in place of batch_size: short "
        "texts share larger batches.",
    )
    image_column: Text = Field(
        default="path", description="Column of the picture's path; image_csv only."
    )
    label_column: Text | tuple[Text, ...] = Field(
        default="label",
        description="Column of the class name, of several names, of the number or of the text to "
        "be written, as the task wants; a list for classes marked 0 or 1, or for several numbers. "
        "Of tables; of tfds the features that a regression learns.",
    )
    label_separator: Text = Field(
        default=";",
        description="Between the names where one column holds several; multilabel tasks only.",
    )
    batch_size: Count = Field(default=32, description="Examples per training step.")
    split: Split = Field(default=Split(), description="Shares for validation and test.")
    resize: Literal["squash", "crop", "pad"] = Field(
        default="squash",
        description="How a picture gets the network's shape: squash ignores its proportions, crop "
        "cuts the edges off, pad adds bars.",
    )
    cache: Literal["auto", "off", "disk", "memory"] = Field(
        default="auto",
        description="Decode and resize pictures once, and keep them: on disk, where other runs "
        "find them, in memory, or never; auto where they are read twice and there is room "
        "(train.cache_gib).",
    )
    augment: Annotated[
        Annotated[Literal["none", "light", "medium", "strong", "auto"], Tag(NAME)]
        | Annotated[Augment, Tag(SETTINGS)],
        Discriminator(name_or_settings),
    ] = Field(
        default="light",
        description="Random changes to training pictures: a name, or settings. auto chooses by "
        "the number of examples and by what frozen features say of mirrored pictures.",
    )
    text_augment: Annotated[
        Annotated[Literal["none", "light", "medium", "strong", "auto"], Tag(NAME)]
        | Annotated[TextAugment, Tag(SETTINGS)],
        Discriminator(name_or_settings),
    ] = Field(
        default="none",
        description="Random changes to training texts: a name, or settings; auto chooses by the "
        "number of examples.",
    )
    sampling: Annotated[
        Annotated[Literal["natural", "balanced"], Tag(NAME)]
        | Annotated[dict[str, Positive], Tag(SETTINGS), MinLen(1)],
        Discriminator(name_or_settings),
    ] = Field(
        default="natural",
        description="What an epoch is: every example once; as many draws, every class alike; or "
        "classes drawn in proportion to weights, where those not named weigh 1 per example.",
    )
    on_error: Literal["skip", "stop"] = Field(
        default="skip", description="Leave unreadable examples out and count them, or stop."
    )
    leakage: Literal["stop", "drop", "warn"] = Field(
        default="stop",
        description="Examples whose content, or group, is in training and in validation or test: "
        "refuse to train, leave the copies in training out, or go on with a warning.",
    )
    cleaning: Cleaning = Field(
        default=Cleaning(), description="What is left out or mended; nothing unless set."
    )

    @property
    def augmentation(self) -> Augment:
        """The settings that `augment` stands for; `policies.chosen` takes the place of auto."""
        return AUGMENTATIONS[self.augment] if isinstance(self.augment, str) else self.augment

    @property
    def text_augmentation(self) -> TextAugment:
        """The settings that `text_augment` stands for; of auto likewise."""
        chosen = self.text_augment
        return TEXT_AUGMENTATIONS[chosen] if isinstance(chosen, str) else chosen


_TABLES = ("image_csv", "csv", "jsonl", "parquet", "tfds", "wheel")
_SOURCE = ("data", "source")


def combinations(values: Values) -> Iterator[Mistake]:
    """Yields what is wrong between the keys of `data`, from checks whose own keys are right."""
    checks: tuple[Callable[[Values], Iterator[Mistake]], ...] = (
        _columns,
        _groups,
        _division,
        _folds,
        _labels,
        _sampling,
        _text_augment,
    )
    for check in checks:
        with suppress(UnknownError):
            yield from check(values)


def _columns(values: Values) -> Iterator[Mistake]:
    source = values(*_SOURCE)
    for key in ("group_column", "time_column"):
        if values("data", key) is not None and source not in _TABLES:
            what = "class folders have" if source.endswith("folder") else f"source '{source}' has"
            message = f"{what} no columns; leave {key} out"
            yield Mistake((("data", key), _SOURCE), message)
    if values("data", "root") is not None and source != "image_csv":
        message = f"is for image_csv; source '{source}' has no paths in a table"
        yield Mistake((("data", "root"), _SOURCE), message)


def _groups(values: Values) -> Iterator[Mistake]:
    pattern = values("data", "group_pattern")
    if pattern is None:
        return
    path = ("data", "group_pattern")
    if values("data", "group_column") is not None:
        yield Mistake((path, ("data", "group_column")), "a group has a column or a pattern")
    try:
        re.compile(pattern)
    except re.error as error:
        yield Mistake((path,), f"is no regular expression: {error}")


def _division(values: Values) -> Iterator[Mistake]:
    time = values("data", "time_column")
    grouped = [key for key in ("group_column", "group_pattern") if values("data", key) is not None]
    if time is not None and grouped:
        message = "by time a group may have to be divided; leave one of the two out"
        yield Mistake((("data", "time_column"), ("data", grouped[0])), message)
    if values("data", "split", "file") is None:
        return
    if time is not None:
        message = "the file says who goes where; leave time_column out"
        yield Mistake((("data", "split", "file"), ("data", "time_column")), message)
    if values("data", "split", "folds") is not None or values("train", "folds") > 1:
        message = "the file says who goes where; leave folds out"
        yield Mistake((("data", "split", "file"), ("train", "folds")), message)


_WRITING_TASKS = ("text_to_text", "text_generation")


def _folds(values: Values) -> Iterator[Mistake]:
    folds, fold = values("data", "split", "folds"), values("data", "split", "fold")
    path = ("data", "split", "fold")
    if (folds is None) != (fold is None):
        yield Mistake((path, ("data", "split", "folds")), "folds and fold are given together")
    elif folds is not None and fold > folds:
        yield Mistake((path,), f"expected 1 to {folds}, got {fold}")
    if folds is not None and values("data", "time_column") is not None:
        message = "folds would validate on what is older than training; leave one of them out"
        yield Mistake((("data", "split", "folds"), ("data", "time_column")), message)
    if values("train", "folds") == 1:
        return
    if folds is not None:
        message = "sets data.split.folds and fold itself; leave them out"
        yield Mistake((("train", "folds"), ("data", "split", "folds")), message)
    if values("data", "time_column") is not None:
        message = "folds would validate on what is older than training; leave time_column out"
        yield Mistake((("train", "folds"), ("data", "time_column")), message)
    if values("train", "hosts") > 1:
        yield Mistake((("train", "folds"), ("train", "hosts")), "folds run on one host")
    if values("data", "leakage") == "drop":
        message = "each fold would drop others; set data.cleaning.duplicates=first instead"
        yield Mistake((("train", "folds"), ("data", "leakage")), message)
    if values("data", "cleaning", "missing_label") == "most_frequent":
        message = "every example validates once, and a guessed label is nothing to validate on"
        yield Mistake((("train", "folds"), ("data", "cleaning", "missing_label")), message)
    task = values("task", "name")
    if task in _WRITING_TASKS:
        message = f"{task} writes texts, which cannot be averaged; set train.folds to 1"
        yield Mistake((("train", "folds"), ("task", "name")), message)


_CLASS_TASKS = ("image_classification", "text_classification", "text_pair_classification")


def _labels(values: Values) -> Iterator[Mistake]:
    task = values("task", "name")
    if task in _CLASS_TASKS:
        if (
            values("data", "cleaning", "suspected_labels") != "keep"
            and values("train", "hosts") > 1
        ):
            message = "hosts might judge labels differently; write a manifest with 'kft data clean'"
            yield Mistake((("data", "cleaning", "suspected_labels"), ("train", "hosts")), message)
        return
    defaults = Cleaning()
    for key in ("suspected_labels", "label_spelling", "rename_labels", "fewest_per_class"):
        if values("data", "cleaning", key) != getattr(defaults, key):
            message = f"is for one class per example, and {task} has others"
            yield Mistake((("data", "cleaning", key), ("task", "name")), message)
    if values("data", "split", "fewest_per_class"):
        message = f"is for one class per example, and {task} has others"
        yield Mistake((("data", "split", "fewest_per_class"), ("task", "name")), message)


def _sampling(values: Values) -> Iterator[Mistake]:
    task, sampling = values("task", "name"), values("data", "sampling")
    if sampling != "natural" and task not in _CLASS_TASKS:
        message = f"draws by class, and {task} has not one class per example; leave it natural"
        yield Mistake((("data", "sampling"), ("task", "name")), message)
    if sampling == "balanced" and values("train", "class_weight") == "balanced":
        message = "together they favour rare classes twice; take one"
        yield Mistake((("data", "sampling"), ("train", "class_weight")), message)
    if sampling != "natural" and values("data", "batch_tokens") is not None:
        message = "draws other texts every epoch, and the number of batches would change; leave "
        message += "batch_tokens out, or sampling natural"
        yield Mistake((("data", "sampling"), ("data", "batch_tokens")), message)


_WHOLE_TEXTS = (
    "text_classification", "text_pair_classification", "text_multilabel", "text_regression",
)  # fmt: skip


def _text_augment(values: Values) -> Iterator[Mistake]:
    task, choice = values("task", "name"), values("data", "text_augment")
    if task in _WHOLE_TEXTS or choice == "none":
        return
    paths = (("data", "text_augment"), ("task", "name"))
    if task.startswith("image_"):
        yield Mistake(paths, "is for tasks with texts")
        return
    what = {
        "token_classification": "the tags of words",
        "text_to_text": "what is to be written of a text",
        "text_generation": "what follows a text",
    }.get(task, "what is learned")
    yield Mistake(paths, f"changed words would not keep {what}, which {task} learns; leave it none")
