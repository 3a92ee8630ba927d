"""All that is to be measured on a GPU, in one call of less than ten minutes.

    python benchmarks/cuda.py

A row a case: what was measured, what limits it as measured in the same run, what it is to reach,
and whether it does. First logits are held against the CPU's. Then `inference.py` runs with random
weights: BLOOM-7B1 in 16, 8 and 4 bits, with 32 rows, with too little device memory, so that weights
are streamed, without CUDA graphs and without the kernels of our own; BLOOM-176B in 4 bits. A case
that cannot be run is told in one line. Without a GPU: one line, exit status 2.

`--device cpu` runs the same with the small model, to try the script.

Shares of decoding are of the bandwidth that copies of device memory reach, read and written bytes
together, the median before and after the case. Bytes of a token are those of the weights, each read
once, and of the cache as far as it is filled.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "runtime")]
NO_GPU = 2
ALL_SECONDS, CASE_SECONDS, LEAST_SECONDS = 580, 150, 20
COPIES = 8  # that are waited for together
PUBLISHED_MS = 44  # DeepSpeed-Inference, BLOOM-176B fp16 on eight A100 80GB, batch 1
AIM_MS = 30
GB = 1e9
INT8, INT4 = ("--weight_precision", "int8"), ("--weight_precision", "int4", "--group_size", "64")
LOGITS = {"full": 0.03, "int8": 0.03, "int4": 0.03}  # of the largest, in bfloat16


@dataclass(frozen=True)
class Row:
    """What is printed of a case: `aim` is met where `reached`, there is none where that is None."""

    name: str
    value: str
    limit: str = "-"
    aim: str = "-"
    reached: bool | None = None

    def __str__(self) -> str:
        verdict = {True: "met", False: "MISSED", None: "-"}[self.reached]
        return f"{self.name:<34} {self.value:<42} {self.limit:<28} {self.aim:<22} {verdict}"


@dataclass(frozen=True)
class Outcome:
    """A case that was run.

    Attributes:
        result: the benchmark's, see `utils/benchmark/report.py`.
        messages: what it wrote to standard error.
        copying, link: bytes a second of copies on the device, and to it from pinned memory.
    """

    result: dict[str, Any]
    messages: str
    copying: float
    link: float

    @property
    def tokens_per_second(self) -> float:
        return self.result["decode_tokens_per_second"]["median"]

    @property
    def seconds(self) -> float:
        """Of a step of decoding."""
        return self.result["batch_size"] / self.tokens_per_second

    @property
    def share(self) -> float:
        return self.result["step_bytes"] / self.seconds / self.copying


Outcomes = dict[str, Outcome]


@dataclass(frozen=True)
class Case:
    """A run of `inference.py` and the rows made of it, with those of the cases before it."""

    name: str
    rows: Callable[[str, Outcome, Outcomes], list[Row]]
    preset: str = "bloom_7B1"
    settings: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    needed: float = 18 * GB


def decoding(aim: float | None = None) -> Callable[[str, Outcome, Outcomes], list[Row]]:
    """The share of the copy bandwidth, and how fast it is against the first case."""

    def rows(name: str, done: Outcome, before: Outcomes) -> list[Row]:
        first = before.get(CASES[0].name)
        times = f", {first.seconds / done.seconds:.2f} x the first" if first else ""
        value = f"{done.seconds * 1e3:.2f} ms, {done.share:.1%}{times}"
        limit = f"{done.copying / GB:.0f} GB/s copied"
        if aim is None:
            return [Row(name, value, limit)]
        return [Row(name, value, limit, f"{aim:.0%}", done.share >= aim)]

    return rows


def decoding_and_prompt(name: str, done: Outcome, before: Outcomes) -> list[Row]:
    result = done.result
    share = f"{result['prompt_share']:.1%} of the matmul rate"
    tokens = f"{result['prompt_tokens_per_second']['median']:.0f} tokens/s, {share}"
    rate = f"{result['matmul_rate']['median'] / 1e12:.1f} TFLOP/s"
    prompt = Row(f"  its prompts of {result['prompt_tokens']}", tokens, rate)
    read = f"{result['read_bandwidth']['median'] / GB:.0f} GB/s read"
    against_reading = Row("  against what torch.sum reads", f"{result['decode_share']:.1%}", read)
    return [*decoding(0.8)(name, done, before), against_reading, prompt]


def many_rows(name: str, done: Outcome, before: Outcomes) -> list[Row]:
    one = before.get(CASES[0].name)
    if one is None:
        return decoding()(name, done, before)
    times = done.tokens_per_second / one.tokens_per_second
    value = f"{done.tokens_per_second:.0f} tokens/s, {times:.1f} x one row"
    return [Row(name, value, f"{one.tokens_per_second:.0f} tokens/s a row", "20 x", times >= 20)]


def largest(name: str, done: Outcome, before: Outcomes) -> list[Row]:
    milliseconds = done.seconds * 1e3
    times = f"{milliseconds:.1f} ms a token, published {PUBLISHED_MS} ms"
    limit = f"{done.result['step_bytes'] / done.copying * 1e3:.1f} ms at copy rate"
    time_row = Row(name, times, limit, f"{AIM_MS} ms", milliseconds <= AIM_MS)
    return [*decoding(0.7)(name, done, {}), time_row]


def streaming(name: str, done: Outcome, before: Outcomes) -> list[Row]:
    found = re.search(r"([\d.]+) GB are streamed", done.messages)
    if found is None:
        return [Row(name, f"{done.seconds * 1e3:.1f} ms: nothing was streamed")]
    least = float(found[1]) * GB / done.link
    value = f"{done.seconds * 1e3:.1f} ms, {least / done.seconds:.1%} of the link"
    return [Row(name, value, f"{done.link / GB:.1f} GB/s from the host")]


CASES = (
    Case("7B1, bfloat16", decoding_and_prompt),
    Case("176B, 4 bits", largest, "bloom_176B_pod16", INT4, needed=125 * GB),
    Case("7B1, bfloat16, 32 rows", many_rows, settings=("--batch_size", "32"), needed=40 * GB),
    Case("7B1, 8 bits", decoding(), settings=INT8),
    Case("7B1, 4 bits", decoding(), settings=INT4),
    Case("7B1, streamed", streaming, environment={"POPXL_DEVICE_MEMORY": str(9 * 10**9)}),
    Case("7B1, without CUDA graphs", decoding(), environment={"POPXL_CUDA_GRAPHS": "0"}),
    Case("7B1, without our kernels", decoding(), environment={"POPXL_GPU_KERNELS": "0"}),
)


def main() -> int:
    begin, arguments = time.perf_counter(), parse()
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/cuda.py: PyTorch sees no CUDA device here", file=sys.stderr)
        return NO_GPU
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU, to try the script"
    print(f"{name}, PyTorch {torch.__version__}")
    print(Row("case", "measured", "limit", "aim"), flush=True)
    for weight_precision in LOGITS:
        print(logits_row(arguments, weight_precision), flush=True)
    outcomes: Outcomes = {}
    for case in chosen(arguments):
        done = run_case(case, arguments, begin + ALL_SECONDS - time.perf_counter())
        if isinstance(done, str):
            print(Row(case.name, f"not run: {done}"), flush=True)
            continue
        for row in case.rows(case.name, done, outcomes):
            print(row, flush=True)
        outcomes[case.name] = done
    return 0


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
    from popxl import machine

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
        return (done.stderr.strip().splitlines() or ["no message"])[-1]
    copying = statistics.mean((copying, copy_bandwidth(arguments.device)))
    give_back(arguments.device)
    return Outcome(json.loads(done.stdout)["results"][0], done.stderr, copying, link)


def command_of(case: Case, arguments: argparse.Namespace) -> list[str]:
    preset = case.preset if arguments.device == "cuda" else "bloom_tiny"
    length = arguments.prompt_tokens + arguments.new_tokens
    return [
        *(sys.executable, str(ROOT / "inference.py"), "--config", preset, *case.settings),
        *("--tensor_parallel_1", "1", "--tensor_parallel_2", "1", "--precision", "bfloat16"),
        *("--device", arguments.device, "--sequence_length", str(length), "--json"),
        *("--prompt_tokens", str(arguments.prompt_tokens)),
        *("--new_tokens", str(arguments.new_tokens), "--repeats", str(arguments.repeats)),
    ]


def logits_row(arguments: argparse.Namespace, weight_precision: str) -> Row:
    """Logits of a prompt and of tokens after it, against the CPU's with the same weights."""
    name = f"logits, {weight_precision}"
    try:
        found, expected = (
            small_logits(device, weight_precision) for device in (arguments.device, "cpu")
        )
    except (RuntimeError, MemoryError, ValueError) as error:
        return Row(name, f"not run: {str(error).splitlines()[0]}")
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    aim = LOGITS[weight_precision]
    return Row(name, f"off by {error:.2%} of the largest", "the CPU", f"{aim:.0%}", error <= aim)


def small_logits(device: str, weight_precision: str) -> np.ndarray:
    """Of two layers of the 560M model's shape in bfloat16: `(5, rows, vocab_size)`."""
    from config import parse_arguments
    from inference import inference
    from utils.passes import Passes
    from utils.random_weights import fill_randomly

    shape = ["--layers", "2", "--vocab_size", "1000", "--sequence_length", "600"]
    shape += ["--batch_size", "2", "--precision", "bfloat16", "--device", device]
    config, _ = parse_arguments(["--config", "bloom_560M", *shape])
    model = dataclasses.replace(config.model, weight_precision=weight_precision)
    session = inference(dataclasses.replace(config, model=model))
    fill_randomly(session, np.random.default_rng(0))
    text = np.random.default_rng(1).integers(1000, size=(2, 560)).tolist()
    with session:
        passes = Passes(config, session)
        starts = np.array([7, 555], np.int32)
        logits = [np.stack([passes.prompt(row, text[row][:at]) for row, at in enumerate(starts)])]
        for i in range(4):
            tokens = np.array([text[row][at + i] for row, at in enumerate(starts)], np.int32)
            logits.append(passes.token(tokens, starts + i).copy())
    del session, passes
    give_back(device)
    return np.stack(logits)


# --- limits ---


def copy_bandwidth(device: str, repeats: int = 5) -> float:
    """Bytes a second read and written by copies of a block of the device's memory; the median."""
    import torch

    size = 1 << (30 if device == "cuda" else 26)
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    seconds = median_seconds(lambda: target.copy_(source), device, repeats)
    return 2 * size / seconds


def link_bandwidth(device: str, repeats: int = 5) -> float:
    """Bytes a second from pinned memory of the host to the device; the median."""
    import torch

    size = 1 << (28 if device == "cuda" else 26)
    source = torch.zeros(size, dtype=torch.uint8, pin_memory=device == "cuda")
    target = torch.zeros(size, dtype=torch.uint8, device=device)
    seconds = median_seconds(lambda: target.copy_(source, non_blocking=True), device, repeats)
    return size / seconds


def median_seconds(run: Callable[[], object], device: str, repeats: int) -> float:
    """Of a run, of which several are given to the device at a time."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = []
    for _ in range(repeats + 1):  # the first one warms up
        wait()
        begin = time.perf_counter()
        for _ in range(COPIES):
            run()
        wait()
        times.append((time.perf_counter() - begin) / COPIES)
    return statistics.median(times[1:])


def give_back(device: str) -> None:
    """Let the cases have the memory of what was deleted."""
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
