"""`/v1/chat/completions`: what a model says next, where its tokenizer has a template for chats."""

from __future__ import annotations

import asyncio
from typing import Any

from utils.generation.chat import chat_text
from utils.serving.api.choices import ChatLogprobsForm
from utils.serving.api.completions import CompletionAnswer, check_stream
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
from utils.setup import UserError


async def plan_chat(service: Service, body: Any) -> Plan:
    """What a body asks for.

    Raises:
        ApiError: it is not possible, or the model has no template for chats.
    """
    check_stream(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs are for logprobs alone", param="top_logprobs")
    text = await _written(service, body)
    prompts = await read_prompts(service, text, special=False, last=body.truncate_prompt_tokens)
    given = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    max_tokens = tokens_asked(service, given, service.max_tokens)
    if not max_tokens:
        raise ApiError(400, "max_tokens must be 1 or more, not 0", param="max_tokens")
    count = body.n or 1
    check_count(service, 1, count)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    plan = Plan(
        prompts,
        count,
        count,
        max_tokens,
        settings_of_body(service, body, max_tokens),
        extras_of_body(service, body, logprobs, score=False),
    )
    check_logprobs(service, plan)
    return plan


async def _written(service: Service, body: Any) -> str:
    """The messages as one text, by the tokenizer's template; in a thread, as it is a program."""
    tokenizer = service.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise ApiError(
            400, f"{service.about.name} has no chat template, as it was not made for chats: use "
            "/v1/completions",
        )  # fmt: skip
    messages = [message.plain() for message in body.messages]
    try:
        return await asyncio.to_thread(chat_text, tokenizer, messages)
    except UserError as error:
        raise ApiError(400, str(error), param="messages") from None


class ChatAnswer(CompletionAnswer):
    """The answer to a plan in the form of chats."""

    kind, chunk_kind = "chat.completion", "chat.completion.chunk"
    prefix = "chatcmpl-"

    def form(self, tokenizer: Any) -> Any:
        """What writes a choice's log-likelihoods; None where they are not asked for."""
        return ChatLogprobsForm(tokenizer) if self._body.logprobs else None

    def choice(
        self, index: int, text: str, logprobs: dict[str, Any] | None, finish: str | None
    ) -> dict[str, Any]:
        """A choice of a whole answer."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}

    def delta(
        self, index: int, text: str, logprobs: dict[str, Any] | None, finish: str | None
    ) -> dict[str, Any]:
        """A choice of a chunk."""
        said = {"content": text} if text else {}
        return {"index": index, "delta": said, "logprobs": logprobs, "finish_reason": finish}

    def opening(self) -> list[dict[str, Any]]:
        """Who speaks, before anything is said."""
        said = {"role": "assistant", "content": ""}
        return [
            {"index": index, "delta": said, "logprobs": None, "finish_reason": None}
            for index in range(len(self._plan))
        ]
