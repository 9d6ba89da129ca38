"""Which examples have the same content, and which nearly the same.

    first = identities(table)              # (n,): the first example of the same content
    pairs = near_pairs(table)              # (k, 2): nearly the same
    leaks(first, parts)                    # (m, 2): in training, and in validation or test

Files are the same if their bytes are; texts if they differ in case, spaces and Unicode form alone.
Pictures are nearly the same if they are one picture saved twice: at another size, quality or
format; texts if four fifths of their pieces of five letters are the same.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerastune_ft.data.looks import DIGEST, Looks
from kerastune_ft.data.tables import Arrays, Encoded, Files, Prepared, Table
from kerastune_ft.data.texts import Texts, Tokens

_BANDS = 5  # so that of two hashes which differ in fewer bits one band is the same
_BITS = 4  # of 64 in which two hashes of one picture may differ
_DIFFERENCE = 6.0  # between thumbnails, in levels of 0..255, on average
_CORRELATION = 0.97
_LIT = 4.0  # contrast below which a picture is blank, and like every other blank one
_CROWD = 200  # neighbours that a picture is compared with in one band
_KINDS = 50  # firsts of their kind that an example is compared with
_PIECE = 5  # letters
_ALIKE = 0.8  # Jaccard similarity of pieces
_SHORTEST = 20  # letters, below which one word makes the difference
_PERMUTATIONS = 64
_SPACES = re.compile(r"\s+")
_NO_WORD = re.compile(r"[\W_]+")


def identities(table: Table) -> NDArray[np.int64]:
    """Returns for each example the row of the first one of the same content, `int64 (n,)`."""
    found = digests(table)
    if not len(found):
        return np.zeros(0, np.int64)
    words = found.view("<u8").reshape(-1, DIGEST // 8)
    _, first, inverse = np.unique(words, axis=0, return_index=True, return_inverse=True)
    return np.asarray(first[inverse.reshape(-1)], np.int64)


def near_pairs(table: Table) -> NDArray[np.int64]:
    """Returns pairs of rows that are nearly the same but not identical, `int64 (k, 2)`.

    Of examples of the same content only the first one is compared, and of many that are alike each
    with the first one: there are fewer pairs than examples or not many more. The first row of a
    pair is the smaller one, and pairs are in order.
    """
    unique = np.unique(identities(table))
    if isinstance(table.content, Texts):
        pairs = _near_texts(_plain_texts(_read_texts(table, table.content)), unique)
    elif table.looks is not None:
        pairs = _near_pictures(table.looks, unique)
    else:
        return np.zeros((0, 2), np.int64)
    return np.asarray(sorted(pairs), np.int64).reshape(-1, 2)


def leaks(first: NDArray[np.int64], parts: NDArray[np.str_]) -> NDArray[np.int64]:
    """Returns pairs of rows of one content, `(m, 2)`: one in training, the other one held out.

    Args:
        first: From `identities`.
        parts: The split of each example.
    """
    held: dict[int, int] = {}
    for row in np.flatnonzero(parts != "train"):
        held.setdefault(int(first[row]), int(row))
    training = np.flatnonzero(parts == "train")
    found = [(int(row), held[int(first[row])]) for row in training if int(first[row]) in held]
    return np.asarray(found, np.int64).reshape(-1, 2)


def families(count: int, first: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns for each example the smallest row of all that it is tied to, `int64 (count,)`.

    Args:
        count: Of the examples.
        first: From `identities`.
        pairs: Of rows that belong together, such as `near_pairs`.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    one = np.concatenate([np.arange(count), pairs[:, 0]])
    other = np.concatenate([first, pairs[:, 1]])
    graph = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    _, smallest, inverse = np.unique(component, return_index=True, return_inverse=True)
    found: NDArray[np.int64] = smallest[inverse].astype(np.int64)
    return found


def among(keep: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the pairs whose rows are both in `keep`, in numbers of `keep`, which is sorted."""
    kept = pairs[np.isin(pairs, keep).all(axis=1)]
    return np.searchsorted(keep, kept).astype(np.int64).reshape(-1, 2)


def normalised(text: str) -> str:
    """Returns a text as it is compared: NFC, without case, with single spaces."""
    return _SPACES.sub(" ", unicodedata.normalize("NFC", text)).strip().casefold()


def digests(table: Table) -> NDArray[np.void]:
    """Returns 16 bytes of sha256 of the content of each example, `(n,)`."""
    content = table.content
    assert not isinstance(content, Prepared)
    if isinstance(content, Files | Encoded):
        assert table.looks is not None
        return np.ascontiguousarray(table.looks.digest)
    if isinstance(content, Arrays):
        rows = [hashlib.sha256(row.tobytes()).digest()[:DIGEST] for row in content.values]
    else:
        texts = content.texts if isinstance(content, Tokens) else content
        whole = _whole(_read_texts(table, texts))
        rows = [hashlib.sha256(t.encode("utf-8", "replace")).digest()[:DIGEST] for t in whole]
    return np.frombuffer(b"".join(rows), np.dtype((np.void, DIGEST)))


def _read_texts(table: Table, texts: Texts) -> Texts:
    """Returns the texts that examples are told apart by: where there is no prompt, the labels."""
    return texts if any(texts.first) else Texts(tuple(str(label) for label in table.labels))


def _whole(texts: Texts) -> Iterator[str]:
    if texts.words is not None:  # a tag belongs to a word as it is written
        yield from ("\0".join(words) for words in texts.words)
        return
    for row, text in enumerate(texts.first):
        second = texts.second[row] if texts.second is not None else ""
        yield f"{normalised(text)}\0{normalised(second)}"


def _plain_texts(texts: Texts) -> list[str]:
    """Returns the letters and digits of texts, one space between words; of pairs, of both."""
    both = (
        texts.first
        if texts.second is None
        else map(" | ".join, zip(texts.first, texts.second, strict=True))
    )
    return [
        _NO_WORD.sub(" ", unicodedata.normalize("NFKC", text)).strip().casefold() for text in both
    ]


def _near_pictures(looks: Looks, rows: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yields each picture that is nearly another with the first of its kind.

    Pictures of one hash are compared with the first of each kind among them alone, and those with
    other hashes a band at a time, with at most `_CROWD` neighbours: frames of one camera would
    otherwise take the square of their number.
    """
    rows = rows[looks.contrast[rows] >= _LIT]
    heads: list[int] = []
    for members in _grouped(rows, looks.phash[rows]):
        kinds = [int(members[0])]
        for row in members[1:].tolist():
            same = _same_thumbnails(looks.thumbnail[row], looks.thumbnail[kinds[:_KINDS]])
            if same.any():
                yield kinds[int(same.argmax())], row
            else:
                kinds.append(row)
        heads += kinds
    first = np.sort(np.asarray(heads, np.int64))
    seen: set[tuple[int, int]] = set()
    width = 64 // _BANDS + 1
    for band in range(_BANDS):
        keys = (looks.phash[first] >> np.uint64(band * width)) & np.uint64((1 << width) - 1)
        for members in _grouped(first, keys):
            if len(members) > 1:
                seen |= _alike_in(looks, members[np.argsort(looks.phash[members], kind="stable")])
    yield from seen


def _grouped(rows: NDArray[np.int64], keys: NDArray[Any]) -> list[NDArray[np.int64]]:
    """Returns the rows of each key, in their order."""
    if not len(rows):
        return []
    order = np.argsort(keys, kind="stable")
    cuts = np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1
    return np.split(rows[order], cuts)


def _alike_in(looks: Looks, rows: NDArray[np.int64]) -> set[tuple[int, int]]:
    """Returns the pairs of some rows whose hashes and thumbnails agree."""
    found: set[tuple[int, int]] = set()
    for place, one in enumerate(rows[:-1].tolist()):
        others = rows[place + 1 : place + 1 + _CROWD]
        different = np.bitwise_count(looks.phash[one] ^ looks.phash[others])
        close = others[different <= _BITS]
        if len(close):
            same = close[_same_thumbnails(looks.thumbnail[one], looks.thumbnail[close])]
            found |= {(min(one, other), max(one, other)) for other in same.tolist()}
    return found


def _same_thumbnails(one: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.bool_]:
    left = one.astype(np.float32).reshape(1, -1)
    right = others.astype(np.float32).reshape(len(others), -1)
    left = left - left.mean()  # a copy may have been made a little brighter
    right = right - right.mean(axis=1, keepdims=True)
    difference = np.abs(left - right).mean(axis=1)
    scale = np.sqrt((left**2).sum() * (right**2).sum(axis=1)) + 1e-6
    correlation = (left * right).sum(axis=1) / scale
    return np.asarray((difference <= _DIFFERENCE) & (correlation >= _CORRELATION))


def _near_texts(texts: Sequence[str], rows: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    from datasketch import MinHash, MinHashLSH

    by_plain: dict[str, int] = {}
    long = []
    for row in rows.tolist():
        plain = texts[row]
        if plain and plain in by_plain:
            yield by_plain[plain], row
            continue
        by_plain[plain] = row
        if len(plain) >= _SHORTEST:
            long.append(row)
    index = MinHashLSH(threshold=_ALIKE - 0.1, num_perm=_PERMUTATIONS)
    sketches = MinHash.generator(
        ([piece.encode() for piece in _pieces(texts[row])] for row in long),
        num_perm=_PERMUTATIONS,
        seed=1,
    )
    for row, sketch in zip(long, sketches, strict=True):
        # In their order, so that the answer is the same in every process.
        candidates = itertools.islice(sorted(index.query(sketch)), _KINDS)
        same = next((int(o) for o in candidates if _similar(texts[row], texts[int(o)])), None)
        if same is not None:  # of a thousand alike the first one stands for all
            yield same, row
        else:
            index.insert(row, sketch, check_duplication=False)


def _pieces(text: str) -> set[str]:
    return {text[start : start + _PIECE] for start in range(max(1, len(text) - _PIECE + 1))}


def _similar(one: str, other: str) -> bool:
    if not 0.7 < len(one) / len(other) < 1.43:
        return False
    left, right = _pieces(one), _pieces(other)
    return len(left & right) >= _ALIKE * len(left | right)
