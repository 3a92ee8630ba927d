"""Graphs that do the same work every time, kept as a list of prepared calls.

A token pass runs the same kernels on the same memory again and again; only the numbers in it
differ. So what a graph does is recorded once, below Python: native instructions with the addresses
they use, the torch ops between them, and what is exchanged with other processes. From then on the
list is run, a few native calls in all.

A recording holds where everything lies: results have memory of their own (`scratch.py`), inputs are
copied to where they were, and it is made anew when lasting memory has moved. What Python code
decided by the numbers of an input is a condition that is checked again; where it does not hold, the
graph is run as it was written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from popxl_torch.backends.cpu.library import Library
from popxl_torch.memory.cells import Cell
from popxl_torch.replay import decisions
from popxl_torch.replay.recorder import Recorder
from popxl_torch.replay.scratch import Copies, Scratch

MOST_TRIES = 4
"""Recordings that may become useless before a graph is no longer recorded."""

Arguments = tuple[Any, ...]


class Recorded(torch.nn.Module):
    """Runs a graph from a recording where there is one.

    Args:
        settled: whether lasting memory is where it stays, and need not be followed.
        constants: the inputs that are the same in every run.
        lasting: the inputs that are used where they lie, as long as they lie there.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        native: Library,
        scratch: Scratch,
        settled: Callable[[], bool],
        constants: frozenset[int] = frozenset(),
        lasting: frozenset[int] = frozenset(),
    ):
        super().__init__()
        self.module, self.native, self.scratch = module, native, scratch
        self.settled, self.constants, self.lasting = settled, constants, lasting
        self._used_in_place = constants | lasting
        self._recordings: dict[Any, _Recording] = {}
        self._runs, self._tries = 0, 0

    def forward(self, *inputs: Any) -> tuple[torch.Tensor, ...]:
        if not self._may_record(inputs):
            return self.module(*inputs)
        key = tuple(_key(x, i in self.lasting) for i, x in enumerate(inputs))
        recording = self._recordings.get(key)
        if recording is not None:
            outputs = recording.run(inputs) if recording.epoch == Cell.moves else None
            if outputs is not None:
                return outputs
            del self._recordings[key]
            return self.module(*inputs)
        self._runs += 1
        if self._runs == 1:  # memory that lasts finds its place
            return self.module(*inputs)
        return self._record(key, inputs)

    def _may_record(self, inputs: Arguments) -> bool:
        return (
            self._tries < MOST_TRIES
            and decisions.observer.get() is None
            and self.settled()
            and all(x.lasts if isinstance(x, Cell) else x.device.type == "cpu" for x in inputs)
        )

    def _record(self, key: Any, inputs: Arguments) -> tuple[torch.Tensor, ...]:
        self._tries += 1
        recorder = Recorder(self.native, self.scratch)
        fixed = tuple(
            x if i in self._used_in_place or isinstance(x, Cell) else x.clone()
            for i, x in enumerate(inputs)
        )
        for i, x in enumerate(fixed):
            if i in self.constants:
                recorder.stays(x)
        epoch = Cell.moves
        outputs = recorder.watch(self.module, fixed)
        if recorder.failed is not None:
            self._tries = MOST_TRIES
        elif epoch == Cell.moves:
            varying = [None if i in self._used_in_place else x for i, x in enumerate(fixed)]
            recorder.kept += [x for x in fixed if isinstance(x, torch.Tensor)]
            self._recordings[key] = _Recording(recorder, varying, outputs, epoch)
        return tuple(t.clone() for t in outputs)


def _key(x: Any, lasting: bool) -> Any:
    if isinstance(x, Cell):
        return x.tensor.data_ptr(), x.tensor.shape
    return x.data_ptr() if lasting else None, x.shape, x.stride(), x.dtype


class _Recording:
    """What a recorder wrote down, to be run on other inputs."""

    def __init__(
        self,
        recorder: Recorder,
        inputs: Sequence[Any],
        outputs: tuple[torch.Tensor, ...],
        epoch: int,
    ):
        self.steps, self.epoch = recorder.steps, epoch
        self._kept, self._inputs = recorder.kept, inputs
        self._outputs = [Copies(t) for t in outputs]

    def run(self, inputs: Arguments) -> tuple[torch.Tensor, ...] | None:
        """The outputs, in memory of their own; None where a decision no longer holds."""
        for fixed, given in zip(self._inputs, inputs, strict=True):
            if isinstance(fixed, torch.Tensor):
                fixed.copy_(given)
        for step in self.steps:
            if not step():
                return None
        return tuple(copies.copy() for copies in self._outputs)
