"""A pytest plugin: what each test did, as one line of JSON in a file, as soon as it is known.

Tests have a time limit; those named in `FOREIGN_DONE` are left out, so that a process can
go on where one before it died.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

REPORT = Path(os.environ["FOREIGN_REPORT"])
LIMIT = int(os.environ["FOREIGN_LIMIT"])
DONE = set(json.loads(os.environ.get("FOREIGN_DONE", "[]")))


class TookTooLong(BaseException):
    """A test ran for longer than the limit."""


def _write(**record: Any) -> None:
    with REPORT.open("a") as file:
        file.write(json.dumps(record) + "\n")


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    left_out = [item for item in items if item.nodeid in DONE]
    items[:] = [item for item in items if item.nodeid not in DONE]
    config.hook.pytest_deselected(items=left_out)


def pytest_collectreport(report: Any) -> None:
    if report.failed and report.nodeid not in DONE:
        _write(test=report.nodeid, outcome="failed", text=str(report.longrepr)[-6000:])
    elif report.skipped:
        _write(test=report.nodeid, outcome="skipped", text=_skip_reason(report))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: Any) -> Generator[None]:
    _write(test=item.nodeid, outcome="started")

    def stop(*_: Any) -> None:
        raise TookTooLong(f"took longer than {LIMIT} seconds")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Generator[None, Any]:
    report = (yield).get_result()
    if report.passed and report.when != "call":
        return
    record = {"test": item.nodeid, "outcome": report.outcome, "text": ""}
    if hasattr(report, "wasxfail"):
        record |= {"outcome": "xfailed" if report.skipped else "passed", "text": report.wasxfail}
    elif report.skipped:
        record["text"] = _skip_reason(report)
    elif report.failed:
        record |= _failure(call, report)
    _write(**record)


def _failure(call: Any, report: Any) -> dict[str, Any]:
    trace = [f"{entry.path}:{entry.lineno + 1} {entry.name}" for entry in call.excinfo.traceback]
    message = str(call.excinfo.value)
    if call.excinfo.typename == "CalledProcessError":  # the program that was started says why
        message += f"\n{report.capstdout}\n{report.capstderr}"
    return {
        "kind": call.excinfo.typename,
        "message": message[-3000:],
        "trace": trace,
        "text": report.longreprtext[-6000:],
    }


def _skip_reason(report: Any) -> str:
    longrepr = report.longrepr
    return str(longrepr[2] if isinstance(longrepr, tuple) else longrepr)[-500:]
