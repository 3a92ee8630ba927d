"""What a request may set: each setting once, with its default, bounds and words for people.

Command line, page, HTTP API and the terminal's `/set` are made from these fields: to add a setting,
add a field here, and use it in `utils.generation.sampling`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Self, get_type_hints

import numpy as np

from config.options import field
from utils.setup import UserError

SMALLEST = 1e-6  # divisor of logits: a smaller one could make float32 overflow
LARGEST = 1e6  # factor and divisor of logits, for the same reason
TEXT, SAMPLING = "text", "sampling: how the next token is chosen"


def with_line_ends(text: str) -> str:
    """A stop string as a person types it on one line: `\\n` stands for the end of one."""
    return text.replace("\\n", "\n")


@dataclass(frozen=True)
class Bounds:
    """Of a number: from `low`, or only above it, to `high`; 0 may be allowed besides.

    `off` is the value that has no effect.
    """

    low: float
    high: float = math.inf
    above: bool = False
    zero: str = ""  # what 0 means, where it is allowed besides
    off: float | None = None

    def hold(self, value: float) -> bool:
        if self.zero and value == 0:
            return True
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def text(self, whole: bool) -> str:
        """What may stand after `must be`."""
        kind = "a whole number" if whole else "a number"
        low = f"{kind} over {self.low:g}" if self.above else f"{kind} from {self.low:g}"
        high = " up" if self.high == math.inf else f" to {self.high:g}"
        zero = f"0 ({self.zero}) or " if self.zero else ""
        off = "" if self.off is None else f" ({self.off:g} is off)"
        return f"{zero}{low}{high}{off}"


@dataclass(frozen=True)
class Control:
    """How the page shows a setting.

    A slider from `low` to `high` in `step`s, or a field for text if these are None. `high` may be
    the name of what the model has: "context" or "vocabulary".
    """

    label: str
    low: float | None = None
    high: float | str | None = None
    step: float = 0.05
    start: Any = None  # that the page begins with; the setting's default if None
    more: bool = False  # among the settings that are folded away
    lines: int = 1  # of a field for text
    info: str = ""  # in place of the setting's help


def setting(
    default: Any, help: str, control: Control, bounds: Bounds | None = None, **option: Any
) -> Any:
    """A field that is a setting; `option` is for the command line."""
    return field(default=default, help=help, control=control, bounds=bounds, **option)


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen.

    Raises:
        UserError: naming the first setting that is out of bounds, its value and the bound.
    """

    temperature: float = setting(
        0.0,
        "0 takes the likeliest token each time; the higher, the more varied the text",
        Control("Temperature", 0, 2, start=0.7),
        Bounds(SMALLEST, LARGEST, zero="greedy"),
        group=SAMPLING,
    )
    top_k: int = setting(
        0,
        "draw from this many likeliest tokens; 0 is off",
        Control("Top-k", 0, "vocabulary", step=1),
        Bounds(0, off=0),
        metavar="K",
        group=SAMPLING,
    )
    top_p: float = setting(
        1.0,
        "draw from the likeliest tokens that together have this probability; 1 is off",
        Control("Top-p", 0.05, 1),
        Bounds(0, 1, above=True, off=1),
        metavar="P",
        group=SAMPLING,
    )
    repetition_penalty: float = setting(
        1.0,
        "over 1 makes tokens of the prompt and the text less likely to come again; 1 is off",
        Control("Repetition penalty", 1, 2),
        Bounds(SMALLEST, LARGEST, off=1),
        group=SAMPLING,
    )
    seed: int | None = setting(
        None,
        "draw the same tokens as the last time with this seed; a new seed if left out",
        Control("Seed"),
        Bounds(0),
        group=SAMPLING,
    )
    min_p: float = setting(
        0.0,
        "draw from tokens that are at least this many times as likely as the likeliest; 0 is off",
        Control("Min-p", 0, 1, more=True),
        Bounds(0, 1, off=0),
        metavar="P",
        group=SAMPLING,
    )
    typical_p: float = setting(
        1.0,
        "draw from the tokens whose surprise is nearest to the average, that together have this "
        "probability; 1 is off",
        Control("Typical-p", 0.05, 1, more=True),
        Bounds(0, 1, above=True, off=1),
        metavar="P",
        group=SAMPLING,
    )
    presence_penalty: float = setting(
        0.0,
        "subtract this from the logits of tokens that were generated before; 0 is off",
        Control("Presence penalty", -2, 2, more=True),
        Bounds(-2, 2, off=0),
        group=SAMPLING,
    )
    frequency_penalty: float = setting(
        0.0,
        "subtract this from a token's logit for each time it was generated before; 0 is off",
        Control("Frequency penalty", -2, 2, more=True),
        Bounds(-2, 2, off=0),
        group=SAMPLING,
    )

    def __post_init__(self) -> None:
        kind: Any = type(self)
        for name, found in settings_of(kind).items():
            found.check(name, getattr(self, name))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def seeded(self) -> Self:
        """This with a seed: its own, or one drawn from the system, which repeats what follows."""
        if self.seed is not None:
            return self
        return replace(self, seed=int(np.random.SeedSequence().generate_state(1)[0]))


@dataclass(frozen=True)
class GenerationSettings(SamplingConfig):
    """All that a request may set: sampling, and where the text ends."""

    num_tokens: int = setting(
        64,
        "generate at most this many tokens, 1 or more",
        Control("Number of tokens", 1, "context", step=1),
        Bounds(1),
        group=TEXT,
    )
    stop: tuple[str, ...] = setting(
        (),
        "end before this text, in which \\n ends a line; may be given several times",
        Control(
            "Stop strings", lines=4, info="end before any of these, one a line; \\n ends a line"
        ),
        repeat=True,
        group=TEXT,
    )


@dataclass(frozen=True)
class Setting:
    """A field of `GenerationSettings`, as those read it who make something from the fields."""

    default: Any
    kind: type  # int, float, or tuple, of texts
    optional: bool  # None is allowed
    help: str
    control: Control
    bounds: Bounds | None

    @property
    def allowed(self) -> str:
        """What may stand after `must be`."""
        if self.bounds is None:
            return "texts that are not empty"
        left_out = ", or left out" if self.optional else ""
        return self.bounds.text(whole=self.kind is int) + left_out

    def parsed(self, name: str, text: str) -> Any:
        """The value that a person typed; `none` leaves it out. Raises a `UserError`."""
        if self.kind is tuple:
            return () if text == "none" else (with_line_ends(text),)
        if self.optional and text == "none":
            return None
        try:
            return self.kind(text)
        except ValueError:
            raise UserError(f"{name} must be {self.allowed}, not {text[:80]!r}") from None

    def check(self, name: str, value: Any) -> None:
        """Raises a `UserError` where the setting cannot have this value."""
        if self.bounds is None:
            possible = "" not in value
        elif value is None:
            possible = self.optional
        else:
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            possible = (whole or self.kind is float) and self.bounds.hold(value)
        if not possible:
            raise UserError(f"{name} must be {self.allowed}, not {value!r}")


@cache
def settings_of(kind: Any = GenerationSettings) -> Mapping[str, Setting]:
    """The settings among a dataclass's fields, by name, in the order of the API's parameters.

    The number of tokens comes first: clients may send it by its place, right after the prompt.
    """
    hints = get_type_hints(kind)
    return {
        each.name: _setting(each, hints[each.name])
        for each in sorted(dataclasses.fields(kind), key=lambda f: f.name != "num_tokens")
        if "control" in each.metadata
    }


def _setting(found: dataclasses.Field, hint: Any) -> Setting:
    kind = next((k for k in (int, float) if hint in (k, k | None)), tuple)
    words = {name: found.metadata[name] for name in ("help", "control", "bounds")}
    return Setting(found.default, kind, hint == kind | None, **words)
