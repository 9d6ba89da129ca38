"""Reads what a language network is built like: from Hugging Face's or KerasHub's settings.

Imports nothing heavy. What a setting changes about the numbers is either followed or refused.

    shape = from_huggingface(row, json.loads(text), "folder/config.json")
    shape.layers, shape.activation, shape.epsilon
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kerastune_ft import backbones
from kerastune_ft.backbones.facts import Backbone
from kerastune_ft.errors import WeightsError

MODEL_TYPES = {
    "bert": "bert",
    "roberta": "roberta",
    "distilbert": "distilbert",
    "electra": "electra",
    "xlnet": "xlnet",
    "gpt2": "gpt2",
    "t5": "t5",
}
"""Hugging Face's `model_type` to the row that reads it."""

_OTHER_TOKENS = {"xlm-roberta", "xlm-roberta-xl", "camembert", "XLMRobertaBackbone"}
"""Networks like RoBERTa's, whose tokenizer is SentencePiece's with fairseq's numbers."""

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "linear": "linear",
    "mish": "mish",
}
"""Hugging Face's names of activations to Keras's; `gelu_tanh` is GELU's approximation."""


@dataclass(frozen=True)
class Architecture:
    """Holds what a language network is built like.

    Args:
        family: Name of the row.
        layers: Of the encoder, or of the only stack.
        width: Of the features.
        heads: Of attention.
        head_width: Of one head.
        inner: Width inside the feed-forward part.
        vocabulary: Number of tokens.
        positions: Longest text in tokens; 0 where positions are relative.
        segments: Number of segments that are told apart; 0 for none.
        activation: Keras's name, or `gelu_tanh`.
        epsilon: Of the normalisations.
        embedding_width: Of the token embeddings; differs from `width` in ELECTRA alone.
        gated: Whether the feed-forward part of T5 has a gate.
        decoder_layers: Of T5.
        buckets: Of T5's relative positions.
        max_distance: From which on T5 tells positions apart no more.
        tied: Whether the head of T5 is the token embedding.
        scaled: Whether T5 multiplies by `width ** -0.5` before its head.
        clamp: Distance from which on XLNet tells positions apart no more; 0 for none.
        scale_by_layer: Whether GPT-2 divides the scores of layer i by i + 1.
        scale_scores: Whether GPT-2 divides them by the root of the head's width.
    """

    family: str
    layers: int = 2
    width: int = 32
    heads: int = 2
    head_width: int = 16
    inner: int = 64
    vocabulary: int = 1000
    positions: int = 128
    segments: int = 0
    activation: str = "gelu"
    epsilon: float = 1e-12
    embedding_width: int = 32
    gated: bool = False
    decoder_layers: int = 2
    buckets: int = 32
    max_distance: int = 128
    tied: bool = True
    scaled: bool = True
    clamp: int = 0
    scale_by_layer: bool = False
    scale_scores: bool = True


def tiny(row: Backbone, vocabulary: int = 1000) -> Architecture:
    """Returns the small network that weights `none` mean: 2 layers, 32 wide, 2 heads.

    Args:
        row: Facts of the network.
        vocabulary: Number of tokens.
    """
    families: dict[str, dict[str, Any]] = {
        "roberta": {"epsilon": 1e-5},
        "gpt2": {"epsilon": 1e-5, "activation": "gelu_tanh"},
        "t5": {"epsilon": 1e-6, "activation": "relu", "positions": 0},
        "xlnet": {"segments": 2, "positions": 0},
        "bert": {"segments": 2},
        "electra": {"segments": 2},
    }
    return Architecture(family=row.name, vocabulary=vocabulary, **families.get(row.name, {}))


def check_model_type(row: Backbone, settings: Mapping[str, Any], place: str) -> None:
    """Refuses the settings of another family.

    Raises:
        WeightsError: If they are; it names the row that reads them.
    """
    found = settings.get("model_type")
    if found is None:
        raise WeightsError(
            f"{place}: names no model_type, so it is not known what network it is; it would be "
            f"{_types(row)} for backbone '{row.name}'."
        )
    other = MODEL_TYPES.get(str(found))
    if str(found) in _OTHER_TOKENS:
        raise _tokens_unread(place, str(found))
    if other is None:
        rows = ", ".join(r.name for r in backbones.BACKBONES.values() if r.language)
        raise WeightsError(
            f"{place}: holds a network of model_type '{found}', which no backbone reads; "
            f"those of text are {rows}."
        )
    if other != row.name:
        raise WeightsError(
            f"{place}: holds a network of model_type '{found}', not {_types(row)}; "
            f"set backbone.name to '{other}'."
        )


def check_hub_class(row: Backbone, kind: str, place: str) -> None:
    """Refuses a class of KerasHub that is not the row's.

    Args:
        row: Facts of the network.
        kind: Name of the class.
        place: Where it was found, for errors.

    Raises:
        WeightsError: If it is another one; it names the row that reads it.
    """
    if kind in _OTHER_TOKENS:
        raise _tokens_unread(place, kind)
    other = HUB_CLASSES.get(kind)
    if other is None:
        raise WeightsError(
            f"{place}: holds a '{kind}' of KerasHub, which no backbone of text reads; "
            f"{', '.join(HUB_CLASSES)} are read."
        )
    if other != row.name:
        raise WeightsError(f"{place}: holds a '{kind}'; set backbone.name to '{other}'.")


def _tokens_unread(place: str, kind: str) -> WeightsError:
    return WeightsError(
        f"{place}: '{kind}' is not supported: its tokenizer, SentencePiece with the numbers of "
        "fairseq, is not RoBERTa's; take weights of model_type 'roberta', or of 'bert' for many "
        "languages ('bert_base_multi')."
    )


def _types(row: Backbone) -> str:
    return " or ".join(f"'{kind}'" for kind, name in MODEL_TYPES.items() if name == row.name)


def from_huggingface(row: Backbone, settings: Mapping[str, Any], place: str) -> Architecture:
    """Returns the architecture that a `config.json` of Hugging Face's describes.

    Args:
        row: Facts of the network.
        settings: Contents of the file.
        place: Of the file, for errors.

    Raises:
        WeightsError: If it is of another family, lacks a setting, or has one that is not followed.
    """
    check_model_type(row, settings, place)
    read = _Settings(settings, place)
    try:
        return _READERS[row.name](read)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise WeightsError(f"{place}: is no valid configuration ({error}).") from error


class _Settings:
    """Reads settings and says which one is missing or not followed."""

    def __init__(self, settings: Mapping[str, Any], place: str) -> None:
        self.settings = settings
        self.place = place

    def number(self, name: str, default: int | None = None) -> int:
        value = self.settings.get(name)
        if value is None:
            if default is None:
                raise WeightsError(f"{self.place}: has no '{name}'; get the file again.")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise WeightsError(
                f"{self.place}: {name}: expected a number of 0 or more, got {value}."
            )
        return value

    def real(self, name: str, default: float) -> float:
        value = self.settings.get(name)
        return default if value is None else float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.settings.get(name)
        return default if value is None else bool(value)

    def activation(self, name: str, default: str) -> str:
        value = str(self.settings.get(name) or default)
        if value not in _ACTIVATIONS:
            raise WeightsError(
                f"{self.place}: {name}: '{value}' is not supported; {', '.join(_ACTIVATIONS)} are."
            )
        return _ACTIVATIONS[value]

    def only(self, name: str, *right: Any) -> None:
        """Refuses a setting that would change the numbers in a way that is not followed."""
        value = self.settings.get(name, right[0])
        if value not in right:
            raise WeightsError(
                f"{self.place}: {name}: '{value}' is not supported; '{right[0]}' is."
            )


def _bert(read: _Settings, family: str = "bert", epsilon: float = 1e-12) -> Architecture:
    read.only("position_embedding_type", "absolute", None)
    read.only("is_decoder", False, None)
    read.only("add_cross_attention", False, None)
    width, heads = read.number("hidden_size", 768), read.number("num_attention_heads", 12)
    return Architecture(
        family=family,
        layers=read.number("num_hidden_layers", 12),
        width=width,
        heads=heads,
        head_width=_divided(width, heads, read.place),
        inner=read.number("intermediate_size", 3072),
        vocabulary=read.number("vocab_size"),
        positions=read.number("max_position_embeddings", 512),
        segments=read.number("type_vocab_size", 2),
        activation=read.activation("hidden_act", "gelu"),
        epsilon=read.real("layer_norm_eps", epsilon),
        embedding_width=width,
    )


def _roberta(read: _Settings) -> Architecture:
    shape = _bert(read, "roberta", 1e-12)  # transformers' default; checkpoints say 1e-5
    # Positions count from the padding token's number on.
    offset = read.number("pad_token_id", 1) + 1
    return dataclasses.replace(shape, positions=shape.positions - offset, segments=0)


def _electra(read: _Settings) -> Architecture:
    small = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
    shape = _bert(_Settings({**small, **read.settings}, read.place), "electra")
    return dataclasses.replace(shape, embedding_width=read.number("embedding_size", 128))


def _distilbert(read: _Settings) -> Architecture:
    width, heads = read.number("dim", 768), read.number("n_heads", 12)
    return Architecture(
        family="distilbert",
        layers=read.number("n_layers", 6),
        width=width,
        heads=heads,
        head_width=_divided(width, heads, read.place),
        inner=read.number("hidden_dim", 3072),
        vocabulary=read.number("vocab_size"),
        positions=read.number("max_position_embeddings", 512),
        activation=read.activation("activation", "gelu"),
        epsilon=1e-12,  # fixed in transformers' modeling_distilbert.py
        embedding_width=width,
    )


def _gpt2(read: _Settings) -> Architecture:
    read.only("add_cross_attention", False, None)
    width, heads = read.number("n_embd", 768), read.number("n_head", 12)
    return Architecture(
        family="gpt2",
        layers=read.number("n_layer", 12),
        width=width,
        heads=heads,
        head_width=_divided(width, heads, read.place),
        inner=read.number("n_inner", 4 * width),
        vocabulary=read.number("vocab_size"),
        positions=read.number("n_positions", read.number("n_ctx", 1024)),
        activation=read.activation("activation_function", "gelu_new"),
        epsilon=read.real("layer_norm_epsilon", 1e-5),
        embedding_width=width,
        scale_by_layer=read.flag("scale_attn_by_inverse_layer_idx"),
        scale_scores=read.flag("scale_attn_weights", True),
    )


def _t5(read: _Settings) -> Architecture:
    projection = str(read.settings.get("feed_forward_proj") or "relu")
    gated = projection.startswith("gated-")
    name = projection.removeprefix("gated-")
    if projection == "gated-gelu":
        name = "gelu_new"  # so in transformers' configuration_t5.py
    width = read.number("d_model", 512)
    tied = read.flag("tie_word_embeddings", True)
    layers = read.number("num_layers", 6)
    return Architecture(
        family="t5",
        layers=layers,
        width=width,
        heads=read.number("num_heads", 8),
        head_width=read.number("d_kv", 64),
        inner=read.number("d_ff", 2048),
        vocabulary=read.number("vocab_size", 32128),
        positions=0,
        activation=_Settings({"feed_forward_proj": name}, read.place).activation(
            "feed_forward_proj", "relu"
        ),
        epsilon=read.real("layer_norm_epsilon", 1e-6),
        embedding_width=width,
        gated=gated,
        decoder_layers=read.number("num_decoder_layers", layers),
        buckets=read.number("relative_attention_num_buckets", 32),
        max_distance=read.number("relative_attention_max_distance", 128),
        tied=tied,
        # transformers 5 writes this one and always says that weights are tied.
        scaled=read.flag("scale_decoder_outputs", tied),
    )


def _xlnet(read: _Settings) -> Architecture:
    read.only("attn_type", "bi")
    read.only("bi_data", False)
    read.only("untie_r", True)
    width, heads = read.number("d_model", 1024), read.number("n_head", 16)
    return Architecture(
        family="xlnet",
        layers=read.number("n_layer", 24),
        width=width,
        heads=heads,
        head_width=read.number("d_head", _divided(width, heads, read.place)),
        inner=read.number("d_inner", 4096),
        vocabulary=read.number("vocab_size", read.number("n_token", 32000)),
        positions=0,
        segments=2,
        activation=read.activation("ff_activation", "gelu"),
        epsilon=read.real("layer_norm_eps", 1e-12),
        embedding_width=width,
        clamp=max(int(read.settings.get("clamp_len") or 0), 0),
    )


_READERS = {
    "bert": _bert,
    "roberta": _roberta,
    "electra": _electra,
    "distilbert": _distilbert,
    "gpt2": _gpt2,
    "t5": _t5,
    "xlnet": _xlnet,
}


def _divided(width: int, heads: int, place: str) -> int:
    if heads < 1 or width % heads:
        raise WeightsError(f"{place}: a width of {width} does not divide into {heads} heads.")
    return width // heads


HUB_CLASSES = {
    "BertBackbone": "bert",
    "RobertaBackbone": "roberta",
    "DistilBertBackbone": "distilbert",
    "ElectraBackbone": "electra",
    "GPT2Backbone": "gpt2",
    "T5Backbone": "t5",
}
"""Classes of KerasHub to the rows that read them."""


def from_keras_hub(row: Backbone, settings: Mapping[str, Any], place: str) -> Architecture:
    """Returns the architecture that the `config.json` of a KerasHub preset describes.

    Args:
        row: Facts of the network.
        settings: Contents of the file.
        place: Of the file, for errors.

    Raises:
        WeightsError: If it is of another family or lacks a setting.
    """
    kind = str(settings.get("registered_name", "")).rpartition(">")[2]
    check_hub_class(row, kind, place)
    read = _Settings(settings.get("config", {}), place)
    width, heads = read.number("hidden_dim"), read.number("num_heads")
    head = read.number("key_value_dim", _divided(width, heads, place))
    t5 = row.name == "t5"
    activation = {"gpt2": "gelu_tanh", "bert": "gelu_tanh", "electra": "gelu_tanh"}
    tied = read.flag("tie_embedding_weights", True)
    return Architecture(
        family=row.name,
        layers=read.number("num_layers"),
        width=width,
        heads=heads,
        head_width=head,
        inner=read.number("intermediate_dim"),
        vocabulary=read.number("vocab_size" if row.name == "electra" else "vocabulary_size"),
        positions=0 if t5 else read.number("max_sequence_length"),
        segments=read.number("num_segments", 2) if row.name in ("bert", "electra") else 0,
        activation=_t5_activation(read) if t5 else activation.get(row.name, "gelu"),
        epsilon={"roberta": 1e-5, "gpt2": 1e-5, "t5": read.real("layer_norm_epsilon", 1e-6)}.get(
            row.name, 1e-12
        ),
        embedding_width=read.number("embedding_dim", width),
        gated=t5 and read.flag("use_gated_activation", True),
        decoder_layers=read.number("num_layers"),
        tied=tied,
        scaled=tied,
    )


def _t5_activation(read: _Settings) -> str:
    value = read.settings.get("activation", "relu")
    name = value.get("config", value.get("class_name")) if isinstance(value, dict) else value
    name = str(name).rpartition(">")[2]
    return "gelu_tanh" if name == "gelu_approximate" else name
