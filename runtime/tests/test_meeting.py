"""Processes that wait for each other say for whom, and how long."""

from __future__ import annotations

import os
import sys
import threading

import pytest
from popdist.job import JobError, join
from processes import started


def come_alone(rank: str) -> None:
    if os.environ["RANK"] != rank:
        threading.Event().wait()
    try:
        join()
    except JobError as error:
        print(error, file=sys.stderr, flush=True)


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
