"""Declaring what a graph means, so that a back end may compute it by one kernel.

The graph stays the meaning: the Poplar SDK runs it, tests hold the kernel against it, and this
runtime runs it where no kernel knows the identifier, the version or the signature.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable)

MARK = "__popxl_composite__"
"""The attribute of a function in which `popxl.Ir.create_graph` looks for its declaration."""


def composite(
    name: str, version: int = 1, **attributes: Hashable
) -> Callable[[Function], Function]:
    """Declare that the graphs made from a function compute what `name` stands for.

    The attributes of a graph are those given here and the function's arguments that are no tensors.
    A kernel is used only where it knows the name, the version, every attribute, and the shapes,
    dtypes and by-reference inputs of the graph.

    Args:
        name: the identifier, such as "cached_attention".
        version: of the meaning: raised when graphs of this name come to compute something else.
        attributes: what a kernel has to know and cannot see from the inputs.

    Raises:
        TypeError: where an attribute is not hashable.
        ValueError: where the name is empty or the version is below 1.
    """
    if not name or version < 1:
        raise ValueError(f"composite({name!r}, version={version}): a name and a version from 1 on")
    for key, value in attributes.items():
        if not isinstance(value, Hashable):
            raise TypeError(f"composite {name}: attribute {key} is not hashable: {value!r}")

    def declare(function: Function) -> Function:
        setattr(function, MARK, (name, version, dict(attributes)))
        return function

    return declare
