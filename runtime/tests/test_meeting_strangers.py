"""The store listens on one address, and what strangers write there ends the wait in time."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from popdist.job import JobError, join
from popdist.member import Member
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


GOOD = {"host": "h", "machine": "m", "pid": 7, "started": "1"}
MALFORMED = [
    "", "{", "[]", "7", "null", "[" * 100_000, "{}", json.dumps({**GOOD, "more": 1}),
    json.dumps({**GOOD, "pid": "7"}), json.dumps({**GOOD, "pid": -1}),
    json.dumps({**GOOD, "host": None}), json.dumps({**GOOD, "pid": 10**400}), "\udcff",
]  # fmt: skip


@pytest.mark.parametrize("text", MALFORMED, ids=range(len(MALFORMED)))
def test_what_is_no_members_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no member's"):
        Member.told(text.encode(errors="surrogateescape"))


@pytest.mark.parametrize("text", ["[]", '{"host": 1}', '{"pid": {}}'])
def test_a_malformed_member_ends_the_wait_with_a_line(text: str, tmp_path: Path) -> None:
    port, errors = str(free_port()), tmp_path / "errors"
    job = started(2, come_or_stay, errors=str(errors), MASTER_PORT=port, POPDIST_WAIT="60")
    with job as processes:
        connected(int(port)).set("popdist/0/members/1", text)
        processes[0].join(180)
        assert processes[0].exitcode == 0
    last = errors.read_text().splitlines()[-1]
    assert "what stands for rank 1 is no member's" in last


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
