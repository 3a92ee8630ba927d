"""The folder that maps are made in, by any number of processes that know nothing of each other.

While it is being filled it has a sub-folder `.generation`: `job.json`, the manifest without files,
says what is made here, and `<file>.json` what a complete file is. When every file is there,
`manifest.json` is written from these and they go.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from utils.checkpoints.memmap.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    file_entry,
    read_manifest,
)
from utils.checkpoints.memmap.writer import interrupts_between, locked, partial_path, write_file
from utils.outside import SETTINGS_BYTES, read_bytes, read_json
from utils.setup import UserError


class MapFolder:
    """The files of one manifest in a folder.

    Args:
        names: of the files that belong there, in the order of the manifest.
        wanted: the manifest, still without its files.

    Raises:
        UserError: where the folder cannot be made.
    """

    def __init__(self, path: Path, names: Sequence[str], wanted: Manifest):
        self.path, self.names, self.wanted = path, list(names), wanted
        self._notes = path / ".generation"
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make folder {path}: {error.strerror}") from None

    def begin(self, overwrite: bool, check_room: Callable[[list[str], int], None]) -> None:
        """Take the folder for these maps, or continue unfinished ones.

        Args:
            overwrite: discard maps of another checkpoint, model or sharding.
            check_room: called before anything is changed, with the names of the files to be written
                and the bytes of disk that will be free for them in addition; raises if these do
                not suffice.

        Raises:
            UserError: where the folder has such maps, or files of the same names that no
                generation made: these are never touched.
        """
        with interrupts_between(), locked(self.path):
            found = self._found()
            differences = self.wanted.differences(found) if found else []
            if found and not differences:
                missing = [name for name in self.names if self.entry(name) is None]
                check_room(missing, _bytes_on_disk(partial_path(self.path / n) for n in missing))
                return
            if found and not overwrite:
                raise UserError(
                    f"{self.path} has maps made for something else: {'; '.join(differences)}; "
                    "give another --memmap-dir, or --overwrite to discard them"
                )
            discarded = self._made_here(found) if found else set()
            self._check_foreign(discarded)
            check_room(self.names, _bytes_on_disk(discarded))
            if found:
                self._discard(discarded)
            self._notes.mkdir(exist_ok=True)
            write_file(self._job, self.wanted.to_json().encode())

    def entry(self, name: str) -> FileEntry | None:
        """The entry of a file, if it is complete; only its size and header are read."""
        entry = self._noted(name) or self._listed().get(name)
        whole = entry is not None and entry.fault(self.path / name) is None
        return entry if whole else None

    def record(self, name: str, entry: FileEntry) -> None:
        """Note the entry of a file, before the file gets its name."""
        self._notes.mkdir(exist_ok=True)
        write_file(self._note(name), json.dumps(asdict(entry)).encode())

    def finish(self) -> list[str]:
        """Write the manifest if every file is complete; the names of those that are not."""
        with interrupts_between(), locked(self.path):
            entries = {name: self.entry(name) for name in self.names}
            files = {name: entry for name, entry in entries.items() if entry is not None}
            if len(files) == len(self.names):
                manifest = replace(self.wanted, files=files).to_json().encode()
                path = self.path / MANIFEST
                if self._content(path) != manifest:
                    write_file(path, manifest)
                self._remove_notes()
        return [name for name in self.names if name not in files]

    def _content(self, path: Path) -> bytes | None:
        try:
            return read_bytes(path, UserError, SETTINGS_BYTES, absent=True)
        except FileNotFoundError:
            return None

    @property
    def _job(self) -> Path:
        return self._notes / "job.json"

    def _note(self, name: str) -> Path:
        return self._notes / f"{name}.json"

    def _noted(self, name: str) -> FileEntry | None:
        try:
            note = self._note(name)
            return file_entry(read_json(note, UserError, absent=True), str(note))
        except FileNotFoundError:
            return None
        except UserError as error:
            raise UserError(f"{error}; remove it") from None

    def _listed(self) -> dict[str, FileEntry]:
        try:
            return read_manifest(self.path / MANIFEST).files
        except FileNotFoundError:
            return {}

    def _found(self) -> Manifest | None:
        """What the folder's maps are made for, complete or not."""
        for path in (self.path / MANIFEST, self._job):
            try:
                return read_manifest(path)
            except FileNotFoundError:
                continue
        return None

    def _made_here(self, found: Manifest) -> set[Path]:
        """Files that generations made in this folder, without those that list them."""
        notes = (path for path in self._notes.glob("*.json") if path != self._job)
        noted = [path.name.removesuffix(".json") for path in notes]
        partials = self.path.glob(partial_path(Path("*")).name)
        return {self.path / name for name in (*found.files, *noted)} | set(partials)

    def _discard(self, paths: Iterable[Path]) -> None:
        """Remove what was made here; what lists it goes last, if this is interrupted."""
        for path in paths:
            path.unlink(missing_ok=True)
        self._remove_notes()
        (self.path / MANIFEST).unlink(missing_ok=True)

    def _remove_notes(self) -> None:
        if self._notes.is_dir():  # rmtree would open something else, and wait where it is a pipe
            shutil.rmtree(self._notes, ignore_errors=True)

    def _check_foreign(self, discarded: set[Path]) -> None:
        own = {*discarded, self.path / MANIFEST} if discarded else set()
        for name in (*self.names, MANIFEST):
            path = self.path / name
            if path.exists() and path not in own:
                raise UserError(
                    f"{self.path} already has a file {name} that belongs to no memory maps: "
                    "give an empty or a new folder"
                )


def _bytes_on_disk(paths: Iterable[Path]) -> int:
    """What files take on disk; those that are not there take nothing."""
    total = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            total += os.stat(path).st_blocks * 512
    return total
