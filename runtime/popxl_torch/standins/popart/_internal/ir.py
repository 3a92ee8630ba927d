"""The C++ classes below PopXL can be named, but not used."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    from popxl_torch.absent import Absent

    if name.startswith("__"):
        raise AttributeError(name)
    return Absent(f"popart._internal.ir.{name}")
