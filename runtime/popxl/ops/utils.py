"""What PopXL offers to those who write ops: checks of an op's inputs."""

from __future__ import annotations

from popxl import dtypes
from popxl.graph import Graph
from popxl.ops._build import check_places
from popxl.ops.elementwise import cast
from popxl.tensor import Tensor


def check_in_graph(graph: Graph, **tensors: Tensor) -> None:
    """See that these are tensors of `graph`.

    Raises:
        TypeError: where one is no tensor.
        ValueError: where one belongs to another graph.
    """
    for name, t in tensors.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(t).__name__} {t!r}")
        graph._check_owned(t, name)


def check_tensor_ipu_and_tile_set(**tensors: Tensor) -> None:
    """See that these lie on one IPU and tile set, as far as these are known.

    Raises:
        ValueError: where they do not.
    """
    check_places("", tensors.items())


def cast_if_needed(t: Tensor, data_type: dtypes.dtype) -> Tensor:
    """`t`, cast where its dtype is another."""
    return t if t.dtype == data_type else cast(t, data_type)


def handle_negative_axis(t: Tensor, axis: int) -> int:
    """`axis` counted from the front."""
    return axis + t.rank if axis < 0 else axis
