"""Captures on a CPU: what a graph does, written down below Python while it is done.

That is native instructions with the addresses they use, the torch ops between them, and what is
exchanged with other processes. A replay runs the list, a few native calls in all. Results have
memory of their own (`scratch.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten

from popxl_torch.backends.cpu.library import Library, Program
from popxl_torch.backends.cpu.library import observer as instructions
from popxl_torch.backends.cpu.structs import Instruction
from popxl_torch.replay import decisions, effects
from popxl_torch.replay.replay import Captured, Outputs
from popxl_torch.replay.scratch import Copies, Scratch

MOST_BYTES = 150_000_000
"""Memory that a recording may add for its results, to the blocks that earlier ones made: enough for
two copies of BLOOM's logits of 64 slots. What needs more computes so long that Python costs
nothing beside it.
"""

_DATA_DEPENDENT = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}


class CallLists:
    """A `Capture` of lists of calls, of graphs of which one is replayed at a time.

    Args:
        native: whose instructions are written down.
    """

    device = torch.device("cpu")

    def __init__(self, native: Library):
        self._native, self._scratch = native, Scratch()

    def own(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    def watch(
        self, module: torch.nn.Module, inputs: Sequence[Any], constants: Collection[int]
    ) -> tuple[Outputs, Callable[[], Captured] | None]:
        recorder = Recorder(self._native, self._scratch)
        for i in constants:
            recorder.stays(inputs[i])
        made = recorder.watch(module, inputs)
        outputs = tuple(t.clone() for t in made)

        def end() -> Captured:
            return Captured(recorder.again, [Copies(t).copy for t in made])

        return outputs, None if recorder.failed else end


class Recorder(TorchDispatchMode):
    """Writes down what is done while it is on.

    Attributes:
        steps: functions that do it again; each returns whether what was decided still holds.
        kept: what must stay in memory for that.
        failed: why it cannot be done again.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch's compiler never sees this mode; to tell it so would import it, about a second."""
        return False

    def __init__(self, native: Library, scratch: Scratch):
        super().__init__()
        self.native, self.scratch = native, scratch
        self._found = len(scratch)  # blocks that other recordings use, too
        self.steps: list[Callable[[], bool]] = []
        self.failed: str | None = None
        self._program: Program | None = None
        self.kept: list[torch.Tensor] = []
        self._bytes = 0
        self._constant: set[int] = set()  # storages whose numbers are the same in every run
        self._written = False

    def again(self) -> bool:
        """Do it again; False, before anything is written, where a decision no longer holds."""
        for step in self.steps:  # noqa: SIM110 - a generator would take a call a step
            if not step():
                return False
        return True

    def watch(self, module: torch.nn.Module, inputs: Sequence[Any]) -> Outputs:
        """Run `module`, whose buffers are the program's constants."""
        for constant in module.buffers():
            self.stays(constant)
        tokens = (
            decisions.observer.set(self.decided),
            instructions.set(self.instruction),
            effects.observer.set(self.effect),
        )
        try:
            with self:
                return module(*inputs)
        finally:
            decisions.observer.reset(tokens[0])
            instructions.reset(tokens[1])
            effects.observer.reset(tokens[2])

    def _fail(self, reason: str) -> None:
        """Stop, and hold nothing any more."""
        self.failed = reason
        self.steps, self.kept = [], []
        self.scratch.forget(self._found)

    def stays(self, tensor: torch.Tensor) -> None:
        """Its numbers are the same in every run; those of any other tensor may differ."""
        self._constant.add(_storage(tensor))
        self.kept.append(tensor)

    def decided(self, tensor: torch.Tensor, values: Any) -> None:
        """Python code decided by the numbers of a tensor."""
        if self.failed or _storage(tensor) in self._constant:
            return
        if self._written:
            self._fail("a decision after the first write")
        else:
            self._step(lambda: tensor.tolist() == values)

    def instruction(self, kind: Instruction, fields: bytes, result: torch.Tensor) -> None:
        """A native instruction was run."""
        if self.failed:
            return
        self._written = True
        if self._program is None:
            self._program = Program(self.native)
            self.steps.append(self._program.run)
        self._program.add(kind, fields)

    def effect(self, effect: effects.Effect, written: tuple[torch.Tensor, ...]) -> None:
        """Something is to be done beside computing."""
        with _disable_current_modes():
            effect()
        if self.failed:
            return
        self._written = True
        self._step(lambda: effect() is not None or True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.failed:
            return func(*args, **kwargs)
        if func is torch.ops.aten.empty.memory_format and not _unusual(kwargs):
            return self._empty(args[0], kwargs.get("dtype") or torch.get_default_dtype())
        result = func(*args, **kwargs)
        given = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
        made = [t for t in tree_flatten(result)[0] if isinstance(t, torch.Tensor)]
        if func is torch.ops.aten._local_scalar_dense.default:
            self.decided(given[0], result)
            return result
        self._check(func, given)
        if not self.failed:
            self._note(func, args, kwargs, given, made)
        return result

    def _empty(self, shape: Any, dtype: torch.dtype) -> torch.Tensor:
        made = self.scratch.empty(tuple(shape), dtype)
        if self.scratch.bytes(self._found) > MOST_BYTES:
            self._fail("intermediate results take too much memory")
        return made

    def _check(self, func: Any, given: list[torch.Tensor]) -> None:
        if func is torch.ops.aten.index.Tensor:
            depends = any(t.dtype == torch.bool for t in given[1:])
        else:
            depends = not _DATA_DEPENDENT.isdisjoint(func.tags)
        if depends:
            self._fail(f"the shape of what {func.name()} gives depends on numbers")

    def _note(
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        given: list[torch.Tensor],
        made: list[torch.Tensor],
    ) -> None:
        known = {_storage(t) for t in given}
        new = [t for t in made if _storage(t) not in known]
        self._keep([*given, *made], new)
        if func._schema.is_mutable:
            self._note_write(lambda: func(*args, **kwargs), known)
        elif new and "empty" not in func.name():
            if len(new) != len(made):
                self._fail(f"{func.name()} gives views and values")
            elif known and known <= self._constant:
                self._constant.update(map(_storage, new))
            else:
                self._step(lambda: _again(func, args, kwargs, made))

    def _note_write(self, write: Callable[[], Any], known: set[int]) -> None:
        if known & self._constant:
            self._fail("a constant is written to")
            return
        self._written = True
        self._step(lambda: write() is not None or True)

    def _keep(self, tensors: list[torch.Tensor], new: list[torch.Tensor]) -> None:
        self.kept.extend(t for t in tensors if not self.scratch.holds(t))
        self._bytes += sum(t.nbytes for t in new)
        if self._bytes > MOST_BYTES:
            self._fail("its results take too much memory")

    def _step(self, step: Callable[[], bool]) -> None:
        if self.failed:
            return
        self._program = None
        self.steps.append(step)


def _again(func: Any, args: Any, kwargs: Any, made: list[torch.Tensor]) -> bool:
    """Do an op anew, its results where they were."""
    result = func(*args, **kwargs)
    if isinstance(result, torch.Tensor):
        made[0].copy_(result)
        return True
    results = [t for t in tree_flatten(result)[0] if isinstance(t, torch.Tensor)]
    for held, new in zip(made, results, strict=True):
        held.copy_(new)
    return True


def _unusual(options: dict[str, Any]) -> bool:
    """Whether memory is asked for that is no plain one of the CPU."""
    device = options.get("device")
    return (
        (device is not None and torch.device(device).type != "cpu")
        or options.get("layout") not in (None, torch.strided)
        or options.get("memory_format") not in (None, torch.contiguous_format)
        or bool(options.get("pin_memory"))
    )


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
