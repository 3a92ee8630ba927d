"""A slice of the fuzzer of checkpoints; the long run is `python benchmarks/fuzz_checkpoints.py`."""

from __future__ import annotations

import sys
from pathlib import Path

CASES, SECONDS = 20, 90


def test_random_checkpoints_give_the_logits_of_transformers_or_one_line():
    sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    from fuzz_checkpoints import fuzz

    findings = fuzz(range(CASES), SECONDS)
    assert findings.wrong == []
    assert sum(findings.outcomes.values()) == CASES
    assert findings.outcomes["whole used"] >= CASES // 4
    assert findings.outcomes["damaged refused"] >= CASES // 10
