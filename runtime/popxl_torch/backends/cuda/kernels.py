"""The Triton kernels on torch tensors: what a device that runs them is asked for.

Every function but `finish` returns None where its kernel does not do it; PyTorch does then. The
tensors of several replicas lie along the first axis, with a stride of 0 where they are one.
"""

from popxl_torch.backends.cuda.attention_launches import (
    chunk_attention,
    token_attention,
    verify_attention,
)
from popxl_torch.backends.cuda.product_launches import MOST_QUANTISED_ROWS, finish, linear

__all__ = [
    "MOST_QUANTISED_ROWS",
    "chunk_attention",
    "finish",
    "linear",
    "token_attention",
    "verify_attention",
]
