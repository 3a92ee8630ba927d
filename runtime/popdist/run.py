"""`torchrun` whose store listens on one address alone, and that says in one line which rank died.

    python -m popdist.run --nproc-per-node 2 program.py

Every option is torchrun's; what it logs is shown where LOGLEVEL is set.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
from typing import Any

from popdist import SAID, say_once


def main() -> None:
    """The command line."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until torchrun has a handler of its own
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import static_tcp_rendezvous

    static_tcp_rendezvous.TCPStore = store_at  # type: ignore[misc, assignment]
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun's default, without its notice
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "10")  # a signal is to end all in time
    if "LOGLEVEL" not in os.environ:
        logging.disable(logging.ERROR)  # it logs which signals it sends
    with tempfile.TemporaryDirectory(prefix="popdist-") as folder:
        os.environ[SAID] = os.path.join(folder, "said")
        try:
            run.main()
        except SignalException as error:
            sys.exit(128 + error.sigval)
        except ChildFailedError as error:
            # The first one: those that the launcher itself ended come after it.
            rank, failure = next(iter(error.failures.items()))
            code, how = failure.exitcode, f"ended with status {failure.exitcode}"
            if code < 0:
                how = f"was ended by {signal.Signals(-code).name}"
            if code < 128:  # as it is where an interrupt ended the leader
                say_once(f"rank {rank} (process {failure.pid}) {how}")
            sys.exit(1)
        except (AssertionError, OSError, RuntimeError, ValueError) as error:  # the options
            sys.exit(f"error: {error}".partition("\n")[0])


def store_at(host: str, port: int, count: int, is_master: bool, *limit: Any, **more: Any) -> Any:
    """A `TCPStore`, with its parameters, whose server listens on `host` alone: PyTorch's own
    listens on every interface. Where `host` is no address of this machine, it listens on all.
    """
    from torch.distributed import TCPStore

    if is_master:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.suppress(OSError):  # the store itself says that a port is taken
            listener = socket.create_server(address[:2], family=family, backlog=1024)
            # The store takes the descriptor and closes it; only this kind of server can.
            more |= {"master_listen_fd": listener.detach(), "use_libuv": False}
    return TCPStore(host, port, count, is_master, *limit, **more)


if __name__ == "__main__":
    main()
