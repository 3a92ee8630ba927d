"""The gate before page and API: what comes through, by which names, how large, and in what headers.

It is the outermost layer of the application: what it refuses costs nothing behind it, and what
fails behind it is answered and logged here, without the body of a request.
"""

from __future__ import annotations

import asyncio
import logging
import re
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import parse_qsl, urlencode

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from utils.serving.calls import Refusal, session
from utils.serving.connections import CROWDED, client_of
from utils.serving.gated_answer import Addresses, GatedAnswer, error_body
from utils.serving.hosts import BadHeader, Hosts, origin_host
from utils.serving.keys import Keys
from utils.serving.limits import Limits
from utils.serving.logins import Logins

logger = logging.getLogger(__name__)

HEALTH = "/health"

LONGEST_NAME = 200
"""Characters between two slashes: no file has more, and a file system none over 255."""

PATH = re.compile(r"/[A-Za-z0-9._~/@:+-]*")
QUESTIONS = ("session_hash", "all_session", "view", "lang", "__theme")
"""Names in a query that are let through; what else there is makes no difference to this page."""

FORWARDING = ("forwarded", "x-real-ip", "x-gradio-server", "x-original-host")
"""Headers, besides `x-forwarded-*`, that are for a proxy to set."""

IN_A_THREAD = 1 << 15
"""Bytes from which on a body is parsed in a thread: others are served in the meantime."""


class Gate:
    """An ASGI application round another one.

    Args:
        parts: of what is served; an address belongs to the first that has it.
        keys: asked for where a part guards an address.
        root_path: what stands before every address, for a proxy that takes it away or does not.
    """

    def __init__(
        self,
        app: ASGIApp,
        parts: Sequence[Addresses],
        hosts: Hosts,
        limits: Limits,
        keys: Keys | None = None,
        root_path: str = "",
    ):
        self._app, self._parts, self._hosts, self._limits = app, parts, hosts, limits
        self._keys, self._root = keys or Keys(), root_path
        self._logins = Logins(limits)
        self._held = 0  # bytes of bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._root and scope["path"].startswith(f"{self._root}/"):
            scope = {**scope, "path": scope["path"].removeprefix(self._root)}
        part = self._part(scope["path"])
        answer = GatedAnswer(send, part)
        try:
            await self._serve(scope, receive, answer, part)
            await answer.finish()
        except Refusal as refusal:
            await self._refuse(refusal, scope, receive, answer, part)
        except Exception as error:
            self._log(error, scope)
            await answer.fail()

    def _part(self, path: str) -> Addresses | None:
        return next((part for part in self._parts if part.has(path)), None)

    async def _serve(
        self, scope: Scope, receive: Receive, answer: GatedAnswer, part: Addresses | None
    ) -> None:
        path = scope["path"]
        if scope.get("state", {}).get(CROWDED) and path != HEALTH:
            raise Refusal(503, "too many connections are open: try again in a moment", wait=5)
        scope = self._seen(scope, part)
        answer.secure = scope["scheme"] == "https"
        self._check_address(path, part)
        if part and part.guards(path) and scope["method"] != "OPTIONS":
            await self._check_key(scope)
        scope["query_string"] = self._questions(path, scope["query_string"])
        async with self._body(scope, receive, part) as body:
            if scope["method"] == "POST" and path.rstrip("/") == "/login":
                await self._admit(scope, answer)
            inner = {**scope, "path": self._root + path, "root_path": self._root}
            if part and part.guards(path) and part.takes(path):  # curl's -d says that it is a form
                others = [(k, v) for k, v in scope["headers"] if k != b"content-type"]
                inner["headers"] = [*others, (b"content-type", b"application/json")]
            await self._app(inner, _replayed(body, receive), answer)

    def _seen(self, scope: Scope, part: Addresses | None) -> Scope:
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
        own = origin is None or self._hosts.allows(origin_host(origin) or "", reached)
        if not own and not (part and part.guards(scope["path"]) and self._hosts.lets(origin)):
            raise Refusal(403, "a page of another host may not call this server")
        kept = [(k, v) for k, v in scope["headers"] if not _is_replaced(k.decode("latin-1"))]
        port = scope["client"][1] if scope["client"] else 0
        return {
            **scope,
            "headers": [*kept, (b"host", seen.host.encode("latin-1"))],
            "scheme": seen.scheme,
            "client": (seen.client, port),
        }

    def _check_address(self, path: str, part: Addresses | None) -> None:
        if len(path) > self._limits.path_characters:
            most = self._limits.path_characters
            raise Refusal(414, f"the path of an address may have at most {most} characters")
        reachable = path.rstrip("/") == HEALTH or (part is not None and part.reaches(path))
        short = all(len(part) <= LONGEST_NAME for part in path.split("/"))
        if not reachable or not short or not PATH.fullmatch(path):
            raise Refusal(404, "Not Found")

    async def _check_key(self, scope: Scope) -> None:
        """Raises a `Refusal` where the API asks for a key that the request does not have."""
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        given = headers.get("authorization", "")
        if not self._keys.asked or self._keys.is_key(given):
            return
        client = client_of(scope["client"][0])
        if self._keys.may_be_account(given):
            self._begin_attempt(client)
            if self._keys.is_account(given):
                self._logins.succeed(client)
                return
        await asyncio.sleep(self._limits.login_seconds if given else 0)
        raise Refusal(401, "the API asks for a key: send it as 'Authorization: Bearer KEY'")

    def _begin_attempt(self, client: str) -> None:
        """Raises a `Refusal` where a client has guessed too often."""
        if wait := self._logins.wait(client):
            seconds = int(wait) + 1
            raise Refusal(429, f"too many wrong passwords: wait {seconds} seconds", wait=seconds)

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
    async def _body(
        self, scope: Scope, receive: Receive, part: Addresses | None
    ) -> AsyncIterator[bytes]:
        """The body, checked; '' where the address takes none. Counted while it is in use."""
        path = scope["path"]
        login = path.rstrip("/") == "/login"
        most = self._limits.login_bytes if login else self._limits.body_bytes
        length = _length(scope, most)
        taken = part is not None and part.takes(path)
        if scope["method"] != "POST" or not (login or taken):
            yield b""
            return
        if self._held + length > self._limits.bodies_bytes:
            raise Refusal(503, "too many requests are being read: try again in a moment", wait=1)
        self._held += length
        try:
            body = await self._read(receive)
            yield await self._checked(part, path, body) if part and taken else body
        finally:
            self._held -= length

    async def _checked(self, part: Addresses, path: str, body: bytes) -> bytes:
        if len(body) < IN_A_THREAD:
            return part.checked(path, body)
        return await asyncio.to_thread(part.checked, path, body)

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

    async def _admit(self, scope: Scope, answer: GatedAnswer) -> None:
        """Begin a login, whose answer is delayed where it is wrong."""
        client = client_of(scope["client"][0])
        self._begin_attempt(client)

        async def ended(status: int) -> None:
            if status < 400:
                self._logins.succeed(client)
            else:
                await asyncio.sleep(self._limits.login_seconds)

        answer.before = ended

    async def _refuse(
        self,
        refusal: Refusal,
        scope: Scope,
        receive: Receive,
        answer: GatedAnswer,
        part: Addresses | None,
    ) -> None:
        headers = {}
        if refusal.wait is not None:
            headers["retry-after"] = str(int(refusal.wait))
        if refusal.status in (408, 503):
            headers["connection"] = "close"
        if refusal.status == 401:
            headers["www-authenticate"] = "Bearer"
        body = error_body(part, refusal.status, refusal.sentence)
        response = JSONResponse(body, refusal.status, headers)
        await response(scope, receive, answer)

    def _log(self, error: Exception, scope: Scope) -> None:
        """Kind and place: the text of an error may be about what was sent."""
        for known in (error, error.__cause__, error.__context__):
            if isinstance(known, HTTPException):  # Gradio's end of a stream that nobody has
                return
        where = "".join(traceback.format_tb(error.__traceback__)[-6:])
        logger.error("a request failed by %s\n%s", type(error).__name__, where)


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
