"""Functions run by several processes of one job, told apart as launchers do: by environment."""

from __future__ import annotations

import multiprocessing
import os
import queue
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from typing import Any
from unittest import mock

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["popxl.backend.engine", "popdist.job"])  # torch is imported once


def run_in_processes(count: int, function: Callable, *args: Any, timeout: float = 60) -> list:
    """What `function(*args)` returns in each of `count` processes.

    Raises:
        AssertionError: with the trace of the first that failed, or where they take too long.
    """
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        forkserver.ensure_running()
    results = CONTEXT.Queue()
    port = free_port()
    processes = [
        CONTEXT.Process(target=_run, args=(results, count, rank, port, function, args))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    try:
        answers = dict(_answer(results, timeout) for _ in processes)
        for process in processes:
            process.join(timeout)
        return [answers[rank] for rank in range(count)]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _answer(results: Any, timeout: float) -> tuple[int, Any]:
    try:
        rank, failed, value = results.get(timeout=timeout)
    except queue.Empty:
        raise AssertionError(f"no answer within {timeout} s") from None
    assert not failed, f"rank {rank}:\n{value}"
    return rank, value


def _run(
    results: Any, count: int, rank: int, port: int, function: Callable, args: tuple[Any, ...]
) -> None:
    os.environ.update(job_environment(count, rank, port))
    try:
        value = function(*args)
    except BaseException:
        results.put((rank, True, traceback.format_exc()))
    else:
        results.put((rank, False, value))


def job_environment(count: int, rank: int, port: int) -> dict[str, str]:
    """What tells a process which one of its job it is."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
