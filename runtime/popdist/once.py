"""That one line is said of a death, whoever of this machine's processes comes to know of it first.

Who says it is agreed on without the store: that may be what has gone, and before all have met
nobody knows who else is there. So the first to mark a file says it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import tempfile
import time
from pathlib import Path

from popdist.member import machine, started
from popdist.siblings import OF_A_JOB

PATIENCE = 2.0
"""Seconds that the others leave to the one who knows most of why the job ended: a launcher ends
everybody when the first one exits."""

_BEGAN = time.time()
_claimed: list[bool] = []
_launcher = 0  # this process, if it is one


def claim(patient: bool = False, launches: bool = False) -> bool:
    """Whether this process is the one that says why the job has ended; the answer stays.

    Args:
        patient: let others do so first, who know more.
        launches: whether this process is the launcher of the job's.
    """
    global _launcher
    if launches:
        _launcher = os.getpid()
    if not _claimed:
        if patient:
            until = time.monotonic() + PATIENCE
            while not _taken() and time.monotonic() < until:
                time.sleep(PATIENCE / 20)
        _claimed.append(_make())
    return _claimed[0]


def _file() -> Path:
    """Of this start of the job, on this machine."""
    launcher = _launcher or os.getppid()
    words = [machine(), str(launcher), started(launcher)]
    if _launcher or "TORCHELASTIC_RUN_ID" in os.environ:
        words.append(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    else:  # a shell may start several
        words += [os.environ.get(name, "") for name in OF_A_JOB]
    name = hashlib.sha256("\0".join(words).encode()).hexdigest()[:32]
    return Path(tempfile.gettempdir()) / f"popdist-{os.getuid()}-{name}"


def _taken() -> bool:
    """Whether another process has claimed it, for this job: an older one may have been alike."""
    try:
        return _is_claim(os.lstat(_file()))
    except OSError:
        return False


def _is_claim(found: os.stat_result) -> bool:
    return _is_ours(found) and found.st_size > 0 and found.st_mtime >= _BEGAN - PATIENCE


def _is_ours(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid()


def _make() -> bool:
    """Claim it where nobody has, under a lock: who comes second sees the first one's mark."""
    flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = os.open(_file(), flags, 0o600)
    except OSError:
        return True  # better two lines than none
    try:
        if not _is_ours(os.fstat(file)):
            return True
        fcntl.flock(file, fcntl.LOCK_EX)
        if _is_claim(os.fstat(file)):
            return False
        os.ftruncate(file, 0)
        os.write(file, b"claimed")
        return True
    except OSError:
        return True
    finally:
        os.close(file)
