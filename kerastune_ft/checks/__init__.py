"""Finds what is wrong with data before anything is trained on it.

    report = check(recipe, console=console)
    report.failed                    # whether training on it would be a mistake
    report.write(Path("data-check")) # findings.json, findings.html

A check is one function from what was read (`Examined`) to findings, and one row of `CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kerastune_ft.checks.examined import Examined
from kerastune_ft.data.tables import Finding


@dataclass(frozen=True)
class Check:
    """One thing that is looked for.

    Args:
        run: Yields what it found.
        modality: Of the data it is for: `image`, `text` or `any`.
        network: Whether it needs features of a pre-trained network.
    """

    run: Callable[[Examined], Iterable[Finding]]
    modality: str
    network: bool = False


CHECKS: dict[str, Check] = {}
