"""BLOOM's passes with the GPU's kernels in place of the CPU's, against the program op by op."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bloom_checkpoints import config_of, passes_of, random_bloom
from popxl_torch.backends import chosen
from popxl_torch.backends import cuda as gpu
from triton_here import DEVICE, kernels

LAYERS, LENGTH, ROWS = 2, 24, 2
CASES = [
    ("full", "bfloat16", (1, 1)),
    ("int8", "float16", (1, 1)),
    ("int4", "bfloat16", (2, 2)),  # several replicas in one process
]
TOLERANCE = {"float16": 0.02, "bfloat16": 0.15}

pytestmark = pytest.mark.skipif(
    DEVICE.type != "cpu", reason="there is a GPU: test_cuda.py runs the passes on it"
)


@pytest.fixture
def called(monkeypatch) -> list[str]:
    """Lets sessions on the CPU use the kernels; the names of those that are called."""
    names: list[str] = []

    def watched(name: str):
        kernel = getattr(kernels, name)

        def call(*args, **kwargs):
            done = kernel(*args, **kwargs)
            names.extend([name] * (done is not None))
            return done

        monkeypatch.setattr(kernels, name, call)

    for name in ("linear", "token_attention", "chunk_attention", "verify_attention"):
        watched(name)
    monkeypatch.setattr(gpu, "kernels_for", lambda device: kernels)
    monkeypatch.setattr(chosen, "library", lambda: None)
    return names


def logits(model, config, **options) -> np.ndarray:
    """Of a prompt in the last row, a token in each row, and the places of tokens to verify."""
    with passes_of(model, config, **options) as passes:
        prompt = passes.prefill(1, [2] * 17)
        decoded = passes.decode(np.array([7, 9]), np.array([0, 17], np.int32))
        return np.stack([prompt, *decoded, *passes.verify(1, [3, 4, 5, 6], 11)])


@pytest.mark.parametrize("weight_precision, precision, shards", CASES)
def test_logits_are_those_of_the_ops(called, weight_precision, precision, shards):
    model = random_bloom(4, 131)
    config = config_of(
        *(model, *shards, LENGTH, ROWS, precision),
        weight_precision=weight_precision,
        group_size=32,
    )
    config = replace(config, execution=replace(config.execution, lookup_tokens=3))
    expected = logits(model, config, composite_kernels=False)
    assert not called
    np.testing.assert_allclose(logits(model, config), expected, atol=TOLERANCE[precision])
    # Of a layer four products and attention, and the head once for each prompt and pass; a prompt
    # of 17 tokens is two chunks.
    assert called.count("linear") == 4 * LAYERS * 4 + 3
    assert called.count("token_attention") == LAYERS
    assert called.count("chunk_attention") == 2 * LAYERS
    assert called.count("verify_attention") == LAYERS
