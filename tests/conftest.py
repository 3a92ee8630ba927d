"""What several modules of tests begin with: a tokenizer, a random model, a checkpoint, its maps."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # transformers takes seconds, also where no test needs it
    from memmap_checkpoints import Small
    from transformers import BloomForCausalLM, PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    from byte_level import byte_level_tokenizer

    return byte_level_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> BloomForCausalLM:
    """A random BLOOM for the tokenizer."""
    from reference import random_model

    return random_model(len(tokenizer))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A checkpoint of a small random model."""
    from memmap_checkpoints import Small

    return Small.save(tmp_path_factory.mktemp("checkpoint") / "bloom")


@pytest.fixture(scope="module")
def whole(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its memory maps for 2 x 1 shards."""
    return small.generate(tmp_path_factory.mktemp("maps") / "whole", tp1=2)


@pytest.fixture
def maps(whole: Path, tmp_path: Path) -> Path:
    """Maps that may be damaged."""
    return shutil.copytree(whole, tmp_path / "maps")


@pytest.fixture(scope="module")
def undisturbed(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Maps for 2 x 2 shards that were made at once."""
    return small.generate(tmp_path_factory.mktemp("maps") / "undisturbed", tp1=2, tp2=2)
