"""Ops on remote buffers."""

from __future__ import annotations

from popxl.ops._build import emit, emit_inplace, emit_one, need_int, same_ir, tensor_operand
from popxl.remote_buffer import RemoteBuffer
from popxl.tensor import Tensor, TensorSpec


def remote_load(
    remote_buffer: RemoteBuffer, offset: int | Tensor, name: str | None = None
) -> Tensor:
    """The value of a slot, in a tensor of its own: writing to it leaves the buffer as it is."""
    inputs, fixed = _offset("remote_load", remote_buffer, offset)
    spec = _spec(remote_buffer)
    return emit_one("remote_load", inputs, spec, name=name, buffer=remote_buffer, offset=fixed)


def remote_load_(remote_buffer: RemoteBuffer, offset: int | Tensor, t: Tensor) -> Tensor:
    """Put the value of a slot in `t`."""
    inputs, fixed = _offset("remote_load_", remote_buffer, offset)
    remote_buffer.validate_tensor_matches_buffer(tensor_operand("remote_load_", t))
    t._spec = _spec(remote_buffer)
    return emit_inplace("remote_load_", [t, *inputs], buffer=remote_buffer, offset=fixed)


def remote_store(remote_buffer: RemoteBuffer, offset: int | Tensor, t: Tensor) -> None:
    """Put `t` in a slot.

    Raises:
        ValueError: where `t` or the offset does not fit the buffer.
    """
    inputs, fixed = _offset("remote_store", remote_buffer, offset)
    remote_buffer.validate_tensor_matches_buffer(tensor_operand("remote_store", t))
    emit("remote_store", [t, *inputs], [], buffer=remote_buffer, offset=fixed)


def _spec(buffer: RemoteBuffer) -> TensorSpec:
    """Of what is loaded: a part of a larger tensor where the buffer holds parts."""
    return TensorSpec(buffer.tensor_shape, buffer.tensor_dtype, buffer.meta_shape)


def _offset(
    kind: str, buffer: RemoteBuffer, offset: int | Tensor
) -> tuple[list[Tensor], int | None]:
    """The offset as inputs of the op, or as a fixed number."""
    if not isinstance(buffer, RemoteBuffer):
        raise TypeError(f"{kind}: expected a remote buffer, got {type(buffer).__name__}")
    same_ir(kind, buffer)
    if isinstance(offset, Tensor):
        need_int(kind, offset, "offset")
        if offset.nelms != 1:
            raise ValueError(
                f"{kind}: the offset must be a scalar, {offset.name} is {offset.shape}"
            )
        return [offset], None
    if not 0 <= offset < buffer.entries:
        raise ValueError(f"{kind}: offset {offset} is outside {buffer}")
    return [], int(offset)
