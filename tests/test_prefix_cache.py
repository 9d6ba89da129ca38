"""Stages on kept activations train as they would without: same order, same losses."""

from __future__ import annotations

import csv
import dataclasses
import errno
import importlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_photos
from rich.console import Console

from kerastune_ft import data, folds, models, prefix_cache, stages, stores, training, workflow
from kerastune_ft import recipe as recipes
from kerastune_ft.backbones import weights
from kerastune_ft.data import activations
from kerastune_ft.data.activations import Activations
from kerastune_ft.data.tables import Files
from kerastune_ft.errors import DataError, TrainingError
from kerastune_ft.runs import Run
from kerastune_ft.stores import Store

HEAD = {"trainable_blocks": 0, "epochs": 3, "learning_rate": 1e-2}
TOP = {"trainable_blocks": 2, "epochs": 3, "learning_rate": 2e-3}


def recipe_of(photos: Path, weights_file: object, **train: Any) -> recipes.Recipe:
    more = {"augment": "none", "batch_size": 8, **train.pop("data", {})}
    return recipes.from_mapping(
        {
            "task": {"dropout": 0.3},
            "backbone": {
                "name": "mobilenet",
                "weights": str(weights_file),
                "image_size": 32,
                "alpha": 0.25,
            },
            "data": {
                "source": "image_folder",
                "path": str(photos),
                "split": {"validation": 0.25, "test": 0.25},
                **more,
            },
            "train": {
                "stages": [HEAD, TOP],
                "tensorboard": False,
                "early_stopping": None,
                # Adam divides the last bits of small gradients by themselves.
                "optimizer": {"name": "sgd", "global_clipnorm": 0.5},
                **train,
            },
        }
    )


def fit(chosen: recipes.Recipe, folder: Path) -> tuple[Run, str]:
    console = Console(record=True, width=300, file=io.StringIO())
    run = workflow.fit(chosen, runs_dir=folder, default_name="run", console=console)
    return run, console.export_text()


def curves(run: Run) -> dict[str, Any]:
    with run.history_path.open() as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name.endswith(("loss", "accuracy", "mae"))]
    return {name: np.array([float(row[name]) for row in rows]) for name in names}


def assert_alike(one: Run, other: Run, atol: float = 1e-3) -> None:
    ours, theirs = curves(one), curves(other)
    assert ours.keys() == theirs.keys() and "val_loss" in ours
    for name in ours:
        if name.endswith("loss"):
            np.testing.assert_allclose(ours[name], theirs[name], atol=atol, rtol=1e-3)


@pytest.fixture
def both(photos: Path, weights_file: Path, tmp_path: Path) -> Any:
    """Runs a recipe with and without the cache."""

    def runs(cache: str = "auto", **train: Any) -> tuple[Run, Run, str]:
        plain = recipe_of(photos, weights_file, **train)
        cached = plain.model_copy(update={"train": plain.train.model_copy(update={"cache": cache})})
        off = plain.model_copy(update={"train": plain.train.model_copy(update={"cache": "off"})})
        without, said = fit(off, tmp_path / "without")
        assert "  computed" not in said and not without.has("cache")
        run, said = fit(cached, tmp_path / "with")
        return run, without, said

    return runs


@pytest.mark.slow
def test_two_stages_learn_as_without_and_one_pass_serves_both(both: Any) -> None:
    run, without, said = both()
    assert_alike(run, without)
    assert said.count("  computed") == said.count("computed 27 train and validation") == 1
    found = run.read_json("cache")["stages"]
    assert [stage["blocks"] for stage in found.values()] == [14, 12]
    assert {stage["where"] for stage in found.values()} == {"disk"}
    store = Store(weights.kept("activations"), 1e9)
    assert len(store.entries()) == 2  # of two stages
    assert {entry.facts["cut"] for entry in store.entries()} == {"pooling", "conv_pw_11_relu"}
    score = run.read_json("scores")["test"]["loss"]
    assert score == pytest.approx(without.read_json("scores")["test"]["loss"], abs=2e-3)
    assert all(audit["passed"] for audit in run.read_json("audit").values())


@pytest.mark.slow
def test_another_run_computes_nothing(photos: Path, weights_file: Path, tmp_path: Path) -> None:
    chosen = recipe_of(photos, weights_file)
    first, said = fit(chosen, tmp_path)
    assert said.count("  computed") == 1
    second, said = fit(chosen, tmp_path)
    assert "  computed" not in said
    for name, values in curves(first).items():
        np.testing.assert_array_equal(values, curves(second)[name])


@pytest.mark.slow
def test_folds_share_what_is_computed_and_each_ends_as_on_its_own(
    photos: Path, weights_file: Path, tmp_path: Path
) -> None:
    chosen = recipe_of(photos, weights_file, folds=3)
    console = Console(record=True, width=300, file=io.StringIO())
    whole = folds.fit(chosen, runs_dir=tmp_path / "folds", console=console)
    said = console.export_text()
    assert said.count("  computed") == said.count("computed 27 train and validation") == 1
    Store(weights.kept("activations"), 1e9).clear()
    alone, said = fit(workflow.fold_of(chosen, 2), tmp_path / "alone")
    assert said.count("  computed") == 1
    for name, values in curves(alone).items():
        np.testing.assert_array_equal(values, curves(whole.fold(2))[name])


@pytest.mark.slow
def test_in_memory_it_is_the_same_and_nothing_is_on_disk(
    photos: Path, weights_file: Path, tmp_path: Path
) -> None:
    on_disk, _ = fit(recipe_of(photos, weights_file, cache="disk"), tmp_path)
    Store(weights.kept("activations"), 1e9).clear()
    in_memory, said = fit(recipe_of(photos, weights_file, cache="memory"), tmp_path)
    assert "in memory" in said
    assert not Store(weights.kept("activations"), 1e9).entries()
    for name, values in curves(on_disk).items():
        np.testing.assert_array_equal(values, curves(in_memory)[name])


@pytest.mark.slow
def test_drawn_weighed_and_sampled_examples_are_those_of_the_stream(both: Any) -> None:
    how = {"class_weight": {"red": 3.0}, "data": {"sampling": {"blue": 2.0}}}
    run, without, _ = both(stages=[HEAD], **how)
    assert_alike(run, without)


@pytest.mark.slow
def test_the_first_epochs_get_the_views_that_the_stream_makes(both: Any) -> None:
    augment = {"horizontal_flip": True, "translation": 0.2, "contrast": 0.3}
    run, without, said = both(
        "disk", stages=[{**HEAD, "epochs": 4}], cache_views=2, data={"augment": augment}
    )
    assert "computed 18 train in" in said and "computed 18 train, view 2" in said
    ours, theirs = curves(run), curves(without)
    np.testing.assert_allclose(ours["loss"][:2], theirs["loss"][:2], atol=1e-3)
    # From then on it sees the same two again.
    assert abs(ours["loss"][2:] - theirs["loss"][2:]).max() > 1e-3


def test_a_split_s_activations_are_those_of_the_model(
    photos: Path, weights_file: Path, tmp_path: Path
) -> None:
    chosen = recipe_of(photos, weights_file, stages=[HEAD])
    splits = data.load(chosen.data)
    model = workflow.build(chosen, splits)
    plans = training.plan(model, chosen.train, steps=3)
    run = Run.create(tmp_path, "one")
    cache = prefix_cache.PrefixCache(model, chosen, splits, plans, run, Console(quiet=True), 1)
    part = cache.part(0)
    assert part is not None
    part.fill()
    pictures = np.stack(list(next(iter(data.feeding.plain(
        splits.train, chosen, view=None, batch_size=99)))[1]))  # fmt: skip
    rows = np.array([3, 1, 4])
    found = part.model({"activations": part.train.batch(rows, rows, 0)}, training=False)
    np.testing.assert_allclose(found, model(pictures[rows], training=False), atol=5e-3)
    assert part.train.views[0].dtype == np.float16


def cache_of(
    chosen: recipes.Recipe, folder: Path, splits: data.Splits | None = None, **options: Any
) -> prefix_cache.PrefixCache:
    """Returns the cache of a run that has just begun, its model in the first stage."""
    splits = splits or data.load(chosen.data)
    model = options.pop("model", None) or workflow.build(chosen, splits)
    plans = training.plan(model, chosen.train, steps=3)
    plans[0].enter(model)
    console = options.pop("console", None) or Console(quiet=True)
    folder.mkdir(exist_ok=True)
    run = options.pop("run", None) or Run.create(folder, None)
    return prefix_cache.PrefixCache(model, chosen, splits, plans, run, console, 1)


def filled(cache: prefix_cache.PrefixCache) -> prefix_cache.Part:
    part = cache.part(0)
    assert part is not None
    part.fill()
    return part


@pytest.mark.parametrize("change", ["other", "broken", "gone"])
@pytest.mark.parametrize("known", [True, False])
def test_a_picture_that_changes_after_it_was_inspected_ends_the_run_and_keeps_nothing(
    weights_file: Path, tmp_path: Path, change: str, known: bool
) -> None:
    photos = write_photos(tmp_path / "photos")
    chosen = recipe_of(photos, weights_file, stages=[HEAD])
    splits = data.load(chosen.data)
    if not known:
        parts = (splits.train, splits.validation)
        unknown: Any = {p.name: dataclasses.replace(p, digests=None) for p in parts}
        splits = dataclasses.replace(splits, **unknown)
    cache = cache_of(chosen, tmp_path / "runs", splits)
    content = splits.train.content
    assert isinstance(content, Files)
    assert cache._pools
    whole = Path(content.paths[0]).read_bytes()
    other = Path(content.paths[-1]).read_bytes() if change == "other" else whole[:150]
    Path(content.paths[0]).write_bytes(other)
    if change == "gone":
        Path(content.paths[0]).unlink()
    with pytest.raises(DataError, match=f"{content.paths[0]}' changed after being inspected"):
        filled(cache)
    assert not Store(weights.kept("activations"), 1e9).entries()


def test_what_vanishes_at_once_is_trained_on_all_the_same(
    photos: Path, weights_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "get", lambda self, key: None)  # another process cleared it
    part = filled(cache_of(recipe_of(photos, weights_file, stages=[HEAD]), tmp_path / "runs"))
    assert part.train.views[0].shape[0] == 27 and part.train.rows is not None
    assert len(part.train.rows) == 18
    assert part.train.views[0].any() and not part.train.views[0].flags.writeable


@pytest.mark.parametrize("memory", [1e12, 100.0])
def test_a_disk_that_fills_up_means_memory_if_that_is_large_enough(
    photos: Path,
    weights_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    memory: float,
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    chosen = recipe_of(photos, weights_file, stages=[HEAD])
    console = Console(record=True, width=500, file=io.StringIO())
    cache = cache_of(chosen, tmp_path / "runs", console=console)
    monkeypatch.setattr(prefix_cache, "free_memory", lambda: memory)
    monkeypatch.setattr(stores, "_reserve", full)
    part = cache.part(0)
    assert part is not None
    there = part.fill()
    said = console.export_text()
    (stage,) = cache.run.read_json("cache")["stages"].values()
    assert "No space left" in said and "No space left" in stage["why"]
    if memory > 1e9:
        assert there and "kept in memory" in said
        assert (stage["blocks"], stage["where"]) == (14, "memory")
        assert not cache._kept  # no later stage takes it
        assert cache._forward is None
    else:
        assert not there and cache.part(0) is None and not cache._kept
        assert "is trained without" in said and stage["blocks"] == 0


@pytest.mark.parametrize("memory", [1e12, 100.0])
def test_a_home_that_cannot_be_written_takes_no_more_memory_than_there_is(
    photos: Path,
    weights_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    memory: float,
) -> None:
    monkeypatch.setattr(prefix_cache, "free_memory", lambda: memory)
    monkeypatch.setattr(prefix_cache, "_writable", lambda store: False)
    cache = cache_of(recipe_of(photos, weights_file, stages=[HEAD]), tmp_path / "runs")
    assert (cache.part(0) is not None) == (memory > 1e9)
    (stage,) = cache.run.read_json("cache")["stages"].values()
    assert stage["where"] == "memory" if memory > 1e9 else "there is room for" in stage["why"]


@pytest.mark.slow
def test_a_run_for_which_there_is_no_room_after_all_trains_as_without(
    both: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stores, "_reserve", full)
    monkeypatch.setattr(prefix_cache, "free_memory", lambda: 100.0)
    run, without, said = both()
    assert said.count("is trained without: cache") == 2
    ours, theirs = curves(run), curves(without)
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name])


def test_auto_decides_by_counting_alone(
    photos: Path, weights_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_cache, "_FEW", 0)
    monkeypatch.setattr(prefix_cache, "_PLAINLY", 99)

    def decided(kind: str = "cpu", **changes: Any) -> dict[str, Any]:
        for name, value in changes.items():
            monkeypatch.setattr(prefix_cache, name, value)
        cache = cache_of(recipe_of(photos, weights_file, stages=[HEAD]), tmp_path / "runs")
        cache.kind = kind
        part = cache.part(0)
        if part is not None:
            part.fill()
        (stage,) = cache.run.read_json("cache")["stages"].values()
        return stage

    first = decided()
    assert first["blocks"] == 14
    assert decided() == first  # whatever lies in the store by now
    Store(weights.kept("activations"), 1e9).clear()
    assert decided() == first
    # Activations that take long to read are computed every time, from a store that has them too.
    slow = decided(_DISK_RATE=10.0)
    assert slow["blocks"] == 0 and "reading would take longer" in slow["why"]


def test_a_stage_computes_each_digest_once(
    photos: Path, weights_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real = prefix_cache.Cut.digest
    monkeypatch.setattr(prefix_cache.Cut, "digest", lambda c: calls.append(c.name) or real(c))
    flip = {"augment": {"horizontal_flip": True}}
    chosen = recipe_of(photos, weights_file, data=flip, cache="disk", cache_views=3)
    cache = cache_of(chosen, tmp_path / "runs")
    part = filled(cache)
    assert len(part.train.views) == 3
    assert sorted(calls) == ["conv_pw_11_relu", "pooling"]


def test_views_after_one_in_single_precision_begin_with_it(
    photos: Path, weights_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip = {"augment": {"horizontal_flip": True}}
    chosen = recipe_of(photos, weights_file, data=flip, cache="disk", cache_views=2)
    monkeypatch.setattr(prefix_cache, "_LARGEST", 1e-3)
    cache = cache_of(chosen, tmp_path / "runs")
    runs: list[int] = []
    real = prefix_cache.PrefixCache._run
    monkeypatch.setattr(
        prefix_cache.PrefixCache, "_run", lambda *args: runs.append(1) or real(*args)
    )
    part = filled(cache)
    assert {view.dtype.name for view in part.train.views} == {"float32"}
    assert len(runs) == 2 + 1 + 2  # the first view twice, the second, validation twice


def test_a_key_names_everything_that_decides(
    photos: Path, weights_file: Path, tmp_path: Path
) -> None:
    def keys(where: Path, blocks: int = 14, view: int = 0, **changes: Any) -> str:
        chosen = recipe_of(where, weights_file, data=changes.get("data", {}))
        if "image_size" in changes:
            backbone = chosen.backbone.model_copy(update={"image_size": changes["image_size"]})
            chosen = chosen.model_copy(update={"backbone": backbone})
        if "seed" in changes:
            update = {"seed": changes["seed"]}
            chosen = chosen.model_copy(update={"train": chosen.train.model_copy(update=update)})
        splits = data.load(chosen.data)
        model = workflow.build(chosen, splits)
        if "weights" in changes:
            variable = models.backbone_of(model)[0].weights[0]
            variable.assign(variable + 1)
        plans = training.plan(model, chosen.train, steps=3)
        run = Run(tmp_path)
        cache = prefix_cache.PrefixCache(model, chosen, splits, plans, run, Console(quiet=True), 1)
        return cache._key(prefix_cache.Cut(model, blocks), splits.train, view)

    other = write_photos(tmp_path / "other")
    (other / "red" / "00.jpg").write_bytes((other / "blue" / "00.jpg").read_bytes())
    flip = {"data": {"augment": {"horizontal_flip": True}}}
    found = [
        keys(photos),
        keys(photos, blocks=13),
        keys(photos, image_size=48),
        keys(photos, weights=1),
        keys(photos, data={"resize": "crop"}),
        keys(photos, **flip),
        keys(photos, view=1, **flip),
        keys(photos, seed=7, **flip),
        keys(other),
    ]
    assert len(set(found)) == len(found)
    assert keys(photos) == found[0]
    assert keys(photos, data={"batch_size": 3}) == found[0]  # which does not decide


@pytest.mark.parametrize("what", ["tensorflow", "PIL", "keras_hub", "kind"])
def test_a_key_names_what_computes(
    photos: Path,
    weights_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    importlib.import_module("keras_hub")
    cache = cache_of(recipe_of(photos, weights_file, stages=[HEAD]), tmp_path / "runs")
    cut = prefix_cache.Cut(cache.model, 14)
    before = cache._key(cut, cache.splits.train, 0)
    if what == "kind":
        cache.kind = "gpu"
    else:
        monkeypatch.setattr(sys.modules[what], "__version__", "99")
    assert cache._key(cut, cache.splits.train, 0) != before


@pytest.mark.slow
def test_a_damaged_entry_is_computed_again(
    photos: Path, weights_file: Path, tmp_path: Path
) -> None:
    chosen = recipe_of(photos, weights_file, stages=[HEAD])
    first, _ = fit(chosen, tmp_path)
    for path in weights.kept("activations").glob("*.npy"):
        content = bytearray(path.read_bytes())
        content[-3] ^= 0xFF
        path.write_bytes(content)
    second, said = fit(chosen, tmp_path)
    assert said.count("  computed") == 1
    for name, values in curves(first).items():
        np.testing.assert_array_equal(values, curves(second)[name])


@pytest.mark.slow
def test_a_resumed_run_decides_nothing_anew_and_fills_what_is_gone(
    photos: Path, weights_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = {"every_steps": 1, "every_seconds": None, "keep": 2}
    chosen = recipe_of(photos, weights_file, checkpoint=often)
    whole, _ = fit(chosen, tmp_path / "whole")

    class Stop(Exception):  # noqa: N818
        pass

    real = training._StageRun.end_batch

    def stop(stage: Any) -> None:
        real(stage)
        if stage.updates == 14:  # in the second stage
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(training._StageRun, "end_batch", stop)
        with pytest.raises(Stop):
            fit(chosen, tmp_path / "broken")
    Store(weights.kept("activations"), 1e9).clear()
    (path,) = (tmp_path / "broken").iterdir()
    before = (path / "cache.json").read_bytes()
    resumed = workflow.resume(path)
    assert (path / "cache.json").read_bytes() == before
    for name, values in curves(whole).items():
        np.testing.assert_array_equal(values, curves(resumed)[name])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"data": {"augment": {"mixup": 0.2}}}, "mixup and cutmix mix the pictures"),
        ({"cache_gib": 1e-6}, "raise train.cache_gib"),
    ],
)
def test_what_cannot_be_kept_is_refused_where_it_was_asked_for(
    photos: Path, weights_file: Path, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(TrainingError, match=said):
        fit(recipe_of(photos, weights_file, stages=[HEAD], cache="disk", **settings), tmp_path)


@pytest.mark.slow
def test_auto_goes_without_where_nothing_is_saved(
    photos: Path, weights_file: Path, tmp_path: Path
) -> None:
    once = {**HEAD, "epochs": 1}
    _, said = fit(recipe_of(photos, weights_file, stages=[once]), tmp_path)
    assert "cache    none: 1 epochs are no more than 1 views" in said
    small = recipe_of(photos, weights_file, stages=[HEAD], cache_gib=1e-6)
    run, said = fit(small, tmp_path)
    assert "cache    none: " in said and "there is room for" in said
    assert run.read_json("cache")["stages"]["1 head"]["blocks"] == 0
    whole = [{"trainable_blocks": -1, "epochs": 2, "learning_rate": 1e-3}]
    run, said = fit(recipe_of(photos, weights_file, stages=whole), tmp_path)
    assert "cache" not in said and not run.has("cache")


@pytest.mark.slow
def test_a_home_that_cannot_be_written_means_memory(
    photos: Path, weights_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KFT_HOME", str(tmp_path / "file" / "home"))
    run, said = fit(recipe_of(photos, weights_file, stages=[HEAD]), tmp_path / "runs")
    assert "kept in memory" in said
    assert run.read_json("cache")["stages"]["1 head"]["where"] == "memory"


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["auto", "disk"])
def test_a_disk_that_is_full_by_then_ends_only_what_asked_for_it(
    photos: Path,
    weights_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cache: str,
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stores, "_reserve", full)
    chosen = recipe_of(photos, weights_file, stages=[HEAD], cache=cache)
    if cache == "disk":
        with pytest.raises(TrainingError, match=r"No space left on device.*train\.cache=off"):
            fit(chosen, tmp_path / "runs")
        return
    run, said = fit(chosen, tmp_path / "runs")
    assert "kept in memory: cache" in said and run.state == "finished"
    assert not Store(weights.kept("activations"), 1e9).entries()


@pytest.mark.slow
def test_numbers_too_large_for_half_precision_are_kept_in_single(
    photos: Path, weights_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_cache, "_LARGEST", 1e-3)
    fit(recipe_of(photos, weights_file, stages=[HEAD]), tmp_path)
    store = Store(weights.kept("activations"), 1e9)
    found = [store.get(entry.key) for entry in store.entries()]
    assert len(found) == 1 and all(v is not None and v.dtype == np.float32 for v in found)


def test_examples_that_are_drawn_again_get_the_next_view() -> None:
    views = tuple(np.full((4, 1), view, np.float16) for view in range(3))
    held = Activations(views)
    rows = np.array([0, 1, 1, 1])
    keys = rows + 4 * np.array([0, 0, 1, 2])
    assert held.batch(rows, keys, epoch=0).ravel().tolist() == [0, 0, 1, 2]
    assert held.batch(rows, keys, epoch=2).ravel().tolist() == [2, 2, 0, 1]


def test_views_of_which_one_needs_single_precision_are_given_in_it() -> None:
    held = Activations((np.full((4, 2), 1, np.float16), np.full((4, 2), 1e5, np.float32)))
    stream = activations.dataset(
        held,
        np.zeros((4, 1), np.float32),
        batch_size=4,
        seed=0,
        epochs=range(2),
        class_weights=None,
        first_step=0,
        sampling=None,
    )
    found = [inputs["activations"].numpy() for inputs, _ in stream]
    assert [batch.max() for batch in found] == [1, 1e5]
    rows = np.array([0, 1])
    assert held.batch(rows, rows + 4 * np.array([0, 1]), 0)[:, 0].tolist() == [1, 1e5]


def test_the_plan_knows_what_is_still(photos: Path, weights_file: Path) -> None:
    chosen = recipe_of(photos, weights_file)
    model = workflow.build(chosen, data.load(chosen.data))
    head, top = stages.plan(model, chosen.train, steps=3)
    assert (head.still_blocks, top.still_blocks) == (14, 12)


# texts


def write_texts(path: Path) -> Path:
    generator = np.random.default_rng(0)
    words = {"good": "fine nice sweet", "bad": "awful sour grim", "odd": "queer strange weird"}
    lines = ["text,label"]
    for number in range(60):
        label = list(words)[number % 3]
        chosen = generator.choice(words[label].split(), generator.integers(2, 20))
        lines.append(f"{' '.join(chosen)} {number},{label}")
    path.write_text("\n".join(lines))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "xlnet"])
def test_texts_of_all_lengths_learn_as_without(name: str, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "texts.csv")

    def run(cache: str) -> tuple[Run, str]:
        chosen = recipes.from_mapping(
            {
                "task": {"name": "text_classification", "dropout": 0.2},
                "backbone": {"name": name, "weights": "none", "sequence_length": 24},
                "data": {"source": "csv", "path": str(path), "batch_size": 8},
                "train": {
                    "stages": [
                        {"trainable_blocks": 0, "epochs": 2, "learning_rate": 1e-2},
                        {"trainable_blocks": 1, "epochs": 2, "learning_rate": 1e-3},
                    ],
                    "tensorboard": False,
                    "early_stopping": None,
                    "optimizer": {"name": "sgd", "global_clipnorm": 0.5},
                    "cache": cache,
                },
            }
        )
        return fit(chosen, tmp_path / cache)

    (ours, said), (theirs, _) = run("disk"), run("off")
    assert said.count("  computed") == 1
    assert_alike(ours, theirs)


@pytest.mark.slow
def test_words_with_labels_learn_as_without(tmp_path: Path) -> None:
    rows = []
    for number in range(40):
        words = [f"w{number}", *["x"] * (number % 5), "john" if number % 2 else "rome"]
        labels = ["O"] * (len(words) - 1) + ["B-PER" if number % 2 else "B-LOC"]
        rows.append(json.dumps({"text": words, "label": labels}))
    (tmp_path / "words.jsonl").write_text("\n".join(rows))

    def run(cache: str) -> Run:
        chosen = recipes.from_mapping(
            {
                "task": {"name": "token_classification", "dropout": 0.2},
                "backbone": {"name": "bert", "weights": "none", "sequence_length": 24},
                "data": {
                    "source": "jsonl",
                    "path": str(tmp_path / "words.jsonl"),
                    "batch_size": 8,
                },
                "train": {
                    "stages": [{"trainable_blocks": 1, "epochs": 3, "learning_rate": 1e-2}],
                    "tensorboard": False,
                    "early_stopping": None,
                    "optimizer": {"name": "sgd", "global_clipnorm": 0.5},
                    "cache": cache,
                },
            }
        )
        return fit(chosen, tmp_path / cache)[0]

    assert_alike(run("disk"), run("off"))


@pytest.mark.slow
def test_on_jax_stages_learn_as_without() -> None:
    every = ("-p", "no:cacheprovider", "-q", "-n", "0", "-m", "slow or not slow")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *every, __file__, "-k", "two_stages"],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
