"""What processes of tests run: generations of memory maps that can be interrupted anywhere."""

from __future__ import annotations

import os
import signal
import sys

import generate_memmap
from utils.memmap import generator, writer  # before they are needed: such processes are forked
from utils.setup import run_script

__all__ = ["generate_in_small_steps", "generator", "killed"]


def generate_in_small_steps(words: list[str]) -> None:
    """The command line `words`, writing so little at once that files take many steps."""
    writer.CHUNK = 1 << 12
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    run_script(lambda: generate_memmap.main(words))


def killed(*_: object) -> None:
    """A worker that the system ends, as it does where memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)
