"""Graphs, streams, buffers and replicas that do not fit, and what goes wrong in a run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import popxl
import pytest
from misuse import Things, add_up
from popxl import ops
from popxl.ops import collectives
from popxl_torch.lowering.rules import RULES
from programs import run_program

CASES = {
    "store shape": (
        lambda t: ops.remote_store(t.buffer, 0, t.row),
        ValueError,
        r"tensor row is float32 \(3,\), remote buffer 1 holds float32 \(2, 3\)",
    ),
    "store dtype": (lambda t: ops.remote_store(t.buffer, 0, t.half), ValueError, "half is float16"),
    "load_ shape": (lambda t: ops.remote_load_(t.buffer, 0, t.row), ValueError, "tensor row is"),
    "offset": (
        lambda t: ops.remote_load(t.buffer, 4),
        ValueError,
        "offset 4 is outside .*entries=4",
    ),
    "offset below": (lambda t: ops.remote_store(t.buffer, -1, t.x), ValueError, "offset -1 is out"),
    "offset shape": (lambda t: ops.remote_load(t.buffer, t.index), ValueError, r"index is \(2,\)"),
    "offset dtype": (
        lambda t: ops.remote_load(t.buffer, t.scalar),
        TypeError,
        "offset scalar must",
    ),
    "no buffer": (
        lambda t: ops.remote_load(t.x, 0),
        TypeError,
        "expected a remote buffer, got Var",
    ),
    "no entries": (lambda t: popxl.remote_buffer((1,), popxl.int8, 0), ValueError, "got 0"),
    "remote variable": (
        lambda t: popxl.remote_variable(np.zeros((2, 4), np.float32), t.buffer, name="w"),
        ValueError,
        r"variable w is float32 \(2, 4\), a slot of .* holds 6 elements of float32",
    ),
    "remote variable offset": (
        lambda t: popxl.remote_variable(np.zeros((2, 3)), t.buffer, 5, name="w"),
        ValueError,
        "remote_variable w: offset 5 is outside",
    ),
    "host_store shape": (
        lambda t: ops.host_store(t.d2h, t.row),
        ValueError,
        r"stream d2h carries \(2, 3\), row is \(3,\)",
    ),
    "host_store dtype": (lambda t: ops.host_store(t.d2h, t.half), TypeError, "half is float16"),
    "no d2h": (lambda t: ops.host_store(t.h2d, t.x), TypeError, "expected a device-to-host stream"),
    "no h2d": (lambda t: ops.host_load(t.d2h), TypeError, "expected a host-to-device stream"),
    "graph's tensor": (
        lambda t: ops.add(t.x, t.inner),
        ValueError,
        "add: tensor a belongs to graph add_up_0, the current graph is main",
    ),
    "output": (
        lambda t: popxl.graph_output(t.inner),
        ValueError,
        "tensor a belongs to graph add_up_0",
    ),
    "main input": (
        lambda t: popxl.graph_input((), popxl.int8),
        RuntimeError,
        "main graph takes no",
    ),
    "missing": (lambda t: ops.call(t.graph, t.x), ValueError, "add_up_0: no value for input b"),
    "too many": (
        lambda t: ops.call(t.graph, t.x, t.row, t.x),
        ValueError,
        "add_up_0: 3 inputs given, it has 2",
    ),
    "twice": (
        lambda t: ops.call(t.graph, t.x, inputs_dict={t.inner: t.x}),
        ValueError,
        "input a is given twice",
    ),
    "no input of it": (
        lambda t: ops.call(t.graph, t.x, inputs_dict={t.x: t.x}),
        ValueError,
        "'x' is not an input of it",
    ),
    "call shape": (
        lambda t: ops.call(t.graph, t.row, t.row),
        ValueError,
        r"input a is of shape \(2, 3\), row of \(3,\)",
    ),
    "call dtype": (
        lambda t: ops.call(t.graph, t.half, t.row),
        TypeError,
        "input a is float32, half is float16",
    ),
    "call of nothing": (
        lambda t: ops.call(add_up, t.x),
        TypeError,
        "call: expected a graph, got func",
    ),
    "call main": (
        lambda t: ops.call(t.ir.main_graph),
        ValueError,
        "cannot call itself or the main",
    ),
    "count": (lambda t: ops.repeat(t.graph, -1, t.x, t.row), ValueError, "add_up_0: .*got -1"),
    "repeat fits": (
        lambda t: ops.repeat(t.narrow, 2, t.x),
        ValueError,
        r"repeat: output .* float32 \(3,\) of graph .* cannot feed input a float32 \(2, 3\)",
    ),
    "repeat outputs": (
        lambda t: ops.repeat(t.ir.create_graph(lambda: t_new()), 2),
        ValueError,
        "has 1 outputs and only 0 inputs",
    ),
    "condition dtype": (
        lambda t: ops.conditional(t.scalar, t.narrow, t.narrow, [t.x], [t.x]),
        TypeError,
        "condition scalar must be bool, got float32",
    ),
    "condition shape": (
        lambda t: ops.conditional(t.flag, t.narrow, t.narrow, [t.x], [t.x]),
        ValueError,
        r"the condition must be a scalar, flag is \(2, 3\)",
    ),
    "branches": (
        lambda t: ops.conditional(t.condition, t.graph, t.narrow, [t.x, t.row], [t.x]),
        ValueError,
        r"outputs of add_up_0 .*\(2, 3\).* differ",
    ),
    "stride": (lambda t: t.ir.replica_grouping(0), ValueError, "stride=0, .* divide .* factor, 1"),
    "assignment": (
        lambda t: t.ir.replica_grouping_from_assignments([0, 1]),
        ValueError,
        "2 assignments given, the replication factor is 1",
    ),
    "replication": (lambda t: popxl.Ir(0), ValueError, "'popdist' or an integer from 1, got 0"),
    "transfers": (
        lambda t: setattr(t.ir, "num_host_transfers", 0),
        ValueError,
        "at least 1, got 0",
    ),
    "reduction": (
        lambda t: collectives.replicated_all_reduce(t.x, "avg"),
        ValueError,
        "replicated_all_reduce: op 'avg': allowed are add, mean",
    ),
    "reduction dtype": (
        lambda t: collectives.replicated_all_reduce_(t.x, "and"),
        TypeError,
        "replicated_all_reduce_: op 'and' needs a bool tensor, x is float32",
    ),
    "reduction bools": (
        lambda t: collectives.replicated_reduce_scatter(t.flag),
        TypeError,
        "replicated_reduce_scatter: flag must hold numbers, got bool",
    ),
    "group": (
        lambda t: collectives.replicated_all_reduce(t.x, group=4),
        TypeError,
        "replicated_all_reduce: the group must be a ReplicaGrouping, got 4",
    ),
    "gather shape": (
        lambda t: collectives.replicated_all_gather(t.x, output_shape="flat"),
        ValueError,
        "output_shape 'flat': allowed are auto, concat, new_axis, meta_shape",
    ),
    "gather meta": (
        lambda t: collectives.replicated_all_gather(t.x, output_shape="meta_shape"),
        ValueError,
        "replicated_all_gather: x has no meta shape",
    ),
    "gather axis": (
        lambda t: collectives.replicated_all_gather(t.x, 2),
        ValueError,
        r"axis 2 is outside x of shape \(2, 3\)",
    ),
    "retrieval": (
        lambda t: popxl.variable(1, retrieval_mode="some"),
        ValueError,
        "'some': allowed are one_per_group and all_replicas",
    ),
    "8-bit floats": (lambda t: popxl.variable(1, log2_scale=2), ValueError, "not supported here"),
}


def t_new() -> popxl.Tensor:
    return popxl.constant(1.0)


@pytest.mark.parametrize("case", CASES)
def test_refused_while_the_program_is_built(case, things):
    build, error, message = CASES[case]
    with pytest.raises(error, match=message):
        build(things)


@pytest.fixture
def other() -> Things:
    with popxl.Ir(replication=2).main_graph as graph:
        return Things(graph.ir)


def test_another_programs_things_are_refused(other, things):
    group = other.ir.replica_grouping()
    uses = {
        "add: tensor x belongs to graph main": lambda: things.x + other.x,
        "call of graph add_up_0: it belongs to another Ir": lambda: ops.call(other.graph, things.x),
        "host_load: .*h2d.* belongs to another Ir": lambda: ops.host_load(other.h2d),
        "host_store: .*d2h.* belongs to another Ir": lambda: ops.host_store(other.d2h, things.x),
        "remote_load: .*belongs to another Ir": lambda: ops.remote_load(other.buffer, 0),
        "w: .*belongs to another Ir": lambda: popxl.remote_variable(
            things.x, other.buffer, name="w"
        ),
        "group is of 2 replicas, the Ir has 1": lambda: collectives.replicated_all_reduce(
            things.x, group=group
        ),
        "variable w: its grouping is of 2 replicas, the Ir has 1": lambda: popxl.variable(
            np.zeros(2), name="w", replica_grouping=group
        ),
    }
    for message, use in uses.items():
        with pytest.raises(ValueError, match=message):
            use()


def test_data_without_an_entry_a_group_is_refused():
    ir = popxl.Ir(replication=4)
    with (
        ir.main_graph,
        pytest.raises(ValueError, match=r"w: .*4 groups.*\(4, \.\.\.\), got \(2, 3\)"),
    ):
        popxl.variable(
            np.zeros((2, 3)), name="w", replica_grouping=ir.replica_grouping(group_size=1)
        )


def test_groups_of_unequal_size_cannot_gather():
    ir = popxl.Ir(replication=3)
    group = ir.replica_grouping_from_assignments([0, 1, 1])
    with ir.main_graph:
        x = popxl.variable(np.zeros(3))
        for op in (collectives.replicated_all_gather, collectives.replicated_reduce_scatter):
            with pytest.raises(ValueError, match=r"groups of sizes \[1, 2\]"):
                op(x, group=group)


def test_there_is_no_current_graph_outside_all():
    for use in (popxl.gcg, popxl.gmg, popxl.gir, lambda: popxl.constant(1)):
        with pytest.raises(RuntimeError, match="no graph is current"):
            use()


@pytest.mark.parametrize(
    "cls", [popxl.Tensor, popxl.Graph, popxl.ReplicaGrouping, popxl.HostToDeviceStream]
)
def test_what_is_made_by_functions_is_not_constructed(cls):
    with pytest.raises(RuntimeError, match="constructed"):
        cls()


def test_a_dtype_is_not_constructed():
    with pytest.raises(TypeError, match="popxl.dtype cannot be constructed"):
        popxl.dtype()


def test_a_remote_variable_is_loaded_before_use():
    ir = popxl.Ir()
    with ir.main_graph:
        w = popxl.remote_variable(1.0, popxl.remote_buffer((), popxl.float32), name="w")
        _ = w + 1
    with pytest.raises(ValueError, match="w is a remote variable: load it with ops.remote_load"):
        popxl.Session(ir)


def test_an_op_without_a_rule_is_named_with_the_table_and_the_files(monkeypatch):
    monkeypatch.delitem(RULES, "gelu")
    with pytest.raises(
        NotImplementedError, match=r"'gelu' has no entry in RULES: .*rules\*\.py"
    ) as told:
        run_program(ops.gelu, np.ones(2, np.float32))
    (named,) = re.findall(r"runtime/\S+", str(told.value))
    runtime = Path(__file__).resolve().parents[1]
    assert runtime / f"{RULES['relu'].__module__.replace('.', '/')}.py" in runtime.parent.glob(
        named
    )


# --- while it runs ---


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize(
    "build, data, error, message",
    [
        (lambda i: ops.gather(i, i), [0, 9], IndexError, "gather: index 9 .* axis of size 2"),
        (lambda i: ops.gather(i, i), [0, -1], IndexError, "gather: index -1 .* axis of size 2"),
        (lambda i: ops.scatter(i, i, i), [0, 5], IndexError, "scatter: index 5 .* axis of size 2"),
        (lambda i: i / i, [3, 0], ZeroDivisionError, "div: an integer divisor is 0"),
        (lambda i: i % i, [3, 0], ZeroDivisionError, "fmod: an integer divisor is 0"),
    ],
)
def test_refused_while_the_program_runs(build, data, error, message, replicas, capfd):
    x = np.array(data, np.int32)
    x = x if replicas == 1 else np.stack([np.arange(1, 3, dtype=np.int32) % 2, x])
    with pytest.raises(error, match=message):
        run_program(build, x, replicas=replicas)
    assert capfd.readouterr().err == ""
