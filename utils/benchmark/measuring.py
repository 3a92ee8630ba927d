"""Rounds of prompts and decoding, with the limits sampled in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from utils.benchmark.arguments import Combination
from utils.benchmark.comparison import Peer
from utils.benchmark.limits import MachineLimits
from utils.benchmark.work import Work
from utils.generation.passes import Passes
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
        first_tokens: seconds from a row's prompt to its first token.
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


class Rounds:
    """Measures combinations of one session."""

    def __init__(
        self,
        passes: Passes,
        work: Work,
        generator: np.random.Generator,
        peer: Peer | None = None,
        progress: Callable[[], object] = lambda: None,
    ):
        self.passes, self.work, self.generator = passes, work, generator
        self.peer, self.progress = peer, progress

    def run(self, samples: Samples, limits: MachineLimits, repeats: int) -> None:
        """One round to warm up, shorter, and `repeats` whose times are added to `samples`."""
        warm_up = Samples(samples.combination._replace(new_tokens=1 + WARM_UP_STEPS))
        self._round(warm_up, limits)
        for _ in range(repeats):
            self._round(samples, limits)

    def _round(self, samples: Samples, limits: MachineLimits) -> None:
        shape = (self.passes.batch_size, samples.combination.prompt_tokens)
        prompts = self.generator.integers(self.passes.vocab_size, size=shape)
        logits = self._prompts(samples, limits, prompts)
        self._decode(samples, limits, logits)

    def _prompts(self, samples: Samples, limits: MachineLimits, prompts: np.ndarray) -> np.ndarray:
        limit, rows, seconds, rates = limits.matmuls(), [], [], []
        for row, prompt in enumerate(prompts):
            limit.begin()
            logits, taken = _timed(partial(self.passes.prompt, row, prompt))
            rates.append(limit.end())
            seconds.append(taken)
            rows.append(logits)
        logits = np.stack(rows)
        theirs = self._timed_peer(samples, "prompt", prompts, logits)
        work = len(prompts) * self.work.prompt_operations(prompts.shape[1])
        samples.first_tokens += seconds
        samples.prompts.append(Timed(sum(seconds), work, float(np.mean(rates)), theirs))
        self.progress()
        return logits

    def _decode(self, samples: Samples, limits: MachineLimits, logits: np.ndarray) -> None:
        _, filled, new_tokens = samples.combination
        limit = limits.bandwidth()
        together = 1 if self.peer else STEPS_A_SAMPLE
        left = new_tokens - 1  # the prompt gave the first
        while left:
            group = []
            limit.begin()
            for _ in range(min(together, left)):
                logits, seconds, theirs = self._step(samples, logits, filled)
                filled += 1
                group.append((seconds, self.work.step_bytes(len(logits), filled), theirs))
            rate = limit.end()
            samples.steps += [Timed(s, work, rate, theirs) for s, work, theirs in group]
            left -= len(group)

    def _step(
        self, samples: Samples, logits: np.ndarray, filled: int
    ) -> tuple[np.ndarray, float, float | None]:
        tokens = logits.argmax(-1).astype(np.int32)
        positions = np.full(len(tokens), filled, np.int32)
        before = PassTraffic.so_far(self.passes.session)
        logits, seconds = _timed(partial(self.passes.token, tokens, positions))
        samples.exchanged.append(PassTraffic.so_far(self.passes.session) - before)
        theirs = self._timed_peer(samples, "token", tokens, logits)
        self.progress()
        return logits, seconds, theirs

    def _timed_peer(
        self, samples: Samples, which: str, tokens: np.ndarray, logits: np.ndarray
    ) -> float | None:
        """Seconds that the peer takes for the same pass, where there is one."""
        if self.peer is None:
            return None
        theirs, seconds = _timed(partial(getattr(self.peer, which), tokens))
        difference = float(np.abs(theirs - logits).max())
        samples.logits_differ_by = max(samples.logits_differ_by, difference)
        return seconds


def progress_of(combination: Combination, repeats: int) -> int:
    """How often `run` reports progress: once for all prompts of a round, once a step."""
    return 1 + WARM_UP_STEPS + repeats * combination.new_tokens


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    result = run()
    return result, time.perf_counter() - begin
