"""The one token loop: requests share the slots of a session by continuous batching.

A `step` schedules and runs one pass, samples, and hands out what came of it. Requests join and
leave between two steps. Prefill and decode passes alternate where there is work for both, and
prompts take turns chunk by chunk, so that a long prompt holds nobody up for longer than a chunk
takes.

Slots are independent: what a request computes depends neither on the others nor on who had its slot
before. With prompt-lookup decoding (`utils.generation.lookup`) a request that decodes alone has
several tokens a pass; its logits are then as near to those among others as a verify pass is to a
decode pass.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from utils.generation.engine_statistics import EngineStatistics, Records
from utils.generation.lookup import PromptLookup
from utils.generation.ticket import End, Ticket, Work
from utils.setup import UserError

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], object]
"""Is told how many tokens of a prompt are done, and how many it has."""


class EnginePasses(Protocol):
    """A session's passes, as the engine needs them; see `utils.generation.passes.Passes`."""

    batch_size: int
    sequence_length: int
    vocab_size: int
    verify_sizes: tuple[int, ...]

    def prefill_chunk(
        self, slot: int, tokens: Sequence[int], start: int
    ) -> tuple[int, np.ndarray | None]:
        """Runs the first chunk of `tokens[start:]`; how many, and after the last their logits."""

    def score_chunk(self, slot: int, tokens: Sequence[int], start: int) -> np.ndarray:
        """Runs the first chunk of `tokens[start:]`; the logits after each of its tokens."""

    def decode(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Runs a token of every slot, `[batch_size]`; logits `[batch_size, vocab_size]`."""

    def verify(self, slot: int, tokens: Sequence[int], position: int) -> np.ndarray:
        """Runs at most `verify_sizes[-1]` next tokens of one slot; logits after each of them."""


class QueueFull(UserError):
    """All slots are taken and as many requests wait as may."""


class EngineClosed(UserError):
    """The engine is closed or closing."""


@dataclass(frozen=True)
class Step:
    """What a step did: the kind of its pass, the tokens that it ran, and the pass's seconds."""

    kind: Literal["prefill", "decode", "verify"]
    tokens: int
    seconds: float


@dataclass(eq=False)
class _Slot:
    """A request that has a slot of the KV cache."""

    ticket: Ticket
    number: int
    lookup: PromptLookup
    prefilling: bool = True

    @property
    def position(self) -> int:
        """Where the slot's token of a decode pass is."""
        return self.ticket.prompt_done if self.prefilling else self.ticket.work.position


class Engine:
    """Runs requests in the slots of `passes`.

    Whoever has one calls `step`, or `run`, which does. As a context manager, and after `start`, it
    has a thread that does so instead. All methods may be called from any thread.

    Args:
        max_queue: requests that may wait for a slot.
        time_limit: seconds that a request may have its slot; None is no limit.
        prefill_first: read all prompts before a token is decoded, where throughput counts alone.
        clock: seconds, for the limit and the statistics.
    """

    def __init__(
        self,
        passes: EnginePasses,
        *,
        max_queue: int = 32,
        time_limit: float | None = None,
        prefill_first: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        if max_queue < 0:
            raise UserError(f"max_queue must be 0 or more, not {max_queue}")
        if time_limit is not None and not time_limit > 0:
            raise UserError(f"time_limit must be over 0 seconds, not {time_limit}")
        self.passes, self.max_queue, self.time_limit = passes, max_queue, time_limit
        self._prefill_first, self._clock = prefill_first, clock
        self._stepping = threading.Lock()  # held by who steps
        self._changed = threading.Condition()  # guards all below
        self._queue: deque[Ticket] = deque()
        self._slots: list[_Slot | None] = [None] * passes.batch_size
        self._prompts: deque[_Slot] = deque()  # those that are read, the next one first
        self._prefilled = False  # by the last pass: decoding is next
        self._records = Records()
        self._closing = False
        self._thread: threading.Thread | None = None

    # --- for requests ---

    def submit(self, work: Work, notify: Callable[[], object] = lambda: None) -> Ticket:
        """Queue a request.

        Args:
            notify: called by who steps when there is an event to take, or the end; must not wait.
                If it raises, the request is cancelled: nobody is there.

        Raises:
            QueueFull: no slot is free and `max_queue` requests wait.
            EngineClosed: the engine takes no more.
        """
        with self._changed:
            if self._closing:
                raise EngineClosed("the server is shutting down: no further request is taken")
            if len(self._queue) >= self.max_queue + self._slots.count(None):
                self._records.refused += 1
                raise QueueFull(
                    f"too many people are waiting: {len(self._queue)} in the queue, of at most "
                    f"{self.max_queue}, for {len(self._slots)} that run at once: try again in a "
                    "moment"
                )
            self._records.submitted += 1
            number = self._records.submitted
            ticket = Ticket(number, work, notify, self._leave, self._clock())
            self._queue.append(ticket)
            self._changed.notify()
            return ticket

    def run(self, work: Work, progress: Progress = lambda *_: None) -> Iterator[Any]:
        """The events of a request as they come: steps the engine, unless a thread of it does.

        Closing the iterator cancels the request, as an interrupt does.

        Args:
            progress: called with the tokens of the prompt that are done, and all it has.

        Raises:
            QueueFull, EngineClosed: when called.
            Exception: what ended the request, if that was an error.
        """
        ready = threading.Event()
        return self._events(self.submit(work, ready.set), ready, progress)

    def place(self, ticket: Ticket) -> int:
        """Its place in the queue, 1 for the next; 0 once it has a slot or has ended."""
        with self._changed:
            return self._queue.index(ticket) + 1 if ticket in self._queue else 0

    def statistics(self) -> EngineStatistics:
        """How it goes just now."""
        with self._changed:
            alive = self._thread is None or self._thread.is_alive()
            return self._records.statistics(
                getattr(self.passes, "prefixes", None),
                alive=alive and not self._closing,
                slots=len(self._slots),
                running=len(self._running()),
                queued=len(self._queue),
                max_queue=self.max_queue,
            )

    def _events(self, ticket: Ticket, ready: threading.Event, progress: Progress) -> Iterator[Any]:
        done = 0
        try:
            while True:
                end = ticket.end
                yield from ticket.take()
                if end is not None:
                    if end.error is not None:
                        raise end.error
                    return
                if self._thread is None:
                    self.step()
                else:
                    ready.wait()
                    ready.clear()
                if ticket.prompt_done > done:
                    done = ticket.prompt_done
                    progress(done, ticket.prompt_tokens)
        finally:
            ticket.cancel()

    # --- the thread ---

    def start(self) -> None:
        """Have a thread step whenever there is something to do, until `close`."""
        self._thread = threading.Thread(target=self._drive, name="engine", daemon=True)
        self._thread.start()

    def _drive(self) -> None:
        while self._wait_for_work():
            self.step()

    def _wait_for_work(self) -> bool:
        """Whether there is some; False once the engine is closing."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._queue or any(self._slots))
            return not self._closing

    def begin_to_close(self) -> None:
        """Take no more; what runs and waits has ended, whatever pass is under way."""
        with self._changed:
            self._closing = True
            for ticket in [slot.ticket for slot in self._running()] + list(self._queue):
                self._finish(ticket, End("shutdown"))
            self._changed.notify()

    def close(self, timeout: float = 5.0) -> bool:
        """End what runs and waits, and the thread; whether it did within `timeout` seconds.

        It does not where a pass takes longer, which nothing can interrupt.
        """
        self.begin_to_close()
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- a step ---

    def step(self) -> Step | None:
        """Schedule and run a pass, sample, and hand out what came of it.

        Returns:
            None where there was nothing to run. What goes wrong ends the requests of the pass, and
            is no exception here.

        Raises:
            KeyboardInterrupt: requests are as before the step, or have a token more.
        """
        with self._stepping:
            self._drop_late()
            prompt, decoding = self._schedule()
            if prompt:
                return self._prefill(prompt)
            proposal = self._proposal(decoding[0]) if len(decoding) == 1 else []
            if proposal:
                return self._verify(decoding[0], proposal)
            return self._decode(decoding) if decoding else None

    def _drop_late(self) -> None:
        """Free the slots of those who are out of time."""
        if self.time_limit is None:
            return
        for ticket in [slot.ticket for slot in self._running()]:
            if ticket.started is not None and self._clock() - ticket.started > self.time_limit:
                self._finish(ticket, End("time_limit"))

    def _schedule(self) -> tuple[_Slot | None, list[_Slot]]:
        """Whose chunk of a prompt is run, or whose tokens are decoded."""
        with self._changed:
            self._fill_slots()
            decoding = [slot for slot in self._running() if not slot.prefilling]
            decode = decoding and self._prefilled and not self._prefill_first
            self._prefilled = bool(self._prompts) and not decode
            return (self._prompts[0], []) if self._prefilled else (None, decoding)

    def _fill_slots(self) -> None:
        """Give free slots to those who wait, in order."""
        while self._queue and None in self._slots:
            ticket, number = self._queue.popleft(), self._slots.index(None)
            ticket.started = self._clock()
            lookup = PromptLookup(self.passes.verify_sizes)
            slot = self._slots[number] = _Slot(ticket, number, lookup)
            self._prompts.append(slot)
            ticket.work.start(lookup)

    def _prefill(self, slot: _Slot) -> Step | None:
        """Run a chunk of the prompt whose turn it is."""
        ticket, begin = slot.ticket, time.perf_counter()
        try:
            count, logits = self._run_chunk(slot)
        except Exception as error:
            self._fail([ticket], error)
            return None
        seconds = time.perf_counter() - begin
        ticket.prompt_done += count
        with self._changed:
            if self._prompts and self._prompts[0] is slot:  # else it was ended meanwhile
                self._prompts.rotate(-1)
                if logits is not None:
                    self._prompts.pop()
        if logits is not None:
            slot.prefilling = False
            self._accept(slot, logits)
        return Step("prefill", count, seconds)

    def _run_chunk(self, slot: _Slot) -> tuple[int, np.ndarray | None]:
        """The next chunk of a prompt: how many tokens, and after the last one their logits."""
        work, done = slot.ticket.work, slot.ticket.prompt_done
        scores = getattr(work, "prompt_logprobs", None)
        if scores is None:
            return self.passes.prefill_chunk(slot.number, work.ids, done)
        logits = self.passes.score_chunk(slot.number, work.ids, done)
        scores.add(logits)
        return len(logits), logits[-1] if done + len(logits) == len(work.ids) else None

    def _proposal(self, slot: _Slot) -> list[int]:
        work = slot.ticket.work
        return slot.lookup.propose(work.ids, self.passes.sequence_length - work.position)

    def _verify(self, slot: _Slot, proposal: list[int]) -> Step | None:
        """Run the last token of a slot and those proposed, and take what proves right."""
        work, accepted, begin = slot.ticket.work, slot.lookup.accepted, time.perf_counter()
        try:
            logits = self.passes.verify(slot.number, [work.ids[-1], *proposal], work.position)
        except Exception as error:
            self._fail([slot.ticket], error)
            return None
        seconds = time.perf_counter() - begin
        for proposed, after_token in zip([*proposal, None], logits, strict=True):
            self._accept(slot, after_token)
            if self._slots[slot.number] is not slot or work.ids[-1] != proposed:
                break
        self._records.add_lookup(len(proposal), slot.lookup.accepted - accepted)
        return Step("verify", len(logits), seconds)

    def _decode(self, decoding: list[_Slot]) -> Step | None:
        """Run a token of every slot whose prompt was read.

        The others run token 0 where it does no harm: at the place of the next token of the prompt,
        or at 0 in a slot that is free.
        """
        tokens, positions = np.zeros((2, len(self._slots)), np.int32)
        for slot in self._running():
            positions[slot.number] = slot.position
        for slot in decoding:
            tokens[slot.number] = slot.ticket.work.ids[-1]
        begin = time.perf_counter()
        try:
            logits = self.passes.decode(tokens, positions)
        except Exception as error:
            self._fail([slot.ticket for slot in decoding], error)
            return None
        seconds = time.perf_counter() - begin
        for slot in decoding:
            self._accept(slot, logits[slot.number])
        return Step("decode", len(decoding), seconds)

    def _accept(self, slot: _Slot, logits: np.ndarray) -> None:
        """Let a request choose its next token; an error of its own ends it alone."""
        ticket = slot.ticket
        if ticket.end:
            return  # nobody takes this token
        try:
            event = ticket.work.accept(logits)
        except Exception as error:
            self._fail([ticket], error)
            return
        try:
            ticket.deliver(event, self._clock())
        except Exception:
            self._leave(ticket)  # whoever waited has gone
        if ticket.work.finished:
            self._finish(ticket, End(ticket.work.finish_reason))

    def _running(self) -> list[_Slot]:
        return [slot for slot in self._slots if slot]

    # --- endings ---

    def _leave(self, ticket: Ticket) -> None:
        self._finish(ticket, End("stopped"))

    def _fail(self, tickets: Sequence[Ticket], error: Exception) -> None:
        if self._thread and not isinstance(error, UserError):  # else `run` raises it
            numbers = ", ".join(str(ticket.number) for ticket in tickets)
            logger.error("request %s ended by an error", numbers, exc_info=error)
        for ticket in tickets:
            self._finish(ticket, End("error", error))

    def _finish(self, ticket: Ticket, end: End) -> None:
        """Free the slot of a request and say that it has ended, once."""
        with self._changed:
            if ticket.end:
                return
            if ticket in self._queue:
                self._queue.remove(ticket)
            for number, slot in enumerate(self._slots):
                if slot and slot.ticket is ticket:
                    self._slots[number] = None
                    if slot in self._prompts:
                        self._prompts.remove(slot)
            try:
                ticket.finish(end, self._clock())
            except Exception:
                logger.debug("request %d ended unheard", ticket.number, exc_info=True)
            self._records.add(ticket)
