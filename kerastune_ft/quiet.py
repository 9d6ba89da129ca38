"""Keeps from the user what TensorFlow and others say and nobody can act on."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
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


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Keeps from standard error what code that is not Python's writes there, past `sys.stderr`.

    Around short calls into libraries whose level of logging nobody can set; it holds for every
    thread of the process.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as sink:
            os.dup2(sink.fileno(), 2)
            yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
