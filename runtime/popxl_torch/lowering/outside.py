"""How ops that reach remote buffers and streams are lowered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from popxl.graph import Op

from popxl_torch.analysis.aliasing import HOST, Key
from popxl_torch.backends.reference import functions as kernels
from popxl_torch.memory.cells import RemoteStore

if TYPE_CHECKING:
    from popxl_torch.lowering.graphs import GraphLowering


def remote_load(g: GraphLowering, op: Op) -> None:
    store, key, offset = _remote(g, op)
    if op in g.in_place_slots:
        g.values.bind_cell(op.outputs[0], g.call(store.open, offset), key)
    else:
        g.values.bind(op.outputs[0], g.call(store.load, offset), frozenset({key}))


def remote_load_(g: GraphLowering, op: Op) -> None:
    store, key, offset = _remote(g, op, 1)
    g.values.assign(op.inputs[0], g.call(store.load, offset), frozenset({key}))


def remote_store(g: GraphLowering, op: Op) -> None:
    store, key, offset = _remote(g, op, 1)
    cell = g.values.cell(g.lent_by_store.get(op, op.inputs[0]))
    if cell and cell[1] == key:
        g.call(store.close, cell[0], offset)
    else:
        (value,) = g.values.protect({key}, op.inputs[:1])
        g.call(store.store, value, offset)


def host_load(g: GraphLowering, op: Op) -> None:
    g.define(op, [g.call(g.around.streams.loader(op.stream))], frozenset({HOST}))


def host_store(g: GraphLowering, op: Op) -> None:
    value = g.values.node(op.inputs[0])
    if g.values.memory(op.inputs[0]):
        value = g.call(kernels.clone, value)
    g.call(g.around.streams.storer(op.stream), value)


def _remote(g: GraphLowering, op: Op, first: int = 0) -> tuple[RemoteStore, Key, Any]:
    """The buffer of an op, its memory's key, and the offset, a number or input `first`."""
    offset = op.offset if op.offset is not None else g.values.node(op.inputs[first])
    return g.around.remote[op.buffer], ("remote", op.buffer.remote_buffer_id), offset
