"""What settings would cost, computed from their values: nothing is built, no array is made.

Bounds of single settings limit to seconds what is built for any one of them; bounds of sums limit
what they cost together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from config.config import BloomConfig, ModelConfig

MOST = {
    "layers": 1_000,
    "hidden_size": 1 << 17,
    "heads": 1 << 12,
    "vocab_size": 1 << 23,
    "sequence_length": 1 << 20,
    "batch_size": 1 << 14,
    "score_tokens": 1 << 12,
    "tensor_parallel_1": 1 << 10,
    "tensor_parallel_2": 1 << 10,
    "io_tiles": 1 << 20,
    "group_size": 1 << 17,
    "max_batch_tokens": 1 << 14,
    "prefix_cache": 1 << 24,
}
"""The largest value of each setting, far beyond any BLOOM there is."""

MOST_REPLICAS = 1 << 10
"""Each has its part of every weight."""

MOST_CHUNKS = 32
"""Sizes of prefill passes: each is a graph."""

MOST_WEIGHT_BYTES = 1 << 44
"""Of the weights of all replicas: even a plan reserves address space for them."""

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
QUANTIZED_BYTES = {"int8": 1.0, "int4": 0.5}
"""Of an element of a matrix; scales come on top, some percent."""

MOST_PREFIXES = 64
"""Contexts that a prefix cache has room for at most, however few bytes they take."""

GIGABYTE, MEGABYTE = 1e9, 1_000_000
MAPS = "memory maps (generate_memmap.py, --memmap_dir)"


def parameters(model: ModelConfig) -> int:
    """Parameters of a model without its vectors; an untied head counts."""
    tables = 1 if model.tie_word_embeddings else 2
    return model.layers * 12 * model.hidden_size**2 + tables * model.vocab_size * model.hidden_size


def weight_bytes(config: BloomConfig) -> int:
    """Bytes of the weights of all replicas; what they have in common counts once."""
    model = config.model
    each = QUANTIZED_BYTES.get(model.weight_precision, BYTES[model.precision])
    return int(parameters(model) * each)


def cache_bytes(config: BloomConfig) -> int:
    """Bytes of the KV cache of all replicas, with every slot full."""
    return _bytes_of_tokens(config, config.execution.batch_size * config.model.sequence_length)


def prefix_blocks(config: BloomConfig) -> tuple[int, int]:
    """Blocks that the prefix cache has, and the tokens of a block, which are the smallest chunk's.

    As many as fit `prefix_cache`, and no more than `MOST_PREFIXES` contexts fill; none where the
    context is shorter than two chunks, of which a prompt's last one is never taken from the cache.
    """
    model, execution = config.model, config.execution
    block = execution.prompt_chunks[0]
    if block >= model.sequence_length:
        return 0, block
    within = execution.prefix_cache * MEGABYTE // _bytes_of_tokens(config, block)
    return min(within, MOST_PREFIXES * (model.sequence_length // block)), block


def prefix_bytes(config: BloomConfig) -> int:
    """Bytes that the prefix cache of all replicas may take."""
    blocks, block = prefix_blocks(config)
    return blocks * _bytes_of_tokens(config, block)


def _bytes_of_tokens(config: BloomConfig, tokens: int) -> int:
    """Of keys and values in all layers and replicas: each holds its heads, for each of tp2."""
    model = config.model
    each = 2 * model.layers * model.hidden_size * BYTES[model.precision]
    return each * config.execution.tensor_parallel_2 * tokens


def pass_bytes(config: BloomConfig) -> int:
    """Of what a pass computes, at least: its widest activations and the logits of every row."""
    model, execution = config.model, config.execution
    chunks = [c for c in execution.prompt_chunks if c <= model.sequence_length]
    shared = min(execution.max_batch_tokens, execution.batch_size * chunks[-1]) if chunks else 0
    rows = max([execution.batch_size, shared, *chunks])
    logits = 4 * max(execution.batch_size, execution.score_tokens) * model.vocab_size
    return 4 * rows * model.hidden_size * BYTES[model.precision] + logits


def needed(config: BloomConfig, weights: bool, share: float = 1.0) -> dict[str, float]:
    """Bytes of what lies in memory, by what it is.

    Args:
        weights: whether they do, and are no mapped file's.
        share: of all replicas that lie in this memory.
    """
    parts = {"the KV cache": cache_bytes(config), "a pass": pass_bytes(config)}
    parts["the prefix cache"] = prefix_bytes(config)
    if weights:
        parts["the weights"] = weight_bytes(config)
    return {name: share * count for name, count in parts.items()}


def excess(config: BloomConfig, available: int, weights: bool, share: float = 1.0) -> str:
    """What needs more memory than there is, and what would fit, in a sentence; else empty.

    Args:
        available: bytes.
        weights, share: as of `needed`.
    """
    parts = needed(config, weights, share)
    if sum(parts.values()) <= available:
        return ""
    each = ", ".join(f"{name} {size(count)}" for name, count in parts.items())
    fitting = ", or ".join(_fitting(config, available, weights, share))
    return (
        f"this needs {size(sum(parts.values()))}, more memory than the {size(available)} that "
        f"are free: {each}; "
        + (f"what would fit: {fitting}" if fitting else "choose a smaller model")
    )


def size(count: float, digits: int = 1) -> str:
    """Bytes for a person."""
    number, unit = (count / 1e6, "MB") if count < 1e8 else (count / GIGABYTE, "GB")
    return f"{number:,.{digits}f} {unit}"


def fitting_layers(config: BloomConfig, available: int, share: float = 1.0) -> int:
    """The most layers of a model whose weights, cache and passes fit; 0 where none does."""

    def fits(layers: int) -> bool:
        return sum(needed(config.changed(layers=layers), True, share).values()) <= available

    return _most(fits, config.model.layers)


def _fitting(config: BloomConfig, available: int, weights: bool, share: float) -> list[str]:
    """Changes of which each alone is enough; where none is, of a precision or maps with others."""
    found = _single(config, available, weights, share)
    if found:
        return found
    for precision in _smaller(config, "weight_precision"):
        changed = config.changed(weight_precision=precision)
        more = _single(changed, available, weights, share) if _possible(changed) else []
        found = found or [f"--weight_precision {precision} with {option}" for option in more]
    if weights:
        more = _single(config, available, False, share)
        found += [f"{MAPS} with {option}" for option in more]
    return found


def _single(config: BloomConfig, available: int, weights: bool, share: float) -> list[str]:
    """Options of which each alone is enough, the least change first."""

    def fits(name: str, value: Any) -> bool:
        changed = config.changed(**{name: value})
        small = sum(needed(changed, weights, share).values()) <= available
        return small and _possible(changed)

    found = []
    for name in ("precision", "weight_precision"):
        fitting = next((value for value in _smaller(config, name) if fits(name, value)), None)
        found += [f"--{name} {fitting}"] if fitting else []
    for name, now in (
        ("batch_size", config.execution.batch_size),
        ("sequence_length", config.model.sequence_length),
    ):
        most = _most(partial(fits, name), now - 1)
        found += [f"--{name} {most}"] if most else []
    if fits("prefix_cache", 0):
        most = _most(partial(fits, "prefix_cache"), config.execution.prefix_cache - 1)
        found.append(f"--prefix_cache {most}")
    if weights and sum(needed(config, False, share).values()) <= available:
        found.append(MAPS)
    return found


def _smaller(config: BloomConfig, name: str) -> tuple[str, ...]:
    """Precisions of fewer bits than the configured one."""
    if name == "precision":
        return ("bfloat16",) if config.model.precision == "float32" else ()
    return {"full": ("int8", "int4"), "int8": ("int4",)}.get(config.model.weight_precision, ())


def _possible(config: BloomConfig) -> bool:
    try:
        config.validate()
    except ValueError:  # such as groups that do not divide a shard
        return False
    return True


def _most(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, 0 where none does; less fits where more does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
