"""What every command of the command line needs: where it prints, TensorFlow without its noise."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NoReturn

from kerastune_ft.errors import KftError

if TYPE_CHECKING:
    from rich.console import Console


def workflow() -> Any:
    """Imports what needs TensorFlow, without what TensorFlow prints."""
    from kerastune_ft import devices

    try:
        with devices.quiet_start():
            from kerastune_ft import workflow as found
    except ModuleNotFoundError as error:
        backend = os.environ.get("KERAS_BACKEND", "")
        if not backend or error.name != backend:
            raise
        raise KftError(
            f"KERAS_BACKEND={backend}: the package '{backend}' is not installed; install "
            f"'kerastune-ft[{backend}]', or unset KERAS_BACKEND to use TensorFlow."
        ) from error
    return found


def console(stderr: bool = False) -> Console:
    """Returns where a command prints: as wide as the terminal, or without folding."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal:
        # A log file or a pipe has no width: fold nothing, a path must stay in one piece.
        made = Console(stderr=stderr, highlight=False, width=1000)
    return made


def terminated(*_: object) -> NoReturn:
    """Ends the process as SIGTERM asks: what was trained is saved on the way out."""
    raise SystemExit(143)
