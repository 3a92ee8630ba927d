"""The name of recomputation in gradient graphs, which are not there."""

from popxl_shared.absent import GRADIENTS, absent

recompute_graph = absent("popxl_addons.recompute_graph", GRADIENTS)
