"""What takes requests from outside: an ASGI application that passes them on to a replica."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from starlette.types import Receive, Scope, Send

from utils.serving.limits import Limits

logger = logging.getLogger(__name__)

ATTEMPTS = 5
"""Replicas that a request is given to, one after another, where they die before they answer."""

PAUSE = 0.5
"""Seconds between two attempts."""

HOP_BY_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"te", b"upgrade", b"date"}
LOST = "the replica that made this text has ended; what came so far is not the whole of it"
NONE_LEFT = "no replica could take the request: try again later"


class Front:
    """Passes requests on.

    Args:
        replicas: a handle of Ray Serve.
    """

    def __init__(self, replicas: Any):
        self._relay = replicas.options(stream=True).relay

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, to its end."""
        if scope["type"] != "http":
            return
        body = await _body(receive)
        if body is None:
            await _refuse(send, 413, f"a body may have {Limits().body_bytes} bytes at most")
            return
        headers = [(name, text) for name, text in scope["headers"] if name not in HOP_BY_HOP]
        target = scope["root_path"] + scope["path"]
        if scope["query_string"]:
            target += "?" + scope["query_string"].decode("latin-1")
        answering = asyncio.ensure_future(
            self._answer((scope["method"], target, headers, body), send)
        )
        leaving = asyncio.ensure_future(_left(receive))
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not answering.done():
            answering.cancel()
            await asyncio.wait({answering})
        elif error := answering.exception():
            raise error

    async def _answer(self, call: tuple[Any, ...], send: Send) -> None:
        """By the first replica that begins to answer."""
        for attempt in range(ATTEMPTS):
            pieces = self._relay.remote(*call)
            try:
                status, headers = await anext(pieces)
            except BackPressureError:
                break
            except (RayError, RayServeException, StopAsyncIteration) as error:
                logger.warning("attempt %d failed: %s", attempt + 1, type(error).__name__)
                await asyncio.sleep(PAUSE * (attempt + 1))
                continue
            except asyncio.CancelledError:
                pieces.cancel()
                raise
            await _pass_on(pieces, status, headers, send)
            return
        await _refuse(send, 503, NONE_LEFT)


async def _pass_on(pieces: Any, status: int, headers: Any, send: Send) -> None:
    """The rest of an answer that has begun, or an event that says that there is none."""
    kept = [(name.lower(), text) for name, text in headers if name.lower() not in HOP_BY_HOP]
    await send({"type": "http.response.start", "status": status, "headers": kept})
    try:
        async for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    except asyncio.CancelledError:
        pieces.cancel()
        raise
    except RayError:
        if not any(text.startswith(b"text/event-stream") for _, text in kept):
            raise  # the connection is cut: the length of the body says that it is not whole
        event = json.dumps({"error": _error(LOST, 502)})
        content = f"data: {event}\n\n".encode()
        await send({"type": "http.response.body", "body": content, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _body(receive: Receive) -> bytes | None:
    """A request's body; None for one that is too long."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > Limits().body_bytes:
            return None
    return b"".join(parts)


async def _left(receive: Receive) -> None:
    """Returns once the one who asked has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _error(message: str, status: int) -> dict[str, Any]:
    return {"message": message, "type": "server_error", "param": None, "code": status}


async def _refuse(send: Send, status: int, message: str) -> None:
    """An answer of our own, as the API has them."""
    headers = [(b"content-type", b"application/json")]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    content = json.dumps({"error": _error(message, status)}).encode()
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
