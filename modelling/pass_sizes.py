"""Which passes the program has: their kinds, sizes, numbers and names, from the settings alone."""

from __future__ import annotations

from config import BloomConfig
from modelling.prefix_blocks import kept_sizes

NO_LOGITS = -1
"""What `last` is for a chunk that another one follows: its head is not computed."""

MOST_HEADS = 8
"""Prompts that may end in one pass."""

DECODES = (1, 4, 8, 16, 24, 32)
"""Slots of the narrowest decode passes; further ones have twice as many each."""

LEAST_VERIFIED = 4
"""Tokens of the narrowest verify pass, unless the widest one has fewer."""


def chunk_sizes(config: BloomConfig) -> tuple[int, ...]:
    """The sizes of the prefill passes in tokens, ascending: those that fit context and step."""
    length, execution = config.model.sequence_length, config.execution
    most = min(length, execution.max_batch_tokens)
    return tuple(c for c in execution.prompt_chunks if c <= most) or (length,)


def share_sizes(config: BloomConfig) -> tuple[int, ...]:
    """The sizes of the passes that prompts share in tokens, ascending; each is twice the last.

    They are blocks of the smallest chunk's tokens. There is none where one slot is all there is, or
    a block is no chunk of several tokens.
    """
    execution, chunks = config.execution, chunk_sizes(config)
    block, slots = chunks[0], execution.batch_size
    if slots == 1 or block == 1 or block != execution.prompt_chunks[0]:
        return ()
    most = min(execution.max_batch_tokens, slots * chunks[-1])
    return tuple(block << i for i in range(1, most.bit_length()) if block << i <= most)


def heads(config: BloomConfig) -> int:
    """Rows of logits that a pass of several prompts gives at most."""
    return min(config.execution.batch_size, MOST_HEADS)


def ending_together(config: BloomConfig, size: int) -> int:
    """Prompts that may end in a shared pass of a size at most."""
    return min(heads(config), size // chunk_sizes(config)[0])


def decode_sizes(config: BloomConfig) -> tuple[int, ...]:
    """The slots of the decode passes, ascending; the last one has them all."""
    slots = config.execution.batch_size
    doubled = (DECODES[-1] << i for i in range(1, slots.bit_length()))
    return (*(n for n in (*DECODES, *doubled) if n < slots), slots)


def verify_sizes(config: BloomConfig) -> tuple[int, ...]:
    """The sizes of the verify passes in tokens, ascending.

    The widest has all look-up tokens and the one before them, the others half of the next: few
    tokens cost less. There are none where look-up is off, or the widest does not fit the context.
    """
    size = config.execution.lookup_tokens + 1
    if size == 1 or size > config.model.sequence_length:
        return ()
    sizes = [size]
    while (half := (sizes[-1] + 1) // 2) >= LEAST_VERIFIED:
        sizes.append(half)
    return tuple(reversed(sizes))


def score_sizes(config: BloomConfig) -> tuple[int, ...]:
    """The size of the scoring pass in tokens; none where it is off."""
    size = min(config.execution.score_tokens, config.model.sequence_length)
    return (size,) if size else ()


def numbered_passes(config: BloomConfig) -> list[tuple[str, int]]:
    """The kind and size of each pass, at the place that is its number.

    Prefill passes have a chunk's tokens, and so have `keep` and `reuse`, which copy a chunk to the
    prefix cache and from it; shared ones have those of `share_sizes`, verify passes those of
    `verify_sizes`, score passes those of `score_sizes`. These are the last: a program with them
    runs what settings without them number.
    """
    chunks = chunk_sizes(config)
    kept = kept_sizes(config, chunks)
    each = {
        "decode": decode_sizes(config)[::-1],
        "prefill": chunks,
        "keep": kept,
        "reuse": kept,
        "share": share_sizes(config),
        "verify": verify_sizes(config),
        "score": score_sizes(config),
    }
    return [(kind, size) for kind, found in each.items() for size in found]


def decode_name(config: BloomConfig, size: int) -> str:
    """Of the decode pass of so many slots: that of its graph and of its stream of logits."""
    return "decode" if size == config.execution.batch_size else f"decode_{size}"
