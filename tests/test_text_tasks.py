"""Every task with texts, from a table to a folder that answers questions; tiny networks."""

from __future__ import annotations

import json

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from kerastune_ft import models, predictions, recipe, resuming, workflow  # noqa: E402
from kerastune_ft.errors import DataError, ModelError, RunError  # noqa: E402
from kerastune_ft.runs import Run  # noqa: E402

NOUNS = ("film", "book", "song", "play", "dinner", "journey")
GOOD, BAD = ("good", "fine", "lovely"), ("bad", "dull", "awful")


def sentences(n, seed=0):
    """Sentences whose words tell what is to be learned."""
    random = np.random.default_rng(seed)
    for _ in range(n):
        mood, length = random.integers(0, 2), random.integers(1, 7)
        words = [str(random.choice(NOUNS)) for _ in range(length)]
        word = str(random.choice((GOOD, BAD)[mood]))
        words.insert(int(random.integers(0, length + 1)), word)
        yield words, mood, word


def write(path, task, n=96):
    rows = []
    for number, (words, mood, word) in enumerate(sentences(n)):
        text = " ".join(words)
        other = "good" if (number % 2) == mood else "bad"
        rows.append(
            {
                "text_classification": {"text": text, "label": ("good", "bad")[mood]},
                "text_pair_classification": {
                    "text": text,
                    "pair": other,
                    "label": "same" if other == ("good", "bad")[mood] else "different",
                },
                "text_multilabel": {"text": text, "label": sorted({*words} & {*NOUNS[:3], word})},
                "text_regression": {"text": text, "label": 10.0 * mood + 5},
                "token_classification": {
                    "text": words,
                    "label": ["B-MOOD" if w == word else "O" for w in words],
                },
                "text_to_text": {"text": text, "label": word},
                "text_generation": {"text": text, "label": f"{word}."},
            }[task]
        )
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def make_recipe(path, task, backbone=None, epochs=2, **settings):
    name = backbone or {"text_to_text": "t5", "text_generation": "gpt2"}.get(task, "bert")
    mapping = {
        "task": {"name": task, "dropout": 0.0, **settings.pop("task", {})},
        "backbone": {"name": name, "weights": "none", "sequence_length": 24, "dropout": 0.1},
        "data": {
            "source": "jsonl",
            "path": str(path),
            "batch_size": 16,
            **settings.pop("data", {}),
        },
        "train": {
            "stages": [{"trainable_blocks": -1, "epochs": epochs, "learning_rate": 3e-3}],
            "early_stopping": None,
            "tensorboard": False,
            **settings.pop("train", {}),
        },
    }
    if task == "text_pair_classification":
        mapping["data"]["pair_column"] = "pair"
    if task in ("text_to_text", "text_generation"):
        mapping["task"]["max_new_tokens"] = 6
    mapping["backbone"] |= settings
    return recipe.from_mapping(mapping)


@pytest.mark.parametrize(
    "task",
    [
        "text_classification",
        pytest.param("text_pair_classification", marks=pytest.mark.slow),
        pytest.param("text_multilabel", marks=pytest.mark.slow),
        pytest.param("text_regression", marks=pytest.mark.slow),
        pytest.param("token_classification", marks=pytest.mark.slow),
        pytest.param("text_to_text", marks=pytest.mark.slow),
        pytest.param("text_generation", marks=pytest.mark.slow),
    ],
)
def test_a_task_leaves_a_folder_that_answers_questions(tmp_path, task):
    path = write(tmp_path / "a.jsonl", task)
    made = make_recipe(path, task)
    run = workflow.fit(made, runs_dir=tmp_path / "runs", name="one")
    scores = run.read_json("scores")
    assert {"validation", "test", "training"} <= set(scores)
    assert np.isfinite(scores["test"]["loss"])
    assert run.tokenizer_path.is_file()
    assert run.predictions_path.read_text().count("\n") >= scores["test"].get("written", 1)
    _, split, found = predictions.evaluate(run)
    assert found.scores["loss"] == pytest.approx(scores["test"]["loss"], rel=1e-4)
    assert len(split) == scores["test"]["examples"]
    if task != "text_pair_classification":
        said = list(predictions.predict(run, texts=["a good film", " "]))
        assert said[0]["error"] is None
        assert said[1]["error"] == "there is no text"
    else:
        with pytest.raises(DataError, match="compares two texts"):
            list(predictions.predict(run, texts=["a good film"]))
    rows = list(predictions.predict(run, [path]))
    assert len(rows) == 96
    assert not any(row["error"] for row in rows)
    _, _, other = predictions.evaluate(run, str(path))
    assert other.scores["examples"] == 96


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["bert", "roberta", "distilbert", "electra", "xlnet", "gpt2", "t5"]
)
def test_every_network_learns_what_a_word_tells(tmp_path, name):
    path = write(tmp_path / "a.jsonl", "text_classification", n=240)
    made = make_recipe(path, "text_classification", name, epochs=6)
    run = workflow.fit(made, runs_dir=tmp_path / "runs", name="one")
    assert run.read_json("scores")["test"]["accuracy"] >= 0.9


@pytest.mark.slow
def test_a_network_that_writes_learns_to_pick_a_word(tmp_path):
    path = write(tmp_path / "a.jsonl", "text_to_text", n=400)
    made = make_recipe(path, "text_to_text", epochs=12)
    run = workflow.fit(made, runs_dir=tmp_path / "runs", name="one")
    assert run.read_json("scores")["test"]["exact_match"] >= 0.8


@pytest.mark.slow
def test_words_get_the_tags_that_were_learned(tmp_path):
    path = write(tmp_path / "a.jsonl", "token_classification", n=240)
    run = workflow.fit(
        make_recipe(path, "token_classification", epochs=5), runs_dir=tmp_path / "runs", name="one"
    )
    assert run.read_json("scores")["test"]["f1"] >= 0.9
    (said,) = predictions.predict(run, texts=["film lovely book"])
    assert said["predicted"] == "O B-MOOD O"


@pytest.mark.slow
def test_a_killed_run_with_texts_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", "text_classification")
    made = make_recipe(
        path,
        "text_classification",
        train={"checkpoint": {"every_steps": 3}, "stages": [
            {"trainable_blocks": 0, "epochs": 1, "learning_rate": 3e-3},
            {"trainable_blocks": 1, "epochs": 2, "learning_rate": 3e-3, "schedule": "linear"},
        ]},
    )  # fmt: skip
    whole = workflow.fit(made, runs_dir=tmp_path / "runs", name="whole")

    from kerastune_ft import checkpoints

    save, count = checkpoints.Checkpoints.save, []

    def interrupted(self, state):
        save(self, state)
        count.append(1)
        if len(count) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.Checkpoints, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        workflow.fit(made, runs_dir=tmp_path / "runs", name="cut")
    monkeypatch.setattr(checkpoints.Checkpoints, "save", save)
    cut = workflow.resume(tmp_path / "runs" / "cut")
    assert cut.read_json("scores")["test"] == whole.read_json("scores")["test"]
    pairs = zip(
        predictions.load_model(cut).get_weights(),
        predictions.load_model(whole).get_weights(),
        strict=True,
    )
    assert all((one == other).all() for one, other in pairs)


def test_a_budget_of_tokens_trains_as_well(tmp_path):
    path = write(tmp_path / "a.jsonl", "text_classification")
    made = make_recipe(path, "text_classification", data={"batch_tokens": 128})
    run = workflow.fit(made, runs_dir=tmp_path / "runs", name="one")
    assert np.isfinite(run.read_json("scores")["test"]["loss"])


def test_texts_that_are_cut_are_counted(tmp_path):
    path = write(tmp_path / "a.jsonl", "text_classification", n=40)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["text"] = "film " * 20_000
    path.write_text("\n".join(map(json.dumps, rows)))
    for truncation, kept in (
        ("head", "beginning"),
        ("tail", "end"),
        ("head_tail", "beginning and"),
    ):
        made = make_recipe(path, "text_classification", data={"truncation": truncation})
        splits = workflow.read(resuming.resolved(made))
        (found,) = [finding for finding in splits.findings if finding.kind == "cut_text"]
        assert found.count == 1
        assert "(2.5%)" in found.message
        assert kept in found.message


def test_a_run_whose_tokenizer_is_gone_says_so(tmp_path):
    path = write(tmp_path / "a.jsonl", "text_classification")
    run = workflow.fit(make_recipe(path, "text_classification"), runs_dir=tmp_path, name="one")
    run.tokenizer_path.write_text("{}")
    with pytest.raises(RunError, match="missing or damaged"):
        predictions.evaluate(run)
    run.tokenizer_path.unlink()
    with pytest.raises(RunError, match="missing or damaged"):
        list(predictions.predict(Run.open(run.path), texts=["x"]))


@pytest.mark.slow
def test_a_former_run_gives_network_tokenizer_and_head(tmp_path):
    path = write(tmp_path / "a.jsonl", "text_classification")
    first = workflow.fit(make_recipe(path, "text_classification"), runs_dir=tmp_path, name="one")
    made = make_recipe(path, "text_classification", weights=str(first.path))
    splits = workflow.read(made)
    model, former = workflow.build(made, splits), predictions.load_model(first)
    ours, theirs = models.backbone_of(model)[0], models.backbone_of(former)[0]
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        assert (one == other).all()
    second = workflow.fit(made, runs_dir=tmp_path, name="two")
    assert second.tokenizer_path.read_bytes() == first.tokenizer_path.read_bytes()


def test_more_tokens_than_positions_are_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", "text_classification")
    made = make_recipe(path, "text_classification", sequence_length=4000)
    with pytest.raises(ModelError, match=r"sequence_length.*positions for 128 tokens.*got 4000"):
        workflow.fit(made, runs_dir=tmp_path, name="one")


def test_tokens_of_many_texts_are_kept_and_a_damaged_cache_is_made_again(tmp_path, monkeypatch):
    from kerastune_ft.backbones import weights
    from kerastune_ft.data import tokenizing

    monkeypatch.setattr(tokenizing, "CACHED_CHARACTERS", 10)
    made = resuming.resolved(
        make_recipe(write(tmp_path / "a.jsonl", "text_classification"), "text_classification")
    )
    first = workflow.read(made)
    files = sorted((weights.home() / "tokens").glob("*.npz"))
    assert files
    for damage in (lambda path: None, lambda path: path.write_bytes(path.read_bytes()[:-40])):
        for path in files:
            damage(path)
        again = workflow.read(made)
        for one, other in zip(first.all, again.all, strict=True):
            assert all(
                (one.content.ids[row] == other.content.ids[row]).all() for row in range(len(one))
            )
