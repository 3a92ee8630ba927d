"""The name of the transform that makes a graph repeat what it does."""

from popxl._absent import REWRITING, absent

repeat_graph = absent("popxl_addons.transforms.repeat_graph", REWRITING)
