"""The comparisons of `python -m benchmarks`: their arithmetic and their rows; nothing is timed."""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from serving_models import COLOURS, picture, running, write_pictures

sys.path.append(str(Path(__file__).parents[1]))  # the last: an installed package goes first

from benchmarks import __main__ as command
from benchmarks import clock, limits, preparation, processes, serving, stages, tables
from benchmarks.comparisons import COMPARISONS
from benchmarks.tables import Column, Figure, Result
from kerastune_ft import recipe

SECONDS = Column("seconds", "s", ratio=True)
SIZED = [(name, size) for name, row in COMPARISONS.items() for size in row.sizes]


def result(*seconds: float | None) -> Result:
    return Result([{"seconds": value} for value in seconds])


def rows(results: dict[str, Result]) -> list[tables.Row]:
    return tables.summary(results, [SECONDS], {"other": "ours"})


def test_a_ratio_is_that_of_the_medians_and_not_of_the_runs() -> None:
    ours, other = rows({"ours": result(1.0, 2.0, 9.0), "other": result(10.0, 3.0, 8.0)})
    assert ours.figures["seconds"] == Figure(2.0, 1.0, 9.0, 3)
    assert other.figures["seconds"] == Figure(8.0, 3.0, 10.0, 3, ratio=4.0)


def test_an_even_number_of_runs_has_the_median_between_them() -> None:
    assert tables.median(result(1.0, 2.0, 4.0, 9.0), "seconds") == 3.0


def test_a_run_without_a_figure_does_not_count() -> None:
    (ours,) = rows({"ours": result(None, 3.0, 5.0)})
    assert ours.figures["seconds"] == Figure(4.0, 3.0, 5.0, 2)
    assert ours.runs == 3


def test_without_something_to_compare_with_there_is_no_ratio() -> None:
    assert tables.ratio(1.0, None) is None
    assert tables.ratio(None, 1.0) is None
    assert tables.ratio(1.0, 0.0) is None
    *_, other = rows({"ours": Result(reason="gone"), "other": result(2.0)})
    assert other.figures["seconds"].ratio is None


def test_spread_is_shown_of_several_runs_alone() -> None:
    assert tables.cell(Figure(2.0, 1.0, 9.0, 3), 1) == "2.0 (1.0 to 9.0)"
    assert tables.cell(Figure(2.0, 2.0, 2.0, 1), 2) == "2.00"
    assert tables.cell(None, 2) == tables.NONE


def test_what_was_skipped_or_failed_is_listed_with_its_reason() -> None:
    results = {
        "ours": result(2.0),
        "other": Result(reason="torch not installed"),
        "third": Result([{"seconds": 1.0}], reason="out of memory", failed=True),
    }
    lines = tables.markdown(rows(results), [SECONDS]).splitlines()
    assert lines[0] == "| way | s | ratio | rounds |"
    assert lines[2] == f"| ours | 2.0 | {tables.NONE} | 1 |"
    assert lines[3].startswith("| third |")
    assert lines[-2:] == ["- other: skipped: torch not installed", "- third: failed: out of memory"]


def test_steps_are_timed_within_epochs_and_not_across_them() -> None:
    assert clock.mean_step([[0.0, 1.0, 2.0], [10.0, 13.0], [20.0]]) == pytest.approx(5 / 3)
    assert clock.mean_step([[1.0], []]) is None
    made = clock.Clock()
    made.steps = [[0.0, 9.0], [10.0, 20.0, 21.0, 22.0, 22.5]]  # the last batch is a smaller one
    assert made.step_seconds([1], after=1) == 1.0
    assert clock.per_example(made.step_seconds([0]), 32) is None


def test_a_stage_begins_where_the_one_before_ended() -> None:
    made = clock.Clock()
    made.epochs = [3.0, 5.0, 9.0, 10.0]
    assert made.spans(1.0, 2) == [4.0, 5.0]


def test_the_limit_is_what_is_left_of_a_step_without_its_prefix() -> None:
    epoch, whole = limits.most(step=4.0, prefix=3.0, epochs=3)
    assert (epoch, whole) == (4.0, 2.0)  # 12 seconds against 3 + 3 * 1


def test_stages_are_compared_by_the_medians_of_their_seconds() -> None:
    results = {
        "ours": Result([{"stages": [1.0, 2.0]}, {"stages": [3.0, 2.0]}]),
        "off": Result([{"stages": [8.0, 4.0]}]),
    }
    once = {"stages": [{"step": 4.0, "prefix": 3.0}]}
    _, _, head, top = stages.table(results, once, {"epochs": 3}).splitlines()
    assert head == "| head | 2.0 | 8.0 | 4.00 | 0.75 | 4.00 | 2.00 |"
    assert top.startswith("| 1 blocks | 2.0 | 4.0 | 2.00 |")
    assert stages.table({"ours": Result(), "off": Result()}, {}, {"epochs": 3}).count("\n") == 1


def test_growth_of_memory_is_told_per_thousand_pictures() -> None:
    results = {"a": Result([{"memory": 1.0}]), "b": Result([{"memory": 1.5}]), "c": Result()}
    lines = stages.growth(results, {}, {"counts": [500, 1500, 9000]}).splitlines()
    assert lines == ["- from 500 to 1,500 pictures: +512 MiB, +512.0 MiB per 1,000"]


@pytest.mark.parametrize(("name", "size"), SIZED)
def test_every_way_of_every_comparison_can_be_called(name: str, size: str) -> None:
    row = COMPARISONS[name]
    ways = row.ways(**row.sizes[size])
    names = [way.name for way in ways]
    assert len(ways) > 1 and len(set(names)) == len(names)
    for way in ways:
        assert way.against is None or names.index(way.against) < names.index(way.name)
        assert callable(processes.function(way.run))
        assert callable(processes.function(way.data.run))
    if row.once:
        function, _ = row.once(**row.sizes[size])
        assert callable(processes.function(function))


@pytest.mark.parametrize("name", COMPARISONS)
def test_every_recipe_of_a_comparison_is_valid(name: str) -> None:
    row = COMPARISONS[name]
    for way in row.ways(**row.sizes["full"]):
        words = way.settings.get("overrides", [])
        if words:
            file = processes.ROOT / "recipes" / f"{way.settings['recipe']}.yaml"
            made = recipe.load(file, [*words, "data.path=somewhere"])
            assert made.train.early_stopping is None


def test_named_comparisons_are_run_at_full_size_and_all_of_them_in_small() -> None:
    every, one = command.parse([]), command.parse(["head", "--rounds", "2"])
    assert (every.size, every.minutes) == ("small", 18.0)
    assert (one.size, one.minutes, one.rounds) == ("full", None, 2)
    assert command.parse(["head", "--size", "tiny"]).size == "tiny"


def test_an_unknown_comparison_or_a_missing_folder_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    nowhere, other = ["--photos", str(tmp_path / "nowhere")], ["--ways", "kft fit", "by hand"]
    for words in (["hed"], ["head", *nowhere], ["head", *other]):
        with pytest.raises(SystemExit):
            command.parse(words)
    said = capsys.readouterr().err
    assert "choose from head, head30" in said
    assert "--ways: unknown: by hand; choose from kft fit; kft fit, train.cache=off" in said


def test_some_ways_of_a_comparison_can_be_run_alone(tmp_path: Path) -> None:
    session = command.Session(
        command.parse(["head", "head30", "--ways", "Keras script", "kft fit"]), tmp_path
    )
    assert set(session.ways) == {"head", "head30"}
    for ways in session.ways.values():
        assert [way.name for way in ways] == ["kft fit", "Keras script"]


def test_ways_without_their_data_are_skipped_and_written(tmp_path: Path) -> None:
    words = ["head", "text", "--size", "tiny", "--rounds", "2"]
    options = command.parse([*words, "--output", str(tmp_path / "out" / "table.md")])
    session = command.Session(options, tmp_path)
    session.run()
    text = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "- kft fit: skipped: needs --photos" in text
    assert "(scaled): skipped: needs --texts" in text
    assert (tmp_path / "out" / "table.json").is_file()
    assert not session.failed


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(processes.FailedError, match="FileNotFoundError"):
        processes.run("preparation:texts", {"texts": "nowhere", "into": "", "count": 1}, tmp_path)


def test_a_process_is_measured_from_outside(tmp_path: Path) -> None:
    table = tmp_path / "texts.csv"
    table.write_text("text,label\n" + "".join(f"text {n},{n % 2}\n" for n in range(100)), "utf-8")
    settings = {"texts": str(table), "into": str(tmp_path / "made"), "count": 50}
    found = processes.run("preparation:texts", settings, tmp_path)
    assert (found["examples"], found["test"]) == (50, 20)
    assert found["whole"] > 0 and found["memory"] > 0


def test_photographs_are_drawn_by_class_and_divided_once(tmp_path: Path) -> None:
    for kind, count in (("cat", 40), ("dog", 20)):
        (tmp_path / kind).mkdir()
        for number in range(count):
            (tmp_path / kind / f"{number}.jpg").touch()
    parts = preparation.divided(tmp_path)
    assert {part: len(paths) for part, paths in parts.items()} == {
        "train": 42, "validation": 9, "test": 9,
    }  # fmt: skip
    assert not set(parts["train"]) & {*parts["validation"], *parts["test"]}
    counted = preparation.classes(preparation.drawn(parts["train"], 21))
    assert {kind: len(paths) for kind, paths in counted.items()} == {"cat": 14, "dog": 7}


def test_a_percentile_is_one_of_the_values() -> None:
    assert serving.percentile([], 50) is None
    assert serving.percentile([3.0], 99) == 3.0
    assert serving.percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.0
    assert serving.percentile(list(range(1, 101)), 99) == 99
    assert serving.percentile(list(range(1, 102)), 99) == 100


def test_memory_grows_by_the_mean_of_the_second_half() -> None:
    assert serving.growth([900.0, 100.0, 110.0, 120.0, 150.0]) == 20.0
    assert serving.growth([100.0]) == 0.0


def test_a_load_counts_what_is_refused_apart_from_what_is_answered() -> None:
    found = serving.Load({"200": [1.0, 3.0], "503": [7.0, 9.0], "500": [1.0]}, began=1, ended=3)
    figures = found.figures()
    assert (figures["requests"], figures["good"], figures["other"]) == (5, 2, 1)
    assert (figures["per_second"], figures["p50_ms"], figures["p99_ms"]) == (1.0, 1.0, 3.0)
    assert (figures["refused"], figures["refused_share"]) == (2, 0.4)
    assert (figures["refused_p50_ms"], figures["refused_p99_ms"]) == (7.0, 9.0)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server of colours, and what a load has to know of it."""
    folder = tmp_path_factory.mktemp("load")
    base = write_pictures(folder / "export")
    with running(base, grpc_port=0) as found:
        rows = [{"b64": base64.b64encode(picture(name)).decode()} for name in COLOURS]
        answers = found.ask(":predict", {"instances": rows}).json["predictions"]
        right = [row["probabilities"] for row in answers]
        path = folder / "examples.json"
        path.write_text(json.dumps({"key": "image_bytes", "examples": rows, "right": right}))
        yield {
            "rest": found.url,
            "grpc": found.addresses.grpc,
            "name": found.addresses.model,
            "examples": str(path),
            "seconds": 30.0,
            "count": 60,
            "pid": os.getpid(),
        }


@pytest.mark.slow
def test_what_is_served_is_made_and_asked_in_a_process_of_its_own(tmp_path: Path) -> None:
    made = processes.run("serving:prepare", {"into": str(tmp_path), "model": ""}, tmp_path)
    content = json.loads((tmp_path / "examples.json").read_text())
    assert len(content["examples"]) == len(content["right"]) > 10 < made["different"]
    assert Path(made["base"]).is_dir() and made["task"] == "image_classification"


@pytest.mark.parametrize("protocol", serving.PROTOCOLS)
def test_a_load_ends_by_its_count_and_finds_no_wrong_answer(loaded: Any, protocol: str) -> None:
    found = serving.load({**loaded, "clients": {protocol: 4}, "newcomer": ""})
    assert (found["requests"], found["good"], found["wrong"]) == (60, 60, 0)
    assert found["seconds"] < 30
    assert len(found["memory_mib"]) == 1
    assert found["memory_mib"][0] > 100


def test_a_load_ends_by_its_seconds_and_a_newcomer_is_answered(loaded: Any) -> None:
    settings = {**loaded, "clients": {"rest": 2}, "count": 0, "seconds": 0.3}
    found = serving.load({**settings, "warm_seconds": 0.1, "newcomer": "rest"})
    assert found["requests"] > 0
    assert found["seconds"] < 5
    assert 0 < found["recovered_ms"] < 5000


def test_answers_that_are_exchanged_are_counted_as_wrong(loaded: Any, tmp_path: Path) -> None:
    content = json.loads(Path(loaded["examples"]).read_text())
    content["right"] = content["right"][::-1]  # the one in the middle stays right
    path = tmp_path / "examples.json"
    path.write_text(json.dumps(content))
    found = serving.load({**loaded, "examples": str(path), "clients": {"rest": 2, "grpc": 2}})
    assert found["good"] == 60
    assert found["wrong"] == 40


def test_the_table_of_a_load_has_a_row_for_every_way() -> None:
    speed = {"per_second": 120.4, "p50_ms": 7.5, "p99_ms": 20.25}
    rows = [
        {"protocol": protocol, "batching": batching, "clients": clients, **speed}
        for batching in ("on", "off")
        for protocol in serving.PROTOCOLS
        for clients in serving.CLIENTS
    ]
    empty = serving.Load(began=1, ended=2).figures()
    crowd = {**empty, "requests": 1000, "refused_share": 0.5, "recovered_ms": 12.0}
    record = {
        "speed": rows,
        "overload": {"rest": {"before": empty, "crowd": crowd, "after": empty}},
        "right": {**empty, "requests": 10_000, "memory_mib": [500.0, 510.0, 510.0]},
        "model": {"different": 48},
    }
    text = serving.markdown(record)
    assert text.count("120 /s, 7.5, 20.2 ms") == 12
    assert "50% of 1,000 refused, within none (p50)" in text
    assert "a good answer after 12.0 ms" in text
    assert "500 MiB before, then by thousands: 510, 510 MiB" in text
