"""Random changes to the words of training texts, as a pure function of (seed, epoch, example).

Words are what spaces divide; each keeps the white space that follows its place. A text is never
left without a word, and one that no draw concerns stays as it is, to the letter. In languages
that put no spaces between words there is little to change.

    changes = Changes(recipe.data.text_augmentation, "head", seed=0)
    changes.text("a rather good film", epoch=3, key=17)       # "a good rather film"
    changes.tokens(tokens, rows, epoch=3, keys=rows)          # of the changed texts

Reference:
    Wei & Zou 2019, EDA: easy data augmentation. https://arxiv.org/abs/1901.11196
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kerastune_ft.data.texts import Ragged, Texts, Tokens, bucket

if TYPE_CHECKING:
    from kerastune_ft.backbones.tokenizers import Truncation
    from kerastune_ft.recipe import TextAugment

_PURPOSE = 21  # last of the numbers that seed a generator
_WORD = re.compile(r"(\S+)(\s*)")


@dataclass(frozen=True)
class Changes:
    """What is changed in training texts.

    Args:
        settings: The recipe's.
        truncation: Which part of a changed text that is too long is kept.
        seed: First part of all keys.
    """

    settings: TextAugment
    truncation: Truncation
    seed: int

    def text(self, text: str, epoch: int, key: int, place: int = 0) -> str:
        """Returns a changed text.

        Args:
            text: As it was read.
            epoch: Number of the epoch.
            key: Number of the example in the epoch: `sampling.Draws.keys`.
            place: 0 for a first text, 1 for the second one of a pair: each is changed on its own.
        """
        generator = np.random.default_rng([self.seed, epoch, key, place, _PURPOSE])
        return changed(text, self.settings, generator)

    def texts(self, texts: Texts, epoch: int, keys: Sequence[int] | NDArray[np.int64]) -> Texts:
        """Returns changed texts, or pairs of them, each with its own key."""

        def column(held: tuple[str, ...], place: int) -> tuple[str, ...]:
            pairs = zip(held, keys, strict=True)
            return tuple(self.text(text, epoch, int(key), place) for text, key in pairs)

        second = None if texts.second is None else column(texts.second, 1)
        return Texts(column(texts.first, 0), second)

    def tokens(
        self,
        tokens: Tokens,
        rows: NDArray[np.int64],
        epoch: int,
        keys: Sequence[int] | NDArray[np.int64],
    ) -> Tokens:
        """Returns the tokens of some changed texts.

        Args:
            tokens: Of the texts as they were read.
            rows: Which of them.
            epoch: Number of the epoch.
            keys: A number per row.
        """
        assert tokens.tokenizer is not None
        length = tokens.batching.buckets[-1]
        if tokens.batching.batch_tokens is not None:  # the budget was spent on texts as they were
            length = bucket(int(tokens.ids.lengths[rows].max()), tokens.batching)
        texts = self.texts(tokens.texts.take(rows), epoch, keys)
        made = tokens.tokenizer.encode(
            texts.first, texts.second, length=length, truncation=self.truncation
        )
        segments = None if tokens.segments is None else Ragged.of(made.segments, made.starts)
        return replace(tokens, texts=texts, ids=Ragged.of(made.ids, made.starts), segments=segments)


def changed(text: str, settings: TextAugment, generator: np.random.Generator) -> str:
    """Returns a text with its words changed as the settings say, in their order there.

    Args:
        text: As it was read.
        settings: Shares of the words; 0 is off and draws nothing.
        generator: Is drawn from.
    """
    found = _WORD.findall(text)
    words, spaces = [word for word, _ in found], [space for _, space in found]
    if not words:
        return text
    if settings.word_dropout:
        kept = generator.random(len(words)) >= settings.word_dropout
        if not kept.any():
            kept[generator.integers(len(words))] = True
        words = [word for word, stays in zip(words, kept, strict=True) if stays]
        spaces = [space for space, stays in zip(spaces, kept, strict=True) if stays]
    if settings.word_swap:
        for place in np.flatnonzero(generator.random(len(words) - 1) < settings.word_swap):
            words[place], words[place + 1] = words[place + 1], words[place]
    if settings.word_repetition:
        for place in np.flatnonzero(generator.random(len(words)) < settings.word_repetition)[::-1]:
            words.insert(place, words[place])
            spaces.insert(place, " ")
    if settings.word_insertion:
        own = list(words)
        for _ in range(generator.binomial(len(own), settings.word_insertion)):
            new = int(generator.integers(len(words) + 1))
            words.insert(new, own[generator.integers(len(own))])
            spaces.insert(new, " ")
    if settings.typos:
        for place in np.flatnonzero(generator.random(len(words)) < settings.typos):
            words[place] = _mistyped(words[place], generator)
    if words == [word for word, _ in found]:
        return text
    spaces = [space or " " for space in spaces]
    beginning = text[: len(text) - len(text.lstrip())]
    spoken = "".join(word + space for word, space in zip(words, spaces, strict=True))
    return f"{beginning}{spoken[: -len(spaces[-1])]}{found[-1][1]}"


def _mistyped(word: str, generator: np.random.Generator) -> str:
    """Returns a word of which two letters that stand together and differ have changed places."""
    places = [
        place
        for place, (one, other) in enumerate(itertools.pairwise(word))
        if one.isalpha() and other.isalpha() and one != other
    ]
    if not places:
        return word
    place = places[generator.integers(len(places))]
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
