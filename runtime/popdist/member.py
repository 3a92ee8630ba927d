"""A process of a job, as the others know it."""

from __future__ import annotations

import contextlib
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
        return cls(socket.gethostname(), _machine(), pid, _status(pid)[1])

    @property
    def here(self) -> bool:
        """Whether it is on the machine of this process."""
        return self.machine == _machine()

    @property
    def died(self) -> bool:
        """Whether it is known to have ended; from another machine it is not."""
        letter, started = _status(self.pid)
        return self.here and (letter in ("Z", "X", "") or started != self.started)

    @property
    def state(self) -> str:
        """What can be said of a process that does not answer."""
        if not self.here:
            return ": it, its machine or the network is down"
        return ": it is stopped" if not self.died and _status(self.pid)[0] == "T" else ""

    def kill(self) -> None:
        """End it, where it is here."""
        if self.here and not self.died:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, signal.SIGKILL)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _status(pid: int) -> tuple[str, str]:
    """The letter of a process's state and when it started; both empty where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]
