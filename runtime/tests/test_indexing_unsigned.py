"""Gather from tables of unsigned words, such as packed weights."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl import ops


@pytest.mark.parametrize("dtype", [popxl.uint16, popxl.uint32])
@pytest.mark.parametrize("axis", [0, 1])
def test_rows_of_unsigned_words_are_picked_as_they_are(dtype, axis):
    highest = np.iinfo(dtype.as_numpy()).max
    table = np.random.default_rng(0).integers(0, highest, (5, 6), dtype.as_numpy(), endpoint=True)
    table[1, 2] = highest
    ir = popxl.Ir()
    with ir.main_graph:
        variable = popxl.variable(table, dtype)
        indices = popxl.constant(np.array([2, 1, 4, 1], np.int32))
        picked = ops.gather(variable, indices, axis=axis)
        stream = popxl.d2h_stream(picked.shape, picked.dtype)
        ops.host_store(stream, picked)
    with popxl.Session(ir) as session:
        result = session.run()[stream]
    np.testing.assert_array_equal(result, table.take([2, 1, 4, 1], axis))
