"""Graphs that do the same work every time, replayed as CUDA graphs.

A pass launches the same kernels on the same memory again and again. Here they are captured once and
then launched together. Inputs are copied to memory of their own before each replay, and results
after it; a capture is dropped when lasting memory has moved. A graph that decides by numbers on the
device cannot be captured and is run as it is.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable
from typing import Any

import torch

from popxl_torch.lowering.placement import move
from popxl_torch.memory.cells import Cell
from popxl_torch.replay.decisions import observer

CUDA_GRAPHS = "POPXL_CUDA_GRAPHS"
"""Environment variable: 0 turns CUDA graphs off."""

Outputs = tuple[torch.Tensor, ...]
Capture = Callable[[Callable[[], Outputs]], tuple[Callable[[], Any], Outputs]]
"""Captures what a function does on the device: what replays it, and where its results then are."""


def enabled(device: torch.device) -> bool:
    """Whether CUDA graphs are wanted, and the device is no CPU."""
    return device.type != "cpu" and os.environ.get(CUDA_GRAPHS, "1") != "0"


def sum_in_float32() -> None:
    """Let products of 16 bits be summed up in float32 also where cuBLAS sums in several parts."""
    products = torch.backends.cuda.matmul
    products.allow_bf16_reduced_precision_reduction = False
    products.allow_fp16_reduced_precision_reduction = False


class CudaCapture:
    """A `Capture` by CUDA, of graphs of which one is replayed at a time.

    They share their memory: a replay's is the next one's, as inputs lie elsewhere and results are
    copied at once. PyTorch has the graphs that were captured on one stream share the workspace of
    cuBLAS, and gives it back with the first graph that is dropped
    (https://github.com/pytorch/pytorch/issues/193402); so the stream is theirs alone, and what is
    given back is memory that the others still hold.
    """

    def __init__(self) -> None:
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, run: Callable[[], Outputs]) -> tuple[Callable[[], Any], Outputs]:
        """Capture a graph.

        Raises:
            RuntimeError: with what cannot be captured; the stream is then the one it was.
        """
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        pool = next((other.pool() for other in self._graphs), None)
        try:
            # What other threads ask of a device meanwhile is no business of the capture.
            with torch.cuda.graph(graph, pool, self._stream, capture_error_mode="thread_local"):
                outputs = run()
        except RuntimeError as error:
            torch.cuda.set_stream(stream)  # PyTorch leaves it at the capture's when that cannot end
            reason = error.__context__  # of `run`, where ending the capture has failed for it
            raise reason if isinstance(reason, RuntimeError) else error from None
        self._graphs.add(graph)
        return graph.replay, outputs


class Graphed(torch.nn.Module):
    """Runs a graph as it is once, once more to see whether it can be captured, then replays it.

    Args:
        device: where inputs are for a replay.
        constants: the inputs that are the same in every run, and stay where they are.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        device: torch.device,
        capture: Capture,
        constants: frozenset[int] = frozenset(),
    ):
        super().__init__()
        self.module, self.device, self.capture = module, device, capture
        self.constants = constants
        self._captured: _Captured | None = None
        self._tried, self._possible = False, True

    def forward(self, *inputs: Any) -> Outputs:
        if not self._possible or not all(x.lasts for x in inputs if isinstance(x, Cell)):
            return self.module(*inputs)
        if self._captured is not None and self._captured.holds(inputs):
            return self._captured.run(inputs)
        self._captured = None
        if not self._tried:  # memory that lasts finds its place
            self._tried = True
            return self.module(*inputs)
        self._tried = False
        return self._run_and_capture(inputs)

    def _run_and_capture(self, inputs: tuple[Any, ...]) -> Outputs:
        fixed = tuple(
            x if i in self.constants or isinstance(x, Cell) else move(x, self.device).clone()
            for i, x in enumerate(inputs)
        )
        moves = Cell.moves
        outputs = self._observed(fixed)
        if self._possible and moves == Cell.moves:
            try:
                replay, results = self.capture(lambda: self.module(*fixed))
                varying = tuple(None if i in self.constants else x for i, x in enumerate(fixed))
                self._captured = _Captured(varying, replay, results)
            except RuntimeError as error:
                self._possible = False
                reason = str(error).splitlines()[0]
                logging.getLogger(__name__).warning("run without a CUDA graph: %s", reason)
        return outputs

    def _observed(self, inputs: tuple[Any, ...]) -> Outputs:
        """Run, and see whether numbers on the device are decided by."""

        def decided(tensor: torch.Tensor, values: Any) -> None:
            self._possible &= tensor.device != self.device

        token = observer.set(decided)
        try:
            return self.module(*inputs)
        finally:
            observer.reset(token)


class _Captured:
    """A capture, the inputs that it reads and the outputs that it writes.

    Args:
        inputs: None for those that are the same in every run.
    """

    def __init__(self, inputs: tuple[Any, ...], replay: Callable[[], Any], outputs: Outputs):
        self._inputs, self._replay, self._outputs = inputs, replay, outputs
        self._moves = Cell.moves

    def holds(self, inputs: tuple[Any, ...]) -> bool:
        """Whether memory is where it was, and `inputs` are of the same kind."""
        pairs = zip(self._inputs, inputs, strict=True)
        return self._moves == Cell.moves and all(self._fits(*pair) for pair in pairs)

    @staticmethod
    def _fits(fixed: Any, given: Any) -> bool:
        if isinstance(fixed, torch.Tensor):
            return (given.shape, given.dtype) == (fixed.shape, fixed.dtype)
        return fixed is None or given is fixed

    def run(self, inputs: tuple[Any, ...]) -> Outputs:
        for fixed, given in zip(self._inputs, inputs, strict=True):
            if isinstance(fixed, torch.Tensor):
                fixed.copy_(given, non_blocking=True)
        self._replay()
        return tuple(t.clone() for t in self._outputs)
