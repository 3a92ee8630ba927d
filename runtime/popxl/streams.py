"""Streams between the host and the device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Self

from popxl import dtypes
from popxl.context import get_ir
from popxl.tensor import TensorSpec

if TYPE_CHECKING:
    from popxl.ir import Ir


class Stream:
    """A named channel of tensors of one shape and dtype."""

    _ir: Ir
    _spec: TensorSpec
    _id: str

    def __init__(self):
        raise RuntimeError("a stream cannot be constructed directly: use h2d_stream or d2h_stream")

    @classmethod
    def _make(cls, shape: Iterable[int], dtype: dtypes.dtype, name: str) -> Self:
        self = super().__new__(cls)
        self._ir = get_ir()
        self._spec = TensorSpec(shape, dtype)
        self._id = self._ir._unique_name(name)
        return self

    @property
    def tensor_id(self) -> str:
        """Its name, unique in the Ir."""
        return self._id

    @property
    def shape(self) -> tuple[int, ...]:
        return self._spec.shape

    @property
    def dtype(self) -> dtypes.dtype:
        return self._spec.dtype

    @property
    def spec(self) -> TensorSpec:
        return self._spec

    def __repr__(self) -> str:
        return f"{type(self).__name__}[{self._id} {self.dtype} {self.shape}]"


class HostToDeviceStream(Stream):
    """What `ops.host_load` reads."""


class DeviceToHostStream(Stream):
    """What `ops.host_store` writes."""


def h2d_stream(
    shape: Iterable[int], dtype: dtypes.dtype, name: str | None = None
) -> HostToDeviceStream:
    """A stream from the host to the device, of tensors of `shape` a replica."""
    return HostToDeviceStream._make(shape, dtype, name or "h2d_stream")


def d2h_stream(
    shape: Iterable[int], dtype: dtypes.dtype, name: str | None = None
) -> DeviceToHostStream:
    """A stream from the device to the host, of tensors of `shape` a replica."""
    return DeviceToHostStream._make(shape, dtype, name or "d2h_stream")
