"""Many requests at once: texts, who waits for how long, and which passes are run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from bloom_checkpoints import config_of, passes_of, random_bloom
from commands import run_python
from serving import ReferencePasses, generated_text, request
from transformers import BloomForCausalLM, PreTrainedTokenizerFast

from config import BloomConfig, ConfigError
from utils.generation.engine import Engine
from utils.generation.engine_passes import Prompt
from utils.generation.passes import Passes
from utils.generation.runs import Runs
from utils.generation.ticket import Ticket

WORDS = ("a dog", "is an animal", "and a cat", "no dog", "die Straße", "größer als", "der Hund")
HEAD = "In the beginning a dog is a dog is "


def configured(model: BloomForCausalLM, slots: int, **execution: object) -> BloomConfig:
    """With chunks of 4 and 16 tokens, of which passes of up to 64 are shared."""
    config = config_of(model, sequence_length=96, batch_size=slots)
    return replace(config, execution=replace(config.execution, **execution)).validate()


@pytest.fixture(scope="module", params=[512, 0], ids=["prefix cache", "none"])
def passes(request: pytest.FixtureRequest, model: BloomForCausalLM) -> Iterator[Passes]:
    config = configured(model, 7, prefix_cache=request.param, max_batch_tokens=64)
    with passes_of(model, config) as found:
        yield found


def wanted_of(draw: random.Random) -> tuple[str, int]:
    """A prompt, and how many tokens are to follow it."""
    words = " ".join(draw.choices(WORDS, k=draw.randrange(1, 9)))
    return draw.choice(["", HEAD]) + words, draw.randrange(1, 14)


def test_texts_are_those_of_generate_whoever_comes_and_leaves_when(
    passes: Passes, model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    draw = random.Random(0)
    engine = Engine(passes, max_queue=99)
    waiting = [wanted_of(draw) for _ in range(48)]
    asked: list[tuple[str, int, Ticket]] = []
    left: set[int] = set()
    while waiting or any(not ticket.end for *_, ticket in asked):
        while waiting and draw.random() < 0.4:
            prompt, count = waiting.pop()
            asked.append((prompt, count, engine.submit(request(passes, tokenizer, prompt, count))))
        if asked and draw.random() < 0.03:
            number = draw.randrange(len(asked))
            asked[number][2].cancel()
            left.add(number)
        engine.step()
    assert len(left) >= 4
    for number, (prompt, count, ticket) in enumerate(asked):
        text = "".join(step.text for step in ticket.take())
        expected = generated_text(model, tokenizer, prompt, count)
        assert expected.startswith(text) if number in left else text == expected
    if passes.prefixes is not None:
        assert passes.prefixes.hit_tokens > 100


def test_nobody_starves(model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """A chunk within as many prefill passes as there are slots, a token after each of them."""
    slots, draw = 4, random.Random(1)
    passes = ReferencePasses(model, batch_size=slots, sequence_length=96)
    engine = Engine(passes, max_queue=99)
    tickets: list[Ticket] = []
    progress: dict[Ticket, int] = {}
    decoded: dict[Ticket, int] = {}
    for number in range(260):
        if number < 200 and draw.random() < 0.2:
            tickets.append(engine.submit(request(passes, tokenizer, *wanted_of(draw))))
        running = [ticket for ticket in tickets if ticket.started and not ticket.end]
        before = {ticket: (ticket.prompt_done, ticket.generated_tokens) for ticket in running}
        step = engine.step()
        for ticket, (done, generated) in before.items():
            read = step is not None and step.kind == "prefill"
            if done < ticket.prompt_tokens:
                moved = ticket.prompt_done > done
                progress[ticket] = 0 if moved else progress.get(ticket, 0) + read
                assert progress[ticket] < slots
            elif not ticket.end:
                moved = ticket.generated_tokens > generated
                decoded[ticket] = 0 if moved else decoded.get(ticket, 0) + 1
                assert decoded[ticket] <= 1
    assert sum(ticket.end is not None for ticket in tickets) >= 10
    starts = [ticket.started for ticket in tickets if ticket.started is not None]
    assert starts == sorted(starts)


def test_a_step_decodes_only_slots_that_are_in_use(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    passes = ReferencePasses(model, batch_size=4)
    engine = Engine(passes)
    short, long = (engine.submit(request(passes, tokenizer, "A dog", n)) for n in (3, 9))
    while not long.end:
        engine.step()
    decoded = [slots for kind, slots in passes.log if kind == "decode"]
    assert short.end and decoded[-1] == [1]
    assert max(map(len, decoded)) == 2


def test_passes_are_as_narrow_as_what_they_run_and_no_wider_than_asked_for(
    model: BloomForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[tuple[str, int, int]] = []
    run = Runs.run

    def noting(self: Runs, kind: str, size: int, *given: object, **named: object) -> np.ndarray:
        ran.append((kind, size, named.get("count", 1)))  # type: ignore[arg-type]
        return run(self, kind, size, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Runs, "run", noting)
    with passes_of(model, configured(model, 9, max_batch_tokens=32, prefix_cache=0)) as passes:
        engine = Engine(passes, max_queue=9)
        tickets = [engine.submit(request(passes, tokenizer, "A dog is", n)) for n in range(1, 10)]
        while not all(ticket.end for ticket in tickets):
            engine.step()
    prompt = len(tokenizer("A dog is").input_ids)
    assert {size for kind, size, _ in ran if kind != "decode"} <= {4, 8, 16, 32}
    assert sum(kind != "decode" for kind, *_ in ran) < 9 * -(-prompt // 16)
    decoded = {(count, size) for kind, size, count in ran if kind == "decode"}
    assert len(decoded) > 3
    for count, size in decoded:
        assert size == min(width for width in (1, 4, 8, 9) if width >= count)


def test_where_a_narrower_pass_gives_more_tokens_a_second_all_take_turns(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    prompts = ["A dog is", "The king", "A house", "When the", "One day"]
    with passes_of(model, configured(model, 9)) as passes:
        engine = Engine(passes)
        tickets = [engine.submit(request(passes, tokenizer, p, 12)) for p in prompts]
        waited, decoded = dict.fromkeys(tickets, 0), set()
        while not all(ticket.end for ticket in tickets):
            before = {t: t.generated_tokens for t in tickets if t.generated_tokens and not t.end}
            step = engine.step()
            if step is not None and step.kind == "decode":
                decoded.add(step.tokens)
                for ticket, count in before.items():
                    waited[ticket] = 0 if ticket.generated_tokens > count else waited[ticket] + 1
                assert max(waited.values()) <= 1
    assert max(decoded) == 4  # 4 of 5 in a pass of 4 are more than 5 of 5 in one of 8
    for prompt, ticket in zip(prompts, tickets, strict=True):
        text = "".join(step.text for step in ticket.take())
        assert text == generated_text(model, tokenizer, prompt, 12)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 16, 17, 40])
def test_logits_among_others_are_those_alone_to_the_bit(length: int) -> None:
    model = random_bloom(vocab_size=130)
    draw = np.random.default_rng(length)
    prompt, *others = (draw.integers(130, size=n).tolist() for n in (length, 7, 2, 19, 33))
    with passes_of(model, configured(model, 6, prefix_cache=0)) as passes:
        alone = [passes.prefill(0, prompt), passes.decode(*np.array([[3], [length]], np.int32))[0]]
        prompts = [others[0], prompt, *others[1:]]
        found, done = {}, [0] * len(prompts)
        while len(found) < len(prompts):
            left = [i for i in range(len(prompts)) if i not in found]
            results = passes.prefill_chunks([Prompt(i, prompts[i], done[i]) for i in left])
            for i, (count, logits) in zip(left, results, strict=True):
                done[i] += count
                if logits is not None:
                    found[i] = logits
        tokens = np.array([5, 4, 3, 2, 1], np.int32)
        slots = np.array([4, 3, 1, 2, 0], np.int32)
        positions = np.array([len(prompts[slot]) for slot in slots], np.int32)
        decoded = passes.decode(tokens, positions, slots)
    np.testing.assert_array_equal(found[1], alone[0])
    np.testing.assert_array_equal(decoded[2], alone[1])


@pytest.mark.parametrize("tokens", [0, 3, 1 << 20])
def test_steps_that_cannot_be_are_refused(tokens: int) -> None:
    with pytest.raises(ConfigError, match=rf"max_batch_tokens must be .*, not {tokens}"):
        configured(random_bloom(), 2, max_batch_tokens=tokens)


def test_the_command_line_says_so_in_one_line() -> None:
    done = run_python("run_inference.py", "--max_batch_tokens", "x")
    assert done.returncode == 2
    assert "--max_batch_tokens" in done.stderr and done.stderr.count("\n") == 1
