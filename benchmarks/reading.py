"""How much processor time it takes to read pictures: ours, and `image_dataset_from_directory`.

Nothing is trained. Before the first pass files are listed and the pipeline is built and traced;
ours looks at every picture and, where it keeps them, decodes them. A pass streams every picture
once, in batches of 32, shuffled; the first one starts TensorFlow's threads. Processor seconds are
those of all threads, user and system.
"""

from __future__ import annotations

import itertools
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

BATCH = 32


def ours(settings: dict[str, Any]) -> dict[str, Any]:
    """Reads pictures as `kft fit` does.

    Args:
        settings: `data`, a folder of class folders; `side`; `cache`, as `data.cache`; `passes`;
            `seed`.

    Returns:
        Processor seconds per 1,000 pictures: `before` the first pass, of the `first`, and `later`,
        the mean of the others; and `wall` seconds of a later pass.
    """
    import tensorflow as tf

    from kerastune_ft import data
    from kerastune_ft import recipe as recipes
    from kerastune_ft.data import feeding, picture_cache

    recipe = recipes.from_mapping(
        {
            "task": {"name": "image_classification"},
            "backbone": {"name": "mobilenet_v2", "image_size": settings["side"]},
            "data": {
                "source": "image_folder", "path": settings["data"], "batch_size": BATCH,
                "augment": "none", "split": {"validation": 0.0, "test": 0.0}, "leakage": "warn",
                "cache": settings["cache"],
            },
            "train": {"seed": settings["seed"]},
        }
    )  # fmt: skip
    tf.constant(0)  # what TensorFlow does once is nobody's
    passes = settings["passes"]

    def begin() -> tuple[int, Callable[[], Iterable[Any]]]:
        splits = picture_cache.kept(data.load(recipe.data), recipe, print)
        train, classes, epochs = splits.train, len(splits.class_names), range(passes)
        made = feeding.dataset(train, recipe, classes, training=True, epochs=epochs)
        stream, steps = once(made), feeding.steps(train, recipe)
        return len(train), lambda: itertools.islice(stream, steps)

    return _measured(begin, passes)


def keras_utility(settings: dict[str, Any]) -> dict[str, Any]:
    """Reads them with Keras's utility and `prefetch(AUTOTUNE)`; see `ours`."""
    import keras
    import tensorflow as tf

    tf.constant(0)

    def begin() -> tuple[int, Callable[[], Iterable[Any]]]:
        made = keras.utils.image_dataset_from_directory(
            settings["data"],
            image_size=(settings["side"], settings["side"]),
            batch_size=BATCH,
            seed=settings["seed"],
        )
        count = len(made.file_paths)
        ahead = made.prefetch(tf.data.AUTOTUNE)
        return count, lambda: ahead

    return _measured(begin, settings["passes"])


def once(batches: Iterable[Any]) -> Iterator[Any]:
    """Streams batches; nothing happens before the first one is asked for."""
    yield from batches


def _measured(
    begin: Callable[[], tuple[int, Callable[[], Iterable[Any]]]], passes: int
) -> dict[str, Any]:
    marks = [_processor()]
    count, one = begin()
    marks.append(_processor())
    clock = time.monotonic()
    for number in range(passes):
        if number == 1:
            clock = time.monotonic()
        for _ in one():
            pass
        marks.append(_processor())
    before, first, *later = (
        (end - start) * 1000 / count for start, end in itertools.pairwise(marks)
    )
    wall = (time.monotonic() - clock) * 1000 / count
    return {
        "before": before,
        "first": first,
        "later": sum(later) / len(later),
        "wall": wall / len(later),
    }


def _processor() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
