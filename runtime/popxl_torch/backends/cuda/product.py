"""Products on a GPU, with what follows them: by the Triton kernels where they do it."""

from __future__ import annotations

import math
from dataclasses import replace
from types import ModuleType

import torch

from popxl_torch.backends.cuda.launches import FLOATS
from popxl_torch.backends.cuda.replicas import by_replica, without_mesh
from popxl_torch.backends.specs import LinearSpec, StoredWeight
from popxl_torch.memory.arrays import broadcast_shapes


def linear_on_gpu(
    kernels: ModuleType,
    spec: LinearSpec,
    x: torch.Tensor,
    weight: StoredWeight,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> torch.Tensor | None:
    """`activation(x @ weight + bias) + residual`; None where no kernel does it."""
    layout = _Layout(spec.lead, x, weight)
    apart = bias is not None and not layout.takes_bias(bias)
    if spec.summed is not None or apart or not layout.holds(bias, residual):
        alone = LinearSpec(spec.lead, torch.float32)
        y = linear_on_gpu(kernels, alone, x, weight, None, None)
        return None if y is None else _finished(kernels, spec, y, bias, residual)
    own = layout.weight()
    if own is None:
        return None
    done = kernels.linear(
        layout.rows(x),
        own,
        spec.dtype,
        None if bias is None else layout.rows(bias)[:, 0],
        spec.activation,
        None if residual is None else layout.rows(residual),
    )
    return None if done is None else layout.back(done)


def _finished(
    kernels: ModuleType,
    spec: LinearSpec,
    y: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> torch.Tensor | None:
    """The sum over a mesh axis, and what follows it."""
    lead = spec.lead
    parts = y.unsqueeze(lead)  # (*mesh, parts, ..., outputs)
    if spec.summed is not None:
        parts = parts.transpose(spec.summed, lead)
    given = [t for t in (parts, bias, residual) if t is not None]
    if any(of not in FLOATS for of in (spec.dtype, *(t.dtype for t in given))):
        return None
    mesh = tuple(broadcast_shapes(*(t.shape[:lead] for t in given)))
    rows = y.shape[lead:-1].numel()
    done = kernels.finish(
        by_replica(mesh, parts).reshape(math.prod(mesh), -1, rows, y.shape[-1]),
        spec.dtype,
        None,
        None if bias is None else by_replica(mesh, bias),
        spec.activation,
        None if residual is None else by_replica(mesh, residual).flatten(1, -2).contiguous(),
    )
    return done.reshape(*mesh, *y.shape[lead:])


class _Layout:
    """How a product of replicas is one of the kernels.

    Mesh axes along which weights differ become the kernels' replicas; others become rows, so that a
    weight is read once.

    Attributes:
        result: its shape.
    """

    def __init__(self, lead: int, x: torch.Tensor, weight: StoredWeight):
        self.lead, self._weight = lead, weight
        of_weight = weight.tensor.shape[:lead]
        self._mesh = _joint(x.shape[:lead], of_weight)
        self._varying = [i for i in range(lead) if of_weight[i] > 1]
        self._shared = [i for i in range(lead) if of_weight[i] == 1]
        self._replicas = math.prod(self._mesh[i] for i in self._varying)
        self.result = torch.Size((*self._mesh, *x.shape[lead:-1], weight.sizes()[1]))

    def holds(self, *added: torch.Tensor | None) -> bool:
        """Whether what is added has no mesh wider than the result's."""
        meshes = [t.shape[: self.lead] for t in added if t is not None]
        return all(_joint(self._mesh, mesh) == self._mesh for mesh in meshes)

    def takes_bias(self, bias: torch.Tensor) -> bool:
        """Whether a bias is the same for all rows."""
        return all(bias.shape[i] == 1 for i in self._shared)

    def weight(self) -> StoredWeight | None:
        """`(replicas, ...)`, where it lies; None where that is no tensor."""
        of = self._weight
        if any(s > w for t in (of.scale, of.offset) if t is not None for s, w in self._sizes(t)):
            return None  # numbers that replicas have in common, with scales of their own
        tensor, scale, offset = (self._own(t) for t in (of.tensor, of.scale, of.offset))
        if of.scale is not None and not of.grouped:
            scale = self.rows(of.scale)[:, 0]  # of a channel: its shards may have it in common
        if tensor is None or (scale is None, offset is None) != (of.scale is None, not of.grouped):
            return None
        return replace(of, tensor=tensor, scale=scale, offset=offset)

    def _sizes(self, part: torch.Tensor) -> list[tuple[int, int]]:
        """Along each mesh axis, the size of a part of the weight and of its tensor."""
        of_weight = self._weight.tensor.shape[: self.lead]
        return list(zip(part.shape[: self.lead], of_weight, strict=True))

    def _own(self, part: torch.Tensor | None) -> torch.Tensor | None:
        flat = None if part is None else without_mesh(self.lead, part)
        return flat if flat is not None and len(flat) == self._replicas else None

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """`(*mesh, ..., n)` as `(replicas, rows, n)`, with a stride of 0 where they are one."""
        if math.prod(self._mesh) == 1:
            return x.reshape(1, -1, x.shape[-1])
        inner, rows = x.shape[self.lead :], [self._mesh[i] for i in self._shared]
        ordered = x.permute(*self._varying, *self._shared, *range(self.lead, x.ndim))
        replicas = [self._mesh[i] for i in self._varying]
        if all(x.shape[i] == 1 for i in self._varying):
            replicas = [1] * len(replicas)
        wide = ordered.expand(*replicas, *rows, *inner)
        flat = wide.reshape(math.prod(replicas), math.prod((*rows, *inner[:-1])), inner[-1])
        return flat.expand(self._replicas, -1, -1)

    def back(self, done: torch.Tensor) -> torch.Tensor:
        """`(replicas, rows, outputs)` in the result's shape."""
        if math.prod(self._mesh) == 1:
            return done.reshape(self.result)
        order = [*self._varying, *self._shared]
        inner = self.result[self.lead :]
        apart = done.reshape(*(self._mesh[i] for i in order), *inner)
        return apart.permute(*map(order.index, range(self.lead)), *range(self.lead, apart.ndim))


def _joint(mesh: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return mesh if mesh == other else tuple(broadcast_shapes(mesh, other))
