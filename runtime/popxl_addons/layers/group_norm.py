"""Group norm over groups of channels."""

from __future__ import annotations

import popxl
from popxl import ops

from ..initialisers import full
from ..module import Module
from .layer_norm import LayerNorm


class GroupNorm(Module):
    """`ops.group_norm`: normalises groups of channels, then scales and shifts each channel."""

    def __init__(
        self,
        num_groups: int,
        replica_grouping: popxl.ReplicaGrouping | None = None,
        eps: float = 1e-05,
        cache: bool = False,
    ):
        """
        Args:
            num_groups: groups of consecutive channels; divides their number.
            replica_grouping: of weight and bias; groups hold different values.
            eps: added to the variance.
            cache: use a graph again where inputs are alike.
        """
        super().__init__(cache)
        self.num_groups, self.replica_grouping, self.eps = num_groups, replica_grouping, eps

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """From `(batch, channels, ...)` to the same."""
        channels, grouping = (x.shape[1],), self.replica_grouping
        weight = self.add_variable_input(
            "weight", full(channels, 1), x.dtype, replica_grouping=grouping
        )
        bias = self.add_variable_input(
            "bias", full(channels, 0), x.dtype, replica_grouping=grouping
        )
        return ops.group_norm(x, weight, bias, self.num_groups, self.eps)

    torch_mapping = staticmethod(LayerNorm.torch_mapping)
