"""How fast a program's runs are beside what the machine can do, measured in turn."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import popxl
from popxl_addons import TaskSession

WARM_UP = 3


def fill_randomly(session: TaskSession) -> int:
    """Gives all variables random values, as a program brings them; their bytes."""
    some = np.random.default_rng(0).standard_normal(1 << 20, np.float32)
    total = 0
    for variable in session.state.to_dict().values():
        shape = variable.shape_on_host
        scale = 1.0 if len(variable.shape) < 2 else variable.shape[-2] ** -0.5
        values = np.resize(some * scale, shape).astype(variable.dtype.as_numpy())
        session.write_variables_data({variable: values})
        total += values.nbytes
    return total


def share(
    run: Callable[[int], object], work: float, limit: Callable[[], float], rounds: int
) -> tuple[float, float, float]:
    """Medians: the share of `limit` at which `run` does `work`, seconds of a run, the limit.

    Args:
        run: is given the number of the round.
        limit: what the machine does now, in units of work a second.
    """
    for number in range(WARM_UP):
        run(number)
    shares, seconds, limits = [], [], []
    for number in range(WARM_UP, WARM_UP + rounds):
        limits.append(limit())
        begin = time.perf_counter()
        run(number)
        seconds.append(time.perf_counter() - begin)
        shares.append(work / seconds[-1] / limits[-1])
    return tuple(map(statistics.median, (shares, seconds, limits)))


def show(name: str, found: tuple[float, float, float], unit: str) -> None:
    """Print a row, in words and as JSON for who reads it."""
    ratio, seconds, limit = found
    row = {"name": name, "share": ratio, "seconds": seconds, "limit": limit, "unit": unit}
    print(json.dumps(row), flush=True)


def inputs_of(
    session: TaskSession, **values: np.ndarray
) -> dict[popxl.HostToDeviceStream, np.ndarray]:
    """The arrays of one run, each in the shape that its stream asks for."""
    return {
        stream: np.broadcast_to(values[name], session._full_input_shape(stream.shape)).astype(
            stream.dtype.as_numpy()
        )
        for name, stream in session.inputs.items()
    }
