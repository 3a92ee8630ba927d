"""A request's place in the engine: what it has produced, when, why it ended, and how to leave."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from utils.generation.lookup import PromptLookup

FinishReason = Literal["end_of_text", "stop_string", "budget", "context_full"]
EndReason = FinishReason | Literal["done", "stopped", "time_limit", "shutdown", "error"]


class Work(Protocol):
    """What an engine runs in a slot, such as a `Request`.

    Attributes:
        ids: grow by what `accept` chooses; the last of them is at `position` and is run next.
        finish_reason: of an `EndReason`; None until nothing more is to be run.
        prompt_logprobs: what the prompt's logits are given to; None where only the last counts.
    """

    ids: list[int]
    finish_reason: Any = None
    prompt_logprobs: Any = None

    @property
    def position(self) -> int:
        return len(self.ids) - 1

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def start(self, lookup: PromptLookup) -> None:
        """It has a slot: prefill begins. `lookup` is what its tokens are proposed by."""
        return  # mypy takes a body of words for an abstract one

    def accept(self, logits: np.ndarray) -> Any:
        """Takes the logits `[vocab_size]` after the last id; what it returns is an event."""


@dataclass(frozen=True)
class End:
    """Why a request ended; `error` is the exception where the reason is "error"."""

    reason: EndReason
    error: Exception | None = None


class Ticket:
    """One request in an engine, made by `Engine.submit`.

    Attributes:
        number: of the request, from 1 on.
        end: why it ended, once it has and all its events can be taken.
        prompt_done: tokens of the prompt that were run.
        submitted, started, first, ended: times of the engine's clock in seconds: handed in, given a
            slot, first event, end; None while it has not come to that.
    """

    def __init__(
        self,
        number: int,
        work: Work,
        notify: Callable[[], object],
        leave: Callable[[Ticket], None],
        now: float,
    ):
        self.number, self.work = number, work
        self.end: End | None = None
        self.prompt_tokens = len(work.ids)
        self.prompt_done = 0
        self.submitted = now
        self.started: float | None = None
        self.first: float | None = None
        self.ended: float | None = None
        self._events: deque[Any] = deque()
        self._notify, self._leave = notify, leave

    def take(self) -> list[Any]:
        """The events since the last call, in order.

        Read `end` before: where it is set then, these are the last.
        """
        return [self._events.popleft() for _ in range(len(self._events))]

    def cancel(self) -> None:
        """Leave, and free the slot. Without effect on a request that has ended."""
        self._leave(self)

    @property
    def generated_tokens(self) -> int:
        return len(self.work.ids) - self.prompt_tokens

    @property
    def queue_wait(self) -> float | None:
        """Seconds until it had a slot."""
        return None if self.started is None else self.started - self.submitted

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from handing in to the first event: the wait is a part of it."""
        return None if self.first is None else self.first - self.submitted

    @property
    def tokens_per_second(self) -> float | None:
        """Of what came after the first token, once it has ended."""
        if self.first is None or self.ended is None or self.ended <= self.first:
            return None
        following = self.generated_tokens - 1
        return following / (self.ended - self.first) if following > 0 else None

    # --- for the engine ---

    def deliver(self, event: Any, now: float) -> None:
        """Hand an event to whoever waits for it. Raises what `notify` raises."""
        if self.first is None:
            self.first = now
        self._events.append(event)
        self._notify()

    def finish(self, end: End, now: float) -> None:
        """Nothing follows."""
        self.ended, self.end = now, end
        self._notify()
