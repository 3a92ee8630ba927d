"""Pipelining: stages of a program, each on an IPU of its own, that work on several steps at once.

Here a replica is one device, so the stages of one step run in order, then those of the next. The
values are those of a pipeline as long as no stage sees what another one keeps; a program where one
does is refused. `popxl_addons` offers this under PopXL's name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from popxl_shared.absent import GRADIENTS, absent

from popxl.context import get_current_graph
from popxl.graph import Op
from popxl.rewriting import repeat_ops
from popxl.tensor import Tensor


class StageContext:
    """What `pipelined_execution` gives: it marks the stages of the program."""

    def __init__(self) -> None:
        self._stage: int | None = None
        self.ops: dict[int, list[Op]] = defaultdict(list)

    @contextmanager
    def stage(self, i: int) -> Iterator[None]:
        """Let the ops made inside belong to stage `i`."""
        before, self._stage = self._stage, i
        try:
            yield
        finally:
            self._stage = before

    def stash_and_restore_tensor(self, t: Tensor, from_stage: int | None = None) -> Tensor:
        """What `t` was in the step that this stage works on: `t` itself here.

        Raises:
            RuntimeError: outside of a stage.
        """
        if self._stage is None:
            raise RuntimeError("stash_and_restore_tensor belongs into `with pipeline.stage(i):`")
        return t

    stash_and_restore_activations = absent(
        "popxl_addons.pipelined_execution: stash_and_restore_activations", GRADIENTS
    )

    def _created(self, op: Op) -> None:
        if self._stage is None:
            raise RuntimeError(f"{op.kind} is in no stage: make it in `with pipeline.stage(i):`")
        self.ops[self._stage].append(op)


@contextmanager
def pipelined_execution(steps: int) -> Iterator[StageContext]:
    """Run the ops made inside `steps` times, as a pipeline of the stages that are marked.

        with addons.pipelined_execution(8) as pipeline:
            with pipeline.stage(0), popxl.ipu(0):
                x = ops.host_load(stream).copy_to_ipu(1)
            with pipeline.stage(1), popxl.ipu(1):
                ops.host_store(results, x + 1)

    What is made inside cannot be used outside.

    Raises:
        RuntimeError: for an op outside of a stage.
        ValueError: for fewer steps than twice the stages; where a stage uses a later one's tensor.
        NotImplementedError: where a stage writes to a variable, buffer or stream that another one
            uses: they are at different steps at that time, which is not done here.
    """
    graph = get_current_graph()
    stages = StageContext()
    hook = graph.register_op_created_hook(stages._created)
    try:
        yield stages
    finally:
        graph.remove_op_created_hook(hook)
    numbers = sorted(stages.ops)
    if steps < 2 * len(numbers):
        raise ValueError(
            f"pipelined_execution: {len(numbers)} stages need at least {2 * len(numbers)} steps, "
            f"got {steps}"
        )
    _check_order(stages.ops)
    _check_apart(stages.ops)
    if numbers:
        repeat_ops(graph, (op for i in numbers for op in stages.ops[i]), steps, "pipeline")


def _check_order(stages: dict[int, list[Op]]) -> None:
    made_in = {t: stage for stage, ops in stages.items() for op in ops for t in op.outputs}
    for stage, ops in stages.items():
        for t in (t for op in ops for t in op.inputs):
            if made_in.get(t, stage) > stage:
                raise ValueError(
                    f"pipelined_execution: stage {stage} uses {t.name}, which stage {made_in[t]} "
                    "makes later"
                )


def _check_apart(stages: dict[int, list[Op]]) -> None:
    """No stage may write to what lasts and another uses."""
    outside = _outside({t: op for ops in stages.values() for op in ops for t in op.outputs})
    users: dict[Any, set[int]] = defaultdict(set)
    written: dict[Any, int] = {}
    for stage, ops in stages.items():
        for op in ops:
            for at, t in enumerate(op.inputs):
                for kept in outside(t):
                    users[kept].add(stage)
                    if at in op.modifies:
                        written[kept] = stage
            for place, writes in _places(op):
                users[place].add(stage)
                if writes:
                    written[place] = stage
    for kept, stage in written.items():
        others = users[kept] - {stage}
        if others:
            raise NotImplementedError(
                f"pipelined_execution: stage {stage} writes to {kept}, which stage {min(others)} "
                "uses, too: in a pipeline they are at different steps, which is not done here"
            )


def _outside(makers: dict[Tensor, Op]) -> Callable[[Tensor], set[Tensor]]:
    """A function that gives the tensors from outside whose elements a tensor shares."""

    def roots(t: Tensor) -> set[Tensor]:
        if t not in makers:
            return {t}
        op = makers[t]
        return set().union(*map(roots, op.inputs)) if op.attributes.get("alias") else set()

    return roots


def _places(op: Op) -> Iterator[tuple[Any, bool]]:
    """The streams and remote buffers that an op uses, and whether it changes what others find."""
    for name in ("stream", "buffer"):
        if name in op.attributes:
            yield op.attributes[name], not op.kind.startswith("remote_load")
    for graph in op.graphs:
        for below in graph._ops:
            yield from _places(below)
