"""What programs, files and kernels must agree on: numpy alone, read by all packages.

How quantised weights lie and what they stand for (`channels` are 8 bits an element with a scale for
each row, `groups` 4 bits an element with a scale and an offset for each group of neighbours), ALiBi
(`alibi`), limits (`limits`), and names that are there to be imported alone (`absent`). In the
languages of kernels one file each says the same, and tests compare them:
`popxl_torch/backends/cpu/nibbles.hpp` and `alibi.hpp` (C++),
`popxl_torch/backends/cuda/number_kernels.py` and `attention_kernels.py` (Triton).
"""


class QuantisationError(ValueError):
    """A matrix that cannot be quantised."""
