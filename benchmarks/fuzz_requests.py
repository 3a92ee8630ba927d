"""Send a server thousands of requests that nobody should send.

    python benchmarks/fuzz_requests.py --count 5000 --seed 0 --seconds 900
    python benchmarks/fuzz_requests.py --count 5000 --api

Two servers are started, one of them with an account, which continue any prompt with a text in place
of a model. Each request is one of an endpoint's, changed in a few places: its line, headers, body,
or the bytes on the way. Wrong is an answer of 500, none within some seconds, a traceback in a log,
or a part of a body in one; each is printed with the seed of its request. The status is 1 if there
was any.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "runtime"), str(REPOSITORY / "benchmarks")]

import api_requests  # noqa: E402 - found just above

from utils.generation.settings import settings_of  # noqa: E402

SECRET = api_requests.SECRET
"""In every body: a log that has it has a body."""

ANSWER_SECONDS = 15.0
"""Within which an answer has begun, or the server hangs."""

PATIENCE = 1.0
"""Seconds without an answer after which the request is ended, as it may be cut off."""

HEALTH_EVERY = 50

DEFAULTS = [3 if name == "num_tokens" else s.default for name, s in settings_of().items()]
CALL = {"data": [f"{SECRET} A dog is", *DEFAULTS]}
JOIN = {"data": [*DEFAULTS, f"{SECRET} A dog is"], "fn_index": 1, "session_hash": "abc"}
ENDPOINTS: list[tuple[str, str, Any]] = [
    *[("GET", path, None) for path in ("/", "/health", "/config", "/theme.css", "/manifest.json")],
    *[("GET", path, None) for path in ("/favicon.ico", "/robots.txt", "/login", "/logout", "/a")],
    *[("GET", f"/gradio_api/{name}", None) for name in ("info", "openapi.json", "login_check")],
    *[("GET", f"/gradio_api/{name}", None) for name in ("app_id", "token", "user", "upload")],
    *[("GET", f"/gradio_api/{name}", None) for name in ("startup-events", "queue/status", "runs")],
    ("GET", "/gradio_api/queue/data?session_hash=abc", None),
    ("GET", "/gradio_api/heartbeat/abc", None),
    ("GET", "/gradio_api/call/generate/0123456789abcdef", None),
    ("GET", "/static/img/logo.svg", None),
    ("GET", "/assets/index.css", None),
    ("GET", "/gradio_api/file=/etc/passwd", None),
    ("POST", "/gradio_api/queue/join", JOIN),
    ("POST", "/gradio_api/queue/join", {**JOIN, "fn_index": 3}),
    ("POST", "/gradio_api/queue/join", {**JOIN, "fn_index": 4, "data": []}),
    ("POST", "/gradio_api/queue/join", {**JOIN, "fn_index": 0, "data": [2]}),
    ("POST", "/gradio_api/queue/join", {**JOIN, "fn_index": 6, "data": ["a", {}],
                                        "event_data": {"index": 0, "value": SECRET}}),
    ("POST", "/gradio_api/call/generate", CALL),
    ("POST", "/gradio_api/call/next_tokens", {"data": [f"{SECRET} A"]}),
    ("POST", "/gradio_api/call/v2/generate", {"prompt": f"{SECRET} A", "num_tokens": 2}),
    ("POST", "/gradio_api/call/stop", {"data": []}),
    ("POST", "/gradio_api/run/generate", CALL),
    ("POST", "/gradio_api/run/predict", {**JOIN, "fn_index": 4, "data": []}),
    ("POST", "/gradio_api/run/stop", {"data": []}),
    ("POST", "/gradio_api/cancel", {"session_hash": "abc", "fn_index": 1, "event_id": "1"}),
    ("POST", "/gradio_api/reset", {"event_id": SECRET}),
    ("POST", "/gradio_api/component_server", {"data": SECRET, "fn_name": "x", "component_id": 1,
                                              "session_hash": "abc"}),
    ("POST", "/login", f"username=user&password={SECRET}"),
    ("POST", "/login", "username=user&password=pass"),
]  # fmt: skip

EVERYWHERE = [*ENDPOINTS, *api_requests.ENDPOINTS]

VALUES: list[str] = [
    *("null", "true", "-1", "0", "0.5", "1e400", "-1e999", "1e308", "NaN", "Infinity", "9" * 400),
    *("9" * 5000, "9223372036854775808", "-9223372036854775809", '""', '"\\ud800"', '"\\udfff x"'),
    *('"\\u0000"', '"\\n"', "[]", "{}", "[[[[]]]]", '{"a": {"b": [1]}}', "[" * 200 + "]" * 200),
    *("[" * 20000 + "]" * 20000, '{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}'),
    *(f'"{SECRET}"', '"' + "x" * 70000 + '"', '"' + "é" * 300 + '"', '["a", 1]', '"3"', '"--5"'),
    *("[" + ",".join(['"a"'] * 20000) + "]", '{"__type__": "update"}', "01", "+1", "'a'", "[1,]"),
]
"""JSON texts, and some that are none, to stand in place of a value."""

HEADERS: list[tuple[str, str]] = [
    *[("Host", v) for v in ("evil.example", "", "localhost", "[", "[::1", "a b", "x" * 300)],
    *[("Host", v) for v in ("127.0.0.1:99999999", "127.0.0.1@evil", "é.example", "127.0.0.1:x")],
    *[("X-Forwarded-Host", v) for v in ("evil.example", "[", "a:b:c", "x" * 3000, "\x01", "a b")],
    *[("X-Forwarded-Host", v) for v in ("//", "evil.example/..", "[::1]:x", "%", ",", "é")],
    *[("X-Forwarded-Proto", v) for v in ("https", "ftp", "", "x" * 100)],
    *[("X-Forwarded-For", v) for v in ("1.2.3.4", "x", ",,,", "::1, 5")],
    *[("X-Gradio-Server", v) for v in ("http://evil.example", "[", "::", "http://[::1")],
    *[("Forwarded", "for=1.2.3.4;host=evil"), ("X-Real-IP", "1.2.3.4")],
    *[("Origin", v) for v in ("http://evil.example", "null", "http://[", "x", "http://a:b", "")],
    *[("Access-Control-Request-Method", "POST"), ("Access-Control-Request-Headers", "x" * 500)],
    *[("Cookie", v) for v in ("access-token=1", "=;=;", "\xff\xfe", ";" * 500, "a" * 4000)],
    *[("Content-Length", v) for v in ("0", "1", "99999999", "-1", "x", "1, 2", "9" * 30)],
    *[("Transfer-Encoding", v) for v in ("chunked", "gzip", "x", "chunked, chunked")],
    *[("Content-Type", v) for v in ("text/plain", "x", "multipart/form-data", "")],
    *[("Content-Type", "multipart/form-data; boundary=" + v) for v in ("x", "é", '"', "a" * 500)],
    *[("Content-Type", "application/x-www-form-urlencoded; charset=x")],
    *[("Range", v) for v in ("bytes=0-1", "bytes=9-1", "bytes=-", "x", "bytes=0-0," * 100)],
    *[("If-Range", "x"), ("If-None-Match", '"'), ("If-Modified-Since", "yesterday")],
    *[("Accept-Encoding", v) for v in ("br", "gzip;q=x", "*", "")],
    *[("Accept-Language", v) for v in ("de", ",;q", "x" * 900)],
    *[("Authorization", v) for v in ("Bearer x", "Basic ====", "x")],
    *[("Upgrade", "websocket"), ("Connection", "upgrade"), ("Expect", "100-continue")],
    *[("X-" + "a" * 200, "b" * 900), ("Content-Encoding", "gzip"), ("Referer", "http://[")],
]
PATHS: list[str] = [
    *("a" * 2000, "%00", "%ff%fe", "%2e%2e%2f" * 9, "../" * 9, "//", "é", "%c3%a9", "%0d%0aX: y"),
    *("%", "%zz", "?" + "a" * 3000, "?deep_link=../../x", "?page=x", "?session_hash=" + "a" * 900),
    *("?session_hash=%00", "?session_hash=%ff", "?a=1" + "&b=2" * 300, "?__theme=["),
    *("/", "//evil.example", ";x", "%5c", "?view=api", "#x", "\x7f", "%20", "?all_endpoints=1"),
]  # fmt: skip
METHODS = (
    *("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS"),
    *("PATCH", "TRACE", "CONNECT", "get", "X"),
)


@dataclass
class Findings:
    """What came back: answers by status, and all that was wrong."""

    sent: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def summary(self) -> str:
        answers = ", ".join(
            f"{count} of {status}" for status, count in sorted(self.statuses.items())
        )
        return (
            f"{self.sent} requests, slowest answer {self.slowest:.2f} s, {len(self.wrong)} wrong\n"
            f"answers: {answers}"
        )


def a_request(choose: random.Random, api: bool = False) -> bytes:
    """A request, more or less; of the API alone if `api`."""
    method, path, content = choose.choice(api_requests.ENDPOINTS if api else EVERYWHERE)
    body = content.encode() if isinstance(content, str) else _json(choose, content)
    form = isinstance(content, str)
    headers = {"Host": "127.0.0.1", "Content-Length": str(len(body))}
    headers["Content-Type"] = "application/x-www-form-urlencoded" if form else "application/json"
    if choose.random() < 0.8:
        headers["Authorization"] = "Bearer user:pass"
    lines = [
        (name, value)
        for name, value in headers.items()
        if body or name in ("Host", "Authorization")
    ]
    kind = choose.randrange(6)
    if kind == 0:
        method = choose.choice(METHODS)
    if kind in (1, 2):
        path = _path(choose, path)
    if kind in (2, 3, 4):
        for name, value in choose.sample(HEADERS, choose.choice((1, 1, 2, 5))):
            if choose.random() < 0.9:
                lines = [line for line in lines if line[0] != name]
            lines.append((name, value))
    head = f"{method} {path} HTTP/1.{choose.choice('1110')}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in lines) + "\r\n"
    request = head.encode("utf-8" if choose.random() < 0.5 else "latin-1", "replace") + body
    return _damaged(choose, request) if choose.random() < 0.1 else request


def _path(choose: random.Random, path: str) -> str:
    more = choose.choice(PATHS)
    if choose.random() < 0.3:
        return "/" + more
    place = choose.randrange(len(path) + 1) if choose.random() < 0.3 else len(path)
    return path[:place] + more + path[place:]


def _json(choose: random.Random, content: Any) -> bytes:
    """A JSON text with values in it replaced, and now and then no JSON."""
    if content is None:
        return b"" if choose.random() < 0.9 else SECRET.encode()
    kind = choose.randrange(4)
    if kind == 0:
        return json.dumps(content).encode()
    copy = json.loads(json.dumps(content))
    marks = {}
    for number in range(choose.choice((1, 1, 2, 4))):
        mark = f"mark{number}mark"
        marks[mark] = choose.choice(VALUES)
        _put(choose, copy, mark)
    text = json.dumps(copy)
    for mark, value in marks.items():
        text = text.replace(f'"{mark}"', value)
    if kind == 3 and choose.random() < 0.2:
        text = choose.choice(VALUES)
    encoding = choose.choice(("utf-8", "utf-8", "utf-8", "utf-16", "latin-1"))
    return text.encode(encoding, "replace")


def _put(choose: random.Random, value: Any, new: Any) -> None:
    """Replace, add or remove something in a JSON value."""
    parts = value.values() if isinstance(value, dict) else value
    inner = [v for v in parts if isinstance(v, dict | list) and v]
    if inner and choose.random() < 0.6:
        _put(choose, choose.choice(inner), new)
    elif isinstance(value, dict):
        key = choose.choice([*value, "event_id", "trigger_id", "batched", "x", "event_data"])
        if choose.random() < 0.15:
            value.pop(key, None)
        else:
            value[key] = new
    elif value and choose.random() < 0.8:
        value[choose.randrange(len(value))] = new
    else:
        value.append(new)


def _damaged(choose: random.Random, request: bytes) -> bytes:
    """Some bytes changed, left out or added; or cut off."""
    data = bytearray(request)
    for _ in range(choose.choice((1, 3, 20))):
        place = choose.randrange(len(data))
        data[place : place + choose.choice((0, 1, 5))] = choose.randbytes(choose.choice((0, 1, 4)))
        if not data:
            return b"\r\n"
    return bytes(data[: choose.randrange(len(data))]) if choose.random() < 0.3 else bytes(data)


def answer_of(address: tuple[str, int], request: bytes) -> tuple[str, float]:
    """The status of the answer, or 'closed' or 'none', and the seconds until it came."""
    begin = time.perf_counter()
    with socket.create_connection(address, timeout=ANSWER_SECONDS) as connection:
        found = b""
        with contextlib.suppress(OSError):  # it may have answered before all was sent
            connection.sendall(request)
        try:
            connection.settimeout(PATIENCE)
            try:
                found = connection.recv(4096)
            except TimeoutError:
                connection.shutdown(socket.SHUT_WR)  # what the request lacks will not come
            connection.settimeout(ANSWER_SECONDS)
            while b"\r\n" not in found and (part := connection.recv(4096)):
                found += part
        except TimeoutError:
            return "none", time.perf_counter() - begin
        except OSError:
            pass
        seconds = time.perf_counter() - begin
        status = re.match(rb"HTTP/1\.1 (\d{3})", found)
        return (status[1].decode() if status else "closed"), seconds


@dataclass
class Server:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    address: tuple[str, int]
    log: Path


LIMITED = """
import os, resource, runpy, sys
_, descriptors, *sys.argv = sys.argv
resource.setrlimit(resource.RLIMIT_NOFILE, (int(descriptors),) * 2)
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script that may have so many files and connections open."""


@contextlib.contextmanager
def running(
    root: Path,
    folder: Path,
    account: str | None = None,
    descriptors: int = 1024,
    start: type[subprocess.Popen] = subprocess.Popen,
) -> Iterator[Server]:
    """`tests/run_scripted_page.py` of a repository, logging all it logs into a file.

    Args:
        account: user and password as `user:password`.
        descriptors: files and connections that the process may have open.
        start: starts the process.
    """
    log = folder / f"log_{'account' if account else 'open'}.txt"
    environment = {k: v for k, v in os.environ.items() if k != "BLOOM_AUTH"}
    environment |= {"BLOOM_AUTH": account} if account else {}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, (root, root / "runtime")))}
    script = root / "tests" / "run_scripted_page.py"
    options = ["--port", "0", "--max_tokens", "20", "--time_limit", "5", "--log_level", "info"]
    with log.open("w") as errors:
        process = start(
            [sys.executable, "-c", LIMITED, str(descriptors), str(script), *options],
            env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            port = re.search(r":(\d+)$", line.strip())
            if port is None:
                raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")
            yield Server(process, ("127.0.0.1", int(port[1])), log)
        finally:
            process.kill()
            process.wait()


def fuzz(
    count: int,
    seed: int,
    seconds: float,
    root: Path = REPOSITORY,
    api: bool = False,
    start: type[subprocess.Popen] = subprocess.Popen,
) -> Findings:
    """Send `count` requests, or as many as there is time for once the servers have started."""
    findings = Findings()
    with (
        tempfile.TemporaryDirectory() as name,
        running(root, Path(name), None, start=start) as plain,
        running(root, Path(name), "user:pass", start=start) as closed,
    ):
        end = time.monotonic() + seconds
        for number in range(count):
            if time.monotonic() > end:
                break
            server = closed if number % 4 == 3 else plain
            _send(findings, server, seed, number, api)
            if number % HEALTH_EVERY == 0:
                _check_health(findings, server)
        for server in (plain, closed):
            _check_log(findings, server)
    return findings


def _send(findings: Findings, server: Server, seed: int, number: int, api: bool) -> None:
    request = a_request(random.Random(f"{seed} {number}"), api)
    try:
        status, seconds = answer_of(server.address, request)
    except OSError as error:
        status, seconds = f"no connection ({error})", 0.0
    findings.sent += 1
    findings.statuses[status] += 1
    findings.slowest = max(findings.slowest, seconds)
    if status in ("500", "none") or status.startswith("no "):
        line = request.partition(b"\r\n")[0][:100]
        findings.wrong.append(f"request {number} of seed {seed}: {status} for {line!r}")


def _check_health(findings: Findings, server: Server) -> None:
    status, seconds = answer_of(server.address, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    if status != "200" or seconds > ANSWER_SECONDS:
        findings.wrong.append(f"/health: {status} after {seconds:.1f} s")


def _check_log(findings: Findings, server: Server) -> None:
    text = server.log.read_text(errors="replace")
    for sign in ("Traceback", SECRET, "went wrong", "failed by"):
        if sign in text:
            place = text.index(sign)
            findings.wrong.append(
                f"{text.count(sign)} times {sign!r} in {server.log.name} of {len(text)} "
                f"characters:\n{text[max(0, place - 200) : place + 1500]}"
            )
    if server.process.poll() is not None:
        findings.wrong.append(f"the server ended with status {server.process.returncode}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=900.0, help="at most")
    parser.add_argument("--root", type=Path, default=REPOSITORY, help="repository of the server")
    parser.add_argument("--api", action="store_true", help="requests to the API alone")
    options = parser.parse_args()
    findings = fuzz(options.count, options.seed, options.seconds, options.root, options.api)
    for line in findings.wrong:
        print(line)
    print(findings.summary())
    return int(bool(findings.wrong))


if __name__ == "__main__":
    sys.exit(main())
