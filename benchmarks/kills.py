"""Kill ranks at random moments, many times, and count the lines that say so: one each, always.

    python benchmarks/kills.py --kills 20 --ranks 4 --seed 0 --minutes 10

Each job is `run_inference.py` under a launcher; one of its ranks is killed by SIGKILL at a moment
between its start and the middle of its text. The exit status is 1 where a death had no line or
several, or a process was left.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

LIMIT = 180.0
"""Seconds within which all processes of a job have to end."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2, help="1, 2, 4 or 8, as heads are shared")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10, help="no job begins later")
    parser.add_argument("--latest", type=float, default=12, help="seconds until a kill, at most")
    arguments = parser.parse_args()
    draw, until = random.Random(arguments.seed), time.monotonic() + 60 * arguments.minutes
    counts: list[int] = []
    while len(counts) < arguments.kills and time.monotonic() < until:
        rank, moment = draw.randrange(arguments.ranks), draw.uniform(0, arguments.latest)
        said = killed(arguments.ranks, rank, moment)
        if said is None:
            print(f"rank {rank} had ended before {moment:.2f} s: no kill", flush=True)
            continue
        counts.append(len(said))
        print(f"rank {rank} after {moment:.2f} s: {len(said)} lines {said}", flush=True)
    print(f"{len(counts)} kills: {counts.count(1)} with one line")
    return int(counts.count(1) != len(counts))


def killed(ranks: int, rank: int, moment: float) -> list[str] | None:
    """What a job says whose rank was killed so long after it was there; None if it had ended."""
    words = ["--tensor_parallel_1", f"{ranks}", "--prompt", "A dog", "--num_tokens", "900"]
    words += ["--temperature", "5", "--seed", "1", "--json"]  # does not end early, no summary
    launcher = subprocess.Popen(
        [sys.executable, "-m", "popdist.run", "--nproc-per-node", f"{ranks}"]
        + ["--master-port", f"{random.randrange(20000, 60000)}"]
        + [str(REPOSITORY / "run_inference.py"), *words],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "runtime")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    pid = number_of(launcher, rank)
    time.sleep(moment)
    if alive := runs(pid):
        os.kill(pid, signal.SIGKILL)
    try:
        said = launcher.communicate(timeout=LIMIT)[1]
    except subprocess.TimeoutExpired:
        launcher.terminate()
        return [f"still there after {LIMIT:.0f} s"]
    return said.splitlines() if alive else None


def number_of(launcher: subprocess.Popen, rank: int) -> int:
    """The number of the process that the launcher starts for a rank."""
    while launcher.poll() is None:
        if len(pids := children(launcher)) > rank:
            return pids[rank]
        time.sleep(0.05)
    raise RuntimeError("the launcher has ended")


def runs(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(launcher: subprocess.Popen) -> list[int]:
    """The launcher's ranks, in order, as it starts nothing else."""
    try:
        listed = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text()
    except OSError:
        return []
    return [int(pid) for pid in listed.split()]


if __name__ == "__main__":
    sys.exit(main())
