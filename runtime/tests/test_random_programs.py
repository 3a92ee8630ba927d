"""Programs that write in place and share memory in any way mean what numpy says they mean."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from on_numpy import Elements, OnNumpy
from on_popxl import OnPopxl
from popxl import ops
from programs import store
from random_programs import BUFFERS, Body, Writer, run_body

INPUTS = ((4,), (2, 2), (4,), (2, 2))
"""Two variables, then two streams."""


class Program:
    """A random program on PopXL and on numpy, with the same data."""

    def __init__(self, seed: int, steps: int):
        self.rng = np.random.default_rng(seed)
        self.ir = popxl.Ir(replication=int(self.rng.choice([1, 2, 4])))
        self.replicas = self.ir.replication_factor
        self.body = Writer(self.rng, INPUTS, depth=2, main=True).write(steps)
        with self.ir.main_graph:
            self._build()
        self.numpy = OnNumpy([self._per_replica(v) for v in self.slots])

    def _build(self) -> None:
        self.variables = [self._variable(shape) for shape in INPUTS[:2]]
        self.streams = [popxl.h2d_stream(shape, popxl.int32) for shape in INPUTS[2:]]
        self.offset = popxl.h2d_stream((), popxl.int32, "offset")
        self.condition = popxl.h2d_stream((), popxl.bool, "condition")
        buffers = [popxl.remote_buffer(shape, popxl.int32, n) for shape, n in BUFFERS]
        self.slots = [
            [self._variable(shape, buffer, entry) for entry in range(entries)]
            for buffer, (shape, entries) in zip(buffers, BUFFERS, strict=True)
        ]
        self.state = [*self.variables, *(v for slots in self.slots for v in slots)]
        self.values = [self._per_replica([v])[:, 0] for v in self.variables]
        machine = OnPopxl(buffers)
        loaded = [ops.host_load(s) for s in [*self.streams, self.offset, self.condition]]
        run_body(self.body, machine, [*self.variables, *loaded])
        # What is left in the inputs, among them aliases, at the end.
        self.outputs = machine.told + store(loaded[:3])

    def _variable(self, shape, buffer=None, entry=None) -> popxl.Variable:
        stride = int(self.rng.choice([s for s in (1, 2, 4) if self.replicas % s == 0]))
        grouping = self.ir.replica_grouping(stride)
        count = (grouping.num_groups,) if grouping.num_groups > 1 else ()
        data = self.rng.integers(-50, 50, (*count, *shape)).astype(np.int32)
        if buffer is None:
            return popxl.variable(data, replica_grouping=grouping)
        return popxl.remote_variable(data, buffer, entry, replica_grouping=grouping)

    def _per_replica(self, variables: list[popxl.Variable]) -> np.ndarray:
        """`(replicas, variables, *shape)`."""
        values = []
        for v in variables:
            whole = v._data.reshape(v.replica_grouping.num_groups, *v.shape)
            values.append(whole[v.replica_grouping.assignment])
        return np.stack(values, axis=1).copy()

    def inputs(self) -> list[np.ndarray]:
        """Streams, offset and condition, `(replicas, *shape)`; often equal on all replicas."""
        drawn = [self.rng.integers(-50, 50, (self.replicas, *s)) for s in INPUTS[2:]]
        drawn += [self.rng.integers(0, 2, self.replicas) for _ in range(2)]
        for value in drawn:
            if self.rng.random() < 0.6:
                value[:] = value[0]
        return [v.astype(t) for v, t in zip(drawn, ("i4", "i4", "i4", "?"), strict=True)]

    def expected(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """What a run stores, by numpy; the variables' new values are kept."""
        tensors = [Elements.new(v) for v in [*self.values, *inputs]]
        self.numpy.told = []
        run_body(self.body, self.numpy, tensors)
        self.values = [t.value for t in tensors[:2]]
        return [*self.numpy.told, *(t.value for t in tensors[2:5])]

    def run(self, session: popxl.Session, inputs: list[np.ndarray]) -> list[np.ndarray]:
        streams = [*self.streams, self.offset, self.condition]
        given = inputs if self.replicas > 1 else [v[0] for v in inputs]
        results = session.run(dict(zip(streams, given, strict=True)))
        return [results[s].reshape(self.replicas, *s.shape) for s in self.outputs]


def check(seed: int, steps: int) -> Body:
    program = Program(seed, steps)
    host = [v._data.copy() for v in program.state]
    with popxl.Session(program.ir) as session:
        for _ in range(2):
            inputs = program.inputs()
            given = [v.copy() for v in inputs]
            expected = program.expected([v.copy() for v in inputs])
            for got, want in zip(program.run(session, inputs), expected, strict=True):
                np.testing.assert_array_equal(got, want)
            for before, after in zip(given, inputs, strict=True):
                np.testing.assert_array_equal(before, after)
        slots = [s[:, i] for s in program.numpy.slots for i in range(s.shape[1])]
        for variable, value in zip(program.state, [*program.values, *slots], strict=True):
            first = [
                variable.replica_grouping.assignment.index(g)
                for g in range(len(value))
                if g < variable.replica_grouping.num_groups
            ]
            got = session.get_tensor_data(variable).reshape(len(first), *variable.shape)
            np.testing.assert_array_equal(got, value[first])
    for variable, data in zip(program.state, host, strict=True):
        np.testing.assert_array_equal(variable._data, data)
    return program.body


@pytest.mark.parametrize("start", range(0, 140, 20))
def test_short_programs(start):
    for seed in range(start, start + 20):
        check(seed, steps=8)


@pytest.mark.parametrize("start", range(1000, 1060, 10))
def test_long_programs(start):
    for seed in range(start, start + 10):
        check(seed, steps=40)
