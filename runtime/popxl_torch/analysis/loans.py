"""Slots of remote buffers that a call is given by value, returns and that are stored back.

A program without inputs by reference keeps a KV cache so: it loads a slot, calls a graph that
writes to it, and stores what the graph returns where it came from. Taken at its word that is two
copies of the cache; taken together it is a slot that the graph works on where it lies.
"""

from __future__ import annotations

from dataclasses import dataclass

from popxl.graph import Graph, Op
from popxl.tensor import Tensor

from popxl_torch.analysis.aliasing import Views, roots_of
from popxl_torch.analysis.op_facts import facts_of
from popxl_torch.analysis.reach import buffers_of_called, touches


@dataclass(frozen=True)
class Loan:
    """A slot lent to a call.

    Attributes:
        load, call, store: the three ops.
        index: the call's input that the slot is.
    """

    load: Op
    call: Op
    store: Op
    index: int


def loans(graph: Graph, views: Views) -> list[Loan]:
    """The slots that the calls of a graph may work on where they lie.

    What is loaded is used by the call alone, which returns that input; what it returns is stored to
    the same slot and used nowhere else; no other op in between reaches the buffer or changes the
    offset. A graph that is declared is left as its kernel expects it.
    """
    users: dict[Tensor, list[Op]] = {}
    for op in graph._ops:
        for root in roots_of(views, op.inputs):
            users.setdefault(root, []).append(op)
    outputs = roots_of(views, graph._outputs)
    found = []
    for op in graph._ops:
        loan = _loan(op, users, outputs) if facts_of(op).cost == "loaded" else None
        if loan is not None and _is_undisturbed(graph, loan, views):
            found.append(loan)
    return found


def _loan(load: Op, users: dict[Tensor, list[Op]], outputs: set[Tensor]) -> Loan | None:
    (loaded,) = load.outputs
    if loaded in outputs:
        return None
    call = _only(users, loaded)
    if call is None or call.kind != "call" or call.graphs[0]._declaration is not None:
        return None
    index = next((i for i, t in enumerate(call.inputs) if t is loaded), None)
    if index is None or index in call.modifies:
        return None
    given = call.graphs[0]._inputs[index]
    numbers = [n for n, t in enumerate(call.graphs[0]._outputs) if t is given]
    if len(numbers) != 1:
        return None
    returned = call.outputs[numbers[0]]
    store = None if returned in outputs else _only(users, returned)
    if store is None or facts_of(store).remote != "store" or store.inputs[0] is not returned:
        return None
    same = (store.buffer, store.offset) == (load.buffer, load.offset)
    return Loan(load, call, store, index) if same and store.inputs[1:] == load.inputs else None


def _only(users: dict[Tensor, list[Op]], tensor: Tensor) -> Op | None:
    found = users.get(tensor, [])
    return found[0] if len(found) == 1 else None


def _is_undisturbed(graph: Graph, loan: Loan, views: Views) -> bool:
    called = buffers_of_called(graph)
    between = graph._ops[graph._ops.index(loan.load) + 1 : graph._ops.index(loan.store)]
    written = roots_of(views, (op.inputs[i] for op in between for i in op.modifies))
    return not written & roots_of(views, loan.load.inputs) and not any(
        touches(op, loan.load.buffer, called) for op in between
    )
