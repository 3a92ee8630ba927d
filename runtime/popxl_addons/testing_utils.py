"""What tests of modules use: run one on host arrays, count ops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import popxl

from .module import Module
from .named_tensors import NamedTensors
from .ops.streams import host_store

Weights = Mapping[popxl.Variable, np.ndarray]


def ops_of_type(ops: Iterable[Any], op_type: type) -> int:
    """How many of these are of a type."""
    return sum(isinstance(op, op_type) for op in ops)


class TensorInput:
    """A host array that `run_module` makes a tensor of.

    Args:
        dtype: of the tensor; that of the data where None.
    """

    def __init__(self, data: np.ndarray, dtype: popxl.dtypes.dtype | None = None):
        self.data, self.dtype = data, dtype


def run_module(
    module: Module,
    *args: Any,
    weights: Callable[[NamedTensors], Weights] | Weights | None = None,
    **kwargs: Any,
) -> list[np.ndarray]:
    """Build a module, run it once on one replica, and give its outputs.

    Args:
        args, kwargs: those of the module's `build`; a `TensorInput` becomes a tensor.
        weights: from the module's variables to their values, or a function that gives that for
            the tree of variables; what the module's data says where None.
    """
    ir = popxl.Ir()
    with ir.main_graph:
        given = [_made(value) for value in args]
        named = {name: _made(value) for name, value in kwargs.items()}
        factories, graph = module.create_graph(*given, **named)
        variables = factories.init()
        tensors = [v for v in (*given, *named.values()) if isinstance(v, popxl.Tensor)]
        streams = [host_store(t) for t in graph.bind(variables).call(*tensors)]
    with popxl.Session(ir, "ipu_hw") as session:
        if weights is not None:
            session.write_variables_data(weights(variables) if callable(weights) else weights)
        outputs = session.run()
    return [outputs[stream] for stream in streams]


def _made(value: Any) -> Any:
    if not isinstance(value, TensorInput):
        return value
    dtype = value.dtype or popxl.dtypes.dtype.as_dtype(np.asarray(value.data).dtype)
    return popxl.variable(value.data, dtype)
