"""What the page's buttons do: from the values of its fields to new ones."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import gradio as gr

from utils.generation.next_tokens import LikelyToken
from utils.generation.settings import with_line_ends
from utils.serving.page.words import NO_TEXT, status
from utils.serving.service import Service
from utils.serving.works import ServerError
from utils.setup import UserError

GAP = "   "
"""Between a probability and its token in the name of a bar."""


class Handlers:
    """The page's functions. A status is an update of the status field."""

    def __init__(self, service: Service):
        self.service = service

    async def generate(
        self, values: dict[gr.Component, Any], request: gr.Request
    ) -> AsyncGenerator[tuple[Any, Any], None]:
        """Text and status again and again; `values` are the page's fields'."""
        settings = {str(field.elem_id): value for field, value in values.items()}
        prompt = settings.pop("prompt")
        settings["stop"] = stop_strings(settings.pop("stop_strings"))
        try:
            async with aclosing(
                self.service.generate(prompt, settings, _owner(request))
            ) as progresses:
                async for progress in progresses:
                    yield prompt + progress.text, said(status(progress))
        except (UserError, ServerError) as error:
            yield gr.skip(), failed(error)

    async def stop(self, request: gr.Request) -> None:
        """End what this tab has running."""
        self.service.stop(_owner(request))

    async def look(self, prompt: Any, request: gr.Request) -> tuple[Any, Any, Any]:
        """The chart of the next tokens, its prompt with what each of its bars appends, a remark."""
        try:
            tokens = await self.service.next_tokens(prompt, _owner(request))
        except (UserError, ServerError) as error:
            return gr.update(visible=False), gr.skip(), failed(error)
        if not tokens:  # it was stopped
            return gr.update(visible=False), gr.skip(), remark("")
        chart = {name(token): token.probability for token in tokens}
        shown = {"prompt": prompt, "texts": {name(token): token.text for token in tokens}}
        return gr.update(value=chart, visible=True), shown, remark("")

    async def append(
        self, prompt: Any, shown: Any, event: gr.SelectData, request: gr.Request
    ) -> AsyncGenerator[tuple[Any, Any, Any, Any], None]:
        """The prompt with the token that was clicked, and then as `look` has it."""
        text = appended(shown, event.value)
        if not text:
            _, _, token = str(event.value).partition(GAP)
            yield gr.skip(), gr.skip(), gr.skip(), remark(NO_TEXT.format(shown=token))
            return
        longer = (prompt or "") + text
        yield longer, gr.skip(), gr.skip(), gr.skip()
        yield gr.skip(), *await self.look(longer, request)

    async def clear(self, request: gr.Request) -> tuple[Any, ...]:
        """Prompt, output, status, chart, what is known of it and remark as they were at first.

        It ends what runs itself: Gradio's own cancelling is lost where its call to the server is.
        """
        await self.stop(request)
        return None, *self.cleared()

    def cleared(self) -> tuple[Any, ...]:
        """All of `clear` but the prompt, which may be a new one by now."""
        return "", said(""), gr.update(visible=False), {}, remark("")

    async def settle(self, request: gr.Request) -> None:
        """Wait for the end of what was cancelled."""
        await self.service.settled(_owner(request))


def stop_strings(lines: Any) -> Any:
    """One a line, in which `\\n` is a line end; lines that are empty are none."""
    if not isinstance(lines, str):
        return lines or []
    return [with_line_ends(line) for line in lines.splitlines() if line]


def name(token: LikelyToken) -> str:
    """A bar's name, with the chance before it to a tenth of a per cent, as wide as any."""
    return f"{token.probability:6.1%}{GAP}{token.shown}"


def appended(shown: Any, bar: Any) -> str:
    """What a bar appends, from what the browser has of `look`; '' where it is nothing."""
    texts = shown.get("texts") if isinstance(shown, dict) else None
    text = texts.get(bar) if isinstance(texts, dict) and isinstance(bar, str) else None
    return text if isinstance(text, str) else ""


def said(text: str) -> Any:
    """For the status."""
    return gr.update(value=text, elem_classes=[])


def remark(text: str) -> Any:
    """Under the chart, where there is something to say."""
    return gr.update(value=text, elem_classes=[], visible=bool(text))


def failed(error: Exception) -> Any:
    """For either of them."""
    return gr.update(value=f"Error: {error}", elem_classes=["error"], visible=True)


def _owner(request: gr.Request) -> str:
    """The tab: a random number of the browser's, which no other tab knows."""
    return request.session_hash or ""
