"""Making memory maps: shared between processes, from any checkpoint, in little memory."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import threading

import pexpect
import pytest
import torch
from commands import environment, run_python
from memmap_checkpoints import contents
from safetensors.torch import load_file, save_file
from transformers import BloomConfig as TransformersConfig
from transformers import BloomForCausalLM

from config import REPOSITORY
from utils.checkpoints.memmap.generator import Generator, Share
from utils.checkpoints.memmap.overlap import Overlap


@pytest.mark.parametrize("world_size", [1, 2, 3, 9])
def test_ranks_of_any_number_write_every_file_once_in_any_order(
    world_size, small, undisturbed, tmp_path
):
    config = small.config(tmp_path / "maps", 2, 2)
    ranks = random.Random(world_size).sample(range(world_size), world_size)
    written: list[str] = []
    for number, rank in enumerate(ranks):
        generator = Generator(config)
        generator.begin()
        result = generator.run(Share(rank, world_size), lambda _: None, written.append)
        assert bool(result.missing) == (not (tmp_path / "maps" / "manifest.json").exists())
        if number == 0 and world_size > 1:
            assert result.missing
    assert sorted([*written, "manifest.json"]) == sorted(contents(undisturbed))
    assert contents(tmp_path / "maps") == contents(undisturbed)


def test_ranks_at_the_same_time_as_a_shell_starts_them(small, undisturbed, tmp_path):
    command = (
        f"n=2; seq 0 $((n-1)) | xargs -P $n -I % {sys.executable} generate_memmap.py "
        f'"$@" --world-size $n --rank %'
    )
    words = [*small.words(tmp_path / "maps", 2, 2)[:-2], "--memmap-dir", str(tmp_path / "maps")]
    words += ["--shard-root", str(small.folder)]
    done = subprocess.run(
        ["bash", "-c", command, "bash", *words],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=environment(),
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "complete: " in done.stdout
    assert contents(tmp_path / "maps") == contents(undisturbed)


def test_workers_of_one_command_share_the_work(small, undisturbed, tmp_path):
    done = run_python("generate_memmap.py", *small.words(tmp_path / "maps", 2, 2), "--workers", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "complete: " in done.stdout
    assert contents(tmp_path / "maps") == contents(undisturbed)


def test_workers_have_exactly_the_share_of_their_rank():
    items = list(range(23))
    for share in (Share(0, 1), Share(2, 3)):
        of_workers = [item for part in share.split(4) for item in part.of(items)]
        assert sorted(of_workers) == share.of(items)


def test_the_checkpoints_format_and_shards_make_no_difference(small, tmp_path):
    one = small.generate(tmp_path / "sharded")
    small.model.save_pretrained(tmp_path / "whole", max_shard_size="1GB")
    for path in small.folder.glob("*token*"):
        shutil.copy(path, tmp_path / "whole")
    again = small.generate(tmp_path / "again", "--shard-root", str(tmp_path / "whole"))
    assert len(list(small.folder.glob("*.safetensors"))) > 3
    assert contents(again) == contents(one)


def test_bin_shards_give_the_same_files(small, tmp_path):
    pickled = tmp_path / "pickled"
    shutil.copytree(small.folder, pickled)
    for file in pickled.glob("*.safetensors"):
        torch.save(load_file(file), file.with_suffix(".bin"))
        file.unlink()
    index = pickled / "model.safetensors.index.json"
    text = index.read_text().replace(".safetensors", ".bin")
    (pickled / "pytorch_model.bin.index.json").write_text(text)
    index.unlink()
    one = small.generate(tmp_path / "one", tp1=2, tp2=2)
    again = small.generate(tmp_path / "again", "--shard-root", str(pickled), tp1=2, tp2=2)
    assert contents(again) == contents(one)


def test_precision_is_that_of_the_command_line(small, tmp_path):
    maps = small.generate(tmp_path / "maps", "--precision", "bfloat16")
    manifest = json.loads((maps / "manifest.json").read_text())
    assert manifest["settings"]["precision"] == "bfloat16"
    tensors = load_file(maps / "layer_0002.safetensors")
    stored = tensors["feed_forward.widen.weight"]
    exact = small.model.transformer.h[2].mlp.dense_h_to_4h.weight
    assert stored.equal(exact.to(stored.dtype))
    assert str(stored.dtype) == "torch.bfloat16"


@pytest.mark.parametrize(("precision", "tp"), [("bfloat16", 1), ("float16", 4)])
def test_memory_grows_by_about_one_layer_whatever_the_model(precision, tp, tmp_path):
    shape = {"hidden_size": 1024, "n_layer": 8, "n_head": 16, "vocab_size": 1000}
    config = TransformersConfig(**shape)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        tensors = BloomForCausalLM(config).transformer.state_dict()
    zeros = {name: torch.zeros(t.shape, dtype=torch.bfloat16) for name, t in tensors.items()}
    save_file(zeros, tmp_path / "model.safetensors")
    words = f"--hf_model {tmp_path} --memmap_dir {tmp_path / 'maps'} --precision {precision}"
    words += " --layers 8 --hidden_size 1024 --heads 16 --vocab_size 1000"
    words += f" --tensor_parallel_1 {tp} --tensor_parallel_2 {tp}"
    code = "import sys, memmap_processes; memmap_processes.print_growth(sys.argv[1:])"
    done = run_python("-c", code, *words.split())
    assert done.returncode == 0, done.stderr
    layer = sum(t.nbytes for name, t in zeros.items() if name.startswith("h.0."))
    assert 8 * layer > 200_000_000
    assert int(done.stdout) < 3 * layer  # its copy, a tensor of the checkpoint, what is written


def test_no_more_parts_are_under_way_than_memory_has_room_for():
    ended: list[str] = []
    both_begun = threading.Event()

    def first() -> None:
        assert both_begun.wait(20)
        ended.append("first")

    with Overlap(3, room=10) as overlap:
        overlap.submit(6, first)
        overlap.make_room(4)
        assert not ended
        overlap.submit(4, both_begun.set)
        overlap.make_room(1)
        assert ended == ["first"]


def test_a_terminal_shows_files_and_bytes_a_second(small, tmp_path):
    words = [str(REPOSITORY / "generate_memmap.py"), *small.words(tmp_path / "maps")]
    with pexpect.spawn(sys.executable, words, env=environment(), encoding="utf-8") as terminal:
        output = terminal.read()
    assert "B/s]" in output
    assert "layer_0003.safetensors: " in output
    assert "complete: " in output
