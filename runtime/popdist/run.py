"""`torchrun` whose store listens on one address alone: on one host on loopback.

    python -m popdist.run --nproc-per-node 2 program.py

Every option is torchrun's. Its own store listens on all interfaces, and whoever reaches it can
write there; on several hosts this one listens on the address given as the master's, whose port is
to be shielded from all but these hosts.
"""

from __future__ import annotations

import signal
import sys
from datetime import timedelta
from typing import Any

from popdist.once import claim
from popdist.stores import store_at
from popdist.terminal import say


def main() -> None:
    """The command line."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import static_tcp_rendezvous

    static_tcp_rendezvous.TCPStore = _store  # type: ignore[misc, assignment]
    try:
        run.main()
    except ChildFailedError as error:
        _tell(error)
        sys.exit(1)


def _tell(error: Any) -> None:
    """Say who was killed, where no rank has: they may not have come so far as to watch."""
    failure = min(error.failures.values(), key=lambda failure: failure.timestamp)
    if failure.exitcode < 0 and claim(launches=True):
        name = signal.Signals(-failure.exitcode).name
        rank = next(r for r, f in error.failures.items() if f is failure)
        say(f"error: rank {rank} (process {failure.pid}) was ended by {name} as it began")


def _store(
    host: str, port: int, count: int, is_master: bool, timeout: timedelta, **options: Any
) -> Any:
    return store_at(host, port, count, is_master=is_master, timeout=timeout, **options)


if __name__ == "__main__":
    main()
