"""What recipes say of exports, and which formats can be quantised how.

list(wrong(("onnx",), ("int8",), "image_classification"))    # why that cannot be written
pairs(("saved_model", "litert"), ("none", "int8"))           # what is written, one by one
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Annotated, Literal, get_args

from annotated_types import Ge
from pydantic import Field

from kerastune_ft.recipe_checks import Mistake, UnknownError, Values
from kerastune_ft.recipe_values import Section, Share, Text

Target = Literal["saved_model", "keras", "litert", "onnx", "openvino"]
Quantize = Literal["none", "float16", "int8_weights", "int8"]

QUANTIZATIONS: dict[str, tuple[str, ...]] = {
    "saved_model": ("none",),
    "keras": ("none",),
    "litert": ("none", "float16", "int8_weights", "int8"),
    "onnx": ("none", "float16"),
    "openvino": ("none", "float16"),
}
"""How each format can be quantised. `formats.FORMATS` says the same of those that it has."""

UNFIT = ("token_classification", "text_to_text", "text_generation")
"""Tasks of a SavedModel alone: a file holds no tokenizer to find words or write with."""

LEAST_AGREEMENT = 0.9
"""Share of examples for which a quantised file has to decide as the run's model does."""

MOST_LOST = 0.05
"""Of the task's headline score, such as accuracy, that a quantised file may lose."""


class Export(Section):
    """What is written for servers and devices when the run is finished."""

    targets: tuple[Target, ...] = Field(
        default=(),
        description="saved_model is a version for TensorFlow Serving in the run's folder 'export'; "
        "the others are files for other runtimes, in a folder each below it. All are compared with "
        "the run before anyone sees them. 'kft export' does it any time later.",
    )
    quantize: tuple[Quantize, ...] = Field(
        default=("none",),
        description="How litert, onnx and openvino are written: none is float32; float16 and "
        "int8_weights make weights smaller; int8 computes in int8 and is calibrated on training "
        "pictures. Each that is listed makes a file of its own.",
    )
    name: Text | None = Field(
        default=None, description="Under which the model is served; null is the run's name."
    )
    examples: Annotated[int, Ge(0)] = Field(
        default=200, description="Examples of the run's data that are compared, at most."
    )
    least_agreement: Share = Field(
        default=LEAST_AGREEMENT,
        description="Share of the compared examples for which a quantised file has to decide as "
        "the run's model does; else it is not written.",
    )
    most_lost: Share = Field(
        default=MOST_LOST,
        description="How much of the headline score, such as accuracy, a quantised file may lose "
        "on the compared examples; else it is not written.",
    )


def pairs(targets: Sequence[str], quantize: Sequence[str]) -> list[tuple[str, str]]:
    """Returns what is written: formats with quantisations; each once, in their order.

    What cannot be quantised at all is written as it is.

    Args:
        targets: Keys of `QUANTIZATIONS`.
        quantize: Those that `wrong` says nothing of.
    """
    return [
        (target, each)
        for target in dict.fromkeys(targets)
        for each in (dict.fromkeys(quantize) if _is_able(target) else ("none",))
    ]


def wrong(targets: Sequence[str], quantize: Sequence[str], task: str) -> Iterator[str]:
    """Yields why formats and quantisations do not go together, or not with a task."""
    able = [target for target in targets if _is_able(target)]
    narrow = [each for each in quantize if each != "none"]
    if not quantize:
        yield f"quantize: expected one or more of {', '.join(get_args(Quantize))}, got none of them"
    if narrow and not able:
        known = ", ".join(target for target in QUANTIZATIONS if _is_able(target))
        given = f"{' and '.join(targets)} cannot be quantised" if targets else "no format is named"
        yield f"quantize: {', '.join(narrow)}: {given}; {known} can be"
    for target in able:
        known = " or ".join(QUANTIZATIONS[target])
        for each in narrow:
            if each not in QUANTIZATIONS[target]:
                yield (
                    f"{target}: quantize: expected {known}, got '{each}'; write formats that "
                    "differ in this one after the other"
                )
    files = [target for target in targets if target != "saved_model"]
    if task in UNFIT and files:
        what = "tags words" if task == "token_classification" else "writes texts"
        yield (
            f"{', '.join(files)}: {task} {what}, which takes a tokenizer that a file does not "
            "hold; saved_model does"
        )
    if task.startswith("text_") and "int8" in narrow and "litert" in able:
        yield (
            "litert: int8 would ruin texts: the number that masks a token is so large that no "
            "range of 256 steps holds it beside scores; int8_weights is as small"
        )


def combinations(values: Values) -> Iterator[Mistake]:
    """Yields what is wrong between keys of `export` and the task."""
    with suppress(UnknownError):
        targets, quantize = (
            [values("export", key, at) for at in range(len(values("export", key)))]
            for key in ("targets", "quantize")
        )
        for message in wrong(targets, quantize, values("task", "name")):
            yield Mistake((("export", "quantize"), ("export", "targets")), message)


def _is_able(target: str) -> bool:
    return QUANTIZATIONS[target] != ("none",)
