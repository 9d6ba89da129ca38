"""The pre-trained networks: one row of facts each, and nothing that imports Keras.

A backbone is a list of blocks without the task's head; a block is named by its *cut*, its last
layer. Whatever else a user would have to look up - the pixel rule the weights were trained with,
the sides they accept, the licence - is a fact of the row or of its weights.

    row = backbones.get("mobilenet_v2")
    row.weights["torchvision"].pixels.name     # 'ImageNet mean and std'
    row.cuts[-1]                          # 'out_relu'
"""

from __future__ import annotations

from kerastune_ft.backbones.facts import (
    RAW,
    Backbone,
    Language,
    Pixels,
    Training,
    Weights,
    Wheel,
)
from kerastune_ft.backbones.images import ROWS as IMAGE_ROWS
from kerastune_ft.backbones.lite import ROWS as LITE_ROWS
from kerastune_ft.backbones.text import ROWS as TEXT_ROWS
from kerastune_ft.errors import ModelError, did_you_mean

__all__ = [
    "BACKBONES",
    "HUB",
    "PICTURES",
    "Backbone",
    "Language",
    "Pixels",
    "Training",
    "Weights",
    "Wheel",
    "get",
]

BACKBONES: dict[str, Backbone] = {row.name: row for row in (*IMAGE_ROWS, *LITE_ROWS, *TEXT_ROWS)}

PICTURES: dict[str, Backbone] = {n: row for n, row in BACKBONES.items() if row.language is None}
"""The networks that see pictures; the others read texts."""

HUB = "keras_hub"
"""The family of `keras_hub:PRESET` backbones, whose rows are made when they are asked for."""


def get(name: str) -> Backbone:
    """Returns the row of a backbone.

    Args:
        name: A key of `BACKBONES`, or `keras_hub:` and the name, address or folder of a preset.
            The row of a preset holds what is known before it is loaded: no cuts.

    Raises:
        ModelError: If the name is unknown.
    """
    if name.startswith(f"{HUB}:") and name != f"{HUB}:":
        return _preset(name)
    if name not in BACKBONES:
        raise ModelError(
            f"backbone '{name}' is unknown{did_you_mean(name, BACKBONES) or '.'} "
            "'kft ls backbones' lists all."
        )
    return BACKBONES[name]


def _preset(name: str) -> Backbone:
    return Backbone(
        name=name,
        family=HUB,
        builder=HUB,
        image_size=224,
        smallest_side=1,
        cuts=(),
        features=0,
        parameters=0,
        weights={"preset": Weights(pixels=RAW, source=name, licence="see preset", top1=None)},
        paper="https://keras.io/keras_hub/presets/",
    )
