"""The server against those who mean harm: floods, stops of others, dear requests, passwords."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import pytest
import warm_python
from byte_level import byte_level_tokenizer
from serving import HeldPasses, ScriptedPasses, Served, served, wait_until
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from config import REPOSITORY
from utils.generation.engine import Engine
from utils.generation.settings import settings_of
from utils.generation.text import StopStrings
from utils.generation.tokenizer import load_tokenizer
from utils.serving.given_settings import checked
from utils.serving.hosts import Hosts
from utils.serving.limits import Limits
from utils.serving.logins import Logins, checker
from utils.serving.prompt_bound import PromptBound
from utils.serving.quiet_log import QuietFilter
from utils.serving.service import Service
from utils.setup import UserError

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
SECRET = "s3cret"
CALL = "/gradio_api/call/generate"
JOIN = "/gradio_api/queue/join"
SETTINGS = [3, *(setting.default for setting in list(settings_of().values())[1:])]


@pytest.fixture(scope="module")
def site(tokenizer: PreTrainedTokenizerFast) -> Iterator[Served]:
    with served(ScriptedPasses(tokenizer, "a cat ", batch_size=2), tokenizer) as site:
        yield site


def connected(site: Served) -> socket.socket:
    address = httpx.URL(site.url)
    return socket.create_connection((address.host, address.port), timeout=20)


def status_of(site: Served, path: str = "/health") -> int:
    return httpx.get(site.url + path, timeout=20).status_code


# --- connections ---


def test_idle_connections_stop_nobody_and_the_log_stays_short(tmp_path: Path) -> None:
    """More of them than the process may have descriptors, and as many that send no HTTP."""
    from fuzz_requests import answer_of, running

    health = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with (
        running(REPOSITORY, tmp_path, descriptors=256, start=warm_python.Popen) as server,
        ExitStack() as open_ones,
    ):
        for number in range(300):
            one = open_ones.enter_context(closing(socket.create_connection(server.address)))
            one.sendall(b"GET / HTTP/1.1\r\n" if number % 2 else b"no HTTP\r\n\r\n")
            if number % 100 == 99:
                assert answer_of(server.address, health)[0] == "200"
        assert answer_of(server.address, health)[0] == "200"
        assert server.log.stat().st_size < 20_000


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"", b""),
        (b"GET /health HTTP/1.1\r\n", b""),
        (b"GET /health HTTP/1.1\r\n", b"a: b\r\n"),
        (b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n", b"a"),
    ],
)
def test_a_request_that_is_not_sent_to_its_end_is_given_up(
    tokenizer: PreTrainedTokenizerFast, begin: bytes, more: bytes
) -> None:
    limits = Limits(header_seconds=0.5, body_seconds=0.5)
    passes = ScriptedPasses(tokenizer, "a cat ")
    with served(passes, tokenizer, limits=limits) as site, connected(site) as one:
        one.sendall(begin)
        one.settimeout(0.1)
        for _ in range(50):  # bytes that drip in buy no time
            try:
                answer = one.recv(1000)
                break
            except TimeoutError:
                one.sendall(more)
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_client_has_so_many_connections_and_health_answers_all_the_same(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    passes, limits = ScriptedPasses(tokenizer, "a cat "), Limits(connections_of_client=3)
    with served(passes, tokenizer, limits=limits) as site, ExitStack() as streams:
        for number in range(3):
            stream = f"{site.url}/gradio_api/heartbeat/tab{number}"
            streams.enter_context(httpx.stream("GET", stream, timeout=20))
        assert status_of(site, "/config") == 503
        assert status_of(site, "/health") == 200


def test_warnings_that_are_alike_are_shown_a_few_times_and_counted() -> None:
    now, shown = 0.0, []
    quiet = QuietFilter(2, 60, clock=lambda: now)
    for number in range(1000):
        now = number / 10
        record = logging.LogRecord("a", logging.ERROR, "", 0, "item %d is wrong", (number,), None)
        if quiet.filter(record):
            shown.append(record.getMessage())
    assert shown == [
        "item 0 is wrong",
        "item 1 is wrong",
        "item 600 is wrong (and 598 like it before)",
        "item 601 is wrong",
    ]
    assert quiet.filter(logging.LogRecord("a", logging.ERROR, "", 0, "another", None, None))
    assert quiet.filter(logging.LogRecord("a", logging.INFO, "", 0, "item %d", (1,), None))


# --- stopping ---


def test_nobody_stops_what_came_without_a_session(tokenizer: PreTrainedTokenizerFast) -> None:
    passes = HeldPasses(ScriptedPasses(tokenizer, "a cat ", endless=True))
    passes.hold()
    with served(passes, tokenizer) as site:
        posted = httpx.post(site.url + CALL, json={"data": ["A", *SETTINGS]})
        assert posted.status_code == 200
        wait_until(lambda: site.running() == 1)
        functions = httpx.get(f"{site.url}/config").json()["dependencies"]
        stop = next(f["id"] for f in functions if f["api_name"] == "stop")
        for path in ("/gradio_api/run/stop", "/gradio_api/call/stop", "/gradio_api/run/predict"):
            body = {"data": [], "fn_index": stop}
            assert httpx.post(site.url + path, json=body).status_code == 404
        assert httpx.post(site.url + JOIN, json={"data": [], "fn_index": stop}).status_code == 400
        site.service.stop("")
        passes.let_all()
        wait_until(lambda: site.running() == 0)
        assert site.engine.statistics().ended == {"budget": 1}


def test_the_functions_of_the_page_are_called_by_tabs_alone(site: Served) -> None:
    for function in httpx.get(f"{site.url}/config").json()["dependencies"]:
        for path in ("run", "call", "call/v2", "api"):
            address = f"{site.url}/gradio_api/{path}/{function['api_name']}"
            body = {"data": [None] * 8, "fn_index": function["id"]}
            public = function["api_name"] in ("generate", "next_tokens") and "call" in path
            if not public:
                assert httpx.post(address, json=body).status_code in (404, 405), address


# --- what a request may cost ---


def first_stop(stops: list[str], text: str) -> tuple[str, str | None]:
    """By definition: the stop string that ends first, and of several the longest."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


def test_stop_strings_are_found_as_they_are_defined() -> None:
    choose = random.Random(0)
    for _ in range(2000):
        stops = ["".join(choose.choices("ab", k=choose.randint(1, 5))) for _ in range(3)]
        text = "".join(choose.choices("abc", weights=(4, 4, 1), k=12))
        stream, shown, place = StopStrings(stops), "", 0
        while place < len(text):
            count = choose.randint(1, 4)
            shown += stream.push(text[place : place + count])
            place += count
            if stream.found is None:
                held = text[len(shown) : place]
                assert not held or any(stop.startswith(held) for stop in stops)
        assert (shown + stream.flush(), stream.found) == first_stop(stops, text)


def test_many_stop_strings_take_the_steps_of_one() -> None:
    def lines_run(count: int) -> int:
        stream, lines = StopStrings([f"{number} is no text" for number in range(count)]), 0

        def count_lines(frame: FrameType, event: str, _: object) -> Callable[..., Any]:
            nonlocal lines
            lines += event == "line"
            return count_lines

        before = sys.gettrace()
        sys.settrace(count_lines)
        try:
            for _ in range(10):
                stream.push("12345 a text")
        finally:
            sys.settrace(before)
        return lines

    assert 0 < lines_run(50_000) < 4 * lines_run(1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stop": ["a"] * 65}, "stop must be at most 64 texts, not 65"),
        ({"stop": ["a" * 257]}, "stop must be texts of at most 256 characters, not 257"),
        ({"seed": "--5"}, "seed must be a whole number from 0 up, or left out, not '--5'"),
        ({"seed": "9" * 30}, "seed must be a whole number from 0 to 9223372036854775807"),
        ({"seed": 10**19}, "seed must be a number from -9223372036854775807 to "),
        ({"top_k": 10**400}, "top_k must be a number from "),
        ({"temperature": 10**400}, "temperature must be a number from "),
        ({"temperature": 1e308}, r"temperature must be 0 .* to 1e\+06, not 1e\+308"),
        ({"repetition_penalty": 1e308}, r"repetition_penalty must be .* not 1e\+308"),
        ({"num_tokens": 10**5000}, "num_tokens must be a number from "),
    ],
)
def test_odd_settings_are_refused_in_words(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        checked(settings, max_tokens=64)


def test_a_prompt_that_cannot_fit_is_not_tokenized(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tokenize(*_: Any) -> None:
        raise AssertionError("it was tokenized")

    async def ask(service: Service) -> None:
        async for _ in service.generate("a dog is a friend" * 60_000, {"num_tokens": 3}):
            pass

    with Engine(ScriptedPasses(tokenizer, "a cat ")) as engine:
        service = Service(engine, tokenizer)
        monkeypatch.setattr("utils.serving.service.encode_prompt", tokenize)
        with pytest.raises(UserError, match=r"prompt has \d+ tokens at least, .* holds 512"):
            asyncio.run(ask(service))


def test_a_long_prompt_is_tokenized_in_a_thread_of_its_own(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def tokenize(*_: Any, **__: Any) -> list[int]:
        threads.append(threading.current_thread().name)
        return [5]

    with Engine(ScriptedPasses(tokenizer, "a", sequence_length=1 << 20)) as engine:
        service = Service(engine, tokenizer)
        monkeypatch.setattr("utils.serving.service.encode_prompt", tokenize)
        asyncio.run(service.next_tokens("a dog " * 20_000))
    assert threads[0].startswith("long prompt")


def test_the_bound_of_a_prompt_never_exceeds_its_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    shipped = load_tokenizer(REPOSITORY / "models" / "bloom_tiny")
    pieces = [" ", "\n", "a", "the", "classifications", "é", "犬", "🙂", "</s>", "<pad>", "\x00"]
    choose = random.Random(0)
    for chosen in (tokenizer, shipped):
        bound = PromptBound(chosen)
        for _ in range(300):
            few = choose.sample(pieces, choose.randint(1, 4))
            text = "".join(choose.choices(few, k=choose.randint(1, 60)))
            assert 1 <= bound.least_tokens(text) <= len(chosen(text).input_ids)
    assert PromptBound(shipped).least_tokens("x" * 10_000) > 2000


def test_nothing_is_known_of_a_prompt_that_is_normalized() -> None:
    changed = byte_level_tokenizer()
    changed.backend_tokenizer.normalizer = normalizers.Strip()
    assert PromptBound(changed).least_tokens(" " * 10_000 + "a") == 0


# --- what no server should answer 500 to ---

BODIES = {
    "beyond floats": '{"data": ["%s", 1e400], "session_hash": "a", "fn_index": 1}',
    "beyond integers": '{"data": ["%s", ' + "9" * 400 + '], "session_hash": "a", "fn_index": 1}',
    "not a number": '{"data": ["%s", NaN], "session_hash": "a", "fn_index": 1}',
    "half a character": '{"data": ["%s \\ud800"], "session_hash": "a", "fn_index": 1}',
    "unknown function": '{"data": ["%s"], "session_hash": "a", "fn_index": 99}',
    "no function": '{"data": ["%s"], "session_hash": "a", "fn_index": 7}',
    "deep": '{"data": ["%s", ' + "[" * 900 + "]" * 900 + '], "session_hash": "a", "fn_index": 1}',
    "a batch": '{"data": ["%s"], "session_hash": "a", "fn_index": 1, "batched": true}',
    "a session of kilobytes": '{"data": ["%s"], "session_hash": "' + "a" * 9999 + '"}',
    "no object": '["%s"]',
    "no JSON": "%s",
}
"""Each with a place for a prompt."""


@pytest.mark.parametrize("path", [JOIN, CALL, "/gradio_api/call/v2/generate"])
@pytest.mark.parametrize("kind", BODIES)
def test_an_odd_body_is_answered_with_a_sentence_and_not_logged(
    site: Served,
    path: str,
    kind: str,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    body = BODIES[kind] % SECRET
    headers = {"content-type": "application/json"}
    answer = httpx.post(site.url + path, content=body, headers=headers)
    if path == CALL and kind in ("unknown function", "no function", "a batch"):
        assert answer.status_code == 200  # the function is the address's
    else:
        assert 400 <= answer.status_code < 500
        assert isinstance(answer.json()["detail"], str)
    assert SECRET not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/" + "a" * 2000, {}),
        ("/gradio_api/call/" + "a" * 2000, {}),
        ("/assets/%00", {}),
        ("/assets/" + "a" * 300, {}),
        ("/?" + "a" * 5000, {}),
        ("/config", {"X-Forwarded-Host": "["}),
        ("/config", {"X-Forwarded-Host": "a:b:c"}),
        ("/config", {"X-Gradio-Server": "http://[::1"}),
        ("/config", {"Host": "["}),
        ("/config", {"Origin": "http://["}),
        ("/?page=x", {}),
        ("/gradio_api/call/nothing/1", {}),
        ("/gradio_api/heartbeat/" + "a" * 200, {}),
    ],
)
def test_an_odd_address_or_header_is_no_fault_of_the_servers(
    site: Served, path: str, headers: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    with httpx.stream("GET", site.url + path, headers=headers, timeout=20) as answer:
        assert answer.status_code < 500
    assert "Traceback" not in capfd.readouterr().err


def test_a_stream_of_nobody_ends_without_a_traceback(
    site: Served, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    answer = httpx.get(f"{site.url}/gradio_api/queue/data?session_hash=nobody")
    assert answer.status_code == 200
    assert "Traceback" not in caplog.text + "".join(capfd.readouterr())


def test_a_fault_behind_the_gate_is_told_by_kind_and_place(
    site: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ZeroDivisionError(SECRET)

    monkeypatch.setattr(site.engine, "statistics", fail)
    answer = httpx.get(f"{site.url}/health")
    assert (answer.status_code, list(answer.json())) == (500, ["detail"])
    assert "a request failed by ZeroDivisionError" in caplog.text
    assert SECRET not in caplog.text


# --- passwords, names, cookies ---


def login(site: Served, password: str, **headers: str) -> httpx.Response:
    form = {"username": "user", "password": password}
    return httpx.post(f"{site.url}/login", data=form, headers=headers, timeout=20)


def test_guessing_passwords_takes_ever_longer(tokenizer: PreTrainedTokenizerFast) -> None:
    passes = ScriptedPasses(tokenizer, "a cat ")
    with served(passes, tokenizer, auth=("user", "pass")) as site:
        begin = time.monotonic()
        found = [login(site, str(number)) for number in range(7)]
        assert [answer.status_code for answer in found] == [400] * 5 + [429] * 2 or [
            answer.status_code for answer in found
        ] == [400] * 6 + [429]
        assert time.monotonic() - begin > 2
        assert int(found[-1].headers["retry-after"]) >= 1
        assert login(site, "pass").status_code == 429


def test_five_hundred_passwords_take_hours_and_many_at_once_are_no_way_round() -> None:
    now = 0.0
    logins, tried = Logins(Limits(), clock=lambda: now), 0
    while tried < 500:
        wait = logins.wait("a")
        tried, now = (tried + 1, now) if not wait else (tried, now + wait)
    assert now > 8 * 3600 * 0.99
    assert logins.wait("b") == 0
    now += 100
    assert logins.wait("a") == 0
    logins.succeed("a")
    assert [logins.wait("a") for _ in range(5)] == [0] * 5
    assert logins.wait("a") > 0 or logins.wait("a") > 0


def test_an_account_is_compared_as_a_whole() -> None:
    check = checker("úser", "pass word")
    assert check("úser", "pass word")
    for wrong in (("úser", "pass"), ("user", "pass word"), ("", ""), ("\ud800", "\x00")):
        assert not check(*wrong)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_a_name_that_is_not_allowed_is_not_answered(site: Served, host: str) -> None:
    answer = httpx.get(site.url, headers={"Host": host})
    assert answer.status_code == 421
    assert "gradio" not in answer.text


def test_a_page_of_another_host_may_not_call(site: Served) -> None:
    headers = {"Origin": "http://evil.example"}
    body = {"data": ["A", *SETTINGS]}
    assert httpx.post(site.url + CALL, json=body, headers=headers).status_code == 403
    assert httpx.post(site.url + CALL, json=body, headers={"Origin": site.url}).status_code == 200


def location(site: Served, **headers: str) -> str:
    answer = httpx.get(f"{site.url}/logout", headers=headers)
    return answer.headers.get("location", str(answer.status_code))


def test_a_forwarded_host_leads_nowhere_else(site: Served) -> None:
    for header in ("X-Forwarded-Host", "X-Gradio-Server", "Forwarded"):
        found = location(site, **{header: "http://evil.example"})
        assert found.startswith(site.url) and "evil" not in found
    assert location(site, **{"X-Forwarded-Proto": "https"}).startswith("http://127.0.0.1")


def test_a_proxy_that_was_named_is_believed_within_bounds(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    hosts = Hosts.given(["page.example"], ["127.0.0.0/8"])
    passes = ScriptedPasses(tokenizer, "a cat ")
    with served(passes, tokenizer, auth=("user", "pass"), hosts=hosts) as site:
        behind = {"X-Forwarded-Host": "page.example", "X-Forwarded-Proto": "https"}
        assert location(site, **behind) == "https://page.example"
        assert location(site, **{**behind, "X-Forwarded-Host": "evil.example"}) == "421"
        assert location(site, **{**behind, "X-Forwarded-Proto": "ftp"}) == "400"
        assert location(site, **{**behind, "X-Forwarded-For": "nobody"}) == "400"
        cookies = login(site, "pass", **behind).headers.get_list("set-cookie")
        assert cookies and all("SameSite=Lax" in c and "; Secure" in c for c in cookies)
        plain = login(site, "pass").headers.get_list("set-cookie")
        assert plain and all("SameSite=Lax" in c and "Secure" not in c for c in plain)
        assert all("HttpOnly" in cookie for cookie in plain + cookies)
        for number in range(6):
            login(site, str(number), **{"X-Forwarded-For": "9.9.9.9, 1.2.3.4"})
        assert login(site, "pass", **{"X-Forwarded-For": "1.2.3.4"}).status_code == 429
        assert login(site, "pass", **{"X-Forwarded-For": "1.2.3.4, 5.6.7.8"}).status_code == 200


@pytest.mark.parametrize("given", [{"names": ["http://a"]}, {"names": ["a:1"]}, {"proxies": ["a"]}])
def test_a_name_or_proxy_that_is_none_is_refused(given: dict[str, list[str]]) -> None:
    with pytest.raises(UserError, match="^--(allow_host|proxy) must be "):
        Hosts.given(**given)


@pytest.mark.parametrize("path", ["/", "/health", "/nothing", "/gradio_api/upload"])
def test_no_page_may_frame_this_one(site: Served, path: str) -> None:
    headers = httpx.get(site.url + path).headers
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


# --- a slice of the fuzzers ---


def fuzzed(fuzz: Callable[..., Any], count: int, seconds: float, **options: Any) -> None:
    findings = fuzz(count, 1, seconds, **options)
    assert findings.wrong == []
    assert findings.slowest > 0


def test_a_slice_of_the_fuzzed_requests() -> None:
    import fuzz_requests

    fuzzed(fuzz_requests.fuzz, 120, 30, start=warm_python.Popen)


@pytest.mark.timeout(400)
def test_a_slice_of_the_fuzzed_settings() -> None:
    import fuzz_settings

    fuzzed(fuzz_settings.fuzz, 180, 30)


def test_a_fuzzed_request_is_the_same_for_a_seed() -> None:
    from fuzz_requests import a_request

    assert a_request(random.Random("7")) == a_request(random.Random("7"))
