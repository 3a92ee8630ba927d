"""Random weights for measurements: no download, and activations of a usual size."""

from __future__ import annotations

import numpy as np
from popxl import Variable
from tqdm import tqdm

from inference import InferenceSession

POOL = 1 << 20
"""Random numbers that weights are filled with, over and over."""

DEVIATION = 0.02
"""The standard deviation that BLOOM's weights are initialised with."""


def fill_randomly(
    session: InferenceSession, generator: np.random.Generator, *alike: InferenceSession
) -> None:
    """Give every float variable normal values, the scales of norms such around 1.

    Matrices lie in memory as a checkpoint's do: layers' in rows of outputs, transposed by the
    program's mapping; the embedding's and the head's in rows of tokens, as the program has them.

    Args:
        alike: sessions of programs with the same variables; they get the same memory.
    """
    pool = generator.standard_normal(POOL, dtype=np.float32) * DEVIATION
    others = [_variables(other) for other in alike]
    variables = tqdm(_variables(session), desc="weights", delay=2, leave=False, disable=None)
    for number, variable in enumerate(variables):
        shape, dtype = variable.shape_on_host, variable.dtype.as_numpy()
        if not variable.dtype.is_floating_point:
            continue
        of_layer = variable.rank == 2 and variable.name.startswith("layer_")
        stored = (*shape[:-2], shape[-1], shape[-2]) if of_layer else shape
        values = np.resize(pool.astype(dtype), stored)
        values = values.swapaxes(-1, -2) if of_layer else values
        if variable.name.endswith("norm.weight"):
            values = values + dtype.type(1)
        session.write_variable_data(variable, values)
        for other, theirs in zip(alike, others, strict=True):
            other.write_variable_data(theirs[number], values)


def _variables(session: InferenceSession) -> list[Variable]:
    return [v for v in session.state.values_flat() if isinstance(v, Variable)]
