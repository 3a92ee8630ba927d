"""An entry of the cache that somebody else has changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from popxl_torch import cache

from damage.nasty import ESCAPE, Nasty


def of_cache(place: Path, nasty: Nasty) -> Iterator[str]:
    root = place / "cache"
    os.environ[cache.CACHE_DIR] = str(root)
    content = nasty.draw.randbytes(100)

    def make(folder: Path) -> None:
        (folder / "file").write_bytes(content)

    cache.entry("fuzz", {"a": "b"}, make)
    entry = next(path for path in root.iterdir() if path.is_dir())
    yield change_entry(root, entry, nasty)
    found = cache.entry("fuzz", {"a": "b"}, make)
    assert found is not None
    assert (Path(found) / "file").read_bytes() == content, "what is not ours was used"
    assert is_private(Path(found)), "what is not this user's alone was used"


def change_entry(root: Path, entry: Path, nasty: Nasty) -> str:
    file, what = entry / "file", nasty.draw.randrange(9)
    if what == 0:
        return f"manifest {nasty.file(entry / 'entry.json')}"
    if what == 1:
        return f"file {nasty.file(file)}"
    if what == 2:
        place = nasty.draw.choice([root, entry, file, entry / "entry.json"])
        place.chmod(nasty.draw.choice([0o777, 0o1777, 0o770, 0o666]))
        return f"mode of {place.name}"
    if what == 3 and os.geteuid() == 0:
        place = nasty.draw.choice([root, entry, file, entry / "entry.json"])
        os.chown(place, 12345, 12345)
        return f"owner of {place.name}"
    if what == 4:
        shutil.rmtree(entry)
        return f"entry {nasty.kind(entry)}"
    if what == 5:
        shutil.rmtree(root)
        return f"root {nasty.kind(root)}"
    if what == 6:
        (entry / nasty.draw.choice(["more", ESCAPE, "a" * 200])).write_bytes(b"more")
        return "more files"
    if what == 7:
        shutil.move(entry, root.with_name("moved"))
        entry.symlink_to(root.with_name("moved"))
        return "entry is a link"
    lock = entry.with_name(entry.name + ".lock")
    shutil.rmtree(entry)
    return f"lock {nasty.kind(lock)}"


def is_private(place: Path) -> bool:
    found = [place.stat(), *(path.lstat() for path in place.rglob("*"))]
    return all(s.st_uid == os.geteuid() and not s.st_mode & 0o022 for s in found)
