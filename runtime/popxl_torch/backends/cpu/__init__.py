"""Native kernels: C++, compiled once for the machine; where they cannot be had, torch computes."""

from popxl_torch.backends.cpu.library import Library, library

__all__ = ["Library", "library"]
