"""Random values for variables, where only sizes and layout matter: timing does not mind."""

from __future__ import annotations

import numpy as np
from popxl import Variable
from popxl_shared import channels, groups
from tqdm import tqdm

from modelling.aligned import aligned
from modelling.program import InferenceSession
from utils.distributed import own_replicas
from utils.our_runtime import device_of, fill

POOL = 1 << 20
"""Random numbers that weights are filled with, over and over."""

DEVIATION = 0.02
"""The standard deviation of BLOOM's weights before training."""

INT8, INT4 = 40.0, 4.6
"""Standard deviations of the numbers of 8 and of 4 bits; those of 4 bits are evenly spread."""

CONSTANTS = {
    "weight_scale": DEVIATION / INT8,
    "weight_decompression_scale": DEVIATION / INT4,
    "weight_decompression_bias": -groups.LARGEST / 2 * DEVIATION / INT4,
}
"""By the last part of the variable's name."""

TABLES = ("embeddings.weight", "head.weight")
"""Matrices whose rows are outputs; other matrices have their bytes as if they were."""


def fill_randomly(
    session: InferenceSession, generator: np.random.Generator, *alike: InferenceSession
) -> None:
    """Give every variable of the weights that is not of integers random values.

    Of several processes each fills its own replicas' matrices alone. Weights on a GPU are made
    there, with the same values.

    Args:
        alike: sessions of programs with the same variables; they get the same memory.
    """
    pool = generator.standard_normal(POOL, dtype=np.float32) * np.float32(DEVIATION)
    own = own_replicas(session.ir.replication_factor)
    others = [(other, other.state.to_dict()) for other in alike]
    variables = session.state.to_dict().items()
    for name, variable in tqdm(variables, desc="weights", delay=2, leave=False, disable=None):
        assert isinstance(variable, Variable)
        if device_of(session) != "cpu":
            _fill_there(session, name, variable, pool)
            continue
        values = random_values(name, variable, pool, slice(own.start, own.stop))
        if values is not None:
            session.write_variable_data(variable, values)
            for other, theirs in others:
                twin = theirs[name]
                assert isinstance(twin, Variable)
                other.write_variable_data(twin, values)


def random_values(
    name: str, variable: Variable, pool: np.ndarray, own: slice = slice(None)
) -> np.ndarray | None:
    """Host data for the variable called `name`, laid out as a checkpoint's; None for integers.

    Floats are normal, the scales of norms such around 1. Quantised weights stand for values of the
    same mean and deviation.

    Args:
        pool: normal values of deviation `DEVIATION`, float32.
        own: the replicas whose part of a matrix is filled.
    """
    shape, numbers = variable.shape_on_host, _numbers_of(name, variable, pool)
    if numbers is None:
        return None
    if variable.rank != 2:
        values = aligned(np.empty, shape, numbers.dtype)
        _repeat(numbers, values)
        return values
    swapped = name not in TABLES
    stored = (*shape[:-2], shape[-1], shape[-2]) if swapped else shape
    values = aligned(np.empty, stored, numbers.dtype)
    filled = values[own] if len(stored) == 3 else values
    _repeat(numbers, filled)
    return values.swapaxes(-1, -2) if swapped else values


def _repeat(numbers: np.ndarray, filled: np.ndarray) -> None:
    """Fill a contiguous array with numbers over and over, without a second one of its size."""
    flat = filled.view()
    flat.shape = (-1,)
    for at in range(0, flat.size, numbers.size):
        piece = flat[at : at + numbers.size]
        piece[...] = numbers[: piece.size]


def _fill_there(session: InferenceSession, name: str, variable: Variable, pool: np.ndarray) -> None:
    numbers = _numbers_of(name, variable, pool)
    if numbers is not None:
        swapped = variable.rank == 2 and name not in TABLES
        fill(session, variable, numbers, swapped)


def _numbers_of(name: str, variable: Variable, pool: np.ndarray) -> np.ndarray | None:
    """What the variable's values repeat; None for integers."""
    dtype = variable.dtype.as_numpy()
    constant = CONSTANTS.get(name.rpartition(".")[2])
    if constant is not None:
        return np.full(1, constant, dtype)
    numbers = _numbers(pool, dtype)
    if numbers is None:
        return None
    if name.endswith("norm.weight"):
        return numbers + dtype.type(1)
    return numbers


def _numbers(pool: np.ndarray, dtype: np.dtype) -> np.ndarray | None:
    if dtype == np.int8:
        return (
            np.rint(pool * (INT8 / DEVIATION))
            .clip(-channels.LARGEST, channels.LARGEST)
            .astype(dtype)
        )
    if dtype == np.uint16:  # far wider than 16 bits: what is left of it is evenly spread
        return (pool * (1e6 / DEVIATION)).astype(np.int32).astype(dtype)
    return None if dtype.kind == "i" else pool.astype(dtype)
