"""Attention over a KV cache, in torch: over what is filled and no more.

Each row's result depends on that row alone, to the bit: its shapes follow from its own length. None
is returned where replicas give different positions or rows.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from popxl_torch.backends.back_end import one_after_another
from popxl_torch.backends.reference.rows_attention import rows_attention
from popxl_torch.backends.reference.scores import attend, score_bias
from popxl_torch.backends.specs import AttentionSpec
from popxl_torch.memory.cells import Cell
from popxl_torch.replay.decisions import numbers

Tokens = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def attention(
    spec: AttentionSpec,
    tokens: Tokens,
    cells: tuple[Cell, Cell],
    slopes: torch.Tensor | None,
    positions: torch.Tensor,
    row: torch.Tensor | None,
) -> torch.Tensor | None:
    """As `BackEnd.attention` has it."""
    if spec.queries in ("token of each row", "token of some rows"):
        return token_attention(spec, slopes, tokens, cells, positions, row)
    assert row is not None
    if spec.queries == "chunks of rows":
        return _blocks(spec, slopes, tokens, cells, positions, row)
    number = _number(row)
    if number is None:
        return None
    if spec.queries == "chunk of a row":
        at = _number(positions)
        return None if at is None else one_row(spec, slopes, tokens, cells, at, number)
    each = functools.partial(token_attention, spec, slopes)
    return one_after_another(each, spec.lead, tokens, cells, positions, number)


def _blocks(
    spec: AttentionSpec,
    slopes: torch.Tensor | None,
    tokens: Tokens,
    cells: tuple[Cell, Cell],
    positions: torch.Tensor,
    rows: torch.Tensor | None,
) -> torch.Tensor | None:
    """Blocks of as many tokens each, one after the other; of each row one where `rows` is None."""
    every = _numbers(positions)
    numbers_of = [*range(len(every or ()))] if rows is None else _numbers(rows)
    if every is None or numbers_of is None:
        return None
    lead, size, done = spec.lead, tokens[0].shape[spec.lead] // len(every), []
    for i, (at, row) in enumerate(zip(every, numbers_of, strict=True)):
        block = tuple(t.narrow(lead, i * size, size) for t in tokens)
        done.append(one_row(spec, slopes, block, cells, at, row))
    return done[0] if len(done) == 1 else torch.cat(done, dim=lead)


def one_row(
    spec: AttentionSpec,
    slopes: torch.Tensor | None,
    tokens: Sequence[torch.Tensor],
    cells: tuple[Cell, Cell],
    at: int,
    row: int,
) -> torch.Tensor:
    """Tokens of one row, the first of them at position `at`."""
    lead, count = spec.lead, tokens[0].shape[spec.lead]
    new = zip(cells, tokens[1:], strict=True)
    keys, values = (_write(cell, t, row, at, lead)[..., : at + count, :] for cell, t in new)
    numbers = torch.arange(at + count, dtype=torch.float32, device=keys.device)
    distance = numbers - numbers[at:, None]
    distance = distance.reshape((1,) * (lead + 1) + distance.shape)
    bias = score_bias(spec, None if slopes is None else slopes[..., None, None], distance)
    return attend(spec, _by_head(tokens[0], lead), keys, values, bias, lead).transpose(-2, -3)


def token_attention(
    spec: AttentionSpec,
    slopes: torch.Tensor | None,
    tokens: Tokens,
    cells: tuple[Cell, Cell],
    positions: torch.Tensor,
    rows: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """One token for every row, or for each of `rows`."""
    if tokens[0].device.type != "cpu":
        if rows is not None and rows.numel() > rows.shape[-1]:
            return None
        return rows_attention(spec, tokens, cells, slopes, positions, rows)
    return _blocks(spec, slopes, tokens, cells, positions, rows)


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
