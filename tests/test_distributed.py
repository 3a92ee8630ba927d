"""The program in several processes: same text as in one, and all end when one does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import environment, run_python, start_python
from jobs import children, leading, runs, scripts
from memmap_checkpoints import Small, contents
from processes import free_port

from config import REPOSITORY, BloomConfig, ConfigError, load_config, parse_arguments
from utils.generation import LanguageModel, load, stream_generate
from utils.generation.sampling import SamplingConfig
from utils.planning import traffic

PAGE, ENTRY = os.sysconf("SC_PAGE_SIZE"), np.dtype(np.uint64)
"""Of memory, and what the system says of a page in a process's page table."""

SILENCE = 4
"""Seconds after which a rank that does not answer is lost, in these tests."""


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Small:
    """A checkpoint with random weights, of two layers."""
    return Small.save(tmp_path_factory.mktemp("job") / "bloom", layers=2, shard="1GB")


def of(small: Small, tp: int) -> BloomConfig:
    """Its settings for tp x tp shards, two rows and look-up."""
    return parse_arguments(words_of(small, tp))[0]


def words_of(small: Small, tp: int) -> list[str]:
    words = [*small.words(Path(), tp, tp)[:-2], "--batch_size", "2", "--lookup_tokens", "3"]
    assert "--memmap_dir" not in words
    return words


def answers(loaded: LanguageModel) -> tuple[list[np.ndarray], list[int], list[int]]:
    """Logits of two rows, greedy ids, and ids drawn with a seed."""
    prompt = list(range(5, 12))
    logits = [loaded.passes.prefill(row, prompt[row:]) for row in range(2)]
    logits.append(loaded.passes.decode(np.array([3, 4]), np.array([7, 6])))
    texts = []
    for sampling in (SamplingConfig(), SamplingConfig(temperature=0.9, seed=7)):
        steps = stream_generate(loaded, "A dog", sampling, num_tokens=8)
        texts.append([step.token for step in steps])
    return logits, texts[0], texts[1]


def answers_and_traffic(loaded: LanguageModel) -> tuple[Any, dict, dict]:
    """Also calls and bytes of each part of what passes exchange, as counted and as predicted."""
    theirs = answers(loaded)
    counted, predicted = (
        {name: [(part.calls, part.bytes) for part in passed.parts] for name, passed in each.items()}
        for each in (
            traffic.counted(loaded.passes),
            traffic.predicted(loaded.passes.config, loaded.passes.session),
        )
    )
    return theirs, counted, predicted


@pytest.mark.parametrize(
    "count, tp, senders, rows", [(2, 2, 1, 1), (4, 2, 1, 1), (2, 4, 1, 2), (4, 4, 3, 3)]
)
def test_text_and_logits_are_those_of_one_process(small, count, tp, senders, rows):
    config = of(small, tp)
    logits, greedy, drawn = answers(load(config))
    with leading(count, config, answers_and_traffic) as ((theirs, counted, predicted), _):
        assert theirs[1:] == (greedy, drawn)
        for ours, other in zip(logits, theirs[0], strict=True):
            np.testing.assert_allclose(other, ours, atol=1e-5)
    assert counted == predicted
    collectives, inputs, received = counted["decode"]
    assert collectives[0] and collectives[1] and inputs[0] == 1
    of_a_row = 4 * config.padded_vocab_size // tp
    assert received == (senders, rows * of_a_row * config.execution.batch_size)
    assert counted["prefill_16"][2] == (senders, rows * of_a_row)  # of the one row that counts


def idle_then_answer(loaded: LanguageModel) -> int:
    time.sleep(1.5 * SILENCE)
    return len(answers(loaded)[1])


def test_a_prompt_may_be_waited_for_longer_than_a_rank_may_be_silent(small):
    silence = {"POPDIST_SILENCE": str(SILENCE)}
    with leading(2, of(small, 2), idle_then_answer, **silence) as (tokens, _):
        assert tokens == 8


def mapped(pid: int, folder: Path) -> set[tuple[str, int]]:
    """Files of a folder, and which of their pages a process has in its page tables."""
    pages = set()
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, _, offset, _, _, *name = line.split()
        if not name or Path(name[0]).parent != folder:
            continue
        first, last = (int(address, 16) // PAGE for address in span.split("-"))
        with open(f"/proc/{pid}/pagemap", "rb") as table:
            table.seek(first * ENTRY.itemsize)
            entries = np.frombuffer(table.read((last - first) * ENTRY.itemsize), ENTRY)
        present = np.flatnonzero(entries >> np.uint64(63)) + int(offset, 16) // PAGE
        pages.update((name[0], int(page)) for page in present)
    return pages


def test_each_process_reads_its_own_shards_of_the_maps(tmp_path):
    small = Small.save(tmp_path / "bloom", layers=2, heads=4, head_dim=128, shard="1GB")
    maps = small.generate(tmp_path / "maps", tp1=2, tp2=2)
    weights = sum(path.stat().st_size for path in maps.glob("*.safetensors")) / PAGE
    config = small.config(maps, 2, 2)
    with leading(2, config, whole_prompt) as (_, processes):
        first, second = (mapped(process.pid, maps) for process in processes)
    assert len(first | second) > 0.98 * weights
    # Norms, and where a page or those that the system maps with it have shards of both.
    assert len(first & second) < 0.1 * weights
    assert 0.4 * weights < len(first) < 0.6 * weights


def whole_prompt(loaded: LanguageModel) -> None:
    loaded.passes.prefill(0, list(range(16)))


# --- endings ---

LONG = ("--num_tokens", "900", "--prompt", "A dog is", "--tensor_parallel_1", "2")
LONG += ("--prompt_chunks", "16")


def wait_for_text(leader: subprocess.Popen) -> None:
    """Until it generates."""
    assert leader.stdout is not None
    assert leader.stdout.read(1)


def ended(ranks: list[subprocess.Popen], seconds: float) -> tuple[list[int], list[str]]:
    """Exit statuses and what was said, once all have ended within this time."""
    until = time.monotonic() + seconds
    said = [rank.communicate(timeout=max(until - time.monotonic(), 0.1))[1] for rank in ranks]
    return [rank.returncode for rank in ranks], said


def lines(said: list[str]) -> list[str]:
    return [line for text in said for line in text.splitlines()]


def errors(said: list[str]) -> list[str]:
    return [line for line in lines(said) if line.startswith("error")]


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
def test_a_rank_that_is_lost_ends_all_with_one_line(lost, how):
    with scripts(2, *LONG, POPDIST_SILENCE=str(SILENCE)) as ranks:
        wait_for_text(ranks[0])
        ranks[lost].send_signal(getattr(signal, how))
        (status,), (said,) = ended([ranks[1 - lost]], SILENCE + 40)
        ranks[lost].send_signal(signal.SIGCONT)  # a stopped one ends when it goes on
        ranks[lost].wait(SILENCE + 40)
    assert status == 1
    (line,) = lines([said])
    name = f"rank {lost} (process {ranks[lost].pid} on {socket.gethostname()})"
    assert line.startswith(f"error: {name} has not answered for {SILENCE} s: it has died or is")


@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_is_killed_before_it_has_come_is_waited_for_and_named(lost):
    with scripts(2, *LONG, POPDIST_WAIT="8") as ranks:
        ranks[lost].kill()
        (status,), (said,) = ended([ranks[1 - lost]], 90)
    assert status == 2
    (line,) = lines([said])
    assert line.startswith(f"error: of 2 ranks, {lost} did not come within 8 s")


def test_a_front_end_that_is_interrupted_ends_all():
    with scripts(2, *LONG) as ranks:
        wait_for_text(ranks[0])
        ranks[0].send_signal(signal.SIGINT)
        statuses, said = ended(ranks, 20)
    assert statuses == [130, 130]
    assert lines(said) == []


def test_an_error_of_all_ranks_is_told_once(tmp_path):
    with scripts(2, *LONG, "--hf_model", str(tmp_path)) as ranks:
        statuses, said = ended(ranks, 90)
    assert statuses == [2, 2]
    (line,) = lines(said)
    assert "config.json" in line


def test_a_fault_of_one_rank_ends_all():
    with scripts(2, *LONG, last={"POPXL_MAPPED_MEMORY": "plenty"}) as ranks:
        statuses, said = ended(ranks, 90)
    assert statuses == [1, 1]
    (line,) = errors(said)  # after the trace
    assert line.startswith("error: rank 1: ended by ValueError: POPXL_MAPPED_MEMORY must be")


def test_processes_that_cannot_share_the_replicas_are_told_what_can(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="4 replicas cannot be .* by 3 processes: start 1, 2, 4"):
        load(load_config("bloom_tiny", {"tensor_parallel_1": 4}))


# --- launchers ---


def torchrun(*words: str) -> list[str]:
    return ["-m", "torch.distributed.run", *words]


def script(name: str, tp: int, *words: str) -> list[str]:
    shards = ["--tensor_parallel_1", str(tp), "--tensor_parallel_2", str(tp)]
    return [name, *shards, *words]


def test_the_benchmark_counts_what_the_plan_predicts(monkeypatch):
    size = "--layers 3 --prompt_tokens 4 --new_tokens 3 --repeats 1 --prompt_chunks 4"
    words = script("inference.py", 2, "--json", "--lookup_tokens", "3", *size.split())
    measured = json.loads(output_of(*torchrun("--nproc-per-node", "2", *words)))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    planned = json.loads(output_of(*words, "--dry_run"))
    passes = measured["results"][0]["between_processes"]
    assert set(passes) == {"decode", "prefill_4", "verify_4"}
    for exchanged in passes.values():
        for part in exchanged.values():
            assert part["calls"] and part["bytes"] and part["seconds"] > 0
            part["seconds"] = 0.0
    assert passes == planned["between_processes"]


def output_of(*words: str) -> str:
    done = run_python(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def launcher(*words: str, **more: str) -> Iterator[tuple[subprocess.Popen, list[int]]]:
    """A launcher of two ranks, and the ranks' numbers. None of them is left at the end."""
    command = ["-m", "popdist.run", "--nproc-per-node", "2", "--master-port", free_port()]
    process = start_python(*command, "run_inference.py", *words, env=environment(**more))
    numbers: list[int] = []
    try:
        while len(numbers) < 2 or any(map(starts, numbers)):
            assert process.poll() is None
            numbers = children(process.pid)
        yield process, numbers
    finally:
        process.kill()
        for number in filter(runs, numbers):
            os.kill(number, signal.SIGKILL)
        process.communicate()


def starts(number: int) -> bool:
    """Whether a process is not yet the program that its parent has it become."""
    return b"run_inference.py" not in Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")


def connected(number: int) -> bool:
    """Whether a rank has connected to its launcher's store for each of its uses."""
    with suppress(FileNotFoundError):  # one that is closed meanwhile
        ends = map(os.readlink, Path(f"/proc/{number}/fd").iterdir())
        return sum(end.startswith("socket:") for end in ends) > 2
    return False


def none_left(numbers: list[int], seconds: float) -> bool:
    """Whether such processes have all ended within this time."""
    until = time.monotonic() + seconds
    while (left := any(map(runs, numbers))) and time.monotonic() < until:
        time.sleep(0.05)
    return not left


@pytest.mark.parametrize(
    "lost, met, name", [(0, True, "SIGKILL"), (1, False, "SIGKILL"), (1, True, "SIGTERM")]
)
def test_a_launchers_rank_that_is_killed_is_named_in_one_line(lost, met, name):
    with launcher(*LONG) as (process, numbers):
        if met:
            wait_for_text(process)
        os.kill(numbers[lost], getattr(signal, name))
        (status,), said = ended([process], 60)
        assert none_left(numbers, 0)
    assert status == 1
    assert lines(said) == [f"error: rank {lost} (process {numbers[lost]}) was ended by {name}"]


@pytest.mark.parametrize("lost", [0])  # what is said of either is seen in the test above
def test_a_launchers_rank_that_is_stopped_ends_the_others_and_is_killed(lost):
    with launcher(*LONG, POPDIST_SILENCE=str(SILENCE)) as (process, numbers):
        wait_for_text(process)
        os.kill(numbers[lost], signal.SIGSTOP)
        assert none_left([numbers[1 - lost]], SILENCE + 40)
        (status,), said = ended([process], 45)  # torchrun kills it 30 s after the first has ended
        assert none_left(numbers, 0)
    assert status == 1
    (line,) = lines(said)
    assert line.startswith(f"error: rank {lost} (process {numbers[lost]} on ")
    assert f"has not answered for {SILENCE} s" in line


@pytest.mark.parametrize("number, status", [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_launcher_that_is_told_to_end_ends_all_and_says_nothing(number, status):
    with launcher(*LONG) as (process, numbers):
        wait_for_text(process)
        process.send_signal(getattr(signal, number))
        (got,), said = ended([process], 20)
        assert none_left(numbers, 0)
    assert got == status
    assert lines(said) == []


def test_ranks_end_with_one_line_where_their_launcher_is_killed():
    with launcher(*LONG) as (process, numbers):
        wait_for_text(process)
        process.kill()
        # They have its standard error, too: it is closed by the last of them, as it ends.
        (status,), said = ended([process], 60)
        assert none_left(numbers, 20)
    assert status == -signal.SIGKILL
    (line,) = lines(said)
    assert line == "error: the launcher of rank 0 has ended, and with it the store"


def test_ranks_that_wait_for_another_end_where_their_launcher_is_killed():
    with launcher(*LONG, POPDIST_WAIT="60") as (process, numbers):
        os.kill(numbers[1], signal.SIGSTOP)
        while not connected(numbers[0]):
            time.sleep(0.05)
        process.kill()
        assert none_left(numbers[:1], 30)
        os.kill(numbers[1], signal.SIGKILL)
        (line,) = lines(ended([process], 10)[1])
    assert line.startswith("error: the launcher of rank 0 has ")


def test_the_processes_of_a_launcher_share_the_making_of_maps(tmp_path):
    small = Small.save(tmp_path / "bloom")
    alone = small.generate(tmp_path / "alone", tp1=2, tp2=2)
    words = ["generate_memmap.py", *small.words(tmp_path / "maps", 2, 2)]
    said = output_of(*torchrun("--nproc-per-node", "3", *words))
    first, last = said.splitlines()
    assert f"{len(contents(alone)) - 1} files written" in first  # all but the manifest
    assert last.startswith("complete: ")
    assert contents(tmp_path / "maps") == contents(alone)


def namespaces() -> str | None:
    """Why network namespaces cannot be made here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        done = subprocess.run(["ip", "netns", "add", "bloom-probe"], capture_output=True, text=True)
    except FileNotFoundError:
        return "network namespaces need `ip` (Debian's iproute2)"
    if done.returncode:
        return f"ip netns: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", "bloom-probe"], check=True)
    return None


@pytest.fixture
def two_hosts():
    """Two network namespaces with a link between them: their names and addresses."""
    if reason := namespaces():
        pytest.skip(reason)
    names = [f"bloom-{os.getpid()}-{number}" for number in range(2)]
    links = [f"bl{os.getpid()}{letter}" for letter in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", links[0], "type", "veth", "peer", "name", links[1])
        for number, (name, link) in enumerate(zip(names, links, strict=True)):
            ip("link", "set", link, "netns", name)
            ip("-n", name, "address", "add", f"10.77.0.{number + 1}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names, ["10.77.0.1", "10.77.0.2"]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def on_both(two_hosts, *words: str, **more: str) -> list[subprocess.Popen]:
    """The script on two hosts, under a launcher on each."""
    names, addresses = two_hosts
    return [
        subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-m", "popdist.run"]
            + ["--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(number)]
            + ["--master-addr", addresses[0], "--master-port", "29500"]
            + [str(REPOSITORY / "run_inference.py"), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=environment(**more),
        )
        for number, name in enumerate(names)
    ]


def killed(launchers: list[subprocess.Popen]) -> None:
    for process in launchers:
        process.kill()
        process.communicate()


def test_two_hosts_give_the_text_of_one_process(two_hosts, small):
    words = [*words_of(small, 2), "--prompt", "A dog", "--num_tokens", "8", "--json"]
    launchers = on_both(two_hosts, *words)
    try:
        outputs = [process.communicate(timeout=60) for process in launchers]
    finally:
        killed(launchers)
    assert [process.returncode for process in launchers] == [0, 0], outputs
    assert json.loads(outputs[0][0])["ids"] == answers(load(of(small, 2)))[1]
    assert outputs[1][0] == ""


def test_each_of_two_hosts_says_once_that_the_network_is_gone(two_hosts):
    launchers = on_both(two_hosts, *LONG, POPDIST_SILENCE=str(SILENCE))
    try:
        wait_for_text(launchers[0])
        ip("-n", two_hosts[0][1], "link", "set", f"bl{os.getpid()}b", "down")
        statuses, said = ended(launchers, 60)
    finally:
        killed(launchers)
    assert statuses == [1, 1]
    first, second = (lines([text]) for text in said)
    assert len(first) == len(second) == 1
    assert first[0].startswith("error: rank 1 (process ")
    assert second[0].startswith("error: the launcher of rank 0 has not answered")
    assert all("or the network is down" in line for line in (*first, *second))
