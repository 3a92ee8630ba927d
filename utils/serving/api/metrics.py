"""What Prometheus reads at `/metrics`: requests, tokens, times, the queue and the cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from utils.generation.engine import Engine
from utils.generation.ticket import Ticket
from utils.serving.api.addresses import GETS, POSTS

FIRST_TOKEN_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKEN_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
OF_THE_CACHE = ("cache", "prefix")
"""Beginnings of the names of an engine's figures that are about its cache."""


class Meter:
    """The figures of one server."""

    def __init__(self, engine: Engine):
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "bloom_http_requests", "Answers of the API by address and status",
            ["address", "status"], registry=self._registry,
        )  # fmt: skip
        self._prompt_tokens = Counter(
            "bloom_prompt_tokens", "Tokens of prompts that were read", registry=self._registry
        )
        self._tokens = Counter(
            "bloom_generated_tokens", "Tokens that were generated", registry=self._registry
        )
        self._first = Histogram(
            "bloom_time_to_first_token_seconds", "To its first token, with the queue",
            registry=self._registry, buckets=FIRST_TOKEN_SECONDS,
        )  # fmt: skip
        self._each = Histogram(
            "bloom_time_per_token_seconds", "Between two tokens of a text, its average",
            registry=self._registry, buckets=TOKEN_SECONDS,
        )  # fmt: skip
        self._registry.register(_OfEngine(engine))

    def ended(self, ticket: Ticket) -> None:
        """Count a request of the engine's that has ended."""
        self._prompt_tokens.inc(ticket.prompt_done)
        self._tokens.inc(ticket.generated_tokens)
        if ticket.time_to_first_token is not None:
            self._first.observe(ticket.time_to_first_token)
        if rate := ticket.tokens_per_second:
            self._each.observe(1 / rate)

    def answered(self, path: str, status: int) -> None:
        """Count an answer."""
        path = path.rstrip("/")
        known = path in (*POSTS, *GETS)
        self._requests.labels(path if known else "other", str(status)).inc()

    def text(self) -> bytes:
        """All figures in Prometheus' format."""
        return generate_latest(self._registry)


class _OfEngine(Collector):
    """An engine's own figures, at the moment they are asked for."""

    def __init__(self, engine: Engine):
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        now = self._engine.statistics()
        for name, about, value in (
            ("running", "Requests that have a slot", now.running),
            ("queued", "Requests that wait for a slot", now.queued),
            ("slots", "Requests that can run at once", now.slots),
        ):
            yield GaugeMetricFamily(f"bloom_requests_{name}", about, value=value)
        refused = "Requests that found the queue full"
        yield CounterMetricFamily("bloom_requests_refused", refused, value=now.refused)
        ended = CounterMetricFamily("bloom_requests_ended", "By reason", labels=["reason"])
        for reason, count in now.ended.items():
            ended.add_metric([reason], count)
        yield ended
        for name, value in dataclasses.asdict(now).items():
            if name.startswith(OF_THE_CACHE) and isinstance(value, int | float):
                yield GaugeMetricFamily(f"bloom_{name}", name.replace("_", " "), value=value)


class Counted:
    """An application whose answers are counted."""

    def __init__(self, app: ASGIApp, meter: Meter, root_path: str = ""):
        self._app, self._meter, self._root = app, meter, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"].removeprefix(self._root)
                self._meter.answered(path, message["status"])
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)
