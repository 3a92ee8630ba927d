"""Graphs that do the same work every time, captured once and then replayed.

A decode pass runs the same kernels on the same memory again and again; only the numbers in it
differ. So what a graph does is captured: on a CPU as a list of calls (`recorder.py`), on CUDA as a
CUDA graph. Here is when that is done, and when a capture is used.

A capture holds where everything lies: inputs are copied to where they were, and all captures of a
session are dropped when memory that lasts has moved. What Python code decided by the numbers of an
input is a condition that is checked again; where it does not hold, the graph is run as it was
written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from popxl_torch.memory.cells import Cell, Lasting
from popxl_torch.replay import decisions

FIRST_CAPTURES = 4
"""Captures that a graph has for nothing; for further ones earlier ones must have been of use."""

WORTH = 16
"""Replays that pay for a capture."""

MOST_HELD = 4
"""Captures of one graph, for inputs of different kinds or in different places."""

Outputs = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Captured:
    """What does again what a graph did.

    Attributes:
        again: does it; False, before anything is written, where what was decided no longer holds.
        outputs: each makes a copy of an output in memory of its own.
    """

    again: Callable[[], bool]
    outputs: Sequence[Callable[[], torch.Tensor]]


@dataclass(frozen=True)
class _Held:
    """A capture, the inputs that it reads, and which of these are to be filled."""

    captured: Captured
    inputs: tuple[Any, ...]
    varying: list[int]


class Capture(Protocol):
    """A way to capture what graphs do.

    Attributes:
        device: where captured graphs read their inputs.
    """

    device: torch.device

    def own(self, x: torch.Tensor) -> torch.Tensor:
        """A copy of an input, in memory that a capture reads."""

    def watch(
        self, module: torch.nn.Module, inputs: Sequence[Any], constants: Collection[int]
    ) -> tuple[Outputs, Callable[[], Captured | None] | None]:
        """Run a graph and see whether it can be captured.

        Args:
            constants: the inputs that are the same in every run.

        Returns:
            Its outputs, and what ends the capture, to be called where no memory has moved. None
            from either means that the graph can never be captured.
        """


class Replays:
    """What the replays of a session share.

    Args:
        capture: how graphs are captured; None where they are to be run as they are.
        memory: the session's.
        settled: whether memory that lasts is where it stays, and need not be followed.

    Attributes:
        captures: how many were made so far.
        replays: how many runs of graphs were replays.
    """

    def __init__(self, capture: Capture | None, memory: Lasting, settled: Callable[[], bool]):
        self.capture, self.memory, self.settled = capture, memory, settled
        self.captures, self.replays = 0, 0

    def of(
        self,
        module: torch.nn.Module,
        constants: frozenset[int] = frozenset(),
        lasting: frozenset[int] = frozenset(),
    ) -> torch.nn.Module:
        """What runs a lowered graph that does the same in every run, and replays it.

        Args:
            constants: the inputs that are the same in every run.
            lasting: the inputs that are used where they lie, as long as they lie there.
        """
        if self.capture is None:
            return module
        return Replayed(module, self, self.capture, constants, lasting)


class Replayed(torch.nn.Module):
    """Runs a graph as it is once, captures it in the next run, then replays it."""

    def __init__(
        self,
        module: torch.nn.Module,
        session: Replays,
        capture: Capture,
        constants: frozenset[int],
        lasting: frozenset[int],
    ):
        super().__init__()
        self.module, self.session, self.capture = module, session, capture
        self.constants, self.lasting = constants, lasting
        self._held: dict[Any, _Held] = {}  # by what they depend on
        self._moves = -1  # of the session's memory, when they were made
        self._ran, self._possible = False, True
        self._captures, self._replays = 0, 0

    def forward(self, *inputs: Any) -> Outputs:
        if not self._may_replay(inputs):
            return self.module(*inputs)
        if self._moves != self.session.memory.moves:
            self._held.clear()
            self._moves = self.session.memory.moves
        key = tuple(_key(x, i in self.lasting) for i, x in enumerate(inputs))
        held = self._held.get(key)
        if held is not None:
            return self._replay(key, held, inputs)
        if self._ran and self._captures < FIRST_CAPTURES + self._replays // WORTH:
            return self._capture(key, inputs)
        self._ran = True  # memory that lasts has found its place
        return self.module(*inputs)

    def _may_replay(self, inputs: tuple[Any, ...]) -> bool:
        return (
            self._possible
            and decisions.observer.get() is None  # else a larger part is being captured
            and self.session.settled()
            and all(x.lasting is not None for x in inputs if isinstance(x, Cell))
        )

    def _replay(self, key: Any, held: _Held, inputs: tuple[Any, ...]) -> Outputs:
        for i in held.varying:
            held.inputs[i].copy_(inputs[i], non_blocking=True)
        if not held.captured.again():
            del self._held[key]
            return self.module(*inputs)
        self._replays += 1
        self.session.replays += 1
        return tuple(copy() for copy in held.captured.outputs)

    def _capture(self, key: Any, inputs: tuple[Any, ...]) -> Outputs:
        self._captures += 1
        varying = [i for i, x in enumerate(inputs) if not self._stays(i, x)]
        fixed = tuple(self.capture.own(x) if i in varying else x for i, x in enumerate(inputs))
        outputs, end = self.capture.watch(self.module, fixed, self.constants)
        self._possible = end is not None
        if end is None or self._moves != self.session.memory.moves:
            return outputs
        captured = end()
        self._possible = captured is not None
        if captured is not None:
            self.session.captures += 1
            if len(self._held) == MOST_HELD:
                del self._held[next(iter(self._held))]
            self._held[key] = _Held(captured, fixed, varying)
        return outputs

    def _stays(self, index: int, x: Any) -> bool:
        """Whether an input is used where it lies."""
        if isinstance(x, Cell) or index in self.constants:
            return True
        return index in self.lasting and x.device == self.capture.device


def _key(x: Any, lasting: bool) -> Any:
    """What of an input a capture depends on; it keeps the cells that it was given."""
    if isinstance(x, Cell):
        return id(x)
    return x.data_ptr() if lasting else None, x.shape, x.stride(), x.dtype
