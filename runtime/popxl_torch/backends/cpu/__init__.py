"""Native kernels for the passes that wait for memory: C++, compiled once for the machine.

`linear`, `norm` and `attention` make calls of them; where they cannot be had, torch does the work.
"""

from popxl_torch.backends.cpu.bandwidth import read_bandwidth
from popxl_torch.backends.cpu.library import Library, library

__all__ = ["Library", "library", "read_bandwidth"]
