"""Layer norm over a last dimension whose parts lie on different replicas."""

from __future__ import annotations

import popxl

from ..initialisers import full
from ..module import Module
from ..ops.layer_norm_distributed import layer_norm_distributed


class LayerNormDistributed(Module):
    """Normalises the dimension that the replicas of each group hold together."""

    def __init__(self, replica_grouping: popxl.ReplicaGrouping | None = None):
        """
        Args:
            replica_grouping: the replicas that hold the parts of one dimension, in order; all
                where None.
        """
        super().__init__()
        self.replica_grouping = replica_grouping

    def build(self, x: popxl.Tensor, eps: float = 1e-05) -> popxl.Tensor:
        """From `(..., hidden_size / group size)` to the same.

        The members of a group hold different parts of weight and bias, so on the host these are
        `(group size, hidden_size / group size)`.
        """
        group = self.replica_grouping or popxl.gir().replica_grouping()
        shape, parts = (x.shape[-1],), group.transpose()
        weight = self.add_variable_input("weight", full(shape, 1), x.dtype, replica_grouping=parts)
        bias = self.add_variable_input("bias", full(shape, 0), x.dtype, replica_grouping=parts)
        return layer_norm_distributed(x, weight, bias, eps, group)
