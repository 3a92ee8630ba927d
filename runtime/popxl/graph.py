"""A graph: inputs, ops in the order written, outputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from popxl.context import get_current_context
from popxl.tensor import Constant, Tensor, Variable

if TYPE_CHECKING:
    from popxl.ir import Ir


_handles = itertools.count(1)


@dataclass(eq=False)
class Op:
    """One step of a graph. `kind` says what it does, `attributes` all that is not a tensor."""

    kind: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    graphs: tuple[Graph, ...] = ()
    """The graphs it calls."""
    modifies: tuple[int, ...] = ()
    """Indices of the inputs it writes to."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["attributes"][name]
        except KeyError:
            raise AttributeError(
                f"op {self.__dict__.get('kind')} has no attribute {name}"
            ) from None


@dataclass(frozen=True)
class Declaration:
    """What a program says that a graph computes: an identifier, its version, and settings."""

    name: str
    version: int
    attributes: dict[str, Any]


class Graph:
    """A list of ops on tensors of its own; `with graph:` makes it current."""

    _ir: Ir
    _name: str
    _inputs: list[Tensor]
    _outputs: list[Tensor]
    _by_ref_inputs: set[Tensor]
    _ops: list[Op]
    _tensors: dict[str, Tensor]
    _name_counts: dict[str, int]
    _hooks: dict[int, Callable[[Op], Any]]
    _declared: tuple[Declaration, int] | None

    def __init__(self):
        raise RuntimeError("popxl.Graph cannot be constructed directly: use ir.create_graph")

    @classmethod
    def _make(cls, ir: Ir, name: str) -> Graph:
        self = super().__new__(cls)
        self._ir, self._name = ir, name
        self._hooks = {}
        self._inputs, self._outputs, self._by_ref_inputs = [], [], set()
        self._ops, self._tensors, self._name_counts = [], {}, {}
        self._declared = None
        return self

    @property
    def ir(self) -> Ir:
        return self._ir

    @property
    def id(self) -> str:
        return self._name

    @property
    def name(self) -> str:
        """Unique in the Ir; empty for the main graph."""
        return self._name

    @property
    def main_graph(self) -> Graph:
        return self._ir.main_graph

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return tuple(self._inputs)

    @property
    def inputs_by_name(self) -> dict[str, Tensor]:
        return {t.name: t for t in self._inputs}

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        return tuple(self._outputs)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(self._tensors.values())

    @property
    def variables(self) -> tuple[Variable, ...]:
        return tuple(t for t in self._tensors.values() if isinstance(t, Variable))

    @property
    def constants(self) -> tuple[Constant, ...]:
        return tuple(t for t in self._tensors.values() if isinstance(t, Constant))

    @property
    def called_graphs(self) -> tuple[Graph, ...]:
        """The graphs that its ops call, each once, in order of the first call."""
        return tuple(dict.fromkeys(g for op in self._ops for g in op.graphs))

    def get_tensor(self, tensor_id: str) -> Tensor:
        """The tensor with this id (or name).

        Raises:
            ValueError: where there is none.
        """
        prefix = f"{self._name}/" if self._name else ""
        found = self._tensors.get(tensor_id.removeprefix(prefix))
        if found is None:
            raise ValueError(f"graph {self._name or 'main'} has no tensor {tensor_id!r}")
        return found

    def register_op_created_hook(self, fn: Callable[[Op], Any]) -> int:
        """Have `fn` called with each op made in this graph from now on; returns a handle."""
        handle = next(_handles)
        self._hooks[handle] = fn
        return handle

    def remove_op_created_hook(self, handle: int) -> None:
        """Undo `register_op_created_hook`.

        Raises:
            ValueError: where there is no such hook.
        """
        if handle not in self._hooks:
            raise ValueError(f"graph {self._name or 'main'} has no hook {handle}")
        del self._hooks[handle]

    def _created(self, op: Op) -> None:
        for fn in list(self._hooks.values()):
            fn(op)

    def __contains__(self, tensor: object) -> bool:
        return isinstance(tensor, Tensor) and tensor._graph is self

    def __enter__(self) -> Graph:
        graphs = get_current_context().graphs
        if graphs and graphs[-1].ir is not self._ir:
            raise RuntimeError(
                f"graph {self._name or 'main'} of {self._ir} cannot be current inside graph "
                f"{graphs[-1].name or 'main'} of another Ir, {graphs[-1].ir}"
            )
        graphs.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        get_current_context().graphs.pop()

    def __repr__(self) -> str:
        return (
            f"Graph[{self._name or 'main'} inputs={len(self._inputs)} ops={len(self._ops)} "
            f"outputs={len(self._outputs)}]"
        )

    def _declare(self, declaration: Declaration) -> None:
        """Keep what the graph, complete as it is now, was declared to compute."""
        self._declared = declaration, self._extent()

    @property
    def _declaration(self) -> Declaration | None:
        """What it was declared to compute; None where nothing was, or it has grown since."""
        declared, extent = self._declared or (None, 0)
        return declared if extent == self._extent() else None

    def _extent(self) -> int:
        return len(self._ops) + len(self._inputs) + len(self._outputs)

    def _register(self, tensor: Tensor, name: str) -> str:
        """Keep a new tensor; returns its name, made unique."""
        count = self._name_counts.get(name, 0)
        self._name_counts[name] = count + 1
        unique = f"{name}__{count}" if count else name
        if unique in self._tensors:
            return self._register(tensor, name)
        self._tensors[unique] = tensor
        return unique

    def _check_owned(self, tensor: Tensor, where: str) -> None:
        if tensor._graph is not self:
            raise ValueError(
                f"{where}: tensor {tensor.name} belongs to graph "
                f"{tensor._graph.name or 'main'}, the current graph is {self._name or 'main'}: "
                "pass it in as a graph input"
            )
