"""Arrays on disk: whole or not there, checked, bounded."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from kerastune_ft import stores
from kerastune_ft.stores import Store, StoreError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "kept", limit=10_000)


def put(store: Store, key: str, count: int = 100) -> None:
    with store.writing(key, (count, 4), np.float16, {"what": key}) as table:
        table[:] = np.arange(count * 4).reshape(count, 4)


def test_what_was_written_is_found_again(store: Store) -> None:
    assert store.get("a") is None and not store.has("a") and store.entries() == []
    put(store, "a")
    values = store.get("a")
    assert values is not None and values.shape == (100, 4) and values.dtype == np.float16
    assert np.array_equal(values, np.arange(400).reshape(100, 4))
    assert not values.flags.writeable
    (entry,) = store.entries()
    assert (entry.key, entry.facts["what"], entry.size) == ("a", "a", 800 + 128)


def test_what_broke_off_is_not_there_and_the_error_is_the_block_s_own(store: Store) -> None:
    with pytest.raises(FileNotFoundError, match="picture"), store.writing("a", (2,), "f4", {}):
        raise FileNotFoundError("picture")
    assert store.get("a") is None and list(store.folder.iterdir()) == []


def test_a_damaged_entry_is_removed(store: Store) -> None:
    put(store, "a")
    path = store.folder / "a.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert store.get("a") is None and not path.exists()
    put(store, "a")
    path.write_bytes(path.read_bytes()[:-8])
    assert store.get("a") is None
    put(store, "a")
    (store.folder / "a.json").write_text("no")
    assert store.get("a") is None


def test_what_was_not_used_for_longest_makes_room(store: Store) -> None:
    for number, key in enumerate("abc"):
        put(store, key, 300)
        os.utime(store.folder / f"{key}.npy", (number, number))
    assert [entry.key for entry in store.entries()] == ["c", "b", "a"]
    store.get("a")  # used now
    put(store, "d", 500)
    assert {entry.key for entry in store.entries()} == {"a", "c", "d"}
    mapped = store.get("d")
    put(store, "e", 1000)  # all others go; who has one mapped keeps it
    assert {entry.key for entry in store.entries()} == {"e"}
    assert mapped is not None and mapped[499, 3] == 1999


def test_more_than_the_limit_is_refused_and_nothing_goes(store: Store) -> None:
    put(store, "a")
    with pytest.raises(StoreError, match="cache_gib"):
        put(store, "b", 2000)
    assert store.has("a")


def test_the_disk_keeps_some_room(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, "a")
    monkeypatch.setattr(stores, "SPARE", 2**62)
    assert store.room() == 0
    with pytest.raises(StoreError, match="left"):
        put(store, "b")


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "kept", 10_000)
    assert store.get("a") is None and store.entries() == [] and store.clear() == 0
    with pytest.raises(StoreError, match="cannot be written"):
        put(store, "a")


def test_clear_leaves_nothing(store: Store) -> None:
    put(store, "a")
    (store.folder / ".b-1.npy").write_bytes(b"half")
    assert store.clear() > 0
    assert list(store.folder.iterdir()) == [] and store.clear() == 0
