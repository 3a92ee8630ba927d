"""The one token loop: requests share the slots of a session by continuous batching.

A `step` schedules and runs one pass, samples, and hands out what came of it. Requests join and
leave between two steps; `utils.generation.scheduler` says whose turn it is.

Slots are independent: what a request computes depends neither on the others nor on who had its slot
before. With prompt-lookup decoding (`utils.generation.lookup`) a request that decodes alone has
several tokens a pass; its logits are then as near to those among others as a verify pass is to a
decode pass.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from utils.generation.engine_passes import EnginePasses, Step
from utils.generation.engine_statistics import EngineStatistics, Records
from utils.generation.scheduler import Scheduler
from utils.generation.stepping import Stepper
from utils.generation.ticket import End, Ticket, Work
from utils.setup import UserError

Progress = Callable[[int, int], object]
"""Is told how many tokens of a prompt are done, and how many it has."""


class QueueFull(UserError):
    """All slots are taken and as many requests wait as may."""


class EngineClosed(UserError):
    """The engine is closed or closing."""


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
        self.max_queue, self.time_limit = max_queue, time_limit
        self._scheduler = Scheduler(passes.batch_size, prefill_first, clock)
        self._records, self._clock = Records(), clock
        self._stepper = Stepper(passes, self._scheduler, self._records, time_limit, clock)
        self._changed = self._scheduler.changed  # guards all below
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def passes(self) -> EnginePasses:
        """What it runs; others of the same slots may take their place between two steps."""
        return self._stepper.passes

    @passes.setter
    def passes(self, passes: EnginePasses) -> None:
        self._stepper.passes = passes

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
            waiting, slots = len(self._scheduler.queue), self._scheduler.slots
            if waiting >= self.max_queue + slots.count(None):
                self._records.refused += 1
                raise QueueFull(
                    f"too many people are waiting: {waiting} in the queue, of at most "
                    f"{self.max_queue}, for {len(slots)} that run at once: try again in a moment"
                )
            self._records.submitted += 1
            number = self._records.submitted
            ticket = Ticket(number, work, notify, self._stepper.leave, self._clock())
            self._scheduler.queue.append(ticket)
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
            queue = self._scheduler.queue
            return queue.index(ticket) + 1 if ticket in queue else 0

    def statistics(self) -> EngineStatistics:
        """How it goes just now."""
        with self._changed:
            alive = self._thread is None or self._thread.is_alive()
            return self._records.statistics(
                getattr(self.passes, "prefixes", None),
                alive=alive and not self._closing,
                slots=len(self._scheduler.slots),
                running=len(self._scheduler.running()),
                queued=len(self._scheduler.queue),
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
        self._stepper.raises = False  # in this thread
        self._thread = threading.Thread(target=self._drive, name="engine", daemon=True)
        self._thread.start()

    def _drive(self) -> None:
        while self._wait_for_work():
            self.step()

    def _wait_for_work(self) -> bool:
        """Whether there is some; False once the engine is closing."""
        with self._changed:
            queue, slots = self._scheduler.queue, self._scheduler.slots
            self._changed.wait_for(lambda: self._closing or queue or any(slots))
            return not self._closing

    def begin_to_close(self) -> None:
        """Take no more; what runs and waits has ended, whatever pass is under way."""
        with self._changed:
            self._closing = True
            running = [slot.ticket for slot in self._scheduler.running()]
            for ticket in running + list(self._scheduler.queue):
                self._stepper.finish(ticket, End("shutdown"))
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
        return self._stepper.step()
