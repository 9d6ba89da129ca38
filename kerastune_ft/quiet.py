"""Keeps from the user what TensorFlow says and nobody can act on."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def untold() -> Iterator[None]:
    """Keeps TensorFlow from warning that functions are traced often.

    Every model is traced once, and once more for every length of texts.
    """

    def wanted(record: logging.LogRecord) -> bool:
        return "triggered tf.function retracing" not in record.getMessage()

    log = logging.getLogger("tensorflow")
    log.addFilter(wanted)
    try:
        yield
    finally:
        log.removeFilter(wanted)
