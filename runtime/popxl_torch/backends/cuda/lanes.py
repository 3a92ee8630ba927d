"""The streams of a GPU, one that computes and one of copies each way, and what orders them.

Copies one way are done in the order they are asked for, those of both ways at the same time.

Tests put another in its place that writes down what it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

import torch

from popxl_torch.memory.system import available_memory

BOUNCE = 1 << 26
"""Bytes of each of the two pinned buffers through which memory that is not pinned is copied."""

LEFT_TO_OTHERS = 0.1
"""The share of the host's available memory that is not pinned."""


Ticket: TypeAlias = "torch.cuda.Event | Future"
"""Of CUDA: when a copy is done, which may still have to be asked for."""


class Lanes(Protocol):
    """What streaming asks of a device. Marks and tickets are whatever it likes them to be.

    A copy begins when all the marks and tickets that it is given are done.
    """

    device: torch.device

    def free_bytes(self) -> int:
        """Of the device's memory."""

    def allocate(self, size: int) -> torch.Tensor:
        """Bytes of the device's memory."""

    def pinned(self, source: torch.Tensor) -> torch.Tensor:
        """`source`, or a copy of it that the device copies from faster, where there is room."""

    def host_memory(self, size: int) -> torch.Tensor:
        """Bytes of the host's memory, pinned where there is room."""

    def mark(self) -> Any:
        """All that the computing stream has been given so far."""

    def copy(self, target: torch.Tensor, source: torch.Tensor, *after: Any) -> Any:
        """Copy to the device beside the computing; returns a ticket."""

    def copy_back(self, target: torch.Tensor, source: torch.Tensor, *after: Any) -> Any:
        """Copy to the host, likewise."""

    def wait(self, ticket: Any) -> None:
        """Let the computing stream go on only when the ticket's copy is done."""

    def settle(self) -> None:
        """Return when no copy is under way."""


class CudaLanes:
    """The lanes of a CUDA device."""

    def __init__(self, device: torch.device):
        self.device = device
        self._inward, self._outward = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._worker: ThreadPoolExecutor | None = None
        self._bounces: list[tuple[torch.Tensor, torch.cuda.Event]] = []

    def free_bytes(self) -> int:
        with torch.cuda.device(self.device):
            torch.cuda.empty_cache()  # what another session has left counts as used
            return torch.cuda.mem_get_info()[0]

    def allocate(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def pinned(self, source: torch.Tensor) -> torch.Tensor:
        if source.is_pinned():
            return source
        memory = _pinned(source.nbytes)
        return source if memory is None else memory.view(source.dtype).copy_(source)

    def host_memory(self, size: int) -> torch.Tensor:
        memory = _pinned(size)
        return torch.empty(size, dtype=torch.uint8) if memory is None else memory

    def mark(self) -> torch.cuda.Event:
        return torch.cuda.current_stream(self.device).record_event()

    def copy(self, target: torch.Tensor, source: torch.Tensor, *after: Ticket) -> Ticket:
        _keep(target, self._inward)
        if source.is_pinned():
            return self._in_turn(self._sent, self._inward, target, source, after)
        return self._by_worker(self._bounced, target, source, after)

    def copy_back(self, target: torch.Tensor, source: torch.Tensor, *after: Ticket) -> Ticket:
        _keep(source, self._outward)
        if target.is_pinned():
            return self._in_turn(self._sent, self._outward, target, source, after)
        return self._by_worker(self._bounced_back, target, source, after)

    def wait(self, ticket: Ticket) -> None:
        torch.cuda.current_stream(self.device).wait_event(_event(ticket))

    def settle(self) -> None:
        if self._worker is not None:
            self._worker.submit(lambda: None).result()
        self._inward.synchronize()
        self._outward.synchronize()

    def _in_turn(self, copy: Callable[..., torch.cuda.Event], *args: Any) -> Ticket:
        """Ask for a copy here, or after those that the worker has still to do."""
        return copy(*args) if self._worker is None else self._by_worker(copy, *args)

    def _by_worker(self, copy: Callable[..., torch.cuda.Event], *args: Any) -> Future:
        if self._worker is None:  # it reads files while this thread goes on giving work
            self._worker = ThreadPoolExecutor(1, "popxl-copies")
        return self._worker.submit(copy, *args)

    @contextmanager
    def _aside(self, stream: torch.cuda.Stream, after: tuple[Ticket, ...]) -> Iterator[None]:
        """What is done inside is done by a stream of copies, once `after` is done."""
        with torch.cuda.device(self.device), torch.cuda.stream(stream), torch.inference_mode():
            for ticket in after:
                stream.wait_event(_event(ticket))
            yield

    def _sent(
        self,
        stream: torch.cuda.Stream,
        target: torch.Tensor,
        source: torch.Tensor,
        after: tuple[Ticket, ...],
    ) -> torch.cuda.Event:
        with self._aside(stream, after):
            target.copy_(source, non_blocking=True)
            return stream.record_event()

    def _bounced(
        self, target: torch.Tensor, source: torch.Tensor, after: tuple[Ticket, ...]
    ) -> torch.cuda.Event:
        """Copy by way of pinned memory, which the device reads while the next part is filled."""
        target, source = (t.view(torch.uint8) for t in (target, source))
        with self._aside(self._inward, after):
            for number, begin in enumerate(range(0, source.numel(), BOUNCE)):
                buffer, used = self._buffers()[number % 2]
                used.synchronize()
                part = source[begin : begin + BOUNCE]
                buffer[: part.numel()].copy_(part)
                target[begin : begin + BOUNCE].copy_(buffer[: part.numel()], non_blocking=True)
                used.record(self._inward)
            return self._inward.record_event()

    def _bounced_back(
        self, target: torch.Tensor, source: torch.Tensor, after: tuple[Ticket, ...]
    ) -> torch.cuda.Event:
        """The other way; done when the ticket is there."""
        target, source = (t.view(torch.uint8) for t in (target, source))
        with self._aside(self._outward, after):
            for begin in range(0, source.numel(), BOUNCE):
                buffer, used = self._buffers()[0]
                part = source[begin : begin + BOUNCE]
                used.synchronize()
                buffer[: part.numel()].copy_(part, non_blocking=True)
                used.record(self._outward)
                used.synchronize()
                target[begin : begin + BOUNCE].copy_(buffer[: part.numel()])
            return self._outward.record_event()

    def _buffers(self) -> list[tuple[torch.Tensor, torch.cuda.Event]]:
        if not self._bounces:
            buffers = (torch.empty(BOUNCE, dtype=torch.uint8, pin_memory=True) for _ in range(2))
            self._bounces = [(buffer, torch.cuda.Event()) for buffer in buffers]
        return self._bounces


def _keep(memory: torch.Tensor, stream: torch.cuda.Stream) -> None:
    """Nobody is given this memory before a stream is done with it, should it be freed."""
    if memory.is_cuda:
        memory.record_stream(stream)


def _event(ticket: Ticket) -> torch.cuda.Event:
    return ticket.result() if isinstance(ticket, Future) else ticket


def _pinned(size: int) -> torch.Tensor | None:
    """Pinned bytes of the host, where there is room for them and the system gives them."""
    taken = 1 << max(size - 1, 0).bit_length()  # PyTorch pins powers of two
    if taken > (1 - LEFT_TO_OTHERS) * available_memory():
        return None
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    except RuntimeError:  # a system may allow less than there is
        return None


def lanes_of(device: torch.device) -> Lanes | None:
    """None where everything is in one memory."""
    return CudaLanes(device) if device.type == "cuda" else None
