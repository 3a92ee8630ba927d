"""Settings of a generation as a page or a client sends them, to be checked in words."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any

from utils.generation.settings import GenerationSettings, Setting, settings_of
from utils.serving.limits import Limits
from utils.setup import UserError

LARGEST = (1 << 63) - 1
"""The largest number that JSON is written with everywhere."""

MOST_DIGITS = 20

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 4, 200, 200


def checked(
    given: Mapping[str, Any],
    max_tokens: int,
    limits: Limits | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> GenerationSettings:
    """Settings of any type by name, once they are known to be possible, and with a seed.

    Those that are not given have their defaults. `seed` may be its digits, or None or '' for one
    that is drawn. `stop` is a list of texts.

    Args:
        limits: of the stop strings.
        defaults: by name, where they are others than the settings' own.

    Raises:
        UserError: naming the first that is not possible, its value and what is allowed.
    """
    values = {
        name: _value(name, found, given[name])
        for name, found in settings_of().items()
        if name in given
    }
    settings = GenerationSettings(**{**(defaults or {}), **values})
    if settings.num_tokens > max_tokens:
        raise UserError(f"num_tokens must be from 1 to {max_tokens}, not {settings.num_tokens}")
    _check_stop(settings.stop, limits or Limits())
    return settings.seeded()


def _value(name: str, found: Setting, value: Any) -> Any:
    if found.kind is tuple:
        return _texts(name, value)
    if found.optional:
        return _digits(name, found, value)
    return _whole(name, value) if found.kind is int else _number(name, value)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{name} must be a number, not {_shown(value)}")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise UserError(f"{name} must be a number from -{LARGEST} to {LARGEST}")
    return value


def _whole(name: str, value: Any) -> int:
    number = _number(name, value)
    if not math.isfinite(number) or number != int(number):
        raise UserError(f"{name} must be a whole number, not {_shown(value)}")
    return int(number)


def _digits(name: str, found: Setting, value: Any) -> int | None:
    """A whole number or its digits, or None for none."""
    if isinstance(value, str):
        digits = value.strip()
        if digits and not digits.removeprefix("-").isdecimal():
            raise UserError(f"{name} must be {found.allowed}, not {_shown(value)}")
        if len(digits) > MOST_DIGITS:
            raise UserError(f"{name} must be a whole number from 0 to {LARGEST}")
        value = int(digits) if digits else None
    return None if value is None else _whole(name, value)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise UserError(f"{name} must be a list of texts, not {_shown(value)}")
    return tuple(value)


def _check_stop(stop: tuple[str, ...], limits: Limits) -> None:
    most, longest = limits.stop_strings, limits.stop_characters
    if len(stop) > most:
        raise UserError(f"stop must be at most {most} texts, not {len(stop)}")
    if (length := max(map(len, stop), default=0)) > longest:
        raise UserError(f"stop must be texts of at most {longest} characters, not {length}")


def _shown(value: Any) -> str:
    """The value as it may stand in a message: nobody reads a megabyte of it."""
    text = "empty" if value in (None, "") else _SHORT.repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
