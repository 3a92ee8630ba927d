"""From graphs to torch.fx, one module a graph."""
