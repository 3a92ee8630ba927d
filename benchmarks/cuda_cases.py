"""The cases of `cuda.py`: how each is run, and what is printed of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

GB = 1e9
PUBLISHED_MS = 44  # DeepSpeed-Inference, BLOOM-176B fp16 on eight A100 80GB, batch 1
AIM_MS = 30
INT8, INT4 = ("--weight_precision", "int8"), ("--weight_precision", "int4", "--group_size", "64")
STREAMED = re.compile(r"([\d.]+) GB of weights and ([\d.]+) GB of caches are streamed")


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
    found = STREAMED.search(done.messages)
    if found is None:
        return [Row(name, f"{done.seconds * 1e3:.1f} ms: nothing was streamed")]
    weights, caches = (float(size) * GB for size in found.groups())
    least = (weights + 2 * caches) / done.link  # caches there and back
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
    Case(
        "7B1, 32 rows, cache streamed",
        streaming,
        # The prompt of each row streams all of it: of seconds a round, one is enough.
        settings=("--batch_size", "32", "--repeats", "1"),
        environment={"POPXL_DEVICE_MEMORY": str(8 * 10**9)},
    ),
)
