"""Decodes from memory maps and prints as JSON what it took. `benchmarks/streaming.py` runs it.

python benchmarks/streamed_decoding.py --rounds 5 --config bloom_7B1 --memmap_dir DIR
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from popxl_torch.analysis.cost import cost_of

from config import BloomConfig, parse_arguments  # noqa: E402 - found just above
from config.options import field  # noqa: E402
from utils.generation import LanguageModel, load  # noqa: E402

BLOCK, READS = 8 << 20, 4
"""Bytes of each of the reads that the disk's rate is measured with, and how many are under way."""


@dataclass
class DecodingArguments:
    """How long to decode."""

    rounds: int = field(default=5, help="decode so many times two tokens")


def main() -> None:
    config, arguments = parse_arguments(extra=DecodingArguments, description=__doc__)
    print(json.dumps(decoded(config, arguments.rounds)))


def decoded(config: BloomConfig, rounds: int) -> dict:
    """What was measured; seconds and bytes a second, sizes in bytes.

    A round is two tokens right after each other, of which the second counts: what was read ahead of
    it was read while the first was computed. The disk's rate is measured before and after each.
    """
    begin = time.perf_counter()
    loaded = load(config)
    started = time.perf_counter() - begin
    files = Path(str(config.execution.memmap_dir)).glob("*.safetensors")
    largest = max(files, key=lambda file: file.stat().st_size)
    logits = [loaded.passes.prefill(0, [5, 6, 7, 8])]
    first = time.perf_counter() - begin
    seconds, read, rates = [], [], [direct_rate(largest)]
    for number in range(2 * rounds):
        tokens = np.array([int(logits[-1].argmax())], np.int32)
        begin, read_before = time.perf_counter(), bytes_read()
        logits.append(loaded.passes.decode(tokens, np.array([4 + number], np.int32))[0])
        if number % 2:
            seconds.append(time.perf_counter() - begin)
            read.append(bytes_read() - read_before)
            rates.append(direct_rate(largest))
    return {
        "weight_bytes": weight_bytes(loaded),
        "start_seconds": started,
        "first_token_seconds": first,
        "token_seconds": seconds,
        "bytes_read": read,
        "disk_rates": [(before + after) / 2 for before, after in pairwise(rates)],
        "streams": loaded.passes.session._executor.pager.streams,
        "peak_anonymous": memory_status(os.getpid()).get("RssAnon", 0),
        "logits": [hashlib.sha256(x.tobytes()).hexdigest() for x in logits],
    }


def weight_bytes(loaded: LanguageModel) -> int:
    """Of all replicas, that a token pass reads."""
    token_pass = loaded.passes.session.pass_graphs["decode"]
    return loaded.passes.config.execution.replicas * cost_of(token_pass).weight_bytes


def bytes_read() -> int:
    """Bytes that this process has had the disk read, for mapped pages too."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def direct_rate(path: Path, limit: int = 128 * BLOCK) -> float:
    """Bytes a second from the beginning of a file on past the page cache, `READS` at a time.

    What is being read ahead is waited for: it would share the disk.
    """
    before = -1
    while before != (before := bytes_read()):
        time.sleep(0.3)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    size = min(limit, path.stat().st_size) // BLOCK * BLOCK
    buffers = [mmap.mmap(-1, BLOCK) for _ in range(READS)]  # begin on pages, as O_DIRECT wants

    def read(reader: int) -> None:
        for offset in range(reader * BLOCK, size, READS * BLOCK):
            os.preadv(descriptor, [buffers[reader]], offset)

    with ThreadPoolExecutor(READS) as pool:
        begin = time.perf_counter()
        list(pool.map(read, range(READS)))
        seconds = time.perf_counter() - begin
    os.close(descriptor)
    return size / seconds


def memory_status(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split(":", 1) for line in lines if line.endswith("kB"))
    return {name: int(value.split()[0]) * 1024 for name, value in fields}


if __name__ == "__main__":
    main()
