"""Attention over a KV cache: one call for all rows, heads and shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from popxl_torch.backends.cpu.constants import FLOATS, MESH_AXES
from popxl_torch.backends.cpu.instructions import ATTENTION, CHUNK, KEEP
from popxl_torch.backends.cpu.layout import (
    given,
    is_packed,
    joint_mesh,
    mesh_sizes,
    mesh_strides,
    type_of,
)
from popxl_torch.backends.cpu.library import Run
from popxl_torch.backends.specs import AttentionSpec


def attention(
    run: Run,
    spec: AttentionSpec,
    tokens: Sequence[torch.Tensor],
    caches: Sequence[torch.Tensor],
    slopes: torch.Tensor | None,
    positions: torch.Tensor,
    row: torch.Tensor | None,
) -> torch.Tensor | None:
    """As `BackEnd.attention` has it; `caches` are what the cells hold, to be written to."""
    lead, chunks = spec.lead, spec.queries in ("chunk of a row", "chunks of rows")
    count, heads, size = tokens[0].shape[lead:]
    each = row is not None and row.ndim > lead
    blocks = count if not chunks else positions.shape[-1] if positions.ndim > lead else 1
    rows = blocks if chunks or each else 1
    if not _fits(spec, tokens, caches, slopes) or not _are_numbers(positions, blocks):
        return None
    if row is not None and not _are_numbers(row, rows):
        return None
    if chunks and (count % blocks or count // blocks > caches[0].shape[-2]):
        return None
    mesh = joint_mesh(lead, *tokens, *caches, *given(slopes))
    if any(cache.shape[:lead] != mesh for cache in caches):
        return None  # two shards would write to one place
    result = torch.empty((*mesh, count, heads, size), dtype=tokens[0].dtype)
    if chunks:
        fields = _fields(spec, tokens, caches, slopes, result, mesh)
        for instruction in KEEP, CHUNK:
            run(instruction, result, **fields, position=positions, row=row, block=count // blocks)
        return result
    at_once = row is None or each
    for some in [slice(0, count)] if at_once else [slice(i, i + 1) for i in range(count)]:
        index = (slice(None),) * lead + (some,)
        *new, out = (t[index] for t in (*tokens, result))
        fields = _fields(spec, new, caches, slopes, out, mesh)
        run(ATTENTION, out, **fields, positions=positions[..., some], row=row, block=1)
    return result


def _are_numbers(values: torch.Tensor, count: int) -> bool:
    """Whether so many are held once, the same for all shards, as the kernels read them."""
    return values.numel() == count and values.dtype == torch.int32 and is_packed(values)


def _fits(
    spec: AttentionSpec,
    tokens: Sequence[torch.Tensor],
    caches: Sequence[torch.Tensor],
    slopes: torch.Tensor | None,
) -> bool:
    dtype = tokens[0].dtype
    return (
        spec.lead <= MESH_AXES
        and spec.alibi == (slopes is not None)
        and (slopes is None or (slopes.dtype == torch.float32 and is_packed(slopes)))
        and dtype in FLOATS
        and all(
            t.dtype == dtype and t.device.type == "cpu" and is_packed(t) for t in (*tokens, *caches)
        )
    )


def _fields(
    spec: AttentionSpec,
    tokens: Sequence[torch.Tensor],
    caches: Sequence[torch.Tensor],
    slopes: torch.Tensor | None,
    out: torch.Tensor,
    mesh: tuple[int, ...],
) -> dict[str, Any]:
    """What instructions of attention have in common."""
    lead = spec.lead
    count, heads, size = tokens[0].shape[lead:]
    rows, _, length, _ = caches[0].shape[lead:]
    new = dict(zip("qkv", tokens, strict=True)) | {"out": out}
    held = dict(zip(("keys", "values"), caches, strict=True))
    fields: dict[str, Any] = {**new, **held, "slopes": slopes, "type": type_of(out)}
    fields |= {"tokens": count, "heads": heads, "size": size, "rows": rows, "length": length}
    fields |= {"group": spec.group, "window": spec.window or 0, "scale": spec.factor(size)}
    fields |= {"mesh": mesh_sizes(mesh)}
    for name, t in (new | held | {"slopes": slopes}).items():
        fields[f"{name}_mesh"] = mesh_strides(t, lead)
    for name, t in new.items():
        fields[f"{name}_token"], fields[f"{name}_head"] = t.stride()[lead : lead + 2]
    for name, t in held.items():
        for axis, stride in zip(("row", "head", "token"), t.stride()[lead:], strict=False):
            fields[f"{name}_{axis}"] = stride
    return fields
