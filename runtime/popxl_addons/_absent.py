"""How a name says that what it stands for is not there; see `popxl._absent`."""

from popxl._absent import FLOAT8, GRADIENTS, OPTIMISERS, absent, absent_class

__all__ = ["FLOAT8", "GRADIENTS", "OPTIMISERS", "absent", "absent_class"]
