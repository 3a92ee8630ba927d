"""Keys and values of prompts, kept in blocks beside the slots for requests that begin alike.

Which block holds what is for the host to know. Blocks are copied, a chunk of a prompt at a time,
from a slot and to one.
"""

from __future__ import annotations

from collections.abc import Sequence

import popxl
from popxl import ops

from config import BloomConfig
from config.costs import prefix_blocks
from modelling.sharding import axis_size


def kept_sizes(config: BloomConfig, chunks: Sequence[int]) -> tuple[int, ...]:
    """Of the chunks' sizes those that are kept: they are whole blocks. None where that is off."""
    blocks, block = prefix_blocks(config)
    return tuple(c for c in chunks if c % block == 0 and c // block <= blocks)


class PrefixBlocks:
    """The blocks' remote buffers, and the passes that copy.

    Args:
        caches: the remote buffers of keys and values, an entry a layer:
            `(batch_size, heads / tp1, sequence_length, head_dim)`.
    """

    def __init__(self, config: BloomConfig, caches: Sequence[popxl.RemoteBuffer]):
        blocks, self.block = prefix_blocks(config)
        model = config.model
        self.layers, self.caches = model.layers, caches
        heads = model.heads // axis_size(config, "tp1")
        shape = (blocks, heads, self.block, model.head_dim)
        self.buffers = [popxl.remote_buffer(shape, model.dtype, model.layers) for _ in caches]

    def copy(self, given: list[popxl.Tensor], size: int, keep: bool) -> None:
        """Copy `size` tokens of `slots[0]` from `positions[0]` on, every layer's in a loop.

        Args:
            given: as each pass is; tokens are the numbers of the blocks.
            keep: to the blocks; else from them.
        """
        numbers, positions, slots, _ = given
        given = [numbers[: size // self.block], positions[0], slots[0]]

        def layer(number: popxl.Tensor, given: list) -> popxl.Tensor:
            for pair in zip(self.buffers, self.caches, strict=True):
                loaded = [ops.remote_load(buffer, number) for buffer in pair]
                copied = popxl.gir().create_graph(_copied, *loaded, *given, keep)
                ops.call(copied, *loaded, *given)
                target = 0 if keep else 1
                ops.remote_store(pair[target], number, loaded[target])
            return number + 1

        body = popxl.gir().create_graph(layer, popxl.TensorSpec((), popxl.int32), given)
        ops.repeat(body, self.layers, 0, *given)


def _copied(
    blocks: popxl.TensorByRef,
    cache: popxl.TensorByRef,
    numbers: popxl.Tensor,
    position: popxl.Tensor,
    slot: popxl.Tensor,
    keep: bool,
) -> None:
    """Copy from a layer's cache to its blocks of these numbers, or the other way."""
    _, heads, block, head_dim = blocks.shape
    count = numbers.shape[0]
    at = ops.concat([ops.reshape(slot, (1,)), ops.reshape(position, (1,))])
    part = [0, 2], [1, count * block], True
    if not keep:
        by_block = ops.transpose(ops.gather(blocks, numbers), (1, 0, 2, 3))
        tokens = ops.reshape(by_block, (1, heads, count * block, head_dim))
        ops.dynamic_update_(cache, at, tokens, *part)
        return
    tokens = ops.dynamic_slice(cache, at, *part)
    by_block = ops.reshape(tokens, (heads, count, block, head_dim))
    for i in range(count):
        one = ops.transpose(by_block[:, i : i + 1], (1, 0, 2, 3))
        ops.dynamic_update_(blocks, numbers[i : i + 1], one, [0], [1], True)
