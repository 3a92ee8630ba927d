"""Cross entropy of logits whose classes are spread over replicas."""

from .cross_entropy_sharded_loss import cross_entropy_sharded_loss

__all__ = ["cross_entropy_sharded_loss"]
