"""Quantised weights from a checkpoint, from maps and from the cache: the same text, and kept."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import start_python
from memmap_checkpoints import Small, identities, refusal
from popxl_torch.backends.cpu.build import built_library
from safetensors.torch import load_file, save_file

from config import BloomConfig
from utils.checkpoints.checkpoint import CheckpointError
from utils.generation.loading import load

TEXT = [5, 9, 300, 17, 2]
PRECISIONS = [["--weight_precision", "int8"], ["--weight_precision=int4", "--group_size=8"]]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("POPXL_CACHE_DIR", str(folder))
    return folder


@pytest.fixture(scope="module")
def kernels() -> Path:
    """The compiled kernels in the cache that all tests share."""
    return built_library().resolve().parent


def settings(small: Small, *more: str, tp1: int = 1, tp2: int = 1) -> BloomConfig:
    return small.config(None, tp1, tp2, *(more or PRECISIONS[0]))


def logits(config: BloomConfig) -> np.ndarray:
    loaded = load(config)
    found = loaded.passes.prefill(0, TEXT)
    loaded.passes.session.__exit__(None, None, None)
    return found


def entries(cache: Path) -> list[Path]:
    return sorted(cache.glob("weights-*/maps"))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tp1, tp2", [(1, 1), (4, 2)])
def test_maps_cache_and_checkpoint_give_the_same_logits(
    precision, tp1, tp2, small, cache, tmp_path, monkeypatch
):
    config = settings(small, *precision, tp1=tp1, tp2=tp2)
    made, kept = logits(config), logits(config)
    assert len(entries(cache)) == 1
    monkeypatch.setenv("POPXL_CACHE_DIR", "")
    unkept = logits(config)
    maps = small.generate(tmp_path / "maps", *precision, tp1=tp1, tp2=tp2)
    mapped = logits(small.config(maps, tp1, tp2, *precision))
    for other in (kept, unkept, mapped):
        np.testing.assert_array_equal(other, made)


def test_what_is_kept_is_not_made_again(small, cache):
    logits(settings(small))
    before = identities(entries(cache)[0])
    logits(settings(small))
    assert identities(entries(cache)[0]) == before


def test_every_setting_that_weights_depend_on_has_an_entry_of_its_own(small, cache):
    changes = [[], ["--precision=float16"], ["--tensor_parallel_1=2"], ["--weight_precision=int4"]]
    for number, change in enumerate(changes, start=1):
        logits(settings(small, "--weight_precision=int8", "--group_size=8", *change))
        assert len(entries(cache)) == number
    logits(settings(small, "--weight_precision=int8", "--batch_size=2", "--group_size=16"))
    assert len(entries(cache)) == len(changes)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("layer_0001.safetensors", "cut"),
        ("layer_0001.safetensors", "missing"),
        ("embeddings.safetensors", "header"),
        ("manifest.json", "cut"),
        ("manifest.json", "missing"),
    ],
)
def test_a_damaged_entry_is_made_again(file, damage, small, cache, caplog):
    expected = logits(settings(small))
    path = entries(cache)[0] / file
    if damage == "cut":
        os.truncate(path, path.stat().st_size - 100)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"?" + path.read_bytes()[1:])
    np.testing.assert_array_equal(logits(settings(small)), expected)
    assert ("made again" in caplog.text) == ((file, damage) != ("manifest.json", "missing"))


def test_an_altered_weight_is_found_and_made_again_where_checksums_are_asked_for(small, cache):
    expected = logits(settings(small))
    path = entries(cache)[0] / "layer_0002.safetensors"
    data = bytearray(path.read_bytes())
    data[-5000] ^= 64
    path.write_bytes(data)
    verified = settings(small, *PRECISIONS[0], "--verify_memmap=true")
    np.testing.assert_array_equal(logits(verified), expected)


@pytest.mark.parametrize(
    ("place", "how"),
    [
        ("", "others may write"),
        *((place, how) for place in ("", "maps") for how in ("another owner", "a link")),
        ("maps/layer_0001.safetensors", "another owner"),
        ("maps/layer_0001.safetensors", "a link"),
    ],
)
def test_an_entry_that_is_not_ours_alone_is_made_again(place, how, small, cache, caplog):
    expected = logits(settings(small))
    path = entries(cache)[0].parent / place
    if how == "others may write":
        path.chmod(0o777)
    elif how == "a link":
        path.rename(cache.with_name("elsewhere"))
        path.symlink_to(cache.with_name("elsewhere"))
    elif os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    np.testing.assert_array_equal(logits(settings(small)), expected)
    assert "made again" in caplog.text
    found = [entries(cache)[0].parent, *entries(cache)[0].parent.rglob("*")]
    assert not [path for path in found if path.is_symlink() or path.stat().st_mode & 0o022]
    assert {path.stat().st_uid for path in found} == {os.geteuid()}


def test_a_folder_that_others_can_write_to_keeps_nothing(small, cache, caplog):
    cache.mkdir()
    cache.chmod(0o1777)
    logits(settings(small))
    assert not entries(cache)
    assert "can be written to by others" in caplog.text


@pytest.mark.parametrize("content", ["[" * 100_000, "{}", "\0"])
def test_notes_that_are_damaged_are_begun_again(content, small, cache):
    expected = logits(settings(small))
    maps = entries(cache)[0]
    (maps / "manifest.json").unlink()
    (maps / ".generation").mkdir()
    (maps / ".generation" / "job.json").write_text(content)
    np.testing.assert_array_equal(logits(settings(small)), expected)
    assert (maps / "manifest.json").exists()


def test_a_changed_checkpoint_is_quantised_anew(cache, tmp_path):
    small = Small.save(tmp_path / "bloom", shard="1GB")
    before = logits(settings(small))
    path = small.folder / "model.safetensors"
    tensors = load_file(path)
    tensors["transformer.h.1.mlp.dense_h_to_4h.weight"] *= 2
    save_file(tensors, path, {"format": "pt"})
    after = logits(settings(small))
    assert np.abs(after - before).max() > 1e-3
    assert len(entries(cache)) == 2


def test_processes_at_once_make_one_entry(small, cache, kernels):
    shutil.copytree(kernels, cache / kernels.name)  # compiling them takes longer than all else
    words = [*small.words(None), *PRECISIONS[0], "--prompt", "abc", "--json"]
    running = [start_python("run_inference.py", *words) for _ in range(2)]
    results = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], results
    assert len({tuple(json.loads(out)["ids"]) for out, _ in results}) == 1
    assert len(entries(cache)) == 1
    assert not list(entries(cache)[0].glob(".*"))  # nothing half-written


def test_where_nothing_can_be_kept_it_runs_with_a_warning(small, tmp_path, monkeypatch, caplog):
    expected = logits(settings(small))
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("POPXL_CACHE_DIR", str(tmp_path / "file"))
    np.testing.assert_array_equal(logits(settings(small)), expected)
    assert "nothing is kept" in caplog.text


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_that_are_not_finite_are_refused_by_their_layer(precision, cache, tmp_path):
    small = Small.save(tmp_path / "bloom")
    with torch.no_grad():
        small.model.transformer.h[2].mlp.dense_4h_to_h.weight[3, 4] = torch.nan
    small.model.save_pretrained(small.folder)
    message = refusal(lambda: load(settings(small, *precision)))
    assert "layer_2" in message and "not finite" in message
    with pytest.raises(CheckpointError, match="layer_2"):
        small.generate(tmp_path / "maps", *precision)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ([], "weight_precision is int4 there, full here"),
        (["--weight_precision=int8"], "weight_precision is int4 there, int8 here"),
        (["--weight_precision=int4", "--group_size=16"], "group_size is 8 there, 16 here"),
    ],
)
def test_maps_for_another_weight_precision_are_refused(change, named, small, tmp_path):
    maps = small.generate(tmp_path / "maps", *PRECISIONS[1])
    assert named in refusal(lambda: load(small.config(maps, 1, 1, *change)))
    assert named in refusal(lambda: small.generate(maps, *change))


def test_maps_from_before_there_was_a_choice_are_used_as_full(small, tmp_path):
    maps = small.generate(tmp_path / "maps")
    manifest = json.loads((maps / "manifest.json").read_text())
    for name in ("weight_precision", "group_size"):
        del manifest["settings"][name]
    (maps / "manifest.json").write_text(json.dumps(manifest))
    load(small.config(maps))
    quantised = small.config(maps, 1, 1, *PRECISIONS[0])
    assert "weight_precision is full there" in refusal(lambda: load(quantised))


def test_the_summary_says_how_weights_are_kept(small, tmp_path, capsys):
    small.generate(tmp_path / "maps", *PRECISIONS[0])
    assert "float32 with int8 weights, for 1 x 1 shards" in capsys.readouterr().out
