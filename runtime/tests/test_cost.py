"""What a run of a graph costs, counted from the program."""

from __future__ import annotations

from collections import Counter

import numpy as np
import popxl
from popxl import ops
from popxl_torch.analysis.cost import Collective, cost_of


def test_operations_with_state_are_counted_apart_from_those_with_weights(main_graph):
    weight = popxl.variable(np.zeros((8, 5), np.float32))
    read = popxl.remote_buffer((8, 3), popxl.float32, 1)
    written = popxl.remote_buffer((8, 7), popxl.float32, 1)
    x = ops.init((2, 8), popxl.float32)
    state = ops.remote_load(written, 0)
    for other in (weight, ops.remote_load(read, 0), state, ops.transpose(ops.transpose(state))):
        x @ other
    ops.remote_store(written, 0, state)
    cost = cost_of(main_graph)
    with_state = 2 * (2 * 2 * 8 * 7)
    assert cost.state_operations == with_state
    assert cost.operations == with_state + 2 * 2 * 8 * (5 + 3)
    assert cost.state_bytes == 2 * 4 * 8 * 7
    assert cost.weight_bytes == 4 * 8 * (5 + 3)


def test_collectives_are_counted_by_who_takes_part_in_them():
    ir = popxl.Ir(replication=4)
    pairs = ir.replica_grouping(stride=2, group_size=2)
    alone = ir.replica_grouping(group_size=1)

    def body(x: popxl.Tensor) -> popxl.Tensor:
        x = ops.collectives.replicated_all_reduce(x, group=pairs)
        return ops.collectives.replicated_all_reduce(x, group=alone)

    def whole(x: popxl.Tensor) -> popxl.Tensor:
        (x,) = ops.repeat(ir.create_graph(body, x), 3, x)
        return ops.collectives.replicated_all_gather(x)

    cost = cost_of(ir.create_graph(whole, popxl.TensorSpec((5,), popxl.float16)))
    everyone = ir.replica_grouping()
    assert cost.collectives == Counter(
        {Collective("all_reduce", 10, pairs): 3, Collective("all_gather", 10, everyone): 1}
    )
    assert (cost.collective_calls, cost.collective_bytes) == (4, 40)


def test_calls_are_ops_that_compute_or_move():
    ir = popxl.Ir()

    def body(x: popxl.Tensor, y: popxl.Tensor) -> popxl.Tensor:
        return ops.reshape(ops.transpose(x), y.shape) + y

    def whole(x: popxl.Tensor, y: popxl.Tensor) -> popxl.Tensor:
        (y,) = ops.call(ir.create_graph(body, x, y), x, y)
        return ops.gelu(y)

    specs = [popxl.TensorSpec((2, 3), popxl.float32) for _ in range(2)]
    assert cost_of(ir.create_graph(whole, *specs)).calls == 2
