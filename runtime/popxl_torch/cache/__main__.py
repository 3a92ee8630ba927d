"""What the runtime keeps for the next launch: list it, or remove it.

    python -m popxl_torch.cache                    the entries, with size and last use
    python -m popxl_torch.cache clear [NAME ...]   remove these, or all; never one in use

The folder is `POPXL_CACHE_DIR`, else `~/.cache/popxl`. `POPXL_CACHE_LIMIT`, such as 20G, is what it
may hold: beyond it, entries that were not used for longest are removed when one is made.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from popxl_torch import cache
from popxl_torch.cache.private_folder import PrivateFolder
from popxl_torch.cache.room import CACHE_LIMIT, Kept, kept, limit, remove


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m popxl_torch.cache", description="List or remove what is cached."
    )
    parser.add_argument("what", nargs="?", choices=("list", "clear"), default="list")
    parser.add_argument("names", nargs="*", help="entries to remove; all if left out")
    given = parser.parse_args(argv)
    root = cache.opened_root() if cache.folder() is not None else None
    if root is None:
        print(f"nothing is kept: {cache.CACHE_DIR} is empty, or its folder cannot be used")
        return 0
    entries = kept(root)
    if given.what == "list":
        print(listed(root, entries))
        return 0
    unknown = set(given.names) - {entry.name for entry in entries}
    if unknown:
        print(f"error: no entry {sorted(unknown)[0]!r} in {root.path}", file=sys.stderr)
        return 2
    print(cleared(root, [e for e in entries if not given.names or e.name in given.names]))
    return 0


def listed(root: PrivateFolder, entries: Sequence[Kept]) -> str:
    """A line for each entry, and one for all."""
    lines = [
        f"{_size(entry.size):>10}  {time.strftime('%Y-%m-%d %H:%M', time.localtime(entry.used))}  "
        f"{entry.name}{'  (in use)' if entry.in_use else ''}"
        for entry in entries
    ]
    return "\n".join(
        [*lines, f"{_size(sum(e.size for e in entries)):>10}  {_whole(root, entries)}"]
    )


def _whole(root: PrivateFolder, entries: Sequence[Kept]) -> str:
    try:
        most = limit()
        bound = "no limit" if most is None else f"at most {_size(most)}"
    except ValueError as error:
        bound = str(error)
    return f"{len(entries)} entries in {root.path} ({bound}, {CACHE_LIMIT})"


def cleared(root: PrivateFolder, entries: Sequence[Kept]) -> str:
    """Remove what is not in use; a line on it."""
    removed = [entry for entry in entries if remove(root, entry.name)]
    used = len(entries) - len(removed)
    left = f", {used} in use left" if used else ""
    return f"{len(removed)} entries removed, {_size(sum(e.size for e in removed))}{left}"


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"


if __name__ == "__main__":
    sys.exit(main())
