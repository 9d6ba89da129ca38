"""Files of predictions: whole or not there, and gone on with."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from kerastune_ft.errors import KftError
from kerastune_ft.prediction_files import ENDINGS, PredictionFile

ROWS: list[dict[str, Any]] = [
    {"path": f"a, {i}\u2028\n", "predicted": "ü" * (i % 3), "probability": i / 7, "error": None}
    if i % 4
    else {"path": f"b{i}", "predicted": None, "probability": None, "error": "unreadable"}
    for i in range(23)
]


def write(path: Path, rows: list[dict[str, Any]], identity: str = "one") -> PredictionFile:
    with PredictionFile(path, identity) as file:
        for row in rows:
            if row["path"] not in file.known:
                file.add(row)
    return file


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    import pandas as pd

    frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    frame = frame.astype(object).where(frame.notna(), None)
    return [dict(row) for row in frame.to_dict("records")]


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_written_is_read_again(tmp_path: Path, ending: str) -> None:
    file = write(tmp_path / f"a{ending}", ROWS)
    assert (file.good, len(file.failed)) == (17, 6) and file.failed[0] == "b0"
    found = read(tmp_path / f"a{ending}")
    assert len(found) == len(ROWS)
    for row, wanted in zip(found, ROWS, strict=True):
        assert {key: value or None for key, value in row.items()} == {
            key: value if key == "probability" and value is None else value or None
            for key, value in wanted.items()
        }
    assert [path.name for path in tmp_path.iterdir()] == [f"a{ending}"]


def test_a_killed_call_is_gone_on_with_from_any_octet(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, ROWS)
    whole = path.read_bytes()

    class Killed(BaseException):
        pass

    file = PredictionFile(path, "one")
    with pytest.raises(Killed), file:
        for row in ROWS[:15]:
            file.add(row)
        raise Killed
    left = file.partial.read_bytes()
    random.seed(0)
    for end in [0, 1, len(left), *random.sample(range(len(left)), 40)]:
        file.partial.write_bytes(left[:end])
        path.unlink(missing_ok=True)
        again = PredictionFile(path, "one")
        with again:
            assert again.count <= 15 and not path.exists()
            for row in ROWS[again.count :]:
                assert row["path"] not in again.known
                again.add(row)
        assert path.read_bytes() == whole
        assert not file.partial.exists()


def test_rows_of_another_model_are_thrown_away(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    file = PredictionFile(path, "one")
    with pytest.raises(KeyError), file:
        file.add(ROWS[1])
        raise KeyError
    with PredictionFile(path, "another") as other:
        assert not other.known and other.count == 0
        other.add(ROWS[2])
    assert len(read(path)) == 1


def test_a_call_that_fails_at_once_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), PredictionFile(tmp_path / "a.csv", "one"):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_column_is_there_if_any_row_has_it(tmp_path: Path) -> None:
    rows = [{"path": "a", "error": "odd"}, {"path": "b", "p:x": 0.5, "error": None}]
    write(tmp_path / "a.csv", rows)
    assert (tmp_path / "a.csv").read_text() == "path,error,p:x\na,odd,\nb,,0.5\n"


@pytest.mark.parametrize("name", ["a.txt", "a", "a.CSV"])
def test_other_endings_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(KftError, match=r"expected a \.csv, \.jsonl or \.parquet"):
        PredictionFile(tmp_path / name, "one")
