"""Ranks end with a status of their own, whatever their threads are doing at that moment.

A thread that comes back from torch while the interpreter ends aborts the process: "terminate called
without an active exception".
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import warm_python
from processes import free_port, told

LIMIT = 100
"""Seconds for what takes three on a quiet machine."""

STORE = """
import sys, threading
from datetime import timedelta
from popdist.run import store_at
store = store_at("127.0.0.1", int(sys.argv[1]), 1, True, timedelta(seconds=9))
print("listens", flush=True)
threading.Event().wait()
"""

RANK = """
import sys, threading, time
import popxl
from popxl import ops

class SlowEnd:
    def __del__(self):  # runs while the interpreter ends
        time.sleep(2)

ir = popxl.Ir(replication="popdist")
with ir.main_graph:
    one = popxl.variable([1.0])
    ops.var_updates.copy_var_update_(one, ops.collectives.replicated_all_reduce(one))
slow, how = SlowEnd(), sys.argv[1]
with popxl.Session(ir, "ipu_hw") as session:
    session.run()
    print("ran", flush=True)
    sys.stdin.readline()
    if how == "waits":
        session.run()
    if how == "leaves a thread":
        threading.Thread(target=session.run, daemon=True).start()
        time.sleep(0.5)
if how.isdigit():
    sys.exit(int(how))
raise RuntimeError("of this rank")
"""


@pytest.mark.timeout(240)
def test_each_has_its_own_status_where_the_store_is_slow_to_answer(tmp_path: Path):
    hows = ["0", "3", "leaves a thread"]
    port = free_port()
    with ranks(["-c", STORE, f"{port}"], tmp_path, 1) as (store,):
        assert store.stdout and store.stdout.readline() == "listens\n"
        with ranks(["-c", RANK], tmp_path, len(hows), hows, MASTER_PORT=f"{port}") as started:
            ready(started)
            store.send_signal(signal.SIGSTOP)
            begin_to_end(started)
            with pytest.raises(subprocess.TimeoutExpired):  # none ends unheard
                started[0].wait(2)
            store.send_signal(signal.SIGCONT)
            assert [process.wait(LIMIT) for process in started] == [0, 3, 1]
    texts = [(tmp_path / f"errors{rank}").read_text() for rank in range(len(hows))]
    assert not [text for text in texts if "terminate called" in text]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("hows", [("raises", "waits"), ("waits", "raises")])
def test_no_rank_waits_for_one_that_an_exception_ended(hows: tuple[str, str], tmp_path: Path):
    quick = {"POPDIST_SILENCE": "2"}
    with ranks(["-c", RANK], tmp_path, 2, hows, **quick) as started:
        ready(started)
        begin_to_end(started)
        assert [process.wait(LIMIT) for process in started] == [1, 1]
    waiting = hows.index("waits")
    (line,) = (tmp_path / f"errors{waiting}").read_text().splitlines()[-1:]
    assert line.startswith(f"error: rank {waiting} waited in vain for another: ")


@contextmanager
def ranks(
    command: list[str],
    folder: Path,
    count: int,
    hows: list[str] | tuple[str, ...] = ("",),
    **environment: str,
) -> Iterator[list[subprocess.Popen]]:
    """`python command how` for each of `count` ranks; they are killed at the end."""
    started = []
    common = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with told(count) as of_ranks:
        try:
            for rank, own in enumerate(of_ranks):
                with open(folder / f"errors{rank}", "w") as errors:
                    process = warm_python.Popen(
                        [sys.executable, *command, hows[rank]],
                        env=common | own | environment,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=errors,
                        text=True,
                    )
                started.append(process)
            yield started
        finally:
            for process in started:
                process.kill()
                process.communicate()


def ready(started: list[subprocess.Popen]) -> None:
    for process in started:
        assert process.stdout.readline() == "ran\n"


def begin_to_end(started: list[subprocess.Popen]) -> None:
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
