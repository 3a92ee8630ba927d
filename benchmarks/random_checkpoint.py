"""Checkpoints of any size with random weights, and a tokenizer as large as theirs."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import BloomConfig, BloomForCausalLM

from config import REPOSITORY, ModelConfig

TINY = REPOSITORY / "models" / "bloom_tiny"
POOL = 1 << 24
"""Random numbers that tensors are taken from."""


def make_checkpoint(model: ModelConfig, folder: Path) -> None:
    """Write a checkpoint in shards, one a layer; nothing where it is there already."""
    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = BloomConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        n_layer=model.layers,
        n_head=model.heads,
    )
    _write_weights(config, model.precision, folder)
    _write_tokenizer(model.vocab_size, folder)
    config.save_pretrained(folder)  # last: it says that the rest is there


def _write_weights(config: BloomConfig, precision: str, folder: Path) -> None:
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in BloomForCausalLM(config).state_dict().items()}
    shapes.pop("lm_head.weight")
    torch.manual_seed(0)
    pool = (torch.randn(POOL) * 0.02).to(getattr(torch, precision))
    shards: dict[str, dict[str, torch.Size]] = {}
    for name, shape in shapes.items():
        part = ".".join(name.split(".")[:3]) if ".h." in name else "rest"
        shards.setdefault(part, {})[name] = shape
    index = {}
    parts = tqdm(shards.values(), desc="checkpoint", leave=False, disable=None)
    for number, tensors in enumerate(parts):
        file = f"model-{number:05d}.safetensors"
        save_file({n: _random_tensor(pool, s, n) for n, s in tensors.items()}, folder / file)
        index |= dict.fromkeys(tensors, file)
    listing = {"metadata": {}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listing))


def _random_tensor(pool: torch.Tensor, shape: torch.Size, name: str) -> torch.Tensor:
    """Values of the pool from a place of the tensor's own on; norms near 1."""
    count = shape.numel()
    start = int(hashlib.sha256(name.encode()).hexdigest(), 16) % (pool.numel() // 2)
    tensor = pool.roll(-start)[: min(count, pool.numel())]
    tensor = tensor.repeat(-(-count // tensor.numel()))[:count].reshape(shape)
    return tensor + 1 if "layernorm.weight" in name or "ln_f.weight" in name else tensor


def _write_tokenizer(vocab_size: int, folder: Path) -> None:
    """That of bloom_tiny, with pairs of its tokens as further ones until it has `vocab_size`."""
    for file in TINY.glob("*token*.json"):
        shutil.copy(file, folder)
    settings = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocab, merges = settings["model"]["vocab"], settings["model"]["merges"]
    pieces = [left + right for left, right in merges]  # what merges can join again
    for left, right in itertools.product(pieces, pieces):
        if len(vocab) >= vocab_size:
            break
        if left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append([left, right])
    text = json.dumps(settings, ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
