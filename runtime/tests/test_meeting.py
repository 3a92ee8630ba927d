"""Processes that wait for each other say for whom; what strangers write ends the wait in time."""

from __future__ import annotations

import os
import socket
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from popdist.job import JobError, join
from processes import free_port, started


def come_alone(rank: str) -> None:
    """One rank comes, and the others stay away."""
    if os.environ["RANK"] != rank:
        threading.Event().wait()
    try:
        join()
    except JobError as error:
        print(error, file=sys.stderr, flush=True)
    os._exit(0)


@pytest.mark.parametrize(
    "comes, missing",
    [(0, "ranks 1, 2"), (1, "rank 0")],  # rank 0 holds the store
)
def test_who_is_waited_for_is_said_before_and_at_the_end(comes, missing, tmp_path):
    errors = tmp_path / "errors"
    job = started(3, come_alone, f"{comes}", errors=str(errors), POPDIST_WAIT="2")
    with job as processes:
        processes[comes].join(20)
    waiting, ended = errors.read_text().splitlines()
    assert waiting.startswith(f"rank {comes} waits for {missing} of 3 at 127.0.0.1:")
    assert waiting.endswith("for 2 s at most (POPDIST_WAIT)")
    assert f"{missing} did not come within 2 s" in ended
    assert "or set POPDIST_WAIT to more seconds" in ended


@pytest.mark.parametrize("name", ["POPDIST_WAIT", "POPDIST_SILENCE", "POPDIST_TIMEOUT"])
@pytest.mark.parametrize("given", ["1", "soon", "inf", "nan"])
def test_a_wait_that_is_no_time_is_refused(name, given, monkeypatch):
    monkeypatch.setenv(name, given)
    with pytest.raises(ValueError, match=f"{name} must be seconds, 2 or more"):
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


def connected(port: int) -> dist.TCPStore:
    """To the store that rank 0 is about to hold."""
    limit = timedelta(seconds=120)
    return dist.TCPStore("127.0.0.1", port, 2, False, limit, wait_for_workers=False)


def test_on_one_host_the_store_listens_on_loopback_alone(tmp_path: Path) -> None:
    port = str(free_port())
    errors = tmp_path / "errors"
    with started(2, come_alone, "0", errors=str(errors), MASTER_PORT=port, POPDIST_WAIT="60"):
        connected(int(port))
        assert listeners(int(port)) == {"0100007F"}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "[1, 2]", "[" * 100_000, '[7, "", {}, []]', "[7, 1e999, 1, 1]"]
)
def test_an_end_that_no_rank_wrote_ends_the_wait(text: str, tmp_path: Path) -> None:
    port, errors = str(free_port()), tmp_path / "errors"
    job = started(2, come_alone, "0", errors=str(errors), MASTER_PORT=port, POPDIST_WAIT="60")
    with job as processes:
        connected(int(port)).set("popdist/0/watch/end", text)
        processes[0].join(180)
        assert processes[0].exitcode is not None
    last = errors.read_text().splitlines()[-1]
    assert "rank 0 holds a store to which another program writes" in last


@pytest.mark.parametrize("text", ["", "left", "\x1b]0;title\x07 1", "{" * 100_000])
def test_a_heartbeat_that_no_rank_wrote_ends_all_in_time(text: str, tmp_path: Path) -> None:
    """A stranger can be taken for a rank, and is then one that is silent."""
    port, errors = str(free_port()), tmp_path / "errors"
    given = {"MASTER_PORT": port, "POPDIST_WAIT": "4", "POPDIST_SILENCE": "2"}
    with started(3, come_alone, "0", errors=str(errors), **given) as processes:
        connected(int(port)).set("popdist/0/watch/beat/1", text)
        processes[0].join(60)
        assert processes[0].exitcode is not None
    said = errors.read_text()
    assert "has not answered for 2 s" in said or "rank 2 did not come within 4 s" in said
    assert "\x1b" not in said


def test_a_store_that_never_answers_ends_the_wait(tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        waits = {"POPDIST_WAIT": "3", "POPDIST_SILENCE": "2"}
        job = started(2, come_alone, "1", errors=str(errors), MASTER_PORT=port, **waits)
        with job as processes:
            processes[1].join(180)
            assert processes[1].exitcode == 0
    assert "did not meet" in errors.read_text().splitlines()[-1]
