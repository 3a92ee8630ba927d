"""Clients of a server with OpenAI's API: requests that arrive at random, and how they went."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

WORDS = (
    *("the king", "a dog", "said to", "the house", "on the hill", "and they", "went into", "city"),
    *("in those", "days", "when the", "people", "came", "unto him", "with a", "great", "day"),
)
TIMEOUT = 170
"""Seconds that a request may take."""


@dataclass(frozen=True)
class Load:
    """What is asked of a server.

    Attributes:
        clients: requests that run at once at most.
        requests: in all.
        rate: arrivals a second, at random (a Poisson process); they wait for a client that is free.
        words: of a prompt, phrases of about two tokens; with `shared` three quarters are the same.
        new_tokens: of each answer at most.
        body: further fields of each request.
    """

    clients: int
    requests: int
    rate: float
    words: int
    new_tokens: int
    shared: bool
    body: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """How a request went: seconds from sending it to its first text, and to its end."""

    first: float
    seconds: float
    tokens: int
    prompt_tokens: int
    error: str = ""

    @property
    def a_token(self) -> float | None:
        """Seconds a token after the first."""
        return (self.seconds - self.first) / (self.tokens - 1) if self.tokens > 1 else None


def prompts(load: Load) -> list[str]:
    """The text of each request."""
    draw = random.Random(load.seed)
    head = draw.choices(WORDS, k=3 * load.words // 4)
    own = load.words - len(head) if load.shared else load.words
    each = [draw.choices(WORDS, k=own) for _ in range(load.requests)]
    return [" ".join([*head, *some] if load.shared else some) for some in each]


async def run(url: str, model: str, load: Load, key: str = "none") -> tuple[float, list[Answer]]:
    """Seconds from the first arrival to the last answer, and the answers."""
    draw, free = random.Random(load.seed + 1), asyncio.Semaphore(load.clients)
    limits = httpx.Limits(max_connections=load.clients)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(timeout=TIMEOUT, limits=limits, headers=headers) as client:

        async def ask(prompt: str, at: float) -> Answer:
            await asyncio.sleep(at)
            async with free:
                body = {"model": model, "prompt": prompt, "max_tokens": load.new_tokens}
                return await answered(client, f"{url}/v1/completions", {**body, **load.body})

        at, asked = 0.0, []
        for prompt in prompts(load):
            asked.append(ask(prompt, at))
            at += draw.expovariate(load.rate)
        begin = time.perf_counter()
        answers = await asyncio.gather(*asked)
        return time.perf_counter() - begin, answers


async def answered(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> Answer:
    """One request, streamed to its end; an error is told in its answer."""
    body = {**body, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    begin, first, pieces, usage = time.perf_counter(), 0.0, 0, {}
    try:
        async with client.stream("POST", url, json=body) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode(errors="replace")
                return Answer(0, 0, 0, 0, f"{response.status_code} {text[:200]}")
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                usage = event.get("usage") or usage
                if event.get("error"):
                    return Answer(0, 0, 0, 0, str(event["error"])[:200])
                if event.get("choices"):
                    first = first or time.perf_counter() - begin
                    pieces += 1
    except (httpx.HTTPError, json.JSONDecodeError) as error:
        return Answer(0, 0, 0, 0, repr(error)[:200])
    seconds = time.perf_counter() - begin
    tokens = usage.get("completion_tokens", pieces)
    return Answer(first, seconds, tokens, usage.get("prompt_tokens", 0))
