"""All that is to be measured on a GPU, in one call of less than ten minutes.

    python benchmarks/cuda.py

A row a case: what was measured, what limits it as measured in the same run, what it is to reach,
and whether it does. First logits are held against the CPU's. Then `inference.py` runs with random
weights: BLOOM-7B1 in 16, 8 and 4 bits, with 32 rows, with too little device memory, so that weights
are streamed, without CUDA graphs, without the kernels of our own, and with 32 rows and so little
memory that their cache is streamed too; BLOOM-176B in 4 bits. A case that cannot be run is told in
one line. Without a GPU: one line, exit status 2.

`--device cpu` runs the same with the small model, to try the script.

Shares of decoding are of the bandwidth that copies of device memory reach, read and written bytes
together, the median before and after the case. Bytes of a token are those of the weights, each read
once, and of the cache as far as it is filled.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT), str(ROOT / "runtime")]

from cuda_cases import CASES, GB, Case, Outcome, Outcomes, Row  # noqa: E402 - found by the path
from cuda_limits import copy_bandwidth, give_back, link_bandwidth  # noqa: E402
from cuda_logits import LOGITS, last_line, logits_row  # noqa: E402

NO_GPU = 2
ALL_SECONDS, CASE_SECONDS, LEAST_SECONDS = 580, 150, 20


def main() -> int:
    begin, arguments = time.perf_counter(), parse()
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/cuda.py: PyTorch sees no CUDA device here", file=sys.stderr)
        return NO_GPU
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU, to try the script"
    print(f"{name}, PyTorch {torch.__version__}")
    print(Row("case", "measured", "limit", "aim"), flush=True)
    told: set[str] = set()
    for weight_precision in LOGITS:
        row, messages = logits_row(arguments.device, weight_precision, CASE_SECONDS)
        print(row, *warnings_in(messages, told), sep="\n", flush=True)
    outcomes: Outcomes = {}
    for case in chosen(arguments):
        done = run_case(case, arguments, begin + ALL_SECONDS - time.perf_counter())
        if isinstance(done, str):
            print(Row(case.name, f"not run: {done}"), flush=True)
            continue
        for row in case.rows(case.name, done, outcomes):
            print(row, flush=True)
        for line in warnings_in(done.messages, told):
            print(line, flush=True)
        outcomes[case.name] = done
    return 0


def warnings_in(messages: str, told: set[str]) -> list[str]:
    """The lines to be printed of warnings that have not been told: why something is slow."""
    warnings = [line for line in messages.splitlines() if line.startswith("WARNING: ")]
    new = [line for line in dict.fromkeys(warnings) if line not in told]
    told.update(new)
    return [f"  {line}" for line in new]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    numbers = ", ".join(f"{i} {case.name}" for i, case in enumerate(CASES))
    parser.add_argument("--cases", type=int, nargs="+", help=f"only these: {numbers}")
    parser.add_argument("--prompt_tokens", type=int, default=512)
    parser.add_argument("--new_tokens", type=int, default=64, help="decoded in a round")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of a case")
    return parser.parse_args(argv)


def chosen(arguments: argparse.Namespace) -> list[Case]:
    numbers = arguments.cases if arguments.cases is not None else range(len(CASES))
    return [CASES[number] for number in numbers]


def run_case(case: Case, arguments: argparse.Namespace, left: float) -> Outcome | str:
    """The outcome, or why there is none.

    Args:
        left: seconds for this case and those after it.
    """
    from popxl_torch import machine

    seconds = min(CASE_SECONDS, left)
    if seconds < LEAST_SECONDS:
        return f"{ALL_SECONDS} s are over; --cases runs it alone"
    free = machine.free_memory(arguments.device)
    if arguments.device == "cuda" and free < case.needed:
        return f"needs {case.needed / GB:.0f} GB of device memory, {free / GB:.0f} are free"
    copying, link = copy_bandwidth(arguments.device), link_bandwidth(arguments.device)
    give_back(arguments.device)
    try:
        done = subprocess.run(
            command_of(case, arguments),
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=seconds,
            env={**os.environ, "PYTHONPATH": str(ROOT / "runtime"), **case.environment},
        )
    except subprocess.TimeoutExpired:
        return f"it took longer than {seconds:.0f} s"
    if done.returncode:
        return last_line(done.stderr)
    copying = statistics.mean((copying, copy_bandwidth(arguments.device)))
    give_back(arguments.device)
    return Outcome(json.loads(done.stdout)["results"][0], done.stderr, copying, link)


def command_of(case: Case, arguments: argparse.Namespace) -> list[str]:
    preset = case.preset if arguments.device == "cuda" else "bloom_tiny"
    length = arguments.prompt_tokens + arguments.new_tokens
    return [
        *(sys.executable, str(ROOT / "inference.py"), "--config", preset),
        *("--tensor_parallel_1", "1", "--tensor_parallel_2", "1", "--precision", "bfloat16"),
        *("--device", arguments.device, "--sequence_length", str(length), "--json"),
        *("--prompt_tokens", str(arguments.prompt_tokens)),
        *("--new_tokens", str(arguments.new_tokens), "--repeats", str(arguments.repeats)),
        *case.settings,  # of what is given twice the last one counts
    ]


if __name__ == "__main__":
    sys.exit(main())
