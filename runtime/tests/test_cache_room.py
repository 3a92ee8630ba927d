"""The cache's limit: what was not used for longest goes first, and nothing that is in use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from popxl_torch import cache
from popxl_torch.cache.__main__ import main
from popxl_torch.cache.private_folder import PrivateFolder
from popxl_torch.cache.room import CACHE_LIMIT, USE, in_use, kept, limit, remove, trim

SIZE = 1 << 20


@pytest.fixture
def root(tmp_path, monkeypatch) -> PrivateFolder:
    monkeypatch.setenv(cache.CACHE_DIR, str(tmp_path / "cache"))
    return PrivateFolder.open(tmp_path / "cache")


def make(root: PrivateFolder, name: str, used: int) -> None:
    (root.path / name).mkdir(mode=0o700)
    (root.path / name / "file").write_bytes(os.urandom(SIZE))
    in_use(root, name).close()
    os.utime(root.path / (name + USE), (used, used))


def names(root: PrivateFolder) -> list[str]:
    return [entry.name for entry in kept(root)]


@pytest.mark.parametrize(
    ("text", "bytes_"), [("500M", 5e8), ("20g", 2e10), ("1.5GB", 1.5e9), ("7", 7), ("0", 0)]
)
def test_the_limit_is_a_size(text, bytes_, monkeypatch):
    monkeypatch.setenv(CACHE_LIMIT, text)
    assert limit() == bytes_


def test_an_empty_limit_is_none_and_another_text_an_error(monkeypatch):
    monkeypatch.setenv(CACHE_LIMIT, "")
    assert limit() is None
    monkeypatch.setenv(CACHE_LIMIT, "plenty")
    with pytest.raises(ValueError, match="POPXL_CACHE_LIMIT must be a size"):
        limit()


def test_what_was_not_used_for_longest_goes_first(root, monkeypatch):
    for name, used in (("b", 200), ("a", 300), ("c", 100)):
        make(root, name, used)
    assert names(root) == ["a", "b", "c"]
    monkeypatch.setenv(CACHE_LIMIT, str(int(2.5 * SIZE)))
    assert [entry.name for entry in trim(root)] == ["c"]
    assert names(root) == ["a", "b"]
    assert trim(root) == []


def test_nothing_that_is_in_use_is_removed(root, monkeypatch):
    for name, used in (("old", 100), ("new", 300)):
        make(root, name, used)
    code = (
        "import sys, pathlib; from popxl_torch.cache.room import in_use\n"
        "from popxl_torch.cache.private_folder import PrivateFolder\n"
        f"held = in_use(PrivateFolder.open(pathlib.Path({str(root.path)!r})), 'old')\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with child:
        assert child.stdout.readline() == "held\n"
        os.utime(root.path / ("old" + USE), (100, 100))
        assert [entry.in_use for entry in kept(root)] == [False, True]
        monkeypatch.setenv(CACHE_LIMIT, "0")
        assert [entry.name for entry in trim(root)] == ["new"]
        assert not remove(root, "old")
        child.communicate()
    assert [entry.name for entry in trim(root)] == ["old"]
    assert root.names() == []


def test_an_entry_is_in_use_as_long_as_the_process_that_asked_for_it(root, monkeypatch):
    monkeypatch.setenv(CACHE_LIMIT, "0")
    made = cache.entry("test", {"a": "1"}, lambda place: (place / "file").write_text("x") and None)
    assert (made / "file").read_text() == "x"
    (entry,) = kept(root)
    assert entry.in_use
    assert trim(root) == []
    assert (made / "file").exists()


def test_folders_that_were_left_behind_are_removed(root):
    for name in (".test-1.ab", ".test-2.cd"):
        (root.path / name).mkdir()
    os.utime(root.path / ".test-1.ab", (1000, 1000))
    trim(root)
    assert root.names() == [".test-2.cd"]


def test_the_command_lists_and_clears(root, capsys):
    make(root, "weights-1", 1_700_000_000)
    make(root, "kernels-2", 1_600_000_000)
    held = in_use(root, "kernels-2")
    assert main([]) == 0
    newest, oldest, total = capsys.readouterr().out.splitlines()
    assert newest.endswith("kernels-2  (in use)")
    assert oldest.split()[:2] == ["1.1", "MB"] and oldest.endswith("weights-1")
    assert "2 entries" in total and "at most 50.00 GB" in total
    assert main(["clear", "other"]) == 2
    assert "no entry 'other'" in capsys.readouterr().err
    assert main(["clear"]) == 0
    assert capsys.readouterr().out == "1 entries removed, 1.1 MB, 1 in use left\n"
    assert names(root) == ["kernels-2"]
    held.close()
    assert main(["clear", "kernels-2"]) == 0
    assert root.names() == []


def test_where_nothing_is_kept_the_command_says_so(monkeypatch, capsys):
    monkeypatch.setenv(cache.CACHE_DIR, "")
    assert main(["list"]) == 0
    assert "nothing is kept" in capsys.readouterr().out


def test_a_file_in_an_entrys_place_counts_too(root):
    Path(root.path / "stray").write_bytes(b"x" * 5000)
    assert names(root) == ["stray"]
    assert remove(root, "stray")
