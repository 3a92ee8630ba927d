"""What memory maps are not made from or into, each told in one line that names the thing."""

from __future__ import annotations

import os
import shutil

import pytest
from commands import run_python
from memmap_checkpoints import Small, contents, refusal

import generate_memmap
from utils.checkpoints.checkpoint import CheckpointError
from utils.setup import UserError


def test_a_folder_of_another_checkpoint_is_refused_until_overwritten(small, whole, maps, tmp_path):
    other = Small.save(tmp_path / "other", seed=1)
    message = refusal(lambda: other.generate(maps, tp1=2))
    assert str(maps) in message and "--overwrite" in message
    assert "bloom there has other weights than other here" in message
    assert contents(maps) == contents(whole)
    other.generate(maps, "--overwrite", tp1=2)
    assert contents(maps) == contents(other.generate(tmp_path / "expected", tp1=2))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--tensor_parallel_1", "4"], "tensor_parallel_1 is 2 there, 4 here"),
        (["--tensor_parallel_2", "2"], "tensor_parallel_2 is 1 there, 2 here"),
        (["--precision", "bfloat16"], "precision is float32 there, bfloat16 here"),
    ],
)
def test_a_folder_for_other_settings_is_refused(change, named, small, whole, maps):
    message = refusal(lambda: small.generate(maps, *change, tp1=2))
    assert str(maps) in message and named in message
    assert contents(maps) == contents(whole)


def test_a_folder_half_made_for_another_sharding_is_refused_until_overwritten(small, tmp_path):
    maps = small.generate(tmp_path / "maps", "--world-size", "2", "--rank", "0", tp1=2)
    assert not (maps / "manifest.json").exists()
    before = contents(maps)
    assert "tensor_parallel_1 is 2 there, 4 here" in refusal(lambda: small.generate(maps, tp1=4))
    assert contents(maps) == before
    small.generate(maps, "--overwrite", tp1=4)
    assert contents(maps) == contents(small.generate(tmp_path / "expected", tp1=4))


def test_overwriting_leaves_no_file_of_a_deeper_model(small, tmp_path):
    maps = Small.save(tmp_path / "deep", layers=6).generate(tmp_path / "maps")
    (maps / ".layer_0005.safetensors.partial").write_text("of a process that was killed")
    small.generate(maps, "--overwrite")
    assert contents(maps) == contents(small.generate(tmp_path / "expected"))


def test_files_that_are_no_maps_are_never_touched(small, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    before = contents(folder)
    for more in ([], ["--overwrite"]):
        message = refusal(lambda more=more: small.generate(folder, *more))
        assert str(folder) in message and "config.json" in message
    assert contents(folder) == before


def test_the_checkpoints_own_folder_is_refused(small):
    before = contents(small.folder)
    assert "config.json" in refusal(lambda: small.generate(small.folder, "--overwrite"))
    assert contents(small.folder) == before


def test_other_files_may_be_in_the_folder(small, tmp_path):
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "notes.txt").write_text("mine")
    small.generate(tmp_path / "maps")
    small.generate(tmp_path / "maps", "--overwrite", tp1=2)
    assert (tmp_path / "maps" / "notes.txt").read_text() == "mine"


def test_a_checkpoint_of_another_model_is_refused(small, tmp_path):
    with pytest.raises(CheckpointError, match="layers +. 5 +. 4"):
        small.generate(tmp_path / "maps", "--layers", "5")
    assert not (tmp_path / "maps").exists()


def test_a_missing_shard_is_named(small, tmp_path):
    broken = shutil.copytree(small.folder, tmp_path / "broken")
    shard = sorted(broken.glob("*.safetensors"))[2]
    shard.unlink()
    message = refusal(lambda: small.generate(tmp_path / "maps", "--shard-root", str(broken)))
    assert shard.name in message
    assert not (tmp_path / "maps").exists()


def test_a_truncated_shard_is_named(small, tmp_path):
    broken = shutil.copytree(small.folder, tmp_path / "broken")
    shard = sorted(broken.glob("*.safetensors"))[2]
    os.truncate(shard, shard.stat().st_size - 10)
    message = refusal(lambda: small.generate(tmp_path / "maps", "--shard-root", str(broken)))
    assert str(shard) in message


def test_a_path_that_is_a_file_is_refused(small, tmp_path):
    (tmp_path / "maps").write_text("a file")
    assert str(tmp_path / "maps") in refusal(lambda: small.generate(tmp_path / "maps"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--memmap-dir"),
        (["--memmap-dir", "x", "--world-size", "0"], "world_size must be 1 or more, not 0"),
        (["--memmap-dir", "x", "--workers", "-1"], "workers must be 1 or more, not -1"),
        (["--memmap-dir", "x", "--world_size", "2", "--rank", "2"], "from 0 to 1.*not 2"),
        (["--memmap-dir", "x", "--rank", "-1"], "from 0 to 0.*not -1"),
        (["--memmap-dir", "x", "--shard-root", "nowhere/at/all"], "nowhere/at/all"),
        (["--verify", "nowhere"], "no folder nowhere"),
    ],
)
def test_impossible_arguments_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        generate_memmap.main(words)


def test_a_wrong_command_line_is_one_line_on_stderr_and_status_2(tmp_path):
    done = run_python("generate_memmap.py", "--verify", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "manifest.json" in done.stderr
