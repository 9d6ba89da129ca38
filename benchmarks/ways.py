"""The ways of each comparison, from the numbers of a size.

    ways = head(photos=2000, epochs=10)
    ways[0].name, ways[0].run, ways[0].settings

The first way of a kind is ours as it comes; the ratios of the others are to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Numbers = Mapping[str, Any]

SIDE = 160
"""Pixels of the photographs' sides, where nothing else is said."""

OFF = "train.cache=off"


@dataclass(frozen=True)
class Preparation:
    """What a way reads, made once.

    Args:
        run: `module:function`.
        settings: For it.
        source: What it is made of: the command's option `photos` or `texts`.
    """

    run: str
    settings: Numbers
    source: str


@dataclass(frozen=True)
class Way:
    """One way of doing the thing that is compared.

    Args:
        name: Unique in its comparison.
        run: `module:function`.
        settings: For it, beside what the preparation returns and the seed.
        data: What it reads.
        against: The way that its ratios are to; None has none.
        needs: Packages beyond those of the project.
        environment: Variables of its process.
    """

    name: str
    run: str
    settings: Numbers
    data: Preparation
    against: str | None = None
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def photographs(count: int) -> Preparation:
    """Returns photographs at their own sizes, with the base network."""
    return Preparation("preparation:photographs", {"count": count, "side": SIDE}, "photos")


def texts(count: int) -> Preparation:
    """Returns a divided table of texts."""
    return Preparation("preparation:texts", {"count": count}, "texts")


def stage(blocks: int, epochs: int, rate: float, more: str = "") -> str:
    """Returns a stage of a recipe."""
    return f"{{trainable_blocks: {blocks}, epochs: {epochs}, learning_rate: {rate:g}{more}}}"


def overrides(*listed: str, image: bool = True, side: int = SIDE) -> list[str]:
    """Returns the words that turn a shipped recipe into one of such stages, without stopping."""
    common = ["data.leakage=warn", "train.early_stopping=null"]
    if image:
        common += ["data.source=image_folder", f"backbone.image_size={side}", "data.augment=none"]
    else:
        common += ["data.source=csv", "data.group_column=null"]
    return [*common, f"train.stages=[{', '.join(listed)}]"]


def kft_fit(name: str, recipe: str, words: list[str], data: Preparation, **more: Any) -> Way:
    """Returns `kft fit` of a recipe."""
    against, settings = more.pop("against", None), {"recipe": recipe, "overrides": words, **more}
    return Way(name, "ours:fit", settings, data, against)


def head(photos: int, epochs: int, augmented: bool = False) -> list[Way]:
    """Compares epochs of a head on a frozen network."""
    data, words = photographs(photos), overrides(stage(0, epochs, 3e-3))
    settings = {"side": SIDE, "epochs": epochs, "learning_rate": 3e-3, "augmented": augmented}
    ours, views = "kft fit", []
    if augmented:
        words.append("data.augment={horizontal_flip: true, rotation: 0.1, zoom: 0.1}")
        ours, views = "kft fit, 4 cached views", ["train.cache_views=4"]
    return [
        kft_fit(ours, "mobilenet", [*words, *views], data),
        kft_fit("kft fit, train.cache=off", "mobilenet", [*words, OFF], data, against=ours),
        Way("Keras script", "plain:transfer", settings, data, ours),
    ]


def gradual(photos: int, epochs: int, blocks: int, steps: int) -> list[Way]:
    """Compares unfreezing block by block, with and without the cache."""
    listed = [stage(n, epochs, 3e-4 if n else 3e-3) for n in range(blocks + 1)]
    words, data = overrides(*listed), photographs(photos)
    off = [*words, OFF]
    return [
        kft_fit("kft fit", "mobilenet", words, data, stage_epochs=epochs),
        kft_fit(
            "kft fit, train.cache=off", "mobilenet", off, data, stage_epochs=epochs,
            against="kft fit",
        ),
    ]  # fmt: skip


def gradual_once(photos: int, epochs: int, blocks: int, steps: int) -> tuple[str, Numbers]:
    """Returns what measures the limits."""
    return "limits:measure", {"side": SIDE, "blocks": list(range(blocks + 1)), "steps": steps}


def text(count: int, epochs: int, warm_up: int, timed: int, full: int) -> list[Way]:
    """Compares MiniLM: the head and the top layer, then everything."""
    data = texts(count)
    words = overrides(stage(1, epochs, 7e-5, ", head_learning_rate: 1e-3"), image=False)
    counts = {"warm_up": warm_up, "timed": timed, "epochs": epochs}
    hub = {"way": "keras_hub", **counts}
    whole = {"way": "ours", "layers": None, **counts, "warm_up": full // 6, "timed": full}
    top, everything = "kft fit, head and top layer", "ours, everything (scaled)"
    return [
        kft_fit(top, "minilm", words, data),
        kft_fit(f"{top}, train.cache=off", "minilm", [*words, OFF], data, against=top),
        Way(
            "KerasHub, head and top layer (scaled)", "texts:scaled", {**hub, "layers": 1}, data, top
        ),
        Way(everything, "texts:scaled", whole, data),
        Way(
            "KerasHub, everything (scaled)", "texts:scaled", {**hub, "layers": None}, data,
            everything,
        ),
    ]  # fmt: skip


def pipeline(medium: int, large: int, passes: int) -> list[Way]:
    """Compares reading of pictures."""
    ways = []
    settings = {"side": SIDE, "passes": passes, "cache": "off"}
    kept = {**settings, "cache": "disk"}
    for width, height, count in ((500, 375, medium), (1600, 1200, large)):
        made = {"count": count, "width": width, "height": height}
        data = Preparation("preparation:resized", made, "photos")
        ours = f"ours, {width}x{height}"
        ways += [
            Way(ours, "reading:ours", settings, data),
            Way(f"{ours}, data.cache=disk", "reading:ours", kept, data, ours),
            Way(
                f"image_dataset_from_directory, {width}x{height}", "reading:keras_utility",
                settings, data, ours,
            ),
        ]  # fmt: skip
    return ways


def overhead(photos: int, epochs: int) -> list[Way]:
    """Compares `kft fit` with a script around the same parts."""
    words = [*overrides(stage(-1, epochs, 3e-4)), "data.cache=off"]
    data = photographs(photos)
    settings = {"recipe": "mobilenet", "overrides": words, "warm_up": 3}
    return [
        Way("kft fit", "ours:fit", settings, data),
        Way("Keras script, same data and network", "ours:script", settings, data, "kft fit"),
    ]


def memory(counts: list[int], epochs: int) -> list[Way]:
    """Compares peak memory over numbers of pictures."""
    words = overrides(stage(0, epochs, 3e-3), side=96)
    first = f"kft fit, {counts[0]:,} pictures"
    return [
        kft_fit(
            f"kft fit, {count:,} pictures", "mobilenet", words,
            Preparation("preparation:varied", {"count": count, "side": 96}, "photos"),
            against=None if count == counts[0] else first,
        )
        for count in counts
    ]  # fmt: skip


def peers(
    photos: int,
    jax_photos: int,
    count: int,
    epochs: int,
    warm_up: int,
    timed: int,
    hub_timed: int,
    hub: list[str],
) -> list[Way]:
    """Compares the speed of training steps, reading included, with other libraries.

    On a processor, JAX takes ten times as long for the network of pictures: it gets fewer. Of
    KerasHub's 512 tokens small sizes have the head alone; `text` has everything.
    """
    pictures, table = photographs(photos), texts(count)
    jax, torch = {"KERAS_BACKEND": "jax"}, ("torch", "transformers")
    of = {"head_epochs": epochs, "full_epochs": 1, "side": SIDE, "learning_rate": 3e-3}
    counts = {"warm_up": warm_up, "timed": timed}
    slow = {"warm_up": 1, "timed": hub_timed, "stages": hub}
    ways = []
    for what, recipe, data in (("pictures", "mobilenet", pictures), ("texts", "minilm", table)):
        image = recipe == "mobilenet"
        # Every length of texts is traced when it first comes: a whole epoch is no measure of it.
        unmeasured = 0 if image else 1
        words = overrides(stage(0, epochs, 3e-3), stage(-1, 1 + unmeasured, 7e-5), image=image)
        settings = {"recipe": recipe, "head_epochs": epochs, "unmeasured": unmeasured}
        ours, off = ({**settings, "overrides": each} for each in (words, [*words, OFF]))
        name = f"{what}: kft fit, train.cache=off"
        ways += [
            Way(name, "ours:throughput", off, data),
            Way(f"{what}: kft fit", "ours:throughput", ours, data, name),
        ]
        if image:
            ways += [
                Way(f"{what}: Keras script", "plain:throughput", of, data, name),
                Way(f"{what}: PyTorch", "torch_loops:pictures", of, data, name, torch),
            ]
        else:
            ways += [
                Way(f"{what}: KerasHub, 512 tokens", "texts:throughput", slow, data, name),
                Way(f"{what}: PyTorch", "torch_loops:texts", counts, data, name, torch),
            ]
        few = photographs(jax_photos) if image else table
        ways.append(Way(f"{name}, JAX", "ours:throughput", off, few, name, ("jax",), jax))
    return ways
