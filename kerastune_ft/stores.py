"""Arrays that are costly to compute, kept on disk: whole or not there, checked, and bounded.

An entry is found by a key that says everything that decides its values, so it is never stale. Runs
share entries. What was not used for longest goes first when room is wanted.

    store = Store(home() / "activations", limit=10 * GIB)
    with store.writing(key, (2000, 1280), np.float16, {"what": "mobilenet_v2"}) as table:
        table[rows] = ...
    store.get(key)                       # mapped from the file; None if it is not there
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerastune_ft import files
from kerastune_ft.errors import KftError

GIB = 2**30
SPARE = GIB
"""Bytes of the disk that are left free, whatever the limit is."""

_CHUNK = 2**24
_STALE_SECONDS = 86_400.0  # after which a file that nobody finished has no writer any more


class StoreError(KftError):
    """An entry cannot be kept: no room, or the folder cannot be written."""


@dataclass(frozen=True)
class Entry:
    """One array that is kept.

    Args:
        key: What it is found by.
        path: Its file.
        size: In bytes.
        used: When it was last used, in seconds since 1970.
        facts: What whoever wrote it said of it.
    """

    key: str
    path: Path
    size: int
    used: float
    facts: Mapping[str, Any]


class Store:
    """A folder of arrays.

    Args:
        folder: Is made when something is written.
        limit: Bytes that its entries may have together.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder = folder
        self.limit = limit

    def get(self, key: str) -> NDArray[Any] | None:
        """Returns an array, mapped from its file and read-only; None if it is not there.

        An entry that is damaged is removed.
        """
        path = self._path(key)
        try:
            whole = _facts(path)
            values: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            if _checksum(path) != whole["crc32"]:
                raise ValueError("damaged")
            os.utime(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, EOFError, KeyError):
            self._remove(path)
            return None
        return values

    def has(self, key: str) -> bool:
        """Whether an entry is there; `get` may still find that it is damaged."""
        return self._path(key).is_file()

    @contextlib.contextmanager
    def writing(
        self, key: str, shape: tuple[int, ...], dtype: Any, facts: Mapping[str, Any]
    ) -> Iterator[NDArray[Any]]:
        """Yields an array to be filled, which is kept when the block ends.

        Args:
            key: Letters and digits.
            shape: Of the array.
            dtype: Of its numbers.
            facts: Plain data that `entries` shows.

        Raises:
            StoreError: If there is no room for it, or the folder cannot be written.
        """
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        path = self._path(key)
        with contextlib.ExitStack() as stack:
            with self._told():
                self.folder.mkdir(parents=True, exist_ok=True)
                self._make_room(size)
                temporary = stack.enter_context(files.replacing(path))
                table = np.lib.format.open_memmap(temporary, "w+", np.dtype(dtype), shape)
                _reserve(temporary)
            yield table
            with self._told():
                table.flush()
                del table
                record = {**facts, "crc32": _checksum(temporary)}
                files.write_text(path.with_suffix(".json"), json.dumps(record))
                stack.close()

    def room(self) -> float:
        """Returns how many bytes could be written, if everything else went."""
        return max(0.0, min(self.limit, self._free() + sum(e.size for e in self.entries()) - SPARE))

    def entries(self) -> list[Entry]:
        """Returns what is kept, the last used first."""
        found = []
        for path in self.folder.glob("*.npy"):
            if path.name.startswith("."):
                continue
            try:
                stat = path.stat()
            except OSError:  # another process has just removed it
                continue
            try:
                facts = _facts(path)
            except (OSError, ValueError):
                facts = {}  # of no use, but it takes room
            found.append(Entry(path.stem, path, stat.st_size, stat.st_mtime, facts))
        return sorted(found, key=lambda entry: entry.used, reverse=True)

    def clear(self) -> int:
        """Removes everything, what was never finished too; returns the bytes."""
        entries = self.entries()
        for entry in entries:
            self._remove(entry.path)
        for path in [*self.folder.glob(".*.npy"), *self.folder.glob("*.json")]:
            path.unlink(missing_ok=True)
        return sum(entry.size for entry in entries)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cache '{self.folder}': cannot be written: {error.strerror or error}."
            ) from error

    def _path(self, key: str) -> Path:
        assert key.isalnum(), key
        return self.folder / f"{key}.npy"

    def _free(self) -> float:
        folder = self.folder
        while not folder.is_dir():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def _make_room(self, size: int) -> None:
        for path in self.folder.glob(".*.npy"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()
        entries = self.entries()
        if size > self.limit:
            raise StoreError(
                f"cache '{self.folder}': {size / GIB:.2f} GiB are more than its limit of "
                f"{self.limit / GIB:.2f}; raise train.cache_gib."
            )
        total = sum(entry.size for entry in entries)
        while entries and (total + size > self.limit or self._free() - size < SPARE):
            gone = entries.pop()
            total -= gone.size
            self._remove(gone.path)
        if self._free() - size < SPARE:
            raise StoreError(
                f"cache '{self.folder}': {size / GIB:.2f} GiB are wanted and the disk has "
                f"{self._free() / GIB:.2f} left, of which {SPARE / GIB:.0f} stay free."
            )

    def _remove(self, path: Path) -> None:
        # A process that has the file mapped keeps what it mapped.
        with contextlib.suppress(OSError):  # whose folder cannot be written
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)


def free_memory() -> float:
    """Returns how many bytes of memory nobody uses; 2 GiB where the system does not say."""
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return 2.0 * GIB


def amount(size: float) -> str:
    """Returns bytes as people read them."""
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"


def _facts(path: Path) -> dict[str, Any]:
    found = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("damaged")
    return found


def _reserve(path: Path) -> None:
    """Takes the room at once: on a full disk, writing to a mapped file would end the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value
