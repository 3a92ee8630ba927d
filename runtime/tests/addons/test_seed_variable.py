"""Seeds that last, one for each group of replicas."""

import numpy as np
import popxl
import popxl_addons as addons
import pytest
from popxl import ops
from programs import store


@pytest.mark.parametrize("size", [1, 2, 4, None])
def test_every_group_has_a_seed_of_its_own(size):
    ir = popxl.Ir(replication=4)
    with ir.main_graph:
        grouping = None if size is None else ir.replica_grouping(group_size=size)
        variable, seed = addons.seed_variable(1984, grouping)
        (out,) = store([seed])
    groups = 4 // (size or 1)
    seeds = popxl.create_seeds(1984, replicas=groups)
    with popxl.Session(ir) as session:
        got = session.run()[out]
        np.testing.assert_array_equal(session.get_tensor_data(variable), seeds)
    np.testing.assert_array_equal(got, np.repeat(seeds.reshape(groups, 2), 4 // groups, 0))


def test_a_seed_can_be_set_and_goes_on():
    ir = popxl.Ir()
    with ir.main_graph:
        variable, seed = addons.seed_variable(1)
        following, _ = ops.split_random_seed(seed)
        ops.var_updates.copy_var_update_(seed, following)
    with popxl.Session(ir) as session:
        values = [session.get_tensor_data(variable)]
        for _ in range(2):
            session.run()
            values.append(session.get_tensor_data(variable))
        session.write_variable_data(variable, values[0])
        session.run()
        np.testing.assert_array_equal(session.get_tensor_data(variable), values[1])
    assert len({tuple(v) for v in values}) == 3
