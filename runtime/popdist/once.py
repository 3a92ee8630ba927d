"""That one line is said of a death, whoever of this machine's processes comes to know of it first.

Who says it is agreed on without the store: that may be what has gone, and before all have met
nobody knows who else is there. So the first to make a file says it.
"""

from __future__ import annotations

import contextlib
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
    """Whether another process has made the file, for this job: an older one may have been alike."""
    try:
        found = os.lstat(_file())
    except OSError:
        return False
    ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid()
    return ours and found.st_mtime >= _BEGAN - PATIENCE


def _make() -> bool:
    if _taken():
        return False
    path = _file()
    with contextlib.suppress(OSError):
        path.unlink()  # of an earlier job
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
    except FileExistsError:
        return not _taken()  # somebody else's file: better two lines than none
    except OSError:
        return True
    return True
