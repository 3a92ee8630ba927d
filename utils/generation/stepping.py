"""Steps of the engine: each runs a pass, has requests choose tokens, and hands out what came."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from utils.generation.engine_passes import EnginePasses, Prompt, Step
from utils.generation.engine_statistics import Records
from utils.generation.scheduler import Scheduler, Slot
from utils.generation.ticket import End, Ticket
from utils.setup import UserError

logger = logging.getLogger(__name__)


class Stepper:
    """Runs what a scheduler says is next, and ends requests.

    Args:
        records: are told of passes and of requests that have ended.
        time_limit: seconds that a request may have its slot; None is no limit.
        clock: seconds.

    Attributes:
        raises: whether somebody gets a request's error raised; else it is logged.
    """

    def __init__(
        self,
        passes: EnginePasses,
        scheduler: Scheduler,
        records: Records,
        time_limit: float | None,
        clock: Callable[[], float],
    ):
        self.passes, self.scheduler, self.records = passes, scheduler, records
        self.raises = True
        self._time_limit, self._clock = time_limit, clock
        self._stepping = threading.Lock()  # held by who steps

    def step(self) -> Step | None:
        """As `Engine.step`."""
        with self._stepping:
            self._drop_late()
            prompts, decoding = self.scheduler.next(self.passes.verify_sizes)
            if prompts:
                return self._score(prompts[0]) if prompts[0].scored else self._prefill(prompts)
            proposal = self._proposal(decoding[0]) if len(decoding) == 1 else []
            if proposal:
                return self._verify(decoding[0], proposal)
            return self._decode(decoding) if decoding else None

    def _drop_late(self) -> None:
        """Free the slots of those who are out of time."""
        if self._time_limit is None:
            return
        for ticket in [slot.ticket for slot in self.scheduler.running()]:
            if ticket.started is not None and self._clock() - ticket.started > self._time_limit:
                self.finish(ticket, End("time_limit"))

    def _prefill(self, slots: Sequence[Slot]) -> Step | None:
        """Run chunks of prompts: of the first one, and of what shares its pass."""
        tickets, begin = [slot.ticket for slot in slots], time.perf_counter()
        given = [Prompt(s.number, s.ticket.work.ids, s.ticket.prompt_done) for s in slots]
        try:
            found = self.passes.prefill_chunks(given)
        except Exception as error:
            self.fail(tickets, error)
            return None
        seconds, tokens = time.perf_counter() - begin, 0
        for slot, (count, logits) in zip(slots, found, strict=True):
            if count:
                tokens += count
                self._advance(slot, count, logits)
        return Step("prefill", tokens, seconds)

    def _score(self, slot: Slot) -> Step | None:
        """Run a chunk of a prompt whose tokens' logits are all wanted."""
        ticket, begin = slot.ticket, time.perf_counter()
        ids, done = ticket.work.ids, ticket.prompt_done
        try:
            logits = self.passes.score_chunk(slot.number, ids, done)
            ticket.work.prompt_logprobs.add(logits)
        except Exception as error:
            self.fail([ticket], error)
            return None
        seconds, count = time.perf_counter() - begin, len(logits)
        self._advance(slot, count, logits[-1] if done + count == len(ids) else None)
        return Step("prefill", count, seconds)

    def _advance(self, slot: Slot, count: int, logits: np.ndarray | None) -> None:
        """So many tokens of a prompt are done; with logits all of them are."""
        slot.ticket.prompt_done += count
        self.scheduler.ran(slot, complete=logits is not None)
        if logits is not None:
            self._accept(slot, logits)

    def _proposal(self, slot: Slot) -> list[int]:
        work = slot.ticket.work
        return slot.lookup.propose(work.ids, self.passes.sequence_length - work.position)

    def _verify(self, slot: Slot, proposal: list[int]) -> Step | None:
        """Run the last token of a slot and those proposed, and take what proves right."""
        work, accepted, begin = slot.ticket.work, slot.lookup.accepted, time.perf_counter()
        try:
            logits = self.passes.verify(slot.number, [work.ids[-1], *proposal], work.position)
        except Exception as error:
            self.fail([slot.ticket], error)
            return None
        seconds = time.perf_counter() - begin
        for proposed, after_token in zip([*proposal, None], logits, strict=True):
            self._accept(slot, after_token)
            if self.scheduler.slots[slot.number] is not slot or work.ids[-1] != proposed:
                break
        self.records.add_lookup(len(proposal), slot.lookup.accepted - accepted)
        return Step("verify", len(logits), seconds)

    def _decode(self, decoding: list[Slot]) -> Step | None:
        """Run a token of slots whose prompt was read, of those first that have waited longest."""
        works = [slot.ticket.work for slot in decoding]
        each = [(w.ids[-1], w.position, s.number) for w, s in zip(works, decoding, strict=True)]
        begin = time.perf_counter()
        try:
            logits = self.passes.decode(*np.array(each, np.int32).T)
        except Exception as error:
            self.fail([slot.ticket for slot in decoding], error)
            return None
        seconds = time.perf_counter() - begin
        done = decoding[: len(logits)]
        self.scheduler.decoded(done)
        for slot, after_token in zip(done, logits, strict=True):
            self._accept(slot, after_token)
        return Step("decode", len(done), seconds)

    def _accept(self, slot: Slot, logits: np.ndarray) -> None:
        """Let a request choose its next token; an error of its own ends it alone."""
        ticket = slot.ticket
        if ticket.end:
            return  # nobody takes this token
        try:
            event = ticket.work.accept(logits)
        except Exception as error:
            self.fail([ticket], error)
            return
        try:
            ticket.deliver(event, self._clock())
        except Exception:
            self.leave(ticket)  # whoever waited has gone
        if ticket.work.finished:
            self.finish(ticket, End(ticket.work.finish_reason))

    # --- endings ---

    def leave(self, ticket: Ticket) -> None:
        """End a request that nobody waits for."""
        self.finish(ticket, End("stopped"))

    def fail(self, tickets: Sequence[Ticket], error: Exception) -> None:
        """End requests by an error."""
        if not self.raises and not isinstance(error, UserError):
            numbers = ", ".join(str(ticket.number) for ticket in tickets)
            logger.error("request %s ended by an error", numbers, exc_info=error)
        for ticket in tickets:
            self.finish(ticket, End("error", error))

    def finish(self, ticket: Ticket, end: End) -> None:
        """Free the slot of a request and say that it has ended, once."""
        with self.scheduler.changed:
            if ticket.end:
                return
            self.scheduler.drop(ticket)
            try:
                ticket.finish(end, self._clock())
            except Exception:
                logger.debug("request %d ended unheard", ticket.number, exc_info=True)
            self.records.add(ticket)
