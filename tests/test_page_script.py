"""The page's script in a process of its own: what it reaches and logs, refuses, and how it ends."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
import warm_python
from commands import environment, run_python, start_python
from gradio_client import Client
from serving import ScriptedPasses
from transformers import PreTrainedTokenizerFast

from config import ConfigError, parse_arguments
from run_inference_gradio import for_many, main
from utils.generation import LanguageModel
from utils.serving.arguments import ServerArguments
from utils.serving.listening import bind, url
from utils.setup import UserError


@contextmanager
def script(
    *arguments: str,
    start: type[subprocess.Popen] = warm_python.Popen,
    **more: str,
) -> Iterator[tuple[subprocess.Popen, str]]:
    """The script in a process of its own, which writes "a cat a cat ..." without an end.

    `more` is for its environment.
    """
    words = ["tests/run_scripted_page.py", "--port", "0", *arguments]
    process = start_python(*words, start=start, env=environment(**more))
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"the page is at (http://\S+)\n", line)
        assert found, line + process.communicate(timeout=60)[1]
        yield process, found[1]
    finally:
        process.kill()
        process.communicate()


def ended_in_mid_generation(process: subprocess.Popen, address: str, sig: int) -> tuple[int, str]:
    """Exit status and stderr of a process that gets a signal while it generates for a client."""
    one = Client(address, verbose=False)
    job = one.submit("my secret", num_tokens=1_000_000, api_name="/generate")
    first = next(iter(job))
    assert first["end_reason"] is None
    process.send_signal(sig)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def test_sigint_ends_it_and_nothing_left_the_computer_nor_is_a_prompt_in_the_log() -> None:
    with script(start=subprocess.Popen) as (process, address):  # imports reach nothing either
        assert httpx.get(f"{address}/health").json()["slots"] == 8
        httpx.get(address)
        status, errors = ended_in_mid_generation(process, address, signal.SIGINT)
    assert status == 0
    assert "Traceback" not in errors
    assert re.search(r"request 1: \d+ prompt tokens, \d+ generated, .* ended by shutdown", errors)
    assert "secret" not in errors
    reached = re.findall(r"^reaches (.*)$", errors, re.MULTILINE)
    assert reached  # its own address: the watch was kept
    assert {host for host in reached if host not in ("127.0.0.1", "localhost")} == set()


def test_sigterm_ends_it_and_a_public_host_was_warned_about_and_prompts_logged_as_asked() -> None:
    with script("--host", "0.0.0.0", "--log_prompts") as (process, address):
        status, errors = ended_in_mid_generation(process, address, signal.SIGTERM)
    assert status == 0
    assert "Traceback" not in errors
    assert "anyone who reaches this page can use it: set --auth or BLOOM_AUTH" in errors
    assert re.search("ended by shutdown, prompt 'my secret'$", errors, re.MULTILINE)


def test_a_signal_ends_it_in_the_middle_of_a_pass_that_takes_long() -> None:
    with script(STUCK="") as (process, address):
        status, errors = ended_in_mid_generation(process, address, signal.SIGTERM)
    assert status == 0
    assert "Traceback" not in errors
    assert re.search("request 1: .* 1 generated, .* ended by shutdown", errors)


def test_a_port_that_is_taken_is_one_line_and_status_2() -> None:
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        port = str(httpx.URL(url(listener)).port)
        done = run_python("run_inference_gradio.py", "--port", port)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: cannot listen on 127.0.0.1, port {port} (Address already in use): "
        "choose others with --host and --port\n"
    )


@pytest.mark.parametrize(
    ("arguments", "account", "error"),
    [
        ("--auth=user", None, "--auth and BLOOM_AUTH must be user:password"),
        ("--auth=user:", None, "--auth and BLOOM_AUTH must be user:password"),
        ("", ":password", "--auth and BLOOM_AUTH must be user:password"),
        ("--port=99999", None, "port must be from 0 to 65535, not 99999"),
        ("--hidden_size=7", None, "hidden_size must .*"),
        ("--max_queue=-1", None, "max_queue must be 0 or more, not -1"),
        ("--max_tokens=-1", None, "max_tokens must be 1 or more, not -1"),
        ("--time_limit=0", None, "time_limit must be over 0 seconds, not 0.0"),
    ],
)
def test_arguments_that_are_not_possible_are_refused(
    arguments: str,
    account: str | None,
    error: str,
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    if account:
        monkeypatch.setenv("BLOOM_AUTH", account)
    loaded = LanguageModel(ScriptedPasses(tokenizer, "a cat "), tokenizer)
    with pytest.raises((UserError, ConfigError), match=error):
        main(["--port=0", *arguments.split()], load=lambda config: loaded)


def test_an_account_comes_from_the_command_line_or_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert ServerArguments().account() is None
    monkeypatch.setenv("BLOOM_AUTH", "user:pass:word")
    assert ServerArguments().account() == ("user", "pass:word")
    assert ServerArguments(auth="other:one").account() == ("other", "one")


@pytest.mark.parametrize(
    ("arguments", "rows", "chunks", "log_level"),
    [
        ("", 8, (16, 128), "info"),
        ("--batch_size 1 --log-level warning --prompt_chunks 16 128 512", 1, None, "warning"),
        ("--batch-size=3 --log_level=error", 3, (16, 128), "error"),
    ],
)
def test_defaults_are_for_many_unless_asked_otherwise(
    arguments: str, rows: int, chunks: tuple[int, ...] | None, log_level: str
) -> None:
    config, _ = parse_arguments(arguments.split())
    execution = for_many(config, arguments.split()).execution
    assert (execution.batch_size, execution.log_level) == (rows, log_level)
    assert execution.prompt_chunks == (chunks or (16, 128, 512))
