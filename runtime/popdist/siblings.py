"""The other processes that the launcher of this one has started on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Mapping
from functools import cache

from popdist.member import environment, parent, state

OF_A_JOB = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
"""Environment variables that are the same in all processes of a job."""


class Siblings:
    """What is known of them before they have met, from the system's list of processes.

    Attributes:
        seen: their numbers, by rank; those that ended before the first look are not among them.
    """

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}
        self.look()

    def look(self) -> dict[int, int]:
        """Those that run now, or are stopped."""
        present = {}
        listing = os.listdir("/proc") if os.path.isdir("/proc") else []
        for number in filter(str.isdigit, listing):
            pid = int(number)
            if pid != os.getpid() and parent(pid) == os.getppid():
                given = environment(pid)
                if _same_job(given) and given.get("RANK", "").isdigit():
                    present[int(given["RANK"])] = pid
        self.seen = self.seen | present  # anew: another thread may be reading it
        return present

    def died(self) -> dict[int, int]:
        """Those that have ended since they were seen first."""
        return {rank: pid for rank, pid in self.seen.items() if state(pid) in ("Z", "X", "")}

    def kill_stopped(self, but: Iterable[int]) -> None:
        """End those that are stopped, all but some: they would stay for ever."""
        for rank in set(self.seen).difference(but):
            if state(self.seen[rank]) == "T" and _same_job(environment(self.seen[rank])):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(self.seen[rank], signal.SIGKILL)

    def missing(self) -> list[int]:
        """Ranks that `torchrun` started here and whose end it has noted."""
        present = self.look()
        others = [rank for rank in _ranks_here() if rank != int(os.environ["RANK"])]
        return [r for r in others if r not in present and not self._in_list(r)]

    def first(self, but: Iterable[int] = ()) -> int:
        """The lowest rank here that has not ended, of this one and all but some."""
        return min([int(os.environ["RANK"]), *set(self.look()).difference(but)])

    def ended_early(self, numbers: Iterable[int]) -> str:
        """Says of ranks that they have ended, with their processes where these are known."""
        seen = self.seen
        each = [f"rank {n} (process {seen[n]})" if n in seen else f"rank {n}" for n in numbers]
        return f"{_listed(each)} {'have' if each[1:] else 'has'} ended before all had met"

    def _in_list(self, rank: int) -> bool:
        """Whether the system still has it: it may just have ended, told as this one is."""
        return rank in self.seen and bool(state(self.seen[rank]))


@cache
def siblings() -> Siblings:
    """Those of this process; the first call looks who is there."""
    return Siblings()


def ranks(numbers: Iterable[int]) -> str:
    """Ranks as in "rank 3" or "ranks 1, 2 and 3"."""
    texts = [str(number) for number in numbers]
    return f"rank{'s' if len(texts) > 1 else ''} {_listed(texts)}"


def _same_job(given: Mapping[str, str]) -> bool:
    """Whether a process with this environment is of the same start of the same job."""
    return all(given.get(name) == os.environ.get(name) for name in OF_A_JOB)


def _ranks_here() -> range:
    """Of this machine, this one's among them; none where `torchrun` did not start them."""
    try:
        count, own = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
        first = int(os.environ["RANK"]) - own
    except (KeyError, ValueError):
        return range(0)
    return range(first, first + count) if "TORCHELASTIC_RUN_ID" in os.environ else range(0)


def _listed(texts: list[str]) -> str:
    """As in "a, b and c"."""
    return " and ".join([*([", ".join(texts[:-1])] if texts[1:] else []), *texts[-1:]])
