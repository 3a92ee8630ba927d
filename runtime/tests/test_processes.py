"""Replicas in several processes: the same results as in one, held against numpy."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import popdist
import popxl
import pytest
from collectives_on_numpy import IRREGULAR, REPLICAS, STRIDED, check_all, own_replicas
from popxl import ops
from popxl.ops.collectives import replicated_all_reduce
from popxl_torch.analysis.cost import cost_of
from processes import run_in_processes, started
from programs import run_program, store


def spread(replicas: int = REPLICAS) -> popxl.Ir:
    ir = popxl.Ir(replication="popdist")
    ir.replication_factor = replicas
    return ir


def every_collective_over_every_grouping() -> None:
    for stride, size in STRIDED:
        ir = spread()
        check_all(ir, [ir.replica_grouping(stride, size)], [[r // 4 for r in range(16)]])
    for assignment in IRREGULAR.values():
        ir = spread()
        group = ir.replica_grouping_from_assignments(assignment)
        check_all(ir, [group, group.transpose(), ir.replica_grouping(4, 4)], [assignment])


@pytest.mark.parametrize("count", [2, 4])
def test_every_collective_over_every_grouping(count):
    run_in_processes(count, every_collective_over_every_grouping)


def sums(dtype: np.dtype, elements: int) -> list[np.ndarray]:
    """What the replicas of this process get of sums over groups within it and across."""
    x = np.random.default_rng(0).normal(size=(REPLICAS, 2, elements)).astype(dtype)
    ir = spread()
    groups = [ir.replica_grouping(1, 4), ir.replica_grouping(4, 4), ir.replica_grouping()]
    return run_program(
        lambda t: [replicated_all_reduce(t, op, g) for g in groups for op in ("add", "mean")],
        x[own_replicas(ir)],
        ir=ir,
    )


@pytest.mark.parametrize("elements", [3, 5001])  # the second is reduced in parts
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_sums_are_those_of_one_process_to_the_bit(dtype, elements):
    together = sums(dtype, elements)
    apart = run_in_processes(4, sums, dtype, elements)
    for number, whole in enumerate(together):
        parts = np.concatenate([results[number] for results in apart])
        np.testing.assert_array_equal(parts.view(np.uint8), whole.view(np.uint8))


def variables_in_and_out() -> None:
    """What variables of several groupings hold after a run, and are said to hold."""
    ir = spread(8)
    groups = [ir.replica_grouping(s, n) for s, n in [(1, 8), (1, 1), (4, 2), (1, 2), (2, 2)]]
    arrays = [np.arange(3 * g.num_groups, dtype=np.float32).reshape(-1, 3) for g in groups]
    arrays[0] = arrays[0][0]
    with ir.main_graph:
        variables = [
            popxl.variable(np.zeros_like(a), replica_grouping=g)
            for a, g in zip(arrays, groups, strict=True)
        ]
        for variable in variables:
            ops.var_updates.copy_var_update_(variable, variable + 1)
        streams = store(variables)
    with popxl.Session(ir) as session:
        session.write_variables_data(dict(zip(variables, arrays, strict=True)))
        outputs = session.run()
        held = session.get_tensors_data(variables)
    own = own_replicas(ir)
    for array, group, variable, stream in zip(arrays, groups, variables, streams, strict=True):
        of_replica = array[group.assignment] if group.num_groups > 1 else np.stack([array] * 8)
        np.testing.assert_array_equal(outputs[stream], of_replica[own] + 1)
        np.testing.assert_array_equal(held[variable], array + 1)


@pytest.mark.parametrize("count", [2, 4])
def test_a_process_holds_its_groups_of_a_variable(count):
    run_in_processes(count, variables_in_and_out)


def variables_of_every_replica() -> None:
    """Replicas of a group come to hold values of their own; each is read back."""
    ir = spread(8)
    groups = [ir.replica_grouping(s, n) for s, n in [(1, 8), (1, 4), (4, 2)]]
    arrays = [np.arange(3 * g.num_groups, dtype=np.float32).reshape(-1, 3) for g in groups]
    arrays[0] = arrays[0][0]
    with ir.main_graph:
        stream = popxl.h2d_stream((3,), popxl.float32)
        x = ops.host_load(stream)
        variables = [
            popxl.variable(array, replica_grouping=group, retrieval_mode="all_replicas")
            for array, group in zip(arrays, groups, strict=True)
        ]
        for variable in variables:
            ops.add_(variable, x)
    added = np.arange(24, dtype=np.float32).reshape(8, 3) * 100
    with popxl.Session(ir) as session:
        session.run({stream: added[own_replicas(ir)]})
        held = session.get_tensors_data(variables)
    for array, group, variable in zip(arrays, groups, variables, strict=True):
        of_replica = array[group.assignment] if group.num_groups > 1 else np.stack([array] * 8)
        np.testing.assert_array_equal(held[variable], of_replica + added)


@pytest.mark.parametrize("count", [2, 4])
def test_every_replicas_variable_is_read_from_all_processes(count):
    run_in_processes(count, variables_of_every_replica)


def test_the_environment_says_how_many_replicas_a_process_runs(monkeypatch):
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "POPDIST_NUM_LOCAL_REPLICAS": 3}.items():
        monkeypatch.setenv(name, str(value))
    assert (popdist.getNumLocalReplicas(), popdist.getNumTotalReplicas()) == (3, 6)
    ir = popxl.Ir(replication="popdist")
    assert (ir.replication_factor, ir.instance_replication_factor) == (6, 3)
    options = ir._pb_ir.getSessionOptions()
    assert options.globalReplicaOffset == 3
    ir.replication_factor = 4
    assert options.globalReplicaOffset == 2
    assert popxl.Ir().replication_factor == 1


@pytest.mark.parametrize(("text", "message"), [("0", "at least 1"), ("two", "a whole number")])
def test_replicas_of_a_process_are_a_positive_number(monkeypatch, text, message):
    monkeypatch.setenv("POPDIST_NUM_LOCAL_REPLICAS", text)
    with pytest.raises(ValueError, match=f"POPDIST_NUM_LOCAL_REPLICAS is .*{message}"):
        popdist.getNumLocalReplicas()


def collectives_counted() -> tuple[tuple[int, int], tuple[int, int]]:
    ir = spread(4)
    with ir.main_graph:
        x = ops.host_load(popxl.h2d_stream((5,), popxl.float32, "x"))
        groups = [ir.replica_grouping(1, 2), ir.replica_grouping(2, 2), ir.replica_grouping()]
        for group in groups:
            x = x + replicated_all_reduce(x, group=group)
        x = x + replicated_all_reduce(x, "local")
        ops.host_store(popxl.d2h_stream(x.shape, x.dtype, "y"), x)
    cost = cost_of(ir.main_graph)
    with popxl.Session(ir) as session:
        (stream,) = session.expected_inputs()
        session.run({stream: np.zeros((ir.instance_replication_factor, 5), np.float32)})
        traffic = session.traffic
    return (cost.process_calls, cost.process_bytes), (traffic.calls, traffic.bytes)


def test_collectives_between_processes_are_counted_as_predicted():
    for predicted, counted in run_in_processes(2, collectives_counted):
        # Two of four replicas here: two of the groupings cross, 20 bytes a replica.
        assert predicted == counted == (2, 80)


def apart() -> None:
    """Ranks 0 and 3 reduce with a neighbour, ranks 1 and 2 across: each waits for the next one."""
    ir = spread(4)
    neighbours, across = ir.replica_grouping(1, 2), ir.replica_grouping(2, 2)
    with ir.main_graph:
        stream = popxl.h2d_stream((), popxl.int32, "first")
        first = ops.host_load(stream)
        graphs = [
            ir.create_graph(lambda t, group: replicated_all_reduce(t, group=group), first, group)
            for group in (neighbours, across)
        ]
        (x,) = ops.conditional(ops.equal(first, 1), *graphs, [first], [first])
        ops.host_store(popxl.d2h_stream((), popxl.int32, "y"), x)
    with popxl.Session(ir) as session:
        session.run({stream: np.array(popdist.getInstanceIndex() in (0, 3), np.int32)})


def test_processes_that_wait_for_each_other_in_different_collectives_end(tmp_path):
    assert " waited in vain for another: " in error_of(4, apart, tmp_path)


def error_of(count: int, function: Callable, folder: Path) -> str:
    """The one line that processes end with, all by status 1."""
    errors = folder / "errors"
    limits = {"POPDIST_TIMEOUT": "2", "POPDIST_SILENCE": "2"}
    with started(count, function, errors=str(errors), **limits) as processes:
        for process in processes:
            process.join(20)
    assert [process.exitcode for process in processes] == [1] * count
    (line,) = errors.read_text().splitlines()
    return line


def hanging() -> None:
    """Rank 1 comes to the first of two runs, and then waits for nobody."""
    ir = spread(4)
    with ir.main_graph:
        stream = popxl.h2d_stream((), popxl.int32, "x")
        x = replicated_all_reduce(ops.host_load(stream))
        ops.host_store(popxl.d2h_stream((), popxl.int32, "y"), x)
    with popxl.Session(ir) as session:
        for number in range(2):
            if number and popdist.getInstanceIndex() == 1:
                threading.Event().wait()
            session.run({stream: np.zeros(2, np.int32)})


def test_a_process_that_others_wait_for_too_long_in_a_collective_ends_all(tmp_path):
    error = error_of(2, hanging, tmp_path)
    assert error.startswith("error: rank 0 waited in vain for another: ")


def differing() -> str:
    """Replicas of a process differ in the condition of a branch that needs another process."""
    ir = spread(4)
    with ir.main_graph:
        stream = popxl.h2d_stream((), popxl.int32, "first")
        first = ops.host_load(stream)
        graphs = [ir.create_graph(f, first) for f in (replicated_all_reduce, lambda t: t + 1)]
        (x,) = ops.conditional(ops.equal(first, 1), *graphs, [first], [first])
        ops.host_store(popxl.d2h_stream((), popxl.int32, "y"), x)
    with popxl.Session(ir) as session:
        try:
            session.run({stream: np.arange(2, dtype=np.int32)})
        except RuntimeError as error:
            return str(error)
    return ""


def test_a_collective_between_processes_that_not_all_replicas_reach_is_refused():
    for error in run_in_processes(2, differing):
        assert "a branch has an all_reduce between processes" in error
