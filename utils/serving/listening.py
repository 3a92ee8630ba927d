"""The address that a server listens on."""

from __future__ import annotations

import ipaddress
import socket

from utils.setup import UserError


def bind(host: str, port: int) -> socket.socket:
    """A socket on an address that is free; port 0 is any. Then `listen`, once all is ready.

    Raises:
        UserError: it is taken, or no address of this computer.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"port must be from 0 to 65535, not {port}")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise _not_possible(host, port, error) from None
    return listener


def listen(listener: socket.socket) -> None:
    """Let others connect.

    Raises:
        UserError: another server on the same address was there first, since `bind`.
    """
    try:
        listener.listen()
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise _not_possible(host, port, error) from None


def _not_possible(host: str, port: int, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    return UserError(
        f"cannot listen on {host}, port {port} ({reason}): choose others with --host and --port"
    )


def is_public(host: str) -> bool:
    """Whether other computers reach this address."""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def url(listener: socket.socket) -> str:
    """Where a browser on this computer finds it."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
