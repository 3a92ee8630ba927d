"""A table of vectors, one for each token of a vocabulary."""

from __future__ import annotations

from math import ceil

import numpy as np
import popxl
from popxl import ops

from ..initialisers import truncated_normal
from ..module import Module

SHARD_MULTIPLE = 16
"""A shard's number of tokens is padded to a multiple of this, which IPUs gather fastest from."""


class Embedding(Module):
    """Looks tokens up; the vocabulary may be split over replicas."""

    def __init__(
        self,
        dtype: popxl.dtypes.dtype,
        vocab_size: int,
        hidden_size: int,
        axis: int = 0,
        replica_grouping: popxl.ReplicaGrouping | None = None,
    ):
        """
        Args:
            axis: of the table that is the vocabulary, 0 or 1.
            replica_grouping: each group of replicas holds another part of the vocabulary.

        Raises:
            ValueError: for another axis.
        """
        super().__init__()
        if axis not in (0, 1):
            raise ValueError(f"the vocabulary is axis 0 or 1 of an embedding, got {axis}")
        self.dtype = dtype
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.axis = axis
        self.replica_grouping = replica_grouping
        self.n_shards = replica_grouping.num_groups if replica_grouping else 1
        self.vocab_shard_size = self.get_vocab_shard_size(vocab_size, self.n_shards)
        self.offsets = self.get_offsets(vocab_size, self.n_shards)

    @staticmethod
    def get_vocab_shard_size(vocab_size: int, n_shards: int) -> int:
        """Tokens in each of `n_shards` equal parts of the padded vocabulary."""
        return SHARD_MULTIPLE * ceil(ceil(vocab_size / n_shards) / SHARD_MULTIPLE)

    @staticmethod
    def get_offsets(vocab_size: int, n_shards: int) -> np.ndarray:
        """The first token of each part; shape `(n_shards,)`."""
        return np.arange(n_shards) * Embedding.get_vocab_shard_size(vocab_size, n_shards)

    def build(self, indices: popxl.Tensor) -> popxl.Tensor:
        """From token ids to their vectors: `(*indices.shape, hidden_size)` for axis 0.

        Where the vocabulary is split, a replica's part begins at 0: subtract its entry of
        `offsets` from the ids first. Tokens of other parts give zeros, so the sum over the
        groups is the embedding.
        """
        shape = (self.vocab_shard_size, self.hidden_size)
        weight = self.add_variable_input(
            "weight",
            truncated_normal(shape if self.axis == 0 else shape[::-1]),
            self.dtype,
            replica_grouping=self.replica_grouping,
        )
        return ops.gather(weight, indices, axis=self.axis, zero_OOR=self.n_shards > 1)
