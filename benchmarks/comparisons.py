"""What is compared with what, at which sizes: one row per comparison.

    comparison = COMPARISONS["head"]
    comparison.ways(**comparison.sizes["full"])

Sizes: `tiny` shows that everything runs and measures nothing; `small` is what all comparisons
together have time for in 20 minutes on two cores; `full` is what a figure that is published needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks import stages, ways
from benchmarks.tables import Column, Result
from benchmarks.ways import Numbers, Way


@dataclass(frozen=True)
class Comparison:
    """A table.

    Args:
        title: Of the table.
        text: What is measured, and what is left out.
        ways: From a size's numbers to the ways, the first of which is ours.
        sizes: Of these numbers, by name.
        columns: Of the table.
        once: From the numbers to a process that runs once, before the ways; None has none.
        more: From the results, what `once` returned and the numbers to further lines.
    """

    title: str
    text: str
    ways: Callable[..., list[Way]]
    sizes: Mapping[str, Numbers]
    columns: tuple[Column, ...]
    once: Callable[..., tuple[str, Numbers]] | None = None
    more: Callable[[Mapping[str, Result], Numbers, Numbers], str] | None = None


RUN = (
    Column("training", "training, s", ratio=True),
    Column("whole", "whole process, s", ratio=True),
    Column("processor", "processor, s"),
    Column("memory", "peak GiB", 2),
    Column("accuracy", "test accuracy", 3),
)
SPEED = (
    Column("head", "head, ms per example", 3, ratio=True),
    Column("full", "everything, ms per example", 1, ratio=True),
)

EXCLUDED = (
    "Left out of all: fetching and converting weights, and making the `.keras` file of the base "
    "network that the script loads."
)

COMPARISONS: dict[str, Comparison] = {
    "head": Comparison(
        title="10 epochs of a head on a frozen MobileNetV2",
        text="160 pixels, batches of 32, AdamW at 3e-3, no augmentation, validation after every "
        "epoch. The script follows Keras's guide to transfer learning. Training of `kft fit` "
        "begins with filling its caches, of which `train.cache=off` leaves that of decoded "
        f"pictures. {EXCLUDED}",
        ways=ways.head,
        sizes={
            "tiny": {"photos": 40, "epochs": 2},
            "small": {"photos": 300, "epochs": 10},
            "full": {"photos": 2000, "epochs": 10},
        },
        columns=RUN,
    ),
    "head30": Comparison(
        title="30 epochs of the same",
        text="As `head`.",
        ways=ways.head,
        sizes={
            "tiny": {"photos": 40, "epochs": 3},
            "small": {"photos": 60, "epochs": 30},
            "full": {"photos": 2000, "epochs": 30},
        },
        columns=RUN,
    ),
    "augmented": Comparison(
        title="The same with flips, rotation and zoom",
        text="As `head`; ours draws 4 views of every photograph and trains on them in turn, the "
        "others draw anew for every epoch.",
        ways=lambda **numbers: ways.head(**numbers, augmented=True),
        sizes={
            "tiny": {"photos": 40, "epochs": 2},
            "small": {"photos": 120, "epochs": 8},
            "full": {"photos": 2000, "epochs": 10},
        },
        columns=RUN,
    ),
    "gradual": Comparison(
        title="Unfreezing the top quarter of MobileNetV2, a block per stage",
        text="160 pixels, the head first, then 1 to 4 of the 19 blocks. A stage's seconds begin "
        "with the end of the one before: building, tracing, filling and validation are in them. "
        "The limit is the whole step's time over what is left of it without the forward pass of "
        "the prefix, both measured once on noise; reading pictures is in neither.",
        ways=ways.gradual,
        sizes={
            "tiny": {"photos": 40, "epochs": 1, "blocks": 1, "steps": 2},
            "small": {"photos": 150, "epochs": 2, "blocks": 2, "steps": 4},
            "full": {"photos": 2000, "epochs": 3, "blocks": 4, "steps": 10},
        },
        columns=RUN,
        once=ways.gradual_once,
        more=stages.table,
    ),
    "text": Comparison(
        title="MiniLM: head and top layer, and everything",
        text="Batches of 32, AdamW. KerasHub's classifier is as `from_preset` makes it: 512 "
        "tokens. It and our training of everything are scaled: the seconds of a few batches after "
        "the first, times the batches of all epochs, without validation.",
        ways=ways.text,
        sizes={
            "tiny": {"count": 100, "epochs": 1, "warm_up": 1, "timed": 1, "full": 6},
            "small": {"count": 400, "epochs": 5, "warm_up": 1, "timed": 1, "full": 18},
            "full": {"count": 5000, "epochs": 5, "warm_up": 1, "timed": 4, "full": 120},
        },
        columns=RUN,
    ),
    "pipeline": Comparison(
        title="Reading pictures for 160 pixels",
        text="Processor seconds (all threads, user and system) per 1,000 JPEG files; photographs "
        "that were brought to their size with Pillow. `before` is what happens before the first "
        "pass: both list the files and trace the pipeline, a second that more pictures make "
        "smaller; ours looks at every picture, and decodes it where it keeps it. Ours resizes with "
        "antialiasing, the utility without.",
        ways=ways.pipeline,
        sizes={
            "tiny": {"medium": 40, "large": 10, "passes": 2},
            "small": {"medium": 400, "large": 100, "passes": 3},
            "full": {"medium": 1000, "large": 300, "passes": 5},
        },
        columns=(
            Column("before", "before", 2),
            Column("first", "first pass", 2, ratio=True),
            Column("later", "later passes", 2, ratio=True),
            Column("wall", "later passes, wall seconds", 2, ratio=True),
        ),
    ),
    "overhead": Comparison(
        title="`kft fit` against a script around the same pipeline and network",
        text="Full fine-tuning of MobileNetV2 at 160 pixels, no pictures kept. Steps are of whole "
        "batches, without the first epoch and the first four steps of the others; the start is "
        "from the beginning of the process.",
        ways=ways.overhead,
        sizes={
            "tiny": {"photos": 200, "epochs": 1},
            "small": {"photos": 256, "epochs": 2},
            "full": {"photos": 640, "epochs": 4},
        },
        columns=(
            Column("step", "s per step", 3, ratio=True),
            Column("first_step", "start to first step, s", ratio=True),
            *RUN,
        ),
    ),
    "memory": Comparison(
        title="Peak memory by number of pictures",
        text="A head on a frozen MobileNetV2 at 96 pixels; the pictures are crops of photographs, "
        "70 of 100 train.",
        ways=ways.memory,
        sizes={
            "tiny": {"counts": [100, 200], "epochs": 2},
            "small": {"counts": [500, 2500], "epochs": 2},
            "full": {"counts": [500, 10_000, 20_000], "epochs": 2},
        },
        columns=(Column("memory", "peak GiB", 3, ratio=True), *RUN[:2], *RUN[4:]),
        more=stages.growth,
    ),
    "peers": Comparison(
        title="Training steps elsewhere",
        text="Milliseconds per example of whole batches, reading included, without the first epoch "
        "of the head and the first batch of everything (on texts: without the first epoch, or the "
        "first batches, of both): what filling a cache costs is not in it, and ratios are to "
        "`kft fit` without one. MobileNetV2 at 160 pixels, PyTorch's with random weights; "
        "MiniLM, ours and PyTorch's padded to the longest text of a batch. Batch normalisation is "
        "in inference mode everywhere; ours does not train its scale and offset, the others do.",
        ways=ways.peers,
        sizes={
            "tiny": {
                "photos": 100,
                "jax_photos": 70,
                "count": 100,
                "epochs": 2,
                "warm_up": 1,
                "timed": 2,
                "hub_timed": 1,
                "hub": ["head"],
            },
            "small": {
                "photos": 160,
                "jax_photos": 70,
                "count": 320,
                "epochs": 2,
                "warm_up": 3,
                "timed": 10,
                "hub_timed": 1,
                "hub": ["head"],
            },
            "full": {
                "photos": 640,
                "jax_photos": 100,
                "count": 2000,
                "epochs": 3,
                "warm_up": 10,
                "timed": 80,
                "hub_timed": 3,
                "hub": ["head", "full"],
            },
        },
        columns=(*SPEED, Column("memory", "peak GiB", 2)),
    ),
}
