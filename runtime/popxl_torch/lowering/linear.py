"""Products and what follows them, as found by `fusion/products.py`: by the back end where it does
them, in parts or at once, and by the reference where it does not."""

from __future__ import annotations

from collections.abc import Callable

import torch

from popxl_torch.backends.back_end import BackEnd
from popxl_torch.backends.reference.back_end import Reference
from popxl_torch.backends.specs import LinearSpec, StoredWeight
from popxl_torch.collectives.within import reduce
from popxl_torch.fusion.products import Product


class RunProduct:
    """Runs a product.

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
        weight, added = StoredWeight(*others[: self.operands - 1]), [*others[self.operands - 1 :]]
        bias = added.pop(0) if product.bias is not None else None
        residual = added.pop(0) if product.residual is not None else None
        gate = added.pop(0) if product.gate is not None else None
        after = bias, residual, gate
        if self.reduced is None and self._sums_once(x, weight.tensor):
            done = self.back_end.linear(self.whole, x, weight, *after)
            if done is not None:
                return done
        return self._then(self._sum(x, weight), *after)

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

    def _then(self, y: torch.Tensor, *after: torch.Tensor | None) -> torch.Tensor:
        """What follows the sum: bias, residual, gate."""
        if self.whole.activation is None and all(t is None for t in after):
            return y.to(self.whole.dtype)
        done = self.back_end.epilogue(self.whole, y, *after)
        return self.reference.epilogue(self.whole, y, *after) if done is None else done
