"""lm-evaluation-harness gives the same figures through the server as by its own model."""

from __future__ import annotations

import json
import subprocess

import pytest
from commands import run_python


def test_figures_through_the_server_are_those_of_the_harness_itself() -> None:
    words = ["benchmarks/lm_eval_server.py", "--documents", "8", "--json"]
    done = run_python(*words, run=subprocess.run)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    served, own = (json.loads(done.stdout)[name] for name in ("server", "hf"))
    assert own["heldout_text"]["word_perplexity"] > 1 and served["heldout_words"].keys() == {
        "acc",
        "acc_norm",
    }
    for task, figures in own.items():
        assert served[task] == pytest.approx(figures, rel=1e-4)
