"""What collectives give, in numpy, and programs of all of them."""

from __future__ import annotations

import numpy as np
import popdist
import popxl
from popxl.ops.collectives import (
    replicated_all_gather,
    replicated_all_reduce,
    replicated_reduce_scatter,
)
from programs import run_program

REPLICAS = 16
STRIDED = [
    (stride, size)
    for stride in range(1, REPLICAS + 1)
    for size in range(1, REPLICAS + 1)
    if REPLICAS % (stride * size) == 0 or size == 1
]
IRREGULAR = {
    "pairs from both ends": [0, 1, 2, 3, 4, 5, 6, 7, 7, 6, 5, 4, 3, 2, 1, 0],
    "quarters of odd order": [0, 1, 2, 3, 1, 2, 3, 0, 2, 3, 0, 1, 3, 0, 1, 2],
    "digits swapped": [0, 0, 1, 1, 2, 2, 3, 3, 1, 1, 0, 0, 3, 3, 2, 2],
    "outermost and innermost digit": [0, 0, 1, 1, 2, 2, 3, 3, 0, 0, 1, 1, 2, 2, 3, 3],
}
UNEQUAL = [0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 2, 2, 2, 1, 1, 1]

REDUCTIONS = {
    "add": lambda x: x.sum(0),
    "mean": lambda x: x.mean(0),
    "mul": lambda x: x.prod(0),
    "min": lambda x: x.min(0),
    "max": lambda x: x.max(0),
    "square_add": lambda x: (x * x).sum(0),
}


def reduced(x: np.ndarray, assignment: list[int], op: str) -> np.ndarray:
    """What every replica holds after an all-reduce of `x`, `(replicas, *shape)`."""
    if op == "local":
        return x
    return np.stack([REDUCTIONS[op](x[np.equal(assignment, g)]) for g in assignment])


def gathered(x: np.ndarray, assignment: list[int], axis: int, new_axis: bool) -> np.ndarray:
    join = np.stack if new_axis else np.concatenate
    return np.stack([join(list(x[np.equal(assignment, g)]), axis) for g in assignment])


def scattered(x: np.ndarray, assignment: list[int], op: str) -> np.ndarray:
    """Each member's part of the flat reduction, filled up with zeros."""
    whole = reduced(x, assignment, op).reshape(len(x), -1)
    members = assignment.count(0)
    part = -(-whole.shape[1] // members)
    padded = np.pad(whole, ((0, 0), (0, part * members - whole.shape[1])))
    ranks = [assignment[:r].count(g) for r, g in enumerate(assignment)]
    return np.stack([padded[r, i * part : (i + 1) * part] for r, i in enumerate(ranks)])


def data(replicas: int, shape: tuple[int, ...], assignments: list[list[int]]) -> list[np.ndarray]:
    """Replicas that all differ, that are all equal, and that are equal within some groups."""
    draw = np.random.default_rng(0)
    x = draw.uniform(0.5, 1.5, (replicas, *shape)).astype(np.float32)
    equal_within = [x[np.asarray(a)] for a in assignments]
    return [x, np.broadcast_to(x[0], x.shape).copy(), *equal_within]


def check_all(ir: popxl.Ir, groups: list[popxl.ReplicaGrouping], mix: list[list[int]]) -> None:
    """Every collective over each of the groupings, together in one program, on several inputs.

    Of the replicas that this process holds, where there are several processes.
    """
    arrays = data(ir.replication_factor, (3, 2), mix)
    own = own_replicas(ir)
    expected = []

    def build(*inputs):
        results = []
        for x, t in zip(arrays, inputs, strict=True):
            for group in groups:
                a = group.assignment
                for op in [*REDUCTIONS, "local"]:
                    results.append(replicated_all_reduce(t, op, group))
                    expected.append(reduced(x, a, op))
                for axis, shape in [(0, "concat"), (1, "concat"), (0, "new_axis"), (2, "new_axis")]:
                    results.append(replicated_all_gather(t, axis, group, shape))
                    expected.append(gathered(x, a, axis, shape == "new_axis"))
                for op in ("add", "max", "local"):
                    results.append(replicated_reduce_scatter(t, op, group))
                    expected.append(scattered(x, a, op))
        return results

    results = run_program(build, *(x[own] for x in arrays), ir=ir)
    for got, want in zip(results, expected, strict=True):
        np.testing.assert_allclose(got, want[own], rtol=2e-5)


def own_replicas(ir: popxl.Ir) -> slice:
    """Those of this process."""
    count = ir.instance_replication_factor
    return slice(popdist.getInstanceIndex() * count, (popdist.getInstanceIndex() + 1) * count)
