"""The numbers that the C++ kernels and Python know alike; the C++ side's are made from these."""

from __future__ import annotations

import torch
from popxl_shared.groups import PER_WORD, SHIFTS
from popxl_shared.limits import FEW_ROWS, LINE, SOME_ROWS

from popxl_torch.backends.specs import (
    ACTIVATIONS,
    CHAIN_FLOATS,
    MOST_OPERANDS,
    MOST_REGISTERS,
    MOST_STEPS,
    OUTER_AXES,
)

MESH_AXES = 3
"""The axes of the mesh that kernels know."""

PLACE_AXES = 8
"""The axes of a tensor of which a part is replaced, those of the mesh included."""

TILE = 16
"""Outputs, rows, and pairs of inputs of a tile register."""

CONSTANTS = {
    "LINE": LINE,
    "MESH_AXES": MESH_AXES,
    "FEW_ROWS": FEW_ROWS,
    "SOME_ROWS": SOME_ROWS,
    "TILE": TILE,
    "PLACE_AXES": PLACE_AXES,
    "PER_WORD": PER_WORD,
    "FIRST_SHIFT": SHIFTS[0],
    "OUTER_AXES": OUTER_AXES,
    "MOST_OPERANDS": MOST_OPERANDS,
    "MOST_STEPS": MOST_STEPS,
    "MOST_REGISTERS": MOST_REGISTERS,
}
"""What the C++ side knows under the same names."""

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3, torch.uint16: 4}
"""The numbers of the types; 16-bit words hold four numbers of 4 bits each."""

LOADED = {**TYPES, torch.int32: 5, torch.bool: 6}
"""The numbers of the types that operands of elementwise steps may have."""

TYPE_NAMES = ("FLOAT32", "FLOAT16", "BFLOAT16", "INT8", "NIBBLES", "INT32", "BOOL")

FLOATS = CHAIN_FLOATS

NUMBERED_ACTIVATIONS = (None, *ACTIVATIONS)
"""What may follow a product, in the order of its numbers."""
