"""The works of one HTTP request: as many at once as the engine has slots, and no more.

So a request of many prompts leaves the queue to others. What ends early, an error or a client that
has gone, ends all of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any

from utils.generation.engine import QueueFull
from utils.generation.ticket import Ticket, Work
from utils.serving.service import Service
from utils.serving.works import Running

RETRY = 0.05
"""Seconds after which a work that found the queue full is submitted again, once one has run."""

WAITING = 64
"""Events that may wait for whoever takes them; then the works' own hold them."""


class Batch:
    """Runs works, once it is started.

    Args:
        make: the work of a number, when its turn comes: in a thread, as that may take a while.
        shown: what the log may have of each work's prompt.
    """

    def __init__(self, service: Service, make: Callable[[int], Work], shown: Sequence[Any]):
        self._service, self._make, self._shown = service, make, shown
        self._left = deque(range(len(shown)))
        self._events: asyncio.Queue[tuple[int, Ticket, list[Any]] | Exception | None]
        self._events = asyncio.Queue(WAITING)
        self._turn = asyncio.Lock()
        self._first: Running | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Submit the first, and have the others follow; whoever does must `close`.

        Raises:
            QueueFull, EngineClosed: nothing was run.
            UserError: no work can be made.
        """
        work = await asyncio.to_thread(self._make, self._left.popleft())
        first = self._first = self._service.works.submit(work)
        count = min(len(self._shown), self._service.engine.passes.batch_size)
        self._tasks = [asyncio.create_task(self._run(0, first))]
        self._tasks += [asyncio.create_task(self._run_next()) for _ in range(1, count)]

    async def close(self) -> None:
        """End those that have not."""
        if self._first is not None:
            self._first.ticket.cancel()  # its task may not have begun
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def events(self) -> AsyncGenerator[tuple[int, Ticket, list[Any]]]:
        """The number of a work, its ticket and its new events, until all have ended.

        The last of a work come once its ticket has an `end`. A client's patience is not bounded
        here: there are empty lists meanwhile.

        Raises:
            UserError, ServerError: what ended one of them.
        """
        ended = 0
        while ended < len(self._tasks):
            found = await self._events.get()
            if isinstance(found, Exception):
                raise found
            if found is None:
                ended += 1
            else:
                yield found

    async def _run(self, number: int, running: Running) -> None:
        try:
            await self._follow(number, running)
            await self._run_next()
        except Exception as error:
            await self._events.put(error)

    async def _follow(self, number: int, running: Running) -> None:
        try:
            async with aclosing(self._service.works.follow(running, self._shown[number])) as events:
                async for found in events:
                    await self._events.put((number, running.ticket, found))
        finally:
            running.ticket.cancel()

    async def _run_next(self) -> None:
        try:
            while self._left:
                number = self._left.popleft()
                await self._follow(number, await self._submitted(number))
            await self._events.put(None)
        except Exception as error:
            await self._events.put(error)

    async def _submitted(self, number: int) -> Running:
        """Submitted when there is room: the first one was let in."""
        work = await asyncio.to_thread(self._make, number)
        async with self._turn:  # one of them looks whether there is
            while True:
                now = self._service.engine.statistics()
                if now.running < now.slots or now.queued < now.max_queue:
                    with suppress(QueueFull):
                        return self._service.works.submit(work)
                await asyncio.sleep(RETRY)
