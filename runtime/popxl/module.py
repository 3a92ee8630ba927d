"""A callable that builds a graph and may keep what it made."""

from __future__ import annotations

from typing import Any


class Module:
    """Subclass it and write `build`; an instance can stand for a function in `Ir.create_graph`."""

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """Make the ops of this module in the current graph; returns its output tensors."""
        raise NotImplementedError(f"{type(self).__name__} has no build method")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.build(*args, **kwargs)
