"""Graphs made once and used wherever a function is called in the same way."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import popxl
from popxl.context import get_current_context

from .graph import BoundGraph, GraphWithNamedArgs


class GraphCache:
    """The graphs of functions, one for each Ir, place in a replica and way of calling them.

    Modules that have a `__hash__` of their own share graphs where it gives the same.
    It keeps neither an Ir nor a graph alive, so it may live as long as the program.
    """

    def __init__(self) -> None:
        self._graphs: Any = weakref.WeakKeyDictionary()

    def create_graph(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> popxl.Graph:
        """`ir.create_graph` in the current Ir, or what it gave for arguments like these.

        Raises:
            TypeError: for an argument that cannot be told from another.
        """
        ir = popxl.gir()
        graphs = self._graphs.setdefault(ir, weakref.WeakValueDictionary())
        key = _function_key(fn), get_current_context().place, call_key(fn, *args, **kwargs)
        graph = graphs.get(key)
        if graph is None:
            graph = graphs[key] = ir.create_graph(fn, *args, **kwargs)
        return graph


def call_key(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Hashable:
    """Equal for calls of `fn` that give the same graph: tensors count by shape and dtype.

    Raises:
        TypeError: for an argument that is neither a tensor nor hashable.
    """
    bound = inspect.signature(fn).bind(*args, **kwargs)
    bound.apply_defaults()
    return tuple((name, _key(name, value)) for name, value in bound.arguments.items())


def _function_key(fn: Callable[..., Any]) -> Hashable:
    own = type(fn)
    if own.__hash__ is not object.__hash__ and own.__eq__ is object.__eq__:
        return own, hash(fn)
    return fn


def _key(name: str, value: Any) -> Hashable:
    if isinstance(value, (popxl.Tensor, popxl.TensorSpec)):
        return "tensor", tuple(value.shape), value.dtype, tuple(value.meta_shape or ())
    if isinstance(value, GraphWithNamedArgs):
        return "graph", value.graph
    if isinstance(value, BoundGraph):
        return "graph", value.graph, tuple((k, _key(name, v)) for k, v in value.args.items())
    if isinstance(value, Mapping):
        return "map", tuple((k, _key(name, v)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return "list", tuple(_key(name, v) for v in value)
    if not isinstance(value, Hashable):
        raise TypeError(
            f"argument {name} is a {type(value).__name__}, which is not hashable: "
            "a graph made with it cannot be cached"
        )
    return type(value), value
