"""Remembers what inspecting a picture file found, until the file changes in any way.

Looking at a picture decodes it; that it is the same file as before, its size, its times and its
number on the disk say. What was found lies in one SQLite file in `kft`'s home: plain values, whole
or not there, for several processes at a time, of the files used last.

    found = inspect_all([Path("a.jpg"), ...])     # as `inspection.inspect_all`

Only pictures that can be used are remembered, and only if they were last changed long enough ago
that another change would show. Where nothing can be written, nothing is remembered.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kerastune_ft.backbones import weights
from kerastune_ft.data import inspection
from kerastune_ft.data.inspection import Inspected, Unusable
from kerastune_ft.data.looks import Look
from kerastune_ft.errors import WeightsError

LIMIT = 400_000
"""Files that are remembered, of about 500 bytes each."""

FRESH = 2.0
"""Seconds after a change in which another one might not show in a file's times."""

_VERSION = 1  # raised when what is found changes
_DAY = 86_400
_CHUNK = 500
_LOOK = tuple(field.name for field in dataclasses.fields(Look))
_FOUND = ("format", "through_pillow", "orientation", "channels", "largest")
_COLUMNS = ("path", "stamp", "day", *_FOUND, *_LOOK)


def inspect_all(pictures: Sequence[Path | bytes]) -> list[Inspected | Unusable]:
    """Returns what `inspection.inspect_all` finds; what it found of a file before is remembered."""
    stamps = {
        place: stamp
        for place, picture in enumerate(pictures)
        if isinstance(picture, Path) and (stamp := _stamp(picture)) is not None
    }
    known: dict[int, Inspected] = {}
    if stamps:
        with _database() as database:
            known = _recalled(database, stamps)
    rest = [place for place in range(len(pictures)) if place not in known]
    results: dict[int, Inspected | Unusable] = dict(known)
    results |= zip(rest, inspection.inspect_all([pictures[p] for p in rest]), strict=True)
    now = time.time_ns()
    new = {
        stamps[place]: result
        for place in rest
        if isinstance(result := results[place], Inspected)
        and place in stamps
        and now - stamps[place].changed > FRESH * 1e9
        and stamps[place] == _stamp(pictures[place])
    }
    if new:
        with _database() as database:
            _remember(database, new)
    return [results[place] for place in range(len(pictures))]


@dataclasses.dataclass(frozen=True)
class _Stamp:
    """Which file it is, in which state.

    Args:
        path: Digest of the absolute path.
        state: Digest of everything that changes with the file, and with who looks at it.
        changed: When it was changed last, in nanoseconds since 1970.
    """

    path: bytes
    state: bytes
    changed: int


def _stamp(path: Path | bytes) -> _Stamp | None:
    assert isinstance(path, Path)
    try:
        stat = path.stat()
    except OSError:
        return None
    state = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev, _eyes())
    return _Stamp(
        _digest(os.fsencode(path.absolute())),
        _digest(repr(state).encode()),
        max(stat.st_mtime_ns, stat.st_ctime_ns),
    )


def _eyes() -> tuple[Any, ...]:
    """Returns what decides what is found, beside the file."""
    return (_VERSION, inspection.MAX_PIXELS, *_versions())


def _versions() -> tuple[str, ...]:
    if not _known_versions:
        _known_versions.extend(version(name) for name in ("tensorflow", "pillow", "imagehash"))
    return tuple(_known_versions)


_known_versions: list[str] = []


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


@contextlib.contextmanager
def _database() -> Iterator[sqlite3.Connection | None]:
    """Yields the file, or None where there can be none; what fails inside is given up."""
    database = _opened()
    if database is None:
        yield None
        return
    try:
        # Read-only, locked for long, a full disk: what was found is found again.
        with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(database), database:
            yield database
    except sqlite3.Error as error:
        if _damaged(error):
            _begin_anew()


def _path() -> Path:
    return weights.home() / f"inspections-{_VERSION}.sqlite"


def _damaged(error: sqlite3.Error) -> bool:
    return type(error) is sqlite3.DatabaseError  # its children have other reasons


def _begin_anew() -> None:
    for end in ("", "-journal", "-wal", "-shm"):
        with contextlib.suppress(OSError, WeightsError):
            Path(f"{_path()}{end}").unlink()


def _opened() -> sqlite3.Connection | None:
    try:
        database = sqlite3.connect(_path(), timeout=10)
    except (WeightsError, sqlite3.Error):
        return None
    columns = f"({', '.join(_COLUMNS)}, PRIMARY KEY(path)) WITHOUT ROWID"
    try:
        database.execute(f"CREATE TABLE IF NOT EXISTS inspections {columns}")
    except sqlite3.DatabaseError as error:
        database.close()
        if _damaged(error):
            _begin_anew()
        return None
    return database


def _recalled(
    database: sqlite3.Connection | None, stamps: Mapping[int, _Stamp]
) -> dict[int, Inspected]:
    if database is None:
        return {}
    found: dict[int, Inspected] = {}
    today, stale = int(time.time()) // _DAY, []
    places = list(stamps)
    for start in range(0, len(places), _CHUNK):
        some = places[start : start + _CHUNK]
        wanted = ", ".join("?" * len(some))
        rows = database.execute(
            f"SELECT {', '.join(_COLUMNS)} FROM inspections WHERE path IN ({wanted})",
            [stamps[place].path for place in some],
        )
        by_path = {row[0]: row for row in rows}
        for place in some:
            row = by_path.get(stamps[place].path)
            if row is None or row[1] != stamps[place].state:
                continue
            found[place] = _inspected(row)
            if row[2] != today:
                stale.append((today, row[0]))
    with contextlib.suppress(sqlite3.OperationalError):  # what can only be read is read
        database.executemany("UPDATE inspections SET day = ? WHERE path = ?", stale)
    return found


def _inspected(row: tuple[Any, ...]) -> Inspected:
    values = dict(zip(_COLUMNS, row, strict=True))
    facts = {name: values[name] for name in _LOOK} | {
        "phash": int.from_bytes(values["phash"], "big")
    }
    found = {name: values[name] for name in _FOUND}
    found["through_pillow"] = bool(found["through_pillow"])
    return Inspected(**found, look=Look(**facts))


def _remember(database: sqlite3.Connection | None, found: Mapping[_Stamp, Inspected]) -> None:
    if database is None:
        return
    today = int(time.time()) // _DAY
    rows = []
    for stamp, result in found.items():
        assert result.look is not None
        look = {name: getattr(result.look, name) for name in _LOOK}
        look["phash"] = look["phash"].to_bytes(8, "big")  # beyond SQLite's numbers
        values = [getattr(result, name) for name in _FOUND]
        rows.append([stamp.path, stamp.state, today, *values, *look.values()])
    marks = ", ".join("?" * len(_COLUMNS))
    database.executemany(f"INSERT OR REPLACE INTO inspections VALUES ({marks})", rows)
    (count,) = database.execute("SELECT COUNT(*) FROM inspections").fetchone()
    database.execute(
        "DELETE FROM inspections WHERE path IN (SELECT path FROM inspections ORDER BY day LIMIT ?)",
        [max(0, count - LIMIT)],
    )
