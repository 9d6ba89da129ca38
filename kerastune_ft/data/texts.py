"""Texts, the tokens that a tokenizer makes of them, and which of them share a batch.

Texts of similar length share a batch, which is padded to the smallest bucket that holds the
longest of them: a batch of short texts costs what short texts cost. Who shares a batch is a
function of (seed, epoch) alone, every epoch has the same number of batches, and every text is in
exactly one of them.

    batches = plan(tokens.lengths, tokens.batching, seed=0, epoch=3)
    tokens.padded(batches[0])["token_ids"]             # int32 (batch, length)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from kerastune_ft.backbones.tokenizers import Tokenizer

POOL_BATCHES = 50
"""Batches whose texts are sorted by length together; a new draw every epoch."""

BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)
"""Lengths in tokens that batches are padded to, as far as `sequence_length` allows."""


@dataclass(frozen=True)
class Texts:
    """Texts as they were read, or pairs of texts.

    Args:
        first: One per example.
        second: The other text of each pair; None where there are no pairs.
        words: The words of each example, where a word has a label; `first` joins them by spaces.
    """

    first: tuple[str, ...]
    second: tuple[str, ...] | None = None
    words: tuple[tuple[str, ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.first)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> Texts:
        """Returns the rows at `indices`, in that order."""
        rows = [int(row) for row in indices]

        def taken(column: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
            return None if column is None else tuple(column[row] for row in rows)

        return Texts(taken(self.first) or (), taken(self.second), taken(self.words))

    @classmethod
    def joined(cls, parts: Sequence[Texts]) -> Texts:
        """Returns the texts of several, one after the other."""
        first = tuple(text for part in parts for text in part.first)
        second = tuple(text for part in parts for text in part.second or ())
        words = tuple(text for part in parts for text in part.words or ())
        return cls(first, second or None, words or None)


@dataclass(frozen=True)
class Batching:
    """How texts become batches.

    Args:
        batch_size: Texts per batch.
        batch_tokens: If set, tokens per batch, padding included, in place of `batch_size`: a
            bucket of short texts has more of them.
        buckets: Lengths in tokens that batches are padded to, ascending; the last one holds
            every text.
    """

    batch_size: int
    batch_tokens: int | None
    buckets: tuple[int, ...]

    @classmethod
    def of(cls, batch_size: int, batch_tokens: int | None, sequence_length: int) -> Batching:
        """Returns the usual buckets up to `sequence_length` tokens."""
        shorter = (length for length in BUCKETS if length < sequence_length)
        return cls(batch_size, batch_tokens, (*shorter, sequence_length))


@dataclass(frozen=True)
class Ragged:
    """Rows of numbers of different lengths.

    Args:
        values: Of all rows, one after the other.
        starts: Where each row begins in `values`, `int64 (n,)`.
        lengths: Of each row, `int64 (n,)`.
    """

    values: NDArray[Any]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, values: NDArray[Any], offsets: NDArray[np.int64]) -> Ragged:
        """Returns rows of which row `i` is `values[offsets[i]:offsets[i + 1]]`."""
        return cls(values, offsets[:-1], np.diff(offsets))

    @classmethod
    def joined(cls, rows: Sequence[NDArray[Any]], dtype: Any = np.int32) -> Ragged:
        """Returns rows given one by one."""
        lengths = np.asarray([len(row) for row in rows], np.int64)
        values = np.concatenate([*rows, np.zeros(0, dtype)]).astype(dtype)
        return cls.of(values, np.concatenate([[0], lengths.cumsum()]).astype(np.int64))

    @classmethod
    def chained(cls, parts: Sequence[Ragged]) -> Ragged:
        """Returns the rows of several, one after the other."""
        begins = np.cumsum([0, *(len(part.values) for part in parts)])
        starts = [part.starts + begin for part, begin in zip(parts, begins, strict=False)]
        return cls(
            np.concatenate([part.values for part in parts]),
            np.concatenate(starts).astype(np.int64),
            np.concatenate([part.lengths for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: int) -> NDArray[Any]:
        start = int(self.starts[row])
        return self.values[start : start + int(self.lengths[row])]

    def take(self, rows: NDArray[np.int64]) -> Ragged:
        """Returns some rows; their values are shared, not copied."""
        return Ragged(self.values, self.starts[rows], self.lengths[rows])

    def padded(self, rows: NDArray[np.int64], length: int, filler: int) -> NDArray[Any]:
        """Returns `(len(rows), length)`, filled up at the end; no row may be longer."""
        places = np.arange(length)
        real = places < self.lengths[rows, None]
        where = np.where(real, self.starts[rows, None] + places, 0)
        if not len(self.values):
            return np.full(where.shape, filler, self.values.dtype)
        return np.where(real, self.values[where], filler).astype(self.values.dtype)


@dataclass(frozen=True)
class Tokens:
    """What a tokenizer made of texts, once, and how it is put into batches.

    Args:
        texts: What they were made of.
        ids: Numbers of tokens, at most `batching.buckets[-1]` a row.
        pad_id: Fills up shorter rows.
        batching: How they become batches.
        segments: Which text of a pair each token is of, for networks that want to know.
        marks: Of each token what is learned there: a label, the next token, or -1 for nothing;
            None where a whole text has one label.
        words: Of each mark that is one, in order, the word it is of; None where there are no words.
        targets: The texts that are to be written, with an end, for networks that write; None
            elsewhere.
        start_id: Stands before the first token that is written.
        tokenizer: That made them.
    """

    texts: Texts
    ids: Ragged
    pad_id: int
    batching: Batching
    segments: Ragged | None = None
    marks: Ragged | None = None
    words: Ragged | None = None
    targets: Ragged | None = None
    start_id: int = 0
    tokenizer: Tokenizer | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example, with those of its target where there is one, `(n,)`."""
        if self.targets is None:
            return self.ids.lengths
        return np.maximum(self.ids.lengths, self.targets.lengths)

    @property
    def places(self) -> NDArray[np.int64]:
        """At how many places of each example something is learned, `(n,)`."""
        learned = self.targets if self.targets is not None else self.marks
        assert learned is not None
        if self.targets is not None:
            return learned.lengths
        return np.asarray([int((learned[row] >= 0).sum()) for row in range(len(learned))], np.int64)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> Tokens:
        """Returns the rows at `indices`, in that order; numbers are shared, not copied."""
        rows = np.asarray(indices, np.int64)

        def taken(ragged: Ragged | None) -> Ragged | None:
            return None if ragged is None else ragged.take(rows)

        return replace(
            self,
            texts=self.texts.take(rows),
            ids=self.ids.take(rows),
            segments=taken(self.segments),
            marks=taken(self.marks),
            words=taken(self.words),
            targets=taken(self.targets),
        )

    def padded(self, rows: NDArray[np.int64]) -> dict[str, NDArray[np.int32]]:
        """Returns the inputs of a network for some rows, `int32 (batch, length)` each.

        The length is that of the smallest bucket that holds the longest of them.
        """
        length = bucket(int(self.ids.lengths[rows].max()), self.batching)
        ids = self.ids.padded(rows, length, self.pad_id).astype(np.int32)
        mask = (np.arange(length) < self.ids.lengths[rows, None]).astype(np.int32)
        if self.targets is not None:
            written = bucket(int(self.targets.lengths[rows].max()), self.batching)
            target = self.targets.padded(rows, written, self.pad_id).astype(np.int32)
            # A network that writes sees what stands before each place, from a start on.
            begin = np.full((len(rows), 1), self.start_id, np.int32)
            seen = (np.arange(written) < self.targets.lengths[rows, None]).astype(np.int32)
            return {
                "encoder_token_ids": ids,
                "encoder_padding_mask": mask,
                "decoder_token_ids": np.concatenate([begin, target[:, :-1]], axis=1),
                "decoder_padding_mask": seen,
            }
        made = {"token_ids": ids, "padding_mask": mask}
        if self.segments is not None:
            made["segment_ids"] = self.segments.padded(rows, length, 0).astype(np.int32)
        return made

    def marked(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """Returns what is learned at each place of some rows, `int32 (batch, length)`, -1 none."""
        learned = self.targets if self.targets is not None else self.marks
        assert learned is not None
        lengths = self.ids.lengths if self.targets is None else self.targets.lengths
        length = bucket(int(lengths[rows].max()), self.batching)
        return learned.padded(rows, length, -1).astype(np.int32)


def bucket(length: int, batching: Batching) -> int:
    """Returns the smallest bucket that holds `length` tokens."""
    return next(b for b in batching.buckets if b >= length)


def steps(lengths: NDArray[np.int64], batching: Batching) -> int:
    """Returns how many batches an epoch has."""
    if batching.batch_tokens is None:
        return math.ceil(len(lengths) / batching.batch_size)
    return sum(math.ceil(len(rows) / size) for rows, size in _by_bucket(lengths, batching))


def plan(
    lengths: NDArray[np.int64],
    batching: Batching,
    *,
    seed: int | None = None,
    epoch: int = 0,
) -> list[NDArray[np.int64]]:
    """Returns the rows of every batch of an epoch; each row is in one batch.

    Args:
        lengths: Of the examples in tokens, `(n,)`.
        batching: Sizes and buckets.
        seed: With `epoch` decides the order; None sorts all by length, shortest first.
        epoch: Number of the epoch.
    """
    n = len(lengths)
    turned = None if seed is None else np.random.default_rng([seed, epoch])
    mixed = np.arange(n) if turned is None else turned.permutation(n)
    if batching.batch_tokens is not None:
        parts = _by_bucket(lengths[mixed], batching)
        batches = [mixed[b] for rows, size in parts for b in _cut(rows, size)]
    else:
        pool = n if seed is None else POOL_BATCHES * batching.batch_size
        batches = []
        for rows in _cut(mixed, max(pool, 1)):
            by_length = rows[np.argsort(lengths[rows], kind="stable")]
            batches += _cut(by_length, batching.batch_size)
    if seed is None:
        return batches
    turn = np.random.default_rng([seed, epoch, 1]).permutation(len(batches))
    return [batches[i] for i in turn]


def _by_bucket(
    lengths: NDArray[np.int64], batching: Batching
) -> list[tuple[NDArray[np.int64], int]]:
    """Returns the rows of each bucket and how many of them share a batch."""
    assert batching.batch_tokens is not None
    places = np.searchsorted(batching.buckets, lengths)
    return [
        (np.flatnonzero(places == place), max(1, batching.batch_tokens // length))
        for place, length in enumerate(batching.buckets)
        if (places == place).any()
    ]


def _cut(rows: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
