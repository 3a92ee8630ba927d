"""Answers that end when their reader has gone: as one JSON text, or as events (SSE)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Send

from utils.serving.api.errors import ApiError

CLIENT_GONE = 499
"""The status of an answer that nobody reads, as web servers log it."""


async def answer_unless_gone(
    request: Request, answer: Coroutine[Any, Any, dict[str, Any]]
) -> Response:
    """The answer as JSON; it is cancelled once the client has gone.

    Raises:
        ApiError: what the answer raises.
    """
    working = asyncio.create_task(answer)
    watching = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return Response(status_code=CLIENT_GONE)
        return JSONResponse(await working)
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Events(StreamingResponse):
    """Server-sent events; what goes wrong on the way is the last but one.

    Args:
        chunks: the data of each.
        close: called at the end, whether all were read or not.
    """

    def __init__(
        self, chunks: AsyncGenerator[dict[str, Any]], close: Callable[[], Awaitable[None]]
    ):
        self._chunks, self._close = chunks, close
        super().__init__(
            self._lines(),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )

    async def stream_response(self, send: Send) -> None:
        try:
            async with aclosing(self._chunks), aclosing(self.body_iterator):  # type: ignore[type-var]
                await super().stream_response(send)
        finally:
            await self._close()

    async def _lines(self) -> AsyncGenerator[str]:
        try:
            async for chunk in self._chunks:
                yield _line(chunk)
        except Exception as error:
            yield _line(ApiError.of(error).body)
        yield "data: [DONE]\n\n"


def _line(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
