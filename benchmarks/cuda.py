"""Decoding on one GPU, as shares of the bandwidth that copies reach on it.

    python benchmarks/cuda.py

Runs `inference.py` with random weights: BLOOM-7B1 in bfloat16 with 1 and with 32 rows, and
BLOOM-176B in 4 bits. Before and after each the bandwidth of copying device memory is measured; the
share is of the larger one. A case that cannot be run is told in one line. Without a GPU: one line,
exit status 2.

The bytes of a token are those of the weights, each read once, and of the cache, whose rows are read
whole.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "runtime")]
BLOCK = 1 << 30
NO_GPU = 2


@dataclass(frozen=True)
class Case:
    """One run; `extra` are settings on top of the preset's."""

    name: str
    preset: str
    rows: int
    weight_bits: float
    extra: tuple[str, ...] = ()


CASES = (
    Case("7B1, bfloat16", "bloom_7B1", 1, 16),
    Case("7B1, bfloat16", "bloom_7B1", 32, 16),
    Case(
        "176B, 4 bits",
        "bloom_176B_pod16",
        1,
        4 + 32 / 64,  # with a scale and an offset of 16 bits a group
        ("--weight_precision", "int4", "--group_size", "64"),
    ),
)
SHARDS = ("--tensor_parallel_1", "1", "--tensor_parallel_2", "1")
SETTINGS = (*SHARDS, "--precision", "bfloat16", "--device", "cuda")


def main() -> int:
    arguments = parse()
    import torch

    if not torch.cuda.is_available():
        print("benchmarks/cuda.py: PyTorch sees no CUDA device here", file=sys.stderr)
        return NO_GPU
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}")
    rates = {}
    for case in CASES[: arguments.cases]:
        done = run_case(case, arguments)
        if done is not None:
            rates[case.name, case.rows] = done
    few, many = rates.get(("7B1, bfloat16", 1)), rates.get(("7B1, bfloat16", 32))
    if few and many:
        print(f"7B1: 32 rows give {many / few:.1f} times the tokens a second of one")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", type=int, default=len(CASES), help="only the first ones")
    parser.add_argument("--sequence_length", type=int, default=512, help="context of each row")
    parser.add_argument("--new_tokens", type=int, default=64, help="tokens decoded in a round")
    return parser.parse_args()


def run_case(case: Case, arguments: argparse.Namespace) -> float | None:
    """Tokens a second, printed with the share; None where it cannot be run."""
    before = copy_bandwidth()
    command = [sys.executable, str(ROOT / "inference.py"), "--config", case.preset, *SETTINGS]
    command += ["--batch_size", str(case.rows), *case.extra, "--json"]
    command += ["--sequence_length", str(arguments.sequence_length)]
    command += ["--new_tokens", str(arguments.new_tokens)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"{case.name}, {case.rows} rows: not run: {reason}")
        return None
    seconds = json.loads(done.stdout)["decode_seconds"]
    bandwidth = max(before, copy_bandwidth())
    share = bytes_a_step(case, arguments.sequence_length) / seconds / bandwidth
    print(
        f"{case.name}, {case.rows} rows: {seconds * 1e3:.2f} ms a step, "
        f"{case.rows / seconds:.1f} tokens/s, {share:.1%} of {bandwidth / 1e9:.0f} GB/s"
    )
    return case.rows / seconds


def bytes_a_step(case: Case, sequence_length: int) -> float:
    """Weights of matrices, the table that is the head, and the cache."""
    from config import parse_arguments

    config, _ = parse_arguments(["--config", case.preset])
    model = config.model
    matrices = 12 * model.layers * model.hidden_size**2 * case.weight_bits / 8
    table = model.vocab_size * model.hidden_size * 2
    cache = 2 * model.layers * case.rows * sequence_length * model.hidden_size * 2
    return matrices + table + cache


def copy_bandwidth(repeats: int = 20) -> float:
    """Bytes a second read and written by copies of a block of device memory; the median."""
    import torch

    source, target = (torch.zeros(BLOCK, dtype=torch.uint8, device="cuda") for _ in range(2))
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    del source, target
    torch.cuda.empty_cache()
    return 2 * BLOCK / statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
