"""Makes tokens of texts inside a graph, as a run's tokenizer makes them.

    inside = Inside.of(tokenizer, recipe)       # or a `str`: why it cannot be
    inputs = inside.inputs(texts)               # string (batch,) -> token_ids, padding_mask, ...

By operations of TensorFlow and TensorFlow Text, which TensorFlow Serving links: `vocabularies`.
Where a tokenizer stays outside, a server is given numbers of tokens, and the bundle that makes them
travels with the export. In the graph special tokens that somebody types, such as `[MASK]`, are
text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from kerastune_ft.backbones.tokenizer_families import Frame, family
from kerastune_ft.backbones.tokenizers import Tokenizer, Truncation
from kerastune_ft.data import tokenizing
from kerastune_ft.data.texts import Texts
from kerastune_ft.exports.vocabularies import SPACE, Rules, rules_of

if TYPE_CHECKING:
    from kerastune_ft.recipe import Recipe, TextCleaning

Tensor: TypeAlias = Any

_BATCH = 64


@dataclass(frozen=True)
class Inside:
    """A tokenizer that runs in a graph.

    Args:
        rules: That make tokens of a text.
        frame: What stands around one text, and around a pair.
        special: The number of the token of each role.
        length: The most tokens of an example.
        truncation: Which part of a text that is too long is kept.
        segments: Whether the network wants to know which text a token is of.
        mending: What is mended in every text first.
        pair: Whether two texts are read.
        words: Whether the words of a text are told apart first.
    """

    rules: Rules
    frame: Frame
    special: dict[str, int]
    length: int
    truncation: Truncation
    segments: bool
    mending: TextCleaning
    pair: bool
    words: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer, recipe: Recipe) -> Inside | str:
        """Returns the tokenizer of a run, or why it cannot run in a graph."""
        mending = recipe.data.cleaning.text
        if mending.html or mending.mojibake or mending.control:
            return (
                "data.cleaning.text mends what no operation of TensorFlow mends (html, mojibake"
                ", control)"
            )
        rules = rules_of(tokenizer)
        if isinstance(rules, str):
            return rules
        length, truncation = tokenizing.length_of(recipe), recipe.data.truncation
        if recipe.task.name == "token_classification":
            rules, truncation = rules.of_words(), "head"
        elif recipe.task.name == "text_generation":
            length, truncation = tokenizing.prompt_length(recipe), "tail"
        row = family(tokenizer.model_type)
        pair = recipe.data.pair_column is not None
        frame = row.pair if pair else row.single
        roles = {role for role, _ in frame} - {"A", "B"}
        special = {role: tokenizer.id_of(role) for role in roles}
        return cls(
            rules,
            frame,
            {**special, "pad": tokenizer.pad_id},
            length,
            truncation,
            tokenizing.language_of(recipe).segments,
            mending,
            pair,
            recipe.task.name == "token_classification",
        )

    def inputs(self, texts: Tensor, pairs: Tensor | None = None) -> dict[str, Tensor]:
        """Returns the inputs of the network, `int32 (batch, length)` each.

        Args:
            texts: `string (batch,)`, UTF-8.
            pairs: Of pairs, the second texts.
        """
        return self.framed([self.tokens(column) for column in (texts, pairs) if column is not None])

    def of_words(self, texts: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Returns inputs of texts whose words are told apart by white space.

        Returns:
            The inputs; where the first token of each word is, `int32 (batch, words)`, -1 of a word
            that the network does not see; and which words there are, `bool (batch, words)`.
        """
        import tensorflow as tf

        plain = tf.strings.strip(tf.strings.regex_replace(texts, rf"[{SPACE}]+", " "))
        words = tf.strings.split(plain, " ")
        words = tf.ragged.boolean_mask(words, words != "")
        tokens = tf.RaggedTensor.from_row_splits(self.tokens(words.values), words.row_splits)
        counts = words.with_values(tokens.values.row_lengths())
        many = counts.to_tensor(0)
        first = tf.cumsum(many, axis=1, exclusive=True)
        fixed = len(self.frame) - 1
        before = next(at for at, (role, _) in enumerate(self.frame) if role == "A")
        seen = (many > 0) & (first < self.length - fixed)
        place = tf.cast(tf.where(seen, first + before, -1), tf.int32)
        real = tf.sequence_mask(words.row_lengths(), tf.shape(place)[1])
        return self.framed([tokens.merge_dims(1, 2)]), place, real

    def framed(self, parts: Sequence[Any]) -> dict[str, Tensor]:
        """Returns the inputs of the network of tokens of one text or two, ragged."""
        import tensorflow as tf

        lengths = [part.row_lengths() for part in parts]
        fixed = len(self.frame) - len(parts)
        room = self.length - fixed
        kept: Sequence[Tensor] = [tf.minimum(lengths[0], room)]
        if len(parts) > 1:
            kept = _longest_first(lengths[0], lengths[1], room)
        batch = parts[0].nrows()
        pieces, numbers = [], []
        for role, segment in self.frame:
            if role in "AB":
                at = "AB".index(role)
                piece = _chosen(parts[at], lengths[at], kept[at], self.truncation)
            else:
                one = tf.fill([batch, 1], tf.constant(self.special[role], tf.int32))
                piece = tf.RaggedTensor.from_tensor(one)
            pieces.append(piece)
            numbers.append(tf.ones_like(piece) * segment)
        ids = tf.concat(pieces, axis=1)
        found = {
            "token_ids": _dense(ids, self.special["pad"]),
            "padding_mask": _dense(tf.ones_like(ids), 0),
        }
        if self.segments:
            found["segment_ids"] = _dense(tf.concat(numbers, axis=1), 0)
        return found

    def tokens(self, texts: Tensor) -> Any:
        """Returns the tokens of each text alone, ragged `int32 (batch, None)`."""
        import tensorflow as tf
        import tensorflow_text as tf_text

        texts = tf.strings.unicode_transcode(
            texts, "UTF-8", "UTF-8", replace_control_characters=False
        )
        if self.mending.unicode != "none":
            texts = tf_text.normalize_utf8(texts, self.mending.unicode.upper())
        if self.mending.whitespace:
            texts = tf.strings.strip(tf.strings.regex_replace(texts, r"[\s\p{Z}]+", " "))
        return self.rules.tokens(texts)

    def differing(
        self, rows: Sequence[tuple[str, ...]], tokenizer: Tokenizer, recipe: Recipe
    ) -> str:
        """Returns the first text of which the graph makes other tokens than training, or "".

        Args:
            rows: Texts, or pairs of texts.
            tokenizer: Of the run.
            recipe: Of the run.
        """
        import numpy as np
        import tensorflow as tf

        columns = [tuple(column) for column in zip(*rows, strict=True)]
        words = tuple(tuple(text.split()) for text in columns[0]) if self.words else None
        held = Texts(columns[0], columns[1] if self.pair else None, words)
        wanted, _ = tokenizing.inputs_of(held, tokenizer, recipe)
        made = tf.function(self.of_words if self.words else self.inputs)
        for start in range(0, len(rows), _BATCH):
            some = np.arange(start, min(start + _BATCH, len(rows)))
            told = made(*(tf.constant([column[row] for row in some]) for column in columns))
            inputs = told[0] if self.words else told
            got = {name: np.asarray(value) for name, value in inputs.items()}
            for row, length, *found in zip(
                some, got["padding_mask"].sum(1), *(got.values()), strict=True
            ):
                told = wanted.padded(np.asarray([row]))
                real = int(wanted.ids.lengths[row])
                same = length == real and all(
                    np.array_equal(values[:length], told[name][0, :real])
                    for name, values in zip(got, found, strict=True)
                )
                if not same:
                    return " / ".join(rows[row])
        return ""


def _dense(ragged: Any, filler: int) -> Tensor:
    """Fills rows up to the longest of them, which has one number at least."""
    import tensorflow as tf

    made = ragged.to_tensor(filler)
    missing = tf.maximum(1 - tf.shape(made)[1], 0)
    return tf.pad(made, [[0, 0], [0, missing]], constant_values=filler)


def _longest_first(first: Tensor, second: Tensor, room: int) -> Sequence[Tensor]:
    """Shares the room out as `backbones.tokenizers` does."""
    import tensorflow as tf

    short = tf.minimum(first, second)
    left = tf.where(short > room, short, tf.maximum(short, room - short))
    halve = short + left > room
    less = tf.where(halve, tf.constant(room // 2, tf.int64), short)
    more = tf.where(halve, tf.constant(room // 2 + room % 2, tf.int64), left)
    fits, swapped = first + second <= room, first > second
    return [
        tf.where(fits, first, tf.where(swapped, more, less)),
        tf.where(fits, second, tf.where(swapped, less, more)),
    ]


def _chosen(tokens: Any, lengths: Tensor, kept: Tensor, truncation: Truncation) -> Any:
    """Returns the tokens of each text that stay, ragged."""
    import tensorflow as tf

    head = {"head": kept, "tail": tf.zeros_like(kept), "head_tail": (kept + 2) // 4}[truncation]
    place = tf.ragged.range(lengths)
    tail = lengths - (kept - head)
    stays = (place < head[:, None]) | (place >= tail[:, None])
    return tf.ragged.boolean_mask(tokens, stays)
