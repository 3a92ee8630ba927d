"""Entries of the cache folder: made once, whole, by one process at a time."""

import logging
import multiprocessing
import os
from pathlib import Path

import pytest
from popxl.backend import cache

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
    assert [path.suffix for path in root.iterdir()] == [".lock"]
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
