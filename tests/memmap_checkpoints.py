"""Small checkpoints with a tokenizer on disk, their command lines, and what a folder holds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from bloom_checkpoints import random_bloom
from byte_level import byte_level_tokenizer

import generate_memmap
from config import BloomConfig, parse_arguments
from utils.setup import UserError

if TYPE_CHECKING:  # it takes seconds, also in ranks that need none of it
    from transformers import BloomForCausalLM

VOCAB_SIZE = 403  # more than the tokenizer has, and no multiple of 2 or 4


@dataclass(frozen=True)
class Small:
    """A checkpoint of a small random model.

    Attributes:
        model: what was saved.
        precision: the settings' and the stored one.
    """

    folder: Path
    model: BloomForCausalLM
    precision: str = "float32"

    @classmethod
    def save(
        cls,
        folder: Path,
        layers: int = 4,
        seed: int = 0,
        heads: int = 4,
        head_dim: int = 8,
        precision: str = "float32",
        tied: bool = True,
        shard: str = "20KB",
    ) -> Small:
        """Save one in `folder`, in shards of a size, so that layers are split over several."""
        model = random_bloom(heads, VOCAB_SIZE, layers, head_dim, seed)
        model = model.to(getattr(torch, precision))
        if not tied:
            model.config.tie_word_embeddings = False
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
        model.save_pretrained(folder, max_shard_size=shard)
        byte_level_tokenizer().save_pretrained(folder)
        return cls(folder, model, precision)

    def words(self, maps: Path | None, tp1: int = 1, tp2: int = 1) -> list[str]:
        """The command line of its settings and, unless None, a folder for its maps."""
        of = self.model.config
        settings = {
            "hf_model": self.folder,
            "layers": of.n_layer,
            "hidden_size": of.hidden_size,
            "heads": of.n_head,
            "vocab_size": of.vocab_size,
            "sequence_length": 48,
            "precision": self.precision,
            "tensor_parallel_1": tp1,
            "tensor_parallel_2": tp2,
            "prompt_chunks": 16,
            **({"memmap_dir": maps} if maps else {}),
        }
        return [word for name, value in settings.items() for word in (f"--{name}", str(value))]

    def config(self, maps: Path | None, tp1: int = 1, tp2: int = 1, *more: str) -> BloomConfig:
        return parse_arguments([*self.words(maps, tp1, tp2), *more])[0]

    def generate(self, maps: Path, *more: str, tp1: int = 1, tp2: int = 1) -> Path:
        """Make maps in this process; their folder."""
        generate_memmap.main([*self.words(maps, tp1, tp2), *more])
        return maps


def contents(folder: Path) -> dict[str, str]:
    """A checksum of every file under a folder, by path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """Which files those are that have a final name: they change when a file is written anew."""
    stats = {path.name: path.stat() for path in folder.iterdir() if path.name[0] != "."}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def refusal(action: Callable[[], object]) -> str:
    """The message of the user's error that an action ends in, which is one line."""
    with pytest.raises(UserError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)
