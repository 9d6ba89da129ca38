"""What inspecting pictures found is remembered, and never of a file that changed."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kerastune_ft.backbones import weights
from kerastune_ft.data import inspection, remembering


def write(path: Path, seed: int, size: tuple[int, int] = (40, 30)) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Pictures of several kinds, in a time in which every change shows."""
    monkeypatch.setattr(remembering, "FRESH", 0.0)
    made = [write(tmp_path / f"{n}.{kind}", n) for n, kind in enumerate(("jpg", "png", "bmp"))]
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(tmp_path / "deep.png")
    alpha = Image.new("RGBA", (20, 10), (1, 2, 3, 4))
    alpha.save(tmp_path / "alpha.webp", lossless=True)
    np.save(tmp_path / "a.npy", np.random.default_rng(0).uniform(0, 255, (5, 6, 4)))
    (tmp_path / "broken.jpg").write_bytes(made[0].read_bytes()[:200])
    (tmp_path / "empty.jpg").write_bytes(b"")
    names = ("deep.png", "alpha.webp", "a.npy", "broken.jpg", "empty.jpg", "missing.jpg")
    return [*made, *(tmp_path / name for name in names)]


def rows() -> int:
    with sqlite3.connect(weights.home() / "inspections-1.sqlite") as database:
        return database.execute("SELECT COUNT(*) FROM inspections").fetchone()[0]


def looked_at(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> tuple[list, list[Path]]:
    """Returns what is found, and which files were looked at."""
    seen: list[Path] = []
    inspect = inspection.inspect
    with monkeypatch.context() as patch:
        patch.setattr(inspection, "inspect", lambda p: seen.append(p) or inspect(p))
        found = remembering.inspect_all(paths)
    return found, sorted(seen)


def everything(found: list) -> list:
    return [(result, getattr(result, "look", None)) for result in found]


def test_what_is_remembered_is_what_was_found(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = everything(inspection.inspect_all(paths))
    first, seen = looked_at(paths, monkeypatch)
    assert everything(first) == expected
    assert seen == sorted(paths)
    second, seen = looked_at(paths, monkeypatch)
    assert everything(second) == expected
    assert seen == sorted(paths[-3:])  # what cannot be used is looked at again
    assert rows() == len(paths) - 3


@pytest.mark.parametrize(
    "change", ["content", "same size and times", "replaced", "touched", "shortened"]
)
def test_a_file_that_changed_in_any_way_is_looked_at_anew(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    remembering.inspect_all(paths)
    path = paths[2]
    data, stat = path.read_bytes(), path.stat()
    time.sleep(0.02)  # longer than a tick of the kernel's clock
    if change == "content":
        write(path, 99, (50, 50))
    elif change == "same size and times":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "replaced":
        other = path.with_name("other.bmp")
        other.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        other.replace(path)
    elif change == "touched":
        path.touch()
    else:
        path.write_bytes(data[: len(data) // 2])
    expected = everything(inspection.inspect_all(paths))
    found, seen = looked_at(paths, monkeypatch)
    assert everything(found) == expected
    assert path in seen
    assert paths[0] not in seen


@pytest.mark.parametrize("kept", [4096, 100])  # SQLite's first page, and less than that
def test_a_damaged_file_begins_anew(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    remembering.inspect_all(paths)
    path = weights.home() / "inspections-1.sqlite"
    whole = path.read_bytes()
    path.write_bytes(whole[:kept] + bytes([0x5A]) * (len(whole) - kept))
    Path(f"{path}-journal").write_bytes(b"")
    expected = everything(inspection.inspect_all(paths))
    for times in range(3):
        found, seen = looked_at(paths, monkeypatch)
        assert everything(found) == expected
        assert seen == sorted(paths if times == 0 else paths[-3:])
    assert rows() == len(paths) - 3


def test_files_that_change_places_are_told_apart(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    remembering.inspect_all(paths)
    paths[0].rename(paths[0].with_name("x"))
    paths[1].rename(paths[0])
    paths[0].with_name("x").rename(paths[1])
    found, _ = looked_at(paths[:2], monkeypatch)
    assert [result.format for result in found] == ["PNG", "JPEG"]


def test_what_was_changed_just_now_is_not_remembered(tmp_path: Path) -> None:
    remembering.inspect_all([write(tmp_path / "a.png", 0)])
    assert not (weights.home() / "inspections-1.sqlite").exists() or rows() == 0


def test_other_decoders_look_anew(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    remembering.inspect_all(paths)
    monkeypatch.setattr(remembering, "_known_versions", ["another", "one"])
    _, seen = looked_at(paths, monkeypatch)
    assert seen == sorted(paths)


def test_no_more_than_a_number_of_files_are_remembered(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembering, "LIMIT", 4)
    remembering.inspect_all(paths)
    assert rows() == 4


def test_pictures_in_memory_are_inspected_as_before(paths: list[Path]) -> None:
    data = [path.read_bytes() for path in paths[:-1]]
    assert everything(remembering.inspect_all(data)) == everything(inspection.inspect_all(data))


@pytest.mark.parametrize("damage", ["garbage", "a folder", "read-only", "other columns"])
def test_a_file_that_cannot_be_used_is_no_obstacle(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    expected = everything(remembering.inspect_all(paths))
    file = weights.home() / "inspections-1.sqlite"
    if damage == "garbage":
        file.write_bytes(b"no database at all" * 1000)
    elif damage == "a folder":
        file.unlink()
        file.mkdir()
    elif damage == "read-only":
        file.chmod(0o400)
    else:
        file.unlink()
        with sqlite3.connect(file) as database:
            database.execute("CREATE TABLE inspections (path, other)")
    for _ in range(2):
        assert everything(remembering.inspect_all(paths)) == expected


@pytest.mark.slow
def test_several_processes_remember_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(40):
        write(folder / f"{number}.png", number)
    code = (
        "import sys; from pathlib import Path; from kerastune_ft.data import remembering as r;"
        "r.FRESH = 0.0; p = sorted(Path(sys.argv[1]).glob('*.png'));"
        "print([f.look.digest.hex() for _ in range(3) for f in r.inspect_all(p)])"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
        )
        for _ in range(3)
    ]
    said = {process.communicate(timeout=120)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(said) == 1
    assert rows() == 40
