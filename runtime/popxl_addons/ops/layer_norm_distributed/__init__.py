"""Layer norm over a dimension that several replicas hold together."""

from .layer_norm_distributed import layer_norm_distributed

__all__ = ["layer_norm_distributed"]
