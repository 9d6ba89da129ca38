"""Strategies: the stages they write, and that on every backend those move what they should."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import pytest
import strategies_script as script

from kerastune_ft import recipe as recipes
from kerastune_ft import strategies
from kerastune_ft.backbones import BACKBONES
from kerastune_ft.errors import RecipeError
from kerastune_ft.recipe import EarlyStopping, Optimizer, Stage, Strategy, Train

SCRIPT = Path(script.__file__)
BACKEND = keras.backend.backend()
NAMES = tuple(strategies.STRATEGIES)
BLOCKS = (1, 2, 5, 19, 60)
EPOCHS = (2, 3, 5, 10, 30)
DEEPEST = {"linear_probe": 0, "full": -1, "lp_ft": -1, "discriminative": -1, "bitfit": -1}


def written(name, of=19, train=None, **settings):
    """Returns the stages that a strategy writes for a backbone of so many blocks."""
    choice = Strategy(name=name, **settings)
    return strategies.stages(Train(strategy=choice, **(train or {})), of)


def quarter(blocks):
    return -(-blocks // 4)


# the stages that are written


def test_every_row_is_a_name_of_the_recipe_and_explained():
    assert set(NAMES) == set(recipes.choices("train.strategy.name"))
    assert set(NAMES) == set(recipes.choices("train.strategy"))
    assert len(NAMES) >= 8
    for row in strategies.STRATEGIES.values():
        assert row.description
        assert not row.paper or row.paper.startswith("https://")


@pytest.mark.parametrize("epochs", EPOCHS)
@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("name", NAMES)
def test_stages_are_valid_their_epochs_add_up_and_they_go_ever_deeper(name, blocks, epochs):
    stages = written(name, blocks, epochs=epochs)
    assert sum(stage.epochs for stage in stages) == epochs
    depths = []
    for stage in stages:
        assert Stage.model_validate(stage.model_dump()) == stage
        assert stage.name
        assert 0 <= stage.warmup_epochs <= stage.epochs / 2
        assert isinstance(stage.trainable_blocks, int)
        assert -1 <= stage.trainable_blocks <= blocks
        depths.append(blocks if stage.trainable_blocks == -1 else stage.trainable_blocks)
    assert depths == sorted(set(depths))
    deepest = {**DEEPEST, "surgical": quarter(blocks)}
    assert stages[-1].trainable_blocks == deepest.get(name, blocks)
    assert len({stage.name for stage in stages}) == len(stages)
    if len(stages) > 1:
        assert stages[0].trainable_blocks == 0
        assert stages[0].epochs <= max(1, round(epochs / 3))


@pytest.mark.parametrize("epochs", EPOCHS)
@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("name", NAMES)
def test_rates_fall_by_the_factor_as_more_becomes_trainable(name, blocks, epochs):
    settings = {"learning_rate": 1e-4, "head_learning_rate": 3e-3, "rate_factor": 0.5}
    head, *deeper = written(name, blocks, epochs=epochs, **settings)
    if head.trainable_blocks != 0 or name == "bitfit":
        deeper = [head]
    else:
        assert head.learning_rate == 3e-3
        assert head.schedule == "constant"
    first = 3e-3 if name == "bitfit" else 1e-4
    expected = [first * 0.5**i for i in range(len(deeper))]
    # three figures are written
    assert [stage.learning_rate for stage in deeper] == pytest.approx(expected, rel=5e-3)


def test_epochs_that_cannot_be_shared_evenly_go_to_the_last_stages():
    stages = written("gradual", 4, epochs=12, head_epochs=2, step=1)
    assert [stage.epochs for stage in stages] == [2, 2, 2, 3, 3]
    assert [stage.trainable_blocks for stage in stages] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "settings", "depths"),
    [
        ("gradual", {"blocks": 5, "step": 2}, [0, 2, 4, 5]),
        ("gradual", {"blocks": 5, "step": 9}, [0, 5]),
        ("gradual", {"blocks": 1}, [0, 1]),
        ("gradual", {"epochs": 2}, [0, 19]),
        ("gradual", {"epochs": 3}, [0, 10, 19]),
        ("gradual", {"epochs": 3, "blocks": 5}, [0, 3, 5]),
        ("progressive", {"step": 1}, [0, 1, 3, 7, 15, 19]),
        ("progressive", {"step": 4, "blocks": 13}, [0, 4, 12, 13]),
        ("progressive", {"blocks": 1}, [0, 1]),
        ("progressive", {"epochs": 2}, [0, 19]),
        ("full", {"blocks": 3}, [3]),
        ("lp_ft", {"blocks": 3}, [0, 3]),
        ("surgical", {"blocks": 3}, [0, 3]),
        ("bitfit", {"blocks": 3}, [3]),
        ("discriminative", {"blocks": 3}, [3]),
    ],
)
def test_blocks_and_step_say_the_depths(name, settings, depths):
    assert [stage.trainable_blocks for stage in written(name, 19, **settings)] == depths


@pytest.mark.parametrize("epochs", [2, 4, 9, 20, 50])
@pytest.mark.parametrize("blocks", BLOCKS)
def test_the_steps_of_progressive_double(blocks, epochs):
    depths = [s.trainable_blocks for s in written("progressive", blocks, epochs=epochs)]
    steps = [b - a for a, b in itertools.pairwise(depths)]
    assert all(b == 2 * a for a, b in itertools.pairwise(steps[:-1]))
    assert steps[-1] <= 2 * steps[-2] if len(steps) > 1 else steps == [blocks]


@pytest.mark.parametrize("name", ["full", "lp_ft", "discriminative", "surgical", "bitfit"])
def test_blocks_can_be_named(name):
    chosen = ("conv1_relu", "conv_pw_1[23]_.*")
    named = written(name, 14, epochs=4, blocks=chosen)
    assert len(named) == len(written(name, 14, epochs=4))
    assert named[-1].trainable_blocks == chosen


def test_what_each_strategy_is_known_for():
    (probe,) = written("linear_probe", epochs=4)
    rate = Strategy(name="linear_probe").head_learning_rate
    assert (probe.trainable_blocks, probe.epochs, probe.learning_rate) == (0, 4, rate)
    (full,) = written("full")
    assert (full.rate_decay, full.parameters, full.head_learning_rate) == (1.0, "all", None)
    (slower,) = written("discriminative", head_learning_rate=5e-3)
    assert (slower.rate_decay, slower.head_learning_rate) == (0.8, 5e-3)
    assert written("discriminative", rate_decay=0.6)[0].rate_decay == 0.6
    assert [stage.rate_decay for stage in written("lp_ft", rate_decay=0.6)] == [1.0, 0.6]
    (biases,) = written("bitfit", batch_norm="train")
    assert (biases.parameters, biases.batch_norm) == ("biases", "affine")
    assert all(s.parameters == "all" for n in NAMES if n != "bitfit" for s in written(n))


@pytest.mark.parametrize("name", NAMES)
def test_settings_of_every_stage_reach_every_stage(name):
    if name != "bitfit":
        assert {s.batch_norm for s in written(name, batch_norm="affine")} == {"affine"}
    stages = written(name, schedule="linear", warmup_epochs=0.25, epochs=20)
    body = [stage for stage in stages if stage.trainable_blocks != 0]
    assert bool(body) == (name != "linear_probe")
    assert all(stage.warmup_epochs == 0.25 for stage in body)
    # Of several stages only the last one's rate falls: short ones would hardly train otherwise.
    falls = ["constant"] * (len(body) - 1) + ["linear"]
    assert [stage.schedule for stage in body] == falls[len(falls) - len(body) :]
    if len(stages) > 1:
        assert written(name, epochs=20, head_epochs=7)[0].epochs == 7


@pytest.mark.parametrize("name", NAMES)
def test_a_name_alone_is_the_strategy_with_its_defaults(name):
    assert strategies.stages(Train(strategy=name), 19) == written(name)
    assert strategies.settings(Train(strategy=name)) == Strategy(name=name)


def test_without_a_strategy_the_stages_are_the_recipe_s_own():
    assert strategies.settings(Train()) is None
    assert strategies.stages(Train(), 3) == Train().stages


@pytest.mark.parametrize("name", NAMES)
def test_plateau_gives_every_stage_a_stopping_of_its_own(name):
    watched = {"early_stopping": EarlyStopping(monitor="val_accuracy", patience=9, min_delta=0.1)}
    stages = written(name, train=watched, transition="plateau", patience=4)
    expected = EarlyStopping(monitor="val_accuracy", patience=4, min_delta=0.1)
    assert {stage.early_stopping for stage in stages} == {expected}
    assert sum(stage.epochs for stage in stages) == 10
    plain = written(name, train=watched)
    assert {stage.early_stopping for stage in plain} == {"as_train"}
    back = [s.model_copy(update={"early_stopping": "as_train"}) for s in stages]
    assert tuple(back) == plain


# what does not fit


@pytest.mark.parametrize("name", ["lp_ft", "gradual", "progressive", "surgical"])
def test_one_epoch_is_too_few_for_a_head_and_more(name):
    with pytest.raises(RecipeError, match=r"strategy\.epochs: 1 leave none .* more than 1"):
        written(name, epochs=1)
    with pytest.raises(RecipeError, match=r"strategy\.epochs: 5 leave none .* more than 5"):
        written(name, epochs=5, head_epochs=5)
    assert written(name, epochs=2)


@pytest.mark.parametrize("name", ["linear_probe", "full", "discriminative", "bitfit"])
def test_one_epoch_is_enough_for_one_stage(name):
    (stage,) = written(name, epochs=1)
    assert stage.epochs == 1
    assert stage.warmup_epochs < 1


@pytest.mark.parametrize(
    ("name", "settings", "stages", "least"),
    [
        ("gradual", {"blocks": 6, "step": 1, "epochs": 6}, 6, 7),
        ("gradual", {"blocks": 6, "step": 2, "epochs": 5, "head_epochs": 3}, 3, 6),
        ("progressive", {"step": 1, "epochs": 5}, 5, 6),
        ("progressive", {"step": 4, "epochs": 4, "head_epochs": 2}, 3, 5),
    ],
)
def test_a_step_that_asks_for_more_stages_than_epochs_says_how_many_it_takes(
    name, settings, stages, least
):
    match = rf"strategy\.epochs: {stages} stages need an epoch each .* expected {least} or more"
    with pytest.raises(RecipeError, match=match):
        written(name, 19, **settings)
    enough = written(name, 19, **{**settings, "epochs": least})
    assert len(enough) == stages + 1


@pytest.mark.parametrize("name", [n for n in NAMES if n != "linear_probe"])
def test_more_blocks_than_there_are_are_refused(name):
    with pytest.raises(RecipeError, match=r"strategy\.blocks: the backbone has 19, got 20"):
        written(name, 19, blocks=20)
    assert written(name, 19, blocks=19)


@pytest.mark.parametrize("name", ["gradual", "progressive"])
def test_names_of_blocks_have_no_order_to_climb(name):
    with pytest.raises(RecipeError, match=rf"blocks: {name} counts blocks from the top; surgical"):
        written(name, 14, blocks=("conv_pw_1_relu",))


def test_plateau_needs_a_figure_to_watch():
    with pytest.raises(RecipeError, match=r"strategy\.transition: plateau needs train\.early"):
        written("gradual", train={"early_stopping": None}, transition="plateau")


# stages pasted back


def pasted(text, backbone):
    """Returns the stages of a recipe file into which the output of `kft plan --stages` went."""
    whole = f"backbone: {{name: {backbone}}}\ndata: {{source: image_folder, path: photos}}\n{text}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(whole)
        return recipes.load(path).train.stages


def dumped(stages, backbone="mobilenet"):
    recipe = recipes.from_mapping(
        {"backbone": {"name": backbone}, "data": {"source": "image_folder", "path": "photos"}}
    )
    train = recipe.train.model_copy(update={"stages": stages, "strategy": None})
    return recipes.dump_stages(recipe.model_copy(update={"train": train}))


@pytest.mark.parametrize("transition", ["epochs", "plateau"])
@pytest.mark.parametrize("name", NAMES)
def test_dumped_stages_pasted_into_a_recipe_are_the_same_stages(name, transition):
    rows = [row for row in BACKBONES.values() if row.cuts and not row.alphas][::4]
    assert len(rows) >= 3
    for row in rows:
        for settings in ({}, {"epochs": 3, "batch_norm": "train", "rate_decay": 0.7}):
            stages = written(name, len(row.cuts), transition=transition, **settings)
            assert pasted(dumped(stages, row.name), row.name) == stages, row.name


def test_named_blocks_and_settings_of_a_stage_survive_the_paste():
    stages = (
        Stage(trainable_blocks=("conv1_relu", "conv_pw_1[0-3]_.*"), epochs=2, learning_rate=1e-3),
        Stage(
            name="all: the 'rest'",
            trainable_blocks="conv_.*",
            epochs=1,
            learning_rate=1.23e-7,
            optimizer=Optimizer(name="sgd", momentum=0.9, nesterov=True, weight_decay=None),
            early_stopping="off",
        ),
    )
    assert pasted(dumped(stages), "mobilenet") == stages


def test_settings_that_are_all_defaults_survive_the_paste():
    """Nothing of them is left to write, but they are not the same as none."""
    stages = (
        Stage(
            trainable_blocks=0,
            epochs=2,
            learning_rate=1e-3,
            optimizer=Optimizer(),
            early_stopping=EarlyStopping(),
        ),
    )
    assert pasted(dumped(stages), "mobilenet") == stages


# what a recipe says before anything is built


def recipe_with(**train):
    return recipes.from_mapping(
        {
            "backbone": {"name": "mobilenet"},
            "data": {"source": "image_folder", "path": "photos"},
            "train": train,
        }
    )


STAGE = {"trainable_blocks": 0, "epochs": 1, "learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("train", "match"),
    [
        (
            {"strategy": "full", "stages": [STAGE]},
            r"train\.strategy: a strategy writes the stages; leave one of the two out",
        ),
        (
            {"stages": [{**STAGE, "trainable_blocks": "conv_pw_13_rleu"}]},
            r"stages\.0\.trainable_blocks: 'conv_pw_13_rleu' matches no block of 'mobilenet'; "
            r"did you mean 'conv_pw_13_relu'\?",
        ),
        (
            {"stages": [{**STAGE, "trainable_blocks": ["conv1_relu", "block_.*"]}]},
            r"trainable_blocks: 'block_\.\*' matches no block .* the blocks are conv1_relu, ",
        ),
        (
            # Whole names have to match: a part is none.
            {"stages": [{**STAGE, "trainable_blocks": "conv_pw_1"}]},
            r"'conv_pw_1' matches no block",
        ),
        (
            {"stages": [{**STAGE, "trainable_blocks": "conv_(pw"}]},
            r"'conv_\(pw' is no regular expression: ",
        ),
        (
            {"stages": [{**STAGE, "trainable_blocks": 15}]},
            r"has 14 blocks, got trainable_blocks 15",
        ),
        (
            {"strategy": {"name": "surgical", "blocks": ["nothing"]}},
            r"train\.strategy\.blocks: 'nothing' matches no block of 'mobilenet'",
        ),
        (
            {"strategy": {"name": "surgical", "blocks": ["[a"]}},
            r"train\.strategy\.blocks: '\[a' is no regular expression",
        ),
        ({"strategy": {"name": "gradual", "blocks": 15}}, r"has 14 blocks, got blocks 15"),
        (
            {"strategy": {"name": "gradual", "blocks": ["conv1_relu"]}},
            r"strategy\.blocks: gradual counts blocks from the top; surgical takes names",
        ),
        (
            {"strategy": {"name": "full", "transition": "plateau"}, "early_stopping": None},
            r"strategy\.transition: plateau needs train\.early_stopping",
        ),
        ({"strategy": "gradul"}, r"train\.strategy: .*did you mean 'gradual'\?"),
        ({"strategy": {"name": "full", "epochs": 0}}, r"strategy\.epochs: expected an integer"),
        ({"strategy": {"name": "full", "rate_factor": 1.5}}, r"strategy\.rate_factor: .*<= 1"),
        (
            {"optimizer": {"clipnorm": 1.0, "global_clipnorm": 1.0}},
            r"train\.optimizer\.global_clipnorm: clip by clipnorm or by global_clipnorm",
        ),
        (
            {"stages": [{**STAGE, "optimizer": {"clipnorm": 1.0, "global_clipnorm": 1.0}}]},
            r"train\.stages\.0\.optimizer\.global_clipnorm: clip by clipnorm or by",
        ),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_with_its_key(train, match):
    with pytest.raises(RecipeError, match=match):
        recipe_with(**train)


def test_patterns_that_match_are_taken():
    for blocks in ("conv_pw_.*", ["conv1_relu", "conv_pw_1[23]_relu"], 14, -1, 0):
        recipe_with(stages=[{**STAGE, "trainable_blocks": blocks}])
    for name in NAMES:
        assert strategies.settings(recipe_with(strategy=name).train) == Strategy(name=name)


# training, on both backends


def checks(backend, slow):
    """Returns the names of checks as parameters."""
    marks = [pytest.mark.slow] if slow else []
    return [pytest.param(name, marks=marks) for name in script.names(backend, slow)]


class OnJax:
    """The script in a process of its own, which starts at once and is asked later.

    Args:
        *arguments: Of the script.
    """

    def __init__(self, *arguments):
        environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
        # Few steps are taken: what is saved on compiling is not lost on running.
        environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
        self.folder = tempfile.TemporaryDirectory()
        self.output, self.errors = (Path(self.folder.name) / name for name in ("out", "err"))
        with self.output.open("w") as output, self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(SCRIPT), *arguments],
                stdout=output, stderr=errors, env=environment,
            )  # fmt: skip
        self.found = {}

    def error_of(self, name):
        """Returns what went wrong in a check, empty if nothing did."""
        if not self.found:
            code = self.process.wait(900)
            texts = [file.read_text() for file in (self.output, self.errors)]
            lines = [json.loads(x) for x in texts[0].splitlines() if x.startswith("{")]
            self.found = {line["check"]: line["error"] for line in lines}
            assert code == 0, "".join(texts)[-5000:]
        return self.found[name]

    def end(self):
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()


def on_jax(*arguments):
    if importlib.util.find_spec("jax") is None or BACKEND == "jax":
        yield None
        return
    process = OnJax(*arguments)
    yield process
    process.end()


@pytest.fixture(scope="module")
def jax():
    yield from on_jax()


@pytest.fixture(scope="module")
def jax_slow():
    yield from on_jax("--slow")


def ask(process, name):
    if process is None:
        pytest.skip("jax is not installed, or is the backend of these tests already")
    said = process.error_of(name)
    assert not said, said


LONG = (
    "a_stage_that_stalls_gives_way_to_the_next",
    "soup_and_wise_ft_never_make_validation_worse",
    "the_whole_way_back_is_the_model_before_the_backbone_was_touched",
)


def often(name):
    """Whether a check is made every time: not of most strategies, nor what takes longest."""
    run = name.partition(":")[0]
    short = run == name or run in ("gradual", "lp_ft", "surgical affine")
    return short and run not in LONG


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if often(name) else pytest.mark.slow)
        for name in script.names(BACKEND, slow=False)
    ],
)
def test_on_this_backend(name):
    script.check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", checks("jax", slow=False))
def test_on_jax(name, jax):
    ask(jax, name)


# Every strategy down to the stem, and every check on both backends: `make torture`.
exhaustive = pytest.mark.skipif(
    "KFT_EXHAUSTIVE" not in os.environ, reason="takes long; KFT_EXHAUSTIVE=1 runs it"
)


@exhaustive
@pytest.mark.parametrize("name", checks(BACKEND, slow=True))
def test_on_this_backend_slowly(name, jax_slow):
    script.check(name)


@exhaustive
@pytest.mark.parametrize("name", checks("jax", slow=True))
def test_on_jax_slowly(name, jax_slow):
    ask(jax_slow, name)
