"""BLOOM's passes with the GPU's kernels in place of the CPU's, against the program op by op."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bloom_checkpoints import config_of, passes_of, random_bloom
from popxl_torch.backends import chosen
from popxl_torch.backends import cuda as gpu
from triton_here import DEVICE, kernels

LENGTH, ROWS, STEPS = 24, 2, 1
CASES = [("full", "bfloat16"), ("int8", "float16"), ("int4", "bfloat16")]
TOLERANCE = {"float32": 2e-4, "float16": 0.02, "bfloat16": 0.15}

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


def logits_of_steps(model, config, **options) -> np.ndarray:
    """A prompt in every row, then tokens in all of them: `(steps, rows, vocabulary)`."""
    tokens = np.random.default_rng(1).integers(131, size=(STEPS, ROWS))
    with passes_of(model, config, **options) as passes:
        starts = np.array([3, 17], np.int32)
        first = np.stack([passes.prefill(row, [row + 1] * n) for row, n in enumerate(starts)])
        steps = [passes.decode(tokens[i], starts + i) for i in range(STEPS)]
    return np.stack([first, *steps])


@pytest.mark.parametrize("weight_precision, precision", CASES)
def test_logits_are_those_of_the_ops(called, weight_precision, precision):
    model = random_bloom(4, 131)
    shape = (1, 1, LENGTH, ROWS, precision)
    config = config_of(model, *shape, weight_precision=weight_precision, group_size=32)
    expected = logits_of_steps(model, config, composite_kernels=False)
    assert not called
    found = logits_of_steps(model, config)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE[precision])
    # Of a layer four products and attention, and the head; a prompt of 17 tokens is two chunks.
    assert called.count("linear") == (3 + STEPS) * 2 * 4 + 2 + STEPS
    assert called.count("token_attention") == STEPS * 2
    assert called.count("chunk_attention") == (3 * 2 if precision != "float32" else 0)


@pytest.mark.parametrize("weight_precision, precision", [CASES[0], CASES[2]])
def test_several_replicas_in_one_process(called, weight_precision, precision):
    model = random_bloom(4, 131)
    shape = (2, 2, LENGTH, ROWS, precision)
    config = config_of(model, *shape, weight_precision=weight_precision, group_size=32)
    expected = logits_of_steps(model, config, composite_kernels=False)
    found = logits_of_steps(model, config)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE[precision])
    assert called.count("linear") == (3 + STEPS) * 2 * 4 + 2 + STEPS
    assert called.count("token_attention") == STEPS * 2
    assert called.count("chunk_attention") == 3 * 2


@pytest.mark.parametrize("shards", [(1, 1), (2, 2)])
def test_verified_tokens_are_those_of_the_ops(called, shards):
    model = random_bloom(4, 131)
    config = config_of(model, *shards, LENGTH, ROWS, "bfloat16")
    config = replace(config, execution=replace(config.execution, lookup_tokens=3))

    def logits(**options) -> np.ndarray:
        with passes_of(model, config, **options) as passes:
            for row in range(ROWS):
                passes.prefill(row, [row + 1] * 7)
            return np.stack([passes.verify(row, [3, 4, 5, 6], 7 - row) for row in range(ROWS)])

    expected = logits(composite_kernels=False)
    np.testing.assert_allclose(logits(), expected, atol=TOLERANCE["bfloat16"])
    assert called.count("verify_attention") == ROWS * 2
    assert "token_attention" not in called
