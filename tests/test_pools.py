"""Pools hold the examples of several splits once, however they are divided."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from kerastune_ft.data import Split, pools
from kerastune_ft.data.tables import Arrays, Encoded, Files, Prepared
from kerastune_ft.data.texts import Batching, Ragged, Texts, Tokens

N = 23


def seen(content: Any) -> list[Any]:
    """Returns what tells the examples of a content apart."""
    if isinstance(content, Tokens):
        rows = range(len(content))
        columns = (content.ids, content.segments, content.marks)
        held = [tuple(tuple(c[row]) for c in columns if c is not None) for row in rows]
        return list(zip(content.texts.first, held, strict=True))
    if isinstance(content, Arrays):
        return [value.tobytes() for value in content.values]
    if isinstance(content, Prepared):
        return [content.values[row].tobytes() for row in content.rows]
    held = content.paths if isinstance(content, Files) else content.data
    return list(zip(held, content.orientations, content.through_pillow, strict=True))


def contents() -> dict[str, Any]:
    random = np.random.default_rng(0)
    facts = random.integers(1, 9, N).astype(np.uint8), random.integers(0, 2, N).astype(bool)
    values = random.integers(0, 256, (N, 4, 4, 3)).astype(np.uint8)
    rows = [random.integers(0, 99, size) for size in random.integers(1, 7, N)]
    tokens = Tokens(
        Texts(tuple(f"text {number}" for number in range(N))),
        Ragged.joined(rows),
        0,
        Batching(4, None, (8,)),
        segments=Ragged.joined([row % 2 for row in rows]),
        marks=Ragged.joined([row % 3 for row in rows]),
    )
    return {
        "files": Files(tuple(f"{number}.jpg" for number in range(N)), *facts),
        "encoded": Encoded(tuple(bytes([number]) for number in range(N)), *facts),
        "arrays": Arrays(values),
        "prepared": Prepared(values, random.permutation(N), "squash", 3),
        "tokens": tokens,
    }


@pytest.mark.parametrize("kind", ["files", "encoded", "arrays", "prepared", "tokens"])
def test_a_pool_gives_every_split_its_examples_in_one_order(kind: str) -> None:
    content = contents()[kind]
    known = [hashlib.sha256(repr(each).encode()).digest() for each in seen(content)]
    digests = np.asarray(known, np.dtype((np.void, 32)))

    def split(name: str, rows: np.ndarray) -> Split:
        names = tuple(f"n{row}" for row in rows)
        return Split(name, names, np.zeros(len(rows), np.int32), content.take(rows))

    found = []
    for seed in range(3):
        mixed = np.random.default_rng(seed).permutation(N)
        # The first examples of one are in the other once more, and one is in it twice.
        parts = {"train": np.concatenate([mixed[:15], mixed[:1]]), "validation": mixed[12:]}
        splits = [split(name, rows) for name, rows in parts.items()]
        pool = pools.of(splits, [digests[rows] for rows in parts.values()])
        assert pool.examples.name == "train and validation" and len(pool.examples) == N
        for part, rows in zip(splits, pool.rows, strict=True):
            assert seen(pool.examples.content.take(rows)) == seen(part.content)
            assert [pool.examples.names[row] for row in rows] == list(part.names)
        assert pool.examples.digests is not None
        found.append((seen(pool.examples.content), pool.examples.digests.tolist()))
    assert found[0] == found[1] == found[2]


def test_one_split_alone_is_a_pool_too() -> None:
    content = contents()["files"]
    names = tuple(map(str, range(N)))
    digests = np.asarray([bytes([N - row]) * 32 for row in range(N)], np.dtype((np.void, 32)))
    train = Split("train", names, np.zeros(N, np.int32), content)
    pool = pools.of([train], [digests])
    assert pool.examples.name == "train"
    assert pool.rows[0].tolist() == list(range(N))[::-1]
