"""Options and small habits of programs written for the SDK that have an effect here."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl import ops


def test_the_option_for_the_number_of_replicas_sets_it():
    ir = popxl.Ir()
    options = ir._pb_ir.getSessionOptions()
    options.enableReplicatedGraphs = True
    options.replicatedGraphCount = 2
    assert ir.replication_factor == 2
    with ir.main_graph:
        x = popxl.variable(np.ones((2, 3), np.float32))
        assert ops.collectives.replicated_all_gather(x).nelms == 12
    ir.replication_factor = 4
    assert options.replicatedGraphCount == 4


@pytest.mark.parametrize("value", [0, 1.5, "two"])
def test_a_number_of_replicas_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match="replication must be"):
        popxl.Ir()._pb_ir.getSessionOptions().replicatedGraphCount = value


@pytest.mark.parametrize(("value", "allowed"), [("half", True), ("float", True), ("foo", False)])
def test_the_option_for_partial_sums_is_checked(main_graph, value, allowed):
    main_graph.ir._pb_ir.getSessionOptions().partialsTypeMatMuls = value
    x = popxl.variable(np.ones((2, 2), np.float32))
    if allowed:
        ops.matmul(x, x)
        return
    with pytest.raises(ValueError, match="partialsTypeMatMuls 'foo': allowed are half and float"):
        ops.matmul(x, x)


def test_the_environment_names_a_cache(monkeypatch):
    assert not popxl.Ir()._pb_ir.getSessionOptions().enableEngineCaching
    monkeypatch.setenv("POPXL_CACHE_DIR", "somewhere")
    options = popxl.Ir()._pb_ir.getSessionOptions()
    assert (options.enableEngineCaching, options.cachePath) == (True, "somewhere")


def test_a_session_stays_on_its_device():
    session = popxl.Session(popxl.Ir(), "cpu")
    session.device = "ipu_model"
    assert session.device == "cpu"


def test_graphs_of_two_programs_are_not_nested(main_graph):
    other = popxl.Ir()
    with pytest.raises(RuntimeError, match=r"inside graph main of another Ir"), other.main_graph:
        pass
    assert popxl.gcg() is main_graph


@pytest.mark.parametrize("use", ["call", "repeat", "conditional", "constant", "variable"])
@pytest.mark.parametrize("thing", ["a", None])
def test_what_holds_no_numbers_is_no_tensor(main_graph, use, thing):
    x = popxl.variable(1)
    graph = main_graph.ir.create_graph(lambda a: a, x)
    uses = {
        "call": lambda: ops.call(graph, thing),
        "repeat": lambda: ops.repeat(graph, 2, thing),
        "conditional": lambda: ops.conditional(popxl.variable(True), graph, graph, [thing], [x]),
        "constant": lambda: popxl.constant(thing),
        "variable": lambda: popxl.variable(thing),
    }
    with pytest.raises(TypeError, match="a tensor holds numbers, (not text, )?got"):
        uses[use]()


def test_a_regular_grouping_shows_its_stride_and_size():
    ir = popxl.Ir(replication=8)
    shown = "ReplicaGrouping(num_replicas=8, stride=2, group_size=4, num_groups=2)"
    assert repr(ir.replica_grouping(stride=2, group_size=4)) == shown
    irregular = [0, 0, 1, 1, 0, 0, 1, 1]
    shown = f"ReplicaGrouping(assignment={irregular})"
    assert repr(ir.replica_grouping_from_assignments(irregular)) == shown


def test_the_graphs_of_a_program_can_be_counted():
    ir = popxl.Ir()
    ir.create_graph(lambda x: x + 1, popxl.TensorSpec((), popxl.float32))

    assert [graph.id for graph in ir._pb_ir.getAllGraphs()][0] == ir.main_graph.id
    assert len(ir._pb_ir.getAllGraphs()) == 2
