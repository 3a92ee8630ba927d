"""The store listens on one address, and what strangers write there ends the wait in time."""

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


def come_alone() -> None:
    try:
        join()
    except JobError as error:
        print(error, file=sys.stderr, flush=True)
    os._exit(0)


def stay() -> None:
    threading.Event().wait()


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


def come_or_stay() -> None:
    come_alone() if os.environ["RANK"] == "0" else stay()


def connected(port: int) -> dist.TCPStore:
    """To the store that rank 0 is about to hold."""
    limit = timedelta(seconds=120)
    return dist.TCPStore("127.0.0.1", port, 2, False, limit, wait_for_workers=False)


def test_on_one_host_the_store_listens_on_loopback_alone(tmp_path: Path) -> None:
    port = str(free_port())
    errors = tmp_path / "errors"
    with started(2, come_or_stay, errors=str(errors), MASTER_PORT=port, POPDIST_WAIT="60"):
        connected(int(port))
        assert listeners(int(port)) == {"0100007F"}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "[1, 2]", "[" * 100_000, '[7, "", {}, []]', "[7, 1e999, 1, 1]"]
)
def test_an_end_that_no_rank_wrote_ends_the_wait(text: str, tmp_path: Path) -> None:
    port, errors = str(free_port()), tmp_path / "errors"
    job = started(2, come_or_stay, errors=str(errors), MASTER_PORT=port, POPDIST_WAIT="60")
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
    with started(3, come_or_stay, errors=str(errors), **given) as processes:
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
        job = started(2, rank_1_comes, errors=str(errors), MASTER_PORT=port, **waits)
        with job as processes:
            processes[1].join(180)
            assert processes[1].exitcode == 0
    assert "did not meet" in errors.read_text().splitlines()[-1]


def rank_1_comes() -> None:
    come_alone() if os.environ["RANK"] == "1" else stay()
