"""Off-chip memory: a buffer of equally shaped entries."""

from __future__ import annotations

import math
from collections.abc import Iterable

from popxl import dtypes
from popxl.context import get_ir
from popxl.tensor import Tensor, TensorSpec


class RemoteBuffer:
    """`entries` slots of one shape and dtype, each holding a value a replica."""

    def __init__(self, tensor_shape: Iterable[int], tensor_dtype: dtypes.dtype, entries: int):
        self.entries = entries
        self._ir = get_ir()
        self._spec = TensorSpec(tensor_shape, tensor_dtype)
        self._meta_shape: tuple[int, ...] = ()
        self._shard_over: int | None = None
        self._id = self._ir._add_remote_buffer(self)

    @property
    def remote_buffer_id(self) -> int:
        """Its number in the Ir."""
        return self._id

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        return self._spec.shape

    @property
    def tensor_dtype(self) -> dtypes.dtype:
        return self._spec.dtype

    @property
    def entries(self) -> int:
        return self._entries

    @entries.setter
    def entries(self, value: int):
        if value < 1:
            raise ValueError(f"a remote buffer needs at least 1 entry, got {value}")
        self._entries = int(value)

    @property
    def meta_shape(self) -> tuple[int, ...]:
        """The shape of the wholes whose parts its entries are; empty where they are no parts."""
        return self._meta_shape

    @meta_shape.setter
    def meta_shape(self, shape: Iterable[int]):
        self._meta_shape = TensorSpec(shape, self.tensor_dtype).shape

    def validate_tensor_matches_buffer(self, t: Tensor, num_shards: int = 1) -> None:
        """Check that a tensor can be kept in this buffer.

        Raises:
            ValueError: where shape (of one of `num_shards` flat shards) or dtype differ.
        """
        shape = t.shape if num_shards == 1 else (math.ceil(t.nelms / num_shards),)
        if (shape, t.dtype) != (self.tensor_shape, self.tensor_dtype):
            raise ValueError(
                f"tensor {t.name} is {t.dtype} {shape}, remote buffer {self._id} holds "
                f"{self.tensor_dtype} {self.tensor_shape}"
            )

    def __repr__(self) -> str:
        return (
            f"RemoteBuffer[id={self._id} {self.tensor_dtype} {self.tensor_shape} "
            f"entries={self._entries}]"
        )


def remote_buffer(
    tensor_shape: Iterable[int], tensor_dtype: dtypes.dtype, entries: int = 1
) -> RemoteBuffer:
    """A new remote buffer in the current Ir.

    Raises:
        ValueError: for fewer than one entry.
    """
    return RemoteBuffer(tensor_shape, tensor_dtype, entries)
