"""Gives the tensors of published language networks to the layers of ours.

tensors = Tensors(reader, "folder")
arrays = TABLES["bert"](shape, tensors)     # {'layer_0_query': [kernel, bias], ...}
tensors.unused()                            # of a task's head, say
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import numpy as np

from kerastune_ft.backbones.text_architectures import Architecture
from kerastune_ft.errors import WeightsError

Arrays = dict[str, list[np.ndarray]]
"""The arrays of every layer, by its name, in Keras's order."""

_PROBES = {
    "bert": "embeddings.word_embeddings.weight",
    "roberta": "embeddings.word_embeddings.weight",
    "electra": "embeddings.word_embeddings.weight",
    "distilbert": "embeddings.word_embeddings.weight",
    "gpt2": "wte.weight",
    "xlnet": "word_embedding.weight",
    "t5": "encoder.final_layer_norm.weight",
}
"""A tensor that every checkpoint of a family holds, behind whatever prefix the others have, too."""

_BESIDE = re.compile(
    r"(^|\.)(position_ids|token_type_ids|attn\.bias|attn\.masked_bias|mask_emb)$"
    r"|(^|\.)pooler\.dense\."
)
"""What a checkpoint may hold beside what is read of it, and nobody misses.

BERT's pooler, a dense layer trained to tell whether a sentence follows another, is left out without
a word: heads here read the features themselves, and learn what they need of it.
"""

_BESIDE_IN = {"t5": re.compile(r"^(decoder|lm_head)\."), "gpt2": re.compile(r"^lm_head\.weight$")}
"""The same, by family: the half of T5 that is not asked for, and GPT-2's embedding once more."""


class Reader(Protocol):
    """Reads the tensors of a checkpoint by name."""

    def names(self) -> Iterable[str]:
        """Returns the names of all tensors."""

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor, float32 where it is a number."""


class Tensors:
    """Hands tensors out by their name without prefix, and keeps account of what is missing."""

    def __init__(self, reader: Reader, family: str, place: str) -> None:
        """Finds the prefix.

        Args:
            reader: Of the checkpoint.
            family: Name of the row.
            place: Of the checkpoint, for errors.

        Raises:
            WeightsError: If it holds no network of the family, or several.
        """
        self.reader = reader
        self.family = family
        self.place = place
        self.missing: list[str] = []
        # Checkpoints that came from TensorFlow call a norm's numbers gamma and beta.
        self.known = {
            re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name).replace(
                "LayerNorm.beta", "LayerNorm.bias"
            ): name
            for name in reader.names()
        }
        self.used: set[str] = set()
        probe = _PROBES[family]
        prefixes = sorted(
            name.removesuffix(probe)
            for name in self.known
            if name == probe or name.endswith(f".{probe}")
        )
        if len(prefixes) != 1:
            found = f"several ({', '.join(prefixes)})" if prefixes else "none"
            raise WeightsError(
                f"{place}: expected one network with a tensor '{probe}', found {found}; it holds "
                f"{', '.join(sorted(self.known)[:3])}, ...; check backbone.name."
            )
        self.prefix = prefixes[0]

    def has(self, name: str) -> bool:
        """Tells whether there is a tensor."""
        return self.prefix + name in self.known

    def take(self, name: str, *shape: int) -> np.ndarray:
        """Returns a tensor of a shape; zeros where there is none, which is noted in `missing`.

        Raises:
            WeightsError: If it has another shape.
        """
        full = self.prefix + name
        if full not in self.known:
            self.missing.append(full)
            return np.zeros(shape, "float32")
        self.used.add(full)
        array = self.reader.read(self.known[full])
        if array.shape != shape:
            raise WeightsError(
                f"{self.place}: '{full}' is {_shape(array.shape)}, but config.json makes it "
                f"{_shape(shape)}; the two files do not belong together."
            )
        return array

    def check(self) -> None:
        """Refuses a checkpoint that lacks tensors.

        Raises:
            WeightsError: If any was missing.
        """
        if self.missing:
            more = f" and {len(self.missing) - 3} more" if len(self.missing) > 3 else ""
            raise WeightsError(
                f"{self.place}: lacks the tensors {', '.join(self.missing[:3])}{more}; "
                "the file is incomplete or of another network; get it again."
            )

    def unused(self) -> list[str]:
        """Returns the tensors that nothing asked for and that a task's head may have been."""
        beside = [_BESIDE, *([_BESIDE_IN[self.family]] if self.family in _BESIDE_IN else [])]
        left = (name for name in self.known if name not in self.used)
        return sorted(name for name in left if not any(pattern.search(name) for pattern in beside))


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "a number"


def _linear(t: Tensors, name: str, rows: int, columns: int, bias: bool = True) -> list[np.ndarray]:
    """Returns kernel and bias of a `torch.nn.Linear` from `rows` to `columns`."""
    kernel = [t.take(f"{name}.weight", columns, rows).T]
    return [*kernel, t.take(f"{name}.bias", columns)] if bias else kernel


def _to_heads(t: Tensors, name: str, s: Architecture, bias: bool = True) -> list[np.ndarray]:
    found = _linear(t, name, s.width, s.heads * s.head_width, bias)
    return [found[0].reshape(s.width, s.heads, s.head_width)] + [
        array.reshape(s.heads, s.head_width) for array in found[1:]
    ]


def _from_heads(t: Tensors, name: str, s: Architecture, bias: bool = True) -> list[np.ndarray]:
    found = _linear(t, name, s.heads * s.head_width, s.width, bias)
    return [found[0].reshape(s.heads, s.head_width, s.width), *found[1:]]


def _norm(t: Tensors, name: str, width: int) -> list[np.ndarray]:
    return [t.take(f"{name}.weight", width), t.take(f"{name}.bias", width)]


def _bert(s: Architecture, t: Tensors) -> Arrays:
    narrow = s.embedding_width
    found: Arrays = {
        "token_embedding": [t.take("embeddings.word_embeddings.weight", s.vocabulary, narrow)],
        "embeddings_norm": _norm(t, "embeddings.LayerNorm", narrow),
    }
    positions, segments = (
        "embeddings.position_embeddings.weight",
        "embeddings.token_type_embeddings",
    )
    if s.family == "roberta":
        offset = _rows(t, positions) - s.positions
        table = t.take(positions, s.positions + max(offset, 0), narrow)[max(offset, 0) :]
        # All tokens are of the first segment.
        first = t.take(f"{segments}.weight", _rows(t, f"{segments}.weight") or 1, narrow)[0]
        found["position_embedding"] = [table + first]
    else:
        found["position_embedding"] = [t.take(positions, s.positions, narrow)]
        if s.segments:
            found["segment_embedding"] = [t.take(f"{segments}.weight", s.segments, narrow)]
    if narrow != s.width:
        found["embeddings_project"] = _linear(t, "embeddings_project", narrow, s.width)
    for i in range(s.layers):
        here, name = f"encoder.layer.{i}", f"layer_{i}"
        for part in ("query", "key", "value"):
            found[f"{name}_{part}"] = _to_heads(t, f"{here}.attention.self.{part}", s)
        found[f"{name}_attention_output"] = _from_heads(t, f"{here}.attention.output.dense", s)
        found[f"{name}_attention_norm"] = _norm(t, f"{here}.attention.output.LayerNorm", s.width)
        found[f"{name}_inner"] = _linear(t, f"{here}.intermediate.dense", s.width, s.inner)
        found[f"{name}_outer"] = _linear(t, f"{here}.output.dense", s.inner, s.width)
        found[f"{name}_outer_norm"] = _norm(t, f"{here}.output.LayerNorm", s.width)
    return found


def _rows(t: Tensors, name: str) -> int:
    """Returns how many rows a table has, 0 where there is none."""
    return len(t.reader.read(t.known[t.prefix + name])) if t.has(name) else 0


def _distilbert(s: Architecture, t: Tensors) -> Arrays:
    found: Arrays = {
        "token_embedding": [t.take("embeddings.word_embeddings.weight", s.vocabulary, s.width)],
        "position_embedding": [
            t.take("embeddings.position_embeddings.weight", s.positions, s.width)
        ],
        "embeddings_norm": _norm(t, "embeddings.LayerNorm", s.width),
    }
    for i in range(s.layers):
        here, name = f"transformer.layer.{i}", f"layer_{i}"
        for part in ("query", "key", "value"):
            found[f"{name}_{part}"] = _to_heads(t, f"{here}.attention.{part[0]}_lin", s)
        found[f"{name}_attention_output"] = _from_heads(t, f"{here}.attention.out_lin", s)
        found[f"{name}_attention_norm"] = _norm(t, f"{here}.sa_layer_norm", s.width)
        found[f"{name}_inner"] = _linear(t, f"{here}.ffn.lin1", s.width, s.inner)
        found[f"{name}_outer"] = _linear(t, f"{here}.ffn.lin2", s.inner, s.width)
        found[f"{name}_outer_norm"] = _norm(t, f"{here}.output_layer_norm", s.width)
    return found


def _gpt2(s: Architecture, t: Tensors) -> Arrays:
    found: Arrays = {
        "token_embedding": [t.take("wte.weight", s.vocabulary, s.width)],
        "position_embedding": [t.take("wpe.weight", s.positions, s.width)],
        "final_norm": _norm(t, "ln_f", s.width),
    }
    for i in range(s.layers):
        here, name = f"h.{i}", f"layer_{i}"
        # A Conv1D of transformers holds its kernel the way Keras does.
        kernel = t.take(f"{here}.attn.c_attn.weight", s.width, 3 * s.width)
        bias = t.take(f"{here}.attn.c_attn.bias", 3 * s.width)
        parts = zip(np.split(kernel, 3, axis=1), np.split(bias, 3), strict=True)
        for part, (weight, shift) in zip(("query", "key", "value"), parts, strict=True):
            found[f"{name}_{part}"] = [
                weight.reshape(s.width, s.heads, s.head_width),
                shift.reshape(s.heads, s.head_width),
            ]
        output = t.take(f"{here}.attn.c_proj.weight", s.width, s.width)
        found[f"{name}_attention_output"] = [
            output.reshape(s.heads, s.head_width, s.width),
            t.take(f"{here}.attn.c_proj.bias", s.width),
        ]
        found[f"{name}_attention_norm"] = _norm(t, f"{here}.ln_1", s.width)
        found[f"{name}_outer_norm"] = _norm(t, f"{here}.ln_2", s.width)
        for ours, theirs, rows, columns in (
            ("inner", "c_fc", s.width, s.inner),
            ("outer", "c_proj", s.inner, s.width),
        ):
            found[f"{name}_{ours}"] = [
                t.take(f"{here}.mlp.{theirs}.weight", rows, columns),
                t.take(f"{here}.mlp.{theirs}.bias", columns),
            ]
    return found


def _xlnet(s: Architecture, t: Tensors) -> Arrays:
    found: Arrays = {"token_embedding": [t.take("word_embedding.weight", s.vocabulary, s.width)]}
    by_head = (s.width, s.heads, s.head_width)
    for i in range(s.layers):
        here, name = f"layer.{i}.rel_attn", f"layer_{i}"
        for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("distance", "r")):
            found[f"{name}_{ours}"] = [t.take(f"{here}.{theirs}", *by_head)]
        found[f"{name}_attention_output"] = [np.transpose(t.take(f"{here}.o", *by_head), (1, 2, 0))]
        for ours, theirs in (("content", "r_w"), ("position", "r_r"), ("segment", "r_s")):
            bias = t.take(f"{here}.{theirs}_bias", s.heads, s.head_width)
            found[f"{name}_{ours}_bias"] = [bias.reshape(1, -1)]
        found[f"{name}_segment"] = [t.take(f"{here}.seg_embed", 2, s.heads, s.head_width)]
        found[f"{name}_attention_norm"] = _norm(t, f"{here}.layer_norm", s.width)
        here = f"layer.{i}.ff"
        found[f"{name}_inner"] = _linear(t, f"{here}.layer_1", s.width, s.inner)
        found[f"{name}_outer"] = _linear(t, f"{here}.layer_2", s.inner, s.width)
        found[f"{name}_outer_norm"] = _norm(t, f"{here}.layer_norm", s.width)
    return found


def _t5(s: Architecture, t: Tensors) -> Arrays:
    """Returns the arrays of the encoder."""
    shared = next(
        (name for name in ("shared.weight", "encoder.embed_tokens.weight") if t.has(name)),
        "shared.weight",
    )
    found: Arrays = {"token_embedding": [t.take(shared, s.vocabulary, s.width)]}
    t.used.add(f"{t.prefix}encoder.embed_tokens.weight")
    found["final_norm"] = [t.take("encoder.final_layer_norm.weight", s.width)]
    found["layer_0_relative_attention_bias"] = [_t5_bias(s, t, "encoder")]
    for i in range(s.layers):
        here, name = f"encoder.block.{i}.layer", f"layer_{i}"
        _t5_attention(s, t, f"{here}.0.SelfAttention", f"{here}.0.layer_norm", name, found)
        _t5_inner(s, t, f"{here}.1", name, found)
    return found


def t5_decoder(s: Architecture, t: Tensors) -> Arrays:
    """Returns the arrays of T5's decoder, and of its head where it has one of its own."""
    t.used.add(f"{t.prefix}decoder.embed_tokens.weight")
    found: Arrays = {
        "decoder_final_norm": [t.take("decoder.final_layer_norm.weight", s.width)],
        "decoder_0_relative_attention_bias": [_t5_bias(s, t, "decoder")],
    }
    for i in range(s.decoder_layers):
        here, name = f"decoder.block.{i}.layer", f"decoder_{i}"
        _t5_attention(s, t, f"{here}.0.SelfAttention", f"{here}.0.layer_norm", name, found)
        across = f"{name}_cross"
        _t5_attention(s, t, f"{here}.1.EncDecAttention", f"{here}.1.layer_norm", across, found)
        _t5_inner(s, t, f"{here}.2", name, found)
    if not s.tied:
        found["decoder_logits"] = [t.take("lm_head.weight", s.vocabulary, s.width).T]
    t.used.add(f"{t.prefix}lm_head.weight")
    return found


def t5_head_is_tied(s: Architecture, t: Tensors) -> bool:
    """Tells whether the head of a T5 is its token embedding: the tensors say, not the settings."""
    if not t.has("lm_head.weight"):
        return True
    head = t.reader.read(t.known[f"{t.prefix}lm_head.weight"])
    return t.has("shared.weight") and np.array_equal(
        head, t.take("shared.weight", s.vocabulary, s.width)
    )


def _t5_bias(s: Architecture, t: Tensors, side: str) -> np.ndarray:
    return t.take(
        f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", s.buckets, s.heads
    )


def _t5_attention(
    s: Architecture, t: Tensors, attention: str, norm: str, name: str, found: Arrays
) -> None:
    for part in ("query", "key", "value"):
        found[f"{name}_{part}"] = _to_heads(t, f"{attention}.{part[0]}", s, bias=False)
    found[f"{name}_attention_output"] = _from_heads(t, f"{attention}.o", s, bias=False)
    found[f"{name}_attention_norm"] = [t.take(f"{norm}.weight", s.width)]


def _t5_inner(s: Architecture, t: Tensors, here: str, name: str, found: Arrays) -> None:
    dense = f"{here}.DenseReluDense"
    if s.gated:
        found[f"{name}_inner"] = _linear(t, f"{dense}.wi_0", s.width, s.inner, bias=False)
        found[f"{name}_gate"] = _linear(t, f"{dense}.wi_1", s.width, s.inner, bias=False)
    else:
        found[f"{name}_inner"] = _linear(t, f"{dense}.wi", s.width, s.inner, bias=False)
    found[f"{name}_outer"] = _linear(t, f"{dense}.wo", s.inner, s.width, bias=False)
    found[f"{name}_outer_norm"] = [t.take(f"{here}.layer_norm.weight", s.width)]


TABLES: Mapping[str, Callable[[Architecture, Tensors], Arrays]] = {
    "bert": _bert,
    "roberta": _bert,
    "electra": _bert,
    "distilbert": _distilbert,
    "gpt2": _gpt2,
    "xlnet": _xlnet,
    "t5": _t5,
}
"""By row: the arrays of every layer of its network."""
