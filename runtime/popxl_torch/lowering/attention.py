"""Kernels for attention over a KV cache: they attend over what is filled and no more.

They stand in for graphs declared as `cached_attention`, with the attributes `bias="alibi"` and
`queries`, one of `QUERIES`, and inputs `q, k, v, key_cache, value_cache, slopes, position(s)` and,
but for a token of each row, `row`:

* q, k, v `(tokens, heads, head_dim)`, result likewise;
* caches of the same dtype `(batch_size, heads, sequence_length, head_dim)`, by reference;
* slopes of ALiBi, float32 `(heads,)`; position and row int32, `position + tokens` not above the
  sequence length.

Each row's result depends on that row alone, to the bit: its shapes follow from its own length.
Where replicas give different positions or rows the graph itself is run.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom
from popxl.graph import Graph

from popxl_torch.backends.cpu.attention import chunk_attention, token_attention
from popxl_torch.backends.cuda.attention import attention_on_gpu
from popxl_torch.backends.reference.rows_attention import rows_attention
from popxl_torch.collectives.mesh import Mesh
from popxl_torch.fusion.declared import Composites, has_signature, kernel_for
from popxl_torch.memory.arrays import broadcast_shapes
from popxl_torch.memory.cells import Cell
from popxl_torch.replay.decisions import numbers

CACHES = (3, 4)
"""The inputs that are caches."""


@kernel_for("cached_attention")
def _cached(
    graph: Graph, mesh: Mesh, known: Composites, lowered: torch.nn.Module
) -> torch.nn.Module | None:
    declared = graph._declaration
    if declared is None or len(graph.inputs) < 7 or declared.attributes.get("bias") != "alibi":
        return None
    kernel = QUERIES.get(declared.attributes.get("queries", ""))
    q, cache = graph.inputs[0], graph.inputs[3]
    if kernel is None or q.rank != 3 or cache.rank != 4 or not q.dtype.is_floating_point:
        return None
    (tokens, heads, head_dim), (rows, _, length, _) = q.shape, cache.shape
    of_rows = kernel is TokenAttention
    if len(graph.inputs) != (7 if of_rows else 8) or (of_rows and tokens != rows):
        return None
    one = (q.dtype.name, q.shape)
    held = (q.dtype.name, (rows, heads, length, head_dim))
    positions: tuple[int, ...] = () if kernel is PromptAttention else (tokens,)
    places: list[tuple[str, tuple[int, ...]]] = [("int32", positions), ("int32", ())]
    inputs = [*[one] * 3, *[held] * 2, ("float32", (heads,)), *places[: len(graph.inputs) - 6]]
    fits = has_signature(graph, inputs, [one], by_ref=CACHES, attributes=["bias", "queries"])
    return kernel(mesh.lead, known, lowered) if fits else None


class PromptAttention(torch.nn.Module):
    """A chunk of tokens of one row."""

    def __init__(self, lead: int, known: Composites, graph: torch.nn.Module):
        super().__init__()
        self.lead, self.native, self.gpu, self.graph = lead, known.native, known.gpu, graph

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        key_cell: Cell,
        value_cell: Cell,
        slopes: torch.Tensor,
        position: torch.Tensor,
        row: torch.Tensor,
    ) -> tuple[torch.Tensor]:
        cells = ((key_cell, k), (value_cell, v))
        if self.native is not None:
            caches = [cell.writable(new.shape[: self.lead]) for cell, new in cells]
            done = chunk_attention(self.native, self.lead, (q, k, v), caches, slopes, position, row)
            if done is not None:
                return (done,)
        if self.gpu is not None:
            given = (q, k, v), (key_cell, value_cell), slopes, position, row
            done = attention_on_gpu(self.gpu.chunk_attention, self.lead, *given)
            if done is not None:
                return (done,)
        at, number, tokens = _number(position), _number(row), q.shape[self.lead]
        if at is None or number is None:
            return self.graph(q, k, v, key_cell, value_cell, slopes, position, row)
        keys, values = (_write(cell, new, number, at, self.lead) for cell, new in cells)
        queries = _by_head(q, self.lead)
        filled = at + tokens
        bias = _bias(slopes, at, tokens, filled, q.dtype, self.lead)
        context = _attend(queries, keys[..., :filled, :], values[..., :filled, :], bias, self.lead)
        return (context.transpose(-2, -3),)


class TokenAttention(torch.nn.Module):
    """One token for every row."""

    def __init__(self, lead: int, known: Composites, graph: torch.nn.Module):
        super().__init__()
        self.lead, self.native, self.gpu, self.graph = lead, known.native, known.gpu, graph

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        key_cell: Cell,
        value_cell: Cell,
        slopes: torch.Tensor,
        positions: torch.Tensor,
    ) -> tuple[torch.Tensor]:
        lead = self.lead
        cells = key_cell, value_cell
        if self.gpu is not None:
            kernel = self.gpu.token_attention
            done = attention_on_gpu(kernel, lead, (q, k, v), cells, slopes, positions)
            if done is not None:
                return (done,)
        if q.device.type != "cpu":
            return (rows_attention(_attend, lead, (q, k, v), cells, slopes, positions),)
        if self.native is not None:
            caches = [cell.writable(k.shape[:lead]) for cell in cells]
            done = token_attention(self.native, lead, (q, k, v), caches, slopes, positions)
            if done is not None:
                return (done,)
        every = _numbers(positions)
        if every is None:
            return self.graph(q, k, v, key_cell, value_cell, slopes, positions)
        rows = []
        for number, at in enumerate(every):
            one = [t.narrow(lead, number, 1) for t in (q, k, v)]
            keys = _write(key_cell, one[1], number, at, lead)
            values = _write(value_cell, one[2], number, at, lead)
            filled = at + 1
            bias = _bias(slopes, at, 1, filled, q.dtype, lead)
            context = _attend(
                _by_head(one[0], lead), keys[..., :filled, :], values[..., :filled, :], bias, lead
            )
            rows.append(context.transpose(-2, -3))
        return (rows[0] if len(rows) == 1 else torch.cat(rows, dim=lead),)


class VerifyAttention(torch.nn.Module):
    """The next tokens of one row, one after the other as `TokenAttention` has them: to the bit."""

    def __init__(self, lead: int, known: Composites, graph: torch.nn.Module):
        super().__init__()
        self.lead, self.native, self.gpu, self.graph = lead, known.native, known.gpu, graph
        self.token = TokenAttention(lead, known, graph)

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        key_cell: Cell,
        value_cell: Cell,
        slopes: torch.Tensor,
        positions: torch.Tensor,
        row: torch.Tensor,
    ) -> tuple[torch.Tensor]:
        lead = self.lead
        if self.gpu is not None:
            given = (q, k, v), (key_cell, value_cell), slopes, positions, row
            done = attention_on_gpu(self.gpu.verify_attention, lead, *given)
            if done is not None:
                return (done,)
        whole = [key_cell.writable(k.shape[:lead]), value_cell.writable(v.shape[:lead])]
        if self.native is not None:
            done = token_attention(self.native, lead, (q, k, v), whole, slopes, positions, row)
            if done is not None:
                return (done,)
        number = _number(row)
        if number is None or _numbers(positions) is None:
            return self.graph(q, k, v, key_cell, value_cell, slopes, positions, row)
        caches = [Cell(t.narrow(lead, number, 1), shared=False) for t in whole]
        tokens = []
        for i in range(q.shape[lead]):
            one = [t.narrow(lead, i, 1) for t in (q, k, v)]
            tokens += self.token(*one, *caches, slopes, positions.narrow(-1, i, 1))
        return (torch.cat(tokens, dim=lead),)


QUERIES: dict[str, type[PromptAttention] | type[TokenAttention] | type[VerifyAttention]] = {
    "chunk of a row": PromptAttention,
    "token of each row": TokenAttention,
    "tokens of a row": VerifyAttention,
}
"""Which tokens the queries are, as a graph declares it, and the kernel for them."""


def _numbers(value: torch.Tensor) -> list[int] | None:
    """An int32 vector as numbers; None where replicas have different ones."""
    first, *others = numbers(value.reshape(-1, value.shape[-1]))
    return None if any(other != first for other in others) else first


def _number(value: torch.Tensor) -> int | None:
    found = _numbers(value.unsqueeze(-1))
    return None if found is None else found[0]


def _by_head(x: torch.Tensor, lead: int) -> torch.Tensor:
    """`(*mesh, tokens, heads, head_dim)` to `(*mesh, heads, tokens, head_dim)`."""
    return x.transpose(lead, lead + 1)


def _write(cell: Cell, new: torch.Tensor, row: int, at: int, lead: int) -> torch.Tensor:
    """Put `(*mesh, tokens, heads, head_dim)` in a row of the cache; returns the whole row."""
    held = cell.writable(new.shape[:lead]).select(lead, row)
    start = min(max(at, 0), held.shape[-2] - new.shape[lead])
    held.narrow(-2, start, new.shape[lead]).copy_(_by_head(new, lead))
    return held


def _bias(
    slopes: torch.Tensor, at: int, tokens: int, filled: int, dtype: torch.dtype, lead: int
) -> torch.Tensor:
    """Slope times distance, minus infinity ahead of a query: `(*mesh, heads, tokens, filled)`."""
    keys = torch.arange(filled, dtype=torch.float32, device=slopes.device)
    queries = torch.arange(at, at + tokens, dtype=torch.float32, device=slopes.device)
    distance = keys - queries[:, None]
    if tokens > 1:
        distance = distance.masked_fill(distance > 0, -torch.inf)
    return slopes.reshape(*slopes.shape, 1, 1) * distance


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, lead: int
) -> torch.Tensor:
    """Scaled dot-product attention with the mesh as batch: `(*mesh, heads, tokens, head_dim)`."""
    mesh = broadcast_shapes(*(t.shape[:lead] for t in (q, k, v, bias)))
    flat = [t.expand(*mesh, *t.shape[lead:]).reshape(-1, *t.shape[lead:]) for t in (q, k, v, bias)]
    if q.dtype != torch.float32 and q.shape[-2] == 1:
        context = _one_query(*flat)
    else:
        queries, keys, values, mask = flat
        context = F.scaled_dot_product_attention(queries, keys, values, mask.to(q.dtype))
    return context.reshape(*mesh, *q.shape[lead:])


def _one_query(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    scores = torch.matmul(q, k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5 + bias
    return torch.matmul(torch.softmax(scores, -1).to(q.dtype), v)
