"""Whether this process does anything, as it tells the others."""

from __future__ import annotations

import resource
import time

BUSY = 0.02
"""Share of a core from which a process counts as computing; its watch takes less."""


class Progress:
    """Since when this process neither computes nor reads what was not in memory."""

    def __init__(self) -> None:
        self._since = self._looked = time.monotonic()
        self._seconds, self._faults = time.process_time(), _faults()

    def idle(self) -> float:
        """Seconds for which it has done nothing; to be asked regularly."""
        now, seconds, faults = time.monotonic(), time.process_time(), _faults()
        if seconds - self._seconds > BUSY * (now - self._looked) or faults != self._faults:
            self._since = now
        self._looked, self._seconds, self._faults = now, seconds, faults
        return now - self._since


def _faults() -> int:
    """Pages read from files so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt
