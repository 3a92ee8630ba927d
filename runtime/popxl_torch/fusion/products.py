"""Matrix products and the ops that follow them, done at once: found, and run by a back end.

A product is a `matmul` with a matrix, or the call of a graph declared to multiply with quantised
weights: `channel_quantized_matmul` or `group_quantized_matmul`. What follows it may be, in this
order and each used nowhere else: a sum over replicas, a bias, an activation, a gate that it is
multiplied with, an added tensor, a cast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from popxl.graph import Graph, Op
from popxl.tensor import Tensor
from popxl_shared.groups import PER_WORD

from popxl_torch.backends.back_end import BackEnd
from popxl_torch.backends.reference.back_end import Reference
from popxl_torch.backends.specs import ACTIVATIONS, Added, LinearSpec, StoredWeight
from popxl_torch.collectives.across import AcrossProcesses, of_op
from popxl_torch.collectives.mesh import Mesh
from popxl_torch.collectives.within import Collectives, reduce
from popxl_torch.fusion.declared import has_signature, is_declared
from popxl_torch.fusion.groups import Fusion


@dataclass(frozen=True)
class Product:
    """A product and what follows it.

    Attributes:
        ops: all of them, the product first.
        summed: the mesh axis of the sum over replicas, and its size.
        reduced: the sum over replicas where these lie otherwise, or in several processes.
        bias, residual: the tensors that are added.
        gate: what is multiplied with.
        dtype: of the result.
    """

    ops: tuple[Op, ...]
    summed: tuple[int, int] | None = None
    reduced: Op | None = None
    bias: Tensor | None = None
    activation: str | None = None
    residual: Tensor | None = None
    gate: Tensor | None = None
    dtype: torch.dtype = field(default=torch.float32)

    @property
    def inputs(self) -> list[Tensor]:
        """The tensors that a call needs: those of the product, bias, residual, gate."""
        after = (self.bias, self.residual, self.gate)
        return [*self.ops[0].inputs, *(t for t in after if t is not None)]

    @property
    def output(self) -> Tensor:
        return self.ops[-1].outputs[0]

    def lowered(
        self, lead: int, back_end: BackEnd, collectives: Collectives | AcrossProcesses
    ) -> Callable[..., torch.Tensor]:
        """What computes it, from its inputs, which have `lead` mesh axes in front."""
        reduced = None if self.reduced is None else of_op(self.reduced, collectives)
        return RunProduct(self, lead, back_end, reduced)


def products(graph: Graph, fusion: Fusion, mesh: Mesh | None) -> list[Product]:
    """The products of a graph, each with all that may be done in one with it; they are taken.

    Args:
        mesh: None where a sum over replicas is not to be among it.
    """
    found = []
    for op in graph._ops:
        if _multiplies(op) and fusion.allows([op]):
            found.append(_extended(op, fusion, mesh))
            fusion.take(found[-1].ops)
    return found


def _extended(op: Op, fusion: Fusion, mesh: Mesh | None) -> Product:
    product = Product((op,), dtype=op.outputs[0].dtype.as_torch())
    for step in (_sum, _bias, _activation, _gate, _residual, _cast):
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
    op, bias = _joined(product, fusion, "add", product.output.shape[-1:])
    return None if op is None else replace(product, ops=(*product.ops, op), bias=bias)


def _activation(product: Product, fusion: Fusion, mesh: Mesh | None) -> Product | None:
    op = fusion.user(product.output, *ACTIVATIONS)
    return None if op is None else replace(product, ops=(*product.ops, op), activation=op.kind)


def _gate(product: Product, fusion: Fusion, mesh: Mesh | None) -> Product | None:
    op, gate = _joined(product, fusion, "mul", product.output.shape)
    return None if op is None else replace(product, ops=(*product.ops, op), gate=gate)


def _residual(product: Product, fusion: Fusion, mesh: Mesh | None) -> Product | None:
    op, residual = _joined(product, fusion, "add", product.output.shape)
    return None if op is None else replace(product, ops=(*product.ops, op), residual=residual)


def _cast(product: Product, fusion: Fusion, mesh: Mesh | None) -> Product | None:
    op = fusion.user(product.output, "cast")
    if op is None or not op.outputs[0].dtype.is_floating_point:
        return None
    return replace(product, ops=(*product.ops, op), dtype=op.outputs[0].dtype.as_torch())


def _joined(
    product: Product, fusion: Fusion, kind: str, shape: tuple[int, ...]
) -> tuple[Op | None, Tensor | None]:
    """The addition or multiplication that follows, and its other operand, of this shape."""
    op = fusion.user(product.output, kind)
    if op is None or op.inputs[0] is op.inputs[1]:
        return None, None
    other = op.inputs[1 if op.inputs[0] is product.output else 0]
    return (op, other) if other.shape == shape else (None, None)


def _multiplies(op: Op) -> bool:
    """Whether an op is a product with a weight, of any kind."""
    if not op.inputs or not op.inputs[0].dtype.is_floating_point:
        return False
    if op.kind == "matmul":
        x, w = op.inputs
        return x.rank >= 2 and w.rank == 2
    if op.kind == "call" and not op.modifies and len(op.outputs) == 1:
        return _multiplies_quantised(op)
    return False


def _multiplies_quantised(op: Op) -> bool:
    """A graph that was declared to multiply with int8 and a scale a channel, or 4-bit groups."""
    graph = op.graphs[0]
    x, w = (*graph.inputs, None, None)[:2]
    if x is None or w is None or x.rank != 2 or w.rank < 2:
        return False
    (rows, size), kind = x.shape, x.dtype.name
    if is_declared(graph, "channel_quantized_matmul"):
        out = w.shape[-1]
        inputs = [(kind, x.shape), ("int8", (size, out)), ("float32", (out,))]
        return _has_product(graph, inputs, rows, out)
    if is_declared(graph, "group_quantized_matmul") and w.rank == 3 and w.shape[1]:
        out, groups, _ = w.shape
        words, halves = (out, groups, size // groups // PER_WORD), ("float16", (out, groups, 1))
        inputs = [(kind, x.shape), ("uint16", words), halves, halves]
        return words[1] * words[2] * PER_WORD == size and _has_product(graph, inputs, rows, out)
    return False


def _has_product(graph: Graph, inputs: Sequence[tuple], rows: int, out: int) -> bool:
    return has_signature(graph, inputs, [(inputs[0][0], (rows, out))])


class RunProduct:
    """Runs a product: by the back end as far as it does it, in parts or at once, else in torch.

    Args:
        lead: the number of mesh axes.
        reduced: does the sum that is `product.reduced`.
    """

    def __init__(
        self,
        product: Product,
        lead: int,
        back_end: BackEnd,
        reduced: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        self.product, self.back_end, self.reduced = product, back_end, reduced
        summed = product.summed and product.summed[0]
        self.whole = LinearSpec(lead, product.dtype, summed, product.activation)
        self.alone = LinearSpec(lead, product.ops[0].outputs[0].dtype.as_torch())
        self.operands = len(product.ops[0].inputs)
        self.reference = Reference()
        self.__name__ = f"product_{product.ops[0].kind}"

    def __call__(self, x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        product = self.product
        weight, rest = StoredWeight(*others[: self.operands - 1]), [*others[self.operands - 1 :]]
        after = (product.bias, product.residual, product.gate)
        added = Added(*(None if t is None else rest.pop(0) for t in after))
        if self.reduced is None and self._sums_once(x, weight.tensor):
            done = self.back_end.linear(self.whole, x, weight, added)
            if done is not None:
                return done
        return self._then(self._sum(x, weight), added)

    def _sums_once(self, x: torch.Tensor, weight: torch.Tensor) -> bool:
        """Whether the members of the sum are all there, not held once for several."""
        if self.product.summed is None:
            return True
        axis, size = self.product.summed
        return size in (x.shape[axis], weight.shape[axis])

    def _sum(self, x: torch.Tensor, weight: StoredWeight) -> torch.Tensor:
        """The product and the sum over replicas."""
        alone = self.back_end.linear(self.alone, x, weight)
        y = self._multiplied(x, weight) if alone is None else alone
        if self.reduced is not None:
            return self.reduced(y)
        if self.product.summed is None:
            return y
        axis, size = self.product.summed
        return reduce(y, "add", (axis,), size if y.shape[axis] == 1 else 1)

    def _multiplied(self, x: torch.Tensor, weight: StoredWeight) -> torch.Tensor:
        values = self.back_end.dequantise(weight, x.dtype) if weight.grouped else None
        held = weight if values is None else StoredWeight(values)
        return self.reference.linear(self.alone, x, held)

    def _then(self, y: torch.Tensor, added: Added) -> torch.Tensor:
        """What follows the sum."""
        if self.whole.activation is None and not added.tensors():
            return y.to(self.whole.dtype)
        done = self.back_end.epilogue(self.whole, y, added)
        return self.reference.epilogue(self.whole, y, added) if done is None else done
