"""What an epoch is made of: every example once, or classes drawn as a recipe wants them.

An epoch has as many draws as there are examples, whoever is drawn: steps, schedules and
checkpoints stay as they are. The draws are a function of (seed, epoch) alone.

    sampling = of(splits.train.labels, splits.class_names, "balanced")
    drawn = sampling.draws(seed=0, epoch=3)
    drawn.rows, drawn.turns            # which example, and how often it came before in the epoch
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kerastune_ft.data.labels import Labels, class_counts
from kerastune_ft.data.tables import first_few
from kerastune_ft.errors import DataError, did_you_mean

# Last of the numbers that seed a generator: what is drawn for one purpose tells nothing of another.
_SLOTS, _WHOLE, _REST = 11, 12, 13


@dataclass(frozen=True)
class Draws:
    """The examples of an epoch in their order.

    Args:
        rows: Numbers of examples, `int64 (n,)`.
        turns: How often each was drawn before in this epoch, `int64 (n,)`.
    """

    rows: NDArray[np.int64]
    turns: NDArray[np.int64]

    @property
    def keys(self) -> NDArray[np.int64]:
        """A number for each draw that no other of the epoch has, `(n,)`; a first draw has the row.

        Changes are drawn by it: an example that is repeated is not changed alike.
        """
        return self.rows + self.turns * len(self.rows)


@dataclass(frozen=True)
class Sampling:
    """Draws classes in given shares, and the examples of a class evenly.

    In an epoch no example is drawn twice more often than another one of its class, nor again
    before all of its class were. Of a class with more examples than draws other ones take their
    turn in the next epoch, until all have been seen.

    Args:
        members: The rows of each class.
        quotas: Expected draws of each class in an epoch, `float64 (classes,)`; their sum is the
            number of examples.
    """

    members: tuple[NDArray[np.int64], ...]
    quotas: NDArray[np.float64]

    def __len__(self) -> int:
        return sum(map(len, self.members))

    def draws(self, seed: int, epoch: int) -> Draws:
        """Returns the examples of an epoch in their order."""
        generator = np.random.default_rng([seed, epoch, _SLOTS])
        counts = self._counts(generator)
        slots = generator.permutation(np.repeat(np.arange(len(counts)), counts))
        rows = np.zeros(len(slots), np.int64)
        turns = np.zeros(len(slots), np.int64)
        for number, members in enumerate(self.members):
            here = slots == number
            if len(members):
                picked = self._picked(number, int(counts[number]), seed, epoch)
                rows[here] = members[picked]
                turns[here] = np.arange(len(picked)) // len(members)
        return Draws(rows, turns)

    def _counts(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """Returns the draws of each class, its quota rounded up or down; right on average.

        Reference:
            Madow 1949, systematic sampling of unequal shares. https://doi.org/10.1214/aoms/1177729988
        """
        whole = np.floor(self.quotas + 1e-9)
        rest = np.clip(self.quotas - whole, 0.0, None)
        missing = len(self) - int(whole.sum())
        order = generator.permutation(len(rest))
        edges = np.cumsum(rest[order])
        edges[-1] = missing  # which the sum is but for rounding
        passed = np.floor(edges.clip(0, missing) + generator.random()).astype(np.int64)
        counts = whole.astype(np.int64)
        counts[order] += np.diff(passed, prepend=0)
        return counts

    def _picked(self, number: int, count: int, seed: int, epoch: int) -> NDArray[np.int64]:
        """Returns which members of a class are drawn, in their order."""
        size = len(self.members[number])
        whole, rest = divmod(count, size)
        rounds = np.random.default_rng([seed, epoch, number, _WHOLE])
        picked = [rounds.permutation(size) for _ in range(whole)]
        # Those that are drawn once more, or at all, take turns over the epochs. A class may have a
        # draw more in one epoch than in another: windows are of the smaller number.
        window = max(1, int(np.floor(self.quotas[number] + 1e-9)) % size)
        cycle, place = divmod(epoch, -(-size // window))
        turn = np.random.default_rng([seed, cycle, number, _REST]).permutation(size)
        picked.append(turn[(place * window + np.arange(rest)) % size])
        return np.concatenate(picked).astype(np.int64)


def of(
    labels: Labels,
    class_names: Sequence[str],
    how: Literal["natural", "balanced"] | Mapping[str, float],
) -> Sampling | None:
    """Returns how the epochs of training examples are drawn, None for every example once.

    Args:
        labels: Of the training examples: class numbers `(n,)`.
        class_names: In the order of the numbers.
        how: `balanced` draws every class equally often; a mapping in proportion to weight times
            examples, where a class that it does not name weighs 1.

    Raises:
        DataError: If the mapping names a class that the data lacks.
    """
    if how == "natural":
        return None
    assert labels.ndim == 1, labels.shape
    counts = class_counts(labels, len(class_names))
    if isinstance(how, Mapping):
        shares = counts.astype(np.float64)
        for name, weight in how.items():
            if name not in class_names:
                raise DataError(
                    f"data.sampling: no class '{name}'{did_you_mean(name, class_names) or ';'} "
                    f"the classes are {first_few(class_names, 20)}."
                )
            shares[list(class_names).index(name)] *= weight
    else:
        shares = (counts > 0).astype(np.float64)
    members = tuple(np.flatnonzero(labels == number) for number in range(len(class_names)))
    return Sampling(members, len(labels) * shares / shares.sum())
