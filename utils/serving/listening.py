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
        family, kind, tcp, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, tcp)  # asyncio sets TCP_NODELAY where it is named
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
    return _url("localhost" if _is_any(host) else host, port)


def url_for_others(listener: socket.socket) -> str | None:
    """Where other computers find it that listens on all addresses; None for one that does not."""
    host, port = listener.getsockname()[:2]
    address = own_address(listener.family) if _is_any(host) else None
    return _url(address, port) if address else None


def own_address(family: int) -> str | None:
    """This computer's address on the network that it reaches others by, if any."""
    test_network = "2001:db8::1" if family == socket.AF_INET6 else "192.0.2.1"
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((test_network, 9))  # chooses a route, and sends nothing
            return probe.getsockname()[0]
    except OSError:
        return None


def _is_any(host: str) -> bool:
    return ipaddress.ip_address(host).is_unspecified


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
