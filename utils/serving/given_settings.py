"""Settings of a generation as a page or a client sends them, to be checked in words."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from dataclasses import dataclass
from typing import Any

from utils.generation.sampling import SamplingConfig
from utils.serving.limits import Limits
from utils.setup import UserError

LARGEST = (1 << 63) - 1
"""The largest number that JSON is written with everywhere."""

MOST_DIGITS = 20

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 4, 200, 200


@dataclass(frozen=True)
class CheckedSettings:
    """Settings that are possible."""

    sampling: SamplingConfig
    num_tokens: int
    stop: tuple[str, ...]


@dataclass(frozen=True)
class GivenSettings:
    """Settings of any type and value; those of `run_inference.py` by name, with its defaults.

    `seed` may be its digits, or None or '' for one that is drawn. `stop` is a list of texts.
    """

    num_tokens: Any = 64
    temperature: Any = 0.0
    top_k: Any = 0
    top_p: Any = 1.0
    repetition_penalty: Any = 1.0
    seed: Any = None
    stop: Any = ()

    def checked(self, max_tokens: int, limits: Limits | None = None) -> CheckedSettings:
        """The settings, once they are known to be possible.

        Args:
            limits: of the stop strings.

        Raises:
            UserError: naming the first that is not, its value and what is allowed.
        """
        sampling = SamplingConfig(
            temperature=_number("temperature", self.temperature),
            top_k=_whole("top_k", self.top_k),
            top_p=_number("top_p", self.top_p),
            repetition_penalty=_number("repetition_penalty", self.repetition_penalty),
            seed=_seed(self.seed),
        )
        num_tokens = _whole("num_tokens", self.num_tokens)
        if not 1 <= num_tokens <= max_tokens:
            raise UserError(f"num_tokens must be from 1 to {max_tokens}, not {num_tokens}")
        stop = _bounded(_texts("stop", self.stop), limits or Limits())
        return CheckedSettings(sampling.seeded(), num_tokens, stop)


def setting_names() -> list[str]:
    """In order."""
    return [setting.name for setting in dataclasses.fields(GivenSettings)]


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


def _seed(value: Any) -> int | None:
    """A whole number or its digits, or None for none."""
    if isinstance(value, str):
        digits = value.strip()
        if digits and not digits.removeprefix("-").isdecimal():
            raise UserError(f"seed must be a whole number, 0 or more, not {_shown(value)}")
        if len(digits) > MOST_DIGITS:
            raise UserError(f"seed must be a whole number from 0 to {LARGEST}")
        value = int(digits) if digits else None
    return None if value is None else _whole("seed", value)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise UserError(f"{name} must be a list of texts, not {_shown(value)}")
    if "" in value:
        raise UserError(f"{name} must be a list of texts that are not empty")
    return tuple(value)


def _bounded(stop: tuple[str, ...], limits: Limits) -> tuple[str, ...]:
    """The stop strings themselves, where they are few and short enough."""
    most, longest = limits.stop_strings, limits.stop_characters
    if len(stop) > most:
        raise UserError(f"stop must be at most {most} texts, not {len(stop)}")
    if (length := max(map(len, stop), default=0)) > longest:
        raise UserError(f"stop must be texts of at most {longest} characters, not {length}")
    return stop


def _shown(value: Any) -> str:
    """The value as it may stand in a message: nobody reads a megabyte of it."""
    text = "empty" if value in (None, "") else _SHORT.repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
