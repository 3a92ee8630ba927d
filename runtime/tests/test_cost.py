"""What a graph costs: operations with weights apart from those with memory that it writes."""

from __future__ import annotations

import numpy as np
import popxl
from popxl import ops


def test_operations_with_state_are_counted_apart_from_those_with_weights(main_graph):
    weight = popxl.variable(np.zeros((8, 5), np.float32))
    read = popxl.remote_buffer((8, 3), popxl.float32, 1)
    written = popxl.remote_buffer((8, 7), popxl.float32, 1)
    x = ops.init((2, 8), popxl.float32)
    state = ops.remote_load(written, 0)
    for other in (weight, ops.remote_load(read, 0), state, ops.transpose(ops.transpose(state))):
        x @ other
    ops.remote_store(written, 0, state)
    cost = main_graph.cost()
    with_state = 2 * (2 * 2 * 8 * 7)
    assert cost.state_operations == with_state
    assert cost.operations == with_state + 2 * 2 * 8 * (5 + 3)
    assert cost.state_bytes == 2 * 4 * 8 * 7
    assert cost.weight_bytes == 4 * 8 * (5 + 3)
