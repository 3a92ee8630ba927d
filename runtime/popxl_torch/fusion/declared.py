"""Kernels that stand in for whole graphs.

A graph that the program declared (`popxl_torch.composite`), under a name and version that a kernel
knows and with the signature that it expects, is not run op by op: the kernel is called instead. The
graph remains the meaning; tests hold the kernel against it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from popxl.graph import Graph, Op

from popxl_torch.backends.back_end import BackEnd
from popxl_torch.collectives.mesh import Mesh

Run = Callable[..., torch.Tensor | None]
"""From a graph's inputs to its output; None where these tensors are left to the graph."""

Factory = Callable[[Graph, Mesh, BackEnd], Run | None]
"""Makes what runs one graph by the back end; None where the graph is not what is known."""

_FACTORIES: dict[tuple[str, int], Factory] = {}


def kernel_for(name: str, version: int = 1) -> Callable[[Factory], Factory]:
    """Register the kernel for graphs declared as `name` of that version."""

    def register(factory: Factory) -> Factory:
        _FACTORIES[name, version] = factory
        return factory

    return register


def is_declared(graph: Graph, name: str, version: int = 1) -> bool:
    """Whether the program declared that a graph, unchanged since, computes `name`."""
    declared = graph._declaration
    return declared is not None and (declared.name, declared.version) == (name, version)


def has_signature(
    graph: Graph,
    inputs: Iterable[tuple[str, tuple[int, ...]]],
    outputs: Iterable[tuple[str, tuple[int, ...]]],
    by_ref: tuple[int, ...] = (),
    attributes: Iterable[str] = (),
) -> bool:
    """Whether a declared graph has just these inputs and outputs, dtype and shape, and attributes.

    Args:
        by_ref: the inputs that are by reference.
        attributes: the names of the declared attributes.
    """
    declared = graph._declaration
    return (
        declared is not None
        and set(declared.attributes) == set(attributes)
        and [(t.dtype.name, t.shape) for t in graph.inputs] == list(inputs)
        and [(t.dtype.name, t.shape) for t in graph.outputs] == list(outputs)
        and tuple(i for i, t in enumerate(graph.inputs) if t in graph._by_ref_inputs) == by_ref
    )


class Declared(torch.nn.Module):
    """Runs a declared graph by a kernel, or as it is."""

    def __init__(self, run: Run, graph: torch.nn.Module):
        super().__init__()
        self.run, self.graph = run, graph

    def forward(self, *inputs: Any) -> tuple[torch.Tensor, ...]:
        done = self.run(*inputs)
        return self.graph(*inputs) if done is None else (done,)


def found_for(op: Op, mesh: Mesh, back_end: BackEnd, lowered: torch.nn.Module) -> Declared | None:
    """What runs the graph that `op` calls, if it is declared and known; else it is `lowered`."""
    graph = op.graphs[0]
    declared = graph._declaration
    factory = declared and _FACTORIES.get((declared.name, declared.version))
    run = factory(graph, mesh, back_end) if factory else None
    return None if run is None else Declared(run, lowered)
