"""A control group whose memory limit counts mapped pages too. Needs root."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VERSION_1, VERSION_2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class ControlGroup:
    """One that is there."""

    folder: Path

    def enter(self) -> None:
        """Put the calling process in."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def peak(self) -> int | None:
        """The most bytes it has held; None where the system does not tell."""
        for name in ("memory.max_usage_in_bytes", "memory.peak"):
            if (self.folder / name).exists():
                return int((self.folder / name).read_text())
        return None


@contextlib.contextmanager
def control_group(limit: int) -> Iterator[ControlGroup]:
    """A new control group of at most `limit` bytes, whose processes have ended on leaving."""
    root = VERSION_1 if VERSION_1.is_dir() else VERSION_2
    folder = root / f"popxl_streaming_{os.getpid()}"
    folder.mkdir()
    try:
        name = "memory.limit_in_bytes" if root == VERSION_1 else "memory.max"
        (folder / name).write_text(str(limit))
        yield ControlGroup(folder)
    finally:
        folder.rmdir()
