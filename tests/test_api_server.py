"""The API among strangers and proxies: keys, origins, queues, clients that leave, figures."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from commands import run_python
from serving import HeldPasses, ScriptedPasses, Served, served, wait_until
from transformers import PreTrainedTokenizerFast

from utils.serving.arguments import ServerArguments
from utils.serving.hosts import Hosts
from utils.serving.keys import given_keys
from utils.serving.limits import Limits
from utils.setup import UserError

KEY = "a-key-of-16-characters-or-more"
BODY = {"prompt": "A dog is", "max_tokens": 2, "temperature": 0}
COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def closed(tokenizer: PreTrainedTokenizerFast) -> Iterator[Served]:
    """With a key, an account, and an origin that may call."""
    hosts = Hosts.given(origins=["https://app.example"])
    passes = ScriptedPasses(tokenizer, "a cat ", batch_size=2, endless=True)
    limits = Limits(login_seconds=0.0)
    with served(
        passes, tokenizer, page=False, keys=[KEY], auth=("ann", "pass"), hosts=hosts, limits=limits
    ) as site:
        yield site


def ask(site: Served, body: dict = BODY, path: str = COMPLETIONS, **headers: str) -> httpx.Response:
    return httpx.post(site.url + path, json=body, headers=headers, timeout=20)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# --- keys ---


def test_the_api_asks_for_a_key(closed: Served) -> None:
    for path in (COMPLETIONS, "/v1/chat/completions", "/tokenize", "/detokenize"):
        assert ask(closed, path=path).status_code == 401
    for path in ("/v1/models", "/metrics", "/v1/models/BLOOM"):
        assert httpx.get(closed.url + path).status_code == 401
        assert httpx.get(closed.url + path, headers=bearer(KEY)).status_code == 200
    assert httpx.get(f"{closed.url}/health").status_code == 200
    with pytest.raises(openai.AuthenticationError, match="asks for a key"):
        openai.OpenAI(base_url=f"{closed.url}/v1", api_key="wrong").models.list()


@pytest.mark.parametrize("given", ["wrong", "", KEY[:-1], KEY + "x", KEY.upper(), "é"])
def test_no_other_key_opens_it(closed: Served, given: str) -> None:
    found = httpx.get(
        f"{closed.url}/v1/models", headers={"authorization": f"Bearer {given}".strip().encode()}
    )
    assert found.status_code == 401
    assert found.json()["error"]["code"] == "invalid_api_key"
    assert found.headers["www-authenticate"] == "Bearer"


def test_the_pages_account_opens_it_and_cannot_be_guessed_for_long(closed: Served) -> None:
    basic = base64.b64encode(b"ann:pass").decode()
    assert ask(closed, authorization=f"Basic {basic}").status_code == 200
    assert ask(closed, **bearer("ann:pass")).status_code == 200
    statuses = [ask(closed, **bearer(f"ann:{guess}")).status_code for guess in range(8)]
    assert statuses[0] == 401 and statuses[-1] == 429
    assert ask(closed, **bearer("ann:pass")).status_code == 429
    assert ask(closed, **bearer(KEY)).status_code == 200  # keys are too long to be guessed


def test_keys_come_from_an_option_a_file_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{KEY}-1\n\n{KEY}-2\n")
    found = given_keys(f"{KEY}-3", str(file), {"BLOOM_API_KEY": f"{KEY}-4"})
    assert set(found) == {f"{KEY}-{n}" for n in (1, 2, 3, 4)}
    assert given_keys(None, None, {}) == ()


@pytest.mark.parametrize("key", ["short", "", "with spaces in it, but long", "é" * 20])
def test_a_key_that_could_be_guessed_or_sent_wrongly_is_refused(tmp_path: Path, key: str) -> None:
    file = tmp_path / "keys"
    file.write_text(key)
    for arguments in ((key, None, {}), (None, None, {"BLOOM_API_KEY": key}), (None, str(file), {})):
        with pytest.raises(UserError) as raised:
            given_keys(*arguments)
        assert "\n" not in str(raised.value) and (not key or key not in str(raised.value))


# --- other pages, proxies ---


def test_a_page_of_another_host_may_call_only_where_that_was_allowed(closed: Served) -> None:
    own = bearer(KEY)
    found = ask(closed, origin="https://app.example", **own)
    assert found.status_code == 200
    assert found.headers["access-control-allow-origin"] == "https://app.example"
    asks = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    for origin, status in (("https://app.example", 200), ("https://evil.example", 403)):
        headers = {"origin": origin, **asks}
        assert httpx.options(closed.url + COMPLETIONS, headers=headers).status_code == status
    refused = ask(closed, origin="https://evil.example", **own)
    assert refused.status_code == 403 and "access-control-allow-origin" not in refused.headers
    assert (
        httpx.get(f"{closed.url}/health", headers={"origin": "https://app.example"}).status_code
        == 403
    )


def test_an_origin_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="--cors_origins"):
        Hosts.given(origins=["app.example"])


def test_what_a_proxy_has_before_each_address_may_be_left_or_taken_away(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    passes = ScriptedPasses(tokenizer, "a cat ")
    with served(passes, tokenizer, root_path="/bloom") as site:
        for root in ("", "/bloom"):
            assert ask(site, path=root + COMPLETIONS).status_code == 200
            assert httpx.get(f"{site.url}{root}/health").status_code == 200
            assert httpx.get(f"{site.url}{root}/v1/models/BLOOM").status_code == 200
            page = httpx.get(f"{site.url}{root}/")
            assert page.status_code == 200 and "/bloom" in page.text
        assert httpx.get(f"{site.url}/bloom/etc/passwd").status_code == 404
        assert httpx.get(f"{site.url}/bloomed/health").status_code == 404


@pytest.mark.parametrize("path", ["bloom", "/a b", "/a//b", "/../x?", "/é"])
def test_a_root_path_that_is_none_is_refused(path: str) -> None:
    with pytest.raises(UserError, match="--root_path"):
        ServerArguments(root_path=path).web()


def test_without_a_page_gradio_is_not_imported_nor_reached(closed: Served) -> None:
    script = (
        "import sys; from pathlib import Path; from types import SimpleNamespace\n"
        "from utils.generation import Engine\n"
        "from utils.generation.tokenizer import open_tokenizer\n"
        "from utils.serving.service import Service\n"
        "from utils.serving.web_server import build_app\n"
        "passes = SimpleNamespace(batch_size=1, sequence_length=8, vocab_size=8, verify_sizes=())\n"
        "tokenizer = open_tokenizer(Path('models/bloom_tiny'))\n"
        "build_app(Service(Engine(passes), tokenizer), page=False)\n"
        "print('fastapi' in sys.modules, 'gradio' in sys.modules)"
    )
    done = run_python("-c", script, run=subprocess.run, check=True)
    assert done.stdout == "True False\n"
    for path in ("/", "/config", "/gradio_api/info"):
        assert httpx.get(closed.url + path).status_code == 404


# --- limits, endings ---


@pytest.fixture
def held(tokenizer: PreTrainedTokenizerFast) -> Iterator[Served]:
    passes = HeldPasses(ScriptedPasses(tokenizer, "a cat ", endless=True))
    with served(passes, tokenizer, page=False, max_queue=1) as site:
        yield site
        passes.let_all()


def sent(site: Served, body: dict) -> socket.socket:
    """A connection with a request on its way."""
    address = httpx.URL(site.url)
    connection = socket.create_connection((address.host, address.port), timeout=20)
    text = json.dumps(body)
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(text)}\r\n\r\n"
    connection.sendall((head + text).encode())
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot_and_its_place(held: Served, stream: bool) -> None:
    held.passes.hold()
    body = {**BODY, "max_tokens": 400, "stream": stream, "n": 2}  # one runs, the other waits
    connection = sent(held, body)
    wait_until(lambda: held.running() == 1 and held.engine.statistics().queued == 0)
    connection.close()
    wait_until(lambda: held.running() == 0)
    held.passes.let_all()
    assert ask(held).status_code == 200
    assert held.engine.statistics().ended["stopped"] == 1


def test_a_full_queue_is_429_and_says_when_to_come_again(held: Served) -> None:
    held.passes.hold()
    connections = [sent(held, BODY) for _ in range(2)]
    wait_until(lambda: held.running() + held.engine.statistics().queued == 2)
    for stream in (False, True):
        found = ask(held, {**BODY, "stream": stream})
        assert (found.status_code, found.headers["retry-after"]) == (429, "1")
        assert found.json()["error"]["code"] == "rate_limit_exceeded"
    held.passes.let_all()
    for connection in connections:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        connection.close()


def test_a_request_of_many_prompts_leaves_the_queue_to_others(held: Served) -> None:
    found = ask(held, {**BODY, "prompt": ["A dog is"] * 12, "n": 2})
    assert [choice["index"] for choice in found.json()["choices"]] == list(range(24))
    assert held.engine.statistics().refused == 0


def test_a_server_that_ends_says_so_in_the_middle_of_a_stream(held: Served) -> None:
    held.passes.hold()
    with httpx.stream(
        "POST", held.url + COMPLETIONS, json={**BODY, "max_tokens": 400, "stream": True}
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        wait_until(lambda: held.running() == 1)
        held.engine.begin_to_close()
        held.passes.let_all()
        *_, error, done = [line for line in answer.iter_lines() if line]
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "service_unavailable"
    assert done == "data: [DONE]"
    found = ask(held)
    assert (found.status_code, found.headers["retry-after"]) == (503, "1")
    assert found.json()["error"]["type"] == "server_error"


def test_a_request_has_its_slot_for_a_time(tokenizer: PreTrainedTokenizerFast) -> None:
    passes = HeldPasses(ScriptedPasses(tokenizer, "a cat ", endless=True))
    times = iter(range(0, 10**6, 4))  # a clock that goes on with every look
    with served(passes, tokenizer, page=False, time_limit=60, clock=lambda: next(times)) as site:
        found = ask(site, {**BODY, "max_tokens": 500}).json()
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"]["completion_tokens"] < 500


def test_a_fault_of_the_server_is_told_without_what_it_was(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    class Broken(ScriptedPasses):
        def decode(self, *arguments: object) -> None:
            raise RuntimeError("s3cret")

    with served(Broken(tokenizer, "a cat "), tokenizer, page=False) as site:
        for stream in (False, True):
            found = ask(site, {**BODY, "stream": stream})
            assert "went wrong" in found.text and "s3cret" not in found.text
            assert found.status_code == (200 if stream else 500)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400), (b"[1]", 400), (b"{", 400), (b'{"prompt": "\\ud800"}', 422),
        (b'{"prompt": 1e999}', 422), (b"[" * 20000, 422), (b"\xff", 400),
        (b'{"prompt": "' + b"x" * (1 << 20) + b'"}', 413),
    ],
)  # fmt: skip
def test_a_body_that_is_none_is_refused_in_openais_form(
    closed: Served, body: bytes, status: int
) -> None:
    found = httpx.post(closed.url + COMPLETIONS, content=body, headers=bearer(KEY), timeout=20)
    assert found.status_code == status
    assert found.json()["error"]["type"] == "invalid_request_error"


def test_an_answer_has_so_many_log_likelihoods(tokenizer: PreTrainedTokenizerFast) -> None:
    limits, passes = Limits(logprobs_in_all=40), ScriptedPasses(tokenizer, "a cat ")
    with served(passes, tokenizer, page=False, limits=limits) as site:
        for count, status in ((9, 200), (10, 400)):  # of 1 + logprobs for each of 4 tokens
            body = {**BODY, "logprobs": count, "n": 2}
            assert ask(site, body).status_code == status


def test_an_address_that_is_none_is_refused_in_openais_form(closed: Served) -> None:
    for method, path, status in (
        ("GET", "/v1/files", 404), ("GET", COMPLETIONS, 405), ("DELETE", "/v1/models/BLOOM", 405),
        ("POST", "/v1/models", 405), ("GET", "/v1/../health", 404),
    ):  # fmt: skip
        found = httpx.request(method, closed.url + path, headers=bearer(KEY))
        assert found.status_code in (status, 200 if ".." in path else status)
        assert found.status_code == 200 or "error" in found.json()


def test_prometheus_reads_what_was_served(tokenizer: PreTrainedTokenizerFast) -> None:
    passes = ScriptedPasses(tokenizer, "a cat ", batch_size=3, endless=True)
    with served(passes, tokenizer, page=False) as site:
        ask(site, {**BODY, "n": 2})
        ask(site, {"prompt": ""})
        figures = dict(
            line.rsplit(" ", 1)
            for line in httpx.get(f"{site.url}/metrics").text.splitlines()
            if not line.startswith("#")
        )
    count = len(tokenizer("A dog is").input_ids)
    assert float(figures["bloom_prompt_tokens_total"]) == 2 * count
    assert float(figures["bloom_generated_tokens_total"]) == 4
    assert float(figures["bloom_requests_slots"]) == 3
    assert float(figures["bloom_requests_running"]) == float(figures["bloom_requests_queued"]) == 0
    assert float(figures["bloom_time_to_first_token_seconds_count"]) == 2
    assert float(figures["bloom_time_per_token_seconds_count"]) == 2
    assert float(figures['bloom_requests_ended_total{reason="budget"}']) == 2
    for status in (200, 400):
        name = f'bloom_http_requests_total{{address="{COMPLETIONS}",status="{status}"}}'
        assert float(figures[name]) == 1
