"""Stores that listen on one address alone: of one host's processes, on one that no other reaches.

PyTorch's own listens on every interface, and whoever reaches it may write what he likes.
"""

from __future__ import annotations

import socket
from typing import Any

import torch.distributed as dist

WAITING = 1024
"""Connections that may wait to be accepted."""


def store_at(host: str, port: int, count: int | None, *, is_master: bool, **options: Any) -> Any:
    """A `torch.distributed.TCPStore` whose server, where it is held here, listens on `host` alone.

    Where `host` is no address of this machine, as behind a translation of addresses, it listens on
    all.

    Args:
        options: further ones of a `TCPStore`.

    Raises:
        RuntimeError: there is none, or the port is taken.
    """
    listener = _listener(host, port) if is_master else None
    if listener is not None:
        # The store takes the descriptor and closes it; only this kind of server can.
        options |= {"master_listen_fd": listener.detach(), "use_libuv": False}
    return dist.TCPStore(host, port, count, is_master, **{"multi_tenant": True, **options})


def _listener(host: str, port: int) -> socket.socket | None:
    """A socket that listens there; None where that is no address of this machine."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        return None
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(WAITING)
    except OSError:
        listener.close()
        return None  # a port that is taken is told by the store
    return listener
