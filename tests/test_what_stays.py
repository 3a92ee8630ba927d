"""What stays of requests that have ended: nothing, counted in objects."""

from __future__ import annotations

import gc
from collections import Counter, deque
from collections.abc import Callable, Iterator

import httpx
import pytest
from serving import ScriptedPasses, Served, served, wait_until
from transformers import PreTrainedTokenizerFast

REQUESTS = 110
"""More than Gradio's tabs that are kept idle, and than timers that asyncio has before it tidies."""
CALLED = "/gradio_api/call/next_tokens"


@pytest.fixture(scope="module")
def site(tokenizer: PreTrainedTokenizerFast) -> Iterator[Served]:
    passes = ScriptedPasses(tokenizer, "a dog", batch_size=2)
    passes.log = deque(maxlen=1)  # type: ignore[assignment]
    with served(passes, tokenizer) as site:
        yield site


def complete(client: httpx.Client, **more: object) -> int:
    return client.post("/v1/completions", json={"prompt": "A", "max_tokens": 2, **more}).status_code


def refused(client: httpx.Client) -> int:
    return 600 - complete(client, temperature="hot")


def hang_up(client: httpx.Client) -> int:
    body = {"prompt": "A", "max_tokens": 400, "stream": True, "ignore_eos": True}
    with client.stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_bytes())
        return answer.status_code


def by_the_page(client: httpx.Client) -> int:
    call = client.post(CALLED, json={"data": ["A"]}).json()["event_id"]
    answer = client.get(f"{CALLED}/{call}")
    assert "event: complete" in answer.text
    return answer.status_code


ASKED: dict[str, Callable[[httpx.Client], int]] = {
    "completions": complete,
    "streams": lambda client: complete(client, stream=True, logprobs=2, echo=True),
    "refusals": refused,
    "hang-ups": hang_up,
    "the page": by_the_page,
}


@pytest.mark.parametrize("kind", ASKED)
def test_no_object_stays_of_a_request(site: Served, kind: str) -> None:
    with httpx.Client(base_url=site.url, timeout=20) as client:
        before = objects_after(site, client, ASKED[kind])
        grown = objects_after(site, client, ASKED[kind]) - before
    assert {name: count for name, count in grown.items() if count >= REQUESTS} == {}


def objects_after(site: Served, client: httpx.Client, ask: Callable) -> Counter[str]:
    """The objects of each type that there are after so many requests."""
    for _ in range(REQUESTS):
        assert ask(client) == 200
    wait_until(lambda: not site.running())
    gc.collect()
    return Counter(type(found).__qualname__ for found in gc.get_objects())
