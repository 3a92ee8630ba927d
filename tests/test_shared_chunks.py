"""Chunks of several prompts in one prefill pass, beside transformers and each prompt alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from bloom_checkpoints import config_of, logits_of, passes_of, random_bloom
from popxl_torch.backends import chosen
from popxl_torch.backends import cuda as gpu
from transformers import BloomForCausalLM
from triton_here import DEVICE, kernels

from utils.generation.engine_passes import Prompt
from utils.generation.passes import Passes

LENGTH, VOCABULARY = 48, 130
LENGTHS = (3, 47, 7)
"""The second prompt has chunks in two passes, and two of them in the last."""
BACK_ENDS = dict.fromkeys(("cpu", "reference", "graph"), ("float32", 1e-5))
BACK_ENDS["triton"] = ("float16", 3e-3)
"""Their precision and tolerance; the GPU's kernel of chunks has no float32."""


@pytest.fixture(params=BACK_ENDS)
def back_end(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Sessions on the CPU use it; Triton's kernel of chunks runs where it is asked for."""
    calls = []

    def watched(*given: object) -> object:
        calls.append(attend(*given))
        return calls[-1]

    attend = kernels.chunk_attention
    monkeypatch.setattr(kernels, "chunk_attention", watched)
    if request.param != "cpu":
        monkeypatch.setattr(chosen, "library", lambda: None)
    if request.param == "triton":
        if DEVICE.type != "cpu":
            pytest.skip("there is a GPU: test_cuda.py runs the passes on it")
        monkeypatch.setattr(gpu, "kernels_for", lambda device: kernels)
    yield request.param
    assert any(done is not None for done in calls) == (request.param == "triton")


def prefilled(passes: Passes, prompts: list[list[int]]) -> tuple[list[np.ndarray], list[list[int]]]:
    """The logits after each prompt, all of them run together; and the tokens of each pass."""
    done, logits, ran = [0] * len(prompts), {}, []
    while len(logits) < len(prompts):
        left = [slot for slot in range(len(prompts)) if slot not in logits]
        found = passes.prefill_chunks([Prompt(slot, prompts[slot], done[slot]) for slot in left])
        ran.append([count for count, _ in found])
        for slot, (count, after) in zip(left, found, strict=True):
            done[slot] += count
            if after is not None:
                logits[slot] = after
    return [logits[slot] for slot in range(len(prompts))], ran


def attentive_model() -> BloomForCausalLM:
    """One whose logits show a single wrong token far before: by more than 0.02."""
    model = random_bloom(2, VOCABULARY, layers=1)
    with torch.no_grad():
        model.transformer.h[0].self_attention.query_key_value.weight.mul_(4)
        model.transformer.h[0].self_attention.dense.weight.mul_(4)
    return model


@pytest.mark.parametrize("shards", [(1, 1), (2, 2)], ids=["one replica", "2x2"])
def test_logits_and_what_follows_are_those_of_transformers_and_of_each_prompt_alone(
    back_end: str, shards: tuple[int, int]
) -> None:
    precision, tolerance = BACK_ENDS[back_end]
    model, draw = attentive_model(), np.random.default_rng(0)
    texts = [draw.integers(VOCABULARY, size=n + 1).tolist() for n in LENGTHS]
    prompts, last = [text[:-1] for text in texts], np.array([text[-1] for text in texts], np.int32)
    options = {"composite_kernels": back_end != "graph"}
    config = config_of(model, *shards, LENGTH, len(texts), precision)
    with passes_of(model, config, **options) as passes:
        found, ran = prefilled(passes, prompts)
        following = passes.decode(last, np.array(LENGTHS, np.int32))
    assert ran == [[3, 16, 7], [31]]
    expected = [logits_of(model, text) for text in texts]
    np.testing.assert_allclose(found, [each[-2] for each in expected], atol=tolerance)
    np.testing.assert_allclose(following, [each[-1] for each in expected], atol=tolerance)
    if back_end == "cpu":  # with one slot no pass is shared
        with passes_of(model, config_of(model, *shards, LENGTH, 1, precision)) as passes:
            alone = [passes.prefill(0, prompt) for prompt in prompts]
        np.testing.assert_array_equal(found, alone)
