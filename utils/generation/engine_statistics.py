"""What an engine has done and how long its requests waited."""

from __future__ import annotations

import statistics
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

from utils.generation.prefixes import PrefixCache
from utils.generation.ticket import Ticket

RECENT = 256
"""Requests that the medians are of."""


@dataclass(frozen=True)
class EngineStatistics:
    """A moment of an engine. Counts are since its start, medians of the last requests' seconds.

    The medians are None while no request has come that far.
    """

    alive: bool  # and not closing
    slots: int
    running: int
    queued: int
    max_queue: int
    submitted: int
    refused: int
    ended: dict[str, int]  # by reason
    generated_tokens: int
    verify_passes: int  # of look-up, with the tokens proposed to them and those that were right
    proposed_tokens: int
    accepted_tokens: int
    cache_tokens: int  # of the prefix cache: that are kept, that can be, and that were used
    cache_capacity_tokens: int
    cache_hit_tokens: int
    queue_wait: float | None
    time_to_first_token: float | None
    tokens_per_second: float | None


class Records:
    """Collects what statistics need; as small after a million requests as after a few hundred."""

    def __init__(self) -> None:
        self.submitted = self.refused = 0
        self._ended: Counter[str] = Counter()
        self._generated_tokens = 0
        self._verify_passes = self._proposed_tokens = self._accepted_tokens = 0
        self._recent: deque[tuple[float | None, float | None, float | None]] = deque(maxlen=RECENT)

    def add(self, ticket: Ticket) -> None:
        """Count a request that has ended."""
        if ticket.end is not None:
            self._ended[ticket.end.reason] += 1
        self._generated_tokens += ticket.generated_tokens
        times = (ticket.queue_wait, ticket.time_to_first_token, ticket.tokens_per_second)
        self._recent.append(times)

    def add_lookup(self, proposed: int, accepted: int) -> None:
        """Count a verify pass."""
        self._verify_passes += 1
        self._proposed_tokens += proposed
        self._accepted_tokens += accepted

    def statistics(self, prefixes: PrefixCache | None, **now: Any) -> EngineStatistics:
        """All there is; `now` is what the engine knows itself."""
        waits, firsts, rates = zip(*self._recent, strict=True) if self._recent else ((), (), ())
        return EngineStatistics(
            **now,
            submitted=self.submitted,
            refused=self.refused,
            ended=dict(self._ended),
            generated_tokens=self._generated_tokens,
            verify_passes=self._verify_passes,
            proposed_tokens=self._proposed_tokens,
            accepted_tokens=self._accepted_tokens,
            cache_tokens=prefixes.tokens if prefixes else 0,
            cache_capacity_tokens=prefixes.capacity if prefixes else 0,
            cache_hit_tokens=prefixes.hit_tokens if prefixes else 0,
            queue_wait=_median(waits),
            time_to_first_token=_median(firsts),
            tokens_per_second=_median(rates),
        )


def _median(values: tuple[float | None, ...]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
