"""Looks at labels: how many there are of each class, in which split, and how they are written.

Of numbers it looks for those that are far from all others.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from kerastune_ft.checks.examined import Examined
from kerastune_ft.checks.figures import chi_square, robust_scale
from kerastune_ft.data import cleaning, splitting
from kerastune_ft.data.labels import natural
from kerastune_ft.data.tables import SPLITS, Finding, finding

_RATIO, _NOTED_RATIO = 10, 3
_FEWEST, _FEW = 2, 10
_CHANCE = 0.001  # of a difference that is none
_EFFECT = 0.1  # Cramer's V, or Kolmogorov and Smirnov's distance
_ALIKE = 0.85  # of difflib
_RARE_SHARE, _RARE_COUNT, _TIMES = 0.05, 3, 5
_SHORTEST_NAME = 3
_MOST_COMPARED = 200_000  # pairs of names
_FAR = 6.0  # robust standard deviations
_TAIL = 0.01  # of the examples; more than these are how the numbers are


def one_class(examined: Examined) -> Iterator[Finding]:
    """Finds classes that cannot be told from anything: one alone, or one that all examples have."""
    if not examined.counts or examined.kind == "tags":
        return
    training = examined.counts["train"]
    total = int((examined.parts == "train").sum())
    names = [n for n, count in _pairs(examined, training) if count == total > 0]
    if not names:
        return
    if examined.kind == "class":
        yield finding("one_class", "fail", "the only class of the training split", names)
    else:
        message = "classes that every training example has, which therefore cannot be learned"
        yield finding("class_everywhere", "warn", message, names)


def sizes(examined: Examined) -> Iterator[Finding]:
    """Finds classes that training lacks, has little of, or has much less of than of others."""
    if not examined.counts:
        return
    counts = examined.counts["train"]
    unit = "words" if examined.kind == "tags" else "examples"
    untrained = [name for name, count in _pairs(examined, counts) if not count]
    if untrained:
        yield finding("untrained_class", "fail", "classes without a training example", untrained)
    yield from _small(examined, counts, unit)
    present = counts[counts > 0]
    if len(present) < 2 or examined.kind == "tags":  # most words of most texts have no name
        return
    largest = int(present.max())
    ratio = largest / int(present.min())
    if ratio >= _NOTED_RATIO:
        severity, least = ("warn", _RATIO) if ratio >= _RATIO else ("note", _NOTED_RATIO)
        small = sorted((int(n), name) for name, n in _pairs(examined, counts) if n)
        small = [(n, name) for n, name in small if largest / n >= least]
        top = examined.class_names[int(counts.argmax())]
        yield finding(
            "imbalance",
            "warn" if severity == "warn" else "note",
            f"classes with less than a {'tenth' if severity == 'warn' else 'third'} of the "
            f"training examples of '{top}', {largest:,}; at worst 1 to {ratio:,.0f}",
            [name for _, name in small],
            details=[f"{n:,}, 1 to {largest / n:,.0f}" for n, _ in small],
        )


def _small(examined: Examined, counts: NDArray[np.int64], unit: str) -> Iterator[Finding]:
    certain = examined.kind == "class"  # among many tags or marks there are always rare ones
    for message, low, high in (
        (f"classes with a single training {unit[:-1]}", 1, _FEWEST),
        (f"classes with fewer than {_FEW} training {unit}", _FEWEST, _FEW),
    ):
        found = [(name, int(n)) for name, n in _pairs(examined, counts) if low <= n < high]
        if found:
            yield finding(
                "small_class",
                "fail" if high == _FEWEST and certain else "warn",
                message,
                [name for name, _ in found],
                details=[f"{n:,} {unit if n > 1 else unit[:-1]}" for _, n in found],
            )


def absences(examined: Examined) -> Iterable[Finding]:
    """Finds classes that validation or test lacks."""
    if not examined.counts or examined.kind == "tags":
        return ()
    held = examined.parts != "train"
    return splitting.absences(examined.labels[held], examined.parts[held], examined.class_names)


def shift(examined: Examined) -> Iterator[Finding]:
    """Finds splits whose classes, or numbers, are distributed in another way than in training."""
    said = _shifted_numbers(examined) if examined.kind == "numbers" else _shifted(examined)
    names, details = zip(*found, strict=True) if (found := list(said)) else ((), ())
    if names:
        what = "numbers" if examined.kind == "numbers" else "shares of classes"
        message = f"splits with other {what} than training, more than chance explains"
        yield finding("label_shift", "warn", message, names, details=details)


def _shifted(examined: Examined) -> Iterator[tuple[str, str]]:
    for name in SPLITS[1:]:
        if not examined.counts or not examined.counts[name].sum():
            continue
        train, other = examined.counts["train"], examined.counts[name]
        chance, effect = chi_square(np.stack([train, other]))
        if chance >= _CHANCE or effect < _EFFECT:
            continue
        shares = np.stack([train / max(1, train.sum()), other / other.sum()])
        worst = int(np.abs(shares[0] - shares[1]).argmax())
        yield (
            name,
            f"'{examined.class_names[worst]}' is {shares[1][worst]:.1%} of it and "
            f"{shares[0][worst]:.1%} of training; Cramer's V {effect:.2f}",
        )


def _shifted_numbers(examined: Examined) -> Iterator[tuple[str, str]]:
    from scipy import stats

    training = examined.labels[examined.parts == "train"]
    for name in SPLITS[1:]:
        held = examined.labels[examined.parts == name]
        if not len(held) or not len(training):
            continue
        for column, one, other in zip(examined.class_names, training.T, held.T, strict=True):
            tested = stats.ks_2samp(one, other)
            if tested.pvalue < _CHANCE and tested.statistic >= _EFFECT:
                yield (
                    name,
                    f"{column}: median {np.median(other):.4g} in it and {np.median(one):.4g} in "
                    f"training",
                )


def spelling(examined: Examined) -> Iterator[Finding]:
    """Finds class names that are another one in other spelling, or perhaps with a slip."""
    if not examined.counts:
        return
    totals = np.sum(list(examined.counts.values()), axis=0)
    counts = {name: int(count) for name, count in _pairs(examined, totals) if count}
    better = cleaning.spellings(counts)
    if better:
        wrong = sorted(better, key=natural)
        yield finding(
            "label_spelling",
            "warn",
            "class names that are another one in case, spaces, hyphens or Unicode form alone",
            wrong,
            details=[
                f"{counts[name]:,}; '{better[name]}' has {counts[better[name]]:,}" for name in wrong
            ],
            partners=[better[name] for name in wrong],
        )
    if examined.kind == "tags":  # B-PER and I-PER are no slip
        return
    slips = [(name, near) for name, near in typos(counts) if name not in better]
    if slips:
        yield finding(
            "label_typo",
            "warn",
            "rare class names that nearly are a common one",
            [name for name, _ in slips],
            details=[f"{counts[one]:,}; '{other}' has {counts[other]:,}" for one, other in slips],
            partners=[near for _, near in slips],
        )


def typos(counts: dict[str, int]) -> list[tuple[str, str]]:
    """Returns pairs of a rare name and a common one that it may be meant for.

    Names whose digits differ are none: `class 1` and `class 2` are two.

    Args:
        counts: Examples of each class.
    """
    found: dict[str, str] = {}
    for one, other in _near_names(list(counts)):
        rare, common = sorted((one, other), key=lambda name: counts[name])
        few = counts[rare] <= _RARE_SHARE * counts[common] or (
            counts[rare] <= _RARE_COUNT and counts[common] >= _TIMES * counts[rare]
        )
        digits = (re.sub(r"\D", "", name) for name in (rare, common))
        if few and len(set(digits)) == 1 and counts[common] > counts.get(found.get(rare, ""), 0):
            found[rare] = common
    return sorted(found.items(), key=lambda pair: natural(pair[0]))


def _near_names(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields pairs of names that differ in one letter, or are much alike."""
    folded = {name: name.casefold() for name in names}
    holders: dict[str, list[str]] = defaultdict(list)
    for name, text in folded.items():
        if len(text) >= _SHORTEST_NAME:
            shorter = {text[:i] + text[i + 1 :] for i in range(len(text))}
            for piece in {text, *shorter}:
                holders[piece].append(name)
    for alike in holders.values():
        for place, one in enumerate(alike):
            for other in alike[:place]:
                if _one_letter(folded[one], folded[other]):
                    yield other, one
    if len(names) ** 2 > 2 * _MOST_COMPARED:
        return
    matcher = difflib.SequenceMatcher(autojunk=False)
    long = [name for name in names if len(name) > _SHORTEST_NAME]
    for place, one in enumerate(long):
        matcher.set_seq2(folded[one])
        for other in long[:place]:
            matcher.set_seq1(folded[other])
            if (
                matcher.real_quick_ratio() >= _ALIKE
                and matcher.quick_ratio() >= _ALIKE
                and matcher.ratio() >= _ALIKE
            ):
                yield other, one


def _one_letter(one: str, other: str) -> bool:
    """Whether a letter was left out, put in, replaced, or changed places with the next."""
    short, long = sorted((one, other), key=len)
    if len(long) - len(short) > 1:
        return False
    same = next(
        (i for i, pair in enumerate(zip(short, long, strict=False)) if len(set(pair)) > 1),
        len(short),
    )
    if len(short) < len(long):
        return short[same:] == long[same + 1 :]
    if short[same + 1 :] == long[same + 1 :]:
        return True
    return short[same : same + 2] == long[same : same + 2][::-1] and (
        short[same + 2 :] == long[same + 2 :]
    )


def numbers(examined: Examined) -> Iterator[Finding]:
    """Finds numbers far from all others, and columns in which all are one."""
    if examined.kind != "numbers":
        return
    training = examined.parts == "train"
    for name, values in zip(examined.class_names, examined.labels.T, strict=True):
        if training.any() and np.ptp(values[training]) == 0:
            message = "targets that are the same number for every training example"
            yield finding("constant_number", "fail", message, [name])
            continue
        middle, scale = robust_scale(values)
        far = np.abs(values - middle) > _FAR * scale
        rows = np.flatnonzero(far).tolist()
        if rows and scale > 0:
            tail = len(rows) > _TAIL * len(values)
            message = (
                f"examples whose {name} is more than {_FAR:g} robust standard deviations from the "
                f"median, {middle:.4g}"
            )
            yield finding(
                "outlier",
                "note" if tail else "warn",
                message,
                [examined.table.names[row] for row in rows],
                details=[f"{name} {values[row]:.6g}" for row in rows],
            )


def _pairs(examined: Examined, counts: NDArray[np.int64]) -> Iterator[tuple[str, int]]:
    return zip(examined.class_names, (int(n) for n in counts), strict=True)
