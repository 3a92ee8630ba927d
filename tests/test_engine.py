"""The engine: several requests at once, against transformers' `generate` and against each alone."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import pytest
import torch
from bloom_checkpoints import config_of, passes_of, random_bloom
from reference import CHUNK
from serving import HeldPasses, ReferencePasses, generated_text, request, wait_until
from transformers import BloomForCausalLM, PreTrainedTokenizerFast

from utils.generation.engine import Engine, EngineClosed, QueueFull
from utils.generation.next_tokens import NextTokens
from utils.generation.sampling import SamplingConfig
from utils.generation.ticket import Ticket, Work
from utils.setup import UserError

PROMPTS = (
    "A dog is",
    "Ein Hund ist größer als",
    "Où est le garçon ? À l'école, à l'école, à l'école.",
    "A",
    "A cat is a cat is a cat is",
    "Собака",
    "an animal and a friend, ein Tier",
    "die Straße ist",
)
LONG = "A dog is an animal. A dog is a friend, and a cat is a cat."


def text_of(events: Any) -> str:
    return "".join(step.text for step in events)


def finish(*tickets: Ticket) -> list[str]:
    """The reasons that these ended by, once all have."""
    wait_until(lambda: all(ticket.end for ticket in tickets))
    return [ticket.end.reason for ticket in tickets if ticket.end]


class Logits(Work):
    """Work that gives the logits themselves, and goes on with tokens of its own choice."""

    finish_reason = "done"

    def __init__(self, ids: list[int], following: list[int]):
        self.ids, self._following = list(ids), list(following)
        self.seen: list[np.ndarray] = []

    @property
    def finished(self) -> bool:
        return not self._following

    def accept(self, logits: np.ndarray) -> np.ndarray:
        self.seen.append(logits.copy())
        self.ids.append(self._following.pop(0))
        return logits


class Broken(Logits):
    """Work that fails at its n-th token."""

    def __init__(self, ids: list[int], error: Exception, at: int = 1):
        super().__init__(ids, [1] * 99)
        self._error, self._at = error, at

    def accept(self, logits: np.ndarray) -> np.ndarray:
        if len(self.seen) + 1 == self._at:
            raise self._error
        return super().accept(logits)


def test_more_requests_than_slots_all_give_the_text_of_generate(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    passes = ReferencePasses(model, batch_size=3)
    with Engine(passes) as engine:
        running = [
            engine.run(request(passes, tokenizer, prompt, num_tokens))
            for prompt, num_tokens in zip(PROMPTS, range(3, 19, 2), strict=True)
        ]
        texts = [text_of(events) for events in running]
    assert texts == [
        generated_text(model, tokenizer, prompt, num_tokens)
        for prompt, num_tokens in zip(PROMPTS, range(3, 19, 2), strict=True)
    ]
    assert len(set(texts)) == len(texts)


def test_logits_are_the_same_to_the_bit_alone_and_among_seven_others() -> None:
    """In the program itself, in whichever row, with prompts of several chunks, and rows reused."""
    model = random_bloom(vocab_size=130)
    random = np.random.default_rng(0)
    works = [
        (random.integers(130, size=length).tolist(), random.integers(130, size=6).tolist())
        for length in (5, 21, 17, 1, 9, 30, 12, 3, 25, 4, 33, 8)
    ]
    config = config_of(model, batch_size=8, sequence_length=40)
    with passes_of(model, config) as passes, Engine(passes) as engine:
        alone = [Logits(*work) for work in works]
        for work in alone:
            list(engine.run(work))
        together = [Logits(*work) for work in works]
        held = HeldPasses(passes)  # type: ignore[arg-type]
        engine.passes = held
        held.hold()
        tickets = [engine.submit(work) for work in together]
        held.let_all()
        assert finish(*tickets) == ["done"] * len(works)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.seen, other.seen)
    assert not np.array_equal(alone[0].seen[0], alone[1].seen[0])


def test_what_a_slot_holds_never_reaches_the_next_request_not_even_a_nan() -> None:
    model = random_bloom(vocab_size=130)
    with torch.no_grad():
        model.transformer.word_embeddings.weight[7] = torch.nan
    healthy = Logits([1, 2, 3], [4, 5, 6, 8, 9])
    config = config_of(model, batch_size=1)
    with passes_of(model, config) as passes, Engine(passes) as engine:
        list(engine.run(healthy))
        poisoned = Logits([7] * 20, [7])
        list(engine.run(poisoned))
        again = Logits([1, 2, 3], [4, 5, 6, 8, 9])
        list(engine.run(again))
    assert np.isnan(poisoned.seen[0][:7]).all()
    np.testing.assert_array_equal(healthy.seen, again.seen)
    assert np.isfinite(np.delete(healthy.seen, 7, axis=-1)).all()


def test_one_chunk_of_a_prompt_runs_between_two_decode_passes_and_newcomers_take_turns(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    reference = ReferencePasses(model, batch_size=3)
    passes = HeldPasses(reference)
    with Engine(passes) as engine:
        passes.hold()
        first = engine.submit(request(passes, tokenizer, "A", 30))
        passes.let(1)
        wait_until(lambda: first.generated_tokens > 0)
        newcomers = [engine.submit(request(passes, tokenizer, LONG, 2)) for _ in range(2)]
        reference.log.clear()
        passes.let_all()
        assert finish(first, *newcomers) == ["budget"] * 3
    kinds = [kind for kind, _ in reference.log]
    together = kinds[kinds.index("prefill") : kinds.index("prefill") + 12]
    assert "prefill prefill" not in " ".join(together)
    assert together.count("prefill") > 4
    rows = [row for kind, row in reference.log if kind == "prefill"]
    least = len(tokenizer(LONG).input_ids) // CHUNK
    assert rows[: 2 * least] in ([1, 2] * least, [2, 1] * least)


def test_a_long_prompt_beside_a_running_request_gives_the_text_of_generate(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    passes = ReferencePasses(model, batch_size=2)
    with Engine(passes) as engine:
        running = engine.run(request(passes, tokenizer, "A dog", 30))
        begun = list(itertools.islice(running, 2))
        beside = text_of(engine.run(request(passes, tokenizer, LONG, 10)))
        text = text_of([*begun, *running])
    assert beside == generated_text(model, tokenizer, LONG, 10)
    assert text == generated_text(model, tokenizer, "A dog", 30)


def test_the_queue_is_bounded_and_a_place_that_is_left_is_free(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    passes = HeldPasses(ReferencePasses(model))
    passes.hold()
    with Engine(passes, max_queue=2) as engine:

        def submit() -> Ticket:
            return engine.submit(request(passes, tokenizer, "A", 2))

        running = submit()
        wait_until(lambda: engine.statistics().running == 1)
        second, third = submit(), submit()
        assert [engine.place(ticket) for ticket in (running, second, third)] == [0, 1, 2]
        with pytest.raises(QueueFull, match="2 in the queue, of at most 2, for 1 that run"):
            submit()
        second.cancel()
        assert second.end is not None
        assert second.end.reason == "stopped"
        assert engine.place(third) == 1
        fourth = submit()
        passes.let_all()
        assert finish(running, third, fourth) == ["budget"] * 3
        assert engine.statistics().refused == 1


def test_without_a_queue_a_free_slot_is_still_given(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    passes = ReferencePasses(model)
    with Engine(passes, max_queue=0) as engine:
        for _ in range(2):
            text = text_of(engine.run(request(passes, tokenizer, "A", 2)))
            assert text == generated_text(model, tokenizer, "A", 2)
            wait_until(lambda: engine.statistics().running == 0)


def test_a_cancelled_request_frees_its_slot(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    passes = HeldPasses(ReferencePasses(model))
    with Engine(passes) as engine:
        ticket = engine.submit(request(passes, tokenizer, "A", 50))
        waiting = engine.submit(request(passes, tokenizer, "A dog is", 5))
        wait_until(lambda: ticket.generated_tokens > 2)
        passes.hold()
        ticket.cancel()
        before = ticket.generated_tokens
        passes.let(2)  # the pass that runs, and the first of who waited
        assert finish(ticket) == ["stopped"]
        assert ticket.generated_tokens <= before + 1
        wait_until(lambda: waiting.started is not None)
        passes.let_all()
        assert finish(waiting) == ["budget"]
        assert text_of(waiting.take()) == generated_text(model, tokenizer, "A dog is", 5)


def test_a_request_that_is_cancelled_while_its_prompt_is_read_frees_its_slot(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    passes = HeldPasses(ReferencePasses(model))
    passes.hold()
    with Engine(passes) as engine:
        ticket = engine.submit(request(passes, tokenizer, LONG, 50))
        passes.let(2)
        wait_until(lambda: ticket.prompt_done == 2 * CHUNK)
        ticket.cancel()
        passes.let_all()
        assert finish(ticket) == ["stopped"]
        assert ticket.take() == []
        text = text_of(engine.run(request(passes, tokenizer, "A dog is", 5)))
        assert text == generated_text(model, tokenizer, "A dog is", 5)


def test_closing_the_iterator_cancels_the_request(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    passes = ReferencePasses(model)
    with Engine(passes) as engine:
        events = engine.run(request(passes, tokenizer, "A", 60))
        next(events)
        events.close()  # type: ignore[attr-defined]
        wait_until(lambda: engine.statistics().running == 0)
        assert engine.statistics().ended == {"stopped": 1}


def test_a_listener_that_has_gone_frees_its_slot(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    def gone() -> None:
        raise RuntimeError("event loop is closed")

    passes = ReferencePasses(model)
    with Engine(passes) as engine:
        ticket = engine.submit(request(passes, tokenizer, "A", 60), gone)
        assert finish(ticket) == ["stopped"]
        assert text_of(engine.run(request(passes, tokenizer, "A", 5))) == generated_text(
            model, tokenizer, "A", 5
        )


def test_a_request_out_of_time_ends_and_the_others_go_on(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    now = [0.0]

    class Slow(ReferencePasses):
        """A second a decode pass."""

        def decode(self, *given: np.ndarray) -> np.ndarray:
            now[0] += 1
            return super().decode(*given)

    passes = HeldPasses(Slow(model, batch_size=2))
    passes.hold()
    with Engine(passes, time_limit=9.5, clock=lambda: now[0]) as engine:
        late = engine.submit(request(passes, tokenizer, "A", 50))
        short = engine.submit(request(passes, tokenizer, "A dog is", 6))
        passes.let_all()
        assert finish(late, short) == ["time_limit", "budget"]
    assert late.generated_tokens == 11  # one of the prompt's, ten of ten passes
    assert text_of(short.take()) == generated_text(model, tokenizer, "A dog is", 6)


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("kind", [UserError, ZeroDivisionError])
def test_an_error_in_one_request_ends_that_request_alone(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast, kind: type[Exception], at: int
) -> None:
    error = kind("what went wrong")
    passes = HeldPasses(ReferencePasses(model, batch_size=3))
    passes.hold()
    with Engine(passes) as engine:
        others = [engine.submit(request(passes, tokenizer, text, 8)) for text in PROMPTS[:2]]
        broken = engine.submit(Broken([1, 2, 3], error, at))
        passes.let_all()
        assert finish(broken, *others) == ["error", "budget", "budget"]
        assert broken.end is not None
        assert broken.end.error is error
        for ticket, prompt in zip(others, PROMPTS, strict=False):
            assert text_of(ticket.take()) == generated_text(model, tokenizer, prompt, 8)
        with pytest.raises(kind, match="what went wrong"):
            list(engine.run(Broken([1], error, at)))


def test_logits_that_are_no_numbers_end_the_request_they_are_of(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    class Damaged(ReferencePasses):
        def _logits(self, row: int, length: int) -> np.ndarray:
            logits = super()._logits(row, length)
            return logits * np.nan if 65 in self._rows[row, :length] else logits

    passes = Damaged(model, batch_size=2)
    with Engine(passes) as engine:
        work = request(passes, tokenizer, "A", 5)
        work.ids = [65, 66]
        running = engine.run(request(passes, tokenizer, "Ein Hund", 12))
        with pytest.raises(UserError, match="largest logit must be a finite number, not nan"):
            list(engine.run(work))
        assert text_of(running) == generated_text(model, tokenizer, "Ein Hund", 12)


@pytest.mark.parametrize("failing", ["prefill_chunk", "decode"])
def test_a_pass_that_fails_ends_those_it_was_for_and_the_engine_goes_on(
    model: BloomForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    failing: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes = ReferencePasses(model, batch_size=2)

    def fail(*_: object) -> None:
        raise MemoryError("no room")

    with Engine(passes) as engine:
        with monkeypatch.context() as patched:
            patched.setattr(passes, failing, fail)
            with pytest.raises(MemoryError, match="no room"):
                list(engine.run(request(passes, tokenizer, "A", 5)))
        assert engine.statistics().running == 0
        text = text_of(engine.run(request(passes, tokenizer, "A", 5)))
        assert text == generated_text(model, tokenizer, "A", 5)


def test_closing_ends_what_runs_and_waits_without_waiting_for_a_pass_and_takes_no_more(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    passes = HeldPasses(ReferencePasses(model))
    passes.hold()
    engine = Engine(passes)
    engine.start()
    tickets = [engine.submit(request(passes, tokenizer, "A", 50)) for _ in range(3)]
    wait_until(lambda: engine.statistics().running == 1)
    assert not engine.close(timeout=0)  # a pass is held up
    assert finish(*tickets) == ["shutdown"] * 3
    with pytest.raises(EngineClosed, match="shutting down"):
        engine.submit(request(passes, tokenizer, "A", 50))
    passes.let_all()
    assert engine.close()
    assert engine.statistics().ended == {"shutdown": 3}
    assert not engine.statistics().alive


def test_statistics_are_of_the_clock_and_the_tokens(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    now = [100.0]

    class Timed(ReferencePasses):
        """A chunk takes 4 s, a token 0.5 s."""

        def prefill_chunk(self, *arguments: Any) -> Any:
            now[0] += 4
            return super().prefill_chunk(*arguments)

        def decode(self, *given: np.ndarray) -> np.ndarray:
            now[0] += 0.5
            return super().decode(*given)

    passes = HeldPasses(Timed(model))
    passes.hold()
    with Engine(passes, clock=lambda: now[0]) as engine:
        first = engine.submit(request(passes, tokenizer, "A", 5))
        wait_until(lambda: engine.statistics().running == 1)
        second = engine.submit(request(passes, tokenizer, "A", 3))
        statistics = engine.statistics()
        assert (statistics.slots, statistics.running, statistics.queued) == (1, 1, 1)
        assert statistics.time_to_first_token is None
        passes.let_all()
        finish(first, second)
        statistics = engine.statistics()
    assert (first.queue_wait, second.queue_wait) == (0, 4 + 4 * 0.5)
    assert (first.time_to_first_token, second.time_to_first_token) == (4, 6 + 4)
    assert first.tokens_per_second == second.tokens_per_second == 1 / 0.5
    assert (statistics.queue_wait, statistics.time_to_first_token) == (3, 7)
    assert (statistics.ended, statistics.generated_tokens) == ({"budget": 2}, 8)


def test_next_tokens_are_those_of_transformers_softmax(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    passes = ReferencePasses(model)
    ids = tokenizer("A dog is").input_ids
    with Engine(passes) as engine:
        (tokens,) = engine.run(NextTokens(ids, tokenizer))
    with torch.no_grad():
        chances = model(torch.tensor([ids])).logits[0, -1].softmax(-1)
    expected = chances.topk(10)
    assert [token.token for token in tokens] == expected.indices.tolist()
    np.testing.assert_allclose(
        [token.probability for token in tokens], expected.values.numpy(), rtol=1e-4
    )
    for token in tokens:
        assert token.text in (tokenizer.decode([token.token]), "")


def test_a_token_without_text_of_its_own_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    half = tokenizer.convert_tokens_to_ids("Ð")  # the first byte of a Cyrillic letter
    logits = np.full(len(tokenizer), -30, np.float32)
    logits[[tokenizer.eos_token_id, half, *tokenizer(" cat").input_ids]] = 3, 2, 1
    first, second, third, *_ = NextTokens([1], tokenizer).accept(logits)
    assert (first.text, first.shown) == ("", "</s>")
    assert (second.text, second.shown) == ("", f"part of a character, {half}")
    assert (third.text, third.shown) == (" cat", "␣cat")


def test_requests_from_many_threads_at_once_all_end(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    passes = ReferencePasses(model, batch_size=4)
    found: dict[int, str] = {}
    with Engine(passes) as engine:

        def ask(number: int) -> None:
            prompt = PROMPTS[number % len(PROMPTS)]
            found[number] = text_of(engine.run(request(passes, tokenizer, prompt, 6)))

        threads = [threading.Thread(target=ask, args=[number]) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    expected = [generated_text(model, tokenizer, prompt, 6) for prompt in PROMPTS]
    assert [found[number] for number in range(16)] == expected * 2


@pytest.mark.parametrize("options", [{"max_queue": -1}, {"time_limit": 0}, {"time_limit": -3.0}])
def test_impossible_limits_are_refused(model: BloomForCausalLM, options: dict) -> None:
    (name, value), *_ = options.items()
    with pytest.raises(UserError, match=f"{name} must be .*, not {value}"):
        Engine(ReferencePasses(model), **options)


def test_a_sampled_text_is_repeated_by_its_seed_among_others(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    passes = ReferencePasses(model, batch_size=3)
    sampling = SamplingConfig(temperature=1.0, seed=5)
    settings = {"temperature": sampling.temperature, "seed": sampling.seed}
    with Engine(passes) as engine:
        alone = text_of(engine.run(request(passes, tokenizer, "A dog", 12, **settings)))
        running = [
            engine.run(request(passes, tokenizer, "A dog", 12, **{**settings, "seed": seed}))
            for seed in (4, 5, 6)
        ]
        texts = [text_of(events) for events in running]
    assert texts[1] == alone
    assert len(set(texts)) == 3
