"""How a server that speaks OpenAI's API does under load: ours, or any other.

    python benchmarks/serving.py --clients 1 8 32 64 -- --config bloom_tiny --batch_size 32
    python benchmarks/serving.py --url http://127.0.0.1:8000 --model bloom --pid 1234

Without --url our server is started; what follows -- is its command line. Requests arrive at random
(a Poisson process of --rate requests a second for each client) and are streamed. Each number of
clients is measured with prompts that share nothing, and with prompts of which three quarters are
the same; a few requests before are not counted. Times are seconds, the median and that which 95 %
are within; memory is what the server's processes have after each row: resident, and its own share
of that (PSS).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import math
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from serving_load import Answer, Load, run

REPOSITORY = Path(__file__).resolve().parents[1]
START_SECONDS = 300
WARM_UP = 2
"""Requests a client that are not counted."""


@dataclass(frozen=True)
class Row:
    """What was measured of a load; megabytes are None where the server's process is not known."""

    clients: int
    shared: bool
    requests: int
    failed: int
    seconds: float
    prompt_tokens: int
    tokens_per_second: float
    first_median: float
    first_95: float
    token_median: float
    token_95: float
    resident_mb: float | None = None
    own_mb: float | None = None
    error: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; status 1 where a request failed."""
    arguments = parse(argv)
    with server(arguments) as (url, model, pid):
        rows = []
        for clients in arguments.clients:
            for shared in (False, True):
                rows.append(measured(url, model, pid, clients, shared, arguments))
                if not arguments.json:
                    print(*([HEADINGS] if len(rows) == 1 else []), line(rows[-1]), sep="\n")
    if arguments.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    for row in rows:
        if row.error:
            print(f"{row.clients} clients: {row.failed} failed: {row.error}", file=sys.stderr)
    return int(any(row.failed for row in rows))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--requests", type=int, default=3, help="of each client (default 3)")
    parser.add_argument(
        "--rate", type=float, default=4.0, help="arrivals a second for each client (default 4)"
    )
    parser.add_argument("--words", type=int, default=40, help="phrases of a prompt (default 40)")
    parser.add_argument("--new_tokens", type=int, default=32, help="of an answer (default 32)")
    parser.add_argument("--url", help="of a server that runs, in place of ours")
    parser.add_argument("--model", default="", help="its name there; the first where not given")
    parser.add_argument("--pid", type=int, help="the process there whose memory is told")
    parser.add_argument("--key", default="none", help="API key")
    parser.add_argument("--body", type=json.loads, default={}, help="further fields, as JSON")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    parser.add_argument("ours", nargs="*", help="of our server's command line, after --")
    found = parser.parse_args(argv)
    least = min([found.requests, found.words, found.new_tokens, *found.clients])
    if least < 1 or not 0 < found.rate < math.inf:
        parser.error("clients, requests, words and new_tokens must be 1 or more, rate over 0")
    if found.url and found.ours:
        parser.error("a command line is for our own server, which --url replaces")
    return found


@contextlib.contextmanager
def server(arguments: argparse.Namespace) -> Iterator[tuple[str, str, int | None]]:
    """The address, the model's name and the process of the server."""
    if arguments.url:
        url = arguments.url.rstrip("/").removesuffix("/v1")
        yield url, arguments.model or named(url, arguments.key), arguments.pid
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["run_inference_gradio.py", "--no_page", "--port", str(port)]
    words += ["--max_queue", str(max(arguments.clients)), *arguments.ours]
    process = subprocess.Popen([sys.executable, *words], cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, process)
        yield url, named(url, arguments.key), process.pid
    finally:
        process.terminate()
        process.wait(30)


def wait_for(url: str, process: subprocess.Popen) -> None:
    """Until it answers."""
    begin = time.monotonic()
    while time.monotonic() - begin < START_SECONDS:
        if process.poll() is not None:
            sys.exit(f"the server ended with status {process.returncode}")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health").status_code == 200:
                return
        time.sleep(0.2)
    sys.exit(f"the server did not answer within {START_SECONDS} s")


def named(url: str, key: str) -> str:
    """The first of a server's models."""
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.get(f"{url}/v1/models", headers=headers).json()["data"][0]["id"]


def measured(
    url: str,
    model: str,
    pid: int | None,
    clients: int,
    shared: bool,
    arguments: argparse.Namespace,
) -> Row:
    """A load of so many clients, after a few requests that are not counted."""
    load = Load(
        clients=clients,
        requests=clients * arguments.requests,
        rate=clients * arguments.rate,
        words=arguments.words,
        new_tokens=arguments.new_tokens,
        shared=shared,
        body=arguments.body,
        seed=clients,
    )
    warm_up = dataclasses.replace(load, requests=min(clients, 8) * WARM_UP, seed=load.seed + 999)
    asyncio.run(run(url, model, warm_up, arguments.key))
    seconds, answers = asyncio.run(run(url, model, load, arguments.key))
    resident, own = memory(pid) if pid else (None, None)
    return row_of(load, seconds, answers, resident, own)


def row_of(
    load: Load,
    seconds: float,
    answers: Sequence[Answer],
    resident: float | None = None,
    own: float | None = None,
) -> Row:
    """The figures of a load's answers."""
    good = [answer for answer in answers if not answer.error]
    firsts = [answer.first for answer in good]
    tokens = [each for answer in good if (each := answer.a_token) is not None]
    return Row(
        clients=load.clients,
        shared=load.shared,
        requests=len(answers),
        failed=len(answers) - len(good),
        seconds=seconds,
        prompt_tokens=sum(answer.prompt_tokens for answer in good),
        tokens_per_second=sum(answer.tokens for answer in good) / seconds,
        first_median=statistics.median(firsts) if firsts else math.nan,
        first_95=within(firsts),
        token_median=statistics.median(tokens) if tokens else math.nan,
        token_95=within(tokens),
        resident_mb=resident,
        own_mb=own,
        error=next((answer.error for answer in answers if answer.error), ""),
    )


def within(values: Sequence[float], share: float = 0.95) -> float:
    """What so many of them are at most."""
    return sorted(values)[math.ceil(share * len(values)) - 1] if values else math.nan


def memory(pid: int) -> tuple[float, float]:
    """Megabytes of a process and those that it started: resident, and its own share."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()[1:]]
    found = {pid}
    for child, parent in sorted(pairs):
        if parent in found:
            found.add(child)
    sums = {"Rss": 0, "Pss": 0}
    for one in found:
        with contextlib.suppress(OSError):
            for text in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                name, _, rest = text.partition(":")
                if name in sums:
                    sums[name] += int(rest.split()[0])
    return sums["Rss"] / 1e3, sums["Pss"] / 1e3


HEADINGS = (
    "| clients | prefixes | tokens/s | first token: median, 95 % | a token: median, 95 % "
    "| RSS, PSS |\n|---|---|---|---|---|---|"
)


def line(row: Row) -> str:
    """A row of the table."""
    shares = "shared" if row.shared else "own"
    of = "" if row.resident_mb is None else f"{row.resident_mb:.0f}, {row.own_mb:.0f} MB"
    failed = f" ({row.failed} of {row.requests} failed)" if row.failed else ""
    return (
        f"| {row.clients} | {shares} | {row.tokens_per_second:.1f}{failed} "
        f"| {row.first_median:.3f}, {row.first_95:.3f} s "
        f"| {1e3 * row.token_median:.1f}, {1e3 * row.token_95:.1f} ms | {of} |"
    )


if __name__ == "__main__":
    sys.exit(main())
