"""The measurement of a GPU, as far as it goes without one."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import warm_python

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "cuda.py"


@pytest.fixture(scope="module")
def cuda():
    spec = importlib.util.spec_from_file_location("cuda_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def result(rows: int, tokens_per_second: float, step_bytes: int = 10**9) -> dict:
    return {
        "batch_size": rows,
        "decode_tokens_per_second": {"median": tokens_per_second},
        "step_bytes": step_bytes,
        "prompt_tokens": 512,
        "prompt_share": 0.5,
        "prompt_tokens_per_second": {"median": 1000.0},
        "matmul_rate": {"median": 6e14},
        "decode_share": 0.75,
        "read_bandwidth": {"median": 1.2e11},
    }


@pytest.fixture
def rows_of(cuda, monkeypatch, capsys):
    """What `main` prints for cases, where copies reach 100 GB/s and processes give this."""

    def rows(given: dict[int, subprocess.CompletedProcess], device: str = "cpu") -> list[str]:
        processes = iter(given.values())
        arguments = ["--device", device, "--cases", *map(str, given)]
        monkeypatch.setattr(sys, "argv", ["cuda.py", *arguments])
        monkeypatch.setattr(cuda.subprocess, "run", lambda *args, **kwargs: next(processes))
        monkeypatch.setattr(cuda, "copy_bandwidth", lambda device: 1e11)
        monkeypatch.setattr(cuda, "link_bandwidth", lambda device: 1e10)
        monkeypatch.setattr(cuda, "LOGITS", {})
        assert cuda.main() == 0
        return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()[2:]]

    return rows


def ran(messages: str = "", **of_result) -> subprocess.CompletedProcess:
    whole = {"results": [result(**of_result)]}
    return subprocess.CompletedProcess([], 0, json.dumps(whole), messages)


def number(cuda, name: str) -> int:
    return [case.name for case in cuda.CASES].index(name)


def test_shares_and_verdicts(cuda, rows_of):
    rows = rows_of(
        {
            0: ran(rows=1, tokens_per_second=90),
            number(cuda, "7B1, bfloat16, 32 rows"): ran(rows=32, tokens_per_second=1000),
            number(cuda, "7B1, 8 bits"): ran(rows=1, tokens_per_second=180),
        }
    )
    assert rows == [
        "7B1, bfloat16 11.11 ms, 90.0% 100 GB/s copied 80% met",
        "against what torch.sum reads 75.0% 120 GB/s read - -",
        "its prompts of 512 1000 tokens/s, 50.0% of the matmul rate 600.0 TFLOP/s - -",
        "7B1, bfloat16, 32 rows 1000 tokens/s, 11.1 x one row 90 tokens/s a row 20 x MISSED",
        "7B1, 8 bits 5.56 ms, 180.0%, 2.00 x the first 100 GB/s copied - -",
    ]


def test_the_largest_model_and_streaming(cuda, rows_of):
    message = "device memory: 3.0 GB of weights and 1.0 GB of caches are streamed from the host"
    rows = rows_of(
        {
            number(cuda, "176B, 4 bits"): ran(rows=1, tokens_per_second=40, step_bytes=10**9),
            number(cuda, "7B1, streamed"): ran(message, rows=1, tokens_per_second=1),
        }
    )
    assert rows == [
        "176B, 4 bits 25.00 ms, 40.0% 100 GB/s copied 70% MISSED",
        "176B, 4 bits 25.0 ms a token, published 44 ms 10.0 ms at copy rate 30 ms met",
        "7B1, streamed 1000.0 ms, 50.0% of the link 10.0 GB/s from the host - -",
    ]


def test_a_case_that_fails_is_told_and_the_others_go_on(rows_of):
    failed = subprocess.CompletedProcess([], 1, "", "trace\nerror: out of memory\n")
    rows = rows_of({0: failed, 3: ran(rows=1, tokens_per_second=50)})
    assert rows[0] == "7B1, bfloat16 not run: error: out of memory - - -"
    assert rows[1].startswith("7B1, 8 bits 20.00 ms, 50.0% ")


def test_warnings_of_cases_are_told_once(rows_of):
    warned = "INFO: begun\nWARNING: no GPU kernels, PyTorch computes what they would\n"
    rows = rows_of(
        {0: ran(warned, rows=1, tokens_per_second=90), 3: ran(warned, rows=1, tokens_per_second=50)}
    )
    assert rows.count("WARNING: no GPU kernels, PyTorch computes what they would") == 1
    assert "INFO" not in " ".join(rows)


def test_logits_that_cannot_be_had_are_told_with_the_last_line(cuda, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "trace\nRuntimeError: illegal access\n")
    monkeypatch.setattr(cuda.subprocess, "run", lambda *args, **kwargs: failed)
    row, messages = cuda.logits_row("cuda", "full", 9)
    assert row.value == "not run: RuntimeError: illegal access"
    assert messages == failed.stderr


def test_logits_of_a_cpu_are_its_own(cuda, monkeypatch):
    monkeypatch.setattr(subprocess, "run", warm_python.run)
    row, _ = cuda.logits_row("cpu", "int4", 60)
    assert (row.value, row.reached) == ("off by 0.00% of the largest", True)


def test_what_has_no_time_or_no_memory_is_not_run(cuda, monkeypatch):
    arguments = cuda.parse(["--device", "cpu"])
    assert cuda.run_case(cuda.CASES[0], arguments, 5) == "580 s are over; --cases runs it alone"
    from popxl_torch import machine

    monkeypatch.setattr(machine, "free_memory", lambda device: 80e9)
    arguments.device = "cuda"
    assert cuda.run_case(cuda.CASES[1], arguments, 500) == (
        "needs 125 GB of device memory, 80 are free"
    )


def test_a_case_runs_on_a_cpu(cuda, monkeypatch):
    monkeypatch.setattr(subprocess, "run", warm_python.run)
    monkeypatch.setattr(cuda, "copy_bandwidth", lambda device: 1e11)
    monkeypatch.setattr(cuda, "link_bandwidth", lambda device: 1e10)
    sizes = ["--prompt_tokens", "8", "--new_tokens", "4", "--repeats", "1"]
    done = cuda.run_case(cuda.CASES[4], cuda.parse(["--device", "cpu", *sizes]), 100)
    assert done.result["batch_size"] == 1
    assert done.share > 0
    assert done.tokens_per_second > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would be measured")
def test_without_a_gpu_one_line_says_so():
    done = warm_python.run([sys.executable, SCRIPT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["benchmarks/cuda.py: PyTorch sees no CUDA device here"]
    assert not done.stdout
