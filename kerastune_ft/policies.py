"""Settles what `auto` stands for in a recipe, by the data and, where there is one, the network.

A run's recipe says what was settled, so that resuming decides nothing anew. How much pictures are
changed follows from how many there are. Whether they are mirrored is measured: a linear probe that
learned frozen features of upright pictures must know mirrored ones as well as others.

    recipe, lines = chosen(recipe, splits, model)
    lines        # ["pictures: strong, because there are 24 per class; mirrored, because ..."]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerastune_ft import models
from kerastune_ft.data import Split, Splits, feeding
from kerastune_ft.data.labels import class_counts
from kerastune_ft.data.tables import Arrays
from kerastune_ft.data.texts import Tokens
from kerastune_ft.recipe import AUGMENTATIONS, TEXT_AUGMENTATIONS
from kerastune_ft.tasks import TASKS

if TYPE_CHECKING:
    from kerastune_ft.recipe import Recipe

PICTURES = ((100, "strong"), (1000, "medium"))
"""Below so many training pictures per class the augmentation of that name, else `light`."""
TEXTS = ((100, "medium"), (1000, "light"))
"""The same of texts, else `none`."""
SHORT = 8.0
"""Words of a text, on average, below which one step less is changed: each word counts."""

_TRAIN, _HELD = 600, 300  # pictures that a probe learns from, and is measured on
_FEWEST_HELD = 40
_NOISE = 2.0  # standard errors
_BATCH = 32
_TINY = 32  # pixels a side
_UNMEASURED = "not measured, as fit does with pre-trained weights"
_BINS = 10  # of numbers: a tenth of the examples counts as a class


@dataclass(frozen=True)
class Probe:
    """How a linear probe on frozen features took mirrored pictures.

    Args:
        plain: Mean score on pictures as they are: of classes the share that is right, of numbers
            the share of the variance that is explained.
        mirrored: On the same pictures mirrored.
        noise: Standard error of the difference.
        guessing: What a probe scores that has learned nothing.
        count: Pictures it was measured on.
    """

    plain: float
    mirrored: float
    noise: float
    guessing: float
    count: int

    @property
    def tells(self) -> bool:
        """Whether the probe has learned anything."""
        return bool(self.plain > self.guessing + self.count**-0.5)

    @property
    def keeps_labels(self) -> bool:
        """Whether mirrored pictures are known as well, but for noise."""
        return bool(self.plain - self.mirrored <= _NOISE * self.noise)


def chosen(
    recipe: Recipe, splits: Splits, model: keras.Model | None = None
) -> tuple[Recipe, list[str]]:
    """Returns a recipe without `auto`, and a line on each choice and its reason.

    Args:
        recipe: Of the data.
        splits: Its training split, and for measuring the validation split, are looked at.
        model: With pre-trained weights, to measure with; None leaves that out.
    """
    data, lines = recipe.data, []
    text = TASKS[recipe.task.name].modality == "text"
    update: dict[str, Any] = {}
    if data.augment == "auto" and text:
        update["augment"] = "none"  # there are no pictures
    elif data.augment == "auto":
        per_class = _per_class(splits)
        name = next((name for limit, name in PICTURES if per_class < limit), "light")
        flip, why = _mirrored(recipe, splits, model)
        update["augment"] = AUGMENTATIONS[name].model_copy(update={"horizontal_flip": flip})
        said = "mirrored" if flip else "not mirrored"
        lines.append(f"pictures: {name}, with {_counted(splits, per_class)}; {said}, {why}")
    if data.text_augment == "auto":
        name, why = _words(splits)
        update["text_augment"] = TEXT_AUGMENTATIONS[name]
        lines.append(f"texts: {name}, with {why}")
    if not update:
        return recipe, []
    return recipe.model_copy(update={"data": data.model_copy(update=update)}), lines


def probe(
    model: keras.Model, recipe: Recipe, train: Split, held: Split, classes: bool
) -> Probe | None:
    """Trains a linear probe on features of the network below the head, and tries it mirrored.

    None if what it could learn from is of one class.

    Args:
        model: With pre-trained weights; stays as it is.
        recipe: Says how pictures are read.
        train: What the probe learns from; 600 of them at most.
        held: What it is measured on, both ways; 300 at most.
        classes: Whether labels are class numbers; else 0 and 1, or numbers, `(n, outputs)`.
    """
    seed = recipe.train.seed
    learned, asked = (
        _some(part, count, [seed, 32], classes) for part, count in ((train, _TRAIN), (held, _HELD))
    )
    if classes and len(np.unique(train.labels[learned])) < 2:
        return None
    x, _ = _features(model, recipe, train, learned)
    plain, mirrored = _features(model, recipe, held, asked, mirror=True)
    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-6
    x, plain, mirrored = ((values - mean) / std for values in (x, plain, mirrored))
    y, true = np.asarray(train.labels)[learned], np.asarray(held.labels)[asked]
    if classes:
        from sklearn.linear_model import LogisticRegression

        fitted = LogisticRegression(C=0.01, max_iter=300).fit(x, y)
        one, other = (1.0 * (fitted.predict(values) == true) for values in (plain, mirrored))
        guessing = float((true == np.bincount(y).argmax()).mean())
    else:
        from sklearn.linear_model import Ridge

        fitted = Ridge(alpha=float(x.shape[1])).fit(x, y)
        spread = ((true - y.mean(axis=0)) ** 2).mean(axis=0) + 1e-12
        errors = [((fitted.predict(v) - true) ** 2 / spread) for v in (plain, mirrored)]
        one, other = (1 - e.reshape(len(true), -1).mean(axis=1) for e in errors)
        guessing = 0.0
    differences = one - other
    noise = float(differences.std() / np.sqrt(len(differences)))
    return Probe(float(one.mean()), float(other.mean()), noise, guessing, len(asked))


def _mirrored(recipe: Recipe, splits: Splits, model: keras.Model | None) -> tuple[bool, str]:
    """Returns whether to mirror pictures left and right, and why."""
    if model is None:
        if _tiny_and_grey(splits.train):
            return False, f"for tiny grey pictures are often signs; {_UNMEASURED}"
        return True, f"as is usual; {_UNMEASURED}"
    train, held, classes = splits.train, splits.validation, splits.kind == "class"
    if len(held) < _FEWEST_HELD:  # then on pictures that the probe does not learn from
        few = _some(train, len(train) // 3, [recipe.train.seed, 31], classes)
        rest = np.setdiff1d(np.arange(len(train)), few)
        train, held = _part(train, rest), _part(train, few)
    if len(held) < _FEWEST_HELD:
        return True, f"as is usual; {len(held)} pictures are too few to measure it"
    found = probe(model, recipe, train, held, classes)
    if found is None:
        return True, "as is usual; pictures of all classes but one are too few to measure it"
    if not found.tells:
        return True, "as is usual; a probe on frozen features learned too little to tell"
    figures = (
        f"a probe on frozen features scores {found.plain:.1%} on {found.count} pictures and "
        f"{found.mirrored:.1%} on their mirror images"
    )
    return found.keeps_labels, f"because {figures}"


def _words(splits: Splits) -> tuple[str, str]:
    """Returns how much texts are changed, and the figures that decided it."""
    content = splits.train.content
    assert isinstance(content, Tokens), type(content)
    per_class = _per_class(splits)
    name = next((name for limit, name in TEXTS if per_class < limit), "none")
    length = float(np.mean([len(text.split()) for text in content.texts.first]))
    if length < SHORT:
        name = {"medium": "light"}.get(name, "none")
    return name, f"{_counted(splits, per_class)} of {length:.0f} words on average"


def _per_class(splits: Splits) -> float:
    """Returns the median number of training examples of a class."""
    labels = splits.train.labels
    if splits.kind == "numbers":
        return len(labels) / _BINS
    counts = class_counts(labels, len(splits.class_names))
    return float(np.median(counts[counts > 0])) if (counts > 0).any() else float(len(labels))


def _counted(splits: Splits, per_class: float) -> str:
    if splits.kind == "numbers":
        return f"{len(splits.train):,} examples"
    return f"{per_class:,.0f} examples of a class (median)"


def _some(split: Split, count: int, seed: Sequence[int], classes: bool) -> NDArray[np.int64]:
    """Draws rows at random; of classes so that each keeps its share."""
    rows = np.random.default_rng(seed).permutation(len(split)).astype(np.int64)
    if classes and count < len(rows):
        rows = rows[np.argsort(split.labels[rows], kind="stable")]
        rows = rows[((np.arange(count) + 0.5) * len(rows) / count).astype(np.int64)]
    return rows[:count]


def _part(split: Split, rows: NDArray[np.int64]) -> Split:
    names = tuple(split.names[row] for row in rows)
    return Split(split.name, names, split.labels[rows], split.content.take(rows))


def _features(
    model: keras.Model,
    recipe: Recipe,
    split: Split,
    rows: NDArray[np.int64],
    mirror: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns features of pictures and, where wanted, of their mirror images: `(n, channels)`."""
    network, _ = models.backbone_of(model)
    before = [
        layer
        for layer in model.layers[: model.layers.index(network)]
        if not isinstance(layer, keras.layers.InputLayer)
    ]

    def seen(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
        values: Any = keras.ops.convert_to_tensor(pictures)
        for layer in before:
            values = layer(values)
        found = keras.ops.convert_to_numpy(network(values, training=False))
        found = np.asarray(found, np.float32)
        return np.asarray(found.mean(axis=tuple(range(1, found.ndim - 1))))

    plain, turned = [], []
    made = feeding.pictures(split, recipe, rows.tolist(), [None])
    for start in range(0, len(rows), _BATCH):
        few = rows[start : start + _BATCH]
        pictures = np.stack([next(made)[0] for _ in few])
        plain.append(seen(pictures))
        if mirror:
            turned.append(seen(np.ascontiguousarray(pictures[:, :, ::-1])))
    return np.concatenate(plain), np.concatenate(turned) if mirror else plain[0]


def _tiny_and_grey(split: Split) -> bool:
    """Whether pictures look like scikit-learn's digits."""
    content = split.content
    if not isinstance(content, Arrays) or max(content.values.shape[1:3]) > _TINY:
        return False
    values = content.values
    return values.ndim == 3 or values.shape[3] == 1 or bool((values == values[..., :1]).all())
