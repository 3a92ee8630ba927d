"""Replicas in several processes: the same results as in one, held against numpy."""

from __future__ import annotations

import popxl
import pytest
from collectives_on_numpy import IRREGULAR, REPLICAS, STRIDED, check_all
from processes import run_in_processes


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
