"""The two streams of a GPU, one that computes and one that copies, and what orders them.

Tests put another in its place that writes down what it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch

from popxl.backend.memory import available_memory

BOUNCE = 1 << 26
"""Bytes of each of the two pinned buffers through which memory that is not pinned is copied."""

LEFT_TO_OTHERS = 0.1
"""The share of the host's available memory that is not pinned."""


class Lanes(Protocol):
    """What streaming asks of a device. Marks and tickets are whatever it likes them to be."""

    device: torch.device

    def free_bytes(self) -> int:
        """Of the device's memory."""

    def allocate(self, size: int) -> torch.Tensor:
        """Bytes of the device's memory."""

    def pinned(self, source: torch.Tensor) -> torch.Tensor:
        """`source`, or a copy of it that the device copies from faster, where there is room."""

    def mark(self) -> Any:
        """All that the computing stream has been given so far."""

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Any) -> Any:
        """Copy to the device beside the computing, once `after` is done; returns a ticket."""

    def wait(self, ticket: Any) -> None:
        """Let the computing stream go on only when the ticket's copy is done."""

    def settle(self) -> None:
        """Return when no copy is under way."""


class CudaLanes:
    """The lanes of a CUDA device."""

    def __init__(self, device: torch.device):
        self.device = device
        self._side = torch.cuda.Stream(device)
        self._worker: ThreadPoolExecutor | None = None
        self._bounces: list[tuple[torch.Tensor, torch.cuda.Event]] = []

    def free_bytes(self) -> int:
        return torch.cuda.mem_get_info(self.device)[0]

    def allocate(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def pinned(self, source: torch.Tensor) -> torch.Tensor:
        taken = 1 << (source.nbytes - 1).bit_length()  # PyTorch pins powers of two
        if source.is_pinned() or taken > (1 - LEFT_TO_OTHERS) * available_memory():
            return source
        return torch.empty(source.shape, dtype=source.dtype, pin_memory=True).copy_(source)

    def mark(self) -> torch.cuda.Event:
        return torch.cuda.current_stream(self.device).record_event()

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: torch.cuda.Event) -> Any:
        if source.is_pinned():
            return self._sent(after, lambda: target.copy_(source, non_blocking=True))
        if self._worker is None:  # it reads files while this thread goes on giving work
            self._worker = ThreadPoolExecutor(1, "popxl-copies")
        return self._worker.submit(self._bounced, target, source, after)

    def wait(self, ticket: torch.cuda.Event | Future) -> None:
        done = ticket.result() if isinstance(ticket, Future) else ticket
        torch.cuda.current_stream(self.device).wait_event(done)

    def settle(self) -> None:
        if self._worker is not None:
            self._worker.submit(lambda: None).result()
        self._side.synchronize()

    def _sent(self, after: torch.cuda.Event, send: Callable[[], object]) -> torch.cuda.Event:
        with torch.cuda.stream(self._side), torch.inference_mode():
            self._side.wait_event(after)
            send()
            return self._side.record_event()

    def _bounced(
        self, target: torch.Tensor, source: torch.Tensor, after: torch.cuda.Event
    ) -> torch.cuda.Event:
        """Copy by way of pinned memory, which the device reads while the next part is filled."""
        target, source = (t.view(torch.uint8) for t in (target, source))
        if not self._bounces:
            buffers = (torch.empty(BOUNCE, dtype=torch.uint8, pin_memory=True) for _ in range(2))
            self._bounces = [(buffer, torch.cuda.Event()) for buffer in buffers]
        with torch.cuda.device(self.device), torch.cuda.stream(self._side), torch.inference_mode():
            self._side.wait_event(after)
            for number, begin in enumerate(range(0, source.numel(), BOUNCE)):
                buffer, read = self._bounces[number % 2]
                read.synchronize()
                part = source[begin : begin + BOUNCE]
                buffer[: part.numel()].copy_(part)
                target[begin : begin + BOUNCE].copy_(buffer[: part.numel()], non_blocking=True)
                read.record(self._side)
            return self._side.record_event()


def lanes_of(device: torch.device) -> Lanes | None:
    """None where everything is in one memory."""
    return CudaLanes(device) if device.type == "cuda" else None
