"""Limits and sizes that several packages, and the C++ kernels, know."""

FEW_ROWS = 16
"""Rows of a product up to which a CPU waits for memory, not for sums: weights are used where they
lie and as they are, and a row's result does not depend, to the bit, on how many other rows there
are."""

SOME_ROWS = 64
"""Rows of a product up to which a weight whose outputs are rows of memory is used where it lies, as
for `FEW_ROWS`, unless torch does more rows: packing it into tiles costs as much as 64 rows gain."""

LINE = 64
"""Bytes of a line of a processor's cache."""
