"""What memory maps are not made from or run from, each told in one line that names the thing."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from memmap_checkpoints import Small, contents, run_script
from transformers import AutoTokenizer

import generate_memmap
from config import parse_arguments
from utils.checkpoint import CheckpointError
from utils.loading import load
from utils.setup import UserError


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Small:
    return Small.save(tmp_path_factory.mktemp("checkpoint") / "bloom")


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory) -> Path:
    return small.generate(tmp_path_factory.mktemp("maps") / "whole", tp1=2)


@pytest.fixture
def maps(whole, tmp_path) -> Path:
    """Maps that may be damaged."""
    return shutil.copytree(whole, tmp_path / "maps")


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


# --- making them ---


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
    done = run_script("generate_memmap.py", "--verify", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "manifest.json" in done.stderr


# --- running from them ---


def alter(path: Path, offset: int) -> None:
    """Change one bit."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


FILES = ["embeddings.safetensors", "layer_0002.safetensors", "head.safetensors"]
DAMAGES = {
    "missing": Path.unlink,
    "bytes long, not": cut,
    "bytes long": lengthen,
    "header": lambda path: alter(path, 40),
    "altered": lambda path: alter(path, 7),  # a header of nearly all addresses there are
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_by_name_when_loading_and_verifying(file, damage, small, maps):
    DAMAGES[damage](maps / file)
    for action in (
        lambda: load(small.config(maps, 2)),
        lambda: generate_memmap.main(["--verify", str(maps)]),
    ):
        message = refusal(action)
        assert str(maps) in message and file in message and damage in message
        assert not any(other in message for other in FILES if other != file)


def test_a_damaged_tokenizer_file_is_refused_by_name(small, maps):
    cut(maps / "tokenizer.json")
    assert "tokenizer.json (" in refusal(lambda: load(small.config(maps, 2)))


def test_an_altered_weight_is_found_by_its_checksum_alone(small, maps):
    alter(maps / "layer_0001.safetensors", -1)
    alter(maps / "head.safetensors", -1)
    load(small.config(maps, 2))
    for action in (
        lambda: load(small.config(maps, 2, 1, "--verify_memmap", "true")),
        lambda: generate_memmap.main(["--verify", str(maps)]),
    ):
        message = refusal(action)
        assert "layer_0001.safetensors (altered" in message
        assert "head.safetensors (altered" in message
        assert "layer_0000" not in message


def test_whole_maps_pass_with_their_checksums(small, maps, capsys):
    load(small.config(maps, 2, 1, "--verify_memmap", "true"))
    generate_memmap.main(["--verify", str(maps)])
    assert "all whole" in capsys.readouterr().out


def test_what_was_wrong_is_made_again_once_it_is_removed(small, whole, maps):
    alter(maps / "layer_0001.safetensors", -1)
    (maps / "layer_0001.safetensors").unlink()
    small.generate(maps, tp1=2)
    assert contents(maps) == contents(whole)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tensor_parallel_1": 4}, "tensor_parallel_1 is 2 there, 4 here"),
        ({"tensor_parallel_2": 2}, "tensor_parallel_2 is 1 there, 2 here"),
        ({"layers": 3}, "layers is 4 there, 3 here"),
        ({"hidden_size": 64}, "hidden_size is 32 there, 64 here"),
        ({"heads": 8}, "heads is 4 there, 8 here"),
        ({"vocab_size": 404}, "vocab_size is 403 there, 404 here"),
        ({"layer_norm_epsilon": 0.5}, "layer_norm_epsilon is 1e-05 there, 0.5 here"),
        ({"precision": "float16"}, "precision is float32 there, float16 here"),
    ],
)
def test_maps_for_other_settings_are_refused_by_the_settings_name(change, named, small, maps):
    config = small.config(maps, 2)
    for section in ("model", "execution"):
        part = getattr(config, section)
        values = {name: value for name, value in change.items() if hasattr(part, name)}
        config = dataclasses.replace(config, **{section: dataclasses.replace(part, **values)})
    message = refusal(lambda: load(config))
    assert str(maps / "manifest.json") in message and named in message


def test_settings_that_no_weight_depends_on_may_differ(small, maps):
    more = ["--batch_size", "2", "--sequence_length", "20", "--prompt_chunks", "4", "8"]
    assert load(small.config(maps, 2, 1, *more)).passes.batch_size == 2


def test_maps_that_are_not_finished_are_refused(small, tmp_path):
    maps = small.generate(tmp_path / "maps", "--world-size", "2", "--rank", "1", tp1=2)
    message = refusal(lambda: load(small.config(maps, 2)))
    assert str(maps) in message and "manifest.json" in message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "not JSON"),
        ("[]", "no manifest"),
        ('{"format": "bloom memory maps", "version": 99}', "version 99"),
        ('{"format": "bloom memory maps", "version": 1}', "damaged"),
        (
            '{"format": "bloom memory maps", "version": 1, "hf_model": "x", "fingerprint": "y", '
            '"settings": {}, "files": {"../x": {"size": 1, "sha256": ""}}}',
            "damaged",
        ),
    ],
)
def test_a_damaged_manifest_is_refused(text, named, small, maps):
    (maps / "manifest.json").write_text(text)
    for action in (lambda: load(small.config(maps, 2)), lambda: small.generate(maps, tp1=2)):
        message = refusal(action)
        assert str(maps / "manifest.json") in message and named in message


def test_a_folder_that_is_not_there_is_refused(small, tmp_path):
    message = refusal(lambda: load(small.config(tmp_path / "nowhere")))
    assert str(tmp_path / "nowhere") in message


def test_maps_without_a_tokenizer_are_refused(small, tmp_path):
    silent = shutil.copytree(small.folder, tmp_path / "silent")
    for file in silent.glob("token*"):
        file.unlink()
    maps = small.generate(tmp_path / "maps", "--shard-root", str(silent))
    assert f"no tokenizer in {maps}" in refusal(lambda: load(small.config(maps)))


def test_a_front_end_refuses_in_one_line_and_with_status_2(small, maps):
    cut(maps / "layer_0003.safetensors")
    done = run_script("run_inference.py", *small.words(maps, 2), "--prompt", "A dog is")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "layer_0003.safetensors" in done.stderr


def test_the_tokenizer_is_the_checkpoints(small, maps):
    text = "Où est le garçon ? 犬は動物です"
    ours = load(small.config(maps, 2)).tokenizer
    theirs = AutoTokenizer.from_pretrained(small.folder)
    assert ours(text).input_ids == theirs(text).input_ids


def test_every_setting_may_be_spelt_with_dashes(small, tmp_path):
    words = [w.replace("_", "-") if w[:2] == "--" else w for w in small.words(tmp_path, 2)]
    assert parse_arguments(words) == parse_arguments(small.words(tmp_path, 2))


def test_the_manifest_tells_what_the_maps_are_of(small, whole):
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["hf_model"] == "bloom"
    assert manifest["settings"]["layers"] == 4
    assert manifest["settings"]["tie_word_embeddings"] is True
    names = set(contents(whole)) - {"manifest.json"}
    assert set(manifest["files"]) == names
    for name, entry in manifest["files"].items():
        assert entry["size"] == (whole / name).stat().st_size
        assert entry["sha256"] == contents(whole)[name]
