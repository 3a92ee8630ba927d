"""Running from memory maps: the same logits and text as from the checkpoint, and nothing read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run_python
from memmap_checkpoints import Small, contents
from safetensors import safe_open

import generate_memmap
from utils.benchmark import run_benchmark
from utils.checkpoints.arguments import parse_model_arguments
from utils.generation import LanguageModel, generate, load
from utils.setup import UserError

TINY = Path(__file__).parents[1] / "models" / "bloom_tiny"
SHARDINGS = [(1, 1), (4, 4), (4, 2)]
LINE = 64


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models so small are slowed down by threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def answers(loaded: LanguageModel) -> tuple[list[np.ndarray], str]:
    """Logits after prompts of two lengths and after a single token, and a greedy text."""
    passes = loaded.passes
    prompt = np.random.default_rng(0).integers(passes.vocab_size, size=20).tolist()
    logits = [passes.prefill(0, prompt[:length]) for length in (7, 20)]
    logits.append(passes.decode(np.full(1, 3, np.int32), np.full(1, 20, np.int32))[0])
    return logits, generate(loaded, "A dog is", num_tokens=4).text


def assert_maps_equal_the_checkpoint(words: list[str], maps: Path) -> None:
    generate_memmap.main([*words, "--memmap-dir", str(maps)])
    from_checkpoint, text = answers(load(parse_model_arguments(words)[0]))
    from_maps, same_text = answers(
        load(parse_model_arguments([*words, "--memmap_dir", str(maps)])[0])
    )
    for ours, theirs in zip(from_maps, from_checkpoint, strict=True):
        assert np.array_equal(ours, theirs)
        assert len(np.unique(ours)) > 100  # of a model that says something
    assert same_text == text


def without_maps(small: Small, tp1: int, tp2: int) -> list[str]:
    return small.words(Path(), tp1, tp2)[:-2]


@pytest.mark.parametrize(("tp1", "tp2"), SHARDINGS)
def test_the_shipped_model_answers_from_maps_as_from_its_checkpoint(tp1, tp2, tmp_path):
    checkpoint = shutil.copytree(TINY, tmp_path / "bloom_tiny")
    words = ["--hf_model", str(checkpoint), "--prompt_chunks", "16"]
    words += ["--tensor_parallel_1", str(tp1), "--tensor_parallel_2", str(tp2)]
    assert_maps_equal_the_checkpoint(words, tmp_path / "maps")


@pytest.mark.parametrize(
    ("tp1", "tp2", "precision"), [(1, 1, "float16"), (4, 4, "bfloat16"), (4, 2, "float16")]
)
def test_a_model_as_deep_as_560M_answers_from_maps_as_from_its_checkpoint(
    tp1, tp2, precision, tmp_path
):
    small = Small.save(
        tmp_path / "bloom", layers=24, heads=16, head_dim=4, precision=precision, shard="100KB"
    )
    assert_maps_equal_the_checkpoint(without_maps(small, tp1, tp2), tmp_path / "maps")


def test_a_head_of_its_own_is_mapped_too(tmp_path):
    small = Small.save(tmp_path / "bloom", layers=2, tied=False)
    assert_maps_equal_the_checkpoint(without_maps(small, 2, 2), tmp_path / "maps")


def test_other_tools_read_the_files_and_find_each_replicas_part_of_the_checkpoint(tmp_path):
    small = Small.save(tmp_path / "bloom", layers=1)
    small.generate(tmp_path / "maps", tp1=2, tp2=2)
    weights = small.model.transformer.state_dict()
    with safe_open(tmp_path / "maps" / "layer_0000.safetensors", "pt") as file:
        assert file.metadata()["part"] == "layer_0"
        assert file.metadata()["tensor_parallel_1"] == "2"
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        swapped = file.metadata()["swapped"].split(",")
    into = weights["h.0.mlp.dense_h_to_4h.weight"]  # rows over tp1, columns over tp2
    out_of = weights["h.0.mlp.dense_4h_to_h.weight"]  # rows over tp2, columns over tp1
    for replica, (i1, i2) in enumerate(np.ndindex(2, 2)):
        part = into.chunk(2, 0)[i1].chunk(2, 1)[i2]
        assert torch.equal(stored["feed_forward.widen.weight"][replica], part)
        part = out_of.chunk(2, 0)[i2].chunk(2, 1)[i1]
        assert torch.equal(stored["feed_forward.narrow.weight"][replica], part)
    bias = weights["h.0.self_attention.query_key_value.bias"]
    assert torch.equal(stored["attention.qkv.bias"], torch.stack(bias.chunk(2)))
    matrices = [name for name, tensor in stored.items() if tensor.ndim == 3]
    assert sorted(swapped) == sorted(matrices)


def test_matrices_begin_where_lines_of_the_cache_do(tmp_path):
    small = Small.save(tmp_path / "bloom", layers=1, precision="float16")
    small.generate(tmp_path / "maps")
    for file in tmp_path.glob("maps/*.safetensors"):
        length = int.from_bytes(file.read_bytes()[:8], "little")
        header = json.loads(file.read_bytes()[8 : 8 + length])
        begins = {
            name: 8 + length + entry["data_offsets"][0]
            for name, entry in header.items()
            if name != "__metadata__" and len(entry["shape"]) > 1
        }
        assert all(begin % LINE == 0 for begin in begins.values()), begins


def mapped_bytes(folder: Path) -> tuple[int, int]:
    """Bytes of this process's maps of a folder's files, and of them in its memory."""
    size = resident = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if "-" in name and " " in line.split(":", 1)[0]:
            inside = f" {folder}/" in line
        elif inside and name == "Size":
            size += int(value.split()[0]) * 1024
        elif inside and name == "Rss":
            resident += int(value.split()[0]) * 1024
    return size, resident


def test_loading_maps_the_weights_and_reads_none(tmp_path):
    small = Small.save(tmp_path / "bloom", layers=2, heads=4, head_dim=64, shard="1GB")
    maps = small.generate(tmp_path / "maps", tp1=2, tp2=2)
    loaded = load(small.config(maps, 2, 2))
    size, resident = mapped_bytes(maps)
    weights = sum(path.stat().st_size for path in maps.glob("*.safetensors"))
    assert size >= weights > 6_000_000
    assert resident < 0.02 * weights
    loaded.passes.prefill(0, [1, 2, 3])
    assert mapped_bytes(maps)[1] > 0.5 * weights  # used where it is, not copied


def test_neither_checkpoint_nor_hub_is_needed(tmp_path):
    small = Small.save(tmp_path / "bloom", layers=2)
    maps = small.generate(tmp_path / "maps")
    expected = answers(load(small.config(maps)))[1]
    shutil.rmtree(small.folder)
    words = small.words(maps)
    words[words.index("--hf_model") + 1] = "nobody/nothing"
    done = run_python(
        "run_inference.py", *words, "--prompt", "A dog is", "--num_tokens", "4", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"] == expected
    assert load(parse_model_arguments(words)[0]).passes.config.model.hf_model == "bloom"


def test_the_benchmark_runs_on_maps(tmp_path, capsys):
    small = Small.save(tmp_path / "bloom", layers=2)
    maps = small.generate(tmp_path / "maps")
    size = ["--prompt_tokens", "4", "--new_tokens", "2", "--repeats", "1"]
    run_benchmark([*small.words(maps), *size])
    assert "of bandwidth" in capsys.readouterr().out
    (maps / "head.safetensors").unlink()
    with pytest.raises(UserError, match=r"head\.safetensors \(missing\)"):
        run_benchmark([*small.words(maps), *size])


def test_maps_are_not_written_to_by_a_run(tmp_path):
    small = Small.save(tmp_path / "bloom", layers=2)
    maps = small.generate(tmp_path / "maps")
    before = contents(maps)
    answers(load(small.config(maps)))
    assert contents(maps) == before
