"""Rounds of prompts and decoding, with the limits sampled in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from utils.benchmark.arguments import Combination
from utils.benchmark.comparison import Transformers
from utils.benchmark.limits import MachineLimits
from utils.benchmark.work import Work
from utils.generation.engine import Engine
from utils.generation.engine_passes import Step
from utils.generation.passes import Passes
from utils.generation.ticket import Ticket
from utils.generation.ticket import Work as EngineWork
from utils.planning.traffic import PassTraffic

STEPS_A_SAMPLE = 4
"""Steps of decoding between two samples of the bandwidth, where no peer's steps are between."""

WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Timed:
    """One pass.

    Attributes:
        work: bytes read or operations made, as the model requires.
        limit: the machine's rate round this pass, bytes or operations a second.
        peer_seconds: the same of the peer, run next to it.
    """

    seconds: float
    work: int
    limit: float
    peer_seconds: float | None = None

    @property
    def share(self) -> float:
        """Of the limit."""
        return self.work / self.seconds / self.limit


@dataclass
class Samples:
    """What was measured of one combination, as far as it got.

    Attributes:
        first_tokens: seconds from all prompts to a row's first token.
        prompts: of all rows of a round.
        steps: of decoding.
        logits_differ_by: most that a logit differed from the peer's.
        exchanged: with other processes, by each step.
    """

    combination: Combination
    first_tokens: list[float] = field(default_factory=list)
    prompts: list[Timed] = field(default_factory=list)
    steps: list[Timed] = field(default_factory=list)
    logits_differ_by: float = 0.0
    exchanged: list[PassTraffic] = field(default_factory=list)


class Greedy(EngineWork):
    """A request that chooses the likeliest of so many tokens, and keeps the last logits."""

    def __init__(self, prompt: np.ndarray, new_tokens: int):
        self.ids, self._length = prompt.tolist(), len(prompt) + new_tokens
        self.logits = np.empty(0)

    def accept(self, logits: np.ndarray) -> None:
        self.logits = logits
        self.ids.append(int(logits.argmax()))
        self.finish_reason = "budget" if len(self.ids) >= self._length else None


class Rounds:
    """Measures combinations of one session.

    Args:
        work: of the layers that are measured.
        whole: of the whole model. Where that is more, times are extrapolated: it is taken to do
            its work at the same share of the machine's limits.
    """

    def __init__(
        self,
        passes: Passes,
        work: Work,
        whole: Work,
        generator: np.random.Generator,
        peer: Transformers | None = None,
        progress: Callable[[], object] = lambda: None,
    ):
        self.passes, self.work, self.whole = copy(passes), work, whole
        self.generator = generator
        self.passes.verify_sizes = ()  # a token a pass: what is measured is decode
        self.peer, self.progress = peer, progress

    def run(self, samples: Samples, limits: MachineLimits, repeats: int) -> None:
        """One round to warm up, shorter, and `repeats` whose times are added to `samples`."""
        warm_up = Samples(samples.combination._replace(new_tokens=1 + WARM_UP_STEPS))
        self._round(warm_up, limits)
        for _ in range(repeats):
            self._round(samples, limits)

    def _round(self, samples: Samples, limits: MachineLimits) -> None:
        _, prompt_tokens, new_tokens = samples.combination
        shape = (self.passes.batch_size, prompt_tokens)
        prompts = self.generator.integers(self.passes.vocab_size, size=shape)
        engine = Engine(self.passes, prefill_first=True, max_queue=len(prompts))
        tickets = self._prefill(samples, limits, engine, prompts, new_tokens)
        self._decode(samples, limits, engine, tickets)

    def _prefill(
        self,
        samples: Samples,
        limits: MachineLimits,
        engine: Engine,
        prompts: np.ndarray,
        new_tokens: int,
    ) -> list[Ticket]:
        """All prompts at once: those that are short share passes."""
        limit, seconds = limits.matmuls(), 0.0
        firsts: list[float] = []
        limit.begin()
        tickets = [engine.submit(Greedy(prompt, new_tokens)) for prompt in prompts]
        while len(firsts) < len(tickets):
            seconds += _step(engine, tickets).seconds
            begun = sum(bool(ticket.generated_tokens) for ticket in tickets)
            firsts += [seconds] * (begun - len(firsts))
        rate = limit.end()
        theirs = self._timed_peer(samples, "prefill", prompts, tickets)
        each = self.whole.prompt_operations(prompts.shape[1])
        factor = each / self.work.prompt_operations(prompts.shape[1])
        samples.first_tokens += [factor * first for first in firsts]
        samples.prompts.append(Timed(factor * seconds, len(prompts) * each, rate, theirs))
        self.progress()
        return tickets

    def _decode(
        self, samples: Samples, limits: MachineLimits, engine: Engine, tickets: list[Ticket]
    ) -> None:
        limit = limits.bandwidth()
        together = 1 if self.peer else STEPS_A_SAMPLE
        left = samples.combination.new_tokens - 1  # prefill gave the first
        while left:
            group = []
            limit.begin()
            for _ in range(min(together, left)):
                filled = len(tickets[0].work.ids)
                seconds, theirs = self._decode_step(samples, engine, tickets)
                work = self.whole.step_bytes(len(tickets), filled)
                factor = work / self.work.step_bytes(len(tickets), filled)
                group.append((factor * seconds, work, theirs))
            rate = limit.end()
            samples.steps += [Timed(s, work, rate, theirs) for s, work, theirs in group]
            left -= len(group)

    def _decode_step(
        self, samples: Samples, engine: Engine, tickets: list[Ticket]
    ) -> tuple[float, float | None]:
        tokens = np.array([ticket.work.ids[-1] for ticket in tickets], np.int32)
        before = PassTraffic.so_far(self.passes.session)
        seconds = _step(engine, tickets).seconds
        samples.exchanged.append(PassTraffic.so_far(self.passes.session) - before)
        theirs = self._timed_peer(samples, "decode", tokens, tickets)
        self.progress()
        return seconds, theirs

    def _timed_peer(
        self, samples: Samples, which: str, tokens: np.ndarray, tickets: list[Ticket]
    ) -> float | None:
        """Seconds that the peer takes for the same pass, where there is one."""
        if self.peer is None:
            return None
        begin = time.perf_counter()
        theirs = getattr(self.peer, which)(tokens)
        seconds = time.perf_counter() - begin
        difference = float(
            np.abs(theirs - [cast(Greedy, ticket.work).logits for ticket in tickets]).max()
        )
        samples.logits_differ_by = max(samples.logits_differ_by, difference)
        return seconds


def progress_of(combination: Combination, repeats: int) -> int:
    """How often `run` reports progress: once for all prompts of a round, once a step."""
    return 1 + WARM_UP_STEPS + repeats * combination.new_tokens


def _step(engine: Engine, tickets: list[Ticket]) -> Step:
    """A step; raises what ended a request."""
    step = engine.step()
    for ticket in tickets:
        if ticket.end and ticket.end.error:
            raise ticket.end.error
    assert step is not None, "there are requests to run"
    return step
