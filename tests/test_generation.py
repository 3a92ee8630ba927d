"""The token loop: against transformers' own `generate`, on a small random BLOOM."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from byte_level import byte_level_tokenizer
from reference import CHUNK, TransformersPasses
from transformers import AutoTokenizer, BloomForCausalLM, PreTrainedTokenizerFast

from utils.generation import (
    GenerationStep,
    LanguageModel,
    Request,
    SamplingConfig,
    generate,
    stream_generate,
)
from utils.generation.lookup import PromptLookup
from utils.generation.request import encode_prompt

GREEDY = SamplingConfig()
PROMPT = "A dog is"


@pytest.fixture
def bloom(model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    return LanguageModel(TransformersPasses(model), tokenizer)


def text_of(steps: list[GenerationStep]) -> str:
    return "".join(step.text for step in steps)


def ids_of(steps: list[GenerationStep]) -> list[int]:
    return [step.token for step in steps]


def transformers_ids(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str, **settings: object
) -> list[int]:
    """The ids that `generate` continues the prompt with."""
    inputs = tokenizer(prompt, return_tensors="pt")
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 3, **settings}
    with torch.no_grad():
        output = model.generate(**inputs, **settings)
    return output[0, inputs.input_ids.shape[1] :].tolist()


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_greedy_tokens_and_text_are_those_of_generate(
    model: BloomForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    bloom: LanguageModel,
    penalty: float,
) -> None:
    sampling = SamplingConfig(repetition_penalty=penalty)
    steps = list(stream_generate(bloom, PROMPT, sampling, num_tokens=40))
    expected = transformers_ids(
        model, tokenizer, PROMPT, max_new_tokens=40, repetition_penalty=penalty
    )
    assert ids_of(steps) == expected
    assert text_of(steps) == tokenizer.decode(expected, skip_special_tokens=True)
    assert len(set(expected)) > 5  # text that repeats one token would prove little


def test_generation_ends_with_the_end_of_text_token(
    tokenizer: PreTrainedTokenizerFast, model: BloomForCausalLM
) -> None:
    free = transformers_ids(model, tokenizer, PROMPT, max_new_tokens=20)
    ending = byte_level_tokenizer()
    ending.eos_token = ending.convert_ids_to_tokens(free[7])
    expected = transformers_ids(
        model, ending, PROMPT, max_new_tokens=20, eos_token_id=ending.eos_token_id
    )
    bloom = LanguageModel(TransformersPasses(model), ending)
    steps = list(stream_generate(bloom, PROMPT, GREEDY, num_tokens=20))
    assert ids_of(steps) == expected
    assert steps[-1].token == ending.eos_token_id
    assert steps[-1].finish_reason == "end_of_text"
    assert text_of(steps) == ending.decode(expected[:-1])


def test_generation_ends_at_the_budget(
    bloom: LanguageModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    steps = list(stream_generate(bloom, PROMPT, GREEDY, num_tokens=5))
    assert [step.finish_reason for step in steps] == [None] * 4 + ["budget"]
    assert [step.generated_tokens for step in steps] == [1, 2, 3, 4, 5]
    assert {step.prompt_tokens for step in steps} == {len(tokenizer(PROMPT).input_ids)}


def test_generation_ends_when_the_context_is_full(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    prompt_tokens = len(tokenizer(PROMPT).input_ids)
    passes = TransformersPasses(model, sequence_length=prompt_tokens + 3)
    steps = list(stream_generate(LanguageModel(passes, tokenizer), PROMPT, GREEDY, num_tokens=100))
    # Three tokens fit behind the prompt; a fourth comes out of the last of them.
    assert [step.finish_reason for step in steps] == [None, None, None, "context_full"]
    assert ids_of(steps) == transformers_ids(model, tokenizer, PROMPT, max_new_tokens=4)


def test_a_prompt_that_fills_the_context_gives_one_token(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    passes = TransformersPasses(model, sequence_length=len(tokenizer(PROMPT).input_ids))
    steps = list(stream_generate(LanguageModel(passes, tokenizer), PROMPT, GREEDY, num_tokens=9))
    assert [step.finish_reason for step in steps] == ["context_full"]


def test_generation_ends_before_a_stop_string_that_spans_tokens(
    bloom: LanguageModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    text = generate(bloom, PROMPT, num_tokens=30).text
    stop = text[12:19]
    steps = list(stream_generate(bloom, PROMPT, GREEDY, num_tokens=30, stop=["\0", stop]))
    assert steps[-1].finish_reason == "stop_string"
    assert text_of(steps) == text[: text.index(stop)]
    assert len(tokenizer(stop).input_ids) > 1


def test_text_held_back_for_a_stop_string_comes_with_the_last_step(bloom: LanguageModel) -> None:
    text = generate(bloom, PROMPT, num_tokens=10).text
    held = list(stream_generate(bloom, PROMPT, GREEDY, num_tokens=10, stop=[text + "\0"]))
    assert [step.text for step in held] == [""] * 9 + [text]
    assert held[-1].finish_reason == "budget"


def test_a_seed_repeats_a_sampled_text(bloom: LanguageModel) -> None:
    def sampled(seed: int) -> list[int]:
        sampling = SamplingConfig(temperature=1.0, top_k=50, seed=seed)
        return generate(bloom, PROMPT, sampling, num_tokens=20).tokens

    assert sampled(3) == sampled(3)
    assert sampled(3) != sampled(4)


def test_texts_that_are_generated_in_turn_share_the_slots_and_are_those_of_each_alone(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    bloom = LanguageModel(TransformersPasses(model, batch_size=2), tokenizer)
    prompts = (PROMPT, "Ein Hund", "A")  # the third waits for a slot
    running = [stream_generate(bloom, prompt, num_tokens=8) for prompt in prompts]
    texts = [ids_of(steps) for steps in zip(*running, strict=True)]
    assert [list(ids) for ids in zip(*texts, strict=True)] == [
        transformers_ids(model, tokenizer, prompt, max_new_tokens=8) for prompt in prompts
    ]


def test_texts_that_are_generated_in_threads_are_those_of_each_alone(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    bloom = LanguageModel(TransformersPasses(model, batch_size=2), tokenizer)
    prompts = (PROMPT, "Ein Hund", "A", "A cat")
    with ThreadPoolExecutor(4) as threads:
        texts = list(threads.map(lambda prompt: generate(bloom, prompt, num_tokens=8), prompts))
    assert [text.tokens for text in texts] == [
        transformers_ids(model, tokenizer, prompt, max_new_tokens=8) for prompt in prompts
    ]


def test_a_generation_that_was_closed_leaves_the_next_one_alone(bloom: LanguageModel) -> None:
    fresh = generate(bloom, PROMPT, num_tokens=10).tokens
    other = stream_generate(bloom, "Ein Hund und eine Katze", num_tokens=10)
    list(itertools.islice(other, 4))
    other.close()  # type: ignore[attr-defined]
    assert list(other) == []
    assert bloom.engine.statistics().running == 0
    assert generate(bloom, PROMPT, num_tokens=10).tokens == fresh


@pytest.mark.parametrize("interrupted", ["prefill_chunk", "decode"])
def test_an_interrupted_pass_leaves_the_model_usable(
    bloom: LanguageModel, interrupted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = generate(bloom, PROMPT, num_tokens=10).tokens

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    steps = stream_generate(bloom, "Où est le garçon", num_tokens=10)
    if interrupted == "decode":
        next(steps)
    with monkeypatch.context() as patched:
        patched.setattr(bloom.passes, interrupted, interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(steps)
    assert bloom.engine.statistics().running == 0
    assert generate(bloom, PROMPT, num_tokens=10).tokens == fresh


def test_a_pass_that_fails_is_raised_where_the_text_is_asked_for(
    bloom: LanguageModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(bloom.passes, "decode", fail)
        with pytest.raises(MemoryError, match="no room"):
            generate(bloom, PROMPT)
    assert not caplog.records  # whoever asked is told, once
    assert len(generate(bloom, PROMPT, num_tokens=3).tokens) == 3


def test_a_text_is_what_its_steps_add_up_to(bloom: LanguageModel) -> None:
    sampling = SamplingConfig(temperature=1.0, seed=3)
    found = generate(bloom, PROMPT, sampling, num_tokens=9, stop=["xyz"])
    steps = list(stream_generate(bloom, PROMPT, sampling, num_tokens=9, stop=["xyz"]))
    assert (found.text, found.tokens) == (text_of(steps), ids_of(steps))
    assert (found.last.finish_reason, found.last.generated_tokens) == ("budget", 9)


def test_three_lines_continue_a_prompt_as_transformers_does() -> None:
    from utils.generation import generate, load

    bloom = load("bloom_tiny")
    found = generate(bloom, "The king said", num_tokens=30)
    folder = bloom.passes.config.model.hf_model
    model = BloomForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert found.tokens == transformers_ids(
        model, AutoTokenizer.from_pretrained(folder), "The king said", max_new_tokens=30
    )
    bloom.passes.session.__exit__(None, None, None)


def test_progress_adds_up_to_the_prompt(bloom: LanguageModel) -> None:
    done: list[tuple[int, int]] = []
    steps = stream_generate(
        bloom,
        "A dog and a cat, ein Hund",
        GREEDY,
        num_tokens=1,
        progress=lambda *of: done.append(of),
    )
    (step,) = steps
    total = step.prompt_tokens
    assert done == [(min(n, total), total) for n in range(CHUNK, total + CHUNK, CHUNK)]
    assert len(done) > 1


class NoPasses:
    """Passes that must not run."""

    batch_size, sequence_length, vocab_size, verify_sizes = 2, 6, 400, ()

    def prefill_chunk(self, *_: object) -> tuple[int, np.ndarray]:
        raise AssertionError("a pass ran")

    decode = prefill_chunk


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "A dog is not a cat, is it not?"}, r"the prompt has \d\d tokens.* holds 6"),
        ({"prompt": ""}, "at least one token"),
        ({"prompt": "bad \udce9"}, "no valid text at character 4"),
        ({"num_tokens": 0}, "num_tokens must be 1 or more, not 0"),
        ({"stop": ["x", ""]}, "stop string"),
    ],
)
def test_an_impossible_request_is_refused_before_anything_runs(
    tokenizer: PreTrainedTokenizerFast, settings: dict, message: str
) -> None:
    arguments = {"prompt": "A", "num_tokens": 3, **settings}
    with pytest.raises(ValueError, match=message):
        stream_generate(LanguageModel(NoPasses(), tokenizer), sampling=GREEDY, **arguments)


def test_the_tokenizer_of_another_model_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    passes = NoPasses()
    passes.vocab_size = 10
    with pytest.raises(ValueError, match="vocab_size is 10"):
        encode_prompt(tokenizer, "A dog", passes)


def test_speeds_are_tokens_by_the_time_they_took(tokenizer: PreTrainedTokenizerFast) -> None:
    clock = iter([90.0, 100.0, 102.0, 102.5, 103.0]).__next__
    request = Request([5, 6, 7, 8], tokenizer, GREEDY, 3, sequence_length=64, clock=clock)
    request.start(PromptLookup(()))
    first, second, third = (request.accept(np.eye(400, dtype=np.float32)[9]) for _ in range(3))
    assert first.time_to_first_token == third.time_to_first_token == 2.0
    assert first.prompt_tokens_per_second == third.prompt_tokens_per_second == 4 / 2.0
    assert first.tokens_per_second is None  # nothing was decoded yet
    assert second.tokens_per_second == 1 / 0.5
    assert third.tokens_per_second == 2 / 1.0


def test_a_request_can_be_driven_without_a_session(tokenizer: PreTrainedTokenizerFast) -> None:
    """As an engine drives it: ids and position say what to run next."""
    request = Request([5, 6], tokenizer, GREEDY, 2, sequence_length=64)
    logits = np.eye(400, dtype=np.float32)
    assert request.accept(logits[20]).token == 20
    assert (request.ids[-1], request.position, request.finished) == (20, 2, False)
    assert request.accept(logits[21]).finish_reason == "budget"
    assert (request.ids, request.finished) == ([5, 6, 20, 21], True)
    with pytest.raises(RuntimeError, match="finished"):
        request.accept(logits[22])
