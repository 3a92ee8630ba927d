"""Weights in 8 and 4 bits: logits against transformers with the values they stand for."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
import torch
from bloom_checkpoints import config_of, logits_of, passes_of, random_bloom
from dequantized import dequantized
from popxl_torch.analysis.cost import cost_of

from config import BloomConfig, ConfigError
from modelling.aligned import aligned
from modelling.program import hf_mapping, inference

LENGTH = 24
VOCABULARY = 131  # no multiple of 2 or 4
SHARDINGS = [(1, 1), (4, 2), (4, 4)]
QUANTIZED = [("int8", 64), ("int4", 16), ("int4", 4)]  # 16 is the width of a shard


def untied(model):
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.1)
    return model


def text(seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(VOCABULARY, size=LENGTH).tolist()


@pytest.mark.parametrize("tp1, tp2", SHARDINGS)
@pytest.mark.parametrize("weight_precision, group_size", QUANTIZED)
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_transformers_with_the_dequantised_weights(
    tied, weight_precision, group_size, tp1, tp2
):
    model = random_bloom(4, VOCABULARY)
    model = model if tied else untied(model)
    expected = logits_of(dequantized(model, weight_precision, group_size), text())
    assert np.abs(expected - logits_of(model, text())).max() > 0.01  # it does make a difference
    config = config_of(
        model, tp1, tp2, LENGTH, 2, weight_precision=weight_precision, group_size=group_size
    )
    with passes_of(model, config) as passes:
        np.testing.assert_allclose(passes.prefill(1, text()[:19]), expected[18], atol=1e-4)
        for at in range(19, LENGTH):
            logits = passes.decode(np.array([0, text()[at]]), np.array([0, at]))
            np.testing.assert_allclose(logits[1], expected[at], atol=1e-4)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("weight_precision", ["int8", "int4"])
def test_half_precision_with_quantised_weights_is_as_near_as_transformers_own(
    weight_precision, precision
):
    model = random_bloom(4, VOCABULARY, layers=3)
    reference = dequantized(model, weight_precision, 16)
    exact = logits_of(reference, text())
    half = reference.to(getattr(torch, precision))
    theirs = np.abs(logits_of(half, text()) - exact).max()
    config = config_of(
        model, 2, 2, LENGTH, 1, precision, weight_precision=weight_precision, group_size=16
    )
    with passes_of(model, config) as passes:
        assert np.abs(passes.prefill(0, text()) - exact[-1]).max() <= 2 * theirs
        logits = passes.decode(np.array(text()[-1:]), np.array([LENGTH - 1]))
        assert np.abs(logits[0] - exact[-1]).max() <= 2 * theirs


@pytest.mark.parametrize("weight_precision", ["int8", "int4"])
def test_kernels_and_the_graphs_they_stand_for_agree(weight_precision):
    model = random_bloom(4, VOCABULARY)
    config = config_of(model, 2, 1, LENGTH, 1, weight_precision=weight_precision, group_size=16)
    found = []
    for composite_kernels in (True, False):
        with passes_of(model, config, composite_kernels=composite_kernels) as passes:
            prompt = passes.prefill(0, text()[:-1])
            found.append((prompt, passes.decode(np.array(text()[-1:]), np.array([LENGTH - 1]))[0]))
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)


@pytest.mark.parametrize("weight_precision", ["int8", "int4"])
def test_numbers_are_the_same_for_every_sharding(weight_precision):
    model = random_bloom(4, VOCABULARY)

    def matrix(tp1: int, tp2: int) -> np.ndarray:
        """The numbers of the second layer's `narrow`, put together from its shards."""
        config = config_of(model, tp1, tp2, weight_precision=weight_precision, group_size=16)
        session = inference(config)
        values = dict(hf_mapping(config, session.state, model))["layer_1"]()
        variables = session.state.layer_1.feed_forward.narrow.to_dict()
        numbers = values[variables["weight" if weight_precision == "int8" else "weight_compressed"]]
        if weight_precision == "int8":
            numbers = numbers.swapaxes(-1, -2)  # [out, in]
        parts = numbers.reshape(
            tp1, tp2, *numbers.shape[-2 if weight_precision == "int8" else -3 :]
        )
        return np.concatenate([np.concatenate(list(row), 0) for row in parts], 1)

    whole = matrix(1, 1)
    for sharding in ((4, 2), (2, 4)):
        np.testing.assert_array_equal(matrix(*sharding), whole)


@pytest.mark.parametrize("make", [np.empty, np.zeros])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "uint16", "float32"])
def test_arrays_of_weights_begin_with_a_line_of_the_cache(make, dtype):
    shape, kind = (3, 5, 7), popxl.dtypes.dtype.from_name(dtype).as_numpy()
    for array in [aligned(make, shape, kind) for _ in range(20)]:  # as long as all are there
        assert array.ctypes.data % 64 == 0
        assert (array.shape, array.dtype) == (shape, kind)
        assert array.flags.c_contiguous and array.flags.writeable
        assert make is np.empty or not array.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_precision": "int3"}, "weight_precision must be one of full, int8, int4"),
        ({"weight_precision": "int4", "group_size": 6}, "group_size must be a multiple of 4"),
        ({"weight_precision": "int4", "group_size": 0}, "group_size must be a multiple of 4"),
        (
            {"weight_precision": "int4", "group_size": 32, "tp1": 4},
            "group_size must be a divisor of hidden_size / tensor_parallel_1 = 16, not 32",
        ),
        (
            {"weight_precision": "int4", "group_size": 32, "tp2": 4},
            "group_size must be a divisor of hidden_size / tensor_parallel_2 = 16, not 32",
        ),
    ],
)
def test_settings_that_are_not_possible_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        config_of(random_bloom(4, VOCABULARY), **settings)


def test_group_size_does_not_matter_without_groups():
    assert isinstance(
        config_of(random_bloom(4, VOCABULARY), weight_precision="int8", group_size=7), BloomConfig
    )


@pytest.mark.parametrize(
    ("weight_precision", "bits"), [("full", 32), ("int8", 8), ("int4", 4 + 32 / 16)]
)
def test_bytes_read_a_token_are_those_of_the_quantised_matrices(weight_precision, bits):
    model = random_bloom(4, VOCABULARY, layers=2)
    config = config_of(model, weight_precision=weight_precision, group_size=16, batch_size=1)
    session = inference(config)
    hidden, layers = config.model.hidden_size, config.model.layers
    head = VOCABULARY * hidden
    elements = 12 * hidden * hidden * layers + head + hidden  # one row of the embedding
    scales = (9 * hidden * layers + VOCABULARY + 1) * 4 if weight_precision == "int8" else 0
    rest = (4 + 9) * hidden * layers + 4 * hidden  # norms, biases
    slopes = config.model.heads * layers
    wanted = elements * bits / 8 + scales + (rest + slopes) * 4
    assert cost_of(session.pass_graphs["decode"]).weight_bytes == wanted
