"""Several processes on this machine that share the making of memory maps."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from config import BloomConfig
from utils.checkpoints.memmap.generator import Generator, Progress, Share, Written
from utils.setup import UserError


def run_workers(
    config: BloomConfig,
    shard_root: str | None,
    shares: list[Share],
    progress: Progress,
    describe: Callable[[str], object],
) -> list[Written]:
    """What each share's process has written, once all have ended.

    The folder must have been taken by `Generator.begin`. The rest is as in `Generator.run`.

    Raises:
        UserError: the first of a process; the others end at their next chunk.
    """
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    workers: dict[Connection, BaseProcess] = {}
    try:
        for share in shares:
            here, there = context.Pipe(duplex=False)
            # No daemon: those are killed at exit, where these have something to tidy up.
            process: BaseProcess = context.Process(
                target=_work, args=(config, shard_root, share, there)
            )
            with _interrupts_later():
                process.start()
            there.close()
            workers[here] = process
        return _collect(workers, progress, describe)
    except BaseException:
        for process in workers.values():
            if process.is_alive() and process.pid:
                os.kill(process.pid, signal.SIGINT)
        raise
    finally:
        for process in workers.values():
            process.join()


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
    """Keep Ctrl-C from a process that is started here until it is ready for it."""
    resource_tracker.ensure_running()  # which would lift this when the first process starts it
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _collect(
    workers: dict[Connection, BaseProcess], progress: Progress, describe: Callable[[str], object]
) -> list[Written]:
    results: list[Written] = []
    running = dict(workers)
    while running:
        for connection in wait(list(running)):
            assert isinstance(connection, Connection)
            try:
                kind, value = connection.recv()
            except EOFError:
                process = running.pop(connection)
                process.join()
                raise UserError(_end(process)) from None
            if kind == "error":
                raise UserError(value)
            if kind == "done":
                running.pop(connection)
                results.append(value)
            else:
                (progress if kind == "bytes" else describe)(value)
    return results


def _end(process: BaseProcess) -> str:
    code = process.exitcode or 0
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with status {code}"
    return f"process {process.pid} {how}; what is complete stays, and the same command goes on"


def _work(config: BloomConfig, shard_root: str | None, share: Share, results: Connection) -> None:
    """A process: tells its parent of each step, and tidies up when it is interrupted."""

    def tell(kind: str, value: Any) -> None:
        try:
            results.send((kind, value))
        except BrokenPipeError:  # the parent is gone, nobody waits for this any more
            raise KeyboardInterrupt from None

    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        written = Generator(config, shard_root).run(
            share, lambda size: tell("bytes", size), lambda name: tell("file", name)
        )
        tell("done", written)
    except UserError as error:
        tell("error", str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
