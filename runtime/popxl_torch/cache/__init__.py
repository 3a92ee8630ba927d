"""What was made once and is kept for the next launch, in the folder `POPXL_CACHE_DIR`.

An entry is a folder whose name is a hash of all that it depends on. It is made beside and renamed,
by one process at a time, so that what has its name is whole; sizes and checksums are kept in it, so
that what was damaged since is noticed and made again. Whoever uses an entry may keep its files open
or mapped while another process replaces it. `room` bounds what they take together.

What is in an entry is run. So the folder, each entry and each file must belong to this user and to
nobody else, and what was checked is held open: a path that is given out leads through the open
folder. Where nothing can be kept, what is made is temporary, and the run is as quick.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import io
import json
import logging
import os
import platform
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from popxl.session_options import CACHE_DIR as CACHE_DIR
from popxl.session_options import cache_dir

from popxl_torch.cache.private_folder import NotPrivateError, PrivateFolder, is_stable
from popxl_torch.cache.room import LOCK, in_use, trim

try:
    import fcntl
except ImportError:  # a system without file locks: processes may do the same work twice
    fcntl = None  # type: ignore[assignment]

MANIFEST = "entry.json"
LARGEST_MANIFEST = 1 << 20
SAMPLES, SAMPLE = 64, 1 << 16
"""Of a large file, so many blocks of so many bytes are checked, the first and the last included."""

_open: list[object] = []
"""Folders that were given out, and what keeps them from being removed."""

_warned: set[tuple[Path, str]] = set()

_log = logging.getLogger(__name__)


def folder() -> Path | None:
    """Where entries are; None where nothing is kept."""
    given = cache_dir()
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


def entry(kind: str, key: Mapping[str, str], make: Callable[[Path], None]) -> Path:
    """The folder with what `make` makes, made now where it is not there yet.

    Args:
        kind: the first part of the entry's name: letters, digits, `-` and `_`.
        key: all that the content depends on; another key is another entry.
        make: fills the empty folder it is given with files. What it raises goes to the caller, and
            no entry is left.

    Returns:
        A path to the folder, which stays open in this process, its files checked. Where nothing
        can be kept it is a temporary one, with one warning that says why.
    """
    root, name = opened_root(), f"{kind}-{_digest(key)}"
    if root is None:
        return _kept_open(_made(make))
    _open.append(in_use(root, name))
    place = _whole(root, name)
    if place is None:
        try:
            lock = os.fdopen(root.file(name + LOCK, os.O_RDWR | os.O_CREAT), "w")
        except (OSError, NotPrivateError) as error:
            _cannot_keep(root.path, error)
            return _kept_open(_made(make))
        with lock, _locked(lock):
            place = _whole(root, name, tell=True)  # somebody may have made it while we waited
            place = place or _stored(root, name, _made(make))
        trim(root)
    return _kept_open(place)


def opened_root() -> PrivateFolder | None:
    """The folder of the entries, opened and known to be this user's alone.

    Returns:
        None where nothing is to be kept, or it cannot be; of the latter a warning tells.
    """
    root = folder()
    if root is None:
        return None
    try:
        return PrivateFolder.open(root, tighten=cache_dir() is None)
    except (OSError, ValueError, NotPrivateError) as error:
        _cannot_keep(root, error)
        return None


def subfolder(name: str) -> Path:
    """A folder for a program that looks it up by name again: no other user can replace it.

    A temporary one, with one warning that says why, where nothing can be kept.
    """
    root = opened_root()
    if root is not None:
        try:
            _open.append(in_use(root, name))
            inner = root.own_folder(name)
            if not is_stable(inner.path):
                raise NotPrivateError("is in a folder that others can write to")
            return inner.path.resolve()
        except (OSError, NotPrivateError) as error:
            _cannot_keep(root.path / name, error)
    return _temporary().path


def _digest(key: Mapping[str, str]) -> str:
    text = json.dumps(dict(key), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@contextlib.contextmanager
def _locked(file) -> Iterator[None]:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed
    yield


def _made(make: Callable[[Path], None]) -> PrivateFolder:
    """A temporary folder that `make` has filled."""
    made = _temporary()
    make(made.opened)
    return made


def _temporary() -> PrivateFolder:
    path = Path(tempfile.mkdtemp(prefix="popxl-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return PrivateFolder.open(path)


def _stored(root: PrivateFolder, name: str, made: PrivateFolder) -> PrivateFolder:
    """What was made as an entry; as it is, with one warning, where that cannot be."""
    beside = f".{name}.{secrets.token_hex(8)}"
    try:
        place = root.folder(beside, make=True)
        for file in made.names():
            with open(made.file(file), "rb") as source:
                _write(place, file, source)
        _write(place, MANIFEST, io.BytesIO(json.dumps(_described(place)).encode()))
        _rename(root, beside, name)
        return root.folder(name)
    except (OSError, NotPrivateError) as error:
        _cannot_keep(root.path, error)
        return made
    finally:
        root.remove(beside)


def _write(place: PrivateFolder, name: str, source: BinaryIO) -> None:
    with open(place.file(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
        shutil.copyfileobj(source, file)
        file.flush()
        os.fsync(file.fileno())


def _rename(root: PrivateFolder, made: str, name: str) -> None:
    """Give a finished folder its name, in the place of a damaged one."""
    at = {"src_dir_fd": root.descriptor, "dst_dir_fd": root.descriptor}
    old = f"{made}.old"
    with contextlib.suppress(FileNotFoundError):
        os.rename(name, old, **at)
    os.rename(made, name, **at)
    root.remove(old)


def _whole(root: PrivateFolder, name: str, tell: bool = False) -> PrivateFolder | None:
    """An entry that is there, is this user's alone and as it was made; `tell` says what is not."""
    try:
        place = root.folder(name)
        with open(place.file(MANIFEST), "rb") as file:
            described = json.loads(file.read(LARGEST_MANIFEST))
        if described == _described(place):
            return place
        reason = "is damaged"
    except FileNotFoundError as error:
        if error.filename == name:
            return None
        reason = "is damaged"
    except NotPrivateError as error:
        reason = str(error)
    except (OSError, ValueError, RecursionError):
        reason = "is damaged"
    if tell:
        _log.warning("%s %s: it is made again", root.path / name, reason)
    return None


def _described(place: PrivateFolder) -> dict[str, list]:
    """Size and checksum of each file of an entry."""
    described: dict[str, list] = {}
    for name in place.names():
        if name != MANIFEST:
            with open(place.file(name), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                described[name] = [size, _checksum(file, size)]
    return described


def _checksum(file: BinaryIO, size: int) -> str:
    """Of a small file all bytes, of a large one blocks that are spread over it evenly."""
    total = hashlib.blake2b(digest_size=16)
    if size <= SAMPLES * SAMPLE:
        total.update(file.read(size))
    else:
        for number in range(SAMPLES):
            file.seek(number * (size - SAMPLE) // (SAMPLES - 1))
            total.update(file.read(SAMPLE))
    return total.hexdigest()


def _kept_open(place: PrivateFolder) -> Path:
    _open.append(place)
    return place.opened


def _cannot_keep(root: Path, error: Exception) -> None:
    told = f"({error.strerror})" if isinstance(error, OSError) and error.strerror else f"{error}"
    if (root, told) in _warned:
        return
    _warned.add((root, told))
    _log.warning(
        "nothing is kept for the next launch: %s %s; set %s to a folder of your own, with room, "
        "that nobody else can write to",
        root,
        told,
        CACHE_DIR,
    )
