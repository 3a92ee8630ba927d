"""Processes that wait for each other say for whom, and how long."""

from __future__ import annotations

import os
import sys
import threading

import pytest
from popdist.job import JobError, join
from popdist.siblings import ranks
from processes import started


def half_of_four_come() -> None:
    if int(os.environ["RANK"]) >= 2:
        threading.Event().wait()
    try:
        join()
    except JobError as error:
        if os.environ["RANK"] == "0":
            print(error, file=sys.stderr, flush=True)


def test_who_is_waited_for_is_said_before_and_at_the_end(tmp_path):
    errors = tmp_path / "errors"
    with started(4, half_of_four_come, errors=str(errors), POPDIST_WAIT="2") as processes:
        for process in processes[:2]:
            process.join(20)
            assert process.exitcode == 0
    waiting, ended = errors.read_text().splitlines()
    assert waiting.startswith("rank 0 waits for ranks 2 and 3 of 4 to come to 127.0.0.1:")
    assert waiting.endswith("for 2 s at most (POPDIST_WAIT)")
    assert "ranks 2 and 3 did not come within 2 s" in ended
    assert ended.endswith("set POPDIST_WAIT to more seconds")


def rank_0_stays_away() -> None:
    if os.environ["RANK"] == "0":
        threading.Event().wait()
    try:
        join()
    except JobError as error:
        print(error, file=sys.stderr, flush=True)


def test_rank_0_is_waited_for_as_others_are(tmp_path):
    errors = tmp_path / "errors"
    with started(2, rank_0_stays_away, errors=str(errors), POPDIST_WAIT="2") as processes:
        processes[1].join(20)
    waiting, ended = errors.read_text().splitlines()
    assert waiting.startswith("rank 1 waits for rank 0 of 2 to come to 127.0.0.1:")
    assert "rank 0 did not come within 2 s" in ended


@pytest.mark.parametrize("given", ["1", "soon", "inf"])
def test_a_wait_that_is_no_time_is_refused(given, monkeypatch):
    monkeypatch.setenv("POPDIST_WAIT", given)
    with pytest.raises(ValueError, match="POPDIST_WAIT must be seconds, 2 or more"):
        join()


def test_ranks_are_listed_as_people_do():
    assert [ranks(range(count)) for count in (1, 2, 3)] == [
        "rank 0",
        "ranks 0 and 1",
        "ranks 0, 1 and 2",
    ]
