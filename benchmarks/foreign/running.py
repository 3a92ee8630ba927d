"""Runs one group's tests in processes that are watched, and collects what each test did."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

GRACE = 30
"""Seconds after which a process that ignores its own time limit is killed."""
STARTS = 60
"""Seconds that a process may import and collect for, beyond a test's limit."""


@dataclass
class Result:
    """What a test did: passed, failed, skipped or xfailed; `text` ends with its last lines."""

    test: str
    outcome: str
    text: str = ""
    kind: str = ""
    message: str = ""
    trace: list[str] = field(default_factory=list)
    reason: str = ""

    @property
    def last_line(self) -> str:
        """The error in one line."""
        lines = [line.strip() for line in (self.message or self.text).splitlines() if line.strip()]
        if not lines:
            return self.kind
        started = any(line.startswith("Traceback") for line in lines)
        line = lines[0] if self.message and not started else lines[-1]
        return f"{self.kind}: {line}" if self.kind else line


def run_pytest(
    command: Sequence[str], folder: Path, environment: dict[str, str], limit: int
) -> list[Result]:
    """Run `command`, a pytest, until each of its tests has a result.

    A process that dies or hangs costs one test: the next process goes on after that.
    """
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.jsonl"
        report.touch()
        results: dict[str, Result] = {}
        while True:
            settings = environment | {
                "FOREIGN_REPORT": str(report),
                "FOREIGN_LIMIT": str(limit),
                "FOREIGN_DONE": json.dumps(list(results)),
            }
            output, reason = _watch(command, folder, settings, report, limit)
            finished, started = _read(report)
            results |= finished
            if started is None:
                break
            results[started] = Result(started, "failed", output[-3000:], "Crash", reason)
            report.write_text("")
        if not results:
            results["(start)"] = Result("(start)", "failed", output[-3000:])
        return list(results.values())


def _watch(
    command: Sequence[str], folder: Path, environment: dict[str, str], report: Path, limit: int
) -> tuple[str, str]:
    """Wait for the process; it is killed when nothing is reported for too long.

    Returns its output and, if it did not end by itself, why.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        reason = ""
        while process.poll() is None:
            time.sleep(0.2)
            if time.time() - os.stat(report).st_mtime > limit + GRACE + STARTS:
                os.killpg(process.pid, signal.SIGKILL)
                reason = f"took longer than {limit} seconds"
        process.wait()
        if not reason and process.returncode < 0:
            reason = f"the process died of signal {-process.returncode}"
        output.seek(0)
        return output.read(), reason or f"the process ended with status {process.returncode}"


def _read(report: Path) -> tuple[dict[str, Result], str | None]:
    """The results in a report, and the test that was started last and has none."""
    results: dict[str, Result] = {}
    started = None
    for record in _records(report):
        if record["outcome"] == "started":
            started = record["test"]
            continue
        if record["test"] == started:
            started = None
        known = results.get(record["test"])
        if known is None or known.outcome != "failed":
            results[record["test"]] = Result(**record)
    return results, started


def _records(report: Path) -> Iterator[dict]:
    for line in report.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # the process died while it wrote
            return
