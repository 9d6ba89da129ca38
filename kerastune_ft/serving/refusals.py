"""What a server says no with: one code for both protocols, and a message for the client.

raise RefusedError("NOT_FOUND", "Servable not found for request: Latest(cats)")
of(error)                            # what TensorFlow raised, without its graph
"""

from __future__ import annotations

import logging
import re

HTTP_STATUS = {
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    # TensorFlow Serving answers UNAVAILABLE, 503, where its queue is full. So does this one over
    # HTTP; a gRPC client can tell a full queue from a server that is going away.
    "RESOURCE_EXHAUSTED": 503,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}
"""The status of an answer over HTTP for each code of gRPC and TensorFlow, in their order."""

_CODES = dict(enumerate(HTTP_STATUS, 1))
_LOG = logging.getLogger("kerastune_ft.serving")
_NOISE = re.compile(r"\{\{function_node [^}]*\}\}|\[\[\{\{node .*?\}\}.*?\]\]|\[Op:[^\]]*\]")
_SKIPPED = ("Graph execution error", "Detected at node", "<stack traces", 'File "', "(1) ", "0 ")
_FIRST = re.compile(r"\(0\) [A-Z_]+: |\d+ root error\(s\) found\.")
_LONGEST = 1000


class RefusedError(Exception):
    """A request that is not answered.

    Args:
        code: A key of `HTTP_STATUS`.
        message: What is wrong, and what would be right.
        status: Of HTTP, where the code's own is too coarse: 413 of a body that is too long.
    """

    def __init__(self, code: str, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = HTTP_STATUS[code] if status is None else status


def invalid(message: str) -> RefusedError:
    """Returns the refusal of a request that is itself wrong."""
    return RefusedError("INVALID_ARGUMENT", message)


def of(error: BaseException) -> RefusedError:
    """Returns what a client is told of an error: its own faults in full, ours as such.

    Args:
        error: Anything; TensorFlow's errors carry a code. Others are written to the log.
    """
    if isinstance(error, RefusedError):
        return error
    code, message = code_of(error), getattr(error, "message", None)
    if code is not None and isinstance(message, str):
        return RefusedError(code, plain(message))
    _LOG.error("a request could not be answered", exc_info=error)
    return RefusedError("INTERNAL", "internal error; the server's log tells more.")


def number_of(code: str) -> int:
    """Returns the number that gRPC and TensorFlow give to a code; 0 for `OK`."""
    return 0 if code == "OK" else list(HTTP_STATUS).index(code) + 1


def code_of(error: BaseException) -> str | None:
    """Returns the code of one of TensorFlow's errors, `None` of any other."""
    number = getattr(error, "error_code", None)
    return _CODES.get(number) if isinstance(number, int) else None


def plain(message: str) -> str:
    """Returns what TensorFlow says without where in the graph, and in which files, it says it."""
    lines = [_NOISE.sub("", line).strip() for line in message.splitlines()]
    kept = [line for line in lines if line and not line.startswith(_SKIPPED)]
    text = " ".join(_FIRST.sub("", " ".join(kept)).split()) or "the model failed."
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."
