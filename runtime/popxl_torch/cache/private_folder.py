"""Folders that nobody but this user can write to, held open so that they stay the ones looked at.

What lies in a cache is loaded as code, so it must be of this user's making. Owner and mode are
asked of the open folder or file, never of a name; names are looked up in the open folder, and no
link is followed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
from pathlib import Path

WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
OTHERS = stat.S_IRWXG | stat.S_IRWXO
OPEN_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


_log = logging.getLogger(__name__)


class NotPrivateError(Exception):
    """Why a folder or file is not used, as what follows its name in a sentence."""


class PrivateFolder:
    """An open folder of this user's alone.

    Attributes:
        path: where it was found, for people.
        descriptor: of the folder; it is closed with this object.
    """

    def __init__(self, path: Path, descriptor: int):
        self.path, self.descriptor = path, descriptor

    @classmethod
    def open(cls, path: Path, tighten: bool = False) -> PrivateFolder:
        """The folder at `path`, made where it is not there.

        Args:
            tighten: take from others what they may write, rather than refuse the folder.

        Raises:
            OSError: where it cannot be made or opened.
            NotPrivateError: where others can write to it, or it is another's.
        """
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = cls(path, os.open(path, OPEN_FOLDER))
        found = os.fstat(folder.descriptor)
        if tighten and found.st_uid == _user() and found.st_mode & WRITABLE_BY_OTHERS:
            os.fchmod(folder.descriptor, stat.S_IMODE(found.st_mode) & ~WRITABLE_BY_OTHERS)
        check_owner(os.fstat(folder.descriptor))
        return folder

    @property
    def opened(self) -> Path:
        """A path to the open folder, also for processes that this one starts; where the system has
        none, the one it was found at."""
        opened = Path(f"/proc/{os.getpid()}/fd/{self.descriptor}")
        return opened if opened.exists() else self.path

    def folder(self, name: str, make: bool = False) -> PrivateFolder:
        """A folder in this one. Raises like `open`, and a `FileNotFoundError` where it is not
        there and not to be made."""
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=self.descriptor)
        inner = PrivateFolder(self.path / name, self._open(name, OPEN_FOLDER))
        check_owner(os.fstat(inner.descriptor))
        return inner

    def file(self, name: str, flags: int = os.O_RDONLY) -> int:
        """A descriptor of a regular file in this folder. Raises like `folder`."""
        descriptor = self._open(name, flags)
        try:
            found = os.fstat(descriptor)
            check_owner(found)
            if not stat.S_ISREG(found.st_mode):
                raise NotPrivateError("has something in it that is no file")
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def own_folder(self, name: str) -> PrivateFolder:
        """`folder`, made where it is not there, with all that is in it this user's alone; one that
        is not so is removed first, with a warning."""
        try:
            inner = self.folder(name, make=True)
            inner.check_contents()
        except NotPrivateError as error:
            _log.warning("%s %s: it is made again", self.path / name, error)
            self.remove(name)
            inner = self.folder(name, make=True)
            inner.check_contents()
        return inner

    def names(self) -> list[str]:
        return sorted(os.listdir(self.descriptor))

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it, as far as that is possible."""
        found = _status(name, self.descriptor)
        if found is not None and stat.S_ISDIR(found.st_mode):
            shutil.rmtree(name, ignore_errors=True, dir_fd=self.descriptor)
        elif found is not None:  # rmtree would open it, and wait where it is a pipe
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self.descriptor)

    def check_contents(self) -> None:
        """Raises a `NotPrivateError` where anything below is not this user's alone.

        In a folder that nobody else can enter, nobody else can write, whatever the modes.
        """
        entered = os.fstat(self.descriptor).st_mode & OTHERS
        for _, folders, files, descriptor in os.fwalk(dir_fd=self.descriptor):
            for name in (*folders, *files):
                found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                check_owner(found, modes=bool(entered))
                if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
                    raise NotPrivateError("has something in it that is no file")

    def _open(self, name: str, flags: int) -> int:
        try:
            return os.open(name, flags | NO_LINK, 0o600, dir_fd=self.descriptor)
        except OSError:
            found = _status(name, self.descriptor)
            if found is not None and stat.S_ISLNK(found.st_mode):
                raise NotPrivateError("has a link in it") from None
            raise

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # where it was never opened
            os.close(self.descriptor)


def check_owner(found: os.stat_result, modes: bool = True) -> None:
    """Raises a `NotPrivateError` where what was found is another's, or others can write to it."""
    if found.st_uid != _user():
        raise NotPrivateError(f"has another owner (user {found.st_uid})")
    if modes and found.st_mode & WRITABLE_BY_OTHERS:
        raise NotPrivateError(f"can be written to by others (mode {stat.S_IMODE(found.st_mode):o})")


def is_stable(path: Path) -> bool:
    """Whether no other user, but for the system's, can put something else under this name.

    For programs that look it up again.
    """
    for folder in path.resolve().parents:
        found = folder.stat()
        replaceable = found.st_mode & WRITABLE_BY_OTHERS and not found.st_mode & stat.S_ISVTX
        if replaceable or found.st_uid not in (0, _user()):
            return False
    return True


def _status(name: str, descriptor: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=descriptor, follow_symlinks=False)
    except OSError:
        return None


def _user() -> int:
    if not hasattr(os, "geteuid"):
        raise NotPrivateError("is on a system that does not tell whose it is")
    return os.geteuid()
