"""Makes tokens of texts inside a graph, as a run's tokenizer makes them.

    inside = Inside.of(tokenizer, recipe)       # or a `str`: why it cannot be
    inputs = inside.inputs(texts)               # string (batch,) -> token_ids, padding_mask, ...

WordPiece alone, by the operations of TensorFlow Text, which TensorFlow Serving links. BPE and
unigram tokenizers stay outside of the graph: a server is given numbers of tokens, and the bundle
that makes them. In the graph special tokens that somebody types, such as `[MASK]`, are text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from kerastune_ft.backbones.tokenizer_families import Frame, family
from kerastune_ft.backbones.tokenizers import Tokenizer, Truncation
from kerastune_ft.data import tokenizing

if TYPE_CHECKING:
    from kerastune_ft.recipe import Recipe, TextCleaning

Tensor: TypeAlias = Any

_LONGEST_WORD = 100
# What BERT's tokenizer takes out before anything else; a replacement character counts as such.
_REMOVED = r"[\x{0}\x{FFFD}\x{1}-\x{8}\x{B}\x{C}\x{E}-\x{1F}\x{7F}-\x{9F}]|\p{Cf}|\p{Co}"


@dataclass(frozen=True)
class Inside:
    """A tokenizer that runs in a graph.

    Args:
        vocabulary: Of WordPiece, by number.
        lower_case: Whether letters become small and lose their accents.
        frame: What stands around one text, and around a pair.
        special: The number of the token of each role.
        length: The most tokens of an example.
        truncation: Which part of a text that is too long is kept.
        segments: Whether the network wants to know which text a token is of.
        mending: What is mended in every text first.
        pair: Whether two texts are read.
    """

    vocabulary: tuple[str, ...]
    lower_case: bool
    frame: Frame
    special: dict[str, int]
    length: int
    truncation: Truncation
    segments: bool
    mending: TextCleaning
    pair: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer, recipe: Recipe) -> Inside | str:
        """Returns the tokenizer of a run, or why it cannot run in a graph."""
        if tokenizer.kind != "wordpiece":
            return (
                f"the tokenizer of {tokenizer.model_type} ({tokenizer.kind}) has no operation in "
                "TensorFlow Text that is known to make the same tokens"
            )
        if recipe.task.name == "token_classification":
            return "words are told apart before they become tokens"
        mending = recipe.data.cleaning.text
        if mending.html or mending.mojibake or mending.control:
            return (
                "data.cleaning.text mends what no operation of TensorFlow mends (html, mojibake"
                ", control)"
            )
        facts = tokenizer.definition()
        lower = _lower_case(facts)
        if isinstance(lower, str):
            return lower
        vocabulary = facts["model"]["vocab"]
        names = sorted(vocabulary, key=vocabulary.__getitem__)
        if [vocabulary[name] for name in names] != list(range(len(names))):
            return "the numbers of the vocabulary have gaps"
        row = family(tokenizer.model_type)
        pair = recipe.data.pair_column is not None
        frame = row.pair if pair else row.single
        roles = {role for role, _ in frame} - {"A", "B"}
        special = {role: vocabulary.get(tokenizer.special[role]) for role in roles}
        missing = [role for role, number in special.items() if number is None]
        if missing or tokenizer.pad_id is None:
            return f"the vocabulary has no token for {', '.join(missing)}"
        return cls(
            tuple(names),
            lower,
            frame,
            {**special, "pad": tokenizer.pad_id},
            tokenizing.length_of(recipe),
            recipe.data.truncation,
            tokenizing.language_of(recipe).segments,
            mending,
            pair,
        )

    def inputs(self, texts: Tensor, pairs: Tensor | None = None) -> dict[str, Tensor]:
        """Returns the inputs of the network, `int32 (batch, length)` each.

        Args:
            texts: `string (batch,)`, UTF-8.
            pairs: Of pairs, the second texts.
        """
        import tensorflow as tf

        parts = [self.tokens(column) for column in (texts, pairs) if column is not None]
        lengths = [part.row_lengths() for part in parts]
        fixed = len(self.frame) - len(parts)
        room = self.length - fixed
        kept = [tf.minimum(lengths[0], room)]
        if len(parts) > 1:
            kept = _longest_first(lengths[0], lengths[1], room)
        batch = tf.shape(texts, tf.int64)[0]
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
            "token_ids": ids.to_tensor(self.special["pad"]),
            "padding_mask": tf.ones_like(ids).to_tensor(0),
        }
        if self.segments:
            found["segment_ids"] = tf.concat(numbers, axis=1).to_tensor(0)
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
        texts = tf.strings.regex_replace(texts, _REMOVED, "")
        tokenizer = tf_text.FastBertTokenizer(
            vocab=list(self.vocabulary),
            max_bytes_per_word=_LONGEST_WORD,
            token_out_type=tf.int32,
            lower_case_nfd_strip_accents=self.lower_case,
        )
        return tokenizer.tokenize(texts)


def _lower_case(facts: dict[str, Any]) -> bool | str:
    """Returns whether a WordPiece tokenizer makes letters small, or why it is not the usual one."""
    normalizer, model = facts.get("normalizer") or {}, facts["model"]
    strip = normalizer.get("strip_accents")
    lower = bool(normalizer.get("lowercase"))
    usual = (
        normalizer.get("type") == "BertNormalizer"
        and normalizer.get("clean_text", True)
        and normalizer.get("handle_chinese_chars", True)
        and (strip is None or bool(strip) == lower)
        and (facts.get("pre_tokenizer") or {}).get("type") == "BertPreTokenizer"
        and model.get("continuing_subword_prefix", "##") == "##"
        and model.get("max_input_chars_per_word", _LONGEST_WORD) == _LONGEST_WORD
        and model.get("unk_token", "[UNK]") == "[UNK]"
    )
    return lower if usual else "its rules for letters and words are not BERT's"


def _longest_first(first: Tensor, second: Tensor, room: int) -> Sequence[Tensor]:
    """Shares the room out as `backbones.tokenizers` does."""
    import tensorflow as tf

    short = tf.minimum(first, second)
    left = tf.where(short > room, short, tf.maximum(short, room - short))
    halve = short + left > room
    less = tf.where(halve, room // 2, short)
    more = tf.where(halve, room // 2 + room % 2, left)
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
