"""Structs that Python packs by the names of their fields, and their declarations in C++."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from popxl_torch.backends.cpu.constants import CONSTANTS, MESH_AXES

ADDRESSES = ("read", "write", "int32*")
"""The kinds of fields that are addresses, given as tensors."""


@dataclass(frozen=True)
class Field:
    """A field of a struct.

    Attributes:
        kind: of its elements: "int64", "double", "uint8", "read" and "write" (addresses), "int32*"
            (the address of int32), or the name of a struct.
        count: of its elements where it is an array, else None.
    """

    name: str
    kind: str
    count: int | None

    def declaration(self) -> str:
        known = {"read": "const void*", "write": "void*", "int32*": "const int32_t*"}
        numbers = {"int64": "int64_t", "uint8": "uint8_t", "double": "double"}
        array = "" if self.count is None else f"[{self.count}]"
        return f"    {({**known, **numbers}).get(self.kind, self.kind)} {self.name}{array};"


class Struct:
    """Fields in their order in memory, each of 8 bytes but for bytes, of which there are eights.

    Args:
        name: of the C++ struct.
        fields: separated by spaces: `name` (an int64), `name:kind`, `name*` (an address that is
            read), `name>` (one that is written to), each with `[count]`, one of `CONSTANTS`,
            behind it for an array. What ends in `mesh` has a number a mesh axis.
        inside: the structs that fields may be of.
    """

    def __init__(self, name: str, fields: str, *inside: Struct):
        self.name = name
        self.fields = [_field(text) for text in fields.split()]
        known = {
            "int64": "q",
            "uint8": "B",
            "double": "d",
            "read": "q",
            "write": "q",
            "int32*": "q",
        }
        known |= {other.name: other.form for other in inside}
        self.form: str = "".join(known[f.kind] * (f.count or 1) for f in self.fields)
        self._packer = struct.Struct(self.form)
        self.size = self._packer.size
        numbers = {f.name: len(known[f.kind]) * (f.count or 1) for f in self.fields}
        self._pack = self._packing(numbers)

    def pack(self, **values: Any) -> bytes:
        """The struct's bytes.

        Args:
            values: one for each field: a number; a tensor, or None, for an address; as many numbers
                as an array, or a struct inside, has.

        Raises:
            TypeError: where a field is missing, or there is none of such a name.
            ValueError: where an array has another number of elements.
        """
        return self._pack(**values)

    def _packing(self, numbers: dict[str, int]) -> Callable[..., bytes]:
        """The function that packs, with a parameter a field, since a loop over them is slower."""
        names, checks, items = [], [], []
        for field in self.fields:
            count = numbers[field.name]
            names.append(field.name)
            if field.kind in ADDRESSES:
                items.append(f"0 if {field.name} is None else {field.name}.data_ptr()")
            elif field.count is None and count == 1:
                items.append(field.name)
            else:
                wrong = f"'{self.name}.{field.name}: {count} numbers, not %d' % len({field.name})"
                checks.append(f"    if len({field.name}) != {count}: raise ValueError({wrong})")
                items.append(f"*{field.name}")
        lines = [f"def {self.name}(*, {', '.join(names)}):", *checks]
        lines.append(f"    return pack({', '.join(items)})")
        made: dict[str, Any] = {"pack": self._packer.pack}
        exec("\n".join(lines), made)  # of the description alone, as dataclasses make theirs
        function: Callable[..., bytes] = made[self.name]
        return function

    def declaration(self) -> str:
        """The struct in C++."""
        lines = [f"struct {self.name} {{", *(f.declaration() for f in self.fields), "};"]
        return "\n".join(lines)


class Instruction(Struct):
    """A struct that a kernel is given.

    Args:
        number: of the instruction.
        kind: its name in C++.
    """

    def __init__(self, number: int, kind: str, name: str, fields: str, *inside: Struct):
        super().__init__(name, fields, *inside)
        self.number, self.kind = number, kind

    def __repr__(self) -> str:
        return self.kind


def _field(text: str) -> Field:
    found = re.fullmatch(r"(\w+)(\*|>|:[\w*]+)?(?:\[(\w+)\])?", text)
    assert found is not None, text
    name, mark, count = found.groups()
    kind = {None: "int64", "*": "read", ">": "write"}.get(mark) or mark.removeprefix(":")
    if name.endswith("mesh"):
        return Field(name, kind, MESH_AXES)
    return Field(name, kind, None if count is None else CONSTANTS[count])
