"""Work that is handed to the engine and followed by asyncio.

Who stops following, or is cancelled, frees its slot at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from utils.generation.engine import Engine
from utils.generation.ticket import Ticket, Work
from utils.setup import UserError

logger = logging.getLogger(__name__)

PATIENCE = 1.0
"""Seconds without a token after which there is an update all the same: of the place in the queue,
and to find out whether anybody still listens."""


FAULT = "something went wrong on the server; its log says what"


class ServerError(Exception):
    """Something went wrong that the user can do nothing about; the log has it."""


@dataclass(frozen=True)
class Running:
    """Work that was submitted, and what is set when there is something of it to take."""

    ticket: Ticket
    ready: asyncio.Event


class Works:
    """What an engine does for the server.

    Args:
        log_prompts: write prompts to the log, which otherwise has only their lengths.

    Attributes:
        ended: is told of each ticket that has ended.
    """

    def __init__(self, engine: Engine, log_prompts: bool = False):
        self._engine, self._log_prompts = engine, log_prompts
        self.ended: Callable[[Ticket], object] = lambda ticket: None

    def submit(self, work: Work) -> Running:
        """Queue work; whoever does must `follow` it, or cancel its ticket.

        Raises:
            QueueFull, EngineClosed: as the engine does.
        """
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        ticket = self._engine.submit(work, lambda: loop.call_soon_threadsafe(ready.set))
        return Running(ticket, ready)

    async def follow(
        self, running: Running, prompt: Any, interval: float = 0.0
    ) -> AsyncGenerator[list[Any]]:
        """The new events of work, again and again; there may be none.

        Args:
            prompt: what the log may have of it.
            interval: seconds between two times at least.

        Raises:
            UserError, ServerError: what ended it, if that was an error.
        """
        ticket = running.ticket
        try:
            while True:
                await _at_most(PATIENCE, running.ready)
                end = ticket.end
                yield ticket.take()
                if end is not None:
                    break
                await asyncio.sleep(interval)
            _raise(end.error)
        finally:
            ticket.cancel()
            self.ended(ticket)
            self._log(ticket, prompt)

    def _log(self, ticket: Ticket, prompt: Any) -> None:
        reason = ticket.end.reason if ticket.end else "stopped"
        text = f", prompt {prompt!r}" if self._log_prompts else ""
        logger.info(
            "request %d: %d prompt tokens, %d generated, slot after %s, first token after %s, "
            "%s tokens/s, ended by %s%s",
            ticket.number,
            ticket.prompt_tokens,
            ticket.generated_tokens,
            _seconds(ticket.queue_wait),
            _seconds(ticket.time_to_first_token),
            "-" if ticket.tokens_per_second is None else f"{ticket.tokens_per_second:.1f}",
            reason,
            text,
        )


async def _at_most(seconds: float, ready: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(ready.wait(), seconds)
    except TimeoutError:
        return
    ready.clear()


def _raise(error: Exception | None) -> None:
    if isinstance(error, UserError):
        raise error
    if error is not None:
        raise ServerError(FAULT) from error


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
