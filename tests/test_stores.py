"""Arrays on disk: whole or not there, checked, bounded."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

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
    assert (entry.key, entry.facts["what"]) == ("a", "a")
    (path,) = store.folder.iterdir()  # one file, which is there at once or not at all
    assert entry.size == path.stat().st_size > 800 + 128
    assert np.array_equal(np.load(path), values)


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
    np.save(path, np.zeros(3))  # nothing behind it
    assert store.get("a") is None and not path.exists()


@pytest.mark.parametrize("error", [PermissionError(1, "not yours"), OSError(30, "read-only")])
def test_entries_of_others_are_read(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def refuse(path: Path) -> None:
        raise error

    put(store, "a")
    monkeypatch.setattr(os, "utime", refuse)
    values = store.get("a")
    assert values is not None and values[99, 3] == 399
    assert store.has("a")


def test_what_cannot_be_read_now_is_not_damaged(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    put(store, "a")
    with monkeypatch.context() as patch:
        patch.setattr(stores, "_checksum", fail)
        assert store.get("a") is None
    assert store.get("a") is not None


def test_of_two_who_write_the_same_key_one_is_kept_whole(store: Store) -> None:
    with store.writing("a", (10,), "f2", {"by": 1}) as one:
        with store.writing("a", (10,), "f2", {"by": 2}) as two:
            two[:] = 2
        one[:] = 1
    values = store.get("a")
    assert values is not None and values.tolist() == [1] * 10
    assert store.entries()[0].facts["by"] == 1


def test_a_reader_of_a_damaged_entry_spares_the_one_that_took_its_place(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "a")
    real = stores._read

    def slow(file: BinaryIO) -> np.ndarray:
        monkeypatch.setattr(stores, "_read", real)
        put(store, "a")
        raise ValueError("damaged")

    monkeypatch.setattr(stores, "_read", slow)
    assert store.get("a") is None
    assert store.get("a") is not None


def test_what_is_being_written_counts_and_is_spared(store: Store) -> None:
    put(store, "old", 500)
    with contextlib.ExitStack() as stack:
        for key in "xyz":
            stack.enter_context(store.writing(key, (3000,), np.uint8, {}))[:] = 1
        assert not store.has("old")
        assert store.room() < 1000
        with pytest.raises(StoreError, match="being written"):
            put(store, "w", 500)
        store.clear()
    assert sorted(entry.key for entry in store.entries()) == ["x", "y", "z"]
    assert sum(entry.size for entry in store.entries()) < store.limit


def test_what_a_killed_process_left_goes_at_once(store: Store) -> None:
    code = (
        "import os, sys; from pathlib import Path; from kerastune_ft.stores import Store\n"
        "w = Store(Path(sys.argv[1]), 1e4).writing('k', (5000,), 'u1', {}); w.__enter__()\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(store.folder)], check=False)
    assert len(list(store.folder.glob(".*.npy"))) == 1
    put(store, "a", 900)
    assert [path.name for path in store.folder.iterdir()] == ["a.npy"]


def test_nothing_goes_for_what_the_disk_cannot_take_anyway(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "a")
    monkeypatch.setattr(Store, "_free", lambda self: stores.SPARE)
    with pytest.raises(StoreError, match="left"):
        put(store, "b", 1000)
    assert store.has("a")


def test_entries_of_former_versions_go(store: Store) -> None:
    put(store, "a")
    np.save(store.folder / "b.npy", np.zeros(9))
    (store.folder / "b.json").write_text('{"crc32": 0}')
    put(store, "c")
    assert sorted(path.name for path in store.folder.iterdir()) == ["a.npy", "c.npy"]


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
