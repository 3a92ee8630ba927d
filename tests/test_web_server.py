"""The web server: clients at once, what can be reached, health, accounts."""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import os
import re
import socket
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from serving import (
    HeldPasses,
    ReferencePasses,
    ScriptedPasses,
    Served,
    advance_until,
    generated_text,
    served,
    wait_until,
)
from transformers import BloomForCausalLM, PreTrainedTokenizerFast

from config import load_config
from utils.generation.engine import Engine
from utils.generation.loading import load
from utils.generation.settings import settings_of
from utils.generation.ticket import Ticket
from utils.serving.listening import bind, is_public, listen, url_for_others
from utils.setup import UserError

TESTS = Path(__file__).resolve().parent
SCRIPT = TESTS.parent / "run_inference_gradio.py"
PROMPT = "A dog is"
FILES = ("/etc/passwd", str(SCRIPT), str(TESTS.parent / "models" / "bloom_tiny" / "config.json"))


@pytest.fixture(scope="module")
def site(model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Iterator[Served]:
    passes = ReferencePasses(model, batch_size=2)
    with served(passes, tokenizer, max_queue=1) as site:
        yield site


@contextmanager
def client(site: Served, **settings: object) -> Iterator[Client]:
    client = Client(site.url, verbose=False, **settings)
    yield client
    client.close()


def test_connections_do_not_wait_for_more_to_send() -> None:
    """TCP_NODELAY: else the second of two small writes waits 40 ms for the client's delayed ACK."""
    found = []

    async def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        found.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async def main() -> None:
        listener = bind("127.0.0.1", 0)
        async with await asyncio.start_server(connected, sock=listener):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            await reader.read()
            writer.close()

    asyncio.run(main())
    assert found == [1]


# --- clients ---


def test_a_client_streams_the_text_of_generate(
    site: Served, model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    with client(site) as one:
        job = one.submit(PROMPT, num_tokens=20, api_name="/generate")
        *before, last = list(job)
        assert last["text"] == generated_text(model, tokenizer, PROMPT, 20)
        assert (last["end_reason"], last["generated_tokens"]) == ("budget", 20)
        assert all(last["text"].startswith(update["text"]) for update in before)
        assert one.predict(PROMPT, 20, api_name="/generate")["text"] == last["text"]


def test_a_client_is_given_the_likeliest_next_tokens(
    site: Served, model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    with client(site) as one:
        tokens = one.predict(PROMPT, api_name="/next_tokens")
    assert len(tokens) == 10
    probabilities = [token["probability"] for token in tokens]
    assert probabilities == sorted(probabilities, reverse=True)
    text = generated_text(model, tokenizer, PROMPT, 1)
    assert tokens[0]["text"] in ("", text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "ЖЖ" * 90}, r"the prompt has \d+ tokens, but the context .* holds 64"),
        ({"prompt": "A", "num_tokens": 65}, "num_tokens must be from 1 to 64, not 65"),
        ({"prompt": "A", "top_p": 2}, "top_p must be .* not 2"),
    ],
)
def test_a_client_is_told_what_is_wrong(site: Served, arguments: dict, message: str) -> None:
    with client(site) as one, pytest.raises(AppError, match=message):
        one.predict(**arguments, api_name="/generate")


def test_the_endpoints_of_the_page_itself_are_not_for_clients(site: Served) -> None:
    with client(site) as one:
        endpoints = one.view_api(return_format="dict")
    assert set(endpoints["named_endpoints"]) == {"/generate", "/next_tokens"}
    assert endpoints["unnamed_endpoints"] == {}


def test_a_client_over_the_queue_is_refused_politely(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    passes = HeldPasses(ReferencePasses(model))
    passes.hold()
    with served(passes, tokenizer, max_queue=1) as site, client(site) as one:
        first = one.submit(PROMPT, 30, api_name="/generate")
        wait_until(lambda: site.running() == 1)
        second = one.submit(PROMPT, 30, api_name="/generate")
        wait_until(lambda: site.engine.statistics().queued == 1)
        with pytest.raises(AppError, match="1 in the queue, of at most 1, .*try again"):
            one.predict(PROMPT, api_name="/generate")
        passes.let_all()
        expected = generated_text(model, tokenizer, PROMPT, 30)
        assert first.result()["text"] == second.result()["text"] == expected


def test_sixteen_clients_at_once_get_what_each_gets_alone() -> None:
    """On the checkpoint that ships: eight rows, 64 tokens each."""
    loaded = load(load_config("bloom_tiny", {"batch_size": 8}))
    words = re.findall(r"\w+", "A The In One When What There If This He She We It They On For")
    with served(loaded.passes, loaded.tokenizer) as site:
        clients = [Client(site.url, verbose=False) for _ in words]

        def ask(number: int) -> tuple[str, str]:
            prompt = f"{words[number]} dog"
            found = clients[number].predict(prompt, num_tokens=64, api_name="/generate")
            return found["text"], found["end_reason"]

        with ThreadPoolExecutor(len(words)) as pool:
            together = list(pool.map(ask, range(len(words))))
        alone = [
            "".join(step.text for step in site.engine.run(site.request(f"{word} dog", 64)))
            for word in words
        ]
        for one in clients:
            one.close()
    assert [text for text, _ in together] == alone
    assert {reason for _, reason in together} <= {"budget", "end_of_text"}
    assert len(set(alone)) > 10


class Connection:
    """An endpoint called as a browser does, with a stream that can be cut off."""

    def __init__(self, site: Served, function: int, number: int):
        self._address = httpx.URL(site.url)
        self.session = f"session{number}"
        data = [PROMPT, 400, *(s.default for s in list(settings_of().values())[1:])]
        joined = httpx.post(
            f"{site.url}/gradio_api/queue/join",
            json={"data": data, "fn_index": function, "session_hash": self.session},
        )
        assert joined.status_code == 200, joined.text
        self.stream = http.client.HTTPConnection(self._address.host, self._address.port)
        self.stream.request("GET", f"/gradio_api/queue/data?session_hash={self.session}")
        self.response = self.stream.getresponse()

    def read_until(self, holds: Callable[[dict], bool]) -> None:
        """Take messages until one for which it does."""
        for line in self.response:
            if line.startswith(b"data:") and holds(json.loads(line[5:])):
                return
        raise AssertionError("the stream ended")

    def cut(self) -> None:
        """As a browser that is closed: without a word."""
        if self.stream.sock:
            self.stream.sock.shutdown(socket.SHUT_RDWR)
        self.response.close()
        self.stream.close()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def noted_tickets(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> weakref.WeakSet[Ticket]:
    """Those of all requests from now on that something still refers to."""
    tickets: weakref.WeakSet[Ticket] = weakref.WeakSet()
    submit = engine.submit

    def noting(*arguments: Any) -> Ticket:
        ticket = submit(*arguments)
        tickets.add(ticket)
        return ticket

    monkeypatch.setattr(engine, "submit", noting)
    return tickets


def none_is_left(tickets: weakref.WeakSet[Ticket]) -> bool:
    gc.collect()
    return not tickets


@pytest.mark.timeout(300)
def test_a_hundred_clients_that_leave_in_mid_generation_leave_nothing_behind(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = HeldPasses(ScriptedPasses(tokenizer, "a cat ", batch_size=4, endless=True))
    with served(passes, tokenizer, max_queue=4) as site:
        functions = httpx.get(f"{site.url}/config").json()["dependencies"]
        generate = next(f["id"] for f in functions if f["api_name"] == "generate")
        tickets = noted_tickets(site.engine, monkeypatch)

        def leave(begin: int, count: int) -> int:
            """Bytes in use after so many have left, four at a time."""
            for first in range(begin, begin + count, 4):
                passes.hold()
                connections = [Connection(site, generate, first + more) for more in range(4)]
                advance_until(site, lambda: site.running() == 4)
                assert len(tickets) >= 4
                passes.let(40)
                for connection in connections:
                    connection.read_until(lambda message: message["msg"] == "process_generating")
                    connection.cut()
                advance_until(site, lambda: site.running() == 0)
            passes.let_all()  # a pass that is held up has the tickets of its slots
            wait_until(lambda: none_is_left(tickets))
            return resident_bytes()

        before = leave(0, 60)
        after = leave(60, 100)
        statistics = site.engine.statistics()
        assert statistics.ended == {"stopped": 160}
        assert (statistics.running, statistics.queued) == (0, 0)
        assert after - before < 3_000_000  # what Gradio keeps of 100 tabs is twice as much


# --- what can be reached ---


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file={}",
        "/gradio_api/file/{}",
        "/file={}",
        "/gradio_api/file=/tmp/../{}",
        "/static/..{}",
        "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e{}",
        "/assets/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f{}",
        "/assets/{}",
        "/static/%2f{}",
        "/gradio_api/call/../file={}",
        "/gradio_api/custom_component/a/client/component/..%2f..%2f..%2f..{}",
        "/svelte/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..{}",
        "/gradio_api/proxy=file://{}",
        "/{}",
    ],
)
def test_no_file_of_the_servers_is_reachable(site: Served, path: str, name: str) -> None:
    address = httpx.URL(site.url)
    connection = http.client.HTTPConnection(address.host, address.port)  # sends paths as they are
    connection.request("GET", path.format(name))
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status in (400, 403, 404)
    assert body not in (b"", Path(name).read_bytes())
    assert len(body) < 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/upload"),
        ("POST", "/gradio_api/component_server"),
        ("GET", "/gradio_api/proxy=https://example.hf.space/"),
        ("GET", "/gradio_api/deep_link?session_hash=a"),
        ("GET", "/gradio_api/dev/reload"),
        ("GET", "/monitoring"),
        ("GET", "/monitoring/summary"),
        ("GET", "/openapi.json"),
        ("GET", "/docs"),
        ("GET", "/gradio_api/runs"),
        ("POST", "/gradio_api/mcp"),
    ],
)
def test_what_the_page_does_not_need_is_not_there(site: Served, method: str, path: str) -> None:
    files = {"files": ("a.txt", b"content")} if "upload" in path else None
    response = httpx.request(method, site.url + path, files=files)
    assert (response.status_code, response.json()) == (404, {"detail": "Not Found"})


def test_a_file_named_in_a_prompt_is_not_opened(site: Served) -> None:
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    call = f"{site.url}/gradio_api/call/generate"
    posted = httpx.post(call, json={"data": [file, 5]})
    answer = httpx.get(f"{call}/{posted.json()['event_id']}").text
    assert answer.startswith("event: error")
    assert "root:" not in answer


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["my secret", 5], "generate takes 12 values, not 2"),
        (["my secret"] * 9, "generate takes 12 values, not 9"),
    ],
)
def test_a_call_that_fails_leaves_nothing_of_the_prompt_in_the_log(
    site: Served, data: list, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    call = f"{site.url}/gradio_api/call/generate"
    posted = httpx.post(call, json={"data": data})
    answer = httpx.get(f"{call}/{posted.json()['event_id']}").text
    assert answer.startswith("event: error")
    assert message in answer
    assert "secret" not in "".join(capfd.readouterr())


def test_a_fault_is_logged_by_its_kind_and_place_alone(
    site: Served,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(prompt: str) -> None:
        raise ZeroDivisionError(prompt)

    monkeypatch.setattr(site.service, "next_tokens", fail)
    with client(site) as one, pytest.raises(AppError, match="something went wrong on the server"):
        one.predict("my secret", api_name="/next_tokens")
    logged = caplog.text + "".join(capfd.readouterr())
    assert "a call of next_tokens failed by ZeroDivisionError" in logged
    assert "secret" not in logged


def test_queued_functions_cannot_be_run_past_the_queue(site: Served) -> None:
    before = site.engine.statistics().submitted
    functions = httpx.get(f"{site.url}/config").json()["dependencies"]
    for function in functions:
        if function["queue"]:
            response = httpx.post(
                f"{site.url}/gradio_api/run/predict",
                json={"data": [PROMPT] * 8, "fn_index": function["id"], "session_hash": "a"},
            )
            assert response.status_code == 404
    assert site.engine.statistics().submitted == before


def test_a_body_of_megabytes_is_refused(site: Served) -> None:
    join = f"{site.url}/gradio_api/queue/join"
    assert httpx.post(join, content=b"x" * (1 << 21)).status_code == 413
    assert httpx.post(join, content=iter([b"x"] * 9)).status_code == 413


def test_health_says_what_runs_and_when_it_ends(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    passes = HeldPasses(ScriptedPasses(tokenizer, "a cat", batch_size=3))
    passes.hold()
    with served(passes, tokenizer, max_queue=5) as site:
        site.engine.submit(site.request(PROMPT))
        wait_until(lambda: site.running() == 1)
        response = httpx.get(f"{site.url}/health")
        health = response.json()
        assert response.status_code == 200
        assert health["status"] == "ok"
        found = {name: health[name] for name in ("slots", "running", "queued", "max_queue")}
        assert found == {"slots": 3, "running": 1, "queued": 0, "max_queue": 5}
        passes.let_all()
        site.engine.close()
        response = httpx.get(f"{site.url}/health")
        assert (response.status_code, response.json()["status"]) == (503, "stopping")


def test_with_an_account_nothing_but_health_is_open(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    with served(ReferencePasses(model), tokenizer, auth=("user", "pass word")) as site:
        for path in ("/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=a"):
            assert httpx.get(site.url + path).status_code == 401
        joined = {"data": [PROMPT] * 8, "fn_index": 1, "session_hash": "a"}
        assert httpx.post(f"{site.url}/gradio_api/queue/join", json=joined).status_code == 401
        page = httpx.get(site.url).text
        assert '"auth_required":true' in page
        assert "Temperature" not in page and "few-shot" not in page
        assert httpx.get(f"{site.url}/health").status_code == 200
        wrong = {"username": "user", "password": "password"}
        assert httpx.post(f"{site.url}/login", data=wrong).status_code == 400
        with client(site, auth=("user", "pass word")) as one:
            found = one.predict(PROMPT, num_tokens=5, api_name="/generate")
        assert found["text"] == generated_text(model, tokenizer, PROMPT, 5)


def test_with_an_account_the_code_that_the_api_panel_shows_logs_in(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    login = {"username": "o'user", "password": "pass"}
    with served(ReferencePasses(model), tokenizer, auth=tuple(login.values())) as site:
        with httpx.Client() as browser:
            browser.post(f"{site.url}/login", data=login)
            info = browser.get(f"{site.url}/gradio_api/info").json()
        snippets = info["named_endpoints"]["/generate"]["code_snippets"]
        for code in (snippets["python"], snippets["javascript"], snippets["bash"]):
            assert "PASSWORD" in code
        known: dict = {}
        python = (
            snippets["python"].replace("PASSWORD", "pass").replace('prompt="..."', 'prompt="A"')
        )
        exec(python, known)
    assert known["result"]["end_reason"] == "budget"


@pytest.mark.parametrize(
    ("host", "public"),
    [
        ("127.0.0.1", False),
        ("::1", False),
        ("localhost", False),
        ("0.0.0.0", True),
        ("::", True),
        ("192.168.1.5", True),
        ("example.org", True),
    ],
)
def test_a_public_host_is_known(host: str, public: bool) -> None:
    assert is_public(host) == public


def test_a_server_on_all_addresses_tells_one_that_others_reach() -> None:
    with bind("0.0.0.0", 0) as everywhere, bind("127.0.0.1", 0) as here:
        assert url_for_others(here) is None
        address = url_for_others(everywhere)
        if address is None:  # a machine without a network
            pytest.skip("there is no network")
        found = httpx.URL(address)
        assert found.port == everywhere.getsockname()[1]
        with bind(found.host, 0):  # it is an address of this computer
            pass


def test_of_two_servers_that_start_at_once_the_second_is_refused() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with bind("127.0.0.1", port) as second:
            listen(first)
            with pytest.raises(UserError, match=f"^cannot listen on 127.0.0.1, port {port} "):
                listen(second)


def test_an_impossible_address_is_refused() -> None:
    with pytest.raises(UserError, match="cannot listen on 192.0.2.1, port 0"):
        bind("192.0.2.1", 0)
    with pytest.raises(UserError, match="port must be from 0 to 65535, not 99999"):
        bind("127.0.0.1", 99999)
