"""Two replicas under Ray Serve: one API, a replica that is killed under load, and the way out."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import openai
import pytest
import torch
from commands import run_python, start_python
from processes import free_port
from serving import generated_text
from transformers import AutoModelForCausalLM, AutoTokenizer

from config import REPOSITORY

MODEL = REPOSITORY / "models" / "bloom_tiny"


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    pause = threading.Event()
    for _ in range(int(seconds * 10)):
        if holds():
            return
        pause.wait(0.1)
    raise AssertionError("what was waited for never came")


def processes(pattern: str, parents: set[int] | None = None) -> list[int]:
    """Ids of the processes whose command has a pattern, of certain parents."""
    listed = subprocess.run(
        ["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True
    ).stdout
    found = [line.split(None, 2) for line in listed.splitlines() if re.search(pattern, line)]
    return [int(pid) for pid, parent, _ in found if parents is None or int(parent) in parents]


class Replicas:
    """A running `serve_replicas.py`."""

    def __init__(self, log: Path):
        self.port = free_port()
        self.log, self.url = log, f"http://127.0.0.1:{self.port}"
        command = ["serve_replicas.py", "--replicas", "2", "--cpus", "0.5"]
        command += ["--port", str(self.port), "--config", "bloom_tiny", "--batch_size", "4"]
        with log.open("w") as written:
            self.process = start_python(
                *command, start=subprocess.Popen, stdout=written, stderr=written
            )

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return "the API is at" in self.log.read_text()

    def servers(self) -> list[int]:
        """The replicas' server processes."""
        actors = set(processes(r"ServeReplica:bloom:replica"))
        return processes(r"run_inference_gradio\.py .*--no_page", actors)


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[Replicas]:
    running = Replicas(tmp_path / "log")
    try:
        wait_until(running.answers, 300)  # of 20 on a quiet machine
        yield running
    finally:
        running.process.terminate()
        running.process.wait(60)


def complete(replicas: Replicas, number: int) -> str:
    """How one of many requests went; streams and plain ones in turn."""
    body = {"model": "bloom_tiny", "prompt": f"{number} of the kings", "max_tokens": 200}
    stream = number % 2 == 0
    body |= {"temperature": 0, "ignore_eos": True, "stream": stream}
    with httpx.stream("POST", f"{replicas.url}/v1/completions", json=body, timeout=100) as answer:
        text = "".join(answer.iter_text())
    if not stream:
        return f"plain {answer.status_code} {len(json.loads(text)['choices'])}"
    last = text.strip().split("\n\n")[-1]
    return "whole stream" if last == "data: [DONE]" else json.loads(last[6:])["error"]["message"]


@pytest.mark.timeout(600)
def test_the_api_is_that_of_one_server_also_where_a_replica_dies(replicas: Replicas) -> None:
    """One test, as two that are run side by side would end each other's replicas."""
    has_the_api(replicas)
    replaces_a_server_that_is_killed_under_load(replicas)
    replaces_a_replica_that_is_killed(replicas)


def has_the_api(replicas: Replicas) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    wanted = generated_text(model, tokenizer, "And the king said", 24)
    client = openai.OpenAI(base_url=f"{replicas.url}/v1", api_key="none")
    given = {"model": "bloom_tiny", "prompt": "And the king said", "max_tokens": 24}
    whole = client.completions.create(**given, temperature=0)
    assert whole.choices[0].text == wanted
    pieces = client.completions.create(**given, temperature=0, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    with pytest.raises(openai.NotFoundError, match="other"):
        client.completions.create(model="other", prompt="A")
    assert httpx.get(f"{replicas.url}/health").status_code == 200
    too_long = httpx.post(f"{replicas.url}/v1/completions", content=b" " * (2 << 20))
    assert too_long.status_code == 413


def replaces_a_server_that_is_killed_under_load(replicas: Replicas) -> None:
    wait_until(lambda: len(replicas.servers()) == 2)
    before = replicas.servers()
    with ThreadPoolExecutor(24) as pool:
        went = [pool.submit(complete, replicas, number) for number in range(24)]
        wait_until(lambda: sum(future.done() for future in went) >= 2)
        os.kill(before[0], signal.SIGKILL)
        counted = Counter(future.result(100) for future in went)
    lost = "the replica that made this text has ended; what came so far is not the whole of it"
    assert counted["plain 200 1"] == 12
    assert counted["whole stream"] + counted[lost] == 12
    wait_until(lambda: len(replicas.servers()) == 2)
    assert before[0] not in replicas.servers()
    assert complete(replicas, 1) == "plain 200 1"


def replaces_a_replica_that_is_killed(replicas: Replicas) -> None:
    wait_until(lambda: len(replicas.servers()) == 2)
    before = set(replicas.servers())
    actor = processes(r"ServeReplica:bloom:replica")[0]
    (orphan,) = processes(r"run_inference_gradio\.py .*--no_page", {actor})
    os.kill(actor, signal.SIGKILL)
    wait_until(lambda: orphan not in processes(r"run_inference_gradio\.py"))
    wait_until(lambda: len(set(replicas.servers()) - before) == 1)
    wait_until(lambda: complete(replicas, 3) == "plain 200 1")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own
def test_requests_go_where_their_beginning_is_known_unless_that_is_busy() -> None:
    import asyncio

    from utils.serving.replicas.router import BLOCK, LEAD, PrefixRouter

    router = PrefixRouter.__new__(PrefixRouter)
    router.initialize_state()
    names = ["a", "b"]

    def first_choice(prompt: str) -> str:
        body = json.dumps({"prompt": prompt}).encode()
        request = SimpleNamespace(
            args=["POST", "/v1/completions", [], body], routing_context=SimpleNamespace()
        )
        given = [SimpleNamespace(replica_id=name) for name in names]
        chosen = asyncio.run(router.choose_replicas(given, request))[0][0].replica_id
        router.on_request_routed(request, chosen, None)
        return chosen

    one, other = first_choice("x" * BLOCK), first_choice("y" * BLOCK)
    assert {one, other} == {"a", "b"}
    for name in one, other:
        router.on_request_completed(name, "")
    for _ in range(LEAD + 1):
        assert first_choice("x" * BLOCK + " and more") == one
    assert first_choice("x" * BLOCK) == other  # by now the first is too busy
    names.remove(one)
    assert first_choice("x" * BLOCK) == other


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("--replicas 0", r"--replicas: replicas must be N, or LEAST:MOST from 1 up, not 0"),
        ("--replicas two", r"--replicas: replicas must be N, or LEAST:MOST.*not two"),
        ("--config nothing", r"nothing"),
        ("--share", r"--share is not for replicas"),
        ("--port 0", r"--port 0: name the port"),
        ("--port 65536", r"port must be from 0 to 65535"),
        ("--host 192.0.2.77", r"cannot listen on 192.0.2.77, port 7860"),
    ],
)
def test_what_is_not_possible_is_one_line(options: str, error: str) -> None:
    run = run_python("serve_replicas.py", *options.split())
    assert run.returncode == 2
    assert re.search(error, run.stderr)
    assert run.stderr.count("\n") == 1


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = run_python("serve_replicas.py", "--port", port)
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: cannot listen on 127.0.0.1, port {port} (")
    assert run.stderr.count("\n") == 1
