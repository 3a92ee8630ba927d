"""Files that have their name only once they are whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from utils.memmap.manifest import FileEntry
from utils.memory import MappedPages
from utils.setup import UserError

try:
    import fcntl
except ImportError:  # not a POSIX system: one process at a time must write there
    fcntl = None  # type: ignore[assignment]

CHUNK = 1 << 23
"""Bytes that are written, hashed and let go at once."""

KEPT = 16 * CHUNK
"""Bytes written last that may still be on their way to the disk."""


class FileWriter:
    """Writes a file beside its final name, hashed on the way, and renames it.

    Of several processes that want to write one file, one does and the others wait. Used as a
    context manager; what was not committed is gone afterwards.

    Raises:
        UserError: on entering and from each method, where the system refuses.
    """

    def __init__(self, path: Path):
        self.path = path
        self._partial = partial_path(path)
        self._digest = hashlib.sha256()
        self._size = 0

    def __enter__(self) -> FileWriter:
        with _told(self.path):
            self._file = _claim(self._partial)
        self._hashing, self._writing = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._hashing.shutdown()
        self._writing.shutdown()
        if _is_named(self._file, self._partial):  # not committed
            self._partial.unlink()
        os.close(self._file)

    def write(self, data: np.ndarray | bytes, progress: Callable[[int], object]) -> None:
        """Add the bytes of `data`, in chunks; `progress` is called with the size of each.

        The pages of a mapped array leave memory once they are written.
        """
        array = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
        pages = MappedPages.of(array)
        flat = array.reshape(-1).view(np.uint8)

        def finish(begin: int, jobs: list[Future]) -> None:
            with _told(self.path):
                for job in jobs:
                    job.result()
            end = min(begin + CHUNK, len(flat))
            pages.release(begin, end)
            progress(end - begin)

        under_way: deque[tuple[int, list[Future]]] = deque()
        for begin in range(0, len(flat), CHUNK):
            pages.bring(begin, begin + CHUNK)
            chunk = flat[begin : begin + CHUNK].data
            jobs = [
                self._hashing.submit(self._digest.update, chunk),
                self._writing.submit(self._write_out, chunk),
            ]
            under_way.append((begin, jobs))
            if len(under_way) > 1:
                finish(*under_way.popleft())
        while under_way:
            finish(*under_way.popleft())

    def _write_out(self, chunk: memoryview) -> None:
        done = 0
        while done < len(chunk):
            done += os.write(self._file, chunk[done:])
        self._size += len(chunk)
        self._uncache(self._size - len(chunk), len(chunk))
        if self._size > KEPT:
            self._uncache(self._size - KEPT - len(chunk), len(chunk))

    def _uncache(self, begin: int, size: int) -> None:
        """Have bytes brought to the disk from now on, or dropped from memory if they are there."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file, max(0, begin), size, os.POSIX_FADV_DONTNEED)

    def commit(self, header: bytes | None, record: Callable[[FileEntry], None]) -> FileEntry:
        """Give the file its name, once all of it is on the disk.

        Args:
            header: the file's first bytes, where these have a checksum of their own.
            record: called with what the file is, after that and before it has its name.
        """
        hashed = hashlib.sha256(header).hexdigest() if header else None
        entry = FileEntry(self._size, self._digest.hexdigest(), hashed)
        with _told(self.path):
            os.fsync(self._file)
            self._uncache(0, 0)
            record(entry)
            os.replace(self._partial, self.path)
            sync_folder(self.path.parent)
        return entry


def partial_path(path: Path) -> Path:
    """Where a file is while it is being written."""
    return path.with_name(f".{path.name}.partial")


def write_file(path: Path, content: bytes) -> None:
    """Put a small file in its place, or replace it, at once."""
    with FileWriter(path) as writer:
        writer.write(content, lambda _: None)
        writer.commit(None, lambda _: None)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The only one of several processes of a machine that is here with this folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks on folders
            _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def interrupts_between() -> Iterator[Callable[[], None]]:
    """Let Ctrl-C interrupt only where the function given is called, and at the end.

    What must be tidied up is then known, and tidying up is not interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    pending: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pending.append(number))

    def check() -> None:
        if pending:
            raise KeyboardInterrupt

    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
    check()


def _claim(path: Path) -> int:
    """A descriptor of the empty file at `path`, which no other process has claimed."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _lock(file)
            if _is_named(file, path):  # not renamed by whom we waited for
                os.ftruncate(file, 0)
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock(descriptor: int) -> None:
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_named(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the system refuses, as a user's error."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; what is complete stays, and the same command "
            "goes on from there"
        ) from None
