"""What a server offers: settings checked in words, progress, stopping, and what is logged."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import pytest
from serving import HeldPasses, ReferencePasses, generated_text, wait_until
from transformers import BloomForCausalLM, PreTrainedTokenizerFast

from utils.generation.engine import Engine
from utils.serving.given_settings import checked
from utils.serving.page import words
from utils.serving.service import Progress, Service
from utils.serving.works import ServerError
from utils.setup import UserError

PROMPT = "A dog is"


async def all_of(service: Service, prompt: Any, settings: dict, owner: str = "") -> Any:
    return [progress async for progress in service.generate(prompt, settings, owner)]


def test_progress_ends_with_the_text_of_generate_and_why(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    with Engine(ReferencePasses(model)) as engine:
        service = Service(engine, tokenizer)
        *before, last = asyncio.run(all_of(service, PROMPT, {"num_tokens": 12}))
    assert last.text == generated_text(model, tokenizer, PROMPT, 12)
    assert (last.generated_tokens, last.end_reason, last.seed) == (12, "budget", None)
    assert last.prompt_done == last.prompt_tokens == len(tokenizer(PROMPT).input_ids)
    assert all(last.text.startswith(progress.text) for progress in before)
    assert {progress.end_reason for progress in before} <= {None}


def test_stopping_ends_what_the_owner_has_and_nothing_else(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    passes = HeldPasses(ReferencePasses(model, batch_size=2))
    passes.hold()

    async def stop_one(service: Service) -> list[Any]:
        tasks = [
            asyncio.create_task(all_of(service, PROMPT, {"num_tokens": 9}, owner))
            for owner in ("mine", "mine", "yours")
        ]
        while engine.statistics().running + engine.statistics().queued < 3:
            await asyncio.sleep(0)
        service.stop("mine")
        service.stop("nobody")
        passes.let_all()
        return await asyncio.gather(*tasks)

    with Engine(passes) as engine:
        mine, also_mine, yours = asyncio.run(stop_one(Service(engine, tokenizer)))
    assert [found[-1].end_reason for found in (mine, also_mine, yours)] == [
        "stopped",
        "stopped",
        "budget",
    ]
    assert yours[-1].text == generated_text(model, tokenizer, PROMPT, 9)


def test_a_consumer_that_is_cancelled_frees_its_row(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    passes = HeldPasses(ReferencePasses(model))
    passes.hold()

    async def cancel(service: Service) -> None:
        task = asyncio.create_task(all_of(service, PROMPT, {"num_tokens": 50}))
        while engine.statistics().running == 0:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with Engine(passes) as engine:
        asyncio.run(cancel(Service(engine, tokenizer)))
        passes.let_all()
        wait_until(lambda: engine.statistics().running == 0)
        assert engine.statistics().ended == {"stopped": 1}


def test_a_consumer_that_asks_for_no_more_frees_its_row(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generator that is kept, neither closed nor iterated."""
    monkeypatch.setattr("utils.serving.service.ABANDONED", 0.1)
    passes = HeldPasses(ReferencePasses(model, batch_size=1))

    async def first_only(service: Service) -> dict[str, int]:
        passes.hold()
        progresses = service.generate(PROMPT, {"num_tokens": 40}, "mine")
        await anext(progresses)
        passes.let(1)
        while not engine.statistics().ended:
            passes.let(1)
            await asyncio.sleep(0.2)
        return engine.statistics().ended

    with Engine(passes) as engine:
        assert asyncio.run(first_only(Service(engine, tokenizer))) == {"stopped": 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_tokens": 65}, "num_tokens must be from 1 to 64, not 65"),
        ({"num_tokens": 0}, "num_tokens must be a whole number from 1 up, not 0"),
        ({"num_tokens": 2.5}, "num_tokens must be a whole number, not 2.5"),
        ({"num_tokens": None}, "num_tokens must be a number, not empty"),
        ({"num_tokens": True}, "num_tokens must be a number, not True"),
        ({"temperature": -0.1}, "temperature must be 0 .* not -0.1"),
        ({"temperature": float("inf")}, "temperature must be .* not inf"),
        ({"temperature": "<b>hot</b>"}, "temperature must be a number, not '<b>hot</b>'"),
        ({"top_k": -1}, "top_k must be .* not -1"),
        ({"top_k": 1e400}, "top_k must be a whole number, not inf"),
        ({"top_p": 0}, "top_p must be .* not 0"),
        ({"repetition_penalty": 0}, "repetition_penalty must be .* not 0"),
        ({"seed": -1}, "seed must be .* not -1"),
        ({"seed": "-1"}, "seed must be .* not -1"),
        ({"seed": "many"}, "seed must be a whole number from 0 up, or left out, not 'many'"),
        ({"stop": [""]}, "stop must be texts that are not empty"),
        ({"stop": "text"}, "stop must be a list of texts, not 'text'"),
        ({"stop": [["x" * 99]]}, r"stop must be a list of texts, not \[\['x{50,60}…"),
    ],
)
def test_settings_out_of_bounds_are_named_with_value_and_bound(
    settings: dict, message: str
) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        checked(settings, max_tokens=64)


def test_a_seed_may_be_digits_and_an_empty_one_is_drawn() -> None:
    def seed(given: Any) -> int | None:
        return checked({"seed": given}, 64).seed

    assert (seed("17"), seed(17.0), seed(" 3 ")) == (17, 17, 3)
    assert seed("") != seed(None)
    assert seed(None) != seed(None)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        (None, "the prompt is empty"),
        (["A"], "the prompt must be a text, not list"),
        ("ЖЖ" * 40, r"the prompt has \d+ tokens, but the context .* holds 64"),
    ],
)
def test_an_impossible_prompt_is_refused_in_words(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: Any, message: str
) -> None:
    with Engine(ReferencePasses(model)) as engine:
        service = Service(engine, tokenizer)
        with pytest.raises(UserError, match=message):
            asyncio.run(all_of(service, prompt, {"num_tokens": 3}))
        with pytest.raises(UserError, match=message):
            asyncio.run(service.next_tokens(prompt))
        assert engine.statistics().submitted == 0


def test_a_fault_of_the_server_is_told_without_its_insides(
    model: BloomForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("the insides")

    passes = ReferencePasses(model)
    monkeypatch.setattr(passes, "decode", fail)
    with Engine(passes) as engine, pytest.raises(ServerError) as told:
        asyncio.run(all_of(Service(engine, tokenizer), PROMPT, {"num_tokens": 3}))
    assert "insides" not in str(told.value)
    assert "the insides" in caplog.text


@pytest.mark.parametrize("log_prompts", [False, True])
def test_requests_are_logged_and_their_prompts_only_if_asked_for(
    model: BloomForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    caplog: pytest.LogCaptureFixture,
    log_prompts: bool,
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "Où est\nle chat"
    with Engine(ReferencePasses(model)) as engine:
        service = Service(engine, tokenizer, log_prompts=log_prompts)
        (*_, last) = asyncio.run(all_of(service, secret, {"num_tokens": 4, "stop": ["zzz"]}))
        asyncio.run(service.next_tokens(secret))
    lines = [
        record.getMessage() for record in caplog.records if record.name == "utils.serving.works"
    ]
    assert len(lines) == 2
    count = len(tokenizer(secret).input_ids)
    assert re.match(
        rf"request 1: {count} prompt tokens, 4 generated, slot after [\d.]+ s", lines[0]
    )
    assert ("prompt 'Où est\\nle chat'" in lines[0]) == log_prompts
    assert ("chat" in caplog.text) == log_prompts
    assert last.text not in caplog.text


def test_max_tokens_is_at_most_the_context(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    with Engine(ReferencePasses(model, sequence_length=30)) as engine:
        assert [Service(engine, tokenizer, max_tokens=n).max_tokens for n in (None, 7, 99)] == [
            30,
            7,
            30,
        ]
        with pytest.raises(UserError, match="max_tokens must be 1 or more, not 0"):
            Service(engine, tokenizer, max_tokens=0)


def test_the_status_says_how_far_it_is_and_why_it_ended() -> None:
    def said(**more: Any) -> str:
        begun = dict.fromkeys(Progress.__dataclass_fields__, None) | {
            "text": "",
            "place": 0,
            "prompt_tokens": 9,
            "prompt_done": 4,
            "generated_tokens": 0,
        }
        return words.status(Progress(**(begun | more)))

    assert said(place=3, prompt_done=0) == "waiting: number 3 in the queue"
    assert said() == "reading the prompt: 4 of 9 tokens"
    assert said(generated_tokens=1, time_to_first_token=0.5, queue_wait=0.2) == (
        "1 token, first after 0.50 s (0.2 s of it in the queue)"
    )
    assert said(
        generated_tokens=20,
        time_to_first_token=0.5,
        queue_wait=0.0,
        tokens_per_second=12.34,
        seed=7,
        end_reason="context_full",
    ) == ("20 tokens, first after 0.50 s, 12.3 tokens/s, seed 7, ended by: context full")
    assert said(end_reason="stopped") == "0 tokens, ended by: stopped"
