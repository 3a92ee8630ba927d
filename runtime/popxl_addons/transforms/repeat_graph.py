"""A graph made to do what it does several times."""

from popxl.rewriting import repeat_graph

__all__ = ["repeat_graph"]
