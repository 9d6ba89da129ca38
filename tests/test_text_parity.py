"""Hidden states and logits against transformers, on small random networks of every family."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

from kerastune_ft import backbones
from kerastune_ft.backbones import text_folders, text_networks
from kerastune_ft.errors import WeightsError

torch = pytest.importorskip("torch", reason="parity is measured against PyTorch")
transformers = pytest.importorskip("transformers", reason="parity is measured against it")

SIZES = {
    "bert": {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4},
    "gpt2": {"n_embd": 48, "n_layer": 3, "n_head": 4},
    "distilbert": {"dim": 48, "n_layers": 3, "n_heads": 4, "hidden_dim": 96},
    "xlnet": {"d_model": 48, "n_layer": 3, "n_head": 4, "d_inner": 96},
    "t5": {"d_model": 48, "num_layers": 3, "num_heads": 4, "d_kv": 8, "d_ff": 96},
}
BERT = SIZES["bert"] | {"intermediate_size": 96, "max_position_embeddings": 64}
CASES = {
    "bert": ("BertConfig", BERT),
    "bert with gelu_new": (
        "BertConfig",
        BERT | {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3, "type_vocab_size": 3},
    ),
    "roberta": ("RobertaConfig", BERT | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "electra": ("ElectraConfig", BERT | {"embedding_size": 24}),
    "distilbert": ("DistilBertConfig", SIZES["distilbert"] | {"max_position_embeddings": 64}),
    "gpt2": ("GPT2Config", SIZES["gpt2"] | {"n_positions": 64}),
    "gpt2 with scales": (
        "GPT2Config",
        SIZES["gpt2"]
        | {
            "n_positions": 64,
            "n_inner": 80,
            "activation_function": "gelu",
            "layer_norm_epsilon": 1e-3,
            "scale_attn_by_inverse_layer_idx": True,
        },
    ),
    "xlnet": ("XLNetConfig", SIZES["xlnet"]),
    "xlnet with relu": (
        "XLNetConfig",
        SIZES["xlnet"] | {"ff_activation": "relu", "clamp_len": 7, "layer_norm_eps": 1e-6},
    ),
    "t5": ("T5Config", SIZES["t5"]),
    "t5 v1.1": (
        "T5Config",
        SIZES["t5"]
        | {
            "feed_forward_proj": "gated-gelu",
            "num_decoder_layers": 2,
            "relative_attention_num_buckets": 16,
            "relative_attention_max_distance": 40,
        },
    ),
}
TOLERANCE = 2e-5


def shaken(model):
    """Gives norms and biases, which transformers starts at 1 and 0, random numbers, too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or parameter.abs().max() == 0:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
            elif model.config.model_type != "t5":  # its first numbers are large ones
                parameter.mul_(3)
    return model.eval()


def reference(case, task="AutoModel"):
    kind, sizes = CASES[case]
    torch.manual_seed(0)
    vocabulary = {"vocab_size": 99}
    config = getattr(transformers, kind)(**vocabulary, **sizes)
    config._attn_implementation = "eager"
    return shaken(getattr(transformers, task).from_config(config))


def row_of(case):
    return backbones.get(case.partition(" ")[0])


def batch(seed=0, width=24, padding=0):
    """Eight texts of 2 to `width` tokens."""
    generator = np.random.default_rng(seed)
    lengths = np.array([width, 2, 5, 9, 13, 17, 20, 23])
    ids = generator.integers(5, 99, (8, width)).astype("int32")
    mask = (np.arange(width) < lengths[:, None]).astype("int32")
    ids = np.where(mask, ids, padding).astype("int32")
    segments = (np.arange(width) >= (lengths // 2)[:, None]).astype("int32") * mask
    return ids, mask, segments


def inputs(row, seed=0):
    padding = {"roberta": 1, "xlnet": 5}.get(row.name, 0)
    ids, mask, segments = batch(seed, padding=padding)
    ours = {"token_ids": ids, "padding_mask": mask}
    theirs = {"input_ids": torch.tensor(ids).long(), "attention_mask": torch.tensor(mask).long()}
    if row.language.segments:
        ours["segment_ids"] = segments
        theirs["token_type_ids"] = torch.tensor(segments).long()
    return ours, theirs, mask.astype(bool)


def features(model, theirs):
    with torch.no_grad():
        part = model.get_encoder() if hasattr(model, "decoder") else model
        return part(**theirs).last_hidden_state.numpy()


def difference(row, model, network):
    ours, theirs, real = inputs(row)
    found = np.asarray(network(ours))
    wanted = features(model, theirs)
    assert wanted[real].std() > 0.1  # texts must differ for the comparison to mean something
    return float(np.abs(found - wanted)[real].max())


@pytest.mark.parametrize("case", sorted(CASES))
def test_features_are_those_of_transformers(case, tmp_path):
    row, model = row_of(case), reference(case)
    model.save_pretrained(tmp_path)
    network = text_networks.build(row, weights=str(tmp_path))
    largest = difference(row, model, network)
    print(f"largest difference, {case}: {largest:.1e}")
    assert largest < TOLERANCE
    assert len(text_networks.cuts(network)) == text_networks.layers_of_config(row, str(tmp_path))


@pytest.mark.parametrize(
    ("case", "task"),
    [
        ("bert", "AutoModelForSequenceClassification"),
        ("roberta", "AutoModelForMaskedLM"),
        ("distilbert", "AutoModelForTokenClassification"),
        ("electra", "AutoModelForSequenceClassification"),
        ("gpt2", "AutoModelForSequenceClassification"),
        ("xlnet", "AutoModelForSequenceClassification"),
    ],
)
def test_a_checkpoint_with_a_head_gives_the_same_network_and_reports_the_head(case, task, tmp_path):
    row, whole = row_of(case), reference(case, task)
    whole.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="not used, as those of another task's head"):
        network = text_networks.build(row, weights=str(tmp_path))
    assert difference(row, whole.base_model, network) < TOLERANCE


@pytest.mark.parametrize("case", ["t5", "t5 v1.1"])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_t5_are_those_of_transformers(case, tied, tmp_path):
    row, model = row_of(case), reference(case, "AutoModelForSeq2SeqLM")
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(99, 48))
        model.config.scale_decoder_outputs = False
    model.save_pretrained(tmp_path)
    network = text_networks.seq2seq(row, weights=str(tmp_path))
    ids, mask, _ = batch()
    target, target_mask, _ = batch(1, width=23)
    found = network(
        {
            "encoder_token_ids": ids,
            "encoder_padding_mask": mask,
            "decoder_token_ids": target,
            "decoder_padding_mask": target_mask,
        }
    )
    with torch.no_grad():
        wanted = model(
            input_ids=torch.tensor(ids).long(),
            attention_mask=torch.tensor(mask).long(),
            decoder_input_ids=torch.tensor(target).long(),
            decoder_attention_mask=torch.tensor(target_mask).long(),
        ).logits.numpy()
    real = target_mask.astype(bool)
    largest = np.abs(np.asarray(found) - wanted)[real].max() / np.abs(wanted[real]).max()
    print(f"largest relative difference, {case}, tied {tied}: {largest:.1e}")
    assert largest < TOLERANCE
    names = {layer.name for layer in network.layers}
    assert ("decoder_logits" in names) != tied
    # The encoder of the same folder, and of this network saved as a run's, is its beginning.
    network.save(tmp_path / "model.keras")
    for place in (tmp_path, tmp_path / "model.keras"):
        encoder = text_networks.build(row, weights=str(place))
        assert difference(row, model, encoder) < TOLERANCE


def test_logits_of_gpt2_are_those_of_transformers(tmp_path):
    row, model = row_of("gpt2"), reference("gpt2", "AutoModelForCausalLM")
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = text_networks.causal(row, weights=str(tmp_path))
    ours, theirs, real = inputs(row)
    with torch.no_grad():
        wanted = model(**theirs).logits.numpy()
    assert np.abs(np.asarray(network(ours)) - wanted)[real].max() < 1e-4


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_checkpoints_are_read(kind, tmp_path):
    row, model = row_of("bert"), reference("bert")
    model = model.to(getattr(torch, kind))
    model.save_pretrained(tmp_path)
    network = text_networks.build(row, weights=str(tmp_path))
    assert difference(row, model.float(), network) < TOLERANCE


def test_several_files_are_read_as_one(tmp_path):
    row, model = row_of("bert"), reference("bert")
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert difference(row, model, text_networks.build(row, weights=str(tmp_path))) < TOLERANCE
    one = min(tmp_path.glob("model-*.safetensors"))
    one.unlink()
    with pytest.raises(WeightsError, match=f"lacks {one.name}"):
        text_networks.build(row, weights=str(tmp_path))


def test_old_names_of_norms_are_read(tmp_path):
    from safetensors.numpy import load_file, save_file

    row, model = row_of("bert"), reference("bert")
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in load_file(path).items()
    }
    assert any(name.endswith("gamma") for name in old)
    save_file(old, path)
    assert difference(row, model, text_networks.build(row, weights=str(tmp_path))) < TOLERANCE


def test_a_folder_of_another_family_names_the_right_row(tmp_path):
    reference("roberta").save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"set backbone\.name to 'roberta'"):
        text_networks.build(row_of("bert"), weights=str(tmp_path))


def test_missing_tensors_and_wrong_shapes_are_named(tmp_path):
    from safetensors.numpy import load_file, save_file

    row = row_of("distilbert")
    reference("distilbert").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    lost = [name for name in tensors if ".1.attention" in name]
    save_file({name: a for name, a in tensors.items() if name not in lost}, path)
    with pytest.raises(WeightsError, match=r"lacks the tensors transformer\.layer\.1\.attention"):
        text_networks.build(row, weights=str(tmp_path))
    save_file(tensors, path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    with pytest.raises(WeightsError, match=r"is 99x48, but config\.json makes it 100x48"):
        text_networks.build(row, weights=str(tmp_path))


def test_pickles_are_never_opened(tmp_path):
    reference("bert").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="never opened"):
        text_networks.build(row_of("bert"), weights=str(tmp_path))


def test_a_preflight_names_every_missing_file(tmp_path):
    with pytest.raises(WeightsError) as caught:
        text_folders.preflight(row_of("gpt2"), tmp_path, tokenizer=True)
    assert "config.json, model.safetensors, tokenizer.json or vocab.json and merges.txt" in str(
        caught.value
    )
