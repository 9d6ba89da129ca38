"""Averages of weights: along training, over the best epochs, and back towards the start.

All three cost nothing when the model is used. Scores are such that less is better.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
"""What `wise_ft` tries of its own accord; 0 is the fine-tuned model itself."""


class Swap:
    """Exchanges the weights that train with their moving averages, and back.

    Args:
        model: Whose weights they are.
        pairs: A weight and its average each; none where no average is kept.
    """

    def __init__(
        self, model: keras.Model, pairs: Sequence[tuple[keras.Variable, keras.Variable]]
    ) -> None:
        self.model = model
        self.pairs = pairs
        self._inside = False

    def swap_in(self) -> None:
        """Puts the averages where the model looks."""
        if not self._inside:
            self._exchange()

    def swap_out(self) -> None:
        """Puts the weights that train back."""
        if self._inside:
            self._exchange()

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The model has the averages in the block."""
        before = self._inside
        self.swap_in()
        try:
            yield
        finally:
            if not before:
                self.swap_out()

    @contextlib.contextmanager
    def out(self) -> Iterator[None]:
        """The model has the weights that train in the block."""
        before = self._inside
        self.swap_out()
        try:
            yield
        finally:
            if before:
                self.swap_in()

    def adopt(self) -> None:
        """Makes the averages the weights, for good."""
        self.swap_out()
        for weight, average in self.pairs:
            weight.assign(np.array(keras.ops.convert_to_numpy(average)))

    def _exchange(self) -> None:
        for weight, average in self.pairs:
            kept = np.array(keras.ops.convert_to_numpy(weight))
            weight.assign(average)
            average.assign(kept)
        self._inside = not self._inside


def greedy_soup(
    model: keras.Model,
    epochs: Sequence[int],
    weights_of: Callable[[int], Arrays],
    score: Callable[[], float],
) -> dict[str, Any]:
    """Averages the weights of the best epochs, each taken in only if the score does not get worse.

    Args:
        model: Ends with the average.
        epochs: Best first; the first is always in.
        weights_of: Returns an epoch's weights by place, as `training.get_weights` does.
        score: Of the model as it is.

    Returns:
        `epochs` that are in the soup, `scores` of the best one and of the soup, and `figures`, the
        same as a sentence.

    Reference:
        Wortsman et al. 2022, Model soups. https://arxiv.org/abs/2203.05482
    """
    total = {name: array.astype("float64") for name, array in weights_of(epochs[0]).items()}
    _put(model, total)
    chosen = [epochs[0]]
    first = best = score()
    for epoch in epochs[1:]:
        tried = {name: total[name] + array for name, array in weights_of(epoch).items()}
        _put(model, {name: array / (len(chosen) + 1) for name, array in tried.items()})
        found = score()
        if found <= best:
            total, best = tried, found
            chosen.append(epoch)
    _put(model, {name: array / len(chosen) for name, array in total.items()})
    return {"epochs": chosen, "scores": [first, best], "figures": _figures(first, best)}


def wise_ft(
    model: keras.Model,
    start: Arrays,
    mixed: Sequence[bool],
    shares: Sequence[float],
    score: Callable[[], float],
) -> dict[str, Any]:
    """Goes part of the way back to the weights before fine-tuning, which often generalises better.

    Args:
        model: Fine-tuned; ends with the mixture.
        start: Weights before the backbone was touched, by place.
        mixed: For each weight whether it takes part; a head that was untrained then must not.
        shares: Of the way back, 0..1; of several the one with the best score is taken.
        score: Of the model as it is; not asked if there is one share.

    Returns:
        `share`, `scores` by share (empty for one share), and `figures`, the same as a sentence.

    Reference:
        Wortsman et al. 2022, Robust fine-tuning. https://arxiv.org/abs/2109.01903
    """
    ends = [np.array(keras.ops.convert_to_numpy(weight), "float64") for weight in model.weights]

    def mixture(share: float) -> dict[str, NDArray[Any]]:
        pairs = zip(start.items(), ends, mixed, strict=True)
        return {
            name: array * share + end * (1.0 - share) if takes_part else end
            for (name, array), end, takes_part in pairs
        }

    if len(shares) == 1:
        _put(model, mixture(shares[0]))
        return {"share": shares[0], "scores": {}, "figures": "as asked for"}
    scores: dict[float, float] = {}
    for share in shares:
        _put(model, mixture(share))
        scores[share] = score()
    share = min(scores, key=lambda key: (scores[key], key))
    _put(model, mixture(share))
    said = {f"{key:g}": value for key, value in scores.items()}
    return {"share": share, "scores": said, "figures": _figures(scores[shares[0]], scores[share])}


def _put(model: keras.Model, arrays: Arrays) -> None:
    for weight, array in zip(model.weights, arrays.values(), strict=True):
        weight.assign(array.astype(np.dtype(str(weight.dtype))))


def _figures(before: float, after: float) -> str:
    return f"validation {abs(before):.4f} before, {abs(after):.4f} after"
