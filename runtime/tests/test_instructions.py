"""What the kernels are told: fields by name, the same on both sides of the C++ border."""

from __future__ import annotations

import re
import struct

import pytest
import torch
from popxl_torch.backends.cpu.constants import CONSTANTS
from popxl_torch.backends.cpu.instructions import DECOMPRESS, ELEMENTWISE, INSTRUCTIONS, header
from popxl_torch.backends.cpu.structs import Instruction, Struct

POINT = Struct("Point", "x y weight:double")
LINE = Instruction(
    0, "LINE", "Line", "data* out> mesh ends:Point[MOST_OPERANDS] width:double", POINT
)
ENDS = [1, 2, 0.5] * CONSTANTS["MOST_OPERANDS"]


def test_fields_are_packed_by_name_in_the_order_of_the_description():
    data = torch.zeros(2)
    packed = LINE.pack(width=2.5, out=None, ends=ENDS, mesh=[4, 5, 6], data=data)
    assert packed == struct.pack("qqqqq" + 8 * "qqd" + "d", data.data_ptr(), 0, 4, 5, 6, *ENDS, 2.5)


@pytest.mark.parametrize(
    "changed, error, message",
    [
        ({"wdth": 1}, TypeError, "Line.* unexpected keyword argument 'wdth'"),
        ({"mesh": [1, 2]}, ValueError, "Line.mesh: 3 numbers, not 2"),
        ({"ends": ENDS[:-1]}, ValueError, "Line.ends: 24 numbers, not 23"),
    ],
)
def test_a_field_that_does_not_fit_is_refused_by_its_name(changed, error, message):
    fields = {"data": None, "out": None, "mesh": [1] * 3, "ends": ENDS, "width": 1.0}
    with pytest.raises(error, match=message):
        LINE.pack(**{**fields, **changed})


def test_a_field_that_is_missing_is_refused():
    with pytest.raises(TypeError, match="Decompress.* missing 2 .*: 'groups' and 'group'"):
        DECOMPRESS.pack(words=None, scale=None, offset=None, out=None, scale_type=0, out_type=0)


def test_the_header_has_every_field_of_every_instruction_in_its_order():
    text = header()
    for instruction in INSTRUCTIONS:
        (body,) = re.findall(rf"struct {instruction.name} {{\n(.*?)}};", text, re.S)
        names = re.findall(r"(\w+)(?:\[\d+\])?;", body)
        assert names == [field.name for field in instruction.fields]
    assert text.count("struct Chunk {") == 1  # two instructions have the same fields


def test_arrays_are_as_long_as_the_constants_say():
    lengths = {field.name: field.count for field in ELEMENTWISE.fields}
    assert lengths["operands"] == CONSTANTS["MOST_OPERANDS"]
    assert lengths["program"] == CONSTANTS["MOST_STEPS"]
