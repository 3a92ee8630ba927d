"""Clients that hang up and clients that read slowly: does anything of them stay?

    python benchmarks/hang_ups.py --rounds 5 --hang_ups 200 --slow 50

A server is started that continues any prompt without an end. In each round some clients ask for a
text, streamed or not, and hang up after a time drawn at random, while others read a few bytes at a
time until they are cut off or have all. Then the server must answer as before, with no request that
runs or waits, and with the descriptors that it had. Memory is printed for each round; the status is
1 where something stayed, or an answer was a 500.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from fuzz_requests import REPOSITORY, Server, running

SETTLED_SECONDS = 30
"""Within which a round's requests have ended."""


def request(stream: bool, max_tokens: int) -> bytes:
    """A completion's."""
    body = {"prompt": "A dog is " * 20, "max_tokens": max_tokens, "stream": stream}
    text = json.dumps({**body, "logprobs": 5, "echo": True})
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(text)}\r\n\r\n"
    )
    return (head + text).encode()


def hang_up(server: Server, choose: random.Random, wrong: list[str]) -> None:
    """Ask, read a little at most, and leave."""
    with contextlib.suppress(OSError), socket.create_connection(server.address, 20) as connection:
        connection.settimeout(choose.random() * 0.5 + 0.01)
        connection.sendall(request(choose.random() < 0.7, 20))
        with contextlib.suppress(TimeoutError):
            if b" 500 " in connection.recv(400)[:20]:
                wrong.append("a 500")


def read_slowly(server: Server, choose: random.Random, wrong: list[str]) -> None:
    """Ask for a long stream, and read a few bytes at a time."""
    with contextlib.suppress(OSError), socket.create_connection(server.address, 20) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.settimeout(5)
        connection.sendall(request(True, 20))
        begin = time.monotonic()
        while time.monotonic() - begin < 4 and (data := connection.recv(64)):
            if b" 500 " in data[:20]:
                wrong.append("a 500")
            time.sleep(choose.random() * 0.05)


def health(server: Server) -> dict:
    """What `/health` says."""
    host, port = server.address
    with urllib.request.urlopen(f"http://{host}:{port}/health", timeout=20) as answer:
        return json.load(answer)


def settled(server: Server) -> bool:
    """Whether nothing runs or waits any more, soon."""
    end = time.monotonic() + SETTLED_SECONDS
    while time.monotonic() < end:
        now = health(server)
        if not now["running"] and not now["queued"]:
            return True
        time.sleep(0.1)
    return False


def megabytes(server: Server) -> float:
    """That the process has in memory."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if "VmRSS" in line).split()[1]) / 1024


def descriptors(server: Server) -> int:
    """Files and connections that the process has open."""
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def one_round(server: Server, number: int, hang_ups: int, slow: int, wrong: list[str]) -> None:
    """All clients of a round, until they have gone."""
    kinds = [hang_up] * hang_ups + [read_slowly] * slow
    random.Random(number).shuffle(kinds)
    clients = [
        threading.Thread(target=kind, args=(server, random.Random(f"{number} {each}"), wrong))
        for each, kind in enumerate(kinds)
    ]
    for client in clients:
        client.start()
        time.sleep(0.01)
    for client in clients:
        client.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hang_ups", type=int, default=200, help="clients a round that hang up")
    parser.add_argument("--slow", type=int, default=50, help="clients a round that read slowly")
    options = parser.parse_args()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as name, running(REPOSITORY, Path(name)) as server:
        before = descriptors(server)
        print(f"at first: {megabytes(server):.0f} MB, {before} descriptors")
        for number in range(options.rounds):
            one_round(server, number, options.hang_ups, options.slow, wrong)
            if not settled(server):
                wrong.append(f"round {number}: requests stayed: {health(server)}")
            now = health(server)
            print(
                f"round {number}: {megabytes(server):.0f} MB, {descriptors(server)} descriptors, "
                f"{now['submitted']} submitted, {now['refused']} refused, ended {now['ended']}"
            )
        if (after := descriptors(server)) > before + 5:
            wrong.append(f"{after} descriptors, {before} at first")
        log = server.log.read_text()
        if "Traceback" in log or "went wrong" in log:
            wrong.append(f"the log has a fault: {log[-1500:]}")
    for line in wrong:
        print(line)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
