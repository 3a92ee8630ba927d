"""The CPU's back end: kernels in C++, of which graphs that repeat are recorded.

Products of few rows read each weight once. A row's result does not depend, to the bit, on how many
other rows there are, up to `SOME_ROWS`, and beyond them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from popxl_shared.groups import PER_WORD
from popxl_shared.limits import FEW_ROWS, SOME_ROWS

from popxl_torch.backends.cpu.attention import attention
from popxl_torch.backends.cpu.constants import (
    FLOATS,
    MESH_AXES,
    NUMBERED_ACTIVATIONS,
    OUTER_AXES,
    TILE,
)
from popxl_torch.backends.cpu.elementwise import Concat, RowProgram
from popxl_torch.backends.cpu.instructions import DECOMPRESS, FINISH, LINEAR
from popxl_torch.backends.cpu.layout import (
    apart,
    is_packed,
    joint_mesh,
    mesh_sizes,
    mesh_strides,
    rows_of,
    type_of,
)
from popxl_torch.backends.cpu.library import Library, observer
from popxl_torch.backends.cpu.norm import norm
from popxl_torch.backends.cpu.place import place
from popxl_torch.backends.cpu.structs import Instruction
from popxl_torch.backends.specs import (
    NOTHING,
    Added,
    AttentionSpec,
    ChainSpec,
    LinearSpec,
    NormSpec,
    PlaceSpec,
    StoredWeight,
)
from popxl_torch.memory.cells import Cell
from popxl_torch.replay.recorder import CallLists
from popxl_torch.replay.replay import Capture

Maybe = torch.Tensor | None


class Cpu:
    """A `BackEnd` of the compiled kernels.

    Args:
        native: the library.
    """

    products = chains = True

    def __init__(self, native: Library):
        self.native = native
        self.capture: Capture | None = CallLists(native)

    def run(self, instruction: Instruction, result: torch.Tensor, **fields: Any) -> None:
        """Do one instruction, which makes `result`; `fields` are as `Struct.pack` takes them."""
        packed = instruction.pack(**fields)
        self.native.run_one(instruction.number, packed, self.native.threads())
        observe = observer.get()
        if observe is not None:
            observe(instruction, packed, result)

    def lacks(self, spec: LinearSpec | AttentionSpec) -> str | None:
        if isinstance(spec, LinearSpec) or spec.queries != "chunk of a row" or spec.window is None:
            return None
        return "a chunk's queries see all keys before them, not a window"

    def linear(
        self, spec: LinearSpec, x: torch.Tensor, weight: StoredWeight, added: Added = NOTHING
    ) -> Maybe:
        lead, summed = spec.lead, spec.summed
        size, outputs, group = weight.sizes()
        inner = x.shape[lead:-1]
        rows, others = inner.numel(), added.tensors()
        if not rows or not size or not _known(spec, x, weight, added):
            return None
        if rows > FEW_ROWS and not self._takes_many_rows(x, weight, summed, rows):
            return None
        flat = rows_of(x, lead)
        whole = list(joint_mesh(lead, flat, weight.tensor, *weight.scales()))
        segments = 1
        if summed is not None:
            segments, whole[summed] = whole[summed], 1
        mesh = tuple(map(max, whole, joint_mesh(lead, *others))) if others else tuple(whole)
        if summed is not None and mesh[summed] != 1:
            return None
        result = torch.empty((*mesh, rows, outputs), dtype=spec.dtype)
        x_mesh, x_segment = apart(flat, lead, summed)
        w_mesh, w_segment = apart(weight.tensor, lead, summed)
        scale_mesh, scale_segment = apart(weight.scale, lead, summed)
        w_output, w_input = weight.strides()
        self.run(
            LINEAR,
            result,
            x=flat,
            w=weight.tensor,
            scale=weight.scale,
            offset=weight.offset,
            x_type=type_of(flat),
            w_type=type_of(weight.tensor),
            scale_type=type_of(weight.scale),
            rows=rows,
            inputs=size,
            outputs=outputs,
            segments=segments,
            group=group,
            x_mesh=x_mesh,
            x_segment=x_segment,
            w_mesh=w_mesh,
            w_segment=w_segment,
            scale_mesh=scale_mesh,
            scale_segment=scale_segment,
            x_row=flat.stride(-2),
            w_output=w_output,
            w_input=w_input,
            scale_output=weight.scale_stride(),
            **_epilogue(spec, result, added),
        )
        return result.reshape(*mesh, *inner, outputs)

    def epilogue(self, spec: LinearSpec, y: torch.Tensor, added: Added) -> Maybe:
        lead, inner, outputs = spec.lead, y.shape[spec.lead : -1], y.shape[-1]
        rows, others = inner.numel(), added.tensors()
        if not rows * outputs or not _follows(spec, added.bias, [y, *others]):
            return None
        flat = rows_of(y, lead)
        mesh = joint_mesh(lead, y, *others)
        result = torch.empty((*mesh, rows, outputs), dtype=spec.dtype)
        self.run(
            FINISH,
            result,
            x=flat,
            x_type=type_of(flat),
            rows=rows,
            outputs=outputs,
            x_mesh=mesh_strides(flat, lead),
            x_row=flat.stride(-2),
            **_epilogue(spec, result, added),
        )
        return result.reshape(*mesh, *inner, outputs)

    def dequantise(self, weight: StoredWeight, dtype: torch.dtype) -> Maybe:
        words, scale, offset = weight.tensor, weight.scale, weight.offset
        assert scale is not None and offset is not None
        alike = scale.shape[:-1] == offset.shape[:-1] == words.shape[:-1]
        if not alike or scale.dtype != offset.dtype or words.device.type != "cpu":
            return None
        if scale.dtype not in FLOATS or dtype not in FLOATS:
            return None
        words, scale, offset = (t.contiguous() for t in (words, scale, offset))
        group = words.shape[-1] * PER_WORD
        result = torch.empty((*words.shape[:-2], words.shape[-2] * group), dtype=dtype)
        self.run(
            DECOMPRESS,
            result,
            words=words,
            scale=scale,
            offset=offset,
            out=result,
            scale_type=type_of(scale),
            out_type=type_of(result),
            groups=scale.numel(),
            group=group,
        )
        return result.transpose(-1, -2)

    def _takes_many_rows(
        self, x: torch.Tensor, weight: StoredWeight, summed: int | None, rows: int
    ) -> bool:
        """Whether torch does not do these: it does rows of int8 whose shards have own scales.

        To dequantise a weight takes torch longer than the kernels take for some rows with it.
        """
        most = self.native.many_rows
        in_place = rows <= SOME_ROWS and weight.strides()[1] == 1
        if weight.tensor.dtype in (torch.int8, torch.uint16):
            scales_of_shards = (
                summed is not None and weight.scale is not None and weight.scale.shape[summed] > 1
            )
            if in_place:
                return bool(most)
            return x.dtype in most and not (scales_of_shards and not weight.grouped)
        size, outputs, _ = weight.sizes()
        if self.native.tiles and x.dtype == weight.tensor.dtype == torch.bfloat16:
            return weight.strides()[1] == 1 and not size % (2 * TILE) and not outputs % TILE
        return weight.tensor.dtype == x.dtype and weight.tensor.nbytes <= most.get(x.dtype, 0)

    def batched(self, spec: LinearSpec, x: torch.Tensor, w: torch.Tensor) -> Maybe:
        """A batch axis is to the kernel what an axis of the mesh is: it reads each matrix as it
        lies. Axes of size 1 do not count."""
        pairs = list(zip(x.shape[:-2], w.shape[:-2], strict=True))
        kept = [axis for axis, sizes in enumerate(pairs) if sizes != (1, 1)]
        if len(kept) > MESH_AXES:
            return None
        dropped = tuple(axis for axis in range(len(pairs)) if axis not in kept)
        weight = StoredWeight(w.squeeze(dropped))
        made = self.linear(LinearSpec(len(kept), spec.dtype), x.squeeze(dropped), weight)
        return None if made is None else made.reshape(*map(max, pairs), *made.shape[-2:])

    def norm(
        self, spec: NormSpec, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> Maybe:
        return norm(self.run, spec, x, weight, bias)

    def attention(
        self,
        spec: AttentionSpec,
        tokens: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        cells: tuple[Cell, Cell],
        slopes: Maybe,
        positions: torch.Tensor,
        row: Maybe,
    ) -> Maybe:
        if self.lacks(spec):
            return None
        meshes = [new.shape[: spec.lead] for new in tokens[1:]]
        caches = [cell.writable(mesh) for cell, mesh in zip(cells, meshes, strict=True)]
        return attention(self.run, spec, tokens, caches, slopes, positions, row)

    def chain(self, spec: ChainSpec) -> Callable[..., torch.Tensor]:
        return RowProgram(self.run, spec)

    def concat(
        self, lead: int, axis: int, dtype: torch.dtype, rank: int
    ) -> Callable[..., torch.Tensor] | None:
        if dtype not in FLOATS or rank + lead > OUTER_AXES:
            return None
        return Concat(self.run, lead, axis, dtype)

    def place(
        self, spec: PlaceSpec, target: torch.Tensor, index: torch.Tensor, update: torch.Tensor
    ) -> bool | None:
        return place(self.run, spec, target, index, update)


def _known(spec: LinearSpec, x: torch.Tensor, weight: StoredWeight, added: Added) -> bool:
    kinds = (torch.uint16,) if weight.grouped else (*FLOATS, torch.int8)
    return (
        _follows(spec, added.bias, [x, *added.tensors(), *weight.scales()])
        and weight.tensor.dtype in kinds
        and (weight.tensor.dtype == torch.int8) == (weight.scale is not None and not weight.grouped)
        and weight.fits()
    )


def _follows(spec: LinearSpec, bias: Maybe, floats: list[torch.Tensor]) -> bool:
    """Whether the kernels do what follows a product, and know the types of these tensors of it."""
    return (
        spec.lead <= MESH_AXES
        and spec.dtype in FLOATS
        and floats[0].device.type == "cpu"
        and all(t.dtype in FLOATS for t in floats)
        and (bias is None or (bias.ndim == spec.lead + 1 and is_packed(bias)))
    )


def _epilogue(spec: LinearSpec, result: torch.Tensor, added: Added) -> dict[str, Any]:
    """The fields of what follows a product, for a result `(*mesh, rows, outputs)`."""
    lead, bias = spec.lead, added.bias
    gate = None if added.gate is None else rows_of(added.gate, lead)
    residual = None if added.residual is None else rows_of(added.residual, lead)
    return {
        "bias": bias,
        "gate": gate,
        "residual": residual,
        "out": result,
        "bias_type": type_of(bias),
        "gate_type": type_of(gate),
        "residual_type": type_of(residual),
        "out_type": type_of(result),
        "bias_mesh": mesh_strides(bias, lead),
        "gate_mesh": mesh_strides(gate, lead),
        "residual_mesh": mesh_strides(residual, lead),
        "out_mesh": mesh_strides(result, lead),
        "gate_row": 0 if gate is None else gate.stride(-2),
        "residual_row": 0 if residual is None else residual.stride(-2),
        "out_row": result.stride(-2),
        "activation": NUMBERED_ACTIVATIONS.index(spec.activation),
        "mesh": mesh_sizes(result.shape[:lead]),
    }
