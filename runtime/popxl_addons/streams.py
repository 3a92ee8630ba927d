"""The streams of a program, by name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, Self, TypeVar

import popxl

S = TypeVar("S", bound=popxl.streams.Stream)


class _StreamsBase(OrderedDict, Generic[S]):
    """Makes one stream for each `name=(shape, dtype)`, in the current Ir.

    A stream is `streams.name`, `streams["name"]` or `streams[0]`. Iterating gives the streams,
    not their names, so that they unpack: `tokens, positions = inputs`.
    """

    _make: Callable[..., Any]

    def __init__(self, **streams: tuple[Iterable[int], popxl.dtypes.dtype]):
        super().__init__()
        for name, (shape, dtype) in streams.items():
            self[name] = self._make(shape, dtype, name)

    @classmethod
    def from_streams(cls, streams: Iterable[S]) -> Self:
        """A collection of streams that exist, named by their ids."""
        self = cls()
        for stream in streams:
            self[stream.tensor_id] = stream
        return self

    def __getattr__(self, key: str) -> S:
        if key.startswith("_") or key not in self:
            raise AttributeError(self._missing(key))
        return self[key]

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, (int, slice)):
            return list(self.values())[key]
        if key not in self:
            raise KeyError(self._missing(key))
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values())

    def _missing(self, key: str) -> str:
        return f"no stream called {key!r}; there are: {', '.join(self.keys()) or 'none'}"


class InputStreams(_StreamsBase[popxl.HostToDeviceStream]):
    """Streams from the host: `InputStreams(tokens=((128,), popxl.int32))`."""

    _make = staticmethod(popxl.h2d_stream)


class OutputStreams(_StreamsBase[popxl.DeviceToHostStream]):
    """Streams to the host: `OutputStreams(logits=((1024,), popxl.float32))`."""

    _make = staticmethod(popxl.d2h_stream)
