"""Which ops are computed at once: found by the structure of a graph, or declared."""
