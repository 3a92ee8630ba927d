"""A mapped file that is cut short while it is used: one line that names it, and status 2."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import urllib.request

import pytest
from commands import run_python, start_python
from memmap_checkpoints import Small

from utils.generation.settings import settings_of

DEFAULTS = [setting.default for setting in list(settings_of().values())[1:]]
"""Of all settings after the number of tokens, as the API takes them."""

READ = """
import os, sys, threading
import torch
from utils.setup import run_script
sys.path.insert(0, "tests")
def main():
    {open}
    for name in sorted(os.listdir(folder)):
        if name.endswith((".safetensors", ".bin")):
            os.truncate(os.path.join(folder, name), 4096)
    def read():
        for tensor in tensors:
            print(torch.as_tensor(tensor).sum())
    {run}
run_script(main)
"""
CHECKPOINT = """from utils.checkpoints.checkpoint import open_checkpoint
    checkpoint = open_checkpoint(folder := {folder!r})
    tensors = [checkpoint.tensor(name) for name in checkpoint.keys()]"""
MAPS = """from pathlib import Path
    from config import parse_arguments
    from modelling.program import inference
    from utils.checkpoints.memmap.reader import MemoryMaps
    from utils.checkpoints.memmap.tensor_file import map_tensors
    config = parse_arguments({words!r})[0]
    folder = {folder!r}
    MemoryMaps(config).write(inference(config))
    mapped = map_tensors(Path(folder) / "layer_0001.safetensors")
    tensors = list(mapped.values())"""
IN_A_THREAD = "thread = threading.Thread(target=read); thread.start(); thread.join()"


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Small:
    return Small.save(tmp_path_factory.mktemp("checkpoint") / "bloom", shard="1GB")


@pytest.mark.parametrize("run", ["read()", IN_A_THREAD], ids=["main thread", "another thread"])
@pytest.mark.parametrize("kind", ["safetensors", "bin", "maps"])
def test_a_file_that_is_cut_short_is_named(kind, run, small, tmp_path):
    folder = tmp_path / "folder"
    if kind == "maps":
        small.generate(folder)
        opened = MAPS.format(words=small.words(folder), folder=str(folder))
    else:
        shutil.copytree(small.folder, folder)
        if kind == "bin":
            import torch

            (folder / "model.safetensors").unlink()
            torch.save(dict(small.model.state_dict()), folder / "pytorch_model.bin")
        opened = CHECKPOINT.format(folder=str(folder))
    done = run_python("-W", "ignore", "-c", READ.format(open=opened, run=run))
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {folder}/")
    assert "cut short" in line


def test_the_server_names_it_too(small, tmp_path):
    maps = small.generate(tmp_path / "maps")
    words = [*small.words(maps), "--port", "0", "--log_level", "warning"]
    server = start_python("run_inference_gradio.py", *words)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1].rstrip("/")
        for path in maps.glob("*.safetensors"):
            os.truncate(path, 4096)
        request = urllib.request.Request(
            f"{address}/gradio_api/call/generate",
            json.dumps({"data": ["A dog", 8, *DEFAULTS]}).encode(),
            {"Content-Type": "application/json"},
        )
        with contextlib.suppress(OSError):  # it may be gone before it answers
            urllib.request.urlopen(request, timeout=20).read()
        _, errors = server.communicate(timeout=60)
    finally:
        server.kill()
    assert server.returncode == 2
    assert [line for line in errors.splitlines() if line.startswith(f"error: {maps}/")]
    assert "cut short" in errors
    assert "Traceback" not in errors
