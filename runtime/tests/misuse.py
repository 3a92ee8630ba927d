"""Tensors, graphs and streams for tests of what is refused, named as messages have to name them."""

from __future__ import annotations

import numpy as np
import popxl
from popxl import TensorSpec


class Things:
    """Things of one program."""

    def __init__(self, ir: popxl.Ir):
        self.ir = ir
        self.x = self.tensor("x", (2, 3), np.float32)
        self.y = self.tensor("y", (3, 4), np.float32)
        self.row = self.tensor("row", (3,), np.float32)
        self.half = self.tensor("half", (2, 3), np.float16)
        self.scalar = self.tensor("scalar", (), np.float32)
        self.index = self.tensor("index", (2,), np.int32)
        self.flag = self.tensor("flag", (2, 3), bool)
        self.condition = self.tensor("condition", (), bool)
        self.empty = self.tensor("empty", (0, 3), np.float32)
        self.buffer = popxl.remote_buffer((2, 3), popxl.float32, 4)
        self.h2d = popxl.h2d_stream((2, 3), popxl.float32, "h2d")
        self.d2h = popxl.d2h_stream((2, 3), popxl.float32, "d2h")
        self.graph = ir.create_graph(add_up, self.x, TensorSpec((3,), popxl.float32))
        self.narrow = ir.create_graph(lambda a: a[0], self.x)
        self.inner = self.graph.inputs[0]

    @staticmethod
    def tensor(name: str, shape: tuple[int, ...], dtype: type) -> popxl.Variable:
        return popxl.variable(np.zeros(shape, dtype), name=name)


def add_up(a: popxl.Tensor, b: popxl.Tensor) -> popxl.Tensor:
    return a + b
