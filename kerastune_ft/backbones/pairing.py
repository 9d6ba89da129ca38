"""Which network can do which task, and why the others cannot; imports nothing heavy.

refusal(backbones.get("gpt2"), "token_classification")   # "... only what stands before it; ..."
"""

from __future__ import annotations

from kerastune_ft.backbones.facts import Backbone

TEXT_TASKS = (
    "text_classification",
    "text_pair_classification",
    "text_multilabel",
    "text_regression",
    "token_classification",
    "text_to_text",
    "text_generation",
)
IMAGE_TASKS = ("image_classification", "image_multilabel", "image_regression")


def refusal(row: Backbone, task: str) -> str | None:
    """Returns why a network cannot do a task, None if it can.

    Args:
        row: Facts of the network.
        task: A name of `kft ls tasks`.
    """
    language = row.language
    if task in IMAGE_TASKS:
        return None if language is None else f"'{row.name}' reads texts, {task} has pictures"
    if language is None:
        return f"'{row.name}' sees pictures, {task} has texts; bert and the like read them"
    if task == "text_to_text" and not language.decoder:
        return f"'{row.name}' has no decoder that writes a text for another; t5 has"
    if task == "text_generation" and not language.causal:
        return f"'{row.name}' was not trained to go on with a text; gpt2 was"
    if task == "token_classification" and language.causal:
        return (
            f"'{row.name}' sees of each word only what stands before it; take an encoder such as "
            "bert"
        )
    return None
