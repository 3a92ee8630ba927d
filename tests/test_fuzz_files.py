"""A slice of the fuzzer of files; the long run is `python tests/fuzz_files.py`."""

from __future__ import annotations

import fuzz_files

CASES, SEED, SECONDS = 240, 14, 120


def test_hostile_files_are_used_or_refused_by_one_line():
    report = fuzz_files.run(CASES, SEED, SECONDS)
    assert not report.findings
    assert sum(report.outcomes.values()) == CASES
    assert report.outcomes["refused"] > CASES // 3
    assert report.outcomes["used"] > CASES // 20
