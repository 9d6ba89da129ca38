"""What several models say together: the mean of their probabilities, or of their numbers.

    raw = mean_logits([model.predict(pictures) for model in models])
    probabilities(raw)                      # the mean of the models' probabilities

A mean is given as logits, computed in double precision, so that what reads one model's outputs
reads those of many: probabilities of the mean logits are the mean probabilities, and no loss
becomes infinite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def joint(answers: Sequence[Any], average: Callable[[Sequence[Any]], Any] | None) -> Any:
    """Returns what models say together; one model says what it says.

    Args:
        answers: Of each model.
        average: Of an evaluator; None where texts are written, by one model.
    """
    if len(answers) == 1:
        return answers[0]
    assert average is not None
    return average(answers)


def probabilities(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns the softmax of `float (n, classes)` logits, computed in double precision."""
    shifted = np.exp(logits.astype("float64") - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def label_probabilities(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns the sigmoid of `float (n, labels)` logits, computed in double precision."""
    from scipy import special

    return np.asarray(special.expit(logits.astype("float64")))


def mean_logits(raw: Sequence[NDArray[np.floating]]) -> NDArray[np.float64]:
    """Returns logits whose softmax is the mean of the models' softmax.

    Args:
        raw: Of each model the logits, `float (n, classes)`.
    """
    from scipy import special

    return _log_mean([special.log_softmax(each.astype("float64"), axis=1) for each in raw])


def mean_label_logits(raw: Sequence[NDArray[np.floating]]) -> NDArray[np.float64]:
    """Returns logits whose sigmoid is the mean of the models' sigmoids.

    Args:
        raw: Of each model the logits, `float (n, labels)`.
    """
    from scipy import special

    # Of both sides: 1 minus a probability near 1 would have no digits left.
    present = _log_mean([special.log_expit(each.astype("float64")) for each in raw])
    absent = _log_mean([special.log_expit(-each.astype("float64")) for each in raw])
    return np.asarray(present - absent)


def mean_numbers(raw: Sequence[NDArray[np.floating]]) -> NDArray[np.float64]:
    """Returns the mean of the models' numbers, `float (n, targets)`."""
    return np.asarray(np.mean([each.astype("float64") for each in raw], axis=0))


def mean_word_logits(
    raw: Sequence[Sequence[NDArray[np.float64]]],
) -> list[NDArray[np.float64]]:
    """Returns for every text the logits of its words whose softmax is the mean of the models'.

    Args:
        raw: Of each model, of each text, `float64 (words, classes)`; not a number for words that
            the model does not see. A word's mean is of the models that see it.
    """
    found = []
    for texts in zip(*raw, strict=True):
        seen = np.stack([np.isfinite(words).all(axis=1) for words in texts])
        mean = np.full(texts[0].shape, np.nan)
        for word in np.flatnonzero(seen.any(axis=0)):
            told = [words[word : word + 1] for words, sees in zip(texts, seen, strict=True)
                    if sees[word]]  # fmt: skip
            mean[word] = mean_logits(told)[0]
        found.append(mean)
    return found


def _log_mean(logs: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    from scipy import special

    return np.asarray(special.logsumexp(np.stack(logs), axis=0) - np.log(len(logs)))
