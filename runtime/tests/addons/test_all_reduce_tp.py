"""Sums over tensor-parallel replicas."""

import numpy as np
import popxl
import pytest
from popxl_addons.ops.replicated_all_reduce_TP import (
    replicated_all_reduce,
    replicated_all_reduce_identical_grad_inputs,
    replicated_all_reduce_identical_inputs,
)


@pytest.fixture
def x(rng):
    return rng.standard_normal((4, 3)).astype(np.float32)


@pytest.mark.parametrize("op", [replicated_all_reduce, replicated_all_reduce_identical_grad_inputs])
def test_members_of_a_group_get_their_sum(run, x, op):
    def build(t):
        ir = popxl.gir()
        pairs, strided = ir.replica_grouping(1, 2), ir.replica_grouping(2, 2)
        return op(t), op(t, group=pairs), op(t, "add", strided)

    everyone, pairs, strided = run(build, x, replicas=4)

    np.testing.assert_allclose(everyone, np.tile(x.sum(0), (4, 1)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pairs, np.repeat([x[0] + x[1], x[2] + x[3]], 2, axis=0), rtol=1e-6)
    np.testing.assert_allclose(strided, np.tile([x[0] + x[2], x[1] + x[3]], (2, 1)), rtol=1e-6)


def test_identical_inputs_pass_as_they_are(run, x):
    (y,) = run(replicated_all_reduce_identical_inputs, x, replicas=4)

    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize(
    "op",
    [
        replicated_all_reduce,
        replicated_all_reduce_identical_grad_inputs,
        replicated_all_reduce_identical_inputs,
    ],
)
def test_only_sums_are_supported(main_graph, op):
    t = popxl.constant(np.zeros(2, np.float32))

    with pytest.raises(ValueError, match="op must be 'add', got 'mul'"):
        op(t, "mul")
