"""What was made once and is kept for the next launch, in the folder `POPXL_CACHE_DIR`.

An entry is a folder whose name is a hash of all that it depends on. It is made beside and renamed,
by one process at a time, so that what has its name is whole; sizes and checksums are kept in it, so
that what was damaged since is noticed and made again. Whoever uses an entry may keep its files open
or mapped while another process replaces it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

try:
    import fcntl
except ImportError:  # a system without file locks: processes may do the same work twice
    fcntl = None  # type: ignore[assignment]

CACHE_DIR = "POPXL_CACHE_DIR"
"""Environment variable: the folder; an empty value means that nothing is kept."""

MANIFEST = "entry.json"
SAMPLES, SAMPLE = 64, 1 << 16
"""Of a large file, so many blocks of so many bytes are checked, the first and the last included."""

_log = logging.getLogger(__name__)


def folder() -> Path | None:
    """Where entries are; None where nothing is kept."""
    given = os.environ.get(CACHE_DIR)
    if given is not None:
        return Path(given).expanduser() if given else None
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(base).expanduser() / "popxl"
    except RuntimeError:  # no home
        return None


@functools.cache
def machine() -> str:
    """The processor and what it can do: part of the key of what was made for it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    wanted = ("vendor_id", "model name", "flags", "Features")
    first: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in wanted:
            first.setdefault(name.strip(), value.strip())
    return " ".join([platform.system(), platform.machine(), *first.values()])


def entry(kind: str, key: Mapping[str, str], make: Callable[[Path], None]) -> Path | None:
    """The folder with what `make` makes, made now where it is not there yet.

    Args:
        kind: the first part of the entry's name: letters, digits, `-` and `_`.
        key: all that the content depends on; another key is another entry.
        make: fills the empty folder it is given with files. What it raises goes to the caller, and
            no entry is left.

    Returns:
        The folder, its files checked; None, with one warning, where nothing can be kept.
    """
    root = folder()
    if root is None:
        return None
    place = root / f"{kind}-{_digest(key)}"
    if _is_whole(place):
        return place
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / f"{place.name}.lock").open("w")
    except OSError as error:
        _cannot_keep(root, error)
        return None
    with lock, _locked(lock):
        if not _is_whole(place):  # nobody made it while we waited
            return _make(place, make)
        return place


def _digest(key: Mapping[str, str]) -> str:
    text = json.dumps(dict(key), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@contextlib.contextmanager
def _locked(file) -> Iterator[None]:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed
    yield


def _make(place: Path, make: Callable[[Path], None]) -> Path | None:
    if place.exists():
        _log.warning("%s is damaged: it is made again", place)
    try:
        made = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    except OSError as error:
        _cannot_keep(place.parent, error)
        return None
    try:
        make(made)
        (made / MANIFEST).write_text(json.dumps(_described(made)))
        _put(made, place)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return place


def _put(made: Path, place: Path) -> None:
    """Give a finished folder its name, in the place of a damaged one."""
    for path in made.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if place.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
        place.rename(old / place.name)
        made.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    else:
        made.rename(place)


def _is_whole(place: Path) -> bool:
    try:
        return json.loads((place / MANIFEST).read_text()) == _described(place)
    except (OSError, ValueError):
        return False


def _described(place: Path) -> dict[str, list]:
    """Size and checksum of each file of an entry."""
    files = sorted(path for path in place.iterdir() if path.name != MANIFEST)
    return {path.name: [path.stat().st_size, _checksum(path)] for path in files}


def _checksum(path: Path) -> str:
    """Of a small file all bytes, of a large one blocks that are spread over it evenly."""
    size, total = path.stat().st_size, hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        if size <= SAMPLES * SAMPLE:
            total.update(file.read())
        else:
            for number in range(SAMPLES):
                file.seek(number * (size - SAMPLE) // (SAMPLES - 1))
                total.update(file.read(SAMPLE))
    return total.hexdigest()


def _cannot_keep(root: Path, error: OSError) -> None:
    _log.warning(
        "nothing is kept for the next launch: %s (%s); set %s to a folder that can be written to",
        root,
        error.strerror or error,
        CACHE_DIR,
    )
