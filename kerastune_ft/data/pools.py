"""Examples of several splits together, each once, in an order that does not tell who divided them.

    pool = of([splits.train, splits.validation], [digests, others])
    pool.examples.content.take(pool.rows[0])        # the examples of the first split

What is kept of a pool is found again by every run that has the same examples in these splits,
however it divides them: another fold, another seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerastune_ft.data import Split
from kerastune_ft.data.tables import Arrays, Encoded, Files, Prepared
from kerastune_ft.data.texts import Ragged, Texts, Tokens


@dataclass(frozen=True)
class Pool:
    """The examples of several splits.

    Args:
        examples: Each once, sorted by their digests, which it has; without labels.
        rows: Of each split, which of them its examples are, `int64 (n,)`.
    """

    examples: Split
    rows: tuple[NDArray[np.int64], ...]


def of(splits: Sequence[Split], digests: Sequence[NDArray[Any]]) -> Pool:
    """Returns a pool.

    Args:
        splits: With content of one kind, pictures or tokens.
        digests: Of what each example is, of every split `(n,)`; equal ones are one example.
    """
    assert [len(some) for some in digests] == [len(split) for split in splits]
    everything = np.concatenate(digests)
    texts = [digest.tobytes() for digest in everything]
    places = {digest: place for place, digest in enumerate(sorted(set(texts)))}
    rows = np.asarray([places[digest] for digest in texts], np.int64)
    _, first = np.unique(rows, return_index=True)
    names = [name for split in splits for name in split.names]
    starts = np.cumsum([0, *map(len, splits)])
    parts = tuple(rows[start:end] for start, end in itertools.pairwise(starts))
    examples = Split(
        " and ".join(split.name for split in splits),
        tuple(names[row] for row in first),
        np.zeros(len(first), np.int32),
        _taken([split.content for split in splits], first, parts),
        digests=everything[first],
    )
    return Pool(examples, parts)


def _taken(
    contents: Sequence[Any], rows: NDArray[np.int64], parts: Sequence[NDArray[np.int64]]
) -> Any:
    """Returns some rows of several contents, one after the other.

    Args:
        contents: Of the splits.
        rows: Where the examples of the pool are in them.
        parts: See `Pool.rows`.
    """
    first = contents[0]
    if isinstance(first, Arrays):  # which may be large: no copy but this one
        values = np.empty((len(rows), *first.values.shape[1:]), first.values.dtype)
        for content, places in zip(contents, parts, strict=True):
            values[places] = content.values
        return Arrays(values)
    return _joined(contents).take(rows)


def _joined(contents: Sequence[Any]) -> Any:
    first = contents[0]
    if len(contents) == 1:
        return first
    if isinstance(first, Tokens):
        columns: Any = {
            name: Ragged.chained([getattr(content, name) for content in contents])
            for name in ("ids", "segments", "marks", "words", "targets")
            if getattr(first, name) is not None
        }
        return replace(first, texts=Texts.joined([c.texts for c in contents]), **columns)
    if isinstance(first, Prepared):
        assert all(content.values is first.values for content in contents)
        return replace(first, rows=np.concatenate([content.rows for content in contents]))
    facts = (
        np.concatenate([content.orientations for content in contents]),
        np.concatenate([content.through_pillow for content in contents]),
    )
    if isinstance(first, Files):
        return Files(tuple(path for content in contents for path in content.paths), *facts)
    assert isinstance(first, Encoded), type(first)
    return Encoded(tuple(data for content in contents for data in content.data), *facts)
