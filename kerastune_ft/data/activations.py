"""What the frozen prefix of a network makes of the examples of a split, in place of the examples.

held = Activations(views=(values,))
held.batch(rows, keys=rows, epoch=3)            # float16 (batch, ...)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerastune_ft.data import images
from kerastune_ft.data.sampling import Sampling

if TYPE_CHECKING:
    from kerastune_ft.data.texts import Tokens

ACTIVATIONS = "activations"
"""Name of the input that takes the place of the frozen prefix."""


@dataclass(frozen=True)
class Activations:
    """The activations of every example of a split, in one or several views.

    A view is what augmentation makes of an example in one epoch; epoch `e` gets view `e` modulo
    their number, and an example that is drawn again in an epoch the one after.

    Args:
        views: Of each, `(m, ...)`; of texts with a row per token `(tokens, width)`, the rows of
            all examples one after the other. Perhaps mapped from files, and those of others, too.
        starts: Where the rows of each text begin, `int64 (n,)`; None where examples have one row.
        lengths: How many rows each text has, `int64 (n,)`.
        reads: Inputs of the network that are wanted beside them.
        rows: Which of a view each example is, `int64 (n,)`; None: one after the other. Not of
            texts with a row per token.
    """

    views: tuple[NDArray[Any], ...]
    starts: NDArray[np.int64] | None = None
    lengths: NDArray[np.int64] | None = None
    reads: tuple[str, ...] = ()
    rows: NDArray[np.int64] | None = None

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Of one example; the first is None where lengths differ."""
        shape = self.views[0].shape[1:]
        return shape if self.starts is None else (None, *shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of every batch: views whose numbers are too large for half precision have single."""
        return np.result_type(*(view.dtype for view in self.views))

    @property
    def spec(self) -> tf.TensorSpec:
        """Of a batch."""
        return tf.TensorSpec((None, *self.shape), self.dtype)

    def batch(
        self, rows: NDArray[np.int64], keys: NDArray[np.int64], epoch: int, length: int = 0
    ) -> NDArray[Any]:
        """Returns the activations of some examples.

        Args:
            rows: Which examples, `(batch,)`.
            keys: Their numbers in the epoch, `Draws.keys`; the row itself at a first draw.
            epoch: Number of the epoch.
            length: Rows of every example, where they have one per token; filled up with 0.

        Returns:
            `(batch, ...)`, or `(batch, length, width)`.
        """
        count = len(self.views)
        if count == 1:
            return self._view(0, rows, length)
        own = next((each for each in (self.lengths, self.rows) if each is not None), self.views[0])
        n = len(own)
        turns = (epoch + (keys - rows) // n) % count
        if (turns == turns[0]).all():
            return self._view(int(turns[0]), rows, length)
        parts = [(turns == view, view) for view in np.unique(turns)]
        whole: Any = None
        for here, view in parts:
            some = self._view(int(view), rows[here], length)
            if whole is None:
                whole = np.empty((len(rows), *some.shape[1:]), some.dtype)
            whole[here] = some
        return np.asarray(whole)

    def _view(self, view: int, rows: NDArray[np.int64], length: int) -> NDArray[Any]:
        values = self.views[view]
        if self.starts is None or self.lengths is None:
            return np.asarray(values[rows if self.rows is None else self.rows[rows]], self.dtype)
        made = np.zeros((len(rows), length, values.shape[1]), self.dtype)
        for place, row in enumerate(rows):
            start, size = int(self.starts[row]), int(self.lengths[row])
            made[place, :size] = values[start : start + size]
        return made

    def inputs(
        self,
        rows: NDArray[np.int64],
        keys: NDArray[np.int64],
        epoch: int,
        others: dict[str, NDArray[np.int32]],
    ) -> dict[str, NDArray[Any]]:
        """Returns what takes the place of a batch of tokens.

        Args:
            rows: As in `batch`.
            keys: As in `batch`.
            epoch: As in `batch`.
            others: What `Tokens.padded` gives for the rows.
        """
        length = next(iter(others.values())).shape[1]
        made = {ACTIVATIONS: self.batch(rows, keys, epoch, length)}
        return made | {name: others[name] for name in self.reads}


def room_for(content: Tokens | Any, shape: Sequence[int | None]) -> tuple[int, ...]:
    """Returns the shape of the array that holds the activations of all examples.

    Args:
        content: The examples.
        shape: Of one example's activations; None first where there is a row per token.
    """
    if shape and shape[0] is None:
        return (int(content.ids.lengths.sum()), *(int(side or 0) for side in shape[1:]))
    return (len(content), *(int(side or 0) for side in shape))


def dataset(
    held: Activations,
    targets: NDArray[np.float32],
    *,
    batch_size: int,
    seed: int | None,
    epochs: range,
    class_weights: NDArray[np.float32] | None,
    first_step: int,
    sampling: Sampling | None,
) -> tf.data.Dataset:
    """Streams activations of pictures as `images.dataset` streams the pictures: same batches.

    Args:
        held: One row per example.
        targets: `(n, width)`.
        batch_size: Examples per batch.
        seed: Of the order; None goes by the table.
        epochs: The numbers of the epochs.
        class_weights: `(width,)`: adds sample weights.
        first_step: Batches of the first epoch to leave out.
        sampling: As in `images.dataset`.
    """
    n = len(targets)
    steps = images.steps(n, batch_size)

    def generate() -> Iterator[tuple[Any, ...]]:
        skipped = first_step
        for epoch in epochs:
            rows = keys = np.arange(n)
            if seed is not None and sampling is not None:
                drawn = sampling.draws(seed, epoch)
                rows, keys = drawn.rows, drawn.keys
            elif seed is not None:
                rows = keys = images.order(n, seed, epoch)
            for start in range(skipped * batch_size, n, batch_size):
                here = slice(start, start + batch_size)
                inputs = {ACTIVATIONS: held.batch(rows[here], keys[here], epoch)}
                target = targets[rows[here]]
                yield (inputs, target) if class_weights is None else (
                    inputs, target, target @ class_weights,
                )  # fmt: skip
            skipped = 0

    signature: tuple[Any, ...] = (
        {ACTIVATIONS: held.spec},
        tf.TensorSpec((None, targets.shape[1]), tf.float32),
    )
    if class_weights is not None:
        signature += (tf.TensorSpec((None,), tf.float32),)
    made = tf.data.Dataset.from_generator(generate, output_signature=signature)
    total = len(epochs) * steps - first_step
    return made.apply(tf.data.experimental.assert_cardinality(total)).prefetch(4)
