"""What is this runtime's own, beside the names that PopXL has: declarations of composite graphs.

It can be imported where the Poplar SDK runs the program, too, and changes nothing there.
"""

from popxl_torch.declare import composite

__all__ = ["composite"]
