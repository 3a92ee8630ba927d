"""GPTQ of 4 bits in our groups: its numbers as they are where they fit, else quantised again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from bloom_checkpoints import logits_of
from dequantized import by_group
from popxl_shared import groups
from test_checkpoint import configuration, hf_model
from test_checkpoint_forms import LAYER, gptq, gptq_settings, write

from config import ExecutionConfig
from modelling.weight import weight_of
from utils.checkpoints.arguments import model_of
from utils.checkpoints.checkpoint import open_checkpoint
from utils.checkpoints.memmap.source import Source
from utils.generation.loading import build, write_weights
from utils.generation.passes import Passes


def int4_of(folder: Path, size: int) -> tuple[np.ndarray, ...]:
    """Words, scale and bias that `--weight_precision int4` makes of one matrix, as loading does."""
    config = configuration(weight_precision="int4", group_size=size)
    module = Source(open_checkpoint(folder), lambda: None).module
    values = weight_of(config, "tp1").values(module.transformer.h[1].mlp.dense_h_to_4h.weight)
    return tuple(values.values())


@pytest.mark.parametrize(("stored", "size"), [(16, 16), (32, 16), (16, 8), (-1, 32)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_gptq_goes_straight_into_groups_of_4_bits(stored, size, symmetric, tmp_path):
    tensors, meant = gptq(stored, False, symmetric)
    write(tmp_path, tensors, quantization_config=gptq_settings(stored))
    words, scale, bias = int4_of(tmp_path, size)
    numbers = np.stack([words >> shift & 15 for shift in (12, 8, 4, 0)], -1).reshape(128, -1)
    scales = tensors[f"{LAYER}.scales"].numpy().T
    np.testing.assert_array_equal(
        scale[..., 0], scales.repeat(scale.shape[1] // scales.shape[1], 1)
    )
    each = scale.repeat(size, 1)[..., 0].astype(np.float64), bias.repeat(size, 1)[..., 0]
    # A zero times a scale has more digits than a float16, but where it is a power of two.
    most = 0 if symmetric else 15 * 1.5 * 2.0**-11
    np.testing.assert_allclose(numbers * each[0] + each[1], meant[f"{LAYER}.weight"], 0, most)


@pytest.mark.parametrize("why", ["groups are larger", "act-order", "scales"])
def test_gptq_that_does_not_fit_groups_is_quantised_from_its_floats(why, tmp_path):
    tensors, meant = gptq(16, why == "act-order", False)
    weight = meant[f"{LAYER}.weight"].astype(np.float32)
    if why == "scales":
        scales = tensors[f"{LAYER}.scales"].float() * 1.0001
        tensors[f"{LAYER}.scales"], weight = scales, weight * np.float32(1.0001)
    size = 32 if why == "groups are larger" else 16
    write(tmp_path, tensors, quantization_config=gptq_settings(16))
    found = int4_of(tmp_path, size)
    given = open_checkpoint(tmp_path).tensor(f"{LAYER}.weight")
    assert given.in_groups(size) is None
    for array, wanted in zip(found, groups.quantised(given.numpy(), size), strict=True):
        np.testing.assert_array_equal(array, wanted)
    np.testing.assert_allclose(given.numpy(), weight, rtol=1e-6)


def test_the_size_of_groups_is_the_checkpoints(tmp_path):
    write(tmp_path, gptq(16, False, True)[0], quantization_config=gptq_settings(16))
    assert model_of(str(tmp_path)).group_size == 16


@pytest.mark.parametrize("tp", [1, 2])
def test_gptq_in_4_bits_gives_the_logits_of_its_definition(tp, tmp_path):
    """Embedding and head, which GPTQ leaves alone, are quantised as of any checkpoint."""
    tensors, meant = gptq(16, False, True)
    write(tmp_path, tensors, quantization_config=gptq_settings(16))
    model = hf_model()
    model.load_state_dict({n: torch.from_numpy(w).float() for n, w in meant.items()}, strict=False)
    table = model.transformer.word_embeddings.weight
    with torch.no_grad():
        table.copy_(torch.from_numpy(by_group(table.numpy(), 16)))
    sharded = ExecutionConfig(device="cpu", tensor_parallel_1=tp, tensor_parallel_2=tp)
    config = configuration(weight_precision="int4", group_size=16)
    config = dataclasses.replace(config, execution=sharded)
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.check_against(config)
    config = checkpoint.decided(config)
    session = build(config)
    write_weights(config, session, checkpoint)
    tokens = [1, 2, 3, 50, 99]
    with session:
        _, logits = Passes(config, session).prefill_chunk(0, tokens, 0)
    np.testing.assert_allclose(logits, logits_of(model, tokens)[-1], rtol=1e-3, atol=1e-3)
