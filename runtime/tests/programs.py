"""What the tests of the runtime share: programs made from a function, and arrays to feed them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import popxl
from popxl import ops

Build = Callable[..., Any]
"""Makes a program's ops from its input tensors; returns the tensor or tensors to be stored, or a
pair of these and the values of its variables."""

FLOATS = (popxl.float32, popxl.float16, popxl.bfloat16)
INTEGERS = (popxl.int8, popxl.int16, popxl.int32, popxl.uint8, popxl.uint16, popxl.uint32)

LAYOUTS = {
    "one replica": [[0], [0], [0], [0]],
    "all replicas differ": [[0, 1, 2, 3]] * 4,
    "first input equal everywhere": [[0, 0, 0, 0], [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]],
    "inputs equal along mesh axes": [[0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 2, 3]],
}
"""For each input, which of its values every replica gets: the mesh holds equal values once."""


def run_program(
    build: Build,
    *arrays: np.ndarray,
    replicas: int = 1,
    ir: popxl.Ir | None = None,
    device: str = "ipu_hw",
) -> list[np.ndarray]:
    """Load `arrays` in a program, store what `build` makes of them, and run it once.

    Args:
        arrays: with a leading axis of this process's replicas where there are several.
        ir: where the program is built; a new one of `replicas` where None.

    Returns:
        The outputs, with a leading replica axis where there are several replicas.
    """
    ir = ir or popxl.Ir(replication=replicas)
    replicas = ir.instance_replication_factor
    with ir.main_graph:
        shapes = [a.shape[1:] if replicas > 1 else a.shape for a in arrays]
        streams = [
            popxl.h2d_stream(shape, popxl.dtype.as_dtype(a.dtype))
            for shape, a in zip(shapes, arrays, strict=True)
        ]
        made = build(*(ops.host_load(s) for s in streams))
        has_values = isinstance(made, tuple) and isinstance(made[-1], dict)
        made, values = made if has_values else (made, {})
        outputs = store(as_list(made))
    session = popxl.Session(ir, device)
    session.write_variables_data(values)
    with session:
        results = session.run(dict(zip(streams, arrays, strict=True)))
    return [results[stream] for stream in outputs]


def as_list(made: popxl.Tensor | Iterable[popxl.Tensor]) -> list[popxl.Tensor]:
    return [made] if isinstance(made, popxl.Tensor) else list(made)


def store(tensors: Iterable[popxl.Tensor]) -> list[popxl.DeviceToHostStream]:
    """A new stream for each tensor, which is stored to it."""
    streams = []
    for tensor in tensors:
        streams.append(popxl.d2h_stream(tensor.shape, tensor.dtype))
        ops.host_store(streams[-1], tensor)
    return streams


def in_turn(name: str, values: Iterable[Any]) -> Callable[[Callable], Callable]:
    """Like `pytest.mark.parametrize`, for what is quickly done: one test that takes all values."""

    def decorate(test: Callable) -> Callable:
        @functools.wraps(test)
        def every(*args: Any, **named: Any) -> None:
            for value in values:
                try:
                    test(*args, **named, **{name: value})
                except BaseException as error:
                    error.add_note(f"{name}: {value}")
                    raise

        signature = inspect.signature(test)
        others = [p for p in signature.parameters.values() if p.name != name]
        every.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]
        return every

    return decorate


def run_on_layout(layout: str, build: Build, *values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """`run_program` on the replicas of a layout; `values[i]` are the values of input i.

    With several replicas the mesh has two axes.
    """
    arrays = inputs_of(layout, values)
    replicas = len(LAYOUTS[layout][0])
    ir = popxl.Ir(replication=replicas)
    if replicas == 1:
        return [output[None] for output in run_program(build, *arrays, ir=ir)]
    with ir.main_graph:
        grouping = ir.replica_grouping(group_size=2)
        popxl.variable(np.zeros(2, np.float32), replica_grouping=grouping)
    return run_program(build, *arrays, ir=ir)


def inputs_of(layout: str, values: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """The host arrays of a layout, with a replica axis where it has several replicas."""
    chosen = LAYOUTS[layout]
    arrays = [np.stack([v[i] for i in ids]) for v, ids in zip(values, chosen, strict=False)]
    return [a[0] for a in arrays] if len(chosen[0]) == 1 else arrays


def by_replica(
    layout: str, reference: Callable, values: Sequence[Sequence[np.ndarray]]
) -> np.ndarray:
    """What `reference` makes of each replica's inputs, `(replicas, *shape)`."""
    chosen = LAYOUTS[layout]
    return np.stack(
        [
            reference(*(v[ids[r]] for v, ids in zip(values, chosen, strict=False)))
            for r in range(len(chosen[0]))
        ]
    )


def numbers(
    rng: np.random.Generator,
    shape: Sequence[int],
    dtype: popxl.dtype,
    low: float = -3,
    high: float = 3,
    count: int = 4,
) -> list[np.ndarray]:
    """`count` arrays of random numbers from `low` on, below `high` (unsigned ones from 0 on)."""
    if not dtype.is_signed:
        low = max(low, 0)
    draw = rng.uniform if dtype.is_floating_point else rng.integers
    return [
        np.asarray(draw(low, high, tuple(shape))).astype(dtype.as_numpy()) for _ in range(count)
    ]


def assert_rounded(
    got: np.ndarray, expected: np.ndarray, dtype: popxl.dtype, ulps: float = 1, scale: float = 0
) -> None:
    """Equal up to `ulps` units in the last place of `dtype`; integers and bools are equal.

    Args:
        scale: of terms that may have cancelled: adds that many units in the last place of it.
    """
    assert got.dtype == dtype.as_numpy()
    assert got.shape == expected.shape
    if not dtype.is_floating_point:
        np.testing.assert_array_equal(got, expected)
        return
    unit = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype.name]
    tiny = 2.0**-24 if dtype == popxl.float16 else 0  # half the step of numbers near 0
    np.testing.assert_allclose(
        got.astype(np.float64),
        np.asarray(expected, np.float64),
        rtol=ulps * unit,
        atol=ulps * unit * scale + tiny,
    )
