"""Arguments that do not fit: refused with the op, the tensor's name and what is wanted."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl.ops import var_updates


def seed() -> popxl.Tensor:
    return popxl.variable(np.zeros(2, np.uint32), name="seed")


CASES = {
    "exp_": (lambda t: ops.exp_(t.index), TypeError, "exp_: index must hold floats, got int32"),
    "relu_": (lambda t: ops.relu_(t.flag), TypeError, "relu_: flag must hold numbers"),
    "gelu_": (lambda t: ops.gelu_(3), TypeError, "gelu_: expected a tensor, got int 3"),
    "scaled_add_": (
        lambda t: ops.scaled_add_(t.row, t.x),
        ValueError,
        r"scaled_add_: the result is \(2, 3\), but row to be written is \(3,\)",
    ),
    "slice_": (lambda t: ops.slice_(t.x, [0], [1, 2]), ValueError, r"slice_: .* lengths \[1, 2\]"),
    "concat_": (lambda t: ops.concat_([t.x, t.y]), ValueError, r"concat_: .*\(2, 3\), \(3, 4\)"),
    "concat_ nothing": (lambda t: ops.concat_([]), ValueError, "concat_: at least one tensor"),
    "log2": (lambda t: ops.log2(t.index), TypeError, "log2: index must hold floats"),
    "logsum": (lambda t: ops.logsum(t.index), TypeError, "logsum: index must hold floats"),
    "median": (lambda t: ops.median(t.empty), ValueError, "median: axis 0 of empty .* no elements"),
    "histogram": (lambda t: ops.histogram(t.index, [1], True), TypeError, "histogram: index"),
    "levels": (lambda t: ops.histogram(t.x, [1, 1], True), ValueError, "levels must .* increase"),
    "no level": (lambda t: ops.histogram(t.x, [], True), ValueError, "levels must be at least one"),
    "reduction": (
        lambda t: ops.scatter_reduce(t.x, t.index, "mul", axis_size=2),
        ValueError,
        "scatter_reduce: reduction 'mul': allowed are sum, min, max, none",
    ),
    "no size": (
        lambda t: ops.scatter_reduce(t.x, t.index, "sum"),
        ValueError,
        "one of initial_values and axis_size is needed",
    ),
    "size 0": (
        lambda t: ops.scatter_reduce(t.x, t.index, "sum", axis_size=0),
        ValueError,
        "axis_size must be at least 1, got 0",
    ),
    "indices": (
        lambda t: ops.scatter_reduce(t.x, t.index, "sum", axis=1, axis_size=2),
        ValueError,
        r"indices \(2,\) must be of the shape of x \(2, 3\), or one for each .* axis 1",
    ),
    "indices of floats": (
        lambda t: ops.scatter_reduce(t.x, t.row, "sum", axis_size=2),
        TypeError,
        "scatter_reduce: indices row must hold integers",
    ),
    "indices not broadcast": (
        lambda t: ops.scatter_reduce(
            t.x, t.index, "sum", axis_size=2, enable_index_broadcast=False
        ),
        ValueError,
        r"indices \(2,\) must be of the rank of x \(2, 3\)",
    ),
    "initial values": (
        lambda t: ops.scatter_reduce(t.x, t.index, "sum", t.y),
        ValueError,
        r"initial_values \(3, 4\) do not fit x \(2, 3\) along axis 1",
    ),
    "initial values' size": (
        lambda t: ops.scatter_reduce(t.x, t.index, "sum", t.x, axis_size=4),
        ValueError,
        r"initial_values \(2, 3\) must be of rank 2, and of size 4 \(axis_size\) along axis 0",
    ),
    "initial values' dtype": (
        lambda t: ops.scatter_reduce(t.x, t.index, "sum", t.half),
        TypeError,
        "operands must have one dtype",
    ),
    "groups": (
        lambda t: ops.grouped_scatter_reduce(t.x, t.index, "sum", axis_size=2, group_size=3),
        ValueError,
        r"grouped_scatter_reduce: x \(2, 3\) must have 3 groups along its first axis",
    ),
    "groups' axis": (
        lambda t: ops.grouped_scatter_reduce(t.x, t.index, "sum", axis_size=2, group_size=2),
        ValueError,
        r"axis 0 of x \(2, 3\) is that of the groups",
    ),
    "no group": (
        lambda t: ops.grouped_scatter_reduce(t.x, t.index, "sum", axis_size=2, group_size=0),
        ValueError,
        "group_size must be at least 1, got 0",
    ),
    "groupedgather": (
        lambda t: ops.groupedgather(t.x, t.row.reshape((3,)), 1, 2),
        TypeError,
        "groupedgather: indices reshape must hold integers",
    ),
    "groups to gather": (
        lambda t: ops.groupedgather(t.y, t.index, 1, 3),
        ValueError,
        r"groupedgather: index \(2,\) must have 3 groups",
    ),
    "axis of the groups": (
        lambda t: ops.groupedgather(t.x, t.index, 0, 2),
        ValueError,
        r"groupedgather: axis 0 of x \(2, 3\) is that of the groups",
    ),
    "seed's dtype": (
        lambda t: ops.dropout(t.x, t.index, 0.5),
        ValueError,
        r"dropout: the seed must be uint32 of shape \(2,\), index is int32 \(2,\)",
    ),
    "seed's shape": (
        lambda t: ops.split_random_seed(seed()[:1]),
        ValueError,
        r"split_random_seed: the seed must be .* slice is uint32 \(1,\)",
    ),
    "seeds": (lambda t: ops.split_random_seed(seed(), 0), ValueError, "at least 1, got 0"),
    "p": (lambda t: ops.dropout(t.x, seed(), 1), ValueError, "p must be from 0 on and below 1"),
    "ratio": (
        lambda t: ops.shaped_dropout(t.x, seed(), (2, 1), -0.1),
        ValueError,
        "shaped_dropout: ratio must be from 0 on and below 1, got -0.1",
    ),
    "p of another kind": (
        lambda t: ops.dropout(t.x, seed(), "0.5"),
        TypeError,
        "p must be a number, got '0.5'",
    ),
    "mask": (
        lambda t: ops.shaped_dropout(t.x, seed(), (2, 2), 0.1),
        ValueError,
        r"shaped_dropout: shape \(2, 2\) does not broadcast to x \(2, 3\)",
    ),
    "larger mask": (
        lambda t: ops.shaped_dropout(t.row, seed(), (2, 3), 0.1),
        ValueError,
        r"shape \(2, 3\) does not broadcast to row \(3,\)",
    ),
    "dropout of bools": (lambda t: ops.dropout(t.flag, seed(), 0.1), TypeError, "flag must hold"),
    "bounds": (
        lambda t: ops.random_uniform(seed(), (2,), 1, 0),
        ValueError,
        "random_uniform: high 0 is below low 1",
    ),
    "std": (lambda t: ops.random_normal(seed(), (2,), 0, -1), ValueError, "at least 0, got -1"),
    "random integers": (
        lambda t: ops.random_normal(seed(), (2,), dtype=popxl.int32),
        TypeError,
        "random_normal: dtype must be a float type, got int32",
    ),
    "accumulate_": (
        lambda t: var_updates.accumulate_(t.x, t.row),
        ValueError,
        r"accumulate_: x is \(2, 3\), row is \(3,\)",
    ),
    "factor": (
        lambda t: var_updates.accumulate_square_(t.x, t.x, t.row),
        ValueError,
        r"accumulate_square_: the factor must be a scalar, row is \(3,\)",
    ),
    "no factor": (
        lambda t: var_updates.accumulate_mean_(t.x, t.x, None),
        TypeError,
        "accumulate_mean_: the factor must be a number or a tensor, got None",
    ),
    "factor of another kind": (
        lambda t: var_updates.accumulator_scale_(t.x, "2"),
        TypeError,
        "accumulator_scale_: the factor must be a number or a tensor, got '2'",
    ),
    "sparse_accumulate_": (
        lambda t: var_updates.sparse_accumulate_(t.y, t.x, t.index),
        ValueError,
        r"sparse_accumulate_: x must be of shape \(2, 4\) for y \(3, 4\) and indices \(2,\)",
    ),
    "code of no graph": (
        lambda t: ops.remote_code_load(t.x, "executable"),
        TypeError,
        "remote_code_load: expected a graph, got Variable",
    ),
    "code of the current graph": (
        lambda t: ops.remote_code_load(t.ir.main_graph, "executable"),
        ValueError,
        r"The remote_code_load op cannot load the code of the graph that it is in \(main\)",
    ),
    "code elsewhere": (
        lambda t: ops.remote_code_load(t.graph, "disk"),
        ValueError,
        "destination 'disk': allowed are executable, compute_buffer, io_buffer",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_does_not_fit_is_refused(name, things):
    misuse, error, message = CASES[name]
    with pytest.raises(error, match=message) as caught:
        misuse(things)
    assert "\n" not in str(caught.value)
