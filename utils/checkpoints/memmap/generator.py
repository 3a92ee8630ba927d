"""Making memory maps of a checkpoint: all of them, or the share of one rank."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from tqdm import tqdm

from config import BloomConfig
from modelling.program import inference
from utils.checkpoints.checkpoint import Checkpoint, open_checkpoint
from utils.checkpoints.gguf_file import SUFFIX
from utils.checkpoints.hub import DESCRIPTION
from utils.checkpoints.memmap.fingerprint import fingerprint
from utils.checkpoints.memmap.folder import MapFolder
from utils.checkpoints.memmap.manifest import Manifest, map_settings
from utils.checkpoints.memmap.overlap import Overlap
from utils.checkpoints.memmap.parts import part_files, part_values, variables_of
from utils.checkpoints.memmap.source import Source, one_thread
from utils.checkpoints.memmap.tensor_file import PAGE, PartFile, part_file
from utils.checkpoints.memmap.writer import FileWriter, interrupts_between
from utils.escaping import in_one_line
from utils.outside import is_file_name, is_regular, open_regular
from utils.setup import UserError

Progress = Callable[[int], object]
"""Is called with the bytes that were written."""

AT_ONCE = 3
"""Files that are written at once: while one is flushed to the disk, the next are on their way."""

ROOM = 1_000_000_000
"""Bytes of parts in memory from which on the next has to wait until one is written."""


@dataclass(frozen=True)
class Share:
    """The part of the work that is `rank`'s, of `world_size` that share it; they count from 0."""

    rank: int = 0
    world_size: int = 1

    def of(self, items: list[Any]) -> list[Any]:
        """Every `world_size`th item: each is one rank's, whatever the numbers."""
        return items[self.rank :: self.world_size]

    def split(self, workers: int) -> list[Share]:
        """This share in so many."""
        ranks = [self.rank + worker * self.world_size for worker in range(workers)]
        return [Share(rank, self.world_size * workers) for rank in ranks]


@dataclass(frozen=True)
class Written:
    """What one call has done; sizes in bytes.

    Attributes:
        files, size: those it has written.
        missing: names of files that are other ranks' and not there yet.
    """

    files: int
    size: int
    missing: list[str]


class Generator:
    """The maps of one checkpoint and configuration, in one folder.

    Args:
        config: its `execution.memmap_dir` is the folder.
        shard_root: folder or model id of the checkpoint; the configuration's `hf_model` where None.
        checkpoint: it itself, already open.

    Raises:
        UserError: where the checkpoint cannot be read or is not the configuration's, and where
            the folder cannot be made.
    """

    def __init__(
        self,
        config: BloomConfig,
        shard_root: str | None = None,
        checkpoint: Checkpoint | None = None,
    ):
        self.checkpoint = checkpoint or open_checkpoint(
            shard_root or config.model.hf_model, lora=config.model.lora
        )
        self.checkpoint.check_against(config)
        # The program's variables are what counts: one short pass, on this machine.
        decided = self.checkpoint.decided(config)
        self.config = decided.changed(device="cpu", prompt_chunks=(1,))
        self._session = inference(self.config, spread=False)
        self._parts = part_files(self._session)
        self._copied = copied_files(self.checkpoint.path)
        manifest = Manifest(
            hf_model=_name(config.model.hf_model),
            fingerprint=self.checkpoint.identity or fingerprint(self.checkpoint),
            settings=map_settings(self.config),
        )
        path = Path(str(config.execution.memmap_dir)).expanduser()
        self.folder = MapFolder(path, [*self._parts, *self._copied], manifest)

    def begin(self, overwrite: bool = False) -> None:
        """Take the folder, once it is known that the disk has room.

        Raises:
            UserError: where it has not, or the folder has other maps that are not to be discarded.
        """
        self.folder.begin(overwrite, self._check_room)

    def bytes_missing(self, share: Share) -> int:
        """How much a rank has to write."""
        return sum(self._bytes_of(name) for name in self._missing(share))

    def run(self, share: Share, progress: Progress, describe: Callable[[str], object]) -> Written:
        """Write the files of a rank that are not complete, and the manifest if all are then.

        Args:
            describe: is called with the name of each file before it is written.
        """
        told = Lock()
        with (
            interrupts_between() as check,
            one_thread(),
            Overlap(AT_ONCE, ROOM) as overlap,
        ):

            def wrote(size: int) -> None:
                with told:
                    progress(size)
                check()

            for name in self._missing(share):
                check()
                with told:
                    describe(in_one_line(name))
                size = self._bytes_of(name)
                overlap.make_room(size)
                content = self._content(name, check)
                overlap.submit(size, partial(self._write, name, content, wrote))
            sizes = [size for size in overlap.results() if size]
        return Written(len(sizes), sum(sizes), self.folder.finish())

    def run_alone(self, doing: str) -> None:
        """Write all that is missing, with a bar on stderr, if that is a terminal."""
        total = self.bytes_missing(Share())
        with tqdm(total=total, unit="B", unit_scale=True, leave=False, disable=None) as bar:
            self.run(Share(), bar.update, lambda file: bar.set_description(f"{doing}, {file}"))

    def _missing(self, share: Share) -> list[str]:
        """Files that are not complete: the small ones, and a rank's share of the parts."""
        names = [*self._copied, *share.of(list(self._parts))]
        return [name for name in names if self.folder.entry(name) is None]

    def _bytes_of(self, file: str) -> int:
        """Bytes of a file but for its header: of a part, those of its tensors in all replicas."""
        if file in self._copied:
            return self._copied[file].stat().st_size
        return sum(
            math.prod(v.shape_on_host) * np.dtype(v.dtype.as_numpy()).itemsize
            for v in variables_of(self._session, self._parts[file]).values()
        )

    def _check_room(self, missing: list[str], freed: int) -> None:
        """Whether `missing` files find room once `freed` bytes of others are discarded."""
        # A page for the header, and one for what the file system adds to a file.
        needed = sum(self._bytes_of(file) + 2 * PAGE for file in missing)
        free = shutil.disk_usage(self.folder.path).free + freed
        if needed > free:
            raise UserError(
                f"not enough disk for {self.folder.path}: {needed:,} bytes are needed, "
                f"{free:,} are free"
            )

    def _content(self, name: str, check: Callable[[], None]) -> PartFile:
        if name in self._copied:
            with open_regular(self._copied[name], UserError) as file:
                return PartFile(b"", {name: np.fromfile(file, np.uint8)})
        return self._part(self._parts[name], check)

    def _part(self, part: str, check: Callable[[], None]) -> PartFile:
        """A part's file from the checkpoint, of which no page stays in memory."""
        variables = variables_of(self._session, part)
        source = Source(self.checkpoint, check)
        values = part_values(self.config, self._session, source.module)[part]()
        source.release()
        about = {
            "part": part,
            "checkpoint": self.folder.wanted.fingerprint,
            **{name: str(value) for name, value in self.folder.wanted.settings.items()},
        }
        return part_file({name: values[v] for name, v in variables.items()}, about)

    def _write(self, name: str, content: PartFile, wrote: Progress) -> int:
        """Write a file, whose arrays leave memory on the way; its size, or 0 where it was there."""
        with FileWriter(self.folder.path / name) as writer:
            if self.folder.entry(name) is not None:
                return 0
            header = content.header or None
            if header:
                writer.write(header, lambda _: None)
            while content.arrays:
                writer.write(content.arrays.pop(next(iter(content.arrays))), wrote)
            return writer.commit(header, partial(self.folder.record, name)).size


def copied_files(folder: Path) -> dict[str, Path]:
    """The files beside the weights, by name: settings and tokenizer."""
    folder = folder.parent if folder.suffix == SUFFIX else folder
    found = [path for pattern in DESCRIPTION for path in folder.glob(pattern)]
    return {
        path.name: path for path in sorted(found) if is_file_name(path.name) and is_regular(path)
    }


def _name(hf_model: str) -> str:
    """A model id, or the name of a folder: it must be the same from wherever it is said."""
    path = Path(hf_model).expanduser()
    return path.resolve().name if path.is_dir() else hf_model
