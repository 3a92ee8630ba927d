"""A stand-in for a GPU: torch's meta device, whose tensors have shapes and types but no numbers.

A session on it runs as on a GPU, its results aside. An op that mixes devices fails, and so does
code that asks for a number of a tensor on the device: on a GPU, Python would wait for it there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from popxl_torch import executor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")
COPIES = ("copy_", "_to_copy", "to")


class MixedDevices(AssertionError):
    """An op was given tensors of several devices."""


class DeviceWatch(TorchDispatchMode):
    """Sees what is run.

    Attributes:
        on_device: the names of the ops run on the device.
        copied: the shapes of what was copied to it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on_device: list[str] = []
        self.copied: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if name not in COPIES and len({t.device for t in given}) > 1:
            raise MixedDevices(f"{name} of {[(str(t.device), tuple(t.shape)) for t in given]}")
        result = func(*args, **kwargs)
        made = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        devices = {t.device for t in [*given, *made]}
        if len(devices) > 1 and name in COPIES:
            self.copied.append(tuple(given[-1].shape))
        if DEVICE in devices:
            self.on_device.append(name)
        return result


@contextmanager
def on_stand_in(monkeypatch: Any) -> Iterator[None]:
    """Inside, new sessions are on the stand-in, whatever device they ask for."""
    with monkeypatch.context() as patch:
        patch.setattr(executor, "torch_device", lambda name: DEVICE)
        yield
