"""Connections within limits: how many there are, and how long each may take to say what it wants.

uvicorn bounds the time between two requests of a connection, but not the time of a request's
headers, and it knows no clients. A connection that waits for a request's headers is *idle*: where
there is no room for a new one, the one that has been idle longest is closed for it, so that
connections which never say anything keep nobody out.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from utils.serving.limits import SPARE_CONNECTIONS, Limits

CROWDED = "crowded"
"""The name, in a request's state, of whether its connection is one over the limits."""

TIMEOUT = (
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: text/plain\r\n"
    b"content-length: 28\r\n\r\nthe request took too long.\r\n"
)


def client_of(address: str | None) -> str:
    """Whom an address counts for: itself, or the /64 of an IPv6 one, which one person has."""
    try:
        found = ipaddress.ip_address(address or "")
    except ValueError:
        return address or ""
    if isinstance(found, ipaddress.IPv6Address) and not found.is_loopback:
        if found.ipv4_mapped:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)


class Connections:
    """Those that are open, by client, and which of them are idle.

    Args:
        is_proxy: whether an address is a proxy's, which may have any number of connections.
    """

    def __init__(self, limits: Limits, is_proxy: Callable[[str], bool] = lambda address: False):
        self._limits, self._is_proxy, self._most = limits, is_proxy, limits.fitting
        self._clients: dict[BoundedProtocol, str] = {}
        self._counts: Counter[str] = Counter()
        self._idle: dict[BoundedProtocol, None] = {}  # the longest first
        self._idle_of: defaultdict[str, dict[BoundedProtocol, None]] = defaultdict(dict)

    def __len__(self) -> int:
        return len(self._clients)

    def enter(self, connection: BoundedProtocol, address: str | None) -> bool | None:
        """Count a new connection: whether it is within the limits, or None if it must be closed."""
        client = client_of(address)
        within = True
        if self._counts[client] >= self._of_client(address):
            within = self._evict(self._idle_of.get(client, {}))
        if len(self) >= self._most:
            within = self._evict(self._idle) and within
        if len(self) >= self._most + SPARE_CONNECTIONS:
            return None
        self._clients[connection] = client
        self._counts[client] += 1
        self.idle(connection)
        return within

    def leave(self, connection: BoundedProtocol) -> None:
        """Forget a connection, once or several times."""
        client = self._clients.pop(connection, None)
        if client is None:
            return
        self._idle.pop(connection, None)
        self._idle_of[client].pop(connection, None)
        self._counts[client] -= 1
        if not self._counts[client]:
            del self._counts[client]
            self._idle_of.pop(client, None)

    def idle(self, connection: BoundedProtocol) -> None:
        """It waits for a request."""
        if client := self._clients.get(connection):
            self.busy(connection)
            self._idle[connection] = self._idle_of[client][connection] = None

    def busy(self, connection: BoundedProtocol) -> None:
        """It has a request that is being answered."""
        if client := self._clients.get(connection):
            self._idle.pop(connection, None)
            self._idle_of[client].pop(connection, None)

    def _of_client(self, address: str | None) -> int:
        proxy = self._is_proxy(address or "")
        return self._most if proxy else min(self._limits.connections_of_client, self._most)

    def _evict(self, idle: dict[BoundedProtocol, None]) -> bool:
        """Close the connection that has been idle longest; whether there was one."""
        oldest = next(iter(idle), None)
        if oldest is None:
            return False
        self.leave(oldest)
        oldest.transport.abort()
        return True


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP connection with a place in `Connections` and time limits."""

    def __init__(self, book: Connections, limits: Limits, **settings: Any):
        super().__init__(**settings)
        self._book, self._limits = book, limits
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        within = self._book.enter(self, self.client and self.client[0])
        if within is None:
            transport.abort()
            return
        self.app_state = {**self.app_state, CROWDED: not within}
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._stop_waiting()
        self._book.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # what came is no HTTP, in the middle of an answer
            self.transport.abort()
            return
        self._settle(expecting=True)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; the request that it was a part of has its answer with that."""
        super().send_400_response(msg)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing():
            begun = self.conn.their_state is not h11.IDLE or bool(self.conn.trailing_data[0])
            self._settle(expecting=begun)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_waiting()
        seconds = self._limits.write_seconds
        self._unread = self.loop.call_later(seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_waiting()
        super().resume_writing()

    def _settle(self, expecting: bool) -> None:
        """Note whether a request is being answered; if not, and one has begun, bound its time."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._disarm()
            self._book.busy(self)
            return
        self._book.idle(self)
        if expecting:
            self._expect_headers()

    def _expect_headers(self) -> None:
        if self._deadline is None:  # more bytes give no more time
            seconds = self._limits.header_seconds
            self._deadline = self.loop.call_later(seconds, self._too_late)

    def _too_late(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(TIMEOUT)
            self.transport.close()

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _stop_waiting(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: a request for another protocol is answered as one for HTTP is."""
