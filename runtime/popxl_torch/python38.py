"""What Python 3.8 took and 3.11 refuses, for programs of that time."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any


def allow_dataclass_defaults() -> None:
    """From now on a dataclass may have an instance of a dataclass as the default of a field.

    Python 3.11 refuses it because such an instance has no hash, which says that it can be changed.
    """
    if not hasattr(dataclasses._get_field, "__wrapped__"):  # type: ignore[attr-defined]
        dataclasses._get_field = _with_hash(dataclasses._get_field)  # type: ignore[attr-defined]


def _with_hash(get_field: Any) -> Any:
    @functools.wraps(get_field)
    def get(cls: type, name: str, *args: Any) -> Any:
        default = getattr(cls, name, None)
        if isinstance(default, dataclasses.Field):
            default = default.default
        kind = type(default)
        if not dataclasses.is_dataclass(default) or kind.__hash__ is not None:
            return get_field(cls, name, *args)
        kind.__hash__ = object.__hash__  # type: ignore[method-assign, assignment]
        try:
            return get_field(cls, name, *args)
        finally:
            kind.__hash__ = None  # type: ignore

    return get
