"""The steps of random programs as PopXL ops."""

from __future__ import annotations

from collections.abc import Sequence

import popxl
from popxl import ops
from popxl.ops.collectives import (
    replicated_all_gather,
    replicated_all_reduce,
    replicated_all_reduce_,
)
from random_programs import Body, run_body


class OnPopxl:
    """Makes the ops of the steps in the current graph."""

    def __init__(self, buffers: list[popxl.RemoteBuffer]):
        self.buffers = buffers
        self.told: list[popxl.DeviceToHostStream] = []
        self.graphs: dict[int, popxl.Graph] = {}

    def add(self, a, b):
        return [a + b]

    def sub(self, a, b):
        return [a - b]

    def mul(self, a, b):
        return [a * b]

    def reshape(self, a, shape):
        return [a.reshape(shape)]

    def transpose(self, a):
        return [a.transpose()]

    def same(self, a, way):
        alone = popxl.gir().replica_grouping(group_size=1)
        ways = [
            ops.identity,
            ops.clip,
            ops.maximum,
            lambda a: ops.cast(a, popxl.int32),
            lambda a: replicated_all_reduce(a, "local"),
            lambda a: replicated_all_reduce(a, "add", alone),
            lambda a: replicated_all_gather(a, 0, alone, "concat"),
        ]
        return [ways[way](a)]

    def head(self, a, first):
        return [a[first : first + 2]]

    def join(self, a, b):
        return [ops.concat([a, b])]

    def pick(self, a, offset):
        return [ops.dynamic_slice(a, offset.reshape((1,)), [0], [2], True)]

    def reshape_(self, a, shape):
        return [a.reshape_(shape)]

    def transpose_(self, a):
        return [a.transpose_()]

    def add_(self, a, b):
        ops.add_(a, b)

    def copy_(self, a, b):
        ops.var_updates.copy_var_update_(a, b)

    def step_(self, a):
        ops.increment_mod_(a, 1, 97)

    def next_(self, offset):
        ops.increment_mod_(offset, 1, 2)

    def put_(self, a, offset, part):
        at, part = offset.reshape((1,)), part if a.rank == 1 else part.reshape((1, 2))
        ops.dynamic_update_(a, at, part, [0], [part.shape[0]], True)

    def sum_(self, a):
        replicated_all_reduce_(a)

    def local_(self, a):
        replicated_all_reduce_(a, "local")

    def load(self, *offset, buffer, fixed):
        return [ops.remote_load(self.buffers[buffer], *offset or [fixed])]

    def load_(self, a, *offset, buffer, fixed):
        ops.remote_load_(self.buffers[buffer], *offset or [fixed], a)

    def store(self, a, *offset, buffer, fixed):
        ops.remote_store(self.buffers[buffer], *offset or [fixed], a)

    def tell(self, a):
        self.told.append(popxl.d2h_stream(a.shape, a.dtype))
        ops.host_store(self.told[-1], a)

    def _graph(self, body: Body, operands: Sequence[popxl.Tensor]) -> popxl.Graph:
        if id(body) not in self.graphs:
            self.graphs[id(body)] = graph = popxl.gir().create_empty_graph()
            with graph:
                inputs = [
                    popxl.graph_input(t.shape, t.dtype, by_ref=ref)
                    for t, ref in zip(operands, body.by_ref, strict=True)
                ]
                for output in run_body(body, self, inputs):
                    popxl.graph_output(output)
        return self.graphs[id(body)]

    def call(self, *operands, graph):
        return ops.call(self._graph(graph, operands), *operands)

    def repeat(self, *operands, graph, count):
        return ops.repeat(self._graph(graph, operands), count, *operands)

    def cond(self, *operands, graph, other, uniform):
        condition = operands[-1]
        if uniform:
            condition = replicated_all_reduce(condition, "and")
        graphs = self._graph(graph, operands), self._graph(other, operands)
        return ops.conditional(condition, *graphs, operands, operands)
