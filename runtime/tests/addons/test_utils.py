"""Containers and the timer."""

import logging
import sys
from types import SimpleNamespace

import numpy as np
import popxl
import pytest
from popxl_addons.utils import OrderedDict, WeightsDict, timer


def test_ordered_dict_gives_values_by_position():
    d = OrderedDict(first="a", second="b")

    assert (d.idx(0), d.idx(-1)) == ("a", "b")


@pytest.fixture
def weight():
    ir = popxl.Ir(replication=2)
    with ir.main_graph:
        data = np.zeros((2, 3), np.float16)
        return popxl.variable(data, name="weight", replica_grouping=ir.replica_grouping(1, 1))


def test_weights_dict_keeps_values_that_fit_their_variables(weight):
    weights = WeightsDict({weight: np.ones((2, 3), np.float16)})

    assert list(weights) == [weight]
    assert len(weights) == 1
    assert weights[weight].sum() == 6
    del weights[weight]
    assert weight not in weights


def test_weights_dict_refuses_another_dtype(weight):
    with pytest.raises(ValueError, match="weight is float16, its value is float32"):
        WeightsDict({weight: np.ones((2, 3), np.float32)})


def test_weights_dict_refuses_another_shape_than_the_hosts(weight):
    weights = WeightsDict()
    with pytest.raises(ValueError, match=r"weight has shape \(2, 3\) on the host.*\(3,\)"):
        weights[weight] = np.ones((3,), np.float16)
    assert len(weights) == 0


def test_weights_dict_takes_a_leading_1_for_one_group():
    with popxl.Ir().main_graph:
        whole = popxl.variable(np.zeros((2, 3), np.float32), name="whole")

    weights = WeightsDict({whole: np.ones((1, 2, 3), np.float32)})

    assert weights[whole].shape == (2, 3)
    with pytest.raises(ValueError, match=r"whole has shape \(2, 3\)"):
        weights[whole] = np.ones((1, 1, 2, 3), np.float32)


def test_timer_logs_its_title(caplog):
    with caplog.at_level(logging.INFO, logger="popxl_addons.utils"), timer("Loading weights"):
        pass

    assert caplog.messages[0] == "Starting Loading weights"
    assert caplog.messages[1].startswith("Loading weights duration: 0.0 s")


@pytest.mark.parametrize("wanted", [True, False])
def test_timer_tells_a_weights_and_biases_run_that_has_started(monkeypatch, wanted):
    summary = {}
    wandb = SimpleNamespace(run=SimpleNamespace(summary=summary))
    monkeypatch.setitem(sys.modules, "wandb", wandb)

    with timer("Loading weights", log_to_wandb=wanted):
        pass

    assert list(summary) == (["loading_weights_mins"] if wanted else [])
