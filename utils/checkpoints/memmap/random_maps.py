"""Memory maps of random weights: as large as a model's, and read from disk as its are."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import torch

from config import BloomConfig
from modelling.architecture import architecture_of
from utils.checkpoints.checkpoint import HEAD, PREFIX, Checkpoint, MissingTensorError
from utils.checkpoints.memmap.generator import Generator
from utils.checkpoints.random_weights import DEVIATION, POOL

NORMS = ("norm.weight", "ln_f.weight", "ln_1.weight", "ln_2.weight")
"""Ends of the names of weights around 1."""


class RandomCheckpoint(Checkpoint):
    """Stands in for a checkpoint of the configured model: each tensor is random when it is read."""

    def __init__(self, config: BloomConfig, seed: int):
        self.path = Path(config.model.hf_model)
        self.identity = f"random weights, seed {seed}"
        self._architecture = architecture_of(config)
        self._shapes = self._architecture.tensor_shapes(config.model)
        if config.model.tie_word_embeddings:
            self._shapes.pop(HEAD, None)
        self._dtype = getattr(torch, config.model.precision)
        generator = torch.Generator().manual_seed(seed)
        pool = torch.randn(POOL, generator=generator) * DEVIATION
        self._pool = pool.to(self._dtype)

    def keys(self) -> list[str]:
        return list(self._shapes)

    def tensor(self, name: str) -> torch.Tensor:
        """The values of the pool from a place of the tensor's own on, over and over."""
        name = name.removeprefix(PREFIX)
        if name not in self._shapes:
            raise MissingTensorError(f"no tensor {name} in {self.identity}")
        shape = self._shapes[name]
        start = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest()) % POOL
        count = math.prod(shape)
        rolled = self._pool.roll(-start)
        tensor = rolled.repeat(-(-count // POOL))[:count].reshape(shape)
        return tensor + 1 if name.endswith(NORMS) else tensor

    @property
    def tied(self) -> bool:  # type: ignore[override]
        return HEAD not in self._shapes

    def check_against(self, config: BloomConfig) -> None:
        """It is of any model."""

    def decided(self, config: BloomConfig) -> BloomConfig:
        return config


def make_random_maps(config: BloomConfig, seed: int) -> None:
    """Fill the folder of the configuration's memory maps; a bar on stderr, if that is a terminal.

    Raises:
        UserError: the disk has no room, or the folder has something else in it.
    """
    generator = Generator(config, checkpoint=RandomCheckpoint(config, seed))
    generator.begin()
    generator.run_alone("random")
