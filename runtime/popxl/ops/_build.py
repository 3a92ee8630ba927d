"""What every op needs: operands checked, the op appended, its outputs made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from popxl import dtypes
from popxl.context import get_current_context, get_current_graph, get_ir
from popxl.graph import Graph, Op
from popxl.tensor import Tensor, TensorSpec, constant

_ANYWHERE = frozenset(
    ("call", "repeat", "conditional", "dropout", "remote_load", "remote_load_", "remote_store")
)
"""Ops whose inputs may lie on different IPUs of a replica, and tiles of different kinds."""


def emit(
    kind: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[TensorSpec],
    *,
    name: str | None = None,
    modifies: tuple[int, ...] = (),
    graphs: tuple[Graph, ...] = (),
    **attributes: Any,
) -> tuple[Tensor, ...]:
    """Append an op to the current graph; returns its new output tensors.

    Raises:
        TypeError: where an input is no tensor.
        ValueError: where an input belongs to another graph, or inputs lie on different IPUs or
            tile sets of a replica.
    """
    graph = get_current_graph()
    for tensor in inputs:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{kind}: expected a tensor, got {type(tensor).__name__} {tensor!r}")
        graph._check_owned(tensor, kind)
    if kind not in _ANYWHERE:
        check_places(f"{kind}: ", ((t.name, t) for t in inputs))
    scope = get_current_context().name_scope
    label = f"{scope}/{name or kind}" if scope else name or kind
    made = tuple(Tensor._make(graph, spec, label) for spec in outputs)
    inside = [t._place for t in graphs[0]._outputs] if graphs else [None] * len(made)
    for tensor, place in zip(made, inside, strict=True):
        tensor._place = place or get_current_context().place
    op = Op(kind, tuple(inputs), made, attributes, graphs, modifies)
    graph._ops.append(op)
    graph._created(op)
    return made


def check_places(where: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raises ValueError where tensors that ops made lie on different IPUs or tile sets."""
    placed = [(name, t._place) for name, t in tensors if t._place is not None]
    for index, what, copy in ((0, "IPUs", "ipu_copy"), (1, "tile sets", "io_tile_copy")):
        known = [(name, place[index]) for name, place in placed if place[index] is not None]
        for name, place in known[1:]:
            if place != known[0][1]:
                raise ValueError(
                    f"{where}{known[0][0]} and {name} lie on different {what}, {known[0][1]} and "
                    f"{place}: use ops.{copy}"
                )


def emit_one(kind: str, inputs: Sequence[Tensor], output: TensorSpec, **rest: Any) -> Tensor:
    """`emit` for an op with a single output."""
    return emit(kind, inputs, [output], **rest)[0]


def emit_inplace(kind: str, inputs: Sequence[Tensor], **rest: Any) -> Tensor:
    """`emit` for an op that writes to its first input, which is returned."""
    emit(kind, inputs, [], modifies=(0,), **rest)
    return inputs[0]


def tensor_operand(kind: str, t: Any) -> Tensor:
    """`t`, which has to be a tensor.

    Raises:
        TypeError: where it is not.
    """
    if not isinstance(t, Tensor):
        raise TypeError(f"{kind}: expected a tensor, got {type(t).__name__} {t!r}")
    return t


def operands(kind: str, *values: Any) -> list[Tensor]:
    """Tensors of one dtype from tensors and numbers; a number takes the dtype of the tensors.

    Raises:
        TypeError: where no operand is a tensor, or dtypes differ.
    """
    tensors = [v for v in values if isinstance(v, Tensor)]
    if not tensors:
        raise TypeError(f"{kind}: at least one operand must be a tensor, got {values!r}")
    made = [v if isinstance(v, Tensor) else tensors[0]._as_tensor(v) for v in values]
    same_dtype(kind, *made)
    return made


def same_dtype(kind: str, *tensors: Tensor) -> None:
    """Raises TypeError where the dtypes differ: nothing is promoted silently."""
    if len({t.dtype for t in tensors}) > 1:
        given = ", ".join(f"{t.name} is {t.dtype}" for t in tensors)
        raise TypeError(f"{kind}: operands must have one dtype, but {given}; use ops.cast")


def same_ir(kind: str, thing: Any) -> None:
    """Raises ValueError where a stream or remote buffer is not of the current Ir."""
    if thing._ir is not get_ir():
        raise ValueError(f"{kind}: {thing} belongs to another Ir than the current graph")


def need_dtype(kind: str, t: Tensor, what: str, *allowed: dtypes.dtype) -> None:
    """Raises TypeError where the dtype of `t` is not among those allowed."""
    if t.dtype not in allowed:
        names = " or ".join(d.name for d in allowed)
        raise TypeError(f"{kind}: {what} {t.name} must be {names}, got {t.dtype}")


def need_number(kind: str, *tensors: Tensor) -> None:
    """Raises TypeError where a tensor is bool: there is no arithmetic with it."""
    for t in tensors:
        if t.dtype == dtypes.bool:
            raise TypeError(f"{kind}: {t.name} must hold numbers, got bool; use ops.cast")


def need_float(kind: str, *tensors: Tensor) -> None:
    """Raises TypeError where a tensor does not hold floats."""
    for t in tensors:
        if not t.dtype.is_floating_point:
            raise TypeError(f"{kind}: {t.name} must hold floats, got {t.dtype}; use ops.cast")


def need_int(kind: str, t: Tensor, what: str) -> None:
    """Raises TypeError where `t` does not hold integers."""
    if not t.dtype.is_int:
        raise TypeError(f"{kind}: {what} {t.name} must hold integers, got {t.dtype}")


def need_one_of(kind: str, what: str, given: Any, known: Iterable[Any]) -> None:
    """Raises ValueError where a setting is none of the words known."""
    if given not in known:
        raise ValueError(f"{kind}: {what} must be one of {', '.join(known)}, got {given!r}")


def broadcast(kind: str, *tensors: Tensor) -> tuple[int, ...]:
    """The shape that the tensors broadcast to by numpy's rules.

    Raises:
        ValueError: where they do not.
    """
    try:
        return np.broadcast_shapes(*(t.shape for t in tensors))
    except ValueError:
        given = " and ".join(f"{t.name} {t.shape}" for t in tensors)
        raise ValueError(f"{kind}: shapes cannot be broadcast: {given}") from None


def whole(kind: str, *tensors: Tensor) -> tuple[int, ...]:
    """The meta shape of what is computed from parts of larger tensors; empty for no parts.

    Raises:
        ValueError: where they are parts of tensors of different shapes.
    """
    shapes = {t.meta_shape for t in tensors if t.meta_shape}
    if len(shapes) > 1:
        given = " and ".join(f"{t.name} of {t.meta_shape}" for t in tensors if t.meta_shape)
        raise ValueError(f"{kind}: these are parts of different shapes: {given}")
    return shapes.pop() if shapes else ()


def axis_of(kind: str, t: Tensor, axis: int, extra: int = 0) -> int:
    """`axis` counted from the front.

    Raises:
        ValueError: where the tensor (with `extra` more dimensions) has no such axis.
    """
    rank = t.rank + extra
    if not isinstance(axis, int | np.integer) or not -rank <= axis < rank:
        raise ValueError(f"{kind}: axis {axis!r} is outside {t.name} of shape {t.shape}")
    return int(axis) % rank


def axes_of(kind: str, t: Tensor, axes: int | Iterable[int] | None) -> tuple[int, ...]:
    """Axes counted from the front, in order; all of them for None.

    Raises:
        ValueError: where one does not exist or is named twice.
    """
    if axes is None:
        return tuple(range(t.rank))
    given = [axes] if isinstance(axes, int | np.integer) else list(axes)
    found = sorted(axis_of(kind, t, a) for a in given)
    if len(set(found)) < len(found):
        raise ValueError(f"{kind}: axes {given} of {t.name} name an axis twice")
    return tuple(found)


def scalar_or_tensor(kind: str, like: Tensor, value: Any) -> Tensor:
    """`value` as a tensor of the dtype of `like`."""
    if isinstance(value, Tensor):
        same_dtype(kind, like, value)
        return value
    return constant(value, like.dtype, downcast=False)


def check_groups(kind: str, groups: int, axis: int, *tensors: Tensor) -> None:
    """Raises ValueError where tensors do not begin with an axis of groups, or that is `axis`."""
    if groups < 1:
        raise ValueError(f"{kind}: group_size must be at least 1, got {groups}")
    if groups == 1:
        return
    for t in tensors:
        if t.shape[:1] != (groups,):
            raise ValueError(
                f"{kind}: {t.name} {t.shape} must have {groups} groups along its first axis"
            )
    if axis == 0:
        first = tensors[0]
        raise ValueError(f"{kind}: axis 0 of {first.name} {first.shape} is that of the groups")
