"""The replicas of a mesh as one axis, as the kernels of a GPU know them."""

from __future__ import annotations

import math

import torch


def without_mesh(lead: int, tensor: torch.Tensor) -> torch.Tensor | None:
    """`(*mesh, *shape)` as `(replicas, *shape)`, in the same memory; None where that is no view."""
    try:
        return tensor.view(math.prod(tensor.shape[:lead]), *tensor.shape[lead:])
    except RuntimeError:
        return None


def by_replica(mesh: tuple[int, ...], tensor: torch.Tensor) -> torch.Tensor:
    """`(*mesh, *shape)` as `(replicas, *shape)`; a stride of 0 where all of them hold one value."""
    lead = len(mesh)
    once = all(size == 1 for size in tensor.shape[:lead])
    wide = tensor if once else tensor.expand(*mesh, *tensor.shape[lead:])
    shape = tensor.shape[lead:]
    flat = wide.reshape(math.prod(wide.shape[:lead]), *shape)
    return flat.expand(math.prod(mesh), *shape)
