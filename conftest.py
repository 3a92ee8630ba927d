"""What is decided before any test module is imported.

Triton decides when it is first imported, by whatever library, whether its kernels are interpreted.
Without a GPU they are.
"""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
