"""What a server offers to many people at once: generation and next tokens, by asyncio.

A consumer that stops iterating, or is cancelled, frees its slot at once.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from utils.generation.engine import Engine
from utils.generation.next_tokens import LikelyToken, NextTokens
from utils.generation.request import Request, encode_prompt
from utils.generation.ticket import EndReason, Ticket, Work
from utils.serving.about import About
from utils.serving.given_settings import checked
from utils.serving.limits import Limits
from utils.serving.prompt_bound import PromptBound
from utils.serving.works import Works
from utils.setup import UserError

UPDATE_INTERVAL = 0.1
"""Seconds between two updates at least: a reader sees no difference, and eight cost less."""

ABANDONED = 10.0
"""Seconds after which nobody asks for more: a generator that is dropped, and not closed, is closed
when its memory is freed, which may be much later."""

SETTLED = 1.0
"""Seconds that a cleared page waits for a last text."""


@dataclass(frozen=True)
class Progress:
    """How far a generation is. Times are in seconds, None while not known; `place` 0 has a slot."""

    text: str  # the continuation so far
    place: int
    prompt_tokens: int
    prompt_done: int
    generated_tokens: int
    queue_wait: float | None
    time_to_first_token: float | None  # since it was sent: with the wait
    tokens_per_second: float | None
    seed: int | None  # where chance had a part
    end_reason: EndReason | None


class Service:
    """An engine with its tokenizer, in words.

    Args:
        max_tokens: that a request may ask for; None is the context.
        log_prompts: write prompts to the log, which otherwise has only their lengths.
        limits: of what a request may cost.
        about: the model, for the page to say what it serves.
        defaults: settings of a request that does not give them, by name, where they are not ours.

    Attributes:
        works: what it has the engine do.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Any,
        *,
        max_tokens: int | None = None,
        log_prompts: bool = False,
        limits: Limits | None = None,
        about: About | None = None,
        defaults: Mapping[str, Any] | None = None,
    ):
        if max_tokens is not None and max_tokens < 1:
            raise UserError(f"max_tokens must be 1 or more, not {max_tokens}")
        context = engine.passes.sequence_length
        self.engine, self.tokenizer = engine, tokenizer
        self.max_tokens = min(max_tokens or context, context)
        self.limits, self.about = limits or Limits(), about or About()
        self.defaults = dict(defaults or {})
        if "num_tokens" in self.defaults:
            self.defaults["num_tokens"] = min(self.defaults["num_tokens"], self.max_tokens)
        self.works = Works(engine, log_prompts)
        self._bound = PromptBound(tokenizer)
        self._long = ThreadPoolExecutor(1, "long prompt")  # one at a time: others need cores too
        self._owned: defaultdict[str, set[Ticket]] = defaultdict(set)

    async def generate(
        self, prompt: Any, settings: Mapping[str, Any], owner: str = ""
    ) -> AsyncGenerator[Progress]:
        """Continue a prompt; the last `Progress` has the `end_reason`.

        Args:
            settings: those of `GenerationSettings` by name, with values of any type.
            owner: whose it is, for `stop`; '' is nobody's, and cannot be stopped by one.

        Raises:
            UserError: prompt or settings are not possible, or the queue is full.
            ServerError: an error ended it.
        """
        wanted = checked(settings, self.max_tokens, self.limits, self.defaults)
        ids = await self.ids(prompt)
        request = await asyncio.to_thread(
            Request,
            ids,
            self.tokenizer,
            wanted,
            wanted.num_tokens,
            wanted.stop,
            sequence_length=self.engine.passes.sequence_length,
        )
        seed = None if wanted.greedy else wanted.seed
        text, rate = "", None
        async with aclosing(self._owned_events(request, prompt, owner)) as events:
            async for ticket, steps in events:
                text += "".join(step.text for step in steps)
                rate = steps[-1].tokens_per_second if steps else rate
                yield self._progress(ticket, text, rate, seed)

    async def next_tokens(self, prompt: Any, owner: str = "") -> list[LikelyToken]:
        """The likeliest next tokens, and an empty list where it was stopped.

        Raises:
            UserError: the prompt is not possible, or the queue is full.
            ServerError: an error ended it.
        """
        work = NextTokens(await self.ids(prompt), self.tokenizer)
        found: list[LikelyToken] = []
        async with aclosing(self._owned_events(work, prompt, owner)) as events:
            async for _, lists in events:
                found = lists[0] if lists else found
        return found

    def stop(self, owner: str) -> None:
        """End all that this owner has running or waiting."""
        for ticket in list(self._owned.get(owner, ())) if owner else []:
            ticket.cancel()

    async def settled(self, owner: str) -> None:
        """Wait until nobody takes anything more of what this owner has just now, for `SETTLED`
        seconds at most: Gradio may have let go of a generator without closing it."""
        begun = set(self._owned.get(owner, ()))
        for _ in range(int(SETTLED / 0.01)):
            if not begun & self._owned.get(owner, set()):
                return
            await asyncio.sleep(0.01)

    async def ids(self, prompt: Any, *, special: bool = True, last: int | None = None) -> list[int]:
        """A text's tokens, in a thread: those of a long one take a while, in which others are
        served.

        Args:
            special: with the special tokens that the tokenizer adds, if any.
            last: only so many, the last ones.

        Raises:
            UserError: it is no text, has no token, or more than the context holds.
        """
        if prompt is None or prompt == "":
            raise UserError("the prompt is empty: write something for the model to continue")
        if not isinstance(prompt, str):
            raise UserError(f"the prompt must be a text, not {type(prompt).__name__}")
        size = len(prompt.encode("utf-8", "surrogatepass"))
        pool = self._long if size > self.limits.plain_prompt_bytes else None
        encode = partial(self._encoded, prompt, size, special, last)
        return await asyncio.get_running_loop().run_in_executor(pool, encode)

    def _encoded(self, prompt: str, size: int, special: bool, last: int | None) -> list[int]:
        """The ids; a long prompt that cannot fit is not tokenized first."""
        passes = self.engine.passes
        if last is None and size > self.limits.plain_prompt_bytes:
            least = self._bound.least_tokens(prompt)
            if least > passes.sequence_length:
                raise UserError(
                    f"the prompt has {least} tokens at least, but the context (sequence_length) "
                    f"holds {passes.sequence_length}: shorten the prompt"
                )
        options = {} if special else {"add_special_tokens": False}
        return encode_prompt(self.tokenizer, prompt, passes, last=last, **options)

    async def _owned_events(
        self, work: Work, prompt: str, owner: str
    ) -> AsyncGenerator[tuple[Ticket, list[Any]]]:
        """The ticket and its new events, again and again; there may be none."""
        loop, running = asyncio.get_running_loop(), self.works.submit(work)
        self._owned[owner].add(running.ticket)
        try:
            async with aclosing(self.works.follow(running, prompt, UPDATE_INTERVAL)) as events:
                async for found in events:
                    abandoned = loop.call_later(ABANDONED, running.ticket.cancel)
                    yield running.ticket, found
                    abandoned.cancel()
        finally:
            self._owned[owner].discard(running.ticket)
            if not self._owned[owner]:
                del self._owned[owner]

    def _progress(
        self, ticket: Ticket, text: str, rate: float | None, seed: int | None
    ) -> Progress:
        return Progress(
            text=text,
            place=self.engine.place(ticket),
            prompt_tokens=ticket.prompt_tokens,
            prompt_done=ticket.prompt_done,
            generated_tokens=ticket.generated_tokens,
            queue_wait=ticket.queue_wait,
            time_to_first_token=ticket.time_to_first_token,
            tokens_per_second=rate,
            seed=seed,
            end_reason=ticket.end.reason if ticket.end else None,
        )
