"""The instructions that the C++ kernels are given: the one description of their fields.

Python packs them by name, and the C++ side's structs, enumerations and constants are made from this
(`header`) when the kernels are compiled.
"""

from __future__ import annotations

from collections.abc import Iterable

from popxl_torch.backends.cpu.constants import CONSTANTS, NUMBERED_ACTIVATIONS, TYPE_NAMES
from popxl_torch.backends.cpu.structs import Instruction, Struct
from popxl_torch.backends.specs import CHAIN_STEPS

# Strides are in elements; those of a mesh axis are 0 where it is held once. One of `w_output` and
# `w_input` is 1, or there is only one such element.
_EPILOGUE = (
    "bias* gate* residual* out> bias_type gate_type residual_type out_type activation mesh "
    "bias_mesh gate_mesh gate_row residual_mesh residual_row out_mesh out_row"
)
LINEAR = Instruction(
    0,
    "LINEAR",
    "Linear",
    "x* w* scale* offset* x_type w_type scale_type rows inputs outputs segments group "
    "x_mesh x_segment x_row w_mesh w_segment w_output w_input "
    f"scale_mesh scale_segment scale_output {_EPILOGUE}",
)
NORM = Instruction(
    1,
    "NORM",
    "Norm",
    "x* weight* bias* out> x_type weight_type rows size segments epsilon:double mesh "
    "x_mesh x_segment x_row weight_mesh weight_segment out_mesh out_segment out_row",
)
# Elements of a head lie side by side. `block` tokens after each other have one `row` of the caches,
# and in a chunk one `position`, that of the first. `row` is null where token i is of row i.
# Keys and values have a head for each `group` of the queries'. No `window` is 0, no slopes null.
_ATTENDING = (
    "q* k* v* slopes* {position}:int32* row:int32* keys> values> out> "
    "block type tokens heads group size rows length window scale:double mesh "
    "q_mesh q_token q_head k_mesh k_token k_head v_mesh v_token v_head "
    "keys_mesh keys_row keys_head keys_token values_mesh values_row values_head values_token "
    "slopes_mesh out_mesh out_token out_head"
)
ATTENTION = Instruction(2, "ATTENTION", "Attention", _ATTENDING.format(position="positions"))
FINISH = Instruction(3, "FINISH", "Finish", f"x* x_type rows outputs x_mesh x_row {_EPILOGUE}")
# `groups` are those of all shards together.
DECOMPRESS = Instruction(
    4, "DECOMPRESS", "Decompress", "words* scale* offset* out> scale_type out_type groups group"
)
CHUNK = Instruction(5, "CHUNK", "Chunk", _ATTENDING.format(position="position"))
KEEP = Instruction(6, "KEEP", "Chunk", _ATTENDING.format(position="position"))
# Strides are in bytes. Axes of the part, those of the mesh first, filled up in front; `first` is
# the stride of an axis that the part moves along, by `most` steps at most; `count` of these.
PUT = Instruction(
    7,
    "PUT",
    "Put",
    "update* index* target> item_bytes wide_index "
    "sizes[PLACE_AXES] target_strides[PLACE_AXES] "
    "update_strides[PLACE_AXES] index_strides[PLACE_AXES] "
    "count first[PLACE_AXES] most[PLACE_AXES] index_step",
)
STRIDED = Struct("Strided", "data> type strides[OUTER_AXES] inner")
# `a`, `b` and `c` are registers, of a load `a` is an operand; `type` is what the result is rounded
# to. What is `one` has one element a row.
STEP = Struct(
    "StepOf",
    "kind:uint8 to:uint8 a:uint8 b:uint8 c:uint8 type:uint8 one:uint8 unused:uint8 value:double",
)
ELEMENTWISE = Instruction(
    8,
    "ELEMENTWISE",
    "Elementwise",
    "sizes[OUTER_AXES] row steps out:Strided "
    "operands:Strided[MOST_OPERANDS] program:StepOf[MOST_STEPS]",
    STRIDED,
    STEP,
)
INSTRUCTIONS = (LINEAR, NORM, ATTENTION, FINISH, DECOMPRESS, CHUNK, KEEP, PUT, ELEMENTWISE)


def header() -> str:
    """The C++ side of all this."""
    structs = {s.name: s for s in (STRIDED, STEP, *INSTRUCTIONS)}
    activations = (a.upper() if a else "NO_ACTIVATION" for a in NUMBERED_ACTIVATIONS)
    return "\n".join(
        [
            "// Made from instructions.py; do not edit.",
            "#pragma once",
            "#include <cstdint>",
            "namespace popxl {",
            *(f"constexpr int {name} = {value};" for name, value in CONSTANTS.items()),
            _enumeration("Kind", "int64_t", (i.kind for i in INSTRUCTIONS)),
            _enumeration("Type", "int64_t", TYPE_NAMES),
            _enumeration("Activation", "int64_t", activations),
            _enumeration("Step", "uint8_t", (f"STEP_{step.upper()}" for step in CHAIN_STEPS)),
            *(s.declaration() for s in structs.values()),
            *(f"static_assert(sizeof({s.name}) == {s.size});" for s in structs.values()),
            "}  // namespace popxl",
            "",
        ]
    )


def _enumeration(name: str, of: str, members: Iterable[str]) -> str:
    return f"enum {name} : {of} {{ {', '.join(members)} }};"
