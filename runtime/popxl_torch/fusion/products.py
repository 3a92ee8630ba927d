"""Matrix products and the ops that follow them, done by one native kernel where rows are few.

A product is a `matmul` with a matrix, or the call of a graph declared to multiply with quantised
weights: `channel_quantized_matmul` or `group_quantized_matmul`. What follows it may be, in this
order and each used nowhere else: a sum over replicas, a bias, GELU, an added tensor, a cast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom
from popxl.graph import Graph, Op
from popxl.tensor import Tensor

from popxl_torch.backends.cpu.library import Library
from popxl_torch.backends.cpu.linear import decompressed, finish, linear
from popxl_torch.backends.reference.functions import align
from popxl_torch.backends.reference.matmul import matmul
from popxl_torch.backends.specs import StoredWeight
from popxl_torch.collectives.mesh import Mesh
from popxl_torch.collectives.within import reduce
from popxl_torch.fusion.declared import has_signature, is_declared
from popxl_torch.fusion.groups import Fusion

GELU = {"gelu": "tanh", "geluerf": "none"}
"""The kinds of GELU, and torch's names of their forms."""


@dataclass(frozen=True)
class Product:
    """A product and what follows it.

    Attributes:
        ops: all of them, the product first.
        summed: the mesh axis of the sum over replicas, and its size.
        reduced: the sum over replicas where these lie otherwise, or in several processes.
        bias, residual: the tensors that are added.
        dtype: of the result.
    """

    ops: tuple[Op, ...]
    summed: tuple[int, int] | None = None
    reduced: Op | None = None
    bias: Tensor | None = None
    activation: str | None = None
    residual: Tensor | None = None
    dtype: torch.dtype = field(default=torch.float32)

    @property
    def inputs(self) -> list[Tensor]:
        """The tensors that a call needs: those of the product, bias, residual."""
        return [*self.ops[0].inputs, *(t for t in (self.bias, self.residual) if t is not None)]

    @property
    def output(self) -> Tensor:
        return self.ops[-1].outputs[0]


def products(graph: Graph, fusion: Fusion, mesh: Mesh | None) -> list[Product]:
    """The products of a graph, each with all that may be done in one with it; they are taken.

    Args:
        mesh: None where a sum over replicas is not to be among it.
    """
    found = []
    for op in graph._ops:
        if _multiply(op) is not None and fusion.allows([op]):
            found.append(_extended(op, fusion, mesh))
            fusion.take(found[-1].ops)
    return found


def _extended(op: Op, fusion: Fusion, mesh: Mesh | None) -> Product:
    product = Product((op,), dtype=op.outputs[0].dtype.as_torch())
    for step in (_sum, _bias, _gelu, _residual, _cast):
        proposed = step(product, fusion, mesh)
        if proposed is not None and fusion.allows(proposed.ops):
            product = proposed
    return product


def _sum(product: Product, fusion: Fusion, mesh: Mesh | None) -> Product | None:
    op = fusion.user(product.output, "all_reduce")
    if op is None or op.reduction != "add" or mesh is None:
        return None
    axes = mesh.axes_of(op.group)
    if axes is None:
        return replace(product, ops=(*product.ops, op), reduced=op)
    if not axes:  # of one replica
        return replace(product, ops=(*product.ops, op))
    if len(axes) != 1:
        return None
    return replace(product, ops=(*product.ops, op), summed=(axes[0], mesh.dims[axes[0]]))


def _bias(product: Product, fusion: Fusion, mesh: Mesh | None) -> Product | None:
    op, other = _added(product, fusion)
    if op is None or other is None or other.shape != product.output.shape[-1:]:
        return None
    return replace(product, ops=(*product.ops, op), bias=other)


def _gelu(product: Product, fusion: Fusion, mesh: Mesh | None) -> Product | None:
    op = fusion.user(product.output, *GELU)
    return None if op is None else replace(product, ops=(*product.ops, op), activation=op.kind)


def _residual(product: Product, fusion: Fusion, mesh: Mesh | None) -> Product | None:
    op, other = _added(product, fusion)
    if op is None or other is None or other.shape != product.output.shape:
        return None
    return replace(product, ops=(*product.ops, op), residual=other)


def _cast(product: Product, fusion: Fusion, mesh: Mesh | None) -> Product | None:
    op = fusion.user(product.output, "cast")
    if op is None or not op.outputs[0].dtype.is_floating_point:
        return None
    return replace(product, ops=(*product.ops, op), dtype=op.outputs[0].dtype.as_torch())


def _added(product: Product, fusion: Fusion) -> tuple[Op | None, Tensor | None]:
    """The addition that follows, and what is added."""
    op = fusion.user(product.output, "add")
    if op is None or op.inputs[0] is op.inputs[1]:
        return None, None
    return op, op.inputs[1 if op.inputs[0] is product.output else 0]


# --- running one ---

Multiply = Callable[..., torch.Tensor]


class RunProduct:
    """Runs a product: by the CPU's kernels where they do it, else op by op.

    Args:
        lead: the number of mesh axes.
        reduced: does the sum that is `product.reduced`.
    """

    def __init__(
        self,
        product: Product,
        lead: int,
        native: Library | None,
        reduced: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        multiply = _multiply(product.ops[0])
        assert multiply is not None
        self.product, self.lead, self.native, self.reduced = product, lead, native, reduced
        self.weight_of, self.multiply = multiply
        self.operands = len(product.ops[0].inputs)
        self.between = product.ops[0].outputs[0].dtype.as_torch()
        self.__name__ = f"product_{product.ops[0].kind}"

    def __call__(self, x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        product = self.product
        operands, added = others[: self.operands - 1], list(others[self.operands - 1 :])
        bias = added.pop(0) if product.bias is not None else None
        residual = added.pop(0) if product.residual is not None else None
        done = self._at_once(x, self.weight_of(*operands), bias, residual)
        return self._then(self._sum(x, operands), bias, residual) if done is None else done

    def _at_once(
        self,
        x: torch.Tensor,
        weight: StoredWeight,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """All of it by one kernel; None where none does that."""
        product = self.product
        if self.reduced is not None or not self._sums_once(x, weight.tensor):
            return None
        return self._linear(
            x,
            weight,
            product.dtype,
            summed=product.summed and product.summed[0],
            bias=bias,
            activation=product.activation,
            residual=residual,
        )

    def _sum(self, x: torch.Tensor, operands: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The product and the sum over replicas."""
        if self.reduced is not None:
            alone = self._linear(x, self.weight_of(*operands), self.between)
            return self.reduced(self._multiplied(x, operands) if alone is None else alone)
        y = self._multiplied(x, operands)
        if self.product.summed is None:
            return y
        axis, size = self.product.summed
        return reduce(y, "add", (axis,), size if y.shape[axis] == 1 else 1)

    def _linear(
        self,
        x: torch.Tensor,
        weight: StoredWeight,
        dtype: torch.dtype,
        *,
        summed: int | None = None,
        bias: torch.Tensor | None = None,
        activation: str | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """The product and what follows it by a kernel; None where none does that."""
        if self.native is None:
            return None
        return linear(
            self.native,
            self.lead,
            x,
            weight,
            dtype,
            summed=summed,
            bias=bias,
            activation=activation,
            residual=residual,
        )

    def _sums_once(self, x: torch.Tensor, weight: torch.Tensor) -> bool:
        """Whether the members of the sum are all there, not held once for several."""
        if self.product.summed is None:
            return True
        axis, size = self.product.summed
        return size in (x.shape[axis], weight.shape[axis])

    def _multiplied(self, x: torch.Tensor, operands: tuple[torch.Tensor, ...]) -> torch.Tensor:
        weight = self.weight_of(*operands)
        values = None
        if self.native is not None and weight.grouped:
            values = decompressed(self.native, weight, x.dtype)
        if values is not None:
            return matmul(x, values, self.lead, self.between)
        return self.multiply(x, *operands, self.lead, self.between)

    def _then(
        self, y: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None
    ) -> torch.Tensor:
        """What follows the sum."""
        product = self.product
        if bias is None and residual is None and product.activation is None:
            return y.to(product.dtype)
        done = None
        if self.native is not None:
            done = finish(
                self.native,
                self.lead,
                y,
                product.dtype,
                bias=bias,
                activation=product.activation,
                residual=residual,
            )
        if done is not None:
            return done
        if bias is not None:
            y = y + align(bias, self.lead, y.ndim - bias.ndim)
        if product.activation is not None:
            y = F.gelu(y, approximate=GELU[product.activation])
        if residual is not None:
            y = y + residual
        return y.to(product.dtype)


def _multiply(op: Op) -> tuple[Callable[..., StoredWeight], Multiply] | None:
    """How the weight of a product is given to the kernels, and its product in torch."""
    if not op.inputs or not op.inputs[0].dtype.is_floating_point:
        return None
    if op.kind == "matmul":
        x, w = op.inputs
        return (StoredWeight, matmul) if x.rank >= 2 and w.rank == 2 else None
    if op.kind == "call" and not op.modifies and len(op.outputs) == 1:
        return _quantized(op)
    return None


def _quantized(op: Op) -> tuple[Callable[..., StoredWeight], Multiply] | None:
    """A graph that was declared to multiply with int8 and a scale a channel, or 4-bit groups."""
    graph = op.graphs[0]
    x, w = (*graph.inputs, None, None)[:2]
    if x is None or w is None or x.rank != 2 or w.rank < 2:
        return None
    (rows, size), kind = x.shape, x.dtype.name
    if is_declared(graph, "channel_quantized_matmul"):
        out = w.shape[-1]
        inputs = [(kind, x.shape), ("int8", (size, out)), ("float32", (out,))]
        return (StoredWeight, _by_channel) if _multiplies(graph, inputs, rows, out) else None
    if is_declared(graph, "group_quantized_matmul") and w.rank == 3 and w.shape[1]:
        out, groups, _ = w.shape
        words, halves = (out, groups, size // groups // 4), ("float16", (out, groups, 1))
        inputs = [(kind, x.shape), ("uint16", words), halves, halves]
        fits = words[1] * words[2] * 4 == size and _multiplies(graph, inputs, rows, out)
        return (StoredWeight, _by_group) if fits else None
    return None


def _multiplies(graph: Graph, inputs: Sequence[tuple], rows: int, out: int) -> bool:
    return has_signature(graph, inputs, [(inputs[0][0], (rows, out))])


def _by_channel(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, lead: int, dtype: torch.dtype
) -> torch.Tensor:
    # 8 bits are exact in bfloat16; in float16 sums could overflow before they are scaled.
    between = x.dtype if x.dtype == torch.bfloat16 else torch.float32
    product = matmul(x, weight.to(x.dtype), lead, between)
    return (product * align(scale, lead, 1)).to(dtype)


def _by_group(
    x: torch.Tensor,
    words: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor,
    lead: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    shifts = torch.arange(12, -4, -4, dtype=torch.int32, device=x.device)  # no copy from the host
    numbers = (words.to(torch.int32).unsqueeze(-1) >> shifts) & 15  # [..., group_size / 4, 4]
    values = numbers.flatten(-2).float() * scale.float() + offset.float()
    weight = values.flatten(-2).transpose(-1, -2).to(x.dtype)
    return matmul(x, weight, lead, dtype)
