"""What loading says of itself, and the memory that it takes: no more than the model once."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import gguf
import pytest
import torch
from commands import run_python
from safetensors.torch import load_file, save_file
from test_gguf import write as write_gguf
from transformers import BloomConfig, BloomForCausalLM

from config import REPOSITORY
from utils.generation import load

TINY = REPOSITORY / "models" / "bloom_tiny"
SMALL = {"sequence_length": 32, "prompt_chunks": (16,), "device": "cpu"}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"precision": "bfloat16"}, "mapped in .* read when they are used"),
        ({"precision": "float32"}, r"read in .* s, [\d.]+ GB/s"),
        ({"weight_precision": "int8"}, "int8 weights are in the cache after"),
    ],
)
def test_a_line_says_what_was_read(settings, told, caplog):
    with caplog.at_level(logging.INFO, "utils.generation.loading"):
        load("bloom_tiny", **SMALL, **settings)
    (line,) = [r.getMessage() for r in caplog.records if "GB of" in r.getMessage()]
    assert re.search(rf"bloom_tiny: 0\.01 GB of safetensors.*{told}", line)


# --- memory ---

MEASURE = """
import sys
from utils.our_runtime import peak_memory, restart_peak_memory
from utils.generation import load
settings = {"sequence_length": 32, "prompt_chunks": (16,), "device": "cpu"}
load("bloom_tiny", **settings)  # what is made at first use is there then
restart_peak_memory()
before = peak_memory()
model = load("bloom_tiny", hf_model=sys.argv[1], precision="float32", layers=6, hidden_size=512,
             heads=8, vocab_size=16384, **settings)
print(peak_memory() - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A checkpoint of 109 MB in float32, in safetensors."""
    folder = tmp_path_factory.mktemp("large")
    torch.manual_seed(0)
    shape = {"vocab_size": 16384, "hidden_size": 512, "n_layer": 6, "n_head": 8}
    BloomForCausalLM(BloomConfig(**shape)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).symlink_to(TINY / name)
    return folder


def in_form(large: Path, form: str, folder: Path) -> Path:
    if form == "safetensors":
        return large
    for path in large.iterdir():
        if path.suffix == ".json":
            (folder / path.name).symlink_to(path)
    tensors = load_file(large / "model.safetensors")
    if form == "gguf":
        made = BloomForCausalLM.from_pretrained(large)
        return write_gguf(folder / "model.gguf", made, gguf.GGMLQuantizationType.F16)
    if form == "half":
        save_file({n: t.half() for n, t in tensors.items()}, folder / "model.safetensors")
    else:
        new = form == "bin"
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=new)
    return folder


@pytest.mark.parametrize("form", ["safetensors", "half", "bin", "old bin", "gguf"])
def test_loading_takes_no_more_than_the_model_once(form, large, tmp_path):
    path = in_form(large, form, tmp_path)
    model = json.loads((large / "config.json").read_text())
    assert model["hidden_size"] == 512
    size = (large / "model.safetensors").stat().st_size
    done = run_python("-c", MEASURE, path)
    assert done.returncode == 0, done.stderr
    embedding = 4 * 16384 * 512
    # A file's pages that are mapped count too, and of what is converted one tensor at a time.
    stored = path.stat().st_size if path.is_file() else size // (2 if form == "half" else 1)
    assert int(done.stdout) < size + (stored if form in ("half", "gguf") else 0) + 1.5 * embedding
