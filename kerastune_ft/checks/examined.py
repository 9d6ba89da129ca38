"""What checks look at: the data as it was read and divided, and features where asked for."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerastune_ft.data import Survey, copies
from kerastune_ft.data.labels import LABELS, Kind, Labels, class_counts
from kerastune_ft.data.looks import DIGEST, Looks, look_of
from kerastune_ft.data.tables import SPLITS, Arrays, Table
from kerastune_ft.data.texts import Texts

if TYPE_CHECKING:
    from kerastune_ft.recipe import Recipe


@dataclass(frozen=True)
class Examined:
    """A data set under examination.

    Args:
        recipe: Says source, task, backbone and sizes.
        survey: What was read.
        progress: Called as `progress(words, done, total)` while something takes long.
    """

    recipe: Recipe
    survey: Survey
    progress: Callable[[str, int, int], None] = lambda words, done, total: None

    @property
    def table(self) -> Table:
        """Every example that can be used."""
        return self.survey.table

    @property
    def kind(self) -> Kind:
        """Of the labels."""
        return self.survey.kind

    @property
    def labels(self) -> Labels:
        """Encoded as the task's kind of labels says."""
        return self.survey.labels

    @property
    def parts(self) -> NDArray[np.str_]:
        """The split of each example: `train`, `validation` or `test`."""
        return self.survey.parts

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the label numbers."""
        return self.table.class_names

    @functools.cached_property
    def counts(self) -> dict[str, NDArray[np.int64]]:
        """Examples of each class, `(classes,)`, by split; {} where there are no classes.

        Of tags it is the words of each class.
        """
        return counts_of(self.survey)

    @functools.cached_property
    def shown_labels(self) -> list[str]:
        """The label of each example as a person reads it."""
        if self.kind == "text":
            return [str(label) for label in self.labels]
        return LABELS[self.kind].texts(self.labels, self.class_names)

    def place(self, row: int) -> str:
        """Returns split and label of an example, such as `test, cat`."""
        label = self.shown_labels[row]
        return f"{self.parts[row]}, {label if len(label) <= 40 else label[:39] + '…'}"

    @functools.cached_property
    def looks(self) -> Looks | None:
        """What each picture looks like; None of texts."""
        content = self.table.content
        if not isinstance(content, Arrays):
            return self.table.looks
        return Looks.joined([_look_of_pixels(pixels) for pixels in content.values])

    @functools.cached_property
    def texts(self) -> tuple[tuple[str, Sequence[str]], ...]:
        """The columns of texts, each with what it is called; () of pictures."""
        content = self.table.content
        if not isinstance(content, Texts):
            return ()
        columns: list[tuple[str, Sequence[str]]] = [("text", content.first)]
        if content.second is not None:
            columns.append(("second text", content.second))
        if self.kind == "text":
            columns.append(("text to be written", self.shown_labels))
        return tuple((name, texts) for name, texts in columns if any(texts))

    @functools.cached_property
    def identities(self) -> NDArray[np.int64]:
        """The row of the first example of the same content, `(n,)`."""
        return self.survey.first

    @functools.cached_property
    def near_pairs(self) -> NDArray[np.int64]:
        """Rows of examples that are nearly the same, `(k, 2)`."""
        known = self.table.looks is not None or len(self.survey.near) > 0
        return self.survey.near if known else copies.near_pairs(self.table)

    @functools.cached_property
    def features(self) -> Any:
        """Frozen features, computed once: of every example, or of a sample if none has a class."""
        from kerastune_ft.checks import features

        rows = None if self.kind == "class" else features.sample(self.survey, features.SAMPLE)
        return features.of_survey(self.recipe, self.survey, self.progress, rows=rows)


def counts_of(survey: Survey) -> dict[str, NDArray[np.int64]]:
    """Returns the examples of each class by split; {} where there are no classes."""
    if survey.kind in ("numbers", "text"):
        return {}
    classes = len(survey.table.class_names)
    return {name: class_counts(survey.labels[survey.parts == name], classes) for name in SPLITS}


def _look_of_pixels(pixels: NDArray[Any]) -> Any:
    """Measures `uint8` or `uint16`, `(height, width)` or `(height, width, channels)`."""
    shape = pixels.shape
    digest = hashlib.sha256(pixels.tobytes()).digest()[:DIGEST]
    colours = rgb(pixels)
    return look_of(
        colours,
        digest=digest,
        size=pixels.nbytes,
        width=shape[1],
        height=shape[0],
        mode="RGB" if len(shape) == 3 and shape[2] == 3 else "L",
    )


def rgb(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Returns pixels in memory as `uint8 (height, width, 3)`; channels that are none by their mean.

    Args:
        pixels: `(height, width)` or `(height, width, channels)`, over the whole range of their
            type if they are whole numbers, else in 0..255.
    """
    values = pixels if pixels.ndim == 3 else pixels[..., None]
    if values.dtype == np.uint16:
        values = values / 257
    if values.shape[2] not in (1, 3):
        values = values.mean(axis=2, keepdims=True)
    whole = np.asarray(values).round().clip(0, 255).astype(np.uint8)
    return np.repeat(whole, 3, axis=2) if whole.shape[2] == 1 else whole
