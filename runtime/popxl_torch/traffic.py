"""How much of something was exchanged with other processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Traffic:
    """Collectives, or messages, in which this process took part with others.

    Attributes:
        calls: their number.
        bytes: of the tensors that this process put into them, or of the messages.
        seconds: until the others' tensors were there, waiting for these included; of collectives
            between CUDA devices until they were asked for, as no process waits for them.
    """

    calls: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def __sub__(self, before: Traffic) -> Traffic:
        return Traffic(
            self.calls - before.calls, self.bytes - before.bytes, self.seconds - before.seconds
        )

    @contextmanager
    def counted(self, size: int) -> Iterator[None]:
        """Count one more, of `size` bytes."""
        begin = time.perf_counter()
        yield
        self.add(size, time.perf_counter() - begin)

    def add(self, size: int, seconds: float) -> None:
        """Count one more."""
        self.calls += 1
        self.bytes += size
        self.seconds += seconds
