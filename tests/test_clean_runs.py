"""`kft fit` on data with faults: what it refuses, what it leaves out, and that runs agree."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_cli import kft, refused, write_recipe

from kerastune_ft import data, recipe, starters
from kerastune_ft.checks import relabelling, suspects
from kerastune_ft.data import Survey
from kerastune_ft.runs import Run


@pytest.fixture
def leaking(tmp_path: Path, weights_file: Path, photos: Path) -> Path:
    """A recipe for photos with splits of their own, one of which is on both sides."""
    root = tmp_path / "split"
    for path in sorted(photos.rglob("*.jpg")):
        number = int(path.stem)
        part = "train" if number < 8 else "validation" if number < 10 else "test"
        target = root / part / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    shutil.copy(root / "test/red/11.jpg", root / "train/red/again.jpg")
    return write_recipe(tmp_path, weights_file, root)


def test_fit_refuses_a_test_picture_in_training_and_leaves_nothing(leaking, tmp_path):
    said = refused("fit", leaking, "--runs-dir", tmp_path / "runs")
    assert "'train/red/again.jpg' = 'test/red/11.jpg'" in said
    assert "data.leakage=drop" in said
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.slow
def test_fit_goes_on_if_told_and_says_what_it_left_out(leaking, tmp_path):
    done = kft(
        "fit", leaking, "data.leakage=drop", "train.stages.0.epochs=1", "train.tensorboard=false",
        "--runs-dir", tmp_path / "runs", "--name", "one",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "runs/one/data.json").read_text())
    assert record["removed"] == [
        {
            "name": "train/red/again.jpg",
            "reason": "leakage",
            "detail": "'test/red/11.jpg' in test is the same",
        }
    ]
    assert record["examples"] == {"found": 37, "kept": 36, "left_out": 0, "removed": 1}
    rows = list(csv.DictReader((tmp_path / "runs/one/splits.csv").open()))
    assert "train/red/again.jpg" not in {row["name"] for row in rows}
    scored = kft("evaluate", tmp_path / "runs/one")
    assert scored.exit_code == 0, scored.output


def _suspected(survey: Survey, rows: list[int]) -> suspects.Suspects:
    given = np.asarray(survey.labels)[rows]
    return suspects.Suspects(
        rows=np.asarray(rows),
        given=given,
        suggested=(given + 1) % 3,
        confidence=np.zeros(len(rows)),
        probability=np.ones(len(rows)),
        judged=len(survey.labels),
        accuracy=0.9,
    )


@pytest.mark.parametrize("rule", ["keep", "drop", "relabel"])
def test_suspected_labels_are_changed_in_training_alone(photos, monkeypatch, rule):
    chosen = starters.recipe_of(photos, [f"data.cleaning.suspected_labels={rule}"])
    before = data.survey(chosen.data)
    rows = np.flatnonzero(before.parts == "train")[:4].tolist()
    asked = []

    def judge(recipe_, survey, progress, rows):
        asked.append(rows)
        return _suspected(survey, rows[:4].tolist())

    monkeypatch.setattr(suspects, "of_survey", judge)
    after = relabelling.read(chosen)
    names = [before.table.names[row] for row in rows]
    if rule == "keep":
        assert not asked
        assert after.table.names == before.table.names
        return
    assert asked[0].tolist() == np.flatnonzero(before.parts == "train").tolist()
    if rule == "drop":
        assert [row.name for row in after.removed] == names
        assert {row.reason for row in after.removed} == {"suspected_labels"}
        assert set(after.table.names) == set(before.table.names) - set(names)
        return
    assert after.table.names == before.table.names
    changed = np.flatnonzero(after.labels != before.labels)
    assert changed.tolist() == rows
    assert [after.table.labels[row] for row in rows] == [
        after.table.class_names[int(after.labels[row])] for row in rows
    ]
    splits = data.of_survey(chosen.data, after)
    assert sum(map(len, splits.all)) == len(before.parts)


@pytest.mark.parametrize("rule", ["drop", "relabel"])
def test_labels_that_a_run_judged_are_not_judged_again(photos, monkeypatch, tmp_path, rule):
    chosen = starters.recipe_of(photos, [f"data.cleaning.suspected_labels={rule}"])

    def judge(recipe_, survey, progress, rows):
        return _suspected(survey, rows[:4].tolist())

    monkeypatch.setattr(suspects, "of_survey", judge)
    first = data.of_survey(chosen.data, relabelling.read(chosen))
    run = Run(tmp_path)
    run.write_json("data", first.record())
    monkeypatch.setattr(suspects, "of_survey", None)
    again = data.of_survey(chosen.data, relabelling.read(chosen, run))
    assert again.fingerprint == first.fingerprint
    assert again.removed == first.removed
    assert dict(again.relabelled) == dict(first.relabelled)


def test_what_cannot_be_meant_together_is_refused():
    mapping = {
        "backbone": {"name": "mobilenet_v2"},
        "data": {"source": "image_folder", "path": "x"},
    }
    cases = (
        ({"leakage": "drop"}, {"folds": 3}, "each fold would drop others"),
        ({"cleaning": {"missing_label": "most_frequent"}}, {"folds": 3}, "nothing to validate on"),
        ({"sampling": "balanced"}, {"class_weight": "balanced"}, "favour rare classes twice"),
        ({"root": "x"}, {}, "root: is for image_csv"),
        ({"time_column": "day"}, {}, "class folders have no columns; leave time_column out"),
        ({"split": {"folds": 3}}, {}, "folds and fold are given together"),
        ({"split": {"folds": 3, "fold": 4}}, {}, "expected 1 to 3, got 4"),
        ({"split": {"file": "s.csv"}}, {"folds": 2}, "the file says who goes where"),
        ({"group_pattern": "a("}, {}, "is no regular expression"),
    )
    for changes, train, match in cases:
        whole = {**mapping, "data": {**mapping["data"], **changes}, "train": train}
        with pytest.raises(Exception, match=match) as caught:
            recipe.from_mapping(whole)
        assert caught.type.__name__ == "RecipeError"
