"""Limits and sizes that several packages, and the C++ kernels, know."""

FEW_ROWS = 16
"""Rows of a product up to which a CPU waits for memory, not for sums: weights are used where they
lie and as they are, and a row's result does not depend, to the bit, on how many other rows there
are."""

LINE = 64
"""Bytes of a line of a processor's cache."""
