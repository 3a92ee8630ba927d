"""The named endpoints for `gradio_client` and others: `/generate`, which streams, and
`/next_tokens`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import gradio as gr

from utils.generation.settings import settings_of
from utils.serving.service import Service
from utils.serving.works import ServerError
from utils.setup import UserError


def add_endpoints(service: Service) -> None:
    """Add the endpoints to the page that is being built."""

    async def generate(prompt: str, *values: Any) -> AsyncGenerator[dict[str, Any], None]:
        """Continue a prompt. Streams objects with `text`, the continuation so far, and the counts
        and times of it; the last one has an `end_reason`."""
        settings = dict(zip(settings_of(), values, strict=True))
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

    _give_parameters(generate, service)
    for endpoint in (generate, next_tokens):
        gr.api(endpoint, api_name=endpoint.__name__, concurrency_limit=None)


def _give_parameters(generate: Any, service: Service) -> None:
    """Have the function take each setting by name: Gradio makes the endpoint of its signature."""
    returned = generate.__annotations__["return"]
    parameters = [inspect.Parameter("prompt", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    generate.__annotations__ = {"prompt": str, "return": returned}
    for name, found in settings_of().items():
        default = service.defaults.get(name, found.default)
        default = list(default) if found.kind is tuple else default
        if name == "num_tokens":
            default = min(default, service.max_tokens)
        parameters.append(parameters[0].replace(name=name, default=default))
        kind: Any = list[str] if found.kind is tuple else found.kind
        generate.__annotations__[name] = kind | None if found.optional else kind
    generate.__signature__ = inspect.Signature(parameters, return_annotation=returned)


def _told(error: Exception) -> gr.Error:
    """The message for the client, without a traceback here."""
    return gr.Error(str(error), print_exception=False)
