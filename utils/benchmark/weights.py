"""Weights for measurements: random ones take no download, and their values make no difference."""

from __future__ import annotations

import numpy as np
from popxl import Variable
from tqdm import tqdm

from inference import InferenceSession

POOL = 1 << 20
"""Random numbers that weights are filled with, over and over: timing does not mind."""

DEVIATION = 0.02
"""The standard deviation that BLOOM's weights are initialised with."""


def fill_randomly(session: InferenceSession, generator: np.random.Generator) -> None:
    """Give every float variable normal values.

    Matrices lie in memory as a checkpoint's do: rows of outputs.
    """
    pool = generator.standard_normal(POOL, dtype=np.float32) * DEVIATION
    variables = [v for v in session.state.values_flat() if isinstance(v, Variable)]
    for variable in tqdm(variables, desc="weights", delay=2, leave=False, disable=None):
        shape, dtype = variable.shape_on_host, variable.dtype.as_numpy()
        if not variable.dtype.is_floating_point:
            continue
        is_matrix = variable.rank == 2
        stored = (*shape[:-2], shape[-1], shape[-2]) if is_matrix else shape
        values = np.resize(pool.astype(dtype), stored)
        session.write_variable_data(variable, values.swapaxes(-1, -2) if is_matrix else values)
