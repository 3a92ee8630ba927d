"""Trees of tensors and of replica groupings."""

import numpy as np
import popxl
import pytest
from popxl_addons import NamedReplicaGrouping, NamedTensors


@pytest.fixture
def tensors(main_graph):
    return NamedTensors.from_dict(
        {
            "layer.weight": popxl.variable(np.zeros(2, np.float32), name="b"),
            "layer.bias": popxl.variable(np.zeros(2, np.float32), name="a"),
        }
    )


def test_tensors_come_in_the_order_of_their_own_names(tensors):
    assert [t.name for t in tensors.tensors] == ["a", "b"]
    assert list(tensors.named_tensors) == ["layer.weight", "layer.bias"]


def test_remap_replaces_every_tensor(tensors):
    others = {
        t: popxl.variable(np.zeros(2, np.float32), name=f"new_{t.name}") for t in tensors.tensors
    }

    remapped = tensors.remap(others)

    assert isinstance(remapped, NamedTensors)
    assert remapped.layer.weight.name == "new_b"
    assert tensors.layer.weight.name == "b"


def test_remap_names_the_tensors_it_has_nothing_for(tensors):
    with pytest.raises(KeyError, match="layer.bias"):
        tensors.remap({tensors.layer.weight: tensors.layer.bias})


def test_build_groups_puts_one_grouping_under_every_name():
    ir = popxl.Ir(replication=4)
    pairs = ir.replica_grouping(stride=1, group_size=2)
    with ir.main_graph:
        groups = NamedReplicaGrouping.build_groups(["layer.weight", "layer.bias"], pairs)
        default = NamedReplicaGrouping.build_groups(["weight"])

    assert groups.keys_flat() == ["layer.weight", "layer.bias"]
    assert list(groups.layer.bias.assignment) == [0, 0, 1, 1]
    assert list(default.weight.assignment) == [0, 0, 0, 0]
