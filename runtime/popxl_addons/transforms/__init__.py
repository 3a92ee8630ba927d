"""Settings that tune the program for an IPU: accepted, and without effect on what it computes."""

from .available_memory_proportion import (
    set_available_memory_proportion_by_ipu,
    set_graph_available_memory_proportion_by_ipu,
)
from .use_fc_pass import disable_fc_pass, enable_fc_pass

__all__ = [
    "disable_fc_pass",
    "enable_fc_pass",
    "set_available_memory_proportion_by_ipu",
    "set_graph_available_memory_proportion_by_ipu",
]
