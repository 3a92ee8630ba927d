"""From settings to a model that answers: checkpoint or memory maps, session, tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from config import BloomConfig
from inference import InferenceSession, hf_mapping, inference
from utils.memmap.reader import MemoryMaps
from utils.passes import Passes
from utils.setup import UserError
from utils.tokenizer import open_tokenizer, open_with_transformers

if TYPE_CHECKING:
    from utils.checkpoint import Checkpoint


@dataclass(frozen=True)
class Loaded:
    """A session with its weights, attached, and what speaks its language."""

    config: BloomConfig
    session: InferenceSession
    passes: Passes
    tokenizer: Any


def load(config: BloomConfig) -> Loaded:
    """Build the program and load the memory maps or the checkpoint that the settings name.

    Raises:
        UserError: where these cannot be read, or are of another model than configured.
    """
    if config.execution.memmap_dir is not None:
        maps = MemoryMaps(config)
        return _loaded(maps.config, maps.path, maps.write)
    from utils.checkpoint import open_checkpoint  # late: maps need no torch before the session

    checkpoint = open_checkpoint(config.model.hf_model)
    checkpoint.check_against(config)
    model = dataclasses.replace(config.model, tie_word_embeddings=checkpoint.tied)
    config = dataclasses.replace(config, model=model)
    return _loaded(
        config, checkpoint.path, lambda session: write_weights(config, session, checkpoint)
    )


def _loaded(config: BloomConfig, folder: Path, write: Callable[[InferenceSession], None]) -> Loaded:
    """With the tokenizer of `folder` and the weights that `write` gives the session."""
    with ThreadPoolExecutor(1) as beside:  # building the session imports torch: both take long
        opened = beside.submit(open_tokenizer, folder)
        session = build(config)
    tokenizer = opened.result() or open_with_transformers(folder)
    write(session)
    session.__enter__()
    return Loaded(config, session, Passes(config, session), tokenizer)


def build(config: BloomConfig) -> InferenceSession:
    """The session of `inference`, with a device that is not there told as a user's error."""
    try:
        return inference(config)
    except RuntimeError as error:
        raise UserError(str(error)) from None


def write_weights(config: BloomConfig, session: InferenceSession, checkpoint: Checkpoint) -> None:
    """Shard the checkpoint onto the session's variables, a part at a time."""
    parts = hf_mapping(config, session.state, checkpoint.module())
    for _, mapping in tqdm(parts, desc="weights", unit="part", delay=2, leave=False, disable=None):
        session.write_variables_data(mapping())
