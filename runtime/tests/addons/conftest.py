"""Programs small enough for one test."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import popxl
import pytest


def run_program(build: Callable, *arrays: np.ndarray, replicas: int = 1) -> list[np.ndarray]:
    """Run a program that loads `arrays` and stores what `build(*tensors)` returns.

    Args:
        build: returns a tensor or several, or a pair of these and the values of its variables.
        arrays: inputs, with a leading replica axis where there are several replicas.

    Returns:
        The outputs, with a leading replica axis where there are several replicas.
    """
    ir = popxl.Ir(replication=replicas)
    with ir.main_graph, popxl.in_sequence():
        inputs = {_stream(array, replicas): array for array in arrays}
        made = build(*(popxl.ops.host_load(stream) for stream in inputs))
        has_values = isinstance(made, tuple) and isinstance(made[-1], dict)
        outputs, values = made if has_values else (made, {})
        streams = []
        for tensor in [outputs] if isinstance(outputs, popxl.Tensor) else outputs:
            streams.append(popxl.d2h_stream(tensor.shape, tensor.dtype))
            popxl.ops.host_store(streams[-1], tensor)
    session = popxl.Session(ir, "cpu")
    session.write_variables_data(values)
    with session:
        results = session.run(inputs)
    return [results[stream] for stream in streams]


def _stream(array: np.ndarray, replicas: int) -> popxl.HostToDeviceStream:
    shape = array.shape[1:] if replicas > 1 else array.shape
    return popxl.h2d_stream(shape, popxl.dtype.as_dtype(array.dtype))


@pytest.fixture
def run() -> Callable[..., list[np.ndarray]]:
    return run_program


@pytest.fixture
def main_graph() -> Iterable[popxl.Graph]:
    """The main graph of a new program of one replica, made current."""
    with popxl.Ir().main_graph as graph:
        yield graph


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
