"""Entries of the cache folder: made once, whole, by one process at a time."""

import ctypes
import errno
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from popxl_torch import cache
from popxl_torch.backends.cpu.build import built_library

KEY = {"source": "1", "flags": "-O3"}


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(cache.CACHE_DIR, str(tmp_path / "cache"))
    return tmp_path / "cache"


class Maker:
    """Fills entries and counts how often."""

    def __init__(self, content: bytes = b"content"):
        self.content, self.count = content, 0

    def __call__(self, place: Path) -> None:
        self.count += 1
        (place / "file").write_bytes(self.content)


def test_an_entry_is_made_once_for_each_key():
    maker = Maker()
    first = cache.entry("test", KEY, maker)
    assert cache.entry("test", dict(reversed(KEY.items())), maker).samefile(first)
    assert (first / "file").read_bytes() == b"content"
    assert maker.count == 1
    assert not cache.entry("test", KEY | {"flags": "-O2"}, maker).samefile(first)
    assert maker.count == 2


@pytest.mark.parametrize("size", [100, cache.SAMPLES * cache.SAMPLE * 2], ids=["small", "large"])
@pytest.mark.parametrize("damage", ["cut", "changed", "removed", "no_manifest"])
def test_a_damaged_entry_is_made_again(size, damage, caplog):
    maker = Maker(b"x" * size)
    file = cache.entry("test", KEY, maker).resolve() / "file"
    if damage == "cut":
        file.write_bytes(b"x" * (size - 1))
    elif damage == "changed":
        file.write_bytes(b"x" * (size - 1) + b"y")
    elif damage == "removed":
        file.unlink()
    else:
        (file.parent / cache.MANIFEST).unlink()
    assert cache.entry("test", KEY, maker).resolve() == file.parent
    assert maker.count == 2
    assert file.read_bytes() == b"x" * size
    assert "made again" in caplog.text


def test_what_fails_leaves_no_entry(root):
    def fail(place: Path) -> None:
        (place / "file").write_text("half")
        raise KeyError("stopped")

    with pytest.raises(KeyError, match="stopped"):
        cache.entry("test", KEY, fail)
    assert sorted(path.suffix for path in root.iterdir()) == [".lock", ".use"]
    assert cache.entry("test", KEY, Maker()) is not None


def test_a_folder_that_cannot_be_made_is_one_warning(root, caplog):
    root.write_text("a file is in the way")
    with caplog.at_level(logging.WARNING):
        assert_temporary(cache.entry("test", KEY, Maker()), root)
    assert len(caplog.records) == 1
    assert cache.CACHE_DIR in caplog.text


def test_an_empty_setting_keeps_nothing(root, monkeypatch):
    monkeypatch.setenv(cache.CACHE_DIR, "")
    assert_temporary(cache.entry("test", KEY, Maker()), root)


def assert_temporary(place: Path, root: Path) -> None:
    assert (place / "file").read_bytes() == b"content"
    assert root not in place.resolve().parents


def _append(place: Path) -> None:
    root = Path(os.environ[cache.CACHE_DIR])
    with (root / "made").open("a") as file:
        file.write("once\n")
    (place / "file").write_text("content")


def _enter(results) -> None:
    results.put(cache.entry("test", KEY, _append).resolve())


def test_of_several_processes_one_makes_it(root):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_enter, args=(results,)) for _ in range(4)]
    for process in processes:
        process.start()
    places = {results.get(timeout=30) for _ in processes}
    for process in processes:
        process.join()
    assert len(places) == 1
    assert (root / "made").read_text() == "once\n"


def planted(root: Path, content: bytes = b"planted") -> Path:
    """An entry as another user could make it: whole by its checksums, with other content."""
    place = cache.entry("test", KEY, Maker(content)).resolve()
    assert place.parent == root
    return place


def opened(path: Path, mode: int) -> Callable[[Path], None]:
    return lambda place: (place / path).chmod(mode)


def given_away(path: Path) -> Callable[[Path], None]:
    return lambda place: os.chown(place / path, 12345, 12345)


def linked(place: Path) -> None:
    place.rename(place.parent.with_name("elsewhere"))
    place.symlink_to(place.parent.with_name("elsewhere"))


def linked_file(place: Path) -> None:
    (place / "file").rename(place.parent.with_name("elsewhere"))
    (place / "file").symlink_to(place.parent.with_name("elsewhere"))


def piped(place: Path) -> None:
    shutil.rmtree(place)
    os.mkfifo(place)


def bracketed(place: Path) -> None:
    (place / cache.MANIFEST).write_text("[" * 100_000)


ENTRIES: dict[str, Callable[[Path], None]] = {
    "all may write to the entry": opened(Path(), 0o777),
    "the group may write to the entry": opened(Path(), 0o770),
    "all may write to a file": opened(Path("file"), 0o666),
    "all may write to its manifest": opened(Path(cache.MANIFEST), 0o606),
    "another's entry": given_away(Path()),
    "another's file": given_away(Path("file")),
    "another's manifest": given_away(Path(cache.MANIFEST)),
    "a link for an entry": linked,
    "a link for a file": linked_file,
    "a pipe for an entry": piped,
    "brackets for a manifest": bracketed,
}
ROOTS: dict[str, Callable[[Path], None]] = {
    "all may write to it": opened(Path(), 0o1777),
    "the group may write to it": opened(Path(), 0o770),
    "another's": given_away(Path()),
}


def needs_root(name: str) -> None:
    if "another" in name and os.geteuid() != 0:
        pytest.skip("only root can give files away")


@pytest.mark.parametrize("change", ENTRIES)
def test_an_entry_that_is_not_ours_alone_is_made_again(change, root, caplog):
    needs_root(change)
    ENTRIES[change](planted(root))
    maker = Maker(b"ours")
    place = cache.entry("test", KEY, maker)  # a pipe that is opened to be read never answers
    assert (place / "file").read_bytes() == b"ours"
    assert maker.count == 1
    assert len(caplog.records) == 1
    assert "made again" in caplog.text
    for path in (place, place / "file", place / cache.MANIFEST):
        assert path.stat().st_uid == os.geteuid()
        assert not path.stat().st_mode & 0o022
    assert cache.entry("test", KEY, maker).samefile(place)
    assert maker.count == 1


@pytest.mark.parametrize("change", ROOTS)
def test_a_folder_that_is_not_ours_alone_is_not_used(change, root, caplog):
    needs_root(change)
    planted(root)
    ROOTS[change](root)
    place = cache.entry("test", KEY, Maker())
    assert_temporary(place, root)
    assert place.stat().st_mode & 0o777 == 0o700
    assert len(caplog.records) == 1
    assert cache.CACHE_DIR in caplog.text


def test_planted_kernels_are_not_loaded(root, tmp_path, monkeypatch):
    """What another user puts in a folder that all can write to runs no code."""
    compiler = tmp_path / "compiler"
    compiler.write_text(
        "#!/bin/sh\n"
        'for last in "$@"; do :; done\n'
        '[ "$1" = --version ] && exec echo 1\n'
        'echo "int ours = 1;" | cc -shared -xc - -o "$last"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    library = built_library().resolve()
    run = f'__attribute__((constructor)) void run() {{ fopen("{tmp_path}/ran", "w"); }}'
    code = f"#include <stdio.h>\n{run}\n"
    subprocess.run(["cc", "-shared", "-xc", "-", "-o", library], input=code, text=True, check=True)
    size, digest = library.stat().st_size, hashlib.blake2b(library.read_bytes(), digest_size=16)
    (library.parent / cache.MANIFEST).write_text(
        json.dumps({library.name: [size, digest.hexdigest()]})
    )
    root.chmod(0o1777)
    assert ctypes.c_int.in_dll(ctypes.CDLL(str(built_library())), "ours").value == 1
    assert not (tmp_path / "ran").exists()


def test_what_was_checked_is_what_is_used(root):
    """The folder that is given out stays the one that was checked, whatever its name is now."""
    place = cache.entry("test", KEY, Maker(b"ours"))
    name = place.resolve()
    name.rename(root / "moved")
    name.mkdir()
    (name / "file").write_bytes(b"planted")
    assert (place / "file").read_bytes() == b"ours"


def test_a_dangling_link_costs_a_temporary_folder(root, tmp_path, caplog):
    root.symlink_to(tmp_path / "nowhere")
    maker = Maker()
    assert_temporary(cache.entry("test", KEY, maker), root)
    assert maker.count == len(caplog.records) == 1


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_folder_that_is_full_costs_a_temporary_one(call, root, monkeypatch, caplog):
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"os.{call}", fail)
    maker = Maker()
    assert_temporary(cache.entry("test", KEY, maker), root)
    assert maker.count == len(caplog.records) == 1
    assert "No space left" in caplog.text
    assert sorted(path.suffix for path in root.iterdir()) == [".lock", ".use"]


def test_a_folder_that_cannot_be_written_to_is_used_for_what_it_has(root, monkeypatch):
    cache.entry("test", KEY, Maker())
    for path in [root, *root.iterdir()]:
        path.chmod(0o500)
    maker = Maker()
    assert (cache.entry("test", KEY, maker) / "file").read_bytes() == b"content"
    assert maker.count == 0


def test_a_default_folder_is_made_ours_alone(tmp_path, monkeypatch):
    monkeypatch.delenv(cache.CACHE_DIR)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "popxl").mkdir()
    (tmp_path / "popxl").chmod(0o775)
    place = cache.entry("test", KEY, Maker())
    assert place.resolve().parent == tmp_path / "popxl"
    assert (tmp_path / "popxl").stat().st_mode & 0o777 == 0o755


def test_a_folder_for_another_program_is_below_ours(root):
    place = cache.subfolder("other")
    assert place == root / "other"
    assert place.stat().st_mode & 0o777 == 0o700
    (place / "kept").write_text("content")
    assert (cache.subfolder("other") / "kept").exists()


@pytest.mark.parametrize("reason", ["a link in it", "another's file", "all may write to it"])
def test_a_folder_for_another_program_that_is_not_ours_alone_is_made_again(reason, root, caplog):
    needs_root(reason)
    place = cache.subfolder("other")
    if reason == "a link in it":
        (place / "kept").symlink_to("/dev/null")
    elif reason == "all may write to it":
        (place / "kept").write_text("content")
        place.chmod(0o777)
    else:
        (place / "kept").write_text("content")
        os.chown(place / "kept", 12345, 12345)
    assert cache.subfolder("other") == place
    assert not list(place.iterdir())
    assert place.stat().st_mode & 0o777 == 0o700
    assert len(caplog.records) == 1


@pytest.mark.parametrize("reason", ["all may write", "all may rename it"])
def test_a_folder_that_another_user_can_change_is_given_to_no_program(reason, root, caplog):
    cache.subfolder("other")
    (root if reason == "all may write" else root.parent).chmod(0o777)
    temporary = cache.subfolder("other")
    assert root not in temporary.parents
    assert temporary.stat().st_mode & 0o777 == 0o700
    assert len(caplog.records) == 1


def test_a_permissive_umask_of_another_program_costs_nothing(root):
    file = cache.subfolder("other") / "kept"
    file.write_text("content")
    file.chmod(0o664)
    assert (cache.subfolder("other") / "kept").exists()
