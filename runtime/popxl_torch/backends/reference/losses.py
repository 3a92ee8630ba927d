"""Losses on tensors of shape `(*mesh, ..., classes)` and `(*mesh, ...)`, in float32."""

from __future__ import annotations

import torch

from popxl_torch.backends.reference.functions import same_mesh

_LEAST = {torch.float16: 6.104e-05}
"""What a probability is at the least, 1e-7 in other types: float16 has no normal number below."""


def nll_loss(
    probs: torch.Tensor,
    labels: torch.Tensor,
    lead: int,
    ignore: int | None,
    reduction: str,
    log_prob: bool,
) -> torch.Tensor:
    picked = _at_labels(probs, labels, lead)
    if not log_prob:
        picked = picked.clamp(min=_LEAST.get(probs.dtype, 1e-7)).log()
    return _reduced(-picked, labels, lead, ignore, reduction).to(probs.dtype)


def nll_loss_with_softmax_grad(
    probs: torch.Tensor,
    labels: torch.Tensor,
    loss_grad: torch.Tensor,
    lead: int,
    ignore: int | None,
    reduction: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and `loss_grad` times its gradient with respect to what softmax was taken of."""
    loss = -(_at_labels(probs, labels, lead) + 1e-7).log()
    loss = _reduced(loss, labels, lead, ignore, reduction)
    scale = loss_grad.float()
    if scale.ndim < labels.ndim:
        scale = _as_scalar(scale, labels)
    if reduction == "mean":
        scale = scale / _as_scalar(_count(labels, lead, ignore), labels)
    if ignore is not None:
        scale = torch.where(labels != ignore, scale, 0)
    classes = torch.arange(probs.shape[-1], device=labels.device)
    gradient = (probs.float() - (labels[..., None] == classes).float()) * scale[..., None]
    return loss.to(probs.dtype), gradient.to(probs.dtype)


def _at_labels(probs: torch.Tensor, labels: torch.Tensor, lead: int) -> torch.Tensor:
    """`probs[..., label]` in float32, 0 where a label is no class."""
    labels = labels.long()
    inside = (labels >= 0) & (labels < probs.shape[-1])
    probs, index = same_mesh(lead, probs, torch.where(inside, labels, 0)[..., None])
    return torch.where(inside, probs.gather(-1, index)[..., 0].float(), 0)


def _reduced(
    loss: torch.Tensor, labels: torch.Tensor, lead: int, ignore: int | None, reduction: str
) -> torch.Tensor:
    if ignore is not None:
        loss = torch.where(labels != ignore, loss, 0)
    if reduction == "none":
        return loss
    total = loss.reshape(*loss.shape[:lead], -1).sum(-1)
    return total / _count(labels, lead, ignore) if reduction == "mean" else total


def _count(labels: torch.Tensor, lead: int, ignore: int | None) -> torch.Tensor:
    """`(*mesh,)`: how many items count, at least 1."""
    flat = labels.reshape(*labels.shape[:lead], -1)
    counted = torch.ones_like(flat, dtype=torch.bool) if ignore is None else flat != ignore
    return counted.sum(-1).clamp(min=1).float()


def _as_scalar(value: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`(*mesh,)` with the axes that `labels` has more, for broadcasting."""
    return value.reshape(value.shape + (1,) * (labels.ndim - value.ndim))
