"""Ctrl-C and SIGTERM while training: finish the batch, save, then stop.

with catching():                 # around a run
    with deferred():             # around `model.fit`
        ...                      # a callback calls `check(save)` after every batch
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_deferring = False
_caught: int | None = None


@contextlib.contextmanager
def catching() -> Iterator[None]:
    """Turns SIGTERM into `SystemExit(143)` and SIGINT into `KeyboardInterrupt`.

    Outside `deferred` at once. In another thread than the main one nothing is caught: Python
    allows it there alone.
    """
    global _caught
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _caught = None
    before = {number: signal.signal(number, _receive) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Lets the first signal wait for `check`; a second one does not wait."""
    global _deferring
    _deferring = True
    try:
        yield
    finally:
        _deferring = False
    if _caught is not None:
        _raise(_caught)


def check(save: Callable[[], None]) -> None:
    """Saves and stops if a signal came in."""
    if _caught is not None:
        save()
        _raise(_caught)


def requested() -> bool:
    """Whether a signal waits for `check`."""
    return _caught is not None


def _receive(number: int, frame: FrameType | None) -> None:
    global _caught
    if not _deferring or _caught is not None:
        _raise(number)
    _caught = number


def _raise(number: int) -> None:
    global _caught, _deferring
    _caught, _deferring = None, False
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
