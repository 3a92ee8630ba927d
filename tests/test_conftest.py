"""What every test may count on: a time limit, and Ctrl-C where whoever began the run ignores it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
INTERRUPTED = "tests/test_setup.py::test_an_interrupt_is_status_130_without_a_traceback"


def run_pytest(*words: str) -> subprocess.CompletedProcess[str]:
    """A run of its own, begun as a shell begins a background job: Ctrl-C is ignored."""
    return subprocess.run(
        ["/bin/sh", "-c", "trap '' INT; exec \"$@\"", "sh", sys.executable, "-m", "pytest", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


def test_a_test_without_a_limit_is_refused() -> None:
    done = run_pytest("--timeout", "0", INTERRUPTED)
    assert done.returncode == 4
    assert f"ERROR: {INTERRUPTED} has no time limit: " in done.stderr


def test_ctrl_c_reaches_what_tests_start_where_it_is_ignored() -> None:
    done = run_pytest(INTERRUPTED)
    assert done.returncode == 0, done.stdout
