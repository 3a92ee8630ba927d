"""The named endpoints for `gradio_client` and others: `/generate`, which streams, and
`/next_tokens`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import gradio as gr

from utils.serving.given_settings import GivenSettings
from utils.serving.service import ServerError, Service
from utils.setup import UserError


def add_endpoints(service: Service) -> None:
    """Add the endpoints to the page that is being built."""

    default = GivenSettings()

    async def generate(
        prompt: str,
        num_tokens: int = min(default.num_tokens, service.max_tokens),
        temperature: float = default.temperature,
        top_k: int = default.top_k,
        top_p: float = default.top_p,
        repetition_penalty: float = default.repetition_penalty,
        seed: int | None = None,
        stop: list[str] = [],  # noqa: B006 - what clients are told is the default; never changed
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Continue a prompt. Streams objects with `text`, the continuation so far, and the counts
        and times of it; the last one has an `end_reason`."""
        settings = GivenSettings(
            num_tokens, temperature, top_k, top_p, repetition_penalty, seed, stop
        )
        try:
            async with aclosing(service.generate(prompt, settings)) as progresses:
                async for progress in progresses:
                    yield dataclasses.asdict(progress)
        except (UserError, ServerError) as error:
            raise _told(error) from None

    async def next_tokens(prompt: str) -> list[dict[str, Any]]:
        """The ten likeliest next tokens of a prompt with their probabilities, likeliest first."""
        try:
            return [dataclasses.asdict(token) for token in await service.next_tokens(prompt)]
        except (UserError, ServerError) as error:
            raise _told(error) from None

    for endpoint in (generate, next_tokens):
        gr.api(endpoint, api_name=endpoint.__name__, concurrency_limit=None)


def _told(error: Exception) -> gr.Error:
    """The message for the client, without a traceback here."""
    return gr.Error(str(error), print_exception=False)
