"""Jobs of several processes: of a function with a loaded model, and of the scripts as they are."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from commands import environment, start_python
from processes import CONTEXT, answer, give, started, told

from config import BloomConfig
from utils import distributed
from utils.generation.loading import load

CONTEXT.set_forkserver_preload(["popxl_torch.executor", "popdist.job", "utils.generation.loading"])


@contextmanager
def leading(
    count: int, config: BloomConfig, function: Callable, **environment: str
) -> Iterator[tuple[Any, list[Any]]]:
    """What `function` makes of the loaded model in rank 0, and the processes while they wait.

    At the end all of them must leave by themselves, with status 0.
    """
    results, release = CONTEXT.Queue(), CONTEXT.Event()
    arguments = (results, release, config, function)
    with started(count, _lead_or_follow, *arguments, **environment) as processes:
        yield answer(results)[1], processes
        release.set()
        for process in processes:
            process.join(20)
        assert [process.exitcode for process in processes] == [0] * count


def _lead_or_follow(results: Any, release: Any, config: BloomConfig, function: Callable) -> None:
    distributed.prepare()
    give(results, lambda: function(load(config)))
    release.wait(60)
    distributed.finish(0)


@contextmanager
def scripts(
    count: int, *words: str, last: dict[str, str] | None = None, **more: str
) -> Iterator[list[subprocess.Popen]]:
    """Processes of `run_inference.py`, as on hosts of their own; they are killed at the end.

    Args:
        last: further environment of the last rank.
        more: further environment of all.
    """
    with told(count) as of_ranks:
        of_ranks[-1] |= last or {}
        ranks = [
            start_python("run_inference.py", *words, env=environment() | more | own)
            for own in of_ranks
        ]
        try:
            yield ranks
        finally:
            for rank in ranks:
                rank.kill()
                rank.communicate()


def children(pid: int) -> list[int]:
    """The numbers of the processes that a process has started, in order."""
    try:
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def runs(pid: int) -> bool:
    """Whether there is such a process, be it stopped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "XZ"
    except OSError:
        return False
