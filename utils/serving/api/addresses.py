"""What of the API is reached at which address, for the gate before it."""

from __future__ import annotations

import json
from typing import Any

from utils.serving.api.errors import form
from utils.serving.calls import Refusal, read_json
from utils.serving.limits import Limits

POSTS = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize")
GETS = ("/v1/models", "/metrics")
BELOW = ("/v1/models/",)


class ApiAddresses:
    """The API's part of what the gate lets through."""

    def __init__(self, limits: Limits):
        self._limits = limits

    def has(self, path: str) -> bool:
        """Whether an address belongs to the API, served or not."""
        return path.startswith("/v1/") or path.rstrip("/") in (*POSTS, *GETS)

    def reaches(self, path: str) -> bool:
        """Whether something is served there."""
        return path.rstrip("/") in (*POSTS, *GETS) or path.startswith(BELOW)

    def guards(self, path: str) -> bool:
        """Whether a key is asked for, where there are any."""
        return self.has(path)

    def takes(self, path: str) -> bool:
        """Whether a POST to this path has JSON that is checked here."""
        return path.rstrip("/") in POSTS

    def checked(self, path: str, body: bytes) -> bytes:
        """The body as the API may have it.

        Raises:
            Refusal: it is no JSON object within the bounds.
        """
        value = read_json(body, self._limits)
        if not isinstance(value, dict):
            raise Refusal(400, "the body must be a JSON object")
        return json.dumps(value, ensure_ascii=False).encode()

    def error(self, status: int, sentence: str) -> dict[str, Any]:
        """The body of an answer that is an error."""
        return form(status, sentence)
