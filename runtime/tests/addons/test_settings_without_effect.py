"""Settings for an IPU: accepted, and the program computes the same."""

import numpy as np
import popxl
import pytest
from popxl_addons.patterns import apply_pre_alias_patterns
from popxl_addons.transforms.available_memory_proportion import (
    set_available_memory_proportion_by_ipu,
    set_graph_available_memory_proportion_by_ipu,
)
from popxl_addons.transforms.use_fc_pass import disable_fc_pass, enable_fc_pass


@pytest.mark.parametrize(
    "setting",
    [
        lambda ir: set_available_memory_proportion_by_ipu(ir, [0.1, 0.2]),
        lambda ir: set_graph_available_memory_proportion_by_ipu(ir.main_graph, [0.1]),
        disable_fc_pass,
        enable_fc_pass,
        apply_pre_alias_patterns,
        lambda ir: apply_pre_alias_patterns(ir, level="all"),
    ],
)
def test_a_setting_leaves_the_result_as_it_is(run, rng, setting):
    x, w = (rng.standard_normal((3, 3)).astype(np.float32) for _ in range(2))

    def build(x, w):
        y = x @ w
        setting(popxl.gir())
        return y

    np.testing.assert_allclose(run(build, x, w)[0], x @ w, rtol=1e-5, atol=1e-6)


def test_proportions_outside_0_to_1_are_refused(main_graph):
    with pytest.raises(ValueError, match="got 1.5"):
        set_available_memory_proportion_by_ipu(popxl.gir(), [0.5, 1.5])
    with pytest.raises(ValueError, match="got -1"):
        set_graph_available_memory_proportion_by_ipu(main_graph, [-1])


def test_an_unknown_level_of_patterns_is_refused(main_graph):
    with pytest.raises(ValueError, match="no_patterns, minimal, default, all, got 'most'"):
        apply_pre_alias_patterns(popxl.gir(), "most")
