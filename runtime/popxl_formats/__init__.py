"""How quantised weights lie and what they stand for: numpy alone, for programs and for kernels.

`channels` are 8 bits an element with a scale for each row, `groups` 4 bits an element with a scale
and an offset for each group of neighbours. Nothing else packs their numbers or takes them apart,
but for each language of kernels one file, which a test compares with what stands here:
`popxl_torch/backends/cpu/nibbles.hpp` (C++) and `popxl_torch/backends/cuda/number_kernels.py`
(Triton).
"""


class QuantisationError(ValueError):
    """A matrix that cannot be quantised."""
