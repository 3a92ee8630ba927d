"""What settings would cost, computed from their values: nothing is built, no array is made.

Bounds of single settings limit to seconds what is built for any one of them; bounds of sums limit
what they cost together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from config.config import BloomConfig, ModelConfig

MOST = {
    "layers": 1_000,
    "hidden_size": 1 << 17,
    "heads": 1 << 12,
    "vocab_size": 1 << 23,
    "sequence_length": 1 << 20,
    "batch_size": 1 << 14,
    "tensor_parallel_1": 1 << 10,
    "tensor_parallel_2": 1 << 10,
    "io_tiles": 1 << 20,
    "group_size": 1 << 17,
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

GIGABYTE = 1e9


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
    """Bytes of the KV cache of all replicas: each holds its heads, for every replica of tp2."""
    model, execution = config.model, config.execution
    of_a_slot = 2 * model.layers * model.sequence_length * model.hidden_size
    slots = execution.batch_size * execution.tensor_parallel_2
    return slots * of_a_slot * BYTES[model.precision]


def pass_bytes(config: BloomConfig) -> int:
    """Of what a pass computes, at least: its widest activations and the logits of every row."""
    model, execution = config.model, config.execution
    chunks = [c for c in execution.prompt_chunks if c <= model.sequence_length]
    rows = max([execution.batch_size, *chunks])
    logits = 4 * execution.batch_size * model.vocab_size
    return 4 * rows * model.hidden_size * BYTES[model.precision] + logits


def excess(config: BloomConfig, available: int, weights: bool, share: float = 1.0) -> str:
    """What needs more memory than there is, in a sentence; empty where nothing does.

    Args:
        available: bytes.
        weights: whether they lie in memory, and are no mapped file's.
        share: of all replicas that lie in this memory.
    """
    parts = {"the KV cache": cache_bytes(config), "a pass": pass_bytes(config)}
    if weights:
        parts["the weights"] = weight_bytes(config)
    needed = {name: share * count for name, count in parts.items()}
    if sum(needed.values()) <= available:
        return ""
    each = ", ".join(f"{name} {count / GIGABYTE:,.1f} GB" for name, count in needed.items())
    return (
        f"this needs more memory than the {available / GIGABYTE:,.1f} GB that are free: {each}: "
        f"choose a smaller batch_size ({config.execution.batch_size}), sequence_length "
        f"({config.model.sequence_length}) or model"
    )
