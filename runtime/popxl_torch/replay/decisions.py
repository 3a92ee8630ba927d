"""Numbers of tensors that Python code decides by; whoever records a graph is told of them."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any

import torch

Observer = Callable[[torch.Tensor, Any], None]
observer: contextvars.ContextVar[Observer | None] = contextvars.ContextVar("observer", default=None)
"""Is given the tensor and its numbers."""


def numbers(tensor: torch.Tensor) -> list:
    """`tensor.tolist()`, for code that decides by it."""
    values = tensor.tolist()
    observe = observer.get()
    if observe is not None:
        observe(tensor, values)
    return values
