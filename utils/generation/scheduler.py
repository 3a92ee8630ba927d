"""Who is run next: the queue, the slots, and whose prompts are read or tokens decoded.

Prefill and decode passes alternate where there is work for both. Prompts take turns: the first has
a chunk run in the next prefill pass, those behind it share the pass as there is room, and whoever
had a chunk run goes behind all others. So with S slots

* a request that decodes waits for two prefill passes between two tokens at most, of
  `max_batch_tokens`: a decode pass that has not room for all is of at least half, in turn;
* a prompt waits for fewer than S prefill passes, and as many decode passes, between two chunks;
* requests have their slots in the order in which they came.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from utils.generation.lookup import PromptLookup
from utils.generation.ticket import Ticket


@dataclass(eq=False)
class Slot:
    """A request that has a slot of the KV cache."""

    ticket: Ticket
    number: int
    lookup: PromptLookup
    prefilling: bool = True
    turn: int = 0  # the last decode pass before its last token

    @property
    def scored(self) -> bool:
        """Whether the logits after each token of its prompt are wanted."""
        return self.ticket.work.prompt_logprobs is not None


class Scheduler:
    """Who waits and who runs; `changed` guards all of it.

    Args:
        slots: their number.
        prefill_first: read all prompts before a token is decoded.
        clock: seconds.
    """

    def __init__(self, slots: int, prefill_first: bool, clock: Callable[[], float]):
        self.changed = threading.Condition()
        self.queue: deque[Ticket] = deque()
        self.slots: list[Slot | None] = [None] * slots
        self._prompts: deque[Slot] = deque()  # those that are read, the next one first
        self._prefilled = False  # by the last pass: decoding is next
        self._turns = 0  # decode passes so far
        self._prefill_first, self._clock = prefill_first, clock

    def running(self) -> list[Slot]:
        return [slot for slot in self.slots if slot]

    def next(self, verify_sizes: Sequence[int]) -> tuple[list[Slot], list[Slot]]:
        """Whose prompts the next pass reads, or whose tokens are decoded, both in order.

        A prompt whose logits are all wanted has a pass of its own.

        Args:
            verify_sizes: of the verify passes in tokens, for look-up.
        """
        with self.changed:
            self._fill(verify_sizes)
            decoding = [slot for slot in self.running() if not slot.prefilling]
            decoding.sort(key=lambda slot: slot.turn)
            decode = decoding and self._prefilled and not self._prefill_first
            self._prefilled = bool(self._prompts) and not decode
            if not self._prefilled:
                return [], decoding
            if self._prompts[0].scored:
                return [self._prompts[0]], []
            return [slot for slot in self._prompts if not slot.scored], []

    def _fill(self, verify_sizes: Sequence[int]) -> None:
        """Give free slots to those who wait, in order."""
        while self.queue and None in self.slots:
            ticket, number = self.queue.popleft(), self.slots.index(None)
            ticket.started = self._clock()
            slot = self.slots[number] = Slot(ticket, number, PromptLookup(verify_sizes))
            self._prompts.append(slot)
            ticket.work.start(slot.lookup)

    def ran(self, slot: Slot, complete: bool) -> None:
        """A chunk of a prompt was run: others are next."""
        with self.changed:
            if slot in self._prompts:  # else it was ended meanwhile
                self._prompts.remove(slot)
                if not complete:
                    self._prompts.append(slot)
            slot.prefilling, slot.turn = not complete, self._turns

    def decoded(self, slots: Sequence[Slot]) -> None:
        """They had a token: others are next."""
        self._turns += 1
        for slot in slots:
            slot.turn = self._turns

    def drop(self, ticket: Ticket) -> None:
        """It has left: its slot is free, or its place in the queue."""
        if ticket in self.queue:
            self.queue.remove(ticket)
        for number, slot in enumerate(self.slots):
            if slot and slot.ticket is ticket:
                self.slots[number] = None
                if slot in self._prompts:
                    self._prompts.remove(slot)
