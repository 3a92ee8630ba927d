"""Attention over a KV cache: one call for all rows, heads and shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from popxl_torch.backends.cpu.constants import FLOATS, MESH_AXES, TYPES
from popxl_torch.backends.cpu.instructions import ATTENTION, CHUNK, KEEP
from popxl_torch.backends.cpu.layout import (
    given,
    is_packed,
    joint_mesh,
    mesh_sizes,
    mesh_strides,
)
from popxl_torch.backends.cpu.library import Library
from popxl_torch.backends.specs import AttentionSpec


def token_attention(
    native: Library,
    spec: AttentionSpec,
    tokens: Sequence[torch.Tensor],
    caches: Sequence[torch.Tensor],
    slopes: torch.Tensor | None,
    positions: torch.Tensor,
    row: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Put each row's key and value in its caches and attend over what is filled.

    Args:
        tokens, slopes: as `BackEnd.attention` has them.
        caches: of keys and values, `(*mesh, rows, heads / group, length, size)`, written to.
        positions: int32 `(*mesh, rows)`, the same for all shards.
        row: int32; the row of the caches that all tokens belong to, one after the other, or of
            several tokens `(*mesh, rows)` that of each. Without it they are one of each row.

    Returns:
        `(*mesh, rows, heads, size)`; None where this kernel does not do it, and nothing is
        written.
    """
    lead = spec.lead
    count, heads, size = tokens[0].shape[lead:]
    each = row is not None and row.ndim > lead
    if not _fits(spec, tokens, caches, slopes, positions, count):
        return None
    if not _are_numbers(row, count if each else 1):
        return None
    mesh = joint_mesh(lead, *tokens, *caches, *given(slopes))
    if any(cache.shape[:lead] != mesh for cache in caches):
        return None  # two shards would write to one place
    result = torch.empty((*mesh, count, heads, size), dtype=tokens[0].dtype)
    at_once = row is None or each
    for some in [slice(0, count)] if at_once else [slice(i, i + 1) for i in range(count)]:
        index = (slice(None),) * lead + (some,)
        q, k, v, out = (t[index] for t in (*tokens, result))
        native.run(
            ATTENTION,
            out,
            **_fields(spec, (q, k, v), caches, slopes, out, mesh),
            positions=positions[..., some],
            row=row,
            block=1,
        )
    return result


def _are_numbers(values: torch.Tensor | None, count: int) -> bool:
    """Whether so many are held once, as the kernels read them, or none is given."""
    if values is None:
        return True
    return values.numel() == count and values.dtype == torch.int32 and is_packed(values)


def _fits(
    spec: AttentionSpec,
    tokens: Sequence[torch.Tensor],
    caches: Sequence[torch.Tensor],
    slopes: torch.Tensor | None,
    positions: torch.Tensor,
    count: int,
) -> bool:
    alike = (*tokens, *caches)
    return (
        spec.lead <= MESH_AXES
        and spec.alibi == (slopes is not None)
        and positions.numel() == count
        and positions.dtype == torch.int32
        and is_packed(positions)
        and all(t.dtype == torch.float32 and is_packed(t) for t in given(slopes))
        and tokens[0].dtype in FLOATS
        and all(t.dtype == tokens[0].dtype and t.device.type == "cpu" for t in alike)
        and all(is_packed(t) for t in alike)
    )


def chunk_attention(
    native: Library,
    spec: AttentionSpec,
    tokens: Sequence[torch.Tensor],
    caches: Sequence[torch.Tensor],
    slopes: torch.Tensor | None,
    positions: torch.Tensor,
    rows: torch.Tensor,
) -> torch.Tensor | None:
    """Put chunks of tokens of one row or several in their caches and attend over what is filled.

    Args:
        tokens, caches, slopes: as `token_attention` has them.
        positions, rows: int32 `(*mesh)`, of the first token and of all; or `(*mesh, blocks)`, of as
            many tokens each; the same for all shards.

    Returns:
        `(*mesh, tokens, heads, size)`; None where this kernel does not do it, and nothing is
        written.
    """
    lead, length = spec.lead, caches[0].shape[-2]
    count, heads, size = tokens[0].shape[lead:]
    blocks = positions.shape[-1] if positions.ndim > lead else 1
    if not _fits(spec, tokens, caches, slopes, positions, blocks) or not _are_numbers(rows, blocks):
        return None
    if count % blocks or count // blocks > length:
        return None
    mesh = joint_mesh(lead, *tokens, *caches, *given(slopes))
    if any(cache.shape[:lead] != mesh for cache in caches):
        return None  # two shards would write to one place
    result = torch.empty((*mesh, count, heads, size), dtype=tokens[0].dtype)
    fields = _fields(spec, tokens, caches, slopes, result, mesh)
    fields |= {"position": positions, "row": rows, "block": count // blocks}
    for instruction in KEEP, CHUNK:
        native.run(instruction, result, **fields)
    return result


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
    fields: dict[str, Any] = {**new, **held, "slopes": slopes, "type": TYPES[out.dtype]}
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
