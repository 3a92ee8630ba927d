"""Quantised weights of a checkpoint, kept for the next time as memory maps in `POPXL_CACHE_DIR`.

They are kept by what they depend on: the checkpoint's files and values, the settings and the code
of `modelling`. Of several processes that want the same, one makes them and the others wait.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from tqdm import tqdm

import modelling
from config import BloomConfig
from utils.checkpoint import Checkpoint, CheckpointError
from utils.memmap.fingerprint import fingerprint
from utils.memmap.generator import Generator, Share
from utils.memmap.manifest import MANIFEST, VERSION, map_settings
from utils.memmap.reader import MemoryMaps
from utils.memmap.writer import locked
from utils.setup import UserError

CACHE_DIR = "POPXL_CACHE_DIR"
"""Environment variable: the folder; an empty value means that nothing is kept."""

WEIGHTS = (".safetensors", ".bin", ".json")
"""Endings of a checkpoint's files of weights and settings."""

logger = logging.getLogger(__name__)


def kept_maps(config: BloomConfig, checkpoint: Checkpoint) -> MemoryMaps | None:
    """The maps of a checkpoint's quantised weights, made now where they are missing or damaged.

    A bar on stderr, if that is a terminal, shows how far it is.

    Returns:
        None, with one warning, where they cannot be kept.

    Raises:
        CheckpointError: where the checkpoint cannot be read or quantised.
    """
    root = cache_folder()
    if root is None:
        return None
    place = root / f"weights-{_key(config, checkpoint)}"
    execution = dataclasses.replace(config.execution, memmap_dir=str(place / "maps"))
    config = dataclasses.replace(config, execution=execution)
    try:
        place.mkdir(parents=True, exist_ok=True)
        with locked(place):
            return _whole_maps(config, place / "maps") or _made(config, checkpoint)
    except CheckpointError:
        raise
    except (OSError, UserError) as error:
        logger.warning("quantised weights are not kept for the next time: %s", error)
        return None


def cache_folder() -> Path | None:
    """Where things are kept: `POPXL_CACHE_DIR`, else in the user's cache; None for nowhere."""
    given = os.environ.get(CACHE_DIR)
    if given is not None:
        return Path(given).expanduser() if given else None
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "popxl"
    except RuntimeError:  # no home
        return None


def _whole_maps(config: BloomConfig, folder: Path) -> MemoryMaps | None:
    """Maps that are complete and as they were written; damaged ones are removed."""
    if not (folder / MANIFEST).exists():  # none, or begun: that is gone on with
        return None
    try:
        return MemoryMaps(config)
    except UserError as error:
        logger.warning("%s; they are made again", error)
        shutil.rmtree(folder)
        return None


def _made(config: BloomConfig, checkpoint: Checkpoint) -> MemoryMaps:
    generator = Generator(config, str(checkpoint.path))
    generator.begin()
    with tqdm(
        total=generator.bytes_missing(Share()),
        unit="B",
        unit_scale=True,
        leave=False,
        disable=None,
    ) as bar:
        generator.run(Share(), bar.update, lambda file: bar.set_description(f"quantising, {file}"))
    return MemoryMaps(config)


def _key(config: BloomConfig, checkpoint: Checkpoint) -> str:
    files = sorted(path for path in checkpoint.path.iterdir() if path.suffix in WEIGHTS)
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
    for path in sorted(Path(str(modelling.__file__)).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
