"""What a graph does beside computing; whoever records the graph is told, to do it again."""

from __future__ import annotations

import contextvars
from collections.abc import Callable

import torch

Effect = Callable[[], object]
Observer = Callable[[Effect, tuple[torch.Tensor, ...]], None]
observer: contextvars.ContextVar[Observer | None] = contextvars.ContextVar("effects", default=None)
"""Does the effect, which writes to these tensors."""


def do(effect: Effect, *written: torch.Tensor) -> None:
    """Do it now, and again whenever a recording of what is done now is run."""
    observe = observer.get()
    if observe is None:
        effect()
    else:
        observe(effect, written)
