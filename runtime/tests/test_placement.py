"""IPUs and tiles, which programs name, and hooks on the making of ops."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl.errors import UndefinedValue
from programs import run_program


def test_tensors_know_where_they_were_placed(main_graph):
    v = popxl.variable(1)
    with popxl.ipu(1), popxl.io_tiles():
        there = v + 1
    here = v + 1
    assert (there.ipu, there.tile_set) == (1, "io")
    assert (here.ipu, here.tile_set) == (0, "compute")
    for ask in (lambda: v.ipu, lambda: v.tile_set):
        with pytest.raises(UndefinedValue, match="is made by no op"):
            ask()


def test_copies_between_ipus_are_the_same_value():
    def build(x):
        y = ops.ipu_copy(x, 1)
        with popxl.ipu(1):
            z = (y * 2).copy_to_ipu(0)
        assert (y.ipu, z.ipu) == (1, 0)
        return [y, z]

    x = np.arange(3, dtype=np.float32)
    y, z = run_program(build, x)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(z, 2 * x)


def test_a_variable_is_copied_from_a_named_ipu(main_graph):
    v = popxl.variable(1, name="v")
    assert v.copy_to_ipu(2, 0).ipu == 2
    with pytest.raises(ValueError, match="ipu_copy: v is placed on no IPU: give the source"):
        ops.ipu_copy(v, 2)


def test_hooks_are_called_with_the_ops_of_their_graph(main_graph):
    seen, also = [], []
    handle = main_graph.register_op_created_hook(lambda op: seen.append(op.kind))
    main_graph.register_op_created_hook(lambda op: also.append(op.kind))
    x = popxl.variable(1) + 1
    main_graph.ir.create_graph(lambda y: y * 2, x)
    assert seen == also == ["add"]
    main_graph.remove_op_created_hook(handle)
    ops.abs(x)
    assert (seen, also) == (["add"], ["add", "abs"])
    with pytest.raises(ValueError, match=f"has no hook {handle}"):
        main_graph.remove_op_created_hook(handle)


def test_variables_belong_to_the_main_graph(main_graph):
    sub = main_graph.ir.create_empty_graph("sub")
    with sub, pytest.raises(ValueError, match="variable v: it must be made in the main graph"):
        popxl.variable(1, name="v")


def test_indices_of_calls_that_are_not_there(main_graph):
    x = popxl.variable(1, name="x")
    graph = main_graph.ir.create_graph(lambda a, b: a + b, x, x)
    call = ops.call_with_info(graph, x, x)
    branch = ops.conditional_with_info(popxl.constant(True), graph, graph, (x, x), (x, x))
    assert branch.graph_to_parent_input_index(1, then_branch=False) == 4
    asked = [
        lambda: call.graph_to_parent_input_index(2),
        lambda: call.parent_to_graph_output_index(1),
        lambda: branch.graph_to_parent_input_index(2),
        lambda: branch.parent_to_graph_input_index(5),
        lambda: branch.is_parent_index_in_then_branch(5),
        lambda: branch.graph_to_parent_output_index(1, False),
    ]
    for ask in asked:
        with pytest.raises(IndexError, match="there is no (input|output)"):
            ask()
