"""Closes connections whose requests do not arrive in time: drop by drop, or not at all.

uvicorn waits for ever for the first request of a connection, for the rest of a header that has
begun, and for the end of a body that was refused already. A few hundred such connections leave no
file descriptors for others.

    uvicorn.Config(application, http=protocol(seconds=30))
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from kerastune_ft.serving import tensors


def protocol(seconds: float) -> type[asyncio.Protocol]:
    """Returns uvicorn's protocol with a bound.

    Args:
        seconds: From the beginning of a connection, or from a request's first byte, to the end of
            its header; and from a refusal to the end of what was refused.
    """

    class Bounded(H11Protocol):
        """HTTP/1.1 for clients that do not dawdle."""

        _giving_up: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._mind()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._mind()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._mind()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._leave()

        def _mind(self) -> None:
            """Starts the clock, unless a request is worked on or uvicorn's own clock runs."""
            working = self.cycle is not None and not self.cycle.response_complete
            if working or self.timeout_keep_alive_task is not None:
                self._leave()
            elif self._giving_up is None:
                self._giving_up = self.loop.call_later(seconds, self._give_up)

        def _leave(self) -> None:
            if self._giving_up is not None:
                self._giving_up.cancel()
                self._giving_up = None

        def _give_up(self) -> None:
            self._giving_up = None
            if self.transport.is_closing():
                return
            if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
                self._say()
            self.transport.close()

        def _say(self) -> None:
            body = tensors.text_of({"error": "the request did not arrive in time."})
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
            ]
            for event in (
                h11.Response(status_code=408, headers=headers, reason=b"Request Timeout"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")

    return Bounded
