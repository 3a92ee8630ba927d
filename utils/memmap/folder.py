"""The folder that maps are made in, by any number of processes that know nothing of each other.

While it is being filled it has a sub-folder `.generation`: `job.json`, the manifest without files,
says what is made here, and `<file>.json` what a complete file is. When every file is there,
`manifest.json` is written from these and they go.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from utils.memmap.manifest import MANIFEST, FileEntry, Manifest, read_manifest
from utils.memmap.writer import interrupts_between, locked, partial_path, write_file
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

    def begin(self, overwrite: bool = False) -> None:
        """Take the folder for these maps, or go on with what was begun.

        Args:
            overwrite: discard maps of another checkpoint, model or sharding.

        Raises:
            UserError: where the folder has such maps, or files of the same names that no
                generation made: these are never touched.
        """
        with interrupts_between(), locked(self.path):
            found = self._found()
            if found is not None:
                differences = self.wanted.differences(found)
                if not differences:
                    return
                if not overwrite:
                    raise UserError(
                        f"{self.path} has maps made for something else: {'; '.join(differences)}; "
                        "give another --memmap-dir, or --overwrite to discard them"
                    )
                self._discard(found)
            self._check_foreign()
            self._notes.mkdir(exist_ok=True)
            write_file(self._job, self.wanted.to_json().encode())

    def entry(self, name: str) -> FileEntry | None:
        """What a file is, if it is complete; a few bytes of it are looked at."""
        entry = self._noted(name) or self._listed().get(name)
        whole = entry is not None and entry.fault(self.path / name) is None
        return entry if whole else None

    def record(self, name: str, entry: FileEntry) -> None:
        """Note what a file is that is about to get its name."""
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
                if not path.exists() or path.read_bytes() != manifest:
                    write_file(path, manifest)
                shutil.rmtree(self._notes, ignore_errors=True)
        return [name for name in self.names if name not in files]

    def bytes_begun(self, names: Sequence[str]) -> int:
        """Bytes of disk that the beginnings of these files take."""
        total = 0
        for name in names:
            try:
                total += os.stat(partial_path(self.path / name)).st_blocks * 512
            except FileNotFoundError:
                continue
        return total

    @property
    def _job(self) -> Path:
        return self._notes / "job.json"

    def _note(self, name: str) -> Path:
        return self._notes / f"{name}.json"

    def _noted(self, name: str) -> FileEntry | None:
        try:
            return FileEntry(**json.loads(self._note(name).read_text()))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{self._note(name)} is damaged: {error}; remove it") from None

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

    def _discard(self, found: Manifest) -> None:
        """Remove what generations made here; what lists it goes last, if this is interrupted."""
        noted = [path.name.removesuffix(".json") for path in self._notes.glob("*.json")]
        for name in [*found.files, *noted]:
            (self.path / name).unlink(missing_ok=True)
        for partial in self.path.glob(partial_path(Path("*")).name):
            partial.unlink(missing_ok=True)
        shutil.rmtree(self._notes, ignore_errors=True)
        (self.path / MANIFEST).unlink(missing_ok=True)

    def _check_foreign(self) -> None:
        for name in (*self.names, MANIFEST):
            if (self.path / name).exists():
                raise UserError(
                    f"{self.path} already has a file {name} that belongs to no memory maps: "
                    "give an empty or a new folder"
                )
