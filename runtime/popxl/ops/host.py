"""Ops that reach the host: streams and printing."""

from __future__ import annotations

import numpy as np

from popxl.ops._build import emit, emit_one, same_ir, tensor_operand
from popxl.streams import DeviceToHostStream, HostToDeviceStream
from popxl.tensor import Tensor


def host_load(h2d_stream: HostToDeviceStream, name: str | None = None) -> Tensor:
    """The next tensor of the stream."""
    if not isinstance(h2d_stream, HostToDeviceStream):
        raise TypeError(f"host_load: expected a host-to-device stream, got {h2d_stream!r}")
    same_ir("host_load", h2d_stream)
    label = name or h2d_stream.tensor_id
    return emit_one("host_load", [], h2d_stream.spec, name=label, stream=h2d_stream)


def host_store(d2h_stream: DeviceToHostStream, t: Tensor) -> None:
    """Send `t` along the stream.

    Raises:
        ValueError, TypeError: where it is not of the stream's shape and dtype.
    """
    if not isinstance(d2h_stream, DeviceToHostStream):
        raise TypeError(f"host_store: expected a device-to-host stream, got {d2h_stream!r}")
    same_ir("host_store", d2h_stream)
    tensor_operand("host_store", t)
    if t.shape != d2h_stream.shape:
        raise ValueError(
            f"host_store: stream {d2h_stream.tensor_id} carries {d2h_stream.shape}, "
            f"{t.name} is {t.shape}"
        )
    if t.dtype != d2h_stream.dtype:
        raise TypeError(
            f"host_store: stream {d2h_stream.tensor_id} carries {d2h_stream.dtype}, "
            f"{t.name} is {t.dtype}"
        )
    emit("host_store", [t], [], stream=d2h_stream)


def print_tensor(
    t: Tensor,
    title: str | None = None,
    print_self: bool = True,
    print_gradient: bool = False,
    summarise_threshold: int = 1000,
    edge_items: int = 3,
    max_line_width: int = 75,
    digits: int = 8,
    float_format: str = "auto",
    separator: str = " ",
    open_bracket: str = "[",
    close_bracket: str = "]",
) -> Tensor:
    """Print `t` to standard error when it is reached; returns it.

    Raises:
        ValueError: for a float format other than auto, fixed, scientific and none.
    """
    if float_format not in ("auto", "fixed", "scientific", "none"):
        raise ValueError(
            f"print_tensor: float_format {float_format!r}: "
            "allowed are auto, fixed, scientific, none"
        )
    tensor_operand("print_tensor", t)
    style = {
        "threshold": int(np.clip(summarise_threshold, 0, 2**31)),
        "edgeitems": edge_items,
        "max_line_width": max_line_width,
        "precision": digits,
    }
    return emit_one(
        "print_tensor",
        [t],
        t.spec,
        title=title or t.name,
        enabled=bool(print_self),
        style=style,
        float_format=float_format,
        separator=separator,
        brackets=(open_bracket, close_bracket),
    )
