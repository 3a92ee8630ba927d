"""Graphs whose inputs have names, and graphs with inputs bound to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import popxl
from popxl import ops
from popxl_shared.absent import GRADIENTS, absent

from .dot_tree import to_mapping
from .named_tensors import NamedTensors, TensorMap

if TYPE_CHECKING:
    from .module import Module

Argument = popxl.Tensor | Iterable[popxl.Tensor] | int | float
"""A positional input of a call: numbers are made into constants of the input's dtype."""


class BoundGraph:
    """A graph and the tensors that some of its inputs get at every call."""

    def __init__(self, graph: popxl.Graph, args: TensorMap | None = None):
        self.graph = graph
        self.args: dict[popxl.Tensor, popxl.Tensor] = dict(args or {})

    def bind(self, args: TensorMap) -> BoundGraph:
        """The same graph with more of its inputs bound; `args` win over what was bound."""
        return BoundGraph(self.graph, {**self.args, **args})

    def call(self, *targs: Argument, args: TensorMap | None = None) -> tuple[popxl.Tensor, ...]:
        """Call the graph in the current graph.

        Args:
            targs: its first inputs.
            args: from its inputs to tensors; these win over what is bound.

        Returns:
            Its outputs, always as a tuple.
        """
        return tuple(self.call_with_info(*targs, args=args).outputs)

    def call_with_info(
        self, *targs: Argument, args: TensorMap | None = None
    ) -> popxl.ops.CallSiteInfo:
        """`call`, giving what is known of the call instead of its outputs."""
        inputs = {**self.args, **(args or {})}
        return ops.call_with_info(self.graph, *self._positional(targs), inputs_dict=inputs)

    def subgraph_io_map(
        self,
        *targs: popxl.Tensor,
        args: TensorMap | None = None,
        outs: Iterable[popxl.Tensor] | None = None,
    ) -> dict[popxl.Tensor, popxl.Tensor]:
        """From the graph's inputs and outputs to the caller's tensors, for a call like this."""
        return {
            **dict(zip(self.graph.outputs, outs or (), strict=False)),
            **self.args,
            **(args or {}),
            **dict(zip(self.graph.inputs, targs, strict=False)),
        }

    def _positional(self, targs: Iterable[Any]) -> list[popxl.Tensor]:
        flat: list[Any] = []
        for arg in targs:
            flat.extend(arg if isinstance(arg, (list, tuple)) else [arg])
        wanted = self.graph.inputs
        if len(flat) > len(wanted):
            raise ValueError(
                f"graph {self.graph.name} has {len(wanted)} inputs, {len(flat)} were given"
            )
        return [
            arg if isinstance(arg, popxl.Tensor) else popxl.constant(arg, wanted[i].dtype)
            for i, arg in enumerate(flat)
        ]


class GraphWithNamedArgs:
    """A graph and the names of those of its inputs that variables go to."""

    def __init__(
        self,
        graph: popxl.Graph,
        args: NamedTensors | None = None,
        grad_graph_info: Any = None,
        from_module: Module | None = None,
        aux: Any = None,
        called_graphs_grad_info: Mapping[Any, Any] | None = None,
    ):
        """
        Args:
            args: inputs of `graph`, by name.
            from_module: the module that made the graph.
            grad_graph_info, aux, called_graphs_grad_info: of gradient graphs; only None.

        Raises:
            NotImplementedError: where something of a gradient graph is given.
        """
        if grad_graph_info or aux or called_graphs_grad_info:
            raise NotImplementedError(
                "gradient graphs are not supported: programs here are forward only"
            )
        self.graph = graph
        self.args = args if args is not None else NamedTensors()
        self._from_module = from_module

    autodiff = absent("GraphWithNamedArgs.autodiff", GRADIENTS)

    def bind(self, args: NamedTensors | None = None) -> BoundGraph:
        """The graph with tensors for the inputs that have the same names as they."""
        return BoundGraph(self.graph, to_mapping(self.args, args) if args is not None else None)

    def call(self, *targs: Argument, args: TensorMap | None = None) -> tuple[popxl.Tensor, ...]:
        """Call the graph with nothing bound; see `BoundGraph.call`."""
        return self.bind().call(*targs, args=args)

    def call_with_info(
        self, *targs: Argument, args: TensorMap | None = None
    ) -> popxl.ops.CallSiteInfo:
        """Call the graph with nothing bound; see `BoundGraph.call_with_info`."""
        return self.bind().call_with_info(*targs, args=args)

    def copy(self) -> GraphWithNamedArgs:
        """The same graph, with a tree of names of its own."""
        return GraphWithNamedArgs(self.graph, self.args.copy(), from_module=self._from_module)

    def print_schedule(self) -> str:
        """The graph as text, which is returned, not printed: inputs with their names, and ops."""
        numbers: dict[str, int] = {}

        def number(tensor: popxl.Tensor) -> str:
            return f"%{numbers.setdefault(tensor.id, len(numbers) + 1)}"

        def listed(tensors: Iterable[popxl.Tensor]) -> str:
            return ", ".join(f"{number(t)} [{t.shape} {t.dtype.name}]" for t in tensors)

        names = {tensor: f"{name}=" for name, tensor in self.args.to_dict().items()}
        inputs = ", ".join(f"{names.get(t, '')}{number(t)}" for t in self.graph.inputs)
        lines = []
        for op in self.graph._ops:
            called = "".join(f"({graph.name})" for graph in op.graphs)
            lines.append(f"    {op.kind}{called} ({listed(op.inputs)}) -> ({listed(op.outputs)})")
        outputs = ", ".join(number(t) for t in self.graph.outputs)
        head = f"Graph : {self.graph.name}\n  ({inputs}) -> ({outputs}) {{"
        return "\n".join([head, *lines, "  }"])
