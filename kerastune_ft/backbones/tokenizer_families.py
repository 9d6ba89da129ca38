"""The rules of the language families: one row each, as their first release read text.

row = family("distil_bert")
row.kind, row.special["cls"]     # 'wordpiece', '[CLS]'
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kerastune_ft.errors import ModelError, did_you_mean

__all__ = ["FAMILIES", "ROLES", "Family", "Frame", "family"]

Frame = tuple[tuple[str, int], ...]
"""What stands in a sequence: a role of `Family.special`, or text `A` or `B`; and its segment."""


@dataclass(frozen=True)
class Family:
    """Holds how one family of language models reads text.

    Attributes:
        model_type: As `config.json` of Hugging Face calls it.
        kind: `wordpiece`, `bpe` or `unigram`.
        special: From the role of a special token (`pad`, `cls`...) to how it is usually written.
        single: What stands around one text.
        pair: What stands around two.
        hub_class: KerasHub's class; empty if it has none.
        mask_takes_space: The mask swallows the space before it, as in the pre-training.
        appends_mask: The mask's id follows the vocabulary file's last.
        extra: Special tokens without a role.
    """

    model_type: str
    kind: str
    special: Mapping[str, str]
    single: Frame
    pair: Frame
    hub_class: str
    mask_takes_space: bool = False
    appends_mask: bool = False
    extra: tuple[str, ...] = ()

    @property
    def required(self) -> list[str]:
        """Roles without which nothing can be encoded."""
        roles = {role for role, _ in self.pair} - {"A", "B"}
        roles |= {"pad"} & set(self.special)
        return sorted(roles | ({"unk"} if self.kind == "wordpiece" else set()))


_BERT_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ROLES = ("unk", "bos", "eos", "cls", "sep", "pad", "mask")
_XLNET = ("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>")
_XLNET_TOKENS = dict(zip(ROLES, _XLNET, strict=True))
_ROBERTA_TOKENS = {"bos": "<s>", "pad": "<pad>", **_XLNET_TOKENS, "cls": "<s>", "sep": "</s>"}
_BERT_SINGLE: Frame = (("cls", 0), ("A", 0), ("sep", 0))
_BERT_PAIR: Frame = (*_BERT_SINGLE, ("B", 1), ("sep", 1))
_ENDS = {"bos": "[CLS]", "eos": "[SEP]"}

FAMILIES: dict[str, Family] = {
    row.model_type: row
    for row in (
        Family("bert", "wordpiece", _BERT_TOKENS, _BERT_SINGLE, _BERT_PAIR, "BertTokenizer"),
        Family(
            "distilbert", "wordpiece", _BERT_TOKENS, _BERT_SINGLE, _BERT_PAIR, "DistilBertTokenizer"
        ),
        Family("electra", "wordpiece", _BERT_TOKENS, _BERT_SINGLE, _BERT_PAIR, "ElectraTokenizer"),
        Family(
            "roberta",
            "bpe",
            _ROBERTA_TOKENS,
            (("cls", 0), ("A", 0), ("sep", 0)),
            (("cls", 0), ("A", 0), ("sep", 0), ("sep", 0), ("B", 0), ("sep", 0)),
            "RobertaTokenizer",
            mask_takes_space=True,
        ),
        Family(
            "gpt2",
            "bpe",
            dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>"),
            (("A", 0),),
            (("A", 0), ("eos", 0), ("B", 0)),
            "GPT2Tokenizer",
        ),
        Family(
            "xlnet",
            "unigram",
            _XLNET_TOKENS,
            (("A", 0), ("sep", 0), ("cls", 2)),
            (("A", 0), ("sep", 0), ("B", 1), ("sep", 1), ("cls", 2)),
            "",
            mask_takes_space=True,
            extra=("<eod>", "<eop>"),
        ),
        Family(
            "t5",
            "unigram",
            {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"},
            (("A", 0), ("eos", 0)),
            (("A", 0), ("eos", 0), ("B", 0), ("eos", 0)),
            "T5Tokenizer",
        ),
        Family(
            "albert",
            "unigram",
            {**_BERT_TOKENS, **_ENDS, "pad": "<pad>", "unk": "<unk>"},
            _BERT_SINGLE,
            _BERT_PAIR,
            "AlbertTokenizer",
            mask_takes_space=True,
        ),
        Family(
            "deberta-v2",
            "unigram",
            {**_BERT_TOKENS, **_ENDS},
            _BERT_SINGLE,
            _BERT_PAIR,
            "DebertaV3Tokenizer",
            appends_mask=True,
        ),
    )
}
"""Keyed by Hugging Face's `model_type`; DeBERTa-v3 calls itself `deberta-v2` there."""


def family(model_type: str) -> Family:
    """Returns the row of a family; `distil_bert` and `deberta_v3` are understood too.

    Raises:
        ModelError: If there is none.
    """
    plain = re.sub("[^a-z0-9]", "", model_type.lower()).replace("debertav3", "debertav2")
    for name, row in FAMILIES.items():
        if name.replace("-", "") == plain:
            return row
    raise ModelError(
        f"model type '{model_type}' has no tokenizer here{did_you_mean(model_type, FAMILIES)}; "
        f"known: {', '.join(FAMILIES)}."
    )
