"""Where values are on a device that is not the CPU.

Floats are always on the device, and so is all that lasts. Integers and booleans that the host
brings (streams, constants of one element) stay with it, and so does what is computed from them
alone: the chosen pass, layer numbers, offsets and positions. Python code decides by these without
waiting for the device. Where such a value meets one on the device, it follows it there.
"""

from __future__ import annotations

import torch


def load(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`host` on the device, its strides kept; an axis that repeats its elements is sent once."""
    if device.type == "cpu":
        return host
    once = host[tuple(slice(None if stride else 1) for stride in host.stride())]
    return once.to(device).expand(host.shape)


def load_stream(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """What a stream brings: floats go to the device, others stay."""
    return load(host, device) if host.is_floating_point() else host


def load_constant(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A constant: single integers and booleans stay on the host."""
    stays = host.numel() == 1 and not host.is_floating_point()
    return host if stays else load(host, device)


def move(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`x` on the device, without waiting for it.

    A single element becomes a parameter of a kernel: no copy that a CUDA graph could not hold.
    """
    if x.device == device:
        return x
    if x.numel() == 1 and x.device.type == "cpu":
        return torch.full(x.shape, x.item(), dtype=x.dtype, device=device)
    return x.to(device, non_blocking=True)


def where(condition: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`torch.where` of operands that need not be in one place."""
    condition, a, b = together(condition, a, b)
    return torch.where(condition, a, b)


def together(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors on the device, where one of them is there; else as they are."""
    on_device = [t.device for t in tensors if t.device.type != "cpu"]
    return tuple(move(t, on_device[0]) for t in tensors) if on_device else tensors
