"""Logits of a GPU against those of a CPU. Skipped where there is no GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from bloom_checkpoints import config_of, passes_of, random_bloom
from popxl_torch.backends.cuda import GPU_KERNELS, lanes
from popxl_torch.backends.cuda.graphs import CUDA_GRAPHS
from popxl_torch.backends.cuda.room import DEVICE_MEMORY

from modelling.program import inference
from utils.checkpoints.random_weights import fill_randomly

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="PyTorch sees no CUDA device here"
)

LENGTH, ROWS, STEPS = 24, 2, 6
REPLAYED = 3
"""Runs of which the last one is a replay."""
TOLERANCE = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.3}


def logits_of_steps(model, shards, precision, device, **settings) -> np.ndarray:
    """Prompts in every row, tokens in all of them, and verified ones: `(steps, rows, vocabulary)`.

    All passes are run so often that CUDA graphs are made of them and replayed.
    """
    config = with_look_up(
        config_of(model, *shards, LENGTH, ROWS, precision, device=device, **settings)
    )
    tokens = np.random.default_rng(1).integers(131, size=(STEPS, ROWS))
    starts, steps = np.array([3, 17], np.int32), []
    with passes_of(model, config) as passes:
        for turn in range(REPLAYED):
            prompts = [passes.prefill(row, [row + turn] * n) for row, n in enumerate(starts)]
            steps.append(np.stack(prompts))
        steps += [passes.decode(tokens[i], starts + i) for i in range(STEPS)]
        for turn in range(REPLAYED):
            for row in range(ROWS):  # of four tokens, as many as two rows
                verified = passes.verify(row, [5, 6 + turn, 7, 8], starts[row] + turn)
                steps += [verified[:ROWS], verified[ROWS:]]
    return np.stack(steps)


def with_look_up(config):
    return replace(config, execution=replace(config.execution, lookup_tokens=3))


@pytest.mark.parametrize("graphs", ["0", "1"])
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("shards", [(1, 1), (2, 2)])
def test_logits_are_those_of_a_cpu(monkeypatch, caplog, shards, precision, graphs):
    monkeypatch.setenv(CUDA_GRAPHS, graphs)
    model = random_bloom(4, 131)
    on_cpu, on_gpu = (logits_of_steps(model, shards, precision, d) for d in ("cpu", "cuda"))
    np.testing.assert_allclose(on_gpu, on_cpu, atol=TOLERANCE[precision])
    assert "without a CUDA graph" not in caplog.text


def test_every_pass_is_held_by_cuda_graphs(monkeypatch):
    monkeypatch.setenv(CUDA_GRAPHS, "1")
    model = random_bloom(4, 131)
    config = with_look_up(config_of(model, 1, 1, LENGTH, ROWS, "bfloat16", device="cuda"))
    with passes_of(model, config) as passes:
        passes.warm_up(REPLAYED)
        # The token pass, two prompt passes' layers and heads, and the verify pass's layers.
        assert passes.session._executor.replays.captures == 1 + 2 * 2 + 1


@pytest.mark.parametrize("weight_precision", ["int8", "int4"])
@pytest.mark.parametrize("kernels", ["0", "1"])
@pytest.mark.parametrize("shards", [(1, 1), (2, 2)])
def test_logits_with_quantised_weights(monkeypatch, caplog, shards, kernels, weight_precision):
    monkeypatch.setenv(GPU_KERNELS, kernels)
    quantised = {"weight_precision": weight_precision, "group_size": 32}
    model = random_bloom(4, 131)
    on_cpu, on_gpu = (
        logits_of_steps(model, shards, "bfloat16", d, **quantised) for d in ("cpu", "cuda")
    )
    np.testing.assert_allclose(on_gpu, on_cpu, atol=TOLERANCE["bfloat16"])
    assert not caplog.messages


@pytest.mark.parametrize("pinned", [True, False])
def test_streamed_weights_and_caches_give_the_same_logits(monkeypatch, caplog, pinned):
    model = random_bloom(4, 131, layers=6)
    expected = logits_of_steps(model, (1, 1), "bfloat16", "cuda")
    monkeypatch.setenv(DEVICE_MEMORY, "0")
    if not pinned:  # by way of buffers that are, smaller than a weight
        monkeypatch.setattr(lanes, "available_memory", lambda: 0)
        monkeypatch.setattr(lanes, "BOUNCE", 1000)
    found = logits_of_steps(model, (1, 1), "bfloat16", "cuda")
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert "of caches are streamed from the host" in caplog.text


def test_random_weights_are_those_of_a_cpu():
    model, held = random_bloom(4, 131), []
    for device in ("cpu", "cuda"):
        session = inference(config_of(model, 1, 1, LENGTH, ROWS, "bfloat16", device=device))
        fill_randomly(session, np.random.default_rng(0))
        held.append(session.get_named_tensors_data().to_dict())
    for name, values in held[0].items():
        np.testing.assert_array_equal(held[1][name], values)


def test_the_token_pass_does_not_wait_for_the_device(monkeypatch):
    monkeypatch.setenv(CUDA_GRAPHS, "0")
    model = random_bloom(4, 131)
    config = config_of(model, 1, 1, LENGTH, ROWS, device="cuda")
    with passes_of(model, config) as passes:
        passes.warm_up()
        streams = passes.session._executor.streams
        collect = streams._collected

        def collect_and_wait(stream):
            torch.cuda.set_sync_debug_mode("default")
            return collect(stream)

        streams._collected = collect_and_wait
        torch.cuda.set_sync_debug_mode("error")
        try:
            passes.decode(np.zeros(ROWS, np.int32), np.zeros(ROWS, np.int32))
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_auto_is_the_gpu():
    config = config_of(random_bloom(4, 131), 1, 1, LENGTH, ROWS, device="auto")
    with passes_of(random_bloom(4, 131), config) as passes:
        assert passes.session._executor.device.type == "cuda"
