"""Data against the pre-training: sizes, colours and words that weights do not know, and what helps.

The transfer gain is how much better classes are told apart in the frozen features of the recipe's
weights than in those of the same network with random ones. Where it is small, the weights were
trained on something else, and freezing keeps what is of no use.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerastune_ft import backbones
from kerastune_ft.checks import features, probes
from kerastune_ft.data import tokenizing
from kerastune_ft.data.tables import Finding, Severity, finding
from kerastune_ft.data.texts import Texts

if TYPE_CHECKING:
    from kerastune_ft.backbones.tokenizers import Tokenizer
    from kerastune_ft.checks.examined import Examined

SAMPLE = 2_000
"""Examples that transfer, and texts that words are counted in, at most."""

_FURTHEST = 1.99  # times smaller or larger than the pictures weights were trained on
_GREY = 3.0  # mean difference of the channels, 0..255
_BRIGHTNESS, _SPREAD = (60.0, 190.0), (25.0, 95.0)  # of natural photographs taken together
_DISTORTED = 1.5
_UNKNOWN = (0.001, 0.01)  # share of tokens: noted, warned of
_TOKENS = 2.0  # per word
_GAIN = 0.05
_EASY = 0.95  # accuracy from which on classes are easy
# Scripts without spaces between words: each sign counts as one.
_WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+")


@dataclass(frozen=True)
class Accuracy:
    """How many classes a probe names right.

    Args:
        right: Examples named right.
        count: Of so many.
    """

    right: int
    count: int

    @property
    def value(self) -> float:
        """The share, 0..1."""
        return self.right / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Of 95 %, after Wilson."""
        return probes.wilson(self.right, self.count)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} ({low:.3f} to {high:.3f})"


@dataclass(frozen=True)
class Transfer:
    """What pre-trained features are worth.

    Args:
        linear: Of a linear probe on pre-trained features.
        nearest: Of the five nearest neighbours there.
        random_linear: Of a linear probe on features of random weights.
        random_nearest: Of neighbours there.
        majority: The share of the largest class.
    """

    linear: Accuracy
    nearest: Accuracy
    random_linear: Accuracy
    random_nearest: Accuracy
    majority: float

    @property
    def gain(self) -> float:
        """By how much the linear probe is better for the pre-training, -1..1."""
        return self.linear.value - self.random_linear.value

    @property
    def clear(self) -> bool:
        """Whether the gain is 5 points or more, and more than chance explains."""
        apart = self.linear.interval[0] > self.random_linear.interval[1]
        return self.gain >= _GAIN and apart


def transfer(
    pretrained: NDArray[Any],
    random: NDArray[Any],
    labels: NDArray[Any],
    groups: NDArray[np.int64] | None = None,
) -> Transfer:
    """Measures what pre-trained features are worth, in five folds.

    Args:
        pretrained: Features `(n, width)`.
        random: Of the same examples from random weights, `(n, width)`.
        labels: Class numbers `(n,)`, two or more.
        groups: Examples of one stay in one fold.
    """
    _, own = np.unique(labels, return_inverse=True)
    fold = probes.folds(own, groups)

    def measured(values: NDArray[Any]) -> tuple[Accuracy, Accuracy]:
        small = probes.reduced(values)
        linear = probes.out_of_fold(small, own, fold).argmax(axis=1) == own
        near = probes.nearest(small, own, fold) == own
        return Accuracy(int(linear.sum()), len(own)), Accuracy(int(near.sum()), len(own))

    (linear, near), (random_linear, random_near) = measured(pretrained), measured(random)
    majority = float(np.bincount(own).max() / len(own))
    return Transfer(linear, near, random_linear, random_near, majority)


def transfer_gain(examined: Examined) -> Iterator[Finding]:
    """Says how much the pre-training helps with these classes, and warns if it is little."""
    survey, recipe = examined.survey, examined.recipe
    if survey.kind != "class" or recipe.backbone.tag.startswith("none"):
        return
    counts = np.bincount(survey.labels, minlength=len(survey.table.class_names))
    usable = np.flatnonzero(counts[survey.labels] >= probes.FOLDS)
    rows = features.sample(survey, SAMPLE, usable)
    labels = survey.labels[rows]
    if len(rows) < 4 * probes.FOLDS or len(np.unique(labels)) < 2:
        return
    found: features.Features = examined.features
    random = features.with_random_weights(recipe, survey, examined.progress, rows=rows)
    groups = probes.together(survey.first[rows], survey.table.take(rows).groups)
    said = transfer(found.take(rows), random.values, labels, groups)
    severity: Severity = "note"
    kind, verdict = "transfer_gain", "the pre-training helps: keep it"
    if not said.clear and said.linear.value >= _EASY:
        kind = "easy_classes"
        verdict = "the classes are so easy that random features tell them apart as well"
    elif not said.clear:
        severity, kind = "warn", "low_transfer_gain"
        verdict = "the pre-training hardly helps with these classes"
    name = f"{recipe.backbone.name}:{recipe.backbone.tag}"
    message = (
        f"{verdict}; frozen features of {name} name {said.linear.value:.1%} right, of random "
        f"weights {said.random_linear.value:.1%}, the largest class is {said.majority:.1%} of "
        f"{len(rows):,} examples"
    )
    details = (
        f"linear probe {said.linear}, random weights {said.random_linear}; five nearest "
        f"neighbours {said.nearest}, random weights {said.random_nearest}; 95 % intervals"
    )
    yield Finding(kind, severity, message, 1, (name,), (details,))


def resolution(examined: Examined) -> Iterator[Finding]:
    """Finds sides far from those that the weights were trained at, and squashed pictures."""
    choice, looks = examined.recipe.backbone, examined.looks
    row = backbones.get(choice.name)
    height, width = choice.side
    facts = row.weights.get(choice.tag)
    if facts is not None and row.family != backbones.HUB:
        known = facts.sides or (row.image_size,)
        side = (height * width) ** 0.5
        near = min(known, key=lambda one: max(one / side, side / one))
        if max(near / side, side / near) > _FURTHEST:
            message = (
                f"the network gets pictures of {height} x {width} pixels, and its weights were "
                f"trained at {near}: what they know is {near / side:.1f} times as large"
                if near > side
                else f"the network gets pictures of {height} x {width} pixels, and its weights "
                f"were trained at {near}: what they know is {side / near:.1f} times as small"
            )
            yield Finding("resolution_mismatch", "note", message, 1, (f"{height} x {width}",))
    if looks is None or not len(looks) or examined.recipe.data.resize != "squash":
        return
    stretch = (looks.width / looks.height) / (width / height)
    middle = float(np.median(np.maximum(stretch, 1 / stretch)))
    if middle > _DISTORTED:
        message = (
            f"half of the pictures are squashed {middle:.1f} times or more by data.resize: squash"
        )
        yield Finding("aspect_mismatch", "warn", message, 1, (f"{height} x {width}",))


def colours(examined: Examined) -> Iterator[Finding]:
    """Finds pictures whose colours are far from the photographs that weights were trained on."""
    choice, looks = examined.recipe.backbone, examined.looks
    if looks is None or not len(looks) or choice.channels != 3 or choice.tag.startswith("none"):
        return
    said = []
    grey = float((looks.colour < _GREY).mean())
    if grey > 0.5:  # fewer are found as grey ones among others
        said.append(f"{grey:.0%} of the pictures are grey, and the weights know colours")
    brightness = float(looks.brightness.mean())
    if not _BRIGHTNESS[0] <= brightness <= _BRIGHTNESS[1]:
        word = "dark" if brightness < _BRIGHTNESS[0] else "bright"
        said.append(f"they are {word} (mean {brightness:.0f} of 255; photographs about 115)")
    spread = float(
        np.sqrt((looks.contrast.astype(np.float64) ** 2).mean() + looks.brightness.var())
    )
    if not _SPREAD[0] <= spread <= _SPREAD[1]:
        word = "flat" if spread < _SPREAD[0] else "harsh"
        said.append(
            f"their contrast is {word} (standard deviation {spread:.0f}; photographs about 60)"
        )
    if said:
        message = f"unlike the photographs of the pre-training: {'; '.join(said)}"
        severity: Severity = "warn" if len(said) > 1 else "note"
        names = (f"{choice.name}:{choice.tag}",)
        yield Finding("colour_mismatch", severity, message, 1, names)


@dataclass(frozen=True)
class Words:
    """How a tokenizer takes texts.

    Args:
        tokens: Of all texts, without special ones.
        unknown: Those of them that stand for something the tokenizer does not know.
        words: Of all texts.
        affected: Places of the texts that have unknown tokens, `(k,)`.
    """

    tokens: int
    unknown: int
    words: int
    affected: NDArray[np.int64]


def words_of(texts: Sequence[str], tokenizer: Tokenizer) -> Words:
    """Counts words, tokens and unknown tokens.

    Args:
        texts: Some.
        tokenizer: Of the weights.
    """
    tokens = unknown = 0
    affected = []
    for start in range(0, len(texts), 256):
        encoded = tokenizer.encode(texts[start : start + 256], None, length=4096)
        empty = tokenizer.encode([""], None, length=4096)
        counts = np.diff(encoded.starts) - len(empty.ids)
        tokens += int(counts.sum())
        if tokenizer.unk_id is not None:
            # A token that ends or begins every text may be the same as the unknown one (GPT-2).
            usual = int((empty.ids == tokenizer.unk_id).sum())
            lost = np.add.reduceat(encoded.ids == tokenizer.unk_id, encoded.starts[:-1]) - usual
            lost[np.diff(encoded.starts) == 0] = 0
            unknown += int(lost.sum())
            affected += (start + np.flatnonzero(lost > 0)).tolist()
    words = sum(len(_WORD.findall(text)) for text in texts)
    return Words(tokens, unknown, words, np.asarray(affected, np.int64))


def vocabulary(examined: Examined) -> Iterator[Finding]:
    """Finds texts whose words the weights' tokenizer does not know, or cuts to pieces."""
    recipe, survey = examined.recipe, examined.survey
    content = survey.table.content
    choice = recipe.backbone
    if not isinstance(content, Texts) or choice.tag.startswith("none"):
        return
    tokenizer = tokenizing.tokenizer_of(backbones.get(choice.name), choice.tag)
    rows = features.sample(survey, SAMPLE)
    texts = content.take(rows)
    joined = [
        f"{a} {b}".strip()
        for a, b in zip(texts.first, texts.second or ("",) * len(rows), strict=True)
    ]
    found = words_of(joined, tokenizer)
    share, each = found.unknown / max(1, found.tokens), found.tokens / max(1, found.words)
    name = f"{choice.name}:{choice.tag}"
    if share > _UNKNOWN[0]:
        message = (
            f"texts with words that the tokenizer of {name} does not know ({share:.2%} of the "
            f"tokens of {len(rows):,} texts)"
        )
        names = [survey.table.names[rows[place]] for place in found.affected]
        severity: Severity = "warn" if share > _UNKNOWN[1] else "note"
        yield finding("unknown_tokens", severity, message, names)
    if each > _TOKENS:
        message = (
            f"the tokenizer of {name} cuts words into {each:.1f} tokens on average; of texts like "
            "those of its pre-training it is about 1.3"
        )
        yield Finding("tokens_per_word", "warn", message, 1, (name,))
