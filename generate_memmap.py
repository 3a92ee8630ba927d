"""Make memory maps of a checkpoint: its weights sharded as a run needs them, to be used in place.

    python generate_memmap.py --config bloom_560M --memmap-dir maps --shard-root bloom-560m
    python generate_memmap.py --verify maps
    python run_inference.py --config bloom_560M --memmap_dir maps --prompt "A dog is"

Interrupted, the same command goes on with what is missing. Several processes share the work with
--workers, under `torchrun`, or each with a --rank of its own, on any number of machines that see
the folder.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import popdist
from tqdm import tqdm

from config import BloomConfig
from config.costs import size
from config.options import field
from utils import distributed
from utils.checkpoints.arguments import parse_model_arguments
from utils.setup import UserError, run_script, setup_logging
from utils.writing import show

if TYPE_CHECKING:
    from utils.checkpoints.memmap.folder import MapFolder
    from utils.checkpoints.memmap.generator import Share

DESCRIPTION = (
    "Write a checkpoint's weights to the folder --memmap_dir, sharded as a preset needs them, for "
    "other scripts to load at once with the same --memmap_dir; or check such a folder (--verify)."
)


@dataclass
class MapArguments:
    """What to read, and how to share the work."""

    shard_root: str | None = field(
        default=None, metavar="FOLDER|ID", help="checkpoint to read; --hf_model if left out"
    )
    world_size: int = field(
        default=1, help="share the work with so many calls of this script, 1 or more"
    )
    rank: int = field(default=0, help="number of this call among them, from 0")
    workers: int = field(default=1, help="share the work among so many processes, 1 or more")
    overwrite: bool = field(
        default=False,
        help="replace maps of another checkpoint, model or sharding",
    )
    verify: str | None = field(
        default=None,
        metavar="FOLDER",
        help="make nothing: compare every file of a folder with its checksum",
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        UserError, ConfigError: for arguments that are not possible, and what prevents the maps.
    """
    config, arguments = parse_model_arguments(
        argv,
        makes_maps=True,
        extra=MapArguments,
        title="memory maps",
        prog="generate_memmap.py",
        description=DESCRIPTION,
    )
    setup_logging(config.execution.log_level)
    if arguments.verify is not None:
        if distributed.leads():
            show(verified(Path(arguments.verify).expanduser()))
    else:
        check(config, arguments)
        show(generated(config, arguments))


def check(config: BloomConfig, arguments: MapArguments) -> None:
    """Raises a `UserError` for arguments that are not possible."""
    if config.execution.memmap_dir is None:
        raise UserError("where to? Give a folder with --memmap-dir")
    for name in ("world_size", "workers"):
        value = getattr(arguments, name)
        if value < 1:
            raise UserError(f"{name} must be 1 or more, not {value}")
    if not 0 <= arguments.rank < arguments.world_size:
        raise UserError(
            f"rank must be from 0 to {arguments.world_size - 1}, one less than world_size, "
            f"not {arguments.rank}"
        )
    if arguments.world_size > 1 and distributed.several():
        raise UserError("the launcher says who shares the work: leave out --world-size and --rank")


def verified(folder: Path) -> str:
    """Check the maps of a folder against their checksums; a line that says so."""
    from utils.checkpoints.memmap.verification import verify

    files = verify(folder).files
    total = size(sum(f.size for f in files.values()), digits=2)
    return f"{folder}: {len(files)} files, {total}, all whole"


def generated(config: BloomConfig, arguments: MapArguments) -> str:
    """Make the maps; the summary."""
    from utils.checkpoints.memmap.generator import Generator  # late: wrong arguments need not wait
    from utils.checkpoints.memmap.workers import run_workers

    started = time.perf_counter()
    share = share_of(arguments)
    generator = Generator(config, arguments.shard_root)
    generator.begin(arguments.overwrite)
    workers = arguments.workers
    with bytes_bar(generator.bytes_missing(share), share.rank) as bar:
        if workers == 1:
            results = [generator.run(share, bar.update, bar.set_description)]
        else:
            results = run_workers(
                config, arguments.shard_root, share.split(workers), bar.update, bar.set_description
            )
    files, written = sum(r.files for r in results), sum(r.size for r in results)
    files, written = distributed.sum_of_all([files, written])
    return summary(generator.folder, files, written, time.perf_counter() - started)


def share_of(arguments: MapArguments) -> Share:
    """The work of this call; of processes that a launcher started, which meet, that of each."""
    from utils.checkpoints.memmap.generator import Share

    if not distributed.several():
        return Share(arguments.rank, arguments.world_size)
    distributed.meet("cpu")
    return Share(popdist.getInstanceIndex(), popdist.getNumInstances())


def bytes_bar(total: int, position: int) -> tqdm:
    """A bar in bytes on stderr, if that is a terminal; one below the other for several ranks."""
    return tqdm(
        total=total, unit="B", unit_scale=True, position=position, leave=False, disable=None
    )


def summary(folder: MapFolder, files: int, written: int, seconds: float) -> str:
    """What was done, and whether anything is left to do."""
    done = (
        f"{folder.path}: {files} files written, {size(written, digits=2)} in {seconds:.1f} s "
        f"({size(int(written / seconds), digits=2)}/s)"
    )
    missing = folder.finish()
    if missing:
        return f"{done}; {len(missing)} of {len(folder.names)} are still to come from other ranks"
    settings = folder.wanted.settings
    sharding = f"{settings['tensor_parallel_1']} x {settings['tensor_parallel_2']}"
    precision = settings["precision"]
    if settings["weight_precision"] != "full":
        precision += f" with {settings['weight_precision']} weights"
    return (
        f"{done}\ncomplete: {len(folder.names)} files of {folder.wanted.hf_model}, "
        f"{precision}, for {sharding} shards"
    )


if __name__ == "__main__":
    run_script(main)
