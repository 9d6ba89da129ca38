"""Tokenizers as operations of TensorFlow and TensorFlow Text, made of those of `tokenizers`.

    rules = rules_of(tokenizer)             # or a `str`: why there are none
    rules.tokens(texts)                     # string (n,) -> ragged int32 (n, None)

WordPiece is `FastBertTokenizer`; unigram is SentencePiece's own operation on a model that is put
together again; byte pairs are merged here, for TensorFlow Text has no operation that does. None
keeps what it has seen: a server must not grow with its requests.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from kerastune_ft.backbones.tokenizers import Tokenizer

Tensor: TypeAlias = Any
Facts: TypeAlias = Mapping[str, Any]

_LONGEST_WORD = 100
# What BERT's tokenizer takes out before anything else.
_REMOVED = r"[\x{0}\x{FFFD}\x{1}-\x{8}\x{B}\x{C}\x{E}-\x{1F}\x{7F}-\x{9F}]|\p{Cf}|\p{Co}"
SPACE = r"\s\x{0B}\x{1C}-\x{1F}\x{85}\p{Z}"
# GPT-2's words; what looks ahead, which RE2 cannot, is done afterwards.
_WORDS = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^{SPACE}\p{{L}}\p{{N}}]+|[{SPACE}]+"


class Rules(Protocol):
    """Makes tokens of texts in a graph."""

    def tokens(self, texts: Tensor) -> Any:
        """Returns the tokens of each text alone, ragged `int32 (n, None)`.

        Args:
            texts: `string (n,)`, UTF-8.
        """

    @property
    def resources(self) -> list[Any]:
        """What a SavedModel has to own."""

    def of_words(self) -> Rules:
        """Returns the rules for words that were told apart before."""

    def texts(self, ids: Any, skip: tuple[int, ...]) -> Tensor:
        """Returns the texts of tokens, `string (n,)`.

        Args:
            ids: Ragged `int32 (n, None)`.
            skip: Tokens that are left out.
        """


def rules_of(tokenizer: Tokenizer) -> Rules | str:
    """Returns the rules of a tokenizer, or why there are none."""
    facts = tokenizer.definition()
    maker = {"wordpiece": _word_piece, "unigram": _unigram, "bpe": _byte_pairs}[tokenizer.kind]
    made: Rules | str = maker(facts)
    if isinstance(made, str):
        return f"the tokenizer of {tokenizer.model_type} has no operations here: {made}"
    return made


# WordPiece


@dataclass(frozen=True)
class WordPiece:
    """BERT's rules.

    Args:
        vocabulary: By number.
        lower_case: Whether letters become small and lose their accents.
    """

    vocabulary: tuple[str, ...]
    lower_case: bool

    @property
    def resources(self) -> list[Any]:
        """Nothing: the vocabulary is a constant."""
        return []

    def tokens(self, texts: Tensor) -> Any:
        """See `Rules`."""
        import tensorflow as tf
        import tensorflow_text as tf_text

        tokenizer = tf_text.FastBertTokenizer(
            vocab=list(self.vocabulary),
            max_bytes_per_word=_LONGEST_WORD,
            token_out_type=tf.int32,
        )
        texts = tf.strings.regex_replace(texts, _REMOVED, "")
        if self.lower_case:  # its own way of doing so tears letters such as ß apart
            texts = tf_text.normalize_utf8(texts, "NFD")
            texts = tf.strings.lower(tf.strings.regex_replace(texts, r"\p{Mn}", ""), "utf-8")
        return tokenizer.tokenize(texts)

    def of_words(self) -> Rules:
        """See `Rules`."""
        return self

    def texts(self, ids: Any, skip: tuple[int, ...]) -> Tensor:
        """See `Rules`."""
        raise AssertionError("networks with WordPiece write no texts")


def _word_piece(facts: Facts) -> WordPiece | str:
    normalizer, model = facts.get("normalizer") or {}, facts["model"]
    strip, lower = normalizer.get("strip_accents"), bool(normalizer.get("lowercase"))
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
    if not usual:
        return "its rules for letters and words are not BERT's"
    names = sorted(model["vocab"], key=model["vocab"].__getitem__)
    if [model["vocab"][name] for name in names] != list(range(len(names))):
        return "the numbers of its vocabulary have gaps"
    return WordPiece(tuple(names), lower)


# unigram


@dataclass(frozen=True)
class Unigram:
    """SentencePiece's rules.

    Args:
        model: A SentencePiece model.
        steps: What is done to a text before: names and patterns, in their order.
    """

    model: bytes
    steps: tuple[tuple[str, str, str], ...]

    @functools.cached_property
    def _operation(self) -> Any:
        import tensorflow as tf
        import tensorflow_text as tf_text

        with tf.init_scope():
            return tf_text.SentencepieceTokenizer(model=self.model, out_type=tf.int32)

    @property
    def resources(self) -> list[Any]:
        """The loaded model."""
        return [self._operation]

    def tokens(self, texts: Tensor) -> Any:
        """See `Rules`."""
        import tensorflow as tf
        import tensorflow_text as tf_text

        for name, pattern, content in self.steps:
            if name == "Replace":
                texts = tf.strings.regex_replace(texts, pattern, content)
            elif name == "Lowercase":
                texts = tf.strings.lower(texts, encoding="utf-8")
            else:
                texts = tf_text.normalize_utf8(texts, name)
        return self._operation.tokenize(texts)

    def of_words(self) -> Rules:
        """See `Rules`."""
        return self

    def texts(self, ids: Any, skip: tuple[int, ...]) -> Tensor:
        """See `Rules`."""
        return self._operation.detokenize(_without(ids, skip))


_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3


def _unigram(facts: Facts) -> Unigram | str:
    from sentencepiece import sentencepiece_model_pb2

    found = _steps(facts.get("normalizer"))
    if isinstance(found, str):
        return found
    steps, charsmap = found
    steps = (*steps, ("Replace", rf"[{SPACE}]+", " "))  # of which SentencePiece knows one alone
    split = _listed(facts.get("pre_tokenizer"), "pretokenizers")
    kinds = [step["type"] for step in split]
    metaspace = split[-1] if split else {}
    usual = kinds in (["WhitespaceSplit", "Metaspace"], ["Metaspace"])
    if not usual or metaspace.get("prepend_scheme", "always") != "always":
        return f"it splits words by {', '.join(kinds) or 'nothing'}"
    model = facts["model"]
    special = {token["content"] for token in facts.get("added_tokens", []) if token.get("special")}
    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    for number, (piece, score) in enumerate(model["vocab"]):
        kind = _UNKNOWN if number == model["unk_id"] else _NORMAL
        kind = _CONTROL if piece in special and kind == _NORMAL else kind
        proto.pieces.add(piece=piece, score=score, type=kind)
    proto.trainer_spec.model_type = 1
    proto.trainer_spec.unk_id = model["unk_id"]
    proto.trainer_spec.vocab_size = len(proto.pieces)
    if model.get("byte_fallback"):
        return "it falls back to bytes"
    rules = proto.normalizer_spec
    rules.name, rules.precompiled_charsmap = "as_trained", charsmap
    rules.add_dummy_prefix = rules.remove_extra_whitespaces = rules.escape_whitespaces = True
    return Unigram(proto.SerializeToString(), steps)


def _steps(normalizer: Facts | None) -> tuple[tuple[tuple[str, str, str], ...], bytes] | str:
    """Returns what is done to a text before it is split, and SentencePiece's own map."""
    made: list[tuple[str, str, str]] = []
    charsmap = b""
    for step in _listed(normalizer, "normalizers"):
        kind = step["type"]
        if charsmap:
            return f"it does {kind} after its map of letters"
        if kind == "Precompiled":
            charsmap = base64.b64decode(step["precompiled_charsmap"])
        elif kind == "Replace":
            pattern = step["pattern"]
            text = pattern.get("Regex") or _quoted(pattern["String"])
            made.append(("Replace", text, step["content"].replace("\\", "\\\\")))
        elif kind == "StripAccents":
            made.append(("Replace", r"\p{Mn}", ""))
        elif kind in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase"):
            made.append((kind, "", ""))
        else:
            return f"it does {kind}"
    return tuple(made), charsmap


def _listed(step: Facts | None, inside: str) -> list[Facts]:
    """Returns the steps of a sequence, of a single step, or of nothing."""
    if step is None:
        return []
    return list(step[inside]) if step["type"] == "Sequence" else [step]


def _quoted(text: str) -> str:
    return "".join(rf"\x{{{ord(letter):X}}}" for letter in text)


# byte pairs


@dataclass(frozen=True)
class BytePairs:
    """GPT-2's rules.

    Args:
        octets: The number of the token of each of the 256 octets.
        pieces: Of each token the octets that it stands for.
        merges: Two tokens and the one that they become, the most urgent first.
        space_first: Whether a text begins with a space that it does not have.
    """

    octets: tuple[int, ...]
    pieces: tuple[bytes, ...]
    merges: tuple[tuple[int, int, int], ...]
    space_first: bool

    @functools.cached_property
    def _table(self) -> Any:
        """Where a pair is among the merges; behind the last one if it is none."""
        import tensorflow as tf

        with tf.init_scope():
            keys = tf.constant([left * _SPREAD + right for left, right, _ in self.merges], tf.int64)
            values = tf.range(len(self.merges), dtype=tf.int64)
            made = tf.lookup.KeyValueTensorInitializer(keys, values)
            return tf.lookup.StaticHashTable(made, len(self.merges))

    @property
    def resources(self) -> list[Any]:
        """The table of merges."""
        return [self._table]

    def tokens(self, texts: Tensor) -> Any:
        """See `Rules`."""
        import tensorflow as tf

        if self.space_first:
            begins = tf.strings.regex_full_match(texts, rf"(?s)[{SPACE}].*|")
            texts = tf.where(begins, texts, tf.strings.join([" ", texts]))
        words = self._words(texts)
        octets = tf.strings.bytes_split(words.values)
        padded = tf.concat([octets.values, [b"\x00"]], 0)  # of none no column could be taken
        numbers = tf.cast(tf.io.decode_raw(padded, tf.uint8)[:-1, 0], tf.int32)
        ids, of_word = tf.gather(tf.constant(self.octets, tf.int64), numbers), octets.value_rowids()
        # Long words take many rounds, in which short ones should not have to take part.
        long = tf.gather(octets.row_lengths() > _LONG, of_word)
        some = [
            self._merged(tf.boolean_mask(ids, part), tf.boolean_mask(of_word, part), octets.nrows())
            for part in (~long, long)
        ]
        ids, of_word = (tf.concat(both, 0) for both in zip(*some, strict=True))
        order = tf.argsort(of_word, stable=True)
        kept = tf.RaggedTensor.from_value_rowids(
            tf.gather(ids, order), tf.gather(of_word, order), nrows=octets.nrows()
        )
        whole = tf.RaggedTensor.from_row_splits(kept, words.row_splits)
        return tf.cast(whole.merge_dims(1, 2), tf.int32)

    def of_words(self) -> Rules:
        """See `Rules`."""
        return dataclasses.replace(self, space_first=True)

    def texts(self, ids: Any, skip: tuple[int, ...]) -> Tensor:
        """See `Rules`."""
        import tensorflow as tf

        pieces = tf.gather(tf.constant(self.pieces), _without(ids, skip))
        joined = tf.strings.reduce_join(pieces, axis=1)
        return tf.strings.unicode_transcode(
            joined, "UTF-8", "UTF-8", replace_control_characters=False
        )

    def _words(self, texts: Tensor) -> Any:
        """Returns the words of each text, ragged `string (n, None)`."""
        import tensorflow as tf
        import tensorflow_text as tf_text

        found = tf_text.regex_split(texts, _WORDS, _WORDS)
        # Of spaces before a word the last one is the word's, or a word of its own.
        words = found.values
        row = found.value_rowids()
        blank = tf.strings.regex_full_match(words, rf"[{SPACE}]+")
        same = tf.concat([row[1:] == row[:-1], tf.zeros([tf.minimum(tf.size(row), 1)], tf.bool)], 0)
        letters = tf.strings.length(words, unit="UTF8_CHAR")
        parted = blank & same & (letters > 1)
        most = tf.maximum(letters - 1, 0)
        first = tf.strings.substr(words, tf.zeros_like(most), most, unit="UTF8_CHAR")
        last = tf.strings.substr(words, most, tf.minimum(letters, 1), unit="UTF8_CHAR")
        lent = parted & (last == " ")
        before = tf.concat([tf.zeros([tf.minimum(tf.size(row), 1)], tf.bool), lent[:-1]], 0)
        words = tf.where(parted, first, words)
        words = tf.where(before, tf.strings.join([" ", words]), words)
        alone = tf.where(parted & ~lent, last, "")
        both = tf.reshape(tf.stack([words, alone], axis=1), [-1])
        rows = tf.repeat(row, 2)
        kept = both != ""
        return tf.RaggedTensor.from_value_rowids(
            tf.boolean_mask(both, kept), tf.boolean_mask(rows, kept), nrows=found.nrows()
        )

    def _merged(self, ids: Tensor, of_word: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Merges the most urgent pair of every word until none is left.

        All words lie in one row, so that memory grows with what there is to merge, however long
        the longest word is.

        Args:
            ids: `int64 (octets,)`.
            of_word: The number of the word of each, `int64 (octets,)`, ascending.
            words: How many words there are, `int64 ()`.

        Returns:
            The tokens, and the word of each.
        """
        import tensorflow as tf

        results = tf.constant([made for _, _, made in self.merges] or [0], tf.int64)
        never = tf.constant(len(self.merges), tf.int64)

        def ranks(ids: Tensor, of_word: Tensor, places: Tensor) -> Tensor:
            """Returns which merge the tokens at some places and behind them are."""
            behind = tf.minimum(places + 1, tf.size(ids) - 1)
            pairs = tf.gather(ids, places) * _SPREAD + tf.gather(ids, behind)
            real = (behind > places) & (tf.gather(of_word, places) == tf.gather(of_word, behind))
            return self._table.lookup(tf.where(real, pairs, tf.constant(-1, tf.int64)))

        def goes_on(ids: Tensor, of_word: Tensor, found: Tensor) -> Tensor:
            return tf.reduce_any(found < never)

        def step(ids: Tensor, of_word: Tensor, found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            every = tf.range(tf.size(ids))
            least = tf.gather(tf.math.unsorted_segment_min(found, of_word, words), of_word)
            candidates = tf.boolean_mask(every, (found == least) & (found < never))
            of_each = tf.gather(of_word, candidates)
            first = tf.concat([[True], of_each[1:] != of_each[:-1]], 0)
            place = tf.boolean_mask(candidates, first)  # of the leftmost one of each word
            made = tf.gather(results, tf.gather(found, place))
            ids = tf.tensor_scatter_nd_update(ids, place[:, tf.newaxis], made)
            gone = tf.scatter_nd(place[:, tf.newaxis] + 1, tf.ones_like(place), tf.shape(ids))
            kept = gone == 0
            ids, of_word, found = (tf.boolean_mask(row, kept) for row in (ids, of_word, found))
            place -= tf.range(tf.size(place))  # as many have gone before it
            changed = tf.concat([place, tf.maximum(place - 1, 0)], 0)
            again = ranks(ids, of_word, changed)
            return ids, of_word, tf.tensor_scatter_nd_update(found, changed[:, tf.newaxis], again)

        row = tf.TensorShape((None,))
        found = ranks(ids, of_word, tf.range(tf.size(ids)))
        merged = tf.while_loop(
            goes_on, step, (ids, of_word, found), shape_invariants=(row, row, row)
        )
        return merged[0], merged[1]


_LONG = 32
"""Octets of a word that is merged apart from short ones."""

_SPREAD = 1 << 32


def _byte_pairs(facts: Facts) -> BytePairs | str:
    model, split = facts["model"], facts.get("pre_tokenizer") or {}
    usual = (
        split.get("type") == "ByteLevel"
        and split.get("use_regex", True)
        and facts.get("normalizer") is None
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and not model.get("byte_fallback")
        and not model.get("ignore_merges")
    )
    if not usual:
        return "its rules for words are not GPT-2's"
    vocabulary = model["vocab"]
    letters = _letters_of_octets()
    try:
        octets = tuple(vocabulary[letters[octet]] for octet in range(256))
        merges = []
        for pair in model["merges"]:
            left, right = pair.split(" ") if isinstance(pair, str) else pair
            merges.append((vocabulary[left], vocabulary[right], vocabulary[left + right]))
    except KeyError as error:
        return f"its vocabulary has no {error}"
    octet_of = {letter: octet for octet, letter in letters.items()}
    pieces = [b""] * (max(vocabulary.values()) + 1)
    for piece, number in vocabulary.items():
        known = [octet_of.get(letter) for letter in piece]
        pieces[number] = piece.encode() if None in known else bytes(octet_of[x] for x in piece)
    first = bool(split.get("add_prefix_space"))
    return BytePairs(octets, tuple(pieces), tuple(merges), first)


def _without(ids: Any, skip: tuple[int, ...]) -> Any:
    import tensorflow as tf

    kept = tf.reduce_all(ids.values[:, tf.newaxis] != tf.constant(skip, tf.int32), axis=1)
    return tf.ragged.boolean_mask(ids, ids.with_values(kept))


def _letters_of_octets() -> dict[int, str]:
    """Returns the letter that stands for each octet in a vocabulary of byte pairs.

    Those that can be printed stand for themselves, the others take letters from 256 on.
    """
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [octet for octet in range(256) if octet not in printed]
    return {octet: chr(octet) for octet in printed} | {
        octet: chr(256 + number) for number, octet in enumerate(others)
    }
