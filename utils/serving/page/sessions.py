"""What Gradio's queue keeps of a tab, or of a call without one: dropped when nothing waits for it.

Gradio keeps an asyncio queue of each of the last 2000, 4 kB each, and a set of each for ever.
"""

from __future__ import annotations

import gradio as gr
from starlette.types import ASGIApp, Receive, Scope, Send

IDLE = 64
"""Tabs without a call under way that keep theirs: whose stream has ended may be about to ask."""


class Sessions:
    """An application that drops what the queue of a page keeps too long."""

    def __init__(self, app: ASGIApp, page: gr.Blocks):
        self._app, self._page = app, page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        finally:
            self._drop()

    def _drop(self) -> None:
        queue = self._page._queue
        calls, messages = queue.pending_event_ids_session, queue.pending_messages_per_session
        lost = [session for session in calls if session not in messages]
        idle = [session for session, waiting in calls.items() if not waiting]
        for session in [*lost, *idle[:-IDLE]]:
            calls.pop(session, None)
            messages.pop(session, None)
