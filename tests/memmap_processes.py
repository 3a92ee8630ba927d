"""What processes of tests run: generations of memory maps that can be interrupted anywhere."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import generate_memmap
from config import parse_arguments
from utils.checkpoints.memmap import (  # before they are needed: such processes are forked
    generator,
    writer,
)
from utils.setup import run_script


def generate_in_small_steps(words: list[str]) -> None:
    """The command line `words`, writing so little at once that files take many steps."""
    writer.CHUNK = 1 << 12
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    run_script(lambda: generate_memmap.main(words))


def print_growth(words: list[str]) -> None:
    """Print the bytes of memory, mapped files among them, by which the making of maps grows."""
    config, _ = parse_arguments(words)
    maker = generator.Generator(config)
    maker.begin()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    before = _memory("VmRSS")
    maker.run(generator.Share(), lambda _: None, lambda _: None)
    print(_memory("VmHWM") - before)


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return int(status[name].split()[0]) * 1024


def killed(*_: object) -> None:
    """A worker that the system ends, as it does where memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)
