"""Serve BLOOM by OpenAI's API from several replicas, on one machine or a Ray cluster.

    pip install -r requirements-ray.txt
    python serve_replicas.py --replicas 2 --config bloom_tiny
    python serve_replicas.py --replicas 1:4 --processes 2 --config bloom_560M

What is not named here is an option of `run_inference_gradio.py`, for each replica's server.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence

from config import ConfigError
from config.options import is_given
from utils.checkpoints.arguments import parse_model_arguments
from utils.serving.arguments import ServerArguments
from utils.serving.listening import bind
from utils.setup import UserError, run_script


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line until SIGINT or SIGTERM; the exit status.

    Raises:
        UserError, ConfigError: for arguments that are not possible, or where Ray is not installed.
    """
    arguments, options = parser().parse_known_args(argv)
    for name in ("host", "port", "share", "no_page", "auth"):
        if is_given(name, options):
            raise UserError(f"--{name} is not for replicas: they have one address, and no page")
    parse_model_arguments(options, extra=ServerArguments, title="server", prog="serve_replicas.py")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    # Ray kills a proxy that has not started within 5 s, as on a busy machine, and ends by that.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    try:
        import ray
        from ray import serve

        from utils.serving.replicas.application import build, replica_counts
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed: pip install -r requirements-ray.txt"
        ) from None
    try:
        counts = replica_counts(arguments.replicas)
    except ValueError as error:
        raise ConfigError(f"--replicas: {error}") from None
    if not arguments.port:
        raise UserError("--port 0: name the port, which clients must know")
    bind(arguments.host, arguments.port).close()  # Ray would answer with pages
    ray.init(address=arguments.address, include_dashboard=False, logging_level=logging.WARNING)
    http = {"host": arguments.host, "port": arguments.port}
    application = build(options, counts, arguments.processes, arguments.cpus)
    with contextlib.suppress(TimeoutError):  # its proxy still starts, on a busy machine
        serve.start(http_options=http, logging_config={"log_level": "WARNING"})
    serve.run(application, name="bloom", blocking=False)
    wait_for_listener(arguments.host, arguments.port)
    print(f"the API is at http://{arguments.host}:{arguments.port}", flush=True)
    ended = threading.Event()
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    serve.shutdown()
    ray.shutdown()
    return 0


def wait_for_listener(host: str, port: int) -> None:
    """Return once somebody listens at an address."""
    while True:
        with contextlib.suppress(OSError):
            return socket.create_connection((host, port), timeout=1).close()
        time.sleep(0.1)


def parser() -> argparse.ArgumentParser:
    """The options that are not each server's."""
    parser = argparse.ArgumentParser(
        prog="serve_replicas.py",
        allow_abbrev=False,
        description="Serve BLOOM by OpenAI's API from several replicas. Further options are those "
        "of run_inference_gradio.py, for each replica.",
    )
    parser.add_argument(
        "--replicas", default="2", metavar="N|LEAST:MOST", help="run so many, as requests ask for"
    )
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="share each replica among N processes"
    )
    parser.add_argument(
        "--cpus", type=float, default=1.0, metavar="X", help="set X CPUs aside for each replica"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="listen on this address"
    )
    parser.add_argument("--port", type=int, default=7860, help="listen on this port")
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="join a running Ray cluster; its own if left out"
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_script(main))
