"""Arrays that are costly to compute, kept on disk: whole or not there, checked, and bounded.

An entry is found by a key that says everything that decides its values, so it is never stale. Runs
share entries. What was not used for longest goes first when room is wanted.

An entry is one file: an array as NumPy saves it, and behind it what was said of it and a checksum.
While it is written it has a hidden name and is locked, so that what a killed process left is told
from what another one writes.

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
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from kerastune_ft import files
from kerastune_ft.errors import KftError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

GIB = 2**30
SPARE = GIB
"""Bytes of the disk that are left free, whatever the limit is."""

_CHUNK = 2**24
_END = struct.Struct("<q8s")  # the last bytes of an entry: length of what is said of it, and these:
_MAGIC = b"kft kept"
_STALE_SECONDS = 86_400.0  # after which, without locks, an unfinished file has no writer any more


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
            with path.open("rb") as file:
                try:
                    values = _read(file)
                except (ValueError, EOFError, KeyError):
                    self._remove(path, os.fstat(file.fileno()))
                    return None
        except OSError:  # nothing is wrong with it
            return None
        with contextlib.suppress(OSError):  # somebody else's, or read-only
            os.utime(path)
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
            held = stack.enter_context(contextlib.ExitStack())  # until the file has its name
            with self._told():
                self.folder.mkdir(parents=True, exist_ok=True)
                with _locked(self.folder):
                    self._make_room(size)
                    temporary = stack.enter_context(files.replacing(path))
                    held.enter_context(_locked(temporary))
                    table = np.lib.format.open_memmap(temporary, "w+", np.dtype(dtype), shape)
                    _reserve(temporary)
            yield table
            with self._told():
                table.flush()
                del table
                _append(temporary, facts)
                stack.close()

    def room(self) -> float:
        """Returns how many bytes could be written, if everything else went."""
        limit = self.limit - sum(size for _, size in self._unfinished())
        free = self._free() + sum(entry.size for entry in self.entries()) - SPARE
        return max(0.0, min(limit, free))

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
                with path.open("rb") as file:
                    facts = _facts(file)[0]
            except (OSError, ValueError):
                facts = {}  # of no use, but it takes room
            found.append(Entry(path.stem, path, stat.st_size, stat.st_mtime, facts))
        return sorted(found, key=lambda entry: entry.used, reverse=True)

    def clear(self) -> int:
        """Removes everything that nobody is writing; returns the bytes."""
        entries = self.entries()
        for entry in entries:
            self._remove(entry.path)
        return sum(entry.size for entry in entries) + self._sweep()

    def _unfinished(self) -> Iterator[tuple[Path, int]]:
        """Yields the files that are being written, or were when their process ended."""
        for path in self.folder.glob(".*.npy"):
            with contextlib.suppress(OSError):
                yield path, path.stat().st_size

    def _sweep(self) -> int:
        """Removes what has no writer any more, and files of former versions; returns the bytes."""
        gone = 0
        for path, size in self._unfinished():
            if _abandoned(path):
                gone += size
                self._remove(path)
        for path in self.folder.glob("[!.]*.json"):  # what was said of an entry had its own file
            self._remove(path.with_suffix(".npy"))
            self._remove(path)
        return gone

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
        self._sweep()
        written = sum(size for _, size in self._unfinished())
        if written + size > self.limit:
            beside = f", beside {written / GIB:.2f} that are being written," if written else ""
            raise StoreError(
                f"cache '{self.folder}': {size / GIB:.2f} GiB{beside} are more than its limit of "
                f"{self.limit / GIB:.2f}; raise train.cache_gib."
            )
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        if self._free() + total - size < SPARE:
            raise self._full(size)
        total += written
        while entries and (total + size > self.limit or self._free() - size < SPARE):
            gone = entries.pop()
            total -= gone.size
            self._remove(gone.path)
        if self._free() - size < SPARE:
            raise self._full(size)

    def _full(self, size: int) -> StoreError:
        return StoreError(
            f"cache '{self.folder}': {size / GIB:.2f} GiB are wanted and the disk has "
            f"{self._free() / GIB:.2f} left, of which {SPARE / GIB:.0f} stay free."
        )

    def _remove(self, path: Path, only: os.stat_result | None = None) -> None:
        """Removes a file, given `only` not one that has taken its place."""
        # A process that has the file mapped keeps what it mapped.
        with contextlib.suppress(OSError):  # whose folder cannot be written
            if only is None or os.path.samestat(path.stat(), only):
                path.unlink()


def free_memory() -> float:
    """Returns how many bytes of memory nobody uses; 2 GiB where the system does not say."""
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return 2.0 * GIB


def amount(size: float) -> str:
    """Returns bytes as people read them."""
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"


def _append(path: Path, facts: Mapping[str, Any]) -> None:
    """Writes what is said of an array, and its checksum, behind it."""
    with path.open("rb+") as file:
        record = {**facts, "crc32": _checksum(file, os.fstat(file.fileno()).st_size)}
        text = json.dumps(record).encode()
        file.seek(0, os.SEEK_END)
        file.write(text + _END.pack(len(text), _MAGIC))


def _facts(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """Returns what is said behind an array, and where that begins.

    Raises:
        ValueError: If it is damaged.
    """
    whole = os.fstat(file.fileno()).st_size
    file.seek(max(0, whole - _END.size))
    end = file.read(_END.size)
    if len(end) < _END.size or _END.unpack(end)[1] != _MAGIC:
        raise ValueError("damaged")
    start = whole - _END.size - _END.unpack(end)[0]
    if start < 0:
        raise ValueError("damaged")
    file.seek(start)
    found = json.loads(file.read(whole - _END.size - start))
    if not isinstance(found, dict):
        raise ValueError("damaged")
    return found, start


def _read(file: BinaryIO) -> NDArray[Any]:
    """Maps the array of a file that is open, whatever has its name by now."""
    facts, end = _facts(file)
    if _checksum(file, end) != facts["crc32"]:
        raise ValueError("damaged")
    file.seek(0)
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError("damaged")
    return np.memmap(file, dtype, "r", file.tell(), shape)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a file, or a folder, against others who want the same; not where locks are unknown."""
    if fcntl is None:
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _abandoned(path: Path) -> bool:
    """Whether a file that is not finished has no writer any more."""
    try:
        if fcntl is not None:
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                return False
            finally:
                os.close(handle)
    except OSError:  # locks do not work here
        pass
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime > _STALE_SECONDS
    return False


def _reserve(path: Path) -> None:
    """Takes the room at once: on a full disk, writing to a mapped file would end the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)


def _checksum(file: BinaryIO, size: int) -> int:
    """Returns the checksum of the beginning of a file."""
    value = 0
    file.seek(0)
    while size and (chunk := file.read(min(_CHUNK, size))):
        value = zlib.crc32(chunk, value)
        size -= len(chunk)
    return value
