"""A convolution with a weight, and a bias."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import popxl
from popxl import ops
from popxl.utils import to_numpy

from ..initialisers import full, truncated_normal
from ..module import Module
from ..named_tensors import NamedTensors
from ..utils import WeightsDict


class Conv2D(Module):
    """`ops.conv` of `(batch, channels, height, width)`, plus a bias for each output channel."""

    def __init__(
        self,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        strides: Iterable[int] = (1, 1),
        paddings: str | Iterable[int] = (0, 0, 0, 0),
        dilations: Iterable[int] = (1, 1),
        groups: int = 1,
        bias: bool = True,
        available_memory_proportions: list[float] | None = None,
        partials_types: list[str] | None = None,
        enable_conv_dithering: list[int] | None = None,
        replica_grouping: popxl.ReplicaGrouping | None = None,
    ):
        """
        Args:
            kernel_size: height and width, or both in one.
            paddings: elements at top, left, bottom and right, or the name of a padding:
                "same_upper", "same_lower" or "valid".
            available_memory_proportions, partials_types, enable_conv_dithering: tune an IPU,
                without effect here.
            replica_grouping: of weight and bias; groups hold different values.
        """
        super().__init__()
        self.out_channels = out_channels
        self.kernel_size = (
            (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
        )
        self.strides, self.dilations, self.groups = strides, dilations, groups
        self.pad_type: Any = paddings if isinstance(paddings, str) else "not_set"
        self.paddings = (0, 0, 0, 0) if isinstance(paddings, str) else paddings
        self.bias = bias
        self.available_memory_proportions = available_memory_proportions
        self.partials_types = partials_types
        self.enable_conv_dithering = enable_conv_dithering
        self.replica_grouping = replica_grouping

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """From `(batch, channels, height, width)` to `(batch, out_channels, *windows)`.

        Raises:
            ValueError: where `x` has other axes, or its channels cannot be put in the groups.
        """
        if len(x.shape) != 4:
            raise ValueError(
                f"Conv2D: {x.name} must be (batch, channels, height, width): {x.shape}"
            )
        shape = (self.out_channels, x.shape[1] // self.groups, *self.kernel_size)
        grouping = self.replica_grouping
        weight = self.add_variable_input(
            "weight", truncated_normal(shape), x.dtype, replica_grouping=grouping
        )
        y = ops.conv(
            x,
            weight,
            self.strides,
            self.paddings,
            self.dilations,
            self.groups,
            self.pad_type,
            self.available_memory_proportions,
            self.partials_types,
            self.enable_conv_dithering,
        )
        if not self.bias:
            return y
        bias = self.add_variable_input(
            "bias", full((1, self.out_channels, 1, 1), 0), x.dtype, replica_grouping=grouping
        )
        return y + bias

    @staticmethod
    def torch_mapping(
        variables: NamedTensors, nn_layer: Any, dtype: popxl.dtypes.dtype = popxl.float32
    ) -> WeightsDict:
        """The variables' values in a `torch.nn.Conv2d`."""
        weights = {variables.weight: to_numpy(nn_layer.weight.data, dtype)}
        if "bias" in variables.keys():  # noqa: SIM118 - a tree, not a dictionary
            weights[variables.bias] = to_numpy(nn_layer.bias.data, dtype).reshape(1, -1, 1, 1)
        return WeightsDict(weights)
