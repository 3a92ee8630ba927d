"""One session's rows shared by several requests: continuous batching.

A thread drives the passes. Requests join and leave between two token passes; between two of those
at most one chunk of one newcomer's prompt is run, the newcomers taking turns, so that a long prompt
holds nobody up for longer than a chunk takes.

Rows are independent: what a request computes depends neither on the others nor on who had its row
before. With look-up (`utils.generation.lookup`) a request that decodes alone has several tokens a
pass; its logits are then as near to those among others as a verify pass is to a token pass.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from utils.generation.engine_statistics import EngineStatistics, Records
from utils.generation.lookup import PromptLookup
from utils.generation.request import Passes
from utils.generation.ticket import End, Ticket, Work
from utils.setup import UserError

logger = logging.getLogger(__name__)


class ChunkedPasses(Passes, Protocol):
    """A session's passes, as the engine needs them; see `utils.generation.passes.Passes`."""

    def prompt_chunks(
        self, row: int, tokens: Sequence[int], start: int = 0
    ) -> Iterator[tuple[int, np.ndarray | None]]:
        """A prompt pass chunk by chunk."""


class QueueFull(UserError):
    """All rows are taken and as many requests wait as may."""


class EngineClosed(UserError):
    """The engine is closed or closing."""


@dataclass(eq=False)
class _Seat:
    """A request that has a row."""

    ticket: Ticket
    row: int
    chunks: Iterator[tuple[int, np.ndarray | None]]
    lookup: PromptLookup
    reading: bool = True  # its prompt

    @property
    def position(self) -> int:
        """Where the row's token of a token pass stands."""
        return self.ticket.prompt_done if self.reading else self.ticket.work.position


class Engine:
    """Runs requests in the rows of `passes`; use it as a context manager, or `close` it.

    Args:
        max_queue: requests that may wait for a row.
        time_limit: seconds that a request may have its row; None is no limit.
        clock: seconds, for the limit and the statistics.
    """

    def __init__(
        self,
        passes: ChunkedPasses,
        *,
        max_queue: int = 32,
        time_limit: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        if max_queue < 0:
            raise UserError(f"max_queue must be 0 or more, not {max_queue}")
        if time_limit is not None and not time_limit > 0:
            raise UserError(f"time_limit must be over 0 seconds, not {time_limit}")
        self.passes, self.max_queue, self.time_limit = passes, max_queue, time_limit
        self._clock = clock
        self._changed = threading.Condition()  # guards all below
        self._queue: deque[Ticket] = deque()
        self._seats: list[_Seat | None] = [None] * passes.batch_size
        self._turns: deque[_Seat] = deque()  # those who read their prompts, the next one first
        self._records = Records()
        self._closing = False
        self._thread = threading.Thread(target=self._drive, name="engine", daemon=True)
        self._thread.start()

    # --- for requests ---

    def submit(self, work: Work, notify: Callable[[], object] = lambda: None) -> Ticket:
        """Queue a request.

        Args:
            notify: called in the engine's thread when there is an event to take, or the end; must
                not wait. If it raises, the request is cancelled: nobody is there.

        Raises:
            QueueFull: no row is free and `max_queue` requests wait.
            EngineClosed: the engine takes no more.
        """
        with self._changed:
            if self._closing:
                raise EngineClosed("the server is shutting down: no further request is taken")
            if len(self._queue) >= self.max_queue + self._seats.count(None):
                self._records.refused += 1
                raise QueueFull(
                    f"too many people are waiting: {len(self._queue)} in the queue, of at most "
                    f"{self.max_queue}, for {len(self._seats)} that run at once: try again in a "
                    "moment"
                )
            self._records.submitted += 1
            number = self._records.submitted
            ticket = Ticket(number, work, notify, self._leave, self._clock())
            self._queue.append(ticket)
            self._changed.notify()
            return ticket

    def run(self, work: Work) -> Iterator[Any]:
        """The events of a request as they come, waiting for each.

        Closing the iterator cancels the request.

        Raises:
            QueueFull, EngineClosed: when called.
            Exception: what ended the request, if that was an error.
        """
        ready = threading.Event()
        return _events(self.submit(work, ready.set), ready)

    def place(self, ticket: Ticket) -> int:
        """Its place in the queue, 1 for the next; 0 once it has a row or has ended."""
        with self._changed:
            return self._queue.index(ticket) + 1 if ticket in self._queue else 0

    def statistics(self) -> EngineStatistics:
        """How it goes just now."""
        with self._changed:
            return self._records.statistics(
                alive=self._thread.is_alive() and not self._closing,
                rows=len(self._seats),
                running=len(self._seats) - self._seats.count(None),
                queued=len(self._queue),
                max_queue=self.max_queue,
            )

    def begin_to_close(self) -> None:
        """Take no more; what runs and waits has ended, whatever pass is under way."""
        with self._changed:
            self._closing = True
            for ticket in [seat.ticket for seat in self._seated()] + list(self._queue):
                self._finish(ticket, End("shutdown"))
            self._queue.clear()
            self._changed.notify()

    def close(self, timeout: float = 5.0) -> bool:
        """End what runs and waits, and the thread; whether it did within `timeout` seconds.

        It does not where a pass takes longer, which nothing can interrupt.
        """
        self.begin_to_close()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the thread ---

    def _drive(self) -> None:
        while self._wait_for_work():
            self._drop()
            self._seat_waiting()
            self._read_chunk()
            self._decode()

    def _wait_for_work(self) -> bool:
        """Whether there is some; False once the engine is closing."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._queue or any(self._seats))
            return not self._closing

    def _drop(self) -> None:
        """Free the rows of those who left or are out of time."""
        for seat in self._seated():
            ticket = seat.ticket
            if ticket.cancelled:
                self._finish(ticket, End("stopped"))
            elif self._is_late(ticket):
                self._finish(ticket, End("time_limit"))

    def _is_late(self, ticket: Ticket) -> bool:
        if self.time_limit is None or ticket.started is None:
            return False
        return self._clock() - ticket.started > self.time_limit

    def _seat_waiting(self) -> None:
        """Give free rows to those who wait, in order."""
        with self._changed:
            while self._queue and None in self._seats:
                ticket, row = self._queue.popleft(), self._seats.index(None)
                ticket.started = self._clock()
                try:
                    chunks = self.passes.prompt_chunks(row, ticket.work.ids)
                    ticket.work.start()
                except Exception as error:
                    self._fail([ticket], error)
                    continue
                lookup = PromptLookup(self.passes.verify_sizes)
                seat = self._seats[row] = _Seat(ticket, row, chunks, lookup)
                self._turns.append(seat)

    def _read_chunk(self) -> None:
        """Run a chunk of the prompt of the newcomer whose turn it is."""
        if not self._turns:
            return
        seat = self._turns.popleft()
        try:
            count, logits = next(seat.chunks)
        except Exception as error:
            self._fail([seat.ticket], error)
            return
        seat.ticket.prompt_done += count
        if logits is None:
            self._turns.append(seat)
        else:
            seat.reading = False
            self._accept(seat, logits)

    def _decode(self) -> None:
        """Run a token of every row whose prompt was read, or several of the only one."""
        running = [seat for seat in self._seated() if not seat.reading]
        proposal = self._proposal(running[0]) if len(running) == 1 else []
        if proposal:
            self._verify(running[0], proposal)
        elif running:
            self._run_tokens(running)

    def _proposal(self, seat: _Seat) -> list[int]:
        work = seat.ticket.work
        return seat.lookup.propose(work.ids, self.passes.sequence_length - work.position)

    def _verify(self, seat: _Seat, proposal: list[int]) -> None:
        """Run the last token of a row and those proposed, and take what proves right."""
        work = seat.ticket.work
        try:
            logits = self.passes.verify(seat.row, [work.ids[-1], *proposal], work.position)
        except Exception as error:
            self._fail([seat.ticket], error)
            return
        before = seat.lookup.accepted
        for place, after_token in enumerate(logits, start=len(work.ids)):
            self._accept(seat, after_token)
            took_proposed = len(work.ids) > place and seat.lookup.confirm(work.ids[place])
            if not took_proposed or self._seats[seat.row] is not seat:
                break
        self._records.add_lookup(len(proposal), seat.lookup.accepted - before)

    def _run_tokens(self, running: list[_Seat]) -> None:
        """Run a token of every row that runs.

        The others run token 0 where it does no harm: at the place of the next token of the prompt,
        or at 0 in a row that is free.
        """
        tokens = np.zeros(len(self._seats), np.int32)
        positions = np.zeros(len(self._seats), np.int32)
        for seat in self._seated():
            positions[seat.row] = seat.position
        for seat in running:
            tokens[seat.row] = seat.ticket.work.ids[-1]
        try:
            logits = self.passes.token(tokens, positions)
        except Exception as error:
            self._fail([seat.ticket for seat in running], error)
            return
        for seat in running:
            self._accept(seat, logits[seat.row])

    def _accept(self, seat: _Seat, logits: np.ndarray) -> None:
        """Let a request choose its next token; an error of its own ends it alone."""
        ticket = seat.ticket
        if ticket.cancelled or ticket.end:
            return  # nobody takes this token
        try:
            event = ticket.work.accept(logits)
        except Exception as error:
            self._fail([ticket], error)
            return
        try:
            ticket.deliver(event, self._clock())
        except Exception:
            ticket.cancelled = True  # whoever waited has gone
        if ticket.work.finished and not ticket.cancelled:
            self._finish(ticket, End(ticket.work.finish_reason))

    def _seated(self) -> list[_Seat]:
        return [seat for seat in self._seats if seat]

    # --- endings ---

    def _leave(self, ticket: Ticket) -> None:
        """One who waits goes at once, one who runs at the next token."""
        with self._changed:
            if ticket in self._queue:
                self._queue.remove(ticket)
                self._finish(ticket, End("stopped"))

    def _fail(self, tickets: Sequence[Ticket], error: Exception) -> None:
        if not isinstance(error, UserError):
            numbers = ", ".join(str(ticket.number) for ticket in tickets)
            logger.error("request %s ended by an error", numbers, exc_info=error)
        for ticket in tickets:
            self._finish(ticket, End("error", error))

    def _finish(self, ticket: Ticket, end: End) -> None:
        """Free the row of a request and say that it has ended, once."""
        with self._changed:
            if ticket.end:
                return
            for row, seat in enumerate(self._seats):
                if seat and seat.ticket is ticket:
                    self._seats[row] = None
                    if seat in self._turns:
                        self._turns.remove(seat)
            try:
                ticket.finish(end, self._clock())
            except Exception:
                logger.debug("request %d ended unheard", ticket.number, exc_info=True)
            self._records.add(ticket)


def _events(ticket: Ticket, ready: threading.Event) -> Iterator[Any]:
    try:
        while True:
            ready.wait()
            ready.clear()
            end = ticket.end
            yield from ticket.take()
            if end is not None:
                if end.error is not None:
                    raise end.error
                return
    finally:
        ticket.cancel()
