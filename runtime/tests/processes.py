"""Functions run by several processes of one job, told apart as launchers do: by environment."""

from __future__ import annotations

import multiprocessing
import os
import queue
import secrets
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

from popdist import SAID, job
from popdist.run import store_at

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["popxl_torch.executor", "popdist.job"])  # torch is imported once


def run_in_processes(count: int, function: Callable, *args: Any) -> list[Any]:
    """What `function(*args)` returns in each of `count` processes.

    Raises:
        AssertionError: with the trace of the first that failed, or where they take too long.
    """
    results = CONTEXT.Queue()
    with started(count, _answered, results, function, args) as processes:
        answers = dict(answer(results) for _ in processes)
        for process in processes:
            process.join(20)
    return [answers[rank] for rank in range(count)]


@contextmanager
def started(
    count: int, function: Callable, *args: Any, errors: str = "", **environment: str
) -> Iterator[list[Any]]:
    """Processes that run `function(*args)`; they are killed at the end.

    Args:
        errors: a file for what they write to standard error.
    """
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        forkserver.ensure_running()
    with told(count) as of_ranks:
        processes = [
            CONTEXT.Process(target=_run, args=(own | environment, errors, function, args))
            for own in of_ranks
        ]
        for process in processes:
            process.start()
        try:
            yield processes
        finally:
            for process in processes:
                process.kill()
                process.join()


def answer(results: Any, timeout: float = 100) -> tuple[int, Any]:
    """The next rank that has answered, and what."""
    try:
        rank, failed, value = results.get(timeout=timeout)
    except queue.Empty:
        raise AssertionError(f"no answer within {timeout} s") from None
    assert not failed, f"rank {rank}:\n{value}"
    return rank, value


def give(results: Any, function: Callable, *args: Any) -> None:
    """Put what a function returns where `answer` finds it, or its error."""
    rank = int(os.environ["RANK"])
    try:
        value = function(*args)
    except BaseException:
        results.put((rank, True, traceback.format_exc()))
    else:
        results.put((rank, False, value))


def _answered(results: Any, function: Callable, args: tuple[Any, ...]) -> None:
    give(results, function, *args)


def _run(
    environment: dict[str, str], errors: str, function: Callable, args: tuple[Any, ...]
) -> None:
    os.environ.update(environment)
    if errors:
        os.dup2(os.open(errors, os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
    function(*args)
    if job._job is not None:
        job._job.leave()  # such processes end without what is registered for their exit


@contextmanager
def told(count: int) -> Iterator[list[dict[str, str]]]:
    """What a launcher tells each rank by its environment, and holds for them until they end."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        common = {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "OMP_NUM_THREADS": "1",
            SAID: f"{folder}/said",
        }
        store = store_on(port)
        yield [{"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"} | common for rank in range(count)]
        del store


def store_on(port: int) -> Any:
    """The store of a launcher; it closes when it is no longer held."""
    return store_at("127.0.0.1", port, 1, True, timedelta(seconds=60))


def free_port() -> int:
    """A free port of loopback, outside those that the system gives to who asks for any."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    every = range(20000, 1 << 16)
    outside = [port for port in every if not first <= port <= last]
    while True:
        port = secrets.choice(outside or every)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
