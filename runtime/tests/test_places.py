"""IPUs and tiles of a replica: what ops take and refuse, as PopXL does; values do not change."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl.errors import UndefinedValue
from popxl.ops.utils import check_tensor_ipu_and_tile_set
from programs import run_program

APART = {
    "IPU": (lambda: popxl.ipu(1), "different IPUs, 0 and 1: use ops.ipu_copy"),
    "tiles": (popxl.io_tiles, "different tile sets, compute and io: use ops.io_tile_copy"),
}
TOGETHER = {
    "IPU": lambda t: ops.ipu_copy(t, 0),
    "tiles": ops.io_tile_copy,
}
OPS = {
    "add": lambda a, b: a + b,
    "matmul": ops.matmul,
    "concat": lambda a, b: ops.concat([a, b]),
    "where": lambda a, b: ops.where(a, b, b),
    "add_": ops.add_,
}


def _two(place):
    """A tensor on the first IPU's compute tiles, and one elsewhere."""
    first = ops.add(popxl.variable(np.ones((2, 2), np.float32)), 0)
    with place():
        second = ops.add(popxl.variable(np.ones((2, 2), np.float32)), 0)
    return first, second


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("case", APART)
def test_ops_need_their_inputs_together(main_graph, case, op):
    place, where = APART[case]
    first, second = _two(place)
    with pytest.raises(ValueError, match=f"{op.rstrip('_')}: .* and .* lie on {where}"):
        OPS[op](first, second)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("case", APART)
def test_a_copy_brings_them_together(main_graph, case, op):
    place, _ = APART[case]
    first, second = _two(place)
    OPS[op](first, TOGETHER[case](second))


@pytest.mark.parametrize("case", APART)
def test_writers_of_ops_may_ask(main_graph, case):
    place, where = APART[case]
    first, second = _two(place)
    variable = popxl.variable(0)
    check_tensor_ipu_and_tile_set(a=first, b=first, c=variable)
    with pytest.raises(ValueError, match=f"^a and c lie on {where}$"):
        check_tensor_ipu_and_tile_set(a=first, b=variable, c=second)


def test_ops_may_be_placed_on_no_ipu_in_particular(main_graph):
    first, second = _two(lambda: popxl.ipu(None))
    assert second.tile_set == "compute"
    with pytest.raises(UndefinedValue, match="made on no IPU"):
        _ = second.ipu
    with pytest.raises(ValueError, match="is placed on no IPU: give the source"):
        ops.ipu_copy(second, 1)
    first + second


def test_what_no_op_makes_lies_anywhere(main_graph):
    with popxl.ipu(1):
        made = popxl.variable(1.0) + 1
    made + popxl.variable(2.0)
    graph = main_graph.ir.create_graph(lambda a, b: a + b, made, made)
    graph_outputs = ops.call(graph, made, popxl.variable(2.0))
    assert graph_outputs[0].ipu == 0


@pytest.mark.parametrize("run", [ops.call, lambda graph, x: ops.repeat(graph, 2, x)])
def test_what_a_graph_makes_lies_where_it_makes_it(main_graph, run):
    def on_the_second(x):
        with popxl.ipu(1), popxl.io_tiles():
            return x + 1

    x = popxl.variable(1.0)
    (made,) = run(main_graph.ir.create_graph(on_the_second, x), x)
    assert (made.ipu, made.tile_set) == (1, "io")


@pytest.mark.parametrize("ipus", [1, 3])
def test_a_pipeline_of_stages_computes_what_one_stage_does(ipus):
    def build(x):
        for stage in range(ipus):
            with popxl.ipu(stage) if ipus > 1 else nullcontext():
                x = ops.ipu_copy(x, stage, max(stage - 1, 0)) * 2 + 1
        return [x]

    (y,) = run_program(build, np.arange(3, dtype=np.float32))
    expected = np.arange(3, dtype=np.float32)
    for _ in range(ipus):
        expected = expected * 2 + 1
    np.testing.assert_array_equal(y, expected)
