"""Files that have their name only once they are whole."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from utils.checkpoints.memmap.manifest import FileEntry
from utils.our_runtime import MappedPages
from utils.setup import UserError

CHUNK = 1 << 23
"""Bytes that are hashed and written at once, a multiple of `BLOCK`."""

BLOCK = 1 << 12
"""What addresses and sizes are multiples of where a write is to go past the page cache."""


class FileWriter:
    """Writes a file beside its final name, hashed on the way, and renames it.

    What is written is gathered in two buffers: one is filled while the other is hashed and on its
    way to the disk, past the page cache where the file system can.

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
        buffers = [np.frombuffer(mmap.mmap(-1, CHUNK), np.uint8) for _ in range(2)]
        self._buffer, self._other = buffers  # on pages
        self._filled = 0
        self._under_way: list[Future] = []  # of the other buffer
        return self

    def __exit__(self, *_: object) -> None:
        self._hashing.shutdown()
        self._writing.shutdown()
        if _is_named(self._file, self._partial):  # not committed
            self._partial.unlink()
        os.close(self._file)

    def write(self, data: np.ndarray | bytes, progress: Callable[[int], object]) -> None:
        """Add the bytes of `data`; `progress` is called with the size of each piece.

        The pages of a mapped array leave memory on the way.
        """
        array = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
        pages = MappedPages.of(array)
        flat = array.reshape(-1).view(np.uint8)
        begin = 0
        while begin < len(flat):
            end = min(len(flat), begin + CHUNK - self._filled)
            pages.bring(begin, end)
            self._buffer[self._filled :][: end - begin] = flat[begin:end]
            pages.release(begin, end)
            self._filled += end - begin
            if self._filled == CHUNK:
                self._send()
            progress(end - begin)
            begin = end

    def _send(self) -> None:
        """Begin to hash and write what is in the buffer; the other one is free from then on."""
        self._finish()
        chunk = self._buffer[: self._filled].data
        self._under_way = [
            self._hashing.submit(self._digest.update, chunk),
            self._writing.submit(self._write_out, chunk),
        ]
        self._size += self._filled
        self._buffer, self._other, self._filled = self._other, self._buffer, 0

    def _finish(self) -> None:
        with _told(self.path):
            for job in self._under_way:
                job.result()

    def _write_out(self, chunk: memoryview) -> None:
        whole = len(chunk) // BLOCK * BLOCK
        _write_past_cache(self._file, whole > 0)
        _write_all(self._file, chunk[:whole])
        _write_past_cache(self._file, False)
        _write_all(self._file, chunk[whole:])

    def commit(self, header: bytes | None, record: Callable[[FileEntry], None]) -> FileEntry:
        """Give the file its name, once all of it is on the disk.

        Args:
            header: the file's first bytes, where these have a checksum of their own.
            record: called with what the file is, after that and before it has its name.
        """
        self._send()
        self._finish()
        hashed = hashlib.sha256(header).hexdigest() if header else None
        entry = FileEntry(self._size, self._digest.hexdigest(), hashed)
        with _told(self.path):
            os.fsync(self._file)
            record(entry)
            os.replace(self._partial, self.path)
            sync_folder(self.path.parent)
        return entry


def _write_past_cache(file: int, wanted: bool) -> bool:
    """Have writes go straight to the disk from now on, or not; whether that is a change."""
    if not hasattr(os, "O_DIRECT"):
        return False
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    wanted_flags = flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT
    if flags == wanted_flags:
        return False
    try:
        fcntl.fcntl(file, fcntl.F_SETFL, wanted_flags)
    except OSError:  # a file system that cannot
        return False
    return True


def _write_all(file: int, data: memoryview) -> None:
    done = 0
    while done < len(data):
        try:
            done += os.write(file, data[done:])
        except OSError as error:
            # Some file systems say so only now.
            if error.errno != errno.EINVAL or not _write_past_cache(file, False):
                raise


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
            fcntl.flock(descriptor, fcntl.LOCK_EX)
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
        # No link that another user has put there, and nothing that others may write to.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        file = os.open(path, flags, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_named(file, path):  # not renamed by whom we waited for
                os.ftruncate(file, 0)
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


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
