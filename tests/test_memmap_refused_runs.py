"""Memory maps that are not run from, each refused in one line that names file or setting."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
from commands import run_python
from memmap_checkpoints import contents, refusal
from transformers import AutoTokenizer

import generate_memmap
from config import parse_arguments
from utils.generation.loading import load


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
    done = run_python("run_inference.py", *small.words(maps, 2), "--prompt", "A dog is")
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
