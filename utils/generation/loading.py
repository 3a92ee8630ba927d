"""From settings to a model that answers: checkpoint or memory maps, session, tokenizer."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import popdist
from tqdm import tqdm

from config import BloomConfig, costs, load_config
from modelling.program import InferenceSession, inference
from modelling.sharding import only_replicas
from utils import distributed
from utils.checkpoints.memmap.reader import MemoryMaps
from utils.generation.defaults import ends_of, sampling_of, tell
from utils.generation.language_model import LanguageModel
from utils.generation.passes import Passes
from utils.generation.tokenizer import open_tokenizer, open_with_transformers
from utils.our_runtime import MappedPages, available_memory, machine
from utils.setup import UserError

if TYPE_CHECKING:
    from utils.checkpoints.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

ROOM = 0.9
"""Of what is free that layers may take: a program needs more than what is computed here."""


def load(model: str | BloomConfig, **settings: Any) -> LanguageModel:
    """Load a model: `load("bloom_560M", precision="bfloat16", batch_size=4)`.

    Of several processes it returns in the one that leads; the others follow it to the end.

    Args:
        model: a preset's name, or all settings.
        settings: that replace the preset's; `config/config.py` describes them.

    Raises:
        ConfigError: a setting is unknown or out of bounds.
        UserError: the checkpoint or the memory maps cannot be read, are of another model than
            configured, or need more memory than there is.
    """
    loaded = open_model(load_config(model, settings) if isinstance(model, str) else model)
    tell(loaded.defaults)
    return loaded


def open_model(config: BloomConfig) -> LanguageModel:
    """As `load`, without a word of the checkpoint's defaults."""
    distributed.join(config)
    if config.execution.memmap_dir is not None:
        maps = MemoryMaps(config)
        return _loaded(maps.config, maps.path, maps.write, in_memory=False)
    from utils.checkpoints.checkpoint import (
        open_checkpoint,  # late: maps need no torch before the session
    )

    checkpoint = open_checkpoint(config.model.hf_model, lora=config.model.lora)
    checkpoint.check_against(config)
    config = checkpoint.decided(config)
    kept = _kept(config, checkpoint)
    if kept is not None:
        return _loaded(config, checkpoint.path, kept.write, in_memory=False)
    in_memory = on_cpu(config) and not checkpoint.mapped_in(config)
    return _loaded(
        config, checkpoint.path, lambda session: _read(config, session, checkpoint), in_memory
    )


def _kept(config: BloomConfig, checkpoint: Checkpoint) -> MemoryMaps | None:
    """The checkpoint's quantised weights in the cache, made now where they are not there yet."""
    if not config.model.quantized:
        return None
    from utils.checkpoints.kept_weights import kept_maps

    begin = time.perf_counter()
    maps = kept_maps(config, checkpoint)
    if maps is not None:
        seconds = time.perf_counter() - begin
        logger.info(
            "%s: %.2f GB of %s, its %s weights are in the cache after %.1f s",
            *(checkpoint.path, checkpoint.size / 1e9, checkpoint.form),
            *(config.model.weight_precision, seconds),
        )
    return maps


def _read(config: BloomConfig, session: InferenceSession, checkpoint: Checkpoint) -> None:
    """Give the session the checkpoint's weights, and tell in a line what was read."""
    begin = time.perf_counter()
    mapped = write_weights(config, session, checkpoint)
    seconds, size = time.perf_counter() - begin, checkpoint.size
    if 2 * mapped > size:
        told = f"mapped in {seconds:.1f} s, read when they are used"
    else:
        told = f"read in {seconds:.1f} s, {size / max(seconds, 1e-3) / 1e9:.2f} GB/s"
    logger.info("%s: %.2f GB of %s %s", checkpoint.path, size / 1e9, checkpoint.form, told)


def on_cpu(config: BloomConfig) -> bool:
    """Whether weights lie in the machine's own memory."""
    device = config.execution.device
    return device == "cpu" or (device == "auto" and machine.device_kind(device) == "cpu")


def _loaded(
    config: BloomConfig,
    folder: Path,
    write: Callable[[InferenceSession], None],
    in_memory: bool,
) -> LanguageModel:
    """With the tokenizer of `folder` and the weights that `write` gives the session.

    Args:
        in_memory: whether the weights lie there, and are no mapped file's.
    """
    defaults = sampling_of(folder)
    check_memory(config, weights=in_memory)
    with ThreadPoolExecutor(1) as beside:  # building the session imports torch: both take long
        opened = beside.submit(open_tokenizer, folder)
        session = build(config)
    tokenizer = opened.result() or open_with_transformers(folder)
    tokenizer.ends = ends_of(folder, tokenizer)
    write(session)
    session.__enter__()
    passes = Passes(config, session)
    if not distributed.leads():
        passes.replicas.follow()
        sys.exit()
    return LanguageModel(passes, tokenizer, defaults)


def check_memory(config: BloomConfig, weights: bool, taken: int = 0) -> None:
    """Find out before anything is built whether what is computed has room.

    Args:
        weights: whether these take memory, too.
        taken: bytes of the machine's memory that something else is going to take.

    Raises:
        UserError: it has not.
    """
    share = 1 / popdist.getNumInstances()
    excess = costs.excess(config, max(0, available_memory() - taken), weights, share)
    if excess and not on_cpu(config):  # an accelerator may have more; finding out takes seconds
        excess = costs.excess(config, _free_memory(config), weights, share)
    if excess:
        raise UserError(excess)


def fitting_layers(config: BloomConfig, taken: int = 0) -> int:
    """As many layers of the model, with weights in memory, as there is room for; 0 to all.

    Args:
        taken: bytes of the machine's memory that something else is going to take.
    """
    share = 1 / popdist.getNumInstances()
    most = costs.fitting_layers(config, int(ROOM * (available_memory() - taken)), share)
    if most < config.model.layers and not on_cpu(config):
        free = _free_memory(config)
        most = max(most, costs.fitting_layers(config, int(ROOM * free), share))
    return most


def _free_memory(config: BloomConfig) -> int:
    """Bytes of the device's that are free. Raises a `UserError` where there is no such device."""
    try:
        return int(machine.free_memory(config.execution.device))
    except (RuntimeError, ValueError) as error:
        raise UserError(str(error)) from None


def build(config: BloomConfig, spread: bool = True) -> InferenceSession:
    """The session of `inference`, with a device that is not there told as a user's error."""
    if spread:
        distributed.own_replicas(config.execution.replicas)
    try:
        return inference(config, spread)
    except RuntimeError as error:
        raise UserError(str(error)) from None


def write_weights(config: BloomConfig, session: InferenceSession, checkpoint: Checkpoint) -> int:
    """Shard the checkpoint onto the session's variables, a part at a time.

    Of several processes each reads its own shards.

    Returns:
        Bytes of the variables that are the checkpoint's mapped files themselves.
    """
    mapped = 0
    from utils.checkpoints.memmap.parts import part_values

    parts = part_values(config, session, checkpoint.module()).values()
    for values in tqdm(parts, desc="weights", unit="part", delay=2, leave=False, disable=None):
        with only_replicas(distributed.own_replicas(config.execution.replicas)):
            made = values()
            mapped += sum(v.nbytes for v in made.values() if MappedPages.of(v).mapped)
            session.write_variables_data(made)
    return mapped
