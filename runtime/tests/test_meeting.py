"""Processes that wait for each other say for whom; what strangers write ends the wait in time."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import popdist.job
import pytest
import warm_python
from popdist.job import join
from processes import free_port, started, store_on


def come_alone(rank: str) -> None:
    """One rank comes, and the others stay away."""
    if os.environ["RANK"] != rank:
        threading.Event().wait()
    join()


@pytest.mark.parametrize("comes, missing", [(0, "1, 2"), (1, "0, 2")])
def test_who_did_not_come_is_said(comes, missing, tmp_path):
    errors = tmp_path / "errors"
    job = started(3, come_alone, f"{comes}", errors=str(errors), POPDIST_WAIT="2")
    with job as processes:
        processes[comes].join(60)
        assert processes[comes].exitcode == 2
    (line,) = errors.read_text().splitlines()
    assert line.startswith(f"error: of 3 ranks, {missing} did not come within 2 s: ")
    assert "set POPDIST_WAIT to more" in line


def test_ranks_without_a_launcher_are_told_how_to_be_started(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(popdist.job, "_job", None)
    with pytest.raises(ValueError, match="need a launcher: start them by `python -m popdist.run`"):
        join()


@pytest.mark.parametrize("name", ["POPDIST_WAIT", "POPDIST_SILENCE", "POPDIST_TIMEOUT"])
@pytest.mark.parametrize("given", ["1", "soon", "inf", "2.5"])
def test_a_wait_that_is_no_time_is_refused(name, given, monkeypatch):
    monkeypatch.setenv(name, given)
    with pytest.raises(ValueError, match=f"{name} is .*, it must be a whole number, at least 2"):
        join()


# --- strangers ---


def listeners(port: int) -> set[str]:
    """Addresses, as the system writes them, that somebody listens on at a port."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, _, number = local.partition(":")
            if state == "0A" and int(number, 16) == port:
                found.add(address)
    return found


def test_on_one_host_the_store_listens_on_loopback_alone(tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text("print('here', flush=True); input()")
    words = ["-m", "popdist.run", "--nproc-per-node", "1", "--master-port", f"{free_port()}"]
    with warm_python.Popen(
        [sys.executable, *words, f"{tmp_path}/waits.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
    ) as launcher:
        try:
            assert launcher.stdout and launcher.stdout.readline() == "here\n"
            assert listeners(int(words[-1])) == {"0100007F"}
            launcher.communicate("\n", timeout=60)
        finally:
            launcher.kill()


@pytest.mark.parametrize(
    "words, message",
    [
        ("--master-port {taken}", "address already in use"),
        ("--master-port 99999", "must be an integer between 0 and 65536"),
        ("--master-port 9 --master-addr nowhere.invalid", "not known|resolution"),
        ("--nproc-per-node two", "value: two"),
        ("--nnodes 0", "min_nodes must be > 0"),
        ("--rdzv-conf timeout", "'timeout' must have a value"),
    ],
)
def test_a_launcher_says_in_one_line_what_is_not_possible(words, message):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        given = words.format(taken=taken.getsockname()[1]).split()
        done = warm_python.run(
            [sys.executable, "-m", "popdist.run", *given, os.devnull],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and re.search(f"^error: .*({message})", line)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "[1, 2, 3]", "[" * 100_000, '["", {}]', "[1e999, 1]"]
)
def test_an_end_that_no_rank_wrote_ends_the_wait(text: str, tmp_path: Path) -> None:
    store = store_on(port := free_port())
    store.set("popdist/0/watch/end", text)
    errors, given = tmp_path / "errors", {"MASTER_PORT": f"{port}", "POPDIST_WAIT": "60"}
    with started(2, come_alone, "0", errors=str(errors), **given) as processes:
        processes[0].join(180)
        assert processes[0].exitcode is not None
    (line,) = errors.read_text().splitlines()
    assert "the launcher of rank 0 holds a store to which another program writes" in line


@pytest.mark.parametrize("text", ["", "left", "\x1b]0;title\x07 1", "{" * 100_000])
def test_a_heartbeat_that_no_rank_wrote_ends_all_in_time(text: str, tmp_path: Path) -> None:
    """A stranger can be taken for a rank, and is then one that is silent."""
    store = store_on(port := free_port())
    store.set("popdist/0/watch/beat/1", text)
    errors = tmp_path / "errors"
    given = {"MASTER_PORT": f"{port}", "POPDIST_WAIT": "4", "POPDIST_SILENCE": "2"}
    with started(3, come_alone, "0", errors=str(errors), **given) as processes:
        processes[0].join(60)
        assert processes[0].exitcode is not None
    said = errors.read_text()
    assert "has not answered for 2 s" in said or "2 did not come within 4 s" in said
    assert "\x1b" not in said


def test_a_store_that_never_answers_ends_the_wait(tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        waits = {"POPDIST_WAIT": "3", "POPDIST_SILENCE": "2"}
        job = started(2, come_alone, "1", errors=str(errors), MASTER_PORT=port, **waits)
        with job as processes:
            processes[1].join(180)
            assert processes[1].exitcode == 1
    (line,) = errors.read_text().splitlines()
    assert line.startswith("error: the launcher of rank 0 has not answered for 2 s: ")


def test_a_store_that_is_gone_ends_the_wait(tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    job = started(2, come_alone, "1", errors=str(errors), MASTER_PORT=f"{free_port()}")
    with job as processes:
        processes[1].join(60)
        assert processes[1].exitcode == 1
    (line,) = errors.read_text().splitlines()
    assert line == "error: the launcher of rank 0 has ended, and with it the store"
