"""Building the largest program touches no data: 70 layers of the 176B shape over 16 replicas."""

from __future__ import annotations

import resource
import tracemalloc

import numpy as np
import popxl
from popxl import ops

LAYERS, HIDDEN, TP = 70, 14336, 4


def empty(shape: tuple[int, ...]) -> np.ndarray:
    """An array of that shape in the memory of one element."""
    return np.broadcast_to(np.zeros(1, np.float16), shape)


def peak_of_the_process() -> int:
    """Bytes of memory that it has had at the most; torch's are in it, unlike in tracemalloc."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def build() -> tuple[popxl.Ir, popxl.Variable]:
    ir = popxl.Ir(replication=TP * TP)
    with ir.main_graph:
        each = ir.replica_grouping(group_size=1)
        inner = [(HIDDEN // TP, 4 * HIDDEN // TP), (4 * HIDDEN // TP, HIDDEN // TP)]
        buffers = [popxl.remote_buffer(shape, popxl.float16, LAYERS) for shape in inner]
        for buffer in buffers:
            for layer in range(LAYERS):
                data = empty((TP * TP, *buffer.tensor_shape))
                weight = popxl.remote_variable(data, buffer, layer, replica_grouping=each)

        def layer_of(i, x):
            for buffer in buffers:
                x = ops.matmul(x, ops.remote_load(buffer, i))
                x = ops.collectives.replicated_all_reduce(x, group=ir.replica_grouping(1, TP))
            return i + 1, x

        i, x = popxl.constant(0), ops.init((1, HIDDEN // TP), popxl.float16)
        ops.repeat(ir.create_graph(layer_of, i, x), LAYERS, i, x)
    return ir, weight


def test_building_a_176b_program_takes_no_memory():
    before = peak_of_the_process()
    tracemalloc.start()
    ir, weight = build()
    session = popxl.Session(ir)
    _, traced = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # 70 layers x 16 replicas x 2 matrices of 98 MiB would be 214 GiB; one of them would be seen.
    assert traced < 50 << 20
    assert peak_of_the_process() - before < 90 << 20
    held = session._executor.variables.cells[weight].tensor
    assert held.shape == (TP, TP, 4 * HIDDEN // TP, HIDDEN // TP)
    assert held.untyped_storage().nbytes() <= 2
