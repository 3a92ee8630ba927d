"""How much the cache folder may hold: entries in use are locked, the rest goes oldest use first.

Beside an entry lies a file `NAME.use`. Whoever uses the entry holds a shared lock on it, from
before it is looked up; its time is that of the last use. What is removed is locked alone before.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from dataclasses import dataclass
from typing import BinaryIO

from popxl_torch.cache.private_folder import NotPrivateError, PrivateFolder

try:
    import fcntl
except ImportError:  # a system without file locks: nothing is removed by itself
    fcntl = None  # type: ignore[assignment]

CACHE_LIMIT = "POPXL_CACHE_LIMIT"
"""Environment variable: bytes that the folder may hold, such as 500M or 20G; empty is no limit."""

DEFAULT_LIMIT = 50 * 10**9
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}

LOCK, USE = ".lock", ".use"
"""Endings of the files beside an entry: one is held while it is made, one while it is used."""

ABANDONED = 24 * 3600.0
"""Seconds after which a folder that was to become an entry is taken for left behind."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """An entry: its size in bytes, and when it was last used, in seconds since 1970."""

    name: str
    size: int
    used: float
    in_use: bool = False


def limit() -> int | None:
    """Bytes that the folder may hold; None for no limit.

    Raises:
        ValueError: the environment says something that is no size.
    """
    given = os.environ.get(CACHE_LIMIT)
    if given is None:
        return DEFAULT_LIMIT
    if not given.strip():
        return None
    found = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?)([KMGT]?)B?", given.strip().upper())
    if found is None:
        raise ValueError(f"{CACHE_LIMIT} must be a size such as 500M or 20G, not {given[:80]!r}")
    return int(float(found[1]) * UNITS[found[2]])


def in_use(root: PrivateFolder, name: str) -> BinaryIO | None:
    """What keeps the entry, which need not be there yet, from being removed until it is closed.

    None where the system cannot lock.
    """
    while fcntl is not None:
        try:
            file = os.fdopen(root.file(name + USE, os.O_RDWR | os.O_CREAT), "rb+")
            fcntl.flock(file, fcntl.LOCK_SH)
            os.utime(file.fileno())
        except (OSError, NotPrivateError):
            return None
        if _is_named(root, name + USE, file):
            return file
        file.close()  # it was removed with the entry in the meantime
    return None


def kept(root: PrivateFolder) -> list[Kept]:
    """The entries, the one that was used last first."""
    found = []
    for name in root.names():
        if not name.startswith(".") and not name.endswith((LOCK, USE)):
            with contextlib.suppress(OSError):  # it has gone
                found.append(_described(root, name))
    return sorted(found, key=lambda entry: -entry.used)


def remove(root: PrivateFolder, name: str) -> bool:
    """Remove an entry, unless it is in use; whether it was removed."""
    lock = _alone(root, name + USE)
    if lock is None:
        return False
    with lock:
        root.remove(name)
        making = _alone(root, name + LOCK)
        if making is not None:
            with making:
                root.remove(name + LOCK)
        root.remove(name + USE)
    return True


def trim(root: PrivateFolder) -> list[Kept]:
    """Remove what was not used for longest until the rest is within the limit; what was removed."""
    _remove_abandoned(root)
    try:
        most = limit()
    except ValueError as error:
        _log.warning("%s: the limit is %d bytes", error, DEFAULT_LIMIT)
        most = DEFAULT_LIMIT
    if most is None or fcntl is None:
        return []
    entries, removed = kept(root), []
    total = sum(entry.size for entry in entries)
    for entry in reversed(entries):
        if total > most and remove(root, entry.name):
            total -= entry.size
            removed.append(entry)
            _log.info("%s is removed from the cache, %d bytes", root.path / entry.name, entry.size)
    return removed


def _described(root: PrivateFolder, name: str) -> Kept:
    try:
        used = os.stat(name + USE, dir_fd=root.descriptor, follow_symlinks=False).st_mtime
    except FileNotFoundError:  # an entry of before there were such files
        used = os.stat(name, dir_fd=root.descriptor, follow_symlinks=False).st_mtime
    return Kept(name, _size(root, name), used, _is_locked(root, name + USE))


def _size(root: PrivateFolder, name: str) -> int:
    """Bytes of a file, or of all files in a folder, as they take room on the disk."""
    total = os.stat(name, dir_fd=root.descriptor, follow_symlinks=False).st_blocks
    for _, _, files, descriptor in os.fwalk(name, dir_fd=root.descriptor):
        for file in files:
            with contextlib.suppress(OSError):
                total += os.stat(file, dir_fd=descriptor, follow_symlinks=False).st_blocks
    return total * 512


def _alone(root: PrivateFolder, name: str) -> BinaryIO | None:
    """The file beside an entry, locked; None where somebody holds it, or it cannot be."""
    if fcntl is None:
        return None
    try:
        file = os.fdopen(root.file(name, os.O_RDWR | os.O_CREAT), "rb+")
    except (OSError, NotPrivateError):
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _is_locked(root: PrivateFolder, name: str) -> bool:
    try:
        with os.fdopen(root.file(name, os.O_RDWR), "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (OSError, NotPrivateError, AttributeError):  # there is no such file, or no locks
        return False
    return False


def _is_named(root: PrivateFolder, name: str, file: BinaryIO) -> bool:
    try:
        found = os.stat(name, dir_fd=root.descriptor, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(file.fileno()))


def _remove_abandoned(root: PrivateFolder) -> None:
    for name in root.names():
        with contextlib.suppress(OSError):
            found = os.stat(name, dir_fd=root.descriptor, follow_symlinks=False)
            if name.startswith(".") and time.time() - found.st_mtime > ABANDONED:
                root.remove(name)
