"""The way back through the gate: headers that every answer has, and errors that tell no faults."""

from __future__ import annotations

from typing import Any, Protocol

from starlette.responses import JSONResponse
from starlette.types import Message, Send

from utils.serving.works import FAULT

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


class Addresses(Protocol):
    """A part of what is served: its addresses, the bodies that they take, and its errors."""

    def has(self, path: str) -> bool:
        """Whether an address belongs to this part, served or not."""

    def reaches(self, path: str) -> bool:
        """Whether something is served there."""

    def guards(self, path: str) -> bool:
        """Whether a key is asked for, where there are any."""

    def takes(self, path: str) -> bool:
        """Whether a POST to this path has JSON that `checked` reads."""

    def checked(self, path: str, body: bytes) -> bytes:
        """The body as the application may have it. Raises a `Refusal`."""

    def error(self, status: int, sentence: str) -> dict[str, Any]:
        """The body of an answer that is an error."""


class GatedAnswer:
    """The way back: puts the policy into the headers, and hides what a fault would tell."""

    def __init__(self, send: Send, part: Addresses | None):
        self._send, self._part = send, part
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
            body = JSONResponse(error_body(self._part, 500, FAULT), 500)
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


def error_body(part: Addresses | None, status: int, sentence: str) -> dict[str, Any]:
    """The body of an answer that is an error, as the part that it is about writes them."""
    return part.error(status, sentence) if part else {"detail": sentence}
