"""Commands of Python, as a person gives them in this repository, and what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import warm_python

from config import REPOSITORY

PARTS = ("", "runtime", "tests", "runtime/tests")


def environment(**more: str) -> dict[str, str]:
    """Of such commands: one thread each, and nothing is fetched."""
    ours = {
        "PYTHONPATH": os.pathsep.join(str(REPOSITORY / part) for part in PARTS),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return os.environ | ours | more


def run_python(
    *words: object, run: Callable[..., Any] = warm_python.run, **options: Any
) -> subprocess.CompletedProcess:
    """What became of `python words`, without input and in text unless `options` say otherwise."""
    stdin = {} if "input" in options else {"stdin": subprocess.DEVNULL}
    common = {"cwd": REPOSITORY, "env": environment(), "text": True, "timeout": 300}
    command = [sys.executable, *map(str, words)]
    return run(command, capture_output=True, **stdin | common | options)


def start_python(
    *words: object, start: type[subprocess.Popen] = warm_python.Popen, **options: Any
) -> subprocess.Popen:
    """`python words` under way, with pipes for its output."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    common = {"cwd": REPOSITORY, "env": environment(), "stdin": subprocess.DEVNULL, "text": True}
    return start([sys.executable, *map(str, words)], **pipes | common | options)
