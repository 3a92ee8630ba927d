"""Quantised weights of a checkpoint, cached as memory maps in `POPXL_CACHE_DIR`.

The key of an entry is made of what it depends on: the checkpoint's files and values, the settings
and the code of `modelling`. If several processes want the same entry, one makes it and the others
wait.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import popxl_shared

import modelling
from config import BloomConfig
from utils.checkpoints.checkpoint import Checkpoint, CheckpointError
from utils.checkpoints.memmap.fingerprint import fingerprint
from utils.checkpoints.memmap.generator import Generator
from utils.checkpoints.memmap.manifest import MANIFEST, VERSION, map_settings
from utils.checkpoints.memmap.reader import MemoryMaps
from utils.checkpoints.memmap.writer import locked
from utils.our_runtime import NotPrivateError, PrivateFolder, cache
from utils.setup import UserError

MAPS = "maps"

WEIGHTS = (".safetensors", ".bin", ".json")
"""Endings of a checkpoint's files of weights and settings."""

logger = logging.getLogger(__name__)


def kept_maps(config: BloomConfig, checkpoint: Checkpoint) -> MemoryMaps | None:
    """The maps of a checkpoint's quantised weights, made now where they are missing or damaged.

    A bar on stderr, if that is a terminal, shows the progress.

    Returns:
        None, with one warning, where they cannot be cached.

    Raises:
        CheckpointError: where the checkpoint cannot be read or quantised.
    """
    root = cache.opened_root() if cache is not None else None
    if root is None:
        return None
    name = f"weights-{_key(config, checkpoint)}"
    place = root.path / name
    try:
        used = cache.in_use(root, name)
        held = root.own_folder(name)
        place = held.opened  # from here on nothing is looked up under the name
        config = config.changed(memmap_dir=str(place / MAPS))
        with locked(place):
            held.folder(MAPS, make=True)
            maps = _whole_maps(config, held) or _made(config, checkpoint, held)
        cache.trim(root)
    except CheckpointError:
        raise
    except (OSError, UserError, NotPrivateError) as error:
        _warn(
            "quantised weights are not cached for the next run: %s", error, place, root.path / name
        )
        return None
    maps.held = held, used
    return maps


def _whole_maps(config: BloomConfig, held: PrivateFolder) -> MemoryMaps | None:
    """Maps that are complete and as they were written; damaged ones are removed."""
    if not (
        held.opened / MAPS / MANIFEST
    ).exists():  # none, or an unfinished one, which is continued
        return None
    try:
        return MemoryMaps(config)
    except UserError as error:
        _warn("%s; they are made again", error, held.opened, held.path)
        _clear(held)
        return None


def _made(config: BloomConfig, checkpoint: Checkpoint, held: PrivateFolder) -> MemoryMaps:
    generator = Generator(config, str(checkpoint.path))
    try:
        generator.begin()
    except CheckpointError:
        raise
    except UserError as error:  # the unfinished maps are damaged
        _warn("%s; it is begun again", error, held.opened, held.path)
        _clear(held)
        generator.begin()
    generator.run_alone("quantising")
    return MemoryMaps(config)


def _clear(held: PrivateFolder) -> None:
    held.remove(MAPS)
    held.folder(MAPS, make=True)


def _warn(line: str, error: Exception, opened: Path, path: Path) -> None:
    logger.warning(line, str(error).replace(str(opened), str(path)))


def _key(config: BloomConfig, checkpoint: Checkpoint) -> str:
    path = checkpoint.path
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in WEIGHTS)
    stats = [(path.name, path.stat()) for path in files]
    depends: dict[str, Any] = {
        "checkpoint": fingerprint(checkpoint),
        "files": [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats],
        "settings": map_settings(config),
        "code": _code(),
        "maps": VERSION,
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:32]


def _code() -> str:
    """A hash of the code that shards and quantises."""
    digest = hashlib.sha256()
    for package in (modelling, popxl_shared):
        for path in sorted(Path(str(package.__file__)).parent.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
