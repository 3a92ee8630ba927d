"""The gate before the page: what comes through, by which names, how large, and in what headers.

It is the outermost layer of the application: what it refuses costs nothing behind it, and what
fails behind it is answered and logged here, without the body of a request.
"""

from __future__ import annotations

import asyncio
import logging
import re
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from utils.serving.calls import API, Calls, Refusal, session
from utils.serving.connections import CROWDED, client_of
from utils.serving.hosts import BadHeader, Hosts, origin_host
from utils.serving.limits import Limits
from utils.serving.logins import Logins
from utils.serving.service import FAULT

logger = logging.getLogger(__name__)

REACHABLE = (
    *("/", "/health", "/config", "/theme.css", "/manifest.json", "/favicon.ico", "/robots.txt"),
    *("/login", "/logout"),
    *(f"{API}/info", f"{API}/openapi.json", f"{API}/login_check", f"{API}/app_id", f"{API}/token"),
    *(f"{API}/user", f"{API}/startup-events"),
    *(f"{API}/queue/join", f"{API}/queue/data", f"{API}/queue/status"),
    *(f"{API}/cancel", f"{API}/reset"),
)
REACHABLE_BELOW = ("/assets/", "/static/", f"{API}/call/", f"{API}/heartbeat/")
"""Where all that is served lies. Gradio has more, among it uploads, files of the server's, and the
page's own functions under `/run/`."""

LONGEST_NAME = 200
"""Characters between two slashes: no file has more, and a file system none over 255."""

PATH = re.compile(r"/[A-Za-z0-9._~/@:+-]*")
QUESTIONS = ("session_hash", "all_session", "view", "lang", "__theme")
"""Names in a query that are let through; what else there is makes no difference to this page."""

FORWARDING = ("forwarded", "x-real-ip", "x-gradio-server", "x-original-host")
"""Headers, besides `x-forwarded-*`, that are for a proxy to set."""

IN_A_THREAD = 1 << 15
"""Bytes from which on a body is parsed in a thread: others are served in the meantime."""

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""What a browser may fetch for the page, nothing of another host's, and that no page may frame it.
gr.HTML needs the eval."""

HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class Gate:
    """An ASGI application round another one."""

    def __init__(self, app: ASGIApp, calls: Calls, hosts: Hosts, limits: Limits):
        self._app, self._calls, self._hosts, self._limits = app, calls, hosts, limits
        self._logins = Logins(limits)
        self._held = 0  # bytes of bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        try:
            await self._serve(scope, receive, answer)
            await answer.finish()
        except Refusal as refusal:
            await self._refuse(refusal, scope, receive, answer)
        except Exception as error:
            self._log(error, scope)
            await answer.fail()

    async def _serve(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        path = scope["path"]
        if scope.get("state", {}).get(CROWDED) and path != "/health":
            raise Refusal(503, "too many connections are open: try again in a moment", wait=5)
        scope = self._seen(scope)
        answer.secure = scope["scheme"] == "https"
        self._check_address(path)
        scope["query_string"] = self._questions(path, scope["query_string"])
        async with self._body(scope, receive) as body:
            if scope["method"] == "POST" and path.rstrip("/") == "/login":
                await self._admit(scope, answer)
            await self._app(scope, _replayed(body, receive), answer)

    def _seen(self, scope: Scope) -> Scope:
        """The scope with host, scheme and client as they are, and without what claims others."""
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        client = scope["client"][0] if scope["client"] else ""
        try:
            seen = self._hosts.seen(headers.get("host", ""), scope["scheme"], client, headers)
        except BadHeader as error:
            raise Refusal(400, str(error)) from None
        reached = scope["server"][0] if scope["server"] else None
        if not self._hosts.allows(seen.host, reached):
            raise Refusal(
                421, "this server is not known by the host that the request names: whoever runs "
                "it can allow a name with --allow_host"
            )  # fmt: skip
        origin = headers.get("origin")
        if origin is not None and not self._hosts.allows(origin_host(origin) or "", reached):
            raise Refusal(403, "a page of another host may not call this server")
        kept = [(k, v) for k, v in scope["headers"] if not _is_replaced(k.decode("latin-1"))]
        port = scope["client"][1] if scope["client"] else 0
        return {
            **scope,
            "headers": [*kept, (b"host", seen.host.encode("latin-1"))],
            "scheme": seen.scheme,
            "client": (seen.client, port),
        }

    def _check_address(self, path: str) -> None:
        if len(path) > self._limits.path_characters:
            most = self._limits.path_characters
            raise Refusal(414, f"the path of an address may have at most {most} characters")
        below = path.startswith(REACHABLE_BELOW) and ".." not in path.split("/")
        reachable = path == "/" or path.rstrip("/") in REACHABLE or below
        short = all(len(part) <= LONGEST_NAME for part in path.split("/"))
        if not reachable or not short or not PATH.fullmatch(path):
            raise Refusal(404, "Not Found")
        heartbeat = f"{API}/heartbeat/"
        if path.startswith(heartbeat):
            session(path.removeprefix(heartbeat).rstrip("/"))

    def _questions(self, path: str, query: bytes) -> bytes:
        """The query with what is let through of it."""
        most = self._limits.query_characters
        if len(query) > most:
            raise Refusal(414, f"what follows ? in an address may have at most {most} characters")
        try:
            pairs = parse_qsl(query.decode("latin-1"), max_num_fields=32)
        except ValueError:
            raise Refusal(400, "what follows ? in an address has too many parts") from None
        if "session_hash" in dict(pairs):
            session(dict(pairs)["session_hash"])
        return urlencode([pair for pair in pairs if pair[0] in QUESTIONS]).encode()

    @asynccontextmanager
    async def _body(self, scope: Scope, receive: Receive) -> AsyncIterator[bytes]:
        """The body, checked; '' where the address takes none. Counted while it is in use."""
        path = scope["path"]
        login = path.rstrip("/") == "/login"
        most = self._limits.login_bytes if login else self._limits.body_bytes
        length = _length(scope, most)
        if scope["method"] != "POST" or not (login or self._calls.takes(path)):
            yield b""
            return
        if self._held + length > self._limits.bodies_bytes:
            raise Refusal(503, "too many requests are being read: try again in a moment", wait=1)
        self._held += length
        try:
            body = await self._read(receive)
            yield body if login else await self._checked(path, body)
        finally:
            self._held -= length

    async def _checked(self, path: str, body: bytes) -> bytes:
        if len(body) < IN_A_THREAD:
            return self._calls.checked(path, body)
        return await asyncio.to_thread(self._calls.checked, path, body)

    async def _read(self, receive: Receive) -> bytes:
        parts = []
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(400, "the request ended before its body did")
                    parts.append(message.get("body", b""))
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise Refusal(408, "the body of the request took too long") from None

    async def _admit(self, scope: Scope, answer: _Answer) -> None:
        """Begin a login, whose answer is delayed where it is wrong."""
        client = client_of(scope["client"][0])
        if wait := self._logins.wait(client):
            seconds = int(wait) + 1
            raise Refusal(429, f"too many wrong passwords: wait {seconds} seconds", wait=seconds)

        async def ended(status: int) -> None:
            if status < 400:
                self._logins.succeed(client)
            else:
                await asyncio.sleep(self._limits.login_seconds)

        answer.before = ended

    async def _refuse(
        self, refusal: Refusal, scope: Scope, receive: Receive, answer: _Answer
    ) -> None:
        headers = {}
        if refusal.wait is not None:
            headers["retry-after"] = str(int(refusal.wait))
        if refusal.status in (408, 503):
            headers["connection"] = "close"
        response = JSONResponse({"detail": refusal.sentence}, refusal.status, headers)
        await response(scope, receive, answer)

    def _log(self, error: Exception, scope: Scope) -> None:
        """Kind and place: the text of an error may be about what was sent."""
        for known in (error, error.__cause__, error.__context__):
            if isinstance(known, HTTPException):  # Gradio's end of a stream that nobody has
                return
        where = "".join(traceback.format_tb(error.__traceback__)[-6:])
        logger.error("a request failed by %s\n%s", type(error).__name__, where)


class _Answer:
    """The way back: puts the policy into the headers, and hides what a fault would tell."""

    def __init__(self, send: Send):
        self._send = send
        self.secure = False
        self.before: Any = None
        self._started = self._ended = self._silent = False

    async def __call__(self, message: Message) -> None:
        if self._silent:
            return
        if message["type"] == "http.response.start":
            if message["status"] >= 500 and message["status"] != 503:
                self._silent = True  # `fail` answers
                return
            if self.before is not None:
                await self.before(message["status"])
            self._started = True
            message = {**message, "headers": self._headers(message.get("headers", []))}
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            self._ended = True
        await self._send(message)

    async def finish(self) -> None:
        """Answer in place of a fault that was reported as an answer."""
        if self._silent:
            await self.fail()

    async def fail(self) -> None:
        """Answer that something went wrong, or end what was begun."""
        self._silent = False
        if not self._started:
            body = JSONResponse({"detail": FAULT}, 500)
            headers = self._headers(body.raw_headers)
            await self._send({"type": "http.response.start", "status": 500, "headers": headers})
            await self._send({"type": "http.response.body", "body": body.body})
        elif not self._ended:
            await self._send({"type": "http.response.body", "body": b""})

    def _headers(self, headers: Any) -> list[tuple[bytes, bytes]]:
        kept = [
            (name, self._cookie(value) if name.lower() == b"set-cookie" else value)
            for name, value in headers
        ]
        return [*kept, *HEADERS]

    def _cookie(self, value: bytes) -> bytes:
        """For this host's pages alone, out of reach of scripts, by https where that is used."""
        parts = [part.strip() for part in value.split(b";")]
        dropped = (b"samesite", b"secure", b"httponly")
        kept = [p for p in parts if p.partition(b"=")[0].lower() not in dropped]
        return b"; ".join([*kept, b"HttpOnly", b"SameSite=Lax", *([b"Secure"] * self.secure)])


def _is_replaced(name: str) -> bool:
    return name == "host" or name.startswith("x-forwarded-") or name in FORWARDING


def _length(scope: Scope, most: int) -> int:
    """By what its headers say: the server reads no more than that."""
    headers = dict(scope["headers"])
    length = int(headers.get(b"content-length", 0))
    if b"transfer-encoding" in headers or length > most:
        raise Refusal(413, f"a request may have at most {most} bytes, with its length")
    return length


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body, and then what the connection does."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
