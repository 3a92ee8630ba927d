"""BLOOM's passes with weights and cache streamed to a stand-in for a GPU, against those that are
there."""

from __future__ import annotations

import numpy as np
import pytest
from bloom_checkpoints import config_of, passes_of, random_bloom
from popxl_torch.backends.cuda import lanes
from recording_lanes import RecordingLanes

LAYERS, LENGTH, ROWS = 5, 24, 2


def logits_of_steps(model, config) -> np.ndarray:
    """Prompts and tokens in turns: `(steps, rows, vocabulary)`."""
    at = np.array([3, 6], np.int32)
    with passes_of(model, config) as passes:
        steps = [np.stack([passes.prefill(row, [row + 1] * at[row]) for row in range(ROWS)])]
        for _ in range(3):
            steps.append(passes.decode(np.array([5, 130]), at))
            at += 1
        steps.append(np.stack([passes.prefill(row, [row + 9] * 20) for row in range(ROWS)]))
    return np.stack(steps)


@pytest.mark.parametrize("shards", [(1, 1), (2, 2)])
@pytest.mark.parametrize("weight_precision", ["full", "int4"])
def test_logits_are_the_same(monkeypatch, shards, weight_precision):
    model = random_bloom(4, 131, layers=LAYERS)
    config = config_of(
        model, *shards, LENGTH, ROWS, weight_precision=weight_precision, group_size=16
    )
    expected = logits_of_steps(model, config)
    device = RecordingLanes(free=0)
    monkeypatch.setattr(lanes, "lanes_of", lambda of: device)
    np.testing.assert_array_equal(logits_of_steps(model, config), expected)
    # Passes load in one order: all but what the first ones learn it from is asked for ahead, and
    # so other copies are asked for before it is waited for.
    copies = [copy for copy in device.copies if copy.kind == "copy"]
    ahead = [copy for copy in copies if copy.waited is None or copy.waited > copy.asked + 1]
    assert len(ahead) > 0.8 * len(copies)
    # Of each layer keys and values, after every pass: four prompts of a chunk or two, three tokens.
    passes, left = divmod(len(device.copies) - len(copies), 2 * LAYERS)
    assert (7 <= passes <= 11, left) == (True, 0)
