"""`/v1/completions`: the texts that continue prompts."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

from utils.serving.api.batch import Batch
from utils.serving.api.choices import Choice, LogprobsForm, joined
from utils.serving.api.errors import ApiError
from utils.serving.api.plan import (
    Plan,
    check_count,
    check_logprobs,
    extras_of_body,
    settings_of_body,
    tokens_asked,
)
from utils.serving.api.prompts import read_prompts
from utils.serving.service import Service

MAX_TOKENS = 16
"""Of a completion that does not say, as in OpenAI's API."""


async def plan_completion(service: Service, body: Any) -> Plan:
    """What a body asks for.

    Raises:
        ApiError: it is not possible.
    """
    _check_together(body)
    max_tokens = tokens_asked(service, body.max_tokens, MAX_TOKENS)
    shown = body.n or 1
    each = body.best_of or shown
    check_count(service, 1, each)
    special = body.add_special_tokens is not False
    prompts = await read_prompts(
        service, body.prompt, special=special, last=body.truncate_prompt_tokens,
        with_text=bool(body.echo),
    )  # fmt: skip
    check_count(service, len(prompts), each)
    ranked = each > shown
    logprobs = 0 if ranked and body.logprobs is None else body.logprobs
    score = bool(body.echo) and body.logprobs is not None
    plan = Plan(
        prompts,
        each if max_tokens else shown,
        shown,
        max_tokens,
        settings_of_body(service, body, max_tokens),
        extras_of_body(service, body, logprobs, score),
    )
    check_logprobs(service, plan)
    return plan


def _check_together(body: Any) -> None:
    if body.suffix not in (None, ""):
        raise ApiError(
            400, "suffix is not possible: this model continues texts, and fills no gaps in them",
            param="suffix",
        )  # fmt: skip
    if body.best_of is not None and body.best_of < (body.n or 1):
        raise ApiError(
            400, f"best_of must be at least n = {body.n or 1}, not {body.best_of}", param="best_of"
        )
    if body.stream and (body.best_of or 1) > (body.n or 1):
        raise ApiError(
            400, "best_of cannot be streamed: the best is known at the end", param="best_of"
        )
    if body.max_tokens == 0 and not body.echo:
        raise ApiError(
            400, "max_tokens must be 1 or more, or 0 with echo, which gives the prompt itself",
            param="max_tokens",
        )  # fmt: skip
    check_stream(body)


def check_stream(body: Any) -> None:
    """Raises an `ApiError` where a body says how to stream what it does not want streamed."""
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options are for stream alone", param="stream_options")


class CompletionAnswer:
    """The answer to a plan, at once or in chunks."""

    kind = chunk_kind = "text_completion"
    prefix = "cmpl-"

    def __init__(self, service: Service, plan: Plan, body: Any):
        self._plan, self._body = plan, body
        prompts = [prompt for prompt in plan.prompts for _ in range(plan.each)]
        echo = bool(getattr(body, "echo", None))
        self._choices = [Choice(prompt, echo) for prompt in prompts]
        shown = [prompt.text if prompt.text is not None else prompt.ids for prompt in prompts]
        self._batch = Batch(service, partial(plan.work, service), shown)
        self._forms = [self.form(service.tokenizer) for _ in prompts]
        self._head = {
            "id": self.prefix + secrets.token_hex(12),
            "created": int(time.time()),
            "model": service.about.name,
        }

    def form(self, tokenizer: Any) -> Any:
        """What writes a choice's log-likelihoods; None where they are not asked for."""
        asked = self._body.logprobs
        return None if asked is None else LogprobsForm(tokenizer, asked)

    def choice(
        self, index: int, text: str, logprobs: dict[str, Any] | None, finish: str | None
    ) -> dict[str, Any]:
        """A choice of a whole answer."""
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def delta(
        self, index: int, text: str, logprobs: dict[str, Any] | None, finish: str | None
    ) -> dict[str, Any]:
        """A choice of a chunk."""
        return CompletionAnswer.choice(self, index, text, logprobs, finish)

    def opening(self) -> list[dict[str, Any]]:
        """Choices of a first chunk, before anything of the texts is known; none for no chunk."""
        return []

    @property
    def streamed(self) -> bool:
        """Whether it is asked for in chunks."""
        return bool(self._body.stream)

    async def begin(self) -> None:
        """Have it made; whoever does must `close`. Raises what `Batch.start` does."""
        await self._batch.start()

    async def close(self) -> None:
        """End what has not ended."""
        await self._batch.close()

    # --- at once ---

    async def whole(self) -> dict[str, Any]:
        """The whole answer.

        Raises:
            UserError, ServerError, ApiError: why there is none.
        """
        texts: list[str] = [""] * len(self._choices)
        logprobs: list[list[dict[str, Any]]] = [[] for _ in self._choices]
        async with aclosing(self._pieces()) as pieces:
            async for number, text, found in pieces:
                texts[number] += text
                if found is not None:
                    logprobs[number].append(found)
        choices = [
            self.choice(
                index,
                texts[number],
                joined(logprobs[number]) if self._forms[number] is not None else None,
                self._choices[number].finish,
            )
            for index, number in enumerate(self._best())
        ]
        return {**self._head, "object": self.kind, "choices": choices, "usage": self._usage()}

    def _best(self) -> list[int]:
        """The numbers of the choices that are shown: of each prompt the likeliest, in order."""
        plan, numbers = self._plan, []
        for begin in range(0, len(plan), plan.each):
            these = list(range(begin, begin + plan.each))
            if plan.shown < plan.each:
                these.sort(key=lambda number: -self._choices[number].mean_logprob)
            numbers += these[: plan.shown]
        return numbers

    # --- in chunks ---

    async def chunks(self) -> AsyncGenerator[dict[str, Any]]:
        """The chunks of the answer.

        Raises:
            UserError, ServerError, ApiError: what ended it.
        """
        with_usage = self._body.stream_options and self._body.stream_options.include_usage
        rest = {"usage": None} if with_usage else {}

        def chunk(choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
            return {**self._head, "object": self.chunk_kind, "choices": choices, **rest, **more}

        async with aclosing(self._pieces()) as pieces:
            if opening := self.opening():
                yield chunk(opening)
            async for number, text, found in pieces:
                finish = self._choices[number].finish
                if text or finish or found is not None:
                    yield chunk([self.delta(number, text, found, finish)])
        if with_usage:
            yield chunk([], usage=self._usage())

    # --- both ---

    async def _pieces(self) -> AsyncGenerator[tuple[int, str, dict[str, Any] | None]]:
        """What is new of which choice: text, and log-likelihoods where they are asked for."""
        async with aclosing(self._batch.events()) as events:
            async for number, ticket, new in events:
                text, tokens, found = self._choices[number].add(ticket, new)
                form = self._forms[number]
                yield number, text, form.of(tokens, found) if form and tokens else None

    def _usage(self) -> dict[str, Any]:
        prompt = sum(len(prompt.ids) for prompt in self._plan.prompts)
        generated = sum(choice.generated_tokens for choice in self._choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
        }
