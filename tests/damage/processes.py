"""Cases run in processes of their own, and what came of them all."""

from __future__ import annotations

import json
import os
import select
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from commands import start_python

LIMIT = 20
"""Seconds that a case may take; it is ended by its own process, or by this one twice as late."""


@dataclass
class Report:
    """What came of the cases.

    Attributes:
        outcomes: how many of each kind: used, refused, or what should not be.
        findings: what should not be, with the number of the case.
    """

    outcomes: Counter = field(default_factory=Counter)
    findings: list[dict[str, Any]] = field(default_factory=list)


def run(cases: int, seed: int, seconds: float, processes: int = 1, first: int = 0) -> Report:
    """Run cases in processes of their own; one that dies or hangs is replaced."""
    report, end = Report(), time.monotonic() + seconds
    numbers = list(range(first, first + cases))
    running = [_Worker(seed, numbers[i::processes]) for i in range(processes)]
    while running:
        for worker in list(running):
            if not worker.advance(report, end):
                running.remove(worker)
    return report


class _Worker:
    """A process that works through numbers of cases."""

    def __init__(self, seed: int, numbers: list[int]):
        self.seed, self.numbers = seed, numbers
        self.root = tempfile.mkdtemp(prefix="fuzz-files-")
        self._start()

    def _start(self) -> None:
        words = ["-m", "damage.cases", self.root, str(self.seed), *map(str, self.numbers)]
        self.process = start_python(*words, text=False)
        self.buffer, self.begun, self.since = b"", None, time.monotonic()

    def advance(self, report: Report, end: float) -> bool:
        """Take what it says; whether there is more to come."""
        if time.monotonic() > end:
            return self._stop()
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], 0.2)
        data = os.read(self.process.stdout.fileno(), 1 << 16) if ready else None
        if data:
            *lines, self.buffer = (self.buffer + data).split(b"\n")
            for line in lines:
                self._take(json.loads(line), report)
            self.since = time.monotonic()
        ended = data == b""
        slow = time.monotonic() - self.since > (2 * LIMIT if self.begun else 10 * LIMIT)
        if not (ended or slow):
            return True
        return self._replace(report, "hang" if slow else "crash")

    def _take(self, told: dict[str, Any], report: Report) -> None:
        if "begin" in told:
            self.begun = told
            return
        self.begun = None
        self.numbers.remove(told["number"])
        report.outcomes[told["outcome"]] += 1
        if told["outcome"] not in ("used", "refused"):
            report.findings.append(told)

    def _replace(self, report: Report, outcome: str) -> bool:
        self.process.kill()
        _, errors = self.process.communicate()
        if not self.numbers:
            return self._stop()
        number = self.begun["begin"] if self.begun else self.numbers[0]
        text = errors.decode(errors="replace")[-2000:]
        self._take({"number": number, "outcome": outcome, "text": text}, report)
        shutil.rmtree(self.root, ignore_errors=True)
        os.mkdir(self.root)
        self._start()
        return True

    def _stop(self) -> bool:
        self.process.kill()
        self.process.communicate()
        shutil.rmtree(self.root, ignore_errors=True)
        return False
