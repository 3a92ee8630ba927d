"""Element types of tensors, and what numpy and torch call them."""

from __future__ import annotations

import builtins
from typing import Any

import ml_dtypes
import numpy as np
from popxl_shared.absent import FLOAT8


class dtype:  # noqa: N801 - PopXL's own name
    """One element type. There is one instance a type; compare with `is` or `==`."""

    _by_name: dict[str, dtype] = {}
    _by_numpy: dict[np.dtype, dtype] = {}
    _name: str
    _numpy: np.dtype

    def __init__(self):
        raise TypeError("popxl.dtype cannot be constructed: use popxl.float32, popxl.int32, ...")

    @classmethod
    def _make(cls, name: str, numpy_type: Any) -> dtype:
        self = super().__new__(cls)
        self._name, self._numpy = name, np.dtype(numpy_type)
        cls._by_name[name] = self
        cls._by_numpy.setdefault(self._numpy, self)
        return self

    @classmethod
    def as_dtype(cls, type_value: Any) -> dtype:
        """The dtype for a popxl dtype, a name, a numpy or torch dtype, array or tensor, or a type.

        Raises:
            ValueError: where there is no such type.
        """
        if isinstance(type_value, Float8):
            raise ValueError(f"{type_value}: {FLOAT8}")
        if isinstance(type_value, dtype):
            return type_value
        if isinstance(type_value, np.dtype) and type_value in cls._by_numpy:
            return cls._by_numpy[type_value]  # names of types are slow
        if hasattr(type_value, "dtype") and not isinstance(type_value, type):
            type_value = type_value.dtype  # of an array or tensor
        if isinstance(type_value, str):
            return cls.from_name(type_value)
        if isinstance(type_value, type) and type_value in _PYTHON_TYPES:
            return _PYTHON_TYPES[type_value]
        name = str(type_value)
        if name.startswith("torch."):
            return cls.from_name(name.removeprefix("torch."))
        try:
            # numpy takes None for float64; here it is nothing.
            return cls.from_name(np.dtype("none" if type_value is None else type_value).name)
        except TypeError:
            raise ValueError(f"{type_value!r} is not an element type; {_known()}") from None

    @classmethod
    def from_name(cls, name: str) -> dtype:
        """The dtype called `name`, e.g. "float16".

        Raises:
            ValueError: where there is no such name.
        """
        found = cls._by_name.get(_ALIASES.get(name, name))
        if found is None:
            raise ValueError(f"{name!r} is not the name of an element type; {_known()}")
        return found

    def as_numpy(self) -> np.dtype:
        """The numpy dtype (bfloat16 is that of `ml_dtypes`)."""
        return self._numpy

    def as_torch(self) -> Any:
        """The torch dtype."""
        import torch

        return getattr(torch, self._name)

    @property
    def name(self) -> str:
        return self._name

    @property
    def is_floating_point(self) -> builtins.bool:
        return self._name in ("float16", "bfloat16", "float32", "float64")

    @property
    def is_complex(self) -> builtins.bool:
        return False

    @property
    def is_int(self) -> builtins.bool:
        return "int" in self._name

    @property
    def is_signed(self) -> builtins.bool:
        return self.is_floating_point or self._name.startswith("int")

    def __repr__(self) -> str:
        return self._name

    def __reduce__(self):
        return dtype.from_name, (self._name,)


def _known() -> str:
    return "known are " + ", ".join(dtype._by_name)


_ALIASES = {"half": "float16", "float": "float32", "double": "float64", "boolean": "bool"}

bool = dtype._make("bool", np.bool_)
int8 = dtype._make("int8", np.int8)
int16 = dtype._make("int16", np.int16)
int32 = dtype._make("int32", np.int32)
int64 = dtype._make("int64", np.int64)
uint8 = dtype._make("uint8", np.uint8)
uint16 = dtype._make("uint16", np.uint16)
uint32 = dtype._make("uint32", np.uint32)
uint64 = dtype._make("uint64", np.uint64)
float16 = half = dtype._make("float16", np.float16)
bfloat16 = dtype._make("bfloat16", ml_dtypes.bfloat16)
float32 = float = dtype._make("float32", np.float32)
float64 = double = dtype._make("float64", np.float64)


class Float8(dtype):  # noqa: N801 - a kind of dtype
    """The name of an 8-bit float, which no tensor can have."""

    _absent: dict[str, Float8] = {}

    @classmethod
    def _named(cls, name: str) -> Float8:
        self = object.__new__(cls)
        self._name, self._numpy = name, np.dtype([(name, np.uint8)])
        cls._absent[name] = self
        return self


float8_143, float8_152 = Float8._named("float8_143"), Float8._named("float8_152")
np_dtype_float8_143, np_dtype_float8_152 = float8_143._numpy, float8_152._numpy

_PYTHON_TYPES: dict[Any, dtype] = {
    builtins.bool: bool,
    builtins.int: int64,
    builtins.float: float32,
}

DOWNCAST: dict[dtype, dtype] = {int64: int32, uint64: uint32, float64: float32}
"""What a 64-bit host array is narrowed to: a device holds 32 bits at the most."""
