"""The call of a module as a graph of its own, from inside another module."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import popxl

if TYPE_CHECKING:
    from .module import Module


class ModuleCall:
    """Calling it makes a graph of a module and calls that in the caller's graph."""

    def __init__(self, caller: Module, callee: Module, name: str):
        self.caller, self.callee, self.name = caller, callee, name

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[popxl.Tensor, ...]:
        self.var_factories, self.graph = self.callee.create_graph(*args, **kwargs)
        variables = self.caller.add_variable_inputs(self.name, self.var_factories)
        bound = inspect.signature(self.callee.build).bind(*args, **kwargs)
        return self.graph.bind(variables).call(*_tensors(bound.arguments.values()))


def _tensors(values: Iterable[Any]) -> Iterator[popxl.Tensor]:
    """The tensors in arguments and in lists among them, in the order of the graph's inputs."""
    for value in values:
        if isinstance(value, popxl.Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value.values())
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
