"""Captures on CUDA: the kernels that a graph launches, launched together by a replay."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from popxl_torch.lowering.placement import move
from popxl_torch.replay.decisions import observer
from popxl_torch.replay.replay import Captured, Outputs

CUDA_GRAPHS = "POPXL_CUDA_GRAPHS"
"""Environment variable: 0 turns CUDA graphs off."""

Record = Callable[[Callable[[], Outputs]], tuple[Callable[[], Any], Outputs]]
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
    """A `Record` by CUDA, of graphs of which one is replayed at a time.

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


class CudaGraphs:
    """A `Capture` of CUDA graphs.

    A graph that decides by numbers on the device cannot be captured.

    Args:
        record: what captures one, a `CudaCapture`.
    """

    def __init__(self, device: torch.device, record: Record):
        self.device, self._record = device, record

    def own(self, x: torch.Tensor) -> torch.Tensor:
        return move(x, self.device).clone()

    def watch(
        self, module: torch.nn.Module, inputs: Sequence[Any], constants: Collection[int]
    ) -> tuple[Outputs, Callable[[], Captured | None] | None]:
        decisions = []  # by numbers on the device

        def decided(tensor: torch.Tensor, values: Any) -> None:
            if tensor.device == self.device:
                decisions.append(values)

        token = observer.set(decided)
        try:
            outputs = module(*inputs)
        finally:
            observer.reset(token)
        return outputs, None if decisions else lambda: self._captured(module, inputs)

    def _captured(self, module: torch.nn.Module, inputs: Sequence[Any]) -> Captured | None:
        try:
            replay, outputs = self._record(lambda: module(*inputs))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            logging.getLogger(__name__).warning("run without a CUDA graph: %s", reason)
            return None
        return Captured(lambda: replay() is None or True, [t.clone for t in outputs])
