"""What the launches of all kernels share."""

from __future__ import annotations

import torch

HALF = (torch.float16, torch.bfloat16)
FLOATS = (*HALF, torch.float32)

FUSED = {"enable_fp_fusion": True}
"""Of launches: products and sums in one instruction, as the counts of instructions assume."""
