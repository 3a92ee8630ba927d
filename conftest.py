"""What is decided before any test module is imported.

How many threads compute does not follow what else runs, so that what tests see is their own doing.
Triton decides when it is first imported, by whatever library, whether its kernels are interpreted.
Without a GPU they are.
"""

from __future__ import annotations

import os

import torch

os.environ.setdefault("POPXL_FIXED_THREADS", "1")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
