"""Constraints of a body: `response_format` and `guided_*`, made ready off the event loop."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from utils.generation.grammar import Grammar, Grammars, Kind
from utils.serving.api.errors import ApiError
from utils.serving.service import Service
from utils.setup import UserError

KEPT = 16
"""Grammars that are kept for the next requests: programs send the same again and again."""

NAMES = {"json_schema": "guided_json", "regex": "guided_regex", "choice": "guided_choice"}


class Constraints:
    """Makes the grammars of requests, one at a time, within limits."""

    def __init__(self, service: Service):
        self._limits = service.limits
        self._grammars = Grammars(service.tokenizer, service.engine.passes.vocab_size)
        self._pool = ThreadPoolExecutor(1, "grammar")
        self._kept: OrderedDict[str, Grammar] = OrderedDict()

    async def of(self, body: Any) -> Grammar | None:
        """What a body asks its texts to be like, if anything.

        Raises:
            ApiError: it asks for several, for none that can be followed, or for one that takes too
                long.
        """
        asked = _asked(body)
        if asked is None:
            return None
        kind, content, param = asked
        key = f"{kind} {json.dumps(content)}"
        if len(key) > self._limits.grammar_bytes:
            most = self._limits.grammar_bytes
            raise ApiError(400, f"{param} may have {most} bytes, not {len(key)}", param=param)
        if key not in self._kept:
            self._kept[key] = await self._compiled(kind, content, param)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    async def _compiled(self, kind: Kind, content: Any, param: str) -> Grammar:
        loop, seconds = asyncio.get_running_loop(), self._limits.grammar_seconds
        compiling = loop.run_in_executor(self._pool, self._grammars.compile, kind, content)
        try:
            return await asyncio.wait_for(compiling, seconds)
        except UserError as error:
            raise ApiError(400, str(error), param=param) from None
        except TimeoutError:
            raise ApiError(
                503, f"{param} was not made ready within {seconds:g} s: try again, or simplify it",
                param=param,
            ) from None  # fmt: skip


def _asked(body: Any) -> tuple[Kind, Any, str] | None:
    """Kind and content of the constraint, and the parameter that has it."""
    given: list[tuple[Kind, Any, str]] = []
    found = body.response_format
    if found is not None and found.type == "json_object":
        given.append(("json_schema", {"type": "object"}, "response_format"))
    elif found is not None and found.type == "json_schema":
        if found.json_schema is None or found.json_schema.schema_ is None:
            raise ApiError(
                400, "response_format.json_schema.schema must be given", param="response_format"
            )
        given.append(("json_schema", found.json_schema.schema_, "response_format"))
    kinds: list[Kind] = ["json_schema", "regex", "choice"]
    for kind in kinds:
        value = getattr(body, NAMES[kind])
        if value is not None:
            given.append((kind, value, NAMES[kind]))
    if len(given) > 1:
        names = " and ".join(name for *_, name in given)
        raise ApiError(400, f"{names} cannot be followed at once: give one", param=given[1][2])
    if not given:
        return None
    kind, content, param = given[0]
    return kind, _readable(content, kind, param), param


def _readable(content: Any, kind: Kind, param: str) -> Any:
    if kind == "choice" and not content:
        raise ApiError(400, "guided_choice must have at least one text", param=param)
    if kind == "json_schema" and isinstance(content, str):
        try:
            content = json.loads(content)
        except (ValueError, RecursionError):
            raise ApiError(400, f"{param} is not JSON", param=param) from None
        if not isinstance(content, dict):
            raise ApiError(400, f"{param} must be a JSON object, a schema", param=param)
    return content
