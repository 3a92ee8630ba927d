"""A process of a job, as the others know it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Member:
    """Where a process runs, and since when."""

    host: str
    machine: str  # one boot of one machine, and one space of process numbers
    pid: int
    started: str  # in ticks of the machine's clock: numbers of processes are used again

    @classmethod
    def this(cls) -> Member:
        pid = os.getpid()
        return cls(socket.gethostname(), machine(), pid, started(pid))

    @classmethod
    def told(cls, text: bytes) -> Member:
        """What another process has said of itself.

        Raises:
            ValueError: it is not what a process says.
        """
        try:
            given = json.loads(text)
            member = cls(**given)
        except (TypeError, ValueError, RecursionError):
            raise ValueError("it is no member's") from None
        words = (member.host, member.machine, member.started)
        if not all(isinstance(word, str) for word in words) or type(member.pid) is not int:
            raise ValueError("it is no member's")
        if not 0 < member.pid < 1 << 31:
            raise ValueError("it is no member's")
        return member

    @property
    def here(self) -> bool:
        """Whether it is on the machine of this process."""
        return self.machine == machine()

    @property
    def died(self) -> bool:
        """Whether it is known to have ended; from another machine it is not."""
        ended = state(self.pid) in ("Z", "X", "") or started(self.pid) != self.started
        return self.here and ended

    @property
    def condition(self) -> str:
        """What can be said of a process that does not answer."""
        if not self.here:
            return ": it, its machine or the network is down"
        return ": it is stopped" if not self.died and state(self.pid) == "T" else ""

    def kill(self) -> None:
        """End it, where it is here."""
        if self.here and not self.died:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, signal.SIGKILL)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def machine() -> str:
    """One boot of one machine, and one space of process numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def state(pid: int) -> str:
    """The letter of a process's state; empty where there is none."""
    return _status(pid, 0)


def parent(pid: int) -> int:
    """The number of the process that started this one; 0 where that is not known."""
    return int(_status(pid, 1) or 0)


def environment(pid: int) -> dict[str, str]:
    """The environment that a process was started with; empty where it is not to be read."""
    try:
        given = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    pairs = (variable.partition("=") for variable in given.split("\0"))
    return {name: value for name, _, value in pairs}


def started(pid: int) -> str:
    """When a process started; empty where there is none."""
    return _status(pid, 19)


def _status(pid: int, field: int) -> str:
    """A field of a process's status, counted from its state; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[field]
    except OSError:
        return ""
