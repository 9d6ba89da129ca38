"""Recipes: what is read, what is refused, and that every mistake is told at once, with its line."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from kerastune_ft import recipe
from kerastune_ft.backbones import BACKBONES, PICTURES
from kerastune_ft.errors import RecipeError

RECIPES = Path(__file__).parents[1] / "recipes"
SHIPPED = sorted(RECIPES.rglob("*.yaml"))
SMALLEST = "backbone: {name: mobilenet_v2}\ndata: {source: sklearn, path: digits}\n"


@pytest.fixture
def smallest(tmp_path: Path) -> Path:
    return write(tmp_path, SMALLEST)


def write(folder: Path, text: str, name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    """Returns the lines of the error, without the folder."""
    with pytest.raises(RecipeError) as caught:
        recipe.load(path, overrides)
    lines = str(caught.value).splitlines()
    assert lines == caught.value.problems
    assert not any(word in str(caught.value) for word in ("pydantic", "http", "Input should"))
    return [line.replace(f"{path.parent}/", "") for line in lines]


def problem(path: Path, *overrides: str) -> str:
    lines = problems(path, *overrides)
    assert len(lines) == 1, lines
    return lines[0]


# The shipped recipes


def test_recipes_are_shipped() -> None:
    assert {path.stem for path in SHIPPED} >= {"mobilenet", "flowers"}
    assert sorted(recipe.packaged()) == sorted(path.stem for path in SHIPPED)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_are_right_and_survive_a_dump(path: Path, tmp_path: Path) -> None:
    read = recipe.load(path)
    again = recipe.load(write(tmp_path, recipe.dump(read)))
    assert again == read
    assert recipe.fingerprint(again) == recipe.fingerprint(read)
    assert recipe.dump(again) == recipe.dump(read)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_name_the_schema_and_say_what_was_measured(path: Path) -> None:
    first, *rest = path.read_text(encoding="utf-8").splitlines()
    schema = first.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / schema).is_file()
    assert any(line.startswith("# Measured:") for line in rest)
    assert any(line.startswith("#   kft fit recipes/") for line in rest)


def test_commands_in_recipe_headers_are_right() -> None:
    commands = []
    for path in SHIPPED:
        text = path.read_text(encoding="utf-8").replace("\\\n#", " ")
        commands += re.findall(r"^#\s+kft fit recipes/(\S+)(.*)$", text, re.MULTILINE)
    assert commands
    for name, overrides in commands:
        recipe.load(RECIPES / name, overrides.split())


def test_one_recipe_serves_other_sources() -> None:
    read = recipe.load(
        RECIPES / "mobilenet.yaml",
        ["data.source=image_folder", "data.path=photos/", "data.augment=light"],
    )
    assert (read.data.source, read.data.path) == ("image_folder", "photos/")
    assert read.data.augmentation == recipe.AUGMENTATIONS["light"]


# The schema


def test_schema_file_is_current() -> None:
    assert json.loads((RECIPES / "schema.json").read_text()) == recipe.json_schema(), (
        "write json.dumps(recipe.json_schema(), indent=2) to recipes/schema.json"
    )


def test_schema_explains_every_key() -> None:
    def keys(schema: dict[str, Any]) -> list[dict[str, Any]]:
        sections = [schema, *schema["$defs"].values()]
        return [key for section in sections for key in section["properties"].values()]

    found = keys(recipe.json_schema())
    assert len(found) > 40
    assert [key for key in found if not key.get("description")] == []


def accepts(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    """Checks a value by the part of JSON Schema that the recipes' schema uses."""
    if "$ref" in schema:
        target = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
        if not accepts(target, value, root):
            return False
    if "anyOf" in schema and not any(accepts(s, value, root) for s in schema["anyOf"]):
        return False
    if "oneOf" in schema and sum(accepts(s, value, root) for s in schema["oneOf"]) != 1:
        return False
    types = {
        "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None),
        "integer": int, "number": (int, float),
    }  # fmt: skip
    if "type" in schema:
        if not isinstance(value, types[schema["type"]]):
            return False
        if isinstance(value, bool) and schema["type"] != "boolean":
            return False
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        return False
    if isinstance(value, int | float):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        above = schema.get("exclusiveMinimum", value - 1)
        if not (low <= value <= high and above < value < schema.get("exclusiveMaximum", value + 1)):
            return False
    if isinstance(value, dict):
        known = schema.get("properties", {})
        more = schema.get("additionalProperties", True)
        if not set(schema.get("required", ())) <= set(value):
            return False
        for key, item in value.items():
            if key in known:
                if not accepts(known[key], item, root):
                    return False
            elif more is False or (isinstance(more, dict) and not accepts(more, item, root)):
                return False
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            return False
        shapes = schema.get("prefixItems") or [schema.get("items", {})] * len(value)
        if len(shapes) != len(value):
            return False
        return all(accepts(shape, item, root) for shape, item in zip(shapes, value, strict=True))
    return True


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_schema_accepts_what_load_accepts_and_refuses_mistakes(path: Path) -> None:
    from ruamel.yaml import YAML

    schema = recipe.json_schema()

    def load_plainly(text: str) -> Any:
        return YAML(typ="safe", pure=True).load(text)

    for text in (path.read_text(encoding="utf-8"), recipe.dump(recipe.load(path))):
        assert accepts(schema, load_plainly(text), schema)
        wrong = load_plainly(text)
        wrong["train"]["stages"][0]["epochs"] = "five"
        assert not accepts(schema, wrong, schema)
        wrong = load_plainly(text)
        wrong["train"]["sed"] = 1
        assert not accepts(schema, wrong, schema)


# Reading


def test_defaults_are_those_of_the_models(smallest: Path) -> None:
    read = recipe.load(smallest)
    assert read.task == recipe.Task()
    assert read.train == recipe.Train()
    assert [stage.trainable_blocks for stage in read.train.stages] == [0, 4]
    assert read.data.augmentation == recipe.Augment(horizontal_flip=True, rotation=0.03, zoom=0.1)


def test_named_augmentations_are_valid_and_grow_stronger() -> None:
    dumps = {name: settings.model_dump() for name, settings in recipe.AUGMENTATIONS.items()}
    assert (*dumps, "auto") == recipe.choices("data.augment")
    for settings in dumps.values():
        assert recipe.Augment.model_validate(settings).model_dump() == settings
    assert recipe.AUGMENTATIONS["none"] == recipe.Augment()
    for weaker, stronger in (("none", "light"), ("light", "medium"), ("medium", "strong")):
        for key, value in dumps[weaker].items():
            assert (dumps[stronger][key] or 0) == value or value in (0, False, None)


def test_recipes_are_frozen_and_strict(smallest: Path) -> None:
    def models(model: type[BaseModel]) -> set[type[BaseModel]]:
        return {model}.union(*(models(below) for below in model.__subclasses__()))

    sections = models(recipe.Section)
    assert len(sections) > 10
    for section in sections:
        config = section.model_config
        assert (config["frozen"], config["strict"], config["extra"]) == (True, True, "forbid")
    with pytest.raises(ValidationError):
        recipe.load(smallest).train.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1E-3", 1e-3), (".5", 0.5), ("1", 1.0), ("+2.", 2.0), ("1e+2", 100.0)],
)
def test_numbers_are_read_as_yaml_1_2_in_files_and_overrides(
    tmp_path: Path, text: str, value: float
) -> None:
    path = write(tmp_path, SMALLEST + f"train: {{optimizer: {{clipnorm: {text}}}}}\n")
    assert recipe.load(path).train.optimizer.clipnorm == value
    read = recipe.load(write(tmp_path, SMALLEST), [f"train.optimizer.clipnorm={text}"])
    assert read.train.optimizer.clipnorm == value


@pytest.mark.parametrize("text", ["yes", "on", "0", "1", "'true'", "null"])
def test_only_true_and_false_are_booleans(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, SMALLEST + f"train: {{deterministic: {text}}}\n")
    assert "r.yaml:3: train.deterministic: expected true or false, got" in problem(path)


@pytest.mark.parametrize("key", ["train.seed", "data.batch_size", "task.dropout", "backbone.alpha"])
def test_booleans_are_not_numbers(smallest: Path, key: str) -> None:
    assert re.search(
        rf"{key}: expected (an integer|a number) .*got true", problem(smallest, key + "=true")
    )


def test_merge_keys_and_aliases_work_and_keep_lines(tmp_path: Path) -> None:
    text = SMALLEST + (
        "train:\n"
        "  stages:\n"
        "    - &head {trainable_blocks: 0, epochs: 3, learning_rate: 1e-3}\n"
        "    - {<<: *head, trainable_blocks: 4}\n"
        "    - *head\n"
    )
    path = write(tmp_path, text)
    stages = recipe.load(path, ["train.stages.2.epochs=9"]).train.stages
    assert [stage.epochs for stage in stages] == [3, 3, 9]
    assert [stage.trainable_blocks for stage in stages] == [0, 4, 0]


def test_class_names_stay_text(tmp_path: Path) -> None:
    weights = "{007: 2, null: 1, true: 1.5, 1e3: 1, 'a: b': 3, é: 1}"
    read = recipe.load(write(tmp_path, SMALLEST + f"train: {{class_weight: {weights}}}\n"))
    names = ["007", "null", "true", "1e3", "a: b", "é"]
    assert list(read.train.class_weight) == names  # type: ignore[arg-type]
    assert recipe.load(write(tmp_path, recipe.dump(read), "again.yaml")) == read


@pytest.mark.parametrize(
    "text",
    ["a b", " a", "a ", "null", "1e3", "007", "yes", "-", "- a", "a: b", "a #b", "'", '"', "\\n",
     "a\nb", "\t", "é", "日本", "😀", "\x7f", "\u2028", "\xa0", "*a", "&a", "!t", "@", "%",
     "[1]", "{", "<<", "?", "#", ".", "..", "C:\\photos", "~", "--- a", "x" * 300],
)  # fmt: skip
def test_any_text_survives_a_dump(tmp_path: Path, text: str) -> None:
    read = recipe.from_mapping(
        {
            "backbone": {"name": "mobilenet_v2"},
            "data": {"source": "image_folder", "path": text},
            "train": {"class_weight": {text: 2}},
        }
    )
    assert read.data.path == text
    assert recipe.load(write(tmp_path, recipe.dump(read))) == read


def test_numbers_survive_a_dump(tmp_path: Path) -> None:
    for rate in (1e-5, 1e-300, 1 / 3, 5e22, 1.0, 3e-4):
        read = recipe.load(write(tmp_path, SMALLEST), [f"train.stages.0.learning_rate={rate!r}"])
        assert read.train.stages[0].learning_rate == rate
        assert recipe.load(write(tmp_path, recipe.dump(read))) == read


def test_fingerprints_tell_recipes_apart(smallest: Path) -> None:
    texts = [(), ("train.seed=1",), ("data.augment=none",), ("backbone.image_size=[96, 128]",)]
    prints = {recipe.fingerprint(recipe.load(smallest, overrides)) for overrides in texts}
    assert len(prints) == len(texts)
    same = recipe.load(smallest, ["train.seed=0", "task.dropout=0.2"])
    assert recipe.fingerprint(same) == recipe.fingerprint(recipe.load(smallest))


def test_a_mapping_is_read_like_a_file(smallest: Path) -> None:
    mapping = {
        "backbone": {"name": "mobilenet_v2", "image_size": [96, 128]},
        "data": {"source": "image_folder", "path": Path("photos")},
        "train": {"class_weight": {0: 1, "1": 2.0}},
    }
    read = recipe.from_mapping(mapping)
    assert read.backbone.side == (96, 128)
    assert read.data.path == "photos"
    assert read.train.class_weight == {"0": 1.0, "1": 2.0}
    with pytest.raises(RecipeError, match=r"^script: backbone: missing.*\nscript: data: missing"):
        recipe.from_mapping({}, source="script")
    with pytest.raises(RecipeError, match=r"recipe: expected a mapping, got \[1\]\."):
        recipe.from_mapping([1])  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="recipe: True: a key is text"):
        recipe.from_mapping({True: 1})  # type: ignore[dict-item]
    cycle: dict[str, Any] = {}
    cycle["data"] = cycle
    with pytest.raises(RecipeError, match="nested more than 50 levels"):
        recipe.from_mapping(cycle)


def test_side_and_weights_path_follow_the_row() -> None:
    choice = recipe.BackboneChoice(name="mobilenet_v2")
    assert choice.side == (BACKBONES["mobilenet_v2"].image_size,) * 2
    assert recipe.BackboneChoice(name="mobilenet_v2", image_size=96).side == (96, 96)
    assert choice.weights_path is None
    assert recipe.BackboneChoice(name="mobilenet_v2", weights="none").weights_path is None
    chosen = recipe.BackboneChoice(name="mobilenet_v2", weights="runs/first")
    assert chosen.weights_path == Path("runs/first")


def test_choices_are_those_of_the_key() -> None:
    assert "adamw" in recipe.choices("train.optimizer.name")
    assert recipe.choices("train.stages.0.optimizer.name") == recipe.choices("train.optimizer.name")
    assert recipe.choices("train.seed") == ()
    with pytest.raises(KeyError):
        recipe.choices("train.sed")


# Overrides


def test_the_command_line_overrules_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST + "train: {seed: 5}\n")
    assert recipe.Train().seed == 0
    assert recipe.load(path).train.seed == 5
    assert recipe.load(path, ["train.seed=7"]).train.seed == 7
    assert recipe.load(path, ["train.seed=7", "train.seed=8"]).train.seed == 8


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.early_stopping=null", "train.early_stopping", None),
        ("train.early_stopping.patience=9", "train.early_stopping.patience", 9),
        ("backbone.image_size=[96, 128]", "backbone.image_size", (96, 128)),
        ("data.augment={mixup: 0.3}", "data.augment", recipe.Augment(mixup=0.3)),
        ("data.path=2024", "data.path", "2024"),
        ("data.path='2024'", "data.path", "2024"),
        ("data.path=a=b: c #d", "data.path", "a=b: c #d"),
        ("data.path= photos ", "data.path", "photos"),
        ("train.stages.1.epochs=3", "train.stages.1.epochs", 3),
        ("train.stages.0.optimizer.name=sgd", "train.stages.0.optimizer.name", "sgd"),
        ("train.class_weight={a.b: 2}", "train.class_weight", {"a.b": 2.0}),
        ("train.class_weight.3=2", "train.class_weight", {"3": 2.0}),
    ],
)
def test_overrides_set_any_key(smallest: Path, override: str, key: str, value: object) -> None:
    found: Any = recipe.load(smallest, [override])
    for part in key.split("."):
        found = found[int(part)] if part.isdecimal() else getattr(found, part)
    assert found == value


def test_overriding_one_item_of_the_default_stages_keeps_the_rest(smallest: Path) -> None:
    stages = recipe.load(smallest, ["train.stages.1.epochs=3"]).train.stages
    first, second = recipe.Train().stages
    assert stages == (first, second.model_copy(update={"epochs": 3}))


def test_overriding_one_setting_of_a_named_augmentation_keeps_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST.replace("digits", "digits, augment: medium"))
    medium = recipe.AUGMENTATIONS["medium"]
    found = recipe.load(path, ["data.augment.mixup=0.4"]).data.augmentation
    assert found == medium.model_copy(update={"mixup": 0.4})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.sed=1", "train.sed: unknown key; did you mean 'train.seed'?"),
        ("trian.seed=1", "trian: unknown key; did you mean 'train'?"),
        ("seed=1", "seed: unknown key here; it belongs at 'data.split.seed' or 'train.seed'."),
        ("batchsize=1", "batchsize: unknown key; did you mean 'data.batch_size'?"),
        (
            "qqq=1",
            "qqq: unknown key; the keys of a recipe are task, backbone, data, train, export.",
        ),
        ("train.seed", "train.seed: expected key=value with a dotted key"),
        ("=1", "expected key=value with a dotted key"),
        ("train..seed=1", "train..seed: expected key=value"),
        ("train.seed=", "train.seed: no value after '='; 'train.seed=null' sets null"),
        ("train=5", "train: expected a mapping, got 5."),
        ("train.stages=5", "train.stages: expected a list of mappings, got 5."),
        ("train.stages=[]", "train.stages: expected a list of mappings, got an empty list."),
        ("train.stages.2.epochs=1", "no item '2'; 'train.stages' has 2 items, 0 to 1."),
        ("train.stages.-1.epochs=1", "no item '-1'; 'train.stages' has 2 items, 0 to 1."),
        ("train.stages.x.epochs=1", "no item 'x'; 'train.stages' has 2 items, 0 to 1."),
        ("data.source.name=1", "data.source.name: 'data.source' is 'sklearn', which has no keys."),
        ("backbone.image_size=[96", "backbone.image_size: [96 is not valid YAML:"),
        ("backbone.image_size=[96,96,96]", "got [96, 96, 96]."),
        ("train.seed=!!python/name:os.system", "train.seed: expected an integer"),
        ("train.class_weight={a: !!python/name:os.system 1}", "tag 'python/name:os.system': not"),
        ("train.class_weight={a: 1, a: 2}", "train.class_weight: a: duplicate key."),
        ("train.class_weight={}", "got an empty mapping."),
    ],
)
def test_wrong_overrides_are_reported_at_the_command_line(
    smallest: Path, override: str, message: str
) -> None:
    line = problems(smallest, override)[0]
    assert line.startswith("command line: ")
    assert message in line


def test_problems_of_the_file_and_the_command_line_come_together(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST + "train: {seed: x}\n")
    assert problems(path, "task.dropout=1", "y") == [
        "r.yaml:3: train.seed: expected an integer >= 0 and <= 4294967295, got 'x'.",
        "command line: task.dropout: expected a number >= 0 and < 1, got 1.",
        "command line: y: expected key=value with a dotted key, such as train.seed=3, got 'y'.",
    ]


def test_an_override_mends_a_mistake_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST.replace("mobilenet_v2", "mobilenet_v9"))
    assert recipe.load(path, ["backbone.name=mobilenet"]).backbone.name == "mobilenet"


# Mistakes


def test_six_mistakes_are_all_listed_with_their_lines(tmp_path: Path) -> None:
    text = """\
task:
  dropot: 0.2
backbone:
  name: mobilnet_v2
data:
  source: image_foldr
  path: photos
  batch_size: 0
train:
  stages:
    - trainable_blocks: 0
      epochs: five
      learning_rate: 1e-3
    - {trainable_blocks: 4, epochs: 2, learning_rate: 1e-4, warmup_epochs: 3}
"""
    assert problems(write(tmp_path, text)) == [
        "r.yaml:2: task.dropot: unknown key; did you mean 'task.dropout'?",
        "r.yaml:4: backbone.name: backbone 'mobilnet_v2' is unknown; did you mean "
        "'mobilenet_v2'? 'kft ls backbones' lists all.",
        "r.yaml:6: data.source: expected one of image_folder, image_csv, tfds, sklearn, csv, "
        "jsonl, parquet, text_folder, wheel, got 'image_foldr'; did you mean 'image_folder'?",
        "r.yaml:8: data.batch_size: expected an integer >= 1, got 0.",
        "r.yaml:12: train.stages.0.epochs: expected an integer >= 1, got 'five'.",
        "r.yaml:14: train.stages.1.warmup_epochs: warmup_epochs must be less than epochs; they "
        "are 3 and 2.",
    ]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("task.dropout", "1", "expected a number >= 0 and < 1, got 1."),
        ("task.dropout", ".nan", "expected a number >= 0 and < 1, got nan."),
        (
            "task.name",
            "detection",
            "expected one of image_classification, image_multilabel, image_regression, "
            "text_classification, text_pair_classification, text_multilabel, text_regression, "
            "token_classification, text_to_text, text_generation, got 'detection'.",
        ),
        ("train.seed", "3.0", "expected an integer >= 0 and <= 4294967295, got 3.0."),
        ("train.seed", "9" * 50, "got 1e+50."),
        ("train.stages.0.learning_rate", "-1", "expected a number > 0, got -1."),
        ("train.stages.0.learning_rate", ".inf", "expected a number > 0, got inf."),
        ("train.stages.0.learning_rate", "'1e-3'", "expected a number > 0, got '1e-3'."),
        (
            "train.stages.0.trainable_blocks",
            "-2",
            "expected an integer >= -1, text or a list of texts, got -2.",
        ),
        ("train.stages.0.schedule", "cosin", "got 'cosin'; did you mean 'cosine'?"),
        ("train.stages.0", "[]", "expected a mapping, got an empty list."),
        ("train.class_weight", "even", "'balanced', a mapping from name to a number > 0 or null"),
        ("train.class_weight", "{cat: 0}", "train.class_weight.cat: expected a number > 0, got 0."),
        ("backbone.image_size", "0", "expected an integer >= 1, a list of 2, each an integer >= 1"),
        ("backbone.image_size", "[96, x]", "got [96, 'x']."),
        ("backbone.alpha", "0.3", "expected one of 0.35, 0.5, 0.75, 1.0, 1.3, 1.4"),
        ("data.path", "''", "data.path: expected text, got ''."),
        ("data.path", "null", "data.path: expected text, got null."),
        ("data.path", "\udc80", "data.path: expected text, got '\\udc80'."),
        ("data.augment", "heavy", "none, light, medium, strong, auto or a mapping, got 'heavy'."),
        ("data.augment", "[1]", "none, light, medium, strong, auto or a mapping, got [1]."),
        ("data.augment.rotation", "0.6", "expected a number >= 0 and <= 0.5, got 0.6."),
        ("data.augment.rand_augment", "{num_ops: 11}", "rand_augment.num_ops: expected an integer"),
        ("data.augment", "{spin: 1}", "data.augment.spin: unknown key; the keys of 'data.augment'"),
        ("data.split", "null", "got null; leave the key out to take its default."),
    ],
)
def test_wrong_values_are_told_in_plain_english(
    smallest: Path, key: str, value: str, message: str
) -> None:
    assert message in problem(smallest, f"{key}={value}")


def test_text_that_looks_like_a_number_wants_quotes_in_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST.replace("digits", "2024"))
    assert problem(path) == "r.yaml:2: data.path: expected text, got 2024; put it in quotes."


def test_missing_keys_say_what_is_needed(tmp_path: Path) -> None:
    assert problems(write(tmp_path, "backbone: {}\ntrain: {stages: [{epochs: 1}]}\n")) == [
        "r.yaml: data: missing; expected a mapping with at least source and path.",
        "r.yaml:1: backbone.name: missing; expected text (Pre-trained network: a name of 'kft ls "
        "backbones', or keras_hub: and the name or folder of a KerasHub preset).",
        "r.yaml:2: train.stages.0.learning_rate: missing; expected a number > 0 (Highest learning "
        "rate of the stage).",
        "r.yaml:2: train.stages.0.trainable_blocks: missing; expected an integer >= -1, text or a "
        "list of texts (Backbone blocks that train beside the head. A number counts from the top: "
        "0 the head alone, -1 all. Names, or regular expressions that match whole names, choose "
        "blocks wherever they are).",
    ]


@pytest.mark.parametrize(
    ("overrides", "key", "message"),
    [
        (["backbone.weights=torchvison"], "backbone.weights", "did you mean 'torchvision'?"),
        (
            ["backbone.name=mobilenet", "backbone.weights=torchvision"],
            "backbone.weights",
            "backbone 'mobilenet' has no 'torchvision' weights",
        ),
        (
            ["backbone.weights=torchvision", "backbone.alpha=0.5"],
            "backbone.alpha",
            "backbone 'mobilenet_v2' has no 'torchvision' weights for alpha 0.5; they exist for "
            "1.0; weights 'imagenet' exist for 0.35, 0.5, 0.75, 1.0, 1.3, 1.4.",
        ),
        (["backbone.image_size=16"], "backbone.image_size", "at least 32 pixels, got 16"),
        (["backbone.image_size=[96, 31]"], "backbone.image_size", "got [96, 31]"),
        (["data.split.validation=0.5", "data.split.test=0.5"], "data.split", "less than 1"),
        (["train.optimizer.momentum=0.9"], "train.optimizer.momentum", "'adamw' has no momentum"),
        (["train.optimizer.nesterov=true"], "train.optimizer.nesterov", "has no nesterov; sgd has"),
        (
            ["train.optimizer={name: sgd, nesterov: true}"],
            "train.optimizer.nesterov",
            "needs a momentum",
        ),
        (
            ["train.stages.1.optimizer={name: lion, momentum: 0.9}"],
            "train.stages.1.optimizer.momentum",
            "'lion' has no momentum",
        ),
        (["train.stages.0.warmup_epochs=5"], "train.stages.0.warmup_epochs", "less than epochs"),
        (["train.stages.1.trainable_blocks=19"], "trainable_blocks", "has 19 blocks"),
        (["data.split.validation=0"], "data.split.validation", "monitors 'val_loss'"),
    ],
)
def test_impossible_combinations_are_refused(
    smallest: Path, overrides: list[str], key: str, message: str
) -> None:
    if "19 blocks" in message:
        blocks = len(BACKBONES["mobilenet_v2"].cuts)
        recipe.load(smallest, [f"train.stages.1.trainable_blocks={blocks}"])
        overrides = [f"train.stages.1.trainable_blocks={blocks + 1}"]
        message = f"has {blocks} blocks, got trainable_blocks {blocks + 1}"
    line = problem(smallest, *overrides)
    assert line.startswith("command line: ")
    assert key in line
    assert message in line


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.split.validation=0", "train.early_stopping=null"],
        ["data.split.validation=0", "train.early_stopping.monitor=loss"],
        ["data.split.validation=0", "data.source=image_folder"],
        ["train.optimizer={name: sgd, momentum: 0.9, nesterov: true}"],
        ["train.optimizer={name: rmsprop, momentum: 0.9}"],
        ["backbone.weights=none", "backbone.alpha=1.3"],
        ["backbone.alpha=1", "backbone.weights=torchvision"],
        ["backbone.weights=model.keras"],
        ["backbone.weights=w.weights.h5"],
        ["backbone.weights=runs/first"],
    ],
)
def test_possible_combinations_are_not(smallest: Path, overrides: list[str]) -> None:
    recipe.load(smallest, overrides)


@pytest.mark.parametrize(
    ("overrides", "key", "message"),
    [
        (["task.loss=mae"], "task.loss", "'image_classification' has one loss"),
        (["data.label_column=[a, b]"], "data.label_column", "reads one column"),
        (["task.name=image_multilabel", *["data.source=image_folder", "data.path=x"]],
         "data.source", "needs image_csv or tfds"),
        (["task.name=image_multilabel", "data.source=image_csv", "data.label_column=[a, a]"],
         "data.label_column", "each once"),
        (["task.name=image_regression", "data.source=image_csv", "task.label_smoothing=0.1"],
         "task.label_smoothing", "no classes"),
        (["task.name=image_regression", "data.source=image_csv", "train.class_weight=balanced"],
         "train.class_weight", "no classes"),
        (["task.name=image_regression", "data.source=image_csv", "data.augment={cutmix: 1.0}"],
         "data.augment.cutmix", "use mixup"),
        (["train.early_stopping.monitor=val_mae"], "train.early_stopping.monitor",
         "monitor val_loss or val_accuracy"),
        (["task.name=image_regression", "data.source=image_csv",
          "train.early_stopping.monitor=accuracy"], "train.early_stopping.monitor",
         "monitor val_loss or val_mae"),
        (["task.pooling=token"], "task.pooling", "no token; expected avg, max or gem"),
        (["task.name=image_multilabel", "data.source=tfds", "data.label_column=[a, b]"],
         "data.label_column", "leave label_column out"),
        (["backbone={name: 'keras_hub:x', weights: torchvision}"], "backbone.weights",
         "it has preset, none"),
        (["task.hidden=256"], "task.hidden", "expected a list, each an integer >= 1, got 256"),
        (["backbone.name='keras_hub:'"], "backbone.name", "is unknown"),
    ],
)  # fmt: skip
def test_what_a_task_has_no_use_for_is_refused(
    smallest: Path, overrides: list[str], key: str, message: str
) -> None:
    line = problem(smallest, *overrides)
    assert f"{key}: " in line
    assert message in line


@pytest.mark.parametrize(
    "overrides",
    [
        ["task={name: image_classification, pooling: gem, hidden: [256, 64]}"],
        ["task={name: image_multilabel, label_smoothing: 0.1}", "train.class_weight={cat: 2.0}"],
        ["task.name=image_multilabel", "data.label_column=[cat, dog]", "data.augment=strong"],
        ["task={name: image_regression, loss: huber}", "data.label_column=age"],
        ["task.name=image_regression", "data.label_column=[x, y]", "data.augment={mixup: 0.2}"],
        ["task.name=image_regression", "train.early_stopping.monitor=val_mae"],
        ["task.name=image_multilabel", "train.early_stopping.monitor=val_auc_pr"],
        ["backbone={name: 'keras_hub:resnet_18_imagenet', weights: none, channels: 1}"],
    ],
)
def test_what_a_task_can_use_is_not(smallest: Path, overrides: list[str]) -> None:
    recipe.load(smallest, ["data.source=image_csv", "data.path=x.csv", *overrides])


def test_weights_that_are_not_named_are_the_first_of_the_backbone(smallest: Path) -> None:
    read = recipe.load(smallest)
    assert read.backbone.weights is None
    assert read.backbone.tag == "imagenet"
    assert recipe.load(smallest, ["backbone.name=keras_hub:x"]).backbone.tag == "preset"
    assert read.backbone.weights_path is None


def test_weights_may_name_a_folder_that_exists(
    smallest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no folder of that name" in problem(smallest, "backbone.weights=first")
    (tmp_path / "first").mkdir()
    assert recipe.load(smallest, ["backbone.weights=first"]).backbone.weights_path == Path("first")


def test_combinations_are_checked_although_other_keys_are_wrong(tmp_path: Path) -> None:
    text = """\
backbone: {name: mobilenet_v2, alpha: wide, image_size: 8}
data: {source: 3, path: x, split: {validation: 0.9, test: 0.9}}
train: {seed: -1, optimizer: {name: adam, momentum: 0.9, clipnorm: 0}}
"""
    keys = [line.split(": ")[1] for line in problems(write(tmp_path, text))]
    assert keys == [
        "backbone.alpha", "backbone.image_size", "data.source", "data.split.validation",
        "train.optimizer.clipnorm", "train.optimizer.momentum", "train.seed",
    ]  # fmt: skip


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_every_backbone_and_each_of_its_weights_can_be_chosen(smallest: Path, name: str) -> None:
    row = BACKBONES[name]
    for tag in (*row.weights, "none"):
        alphas = row.weights_of(tag).alphas if tag != "none" else row.alphas
        for alpha in alphas or ("null",):
            overrides = [f"backbone={{name: {name}, weights: {tag}, alpha: {alpha}}}"]
            assert recipe.load(smallest, overrides).backbone.weights == tag


# Files that are no recipes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "r.yaml: is empty; a recipe is a mapping of task, backbone, data, train, export."),
        (b"# nothing\n", "r.yaml: is empty"),
        (b"---\n", "r.yaml: is empty"),
        (b"- 1\n- 2\n", "r.yaml: holds [1, 2]; a recipe is a mapping"),
        (b"hello", "r.yaml: holds 'hello'; a recipe is a mapping"),
        (b"\x89PNG\r\n\x1a\n\x00", "r.yaml: not a recipe: byte 0 is not UTF-8."),
        ("task: é".encode("latin-1"), "r.yaml: not a recipe: byte 6 is not UTF-8."),
        ("task: {}".encode("utf-16"), "is not UTF-8."),
        (b"task: \x00", "r.yaml: not valid YAML: unacceptable character"),
        (b"task:\n\tname: x\n", "r.yaml:2: not valid YAML: indented with a tab"),
        (b"task: {name: x\ndata: 1\n", "r.yaml:2: not valid YAML"),
        (b"task: a: b\n", "r.yaml:1: not valid YAML: mapping values are not allowed here; check"),
        (b"task: 'x\n", "r.yaml:2: not valid YAML: found unexpected end of stream"),
        (b"a: &a [*a]\n", "r.yaml:1: *a: alias of an anchor that is not above it."),
        (b"[" * 60 + b"]" * 60, "r.yaml:1: nested more than 50 levels deep."),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    assert any(message in line for line in problems(path))


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ("data: 1\n", "r.yaml:3: data: duplicate key; also at"),
        ("train: {seed: 1, seed: 2}\n", "r.yaml:3: seed: duplicate key; also at"),
        ("---\ndata: 1\n", "r.yaml:3: a second document starts here; a recipe is one."),
        ("train: !!python/object:os.system {}\n", "r.yaml:3: tag 'python/object:os.system': not"),
        ("train: {seed: !secret 1}\n", "r.yaml:3: tag '!secret': not allowed"),
        ("train: {[1, 2]: 3}\n", "r.yaml:3: a key is neither a list"),
        ("<<: 5\n", "r.yaml:3: <<: expected a mapping to merge."),
    ],
)
def test_yaml_that_misleads_is_refused(tmp_path: Path, addition: str, message: str) -> None:
    assert problem(write(tmp_path, SMALLEST + addition)).startswith(message)


def test_aliases_of_aliases_cannot_exhaust_memory(tmp_path: Path) -> None:
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x]"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 8)}]" for i in range(1, 40)]
    found = problems(write(tmp_path, "\n".join(lines)))
    assert len(found) == 42
    deep = [f"l{i}: &l{i} [*l{i - 1}]" for i in range(1, 100)]
    assert "nested more than 50" in problem(write(tmp_path, "\n".join(["l0: &l0 [x]", *deep])))


def test_byte_order_mark_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALLEST.replace("\n", "\r\n").encode())
    assert recipe.load(path) == recipe.load(write(tmp_path, SMALLEST, "plain.yaml"))


def test_missing_files_name_what_is_near(tmp_path: Path) -> None:
    write(tmp_path, SMALLEST, "flowers_big.yaml")
    assert "no such file; did you mean" in problem(tmp_path / "flower_big.yaml")
    assert "flowers_big.yaml'?" in problem(tmp_path / "flower_big.yaml")
    packaged = problem(Path("mobilnet"))
    assert re.search(r"did you mean '.*recipes/mobilenet.yaml'\? 'kft ls recipes' lists", packaged)
    assert "no such file" in problem(tmp_path / "no" / "folder.yaml")
    assert "no such file; 'kft ls" in problem(tmp_path / "flowers_big.yaml" / "qqqq.yaml")


def test_a_folder_names_the_recipe_in_it(tmp_path: Path) -> None:
    write(tmp_path, SMALLEST, "recipe.yaml")
    assert "a folder; name the YAML file, such as '" in problem(tmp_path)
    (tmp_path / "empty").mkdir()
    assert problem(tmp_path / "empty") == "empty: a folder; name the YAML file."


def test_damaged_recipes_never_cause_other_errors(tmp_path: Path) -> None:
    text = (RECIPES / "mobilenet.yaml").read_text(encoding="utf-8")
    body = "\n".join(line for line in text.splitlines() if line and line[0] != "#")
    rng = random.Random(0)
    refused = 0
    for _ in range(200):
        start = rng.randrange(len(body))
        junk = "".join(rng.choices("{}[]:,-#&*!|>'\"%@` \n\t0aé", k=rng.randrange(4)))
        damaged = body[:start] + junk + body[start + rng.randrange(6) :]
        try:
            recipe.load(write(tmp_path, damaged))
        except RecipeError as error:
            refused += 1
            assert error.problems
            assert all(line.startswith(str(tmp_path)) for line in error.problems)
    assert refused > 50


def test_reading_a_recipe_imports_nothing_heavy(smallest: Path) -> None:
    code = (
        "import sys; from kerastune_ft import recipe; recipe.load(sys.argv[1]); "
        "print([m for m in ('keras', 'tensorflow', 'numpy', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(smallest)],
        capture_output=True,
        text=True,
        check=True,
        cwd=RECIPES.parent,
    )
    assert done.stdout.strip() == "[]"


def test_a_suggestion_does_not_mind_the_case(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text((RECIPES / "mobilenet.yaml").read_text().replace("name: adamw", "name: adamW"))
    with pytest.raises(RecipeError, match="did you mean 'adamw'"):
        recipe.load(path)


def test_a_strategy_on_the_command_line_takes_the_place_of_the_stages_of_a_file(
    tmp_path: Path,
) -> None:
    text = SMALLEST + "train: {stages: [{trainable_blocks: 3, epochs: 1, learning_rate: 0.1}]}\n"
    path = write(tmp_path, text)
    found = recipe.load(path, ["train.strategy=gradual"]).train
    assert found.strategy == "gradual"
    assert found.stages == recipe.Train().stages
    named = write(tmp_path, SMALLEST + "train: {strategy: {name: full, epochs: 3}}\n")
    assert recipe.load(named, ["train.strategy.epochs=7"]).train.strategy.epochs == 7
    other = ["train.stages=[{trainable_blocks: 2, epochs: 1, learning_rate: 0.1}]"]
    assert recipe.load(named, other).train.strategy is None
    assert "leave one of the two out" in problem(path, "train.strategy=full", *other)
