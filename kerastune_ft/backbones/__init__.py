"""The pre-trained networks: one row of facts each, and nothing that imports Keras.

A backbone is a list of blocks without the task's head; a block is named by its *cut*, its last
layer. Whatever else a user would have to look up - the pixel rule the weights were trained with,
the sides they accept, the licence - is a fact of the row or of its weights.

    row = backbones.get("mobilenet_v2")
    row.weights["torchvision"].pixels     # 'torch'
    row.cuts[-1]                          # 'out_relu'
"""

from __future__ import annotations

from kerastune_ft.backbones.facts import Backbone, PixelRule, Weights, Wheel
from kerastune_ft.backbones.images import ROWS as IMAGE_ROWS
from kerastune_ft.errors import ModelError, did_you_mean

__all__ = ["BACKBONES", "Backbone", "PixelRule", "Weights", "Wheel", "get"]

BACKBONES: dict[str, Backbone] = {row.name: row for row in IMAGE_ROWS}


def get(name: str) -> Backbone:
    """Returns the row of a backbone.

    Raises:
        ModelError: If the name is unknown.
    """
    if name not in BACKBONES:
        raise ModelError(
            f"backbone '{name}' is unknown{did_you_mean(name, BACKBONES) or '.'} "
            "'kft ls backbones' lists all."
        )
    return BACKBONES[name]
