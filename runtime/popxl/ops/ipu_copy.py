"""Copies between the IPUs of one replica."""

from __future__ import annotations

from popxl.errors import UndefinedValue
from popxl.ops._build import emit_one, tensor_operand
from popxl.tensor import Tensor


def ipu_copy(t: Tensor, destination: int, source: int | None = None) -> Tensor:
    """The same value, placed on the IPU `destination`. Here a replica is one device.

    Raises:
        ValueError: where `source` is not given and `t` is placed on no IPU.
    """
    tensor_operand("ipu_copy", t)
    if source is None:
        try:
            source = t.ipu
        except UndefinedValue:
            raise ValueError(f"ipu_copy: {t.name} is placed on no IPU: give the source") from None
    made = emit_one("identity", [t], t.spec, name=f"{t.name}_c{destination}")
    made._place = (destination, made._place[1] if made._place else "compute")
    return made
