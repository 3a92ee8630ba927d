"""Comparing maps with their checksums."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from utils.checkpoints.memmap.manifest import MANIFEST, FileEntry, Manifest, read_manifest
from utils.outside import open_regular
from utils.setup import UserError

BLOCK = 1 << 23


def verify(folder: Path) -> Manifest:
    """The manifest of a folder, each of whose files is as it was written.

    Every byte is read; a bar on stderr, if that is a terminal, shows how fast.

    Raises:
        UserError: where the folder has no maps, or with every file that is wrong and how.
    """
    manifest = open_manifest(folder)
    total = sum(entry.size for entry in manifest.files.values())
    pool = ThreadPoolExecutor(max(1, os.cpu_count() or 1))
    with tqdm(
        desc="verify", total=total, unit="B", unit_scale=True, leave=False, disable=None
    ) as bar:
        try:
            faults = pool.map(
                lambda item: _fault(folder / item[0], item[1], bar.update), manifest.files.items()
            )
            wrong = [
                f"{name} ({fault})"
                for name, fault in zip(manifest.files, faults, strict=True)
                if fault
            ]
        finally:
            pool.shutdown(cancel_futures=True)
    refuse(folder, wrong)
    return manifest


def open_manifest(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        UserError: where there is none, or it cannot be used.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: memory maps are made by generate_memmap.py")
    try:
        return read_manifest(folder / MANIFEST)
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {MANIFEST}: generate_memmap.py writes it when all maps are there"
        ) from None


def refuse(folder: Path, wrong: list[str]) -> None:
    """Raises a `UserError` that names the files in `wrong`, where there are any."""
    if wrong:
        raise UserError(
            f"memory maps in {folder} cannot be used: {'; '.join(wrong)}; remove what is wrong "
            "and run generate_memmap.py again, which makes what is missing"
        )


def _fault(path: Path, entry: FileEntry, progress: Callable[[int], object]) -> str | None:
    fault = entry.fault(path)
    if fault is not None:
        progress(entry.size)
        return fault
    try:
        with open_regular(path, UserError) as file:
            checksum = _checksum(file, progress)
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if checksum == entry.sha256 else "altered: its checksum is another"


def _checksum(file, progress: Callable[[int], object]) -> str:
    digest, buffer = hashlib.sha256(), bytearray(BLOCK)
    while size := file.readinto(buffer):
        digest.update(memoryview(buffer)[:size])
        progress(size)
    return digest.hexdigest()
