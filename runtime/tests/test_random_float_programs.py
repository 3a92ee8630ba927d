"""Random programs of what real ones are made of give what numpy gives, by every back end."""

from __future__ import annotations

import fuzz
import pytest
from fuzzing.check import RUNS, check, same_failure
from fuzzing.code import snippet
from fuzzing.generate import write
from fuzzing.shrink import shrunk
from processes import run_in_processes
from torch.nn import functional


@pytest.mark.parametrize("start", range(0, 500, 25))
def test_every_back_end_gives_what_numpy_gives(start):
    for seed in range(start, start + 25):
        failure = check(write(seed))
        if failure:
            small = shrunk(write(seed), same_failure(failure), seconds=20)
            pytest.fail(f"seed {seed}: {failure.kind}\n{failure.detail}\n{snippet(small, RUNS)}")


@pytest.mark.parametrize("start", [20, 30, 40])
def test_two_processes_give_what_numpy_gives(start):
    found = run_in_processes(2, fuzz.failures_across, range(start, start + 10), 2)
    assert found == [[], []]


def test_a_fault_is_found_and_its_program_made_small(monkeypatch):
    """A back end whose swish is off by a thousandth."""
    programs = sorted(map(write, range(100, 200)), key=lambda program: program.count())
    programs = [p for p in programs if p.count() > 10 and "swish" in _kinds(p)]
    right = functional.silu
    monkeypatch.setattr(functional, "silu", lambda x: right(x) * 1.001)
    program, failure = next((p, found) for p in programs if (found := check(p)))
    small = shrunk(program, same_failure(failure), seconds=60)
    assert "swish" in _kinds(small)
    assert small.count() <= 4
    assert "ops.swish(" in snippet(small, RUNS)


def _kinds(program) -> set[str]:
    return {step.kind for body in program.body.all() for step in body.steps}
