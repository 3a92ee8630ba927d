"""Errors in OpenAI's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from utils.generation.engine import EngineClosed, QueueFull
from utils.serving.works import FAULT, ServerError
from utils.setup import UserError

KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded", 503: "service_unavailable"}

RETRY_SECONDS = 1
"""After which a client that was refused may try again."""


class ApiError(Exception):
    """A request that is not answered: a status from 400 on, a sentence, what it is about."""

    def __init__(
        self, status: int, sentence: str, *, param: str | None = None, code: str | None = None
    ):
        super().__init__(sentence)
        self.status, self.sentence, self.param = status, sentence, param
        self.code = code or CODES.get(status)

    @property
    def headers(self) -> dict[str, str]:
        return {"retry-after": str(RETRY_SECONDS)} if self.status in (429, 503) else {}

    @property
    def body(self) -> dict[str, Any]:
        return form(self.status, self.sentence, self.param, self.code)

    @classmethod
    def of(cls, error: Exception) -> ApiError:
        """What an error of the service or the engine is to a client."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, QueueFull):
            return cls(429, str(error))
        if isinstance(error, EngineClosed):
            return cls(503, str(error))
        if isinstance(error, UserError):
            return cls(400, str(error))
        if isinstance(error, ServerError):
            return cls(500, str(error))
        raise error


def form(
    status: int, sentence: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The body of an answer that is an error."""
    kind = "server_error" if status >= 500 else KINDS.get(status, "invalid_request_error")
    code = code or CODES.get(status)
    sentence = FAULT if status == 500 else sentence
    return {"error": {"message": sentence, "type": kind, "param": param, "code": code}}


def of_validation(errors: Sequence[Any]) -> ApiError:
    """The first of what pydantic found wrong with a body, in a sentence."""
    first = errors[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    name = ".".join(place)[:80]
    given = first.get("ctx", {}).get("error")
    if isinstance(given, UserError | ValueError):
        sentence = str(given)
    elif first["type"] == "extra_forbidden":
        sentence = f"there is no parameter {name!r}"
    elif first["type"] == "missing":
        sentence = f"{name or 'the body'} must be given"
    else:
        sentence = f"{name or 'the body'}: {first['msg'][:200]}"
    return ApiError(400, sentence, param=place[0][:80] if place else None)
