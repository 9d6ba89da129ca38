"""Turns texts into the token ids of a language family, and back.

A tokenizer is the vocabulary of some weights plus the family's rules: its special tokens, its
segment ids, how pairs are joined. It stands on the Rust library `tokenizers`, needs no Keras, and
lies in a run's folder as one JSON file, which is data and is never run. Refused: what is no text,
a vocabulary of another family, ids that the network has no row for.

    tokenizer = Tokenizer.from_folder("bert-base-uncased", model_type="bert")
    batch = tokenizer.encode(["a text", "another"], length=128)
    first = batch.ids[batch.starts[0] : batch.starts[1]]
    tokenizer.decode(first)
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import models, pre_tokenizers, trainers

from kerastune_ft import files
from kerastune_ft.backbones import vocabularies
from kerastune_ft.backbones.tokenizer_families import Frame, family
from kerastune_ft.errors import DataError, ModelError, WeightsError

__all__ = ["Encoded", "Piece", "Tokenizer", "Truncation"]

Truncation = Literal["head", "tail", "head_tail"]

_FORMAT = 1
_FEWEST, _SPARE = 0.9, 512
"""Embeddings are padded with rows that no token has: to a tenth of them, or so many, are fine."""

_AT_ONCE = 4096
"""Texts given to the Rust library together; bounds the memory of what it answers."""

_SAMPLE = (
    "The quick brown fox jumps over the lazy dog. A good film, and a bad one!",
    "Who is it? It was not the best of times; it was the worst of times.",
)
_ASCII = "".join(map(chr, range(33, 127)))


@dataclass(frozen=True)
class Encoded:
    """Holds the tokens of n examples, one after the other.

    Attributes:
        ids: `int32 (tokens,)`; example i has `ids[starts[i]:starts[i + 1]]`. An empty text of
            GPT-2 has none, as in the reference.
        segments: `int32 (tokens,)`: 0 for a first text, 1 for a second where the family tells
            them apart, 2 for XLNet's `<cls>`.
        starts: `int64 (n + 1,)`.
        truncated: `bool (n,)`: whether tokens of the example were left out.
        words: `int32 (tokens,)`, of `encode_words`: the number of the word a token is part of,
            -1 for special tokens.
    """

    ids: NDArray[np.int32]
    segments: NDArray[np.int32]
    starts: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    words: NDArray[np.int32] | None = None


@dataclass(frozen=True)
class Piece:
    """Shows one token to people.

    Attributes:
        text: It alone, decoded.
        special: Whether it is none of the text's own.
        kept: Whether the network sees it; else it was cut off.
    """

    text: str
    special: bool
    kept: bool = True


class Tokenizer:
    """Encodes texts as the reference implementation of a family does, and decodes ids.

    Special tokens that a user types, such as `[MASK]` or `</s>`, become the special token, as in
    transformers: who serves a model to strangers and minds has to take them out of the texts.
    Encoding changes nothing, so threads may share a tokenizer.

    Attributes:
        model_type: Of the family, as Hugging Face calls it.
        kind: `wordpiece`, `bpe` or `unigram`.
        vocabulary_size: The highest id and one.
        pad_id: GPT-2 has no token for padding and takes that of the end.
        bos_id: None where the family has none; so are `eos_id`, `cls_id`, `sep_id`, `mask_id`
            and `unk_id`.
        special: The special tokens by role.
    """

    def __init__(
        self, rust: tokenizers.Tokenizer, model_type: str, special: dict[str, str]
    ) -> None:
        """Wraps a tokenizer of the library; the `from_` methods and `load` are the way in."""
        self._rust = rust
        self._family = family(model_type)
        self.model_type = self._family.model_type
        self.kind = self._family.kind
        self.special = special
        ids = {role: rust.token_to_id(token) for role, token in special.items()}
        self.bos_id, self.eos_id = ids.get("bos"), ids.get("eos")
        self.cls_id, self.sep_id = ids.get("cls"), ids.get("sep")
        self.mask_id, self.unk_id = ids.get("mask"), ids.get("unk")
        pad = ids.get("pad", self.eos_id)
        assert pad is not None
        self.pad_id: int = pad
        self.vocabulary_size: int = max(rust.get_vocab(with_added_tokens=True).values()) + 1

    @classmethod
    def from_folder(cls, path: str | Path, *, model_type: str) -> Tokenizer:
        """Reads the tokenizer of a Hugging Face folder.

        Args:
            path: Holds `tokenizer.json`, or `vocab.txt`, or `vocab.json` with `merges.txt`, or
                `spiece.model` (`spm.model`); `tokenizer_config.json` and `special_tokens_map.json`
                are honoured.
            model_type: As the folder's `config.json` has it: `bert`, `roberta`, `t5`...

        Raises:
            WeightsError: If there is no vocabulary, it is damaged, or is another family's.
            ModelError: If the model type is unknown.
        """
        folder, row = Path(path).expanduser(), family(model_type)
        return cls(*_swap(row.model_type, vocabularies.from_folder(folder, row)))

    @classmethod
    def from_preset_folder(cls, path: str | Path, *, model_type: str) -> Tokenizer:
        """Reads the tokenizer of a KerasHub preset.

        Args:
            path: Holds `tokenizer.json` of KerasHub and `assets/tokenizer/`.
            model_type: The family; also as KerasHub writes it (`distil_bert`, `deberta_v3`).

        Raises:
            WeightsError: If there is no vocabulary, it is damaged, or is another family's.
            ModelError: If the model type is unknown.
        """
        folder, row = Path(path).expanduser(), family(model_type)
        return cls(*_swap(row.model_type, vocabularies.from_preset_folder(folder, row)))

    @classmethod
    def tiny(
        cls, model_type: str, texts: Iterable[str] = (), vocabulary_size: int = 1000
    ) -> Tokenizer:
        """Makes a small vocabulary, for random weights; the same arguments make the same one.

        Args:
            model_type: The family.
            texts: Their characters and most frequent words are in the vocabulary; all of ASCII is.
            vocabulary_size: At most so many entries, 300 or more; few texts make fewer.

        Raises:
            ModelError: If the vocabulary would be too small for its alphabet.
        """
        row = family(model_type)
        sample = [_clean(text, number) for number, text in enumerate(texts)] or list(_SAMPLE)
        names = list(dict.fromkeys([*row.special.values(), *row.extra]))
        if vocabulary_size < 300:
            raise ModelError(
                f"vocabulary_size: expected 300 or more (bytes and special tokens), "
                f"got {vocabulary_size}."
            )
        if row.kind == "bpe":
            rust = vocabularies.assemble(row, models.BPE(), {})
            trainer = trainers.BpeTrainer(
                vocab_size=vocabulary_size,
                special_tokens=names,
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            )
            rust.train_from_iterator(sample, trainer)
        elif row.kind == "wordpiece":
            blank = vocabularies.assemble(
                row, models.WordPiece(vocab={"[UNK]": 0}, unk_token="[UNK]"), {}
            )
            words = _count(blank, sample)
            letters = [*_ASCII.lower(), *_frequent(c for w, n in words.items() for c in w * n)]
            letters = list(dict.fromkeys(letters))[: (vocabulary_size - len(names)) // 2]
            entries = [*names, *letters, *("##" + c for c in letters), *_ranked(words)]
            kept = list(dict.fromkeys(entries))[:vocabulary_size]
            model = models.WordPiece(
                vocab={x: i for i, x in enumerate(kept)}, unk_token=row.special["unk"]
            )
            rust = vocabularies.assemble(row, model, {})
        else:
            unknown = names.index(row.special["unk"])
            blank = vocabularies.unigram(row, [(row.special["unk"], 0.0)], 0, {})
            words = _count(blank, sample)
            letters = _frequent(c for word, n in words.items() for c in word * n)
            letters = list(dict.fromkeys([*letters[: vocabulary_size // 2], "▁", *_ASCII]))
            entries = list(dict.fromkeys([*letters, *_ranked(words)]))
            kept = entries[: vocabulary_size - len(names)]
            total = sum(words.values()) + 1
            # A letter costs more than any word, so that words are found whole.
            least = -math.log(total) - 1
            scores = [math.log(words[x] / total) if len(x) > 1 else least for x in kept]
            pieces = [*((x, 0.0) for x in names), *zip(kept, scores, strict=True)]
            rust = vocabularies.unigram(row, pieces, unknown, {})
        special = vocabularies.finish(rust, row, row.special, Path("a tiny tokenizer"))
        return cls(rust, row.model_type, special)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Reads a file that `save` wrote.

        Raises:
            WeightsError: If it is missing, damaged, or of a later version.
        """
        path = Path(path)
        facts = vocabularies.read_json(path)
        ours, body = facts.get("kft"), facts.get("tokenizer")
        if not isinstance(ours, dict) or not isinstance(body, dict):
            raise WeightsError(
                f"{path}: no tokenizer of this program; 'from_folder' reads those of other ones."
            )
        if ours.get("format") != _FORMAT:
            raise WeightsError(
                f"{path}: format {ours.get('format')}, this version reads {_FORMAT}; "
                "update kerastune_ft."
            )
        special = ours.get("special")
        right = isinstance(special, dict) and all(isinstance(x, str) for x in special.values())
        if special is None or not right or not isinstance(ours.get("model_type"), str):
            raise WeightsError(f"{path}: the facts under 'kft' are incomplete; copy it again.")
        row = family(ours["model_type"])
        rust = vocabularies.from_text(json.dumps(body), path)
        loaded = cls(rust, row.model_type, vocabularies.finish(rust, row, special, path))
        # The library's JSON reader is an ulp off for some scores: writing again would change them.
        loaded._text = vocabularies.read_text(path)
        return loaded

    def save(self, path: str | Path) -> None:
        """Writes one JSON file: `tokenizer` as the library reads it, and `kft`, our facts."""
        files.write_text(Path(path), self._text)

    def fingerprint(self) -> str:
        """Returns the sha256 of what `save` writes."""
        return hashlib.sha256(self._text.encode()).hexdigest()

    def id_of(self, role: str) -> int:
        """Returns the number of a special token, such as that of `cls`."""
        found = self._rust.token_to_id(self.special[role])
        assert found is not None, role
        return found

    def definition(self) -> dict[str, Any]:
        """Returns the vocabulary and the rules as the library `tokenizers` writes them."""
        return dict(json.loads(self._text)["tokenizer"])

    @functools.cached_property
    def _text(self) -> str:
        ours = {"format": _FORMAT, "model_type": self.model_type, "special": self.special}
        body = json.loads(self._rust.to_str())
        return json.dumps({"kft": ours, "tokenizer": body}, ensure_ascii=False, sort_keys=True)

    def encode(
        self,
        texts: Sequence[str],
        seconds: Sequence[str] | None = None,
        *,
        length: int,
        truncation: Truncation = "head",
    ) -> Encoded:
        """Encodes texts, or pairs of texts, with the family's special tokens.

        Pairs are cut as the reference does, the longer text first. GPT-2 has no rule for pairs;
        its token for the end of a text stands between the two. Lone surrogates become U+FFFD.

        Args:
            texts: Of any length, empty ones too.
            seconds: As many.
            length: Of an example with its special tokens, at most.
            truncation: Which tokens of a text stay: the beginning, the end, or a quarter from the
                beginning and the rest from the end.

        Raises:
            DataError: If something is no text, or there are not as many seconds as texts.
            ModelError: If the length leaves no room for a token.

        Reference:
            Sun et al. 2019, head and tail. https://arxiv.org/abs/1905.05583
        """
        if seconds is not None and len(seconds) != len(texts):
            raise DataError(
                f"expected as many second texts as first, {len(texts)}; got {len(seconds)}."
            )
        frame = self._family.single if seconds is None else self._family.pair
        room = self._room(frame, length)
        parts = [_Part(*self._flat(texts))]
        if seconds is not None:
            parts.append(_Part(*self._flat(seconds)))
        return self._frame(parts, frame, room, truncation)

    def pieces(
        self, text: str, second: str | None = None, *, length: int, truncation: Truncation = "head"
    ) -> list[Piece]:
        """Returns the tokens that `encode` makes of a text or pair, and those that it cuts off."""
        frame = self._family.single if second is None else self._family.pair
        parts = [_Part(*self._flat([each])) for each in (text, second) if each is not None]
        lengths, room = [part.lengths for part in parts], self._room(frame, length)
        kept = [np.minimum(lengths[0], room)]
        if len(parts) > 1:
            kept = _longest_first(lengths[0], lengths[1], room)
        shown: list[Piece] = []
        for role, _ in frame:
            if role not in "AB":
                shown.append(Piece(self.special[role], special=True))
                continue
            part, count = parts["AB".index(role)], kept["AB".index(role)]
            stays = set(_chosen(part.lengths, count, truncation).tolist())
            shown += [
                Piece(piece.text, piece.special, place in stays)
                for place, piece in enumerate(self.pieces_of(part.ids))
            ]
        return shown

    def pieces_of(self, ids: Iterable[int]) -> list[Piece]:
        """Returns what there is to show of ids."""
        names = set(self.special.values())
        numbers = [int(x) for x in ids]
        tokens = [self._rust.id_to_token(x) or "" for x in numbers]
        return [
            Piece(token if token in names else self.decode([x], skip_special=False), token in names)
            for x, token in zip(numbers, tokens, strict=True)
        ]

    def encode_words(self, sentences: Sequence[Sequence[str]], *, length: int) -> Encoded:
        """Encodes sentences that are split into words, as for naming entities.

        Equals transformers' `is_split_into_words=True`; every word of RoBERTa and GPT-2 gets its
        space. A word of control characters alone has no token.

        Args:
            sentences: The words of each.
            length: Of an example with its special tokens, at most; the beginning stays.

        Raises:
            DataError: If a word is no text.
            ModelError: If the length leaves no room for a token.
        """
        frame = self._family.single
        room = self._room(frame, length)
        lists = [
            [_clean(word, number) for word in _listed(sentence, "words")]
            for number, sentence in enumerate(sentences)
        ]
        _use_threads()
        found: list[Any] = []
        for start in range(0, len(lists), _AT_ONCE):
            encodings = self._for_words.encode_batch(
                lists[start : start + _AT_ONCE], is_pretokenized=True, add_special_tokens=False
            )
            found += [(x.ids, x.word_ids) for x in encodings]
        part = _Part(
            _array(ids for ids, _ in found),
            np.array([len(ids) for ids, _ in found], np.int64),
            _array(words for _, words in found),
        )
        return self._frame([part], frame, room, "head")

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Returns the text of ids, as the reference does without cleaning up spaces.

        Args:
            ids: Those below 0, which mark what a loss leaves out, are skipped.
            skip_special: Leaves special tokens out, the unknown one too.
        """
        return self._rust.decode([int(x) for x in ids if x >= 0], skip_special_tokens=skip_special)

    def check(self, vocabulary_size: int, where: str) -> None:
        """Makes sure that a network has a row for every id, and not many more.

        Args:
            vocabulary_size: Rows of the network's embedding. 512 more than the tokenizer has
                entries are fine, and a ninth more: rows are often padded.
            where: Begins the message.

        Raises:
            WeightsError: If there are too few, or so many that the tokenizer must be another's.
        """
        spare = vocabulary_size - self.vocabulary_size
        if spare > _SPARE and self.vocabulary_size < _FEWEST * vocabulary_size:
            raise WeightsError(
                f"{where}: the tokenizer has only {self.vocabulary_size:,} entries, the network "
                f"{vocabulary_size:,}: its files are cut off or belong to other weights; "
                "take the tokenizer from the weights' own folder."
            )
        if spare < 0:
            raise WeightsError(
                f"{where}: the tokenizer has {self.vocabulary_size:,} entries, the network "
                f"{vocabulary_size:,}: it does not belong to these weights; "
                "take the tokenizer from the weights' own folder."
            )

    def _room(self, frame: Frame, length: int) -> int:
        """Returns how many tokens of texts fit."""
        room = length - sum(role not in "AB" for role, _ in frame)
        if room < 1:
            raise ModelError(
                f"length {length}: the special tokens of {self.model_type} leave no room for "
                f"a text; {length + 1 - room} is the least."
            )
        return room

    def _flat(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Returns the ids of all texts in a row, without special tokens, and how many each has."""
        _use_threads()
        pieces, lengths = [], []
        for start in range(0, len(_listed(texts, "texts")), _AT_ONCE):
            some = texts[start : start + _AT_ONCE]
            cleaned = [_clean(text, start + number) for number, text in enumerate(some)]
            lists = [x.ids for x in self._rust.encode_batch_fast(cleaned, add_special_tokens=False)]
            lengths += [len(x) for x in lists]
            pieces.append(_array(lists))
        ids = np.concatenate(pieces) if pieces else np.zeros(0, np.int32)
        return ids, np.array(lengths, np.int64)

    def _frame(
        self, parts: list[_Part], frame: Frame, room: int, truncation: Truncation
    ) -> Encoded:
        """Cuts texts and sets them between the special tokens."""
        lengths = [part.lengths for part in parts]
        kept = [np.minimum(lengths[0], room)]
        if len(parts) > 1:
            kept = _longest_first(lengths[0], lengths[1], room)
        fixed = len(frame) - len(parts)
        sizes = np.sum(kept, axis=0) + fixed
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        ids = np.empty(starts[-1], np.int32)
        segments = np.empty(starts[-1], np.int32)
        words = np.full(starts[-1], -1, np.int32) if parts[0].words is not None else None
        here = starts[:-1].copy()
        for role, segment in frame:
            if role in ("A", "B"):
                part, count = parts["AB".index(role)], kept["AB".index(role)]
                source = _chosen(part.lengths, count, truncation)
                target = np.repeat(here, count) + _within(count)
                ids[target], segments[target] = part.ids[source], segment
                if words is not None and part.words is not None:
                    words[target] = part.words[source]
                here += count
            else:
                ids[here] = self._rust.token_to_id(self.special[role])
                segments[here] = segment
                here += 1
        total = np.sum(lengths, axis=0)
        return Encoded(ids, segments, starts, total > np.sum(kept, axis=0), words)

    @functools.cached_property
    def _for_words(self) -> tokenizers.Tokenizer:
        if self.kind != "bpe":
            return self._rust
        facts = json.loads(self._rust.to_str())
        _set_prefix_space(facts["pre_tokenizer"])
        return tokenizers.Tokenizer.from_str(json.dumps(facts))


@dataclass(frozen=True)
class _Part:
    """The first or the second texts: their tokens in a row."""

    ids: NDArray[np.int32]
    lengths: NDArray[np.int64]
    words: NDArray[np.int32] | None = None


def _swap(
    model_type: str, read: tuple[tokenizers.Tokenizer, dict[str, str]]
) -> tuple[tokenizers.Tokenizer, str, dict[str, str]]:
    return read[0], model_type, read[1]


def _listed(texts: Sequence[str], what: str) -> Sequence[str]:
    """Refuses a lone text, whose letters would pass for texts."""
    if isinstance(texts, str):
        raise DataError(f"expected a list of {what}, got the text {texts!r:.80}; give [text].")
    return texts


def _clean(text: object, number: int) -> str:
    """Returns a text that Rust takes: lone surrogates, which no UTF-8 can hold, are replaced."""
    if not isinstance(text, str):
        raise DataError(
            f"text {number}: expected a text, got {text!r:.80} ({type(text).__name__}); "
            "leave out rows without a text, or write an empty one."
        )
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _array(lists: Iterable[list[int]]) -> NDArray[np.int32]:
    return np.fromiter(itertools.chain.from_iterable(lists), np.int32)


def _within(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts from 0 within every example."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _chosen(
    lengths: NDArray[np.int64], kept: NDArray[np.int64], truncation: Truncation
) -> NDArray[np.int64]:
    """Returns where the tokens that stay lie, of texts in a row."""
    place = _within(kept)
    start = np.repeat(np.cumsum(lengths) - lengths, kept)
    head = {"head": kept, "tail": kept * 0, "head_tail": (kept + 2) // 4}[truncation]
    jump = np.where(place < np.repeat(head, kept), 0, np.repeat(lengths - kept, kept))
    return start + place + jump


def _longest_first(
    first: NDArray[np.int64], second: NDArray[np.int64], room: int
) -> list[NDArray[np.int64]]:
    """Shares the room out as the library's `LongestFirst` does.

    Reference:
        `truncate_encodings` in
        https://github.com/huggingface/tokenizers/blob/main/tokenizers/src/utils/truncation.rs
    """
    short = np.minimum(first, second)
    left = np.where(short > room, short, np.maximum(short, room - short))
    halve = short + left > room
    less = np.where(halve, room // 2, short)
    more = np.where(halve, room // 2 + room % 2, left)
    fits = first + second <= room
    swapped = first > second
    return [
        np.where(fits, first, np.where(swapped, more, less)),
        np.where(fits, second, np.where(swapped, less, more)),
    ]


def _set_prefix_space(step: dict[str, Any]) -> None:
    for inner in step.get("pretokenizers", ()):
        _set_prefix_space(inner)
    if step.get("type") == "ByteLevel":
        step["add_prefix_space"] = True


@functools.cache
def _use_threads() -> None:
    """Lets the library's threads run, but never in a forked child, where they are gone.

    Unless the user decided: the library warns on stderr after every fork otherwise.
    """
    if "TOKENIZERS_PARALLELISM" not in os.environ:
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                after_in_child=lambda: os.environ.update(TOKENIZERS_PARALLELISM="false")
            )


def _count(rust: tokenizers.Tokenizer, texts: Iterable[str]) -> Counter[str]:
    words: Counter[str] = Counter()
    for text in texts:
        plain = rust.normalizer.normalize_str(text) if rust.normalizer else text
        assert rust.pre_tokenizer is not None
        words.update(word for word, _ in rust.pre_tokenizer.pre_tokenize_str(plain))
    return words


def _ranked(words: Counter[str]) -> list[str]:
    """The most frequent first; the alphabet decides where two are alike."""
    return sorted(words, key=lambda word: (-words[word], word))


def _frequent(letters: Iterable[str]) -> list[str]:
    return _ranked(Counter(letters))
