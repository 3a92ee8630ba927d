"""Jobs beside their caller, of which no more are under way than memory has room for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Overlap:
    """Runs jobs in threads, in the order given. A context manager, which waits for them.

    Args:
        at_once: jobs, at most.
        room: bytes that all jobs under way and the next one may take; one is always let begin.
    """

    def __init__(self, at_once: int, room: int):
        self._at_once, self._room = at_once, room
        self._pool = ThreadPoolExecutor(at_once)
        self._under_way: deque[tuple[int, Future]] = deque()
        self._results: list[Any] = []

    def __enter__(self) -> Overlap:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def make_room(self, size: int) -> None:
        """Wait until a further job of `size` bytes may begin. Raises what a job has raised."""
        while self._under_way and (
            len(self._under_way) == self._at_once
            or size + sum(taken for taken, _ in self._under_way) > self._room
        ):
            self._finish_first()

    def submit(self, size: int, job: Callable[[], object]) -> None:
        """Begin a job that takes `size` bytes."""
        self._under_way.append((size, self._pool.submit(job)))

    def results(self) -> list[Any]:
        """Of all jobs, in order, once they have ended. Raises what a job has raised."""
        while self._under_way:
            self._finish_first()
        return self._results

    def _finish_first(self) -> None:
        _, job = self._under_way.popleft()
        self._results.append(job.result())
