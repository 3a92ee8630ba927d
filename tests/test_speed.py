"""The table of demands, from a real process on a small model."""

from __future__ import annotations

import importlib
import sys

import pytest
from commands import run_python

from config import REPOSITORY
from utils.setup import run_script

SMALL = ["--config", "bloom_tiny", "--layers", "1", "--sequence_length", "1100", "--repeats", "1"]
NUMBERS = slice(40, 68)  # where a line has its value, and what is needed and aimed at


def test_each_row_is_judged_by_its_own_value():
    done = run_python("benchmarks/speed.py", *SMALL, "--rows", "batch", "sharded", "context")
    assert done.returncode == 0, done.stderr
    _, *lines = done.stdout.splitlines()
    assert [line.split(",")[1].split()[0] for line in lines] == ["batch", "4", "context"]
    for line in lines:
        value, needed, aim = (float(n) for n in line[NUMBERS].replace(" x", "").split())
        verdict = "aim reached" if value >= aim else "enough" if value >= needed else "SHORT"
        # Values are shown rounded: one next to a bound may be judged either way.
        if min(abs(value - needed), abs(value - aim)) > 0.005:
            assert verdict in line


@pytest.mark.parametrize(
    "words, named",
    [
        (["--rows", "decode_16", "nosuch"], "rows must be of decode_16, decode_8"),
        (["--repeats", "0"], "repeats must be 1 or more, not 0"),
        (["--config", "bloom_none"], "unknown preset 'bloom_none'"),
        (["--heads", "7"], "heads"),
    ],
)
def test_impossible_arguments_are_one_line_before_anything_is_measured(
    words, named, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    script = importlib.import_module("speed")
    monkeypatch.setattr(sys, "argv", ["speed.py", *words])
    with pytest.raises(SystemExit) as ended:
        run_script(script.main)
    output, errors = capsys.readouterr()
    assert (ended.value.code, output) == (2, "")
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert named in errors


def test_every_benchmark_finds_what_it_imports():
    names = sorted(path.stem for path in (REPOSITORY / "benchmarks").glob("*.py"))
    code = "import importlib, sys; sys.path.insert(0, 'benchmarks')\n"
    done = run_python("-c", code + f"for name in {names}: importlib.import_module(name)")
    assert done.returncode == 0, done.stderr


def test_a_profile_accounts_for_the_whole_step():
    words = [*SMALL[:4], "--context", "8", "--steps", "1"]
    done = run_python("benchmarks/profile_step.py", *words)
    assert done.returncode == 0, done.stderr
    tables = [table.splitlines() for table in done.stdout.strip().split("\n\n")]
    assert [table[0][:34].strip() for table in tables] == ["op by op in torch", "native kernels"]
    for head, *parts, last in tables:
        whole, *each = (float(line[34:].split()[0]) for line in (head, *parts))
        assert sum(each) == pytest.approx(whole, abs=0.01 * len(each))
        assert last.startswith("without looking on")
    kinds = [line[:34].strip() for line in tables[1]]
    assert {"linear", "attention", "norm"} <= set(kinds)
    assert any("mm" in line for line in tables[0])
