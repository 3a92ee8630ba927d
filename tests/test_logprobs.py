"""Log-likelihoods of prompts and texts, biases and masks, beside transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from byte_level import byte_level_tokenizer
from reference import TransformersPasses
from transformers import AutoModelForCausalLM

from utils.generation import Engine, Request, SamplingConfig, load
from utils.generation.extras import Extras
from utils.generation.logprobs import TokenLogprob, token_logprob
from utils.generation.request import PromptScore
from utils.setup import UserError

TINY = Path(__file__).resolve().parent.parent / "models" / "bloom_tiny"
IDS = [5, 17, 300, 42, 7, 17, 300]


def log_softmax(model, ids: list[int]) -> np.ndarray:
    """transformers' own, `[tokens, vocab_size]`."""
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1).numpy()


@pytest.fixture(scope="module")
def tiny() -> Iterator:
    yield load("bloom_tiny", score_tokens=48, batch_size=2)


def score(passes, ids: list[int], count: int) -> list[TokenLogprob | None]:
    (found,) = Engine(passes).run(PromptScore(ids, count))
    return found


@pytest.mark.parametrize("tokens", [2, 48, 49, 512])
def test_a_prompt_has_the_log_likelihoods_of_transformers(tiny, tokens):
    ids = tiny.tokenizer((TINY / "heldout.txt").read_text()[:9000]).input_ids[:tokens]
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    expected = log_softmax(model, ids)
    first, *found = score(tiny.passes, ids, 3)
    assert first is None and len(found) == tokens - 1
    for place, one in enumerate(found):
        assert one.token == ids[place + 1]
        assert one.logprob == pytest.approx(expected[place, one.token], abs=1e-4)
        likeliest = np.sort(expected[place])[::-1][:3]
        assert [chance for _, chance in one.top] == pytest.approx(list(likeliest), abs=1e-4)


def test_a_program_without_a_scoring_pass_says_how_to_have_one():
    with pytest.raises(UserError, match="--score_tokens"):
        score(load("bloom_tiny").passes, [5, 6], 0)


def generated(model, extras: Extras, num_tokens: int = 6, **sampling) -> list:
    passes, tokenizer = TransformersPasses(model), byte_level_tokenizer()
    request = Request(
        IDS, tokenizer, SamplingConfig(**sampling), num_tokens, sequence_length=64, extras=extras
    )
    steps = list(Engine(passes).run(request))
    return [request.prompt_logprobs, *steps]


def test_a_request_can_score_its_prompt_and_its_text(model):
    prompt, *steps = generated(model, Extras(logprobs=2, score_prompt=True))
    ids = IDS + [step.token for step in steps]
    expected = log_softmax(model, ids)
    told = [*prompt.found[1:], *(step.logprob for step in steps)]
    assert [one.logprob for one in told] == pytest.approx(
        [expected[place, token] for place, token in enumerate(ids[1:])], abs=1e-4
    )
    assert all(step.logprob.top[0][0] == step.token for step in steps)  # greedy


def test_log_likelihoods_are_the_models_own_whatever_the_settings(model):
    _, *steps = generated(model, Extras(logprobs=1), temperature=3.0, top_k=9, seed=1)
    expected = log_softmax(model, IDS + [step.token for step in steps])
    for place, step in enumerate(steps, len(IDS) - 1):
        assert step.logprob.logprob == pytest.approx(expected[place, step.token], abs=1e-4)


def test_a_bias_is_transformers(model):
    bias = {11: 4.5, 200: -100.0, 399: 6.0}
    output = model.generate(
        torch.tensor([IDS]),
        max_new_tokens=6,
        do_sample=False,
        repetition_penalty=1.3,
        sequence_bias=[[[token], by] for token, by in bias.items()],
        eos_token_id=2,
        pad_token_id=3,
    )
    _, *steps = generated(model, Extras(logit_bias=bias), repetition_penalty=1.3)
    assert [step.token for step in steps] == output[0, len(IDS) :].tolist()


@pytest.mark.parametrize("ends", [{"ignore_eos": True}, {}])
def test_the_end_of_text_ends_it_unless_it_is_ignored(ends, model):
    eos = 2
    _, *steps = generated(model, Extras(logit_bias={eos: 1000.0}, **ends))
    expected = (6, "budget") if ends else (1, "end_of_text")
    assert (len(steps), steps[-1].finish_reason) == expected


def test_further_tokens_can_end_a_text(model):
    extras = Extras(logit_bias={42: 1000.0}, stop_token_ids=frozenset([42]))
    _, *steps = generated(model, extras)
    assert [(step.token, step.finish_reason) for step in steps] == [(42, "end_of_text")]


def test_of_equal_logits_the_first_is_the_likelier():
    found = token_logprob(np.array([0, 2, 1, 2], np.float32), 2, 3)
    assert [token for token, _ in found.top] == [1, 3, 2]
    assert found.top[2][1] == found.logprob
