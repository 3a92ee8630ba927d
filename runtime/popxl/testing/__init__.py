"""What programs' tests ask for: the element types there are."""

from __future__ import annotations

from popxl import dtypes


def get_all_dtypes() -> list[dtypes.dtype]:
    """Every element type of tensors."""
    floats = [d for d in dtypes.dtype._by_name.values() if d.is_floating_point]
    return [*get_all_int_dtypes(), *floats]


def get_all_int_dtypes(
    include_signed: bool = True, include_unsigned: bool = True
) -> list[dtypes.dtype]:
    """The element types of whole numbers."""
    wanted = {True: include_signed, False: include_unsigned}
    return [d for d in dtypes.dtype._by_name.values() if d.is_int and wanted[d.is_signed]]
